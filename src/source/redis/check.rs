//! What `jobcast check` says of the servers.

use super::address::Deployment;
use super::error::failed;
use super::nodes::Fault;
use super::{Store, info_of};
use crate::config;
use crate::source::Finding;
use redis::cmd;

pub async fn check(settings: &config::Source) -> Vec<Finding> {
    let looked = async {
        let store = Store::open(settings).await?;
        look(&store).await.map_err(|fault| failed("checking the servers", fault))
    };
    match looked.await {
        Ok(found) => found,
        Err(error) => vec![error.into()],
    }
}

async fn look(store: &Store) -> Result<Vec<Finding>, Fault> {
    // first what everything else needs, so that its error is the one that is shown
    store.greet(&store.links).await?;
    let mut found =
        vec![Finding::fine(format!("{} answers, and its streams may be read", store.topology.deployment()))];
    found.extend(tracking(store).await?);
    found.extend(counting(store).await?);
    found.push(match &store.job {
        Some(_) => Finding::fine(format!("a job's status is the field status of the hash {}", store.settings.job_key)),
        None if store.settings.final_types.all().next().is_some() => {
            Finding::fine("a job ends by the type of its last event")
        }
        None => Finding::problem(
            "nothing says that a job has ended: there is neither a job_key nor a final type",
            "set source.redis.job_key, or source.redis.final_types",
        ),
    });
    if matches!(store.topology.deployment(), Deployment::Cluster { .. }) {
        let nodes = store.topology.nodes()?;
        found.push(Finding::fine(format!("a Cluster of {} primaries", nodes.len())));
    }
    found.extend(listing(store).await?);
    Ok(found)
}

/// Whether the servers tell what changed.
async fn tracking(store: &Store) -> Result<Vec<Finding>, Fault> {
    let mut found = Vec::new();
    for node in store.topology.nodes()? {
        // on this connection nothing is read, so nothing is told
        let mut on = cmd("CLIENT");
        on.arg("TRACKING").arg("ON");
        match store.links.ask_one(&node, on).await {
            Ok(_) => {}
            Err(fault) if fault.error.kind() == redis::ErrorKind::Io => return Err(fault),
            Err(fault) => found.push(Finding::fine(format!(
                "{node} does not tell what changed ({}): new events wait for the poll; \
                 ACL SETUSER … +client|tracking lets it",
                fault.error
            ))),
        }
    }
    if found.is_empty() {
        found.push(Finding::fine(
            "the servers tell what changed (CLIENT TRACKING): new events do not wait for the poll",
        ));
    }
    Ok(found)
}

/// Whether they count entries. Only a stream can tell, and there may be none yet.
async fn counting(store: &Store) -> Result<Vec<Finding>, Fault> {
    let jobs = store.jobs(None, 1).await.unwrap_or_default();
    let Some(job) = jobs.first().map(|job| job.job_id.clone()) else { return Ok(Vec::new()) };
    let answer = store.ask(store.on_stream(&job, |key| vec![info_of(key)])).await?;
    let info = store.info(answer.into_iter().next())?;
    Ok(match info {
        Some(info) if info.added.is_none() => vec![Finding::fine(
            "the server does not count entries (it is older than 7.0): a cursor whose own entry was trimmed is answered \
             by a reset, even where nothing after it was",
        )],
        _ => Vec::new(),
    })
}

/// Listing jobs needs a right that watching does not.
async fn listing(store: &Store) -> Result<Vec<Finding>, Fault> {
    let Some(node) = store.topology.nodes()?.into_iter().next() else { return Ok(Vec::new()) };
    let mut scan = cmd("SCAN");
    scan.arg(0).arg("COUNT").arg(1);
    Ok(match store.links.ask_one(&node, scan).await {
        Ok(_) => Vec::new(),
        Err(fault) => {
            vec![Finding::fine(format!("jobs cannot be listed ({}): GET /runner-jobs needs SCAN", fault.error))]
        }
    })
}
