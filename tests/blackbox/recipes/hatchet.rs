//! Hatchet's task events, written as its engine writes them, in partitions by day. A task's row moves into another partition
//! when its status changes.

use super::product::{Product, next};
use serde_json::json;

const TABLES: &str = "
    CREATE TYPE v1_readable_status_olap AS ENUM ('QUEUED', 'RUNNING', 'CANCELLED', 'FAILED', 'COMPLETED', 'EVICTED');
    CREATE TYPE v1_event_type_olap AS ENUM ('RETRYING', 'CREATED', 'QUEUED', 'ASSIGNED', 'STARTED', 'FINISHED', 'FAILED');
    CREATE TABLE v1_tasks_olap (id bigint NOT NULL, inserted_at timestamptz NOT NULL, external_id uuid NOT NULL,
      display_name text NOT NULL, readable_status v1_readable_status_olap NOT NULL DEFAULT 'QUEUED',
      PRIMARY KEY (inserted_at, id, readable_status)) PARTITION BY RANGE (inserted_at);
    CREATE TABLE v1_lookup_table_olap (tenant_id uuid, external_id uuid PRIMARY KEY, task_id bigint, dag_id bigint,
      inserted_at timestamptz NOT NULL);
    CREATE TABLE v1_task_events_olap (id bigint GENERATED ALWAYS AS IDENTITY, task_id bigint NOT NULL,
      task_inserted_at timestamptz NOT NULL, event_type v1_event_type_olap NOT NULL, event_timestamp timestamptz NOT NULL,
      error_message text, output jsonb, additional__event_data text, additional__event_message text,
      PRIMARY KEY (task_id, task_inserted_at, id)) PARTITION BY RANGE (task_inserted_at);
    CREATE FUNCTION note_tasks() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      INSERT INTO v1_lookup_table_olap (external_id, task_id, inserted_at) SELECT external_id, id, inserted_at FROM new_rows;
      RETURN NULL; END $$;
    CREATE TRIGGER note_tasks AFTER INSERT ON v1_tasks_olap REFERENCING NEW TABLE AS new_rows
      FOR EACH STATEMENT EXECUTE FUNCTION note_tasks();";

const TASK: &str = "0199aaaa-bbbb-7ccc-8ddd-eeeeffff0001";
const LATER: &str = "0199aaaa-bbbb-7ccc-8ddd-eeeeffff0002";

/// Makes the partitions of a day of November.
fn day(day: u64) -> String {
    let bounds = format!("FROM ('2026-11-{day:02} 00:00Z') TO ('2026-11-{:02} 00:00Z')", day + 1);
    let by_status = ["QUEUED", "RUNNING", "CANCELLED", "FAILED", "COMPLETED", "EVICTED"].map(|status| {
        format!(
            "CREATE TABLE v1_tasks_olap_{day}_{status} PARTITION OF v1_tasks_olap_{day} FOR VALUES IN ('{status}');"
        )
    });
    format!(
        "CREATE TABLE v1_tasks_olap_{day} PARTITION OF v1_tasks_olap FOR VALUES {bounds} PARTITION BY LIST (readable_status);
         {} CREATE TABLE v1_task_events_olap_{day} PARTITION OF v1_task_events_olap FOR VALUES {bounds};",
        by_status.concat()
    )
}

fn task(id: u64, day: u64, external_id: &str) -> String {
    format!("INSERT INTO v1_tasks_olap VALUES ({id}, '2026-11-{day:02} 12:00Z', '{external_id}', 'task', 'QUEUED')")
}

/// Inserts an event of a task, with a time relative to the server's.
fn event(task: u64, day: u64, kind: &str, at: &str, parts: &str) -> String {
    format!(
        "INSERT INTO v1_task_events_olap (task_id, task_inserted_at, event_type, event_timestamp, output, error_message,
           additional__event_data) VALUES ({task}, '2026-11-{day:02} 12:00Z', '{kind}', now() + interval '{at}', {parts})"
    )
}

/// Moves the row of a task into the partition of its status.
fn status(task: u64, status: &str) -> String {
    format!("UPDATE v1_tasks_olap SET readable_status = '{status}' WHERE id = {task}")
}

fn rows(task: u64, external_id: &str) -> String {
    format!(
        "SELECT json_build_object('id', id::text, 'jobId', '{external_id}', 'stepId', NULL, 'type', event_type, 'timestamp',
           told_at(event_timestamp), 'actor', NULL, 'payload', json_build_object('output', output, 'error_message', error_message,
           'additional__event_data', additional__event_data)) FROM v1_task_events_olap WHERE task_id = {task} ORDER BY id"
    )
}

#[tokio::test]
async fn tasks_of_hatchet_are_told_while_days_come_and_go_and_rows_move_with_their_status() {
    let tables = [TABLES.to_string(), day(1), day(26)].concat();
    let hatchet = Product::start("hatchet", "view.sql", &tables).await;
    let database = &hatchet.database;
    database.execute(&task(1, 26, TASK)).await;
    database.execute(&event(1, 26, "CREATED", "0", "NULL, NULL, NULL")).await;
    let daemon = hatchet.serve("5m").await;
    let mut stream = daemon.stream(TASK).await.with_statuses();
    let mut told = next(&mut stream, 1).await;
    database.execute(&status(1, "RUNNING")).await;
    database.execute(&event(1, 26, "STARTED", "-9 minutes", "NULL, NULL, '{\"worker\": 1}'")).await;
    told.extend(next(&mut stream, 1).await);
    // the day of another task begins, and one of long ago is dropped
    database.execute(&day(27)).await;
    database.execute("DROP TABLE v1_tasks_olap_1, v1_task_events_olap_1").await;
    database.execute(&task(2, 27, LATER)).await;
    let mut later = daemon.stream(LATER).await;
    database.execute(&event(2, 27, "CREATED", "2 minutes", "'{\"n\": 1}', NULL, NULL")).await;
    let mut told_later = next(&mut later, 1).await;
    database.execute(&event(1, 26, "RETRYING", "3 minutes", "NULL, 'boom', NULL")).await;
    database.execute(&status(1, "FAILED")).await;
    let mut end = next(&mut stream, 2).await;
    end.sort_by_key(|part| part.is_string());
    assert_eq!(end[1], json!("stream.status FAILED"));
    told.push(end.remove(0));
    // an event that the engine stores later than the status
    database.execute(&event(1, 26, "FAILED", "-8 minutes", "NULL, 'boom', NULL")).await;
    told.extend(next(&mut stream, 1).await);
    assert_eq!(told, hatchet.rows(&rows(1, TASK)).await);
    hatchet.is_told(TASK, &told, "FAILED").await;
    database.execute(&event(2, 27, "FINISHED", "0", "'[1, null]', NULL, NULL")).await;
    told_later.extend(next(&mut later, 1).await);
    database.execute(&status(2, "COMPLETED")).await;
    assert_eq!(told_later, hatchet.rows(&rows(2, LATER)).await);
    hatchet.is_told(LATER, &told_later, "COMPLETED").await;
    // a run of several tasks has an id of its own, and no events
    let run = "INSERT INTO v1_lookup_table_olap VALUES (NULL, '0199aaaa-bbbb-7ccc-8ddd-eeeeffff0009', NULL, 3, now())";
    database.execute(run).await;
    assert_eq!(daemon.get("/runner-jobs/0199aaaa-bbbb-7ccc-8ddd-eeeeffff0009/events").await.status, 404);
}
