//! The first and cheapest query of a read of the tail.

use super::error::SqliteError;
use super::rows::{bytes_of, job_of, number_of, status_of};
use crate::event::{JobId, JobStatus};
use futures_util::TryStreamExt;
use sqlx::sqlite::SqliteConnection;

pub struct Changes {
    /// The highest `seq` of all events.
    pub newest: i64,
    /// The highest `runner_jobs.changed`.
    pub status_mark: i64,
    /// Statuses that changed since the last read, and those of jobs that are catching up.
    pub statuses: Vec<(JobId, JobStatus)>,
}

const LOOK: &str = "SELECT 0, NULL, NULL,
       coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'job_events'), (SELECT max(seq) FROM job_events), 0)
     UNION ALL SELECT 1, j.id, j.status, j.changed FROM runner_jobs j
       WHERE j.changed > ?1 AND (typeof(j.id) = 'text'
         OR NOT EXISTS (SELECT 1 FROM runner_jobs t WHERE t.id = CAST(j.id AS TEXT)))
     UNION ALL SELECT 1, w.value, coalesce((SELECT status FROM runner_jobs WHERE id = w.value),
         (SELECT status FROM runner_jobs WHERE id = CAST(w.value AS BLOB))), ?1
       FROM json_each(?2) w";

/// Reads how far events go, the statuses that changed after `status_mark`, and those of jobs that are catching up.
///
/// A job's id may be stored as text or as BLOB. Where both are there, the text counts.
pub async fn read_changes(
    connection: &mut SqliteConnection,
    status_mark: i64,
    catching_up: &[&JobId],
) -> Result<Changes, SqliteError> {
    let mut rows = sqlx::query(LOOK).bind(status_mark).bind(serde_json::to_string(catching_up)?).fetch(connection);
    let mut changes = Changes { newest: 0, status_mark, statuses: Vec::new() };
    while let Some(row) = rows.try_next().await? {
        let number = number_of(&row, 3)?;
        if number_of(&row, 0)? == 0 {
            changes.newest = number;
            continue;
        }
        changes.status_mark = changes.status_mark.max(number);
        if let (Some(job), Some(status)) = (job_of(bytes_of(&row, 1)?), status_of(bytes_of(&row, 2)?.as_deref())) {
            changes.statuses.push((job, status));
        }
    }
    Ok(changes)
}

const FIND: &str = "SELECT w.value FROM json_each(?1) w
     WHERE EXISTS (SELECT 1 FROM runner_jobs WHERE id = w.value)
        OR EXISTS (SELECT 1 FROM runner_jobs WHERE id = CAST(w.value AS BLOB))
        OR EXISTS (SELECT 1 FROM job_events WHERE job_id = w.value)
        OR EXISTS (SELECT 1 FROM job_events WHERE job_id = CAST(w.value AS BLOB))";

/// Returns those of `jobs` that have a row in one of the tables.
pub async fn find_jobs(connection: &mut SqliteConnection, jobs: &[JobId]) -> Result<Vec<JobId>, SqliteError> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let found: Vec<String> = sqlx::query_scalar(FIND).bind(serde_json::to_string(jobs)?).fetch_all(connection).await?;
    Ok(found.iter().filter_map(|job| job.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::super::{LIST, SCHEMA};
    use super::*;
    use sqlx::sqlite::SqliteConnectOptions;
    use sqlx::{AssertSqlSafe, ConnectOptions};

    /// Returns the steps of the plan for a statement of two parameters.
    async fn plan(connection: &mut SqliteConnection, sql: &str) -> Vec<String> {
        let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let steps: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(explain).bind(1).bind("[]").fetch_all(connection).await.expect("a plan");
        steps.into_iter().map(|(.., step)| step).collect()
    }

    #[tokio::test]
    async fn the_look_and_the_list_of_jobs_are_read_by_an_index() {
        let mut connection = SqliteConnectOptions::new().in_memory(true).connect().await.expect("a database");
        sqlx::raw_sql(SCHEMA).execute(&mut connection).await.expect("tables");
        let look = plan(&mut connection, LOOK).await;
        assert!(look.iter().any(|step| step == "SEARCH j USING INDEX runner_jobs_changed (changed>?)"), "{look:?}");
        // Those that are scanned have one row for each job that is catching up, and one for each table.
        let is_bounded = |step: &String| {
            !step.starts_with("SCAN")
                || step.contains("SCAN w ")
                || step == "SCAN sqlite_sequence"
                || step == "SCAN CONSTANT ROW"
        };
        assert!(look.iter().all(is_bounded), "{look:?}");
        let find = plan(&mut connection, FIND).await;
        assert!(find.iter().all(|step| !step.starts_with("SCAN") || step.starts_with("SCAN w ")), "{find:?}");
        let list = plan(&mut connection, LIST).await;
        assert!(list.iter().any(|step| step.starts_with("SEARCH e USING INDEX job_events_job_seq")), "{list:?}");
        let scanned: Vec<&String> = list.iter().filter(|step| step.starts_with("SCAN")).collect();
        assert_eq!(scanned, ["SCAN j"], "{list:?}");
    }
}
