//! Writer of the rows. It works as any runner would that knows only the two tables of Jobcast.

use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// Ended jobs that are kept; a demo may run for days.
const KEPT_JOBS: i64 = 200;

/// An event to be written.
pub struct DemoEvent {
    step: Option<&'static str>,
    kind: &'static str,
    payload: Value,
}

impl DemoEvent {
    pub fn of_job(kind: &'static str, payload: Value) -> Self {
        Self { step: None, kind, payload }
    }

    pub fn of_step(step: &'static str, kind: &'static str, payload: Value) -> Self {
        Self { step: Some(step), kind, payload }
    }

    pub fn on_stderr(mut self) -> Self {
        self.payload["stream"] = json!("stderr");
        self
    }
}

pub struct Store(SqlitePool);

impl Store {
    pub async fn open(database: &Path) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::new().filename(database).busy_timeout(Duration::from_secs(5));
        // With one connection, the runners wait for each other here and not for locks of SQLite.
        Ok(Self(SqlitePoolOptions::new().max_connections(1).connect_with(options).await?))
    }

    /// Writes events and the status that they lead to in one commit.
    pub async fn write(
        &self,
        job: &str,
        actor: Option<&str>,
        events: Vec<DemoEvent>,
        status: Option<&str>,
    ) -> Result<(), sqlx::Error> {
        let mut transaction = self.0.begin_with("BEGIN IMMEDIATE").await?;
        for event in events {
            sqlx::query(
                "INSERT INTO job_events (id, job_id, step_id, type, actor, payload) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )
            .bind(Uuid::now_v7().to_string())
            .bind(job)
            .bind(event.step)
            .bind(event.kind)
            .bind(actor)
            .bind(event.payload.to_string())
            .execute(&mut *transaction)
            .await?;
        }
        if let Some(status) = status {
            sqlx::query(
                "UPDATE runner_jobs SET status = ?2, updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE id = ?1",
            )
            .bind(job)
            .bind(status)
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await
    }

    /// Deletes the oldest ended jobs.
    pub async fn forget_old_jobs(&self) -> Result<(), sqlx::Error> {
        let mut transaction = self.0.begin_with("BEGIN IMMEDIATE").await?;
        let old: Vec<String> = sqlx::query_scalar(
            "SELECT id FROM runner_jobs WHERE status IN ('COMPLETED', 'FAILED', 'CANCELLED')
             ORDER BY changed DESC LIMIT -1 OFFSET ?1",
        )
        .bind(KEPT_JOBS)
        .fetch_all(&mut *transaction)
        .await?;
        for job in old {
            sqlx::query("DELETE FROM job_events WHERE job_id = ?1").bind(&job).execute(&mut *transaction).await?;
            sqlx::query("DELETE FROM runner_jobs WHERE id = ?1").bind(&job).execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }
}
