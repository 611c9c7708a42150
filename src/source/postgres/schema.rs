//! SQL for the operator: the recommended tables, the trigger that notifies, and the migration of an existing table.

use super::sql::{literal, quote, quote_table};
use crate::config;

pub const SCHEMA: &str = include_str!("schema.sql");
/// Triggers that wake Jobcast.
pub const TRIGGER: &str = include_str!("trigger.sql");

/// SQL that adds the columns `xid` and `seq` and their indexes to the configured event table where they are missing.
pub fn migration(settings: &config::Postgres, with_trigger: bool) -> String {
    let (events, columns) = (&settings.events_table, &settings.columns);
    let (events_sql, table) = (quote_table(events), events.rsplit('.').next().unwrap_or(events));
    let sequence = quote_table(&format!("{events}_seq"));
    let mut sql = include_str!("migrate.sql").to_string();
    for (name, value) in [
        ("{events}", events_sql.clone()),
        ("{events_text}", literal(&events_sql)),
        ("{xid}", quote(&columns.xid)),
        ("{xid_text}", literal(&columns.xid)),
        ("{seq}", quote(&columns.seq)),
        ("{seq_text}", literal(&columns.seq)),
        ("{sequence}", sequence.clone()),
        ("{sequence_text}", literal(&sequence)),
        ("{job_id}", quote(&columns.job_id)),
        ("{timestamp}", quote(&columns.timestamp)),
        ("{xid_index}", quote(&format!("{table}_xid"))),
        ("{seq_index}", quote(&format!("{table}_job_seq"))),
        ("{time_index}", quote(&format!("{table}_job_time"))),
    ] {
        sql = sql.replace(name, &value);
    }
    if with_trigger && !settings.listen.is_empty() {
        sql.push('\n');
        sql.push_str(&triggers(settings, &events_sql));
    }
    sql
}

fn triggers(settings: &config::Postgres, events: &str) -> String {
    // The job table's part is the last.
    let (for_events, for_jobs) = TRIGGER.split_at(TRIGGER.find("DROP TRIGGER IF EXISTS runner_jobs_wake").unwrap_or(0));
    let mut sql = for_events.replace("ON job_events", &format!("ON {events}"));
    if !settings.jobs_table.is_empty() {
        sql.push_str(&for_jobs.replace("ON runner_jobs", &format!("ON {}", quote_table(&settings.jobs_table))));
    }
    sql.replace("NOTIFY jobcast;", &format!("NOTIFY {};", quote(&settings.listen)))
        .replace("OF status", &format!("OF {}", quote(&settings.job_columns.status)))
}
