//! Kestra's logs, written as it writes them: one JSON value, from which the database makes the columns, under a random key.

use super::product::{Product, next};
use serde_json::json;

const TABLES: &str = "
    CREATE TYPE log_level AS ENUM ('ERROR', 'WARN', 'INFO', 'DEBUG', 'TRACE');
    CREATE TYPE state_type AS ENUM ('CREATED', 'RUNNING', 'PAUSED', 'RESTARTED', 'KILLING', 'SUCCESS', 'WARNING', 'FAILED',
      'KILLED', 'CANCELLED', 'QUEUED', 'RETRYING', 'RETRIED', 'SKIPPED');
    CREATE FUNCTION level_of(text) RETURNS log_level IMMUTABLE LANGUAGE sql AS 'SELECT $1::log_level';
    CREATE FUNCTION state_of(text) RETURNS state_type IMMUTABLE LANGUAGE sql AS 'SELECT $1::state_type';
    CREATE FUNCTION time_of(text) RETURNS timestamptz IMMUTABLE LANGUAGE sql AS 'SELECT $1::timestamptz';
    CREATE TABLE logs (key varchar(250) PRIMARY KEY, value jsonb NOT NULL,
      execution_id varchar(150) GENERATED ALWAYS AS (value ->> 'executionId') STORED,
      task_id varchar(150) GENERATED ALWAYS AS (value ->> 'taskId') STORED,
      level log_level NOT NULL GENERATED ALWAYS AS (level_of(value ->> 'level')) STORED,
      \"timestamp\" timestamptz NOT NULL GENERATED ALWAYS AS (time_of(value ->> 'timestamp')) STORED);
    CREATE INDEX logs_execution_id ON logs (execution_id);
    CREATE TABLE executions (key varchar(250) PRIMARY KEY, value jsonb NOT NULL,
      state_current state_type NOT NULL GENERATED ALWAYS AS (state_of(value #>> '{state,current}')) STORED);
    INSERT INTO executions (key, value) VALUES ('5jFeLwGpTOdMKoeZbVXpoM', '{\"state\": {\"current\": \"RUNNING\"}}');";

const EXECUTION: &str = "5jFeLwGpTOdMKoeZbVXpoM";

const ROWS: &str = "SELECT json_build_object('id', key, 'jobId', execution_id, 'stepId', task_id, 'type', level, 'timestamp',
    told_at(\"timestamp\"), 'actor', NULL, 'payload', value) FROM logs WHERE execution_id IS NOT NULL ORDER BY \"timestamp\", key COLLATE \"C\"";

/// Inserts a line of the execution, with a time relative to the server's.
fn line(level: &str, message: &str, at: &str) -> String {
    format!(
        "INSERT INTO logs (key, value) SELECT left(md5(random()::text), 22), jsonb_build_object('executionId', '{EXECUTION}',
           'taskId', 'load', 'level', '{level}', 'message', '{message}', 'timestamp',
           told_at(date_trunc('milliseconds', now() + interval '{at}')));"
    )
}

fn state(state: &str) -> String {
    format!("UPDATE executions SET value = jsonb_set(value, '{{state,current}}', '\"{state}\"')")
}

#[tokio::test]
async fn an_execution_of_kestra_is_told_to_its_last_line_and_once_more_after_a_restart() {
    let kestra = Product::start("kestra", "grants.sql", TABLES).await;
    let database = &kestra.database;
    // two lines of one millisecond, and one of a trigger, which has no execution
    let same = [line("INFO", "started", "-8 minutes"), line("INFO", "{}", "-8 minutes")].concat();
    database.execute(&format!("BEGIN; {same} COMMIT")).await;
    database
        .execute(
            r#"INSERT INTO logs (key, value) VALUES ('t', '{"level": "INFO", "timestamp": "2026-11-27T12:00:00Z"}')"#,
        )
        .await;
    let daemon = kestra.serve("5m").await;
    let mut stream = daemon.stream(EXECUTION).await.with_statuses();
    let mut told = next(&mut stream, 2).await;
    database.execute(&line("WARN", "by a clock that is behind", "-7 minutes")).await;
    told.extend(next(&mut stream, 1).await);
    database.execute(&line("DEBUG", "by a clock that is ahead", "4 minutes")).await;
    told.extend(next(&mut stream, 1).await);
    database.execute(&state("FAILED")).await;
    assert_eq!(next(&mut stream, 1).await, [json!("stream.status FAILED")]);
    database.execute(&line("ERROR", "after the end", "-6 minutes")).await;
    told.extend(next(&mut stream, 1).await);
    assert_eq!(told[4]["payload"]["message"], "after the end");

    // a restart under the same id, for who has not been told the end yet, and for who has
    database.execute(&state("RESTARTED")).await;
    database.execute(&line("INFO", "once more", "6 minutes")).await;
    told.extend(next(&mut stream, 1).await);
    database.execute(&state("WARNING")).await;
    assert_eq!(next(&mut stream, 1).await, [json!("stream.status COMPLETED")]);
    told.sort_by_key(|line| (line["timestamp"].to_string(), line["id"].to_string()));
    assert_eq!(told, kestra.rows(ROWS).await);
    let end = kestra.is_told(EXECUTION, &told, "COMPLETED").await;
    database.execute(&state("RESTARTED")).await;
    database.execute(&line("INFO", "a third time", "7 minutes")).await;
    let again = next(&mut daemon.stream_after(EXECUTION, &end).await, 1).await;
    assert_eq!(again, kestra.rows(ROWS).await[6..]);
}
