//! Requests as proxies, pages of others, monitors and mischief send them: the names, origins, methods and forms that the
//! listeners take.

use crate::limits::refusals;
use crate::support::daemon::{run, stream_path};
use crate::support::http::{encode, exchange, raw, request};
use crate::support::{Daemon, PATIENCE, Stream, numbers};
use serde_json::json;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const EVENTS: &str = "/runner-jobs/job/events";
const JSON: (&str, &str) = ("Content-Type", "application/json");
const ONE: &[u8] = b"{\"type\":\"x\"}";

/// A request to a host by this name.
async fn by_name(to: SocketAddr, method: &str, path: &str, host: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let body = if method == "POST" { ONE } else { b"" };
    let bytes = encode(method, path, &[&[("Connection", "close"), JSON], headers].concat(), body);
    let text = String::from_utf8(bytes).expect("text").replacen("Host: localhost", &format!("Host: {host}"), 1);
    let answer = exchange(to, text.as_bytes()).await;
    (answer.status, if answer.status < 400 { String::new() } else { answer.code() })
}

#[tokio::test]
async fn a_page_that_rebinds_its_name_to_loopback_gets_nothing_from_either_listener() {
    let daemon = Daemon::start().await;
    let refused = (421, "request.host".to_string());
    let foreign = ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1"];
    for host in foreign.into_iter().chain(["localhost:x", "localhost:80@evil.example"]) {
        let origin = ("Origin", "http://evil.example:8080");
        assert_eq!(by_name(daemon.http, "POST", EVENTS, host, &[origin]).await, refused, "{host}");
        assert_eq!(by_name(daemon.http, "GET", "/runner-jobs", host, &[]).await, refused, "{host}");
        assert_eq!(by_name(daemon.http, "GET", &stream_path("job"), host, &[]).await, refused, "{host}");
        assert_eq!(by_name(daemon.admin, "GET", "/metrics", host, &[]).await, refused, "{host}");
    }
    // the target counts as the header does
    let absolute = b"GET http://evil.example/runner-jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(exchange(daemon.http, absolute).await.code(), "request.host");
    assert_eq!(daemon.get(EVENTS).await.code(), "job.not_found", "nothing was stored");
    let own = daemon.http.to_string();
    for host in ["localhost", "LocalHost:99", "127.0.0.1", "[::1]:8080", &own] {
        assert_eq!(by_name(daemon.http, "GET", "/runner-jobs", host, &[]).await.0, 200, "{host}");
    }
    // no browser leaves the name out
    assert_eq!(
        raw(daemon.http, b"GET /runner-jobs HTTP/1.1\r\nConnection: close\r\n\r\n").await[..12],
        *b"HTTP/1.1 400"
    );
    assert_eq!(raw(daemon.http, b"GET /runner-jobs HTTP/1.0\r\n\r\n").await[..12], *b"HTTP/1.0 200");
    // counted, and said once
    daemon.metric_is(&refusals("host"), 29.0).await;
    daemon.logs_times("http.hosts", 1).await;
}

#[tokio::test]
async fn a_listener_answers_to_the_names_that_are_set() {
    let daemon = Daemon::with(&[("http.hosts", "jobs.example.org, other.example.org")]).await;
    for (host, status) in
        [("jobs.example.org", 200), ("JOBS.example.org.:443", 200), ("localhost", 200), ("x.org", 421)]
    {
        assert_eq!(by_name(daemon.http, "GET", "/runner-jobs", host, &[]).await.0, status, "{host}");
    }
}

#[tokio::test]
async fn ingest_without_a_token_takes_nothing_that_came_through_a_proxy() {
    let (open, guarded) = (Daemon::start().await, Daemon::with(&[("ingest.token", "hunter2")]).await);
    for header in
        [("X-Forwarded-For", "192.0.2.1"), ("Forwarded", "for=192.0.2.1"), ("Via", "1.1 proxy"), ("X-Real-IP", "::1")]
    {
        let refused = request(open.http, "POST", EVENTS, &[JSON, header], ONE).await;
        assert_eq!((refused.status, refused.code().as_str()), (403, "ingest.forwarded"), "{header:?}");
        let status = request(open.http, "PUT", "/runner-jobs/job", &[JSON, header], b"{\"status\":\"RUNNING\"}").await;
        assert_eq!(status.code(), "ingest.forwarded");
        let token = ("Authorization", "Bearer hunter2");
        assert_eq!(request(guarded.http, "POST", EVENTS, &[JSON, header, token], ONE).await.status, 201);
    }
    assert_eq!(open.get(EVENTS).await.code(), "job.not_found", "nothing was stored");
    open.metric_is(&refusals("forwarded"), 8.0).await;
    guarded.metric_is(&refusals("forwarded"), 0.0).await;
    assert_eq!(request(open.http, "POST", EVENTS, &[JSON], ONE).await.status, 201);
}

#[tokio::test]
async fn pages_of_named_origins_may_watch_with_the_usual_headers_and_no_others() {
    let origins = ("http.cors.origins", "https://app.example.org, http://localhost:5173");
    let daemon = Daemon::with(&[origins]).await;
    daemon.write("job", 0..1).await;
    let preflight = async |to: &Daemon, origin: &str, headers: &str| {
        let asked =
            [("Origin", origin), ("Access-Control-Request-Method", "GET"), ("Access-Control-Request-Headers", headers)];
        request(to.http, "OPTIONS", &stream_path("job"), &asked, b"").await
    };
    let usual = "authorization,baggage,last-event-id,sentry-trace,traceparent,tracestate,x-csrf-token,x-requested-with";
    let allowed = preflight(&daemon, "https://app.example.org", usual).await;
    assert_eq!((allowed.status, allowed.header("Access-Control-Allow-Origin")), (200, Some("https://app.example.org")));
    assert_eq!(allowed.header("Access-Control-Allow-Credentials"), None);
    assert!(allowed.header("Vary").is_some_and(|vary| vary.contains("Origin")), "{allowed:?}");
    for (origin, headers) in [("https://evil.example", usual), ("https://app.example.org", "x-other"), ("null", usual)]
    {
        let refused = preflight(&daemon, origin, headers).await;
        assert_eq!((refused.status, refused.code().as_str()), (400, "request.cors"), "{origin} {headers}");
        assert!(refused.header("Access-Control-Allow-Origin").is_none() && refused.header("Vary").is_some());
    }
    for (origin, seen) in [("https://app.example.org", Some("https://app.example.org")), ("https://evil.example", None)]
    {
        for path in ["/runner-jobs", "/nothing"] {
            let answer = request(daemon.http, "GET", path, &[("Origin", origin)], b"").await;
            assert_eq!(answer.header("Access-Control-Allow-Origin"), seen, "{origin} {path}");
            assert!(answer.header("Vary").is_some_and(|vary| vary.contains("Origin")), "{answer:?}");
        }
        let stream = Stream::open(daemon.http, &stream_path("job"), &[("Origin", origin)]).await;
        assert_eq!(stream.head.header("Access-Control-Allow-Origin"), seen, "{origin}");
    }
    let more = [origins, ("http.cors.headers", "x-mine"), ("http.cors.credentials", "true"), ("ingest.token", "t")];
    let mine = Daemon::with(&more).await;
    let allowed = preflight(&mine, "http://localhost:5173", "x-mine").await;
    assert_eq!((allowed.status, allowed.header("Access-Control-Allow-Credentials")), (200, Some("true")));
    assert_eq!(preflight(&mine, "http://localhost:5173", "traceparent").await.code(), "request.cors");
}

#[tokio::test]
async fn an_origin_that_never_matches_stops_the_start() {
    for (origins, credentials) in [
        ("https://app.example.org/", "false"),
        ("https://app.example.org/page", "false"),
        ("app.example.org", "false"),
        ("https://*.example.org", "false"),
        ("https://App.example.org", "false"),
        ("https://app.example.org:443", "false"),
        ("*", "true"),
    ] {
        let settings = [("http.cors.origins", origins), ("http.cors.credentials", credentials)];
        let output = run(&["serve"], &settings).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{origins}: {said}");
        assert!(
            said.contains("http.cors.origins, in JOBCAST_HTTP__CORS__ORIGINS: ") && said.contains(origins),
            "{said}"
        );
    }
}

#[tokio::test]
async fn head_is_answered_as_get_and_every_405_says_what_is_allowed() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..2).await;
    let public = ["/", "/page.css", "/jobcast.js", "/openapi.json", "/runner-jobs", EVENTS];
    let all = public.map(|path| (daemon.http, path)).into_iter();
    for (to, path) in
        all.chain(["/healthz", "/readyz", "/metrics", "/settings", "/debug/channels"].map(|path| (daemon.admin, path)))
    {
        let (get, head) = (request(to, "GET", path, &[], b"").await, request(to, "HEAD", path, &[], b"").await);
        assert_eq!((get.status, head.status, head.body.len()), (200, 200, 0), "{path}");
        assert_eq!(get.header("Content-Type"), head.header("Content-Type"), "{path}");
        assert!(head.header("Content-Length").is_some_and(|length| length != "0"), "{path}: {head:?}");
        let other = request(to, "DELETE", path, &[], b"").await;
        assert_eq!((other.status, other.code().as_str()), (405, "request.method"), "{path}");
        let allow = other.header("Allow").unwrap_or_default().to_string();
        assert!(allow.contains("GET") && allow.contains("HEAD"), "{path}: {allow}");
    }
    let put = request(daemon.http, "GET", "/runner-jobs/job", &[], b"").await;
    assert!(put.status != 405 || put.header("Allow").is_some(), "{put:?}");
    let nothing = request(daemon.admin, "GET", "/nothing", &[], b"").await;
    assert_eq!((nothing.status, nothing.code().as_str()), (404, "request.not_found"));
}

#[tokio::test]
async fn an_offer_to_speak_another_protocol_is_ignored_and_the_stream_is_whole() {
    let daemon = Daemon::start().await;
    for (number, headers) in [
        &[("Connection", "Upgrade"), ("Upgrade", "websocket")][..],
        &[("Upgrade", "websocket")],
        &[("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAAQAAP__")],
        &[("Connection", "upgrade")],
    ]
    .into_iter()
    .enumerate()
    {
        let job = format!("job-{number}");
        daemon.write(&job, 0..3).await;
        let mut stream = Stream::open(daemon.http, &stream_path(&job), headers).await;
        assert_eq!(stream.head.status, 200);
        let seen = stream.take(3).await;
        let live = ["e-3", "e-4"].map(|id| json!({ "id": format!("{job}-{id}"), "type": "x", "payload": { "n": 3 } }));
        assert_eq!(daemon.send("POST", &format!("/runner-jobs/{job}/events"), &json!(live)).await.status, 201);
        assert_eq!(numbers(&[seen, stream.take(2).await].concat()), [0, 1, 2, 3, 3], "{headers:?}");
        let page = request(daemon.http, "GET", "/openapi.json", headers, b"").await;
        assert_eq!((page.status, page.header("Connection")), (200, Some("close")), "{headers:?}");
        page.json();
    }
}

#[tokio::test]
async fn a_stream_of_http_1_0_with_keep_alive_is_closed_at_its_end_which_is_the_only_one_there_is() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..2).await;
    let mut socket = TcpStream::connect(daemon.http).await.expect("connect");
    let ask = format!("GET {} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", stream_path("job"));
    socket.write_all(ask.as_bytes()).await.expect("ask");
    let mut stream = Stream::on(socket).await.expect("an answer");
    assert_eq!(numbers(&stream.take(2).await), [0, 1]);
    daemon.set_status("job", "COMPLETED").await;
    assert!(stream.rest().await.iter().any(|message| message.is("stream.complete")));
}

#[tokio::test]
async fn an_address_that_is_no_percent_encoded_utf_8_is_refused_and_names_no_other_job() {
    let daemon = Daemon::start().await;
    daemon.write("%EF%BF%BD", 0..1).await;
    for segment in ["%FF", "%C3%28", "%", "%4", "%zz", "a%ED%A0%80"] {
        for path in [format!("/runner-jobs/{segment}/events"), stream_path(segment)] {
            let answer = daemon.get(&path).await;
            assert_eq!((answer.status, answer.code().as_str()), (400, "request.job_id"), "{path}");
        }
        assert_eq!(daemon.get(&format!("{EVENTS}?after={segment}")).await.status, 400, "{segment}");
    }
    assert_eq!(daemon.get("/runner-jobs//events").await.status, 404);
}

/// Sends the beginning of something on a connection that may have had requests, and returns what comes until it is closed.
async fn left_waiting(to: SocketAddr, requests: &[u8], beginning: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(to).await.expect("connect");
    let mut received = Vec::new();
    if !requests.is_empty() {
        socket.write_all(requests).await.expect("ask");
        assert!(socket.read_buf(&mut received).await.expect("an answer") > 0);
        assert!(received.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&received));
    }
    socket.write_all(beginning).await.expect("a beginning");
    timeout(PATIENCE, socket.read_to_end(&mut received)).await.expect("an end").expect("a proper one");
    received
}

#[tokio::test]
async fn every_wait_for_a_peer_has_an_end() {
    let settings = [("http.header_timeout", "2s"), ("http.body_timeout", "2s")];
    let daemon = Daemon::with(&settings).await;
    daemon.write("job", 0..1).await;
    let whole = encode("GET", "/openapi.json", &[], b"");
    // a second head; a body that nobody wants, with and without a length; a body that is wanted
    left_waiting(daemon.http, &whole, b"GET / HT").await;
    left_waiting(daemon.http, &whole, b"\r\n").await;
    let chunks = b"GET /runner-jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    left_waiting(daemon.http, b"", chunks).await;
    left_waiting(daemon.http, b"", b"GET /runner-jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx")
        .await;
    let slow =
        format!("POST {EVENTS} HTTP/1.1\r\nHost: localhost\r\n{}: {}\r\nContent-Length: 100\r\n\r\n{{", JSON.0, JSON.1);
    let answer = left_waiting(daemon.http, b"", slow.as_bytes()).await;
    let text = String::from_utf8_lossy(&answer);
    assert!(text.starts_with("HTTP/1.1 408") && text.contains("request.timeout"), "{text}");
    for (reason, times) in [("head_timeout", 3.0), ("body_timeout", 1.0)] {
        daemon.metric_is(&refusals(reason), times).await;
    }
    daemon.metric_is("jobcast_open_connections", 0.0).await;
}

#[tokio::test]
async fn outsiders_are_told_codes_and_the_log_has_the_rest() {
    let daemon = Daemon::with(&[("source.forgive", "0s")]).await;
    daemon.write("job", 0..1).await;
    let mut open = daemon.stream("job").await;
    open.event().await;
    sqlx::raw_sql("ALTER TABLE job_events RENAME TO elsewhere")
        .execute(&mut daemon.rows().await)
        .await
        .expect("rename");
    let mut told: Vec<String> = Vec::new();
    told.extend(open.rest().await.iter().filter_map(|message| message.data.clone()));
    for path in [EVENTS.to_string(), stream_path("job"), "/runner-jobs".into()] {
        let answer = daemon.get(&path).await;
        assert_eq!((answer.status, answer.code().as_str()), (502, "source.schema"), "{path}");
        told.push(answer.text());
    }
    let refused = daemon.send("POST", EVENTS, &json!({ "type": "x" })).await;
    told.push(refused.text());
    let path = daemon.database().display().to_string();
    for text in &told {
        for inside in [&path, "job_events", "elsewhere", "jobcast schema", "SELECT", "sqlite"] {
            assert!(!text.to_lowercase().contains(&inside.to_lowercase()), "{inside} in {text}");
        }
    }
    assert!(told[0].contains("source.schema"), "{told:?}");
    daemon.logs(&[&path]).await;
    daemon.logs(&["job_events"]).await;
}

#[tokio::test]
async fn no_job_forges_a_line_of_the_log_or_drives_the_terminal_of_its_reader() {
    let daemon = Daemon::with(&[("log.level", "debug")]).await;
    let odd = "a%E2%80%AEb%C2%A0%E2%80%A8c";
    daemon.write(odd, 0..1).await;
    daemon.stream(odd).await.event().await;
    daemon.logs(&["u{202e}b"]).await;
    let log = daemon.log();
    let is_odd = |c: char| c != '\n' && (c.is_control() || matches!(c, '\u{202e}' | '\u{2028}'));
    assert!(!log.chars().any(is_odd), "{log:?}");
}
