//! Statements on several jobs at once, and on the end of a job's history.

use super::super::position::EndedXids;
use super::super::position::Position;
use super::super::tables::Tables;
use super::jobs::has_job;
use super::rows::{MostBytes, RowsPart};
use super::snapshot::{SNAPSHOT_COLUMNS, snapshot_ctes};
use super::{EventRows, IdColumn, XidBound, literal};
use crate::event::JobId;
use crate::source::Limit;

/// A query for rows of jobs that stand at one position.
pub struct ManyQuery<'a> {
    pub jobs: Vec<&'a JobId>,
    /// Rows that were delivered at this position are left out. It is one without a range and without counts.
    pub position: &'a Position,
    /// Only rows of transactions that had ended by then.
    pub end: &'a EndedXids,
    /// Bounds of each job's rows.
    pub limit: Limit,
}

/// Most transactions that a position may be behind, for all rows that were written since to be looked at together.
const NEAR: u64 = 10_000;

/// Reads the first rows of each job, in the order of keys, each with the job's `place` in the query, counted from 1. The
/// job's status stands beside each of its rows, and alone in one where it has no rows.
pub fn pages(tables: &Tables, durable_xid: u64, expansion: u64, query: &ManyQuery) -> String {
    let rows = &tables.rows(query.position.scheme);
    let most = MostBytes { bytes: query.limit.bytes, expansion };
    let ids = query.jobs.iter().copied();
    let (status, has_job) = match &tables.jobs {
        Some(jobs) => {
            let (table, is_job) = (&jobs.name, jobs.id.equals_expression("wanted.job"));
            (
                format!("(SELECT {}::text FROM {table} j WHERE {is_job} LIMIT 1)", jobs.status()),
                format!("EXISTS (SELECT FROM {table} j WHERE {is_job})"),
            )
        }
        None => ("NULL::text".into(), "false".into()),
    };
    format!(
        "{ctes}, jobcast_wanted AS MATERIALIZED (
           SELECT wanted.*, {status} AS status, {has_job} AS has_job
           FROM unnest({in_events}, {in_jobs}) WITH ORDINALITY wanted (in_events, job, place)
         )
         SELECT {SNAPSHOT_COLUMNS}, wanted.place, wanted.status, wanted.has_job, page.*
         FROM jobcast_snapshot CROSS JOIN jobcast_mark CROSS JOIN jobcast_wanted wanted
         LEFT JOIN {page}
         ORDER BY wanted.place, page.part, page.ordinal",
        ctes = snapshot_ctes(rows, durable_xid, None),
        in_events = spellings(&tables.events.job_id, ids.clone()),
        in_jobs = spellings(tables.jobs.as_ref().map_or(&tables.events.job_id, |jobs| &jobs.id), ids),
        page = if is_near(query) { newest_rows(rows, query, most) } else { first_rows(rows, query, most) },
    )
}

fn is_near(query: &ManyQuery) -> bool {
    let mark = query.position.settled().mark;
    mark > 0 && query.end.mark.saturating_sub(mark) <= NEAR
}

/// Joins the rows of all jobs that are few because they are new. The planner knows the ids and sees that, where it would take
/// a job with a long history for one like all others.
fn newest_rows(rows: &EventRows, query: &ManyQuery, most: MostBytes) -> String {
    let job_id = &rows.tables.events.job_id;
    format!(
        "(SELECT 0 AS part, {job} AS job, row_number() OVER (PARTITION BY {job} ORDER BY {order}) AS nth, {columns}
          FROM {events} e WHERE {of_jobs} AND {undelivered}) page
         ON page.job = wanted.in_events AND page.nth <= {limit}",
        job = job_id.text(),
        order = rows.order(),
        columns = rows.select_list_up_to(most, &format!("PARTITION BY {}", job_id.text())),
        events = rows.table(),
        of_jobs = job_id.equals_any(query.jobs.iter().map(|job| job.as_str())),
        undelivered = undelivered(rows, query),
        limit = query.limit.events + 1,
    )
}

/// Condition: the row is of a transaction between the position and the end.
fn undelivered(rows: &EventRows, query: &ManyQuery) -> String {
    let since = rows.written_since(&XidBound::Fixed(query.position.settled().clone()));
    format!("{since} AND {}", rows.written_before(&XidBound::Fixed(query.end.clone())))
}

/// The ids of jobs as one column spells them, with null for what is no value of its type.
fn spellings<'a>(column: &IdColumn, jobs: impl Iterator<Item = &'a JobId>) -> String {
    let spelled = jobs.map(|job| column.canonical(job.as_str()).map_or_else(|| "NULL".into(), |id| literal(&id)));
    format!("ARRAY[{}]::text[]", spelled.collect::<Vec<_>>().join(","))
}

/// Joins the first rows of each job, which are looked for job by job, from each part of its rows.
fn first_rows(rows: &EventRows, query: &ManyQuery, most: MostBytes) -> String {
    let limit = query.limit.events + 1;
    let of_job = rows.tables.events.job_id.equals_expression("wanted.in_events");
    let condition = format!("{of_job} AND {}", undelivered(rows, query));
    let part = |(number, part): (usize, &RowsPart)| {
        format!(
            "SELECT {number} AS part, {columns} FROM {events} e WHERE {condition}{of_part} ORDER BY {order} LIMIT {limit}",
            columns = part.rows.select_list_up_to(most, ""),
            events = rows.table(),
            of_part = part.and_condition(),
            order = part.rows.order(),
        )
    };
    format!("LATERAL ({}) page ON true", union_all(rows.parts().iter().enumerate().map(part)))
}

fn union_all(parts: impl Iterator<Item = String>) -> String {
    let parts: Vec<String> = parts.collect();
    if parts.len() == 1 { parts.concat() } else { format!("({})", parts.join(") UNION ALL (")) }
}

/// Reads the transaction that wrote one of the jobs' rows last, of those at or above `mark`: `last_xid`, or null.
pub fn last_xid<'a>(rows: &EventRows, mark: u64, jobs: impl Iterator<Item = &'a JobId>) -> String {
    format!(
        "{ctes} SELECT (SELECT max({xid}) FROM {events} e WHERE {of_jobs} AND {since}) AS last_xid FROM jobcast_snapshot",
        ctes = snapshot_ctes(rows, mark, None),
        xid = rows.xid(),
        events = rows.table(),
        of_jobs = rows.tables.events.job_id.equals_any(jobs.map(JobId::as_str)),
        since = rows.written_since(&XidBound::below(mark)),
    )
}

/// Asks whether the job has rows of transactions beyond a level.
pub fn has_rows_beyond(rows: &EventRows, durable_xid: u64, job: &JobId, level: &EndedXids) -> String {
    format!(
        "{ctes} SELECT EXISTS (SELECT FROM {events} e WHERE {of_job} AND {since}) AS has_rows FROM jobcast_snapshot",
        ctes = snapshot_ctes(rows, durable_xid, None),
        events = rows.table(),
        of_job = rows.tables.events.job_id.equals(job.as_str()),
        since = rows.written_since(&XidBound::Fixed(level.clone())),
    )
}

/// Reads the key of the row that `after` rows of the job come after, by key: `number, time_key, id`, which are null where
/// there is none; and whether there is such a job. Only rows of transactions that had ended at `end`, or all.
pub fn key_from_end(rows: &EventRows, durable_xid: u64, job: &JobId, end: Option<&EndedXids>, after: usize) -> String {
    let (of_job, events) = (rows.tables.events.job_id.equals(job.as_str()), rows.table());
    let ended = end.map_or_else(|| "true".into(), |end| rows.written_before(&XidBound::Fixed(end.clone())));
    let part = |(number, part): (usize, &RowsPart)| {
        format!(
            "SELECT {number} AS part, {key} FROM {events} e WHERE {of_job} AND {ended}{of_part}
             ORDER BY {newest_first} LIMIT {limit}",
            key = part.rows.key_list(),
            of_part = part.and_condition(),
            newest_first = part.rows.newest_first(),
            limit = after + 1,
        )
    };
    let newest = union_all(rows.parts().iter().enumerate().map(part));
    format!(
        "{ctes} SELECT {SNAPSHOT_COLUMNS}, {has_job} OR EXISTS (SELECT FROM {events} e WHERE {of_job}) AS is_known,
                found.number, found.time_key, found.id
         FROM jobcast_snapshot CROSS JOIN jobcast_mark
         LEFT JOIN (SELECT * FROM ({newest}) newest
                    ORDER BY part DESC, number DESC, time_order DESC, id_order DESC OFFSET {after} LIMIT 1) found ON true",
        ctes = snapshot_ctes(rows, durable_xid, None),
        has_job = has_job(rows.tables, job),
    )
}
