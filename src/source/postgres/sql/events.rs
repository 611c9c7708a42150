//! Statements on single events of a job.

use super::super::position::Key;
use super::super::tables::Tables;
use super::jobs::{has_job, job_status};
use super::snapshot::{SNAPSHOT_COLUMNS, snapshot_ctes};
use super::{EventRows, XidBound, literal, quote, text_array};
use crate::config::{self, PayloadColumns};
use crate::event::{JobId, Rfc3339};
use crate::source::NewEvent;

/// Reads the event with this id, beside the snapshot.
pub fn find_event(rows: &EventRows, durable_xid: u64, job: &JobId, id: &str) -> String {
    let of_job = rows.tables.events.job_id.equals(job.as_str());
    format!(
        "{ctes} SELECT {SNAPSHOT_COLUMNS}, found.*
         FROM jobcast_snapshot, jobcast_mark, (SELECT {columns} FROM {events} e WHERE {of_job} AND {of_id} LIMIT 1) found",
        ctes = snapshot_ctes(rows, durable_xid, Some(&of_job)),
        columns = rows.select_list(),
        events = rows.table(),
        of_id = rows.tables.events.id.equals(id),
    )
}

/// Reads the job's status, and whether there is such a job: a row of the job table, or an event.
pub fn newest_event(rows: &EventRows, durable_xid: u64, job: &JobId) -> String {
    let of_job = rows.tables.events.job_id.equals(job.as_str());
    format!(
        "{ctes} SELECT {SNAPSHOT_COLUMNS}, {status} AS status,
                {has_job} OR EXISTS (SELECT FROM {events} e WHERE {of_job}) AS is_known
         FROM jobcast_snapshot, jobcast_mark",
        ctes = snapshot_ctes(rows, durable_xid, Some(&of_job)),
        status = job_status(rows.tables, job),
        has_job = has_job(rows.tables, job),
        events = rows.table(),
    )
}

/// Counts the job's rows by transaction, of those that had not ended at `bound`: `xid, count` beside the snapshot; a
/// single row with nulls where there are none. Counts only rows up to `last`, an event that [`find_event`] has found, or
/// all.
pub fn count_by_xid(rows: &EventRows, durable_xid: u64, job: &JobId, bound: &XidBound, last: Option<&Key>) -> String {
    let up_to_last =
        last.map_or_else(|| "true".into(), |key| format!("({}) IS NOT TRUE", rows.after_key(job.as_str(), key)));
    format!(
        "{ctes} SELECT {SNAPSHOT_COLUMNS}, newer.xid, newer.count FROM jobcast_snapshot CROSS JOIN jobcast_mark
         LEFT JOIN (
           SELECT xid, count(*)::bigint AS count
           FROM (SELECT {columns} FROM {events} e WHERE {of_job} AND {since} AND {up_to_last}) e GROUP BY xid
         ) newer ON true",
        ctes = snapshot_ctes(rows, durable_xid, None),
        columns = rows.select_list(),
        events = rows.table(),
        of_job = rows.tables.events.job_id.equals(job.as_str()),
        since = rows.written_since(bound),
    )
}

/// Counts the same rows by transaction and place: `xid, place, count`. The place of a row is the number of events with
/// these ids before it.
pub fn count_by_place<'a>(
    rows: &EventRows,
    durable_xid: u64,
    job: &JobId,
    bound: &XidBound,
    ids: impl IntoIterator<Item = &'a str>,
) -> String {
    format!(
        "{ctes} SELECT newer.xid, newer.place, count(*)::bigint AS count
         FROM (SELECT {xid} AS xid, ({since}) IS TRUE AS is_newer, count(*) FILTER (WHERE {of_ids})
                 OVER (ORDER BY {order} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS place
               FROM {events} e WHERE {of_job} AND ({since} OR {of_ids})) newer
         WHERE newer.is_newer GROUP BY 1, 2 ORDER BY 2",
        ctes = snapshot_ctes(rows, durable_xid, None),
        xid = rows.xid(),
        since = rows.written_since(bound),
        of_ids = rows.tables.events.id.equals_any(ids),
        order = rows.order(),
        events = rows.table(),
        of_job = rows.tables.events.job_id.equals(job.as_str()),
    )
}

/// Finds an event of the job whose type ends it.
pub fn final_event<'a>(tables: &Tables, job: &JobId, final_types: impl IntoIterator<Item = &'a str>) -> String {
    format!(
        "SELECT {kind} AS type FROM {events} e
         WHERE {of_job} AND {kind} = ANY ({final_types}) LIMIT 1",
        kind = tables.events.columns.kind,
        events = tables.events.name,
        of_job = tables.events.job_id.equals(job.as_str()),
        final_types = text_array(final_types),
    )
}

/// Reads those of the events that the job has already, by their ids, in the order of their keys, beside the snapshot.
pub fn stored_events(rows: &EventRows, durable_xid: u64, job: &JobId, events: &[NewEvent]) -> String {
    format!(
        "{ctes} SELECT {SNAPSHOT_COLUMNS}, stored.*
         FROM jobcast_snapshot, jobcast_mark, (SELECT {columns} FROM {table} e WHERE {of_job} AND {of_ids}) stored ORDER BY stored.ordinal",
        ctes = snapshot_ctes(rows, durable_xid, None),
        columns = rows.select_list(),
        table = rows.table(),
        of_job = rows.tables.events.job_id.equals(job.as_str()),
        of_ids = rows.tables.events.id.equals_any(events.iter().map(|event| &*event.id)),
    )
}

/// Inserts events. Values are literals without a type, so that PostgreSQL casts them to the columns' types. `None` where
/// the settings make an event's parts of anything but one column each.
pub fn insert_events<'a>(
    tables: &Tables,
    names: &config::Columns,
    job: &JobId,
    events: impl IntoIterator<Item = &'a NewEvent>,
) -> Option<String> {
    let PayloadColumns::One(payload) = &names.payload else { return None };
    let optional = |text: Option<&str>| text.map_or_else(|| "NULL".into(), literal);
    // A part without a column of its own is not stored.
    let (kind, step_id, actor) = (names.kind.column(), names.step_id.column(), names.actor.column());
    let has = |name: &&str| tables.events.names.iter().any(|known| known == name);
    let (step_id, actor) = (step_id.filter(has), actor.filter(has));
    let mut columns = vec![&*names.id, &names.job_id, kind?, &names.timestamp, payload];
    columns.extend(step_id.iter().chain(&actor));
    let values = events.into_iter().map(|event| {
        let mut values = vec![
            literal(&event.id),
            literal(job.as_str()),
            literal(&event.kind),
            literal(&Rfc3339(event.timestamp).to_string()),
            literal(event.payload.as_json()),
        ];
        values.extend(step_id.map(|_| optional(event.step_id.as_deref())));
        values.extend(actor.map(|_| optional(event.actor.as_deref())));
        format!("({})", values.join(", "))
    });
    let values: Vec<String> = values.collect();
    let columns: Vec<String> = columns.into_iter().map(quote).collect();
    Some(format!("INSERT INTO {} ({}) VALUES {}", tables.events.name, columns.join(", "), values.join(", ")))
}
