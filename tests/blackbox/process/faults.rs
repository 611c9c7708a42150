//! Each part of the daemon fails on purpose: it takes the daemon with it, or is started again, and costs the others nothing.

use super::Process;
use crate::support::daemon::{stream_path, write_rows};
use crate::support::http::{encode, request};
use crate::support::redis::{append, ask};
use crate::support::store::Store;
use crate::support::tls::{Authority, keep};
use crate::support::{Postgres, Sentinel, Stream, eventually, narrow};
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use std::fs::File;
use std::process::Stdio;
use tokio::io::AsyncWriteExt;

impl Process {
    /// Appends events of 50 kB each.
    async fn fill(&self, ids: std::ops::Range<u64>) {
        for id in ids {
            let line = "x".repeat(50_000);
            let event = format!("{{\"type\":\"x\",\"id\":\"e-{id}\",\"payload\":{{\"line\":\"{line}\"}}}}");
            let headers = [("Content-Type", "application/json")];
            let path = "/runner-jobs/job/events";
            assert_eq!(request(self.http, "POST", path, &headers, event.as_bytes()).await.status, 201);
        }
    }

    async fn metric_is(&self, name: &str, value: f64) {
        let is = async || (self.metric(name).await? == value).then_some(());
        eventually(&format!("{name} to be {value}"), is).await;
    }

    /// Writes a row as another program does, of which only the file tells.
    async fn write_row(&self, number: u64) {
        let options = SqliteConnectOptions::new().filename(self.folder.path().join("jobs.db"));
        let mut rows = options.busy_timeout(crate::support::PATIENCE).connect().await.expect("the database");
        write_rows(&mut rows, "job", [number]).await;
    }

    /// Makes the part fail that the daemon was started for.
    fn strike(&self) {
        File::create(self.folder.path().join("fault")).expect("a file");
    }

    /// The same, and waits until it has. Things happen in the folder meanwhile, for whoever watches it.
    async fn strike_now(&self) {
        self.strike();
        let file = self.folder.path().join("fault");
        eventually("the fault to strike", async || {
            let is_struck = !file.exists();
            File::create(self.folder.path().join("noise")).expect("a file");
            is_struck.then_some(())
        })
        .await;
    }
}

/// Starts a daemon one part of which fails when it is struck.
async fn with_fault(fault: &str) -> Process {
    with_fault_and(fault, Stdio::null(), &[]).await
}

async fn with_fault_and(fault: &str, stderr: Stdio, variables: &[(&str, &str)]) -> Process {
    let folder = tempfile::tempdir().expect("a directory");
    let fault = format!("{fault}:{}", folder.path().join("fault").display());
    Process::start_in(folder, stderr, &[&[("JOBCAST_FAULT", &*fault)], variables].concat()).await
}

const PARTS: [&str; 9] =
    ["tail", "messenger", "metrics", "signals", "http", "admin", "auth", "reload", "service manager"];

/// A daemon that waited for its grace or its drain, which are ten minutes each, would be waited for in vain.
async fn ends_the_daemon(fault: &str) {
    let mut process = with_fault(fault).await;
    assert_eq!(process.send(0).await, 201);
    let mut stream = process.stream().await;
    assert_eq!(stream.event().await.number(), 0);
    ends_after_a_word(&mut process, &mut stream, fault).await;
}

/// Lets the fault strike; the daemon says goodbye to the stream, and ends as failed.
async fn ends_after_a_word(process: &mut Process, stream: &mut Stream, fault: &str) {
    process.strike();
    let (rest, code) = tokio::join!(stream.rest(), process.exit_code());
    assert_eq!(code, Some(1), "{fault}");
    assert!(rest.last().is_some_and(|last| last.is("stream.bye")), "{fault}: {rest:?}");
}

#[tokio::test]
async fn a_task_that_panics_takes_the_daemon_with_it_after_a_word_to_every_stream() {
    for part in PARTS {
        ends_the_daemon(&format!("{part}:panic")).await;
    }
}

#[tokio::test]
async fn a_task_that_ends_unasked_takes_the_daemon_with_it_after_a_word_to_every_stream() {
    for part in PARTS {
        ends_the_daemon(&format!("{part}:end")).await;
    }
}

#[tokio::test]
async fn a_daemon_that_looks_no_more_for_new_certificates_ends_after_a_word_to_every_stream() {
    let (authority, folder) = (Authority::new("An authority"), tempfile::tempdir().expect("a directory"));
    let (certificate, key) = authority.certify("localhost");
    let cert = keep(&folder, "cert.pem", &certificate.pem());
    let key = keep(&folder, "key.pem", &key.serialize_pem());
    let variables = [("JOBCAST_HTTP__TLS__CERT", &*cert), ("JOBCAST_HTTP__TLS__KEY", &*key)];
    for fault in ["certificates:panic", "certificates:end"] {
        let mut process = with_fault_and(fault, Stdio::null(), &variables).await;
        process.write_row(0).await;
        let mut link = authority.connect(process.http, "http/1.1").await.expect("a handshake");
        link.write_all(&encode("GET", &stream_path("job"), &[], b"")).await.expect("ask");
        let mut stream = Stream::on(link).await.expect("an answer");
        assert_eq!(stream.event().await.number(), 0);
        ends_after_a_word(&mut process, &mut stream, fault).await;
    }
}

#[tokio::test]
async fn a_delivery_thread_that_panics_or_ends_takes_the_daemon_with_it() {
    for fault in ["delivery-0:panic", "delivery-0:end"] {
        let mut process = with_fault_and(fault, Stdio::null(), &[("JOBCAST_HTTP__WORKERS", "1")]).await;
        assert_eq!(process.send(0).await, 201);
        process.strike();
        assert_eq!(process.exit_code().await, Some(1), "{fault}");
    }
}

#[tokio::test]
async fn a_daemon_of_which_a_part_has_failed_is_neither_ready_nor_healthy() {
    let mut process = with_fault("tail:panic").await;
    assert_eq!(process.send(0).await, 201);
    // A stream that reads nothing holds the drain up, for as long as that may take.
    process.fill(1..200).await;
    let ask = format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", stream_path("job"));
    let blocked = narrow(process.http, ask.as_bytes()).await;
    process.metric_is("jobcast_subscribers", 1.0).await;
    assert_eq!((process.status("/readyz").await, process.status("/healthz").await), (200, 200));
    process.strike();
    eventually("the word of the failure", async || {
        let answer = request(process.admin, "GET", "/readyz", &[], b"").await;
        (answer.status == 503 && answer.json()["code"] == "server.part_failed").then_some(())
    })
    .await;
    assert_eq!(process.status("/healthz").await, 503);
    drop(blocked);
    assert_eq!(process.exit_code().await, Some(1));
}

#[tokio::test]
async fn a_panic_in_the_writer_or_in_a_page_costs_one_request_and_no_more() {
    let process = with_fault("sqlite-writer:panic").await;
    assert_eq!(process.send(0).await, 201);
    process.strike();
    assert_eq!(process.send(1).await / 100, 5);
    assert_eq!(process.send(1).await, 201);

    let process = with_fault("page:panic").await;
    assert_eq!(process.send(0).await, 201);
    process.strike();
    let mut stream = process.stream().await;
    assert!(stream.event().await.is("stream.error"));
    assert_eq!(process.stream().await.event().await.number(), 0);
    assert_eq!(process.status("/healthz").await, 200);
}

#[tokio::test]
async fn a_panic_while_an_overtaken_stream_is_fed_closes_that_stream_alone_which_loses_nothing() {
    let variables = [("JOBCAST_STREAM__WRITE_TIMEOUT", "10m")];
    let process = with_fault_and("replay:panic", Stdio::null(), &variables).await;
    assert_eq!(process.send(0).await, 201);
    let ask = format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", stream_path("job"));
    let mut slow = Stream::on(narrow(process.http, ask.as_bytes()).await).await.expect("an answer");
    let mut last = slow.event().await;
    process.strike();
    // More than a ring and all buffers on the way hold together.
    process.fill(1..300).await;
    let id = |number: u64| format!("e-{number}");
    let mut received = 1;
    while let Ok(Some(message)) = slow.try_next().await {
        if message.data.is_some() {
            assert_eq!(message.json()["id"], id(received));
            (last, received) = (message, received + 1);
        }
    }
    assert!(received < 300, "its replay did not fail");
    process.metric_is("jobcast_disconnects_total{reason=\"failed\"}", 1.0).await;
    let path = stream_path("job");
    let mut back = Stream::open(process.http, &path, &[("Last-Event-ID", last.cursor())]).await;
    for number in received..300 {
        assert_eq!(back.event().await.json()["id"], id(number));
    }
    assert_eq!(process.send(300).await, 201);
    assert_eq!(back.event().await.json()["id"], id(300));
    assert_eq!(process.status("/healthz").await, 200);
}

#[tokio::test]
async fn a_panic_of_the_thread_that_writes_the_log_costs_one_line_and_no_more() {
    let folder = tempfile::tempdir().expect("a directory");
    let log = folder.path().join("log");
    let stderr = File::create(&log).expect("a log");
    let process = with_fault_and("log:panic", stderr.into(), &[("JOBCAST_LOG__ACCESS", "true")]).await;
    let lines = async |text: &str, count: usize| {
        eventually(&format!("{text:?} in the log, {count} times"), async || {
            let said = std::fs::read_to_string(&log).expect("the log");
            (said.matches(text).count() == count).then_some(())
        })
        .await;
    };
    lines(" serving ", 1).await;
    process.strike();
    // Each request has a line.
    for number in 0..5 {
        assert_eq!(process.send(number).await, 201);
    }
    lines("a thread panicked", 1).await;
    lines("/runner-jobs/job/events", 4).await;
    process.metric_is("jobcast_log_lines_lost_total", 1.0).await;
    assert_eq!((process.status("/readyz").await, process.status("/healthz").await), (200, 200));
}

/// The longest of the poll, so that nothing but what is tried brings new events.
const NO_POLL: (&str, &str) = ("JOBCAST_SOURCE__POLL_INTERVAL", "10m");

#[tokio::test]
async fn a_watch_of_the_database_file_that_ends_is_begun_again_and_misses_nothing() {
    let process = with_fault_and("file watch:panic", Stdio::null(), &[NO_POLL]).await;
    process.write_row(0).await;
    let mut stream = process.stream().await;
    assert_eq!(stream.event().await.number(), 0);
    // A watch that had not been begun again could not end once more.
    for round in 0..3 {
        process.strike_now().await;
        // One is written while nobody watches the file, and one afterwards.
        process.write_row(1 + 2 * round).await;
        assert_eq!(stream.event().await.number(), 1 + 2 * round);
        process.metric_is("jobcast_source_listening", 1.0).await;
        process.write_row(2 + 2 * round).await;
        assert_eq!(stream.event().await.number(), 2 + 2 * round);
    }
    assert_eq!(process.status("/healthz").await, 200);
}

#[tokio::test]
async fn a_listener_of_postgresql_that_panics_or_ends_is_started_again_and_misses_nothing() {
    for fault in ["listen:panic", "listen:end"] {
        let server = <Postgres as Store>::start().await;
        let url = server.url("postgres");
        let source = [("JOBCAST_SOURCE__KIND", "postgres"), ("JOBCAST_SOURCE__POSTGRES__URL", &*url), NO_POLL];
        let process = with_fault_and(fault, Stdio::null(), &source).await;
        server.append("job", 0..1).await;
        let mut stream = process.stream().await;
        assert_eq!(stream.event().await.number(), 0);
        process.metric_is("jobcast_source_listening", 1.0).await;
        process.strike_now().await;
        for number in 1..3 {
            server.append("job", number..number + 1).await;
            assert_eq!(stream.event().await.number(), number, "{fault}");
        }
        process.metric_is("jobcast_source_listening", 1.0).await;
        assert_eq!(process.status("/healthz").await, 200);
    }
}

#[tokio::test]
async fn a_search_for_redis_servers_that_panics_is_started_again_and_finds_the_next_primary() {
    let mut sentinel = Sentinel::start().await;
    let url = sentinel.url();
    let source = [("JOBCAST_SOURCE__KIND", "redis"), ("JOBCAST_SOURCE__REDIS__URL", &*url)];
    let process = with_fault_and("topology:panic", Stdio::null(), &source).await;
    let mut rows = sentinel.servers[0].connect().await;
    append(&mut rows, "job", [0]).await;
    let mut stream = process.stream().await;
    assert_eq!(stream.event().await.number(), 0);
    ask::<u64>(&mut rows, &["WAIT", "1", "0"]).await;
    process.strike_now().await;
    sentinel.servers[0].kill();
    sentinel.takes_over().await;
    append(&mut sentinel.servers[1].connect().await, "job", [1]).await;
    let mut next = stream.event().await;
    while next.is("stream.error") {
        next = stream.event().await;
    }
    assert_eq!(next.number(), 1);
    assert_eq!(process.status("/healthz").await, 200);
}
