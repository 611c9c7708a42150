//! Concourse's build events, written as it writes them: numbered in each build, in a table of each pipeline below one parent.
//! The status is set in the transaction of the last event.

use super::product::{Product, next, parts};
use serde_json::json;

const TABLES: &str = "
    CREATE TYPE build_status AS ENUM ('pending', 'started', 'aborted', 'succeeded', 'failed', 'errored');
    CREATE TABLE builds (id bigserial PRIMARY KEY, name text NOT NULL, status build_status NOT NULL);
    CREATE TABLE build_events (build_id bigint, type varchar(32) NOT NULL, payload text NOT NULL, event_id int NOT NULL,
      version text NOT NULL);
    CREATE TABLE check_build_events () INHERITS (build_events);
    CREATE UNIQUE INDEX check_build_events_build_id_event_id ON check_build_events (build_id, event_id);
    CREATE TABLE team_build_events_1 () INHERITS (build_events);
    CREATE UNIQUE INDEX team_build_events_1_build_id_event_id ON team_build_events_1 (build_id, event_id);
    CREATE TABLE pipeline_build_events_7 () INHERITS (build_events);
    CREATE UNIQUE INDEX pipeline_build_events_7_build_id_event_id ON pipeline_build_events_7 (build_id, event_id);
    INSERT INTO builds (name, status) SELECT n::text, 'started' FROM generate_series(1, 3) n;";

const NEW_PIPELINE: &str = "
    BEGIN; CREATE TABLE pipeline_build_events_8 () INHERITS (build_events);
    CREATE UNIQUE INDEX pipeline_build_events_8_build_id_event_id ON pipeline_build_events_8 (build_id, event_id); COMMIT";

/// Inserts an event with a payload that is JSON.
fn event(table: &str, build: u64, number: u64, kind: &str, payload: &str) -> String {
    format!("INSERT INTO {table} VALUES ({build}, '{kind}', '{payload}', {number}, '5.1');")
}

fn last(table: &str, build: u64, number: u64, status: &str) -> String {
    let event = event(table, build, number, "status", &format!("{{\"status\":\"{status}\",\"time\":1795694400}}"));
    format!("BEGIN; UPDATE builds SET status = '{status}' WHERE id = {build}; {event} COMMIT")
}

fn rows(build: u64) -> String {
    format!(
        "SELECT json_build_object('id', event_id::text, 'jobId', build_id::text, 'stepId', NULL, 'type', type, 'timestamp', NULL,
           'actor', NULL, 'payload', payload::json) FROM build_events WHERE build_id = {build} ORDER BY event_id"
    )
}

#[tokio::test]
async fn builds_of_concourse_are_told_while_pipelines_are_made_and_destroyed() {
    let concourse = Product::start("concourse", "grants.sql", TABLES).await;
    let database = &concourse.database;
    let (old, new) = ("pipeline_build_events_7", "pipeline_build_events_8");
    for number in 0..3 {
        database.execute(&event(old, 1, number, "log", &format!("{{\"payload\":\"{number}\"}}"))).await;
        database.execute(&event("team_build_events_1", 2, number, "log", "{\"payload\":\"\"}")).await;
    }
    let daemon = concourse.serve("100ms").await;
    let mut one = daemon.stream("1").await.with_statuses();
    let mut told = next(&mut one, 3).await;
    let mut two = daemon.stream("2").await;
    two.take(3).await;
    // a pipeline that is made, a build of which is watched before its first event
    database.execute(NEW_PIPELINE).await;
    let mut three = daemon.stream("3").await.with_statuses();
    database.execute(&event(new, 3, 0, "initialize-task", "{\"time\":1795694400}")).await;
    database.execute(&event(new, 3, 1, "error", "{\"message\":\"no such image\"}")).await;
    let newest = next(&mut three, 2).await;
    database.execute(&last(new, 3, 2, "errored")).await;
    // the event and the status come of one look, in either order
    let mut end = parts(&three.rest().await);
    end.retain(|part| part != "stream.status FAILED");
    let newest = [newest, vec![end.remove(0)]].concat();
    assert_eq!(end, [json!("stream.complete FAILED")]);
    assert_eq!(newest, concourse.rows(&rows(3)).await);
    concourse.is_told("3", &newest, "FAILED").await;
    // A browser would take an event that is called `error` for a broken connection.
    let all = daemon.stream("3").await.take(3).await;
    let names: Vec<_> = all.iter().map(|message| message.event.as_deref()).collect();
    assert_eq!(names, [Some("initialize-task"), None, Some("status")]);
    assert_eq!(all[1].json()["type"], "error");
    // one that is destroyed takes its events along, and disturbs nobody
    database.execute(&event("team_build_events_1", 2, 3, "log", "{\"payload\":\"meanwhile\"}")).await;
    two.take(1).await;
    database.execute("BEGIN; DELETE FROM builds WHERE id = 3; DROP TABLE pipeline_build_events_8; COMMIT").await;
    database.execute(&event(old, 1, 3, "log", "{\"payload\":\"é\"}")).await;
    told.extend(next(&mut one, 1).await);
    database.execute(&last(old, 1, 4, "succeeded")).await;
    let mut end = parts(&one.rest().await);
    end.retain(|part| part != "stream.status COMPLETED");
    told.push(end.remove(0));
    assert_eq!(end, [json!("stream.complete COMPLETED")]);
    assert_eq!(told, concourse.rows(&rows(1)).await);
    concourse.is_told("1", &told, "COMPLETED").await;
    database.execute(&last("team_build_events_1", 2, 4, "aborted")).await;
    assert_eq!(parts(&two.rest().await)[1..], [json!("stream.complete CANCELLED")]);
    concourse.is_told("2", &concourse.rows(&rows(2)).await, "CANCELLED").await;
    assert_eq!(daemon.get("/runner-jobs/3/events").await.status, 404);
}
