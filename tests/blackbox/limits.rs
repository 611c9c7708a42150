//! The limits: whoever is over one is told in a way that makes him come back later, counted, and written down once.

use crate::support::daemon::{numbered, stream_path};
use crate::support::http::{encode, raw, request};
use crate::support::{Answer, Daemon, Stream, eventually, numbers};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const EVENTS: &str = "/runner-jobs/job/events";

/// The name of the count of requests that were refused for this reason.
pub fn refusals(reason: &str) -> String {
    format!("jobcast_refused_requests_total{{reason=\"{reason}\"}}")
}

/// A stream that was refused: an answer that no browser gives up at, with a wait of its own.
async fn is_refused(stream: &mut Stream, code: &str) {
    assert_eq!(stream.head.status, 200, "{:?}", stream.head);
    let told = stream.rest().await;
    assert!(told[0].is("stream.error"), "{told:?}");
    let said = told[0].json();
    assert_eq!((&said["code"], &said["retryable"]), (&code.into(), &true.into()));
    assert!(said["retryInMs"].as_u64().is_some_and(|wait| wait > 9000), "{said}");
    assert_eq!(told[0].retry, said["retryInMs"].as_u64());
}

/// Sends a request on a connection of its own, and leaves it open.
async fn begun(daemon: &Daemon, path: &str) -> TcpStream {
    let mut socket = TcpStream::connect(daemon.http).await.expect("connect");
    socket.write_all(&encode("GET", path, &[], b"")).await.expect("ask");
    socket
}

#[tokio::test]
async fn long_polls_that_are_held_count_as_streams_do() {
    let daemon = Daemon::with(&[("http.max_connections", "3")]).await;
    daemon.write("job", 0..1).await;
    let after = daemon.get(EVENTS).await.json()["cursor"].as_str().expect("a cursor").to_string();
    let path = format!("{EVENTS}?after={after}&wait=60");
    let held = [begun(&daemon, &path).await, begun(&daemon, &path).await];
    let mut stream = daemon.stream("job").await;
    stream.event().await;
    eventually("both polls to be held", async || (daemon.get(&format!("{path}1")).await.status == 400).then_some(()))
        .await;
    let one_more = format!("{EVENTS}?after={after}&wait=1");
    let refused = eventually("a refusal", async || Some(daemon.get(&one_more).await).filter(|a| a.status != 200)).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "server.too_many_streams"));
    assert!(refused.header("Retry-After").is_some_and(|wait| wait.parse::<u64>().is_ok_and(|wait| wait >= 9)));
    is_refused(&mut daemon.stream("job").await, "server.too_many_streams").await;
    assert_eq!(daemon.get(EVENTS).await.status, 200, "one that is not held");
    // whoever is answered makes room
    drop(held);
    eventually("room", async || (daemon.get(&one_more).await.status == 200).then_some(())).await;
    daemon.metric_reaches(&refusals("streams"), 2.0).await;
    daemon.logs_times("http.max_connections", 1).await;
}

#[tokio::test]
async fn an_address_that_comes_too_often_is_told_to_come_back_later_and_others_are_not() {
    let settings = [("http.rate_per_ip", "1"), ("http.rate_burst", "4"), ("http.trusted_proxies", "127.0.0.0/8")];
    let daemon = Daemon::with(&settings).await;
    sqlx::query("INSERT INTO job_events (id, job_id, type) VALUES ('e', 'job', 'x')")
        .execute(&mut daemon.rows().await)
        .await
        .expect("a row");
    let poll = async |client: &str| request(daemon.http, "GET", EVENTS, &[("X-Forwarded-For", client)], b"").await;
    let refused =
        eventually("too many", async || Some(poll("2001:db8:0:1::1").await).filter(|answer| answer.status != 200))
            .await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "server.rate"));
    assert!(refused.header("Retry-After").is_some(), "{refused:?}");
    // the same /64, as far as it has not rested meanwhile
    let stream =
        async || Stream::open(daemon.http, &stream_path("job"), &[("X-Forwarded-For", "2001:db8:0:1::2")]).await;
    let mut stream =
        eventually("a refusal", async || Some(stream().await).filter(|s| s.head.header("X-Jobcast-Replay").is_none()))
            .await;
    is_refused(&mut stream, "server.rate").await;
    assert_eq!(poll("2001:db8:0:2::1").await.status, 200, "another /64");
    daemon.metric_reaches(&refusals("rate"), 2.0).await;
}

#[tokio::test]
async fn streams_of_more_jobs_than_may_be_live_come_back_later_and_idle_jobs_make_room() {
    let daemon = Daemon::with(&[("hub.max_jobs", "2"), ("hub.linger", "10m")]).await;
    for job in ["a", "b", "c"] {
        daemon.write(job, 0..1).await;
    }
    let (mut a, mut b) = (daemon.stream("a").await, daemon.stream("b").await);
    assert_eq!((a.event().await.number(), b.event().await.number()), (0, 0));
    daemon.metric_is("jobcast_channels", 2.0).await;
    is_refused(&mut daemon.stream("c").await, "server.too_many_jobs").await;
    let poll = daemon.get("/runner-jobs/c/events").await;
    assert_eq!((poll.status, poll.code().as_str()), (503, "server.too_many_jobs"));
    assert_eq!(daemon.stream("a").await.event().await.number(), 0, "one more of a live job");
    drop(b);
    eventually("room for another", async || {
        let mut stream = daemon.stream("c").await;
        (stream.event().await.event.as_deref() == Some("step.output")).then_some(())
    })
    .await;
    daemon.write("a", 1..2).await;
    assert_eq!(a.event().await.number(), 1, "whoever was there stays");
    daemon.metric_reaches(&refusals("jobs"), 2.0).await;
    daemon.logs_times("hub.max_jobs", 1).await;
}

#[tokio::test]
async fn a_set_counts_as_each_of_its_jobs_where_live_jobs_are_limited() {
    let daemon = Daemon::with(&[("hub.max_jobs", "3")]).await;
    for job in ["a", "b", "c", "d"] {
        daemon.write(job, 0..1).await;
    }
    let set = "/runner-jobs/events/stream?job=a&job=b";
    let mut first = Stream::open(daemon.http, set, &[]).await;
    first.take(2).await;
    let mut single = daemon.stream("c").await;
    assert_eq!(single.event().await.number(), 0);
    is_refused(&mut daemon.stream("d").await, "server.too_many_jobs").await;
    is_refused(
        &mut Stream::open(daemon.http, "/runner-jobs/events/stream?job=a&job=d", &[]).await,
        "server.too_many_jobs",
    )
    .await;
    assert_eq!(Stream::open(daemon.http, set, &[]).await.take(2).await.len(), 2, "one more of the same set");
}

#[tokio::test]
async fn reads_of_history_wait_in_line_and_new_streams_are_turned_away_when_it_is_full() {
    let server = crate::support::Postgres::start().await;
    let schema = crate::support::daemon::run(&["schema", "postgres"], &[]).await;
    server.execute(&String::from_utf8_lossy(&schema.stdout)).await;
    // With one worker, requests come to the line in the order in which they were sent.
    let line = [("http.max_replays", "1"), ("http.max_queued_replays", "1"), ("http.workers", "1")];
    let settings = [&line[..], &[("ingest.enabled", "true")]].concat();
    let daemon = Daemon::on("postgres", &server.url("postgres"), &settings).await;
    for job in ["a", "b", "c"] {
        daemon.write(job, 0..3).await;
    }
    let mut open = daemon.stream("a").await;
    assert_eq!(numbers(&open.take(3).await), [0, 1, 2]);
    let mut blocker = server.connect().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE job_events IN ACCESS EXCLUSIVE MODE").execute(&mut blocker).await.expect("a lock");
    let mut waiting = Vec::new();
    for job in ["b", "c"] {
        waiting.push(begun(&daemon, &stream_path(job)).await);
    }
    // one reads, the next waits in line, and a third is told to come back
    let mut refused =
        eventually("a full line", async || Some(daemon.stream("d").await).filter(|s| s.head.status == 200)).await;
    is_refused(&mut refused, "server.too_many_replays").await;
    daemon.metric_reaches(&refusals("replays"), 1.0).await;
    daemon.logs_times("http.max_queued_replays", 1).await;
    sqlx::raw_sql("COMMIT").execute(&mut blocker).await.expect("no lock");
    for socket in waiting {
        let mut stream = Stream::on(socket).await.expect("an answer");
        assert_eq!(numbers(&stream.take(3).await), [0, 1, 2]);
    }
    daemon.write("a", 3..4).await;
    assert_eq!(open.event().await.number(), 3, "whoever was there stays");
}

#[tokio::test]
async fn a_request_may_bring_so_many_events_and_no_more() {
    let daemon = Daemon::with(&[("ingest.max_events", "3")]).await;
    let events = |count: u64| Value::from_iter((0..count).map(numbered));
    let refused = daemon.send("POST", EVENTS, &events(4)).await;
    assert_eq!((refused.status, refused.code().as_str()), (413, "ingest.too_many"));
    daemon.metric_is(&refusals("body"), 1.0).await;
    assert_eq!(daemon.get(EVENTS).await.code(), "job.not_found", "none was stored");
    assert_eq!(daemon.send("POST", EVENTS, &events(3)).await.status, 201);
}

#[tokio::test]
async fn everything_that_is_parsed_is_bounded_and_what_is_beyond_is_said() {
    let daemon = Daemon::start().await;
    let names: Vec<String> = (0..70).map(|number| format!("X-{number}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
    let large = "x".repeat(33 * 1024);
    let long = format!("{EVENTS}?after={}", "x".repeat(33 * 1024));
    let wide = format!("{EVENTS}?{}", "a=1&".repeat(300));
    for (path, headers, status, code) in [
        (EVENTS, &many[..], 431, "request.headers"),
        (EVENTS, &[("Cookie", large.as_str())], 431, "request.headers"),
        (&long, &[], 414, "request.target"),
        (&wide, &[], 400, "request.query"),
    ] {
        let answer = request(daemon.http, "GET", path, headers, b"").await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code));
    }
    daemon.metric_is(&refusals("head"), 4.0).await;
    let endless = [&b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "[..], &vec![b'x'; 200 * 1024]].concat();
    let mut answer = raw(daemon.http, &endless).await;
    assert!(answer.is_empty() || Answer::head(&mut answer).is_some_and(|head| head.status == 431));
    daemon.metric_is(&refusals("head"), 5.0).await;
}

#[tokio::test]
async fn fifty_types_may_be_named_and_one_more_is_refused_on_every_address_that_takes_them() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..1).await;
    let types = |count: usize| {
        let names: Vec<String> = (1..count).map(|number| format!("type-{number}")).chain(["step.*".into()]).collect();
        names.join(",")
    };
    for path in [EVENTS, &stream_path("job"), "/runner-jobs/events?job=job", "/runner-jobs/events/stream?job=job"] {
        let separator = if path.contains('?') { '&' } else { '?' };
        let asked =
            async |count| Stream::open(daemon.http, &format!("{path}{separator}types={}", types(count)), &[]).await;
        let mut allowed = asked(50).await;
        assert_eq!(allowed.head.status, 200, "{path}");
        if path.contains("/stream") {
            assert_eq!(allowed.event().await.number(), 0, "{path}: the last one counts");
        }
        let refused = asked(51).await.head;
        assert_eq!((refused.status, refused.code().as_str()), (400, "request.query"), "{path}");
        assert!(refused.text().contains("more than 50 types"), "{path}: {}", refused.text());
    }
}

#[tokio::test]
async fn as_many_jobs_as_a_set_may_have_are_named_by_uuids_in_one_address_with_a_cursor_that_names_them_all() {
    let daemon = Daemon::start().await;
    let jobs: Vec<String> = (0..200).map(|number| uuid::Uuid::from_u128(number << 90 | number).to_string()).collect();
    for job in &jobs {
        daemon.write(job, 0..1).await;
    }
    let named: Vec<String> = jobs.iter().map(|job| format!("job={job}")).collect();
    let set = format!("/runner-jobs/events{{}}?{}&ids=full", named.join("&"));
    let poll = set.replace("{}", "");
    let first = daemon.get(&format!("{poll}&limit=77")).await;
    assert_eq!(first.status, 200, "{}", first.text());
    let cursor = first.json()["cursor"].as_str().expect("a cursor").to_string();
    let rest = daemon.get(&format!("{poll}&after={cursor}&limit=1000")).await.json();
    assert_eq!(rest["events"].as_array().map(Vec::len), Some(123));
    let stream = set.replace("{}", "/stream");
    let mut by_address = Stream::open(daemon.http, &format!("{stream}&lastEventId={cursor}"), &[]).await;
    let mut by_header = Stream::open(daemon.http, &stream, &[("Last-Event-ID", &cursor)]).await;
    assert_eq!((by_address.take(123).await.len(), by_header.take(123).await.len()), (123, 123));
}

#[tokio::test]
async fn connections_that_carry_no_stream_are_counted_and_bounded_for_an_address() {
    let daemon = Daemon::with(&[("http.max_connections_per_ip", "1")]).await;
    daemon.write("job", 0..1).await;
    daemon.metric_is("jobcast_open_connections", 0.0).await;
    let kept = async || {
        let mut socket = begun(&daemon, "/openapi.json").await;
        let mut byte = [0];
        matches!(socket.read(&mut byte).await, Ok(1)).then_some(socket)
    };
    let mut open = Vec::new();
    for _ in 0..17 {
        open.push(kept().await.expect("an answer"));
    }
    daemon.metric_is("jobcast_open_connections", 17.0).await;
    assert!(kept().await.is_none(), "one too many is closed");
    daemon.metric_is(&refusals("address_connections"), 1.0).await;
    open.pop();
    eventually("room", async || kept().await).await;
}

#[tokio::test]
async fn connections_in_all_are_bounded_above_the_streams_and_one_that_goes_makes_room() {
    // A silent one is kept for as long as a head may take.
    let daemon = Daemon::with(&[("http.max_connections", "1"), ("http.header_timeout", "10m")]).await;
    let _ = rlimit::increase_nofile_limit(4000);
    daemon.write("job", 0..1).await;
    daemon.metric_is("jobcast_open_connections", 0.0).await;
    let mut open = Vec::new();
    for _ in 0..1025 {
        open.push(TcpStream::connect(daemon.http).await.expect("connect"));
    }
    daemon.metric_is("jobcast_open_connections", 1025.0).await;
    let mut beyond = TcpStream::connect(daemon.http).await.expect("connect");
    let closed = tokio::time::timeout(crate::support::PATIENCE, beyond.read(&mut [0])).await.expect("an end");
    assert!(matches!(closed, Ok(0) | Err(_)), "one too many is closed: {closed:?}");
    daemon.metric_is(&refusals("connections"), 1.0).await;
    assert_eq!(daemon.ask_admin("/readyz").await.status, 200, "the admin listener has connections of its own");
    open.pop();
    daemon.metric_is("jobcast_open_connections", 1024.0).await;
    // Whoever gets in then is served, and not kept, since half of all connections are open.
    let answer = raw(daemon.http, &encode("GET", EVENTS, &[], b"")).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    daemon.logs_times("as many connections are open", 1).await;
}

#[tokio::test]
async fn a_client_that_goes_on_sending_behind_a_poll_or_a_stream_is_closed() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..1).await;
    let after = daemon.get(EVENTS).await.json()["cursor"].as_str().expect("a cursor").to_string();
    for path in [format!("{EVENTS}?after={after}&wait=60"), stream_path("job")] {
        let mut socket = begun(&daemon, &path).await;
        let more = encode("GET", "/openapi.json", &[], b"").repeat(1000);
        // Far more than the other side could ever hold.
        let send = async { while socket.write_all(&more).await.is_ok() {} };
        tokio::time::timeout(crate::support::PATIENCE, send).await.expect("an end");
    }
    // The stream may have left actix by then; whoever delivers it has a bound of his own.
    daemon.metric_reaches(&refusals("pipelined"), 1.0).await;
    assert_eq!(daemon.get(EVENTS).await.status, 200);
}
