//! SQL for the operator: the recommended tables, the trigger that notifies, and the migration of an existing table.

use super::sql::{literal, quote, quote_table};
use crate::config;

pub const SCHEMA: &str = include_str!("schema.sql");
/// Triggers that wake Jobcast.
pub const TRIGGER: &str = include_str!("trigger.sql");

/// A script for psql that adds the columns `xid` and `seq` and their indexes to the configured event table where they are
/// missing.
pub fn migration(settings: &config::Postgres, with_trigger: bool) -> String {
    let columns = &settings.columns;
    let (events, jobs) = (quote_table(&settings.events_table), quote_table(&settings.jobs_table));
    let sequence = quote_table(&format!("{}_seq", settings.events_table));
    let wanted = [
        ("xid", vec![&*columns.xid]),
        ("job_seq", vec![&*columns.job_id, &columns.seq]),
        ("job_time", vec![&*columns.job_id, &columns.timestamp]),
    ];
    let wanted: Vec<String> = wanted
        .iter()
        .filter(|(_, columns)| !columns.contains(&""))
        .map(|(suffix, columns)| row(suffix, columns))
        .collect();
    let mut sql = include_str!("migrate.sql").to_string();
    if with_trigger && !settings.listen.is_empty() {
        sql.push_str(include_str!("migrate_triggers.sql"));
        if !settings.jobs_table.is_empty() {
            sql.push_str(include_str!("migrate_job_trigger.sql"));
        }
    }
    for (name, value) in [
        ("{events}", events.clone()),
        ("{events_text}", literal(&events)),
        ("{jobs}", jobs.clone()),
        ("{jobs_text}", literal(&jobs)),
        ("{status}", quote(&settings.job_columns.status)),
        ("{listen}", quote(&settings.listen)),
        ("{xid}", quote(&columns.xid)),
        ("{xid_text}", literal(&columns.xid)),
        ("{seq}", quote(&columns.seq)),
        ("{seq_text}", literal(&columns.seq)),
        ("{sequence}", sequence.clone()),
        ("{sequence_text}", literal(&sequence)),
        ("{wanted}", wanted.join(",\n  ")),
    ] {
        sql = sql.replace(name, &value);
    }
    sql
}

/// An index that is wanted, as a row of VALUES.
fn row(suffix: &str, columns: &[&str]) -> String {
    let texts: Vec<String> = columns.iter().map(|column| literal(column)).collect();
    let list: Vec<String> = columns.iter().map(|column| quote(column)).collect();
    format!("({}, ARRAY[{}], {})", literal(suffix), texts.join(", "), literal(&list.join(", ")))
}
