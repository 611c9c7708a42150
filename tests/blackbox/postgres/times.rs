//! Times of every kind, of any calendar; and tables that order events by time, or by a number that may be null or repeat, as a
//! view's does.

use super::{LEGACY, LEGACY_IN_PARTITIONS, comes_once_wherever_readers_resume, daemon_on};
use crate::support::postgres::append;
use crate::support::{Daemon, Postgres, eventually, numbers};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor, Row};

/// The ids of the events of a page.
fn ids_of(page: &Value) -> Vec<String> {
    let events = page["events"].as_array().expect("events");
    events.iter().map(|event| event["id"].as_str().expect("an id").to_string()).collect()
}

#[tokio::test]
async fn events_without_a_time_come_first_and_none_is_lost_between_pages_of_whatever_size() {
    let zoned = "NULL, '-infinity', '4713-01-01 BC', 'epoch', now(), '9999-12-31 23:59:59.999999', 'infinity'";
    for (kind, times, lowest) in [
        ("timestamptz", zoned, "'-infinity'"),
        ("timestamp", zoned, "'-infinity'"),
        ("date", "NULL, '-infinity', 'epoch', now(), 'infinity'", "'-infinity'"),
        (
            "bigint",
            "NULL, '-9223372036854775808', '-1', '0', '1764000000000000', '9223372036854775807'",
            "-9223372036854775808",
        ),
        ("integer", "NULL, '-2147483648', '0', '2147483647'", "-9223372036854775808"),
    ] {
        let server = Postgres::start().await;
        let times: Vec<String> = times.split(", ").map(|time| format!("({time}::{kind})")).collect();
        server
            .execute(&format!(
                "CREATE TABLE runner_jobs (id text PRIMARY KEY, status text); INSERT INTO runner_jobs VALUES ('job', 'RUNNING');
                 CREATE TABLE job_events (id text NOT NULL, job_id text NOT NULL, type text, timestamp {kind}, payload jsonb);
                 CREATE INDEX ON job_events (job_id, timestamp);
                 INSERT INTO job_events SELECT md5(coalesce(at::text, '') || n), 'job', 'x', at
                   FROM (VALUES {}) times (at), generate_series(1, 4) n",
                times.join(", ")
            ))
            .await;
        server.make_reader().await;
        let sql = format!("SELECT id FROM job_events ORDER BY coalesce(timestamp, {lowest}), id");
        let mut owner = server.connect().await;
        let rows = owner.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await.expect("all events");
        let all: Vec<String> = rows.iter().map(|row| row.get("id")).collect();
        let daemon = daemon_on(&server, &[("source.postgres.timestamp_unit", "us")]).await;
        for limit in [1, 2, 3, 100] {
            let (mut seen, mut after) = (Vec::new(), String::new());
            while seen.len() < all.len() {
                let page = daemon.get(&format!("/runner-jobs/job/events?limit={limit}&after={after}")).await.json();
                assert!(!ids_of(&page).is_empty(), "{kind}, {limit} at a time: the end after {}", seen.len());
                seen.extend(ids_of(&page));
                after = page["cursor"].as_str().expect("a cursor").to_string();
            }
            assert_eq!(seen, all, "{kind}, {limit} at a time");
        }
        for last in 1..all.len() {
            let page = daemon.get(&format!("/runner-jobs/job/events?last={last}")).await.json();
            assert_eq!(ids_of(&page), all[all.len() - last..], "{kind}, the last {last}");
        }
    }
}

#[tokio::test]
async fn an_offset_is_to_the_east_where_it_is_above_zero() {
    let server = Postgres::start().await;
    server
        .execute(
            "CREATE TABLE job_events (id int PRIMARY KEY, job_id text, type text DEFAULT 'x', timestamp timestamp, payload jsonb);
             CREATE ROLE reader LOGIN; GRANT SELECT ON job_events TO reader;
             INSERT INTO job_events VALUES (1, 'job', 'x', '2026-07-01 12:00:00', '{}')",
        )
        .await;
    for (zone, time) in [("+02:00", "10:00"), ("-0330", "15:30"), ("+02", "10:00"), ("Asia/Kolkata", "06:30")] {
        let settings = [("source.postgres.timestamp_zone", zone), ("source.postgres.jobs_table", "")];
        let daemon = Daemon::on("postgres", &server.url("reader"), &settings).await;
        let event = daemon.stream("job").await.event().await;
        assert_eq!(event.json()["timestamp"], format!("2026-07-01T{time}:00.000Z"), "{zone}");
    }
}

/// Rows of the job.
const ROWS: u64 = 20_000;
const WITH_A_JOB: &str = "
    INSERT INTO runner_jobs VALUES ('job', 'RUNNING');
    INSERT INTO job_events (id, job_id, type, timestamp, payload)
      SELECT 'e-' || n, CASE WHEN n < 20000 THEN 'job' ELSE 'job-' || n % 100 END, 'x',
        now() - interval '3 hours' + n * interval '0.1 seconds', jsonb_build_object('n', n) FROM generate_series(0, 59999) n;
    VACUUM ANALYZE";

/// Rows that were read of the event table or of its indexes.
async fn rows_read(server: &Postgres) -> u64 {
    let mut owner = server.connect().await;
    // Whoever leaves tells what it has read.
    eventually("all readers to be gone", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'reader'";
        let readers = owner.fetch_one(sql).await.expect("the connections");
        (readers.get::<i64, _>(0) == 0).then_some(())
    })
    .await;
    let sql = "SELECT ((SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname = 'job_events')
                 + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'job_events'))::bigint";
    owner.fetch_one(sql).await.expect("the statistics").get::<i64, _>(0) as u64
}

#[tokio::test]
async fn no_page_costs_a_read_of_its_job() {
    let numbered = "
        CREATE TABLE runner_jobs (id text PRIMARY KEY, status text NOT NULL DEFAULT 'RUNNING');
        CREATE TABLE job_events (no bigserial PRIMARY KEY, id text NOT NULL, job_id text NOT NULL, type text NOT NULL,
          timestamp timestamptz, payload jsonb NOT NULL DEFAULT '{}');
        CREATE INDEX ON job_events (job_id, no);
        CREATE VIEW seen AS SELECT e.no AS seq, e.id, e.job_id, e.type, e.timestamp, e.payload, e.xmin AS xmin
          FROM job_events e JOIN runner_jobs j ON j.id = e.job_id;
        GRANT SELECT ON seen TO PUBLIC;";
    let nullable = LEGACY.replace("timestamp timestamptz NOT NULL", "timestamp timestamptz");
    let view = ("source.postgres.events_table", "seen");
    let look_back = ("source.postgres.look_back", "60s");
    for (name, schema, setting) in
        [("a view", numbered, view), ("times", LEGACY, look_back), ("times that may be null", &nullable, look_back)]
    {
        let server = Postgres::start().await;
        server.execute(schema).await;
        for sql in WITH_A_JOB.split(';') {
            server.execute(sql).await;
        }
        server.make_reader().await;
        let mut daemon = daemon_on(&server, &[setting]).await;
        let (mut pages, mut after) = (0, String::new());
        loop {
            let page = daemon.get(&format!("/runner-jobs/job/events?limit=500&after={after}")).await.json();
            pages += ids_of(&page).len() as u64;
            after = page["cursor"].as_str().expect("a cursor").to_string();
            if pages >= ROWS {
                break;
            }
        }
        assert_eq!(pages, ROWS, "{name}");
        daemon.kill();
        let read = rows_read(&server).await;
        assert!(read < 12 * ROWS, "{name}: {} times the job", read / ROWS);
    }
}

/// The statement that inserts an event with this time into a job.
fn insert_at(number: u64, time: &str) -> String {
    format!(
        "INSERT INTO job_events (id, job_id, type, timestamp, payload) VALUES ('e-{number}', 'job', 'x', {time}, '{{\"n\":{number}}}')"
    )
}

/// A server with a job of a hundred events, of an hour ago.
async fn with_old_events(schema: &str) -> Postgres {
    let server = Postgres::start().await;
    server.execute(schema).await;
    server.execute("INSERT INTO runner_jobs VALUES ('job', 'RUNNING')").await;
    server.make_reader().await;
    for number in 0..100 {
        server.execute(&insert_at(number, "now() - interval '1 hour'")).await;
    }
    server
}

/// Everything that a look could go by but the times themselves, and the end of the table, is of no use.
const BY_TIME: [(&str, &str); 4] = [
    ("source.poll_interval", "50ms"),
    ("source.postgres.listen", ""),
    ("source.postgres.look_back", "1ms"),
    ("source.postgres.sweep", "1h"),
];

#[tokio::test]
async fn a_row_with_a_time_long_past_comes_once_to_all_and_wherever_they_resume() {
    // The end of the one is read whatever the times are. Of partitions the sweep finds such a row.
    for schema in [LEGACY, LEGACY_IN_PARTITIONS] {
        let server = with_old_events(schema).await;
        let settings = [
            ("source.poll_interval", "20ms"),
            ("source.postgres.listen", ""),
            ("source.postgres.look_back", "500ms"),
            ("source.postgres.sweep", "100ms"),
        ];
        let daemon = daemon_on(&server, &settings).await;
        let times = ["now() - interval '1 day'", "'-infinity'", "now() - interval '59 minutes'"];
        comes_once_wherever_readers_resume(&daemon, &server, 20, async |below, above| {
            server.execute(&insert_at(below, times[below as usize % times.len()])).await;
            server.execute(&insert_at(above, "now()")).await;
        })
        .await;
    }
}

#[tokio::test]
async fn new_rows_are_found_at_the_end_of_their_table_whatever_their_time_is() {
    let nullable = LEGACY.replace("timestamp timestamptz NOT NULL", "timestamp timestamptz");
    let server = with_old_events(&nullable).await;
    if !server.reads_ends_of_tables().await {
        return;
    }
    let daemon = daemon_on(&server, &BY_TIME).await;
    let mut stream = daemon.stream("job").await;
    stream.take(100).await;
    let times = [
        "now()",
        "now() - interval '2 minutes'",
        "now() - interval '5 hours'",
        "date_trunc('day', now())",
        "now() + interval '1 day'",
        "'-infinity'",
        "NULL",
        "'infinity'",
        "'4714-11-24 00:00:00 UTC BC'",
    ];
    for (number, time) in (100..).zip(times.iter().cycle().take(45)) {
        server.execute(&insert_at(number, time)).await;
        assert_eq!(numbers(&stream.take(1).await), [number], "{time}");
    }
}

#[tokio::test]
async fn where_all_clocks_of_a_job_are_off_alike_its_new_rows_are_found_by_their_time() {
    let server = with_old_events(LEGACY_IN_PARTITIONS).await;
    let daemon = daemon_on(&server, &BY_TIME).await;
    let mut stream = daemon.stream("job").await;
    stream.take(100).await;
    for number in 100..200 {
        server.execute(&insert_at(number, &format!("now() - interval '1 hour' + interval '{number} ms'"))).await;
        assert_eq!(numbers(&stream.take(1).await), [number]);
    }
}

#[tokio::test]
async fn a_row_that_commits_after_hundreds_with_later_times_is_found_at_once() {
    let server = with_old_events(LEGACY_IN_PARTITIONS).await;
    let daemon = daemon_on(&server, &BY_TIME).await;
    let mut stream = daemon.stream("job").await;
    stream.take(100).await;
    let (mut late, mut rows) = (server.connect().await, server.connect().await);
    // Now the tail has read the job, and knows the time that it had reached before.
    append(&mut rows, "job", [1001]).await;
    assert_eq!(numbers(&stream.take(1).await), [1001]);
    late.execute("BEGIN").await.expect("begin");
    append(&mut late, "job", [1000]).await;
    for number in 100..200 {
        append(&mut rows, "job", [number]).await;
        assert_eq!(numbers(&stream.take(1).await), [number]);
    }
    late.execute("COMMIT").await.expect("commit");
    assert_eq!(numbers(&stream.take(1).await), [1000]);
}

#[tokio::test]
async fn a_new_event_of_a_long_job_without_numbers_is_read_without_its_history() {
    for (kind, now, past) in [
        ("timestamptz", "now()", "now() - n * interval '1 second'"),
        ("timestamp", "now() AT TIME ZONE 'UTC'", "now() AT TIME ZONE 'UTC' - n * interval '1 second'"),
        (
            "bigint",
            "(extract(epoch FROM now()) * 1000)::bigint",
            "(extract(epoch FROM now()) * 1000)::bigint - n * 1000",
        ),
    ] {
        let schema = LEGACY.replace("timestamptz NOT NULL DEFAULT now()", &format!("{kind} NOT NULL DEFAULT ({now})"));
        let server = Postgres::start().await;
        server.execute(&schema).await;
        let history = format!(
            "INSERT INTO runner_jobs VALUES ('job', 'RUNNING');
             INSERT INTO job_events (id, job_id, type, timestamp, payload)
               SELECT 'e-' || n, 'job', 'x', {past}, jsonb_build_object('n', n, 'line', repeat('x', 300))
               FROM generate_series(100000, 100000 + {}) n;
             ANALYZE job_events",
            ROWS - 1
        );
        server.execute(&history).await;
        server.make_reader().await;
        let settings = [&BY_TIME[..2], &[("source.postgres.look_back", "1s"), BY_TIME[3]]].concat();
        let mut daemon = daemon_on(&server, &settings).await;
        let mut stream = daemon.stream("job").await;
        stream.take(ROWS as usize).await;
        let mut rows = server.connect().await;
        for number in 0..100 {
            append(&mut rows, "job", [number]).await;
            assert_eq!(numbers(&stream.take(1).await), [number], "{kind}");
        }
        daemon.kill();
        let read = rows_read(&server).await;
        assert!(read >= ROWS, "{kind}: the history was read, {read} rows");
        assert!(read < 12 * ROWS, "{kind}: {read} rows were read for 100 events of a job of {ROWS}");
    }
}

#[tokio::test]
async fn cursors_of_a_table_without_numbers_go_on_where_it_gets_some() {
    let server = with_old_events(LEGACY).await;
    let daemon = daemon_on(&server, &BY_TIME).await;
    let mut stream = daemon.stream("job").await;
    let mut seen = vec![stream.take(100).await.pop().expect("an event")];
    let mut rows = server.connect().await;
    for number in 100..110 {
        append(&mut rows, "job", [number]).await;
        seen.extend(stream.take(1).await);
    }
    server
        .execute(
            "CREATE SEQUENCE numbers; ALTER TABLE job_events ADD COLUMN seq bigint;
             ALTER TABLE job_events ALTER seq SET DEFAULT nextval('numbers'); CREATE UNIQUE INDEX ON job_events (job_id, seq)",
        )
        .await;
    let after = daemon_on(&server, &BY_TIME).await;
    append(&mut rows, "job", [110]).await;
    for (place, event) in seen.iter().enumerate() {
        let mut resumed = after.stream_after("job", event.cursor()).await;
        let rest = numbers(&resumed.take(seen.len() - place).await);
        assert_eq!(rest, Vec::from_iter(100 + place as u64..=110), "after {}", event.cursor());
    }
}
