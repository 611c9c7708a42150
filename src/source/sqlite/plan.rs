//! The plans of statements, as SQLite explains them.

use super::error::SqliteError;
use super::ids::Id;
use super::tables::Tables;
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;

/// Returns the steps of a statement's plan ("EXPLAIN QUERY PLAN"), which is not kept: another schema has another one.
pub async fn steps(connection: &mut SqliteConnection, sql: &str) -> Result<Vec<String>, SqliteError> {
    let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
    let steps: Vec<(i64, i64, i64, String)> = sqlx::query_as(explain).persistent(false).fetch_all(connection).await?;
    Ok(steps.into_iter().map(|(.., step)| step).collect())
}

/// Tells whether a step goes through all rows of a table. Those that are left out have few, or are subqueries, which have
/// steps of their own.
pub fn is_scan(step: &str) -> bool {
    let has_few = ["CONSTANT ROW", "sqlite_sequence", "json_each", "temp.watched", "w ", "(subquery", "r "];
    step.contains("AUTOMATIC")
        || step.strip_prefix("SCAN ").is_some_and(|table| !has_few.iter().any(|few| table.starts_with(few)))
}

impl Tables {
    /// Tells whether the rows of one job are found without a look at those of all others.
    pub async fn finds_jobs_by_index(&self, connection: &mut SqliteConnection) -> Result<bool, SqliteError> {
        let steps = steps(connection, &self.events.all_of_job(&Id::new("7"))).await?;
        Ok(!steps.iter().any(|step| is_scan(step)))
    }

    /// Tells whether each page of history sorts all that is left of the job.
    pub async fn sorts_history(&self, connection: &mut SqliteConnection) -> Result<bool, SqliteError> {
        let steps = steps(connection, &self.events.rest_of_job(&Id::new("7"))).await?;
        Ok(steps.iter().any(|step| step.starts_with("USE TEMP B-TREE")))
    }

    /// Tells whether the status of a job is found without a look at all others.
    pub async fn finds_status_by_index(&self, connection: &mut SqliteConnection) -> Result<bool, SqliteError> {
        let Some(jobs) = &self.jobs else { return Ok(true) };
        let steps = steps(connection, &jobs.find(&Id::new("7"))).await?;
        Ok(!steps.iter().any(|step| is_scan(step)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::source::sqlite::SCHEMA;
    use crate::source::sqlite::database::{Owner, read_tables};
    use crate::source::sqlite::position::Of;
    use crate::source::sqlite::sql::MAKE_WATCHED;
    use sqlx::ConnectOptions;
    use sqlx::sqlite::SqliteConnectOptions;

    async fn tables(schema: &str, settings: &config::Sqlite, owner: Owner) -> (SqliteConnection, Tables) {
        let mut connection = SqliteConnectOptions::new().in_memory(true).connect().await.expect("a database");
        let all = format!("{schema}; {MAKE_WATCHED}");
        sqlx::raw_sql(AssertSqlSafe(all)).execute(&mut connection).await.expect("tables");
        let tables = read_tables(&mut connection, settings, owner).await.expect("an answer").expect("tables");
        (connection, tables)
    }

    #[tokio::test]
    async fn the_look_and_the_list_of_jobs_are_read_by_an_index() {
        let (mut connection, tables) = tables(SCHEMA, &config::Sqlite::default(), Owner::Jobcast).await;
        let look = steps(&mut connection, &tables.look()).await.expect("a plan");
        assert!(look.iter().any(|step| step == "SEARCH j USING INDEX runner_jobs_changed (changed>?)"), "{look:?}");
        assert!(!look.iter().any(|step| is_scan(step)), "{look:?}");
        let list = steps(&mut connection, &tables.list_jobs()).await.expect("a plan");
        assert!(list.iter().any(|step| step.starts_with("SEARCH e USING INDEX job_events_job_seq")), "{list:?}");
        let scanned: Vec<&String> = list.iter().filter(|step| is_scan(step)).collect();
        assert_eq!(scanned, ["SCAN j"], "{list:?}");
    }

    #[tokio::test]
    async fn an_index_on_the_job_of_a_foreign_table_serves_the_tail_the_history_and_the_look() {
        let schema = "CREATE TABLE steps (id INTEGER PRIMARY KEY AUTOINCREMENT, state TEXT);
            CREATE TABLE log (id INTEGER PRIMARY KEY AUTOINCREMENT, step_id INTEGER, line INTEGER, data BLOB);
            CREATE UNIQUE INDEX log_line ON log (step_id, line); CREATE INDEX log_step ON log (step_id)";
        let (mut settings, usual) = (config::Sqlite::default(), config::Columns::default());
        settings.events_table = "log".into();
        settings.jobs_table = "steps".into();
        settings.job_columns.status = "state".into();
        let (kind, payload) = (config::Field::from("= log"), config::PayloadColumns::from("data"));
        settings.columns = config::Columns {
            job_id: "step_id".into(),
            step_id: config::Field::Absent,
            kind,
            timestamp: String::new(),
            payload,
            ..usual
        };
        for schema in [schema.to_string(), schema.replace(" AUTOINCREMENT", "")] {
            let (mut connection, tables) = tables(&schema, &settings, Owner::Other).await;
            let (events, job) = (&tables.events, Id::new("7"));
            for sql in [
                tables.look(),
                events.range_of_watched(),
                events.range_of_job(&job),
                tables.page(&job, Of::Job),
                tables.page(&job, Of::Any),
                events.before_last(&job),
                events.row_at_number(),
                events.highest_row(),
                tables.newest(&job),
            ] {
                let steps = steps(&mut connection, &sql).await.expect("a plan");
                assert!(!steps.iter().any(|step| is_scan(step) || step.contains("TEMP B-TREE")), "{sql}: {steps:#?}");
            }
            assert!(tables.finds_jobs_by_index(&mut connection).await.expect("a plan"));
            assert!(tables.finds_status_by_index(&mut connection).await.expect("a plan"));
            sqlx::raw_sql("DROP INDEX log_line; DROP INDEX log_step").execute(&mut connection).await.expect("gone");
            let all = steps(&mut connection, &tables.events.all_of_job(&job)).await.expect("a plan");
            assert!(!tables.finds_jobs_by_index(&mut connection).await.expect("a plan"), "{all:#?}");
        }
    }
}
