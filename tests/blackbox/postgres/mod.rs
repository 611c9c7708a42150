//! PostgreSQL: every committed event once, whatever its writers do.

mod access;
mod tables;
mod torture;

use crate::support::daemon::stream_path;
use crate::support::{Daemon, Postgres, Stream, eventually, numbers};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor, Row};

const RECOMMENDED: &str = include_str!("../../../src/source/postgres/schema.sql");
const TRIGGER: &str = include_str!("../../../src/source/postgres/trigger.sql");
/// What many have already: no number, no transaction id.
const LEGACY: &str = "
    CREATE TABLE runner_jobs (id text PRIMARY KEY, status text NOT NULL DEFAULT 'RUNNING');
    CREATE TABLE job_events (id text NOT NULL, job_id text NOT NULL, step_id text, type text NOT NULL,
      timestamp timestamptz NOT NULL DEFAULT now(), actor text, payload jsonb NOT NULL DEFAULT '{}');
    CREATE INDEX ON job_events (job_id, timestamp);";

async fn serve(server: &Postgres, schema: &str, more: &[(&str, &str)]) -> Daemon {
    server.execute(schema).await;
    server.make_reader().await;
    daemon_on(server, more).await
}

async fn daemon_on(server: &Postgres, more: &[(&str, &str)]) -> Daemon {
    let url = server.url("reader");
    let mut settings = vec![("source.kind", "postgres"), ("source.postgres.url", &url)];
    settings.extend_from_slice(more);
    Daemon::with(&settings).await
}

async fn insert(to: &mut PgConnection, job: &str, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        let sql = format!(
            "INSERT INTO job_events (id, job_id, type, payload) VALUES ('e-{number}', '{job}', 'x', '{{\"n\":{number}}}')"
        );
        to.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.expect("insert");
    }
}

#[tokio::test]
async fn a_table_is_tailed_with_no_more_than_the_right_to_read_it() {
    let triggered = [RECOMMENDED, TRIGGER].concat();
    for schema in [&triggered, RECOMMENDED, LEGACY] {
        let server = Postgres::start().await;
        let daemon = serve(&server, schema, &[]).await;
        let mut rows = server.connect().await;
        rows.execute("INSERT INTO runner_jobs (id, status) VALUES ('job', 'RUNNING')").await.expect("a job");
        insert(&mut rows, "job", 0..10).await;
        let mut stream = daemon.stream("job").await;
        assert_eq!(numbers(&stream.take(10).await), Vec::from_iter(0..10));
        insert(&mut rows, "job", 10..30).await;
        let live = stream.take(20).await;
        assert_eq!(numbers(&live), Vec::from_iter(10..30));
        for (index, message) in live.iter().enumerate() {
            let mut again = daemon.stream_after("job", message.cursor()).await;
            let rest = again.take(19 - index).await;
            assert_eq!(numbers(&rest), Vec::from_iter(11 + index as u64..30));
        }
        let mut by_id = daemon.stream_after("job", "e-25").await;
        assert_eq!(numbers(&by_id.take(4).await), [26, 27, 28, 29]);
        rows.execute("UPDATE runner_jobs SET status = 'FAILED' WHERE id = 'job'").await.expect("an end");
        let end = stream.event().await;
        assert!(end.is("stream.complete"), "{end:?}");
        assert_eq!(daemon.stream_after("job", end.cursor()).await.head.status, 204);
    }
}

#[tokio::test]
async fn events_may_be_sent_in_where_that_is_enabled_and_reach_subscribers() {
    let server = Postgres::start().await;
    server.execute(RECOMMENDED).await;
    let url = server.url("postgres");
    let settings = [("source.kind", "postgres"), ("source.postgres.url", &*url), ("ingest.enabled", "true")];
    let daemon = Daemon::with(&settings).await;
    daemon.write("job", 0..20).await;
    let mut stream = daemon.stream("job").await;
    let seen = stream.take(20).await;
    assert_eq!(numbers(&seen), Vec::from_iter(0..20));
    let again = daemon.send("POST", "/runner-jobs/job/events", &crate::support::daemon::numbered(7)).await;
    assert_eq!((again.status, &again.json()["payload"]["n"]), (200, &7.into()));
    let after = again.json()["cursor"].as_str().expect("a cursor").to_string();
    assert_eq!(daemon.stream_after("job", &after).await.event().await.number(), 8);
    daemon.write("job", 20..25).await;
    assert_eq!(numbers(&stream.take(5).await), [20, 21, 22, 23, 24]);
    let jobs = daemon.get("/runner-jobs").await.json();
    assert_eq!((&jobs["jobs"][0]["jobId"], &jobs["jobs"][0]["status"]), (&"job".into(), &"RUNNING".into()));
    daemon.set_status("job", "CANCELLED").await;
    assert_eq!(stream.event().await.json()["status"], "CANCELLED");
    for (path, status) in [("/runner-jobs/nosuch/events", 404), ("/runner-jobs/nosuch/events/stream", 404)] {
        assert_eq!(daemon.get(path).await.status, status);
    }
    let long = serde_json::json!({ "type": "x", "payload": "\u{0}" });
    let refused = daemon.send("POST", "/runner-jobs/job/events", &long).await;
    assert_eq!((refused.status, refused.code().as_str()), (422, "source.refused"), "jsonb takes no NUL");
}

#[tokio::test]
async fn a_server_that_crashes_and_comes_back_is_told_once_and_loses_nothing() {
    let server = Postgres::start().await;
    let daemon = serve(&server, RECOMMENDED, &[("source.retry_max", "500ms")]).await;
    let mut rows = server.connect().await;
    insert(&mut rows, "job", 0..10).await;
    let mut stream = daemon.stream("job").await;
    let seen = stream.take(10).await;
    for round in 0..2 {
        server.down(["immediate", "fast"][round]);
        let error = stream.event().await;
        assert!(error.is("stream.error"), "{error:?}");
        assert_eq!(error.json()["retryable"], true, "{error:?}");
        // a new stream is answered, told, and closed or kept
        let mut other = Stream::open(daemon.http, &stream_path("another"), &[]).await;
        assert_eq!(other.head.status, 200);
        assert!(other.event().await.is("stream.error"));
        server.up().await;
        let mut rows = server.connect().await;
        let first = 10 + 5 * round as u64;
        insert(&mut rows, "job", first..first + 5).await;
        let rest = stream.take(5).await;
        assert_eq!(numbers(&rest), Vec::from_iter(first..first + 5));
    }
    let mut back = daemon.stream_after("job", seen[4].cursor()).await;
    assert_eq!(numbers(&back.take(15).await), Vec::from_iter(5..20));
    assert!(!daemon.log().contains("panicked"));
}

#[tokio::test]
async fn the_last_event_comes_before_the_end_also_when_the_status_commits_first() {
    for schema in [RECOMMENDED, LEGACY] {
        let server = Postgres::start().await;
        let settings = [("source.poll_interval", "20ms"), ("source.settle", "60s"), ("source.postgres.sweep", "100ms")];
        let daemon = serve(&server, schema, &settings).await;
        let (mut late, mut rows) = (server.connect().await, server.connect().await);
        rows.execute("INSERT INTO runner_jobs (id, status) VALUES ('job', 'RUNNING')").await.expect("a job");
        insert(&mut rows, "job", [0]).await;
        let mut stream = daemon.stream("job").await;
        stream.take(1).await;
        late.execute("BEGIN").await.expect("begin");
        insert(&mut late, "job", [1]).await;
        rows.execute("UPDATE runner_jobs SET status = 'COMPLETED'").await.expect("an end");
        // this one is told, so the end has been seen
        insert(&mut rows, "job", [2]).await;
        assert_eq!(stream.event().await.number(), 2);
        let polls = async || daemon.metric("jobcast_source_wakeups_total{by=\"poll\"}").await;
        let until = polls().await + 5.0;
        eventually("some polls", async || (polls().await >= until).then_some(())).await;
        late.execute("COMMIT").await.expect("commit");
        assert_eq!(stream.event().await.number(), 1);
        assert!(stream.event().await.is("stream.complete"));
    }
}

#[tokio::test]
async fn while_one_writer_stays_open_the_events_of_others_arrive() {
    for schema in [RECOMMENDED, LEGACY] {
        let server = Postgres::start().await;
        let daemon = serve(&server, schema, &[("source.poll_interval", "20ms")]).await;
        let mut stays = server.connect().await;
        stays.execute("BEGIN").await.expect("begin");
        insert(&mut stays, "job", [1000]).await;
        let mut rows = server.connect().await;
        insert(&mut rows, "job", [0]).await;
        let mut stream = daemon.stream("job").await;
        let mut seen = stream.take(1).await;
        // far more transactions than a cursor has room for
        for number in 1..100 {
            insert(&mut rows, "job", [number]).await;
            seen.extend(stream.take(1).await);
        }
        assert_eq!(numbers(&seen), Vec::from_iter(0..100));
        stays.execute("COMMIT").await.expect("commit");
        assert_eq!(stream.event().await.number(), 1000);
        for message in &seen {
            let number = message.number();
            let mut again = daemon.stream_after("job", message.cursor()).await;
            let mut rest = numbers(&again.take(100 - number as usize).await);
            rest.sort();
            assert_eq!(rest, Vec::from_iter((number + 1..100).chain([1000])));
        }
        assert_eq!(daemon.metric("jobcast_cursors_shortened_total").await, 0.0);
    }
}

/// A transaction that was rolled back may leave no trace on the disk. A server that crashes just then gives the same id
/// to another.
#[tokio::test]
async fn an_id_that_a_crash_gives_out_again_hides_no_event() {
    for settings in ["", "REVOKE EXECUTE ON FUNCTION pg_current_wal_insert_lsn() FROM PUBLIC;"] {
        let mut is_tried = false;
        for _ in 0..5 {
            is_tried = is_tried || crash_and_give_out_again(settings).await;
        }
        assert!(is_tried, "whatever was rolled back was on the disk");
    }
}

/// False where the log happened to be written in time: then there is nothing to be seen.
async fn crash_and_give_out_again(settings: &str) -> bool {
    let server = Postgres::start().await;
    // nothing gets to the disk by itself
    server.set("wal_writer_delay = '10s'\n");
    server.down("fast");
    server.up().await;
    let daemon = serve(&server, &format!("{settings}{RECOMMENDED}"), &[("source.retry_max", "300ms")]).await;
    let mut rows = server.connect().await;
    insert(&mut rows, "job", [0]).await;
    insert(&mut rows, "other", [1]).await;
    let mut stream = daemon.stream("job").await;
    stream.take(1).await;
    let mut idle = daemon.stream("other").await;
    idle.take(1).await;
    let mut highest = 0;
    for _ in 0..4 {
        rows.execute("BEGIN").await.expect("begin");
        insert(&mut rows, "job", [100]).await;
        let told = rows.fetch_one("SELECT pg_current_xact_id()::text::bigint").await.expect("an id");
        highest = told.get::<i64, _>(0);
        rows.execute("ROLLBACK").await.expect("rollback");
    }
    // what a cursor of now says
    let mut from_now = Stream::open(daemon.http, &format!("{}?from=now", stream_path("job")), &[]).await;
    let now = loop {
        match from_now.next().await.expect("a cursor") {
            message if message.id.is_some() => break message,
            _ => {}
        }
    };
    let mut other = daemon.stream("job").await;
    other.take(1).await;
    server.down("immediate");
    server.up().await;
    let mut rows = server.connect().await;
    insert(&mut rows, "job", [2]).await;
    insert(&mut rows, "other", [3]).await;
    let told = rows.fetch_one("SELECT xid::text::bigint FROM job_events ORDER BY seq DESC LIMIT 1");
    let reused = told.await.expect("an id").get::<i64, _>(0);
    for (stream, number) in [(&mut stream, 2), (&mut other, 2), (&mut idle, 3)] {
        let mut next = stream.event().await;
        if next.is("stream.error") {
            next = stream.event().await;
        }
        assert_eq!((next.event.as_deref(), next.number()), (Some("x"), number), "{next:?}");
    }
    let mut resumed = daemon.stream_after("job", now.cursor()).await;
    assert_eq!(resumed.event().await.number(), 2);
    reused <= highest
}
