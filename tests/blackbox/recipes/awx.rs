//! AWX's job events, written as its callback receiver writes them: in partitions by the hour of the job, after the final status,
//! and UPDATEd later.

use super::product::{Product, next, parts};
use crate::support::Stream;
use serde_json::{Value, json};

const TABLES: &str = "
    CREATE TABLE main_unifiedjob (id serial PRIMARY KEY, created timestamptz NOT NULL, finished timestamptz,
      status varchar(20) NOT NULL, emitted_events int NOT NULL DEFAULT 0);
    CREATE TABLE main_jobevent (id bigserial, job_created timestamptz NOT NULL, created timestamptz, job_id int NOT NULL,
      counter int NOT NULL, event varchar(100) NOT NULL, event_data text NOT NULL, stdout text NOT NULL,
      changed boolean NOT NULL DEFAULT false, PRIMARY KEY (id, job_created)) PARTITION BY RANGE (job_created);
    CREATE INDEX ON main_jobevent (job_id, job_created, counter);
    CREATE TABLE main_projectupdateevent (LIKE main_jobevent INCLUDING DEFAULTS) PARTITION BY RANGE (job_created);
    ALTER TABLE main_projectupdateevent RENAME job_id TO project_update_id;
    CREATE TABLE main_inventoryupdateevent (id bigserial, job_created timestamptz NOT NULL, created timestamptz,
      inventory_update_id int NOT NULL, counter int NOT NULL, event_data text NOT NULL, stdout text NOT NULL)
      PARTITION BY RANGE (job_created);
    CREATE TABLE main_adhoccommandevent (LIKE main_jobevent INCLUDING DEFAULTS) PARTITION BY RANGE (job_created);
    ALTER TABLE main_adhoccommandevent RENAME job_id TO ad_hoc_command_id;
    CREATE TABLE main_systemjobevent (id bigserial, job_created timestamptz NOT NULL, created timestamptz, system_job_id int NOT NULL,
      counter int NOT NULL, event_data text NOT NULL, stdout text NOT NULL) PARTITION BY RANGE (job_created);
    INSERT INTO main_unifiedjob (created, status) VALUES ('2026-11-27 10:00:05Z', 'running'),
      ('2026-11-27 11:30Z', 'running'), ('2026-11-27 11:40Z', 'running'), ('2026-11-27 11:50Z', 'running'),
      ('2026-11-27 11:55Z', 'running');";

/// The tables of events, one for each kind of job.
const EVENTS: [&str; 5] = [
    "main_jobevent",
    "main_projectupdateevent",
    "main_inventoryupdateevent",
    "main_adhoccommandevent",
    "main_systemjobevent",
];

/// Makes the partitions of an hour, as AWX does before the first job of the hour.
fn hour(hour: u64) -> String {
    let tables = EVENTS.map(|table| {
        format!(
            "CREATE TABLE {table}_{hour} PARTITION OF {table}
             FOR VALUES FROM ('2026-11-27 {hour:02}:00Z') TO ('2026-11-27 {:02}:00Z');",
            hour + 1
        )
    });
    tables.concat()
}

/// Inserts an event of the first job, with a time relative to the server's.
fn event(counter: u64, kind: &str, at: &str) -> String {
    format!(
        "INSERT INTO main_jobevent (job_created, created, job_id, counter, event, event_data, stdout)
         SELECT created, date_trunc('milliseconds', now() + {at}), 1, {counter}, '{kind}', '{{\"n\": {counter}}}',
           E'line {counter}\\r\\n' FROM main_unifiedjob WHERE id = 1"
    )
}

fn rows(table: &str, job_column: &str, kind: &str, job: u64) -> String {
    format!(
        "SELECT json_build_object('id', '00000000-0000-0000-0000-' || lpad(id::text, 12, '0'), 'jobId', {job_column}::text,
           'stepId', NULL, 'type', {kind}, 'timestamp', told_at(created), 'actor', NULL, 'payload',
           json_build_object('counter', counter, 'stdout', stdout, 'event_data', event_data))
         FROM {table} WHERE {job_column} = {job} ORDER BY counter"
    )
}

/// The next events of a stream that were not told before, and what else comes.
async fn first_versions(stream: &mut Stream, told: &mut Vec<Value>, count: usize) {
    let wanted = told.len() + count;
    while told.len() < wanted {
        let message = next(stream, 1).await.remove(0);
        match told.iter().find(|before| before["id"] == message["id"]) {
            // An UPDATE brings it again, under the id that it had.
            Some(before) => assert_eq!(*before, message),
            None => told.push(message),
        }
    }
}

#[tokio::test]
async fn a_job_of_awx_is_told_until_all_of_its_events_are_there_also_where_rows_are_updated() {
    let tables = [TABLES.to_string(), hour(3), hour(10)].concat();
    let awx = Product::start("awx", "view.sql", &tables).await;
    let database = &awx.database;
    database.execute(&event(1, "playbook_on_start", "NULL")).await;
    database.execute(&event(2, "runner_on_ok", "interval '-6 minutes'")).await;
    let daemon = awx.serve("100ms").await;
    let mut stream = daemon.stream("1").await;
    assert_eq!(stream.head.header("X-Jobcast-Unique"), Some("id"), "clients leave out what an UPDATE brings again");
    let mut told = Vec::new();
    first_versions(&mut stream, &mut told, 2).await;
    database.execute(&event(3, "runner_on_failed", "interval '-7 minutes'")).await;
    first_versions(&mut stream, &mut told, 1).await;
    database.execute("UPDATE main_jobevent SET changed = true WHERE counter = 2").await;
    database.execute(&event(4, "playbook_on_stats", "interval '20 minutes'")).await;
    first_versions(&mut stream, &mut told, 1).await;
    // one without a time, while it is watched
    database.execute(&event(5, "verbose", "NULL")).await;
    first_versions(&mut stream, &mut told, 1).await;
    assert_eq!((&told[4]["timestamp"], told.len()), (&Value::Null, 5));
    // the status comes before the last events, whose number it has
    let end = "UPDATE main_unifiedjob SET status = 'failed', emitted_events = 7, finished = now() WHERE id = 1";
    database.execute(end).await;
    database.execute(&EVENTS.map(|table| format!("DROP TABLE {table}_3;")).concat()).await;
    database.execute(&event(7, "verbose", "interval '-8 minutes'")).await;
    first_versions(&mut stream, &mut told, 1).await;
    assert_eq!(daemon.get("/runner-jobs/1").await.json()["status"], Value::Null);
    database.execute(&event(6, "verbose", "interval '0'")).await;
    first_versions(&mut stream, &mut told, 1).await;
    assert_eq!(parts(&stream.rest().await), [json!("stream.complete FAILED")]);
    told.sort_by_key(|event| event["payload"]["counter"].as_u64());
    assert_eq!(told, awx.rows(&rows("main_jobevent", "job_id", "event", 1)).await);
    database.execute("UPDATE main_jobevent SET changed = true").await;
    awx.is_told("1", &told, "FAILED").await;
}

#[tokio::test]
async fn jobs_of_awx_of_other_kinds_are_told_and_end_although_events_were_lost_on_their_way() {
    let awx = Product::start("awx", "view.sql", &[TABLES, &hour(10)].concat()).await;
    let database = &awx.database;
    let daemon = awx.serve("100ms").await;
    database.execute(&hour(11)).await;
    // The number of the job, its table with the job's column and the events' type, and its end.
    let cases = [
        (2, "main_projectupdateevent", "project_update_id", "event", "successful", "COMPLETED"),
        (3, "main_systemjobevent", "system_job_id", "'verbose'", "canceled", "CANCELLED"),
        (4, "main_inventoryupdateevent", "inventory_update_id", "'verbose'", "error", "FAILED"),
        (5, "main_adhoccommandevent", "ad_hoc_command_id", "event", "failed", "FAILED"),
    ];
    for (job, table, job_column, kind, status, told_status) in cases {
        let mut stream = daemon.stream(&job.to_string()).await;
        let (column, value) = if kind == "event" { (", event", ", 'runner_on_ok'") } else { ("", "") };
        let events = format!(
            "INSERT INTO {table} (job_created, created, counter, event_data, stdout, {job_column}{column})
             SELECT created, date_trunc('milliseconds', now()), n, '{{}}', 'x', id{value}
             FROM main_unifiedjob, generate_series(1, 2) n WHERE id = {job}"
        );
        database.execute(&events).await;
        let told = next(&mut stream, 2).await;
        assert_eq!(told, awx.rows(&rows(table, job_column, kind, job)).await);
        let end = format!(
            "UPDATE main_unifiedjob SET status = '{status}', emitted_events = 9, finished = now() - interval '11 minutes'
             WHERE id = {job}"
        );
        database.execute(&end).await;
        assert_eq!(parts(&stream.rest().await), [json!(format!("stream.complete {told_status}"))]);
        awx.is_told(&job.to_string(), &told, told_status).await;
    }
}
