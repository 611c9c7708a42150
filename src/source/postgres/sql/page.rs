//! The statement that reads a job's rows from a position on.

use super::super::position::{Position, Range};
use super::super::tables::Tables;
use super::jobs::{has_job, job_status};
use super::rows::RowsPart;
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
/// status stands beside each row, and alone in one where there are no rows; so does the `reach`, a number that most of the
/// job's rows are at or below, where new rows are looked for by number.
pub fn page(tables: &Tables, durable_xid: u64, query: &PageQuery) -> String {
    let PageQuery { job, position, end, .. } = query;
    let rows = &tables.rows(position.scheme);
    let (parts, limit) = (rows.parts(), query.limit + 1);
    let own_mark_job = matches!(end, XidBound::OwnMark).then_some(*job);
    let of_job = published_rows(tables, query);
    let undelivered = undelivered(rows, query);
    format!(
        "{ctes}, {settled}, jobcast_newer AS (
           SELECT {last_part} AS part, {columns} FROM {events} e
           WHERE (SELECT count(*) FROM jobcast_settled) < {limit} AND {of_job} AND {since} AND {after_end}{undelivered}
           ORDER BY {order} LIMIT {limit}
         )
         SELECT {SNAPSHOT_COLUMNS}, {status} AS status, {has_job} AS has_job, {reach} AS reach, page.*
         FROM jobcast_snapshot CROSS JOIN jobcast_mark
         LEFT JOIN (SELECT * FROM jobcast_settled UNION ALL SELECT * FROM jobcast_newer) page ON true
         ORDER BY page.part, page.ordinal",
        ctes = snapshot_ctes(rows, durable_xid, own_mark_job),
        settled = settled_ctes(&parts, query, &of_job, &undelivered),
        last_part = parts.len(),
        columns = rows.select_list(),
        events = rows.table(),
        since = rows.written_since(&XidBound::Fixed(position.settled().clone())),
        reach = tables.rows(tables.best).reach(job),
        after_end = rows.written_since(end),
        order = rows.order(),
        status = job_status(tables, job),
        has_job = has_job(tables, job),
    )
}

/// CTE `jobcast_settled`: the rows up to the end of the range. Each part of the job's rows is read by itself, so that an
/// index can serve it, and only if those before it leave room.
fn settled_ctes(parts: &[RowsPart], query: &PageQuery, of_job: &str, undelivered: &str) -> String {
    let PageQuery { job, position, end, .. } = query;
    let limit = query.limit + 1;
    let delivered_to = position.range().map(|Range { key, .. }| key);
    let mut ctes: Vec<(String, String)> = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        let name = if parts.len() == 1 { "jobcast_settled".into() } else { format!("jobcast_part_{number}") };
        let has_room = ctes.iter().map(|(name, _)| format!("(SELECT count(*) FROM {name}) < {limit} AND "));
        let rows = &part.rows;
        let sql = format!(
            "{name} AS MATERIALIZED (
               SELECT {number} AS part, {columns} FROM {events} e
               WHERE {has_room}{of_job}{of_part} AND {since} AND {before_end} AND {after_key}{undelivered}
               ORDER BY {order} LIMIT {limit}
             )",
            has_room = has_room.collect::<String>(),
            columns = rows.select_list(),
            events = rows.table(),
            of_part = part.and_condition(),
            since = rows.written_since(&XidBound::Fixed(position.settled().clone())),
            before_end = rows.written_before(end),
            after_key = delivered_to.map_or_else(|| "true".into(), |key| part.after_key(job.as_str(), key)),
            order = rows.order(),
        );
        ctes.push((name, sql));
    }
    let all = ctes.iter().map(|(name, _)| format!("SELECT * FROM {name}")).collect::<Vec<_>>().join(" UNION ALL ");
    let mut sql: Vec<String> = ctes.into_iter().map(|(_, sql)| sql).collect();
    if sql.len() > 1 {
        sql.push(format!("jobcast_settled AS ({all})"));
    }
    sql.join(", ")
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
