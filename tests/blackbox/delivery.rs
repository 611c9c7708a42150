//! Sockets: heartbeats, those who leave, those who read slowly, and the numbers of it all.

use crate::support::daemon::{BINARY, finish, stream_path};
use crate::support::http::{encode, raw};
use crate::support::{Daemon, Stream, eventually, narrow, numbers, write_big, write_sized};
use futures_util::future::join_all;
use serde_json::json;
use std::io::Write;
use std::process::{Command, Stdio};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

#[tokio::test]
async fn a_silent_stream_gets_heartbeats() {
    let daemon = Daemon::with(&[("stream.heartbeat", "100ms")]).await;
    daemon.set_status("job", "RUNNING").await;
    let mut streams = [daemon.stream("job").await, {
        // one that stays with actix, for it cannot be handed over
        let mut old = TcpStream::connect(daemon.http).await.expect("connect");
        let request = format!("GET {} HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n", stream_path("job"));
        old.write_all(request.as_bytes()).await.expect("ask");
        Stream::on(old).await.expect("an answer")
    }];
    for stream in &mut streams {
        let opening = stream.next().await.expect("open");
        assert_eq!(opening.retry, Some(3000));
        for _ in 0..5 {
            let beat = stream.next().await.expect("a heartbeat");
            assert!(beat.data.is_none() && beat.id.is_none() && !beat.comments.is_empty(), "{beat:?}");
        }
    }
    daemon.write("job", 0..3).await;
    for stream in &mut streams {
        assert_eq!(numbers(&stream.take(3).await), [0, 1, 2]);
    }
}

#[tokio::test]
async fn gone_subscribers_are_forgotten_and_their_jobs_after_the_linger() {
    let daemon = Daemon::with(&[("hub.linger", "200ms"), ("source.poll_interval", "50ms")]).await;
    for job in ["a", "b"] {
        daemon.write(job, 0..1).await;
    }
    let mut streams = join_all((0..50).map(|number| daemon.stream(["a", "b"][number % 2]))).await;
    daemon.has_subscribers(50).await;
    daemon.metric_is("jobcast_channels", 2.0).await;
    streams.truncate(10);
    daemon.has_subscribers(10).await;
    drop(streams);
    daemon.has_subscribers(0).await;
    for name in ["jobcast_channels", "jobcast_ring_events", "jobcast_ring_bytes"] {
        daemon.metric_is(name, 0.0).await;
    }
    assert_eq!(daemon.ask_admin("/debug/channels").await.json()["channels"], json!([]));
}

#[tokio::test]
async fn a_socket_that_takes_nothing_is_closed_and_costs_the_others_nothing() {
    let daemon = Daemon::with(&[("stream.write_timeout", "2s")]).await;
    daemon.write("job", 0..1).await;
    let _stalled = narrow(daemon.http, &encode("GET", &stream_path("job"), &[], b"")).await;
    let mut reader = daemon.stream("job").await;
    daemon.has_subscribers(2).await;
    // it reads all the while, or it would be closed as well
    let ((), seen) = tokio::join!(write_big(&daemon, "job", 1..1500), reader.take(1500));
    assert_eq!(numbers(&seen), Vec::from_iter(0..1500));
    daemon.has_subscribers(1).await;
    daemon.metric_is("jobcast_disconnects_total{reason=\"slow\"}", 1.0).await;
}

#[tokio::test]
async fn memory_is_bounded_whatever_writers_do_and_however_subscribers_stall() {
    let settings = [("hub.ring_bytes", "64KiB"), ("hub.total_bytes", "256KiB"), ("stream.write_timeout", "10m")];
    let daemon = Daemon::with(&settings).await;
    let jobs: Vec<String> = (0..20).map(|number| format!("job-{number}")).collect();
    let mut stalled = Vec::new();
    for job in &jobs {
        daemon.write(job, 0..1).await;
        for _ in 0..5 {
            let request = encode("GET", &stream_path(job), &[], b"");
            stalled.push(narrow(daemon.http, &request).await);
        }
    }
    daemon.has_subscribers(100).await;
    for job in &jobs {
        write_big(&daemon, job, 1..600).await;
    }
    let bytes = daemon.metric("jobcast_ring_bytes").await;
    // each ring keeps its newest segment, whatever its size
    assert!(bytes <= 20.0 * 72.0 * 1024.0, "{bytes}");
    daemon.metric_reaches("jobcast_ring_evictions_total", 1001.0).await;
    let resident = daemon.metric("process_resident_memory_bytes").await;
    assert!(resident < 100e6, "{resident} bytes resident after 24 MB of events");
    let mut reader = daemon.stream("job-7").await;
    assert_eq!(numbers(&reader.take(600).await), Vec::from_iter(0..600));
}

#[tokio::test]
async fn readers_that_stop_cost_little_memory_while_100_mb_pass_and_disturb_nobody() {
    const EVENTS: u64 = 50_000;
    let _alone = crate::support::alone();
    let daemon = Daemon::with(&[("stream.write_timeout", "10m")]).await;
    daemon.write("job", 0..1).await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(narrow(daemon.http, &encode("GET", &stream_path("job"), &[], b"")).await);
    }
    let mut reader = daemon.stream("job").await;
    daemon.has_subscribers(21).await;
    // The ring and the store's own memory are filled first, which is no growth by readers.
    let ((), seen) = tokio::join!(write_big(&daemon, "job", 1..2000), reader.take(2000));
    assert_eq!(numbers(&seen), Vec::from_iter(0..2000));
    let before = daemon.metric("process_resident_memory_bytes").await;
    let read = async {
        for expected in 2000..EVENTS {
            assert_eq!(reader.event().await.number(), expected);
        }
    };
    tokio::join!(write_big(&daemon, "job", 2000..EVENTS), read);
    let grown = daemon.metric("process_resident_memory_bytes").await - before;
    assert!(grown < 40e6, "{grown} bytes more");
    daemon.has_subscribers(21).await;
}

/// One job has a hundred subscribers that do not read, the other one that reads late and holds less than all of them.
#[tokio::test]
async fn the_job_that_holds_most_memory_pays_first_and_not_who_blocks_next() {
    let bounds = [("hub.ring_bytes", "256KiB"), ("hub.total_bytes", "256KiB")];
    let settings = [bounds[0], bounds[1], ("http.workers", "1"), ("stream.write_timeout", "10m")];
    let daemon = Daemon::with(&settings).await;
    let request = |job| encode("GET", &stream_path(job), &[], b"");
    let mut stalled = Vec::new();
    daemon.write("greedy", 0..1).await;
    daemon.write("honest", 0..1).await;
    for _ in 0..100 {
        stalled.push(narrow(daemon.http, &request("greedy")).await);
    }
    let honest = narrow(daemon.http, &request("honest")).await;
    daemon.has_subscribers(101).await;
    write_sized(&daemon, "greedy", 1..26, 20_000).await;
    daemon.metric_reaches("jobcast_disconnects_total{reason=\"memory\"}", 1.0).await;
    write_sized(&daemon, "honest", 1..60, 8_000).await;
    let mut honest = Stream::on(honest).await.expect("an answer");
    assert_eq!(numbers(&honest.take(60).await), Vec::from_iter(0..60));
}

#[tokio::test]
async fn a_peer_that_vanished_is_noticed_by_the_write_timeout_long_before_the_kernel_would() {
    // In a network of its own, which is then taken down: nothing arrives any more, and nobody says so. The kernel alone sends
    // what was not acknowledged again for 15 minutes (tcp_retries2).
    let script = r#"
        set -e
        ip link set lo up
        "$JOBCAST" serve & daemon=$!
        trap 'kill -9 $daemon' EXIT
        until exec 3<>/dev/tcp/127.0.0.1/8080; do sleep 0.1; done 2>/dev/null
        printf 'PUT /runner-jobs/job HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 20\r\nConnection: close\r\n\r\n{"status":"RUNNING"}' >&3
        cat <&3 >/dev/null
        exec 3<>/dev/tcp/127.0.0.1/8080
        printf 'GET /runner-jobs/job/events/stream HTTP/1.1\r\nHost: localhost\r\n\r\n' >&3
        count() { curl -s http://127.0.0.1:9464/metrics | grep '^jobcast_subscribers '; }
        until count | grep -q ' 1$'; do sleep 0.1; done
        # established connections of port 8080
        open() { awk '$2 ~ /:1F90$/ && $4 == "01"' /proc/net/tcp; }
        [ -n "$(open)" ]
        down=$SECONDS
        ip link set lo down
        until [ -z "$(open)" ]; do sleep 0.1; done
        echo "took $((SECONDS - down))"
        ip link set lo up
        until count | grep -q ' 0$'; do sleep 0.1; done
        count
        curl -s http://127.0.0.1:9464/metrics | grep '^jobcast_disconnects_total.* 1$'
    "#;
    let folder = tempfile::tempdir().expect("a directory");
    let database = folder.path().join("jobs.db").display().to_string();
    let output = finish(
        Command::new("unshare")
            .args(["-rn", "bash", "-c", script])
            .env("JOBCAST", BINARY)
            .env("JOBCAST_SOURCE__SQLITE__PATH", database)
            .env("JOBCAST_STREAM__HEARTBEAT", "500ms")
            .env("JOBCAST_STREAM__WRITE_TIMEOUT", "2s")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    )
    .await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let [took, left, why] = said.lines().collect::<Vec<_>>()[..] else {
        panic!("{said}\n{}", String::from_utf8_lossy(&output.stderr))
    };
    println!("{took} s, {why}");
    let took: u64 = took.strip_prefix("took ").and_then(|took| took.parse().ok()).expect("a number of seconds");
    // A busy machine may take many times the two seconds, and is far from the kernel's own time.
    assert!(took <= 60, "{took} s");
    assert_eq!(left, "jobcast_subscribers 0");
    assert!(["gone", "slow"].iter().any(|reason| why.contains(&format!("reason=\"{reason}\""))), "{why}");
}

#[tokio::test]
async fn two_hundred_files_are_enough_for_fewer_streams_and_readiness_never_lacks_one() {
    let daemon = Daemon::after("ulimit -n 200", &[("http.workers", "2"), ("stream.heartbeat", "100ms")]).await;
    let lowered = daemon.logs(&["fewer open files"]).await;
    let streams: usize =
        lowered.split(' ').find_map(|word| word.strip_prefix("streams=")?.parse().ok()).expect("the number of streams");
    assert!((20..200).contains(&streams), "{lowered}");
    daemon.write("job", 0..1).await;
    let (mut open, mut told) = (Vec::new(), 0);
    for _ in 0..300 {
        let path = stream_path("job");
        assert_eq!(daemon.ask_admin("/readyz").await.status, 200);
        // A connection for which there is no file is closed.
        let Ok(mut stream) = Stream::try_open(daemon.http, &path, &[]).await else { continue };
        told += usize::from(stream.event().await.is("stream.error"));
        open.push(stream);
    }
    assert_eq!(open.len() - told, streams, "as many streams as it said");
    assert!(told > 0 && open.len() < 300, "{told} of {} were told to come back", open.len());
    assert!(daemon.metric("process_open_fds").await <= 200.0);
    // Those who were told to come back go, and everything is served.
    open.truncate(streams);
    eventually("room for a request", async || {
        let request = encode("GET", "/runner-jobs", &[("Connection", "close")], b"");
        raw(daemon.http, &request).await.starts_with(b"HTTP/1.1 200").then_some(())
    })
    .await;
    daemon.write("job", 1..2).await;
    for stream in &mut open {
        assert_eq!(stream.event().await.number(), 1);
    }
}

#[tokio::test]
async fn metrics_say_the_true_numbers() {
    let daemon = Daemon::start().await;
    daemon.set_status("job", "RUNNING").await;
    let mut streams = join_all((0..7).map(|_| daemon.stream("job"))).await;
    daemon.has_subscribers(7).await;
    daemon.write("job", 0..10).await;
    for stream in &mut streams {
        assert_eq!(numbers(&stream.take(10).await), Vec::from_iter(0..10));
    }
    let expected = [
        ("jobcast_subscribers", 7.0),
        ("jobcast_channels", 1.0),
        ("jobcast_deliveries_total", 70.0),
        ("jobcast_events_total", 10.0),
        ("jobcast_connections_total", 7.0),
        ("jobcast_resumes_total", 7.0),
        ("jobcast_ring_events", 10.0),
        ("jobcast_ingest_total", 2.0),
        ("jobcast_source_up", 1.0),
        ("jobcast_event_age_seconds_count", 10.0),
        ("jobcast_subscriber_overtaken_total", 0.0),
        ("jobcast_build_info", 1.0),
    ];
    for (name, value) in expected {
        daemon.metric_is(name, value).await;
    }
    drop(streams);
    daemon.has_subscribers(0).await;
    daemon.metric_is("jobcast_disconnects_total", 7.0).await;
    daemon.metric_is("jobcast_stream_duration_seconds_count", 7.0).await;
}

/// Runs Prometheus' own parser, in Python.
#[tokio::test]
async fn metrics_pass_the_parser_of_prometheus() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..10).await;
    let mut stream = daemon.stream("job").await;
    stream.take(10).await;
    // A live one, too, which the tail has read. It is counted a moment after it has arrived.
    daemon.write("job", 10..11).await;
    stream.event().await;
    let all = async || daemon.ask_admin("/metrics").await.text().contains("jobcast_fanout_seconds_count").then_some(());
    eventually("every metric", all).await;
    let parse = "import sys\nfrom prometheus_client.parser import text_string_to_metric_families as parse\n\
                 for f in parse(sys.stdin.read()):\n  assert f.documentation, f.name\n  print(f.name, f.type)";
    let answer = daemon.ask_admin("/metrics").await;
    assert_eq!(answer.header("Content-Type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    // the system's own, which the package installs it for
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", parse])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("/usr/bin/python3");
    python.stdin.take().expect("stdin").write_all(&answer.body).expect("to the parser");
    let output = python.wait_with_output().expect("the parser");
    assert!(output.status.success(), "{}", answer.text());
    let families = String::from_utf8_lossy(&output.stdout).into_owned();
    for family in [
        "jobcast_subscribers gauge",
        "jobcast_deliveries counter",
        "jobcast_fanout_seconds histogram",
        "jobcast_event_age_seconds histogram",
        "jobcast_source_read_seconds histogram",
        "process_resident_memory_bytes gauge",
        "process_cpu_seconds counter",
        "process_open_fds gauge",
        "process_start_time_seconds gauge",
    ] {
        assert!(families.lines().any(|line| line == family), "{family} is missing in\n{families}");
    }
    assert!(!answer.text().contains("job\""), "no job's id stands in a metric");
}
