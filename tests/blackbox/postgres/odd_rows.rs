//! Rows of one job that hold whatever a database without an encoding takes, and those that a view cannot read: the others lose
//! nothing beside them.

use super::super::contract::set_faults::{self, Spoils};
use crate::support::postgres::append;
use crate::support::{Daemon, Postgres, numbers};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use std::ops::Range;

const TABLES: &str = "
    CREATE TABLE runner_jobs (id text, status text);
    CREATE TABLE job_events (seq bigint GENERATED ALWAYS AS IDENTITY, xid xid8 DEFAULT pg_current_xact_id(), id text, job_id text,
      step_id text, type text, timestamp timestamptz DEFAULT now(), actor text, payload text);
    CREATE INDEX ON job_events (job_id, seq);";

const LENGTHS: [usize; 5] = [0, 1, 7, 300, 20_000];
/// Those of a text that an index takes.
const SHORT: [usize; 4] = [0, 1, 7, 300];

/// A text of random bytes, or a readable one, or none.
fn text(random: &mut StdRng, lengths: &[usize]) -> String {
    let length = lengths[random.random_range(0..lengths.len())];
    let bytes = |random: &mut StdRng, range: std::ops::Range<u8>| -> String {
        (0..length).map(|_| format!("{:02x}", random.random_range(range.clone()))).collect()
    };
    match random.random_range(0..4) {
        0 => "NULL".into(),
        1 => format!("convert_from('\\x{}', 'SQL_ASCII')", bytes(random, 32..127)),
        2 => "'{\"n\": 1}'".into(),
        _ => format!("convert_from('\\x{}', 'SQL_ASCII')", bytes(random, 1..255)),
    }
}

fn time(random: &mut StdRng) -> &'static str {
    let times = ["NULL", "now()", "'infinity'", "'-infinity'", "'290000-01-01'", "'4713-01-01 BC'", "'epoch'"];
    times[random.random_range(0..times.len())]
}

/// Inserts some rows in one transaction, and returns how many of them are events of the job `odd`.
async fn insert_odd(rows: &mut PgConnection, random: &mut StdRng) -> usize {
    let count = random.random_range(1..4);
    let mut of_odd = 0;
    let mut values = Vec::new();
    for _ in 0..count {
        let is_odd = random.random_bool(0.8);
        of_odd += usize::from(is_odd);
        let job = if is_odd { "'odd'".into() } else { text(random, &SHORT) };
        let [id, step, kind, actor, payload] = std::array::from_fn(|_| text(random, &LENGTHS));
        values.push(format!("({id}, {job}, {step}, {kind}, {}, {actor}, {payload})", time(random)));
    }
    let sql = format!(
        "INSERT INTO job_events (id, job_id, step_id, type, timestamp, actor, payload) VALUES {};
         INSERT INTO runner_jobs VALUES ({}, {})",
        values.join(", "),
        text(random, &LENGTHS),
        text(random, &LENGTHS)
    );
    rows.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.expect("rows");
    of_odd
}

/// A database that takes any bytes as text: a connection of its owner, and its address.
pub async fn bare(server: &Postgres, tables: &'static str) -> (PgConnection, String) {
    server.execute("CREATE DATABASE bare ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0").await;
    let url = server.url("postgres");
    let url = format!("{}/bare", url.strip_suffix("/postgres").expect("the name of a database"));
    let mut rows = PgConnection::connect(&url).await.expect("a database without encoding");
    rows.execute(sqlx::raw_sql(tables)).await.expect("tables");
    (rows, url)
}

#[tokio::test]
async fn a_payload_with_a_byte_that_is_no_utf_8_is_shown_as_far_as_it_can_be_read_and_named() {
    let server = Postgres::start().await;
    let (mut rows, url) = bare(&server, TABLES).await;
    let insert = |id: &str, bytes: &[u8]| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!(
            "INSERT INTO job_events (id, job_id, type, payload)
             VALUES ('{id}', 'job', 'x', convert_from('\\x{hex}', 'SQL_ASCII'))"
        )
    };
    for (kind, expected) in
        [("auto", json!("{\"n\":1,\"of\":\"\u{fffd}\"}")), ("json", json!({ "n": 1, "of": "\u{fffd}" }))]
    {
        let settings = [("source.poll_interval", "20ms"), ("source.postgres.payload_kind", kind)];
        let daemon = Daemon::on("postgres", &url, &settings).await;
        let insert_both = insert("bad", b"{\"n\":1,\"of\":\"\xe9\"}") + ";" + &insert("good", b"{\"n\":2}");
        rows.execute(sqlx::raw_sql("TRUNCATE job_events")).await.expect("an empty table");
        rows.execute(sqlx::raw_sql(AssertSqlSafe(insert("first", b"{\"n\":0}")))).await.expect("a row");
        let mut live = daemon.stream("job").await;
        live.event().await;
        rows.execute(sqlx::raw_sql(AssertSqlSafe(insert_both))).await.expect("rows");
        let mut history = daemon.stream("job").await;
        history.event().await;
        for stream in [&mut live, &mut history] {
            let (bad, good) = (stream.event().await.json(), stream.event().await.json());
            assert_eq!((&bad["unreadable"], &bad["payload"]), (&json!(["payload"]), &expected), "{kind}");
            assert_eq!((good.get("unreadable"), &good["id"]), (None, &json!("good")), "{kind}");
        }
        let polled = daemon.get("/runner-jobs/job/events").await.json();
        assert_eq!(polled["events"][1]["unreadable"], json!(["payload"]), "{polled}");
        assert_eq!(daemon.ask_admin("/readyz").await.json()["status"], "ready");
    }
}

#[tokio::test]
async fn rows_of_random_bytes_nulls_and_times_are_all_delivered_and_ten_other_jobs_lose_nothing_beside_them() {
    let server = Postgres::start().await;
    let (mut rows, url) = bare(&server, TABLES).await;
    let settings = [("source.poll_interval", "20ms"), ("source.postgres.payload_kind", "json")];
    let daemon = Daemon::on("postgres", &url, &settings).await;
    let others: Vec<String> = (0..10).map(|number| format!("other-{number}")).collect();
    let mut streams = Vec::new();
    for (number, job) in (0..).zip(&others) {
        append(&mut rows, job, [number]).await;
        streams.push(daemon.stream(job).await);
    }
    append(&mut rows, "odd", [0]).await;
    let mut odd = daemon.stream("odd").await;
    let mut random = StdRng::seed_from_u64(15);
    let mut events = 1;
    for number in 10..150 {
        events += insert_odd(&mut rows, &mut random).await;
        append(&mut rows, &others[number as usize % 10], [number]).await;
    }
    let live: Vec<_> = odd.take(events).await.into_iter().map(|event| event.data).collect();
    for (job, stream) in streams.iter_mut().enumerate() {
        assert_eq!(numbers(&stream.take(15).await), Vec::from_iter((job as u64..150).step_by(10)));
    }
    let history: Vec<_> = daemon.stream("odd").await.take(events).await.into_iter().map(|event| event.data).collect();
    assert_eq!(live, history);
    assert_eq!(daemon.get("/runner-jobs").await.status, 200);
    assert_eq!(daemon.ask_admin("/readyz").await.status, 200);
    assert_eq!(daemon.metric("jobcast_source_errors_total").await, 0.0, "{}", daemon.log());
}

/// Jobs whose status a view casts, and events that PostgreSQL reads as of one moment for many jobs.
const CASTING: &str = "
    CREATE TABLE raw_jobs (id text PRIMARY KEY, state text);
    INSERT INTO raw_jobs SELECT job, '1' FROM unnest(ARRAY['a', 'bad', 'z']) job;
    CREATE VIEW runner_jobs AS SELECT id, (state::int)::text AS status FROM raw_jobs;
    CREATE TABLE job_events (seq bigint GENERATED ALWAYS AS IDENTITY, xid xid8 DEFAULT pg_current_xact_id(), id text,
      job_id text, type text DEFAULT 'x', timestamp timestamptz DEFAULT now(), payload jsonb);
    CREATE INDEX ON job_events (job_id, seq); CREATE INDEX ON job_events (xid);
    CREATE ROLE reader LOGIN; GRANT SELECT ON job_events, runner_jobs TO reader;";

impl Spoils for Postgres {
    async fn append(&self, job: &str, numbers: Range<u64>) {
        let (first, last) = (numbers.start, numbers.end - 1);
        self.execute(&format!(
            "INSERT INTO job_events (id, job_id, payload)
             SELECT n::text, '{job}', jsonb_build_object('n', n) FROM generate_series({first}, {last}) n"
        ))
        .await;
    }

    async fn spoil(&self) {
        self.execute("UPDATE raw_jobs SET state = 'none' WHERE id = 'bad'").await;
    }

    async fn mend(&self) {
        self.execute("UPDATE raw_jobs SET state = '1'").await;
    }
}

#[tokio::test]
async fn the_others_of_a_set_go_on_while_a_view_cannot_read_one_job() {
    let server = Postgres::start().await;
    server.execute(CASTING).await;
    let daemon = Daemon::on("postgres", &server.url("reader"), &[("source.poll_interval", "50ms")]).await;
    set_faults::the_others_of_a_set_go_on_while_one_cannot_be_read_which_then_loses_nothing(&daemon, &server).await;
}

/// A job table whose status cannot be read while it is `bad`.
const FAILING_STATUS: &str = "
    CREATE TABLE raw_jobs (id text PRIMARY KEY, status text);
    CREATE VIEW runner_jobs AS SELECT id, CASE status WHEN 'bad' THEN (1 / (length(status) - 3))::text ELSE status END AS status FROM raw_jobs;
    CREATE TABLE job_events (seq bigint GENERATED ALWAYS AS IDENTITY, xid xid8 DEFAULT pg_current_xact_id(), id text, job_id text,
      step_id text, type text, timestamp timestamptz DEFAULT now(), actor text, payload jsonb);
    CREATE INDEX ON job_events (job_id, seq);
    CREATE INDEX ON job_events (xid);
    INSERT INTO raw_jobs VALUES ('good', 'RUNNING'), ('odd', 'RUNNING')";

#[tokio::test]
async fn a_status_that_cannot_be_read_holds_up_its_own_job_and_is_not_asked_for_at_every_look() {
    let server = Postgres::start().await;
    server.execute(FAILING_STATUS).await;
    let settings = [("source.poll_interval", "20ms"), ("source.end_grace", "0s")];
    let daemon = Daemon::on("postgres", &server.url("postgres"), &settings).await;
    let mut rows = server.connect().await;
    for job in ["good", "odd"] {
        append(&mut rows, job, [0]).await;
    }
    let (mut good, mut odd) = (daemon.stream("good").await, daemon.stream("odd").await);
    assert_eq!((good.event().await.number(), odd.event().await.number()), (0, 0));
    server.execute("UPDATE raw_jobs SET status = 'bad' WHERE id = 'odd'").await;
    for number in 1..151 {
        append(&mut rows, "odd", [number]).await;
        append(&mut rows, "good", [number]).await;
        assert_eq!(good.event().await.number(), number);
    }
    server.execute("UPDATE raw_jobs SET status = 'COMPLETED' WHERE id = 'good'").await;
    assert!(good.event().await.is("stream.complete"), "the other job ends meanwhile");
    let error = odd.event().await;
    assert!(error.is("stream.error") && error.json()["retryable"] == true, "{error:?}");
    let said = server.log();
    let refused = said.matches("ERROR:  division by zero").count();
    assert!((1..60).contains(&refused), "{refused} statements were refused");
    server.execute("UPDATE raw_jobs SET status = 'COMPLETED'").await;
    assert_eq!(numbers(&odd.take(150).await), Vec::from_iter(1..151));
    assert!(odd.event().await.is("stream.complete"));
}
