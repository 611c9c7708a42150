//! Ten thousand watched streams, and entries of 256 KiB. Prints delays and CPU time.

use super::daemon_on;
use crate::support::daemon::stream_path;
use crate::support::redis::{append, ask, cpu_seconds, job_key, payload, set_status, stream_key, xadd};
use crate::support::{Daemon, Redis, Stream, alone, numbers};
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Times from writing an entry to receiving it, for so many entries, sorted.
async fn delays(rows: &mut MultiplexedConnection, stream: &mut Stream, count: usize) -> Vec<Duration> {
    let mut delays = Vec::with_capacity(count);
    for number in 0..count as u64 {
        let written = Instant::now();
        append(rows, "timed", [number]).await;
        assert_eq!(stream.event().await.number(), number);
        delays.push(written.elapsed());
        sleep(Duration::from_millis(3)).await;
    }
    delays.sort();
    delays
}

/// Opens a stream on each of so many jobs, each of which has an event.
async fn watch(daemon: &Daemon, rows: &mut MultiplexedConnection, jobs: std::ops::Range<usize>) -> Vec<Stream> {
    let mut streams = Vec::new();
    for first in jobs.clone().step_by(500) {
        let mut all = Pipeline::new();
        (first..(first + 500).min(jobs.end)).for_each(|job| xadd(&mut all, &format!("wide-{job}"), 0, &payload(0)));
        all.query_async::<Value>(rows).await.expect("XADD");
    }
    for job in jobs {
        let mut stream = Stream::open(daemon.http, &stream_path(&format!("wide-{job}")), &[]).await;
        assert_eq!(stream.event().await.number(), 0);
        streams.push(stream);
    }
    streams
}

#[tokio::test]
async fn an_entry_is_received_without_a_poll_beside_ten_thousand_watched_streams() {
    let _alone = alone();
    let server = Redis::with("maxclients 200\nappendonly no").await;
    let daemon = daemon_on(&server.url(), &[("http.max_connections", "12000"), ("source.poll_interval", "10m")]).await;
    let mut rows = server.connect().await;
    set_status(&mut rows, "timed", "RUNNING").await;
    let mut timed = daemon.stream("timed").await;
    let alone = delays(&mut rows, &mut timed, 200).await;
    let mut wide = watch(&daemon, &mut rows, 0..1000).await;
    // while others come to be watched
    let mut more = server.connect().await;
    let (beside_one, mut another) =
        tokio::join!(delays(&mut rows, &mut timed, 200), watch(&daemon, &mut more, 1000..1100));
    wide.append(&mut another);
    wide.append(&mut watch(&daemon, &mut rows, 1100..10_000).await);
    let beside_all = delays(&mut rows, &mut timed, 200).await;
    let cpu = || (cpu_seconds(daemon.pid()), server.cpu_seconds());
    // all of them are told
    let before_all = cpu();
    for first in (0..10_000).step_by(500) {
        let mut all = Pipeline::new();
        (first..first + 500).for_each(|job| xadd(&mut all, &format!("wide-{job}"), 1, &payload(1)));
        all.query_async::<Value>(&mut rows).await.expect("XADD");
    }
    for stream in &mut wide {
        assert_eq!(stream.event().await.number(), 1);
    }
    let after_all = cpu();
    // what it costs that nothing happens
    let (before, began) = (cpu(), Instant::now());
    sleep(Duration::from_secs(4)).await;
    let (after, spent) = (cpu(), began.elapsed().as_secs_f64());
    let share = |before: f64, after: f64| 100.0 * (after - before) / spent;
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("a process");
    let resident = status.lines().find(|line| line.starts_with("VmRSS")).expect("VmRSS").to_string();
    let shown = |delays: &[Duration]| {
        let at = |percent: usize| delays[(delays.len() - 1) * percent / 100];
        format!("p50 {:?}, p99 {:?}, at most {:?}", at(50), at(99), at(100))
    };
    println!("written to received: alone {}", shown(&alone));
    println!("while the 1,001st to 1,100th begin to be watched: {}", shown(&beside_one));
    println!("beside 10,000: {}", shown(&beside_all));
    println!(
        "an entry in each of 10,000: Jobcast {:.0} µs, Redis {:.0} µs of CPU an entry, writing and receiving it included",
        100.0 * (after_all.0 - before_all.0),
        100.0 * (after_all.1 - before_all.1)
    );
    println!(
        "10,000 idle: Jobcast {:.1} %, Redis {:.1} % of a core; {resident}",
        share(before.0, after.0),
        share(before.1, after.1)
    );
    println!(
        "{}",
        server
            .says(&["INFO", "memory"])
            .await
            .split("\\r\\n")
            .find(|line| line.contains("used_memory_human"))
            .unwrap_or_default()
    );
    daemon.metric_is("jobcast_channels", 10_001.0).await;
    assert_eq!(daemon.metric("jobcast_source_errors_total").await, 0.0);
    // no poll has found any of it, and the connections are few
    let clients: String = ask(&mut rows, &["CLIENT", "LIST"]).await;
    assert!(clients.lines().count() < 10, "{clients}");
}

#[tokio::test]
async fn long_entries_are_read_a_few_at_a_time() {
    let _alone = alone();
    let server = Redis::with("appendonly no").await;
    let daemon = daemon_on(&server.url(), &[]).await;
    let mut rows = server.connect().await;
    set_status(&mut rows, "job", "RUNNING").await;
    let long = "x".repeat(256 << 10);
    let mut write = async |numbers: std::ops::Range<u64>| {
        for number in numbers {
            let payload = format!("{{\"n\":{number},\"long\":\"{long}\"}}");
            ask::<()>(&mut rows, &["XADD", &stream_key("job"), "*", "type", "x", "payload", &payload]).await;
        }
    };
    // 50 MiB of history, and half as much again while it is watched
    write(0..200).await;
    let mut stream = daemon.stream("job").await;
    let history = stream.take(200).await;
    assert_eq!(numbers(&history), Vec::from_iter(0..200));
    // those who come while many are written become live, too
    let come = |count: u64| {
        let (daemon, last) = (&daemon, history[199].cursor());
        async move {
            let mut late = daemon.stream_after("job", last).await;
            assert_eq!(numbers(&late.take(count as usize).await), Vec::from_iter(200..200 + count));
        }
    };
    let come_and_go = async {
        for count in [20, 50, 100] {
            come(count).await;
        }
    };
    let live = async { numbers(&stream.take(100).await) };
    let ((), live, ()) = tokio::join!(write(200..300), live, come_and_go);
    assert_eq!(live, Vec::from_iter(200..300));
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("a process");
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    let most: u64 = most.expect("VmHWM");
    assert!(most < 80 << 10, "{most} KiB");
}

/// Many jobs at once, each with a trickle: what streams of tokens are. Each millisecond has the entries of other jobs.
#[tokio::test]
async fn four_hundred_jobs_with_fifty_entries_a_second_each_lose_nothing() {
    const JOBS: usize = 400;
    const TURNS: usize = 20;
    const JOBS_EACH_TURN: usize = JOBS / TURNS;
    const ROUNDS: usize = 250;
    let _alone = alone();
    let server = Redis::with("appendonly no").await;
    let daemon = daemon_on(&server.url(), &[]).await;
    let mut rows = server.connect().await;
    let began = Instant::now();
    let mut watchers = Vec::new();
    for job in 0..JOBS {
        append(&mut rows, &format!("token-{job}"), [0]).await;
        let mut stream = daemon.stream(&format!("token-{job}")).await;
        assert_eq!(stream.event().await.number(), 0);
        watchers.push(tokio::spawn(async move {
            let mut delays = Vec::with_capacity(ROUNDS);
            for number in 1..=ROUNDS {
                let payload = stream.event().await.json()["payload"].take();
                assert_eq!(payload["n"], number, "job {job}");
                let written = Duration::from_micros(payload["written"].as_u64().expect("a time"));
                delays.push(began.elapsed().saturating_sub(written));
            }
            let end = stream.event().await;
            assert!(end.is("stream.complete"), "job {job}: {end:?}");
            delays
        }));
    }
    let cpu = || (cpu_seconds(daemon.pid()), server.cpu_seconds());
    let (before, writes) = (cpu(), Instant::now());
    let mut pace = tokio::time::interval(Duration::from_millis(1));
    for turn in 0..TURNS * ROUNDS {
        pace.tick().await;
        let first = turn % TURNS * JOBS_EACH_TURN;
        let number = (turn / TURNS + 1) as u64;
        let mut all = Pipeline::new();
        for job in first..first + JOBS_EACH_TURN {
            let payload = format!("{{\"n\":{number},\"written\":{}}}", began.elapsed().as_micros());
            xadd(&mut all, &format!("token-{job}"), number, &payload);
        }
        all.query_async::<Value>(&mut rows).await.expect("XADD");
    }
    let (after, spent) = (cpu(), writes.elapsed().as_secs_f64());
    let mut ends = Pipeline::new();
    for job in 0..JOBS {
        ends.cmd("HSET").arg(job_key(&format!("token-{job}"))).arg("status").arg("COMPLETED");
    }
    ends.query_async::<Value>(&mut rows).await.expect("HSET");
    let mut delays = Vec::new();
    for watcher in watchers {
        delays.extend(watcher.await.expect("each entry once, in order, and the end"));
    }
    delays.sort();
    let at = |percent: usize| delays[(delays.len() - 1) * percent / 100];
    println!(
        "{:.0} entries a second to {JOBS} jobs: p50 {:?}, p99 {:?}, at most {:?}; Jobcast {:.0} %, Redis {:.0} % of a core",
        delays.len() as f64 / spent,
        at(50),
        at(99),
        at(100),
        100.0 * (after.0 - before.0) / spent,
        100.0 * (after.1 - before.1) / spent
    );
    assert_eq!(daemon.metric("jobcast_source_errors_total").await, 0.0);
}
