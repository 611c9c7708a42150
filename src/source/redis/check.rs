//! The findings of `jobcast check` about the servers.

use super::Store;
use super::address::Deployment;
use super::error::{failed, is_denied_key};
use super::samples;
use super::topology::NodeError;
use crate::config;
use crate::error::SourceError;
use crate::source::Finding;
use redis::{ErrorKind, cmd};

pub async fn check(settings: &config::Source) -> Vec<Finding> {
    open_and_check(settings).await.unwrap_or_else(|error| vec![error.into()])
}

async fn open_and_check(settings: &config::Source) -> Result<Vec<Finding>, SourceError> {
    let store = Store::open(settings).await?;
    check_store(&store).await.map_err(|error| failed("checking the servers", error))
}

async fn check_store(store: &Store) -> Result<Vec<Finding>, NodeError> {
    // The access comes first, so that its error is shown rather than one that follows from it.
    let denied = store.probe_access(&store.nodes).await?;
    let deployment = store.topology.deployment();
    let mut findings = vec![match denied {
        None => Finding::fine(format!("{deployment} answers, and its streams may be read")),
        Some(denied) => Finding::fine(format!(
            "{deployment} answers, and its user may not read the keys of all jobs ({}): those that it may not read are \
             said to be so to their readers, and the others are served",
            denied.error
        )),
    }];
    findings.extend(check_tracking(store).await?);
    findings.extend(check_counting(store).await?);
    findings.push(check_ends(store));
    findings.extend(samples::check_templates(&store.settings));
    findings.extend(samples::check_streams(store).await?);
    if matches!(deployment, Deployment::Cluster { .. }) {
        let nodes = store.topology.nodes()?;
        findings.push(Finding::fine(format!("a Cluster of {} primaries", nodes.len())));
    }
    findings.extend(check_listing(store).await?);
    Ok(findings)
}

/// Tries CLIENT TRACKING on every server. Nothing is read on these connections, so nothing is pushed on them either.
async fn check_tracking(store: &Store) -> Result<Vec<Finding>, NodeError> {
    let mut findings = Vec::new();
    for node in store.topology.nodes()? {
        let mut tracking = cmd("CLIENT");
        tracking.arg("TRACKING").arg("ON");
        match store.nodes.send_to(&node, tracking).await {
            Ok(_) => {}
            Err(error) if error.error.kind() == ErrorKind::Io => return Err(error),
            Err(error) => findings.push(Finding::fine(format!(
                "{node} does not tell what changed ({}): new events wait for the poll; \
                 ACL SETUSER … +client|tracking lets it",
                error.error
            ))),
        }
    }
    if findings.is_empty() {
        findings.push(Finding::fine(
            "the servers tell what changed (CLIENT TRACKING): new events do not wait for the poll",
        ));
    }
    Ok(findings)
}

/// Tells a server that counts entries from one that does not. Only a stream shows it, and there may be none yet.
async fn check_counting(store: &Store) -> Result<Option<Finding>, NodeError> {
    let jobs = store.jobs(None, 1).await.unwrap_or_default();
    let Some(job) = jobs.first() else { return Ok(None) };
    let info = match store.stream_info(&job.job_id).await {
        Err(error) if is_denied_key(&error.error) => return Ok(None),
        info => info?,
    };
    Ok(info.filter(|info| info.entries_added.is_none()).map(|_| {
        Finding::fine(
            "the server does not count entries (it is older than 7.0): a cursor whose own entry was trimmed is answered \
             by a reset, even where nothing after it was",
        )
    }))
}

/// Looks for a setting by which the end of a job is known.
fn check_ends(store: &Store) -> Finding {
    if store.job_key.is_some() {
        Finding::fine(format!("how a job is stands in the {} {}", store.status.key_type(), store.settings.job_key))
    } else if store.mapping.has_ends() {
        Finding::fine("a job ends by an event of its stream")
    } else {
        Finding::problem(
            "nothing says that a job has ended: there is neither a job_key nor a final type",
            "set source.redis.job_key, or source.redis.final_types",
        )
    }
}

/// Tries SCAN: listing jobs needs a right that watching does not.
async fn check_listing(store: &Store) -> Result<Option<Finding>, NodeError> {
    let Some(node) = store.topology.nodes()?.into_iter().next() else { return Ok(None) };
    let mut scan = cmd("SCAN");
    scan.arg(0).arg("COUNT").arg(1);
    Ok(store
        .nodes
        .send_to(&node, scan)
        .await
        .err()
        .map(|error| Finding::fine(format!("jobs cannot be listed ({}): GET /runner-jobs needs SCAN", error.error))))
}
