//! Prefect's log, written as it writes it: batches of rows under random ids, with the workers' own times.

use super::product::{Product, next};
use serde_json::json;

const TABLES: &str = "
    CREATE TYPE state_type AS ENUM ('SCHEDULED', 'PENDING', 'RUNNING', 'COMPLETED', 'FAILED', 'CANCELLED', 'CRASHED', 'PAUSED',
      'CANCELLING');
    CREATE TABLE flow_run (id uuid PRIMARY KEY, name varchar NOT NULL, state_type state_type);
    CREATE TABLE log (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), created timestamptz NOT NULL DEFAULT now(),
      updated timestamptz NOT NULL DEFAULT now(), name varchar NOT NULL, level smallint NOT NULL, flow_run_id uuid,
      task_run_id uuid, message text NOT NULL, \"timestamp\" timestamptz NOT NULL);
    CREATE INDEX ix_log__flow_run_id_timestamp ON log (flow_run_id, \"timestamp\");
    CREATE INDEX ix_log__level ON log (level);
    INSERT INTO flow_run VALUES ('0199aaaa-bbbb-7ccc-8ddd-eeeeffff0001', 'gray-bat', 'RUNNING');";

const RUN: &str = "0199aaaa-bbbb-7ccc-8ddd-eeeeffff0001";

const ROWS: &str = "SELECT json_build_object('id', id, 'jobId', flow_run_id, 'stepId', task_run_id, 'type', CASE level
      WHEN 10 THEN 'DEBUG' WHEN 20 THEN 'INFO' WHEN 30 THEN 'WARNING' WHEN 40 THEN 'ERROR' ELSE level::text END,
    'timestamp', told_at(\"timestamp\"), 'actor', name, 'payload', message)
    FROM log WHERE flow_run_id IS NOT NULL ORDER BY \"timestamp\", id";

/// Inserts a batch of a worker: a level and a message each. Its clock is off by so much.
fn batch(run: &str, offset: &str, lines: &[(u64, &str)]) -> String {
    let rows = lines.iter().enumerate().map(|(place, (level, message))| {
        let at = format!("date_trunc('milliseconds', now()) + interval '{offset}' + interval '{place} milliseconds'");
        format!("('prefect.flow_runs', {level}, {run}, '{message}', {at})")
    });
    let rows: Vec<String> = rows.collect();
    format!("INSERT INTO log (name, level, flow_run_id, message, \"timestamp\") VALUES {}", rows.join(", "))
}

#[tokio::test]
async fn a_flow_run_of_prefect_is_told_although_its_workers_clocks_are_minutes_and_hours_off() {
    let prefect = Product::start("prefect", "grants.sql", TABLES).await;
    let database = &prefect.database;
    let run = format!("'{RUN}'");
    // A look by time alone does not find what is older than most of a run's lines.
    let lines = (0..200).map(|n| {
        format!(
            "('prefect.flow_runs', 20, {run}, '{n}', date_trunc('milliseconds', now()) - interval '{} seconds')",
            1200 - n
        )
    });
    let lines = lines.collect::<Vec<_>>().join(", ");
    database
        .execute(&format!("INSERT INTO log (name, level, flow_run_id, message, \"timestamp\") VALUES {lines}"))
        .await;
    let (reads_end, shown) = (database.reads_ends_of_tables().await, 202);
    database.execute(&batch(&run, "-13 minutes", &[(20, "1"), (10, "{\"a\": 1}")])).await;
    let daemon = prefect.serve("5m").await;
    let mut stream = daemon.stream(RUN).await.with_statuses();
    let mut told = next(&mut stream, shown).await;
    database.execute(&batch("NULL", "0", &[(20, "of no run")])).await;
    database.execute(&batch(&run, "-12 minutes", &[(30, ""), (25, "a level of their own")])).await;
    told.extend(next(&mut stream, 2).await);
    // a clock that shows another zone's time
    let mut early = Vec::new();
    if reads_end {
        database.execute(&batch(&run, "-11 hours", &[(20, "of this morning")])).await;
        early = next(&mut stream, 1).await;
        assert_eq!(early[0]["payload"], "of this morning");
    }
    let before = early.len() + shown;
    database.execute(&batch(&run, "3 minutes", &[(40, "Traceback\n  é")])).await;
    told.extend(next(&mut stream, 1).await);
    database.execute("UPDATE flow_run SET state_type = 'CRASHED'").await;
    assert_eq!(next(&mut stream, 1).await, [json!("stream.status FAILED")]);
    database.execute(&batch(&run, "4 minutes", &[(20, "after the end"), (20, "the last")])).await;
    told.extend(next(&mut stream, 2).await);
    // Whoever comes late has it where its time puts it.
    told.splice(0..0, early);
    assert_eq!(told, prefect.rows(ROWS).await);
    assert_eq!((told.len(), &told[before + 1]["type"]), (before + 5, &json!("25")));
    prefect.is_told(RUN, &told, "FAILED").await;
    database.execute("UPDATE flow_run SET state_type = 'COMPLETED'").await;
    prefect.is_told(RUN, &told, "COMPLETED").await;
}
