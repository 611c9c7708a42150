//! The statement that reads a job's rows from a position on.

use super::super::position::{Key, Position, Range};
use super::super::tables::Tables;
use super::jobs::{has_job, job_status};
use super::snapshot::{SNAPSHOT_COLUMNS, snapshot_ctes};
use super::{EventRows, XidBound};
use crate::event::JobId;

/// A query for rows of one job.
pub struct PageQuery<'a> {
    pub job: &'a JobId,
    /// Rows that were delivered at this position are left out.
    pub position: &'a Position,
    /// End of the settled part, which is delivered by key.
    pub end: XidBound,
    /// Only rows that were delivered at this position, which is in no range.
    pub published_by: Option<&'a Position>,
    /// Each part fetches one row more, so that a cut is seen.
    pub limit: usize,
}

/// Reads the rows in the order of delivery: the settled part up to its end by key, then the newer rows by key. The job's
/// status stands beside each row, and alone in one where there are no rows.
pub fn page(tables: &Tables, durable_xid: u64, query: &PageQuery) -> String {
    let PageQuery { job, position, end, .. } = query;
    let rows = &tables.rows(position.scheme);
    let limit = query.limit + 1;
    let own_mark_job = matches!(end, XidBound::OwnMark).then_some(*job);
    let of_job = published_rows(tables, query);
    let undelivered = undelivered(rows, query);
    format!(
        "{ctes}, {settled}, jobcast_newer AS (
           SELECT 2 AS part, {columns} FROM {events} e
           WHERE (SELECT count(*) FROM jobcast_settled) < {limit} AND {of_job} AND {since} AND {after_end}{undelivered}
           ORDER BY {order} LIMIT {limit}
         )
         SELECT {SNAPSHOT_COLUMNS}, {status} AS status, {has_job} AS has_job, page.*
         FROM jobcast_snapshot CROSS JOIN jobcast_mark
         LEFT JOIN (SELECT * FROM jobcast_settled UNION ALL SELECT * FROM jobcast_newer) page ON true
         ORDER BY page.part, page.ordinal",
        ctes = snapshot_ctes(rows, durable_xid, own_mark_job),
        settled = settled_ctes(rows, query, &of_job, &undelivered),
        columns = rows.select_list(),
        events = rows.table(),
        since = rows.written_since(&XidBound::Fixed(position.settled().clone())),
        after_end = rows.written_since(end),
        order = rows.order(),
        status = job_status(tables, job),
        has_job = has_job(tables, job),
    )
}

/// CTE `jobcast_settled`: the rows up to the end of the range. Rows without a number and those with one come from a part each,
/// so that an index can serve each.
fn settled_ctes(rows: &EventRows, query: &PageQuery, of_job: &str, undelivered: &str) -> String {
    let PageQuery { job, position, end, .. } = query;
    let (events, limit) = (rows.table(), query.limit + 1);
    let since = rows.written_since(&XidBound::Fixed(position.settled().clone()));
    let before_end = rows.written_before(end);
    let delivered_to = position.range().map(|Range { key, .. }| key);
    let Some((unnumbered, numbered)) = rows.split_numbered() else {
        return format!(
            "jobcast_settled AS MATERIALIZED (
               SELECT 0 AS part, {columns} FROM {events} e
               WHERE {of_job} AND {since} AND {before_end} AND {after_key}{undelivered}
               ORDER BY {order} LIMIT {limit}
             )",
            columns = rows.select_list(),
            after_key = delivered_to.map_or_else(|| "true".into(), |key| rows.after_key(job.as_str(), key)),
            order = rows.order(),
        );
    };
    let (unnumbered_after, numbered_after) = match delivered_to {
        None => ("true".into(), "true".into()),
        Some(key @ Key::Time { .. }) => (unnumbered.after_key(job.as_str(), key), "true".into()),
        Some(key @ Key::Number(_)) => ("false".into(), numbered.after_key(job.as_str(), key)),
    };
    format!(
        "jobcast_unnumbered AS MATERIALIZED (
           SELECT 0 AS part, {unnumbered_columns} FROM {events} e
           WHERE {of_job} AND {is_unnumbered} AND {since} AND {before_end} AND {unnumbered_after}{undelivered}
           ORDER BY {unnumbered_order} LIMIT {limit}
         ), jobcast_numbered AS MATERIALIZED (
           SELECT 1 AS part, {numbered_columns} FROM {events} e
           WHERE (SELECT count(*) FROM jobcast_unnumbered) < {limit} AND {of_job} AND NOT {is_unnumbered}
             AND {since} AND {before_end} AND {numbered_after}{undelivered}
           ORDER BY {numbered_order} LIMIT {limit}
         ), jobcast_settled AS (SELECT * FROM jobcast_unnumbered UNION ALL SELECT * FROM jobcast_numbered)",
        unnumbered_columns = unnumbered.select_list(),
        is_unnumbered = rows.is_unnumbered(),
        unnumbered_order = unnumbered.order(),
        numbered_columns = numbered.select_list(),
        numbered_order = numbered.order(),
    )
}

/// Condition: the row is of the job, and, where only published rows are asked for, one of those.
fn published_rows(tables: &Tables, query: &PageQuery) -> String {
    let of_job = tables.events.job_id.equals(query.job.as_str());
    let Some(published) = query.published_by else { return of_job };
    let rows = &tables.rows(published.scheme);
    let settled = rows.written_before(&XidBound::Fixed(published.settled().clone()));
    let counted = published.counted().iter().map(|(xid, count)| is_counted(rows, query.job, *xid, *count));
    format!("{of_job} AND ({})", std::iter::once(settled).chain(counted).collect::<Vec<_>>().join(" OR "))
}

/// Conditions, each after an `AND`: the position has not counted the row.
fn undelivered(rows: &EventRows, query: &PageQuery) -> String {
    let counted = query.position.counted().iter();
    counted.map(|(xid, count)| format!(" AND NOT {}", is_counted(rows, query.job, *xid, *count))).collect()
}

/// Condition: the row is among the first `count` rows of its transaction, so not beyond the key of the last of them.
fn is_counted(rows: &EventRows, job: &JobId, xid: u64, count: u64) -> String {
    format!(
        "(({of_xid}) IS TRUE AND (({key}) > (SELECT {key} FROM {events} e WHERE {of_job} AND {of_xid}
          ORDER BY {order} LIMIT 1 OFFSET {offset})) IS FALSE)",
        of_xid = rows.written_by(xid),
        key = rows.comparable_key(),
        events = rows.table(),
        of_job = rows.tables.events.job_id.equals(job.as_str()),
        order = rows.order(),
        offset = count - 1,
    )
}
