//! PostgreSQL: every committed event once, whatever its writers do.

mod access;
mod check;
mod ingest;
mod large;
mod lives;
mod mapping;
mod migrating;
mod numbers;
mod odd_rows;
mod one_reader;
mod open;
mod sets;
mod tables;
mod times;
mod torture;
mod wakeups;

use super::contract::reading::is_tailed;
use crate::support::daemon::stream_path;
use crate::support::postgres::append;
use crate::support::{Daemon, Postgres, Stream, eventually, numbers};
use sqlx::{Executor, Row};

const RECOMMENDED: &str = include_str!("../../../src/source/postgres/schema.sql");
const TRIGGER: &str = include_str!("../../../src/source/postgres/trigger.sql");
/// The tables that many have already: no number, no transaction id.
const LEGACY: &str = "
    CREATE TABLE runner_jobs (id text PRIMARY KEY, status text NOT NULL DEFAULT 'RUNNING');
    CREATE TABLE job_events (id text NOT NULL, job_id text NOT NULL, step_id text, type text NOT NULL,
      timestamp timestamptz NOT NULL DEFAULT now(), actor text, payload jsonb NOT NULL DEFAULT '{}');
    CREATE INDEX ON job_events (job_id, timestamp);";

/// The same in partitions, whose ends are not read by themselves.
const LEGACY_IN_PARTITIONS: &str = "
    CREATE TABLE runner_jobs (id text PRIMARY KEY, status text NOT NULL DEFAULT 'RUNNING');
    CREATE TABLE job_events (id text NOT NULL, job_id text NOT NULL, step_id text, type text NOT NULL,
      timestamp timestamptz NOT NULL DEFAULT now(), actor text, payload jsonb NOT NULL DEFAULT '{}') PARTITION BY HASH (job_id);
    CREATE TABLE events_0 PARTITION OF job_events FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE events_1 PARTITION OF job_events FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE INDEX ON job_events (job_id, timestamp);";

async fn serve(server: &Postgres, schema: &str, more: &[(&str, &str)]) -> Daemon {
    server.execute(schema).await;
    server.make_reader().await;
    daemon_on(server, more).await
}

async fn daemon_on(server: &Postgres, more: &[(&str, &str)]) -> Daemon {
    Daemon::on("postgres", &server.url("reader"), more).await
}

/// Watches a job that has 100 events, while `insert` adds, each time, an event whose key is below all others and one above
/// them: both come once to who watches, and to whoever resumes after any of them.
async fn comes_once_wherever_readers_resume(
    daemon: &Daemon,
    server: &Postgres,
    times: u64,
    insert: impl AsyncFn(u64, u64),
) {
    let mut stream = daemon.stream("job").await;
    let mut cursors = vec![stream.take(100).await.last().expect("an event").cursor().to_string()];
    let mut order = Vec::new();
    for (below, above) in (1000..).zip(2000..2000 + times) {
        insert(below, above).await;
        let two = stream.take(2).await;
        let mut seen = numbers(&two);
        order.extend(seen.iter().copied());
        cursors.extend(two.iter().map(|event| event.cursor().to_string()));
        seen.sort();
        assert_eq!(seen, [below, above]);
    }
    for (after, cursor) in cursors.iter().enumerate() {
        let mut resumed = daemon.stream_after("job", cursor).await;
        let mut rest = numbers(&resumed.take(order.len() - after).await);
        rest.sort();
        let mut expected = order[after..].to_vec();
        expected.sort();
        assert_eq!(rest, expected, "after {after} events, with {cursor}");
    }
    server.execute("UPDATE runner_jobs SET status = 'COMPLETED'").await;
    assert!(stream.event().await.is("stream.complete"));
}

#[tokio::test]
async fn a_table_is_tailed_with_no_more_than_the_right_to_read_it() {
    let triggered = [RECOMMENDED, TRIGGER].concat();
    for schema in [&triggered, RECOMMENDED, LEGACY] {
        let server = Postgres::start().await;
        let daemon = serve(&server, schema, &[]).await;
        is_tailed(&daemon, &server).await;
    }
}

#[tokio::test]
async fn an_event_that_jsonb_cannot_hold_is_refused() {
    let server = Postgres::start().await;
    server.execute(RECOMMENDED).await;
    let daemon = Daemon::on("postgres", &server.url("postgres"), &[("ingest.enabled", "true")]).await;
    daemon.write("job", 0..1).await;
    let jobs = daemon.get("/runner-jobs").await.json();
    assert_eq!((&jobs["jobs"][0]["jobId"], &jobs["jobs"][0]["status"]), (&"job".into(), &"RUNNING".into()));
    let nul = serde_json::json!({ "type": "x", "payload": "\u{0}" });
    let refused = daemon.send("POST", "/runner-jobs/job/events", &nul).await;
    assert_eq!((refused.status, refused.code().as_str()), (422, "source.refused"), "jsonb takes no NUL");
}

#[tokio::test]
async fn the_last_event_comes_before_the_end_also_when_the_status_commits_first() {
    for schema in [RECOMMENDED, LEGACY] {
        let server = Postgres::start().await;
        let settings = [("source.poll_interval", "20ms"), ("source.settle", "60s"), ("source.postgres.sweep", "100ms")];
        let daemon = serve(&server, schema, &settings).await;
        let (mut late, mut rows) = (server.connect().await, server.connect().await);
        rows.execute("INSERT INTO runner_jobs (id, status) VALUES ('job', 'RUNNING')").await.expect("a job");
        append(&mut rows, "job", [0]).await;
        let mut stream = daemon.stream("job").await;
        stream.take(1).await;
        late.execute("BEGIN").await.expect("begin");
        append(&mut late, "job", [1]).await;
        rows.execute("UPDATE runner_jobs SET status = 'COMPLETED'").await.expect("an end");
        // this one is told, so the end has been seen
        append(&mut rows, "job", [2]).await;
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
        append(&mut stays, "job", [1000]).await;
        let mut rows = server.connect().await;
        append(&mut rows, "job", [0]).await;
        let mut stream = daemon.stream("job").await;
        let mut seen = stream.take(1).await;
        // far more transactions than a cursor has room for
        for number in 1..100 {
            append(&mut rows, "job", [number]).await;
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
    append(&mut rows, "job", [0]).await;
    append(&mut rows, "other", [1]).await;
    let mut stream = daemon.stream("job").await;
    stream.take(1).await;
    let mut idle = daemon.stream("other").await;
    idle.take(1).await;
    let mut highest = 0;
    for _ in 0..4 {
        rows.execute("BEGIN").await.expect("begin");
        append(&mut rows, "job", [100]).await;
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
    append(&mut rows, "job", [2]).await;
    append(&mut rows, "other", [3]).await;
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
