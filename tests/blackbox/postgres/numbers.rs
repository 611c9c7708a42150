//! Tables whose new rows are found by number: a serial, or a number that each job counts for itself.

use super::{comes_once_wherever_readers_resume, daemon_on};
use crate::support::postgres::append;
use crate::support::{Daemon, Postgres, eventually, numbers};
use serde_json::Value;
use sqlx::{Executor, Row};
use std::collections::BTreeSet;

/// Everything that a look could go by but the number is of no use: the clock, the sweep, the notification.
const BY_NUMBER: [(&str, &str); 4] = [
    ("source.poll_interval", "50ms"),
    ("source.postgres.listen", ""),
    ("source.postgres.look_back", "1ms"),
    ("source.postgres.sweep", "1h"),
];

const NUMBERED: &str = "
    CREATE TABLE runner_jobs (id text PRIMARY KEY, status text NOT NULL DEFAULT 'RUNNING');
    CREATE TABLE job_events (seq bigserial PRIMARY KEY, id text NOT NULL, job_id text NOT NULL, type text NOT NULL,
      timestamp timestamptz, payload jsonb NOT NULL);
    CREATE INDEX ON job_events (job_id, seq);
    INSERT INTO runner_jobs VALUES ('job', 'RUNNING'), ('new', 'RUNNING');
    INSERT INTO job_events (id, job_id, type, payload)
      SELECT 'e-' || n, 'job', 'x', jsonb_build_object('n', n) FROM generate_series(0, 99) n";

async fn numbered() -> Postgres {
    let server = Postgres::start().await;
    server.execute(NUMBERED).await;
    server.make_reader().await;
    server
}

/// The numbers of the events of a page.
fn numbers_of(page: &Value) -> Vec<u64> {
    let events = page["events"].as_array().expect("events");
    events.iter().map(|event| event["payload"]["n"].as_u64().expect("a number")).collect()
}

#[tokio::test]
async fn new_rows_are_found_by_their_number_whatever_the_writers_clock_says() {
    let server = numbered().await;
    let daemon = daemon_on(&server, &BY_NUMBER).await;
    let (mut long, mut short) = (daemon.stream("job").await, daemon.stream("new").await);
    long.take(100).await;
    daemon.has_subscribers(2).await;
    let times = [
        "NULL",
        "now() - interval '2 minutes'",
        "now() - interval '5 hours'",
        "now() + interval '1 day'",
        "'-infinity'",
    ];
    for (number, time) in (100..).zip(times.iter().cycle().take(50)) {
        for job in ["job", "new"] {
            let values = format!("('e-{number}', '{job}', 'x', {time}, '{{\"n\":{number}}}')");
            server
                .execute(&format!("INSERT INTO job_events (id, job_id, type, timestamp, payload) VALUES {values}"))
                .await;
        }
        for stream in [&mut long, &mut short] {
            assert_eq!(numbers(&stream.take(1).await), [number], "{time}");
        }
    }
}

#[tokio::test]
async fn a_row_that_commits_after_hundreds_with_higher_numbers_is_found_at_once() {
    let server = numbered().await;
    let daemon = daemon_on(&server, &BY_NUMBER).await;
    let mut stream = daemon.stream("job").await;
    stream.take(100).await;
    let (mut late, mut rows) = (server.connect().await, server.connect().await);
    // Now the tail has read the job, and knows the number that it had reached before.
    append(&mut rows, "job", [1001]).await;
    assert_eq!(numbers(&stream.take(1).await), [1001]);
    late.execute("BEGIN").await.expect("begin");
    append(&mut late, "job", [1000]).await;
    append(&mut rows, "job", 100..500).await;
    assert_eq!(numbers(&stream.take(400).await), Vec::from_iter(100..500));
    late.execute("COMMIT").await.expect("commit");
    assert_eq!(numbers(&stream.take(1).await), [1000]);
}

#[tokio::test]
async fn a_new_event_of_a_long_job_is_read_without_its_history() {
    const LONG: u64 = 20_000;
    let server = numbered().await;
    let more = format!(
        "INSERT INTO job_events (id, job_id, type, payload)
           SELECT 'e-' || n, 'job', 'x', jsonb_build_object('n', n) FROM generate_series(100, {}) n;
         ANALYZE job_events",
        LONG - 1
    );
    server.execute(&more).await;
    let mut daemon = daemon_on(&server, &BY_NUMBER).await;
    let mut stream = daemon.stream("job").await;
    stream.take(LONG as usize).await;
    let mut rows = server.connect().await;
    for number in LONG..LONG + 100 {
        append(&mut rows, "job", [number]).await;
        assert_eq!(numbers(&stream.take(1).await), [number]);
    }
    // A connection says what it has read when it is closed.
    daemon.kill();
    let read = "SELECT (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'jobcast'),
                  coalesce(idx_tup_fetch, 0) + coalesce(seq_tup_read, 0) FROM pg_stat_user_tables WHERE relname = 'job_events'";
    let rows_read = eventually("the end of the daemon's connections", async || {
        let row = rows.fetch_one(read).await.expect("statistics");
        (row.get::<i64, _>(0) == 0).then(|| row.get::<i64, _>(1) as u64)
    });
    let rows_read = rows_read.await;
    assert!(rows_read >= LONG, "the history was read, {rows_read} rows");
    assert!(rows_read < 10 * LONG, "{rows_read} rows were read for 100 events of a job of {LONG}");
}

#[tokio::test]
async fn who_goes_on_elsewhere_from_a_read_of_the_newest_rows_is_given_each_row_once() {
    let server = numbered().await;
    let settings = [&BY_NUMBER[..3], &[("source.postgres.sweep", "1s")]].concat();
    let [daemon, other] = [daemon_on(&server, &settings).await, daemon_on(&server, &settings).await];
    let (mut late, mut rows) = (server.connect().await, server.connect().await);
    let mut stream = daemon.stream("job").await;
    let mut seen = vec![stream.take(100).await.pop().expect("an event")];
    late.execute("BEGIN").await.expect("begin");
    // One is below all that is looked for, the other is not.
    let below =
        "INSERT INTO job_events (seq, id, job_id, type, payload) VALUES (-1, 'late', 'job', 'x', '{\"n\":1000}')";
    late.execute(below).await.expect("a row");
    append(&mut late, "job", [1001]).await;
    for number in 2000..2080 {
        if number == 2040 {
            late.execute("COMMIT").await.expect("commit");
        }
        append(&mut rows, "job", [number]).await;
        seen.extend(stream.take(1).await);
    }
    seen.extend(stream.take(2).await);
    let mut all = numbers(&seen);
    all.sort();
    assert_eq!(all, [99, 1000, 1001].into_iter().chain(2000..2080).collect::<Vec<_>>());
    for (place, event) in seen.iter().enumerate() {
        let mut rest = numbers(&other.stream_after("job", event.cursor()).await.take(seen.len() - 1 - place).await);
        rest.sort();
        let mut expected = numbers(&seen[place + 1..]);
        expected.sort();
        assert_eq!(rest, expected, "after {place} events, with {}", event.cursor());
    }
    let mut last = other.stream_after("job", seen.last().expect("an event").cursor()).await;
    server.execute("UPDATE runner_jobs SET status = 'COMPLETED'").await;
    for stream in [&mut stream, &mut last] {
        assert!(stream.event().await.is("stream.complete"), "and nothing twice");
    }
}

/// Such numbers change when another row comes, so they say nothing of what was delivered.
#[tokio::test]
async fn a_view_that_counts_out_its_numbers_is_read_whole() {
    let server = numbered().await;
    let view = "UPDATE job_events SET timestamp = now() - interval '1 hour' + seq * interval '1 second';
        CREATE VIEW counted AS SELECT e.xmin AS xmin, e.id, e.job_id, e.type, e.timestamp, e.payload,
          row_number() OVER (PARTITION BY e.job_id ORDER BY e.timestamp) AS seq FROM job_events e;
        CREATE VIEW seen AS SELECT * FROM counted; GRANT SELECT ON seen TO PUBLIC";
    server.execute(view).await;
    let settings = [&BY_NUMBER[..], &[("source.postgres.events_table", "seen")]].concat();
    let daemon = daemon_on(&server, &settings).await;
    let mut stream = daemon.stream("job").await;
    stream.take(100).await;
    let insert = async |rows: &[(u64, &str)]| {
        let rows = rows.iter().map(|(number, time)| format!("('e', 'job', 'x', {time}, '{{\"n\":{number}}}')"));
        let rows = rows.collect::<Vec<_>>().join(",");
        server.execute(&format!("INSERT INTO job_events (id, job_id, type, timestamp, payload) VALUES {rows}")).await;
    };
    insert(&[(100, "now()")]).await;
    assert_eq!(numbers(&stream.take(1).await), [100]);
    insert(&[(101, "now()"), (102, "now() - interval '3590 seconds'")]).await;
    let mut both = numbers(&stream.take(2).await);
    both.sort();
    assert_eq!(both, [101, 102], "the second one is among the oldest");
}

/// A row with a number far below all others, as of a pool of numbers that a writer took long before.
async fn insert_below(server: &Postgres, number: u64) {
    let values = format!("({}, 'e-{number}', 'job', 'x', '{{\"n\":{number}}}')", -(number as i64));
    server.execute(&format!("INSERT INTO job_events (seq, id, job_id, type, payload) VALUES {values}")).await;
}

#[tokio::test]
async fn a_row_with_a_number_long_past_comes_with_the_sweep_once_to_all_and_wherever_they_resume() {
    let server = numbered().await;
    let settings = [&BY_NUMBER[..3], &[("source.postgres.sweep", "100ms")]].concat();
    let daemon = daemon_on(&server, &settings).await;
    comes_once_wherever_readers_resume(&daemon, &server, 10, async |below, above| {
        insert_below(&server, below).await;
        append(&mut server.connect().await, "job", [above]).await;
    })
    .await;
}

#[tokio::test]
async fn a_reader_that_stops_within_a_history_loses_nothing_when_a_row_that_it_has_is_updated() {
    let server = numbered().await;
    let daemon = daemon_on(&server, &BY_NUMBER).await;
    let seen = daemon.stream("job").await.take(100).await;
    server.execute("UPDATE job_events SET type = 'y' WHERE id = 'e-10'").await;
    let path = format!("/runner-jobs/job/events?limit=100&after={}", seen[49].cursor());
    let mut rest = numbers_of(&daemon.get(&path).await.json());
    rest.sort();
    assert_eq!(rest, [10].into_iter().chain(50..100).collect::<Vec<_>>());
}

/// A source that leaves out UPDATEs, and looks at all rows ten times a second.
fn with_dedupe() -> Vec<(&'static str, &'static str)> {
    [&BY_NUMBER[..3], &[("source.postgres.sweep", "100ms"), ("source.dedupe", "true")]].concat()
}

#[tokio::test]
async fn with_dedupe_an_update_is_no_new_event_for_who_watches_and_who_resumes_behind_it() {
    let server = numbered().await;
    let daemon = daemon_on(&server, &with_dedupe()).await;
    let (mut stream, mut rows, mut slow) = (daemon.stream("job").await, server.connect().await, server.connect().await);
    stream.take(100).await;
    // Everything that is newer has to be counted, or listed.
    slow.execute("BEGIN; INSERT INTO runner_jobs (id) VALUES ('slow')").await.expect("an open transaction");
    let mut last = String::new();
    for round in 0..6_u64 {
        let number = 100 + 3 * round;
        rows.execute("BEGIN").await.expect("begin");
        append(&mut rows, "job", [number, number + 1]).await;
        rows.execute("COMMIT").await.expect("commit");
        assert_eq!(numbers(&stream.take(2).await), [number, number + 1]);
        // One of the last transaction's rows alone, and all that there are.
        let newest = format!("UPDATE job_events SET payload = payload || '{{\"again\":true}}' WHERE id = 'e-{number}'");
        server.execute(&newest).await;
        server.execute("UPDATE job_events SET payload = payload || '{\"again\":true}'").await;
        if round > 0 {
            let page = daemon.get(&format!("/runner-jobs/job/events?after={last}")).await.json();
            assert_eq!(numbers_of(&page), [number, number + 1], "whoever resumes");
        }
        // By the sweep, so that it has gone through the rows that were updated.
        insert_below(&server, number + 2).await;
        let event = stream.event().await;
        assert_eq!(event.number(), number + 2, "whoever watches");
        last = event.cursor().to_string();
    }
    slow.execute("COMMIT").await.expect("commit");
}

#[tokio::test]
async fn with_dedupe_no_event_is_left_out_that_is_updated_before_a_reader_comes_to_it() {
    let server = numbered().await;
    let daemon = daemon_on(&server, &with_dedupe()).await;
    // The process knows the first version of every event.
    let mut stream = daemon.stream("job").await;
    stream.take(100).await;
    let (mut seen, mut after) = (BTreeSet::new(), String::new());
    for page in 1.. {
        let page_of_7 = daemon.get(&format!("/runner-jobs/job/events?limit=7&after={after}")).await.json();
        seen.extend(numbers_of(&page_of_7));
        let cursor = page_of_7["cursor"].as_str().expect("a cursor").to_string();
        if std::mem::replace(&mut after, cursor) == after {
            break;
        }
        if page < 12 {
            server.execute(&format!("UPDATE job_events SET type = 'y' WHERE seq % 9 = {}", page % 9)).await;
        }
    }
    assert_eq!(Vec::from_iter(seen), Vec::from_iter(0..100));
    append(&mut server.connect().await, "job", [100]).await;
    assert_eq!(numbers(&stream.take(1).await), [100], "and none is told again to who watches");
}

#[tokio::test]
async fn with_dedupe_events_that_share_an_id_are_all_told() {
    let server = Postgres::start().await;
    server
        .execute(
            "CREATE TABLE runner_jobs (id text PRIMARY KEY, status text); INSERT INTO runner_jobs VALUES ('job', 'RUNNING');
             CREATE TABLE job_events (id text NOT NULL, job_id text NOT NULL, type text, timestamp timestamptz, payload jsonb);
             CREATE INDEX ON job_events (job_id, timestamp)",
        )
        .await;
    server.make_reader().await;
    let daemon = daemon_on(&server, &[("source.dedupe", "true"), ("source.poll_interval", "50ms")]).await;
    let mut stream = daemon.stream("job").await;
    for number in 0..3_u64 {
        server.execute(&format!("INSERT INTO job_events VALUES ('1', 'job', 'x', now(), '{{\"n\":{number}}}')")).await;
        assert_eq!(numbers(&stream.take(1).await), [number]);
    }
}

#[tokio::test]
async fn a_number_that_repeats_within_a_job_loses_none_of_its_rows() {
    let server = Postgres::start().await;
    server
        .execute(
            "CREATE TABLE runner_jobs (id text PRIMARY KEY, status text);
             CREATE TABLE job_events (id int PRIMARY KEY, job_id text, type text DEFAULT 'x', timestamp timestamptz DEFAULT now(),
               payload jsonb, line int NOT NULL);
             CREATE INDEX ON job_events (job_id, line); CREATE ROLE reader LOGIN;
             GRANT SELECT ON job_events, runner_jobs TO reader;
             INSERT INTO runner_jobs VALUES ('job', 'RUNNING');
             INSERT INTO job_events SELECT n, 'job', 'x', now(), jsonb_build_object('n', n), n / 100 FROM generate_series(0, 1199) n",
        )
        .await;
    let settings = [
        ("source.postgres.columns.seq", "line"),
        ("source.poll_interval", "50ms"),
        // The last rows have a number that does not grow.
        ("source.postgres.sweep", "200ms"),
    ];
    let daemon = Daemon::on("postgres", &server.url("reader"), &settings).await;
    let mut stream = daemon.stream("job").await;
    let mut seen = numbers(&stream.take(1200).await);
    seen.sort();
    assert_eq!(seen, Vec::from_iter(0..1200), "by pages of the stream");
    let (mut polled, mut after) = (Vec::new(), String::new());
    while polled.len() < 1200 {
        let page = daemon.get(&format!("/runner-jobs/job/events?limit=7&after={after}")).await.json();
        let events = numbers_of(&page);
        assert!(!events.is_empty(), "the end after {} events", polled.len());
        polled.extend(events);
        after = page["cursor"].as_str().expect("a cursor").to_string();
    }
    polled.sort();
    assert_eq!(polled, Vec::from_iter(0..1200), "seven at a time");
    server.execute("INSERT INTO job_events SELECT n, 'job', 'x', now(), jsonb_build_object('n', n), 3 FROM generate_series(1200, 1209) n").await;
    let mut live = numbers(&stream.take(10).await);
    live.sort();
    assert_eq!(live, Vec::from_iter(1200..1210), "and live");
}
