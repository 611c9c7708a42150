//! A simulated runner. It only writes rows, as any runner would: what the page shows has come through the real stream.

use super::scripts::{self, Outcome, Script, Step};
use crate::event::Rfc3339;
use jiff::Timestamp;
use rand::RngExt;
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Jobs that run at the same time.
const AT_ONCE: usize = 3;
/// Jobs that are kept once they have ended.
const KEPT: i64 = 200;

/// Runs jobs until it is to leave.
pub async fn run(database: &Path, leaving: impl Future<Output = ()>) -> Result<(), sqlx::Error> {
    let options = SqliteConnectOptions::new().filename(database).busy_timeout(Duration::from_secs(10));
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
    tokio::select! {
        result = keep_running(&pool) => result,
        () = leaving => Ok(()),
    }
}

async fn keep_running(pool: &SqlitePool) -> Result<(), sqlx::Error> {
    let mut running = JoinSet::new();
    let mut number = 1041;
    loop {
        while running.len() < AT_ONCE {
            number += 1;
            let script = scripts::any();
            let job = Job { pool: pool.clone(), id: format!("{}-{number}", script.project), actor: actor(number) };
            // the first ones at once, so that there is something to see; the others as they come
            let pause = if number <= 1041 + AT_ONCE as u64 { 0.0 } else { rand::rng().random_range(0.5..4.0) };
            running.spawn(async move {
                sleep(Duration::from_secs_f64(pause)).await;
                job.run(script).await
            });
        }
        if let Some(Ok(ended)) = running.join_next().await {
            ended?;
        }
        tidy(pool).await?;
    }
}

fn actor(number: u64) -> String {
    format!("runner-{}", number % 5 + 1)
}

async fn tidy(pool: &SqlitePool) -> Result<(), sqlx::Error> {
    const OLD: &str = "SELECT id FROM runner_jobs WHERE status IN ('COMPLETED', 'FAILED', 'CANCELLED')
                       ORDER BY updated_at DESC LIMIT -1 OFFSET ?1";
    let mut together = pool.begin().await?;
    let old: Vec<String> = sqlx::query_scalar(OLD).bind(KEPT).fetch_all(&mut *together).await?;
    for job in old {
        sqlx::query("DELETE FROM job_events WHERE job_id = ?1").bind(&job).execute(&mut *together).await?;
        sqlx::query("DELETE FROM runner_jobs WHERE id = ?1").bind(&job).execute(&mut *together).await?;
    }
    together.commit().await
}

struct Job {
    pool: SqlitePool,
    id: String,
    actor: String,
}

/// One row to come: step, type, payload.
type Row<'a> = (Option<&'a str>, &'a str, Value);

impl Job {
    async fn run(&self, script: Script) -> Result<(), sqlx::Error> {
        let began = Instant::now();
        self.write(&[(None, "job.queued", json!({}))], Some("QUEUED")).await?;
        sleep(within(0.2, 1.0)).await;
        let steps: Vec<Value> = script.steps.iter().map(|step| json!({ "id": step.id, "name": step.name })).collect();
        let started = json!({
            "name": script.name, "branch": script.branch, "commit": script.commit, "trigger": script.trigger,
            "steps": steps,
        });
        self.write(&[(None, "job.started", started)], Some("RUNNING")).await?;
        for (index, step) in script.steps.iter().enumerate() {
            let left = &script.steps[index + 1..];
            match self.step(step).await? {
                Outcome::Passes => {}
                Outcome::Fails { error, .. } => {
                    let error = format!("{} failed: {error}", step.name);
                    let last = json!({ "durationMs": millis(began), "error": error });
                    return self.end(left, "a step before it failed", "job.failed", last, "FAILED").await;
                }
                Outcome::IsCancelled { by } => {
                    let last = json!({ "by": by });
                    return self.end(left, "the job was cancelled", "job.cancelled", last, "CANCELLED").await;
                }
            }
        }
        self.end(&[], "", "job.completed", json!({ "durationMs": millis(began) }), "COMPLETED").await
    }

    async fn step<'a>(&self, step: &'a Step) -> Result<&'a Outcome, sqlx::Error> {
        let began = Instant::now();
        let id = Some(step.id);
        self.write(&[(id, "step.started", json!({ "name": step.name }))], None).await?;
        let pieces = step.pieces();
        let count = pieces.len();
        for (index, lines) in pieces.into_iter().enumerate() {
            let pace = step.lasts.as_secs_f64() / count as f64;
            sleep(within(pace * 0.3, pace * 1.7)).await;
            let mut rows: Vec<Row> =
                lines.iter().map(|line| (id, "step.output", json!({ "line": line, "stream": "stdout" }))).collect();
            if step.tells_progress {
                let percent = (index + 1) * 100 / count;
                rows.push((id, "step.progress", json!({ "percent": percent })));
            }
            self.write(&rows, None).await?;
        }
        let last = match &step.outcome {
            Outcome::Passes => (id, "step.completed", json!({ "durationMs": millis(began) })),
            Outcome::Fails { error, lines } => {
                let rows: Vec<Row> =
                    lines.iter().map(|line| (id, "step.output", json!({ "line": line, "stream": "stderr" }))).collect();
                self.write(&rows, None).await?;
                (id, "step.failed", json!({ "durationMs": millis(began), "error": error, "exitCode": 1 }))
            }
            Outcome::IsCancelled { .. } => {
                (id, "step.failed", json!({ "durationMs": millis(began), "error": "cancelled", "exitCode": 130 }))
            }
        };
        self.write(&[last], None).await?;
        Ok(&step.outcome)
    }

    /// The last events and the final status become visible together.
    async fn end(&self, left: &[Step], why: &str, kind: &str, last: Value, status: &str) -> Result<(), sqlx::Error> {
        let mut rows: Vec<Row> =
            left.iter().map(|step| (Some(step.id), "step.skipped", json!({ "reason": why }))).collect();
        rows.push((None, kind, last));
        self.write(&rows, Some(status)).await
    }

    async fn write(&self, rows: &[Row<'_>], status: Option<&str>) -> Result<(), sqlx::Error> {
        let mut together = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for (step, kind, payload) in rows {
            sqlx::query(
                "INSERT INTO job_events (id, job_id, step_id, type, timestamp, actor, payload)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )
            .bind(uuid::Uuid::now_v7().to_string())
            .bind(&self.id)
            .bind(*step)
            .bind(*kind)
            .bind(Rfc3339(Timestamp::now()).to_string())
            .bind(&self.actor)
            .bind(payload.to_string())
            .execute(&mut *together)
            .await?;
        }
        if let Some(status) = status {
            sqlx::query(
                "UPDATE runner_jobs SET status = ?2, updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE id = ?1",
            )
            .bind(&self.id)
            .bind(status)
            .execute(&mut *together)
            .await?;
        }
        together.commit().await
    }
}

fn millis(since: Instant) -> u64 {
    since.elapsed().as_millis() as u64
}

fn within(least: f64, most: f64) -> Duration {
    Duration::from_secs_f64(rand::rng().random_range(least..most))
}
