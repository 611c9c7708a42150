//! The bytes on the wire.

use crate::limits::refusals;
use crate::support::daemon::stream_path;
use crate::support::http::{encode, exchange, raw, request};
use crate::support::{Answer, Daemon, Stream, numbers};
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_stream_begins_with_just_this_head_and_its_events_are_just_these_lines() {
    let daemon = Daemon::with(&[("stream.retry", "2500ms")]).await;
    daemon.write("job", 7..8).await;
    let mut stream = daemon.stream("job").await;
    assert_eq!(stream.head.status, 200);
    for (name, value) in [
        ("Content-Type", "text/event-stream; charset=utf-8"),
        ("Cache-Control", "no-cache, no-store, no-transform"),
        ("X-Accel-Buffering", "no"),
        ("X-Jobcast-Replay", "source"),
        ("X-Jobcast-Unique", "id"),
    ] {
        assert_eq!(stream.head.header(name), Some(value), "{name}");
    }
    let id = stream.head.header("X-Jobcast-Connection").expect("a connection's id").to_string();
    assert!(!id.is_empty());
    let opening = stream.next().await.expect("open");
    assert_eq!((opening.retry, opening.comments.len()), (Some(2500), 1));
    let event = stream.event().await;
    assert!(event.is("step.output"));
    let data = event.data.clone().expect("data");
    let (before, after) = data.split_once("\"timestamp\":\"").expect("a timestamp");
    assert_eq!(before, r#"{"id":"e-7","jobId":"job","stepId":"s","type":"step.output","#);
    assert!(after[24..].starts_with(r#"","actor":null,"payload":{"n":7}}"#), "{data}");

    // once the events that there were have been sent, it says so
    let live = stream.next().await.expect("open");
    assert_eq!((live.data, live.id, live.comments), (None, None, vec!["live".to_string()]));

    // the same answer to a HEAD, at once and without a stream
    let head = request(daemon.http, "HEAD", &stream_path("job"), &[], b"").await;
    assert_eq!((head.status, head.header("Content-Type")), (200, Some("text/event-stream; charset=utf-8")));
    daemon.has_subscribers(1).await;
}

#[tokio::test]
async fn whoever_is_served_from_the_ring_is_told_that_it_is_live_after_what_the_ring_held() {
    let daemon = Daemon::start().await;
    for job in ["one", "a", "b"] {
        daemon.write(job, 0..3).await;
    }
    let set = "/runner-jobs/events/stream?job=a&job=b".to_string();
    for (path, job, count) in [(stream_path("one"), "one", 3), (set, "a", 6)] {
        let mut first = Stream::open(daemon.http, &path, &[]).await;
        first.take(count).await;
        let mut late = Stream::open(daemon.http, &path, &[]).await;
        assert_eq!(late.replay(), "ring");
        let mut events = 0;
        loop {
            let message = late.next().await.expect("open");
            events += usize::from(message.id.is_some());
            if message.comments.iter().any(|comment| comment == "live") {
                break;
            }
        }
        assert_eq!(events, count);
        daemon.write(job, 3..4).await;
        assert_eq!(late.event().await.number(), 3);
    }
}

#[tokio::test]
async fn payload_only_streams_speak_as_the_old_api_did() {
    let daemon = Daemon::with(&[("stream.data", "payload")]).await;
    daemon.write("job", 0..2).await;
    let mut stream = daemon.stream("job").await;
    for number in 0..2 {
        assert_eq!(stream.event().await.data.as_deref(), Some(format!(r#"{{"stepId":"s","n":{number}}}"#).as_str()));
    }
}

#[tokio::test]
async fn requests_before_a_stream_on_the_same_connection_are_answered_in_order() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..2).await;
    let mut socket = TcpStream::connect(daemon.http).await.expect("connect");
    let poll = encode("GET", "/runner-jobs/job/events?limit=1", &[], b"");
    let stream = encode("GET", &stream_path("job"), &[], b"");
    socket.write_all(&[&poll[..], &poll, &stream].concat()).await.expect("ask");
    let mut received = Vec::new();
    for _ in 0..2 {
        let answer = eventually_head(&mut socket, &mut received).await;
        let length: usize = answer.header("Content-Length").expect("length").parse().expect("a number");
        while received.len() < length {
            socket.read_buf(&mut received).await.expect("a body");
        }
        let body: serde_json::Value = serde_json::from_slice(&received[..length]).expect("JSON");
        assert_eq!(body["events"][0]["payload"]["n"], 0);
        received.drain(..length);
    }
    // the stream comes next, and lives on after its socket was handed over
    while !String::from_utf8_lossy(&received).contains("\"n\":1}") {
        assert!(socket.read_buf(&mut received).await.expect("a stream") > 0);
    }
    daemon.write("job", 2..3).await;
    while !String::from_utf8_lossy(&received).contains("\"n\":2}") {
        assert!(socket.read_buf(&mut received).await.expect("a stream") > 0);
    }
}

async fn eventually_head(socket: &mut TcpStream, received: &mut Vec<u8>) -> Answer {
    loop {
        if let Some(head) = Answer::head(received) {
            return head;
        }
        assert!(socket.read_buf(received).await.expect("an answer") > 0, "closed");
    }
}

#[tokio::test]
async fn http_1_0_gets_a_stream_without_chunks() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..2).await;
    let mut socket = TcpStream::connect(daemon.http).await.expect("connect");
    socket.write_all(format!("GET {} HTTP/1.0\r\n\r\n", stream_path("job")).as_bytes()).await.expect("ask");
    let mut stream = Stream::on(socket).await.expect("an answer");
    assert!(!stream.head.is_chunked());
    assert_eq!(numbers(&stream.take(2).await), [0, 1]);
    daemon.write("job", 2..4).await;
    assert_eq!(numbers(&stream.take(2).await), [2, 3]);
    daemon.set_status("job", "COMPLETED").await;
    assert_eq!(stream.rest().await.len(), 1);
}

#[tokio::test]
async fn what_is_not_there_or_not_allowed_is_said_with_a_code() {
    let daemon = Daemon::start().await;
    for (method, path, status, code) in [
        ("GET", "/nothing", 404, "request.not_found"),
        ("GET", "/runner-jobs/", 404, "request.not_found"),
        ("GET", "/runner-jobs//events", 404, "request.not_found"),
        ("DELETE", "/runner-jobs/job/events", 405, "request.method"),
        ("POST", "/runner-jobs/job/events/stream", 405, "request.method"),
        ("POST", "/runner-jobs", 405, "request.method"),
        ("POST", "/", 405, "request.method"),
        ("GET", "/runner-jobs/a%0Ab/events", 400, "request.job_id"),
        ("GET", "/metrics", 404, "request.not_found"),
    ] {
        let answer = request(daemon.http, method, path, &[], b"").await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{method} {path}");
    }
    let hidden = Daemon::with(&[("http.live_page", "false"), ("http.stream_path", "/live/{job_id}")]).await;
    hidden.write("job", 0..1).await;
    assert_eq!(hidden.get("/").await.status, 404);
    assert_eq!(hidden.get(&stream_path("job")).await.status, 404);
    assert_eq!(Stream::open(hidden.http, "/live/job", &[]).await.event().await.number(), 0);
}

#[tokio::test]
async fn any_url_segment_of_1_to_200_characters_names_a_job() {
    let daemon = Daemon::start().await;
    for (segment, name) in [
        ("a%2Fb", "a/b".to_string()),
        ("%F0%9F%A6%80%20x", "🦀 x".into()),
        ("build-7.~_!$&'()*+,;=:@", "build-7.~_!$&'()*+,;=:@".into()),
        (&"%C3%BC".repeat(200), "ü".repeat(200)),
    ] {
        daemon.write(segment, 0..2).await;
        let mut stream = daemon.stream(segment).await;
        let first = stream.event().await;
        assert_eq!(first.json()["jobId"], name.as_str());
        assert_eq!(daemon.stream_after(segment, first.cursor()).await.event().await.number(), 1);
    }
    assert_eq!(daemon.get(&format!("/runner-jobs/{}/events", "x".repeat(201))).await.code(), "request.job_id");
}

#[tokio::test]
async fn what_is_served_is_described_and_the_page_loads_nothing_from_elsewhere() {
    let daemon = Daemon::start().await;
    let described = daemon.get("/openapi.json").await.json();
    assert!(described["openapi"].as_str().is_some_and(|version| version.starts_with("3.")));
    let paths = described["paths"].as_object().expect("paths");
    for path in [
        "/",
        "/runner-jobs",
        "/runner-jobs/{job_id}",
        "/runner-jobs/{job_id}/events",
        "/runner-jobs/{job_id}/events/stream",
        "/runner-jobs/events",
        "/runner-jobs/events/stream",
        "/openapi.json",
    ] {
        assert!(paths.contains_key(path), "{path} is not described");
    }
    let page = daemon.get("/").await;
    let policy = page.header("Content-Security-Policy").expect("a policy");
    for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'self'"] {
        assert!(policy.contains(part) && !policy.contains("unsafe"), "{policy}");
    }
    assert!(!page.text().contains("<style") && !page.text().contains("style="), "nothing stands in the line");
    for answer in [page, daemon.get("/runner-jobs").await, daemon.get("/nothing").await] {
        assert_eq!(answer.header("X-Content-Type-Options"), Some("nosniff"));
        assert!(answer.header("Server").is_none() && !answer.text().contains(env!("CARGO_PKG_VERSION")));
    }
}

#[tokio::test]
async fn who_does_not_finish_his_request_is_not_waited_for() {
    let daemon = Daemon::with(&[("http.header_timeout", "300ms")]).await;
    let answer = raw(daemon.http, b"GET / HTTP/1.1\r\nHost: localhost\r\n").await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{answer:?}");
}

#[tokio::test]
async fn streams_beyond_the_limit_are_told_to_come_back_later_and_others_get_a_429() {
    let daemon = Daemon::with(&[("http.max_connections", "3"), ("http.max_connections_per_ip", "2")]).await;
    daemon.write("job", 0..1).await;
    let open = [daemon.stream("job").await, daemon.stream("job").await];
    daemon.has_subscribers(2).await;
    let mut refused = daemon.stream("job").await;
    assert_eq!(refused.head.status, 200);
    let told = refused.rest().await;
    assert!(told[0].is("stream.error"), "{told:?}");
    let said = told[0].json();
    assert_eq!((&said["code"], &said["retryable"]), (&"server.too_many_from_address".into(), &true.into()));
    assert!(said["retryInMs"].as_u64().is_some_and(|wait| wait > 9000), "{said}");
    assert_eq!(told[0].retry, said["retryInMs"].as_u64());
    let plain = request(daemon.http, "GET", &stream_path("job"), &[("Accept", "application/json")], b"").await;
    assert_eq!((plain.status, plain.code().as_str()), (429, "server.too_many_from_address"));
    assert!(plain.header("Retry-After").is_some());
    daemon.metric_is(&refusals("address_streams"), 2.0).await;
    // what is closed makes room
    drop(open);
    daemon.has_subscribers(0).await;
    assert_eq!(daemon.stream("job").await.event().await.number(), 0);
}

#[tokio::test]
async fn the_limit_for_an_address_counts_clients_behind_a_trusted_network_of_proxies() {
    let daemon = Daemon::with(&[("http.trusted_proxies", "127.0.0.0/8"), ("http.max_connections_per_ip", "1")]).await;
    daemon.write("job", 0..1).await;
    let open =
        async |client: &str| Stream::open(daemon.http, &stream_path("job"), &[("X-Forwarded-For", client)]).await;
    let (mut first, mut other) = (open("192.0.2.1").await, open("192.0.2.2").await);
    assert_eq!((first.event().await.number(), other.event().await.number()), (0, 0));
    assert!(open("203.0.113.9, 192.0.2.1").await.rest().await[0].is("stream.error"));
}

#[tokio::test]
async fn a_caller_that_refuses_event_streams_gets_a_plain_status() {
    let daemon = Daemon::with(&[("http.max_connections_per_ip", "1")]).await;
    daemon.write("job", 0..1).await;
    let mut open = daemon.stream("job").await;
    open.event().await;
    for (accept, status) in [("*/*", 200), ("text/event-stream;q=0, */*", 429), ("text/*;q=0.5", 200)] {
        let answer = request(daemon.http, "GET", &stream_path("job"), &[("Accept", accept)], b"").await;
        assert_eq!(answer.status, status, "{accept}");
    }
}

#[tokio::test]
async fn an_error_never_breaks_the_connection_of_the_next_request() {
    let daemon = Daemon::start().await;
    let bad = encode("POST", "/runner-jobs/job/events", &[("Content-Type", "application/json")], b"{");
    let last = encode("GET", "/openapi.json", &[("Connection", "close")], b"");
    let answer = exchange(daemon.http, &[&bad[..], &last].concat()).await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("HTTP/1.1 200 OK"), "{}", answer.text());
    daemon.has_subscribers(0).await;
}

#[tokio::test]
async fn the_client_is_served_without_the_live_page_too_and_knows_this_daemons_paths() {
    let paths = [("http.stream_path", "/live/{job_id}"), ("http.events_path", "/past/{job_id}")];
    let daemon = Daemon::with(&[("http.live_page", "false"), paths[0], paths[1]]).await;
    assert_eq!(daemon.get("/").await.status, 404);
    let client = daemon.get("/jobcast.js").await;
    assert_eq!(client.header("Content-Type"), Some("text/javascript; charset=utf-8"));
    for (_, path) in paths {
        assert!(client.text().contains(&format!("\"{path}\"")), "{path}");
    }
    let element = daemon.get("/jobcast-log.js").await;
    assert!(element.status == 200 && element.text().contains("./jobcast.js"), "{}", element.text());
}

#[tokio::test]
async fn a_page_may_give_its_cursor_in_the_address_and_the_header_of_a_reconnect_wins() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..10).await;
    let history = daemon.stream("job").await.take(10).await;
    let path = format!("{}?lastEventId={}", stream_path("job"), history[3].cursor());
    let mut first = Stream::open(daemon.http, &path, &[]).await;
    assert_eq!(numbers(&first.take(6).await), [4, 5, 6, 7, 8, 9]);
    // a browser sends the address again as it was, and the header beside it
    let mut again = Stream::open(daemon.http, &path, &[("Last-Event-ID", history[7].cursor())]).await;
    assert_eq!(numbers(&again.take(2).await), [8, 9]);
}

#[tokio::test]
async fn requests_that_are_no_http_get_a_400_or_nothing_and_the_daemon_lives() {
    let daemon = Daemon::start().await;
    let mut rng = rand::rngs::StdRng::seed_from_u64(11);
    for number in 0..200 {
        let mut bytes = encode("GET", &stream_path("job"), &[("Last-Event-ID", "x")], b"");
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..bytes.len() - 4);
            bytes[at] = rng.random();
        }
        bytes.extend_from_slice(b"\r\n\r\n");
        let mut socket = TcpStream::connect(daemon.http).await.expect("connect");
        let _ = socket.write_all(&bytes).await;
        if number % 20 == 0 {
            let mut answer = raw(daemon.http, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").await;
            assert!(answer.is_empty() || Answer::head(&mut answer).is_some_and(|head| head.status == 400));
        }
    }
    assert_eq!(daemon.get("/runner-jobs").await.status, 200);
}
