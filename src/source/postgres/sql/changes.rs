//! The statement with which the tail finds out which watched jobs have something new.

use super::super::position::Floor;
use super::super::tables::JobTable;
use super::rows::LookColumn;
use super::snapshot::{NO_SNAPSHOT, SNAPSHOT_COLUMNS, snapshot_ctes};
use super::{EventRows, XidBound, array_literal, literal};
use std::collections::BTreeMap;

/// A query for changes of the watched jobs.
#[derive(Default)]
pub struct ChangesQuery<'a> {
    /// Ids of all watched jobs.
    pub jobs: Vec<&'a str>,
    pub new_rows: NewRows<'a>,
    /// The same jobs by the status that is known of them; by `None` those of which none is.
    pub by_status: BTreeMap<Option<&'a str>, Vec<&'a str>>,
    /// Jobs that readers wait for.
    pub awaited: Vec<&'a str>,
    /// Those of them that are looked for among all events, and not only among the new ones.
    pub awaited_events: Vec<&'a str>,
}

/// Rows that may be new since the last look.
#[derive(Default)]
pub enum NewRows<'a> {
    /// None are looked for.
    #[default]
    None,
    /// Rows that were not visible in the last look's snapshot, of any job. They are few: to compare them with the ids
    /// of all watched jobs would cost more, and tempt the planner to read all rows of those jobs.
    NotVisibleIn { snapshot: &'a str, durable_xid: u64 },
    /// Rows of watched jobs, written by transactions at or above this mark.
    Since(u64),
    /// The same, and not older than so many seconds: no index serves the system column.
    SinceAndYounger(u64, f64),
    /// Rows of these jobs, written since the mark and above a number or time of their job's own, or above none; and those of
    /// all watched jobs from a block of the table on.
    SinceAndAbove(u64, Vec<(&'a str, Option<Floor>)>, Option<u64>),
}

/// Reads the snapshot; then one row for each job that may have new rows, and for each awaited one that is there, and one
/// with a `status` for each watched job whose status is another one than is known. The text is empty where the status is
/// null. In the snapshot's row `at_end` is the number of the table's blocks, where it has an end to be read; in the row of a job
/// with new rows there the lowest number of a time among these.
pub fn changes(rows: &EventRows, durable_xid: u64, query: &ChangesQuery) -> String {
    let ctes = snapshot_ctes(rows, durable_xid, None);
    let snapshot = format!(
        "{ctes} SELECT {SNAPSHOT_COLUMNS}, NULL::text AS job_id, NULL::text AS status, {blocks} AS at_end
         FROM jobcast_snapshot, jobcast_mark",
        blocks = blocks(rows),
    );
    if query.jobs.is_empty() && query.awaited.is_empty() {
        return snapshot;
    }
    let new_rows = match &query.new_rows {
        NewRows::None => None,
        NewRows::SinceAndAbove(xid, floors, _) => jobs_above(rows, *xid, floors),
        _ => Some(changed_jobs(rows, query)),
    };
    let mut parts: Vec<String> = [Some(snapshot), new_rows, jobs_at_end(rows, query)].into_iter().flatten().collect();
    if let Some(jobs) = &rows.tables.jobs {
        parts.extend(query.by_status.iter().map(|(known, ids)| changed_statuses(jobs, *known, ids)));
    }
    parts.extend(awaited_jobs(rows, query));
    parts.join(" UNION ALL ")
}

/// Selects the awaited jobs that one of the tables has. The ids are constants of the statement, of which the planner knows
/// that hardly a row has them.
fn awaited_jobs(rows: &EventRows, query: &ChangesQuery) -> impl Iterator<Item = String> {
    let job_id = &rows.tables.events.job_id;
    let in_events = (!query.awaited_events.is_empty()).then(|| {
        let (text, events) = (job_id.text(), rows.table());
        let is_awaited = job_id.equals_any(query.awaited_events.iter().copied());
        let there = format!("SELECT DISTINCT {text} AS job_id FROM {events} e WHERE {is_awaited}");
        format!("SELECT {NO_SNAPSHOT}, there.job_id, NULL, NULL FROM ({there}) there")
    });
    let in_jobs = rows.tables.jobs.as_ref().filter(|_| !query.awaited.is_empty()).map(|jobs| {
        let (text, table) = (jobs.id.text(), &jobs.name);
        let is_awaited = jobs.id.equals_any(query.awaited.iter().copied());
        format!("SELECT {NO_SNAPSHOT}, {text}, NULL, NULL FROM {table} j WHERE {is_awaited}")
    });
    in_events.into_iter().chain(in_jobs)
}

fn changed_jobs(rows: &EventRows, query: &ChangesQuery) -> String {
    format!(
        "SELECT {NO_SNAPSHOT}, changed.job_id, NULL, NULL
         FROM (SELECT DISTINCT {job_id} AS job_id FROM {events} e WHERE {condition}) changed",
        job_id = rows.tables.events.job_id.text(),
        events = rows.table(),
        condition = new_rows(rows, query),
    )
}

/// One probe of the index on job and number, or time, for each job, which ends at its first new row. Without an order the
/// planner may take a read of the whole table for the shortest way to one row.
fn jobs_above(rows: &EventRows, xid: u64, floors: &[(&str, Option<Floor>)]) -> Option<String> {
    let (column, ids) = (rows.look_column()?, &rows.tables.events.job_id);
    // One of another kind is from before the table was altered.
    let known = |floor: &Floor| column.floor(floor.number()) == *floor;
    let number = |floor: &Option<Floor>| floor.filter(known).map_or(i64::MIN, Floor::number).to_string();
    let (jobs, numbers): (Vec<_>, Vec<_>) =
        floors.iter().filter_map(|(job, floor)| Some((ids.canonical(job)?, number(floor)))).unzip();
    Some(format!(
        "
         SELECT {NO_SNAPSHOT}, watched.job_id, NULL, NULL
         FROM unnest({jobs}::text[], '{{{numbers}}}'::bigint[]) watched (job_id, number)
         CROSS JOIN LATERAL (
           SELECT FROM {events} e WHERE {of_job} AND {name} > {value} AND {since} ORDER BY {name} LIMIT 1
         ) found",
        jobs = array_literal(jobs.iter().map(AsRef::as_ref)),
        numbers = numbers.join(","),
        events = rows.table(),
        of_job = ids.equals_expression("watched.job_id"),
        name = column.name(),
        value = column.value_of("watched.number"),
        since = rows.written_since(&XidBound::below(xid)),
    ))
}

/// Expression: the number of the table's blocks; null where there is no end to be read.
fn blocks(rows: &EventRows) -> String {
    if !rows.has_end() {
        return "NULL::bigint".into();
    }
    format!("pg_relation_size(to_regclass({})) / current_setting('block_size')::bigint", literal(rows.table()))
}

/// The watched jobs with new rows at the end of the table, whatever their times are. A subquery of its own, so that the
/// planner does not take an index on the job for the shorter way.
fn jobs_at_end(rows: &EventRows, query: &ChangesQuery) -> Option<String> {
    let NewRows::SinceAndAbove(xid, _, Some(block)) = query.new_rows else { return None };
    let (Some(LookColumn::Time(time)), true) = (rows.look_column(), rows.has_end()) else { return None };
    let job_id = &rows.tables.events.job_id;
    Some(format!(
        "
         SELECT {NO_SNAPSHOT}, written.job_id, NULL, written.lowest
         FROM (
           SELECT {text} AS job_id, min({key}) AS lowest
           FROM (SELECT {job}, {at}, e.xmin FROM {events} e WHERE e.ctid >= '({block},0)'::tid OFFSET 0) e
           WHERE {watched} AND {since} GROUP BY 1
         ) written",
        text = job_id.text(),
        key = time.key_number(),
        job = job_id.column(),
        at = time.column()?,
        events = rows.table(),
        watched = job_id.equals_any(query.jobs.iter().copied()),
        since = rows.written_since(&XidBound::below(xid)),
    ))
}

fn changed_statuses(jobs: &JobTable, known: Option<&str>, ids: &[&str]) -> String {
    let status = format!("coalesce({}::text, '')", jobs.status());
    let is_new = known.map(|known| format!(" AND {status} <> {}", literal(known)));
    format!(
        "
         SELECT {NO_SNAPSHOT}, {id}, {status}, NULL FROM {table} j WHERE {watched}{is_new}",
        id = jobs.id.text(),
        table = jobs.name,
        watched = jobs.id.equals_any(ids.iter().copied()),
        is_new = is_new.unwrap_or_default(),
    )
}

fn new_rows(rows: &EventRows, query: &ChangesQuery) -> String {
    let watched = || rows.tables.events.job_id.equals_any(query.jobs.iter().copied());
    match query.new_rows {
        NewRows::None | NewRows::SinceAndAbove(..) => "false".into(),
        NewRows::NotVisibleIn { snapshot, durable_xid } => rows.not_visible_in(snapshot, durable_xid),
        NewRows::Since(xid) => format!("{} AND {}", rows.written_since(&XidBound::below(xid)), watched()),
        NewRows::SinceAndYounger(xid, seconds) => format!(
            "{} AND {} AND {}",
            watched(),
            rows.written_since(&XidBound::below(xid)),
            rows.tables.events.columns.time.is_younger_than(seconds)
        ),
    }
}
