//! The statement that reads a job's rows from a position on.

use super::super::position::{Above, Floor, Position, Range};
use super::super::tables::Tables;
use super::jobs::{has_job, job_status};
use super::rows::{MostBytes, RowsPart};
use super::snapshot::{SNAPSHOT_COLUMNS, snapshot_ctes};
use super::{EventRows, XidBound};
use crate::event::JobId;
use crate::source::Limit;

/// The rows that a read is of.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    pub job: &'a JobId,
    /// Only rows above it. `None` for all of the job's.
    pub floor: Option<Floor>,
    /// Each part fetches one row more, so that a cut is seen.
    pub limit: Limit,
    /// The `reach` is read, too, below the times of the last so many seconds.
    pub reach_before: Option<f64>,
}

impl<'a> Scope<'a> {
    /// All rows of the job.
    pub fn of(job: &'a JobId, limit: Limit) -> Self {
        Self { job, floor: None, limit, reach_before: None }
    }
}

/// A query for rows of one job.
pub struct PageQuery<'a> {
    pub scope: Scope<'a>,
    /// Rows that were delivered at this position are left out. With a floor it is a position among the rows above it.
    pub position: &'a Position,
    /// End of the settled part, which is delivered by key.
    pub end: XidBound,
    /// Only rows that were delivered at this position, which is in no range.
    pub published_by: Option<&'a Position>,
}

/// Reads the rows in the order of delivery: the settled part up to its end by key, then the newer rows by key. The job's
/// status stands beside each row, and alone in one where there are no rows; so does the `reach`, a number (that of a time)
/// which most of the job's rows are at or below, where it is wanted and new rows are looked for so. `expansion` bytes are made
/// of one that is stored compressed.
pub fn page(tables: &Tables, durable_xid: u64, expansion: u64, query: &PageQuery) -> String {
    let PageQuery { scope: Scope { job, floor, limit, reach_before }, position, end, .. } = query;
    let rows = &tables.rows(position.scheme);
    let most = MostBytes { bytes: limit.bytes, expansion };
    let (mut parts, limit) = (rows.parts(), limit.events + 1);
    parts.retain(|part| floor.is_none_or(|floor| part.may_be_above(floor)));
    let in_scope = in_scope(rows, &query.scope);
    let own_mark_rows = matches!(end, XidBound::OwnMark).then_some(&*in_scope);
    let of_job = published_rows(tables, query, &in_scope);
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
        ctes = snapshot_ctes(rows, durable_xid, own_mark_rows),
        settled = settled_ctes(&parts, query, most, &of_job, &undelivered),
        last_part = parts.len(),
        columns = rows.select_list_up_to(most, ""),
        events = rows.table(),
        since = rows.written_since(&XidBound::Fixed(position.settled().clone())),
        reach = reach_before.map_or("NULL::bigint".into(), |look_back| tables.rows(tables.best).reach(job, look_back)),
        after_end = rows.written_since(end),
        order = rows.order(),
        status = job_status(tables, job),
        has_job = has_job(tables, job),
    )
}

/// CTE `jobcast_settled`: the rows up to the end of the range. Each part of the job's rows is read by itself, so that an
/// index can serve it, and only if those before it leave room.
fn settled_ctes(parts: &[RowsPart], query: &PageQuery, most: MostBytes, of_job: &str, undelivered: &str) -> String {
    let PageQuery { scope: Scope { job, limit, .. }, position, end, .. } = query;
    let limit = limit.events + 1;
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
            columns = rows.select_list_up_to(most, ""),
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

/// Condition: the row is of the job, and above the floor, if there is one.
pub fn in_scope(rows: &EventRows, scope: &Scope) -> String {
    let of_job = rows.tables.events.job_id.equals(scope.job.as_str());
    match scope.floor.and_then(|floor| rows.above(floor)) {
        Some(above) => format!("{of_job} AND {above}"),
        None => of_job,
    }
}

/// Condition: the row is in scope, and, where only published rows are asked for, one of those.
fn published_rows(tables: &Tables, query: &PageQuery, in_scope: &str) -> String {
    let Some(published) = query.published_by else { return in_scope.into() };
    let rows = &tables.rows(published.scheme);
    let settled = rows.written_before(&XidBound::Fixed(published.settled().clone()));
    let counted = published.counted().iter().map(|(xid, count)| is_counted(rows, query.scope.job, *xid, *count));
    let published = std::iter::once(settled).chain(counted).chain(claimed_above(rows, published));
    format!("{in_scope} AND ({})", published.collect::<Vec<_>>().join(" OR "))
}

/// Conditions, each after an `AND`: the position has not counted the row, and does not claim it by its number.
fn undelivered(rows: &EventRows, query: &PageQuery) -> String {
    let PageQuery { scope: Scope { job, .. }, position, .. } = query;
    let counted = position.counted().iter().map(|(xid, count)| is_counted(rows, job, *xid, *count));
    let not_counted = counted.map(|is_counted| format!(" AND NOT {is_counted}"));
    let not_claimed = claimed_above(rows, position).map(|is_claimed| format!(" AND {is_claimed} IS NOT TRUE"));
    not_counted.chain(not_claimed).collect()
}

/// Condition: the row was delivered because of its number or time. Without a range: one of rows above a floor is finished before.
fn claimed_above(rows: &EventRows, position: &Position) -> Option<String> {
    let Above { floor, ended, .. } = position.above()?;
    Some(format!("({} AND {})", rows.above(*floor)?, rows.written_before(&XidBound::Fixed(ended.clone()))))
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
