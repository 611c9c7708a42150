//! One reader sends, and one job's rows do, whatever they like: the others lose nothing, and wait for nothing.

use super::odd_rows::bare;
use super::{RECOMMENDED, daemon_on, serve};
use crate::support::http::request;
use crate::support::postgres::append;
use crate::support::{Daemon, Postgres, eventually, numbers};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sqlx::{Executor, Row};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// A cursor of a table with both columns which says that all below `mark` was delivered.
fn forged(job: &str, mark: u64) -> String {
    let mut inside = Vec::new();
    let mut rest = mark;
    while rest >= 0x80 {
        inside.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    inside.extend([rest as u8, 0, 0, 0]);
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = [job.as_bytes(), &[0], &inside].concat().iter().fold(0xcbf2_9ce4_8422_2325, fnv);
    let checksum = (((hash >> 32) ^ hash) as u32).to_be_bytes();
    format!("p{}", URL_SAFE_NO_PAD.encode([&checksum[..], &inside].concat()))
}

#[tokio::test]
async fn a_forged_cursor_past_an_open_transaction_takes_its_rows_from_nobody_else() {
    let server = Postgres::start().await;
    let daemon = serve(&server, RECOMMENDED, &[("source.poll_interval", "20ms")]).await;
    let (mut late, mut rows) = (server.connect().await, server.connect().await);
    rows.execute("INSERT INTO runner_jobs (id, status) VALUES ('job', 'RUNNING')").await.expect("a job");
    append(&mut rows, "job", [0]).await;
    late.execute("BEGIN").await.expect("begin");
    append(&mut late, "job", [1, 2]).await;
    rows.execute("SELECT pg_current_xact_id()").await.expect("a later transaction");
    let now = rows.fetch_one("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").await.expect("a snapshot");
    let mut liar = daemon.stream_after("job", &forged("job", now.get::<i64, _>(0) as u64)).await;
    // The liar is on the channel once it is given this one.
    append(&mut rows, "job", [3]).await;
    assert_eq!(liar.event().await.number(), 3);
    let mut honest = daemon.stream("job").await;
    let mut seen = numbers(&honest.take(2).await);
    late.execute("COMMIT").await.expect("commit");
    let last = honest.take(2).await;
    seen.extend(numbers(&last));
    seen.sort();
    assert_eq!(seen, [0, 1, 2, 3]);
    append(&mut rows, "job", [4]).await;
    assert_eq!(honest.event().await.number(), 4);
    assert_eq!(daemon.stream_after("job", last[1].cursor()).await.event().await.number(), 4);
}

#[tokio::test]
async fn a_cursor_of_the_future_is_answered_at_once_by_a_primary() {
    let server = Postgres::start().await;
    let daemon = serve(&server, RECOMMENDED, &[("source.settle", "60s")]).await;
    append(&mut server.connect().await, "job", [0]).await;
    let mut stream = daemon.stream_after("job", &forged("job", 1 << 61)).await;
    assert!(stream.event().await.is("stream.reset"));
    assert_eq!(stream.event().await.number(), 0);
}

#[tokio::test]
async fn polls_that_wait_for_a_standby_hold_nothing_that_an_honest_one_needs() {
    let primary = Postgres::start().await;
    primary.execute(RECOMMENDED).await;
    primary.make_reader().await;
    append(&mut primary.connect().await, "job", [0]).await;
    let standby = primary.standby().await;
    standby.caught_up_with(&primary).await;
    // Nobody waits until the time is up.
    let daemon = daemon_on(&standby, &[("source.settle", "1h")]).await;
    let path = format!("/runner-jobs/job/events?after={}", forged("job", 1 << 61));
    let waiting: Vec<_> = (0..16)
        .map(|_| {
            let (to, path) = (daemon.http, path.clone());
            tokio::spawn(async move { request(to, "GET", &path, &[], b"").await })
        })
        .collect();
    // Each of them keeps its connection open.
    daemon.metric_reaches("jobcast_open_connections", 16.0).await;
    for _ in 0..50 {
        assert_eq!(daemon.get("/runner-jobs/job/events").await.json()["events"][0]["payload"]["n"], 0);
    }
    assert_eq!(numbers(&daemon.stream("job").await.take(1).await), [0]);
    assert!(waiting.iter().all(|poll| !poll.is_finished()), "they wait for the standby");
    // A primary has nothing to wait for.
    standby.promote().await;
    for poll in waiting {
        let told = poll.await.expect("an answer").json();
        assert_eq!((&told["reset"]["reason"], &told["events"][0]["payload"]["n"]), (&"rewound".into(), &0.into()));
    }
}

#[tokio::test]
async fn statements_of_readers_who_left_are_cancelled() {
    let server = Postgres::start().await;
    let daemon = serve(&server, RECOMMENDED, &[]).await;
    let (mut holder, mut rows) = (server.connect().await, server.connect().await);
    append(&mut rows, "job", [0]).await;
    holder.execute(sqlx::raw_sql("BEGIN; LOCK TABLE job_events")).await.expect("a lock");
    let mut readers = Vec::new();
    for number in 0..8 {
        let mut reader = TcpStream::connect(daemon.http).await.expect("a connection");
        let ask = format!("GET /runner-jobs/job-{number}/events HTTP/1.1\r\nHost: localhost\r\n\r\n");
        reader.write_all(ask.as_bytes()).await.expect("ask");
        readers.push(reader);
    }
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'reader' AND wait_event_type = 'Lock'";
    eventually("all connections for readers to wait", async || {
        (rows.fetch_one(waiting).await.expect("a count").get::<i64, _>(0) >= 4).then_some(())
    })
    .await;
    drop(readers);
    server.logs_times("canceling statement due to user request", 3).await;
    holder.execute("COMMIT").await.expect("commit");
    assert_eq!(daemon.get("/runner-jobs/job/events").await.json()["events"][0]["payload"]["n"], 0);
}

/// A view that casts, over a table that takes everything.
const CASTING: &str = "
    CREATE TABLE runner_jobs (id text PRIMARY KEY, status text NOT NULL DEFAULT 'RUNNING');
    CREATE TABLE rows (seq bigint GENERATED ALWAYS AS IDENTITY, xid xid8 DEFAULT pg_current_xact_id(), id text, job_id text,
      type text, timestamp timestamptz DEFAULT now(), payload text);
    CREATE VIEW job_events AS SELECT seq, xid, id, job_id, type, timestamp, payload::jsonb AS payload FROM rows;
    ALTER VIEW job_events ALTER COLUMN xid SET DEFAULT pg_current_xact_id();";

#[tokio::test]
async fn a_row_that_a_view_cannot_cast_stops_its_own_job_until_it_is_mended_and_no_other() {
    let server = Postgres::start().await;
    let settings = [("source.poll_interval", "20ms"), ("source.retry_initial", "100ms"), ("source.retry_max", "300ms")];
    let daemon = serve(&server, CASTING, &settings).await;
    let mut rows = server.connect().await;
    let mut insert = async |sql: &'static str| rows.execute(sql).await.map(|_| ()).expect(sql);
    insert("INSERT INTO rows (id, job_id, type, payload) SELECT 'a', 'job-' || n, 'x', '{\"n\":0}' FROM generate_series(9, 10) n").await;
    let (mut ninth, mut tenth) = (daemon.stream("job-9").await, daemon.stream("job-10").await);
    ninth.take(1).await;
    tenth.take(1).await;
    insert("INSERT INTO rows (id, job_id, type, payload) VALUES ('b', 'job-9', 'x', 'none')").await;
    insert("INSERT INTO rows (id, job_id, type, payload) VALUES ('b', 'job-10', 'x', '{\"n\":1}')").await;
    assert_eq!(tenth.event().await.number(), 1);
    insert("INSERT INTO rows (id, job_id, type, payload) VALUES ('c', 'job-10', 'x', '{\"n\":2}')").await;
    assert_eq!(tenth.event().await.number(), 2);
    let told = ninth.event().await;
    assert!(told.is("stream.error") && told.json()["retryable"] == true, "{told:?}");
    let ready = daemon.ask_admin("/readyz").await;
    assert_eq!((ready.status, &ready.json()["status"]), (200, &"ready".into()));
    insert("UPDATE rows SET payload = '{\"n\":1}' WHERE id = 'b' AND job_id = 'job-9'").await;
    assert_eq!(ninth.event().await.number(), 1, "it was told once");
}

/// A view whose rows of one job make every look for new rows fail, but no read of another job.
const FAILING_LOOK: &str = "
    CREATE TABLE runner_jobs (id text PRIMARY KEY, status text NOT NULL DEFAULT 'RUNNING');
    CREATE TABLE rows (seq bigint GENERATED ALWAYS AS IDENTITY, writer text DEFAULT pg_current_xact_id(), id text, job_id text,
      type text, timestamp timestamptz DEFAULT now(), payload jsonb);
    CREATE INDEX ON rows (job_id, seq);
    CREATE VIEW job_events AS SELECT seq, writer::bigint::text::xid8 AS xid, id, job_id, type, timestamp, payload FROM rows;
    ALTER VIEW job_events ALTER COLUMN xid SET DEFAULT pg_current_xact_id();";

#[tokio::test]
async fn rows_that_make_the_look_itself_fail_stop_their_own_job_and_no_other() {
    let server = Postgres::start().await;
    let settings = [("source.poll_interval", "20ms"), ("source.retry_initial", "100ms"), ("source.retry_max", "300ms")];
    let daemon = serve(&server, FAILING_LOOK, &settings).await;
    let mut rows = server.connect().await;
    let mut insert = async |sql: String| {
        rows.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(sql.as_str()))).await.map(|_| ()).expect(&sql)
    };
    let row = |job: u64, number: u64| {
        format!(
            "INSERT INTO rows (id, job_id, type, payload) VALUES ('e-{number}', 'job-{job}', 'x', '{{\"n\":{number}}}')"
        )
    };
    insert(row(9, 0)).await;
    insert(row(10, 0)).await;
    let (mut ninth, mut tenth) = (daemon.stream("job-9").await, daemon.stream("job-10").await);
    ninth.take(1).await;
    tenth.take(1).await;
    insert("INSERT INTO rows (id, job_id, type, writer) VALUES ('bad', 'job-9', 'x', 'nobody')".into()).await;
    for number in 1..4 {
        insert(row(10, number)).await;
        assert_eq!(tenth.event().await.number(), number);
    }
    let told = ninth.event().await;
    assert!(told.is("stream.error") && told.json()["retryable"] == true, "{told:?}");
    assert_eq!(daemon.ask_admin("/readyz").await.json()["status"], "ready");
    insert("DELETE FROM rows WHERE id = 'bad'".into()).await;
    insert(row(9, 1)).await;
    assert_eq!(ninth.event().await.number(), 1);
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_ended_by_the_server_and_told_to_who_asked() {
    let server = Postgres::start().await;
    let daemon = serve(&server, RECOMMENDED, &[]).await;
    append(&mut server.connect().await, "job", [0]).await;
    assert_eq!(daemon.get("/runner-jobs/job/events").await.status, 200);
    let mut holder = server.connect().await;
    holder.execute(sqlx::raw_sql("BEGIN; LOCK TABLE job_events")).await.expect("a lock");
    let answer = daemon.get("/runner-jobs/job/events").await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "source.timed_out"), "{answer:?}");
    server.logs_times("canceling statement due to statement timeout", 1).await;
    holder.execute("COMMIT").await.expect("commit");
    assert_eq!(daemon.get("/runner-jobs/job/events").await.status, 200);
}

#[tokio::test]
async fn bytes_and_times_that_nobody_can_read_hurt_their_own_part_of_their_own_event() {
    let server = Postgres::start().await;
    let (mut rows, url) = bare(&server, super::LEGACY).await;
    rows.execute(sqlx::raw_sql(
        r#"INSERT INTO job_events (id, job_id, type, timestamp, payload) VALUES
             (convert_from('\xe9', 'SQL_ASCII'), 'job', convert_from('\x78e9', 'SQL_ASCII'), '2020-01-01', '{"n":0}'),
             ('b', 'job', 'x', '290000-01-01', '{"n":1}'), ('c', 'job', 'x', 'infinity', '{"n":2}'),
             ('z', convert_from('\xff', 'SQL_ASCII'), 'x', now(), '{"n":3}')"#,
    ))
    .await
    .expect("events");
    let daemon = Daemon::on("postgres", &url, &[("source.poll_interval", "20ms")]).await;
    let seen = daemon.stream("job").await.take(3).await;
    let unreadable: Vec<_> = seen.iter().map(|event| event.json()["unreadable"].to_string()).collect();
    assert_eq!(unreadable, [r#"["id","type"]"#, r#"["timestamp"]"#, r#"["timestamp"]"#]);
    assert_eq!(numbers(&daemon.stream_after("job", seen[0].cursor()).await.take(2).await), [1, 2]);
}
