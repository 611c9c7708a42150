//! The list of jobs. Nothing indexes them, so SCAN goes through the keys, within bounds: a server may hold millions of
//! others.

use super::address::Address;
use super::connections::Request;
use super::entry::{Entry, EntryId, parse_entries};
use super::error::is_denied_key;
use super::keys::KeyTemplate;
use super::position::Position;
use super::reply::text;
use super::status::JobState;
use super::topology::NodeError;
use super::{JobKey, MAX_ENTRIES_PER_REQUEST, Store};
use crate::event::{JobId, JobStatus, Rfc3339};
use crate::source::JobSummary;
use futures_util::future::join_all;
use redis::{Cmd, Value, cmd};
use std::collections::BTreeSet;

/// Keys of each server that SCAN goes through, ...
const MAX_SCANNED_KEYS: usize = 50_000;
/// ... in steps of so many.
const KEYS_PER_SCAN: usize = 1_000;
/// Jobs that are asked for their status and newest event.
const MAX_LISTED_JOBS: usize = 2_000;

impl Store {
    pub(super) async fn jobs(&self, status: Option<JobStatus>, limit: usize) -> Result<Vec<JobSummary>, NodeError> {
        let (template, key_type) = match &self.job_key {
            Some(template) => (template, self.status.key_type()),
            None => (&self.events_key, "stream"),
        };
        let nodes = self.topology.nodes()?;
        let scans = join_all(nodes.iter().map(|node| self.scan(node, template, key_type))).await;
        let found = scans.into_iter().collect::<Result<Vec<BTreeSet<JobId>>, NodeError>>()?;
        let jobs: Vec<JobId> = found.into_iter().flatten().take(MAX_LISTED_JOBS).collect();
        let mut listed = Vec::new();
        for jobs in jobs.chunks(MAX_ENTRIES_PER_REQUEST) {
            for summary in self.summaries(jobs).await {
                match summary {
                    Ok(summary) => listed.extend(summary),
                    // SCAN names keys that this user may not read, too.
                    Err(error) if is_denied_key(&error.error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        listed.sort_by(|(a, _), (b, _)| b.cmp(a));
        let summaries = listed.into_iter().map(|(_, summary)| summary);
        Ok(summaries.filter(|job| status.is_none() || job.status == status).take(limit).collect())
    }

    pub(super) async fn job(&self, job: &JobId) -> Result<Option<JobSummary>, NodeError> {
        let found = self.summaries(std::slice::from_ref(job)).await.pop().transpose()?.flatten();
        let Some((_, mut summary)) = found else { return Ok(None) };
        if self.mapping.has_ends() && summary.status.is_none_or(|status| !status.is_final()) {
            let info = self.stream_info(job).await?;
            let end = self.end_in_stream(job, info.as_ref(), &Position::newest(info.as_ref())).await?;
            summary.status = end.or(summary.status);
        }
        Ok(Some(summary))
    }

    /// Returns the jobs whose keys one server has.
    pub(super) async fn scan(
        &self,
        node: &Address,
        template: &KeyTemplate,
        key_type: &str,
    ) -> Result<BTreeSet<JobId>, NodeError> {
        let mut found = BTreeSet::new();
        let mut cursor = "0".to_string();
        for _ in 0..MAX_SCANNED_KEYS / KEYS_PER_SCAN {
            let mut scan = cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(template.pattern()).arg("COUNT").arg(KEYS_PER_SCAN);
            scan.arg("TYPE").arg(key_type);
            let Value::Array(parts) = self.nodes.send_to(node, scan).await? else { break };
            let [next, Value::Array(keys)] = &parts[..] else { break };
            found.extend(keys.iter().filter_map(|key| template.job(text(key)?)));
            cursor = text(next).unwrap_or("0").to_string();
            if cursor == "0" || found.len() >= MAX_LISTED_JOBS {
                break;
            }
        }
        Ok(found)
    }

    /// Reads the status and the newest event of each job. The id of the newest entry is there to sort by.
    async fn summaries(&self, jobs: &[JobId]) -> Vec<Result<Option<(EntryId, JobSummary)>, NodeError>> {
        let statuses: Vec<Request> = jobs.iter().filter_map(|job| self.status_request(job)).collect();
        let newest: Vec<Request> =
            jobs.iter().map(|job| self.events_request(job, |key| vec![newest_entry_command(key)])).collect();
        let mut statuses = self.nodes.send(&statuses).await.into_iter();
        let newest = self.nodes.send(&newest).await;
        let summaries = jobs.iter().zip(newest).map(|(job, newest)| {
            let key = statuses.next().map(|replies| self.parse_job_key(replies)).transpose()?;
            let state = key.as_ref().and_then(JobKey::state);
            let newest = match newest?.pop().map(parse_entries) {
                Some(Err(error)) if is_denied_key(&error) => return Err(self.topology.node_error(error)),
                // A key of another type is no stream of ours.
                newest => newest.and_then(|entries| entries.ok()?.pop()),
            };
            Ok(self.summary(job, state, newest))
        });
        summaries.collect()
    }

    /// Returns `None` for a key that only looks like one of a job: it has neither a status nor an entry.
    fn summary(&self, job: &JobId, state: Option<&JobState>, newest: Option<Entry>) -> Option<(EntryId, JobSummary)> {
        let last = newest.as_ref().map(|entry| self.mapping.read(entry, job));
        let end = state.and_then(|state| state.end).or_else(|| last.as_ref()?.end);
        let summary = JobSummary {
            job_id: job.clone(),
            status: self.resolve_status(end, state),
            last_event_at: last.and_then(|last| last.event.timestamp).map(|at| Rfc3339(at).to_string()),
        };
        let is_job = summary.status.is_some() || newest.is_some();
        is_job.then(|| (newest.map_or(EntryId::ZERO, |entry| entry.id), summary))
    }
}

fn newest_entry_command(key: &str) -> Cmd {
    let mut range = cmd("XREVRANGE");
    range.arg(key).arg("+").arg("-").arg("COUNT").arg(1);
    range
}
