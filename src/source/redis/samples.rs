//! The findings of `jobcast check` about streams that are there: what their newest entries are made of, and what of it the
//! settings find.

use super::entry::{Entry, EntryId};
use super::error::is_denied_key;
use super::history::older_entries_command;
use super::mapping::Fit;
use super::position::Position;
use super::reply::number;
use super::topology::NodeError;
use super::{JobKey, Store};
use crate::config;
use crate::event::JobId;
use crate::source::Finding;
use jiff::Timestamp;
use redis::{Value, cmd};
use std::collections::BTreeSet;

/// Streams that are looked at.
const MAX_STREAMS: usize = 20;
/// Newest entries of a stream that are looked at.
const ENTRIES: usize = 20;
/// Names of fields that are shown.
const MAX_NAMES: usize = 30;
/// A job that ended so long ago is over for everybody.
const LONG_AGO_MS: i64 = 24 * 60 * 60 * 1000;

/// A stream, as it was found.
struct Sample {
    job: JobId,
    newest: Entry,
    key: JobKey,
    /// It belongs to a job that ended long ago, and does not expire.
    is_left_over: bool,
}

/// Looks for placeholders that are none.
pub fn check_templates(settings: &config::Redis) -> Vec<Finding> {
    let keys = [("events_key", &settings.events_key), ("job_key", &settings.job_key)];
    let has_unknown_part = |key: &str| {
        let rest = key.replace(config::Redis::JOB_ID, "");
        ["$", "{{", "<", "%s", "*"].iter().any(|sign| rest.contains(sign))
    };
    let unknown = keys.into_iter().filter(|(_, key)| has_unknown_part(key)).map(|(name, key)| {
        let summary = format!("source.redis.{name} holds more than one part that varies: {key}");
        Finding::problem(summary, "$job_id is the only placeholder; a job's id may itself be made of several parts")
    });
    unknown.collect()
}

/// Looks at some streams, or at the newest entries of the shared one.
pub async fn check_streams(store: &Store) -> Result<Vec<Finding>, NodeError> {
    if store.shared.is_some() {
        return check_shared(store).await;
    }
    let mut samples = Vec::new();
    // Without the right to SCAN there is nothing to look at, which another finding says.
    for job in some_jobs(store).await.unwrap_or_default() {
        match sample(store, job).await {
            // SCAN names keys that this user may not read, too.
            Err(error) if is_denied_key(&error.error) => {}
            sample => samples.extend(sample?),
        }
    }
    samples.sort_by_key(|sample| std::cmp::Reverse(sample.newest.id));
    let Some(newest) = samples.first() else {
        let summary = format!("no stream is there yet under {}", store.settings.events_key);
        return Ok(vec![Finding::fine(summary)]);
    };
    let key = store.events_key.key(&newest.job);
    let request = store.events_request(&newest.job, |key| vec![older_entries_command(key, "+", ENTRIES)]);
    let entries = store.parse_range(store.send(request).await?.pop())?;
    let mut findings = check_entries(store, &key, &entries, &newest.job);
    findings.extend(check_job_key(store, &samples));
    let left_over = samples.iter().filter(|sample| sample.is_left_over).count();
    if left_over > 0 {
        findings.push(Finding::fine(format!(
            "{left_over} of {} streams belong to jobs that ended more than a day ago, and have no TTL: EXPIRE them at \
             the end, or they stay for ever",
            samples.len()
        )));
    }
    Ok(findings)
}

async fn some_jobs(store: &Store) -> Result<BTreeSet<JobId>, NodeError> {
    let mut jobs = BTreeSet::new();
    for node in store.topology.nodes()? {
        jobs.extend(store.scan(&node, &store.events_key, "stream").await?);
    }
    Ok(jobs.into_iter().take(MAX_STREAMS).collect())
}

async fn sample(store: &Store, job: JobId) -> Result<Option<Sample>, NodeError> {
    let info = store.stream_info(&job).await?;
    let Some(newest) = info.as_ref().and_then(|info| info.last_entry.clone()) else { return Ok(None) };
    let key = store.job_state(&job).await?;
    let end = match key.state().and_then(|state| state.end) {
        None => store.end_in_stream(&job, info.as_ref(), &Position::newest(info.as_ref())).await?,
        end => end,
    };
    let is_old = is_long_ago(newest.id);
    let is_left_over = end.is_some() && is_old && never_expires(store, &job).await;
    Ok(Some(Sample { job, newest, key, is_left_over }))
}

fn is_long_ago(id: EntryId) -> bool {
    i64::try_from(id.ms).is_ok_and(|ms| ms < Timestamp::now().as_millisecond() - LONG_AGO_MS)
}

/// Tells a key without a TTL. Without the right to ask, nothing is said.
async fn never_expires(store: &Store, job: &JobId) -> bool {
    let key = store.events_key.key(job);
    let mut ttl = cmd("PTTL");
    ttl.arg(&key);
    matches!(store.send_command(&key, ttl).await, Ok(Value::Int(-1)))
}

/// Compares the newest entries of a stream with the settings. A part that one of them has is there.
fn check_entries(store: &Store, key: &str, entries: &[Entry], job: &JobId) -> Vec<Finding> {
    let fits: Vec<Fit> = entries.iter().map(|entry| store.mapping.fit(entry)).collect();
    let mut names: Vec<&str> = Vec::new();
    let mut found: Vec<&(&str, String)> = Vec::new();
    for fit in &fits {
        for name in fit
            .names
            .iter()
            .filter(|name| names.len() < MAX_NAMES && !names.contains(&name.as_str()))
            .collect::<Vec<_>>()
        {
            names.push(name);
        }
        found.extend(fit.found.iter().filter(|one| !found.contains(one)).collect::<Vec<_>>());
    }
    let names = names.join(", ");
    let missing = fits.iter().flat_map(|fit| &fit.missing).filter(|one| !found.contains(one)).collect::<BTreeSet<_>>();
    let places = Vec::from_iter(found.iter().map(|(part, place)| format!("{part} from {place}"))).join(", ");
    let places = if places.is_empty() { "nothing of it is named in source.redis.fields" } else { &places };
    let mut findings = vec![Finding::fine(format!("the newest entries of {key} have {names}: {places}"))];
    if fits.iter().all(|fit| fit.lacks_envelope) {
        let summary = format!("the newest entries of {key} have no JSON in the field {}", store.settings.envelope);
        findings.push(Finding::problem(summary, format!("name another field as source.redis.envelope: {names}")));
    }
    for (part, place) in missing.into_iter().filter(|(part, place)| !is_usual(store, part, place)) {
        let summary = match *part {
            "type" => format!("the newest entries of {key} have no {place}: their type is \"event\""),
            _ => format!("the newest entries of {key} have no {place}, which is to be the event's {part}"),
        };
        let help = format!("set source.redis.fields.{part} to one of {names}, or to \"= text\"");
        findings.push(Finding::problem(summary, help));
    }
    let unreadable = entries.iter().flat_map(|entry| store.mapping.read(entry, job).event.unreadable);
    let unreadable: BTreeSet<String> = unreadable.filter_map(|part| serde_json::to_string(&part).ok()).collect();
    if !unreadable.is_empty() {
        let summary = format!(
            "some of the newest entries of {key} have parts that cannot be read: {}",
            Vec::from_iter(unreadable).join(", ")
        );
        let help = "see source.redis.payload_kind, timestamp_unit, timestamp_zone and the writer";
        findings.push(Finding::problem(summary, help));
    }
    findings
}

/// Tells a place that only the defaults name, and that need not be there.
fn is_usual(store: &Store, part: &str, place: &str) -> bool {
    let usual = config::EntryFields::default();
    match part {
        "type" => false,
        "payload" => store.settings.fields.payload == usual.payload,
        _ => usual_place(&usual, part) == Some(place),
    }
}

fn usual_place<'a>(usual: &'a config::EntryFields, part: &str) -> Option<&'a str> {
    match part {
        "id" => usual.id.column(),
        "timestamp" => usual.timestamp.column(),
        "actor" => usual.actor.column(),
        "step_id" => usual.step_id.column(),
        _ => None,
    }
}

/// Finds job keys of another type than the settings read.
fn check_job_key(store: &Store, samples: &[Sample]) -> Option<Finding> {
    let template = store.job_key.as_ref()?;
    let odd = samples.iter().find(|sample| matches!(sample.key, JobKey::OtherType))?;
    let expected = store.status.key_type();
    let summary = format!("{} is no {expected}, so nothing says how the job is", template.key(&odd.job));
    let help = "source.redis.job_status_field is a hash's field; \"\" where the key is a text, \"/status\" where that is \
                JSON; or correct source.redis.job_key";
    Some(Finding::problem(summary, help))
}

async fn check_shared(store: &Store) -> Result<Vec<Finding>, NodeError> {
    let key = &store.settings.events_key;
    let request = store.shared_commands(|key| vec![older_entries_command(key, "+", ENTRIES)]);
    let entries = store.parse_range(store.send(request).await?.pop())?;
    let Some(newest) = entries.first() else {
        return Ok(vec![Finding::fine(format!("the stream {key} is not there yet, or is empty"))]);
    };
    let mut length = cmd("XLEN");
    length.arg(key);
    let length = store.send_command(key, length).await.ok().as_ref().and_then(number);
    let mut findings = Vec::new();
    let of_jobs: Vec<Entry> = entries.iter().filter(|entry| store.mapping.job_of(entry).is_some()).cloned().collect();
    match of_jobs.first().and_then(|entry| store.mapping.job_of(entry)) {
        Some(job) => findings.extend(check_entries(store, key, &of_jobs, &job)),
        None => findings.push(Finding::problem(
            format!("none of the {} newest entries of {key} has {}", entries.len(), store.settings.job_id_field),
            format!("set source.redis.job_id_field to one of {}", store.mapping.fit(newest).names.join(", ")),
        )),
    }
    if let Some(length) = length {
        findings.push(Finding::fine(format!("{key} holds {length} entries; history is what the newest 20,000 hold")));
    }
    Ok(findings)
}
