//! Faults have a scope: what cannot be read of one entry hurts that part of it, and a key that cannot be read hurts its
//! job, for as long as it is so.

use super::super::contract::set_faults::{self, Spoils};
use super::super::contract::sets::set_path;
use super::shared::{SHARED, add as add_shared};
use super::{HEARS, READER, daemon_on};
use crate::support::daemon::stream_path;
use crate::support::redis::{append, ask, job_key, set_status, stream_key};
use crate::support::{Daemon, Redis, Stream, eventually, numbers};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redis::Value;
use redis::aio::MultiplexedConnection;
use serde_json::json;
use std::collections::BTreeMap;
use std::ops::Range;

/// Adds an entry of a job with these fields.
async fn add(rows: &mut MultiplexedConnection, job: &str, fields: &[(&str, &[u8])]) {
    let mut add = redis::cmd("XADD");
    add.arg(stream_key(job)).arg("*");
    for (name, value) in fields {
        add.arg(name).arg(value);
    }
    add.query_async::<Value>(rows).await.expect("XADD");
}

#[tokio::test]
async fn what_cannot_be_read_of_an_entry_is_named_and_the_rest_is_read() {
    let server = Redis::start().await;
    let daemon = daemon_on(&server.url(), &[]).await;
    let mut rows = server.connect().await;
    append(&mut rows, "job", [0]).await;
    let mut stream = daemon.stream("job").await;
    assert_eq!(stream.event().await.number(), 0);
    add(&mut rows, "job", &[("type", b"x"), ("id", b"\xff"), ("actor", "é".as_bytes()), ("payload", b"{\"n\":1}")])
        .await;
    let event = stream.event().await.json();
    assert_eq!(
        (&event["unreadable"], &event["actor"], &event["payload"]["n"]),
        (&json!(["id"]), &json!("é"), &json!(1))
    );
    add(&mut rows, "job", &[("type", b"x"), ("payload", b"{\"n\":2,\"of\":\"\xe9\"}"), ("timestamp", b"1e99")]).await;
    let event = stream.event().await.json();
    assert_eq!(event["unreadable"], json!(["payload", "timestamp"]));
    assert_eq!((&event["payload"], &event["timestamp"]), (&json!({ "n": 2, "of": "\u{fffd}" }), &json!(null)));
    // an entry of the end of time
    let last = [stream_key("job"), format!("{}-1", u64::MAX), "type".into(), "x".into(), "stepId".into(), "s".into()];
    let last: Vec<&str> = ["XADD"].into_iter().chain(last.iter().map(String::as_str)).collect();
    ask::<()>(&mut rows, &last).await;
    let event = stream.event().await.json();
    assert_eq!((&event["unreadable"], &event["stepId"]), (&json!(["timestamp"]), &json!("s")));
    has_no_outage(&daemon).await;
}

#[tokio::test]
async fn bytes_in_an_envelope_that_are_no_text_are_named_and_counted() {
    let server = Redis::start().await;
    let mut rows = server.connect().await;
    let own: [(&str, &[u8]); 1] = [("data", b"{\"type\":\"t\",\"text\":\"caf\xe9\"}")];
    add(&mut rows, "job", &own).await;
    let shown = [("*", json!({ "type": "t", "text": "caf\u{fffd}" })), ("text", json!("caf\u{fffd}"))];
    for (payload, expected) in shown {
        let settings = [
            ("source.redis.envelope", "data"),
            ("source.redis.fields.id", ""),
            ("source.redis.fields.type", "type"),
            ("source.redis.fields.payload", payload),
        ];
        let daemon = daemon_on(&server.url(), &settings).await;
        let event = daemon.stream("job").await.event().await.json();
        assert_eq!((&event["payload"], &event["unreadable"]), (&expected, &json!(["payload"])), "{payload}");
        daemon.metric_reaches("jobcast_unreadable_events_total", 1.0).await;
    }
}

/// Entries of random fields with random bytes.
async fn add_random(rows: &mut MultiplexedConnection, job: &str, random: &mut StdRng) -> bool {
    let mut fields: Vec<(&str, Vec<u8>)> = Vec::new();
    for name in ["id", "type", "timestamp", "actor", "stepId", "payload", "other"] {
        if random.random_bool(0.7) {
            let length = [0, 1, 7, 300, 20_000][random.random_range(0..5_usize)];
            let is_text = random.random_bool(0.4);
            let byte = |random: &mut StdRng| if is_text { random.random_range(32..127) } else { random.random() };
            fields.push((name, (0..length).map(|_| byte(random)).collect()));
        }
    }
    if fields.is_empty() {
        return false;
    }
    let borrowed: Vec<(&str, &[u8])> = fields.iter().map(|(name, value)| (*name, &value[..])).collect();
    add(rows, job, &borrowed).await;
    fields.iter().any(|(name, value)| *name == "type" && !value.is_empty())
}

#[tokio::test]
async fn entries_of_random_bytes_are_all_delivered_and_ten_other_jobs_lose_nothing_beside_them() {
    let server = Redis::start().await;
    let daemon = daemon_on(&server.url(), &[]).await;
    let mut rows = server.connect().await;
    let others: Vec<String> = (0..10).map(|number| format!("other-{number}")).collect();
    set_status(&mut rows, "odd", "RUNNING").await;
    let mut odd = daemon.stream("odd").await;
    let mut streams = Vec::new();
    for job in &others {
        set_status(&mut rows, job, "RUNNING").await;
        streams.push(daemon.stream(job).await);
    }
    let mut random = StdRng::seed_from_u64(15);
    let mut events = 0;
    for number in 0..150 {
        events += usize::from(add_random(&mut rows, "odd", &mut random).await);
        append(&mut rows, &others[number as usize % 10], [number]).await;
    }
    odd.take(events).await;
    for (job, stream) in streams.iter_mut().enumerate() {
        assert_eq!(numbers(&stream.take(15).await), Vec::from_iter((job as u64..150).step_by(10)));
    }
    // from the beginning as well
    daemon.stream("odd").await.take(events).await;
    has_no_outage(&daemon).await;
}

async fn has_no_outage(daemon: &Daemon) {
    assert_eq!(daemon.ask_admin("/readyz").await.status, 200);
    daemon.metric_is("jobcast_source_up", 1.0).await;
    assert!(!daemon.log().contains("source went away"), "{}", daemon.log());
}

#[tokio::test]
async fn a_job_whose_key_is_of_another_type_is_no_job() {
    let server = Redis::start().await;
    let daemon = daemon_on(&server.url(), &[("ingest.enabled", "true"), ("source.appear", "1s")]).await;
    let mut rows = server.connect().await;
    append(&mut rows, "job", 0..3).await;
    set_status(&mut rows, "job", "RUNNING").await;
    ask::<()>(&mut rows, &["SET", &stream_key("odd"), "x"]).await;
    set_status(&mut rows, "odd", "RUNNING").await;
    // the key of the second one's hash is the first one's stream
    for job in ["odd", "job:events"] {
        for path in [
            stream_path(job),
            format!("/runner-jobs/{job}/events"),
            format!("/runner-jobs/{job}/events?after=e-1"),
            format!("{}?from=now", stream_path(job)),
        ] {
            let answer = Stream::open(daemon.http, &path, &[]).await.head;
            assert_eq!((answer.status, answer.code().as_str()), (404, "job.not_found"), "{path}");
        }
    }
    let log = daemon.log();
    assert!(!log.contains("WARN") && !log.contains("WRONGTYPE"), "{log}");
    assert_eq!(daemon.metric("jobcast_source_errors_total").await, 0.0);
    // it may be written to: then it has events, and still no status
    daemon.write("job:events", 0..2).await;
    assert_eq!(numbers(&daemon.stream("job:events").await.take(2).await), [0, 1]);
    assert_eq!(daemon.get("/runner-jobs").await.status, 200);
    has_no_outage(&daemon).await;
}

/// Returns when the server has replied with such an error once more than `before`.
async fn refused(server: &Redis, error: &str, before: u64) -> u64 {
    eventually("the server to refuse", async || {
        let stats: String = server.ask(&["INFO", "errorstats"]).await;
        let count = stats.lines().find_map(|line| line.strip_prefix(&format!("errorstat_{error}:count=")));
        count.and_then(|count| count.trim().parse().ok()).filter(|count| *count > before)
    })
    .await
}

/// Returns the next event that is not Jobcast's own word of the fault.
async fn next_number(stream: &mut Stream) -> u64 {
    let mut event = stream.event().await;
    if event.is("stream.error") {
        assert_eq!(event.json()["retryable"], true, "{event:?}");
        event = stream.event().await;
    }
    event.number()
}

#[tokio::test]
async fn a_watched_key_that_becomes_another_type_stops_its_own_job_until_it_is_mended() {
    let server = Redis::start().await;
    let daemon = daemon_on(&server.url(), &[]).await;
    let mut rows = server.connect().await;
    for job in ["good", "bad"] {
        append(&mut rows, job, [0]).await;
    }
    let (mut good, mut bad) = (daemon.stream("good").await, daemon.stream("bad").await);
    assert_eq!((good.event().await.number(), bad.event().await.number()), (0, 0));
    let (stream, hash) = (stream_key("bad"), "runner-jobs:bad".to_string());
    let mut count = 0;
    for (number, key) in (1..).zip([&stream, &hash]) {
        ask::<()>(&mut rows, &["HSET", &hash, "status", "RUNNING"]).await;
        let mut swap = redis::pipe();
        swap.atomic().cmd("RENAME").arg(key).arg("aside").cmd("SET").arg(key).arg("x");
        swap.query_async::<Value>(&mut rows).await.expect("RENAME");
        count = refused(&server, "WRONGTYPE", count).await;
        append(&mut rows, "good", [number]).await;
        assert_eq!(good.event().await.number(), number);
        has_no_outage(&daemon).await;
        ask::<()>(&mut rows, &["RENAME", "aside", key]).await;
        append(&mut rows, "bad", [number]).await;
        assert_eq!(next_number(&mut bad).await, number);
    }
    // in between it is not asked for without pause
    assert!(count < 20, "{count} errors");
}

#[tokio::test]
async fn a_key_of_another_type_in_a_set_is_that_jobs_error_in_json_as_it_is_on_the_stream() {
    let server = Redis::start().await;
    let daemon = daemon_on(&server.url(), &[]).await;
    let mut rows = server.connect().await;
    append(&mut rows, "good", 0..2).await;
    append(&mut rows, "hash", 0..1).await;
    let odd_keys = [stream_key("stream"), job_key("hash")];
    for key in &odd_keys {
        ask::<()>(&mut rows, &["SET", key, "x"]).await;
    }
    let (jobs, odd) = (["good", "hash", "stream"], ["hash", "stream"]);
    let poll = set_path(&jobs, "").replace("/stream", "");
    let page = daemon.get(&poll).await.json();
    assert_eq!((page["events"].as_array().map(Vec::len), &page["complete"]), (Some(2), &json!(false)), "{page}");
    for job in odd {
        let error = &page["jobs"][job]["error"];
        assert_eq!((&error["code"], &error["retryable"]), (&json!("source.schema"), &json!(true)), "{page}");
    }
    assert!(page["jobs"]["good"].get("error").is_none() && page.get("resets").is_none(), "{page}");
    let mut stream = Stream::open(daemon.http, &set_path(&jobs, ""), &[]).await;
    // Whoever was told by its own read may be told once more by the tail, before it hears of the other.
    let (mut events, mut told) = (Vec::new(), BTreeMap::new());
    while events.len() < 2 || told.len() < 2 {
        let message = stream.event().await;
        if !message.is("stream.error") {
            events.push(message.number());
            continue;
        }
        let error = message.json();
        told.insert(error["jobId"].to_string(), error["code"].to_string());
    }
    assert_eq!(events, [0, 1]);
    assert_eq!(told, odd.map(|job| (json!(job).to_string(), json!("source.schema").to_string())).into());
    // a place of that time is one after it is mended
    for key in &odd_keys {
        ask::<()>(&mut rows, &["DEL", key]).await;
    }
    append(&mut rows, "stream", 0..2).await;
    let after = page["cursor"].as_str().expect("a cursor");
    let rest = daemon.get(&format!("{poll}&after={after}")).await.json();
    assert_eq!((rest["events"].as_array().map(Vec::len), rest.get("resets")), (Some(3), None), "{rest}");
}

#[tokio::test]
async fn a_right_that_one_key_lacks_is_that_jobs_fault() {
    let server = Redis::start().await;
    for rights in [&READER[..], &HEARS] {
        server.ask::<()>(rights).await;
    }
    let daemon = daemon_on(&server.url().replace("//", "//reader:hunter2@"), &[]).await;
    let mut rows = server.connect().await;
    for job in ["good", "bad"] {
        append(&mut rows, job, [0]).await;
    }
    let (mut good, mut bad) = (daemon.stream("good").await, daemon.stream("bad").await);
    assert_eq!((good.event().await.number(), bad.event().await.number()), (0, 0));
    ask::<()>(&mut rows, &["ACL", "SETUSER", "reader", "resetkeys", "~runner-jobs:good*"]).await;
    append(&mut rows, "bad", [1]).await;
    refused(&server, "NOPERM", 0).await;
    append(&mut rows, "good", [1]).await;
    assert_eq!(good.event().await.number(), 1);
    let answer = daemon.get("/runner-jobs/bad/events").await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "source.rights"), "{answer:?}");
    // The server's own text names neither the command nor the key.
    let said = daemon.logs(&["NOPERM", "runner-jobs:bad"]).await;
    assert!(said.contains(": HGET runner-jobs:bad") || said.contains(": XRANGE runner-jobs:bad:events"), "{said}");
    has_no_outage(&daemon).await;
    ask::<()>(&mut rows, &["ACL", "SETUSER", "reader", "~runner-jobs:*"]).await;
    assert_eq!(next_number(&mut bad).await, 1);
}

#[tokio::test]
async fn a_status_that_may_not_be_read_beside_the_stream_of_all_jobs_is_that_jobs_fault_whose_events_go_on() {
    let server = Redis::start().await;
    for rights in [&READER[..], &HEARS, &["ACL", "SETUSER", "reader", "~queue"]] {
        server.ask::<()>(rights).await;
    }
    let daemon = daemon_on(&server.url().replace("//", "//reader:hunter2@"), &SHARED).await;
    let mut rows = server.connect().await;
    let jobs = ["good".to_string(), "bad".to_string()];
    add_shared(&mut rows, &jobs, 0..1).await;
    let (mut good, mut bad) = (daemon.stream("good").await, daemon.stream("bad").await);
    assert_eq!((good.event().await.number(), bad.event().await.number()), (0, 0));
    ask::<()>(&mut rows, &["ACL", "SETUSER", "reader", "resetkeys", "~queue", "~runner-jobs:good*"]).await;
    let told = bad.event().await;
    assert_eq!((told.event.as_deref(), &told.json()["retryable"]), (Some("stream.error"), &json!(true)), "{told:?}");
    daemon.logs(&[": HGET runner-jobs:bad"]).await;
    add_shared(&mut rows, &jobs, 1..2).await;
    assert_eq!((good.event().await.number(), next_number(&mut bad).await), (1, 1));
    has_no_outage(&daemon).await;
    ask::<()>(&mut rows, &["ACL", "SETUSER", "reader", "~runner-jobs:*"]).await;
    set_status(&mut rows, "bad", "COMPLETED").await;
    assert_eq!(bad.rest().await.last().expect("an end").json()["status"], "COMPLETED");
}

impl Spoils for Redis {
    async fn append(&self, job: &str, numbers: Range<u64>) {
        append(&mut self.connect().await, job, numbers).await;
    }

    async fn spoil(&self) {
        let others = ["~runner-jobs:a*", "~runner-jobs:z*"];
        self.ask::<()>(&[&["ACL", "SETUSER", "reader", "resetkeys"], &others[..]].concat()).await;
    }

    async fn mend(&self) {
        self.ask::<()>(&["ACL", "SETUSER", "reader", "~runner-jobs:*"]).await;
    }
}

#[tokio::test]
async fn the_others_of_a_set_go_on_while_the_key_of_one_may_not_be_read() {
    let server = Redis::start().await;
    for rights in [&READER[..], &HEARS] {
        server.ask::<()>(rights).await;
    }
    let daemon = daemon_on(&server.url().replace("//", "//reader:hunter2@"), &[]).await;
    set_faults::the_others_of_a_set_go_on_while_one_cannot_be_read_which_then_loses_nothing(&daemon, &server).await;
}

#[tokio::test]
async fn a_key_that_becomes_one_of_another_type_is_told_once_to_those_who_watch_it_in_a_set_and_to_those_who_come_back()
{
    let server = Redis::start().await;
    // What was given before the fault leaves the ring: who comes back is replayed first.
    let daemon = daemon_on(&server.url(), &[("hub.ring_events", "2")]).await;
    let (jobs, mut rows) = (["a", "bad", "z"], server.connect().await);
    for job in jobs {
        append(&mut rows, job, 0..3).await;
    }
    let mut stream = Stream::open(daemon.http, &set_path(&jobs, ""), &[]).await;
    let (history, _) = set_faults::take(&mut stream, 9, 0).await;
    ask::<()>(&mut rows, &["RENAME", &stream_key("bad"), "elsewhere"]).await;
    ask::<()>(&mut rows, &["SET", &stream_key("bad"), "of another type"]).await;
    append(&mut rows, "a", 3..9).await;
    let (_, told) = set_faults::take(&mut stream, 6, 1).await;
    let place = history.last().map(|message| message.cursor().to_string()).expect("an id");
    let mut resumed = Stream::open(daemon.http, &set_path(&jobs, ""), &[("Last-Event-ID", &place)]).await;
    let (_, told_by_replay) = set_faults::take(&mut resumed, 6, 1).await;
    append(&mut rows, "z", 3..4).await;
    for (stream, told) in [(&mut stream, told), (&mut resumed, told_by_replay)] {
        let (_, more) = set_faults::take(stream, 1, 0).await;
        set_faults::is_of_the_bad(&[told, more].concat());
    }
    // At once: a stream that goes and comes is another one.
    ask::<()>(&mut rows, &["RENAME", "elsewhere", &stream_key("bad")]).await;
    append(&mut rows, "bad", 3..4).await;
    for stream in [&mut stream, &mut resumed] {
        let (rest, more) = set_faults::take(stream, 1, 0).await;
        assert_eq!((rest[0].number(), more.len()), (3, 0));
    }
}
