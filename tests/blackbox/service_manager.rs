//! The service manager: what it is told, and the sockets that it hands over.

use crate::support::daemon::{finish, stream_path, write_rows};
use crate::support::http::{encode, raw};
use crate::support::{Manager, Stream, eventually};
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

fn signal(child: &Child, name: &str) {
    let done = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status();
    assert!(done.expect("kill").success());
}

async fn exit(child: &mut Child) -> ExitStatus {
    eventually("the daemon's exit", async || child.try_wait().expect("wait")).await
}

#[tokio::test]
async fn the_service_manager_hears_of_the_start_each_reload_the_end_and_that_the_daemon_lives() {
    let manager = Manager::start();
    let mut command = manager.command(&[("shutdown.grace", "0s")]);
    let mut child = command.env("WATCHDOG_USEC", "400000").spawn().expect("the binary");
    manager.hears("READY=1").await;
    for _ in 0..3 {
        manager.hears("WATCHDOG=1").await;
    }
    signal(&child, "HUP");
    let reloading = manager.hears("RELOADING=1").await;
    let since_boot = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")?.parse::<u64>().ok());
    assert!(since_boot.is_some_and(|time| time > 0), "{reloading}");
    manager.hears("READY=1").await;
    signal(&child, "TERM");
    manager.hears("STOPPING=1").await;
    assert!(exit(&mut child).await.success());
}

#[tokio::test]
async fn a_socket_that_is_open_to_all_needs_the_same_word_as_an_address_in_the_settings() {
    let manager = Manager::listening_on("0.0.0.0:0".parse().expect("an address"));
    let output = finish(manager.command(&[]).stderr(Stdio::piped())).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("auth.allow_anonymous"), "{said}");
}

/// Asks again and again on new connections, each of which must be answered, and returns the number of answers.
async fn ask_until(done: Arc<AtomicBool>, to: SocketAddr) -> u64 {
    let request = encode("GET", "/runner-jobs/job/events?limit=1", &[("Connection", "close")], b"");
    let mut answers = 0;
    while !done.load(Ordering::Relaxed) {
        let answer = raw(to, &request).await;
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&answer));
        answers += 1;
    }
    answers
}

/// Follows the job through all restarts until it has so many events, and returns their numbers.
async fn follow(to: SocketAddr, until: Arc<AtomicU64>) -> Vec<u64> {
    let (mut seen, mut last) = (Vec::new(), None::<String>);
    while (seen.len() as u64) < until.load(Ordering::Relaxed) {
        let headers: Vec<(&str, &str)> = last.iter().map(|last| ("Last-Event-ID", last.as_str())).collect();
        let mut stream = Stream::open(to, &stream_path("job"), &headers).await;
        while (seen.len() as u64) < until.load(Ordering::Relaxed)
            && let Some(message) = stream.next().await
        {
            if message.data.is_some() && !message.event.as_ref().is_some_and(|name| name.starts_with("stream.")) {
                seen.push(message.number());
                last = message.id.or(last);
            }
        }
    }
    seen
}

#[tokio::test]
async fn twenty_restarts_behind_a_held_socket_refuse_nobody_and_streams_resume_exactly() {
    const RESTARTS: u64 = 20;
    const EVENTS: u64 = 5;
    let manager = Manager::start();
    let settings = [("shutdown.grace", "0s"), ("shutdown.drain", "2s"), ("source.poll_interval", "50ms")];
    let mut child = manager.run(&settings).await;
    let options = SqliteConnectOptions::new().filename(manager.database()).busy_timeout(Duration::from_secs(20));
    let mut rows = options.connect().await.expect("the database");
    write_rows(&mut rows, "job", 0..EVENTS).await;
    let (done, until) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(u64::MAX)));
    let askers: Vec<_> = (0..3).map(|_| tokio::spawn(ask_until(done.clone(), manager.http))).collect();
    let followers: Vec<_> = (0..5).map(|_| tokio::spawn(follow(manager.http, until.clone()))).collect();
    for restart in 1..=RESTARTS {
        write_rows(&mut rows, "job", restart * EVENTS..(restart + 1) * EVENTS).await;
        signal(&child, "TERM");
        assert!(exit(&mut child).await.success());
        child = manager.run(&settings).await;
    }
    let all = (RESTARTS + 1) * EVENTS;
    until.store(all, Ordering::Relaxed);
    write_rows(&mut rows, "job", all..all + 1).await;
    for follower in followers {
        let seen = follower.await.expect("a follower");
        assert_eq!(seen[..all as usize], Vec::from_iter(0..all));
    }
    done.store(true, Ordering::Relaxed);
    for asker in askers {
        assert!(asker.await.expect("nobody was refused") > RESTARTS);
    }
    let _ = child.kill();
    let _ = child.wait();
}
