//! Streams that others write: what their entries become, and by what a job ends.

use super::access::has_met_no_error;
use super::{HEARS, READER, daemon_on};
use crate::support::daemon::run;
use crate::support::redis::{append, ask, job_key, set_status, stream_key};
use crate::support::{Daemon, Message, Redis, Stream, numbers};
use redis::aio::MultiplexedConnection;
use serde_json::json;
use std::time::{Duration, Instant};

#[tokio::test]
async fn an_entry_without_a_type_is_an_event_with_all_that_is_in_it() {
    let server = Redis::start().await;
    let daemon = daemon_on(&server.url(), &[]).await;
    let mut rows = server.connect().await;
    let key = stream_key("job");
    ask::<()>(&mut rows, &["XADD", &key, "7-1", "note", "42", "type", ""]).await;
    let mut stream = daemon.stream("job").await;
    let first = stream.event().await.json();
    assert_eq!(
        (&first["id"], &first["type"], &first["payload"]),
        (&json!("7-1"), &json!("event"), &json!({"note": "42"}))
    );
    // A field may hold any bytes.
    let mut odd = redis::cmd("XADD");
    odd.arg(&key).arg("*").arg("type").arg("x").arg("payload").arg(&b"\xff\xfe\n{"[..]).arg("timestamp").arg("soon");
    odd.exec_async(&mut rows).await.expect("XADD");
    let odd = stream.event().await.json();
    assert!(odd["payload"].is_string() && odd["timestamp"].is_null(), "{odd}");
    assert_eq!(odd["unreadable"], json!(["payload", "timestamp"]));
    append(&mut rows, "job", [1]).await;
    assert_eq!(stream.event().await.number(), 1);
    daemon.metric_reaches("jobcast_untyped_events_total", 1.0).await;
    assert_eq!(daemon.metric("jobcast_skipped_entries_total").await, 0.0);
}

/// Asserts that the stream ends with this status, and that whoever comes later is told the same.
async fn ends(daemon: &Daemon, job: &str, mut stream: Stream, status: &str) {
    let all = stream.rest().await;
    assert_eq!(all.last().expect("an end").json()["status"], status, "{job}: {all:?}");
    let late = daemon.stream(job).await.rest().await;
    assert_eq!(late.last().expect("an end").json()["status"], status, "{job}, later: {late:?}");
}

#[tokio::test]
async fn how_a_job_is_stands_in_a_text_or_inside_of_one_or_in_any_field_of_a_hash_with_the_rights_of_the_guide() {
    let server = Redis::start().await;
    let mut rows = server.connect().await;
    for rights in [&READER[..], &HEARS, &["ACL", "SETUSER", "reader", "~state:*", "+hmget", "+get"]] {
        server.ask::<()>(rights).await;
    }
    let url = server.url().replace("//", "//reader:hunter2@");
    // the setting, the command that ends the job, and the status that is told
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a str);
    let cases: [Case; 4] = [
        (&[("job_status_field", ""), ("statuses.failed", "broken")], &["SET", "state:job", "broken"], "FAILED"),
        (
            &[("job_status_field", "/run/state"), ("statuses.completed", "ok")],
            &["SET", "state:job", "{\"run\":{\"state\":\"ok\"}}"],
            "COMPLETED",
        ),
        (
            &[("job_status_field", "state"), ("statuses.cancelled", "stopped")],
            &["HSET", "state:job", "state", "stopped"],
            "CANCELLED",
        ),
        (
            &[("job_ended_field", "finishedOn"), ("outcome", "why"), ("statuses.failed", "*")],
            &["HSET", "state:job", "finishedOn", "1", "why", "boom"],
            "FAILED",
        ),
    ];
    for (settings, end, status) in cases {
        let own: Vec<(String, &str)> =
            settings.iter().map(|(name, value)| (format!("source.redis.{name}"), *value)).collect();
        let mut more: Vec<(&str, &str)> = own.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        more.push(("source.redis.job_key", "state:$job_id"));
        let daemon = daemon_on(&url, &more).await;
        append(&mut rows, "job", 0..2).await;
        let mut stream = daemon.stream("job").await;
        assert_eq!(numbers(&stream.take(2).await), [0, 1]);
        ask::<()>(&mut rows, end).await;
        ends(&daemon, "job", stream, status).await;
        has_met_no_error(&daemon).await;
        ask::<()>(&mut rows, &["FLUSHALL"]).await;
    }
}

async fn add(rows: &mut MultiplexedConnection, job: &str, fields: &[&str]) {
    ask::<()>(rows, &[&["XADD", &stream_key(job), "*"], fields].concat()).await;
}

#[tokio::test]
async fn a_final_event_ends_its_job_for_those_who_come_later_too_wherever_it_stands() {
    let server = Redis::start().await;
    let mut rows = server.connect().await;
    let settings = [
        ("source.redis.job_key", ""),
        ("source.redis.final_types.completed", "end"),
        ("source.redis.outcome", "/payload/reason"),
        ("source.redis.statuses.failed", "error"),
        ("source.redis.end_marker", "done"),
    ];
    let daemon = daemon_on(&server.url(), &settings).await;
    let cases: [(&str, &[&str], &str); 3] = [
        ("typed", &["type", "end", "payload", "{\"reason\":\"error\"}"], "FAILED"),
        ("plain", &["type", "end"], "COMPLETED"),
        ("marked", &["type", "chunk", "done", "1"], "COMPLETED"),
    ];
    for (job, last, status) in cases {
        append(&mut rows, job, 0..2).await;
        add(&mut rows, job, last).await;
        // more than one page of entries follows
        append(&mut rows, job, 2..32).await;
        let all = daemon.stream(job).await.rest().await;
        assert_eq!((all.len(), &all[33].json()["status"]), (34, &json!(status)), "{job}");
        let after_end = daemon.stream_after(job, all[20].cursor()).await.rest().await;
        assert_eq!((after_end.len(), &after_end[12].json()["status"]), (13, &json!(status)), "{job}");
        assert_eq!(daemon.get(&format!("/runner-jobs/{job}")).await.json()["status"], status);
    }
}

#[tokio::test]
async fn a_mark_by_its_value_ends_a_stream_and_no_other_value_does() {
    let server = Redis::start().await;
    let mut rows = server.connect().await;
    let settings = [
        ("source.redis.job_key", ""),
        ("source.redis.end_marker", "data = [DONE]"),
        ("source.redis.fields.id", ""),
        ("source.redis.fields.type", "= token"),
        ("source.redis.fields.payload", "data"),
    ];
    let daemon = daemon_on(&server.url(), &settings).await;
    for piece in ["Hel", "DONE", " [DONE] ", "[DONE]."] {
        add(&mut rows, "job", &["data", piece]).await;
    }
    let mut stream = daemon.stream("job").await;
    let pieces =
        |messages: &[Message]| Vec::from_iter(messages.iter().map(|message| message.json()["payload"].clone()));
    assert_eq!(pieces(&stream.take(4).await), ["Hel", "DONE", " [DONE] ", "[DONE]."]);
    assert_eq!(daemon.get("/runner-jobs/job/events").await.json()["complete"], false);
    add(&mut rows, "job", &["data", "[DONE]"]).await;
    ends(&daemon, "job", stream, "COMPLETED").await;
}

#[tokio::test]
async fn a_stream_that_expires_before_its_end_is_said_to_have_expired() {
    let server = Redis::start().await;
    let mut rows = server.connect().await;
    let daemon = daemon_on(&server.url(), &[]).await;
    set_status(&mut rows, "job", "RUNNING").await;
    append(&mut rows, "job", 0..3).await;
    let mut stream = daemon.stream("job").await;
    let seen = stream.take(3).await;
    ask::<()>(&mut rows, &["PEXPIRE", &stream_key("job"), "1"]).await;
    let reset = stream.event().await;
    assert_eq!((reset.is("stream.reset"), &reset.json()["reason"]), (true, &json!("expired")), "{reset:?}");
    let back = daemon.stream_after("job", seen[1].cursor()).await.event().await;
    assert_eq!((back.is("stream.reset"), &back.json()["reason"]), (true, &json!("expired")), "{back:?}");
}

#[tokio::test]
async fn a_job_of_which_nothing_is_left_is_reset_and_left_at_once_and_is_none_after_the_wait_for_it() {
    let server = Redis::start().await;
    let mut rows = server.connect().await;
    let wait = Duration::from_secs(1);
    let daemon = daemon_on(&server.url(), &[("source.appear", "1s")]).await;
    set_status(&mut rows, "job", "RUNNING").await;
    append(&mut rows, "job", 0..3).await;
    let mut stream = daemon.stream("job").await;
    let seen = stream.take(3).await;
    // Where only the hash goes, events go on, and the next status counts.
    ask::<()>(&mut rows, &["DEL", &job_key("job")]).await;
    append(&mut rows, "job", 3..5).await;
    assert_eq!(numbers(&stream.take(2).await), [3, 4]);
    let left = daemon.get("/runner-jobs/job").await.json();
    assert_eq!(left["status"], json!(null), "{left}");
    ask::<()>(&mut rows, &["DEL", &stream_key("job")]).await;
    let (reset, bye) = (stream.event().await, stream.event().await);
    assert_eq!((reset.is("stream.reset"), &reset.json()["reason"]), (true, &json!("expired")), "{reset:?}");
    assert_eq!((bye.is("stream.bye"), &bye.json()["reason"]), (true, &json!("age")), "{bye:?}");
    assert!(stream.next().await.is_none());
    let began = Instant::now();
    let back = daemon.stream_after("job", seen[2].cursor()).await;
    assert_eq!((back.head.status, back.head.code().as_str()), (404, "job.not_found"));
    assert!(began.elapsed() >= wait, "it is waited for");
    assert_eq!(daemon.get("/runner-jobs/job/events").await.status, 404);
}

#[tokio::test]
async fn events_are_not_sent_in_to_streams_that_others_write() {
    let server = Redis::start().await;
    let settings = [("ingest.enabled", "true"), ("source.redis.fields.payload", "chunk")];
    let daemon = daemon_on(&server.url(), &settings).await;
    let answer = daemon.send("POST", "/runner-jobs/job/events", &json!({"type": "x"})).await;
    assert!(answer.status >= 500, "{answer:?}");
    assert_eq!(server.ask::<u64>(&["EXISTS", &stream_key("job")]).await, 0);
}

async fn check(server: &Redis, settings: &[(&str, &str)]) -> (bool, String) {
    let url = server.url();
    let all = [&[("source.kind", "redis"), ("source.redis.url", &url)], settings].concat();
    let checked = run(&["check"], &all).await;
    (checked.status.success(), String::from_utf8_lossy(&checked.stdout).into_owned())
}

#[tokio::test]
async fn check_looks_at_the_newest_entries_and_says_what_of_them_the_settings_find() {
    let server = Redis::start().await;
    let mut rows = server.connect().await;
    let (fine, said) = check(&server, &[]).await;
    assert!(fine && said.contains("no stream is there yet"), "{said}");
    ask::<()>(&mut rows, &["XADD", &stream_key("job"), "*", "event", "begin", "chunk", "Hel"]).await;
    let (fine, said) = check(&server, &[]).await;
    assert!(!fine && said.contains("event, chunk") && said.contains("source.redis.fields.type"), "{said}");
    let (fine, said) =
        check(&server, &[("source.redis.fields.type", "event"), ("source.redis.fields.payload", "text")]).await;
    assert!(!fine && said.contains("no text") && said.contains("source.redis.fields.payload"), "{said}");
    let named = [("source.redis.fields.type", "event"), ("source.redis.fields.payload", "chunk")];
    let (fine, said) = check(&server, &named).await;
    assert!(fine && said.contains("type from event, payload from chunk"), "{said}");
    let (fine, said) = check(&server, &[("source.redis.envelope", "chunk")]).await;
    assert!(!fine && said.contains("no JSON in the field chunk"), "{said}");
    let (fine, said) = check(&server, &[("source.redis.events_key", "x:$tenant:$job_id")]).await;
    assert!(!fine && said.contains("$job_id is the only placeholder"), "{said}");
    ask::<()>(&mut rows, &["SET", "runner-jobs:job", "RUNNING"]).await;
    let (fine, said) = check(&server, &named).await;
    assert!(!fine && said.contains("runner-jobs:job is no hash"), "{said}");
    // a job that ended long ago, and a stream that stays
    ask::<()>(&mut rows, &["FLUSHALL"]).await;
    ask::<()>(&mut rows, &["XADD", &stream_key("old"), "1500-0", "type", "x"]).await;
    set_status(&mut rows, "old", "COMPLETED").await;
    let (fine, said) = check(&server, &[]).await;
    assert!(fine && said.contains("have no TTL"), "{said}");
}

#[tokio::test]
async fn a_server_or_proxy_without_a_command_that_is_needed_is_told_by_what_is_needed() {
    for command in ["XINFO", "HELLO"] {
        let server = Redis::with(&format!("rename-command {command} \"\"")).await;
        let (fine, said) = check(&server, &[]).await;
        assert!(!fine && said.contains("HELLO 3 (RESP3)") && said.contains("XINFO STREAM"), "{command}: {said}");
    }
}
