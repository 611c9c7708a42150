//! Statements on the catalogue and the server, for learning the tables and for `jobcast check`.

use super::{literal, quote_table};
use crate::source::times::parse_offset;

/// Reads how far the write-ahead log of a primary has to be flushed. Fails on servers that have no such functions.
pub const WAL_POSITION: &str = "SELECT CASE WHEN NOT pg_is_in_recovery()
  THEN pg_current_wal_insert_lsn() - pg_current_wal_flush_lsn() END AS unflushed";

/// Fails on servers that do not tell which values are stored compressed.
pub const COMPRESSION: &str = "SELECT pg_column_compression(''::text)";

/// Reads how far a standby is behind: the seconds since the commit of the last transaction that it has replayed, and 0 while
/// it has replayed all that it was sent and is being sent more ("Monitoring streaming replication" in PostgreSQL's manual,
/// `pg_stat_wal_receiver`). Also 0 where it has replayed none. Fails on servers that have no such functions.
pub const STANDBY_LAG: &str = "SELECT (CASE
    WHEN pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn() AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN 0
    ELSE greatest(0, extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()))
  END)::float8 AS seconds";

/// Reads what tells this server from one that was restored from a dump of it. The functions may be forbidden.
pub const LIFE: &str = "SELECT system_identifier::text AS life FROM pg_control_system()";

/// Reads the server's version, encoding and role, the port that it was called at, and the user, quoted.
pub const SERVER: &str = "SELECT current_setting('server_version') AS version,
  current_setting('server_version_num')::int AS version_number, pg_is_in_recovery() AS is_standby,
  inet_server_port() AS port, current_setting('server_encoding') AS encoding, quote_ident(current_user) AS reader";

/// Reads the time in a zone; fails where the server knows no such zone.
pub fn local_time(name: &str) -> String {
    format!("SELECT now() AT TIME ZONE {} AS now", zone(name))
}

/// The zone of this name as it stands behind `AT TIME ZONE`. An offset is an interval there: as a name it would be one of
/// POSIX, which counts to the west (PostgreSQL, "Time Zones" and "Date/Time Functions and Operators").
pub fn zone(name: &str) -> String {
    match parse_offset(name) {
        Some(offset) => format!("interval '{} seconds'", offset.seconds()),
        None => literal(name),
    }
}

/// Asks whether the quoted table is one heap that may be read from a block of it on, which PostgreSQL 14 was the first to do
/// without going through all of it.
pub fn has_end(table: &str) -> String {
    format!(
        "SELECT relkind = 'r' AND amname = 'heap' AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid)
                AND has_table_privilege(c.oid, 'SELECT') AND NOT row_security_active(c.oid)
                AND current_setting('server_version_num')::int >= 140000 AS has_end
         FROM pg_class c JOIN pg_am a ON a.oid = relam WHERE c.oid = to_regclass({})",
        literal(table)
    )
}

/// Reads the columns of a table or view beside its `relation_kind` (`pg_class.relkind`) and whether it has children; none
/// where it is not there or may not be seen. `table` is a name without quotes. `is_unique` says that no two rows with the
/// same `job_id` have the same value: an identity, a serial, or a unique index over it alone or over both. `counts_rows` says of
/// a view that it, or one below it, may make values out of several rows, such as `row_number()`.
pub fn table_columns(table: &str, job_id: &str) -> String {
    format!(
        "SELECT attname::text AS name, NOT attnotnull AS may_be_null, atthasdef AS has_default,
                attidentity <> '' OR EXISTS (
                  SELECT FROM pg_attrdef WHERE adrelid = c.oid AND adnum = attnum
                  AND pg_get_expr(adbin, adrelid) LIKE 'nextval(%'
                ) OR EXISTS (
                  SELECT FROM pg_index i WHERE indrelid = c.oid AND indisunique AND indisvalid AND indpred IS NULL
                  AND indexprs IS NULL AND NOT EXISTS (
                    SELECT FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (number, place)
                    JOIN pg_attribute key ON key.attrelid = c.oid AND key.attnum = k.number
                    WHERE k.place <= i.indnkeyatts AND key.attnum <> pg_attribute.attnum AND key.attname <> {})
                  AND pg_attribute.attnum = ANY (i.indkey::int2[])
                ) AS is_unique,
                relkind = 'v' AND EXISTS (
                  WITH RECURSIVE views AS (
                    SELECT c.oid
                    UNION SELECT below.oid FROM views JOIN pg_rewrite r ON r.ev_class = views.oid
                    JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                    JOIN pg_class below ON below.oid = d.refobjid AND d.refclassid = 'pg_class'::regclass
                    WHERE below.relkind = 'v'
                  )
                  SELECT FROM views WHERE pg_get_viewdef(views.oid) ~* {}
                ) AS counts_rows,
                relkind::text AS relation_kind, EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid) AS has_children,
                (WITH RECURSIVE below AS (
                   SELECT atttypid AS oid
                   UNION ALL SELECT typbasetype FROM below JOIN pg_type t ON t.oid = below.oid WHERE typtype = 'd'
                 )
                 SELECT format_type(t.oid, NULL) FROM below JOIN pg_type t ON t.oid = below.oid WHERE typtype <> 'd') AS type,
                EXISTS (SELECT FROM pg_enum WHERE enumtypid = atttypid) AS is_enum
         FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
         WHERE attrelid = to_regclass({}) AND attnum > 0 AND NOT attisdropped
         ORDER BY attnum",
        literal(job_id),
        literal(r"\y(over|count)\y"),
        literal(&quote_table(table))
    )
}

/// Asks for the user's name, and whether it may insert into the quoted table.
pub fn may_insert(table: &str) -> String {
    format!("SELECT has_table_privilege({}, 'INSERT') AS may_insert, current_user::text AS user_name", literal(table))
}

/// Asks for an enabled trigger on the quoted table whose function notifies.
pub fn has_notify_trigger(table: &str) -> String {
    format!(
        "SELECT EXISTS (
           SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
           WHERE t.tgrelid = to_regclass({}) AND NOT t.tgisinternal AND t.tgenabled <> 'D'
             AND p.prosrc ILIKE '%notify%'
         ) AS has_trigger",
        literal(table)
    )
}

/// Cancels the statement of another connection of this user that has `tag` in the beginning of its text.
pub fn cancel_statement(tag: &str) -> String {
    format!(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity
         WHERE state = 'active' AND pid <> pg_backend_pid() AND position({} IN query) > 0",
        literal(tag)
    )
}

/// Finds the highest transaction in a quoted column that this server has not begun: `xid`.
pub fn xid_of_another_life(table: &str, column: &str) -> String {
    format!("SELECT {column}::text AS xid FROM {table} e WHERE {column} >= {NOT_BEGUN} ORDER BY {column} DESC LIMIT 1")
}

/// Asks whether a subscription fills the quoted table, or one below it: a child, or a table of a view. Fails on servers
/// that know no subscriptions.
pub fn is_subscribed(table: &str) -> String {
    format!(
        "WITH RECURSIVE below AS (
           SELECT to_regclass({})::oid AS oid
           UNION SELECT next.oid FROM below, LATERAL (
             SELECT inhrelid AS oid FROM pg_inherits WHERE inhparent = below.oid
             UNION ALL SELECT refobjid FROM pg_rewrite w JOIN pg_depend d
               ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_class'::regclass
             WHERE ev_class = below.oid
           ) next
         )
         SELECT EXISTS (SELECT FROM pg_subscription_rel JOIN below ON below.oid = srrelid) AS is_subscribed",
        literal(table)
    )
}

/// Expression: the lowest transaction that this server has not begun.
pub const NOT_BEGUN: &str = "pg_snapshot_xmax(pg_current_snapshot())";
