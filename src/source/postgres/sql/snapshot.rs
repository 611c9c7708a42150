//! Statements on the server's snapshot: what has ended, and how much of that a crash would not undo.

use super::super::position::EndedXids;
use super::super::tables::XidSource;
use super::catalog::LIFE;
use super::page::in_scope;
use super::{EventRows, Scope, XidBound, number_list};

/// Most transactions of which one statement asks the server, one by one, whether they are open.
pub const MAX_XID_SCAN: u64 = 100_000;

/// Columns that a `Snapshot` is made of, from the CTEs `jobcast_snapshot` and `jobcast_mark`.
pub const SNAPSHOT_COLUMNS: &str = "jobcast_snapshot.snapshot_text, jobcast_snapshot.xmin, jobcast_snapshot.xmax, jobcast_mark.durable_xid, \
    jobcast_snapshot.is_standby, jobcast_snapshot.wal_inserted, jobcast_snapshot.wal_flushed, jobcast_snapshot.life";

/// The same columns without values, for the other parts of a union.
pub const NO_SNAPSHOT: &str = "NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL";

/// Begins a statement with three CTEs. A table of the same name could not be read beside them, so theirs are our own.
///
/// - `jobcast_snapshot`: the statement's snapshot, how far the log is written and flushed, and which server it is, where that
///   is known to be told: a pooler may lead to another one from one statement to the next;
/// - `jobcast_durable`: `durable_xid`, the transaction below which a crash undoes nothing;
/// - `jobcast_mark`: the settled mark, the lower of the snapshot's xmin and `durable_xid`.
///
/// A commit is on the disk before anybody sees it, so rows raise the durable mark: those in a `scope`, a condition, or without
/// one all, where an index on the transactions finds the last. Without an index only where the log's position does not tell,
/// since all rows in scope are read for it.
pub fn snapshot_ctes(rows: &EventRows, durable_xid: u64, scope: Option<&str>) -> String {
    let (inserted, flushed) = if rows.tables.reports_wal {
        ("pg_current_wal_insert_lsn() - '0/0'", "pg_current_wal_flush_lsn() - '0/0'")
    } else {
        ("1", "0")
    };
    let life = if rows.tables.life.is_some() { format!("({LIFE})") } else { "NULL::text".into() };
    let is_dear = rows.xid_source() == XidSource::System && (scope.is_none() || rows.tables.reports_wal);
    let last_committed = if is_dear {
        "0".into()
    } else {
        format!(
            "coalesce((SELECT {xid} + 1 FROM {events} e WHERE {scope} AND {since}
                       ORDER BY {indexed_xid} DESC LIMIT 1), 0)",
            scope = scope.unwrap_or("true"),
            xid = rows.xid(),
            events = rows.table(),
            since = rows.written_since(&XidBound::below(durable_xid.max(1))),
            indexed_xid = rows.indexed_xid(),
        )
    };
    format!(
        "WITH jobcast_snapshot AS MATERIALIZED (
           SELECT now::text AS snapshot_text, pg_snapshot_xmin(now)::text::bigint AS xmin,
                  pg_snapshot_xmax(now)::text::bigint AS xmax, is_standby,
                  pg_snapshot_xmax(now)::text::bigint + age(pg_snapshot_xmax(now)::xid) AS age_base,
                  (CASE WHEN NOT is_standby THEN {inserted} END)::bigint AS wal_inserted,
                  (CASE WHEN NOT is_standby THEN {flushed} END)::bigint AS wal_flushed, {life} AS life
           FROM (SELECT pg_current_snapshot() AS now, pg_is_in_recovery() AS is_standby) server
         ), jobcast_durable AS MATERIALIZED (
           SELECT CASE WHEN is_standby OR wal_flushed >= wal_inserted THEN xmax
                       ELSE least(xmax, greatest({durable_xid}, {last_committed})) END AS durable_xid
           FROM jobcast_snapshot
         ), jobcast_mark AS MATERIALIZED (
           SELECT durable_xid, least(xmin, durable_xid) AS xid, least(xmin, durable_xid)::text::xid8 AS xid8
           FROM jobcast_snapshot, jobcast_durable
         )"
    )
}

/// Reads the snapshot alone.
pub fn read_snapshot(rows: &EventRows, durable_xid: u64, scope: &Scope) -> String {
    format!(
        "{} SELECT {SNAPSHOT_COLUMNS} FROM jobcast_snapshot, jobcast_mark",
        snapshot_ctes(rows, durable_xid, Some(&in_scope(rows, scope)))
    )
}

/// Asks whether a primary's snapshot and log are still these; null on a standby. Touches no table.
pub fn is_unchanged(reports_wal: bool, snapshot: &str, wal_inserted: i64) -> String {
    let inserted = if reports_wal { "(pg_current_wal_insert_lsn() - '0/0')::bigint" } else { "1::bigint" };
    format!(
        "SELECT CASE WHEN NOT pg_is_in_recovery()
                     THEN pg_current_snapshot()::text = '{snapshot}' AND {inserted} = {wal_inserted} END AS is_unchanged"
    )
}

/// Lists the open transactions, one a row as `open_xid`, beside the snapshot, the `mark` below which they are all there
/// are, and the time at which the server was started, `started_at` in microseconds since 1970; a single row with null
/// where none is open.
///
/// A primary's snapshot lists top-level transactions, which are those in the column. The system column also has those of
/// savepoints, and a standby's snapshot lists none: then the server is asked for the state of each transaction of which
/// it is not `known` that it has ended, by the server that was started at that time.
pub fn open_xids(rows: &EventRows, durable_xid: u64, started_at: i64, known: &EndedXids) -> String {
    let is_listed = match rows.xid_source() {
        XidSource::Column => "NOT is_standby",
        XidSource::System => "false",
    };
    format!(
        "{}, jobcast_server AS MATERIALIZED (
           SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint AS started_at
         ), jobcast_known AS MATERIALIZED (
           SELECT started_at, xmin, xmax, started_at = {started_at} AS is_same, {is_listed} AS is_listed,
                  greatest(xmin, CASE WHEN started_at = {started_at} THEN {known_mark} ELSE 0 END) AS mark
           FROM jobcast_snapshot, jobcast_server
         ), jobcast_asked AS (
           SELECT *, CASE WHEN is_listed THEN xmax ELSE least(xmax, mark + {MAX_XID_SCAN}) END AS asked_mark
           FROM jobcast_known
         )
         SELECT {SNAPSHOT_COLUMNS}, asked.started_at, asked.asked_mark AS mark, open.xid AS open_xid
         FROM jobcast_snapshot CROSS JOIN jobcast_mark CROSS JOIN jobcast_asked asked
         LEFT JOIN (
           SELECT xid::text::bigint AS xid FROM jobcast_asked, pg_snapshot_xip(pg_current_snapshot()) xid WHERE is_listed
           UNION ALL
           SELECT xid FROM jobcast_asked, LATERAL (
             SELECT unnest('{known_open}'::bigint[]) AS xid WHERE is_same
             UNION ALL SELECT generate_series(mark, asked_mark - 1)
           ) unknown
           WHERE NOT is_listed AND xid >= xmin AND pg_xact_status(xid::text::xid8) = 'in progress'
         ) open ON true",
        snapshot_ctes(rows, durable_xid, None),
        known_mark = known.mark,
        known_open = number_list(&known.open),
    )
}

/// Asks whether the server knows the end of all transactions that a cursor speaks of: those from `xmin` up to `mark`
/// but the `open`, and others that are `known`.
pub fn has_ended<'a>(
    xmin: u64,
    mark: u64,
    open: impl IntoIterator<Item = &'a u64>,
    known: impl IntoIterator<Item = &'a u64>,
) -> String {
    let (open, known) = (number_list(open), number_list(known));
    format!(
        "SELECT NOT EXISTS (
           SELECT FROM (
             SELECT generate_series({xmin}, {mark}::bigint - 1) EXCEPT SELECT unnest('{open}'::bigint[])
             UNION SELECT unnest('{known}'::bigint[])
           ) known (xid)
           WHERE xid >= {xmin} AND pg_xact_status(xid::text::xid8) = 'in progress'
         ) AS has_ended"
    )
}
