//! What the daemon tells those who run it: metrics, and lines of the log.

use crate::support::daemon::{run, stream_path};
use crate::support::http::{encode, request};
use crate::support::postgres::append;
use crate::support::web::{Reply, Web};
use crate::support::{Daemon, Postgres, Redis, Stream, eventually, narrow, write_big};
use serde_json::Value;
use sqlx::Executor;
use std::process::Command;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

// ---- metrics

/// Names of the metrics of the table, with their kinds.
fn table() -> Vec<(String, String)> {
    let source = include_str!("../../src/telemetry.rs");
    let lines = source.lines().filter_map(|line| line.trim().split_once(" = "));
    let metrics = lines.filter_map(|(_, of)| of.split_once("(\"jobcast_"));
    metrics.map(|(kind, of)| (format!("jobcast_{}", of.split('"').next().expect("a name")), kind.into())).collect()
}

#[tokio::test]
async fn every_metric_stands_in_the_guide_and_every_series_that_is_known_is_there_before_anything_has_happened() {
    let daemon = Daemon::start().await;
    let scraped = daemon.ask_admin("/metrics").await.text();
    let guide = include_str!("../../docs/operate.md");
    let table = table();
    assert!(table.len() > 45, "{table:?}");
    for (name, kind) in &table {
        assert!(guide.contains(&format!("`{name}")), "{name} is not in docs/operate.md");
        // A moment that has not been has no number, and a histogram has none of nothing.
        let is_there = kind != "seconds" && !name.ends_with("_timestamp_seconds");
        assert!(!is_there || scraped.contains(&format!("\n{name}")), "{name} is not exported");
    }
    for series in [
        "jobcast_resets_total{reason=\"trimmed\"} 0",
        "jobcast_disconnects_total{reason=\"slow\"} 0",
        "jobcast_connections_total{outcome=\"full\"} 0",
        "jobcast_refused_requests_total{reason=\"rate\"} 0",
        "jobcast_source_errors_total{code=\"source.rights\",retryable=\"false\"} 0",
        "jobcast_source_errors_total{code=\"source.timed_out\",retryable=\"true\"} 0",
        "jobcast_events_total{source=\"sqlite\"} 0",
        "jobcast_limit{of=\"streams\"} 10000",
        "jobcast_draining 0",
    ] {
        assert!(scraped.contains(&format!("\n{series}")), "{series} is missing");
    }
    assert!(!scraped.contains("\njobcast_tls_certificate_expiry_timestamp_seconds "));
    assert!(daemon.metric("jobcast_settings_hash").await > 0.0);
}

/// Series of our own as `(name, label, value)`, one for each label.
fn labels(scraped: &str) -> Vec<(String, String, String)> {
    let series = scraped.lines().filter(|line| line.starts_with("jobcast_")).filter_map(|line| line.split_once('{'));
    let pairs = series.flat_map(|(name, rest)| {
        let labels = rest.split_once('}').expect("an end of the labels").0;
        labels.split(',').map(move |label| (name, label.split_once('=').expect("a value")))
    });
    pairs.map(|(name, (label, value))| (name.into(), label.into(), value.trim_matches('"').into())).collect()
}

#[tokio::test]
async fn the_guide_says_what_each_value_of_a_label_means_beside_the_metric_that_has_it() {
    let daemon = Daemon::start().await;
    let labels = labels(&daemon.ask_admin("/metrics").await.text());
    let guide = include_str!("../../docs/operate.md");
    let of_metrics = guide.split_once("\n## Metrics\n").and_then(|(_, rest)| rest.split_once("\n## Log\n"));
    let of_metrics = of_metrics.expect("the section of metrics").0;
    let mut known = std::collections::BTreeSet::new();
    for (name, label, value) in labels.iter().filter(|(_, label, _)| !["le", "version"].contains(&label.as_str())) {
        let row = of_metrics.lines().find(|line| line.contains(&format!("`{name}{{")));
        let row = row.unwrap_or_else(|| panic!("{name}{{{label}}} has no row in docs/operate.md"));
        // The codes of failures stand where one reads what to do.
        let place = if label == "code" { guide } else { row };
        assert!(place.contains(&format!("`{value}`")), "{name}{{{label}={value:?}}} is not explained: {row}");
        known.insert((name, label));
    }
    assert!(known.len() >= 14 && labels.len() > 90, "{known:?} {}", labels.len());
}

#[tokio::test]
async fn lag_grows_while_the_source_is_away_or_hangs_and_the_log_says_how_long_it_was_away() {
    let server = Postgres::start().await;
    server.execute(include_str!("../../src/source/postgres/schema.sql")).await;
    server.make_reader().await;
    let settings = [("source.retry_max", "200ms"), ("source.poll_interval", "200ms"), ("source.postgres.pool", "2")];
    let daemon = Daemon::on("postgres", &server.url("reader"), &settings).await;
    let lag = "jobcast_source_lag_seconds";
    let grows = async || {
        let first = eventually("some lag", async || Some(daemon.metric(lag).await).filter(|lag| *lag > 0.5)).await;
        eventually("more of it", async || (daemon.metric(lag).await > first).then_some(())).await;
    };
    let is_over = async || (daemon.metric(lag).await < 0.3).then_some(());
    eventually("a listener", async || (daemon.metric("jobcast_source_listening").await == 1.0).then_some(())).await;
    let last_read = "jobcast_source_last_read_timestamp_seconds";
    eventually("a read", async || (daemon.metric(last_read).await > 1.7e9).then_some(())).await;

    server.down("immediate");
    grows().await;
    let stood = daemon.metric("jobcast_source_last_read_timestamp_seconds").await;
    assert_eq!(stood, daemon.metric("jobcast_source_last_read_timestamp_seconds").await);
    server.up().await;
    eventually("no lag", is_over).await;
    let back = eventually("a line at the end", async || {
        daemon.log().lines().find(|line| line.contains("source is back")).map(str::to_string)
    })
    .await;
    let away: f64 = back.rsplit_once("outage_s=").expect("how long").1.trim().parse().expect("a number");
    assert!(away > 0.4, "{back}");
    eventually("a listener", async || (daemon.metric("jobcast_source_listening").await == 1.0).then_some(())).await;

    // A read that waits for a lock is no outage, and holds one of the pool's connections.
    let mut holder = server.connect().await;
    let jobs: Vec<String> = (0..12).map(|number| format!("job-{number}")).collect();
    for job in &jobs {
        append(&mut holder, job, [0]).await;
    }
    assert_eq!(daemon.metric("jobcast_limit{of=\"source_connections\"}").await, 2.0);
    holder.execute(sqlx::raw_sql("BEGIN; LOCK TABLE job_events")).await.expect("a lock");
    grows().await;
    assert_eq!(daemon.metric("jobcast_source_up").await, 1.0);
    assert!(daemon.metric("jobcast_source_connections_in_use").await >= 1.0);
    let many: Vec<_> = jobs.iter().map(|job| daemon.stream(job)).collect();
    let asked = tokio::time::timeout(Duration::from_secs(60), async {
        tokio::join!(futures_util::future::join_all(many), async {
            let waiting = "jobcast_source_connections_waiting";
            eventually("some who wait", async || (daemon.metric(waiting).await >= 1.0).then_some(())).await;
            holder.execute(sqlx::raw_sql("COMMIT")).await.expect("free");
        })
    });
    asked.await.expect("answers");
    eventually("no lag", is_over).await;
    eventually("idle connections", async || {
        let (used, waiting) = ("jobcast_source_connections_in_use", "jobcast_source_connections_waiting");
        (daemon.metric(used).await <= 1.0 && daemon.metric(waiting).await == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn readers_at_a_standstill_long_polls_and_resets_are_counted_where_they_stand() {
    let daemon = Daemon::with(&[("stream.write_timeout", "10m"), ("shutdown.grace", "10s")]).await;
    daemon.write("job", 0..1).await;
    let stalled = narrow(daemon.http, &encode("GET", &stream_path("job"), &[], b"")).await;
    daemon.has_subscribers(1).await;
    write_big(&daemon, "job", 1..800).await;
    eventually("a reader at a standstill", async || {
        let (blocked, bytes) =
            (daemon.metric("jobcast_blocked_subscribers").await, daemon.metric("jobcast_backlog_bytes").await);
        (blocked == 1.0 && bytes > 0.0).then_some(())
    })
    .await;
    drop(stalled);
    eventually("none", async || {
        let (blocked, bytes) =
            (daemon.metric("jobcast_blocked_subscribers").await, daemon.metric("jobcast_backlog_bytes").await);
        (blocked == 0.0 && bytes == 0.0).then_some(())
    })
    .await;

    let reset = daemon.stream_after("job", "nonsense").await.event().await;
    assert!(reset.is("stream.reset"), "{reset:?}");
    let page = daemon.get("/runner-jobs/job/events?after=nonsense&limit=1").await.json();
    assert_eq!(page["reset"]["reason"], "unknown");
    assert_eq!(daemon.metric("jobcast_resets_total{reason=\"unknown\"}").await, 2.0);
    assert!(daemon.metric("jobcast_history_read_seconds_count").await >= 2.0);

    daemon.write("quiet", 0..1).await;
    let cursor = daemon.get("/runner-jobs/quiet/events").await.json()["cursor"].as_str().expect("a cursor").to_string();
    let path = format!("/runner-jobs/quiet/events?wait=60&after={cursor}");
    tokio::join!(daemon.get(&path), async {
        eventually("a poll", async || (daemon.metric("jobcast_long_polls").await == 1.0).then_some(())).await;
        daemon.write("quiet", 1..2).await;
    });
    eventually("no poll", async || (daemon.metric("jobcast_long_polls").await == 0.0).then_some(())).await;
    daemon.signal("TERM");
    eventually("the drain", async || (daemon.metric("jobcast_draining").await == 1.0).then_some(())).await;
}

// ---- the log

/// Lines of a log that is JSON, each of which must be.
fn lines(log: &str) -> Vec<Value> {
    let lines = log.lines();
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

async fn line(daemon: &Daemon, message: &str, is: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("a line {message:?}"), async || {
        lines(&daemon.log()).into_iter().find(|line| line["message"] == message && is(line))
    })
    .await
}

#[tokio::test]
async fn every_line_of_a_request_has_its_id_its_job_and_its_caller_in_one_schema() {
    let settings = [("log.format", "json"), ("log.access", "true"), ("http.trusted_proxies", "127.0.0.1/32")];
    let daemon = Daemon::with(&settings).await;
    daemon.write("job", 0..3).await;
    let headers = [("X-Request-Id", "from-the-proxy-7"), ("X-Forwarded-For", "192.0.2.7")];
    let path = format!("{}?token=hunter2", stream_path("job"));
    let mut stream = Stream::open(daemon.http, &path, &headers).await;
    let seen = stream.take(3).await;
    let connection = stream.head.header("X-Jobcast-Connection").expect("an id").to_string();
    drop(stream);

    let begins = line(&daemon, "stream begins", |_| true).await;
    let answered = line(&daemon, "request", |line| line["connection"] == connection).await;
    let ended = line(&daemon, "stream ended", |_| true).await;
    for line in [&begins, &answered, &ended] {
        assert_eq!((&line["request"], &line["peer"]), (&"from-the-proxy-7".into(), &"127.0.0.1".into()), "{line}");
    }
    for line in [&begins, &answered, &ended] {
        assert_eq!((&line["connection"], &line["job"]), (&connection.clone().into(), &"job".into()), "{line}");
        assert_eq!((&line["address"], &line["level"]), (&"192.0.2.7".into(), &"INFO".into()), "{line}");
        assert!(line["timestamp"].is_string() && line.get("spans").is_none() && line.get("span").is_none(), "{line}");
    }
    assert_eq!((&answered["status"], &answered["outcome"]), (&200.into(), &"accepted".into()));
    assert_eq!((&ended["reason"], &ended["events"]), (&"gone".into(), &3.into()));
    assert_eq!(ended["cursor"], seen[2].cursor(), "{ended}");
    assert!(answered["seconds"].is_f64() && ended["seconds"].is_f64());
    assert!(ended["bytes"].as_u64() > Some(150), "{ended}");

    // What is refused is in it, with the code of its problem, and with an id where the proxy gave none that is one.
    request(daemon.http, "GET", "/runner-jobs/nobody/events", &[("X-Request-Id", "no id")], b"").await;
    let refused = line(&daemon, "request", |line| line["job"] == "nobody").await;
    assert_eq!((&refused["status"], &refused["code"]), (&404.into(), &"job.not_found".into()), "{refused}");
    assert_eq!(refused["request"].as_str().map(str::len), Some(32), "{refused}");
    let bad =
        crate::support::http::raw(daemon.http, b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
            .await;
    assert_eq!(bad[..12], *b"HTTP/1.1 421");
    line(&daemon, "request", |line| line["code"] == "request.host").await;

    // A line that another part writes for a request has its fields, too. Nobody but the writer has met this failure.
    let mut rows = daemon.rows().await;
    let full = "CREATE TRIGGER full BEFORE INSERT ON job_events BEGIN SELECT RAISE(ABORT, 'full'); END";
    sqlx::raw_sql(full).execute(&mut rows).await.expect("a trigger");
    let (kind, body) = (("Content-Type", "application/json"), br#"{"type":"log"}"#);
    let sent = [("X-Request-Id", "from-a-runner-8"), kind];
    let refused = request(daemon.http, "POST", "/runner-jobs/job/events", &sent, body).await;
    assert!(refused.status >= 400, "{refused:?}");
    let warned = line(&daemon, "a request failed at the source", |_| true).await;
    assert_eq!((&warned["request"], &warned["job"]), (&"from-a-runner-8".into(), &"job".into()), "{warned}");
    assert_eq!(warned["code"], refused.code(), "{warned}");

    sqlx::raw_sql("ALTER TABLE job_events RENAME TO elsewhere").execute(&mut rows).await.expect("rename");
    request(daemon.http, "GET", "/runner-jobs/other/events", &headers, b"").await;
    let failed = line(&daemon, "request", |line| line["job"] == "other").await;
    assert!(failed["status"].as_u64().is_some_and(|status| status >= 500), "{failed}");
    assert!(!daemon.log().contains("hunter2"), "{}", daemon.log());
}

#[tokio::test]
async fn the_end_of_every_stream_is_told_with_its_request_and_with_the_last_id_that_it_was_sent() {
    let log = [("log.format", "json"), ("log.access", "true")];
    // nobody is closed for reading slowly, and a connection that has gone is soon noticed
    let rules = [("hub.ring_events", "10"), ("stream.write_timeout", "10m"), ("stream.heartbeat", "500ms")];
    let daemon = Daemon::with(&[&log[..], &rules].concat()).await;
    daemon.write("job", 0..3).await;
    let open = async |request: &str| Stream::open(daemon.http, &stream_path("job"), &[("X-Request-Id", request)]).await;
    let ended = async |request: &str| line(&daemon, "stream ended", |line| line["request"] == request).await;
    // One ends among the events that it was sent live, one that has stayed with actix as well.
    let (mut live, mut stays) = (open("live").await, old_stream(&daemon, "job", "stays").await);
    live.take(3).await;
    stays.take(3).await;
    daemon.has_subscribers(2).await;
    daemon.write("job", 3..5).await;
    let (seen, seen_there) = (live.take(2).await, stays.take(2).await);
    drop((live, stays));
    for (request, seen) in [("live", seen), ("stays", seen_there)] {
        let ended = ended(request).await;
        assert_eq!((&ended["cursor"], &ended["reason"]), (&seen[1].cursor().into(), &"gone".into()), "{ended}");
    }
    // A reader that the ring overtakes is sent pages again, and leaves among them.
    let asks = encode("GET", &stream_path("job"), &[("X-Request-Id", "overtaken")], b"");
    let mut overtaken = Stream::on(narrow(daemon.http, &asks).await).await.expect("an answer");
    overtaken.take(5).await;
    eventually("a live stream", async || {
        let listed = daemon.ask_admin("/connections").await.json();
        (listed["connections"][0]["lag"] == 0).then_some(())
    })
    .await;
    write_big(&daemon, "job", 5..800).await;
    overtaken.take(400).await;
    daemon.metric_reaches("jobcast_subscriber_overtaken_total", 1.0).await;
    drop(overtaken);
    let ended_there = ended("overtaken").await;
    let reached = ended_there["cursor"].as_str().expect("a cursor");
    let rest = daemon.get(&format!("/runner-jobs/job/events?limit=1&after={reached}")).await.json();
    let next = rest["events"].get(0).map_or(800.into(), |event| event["payload"]["n"].clone());
    assert_eq!(next, ended_there["events"], "{ended_there} {rest}");
    // An operator closes one, and one comes to the end of its job.
    let mut closed = open("closed").await;
    let seen = closed.take(800).await;
    let id = closed.head.header("X-Jobcast-Connection").expect("an id");
    request(daemon.admin, "DELETE", &format!("/connections?id={id}"), &[], b"").await;
    let ended_closed = ended("closed").await;
    assert_eq!(ended_closed["cursor"], seen[799].cursor(), "{ended_closed}");
    let mut complete = open("complete").await;
    complete.take(800).await;
    daemon.set_status("job", "COMPLETED").await;
    let told = complete.rest().await;
    drop(complete);
    let last = told.last().filter(|last| last.is("stream.complete")).expect("its end");
    let ended_complete = ended("complete").await;
    assert_eq!(ended_complete["cursor"], last.cursor(), "{ended_complete}");
}

/// A stream over HTTP/1.0, which stays with actix.
async fn old_stream(daemon: &Daemon, job: &str, request: &str) -> Stream {
    let mut socket = TcpStream::connect(daemon.http).await.expect("connect");
    let head = format!("GET {} HTTP/1.0\r\nX-Request-Id: {request}\r\n\r\n", stream_path(job));
    socket.write_all(head.as_bytes()).await.expect("ask");
    Stream::on(socket).await.expect("an answer")
}

#[tokio::test]
async fn the_first_line_says_which_store_is_served_and_no_password() {
    let daemon = Daemon::with(&[("log.format", "json")]).await;
    let serving = line(&daemon, "serving", |_| true).await;
    let store = [&serving["source"], &serving["store"]];
    assert_eq!(store, [&Value::from("sqlite"), &daemon.database().display().to_string().into()], "{serving}");

    let server = Postgres::start().await;
    server.execute(include_str!("../../src/source/postgres/schema.sql")).await;
    let url = server.url("postgres").replace("postgres@", "postgres:hunter2@");
    let daemon = Daemon::on("postgres", &url, &[("log.format", "json")]).await;
    let serving = line(&daemon, "serving", |_| true).await;
    assert_eq!(serving["store"], format!("{}/postgres", server.address()), "{serving}");

    let server = Redis::start().await;
    let daemon = Daemon::on("redis", &server.url(), &[("log.format", "json")]).await;
    let serving = line(&daemon, "serving", |_| true).await;
    assert!(server.url().contains(serving["store"].as_str().expect("a store")), "{serving} {}", server.url());
    assert!(!daemon.log().contains("hunter2"));
}

#[tokio::test]
async fn cpu_time_is_a_counter_with_fractions() {
    let daemon = Daemon::start().await;
    let scraped = daemon.ask_admin("/metrics").await.text();
    assert!(scraped.contains("\n# TYPE process_cpu_seconds_total counter\n"), "{scraped}");
    let used = async || daemon.metric("process_cpu_seconds_total").await;
    let (first, mut written) = (used().await, 0);
    eventually("some of a second", async || {
        daemon.write("job", written..written + 100).await;
        written += 100;
        let more = used().await;
        (more > first && more.fract() != 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn without_an_access_log_no_request_is_logged_and_the_reason_of_a_failed_start_is_json_where_lines_are() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..1).await;
    daemon.stream("job").await.take(1).await;
    daemon.has_subscribers(0).await;
    assert!(!daemon.log().contains("stream ended") && !daemon.log().contains("method="), "{}", daemon.log());

    let folder = tempfile::tempdir().expect("a directory");
    let held = daemon.http.to_string();
    let database = folder.path().join("jobcast.db").display().to_string();
    let settings = [("log.format", "json"), ("http.listen", &held), ("source.sqlite.path", &database)];
    let output = run(&["serve"], &settings).await;
    assert_eq!(output.status.code(), Some(1));
    let said = lines(&String::from_utf8_lossy(&output.stderr));
    let last = said.last().expect("a line");
    assert_eq!(last["level"], "ERROR");
    assert!(last["message"].as_str().is_some_and(|message| message.contains("http.listen")), "{last}");
}

// ---- connections that cannot be accepted

#[tokio::test]
async fn a_connection_that_there_is_no_file_for_is_counted_and_served_when_there_is_one() {
    let daemon = Daemon::start().await;
    assert_eq!(daemon.metric("jobcast_accept_errors_total").await, 0.0);
    let set_files = |soft: u64| {
        let limit = format!("--nofile={soft}:");
        let set = Command::new("prlimit").args(["--pid", &daemon.pid().to_string(), &limit]).status();
        assert!(set.expect("prlimit").success());
    };
    set_files(3);
    let mend = async {
        daemon.logs(&["Error accepting connection"]).await;
        set_files(1024);
    };
    let (served, ()) = tokio::join!(daemon.get("/openapi.json"), mend);
    assert_eq!(served.status, 200);
    daemon.metric_reaches("jobcast_accept_errors_total", 1.0).await;
}

// ---- traces

/// All spans that a collector was sent.
fn spans(collector: &Web) -> Vec<Value> {
    let bodies = collector.asked().into_iter().map(|asked| {
        assert_eq!((asked.path.as_str(), asked.header("content-type")), ("/v1/traces", Some("application/json")));
        serde_json::from_slice::<Value>(&asked.body).expect("JSON")
    });
    let list = |of: &Value, name: &str| of[name].as_array().cloned().unwrap_or_default();
    let resources = bodies.flat_map(|body| list(&body, "resourceSpans"));
    resources.flat_map(|of| list(&of, "scopeSpans")).flat_map(|of| list(&of, "spans")).collect()
}

fn attribute<'a>(span: &'a Value, name: &str) -> &'a Value {
    let all = span["attributes"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|one| one["key"] == name).map_or(&Value::Null, |one| &one["value"])
}

#[tokio::test]
async fn a_collector_is_sent_requests_and_reads_within_their_callers_traces_and_nothing_of_single_events() {
    let collector = Web::start(|_| Reply::body("{}")).await;
    let endpoint = collector.url("/v1/traces");
    let settings = [("traces.endpoint", endpoint.as_str()), ("source.poll_interval", "10m"), ("shutdown.grace", "0s")];
    let mut daemon = Daemon::with(&settings).await;
    daemon.write("job", 0..100).await;
    let trace = |letter: &str, flags: &str| format!("00-{}-{}-{flags}", letter.repeat(32), letter.repeat(16));
    let path = "/runner-jobs/job/events";
    let polled = request(daemon.http, "GET", path, &[("traceparent", &trace("a", "01"))], b"").await;
    assert_eq!(polled.status, 200);
    // Whoever asks has decided that this one is not traced.
    request(daemon.http, "GET", "/openapi.json", &[("traceparent", &trace("b", "00"))], b"").await;
    request(daemon.http, "GET", "/nothing", &[("traceparent", "nonsense")], b"").await;
    let headers = [("traceparent", trace("c", "01"))];
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut stream = Stream::open(daemon.http, &stream_path("job"), &headers).await;
    stream.take(100).await;
    daemon.write("job", 100..200).await;
    stream.take(100).await;
    daemon.signal("TERM");
    assert!(daemon.exit().await.success());

    let spans = spans(&collector);
    let named = |name: &str| spans.iter().filter(|span| span["name"] == name).collect::<Vec<_>>();
    let poll = named("GET /runner-jobs/{job_id}/events");
    assert_eq!(poll.len(), 1, "{spans:?}");
    assert_eq!((&poll[0]["traceId"], &poll[0]["parentSpanId"]), (&"a".repeat(32).into(), &"a".repeat(16).into()));
    assert_eq!(attribute(poll[0], "url.path")["stringValue"], path);
    assert_eq!(attribute(poll[0], "http.response.status_code")["intValue"], "200");
    let page = named("history read").into_iter().find(|span| span["parentSpanId"] == poll[0]["spanId"]);
    assert_eq!(attribute(page.expect("its page"), "jobcast.events")["intValue"], "100");
    let streams = named("GET /runner-jobs/{job_id}/events/stream");
    assert_eq!((streams.len(), &streams[0]["traceId"]), (1, &"c".repeat(32).into()));
    let tail = named("tail read");
    assert!(tail.iter().any(|span| attribute(span, "jobcast.events")["intValue"] == "100"), "{tail:?}");
    assert!(!spans.iter().any(|span| span["traceId"] == "b".repeat(32)), "{spans:?}");
    assert!(spans.iter().all(|span| span["traceId"] != "0".repeat(32)));
    assert!(spans.len() < 40, "200 events made {} spans", spans.len());
    assert!(!daemon.log().contains("otel") && !daemon.log().contains("traces.endpoint"), "{}", daemon.log());
}

#[tokio::test]
async fn a_collector_that_takes_nothing_is_said_once_and_costs_nobody_anything() {
    let collector = Web::start(|_| Reply::status(503)).await;
    let endpoint = collector.url("/v1/traces").replace("http://", "http://user:hunter2@");
    let daemon = Daemon::with(&[("traces.endpoint", &endpoint)]).await;
    daemon.write("job", 0..3).await;
    daemon.stream("job").await.take(3).await;
    daemon.logs(&["does not take traces"]).await;
    daemon.write("job", 3..4).await;
    assert_eq!(daemon.stream("job").await.take(4).await.len(), 4);
    daemon.logs_times("does not take traces", 1).await;
    assert!(!daemon.log().contains("hunter2"), "{}", daemon.log());
}
