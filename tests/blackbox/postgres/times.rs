//! Times of every kind, of any calendar.

use super::daemon_on;
use crate::support::{Daemon, Postgres};
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
