//! Coder's logs of provisioner jobs, written as it writes them: some lines in each transaction, with the provisioner's times.

use super::product::{Product, next, parts};
use serde_json::{Value, json};

const TABLES: &str = "
    CREATE TYPE provisioner_job_status AS ENUM ('pending', 'running', 'succeeded', 'canceling', 'canceled', 'failed', 'unknown');
    CREATE TYPE log_level AS ENUM ('trace', 'debug', 'info', 'warn', 'error');
    CREATE TYPE log_source AS ENUM ('provisioner_daemon', 'provisioner');
    CREATE TABLE provisioner_jobs (id uuid PRIMARY KEY, created_at timestamptz NOT NULL DEFAULT now(), started_at timestamptz,
      canceled_at timestamptz, completed_at timestamptz, error text,
      job_status provisioner_job_status NOT NULL GENERATED ALWAYS AS (CASE
        WHEN completed_at IS NOT NULL AND error <> '' THEN 'failed'::provisioner_job_status
        WHEN completed_at IS NOT NULL AND canceled_at IS NOT NULL THEN 'canceled'
        WHEN completed_at IS NOT NULL THEN 'succeeded' WHEN canceled_at IS NOT NULL THEN 'canceling'
        WHEN started_at IS NULL THEN 'pending' ELSE 'running' END) STORED);
    CREATE TABLE provisioner_job_logs (job_id uuid NOT NULL REFERENCES provisioner_jobs ON DELETE CASCADE,
      created_at timestamptz NOT NULL, source log_source NOT NULL, level log_level NOT NULL, stage varchar(128) NOT NULL,
      output varchar(1024) NOT NULL, id bigserial PRIMARY KEY);
    CREATE INDEX provisioner_job_logs_id_job_id_idx ON provisioner_job_logs (job_id, id);
    INSERT INTO provisioner_jobs (id, started_at) VALUES ('0199aaaa-bbbb-7ccc-8ddd-eeeeffff0001', now()),
      ('0199aaaa-bbbb-7ccc-8ddd-eeeeffff0002', now());";

const BUILD: &str = "0199aaaa-bbbb-7ccc-8ddd-eeeeffff0001";
const OTHER: &str = "0199aaaa-bbbb-7ccc-8ddd-eeeeffff0002";

/// Inserts lines of a job in one statement. Each has a level, a text, and a time relative to the server's.
fn lines(job: &str, lines: &[(&str, &str, &str)]) -> String {
    let rows = lines.iter().map(|(level, output, at)| {
        format!("('{job}', date_trunc('milliseconds', now() + interval '{at}'), 'provisioner', '{level}', 'Starting', '{output}')")
    });
    let rows: Vec<String> = rows.collect();
    format!(
        "INSERT INTO provisioner_job_logs (job_id, created_at, source, level, stage, output) VALUES {}",
        rows.join(", ")
    )
}

const ROWS: &str = "SELECT json_build_object('id', id::text, 'jobId', job_id, 'stepId', stage, 'type', level,
    'timestamp', told_at(created_at), 'actor', source, 'payload', output) FROM provisioner_job_logs
    WHERE job_id = '0199aaaa-bbbb-7ccc-8ddd-eeeeffff0001' ORDER BY id";

#[tokio::test]
async fn a_build_of_coder_is_told_line_by_line_whatever_its_provisioners_clock_says() {
    let coder = Product::start("coder", "grants.sql", TABLES).await;
    let database = &coder.database;
    database.execute(&lines(BUILD, &[("info", "{\"a\": 1}", "-8 minutes"), ("debug", "", "-8 minutes")])).await;
    let daemon = coder.serve("5m").await;
    let mut stream = daemon.stream(BUILD).await.with_statuses();
    let mut told = next(&mut stream, 2).await;
    database.execute(&lines(OTHER, &[("info", "of another build", "0")])).await;
    database.execute(&lines(BUILD, &[("warn", "42", "-8 minutes")])).await;
    told.extend(next(&mut stream, 1).await);
    database.execute(&lines(BUILD, &[("info", "é", "3 hours"), ("error", "boom", "-9 minutes")])).await;
    told.extend(next(&mut stream, 2).await);
    let end = "UPDATE provisioner_jobs SET error = 'boom', completed_at = now() WHERE id = '0199aaaa-bbbb-7ccc-8ddd-eeeeffff0001'";
    database.execute(end).await;
    assert_eq!(next(&mut stream, 1).await, [json!("stream.status FAILED")]);
    database.execute(&lines(BUILD, &[("info", "cleaned up", "-8 minutes")])).await;
    told.extend(next(&mut stream, 1).await);
    assert_eq!(told, coder.rows(ROWS).await);
    let said: Vec<&Value> = told.iter().map(|event| &event["payload"]).collect();
    assert_eq!(said, ["{\"a\": 1}", "", "42", "é", "boom", "cleaned up"]);
    coder.is_told(BUILD, &told, "FAILED").await;
    database.execute("UPDATE provisioner_jobs SET canceled_at = now(), completed_at = now() WHERE error IS NULL").await;
    let daemon = coder.serve("100ms").await;
    let all = parts(&daemon.stream(OTHER).await.rest().await);
    assert_eq!((all.len(), &all[1]), (2, &json!("stream.complete CANCELLED")));
}
