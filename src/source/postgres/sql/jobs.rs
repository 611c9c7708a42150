//! Statements on the job table.

use super::super::tables::{JobTable, RowOrder, Tables};
use super::literal;
use super::rows::system_xid;
use super::snapshot::snapshot_ctes;
use crate::event::{JobId, JobStatus};

/// Expression: the job's status as a text, or null.
pub fn job_status(tables: &Tables, job: &JobId) -> String {
    let Some(jobs) = &tables.jobs else { return "NULL::text".into() };
    let (status, table, is_job) = (jobs.status(), &jobs.name, jobs.id.equals(job.as_str()));
    format!("(SELECT {status}::text FROM {table} j WHERE {is_job} LIMIT 1)")
}

/// Expression: the job table has this job.
pub fn has_job(tables: &Tables, job: &JobId) -> String {
    let Some(jobs) = &tables.jobs else { return "false".into() };
    format!("EXISTS (SELECT FROM {} j WHERE {})", jobs.name, jobs.id.equals(job.as_str()))
}

/// The newest rows of a job among which the last write is looked for: not always the row that comes last was written last.
const LAST_ROWS: usize = 100;

/// Reads which transactions wrote a job last, and the time of its newest events, by the index that history is read by:
/// `status_xid, events_xid, newest_at`. The first is null where it is not asked for, or the job table does not tell.
pub fn last_writes(tables: &Tables, job: &JobId, asks_status: bool) -> String {
    let rows = tables.rows(tables.best);
    let time = &tables.events.columns.time;
    let status_xid = match &tables.jobs {
        Some(jobs) if jobs.has_xmin && asks_status => {
            format!("(SELECT {} FROM {} j WHERE {} LIMIT 1)", system_xid("j"), jobs.name, jobs.id.equals(job.as_str()))
        }
        _ => "NULL::bigint".into(),
    };
    format!(
        "{ctes} SELECT {status_xid} AS status_xid, max(xid) AS events_xid, max(at) AS newest_at
         FROM (SELECT {xid} AS xid, CASE WHEN {has_time} THEN {at} END AS at FROM {events} e
               WHERE {of_job} ORDER BY {newest_first} LIMIT {LAST_ROWS}) newest",
        ctes = snapshot_ctes(&rows, 0, None),
        xid = rows.xid(),
        has_time = time.is_there(),
        at = time.micros(),
        events = rows.table(),
        of_job = tables.events.job_id.equals(job.as_str()),
        newest_first = rows.newest_first(),
    )
}

/// Expression: the time of the newest of the events that `of_job` chooses, found by the index that history is read by.
fn newest_time(tables: &Tables, of_job: &str) -> String {
    let rows = tables.rows(tables.best);
    let (columns, events) = (&tables.events.columns, &tables.events.name);
    let (time, seq) = (&columns.time, &columns.seq);
    let by_time = format!("(SELECT {} FROM {events} e WHERE {of_job})", time.newest());
    if tables.best.order == RowOrder::Time {
        return by_time;
    }
    let by_number = format!(
        "(SELECT {} FROM {events} e WHERE {of_job} AND NOT {} ORDER BY e.{seq} DESC LIMIT 1)",
        time.instant(),
        rows.is_unnumbered()
    );
    if tables.events.has_unnumbered { format!("coalesce({by_number}, {by_time})") } else { by_number }
}

/// Lists jobs, those with the newest events first: `job_id, status, last_event_at`.
pub fn list_jobs(tables: &Tables, jobs: &JobTable, status: Option<JobStatus>, limit: usize) -> String {
    let is_wanted = status
        .map_or_else(|| "true".into(), |status| format!("{}::text = {}", jobs.status(), literal(status.as_str())));
    format!(
        "SELECT {id} AS job_id, {status}::text AS status,
                {last_event_at} AS last_event_at
         FROM {table} j
         LEFT JOIN LATERAL (SELECT {newest} AS at) newest ON true
         WHERE {is_wanted} ORDER BY newest.at DESC NULLS LAST, 1 LIMIT {limit}",
        id = jobs.id.text(),
        status = jobs.status(),
        table = jobs.name,
        last_event_at = rfc_3339("newest.at"),
        newest = newest_time(tables, &format!("{} = {}", tables.events.job_id.column(), jobs.id.column())),
    )
}

/// Reads one job, and whether there is such a job: a row of the job table, or an event: `status, is_known, last_event_at`.
pub fn job_summary(tables: &Tables, job: &JobId) -> String {
    let of_job = tables.events.job_id.equals(job.as_str());
    format!(
        "SELECT {status} AS status, {has_job} OR EXISTS (SELECT FROM {events} e WHERE {of_job}) AS is_known,
                {last_event_at} AS last_event_at",
        status = job_status(tables, job),
        has_job = has_job(tables, job),
        events = tables.events.name,
        last_event_at = rfc_3339(&newest_time(tables, &of_job)),
    )
}

/// Expression: a time as RFC 3339 in UTC with milliseconds.
fn rfc_3339(time: &str) -> String {
    format!("to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')")
}

/// Inserts a job as running, unless it is there.
pub fn insert_job(jobs: &JobTable, job: &JobId) -> String {
    format!(
        "INSERT INTO {table} ({id}, {status}) SELECT {value}, 'RUNNING'
         WHERE NOT EXISTS (SELECT FROM {table} j WHERE {is_job}) ON CONFLICT DO NOTHING",
        table = jobs.name,
        id = jobs.id_name,
        status = jobs.status_name,
        value = jobs.id.value(job.as_str()),
        is_job = jobs.id.equals(job.as_str()),
    )
}

/// Sets a job's status; inserts the job where it is missing.
pub fn upsert_status(jobs: &JobTable, job: &JobId, status: &str) -> String {
    format!(
        "INSERT INTO {table} ({id}, {status_name}) VALUES ({job}, {status})
         ON CONFLICT ({id}) DO UPDATE SET {status_name} = excluded.{status_name}",
        table = jobs.name,
        id = jobs.id_name,
        status_name = jobs.status_name,
        job = jobs.id.value(job.as_str()),
        status = literal(status),
    )
}
