//! Statements of `jobcast check` alone. They ask the catalogue, its statistics, and samples of bounded size.

use super::super::tables::{JobTable, Tables};
use super::{literal, text_array};
use crate::event::JobId;

/// Rows of a table that a sample looks at.
const SAMPLE: usize = 50_000;

/// Lists the tables and views that there are: `schema, name, is_visible`.
pub const RELATIONS: &str = "SELECT nspname::text AS schema, relname::text AS name, pg_table_is_visible(c.oid) AS is_visible
  FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
  WHERE relkind IN ('r', 'p', 'v') AND NOT relispartition AND nspname <> 'information_schema' AND nspname NOT LIKE 'pg\\_%'
  ORDER BY relname LIMIT 5000";

/// Lists the quoted relation and, of a view, everything below it, with the role in whose name each is read.
///
/// `name, kind, reader` (quoted), `may_read`, `is_guarded` (row level security counts for the reader), `policies` (that let
/// the reader see rows).
pub fn read_access(relation: &str) -> String {
    format!(
        "WITH RECURSIVE below AS (
           SELECT c.oid, relkind, relowner, reloptions, r.oid AS reader, 0 AS depth
           FROM pg_class c, pg_roles r WHERE c.oid = to_regclass({relation}) AND r.rolname = current_user
           UNION
           SELECT c.oid, c.relkind, c.relowner, c.reloptions,
                  CASE WHEN b.reloptions && ARRAY['security_invoker=true', 'security_invoker=on', 'security_invoker=1']
                       THEN b.reader ELSE b.relowner END, depth + 1
           FROM below b JOIN pg_rewrite w ON w.ev_class = b.oid
           JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
             AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> b.oid
           JOIN pg_class c ON c.oid = d.refobjid
           WHERE b.relkind = 'v' AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND depth < 20
         )
         SELECT oid::regclass::text AS name, kind, quote_ident(rolname) AS reader, may_read,
                relrowsecurity AND NOT is_above AS is_guarded, policies
         FROM (
           SELECT DISTINCT b.oid, b.relkind::text AS kind, r.rolname, c.relrowsecurity,
                  has_table_privilege(b.reader, b.oid, 'SELECT') AS may_read,
                  r.rolsuper OR r.rolbypassrls
                    OR (pg_has_role(b.reader, b.relowner, 'USAGE') AND NOT c.relforcerowsecurity) AS is_above,
                  ARRAY(SELECT polname::text FROM pg_policy p WHERE p.polrelid = b.oid AND polpermissive AND polcmd IN ('r', '*')
                        AND EXISTS (SELECT FROM unnest(polroles) role (id) WHERE id = 0 OR pg_has_role(b.reader, id, 'USAGE'))
                  ) AS policies, depth
           FROM below b JOIN pg_class c ON c.oid = b.oid JOIN pg_roles r ON r.oid = b.reader
         ) access ORDER BY depth, name",
        relation = literal(relation)
    )
}

/// Lists the quoted relation and everything below it by partitions or INHERITS, without what holds no rows: `name,
/// short_name, rows` (estimated; below 0 where nothing is known), `has_index` (over these columns first, in this order),
/// `has_default` (the column `filled` has one). Nothing for a view.
pub fn rows_below<'a>(relation: &str, columns: impl IntoIterator<Item = &'a str>, filled: &str) -> String {
    let columns = text_array(columns);
    format!(
        "WITH RECURSIVE below AS (
           SELECT to_regclass({relation})::oid AS oid
           UNION SELECT inhrelid FROM below JOIN pg_inherits ON inhparent = below.oid
         )
         SELECT c.oid::regclass::text AS name, relname::text AS short_name,
                CASE WHEN relpages = 0 AND pg_relation_size(c.oid) > 0 THEN -1 ELSE greatest(reltuples, 0) END::float8 AS rows,
                {has_index} AS has_index,
                EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = {filled} AND atthasdef) AS has_default,
                c.oid = to_regclass({relation}) AS is_top
         FROM below JOIN pg_class c ON c.oid = below.oid
         WHERE relkind = 'r' AND (c.oid <> to_regclass({relation}) OR pg_relation_size(c.oid) > 0
           OR NOT EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid))
         ORDER BY c.oid",
        relation = literal(relation),
        filled = literal(filled),
        has_index = has_index_over("c.oid", &columns),
    )
}

/// Asks for an index over the whole quoted table that begins with these columns, in this order.
pub fn has_index<'a>(table: &str, columns: impl IntoIterator<Item = &'a str>) -> String {
    let over = has_index_over(&format!("to_regclass({})", literal(table)), &text_array(columns));
    format!("SELECT {over} AS has_index")
}

fn has_index_over(table: &str, columns: &str) -> String {
    format!(
        "EXISTS (
           SELECT FROM pg_index i
           WHERE i.indrelid = {table} AND i.indisvalid AND i.indpred IS NULL AND ({columns}) = (
             SELECT array_agg(a.attname::text ORDER BY k.n)
             FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (c, n)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.c
             WHERE k.n <= cardinality({columns})
           )
         )"
    )
}

/// Reads the query of a view: `kind, definition, options, hands_on` (it has a column `xmin` of that type).
pub fn view_definition(relation: &str) -> String {
    format!(
        "SELECT relkind::text AS kind, array_to_string(reloptions, ', ') AS options,
                CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(oid, true) END AS definition,
                EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = 'xmin' AND attnum > 0) AS hands_on
         FROM pg_class c WHERE oid = to_regclass({})",
        literal(relation)
    )
}

/// Finds the column of the job's id by its usual name in a table, which is named as PostgreSQL prints it.
pub fn names_job(table: &str, job_id: &str) -> String {
    format!(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass({}) AND attname = {} AND NOT attisdropped",
        literal(table),
        literal(job_id)
    )
}

/// Samples the values of a status column: `value`. Of an enum, all that there are.
pub fn statuses(jobs: &JobTable) -> String {
    format!(
        "SELECT value FROM (
           SELECT enumlabel::text AS value FROM pg_enum
           WHERE enumtypid = (SELECT atttypid FROM pg_attribute WHERE attrelid = to_regclass({table}) AND attname = {name})
           UNION SELECT status FROM (SELECT {status}::text AS status FROM {from} j LIMIT {SAMPLE}) sample
         ) found WHERE value IS NOT NULL ORDER BY 1 LIMIT 100",
        table = literal(&jobs.name),
        name = literal(&jobs.status_name.trim_matches('"').replace("\"\"", "\"")),
        status = jobs.status(),
        from = jobs.name,
    )
}

/// Samples the types of events: `value`.
pub fn types(tables: &Tables) -> String {
    format!(
        "SELECT DISTINCT type AS value FROM (SELECT {} AS type FROM {} e LIMIT {SAMPLE}) sample ORDER BY 1 LIMIT 100",
        tables.events.columns.kind, tables.events.name
    )
}

/// Finds a job that has several rows, among those of a sample: `value`.
pub fn repeated_job(jobs: &JobTable) -> String {
    format!(
        "SELECT id AS value FROM (SELECT {}::text AS id FROM {} j LIMIT {SAMPLE}) sample GROUP BY id HAVING count(*) > 1 LIMIT 1",
        jobs.id.column(),
        jobs.name
    )
}

/// Samples the numbers in a column of times: `value`.
pub fn time_number(tables: &Tables, column: &str) -> String {
    format!("SELECT {column}::float8 AS value FROM {} e WHERE {column} IS NOT NULL LIMIT 1", tables.events.name)
}

/// Finds a job for estimates: the most frequent one, else any: `value`.
pub fn sample_job(tables: &Tables, column: &str) -> String {
    format!(
        "SELECT coalesce(
           (SELECT (most_common_vals::text::text[])[1] FROM pg_stats s JOIN pg_class c ON c.relname = s.tablename
              AND c.relnamespace = s.schemaname::regnamespace
            WHERE c.oid = to_regclass({table}) AND attname = {name} ORDER BY inherited DESC LIMIT 1),
           (SELECT {job_id} FROM {from} e WHERE {job_column} IS NOT NULL LIMIT 1)) AS value",
        table = literal(&tables.events.name),
        name = literal(column),
        job_id = tables.events.job_id.text(),
        job_column = tables.events.job_id.column(),
        from = tables.events.name,
    )
}

/// Reads the plan of a statement as JSON: `plan`.
pub fn explain(statement: &str) -> String {
    format!("EXPLAIN (FORMAT JSON) {statement}")
}

/// Reads the rows of one job, for an estimate.
pub fn job_rows(tables: &Tables, job: &str) -> String {
    format!("SELECT FROM {} e WHERE {}", tables.events.name, tables.events.job_id.equals(job))
}

/// Reads what new rows are looked for above, and the snapshot: `snapshot, reach`.
pub fn reach(tables: &Tables, job: &JobId, look_back: f64) -> String {
    format!(
        "SELECT pg_current_snapshot()::text AS snapshot, {} AS reach",
        tables.rows(tables.best).reach(job, look_back)
    )
}
