//! The admin listener: what it answers, and the open streams that it lists and closes.

use crate::support::daemon::stream_path;
use crate::support::http::{Answer, encode, request};
use crate::support::{Daemon, Stream, eventually, narrow, numbers, write_big};
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// A stream that stays with actix, since HTTP/1.0 cannot be handed over.
async fn old_stream(daemon: &Daemon, job: &str) -> Stream {
    let mut socket = TcpStream::connect(daemon.http).await.expect("connect");
    socket.write_all(format!("GET {} HTTP/1.0\r\n\r\n", stream_path(job)).as_bytes()).await.expect("ask");
    Stream::on(socket).await.expect("an answer")
}

async fn connections(daemon: &Daemon, query: &str) -> Value {
    let answer = daemon.ask_admin(&format!("/connections{query}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

async fn close(daemon: &Daemon, query: &str) -> Answer {
    request(daemon.admin, "DELETE", &format!("/connections{query}"), &[], b"").await
}

fn id(stream: &Stream) -> &str {
    stream.head.header("X-Jobcast-Connection").expect("an id")
}

#[tokio::test]
async fn open_streams_are_listed_wherever_they_are_served() {
    let daemon = Daemon::start().await;
    daemon.write("a", 0..3).await;
    daemon.write("b", 0..1).await;
    let mut streams = [daemon.stream("a").await, old_stream(&daemon, "a").await, daemon.stream("b").await];
    for (stream, events) in streams.iter_mut().zip([3, 3, 1]) {
        stream.take(events).await;
    }
    daemon.has_subscribers(3).await;
    // A stream is live a moment after its history was written.
    let all = eventually("three live streams", async || {
        let all = connections(&daemon, "").await;
        let lags = all["connections"].as_array().expect("a list").iter().filter(|one| one["lag"] == 0).count();
        (lags == 3).then_some(all)
    })
    .await;
    assert_eq!(all["total"], 3);
    for (stream, (job, delivered)) in streams.iter().zip([("a", 3), ("a", 3), ("b", 1)]) {
        let list = all["connections"].as_array().expect("a list");
        let one = list.iter().find(|one| one["id"] == id(stream)).expect("the stream");
        assert_eq!((&one["job"], &one["delivered"]), (&job.into(), &delivered.into()), "{one}");
        assert_eq!((&one["subject"], &one["address"]), (&Value::Null, &"127.0.0.1".into()), "{one}");
        assert!(one["since"].as_str().is_some_and(|since| since.starts_with("20") && since.ends_with('Z')), "{one}");
    }
    let some = connections(&daemon, "?job=a&limit=1").await;
    assert_eq!((&some["total"], some["connections"].as_array().map(Vec::len)), (&2.into(), Some(1)));
    let one = connections(&daemon, &format!("?id={}", id(&streams[2]))).await;
    assert_eq!((&one["total"], &one["connections"][0]["job"]), (&1.into(), &"b".into()));
    assert_eq!(connections(&daemon, "?subject=nobody").await["total"], 0);
}

#[tokio::test]
async fn a_stream_that_does_not_read_is_listed_with_its_lag() {
    let daemon = Daemon::with(&[("stream.write_timeout", "10m")]).await;
    daemon.write("job", 0..1).await;
    let _stalled = narrow(daemon.http, &encode("GET", &stream_path("job"), &[], b"")).await;
    daemon.has_subscribers(1).await;
    write_big(&daemon, "job", 1..800).await;
    eventually("its lag", async || {
        let one = connections(&daemon, "").await["connections"][0].clone();
        let (delivered, lag) = (one["delivered"].as_u64()?, one["lag"].as_u64()?);
        assert!(delivered + lag <= 800, "{one}");
        (lag > 100 && delivered + lag == 800).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_operator_ends_streams_at_once_and_they_resume_exactly() {
    // Nothing else comes to these streams, and wakes who writes to them.
    let daemon = Daemon::with(&[("stream.heartbeat", "10m")]).await;
    for job in ["a", "b"] {
        daemon.write(job, 0..3).await;
    }
    let (mut new, mut old, mut other) =
        (daemon.stream("a").await, old_stream(&daemon, "a").await, daemon.stream("b").await);
    for stream in [&mut new, &mut old, &mut other] {
        stream.take(3).await;
    }
    let answer = close(&daemon, "?job=a").await;
    assert_eq!((answer.status, &answer.json()["closed"]), (200, &2.into()));
    for stream in [&mut new, &mut old] {
        let rest = stream.rest().await;
        assert!(rest.len() == 1 && rest[0].is("stream.bye"), "{rest:?}");
        assert_eq!(rest[0].json()["reason"], "revoked");
        assert_eq!(rest[0].retry, rest[0].json()["retryInMs"].as_u64());
    }
    daemon.metric_is("jobcast_disconnects_total{reason=\"revoked\"}", 2.0).await;
    assert_eq!(close(&daemon, "?job=a").await.json()["closed"], 0);

    daemon.write("b", 3..4).await;
    assert_eq!(other.event().await.number(), 3);
    assert_eq!(close(&daemon, &format!("?id={}", id(&other))).await.json()["closed"], 1);
    assert!(other.rest().await[0].is("stream.bye"));
    let again = daemon.stream("b").await.take(4).await;
    assert_eq!(numbers(&daemon.stream_after("b", again[1].cursor()).await.take(2).await), [2, 3]);
}

#[tokio::test]
async fn a_long_poll_is_listed_and_answered_when_an_operator_closes_it() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..1).await;
    let first = daemon.get("/runner-jobs/job/events").await.json();
    let path = format!("/runner-jobs/job/events?wait=60&after={}", first["cursor"].as_str().expect("a cursor"));
    let began = Instant::now();
    let (answer, ()) = tokio::join!(daemon.get(&path), async {
        let listed = async || (connections(&daemon, "?job=job").await["total"] == 1).then_some(());
        eventually("the poll", listed).await;
        assert_eq!(close(&daemon, "?job=job").await.json()["closed"], 1);
    });
    assert_eq!((answer.status, &answer.json()["cursor"]), (200, &first["cursor"]));
    assert!(began.elapsed() < Duration::from_secs(30), "it waited for its own time: {:?}", began.elapsed());
    assert_eq!(connections(&daemon, "").await["total"], 0);
}

#[tokio::test]
async fn connections_are_closed_only_by_a_choice_that_is_understood() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..1).await;
    let mut stream = daemon.stream("job").await;
    stream.event().await;
    for query in ["", "?job=", "?limit=5", "?jobs=job", "?job=job&user=ann", "?job=job&job=b", "?job=%0A"] {
        let answer = close(&daemon, query).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "request.query"), "{query}");
    }
    daemon.has_subscribers(1).await;
}

#[tokio::test]
async fn the_admin_listener_answers_head_like_get_and_says_what_is_allowed() {
    let daemon = Daemon::start().await;
    for path in ["/healthz", "/readyz", "/metrics", "/settings", "/debug/channels", "/connections", "/log/level"] {
        let head = request(daemon.admin, "HEAD", path, &[], b"").await;
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
        let refused = request(daemon.admin, "PATCH", path, &[], b"").await;
        assert_eq!((refused.status, refused.code().as_str()), (405, "request.method"), "{path}");
        let allowed = match path {
            "/connections" => "GET, HEAD, DELETE",
            "/log/level" => "GET, HEAD, PUT",
            _ => "GET, HEAD",
        };
        assert_eq!(refused.header("Allow"), Some(allowed), "{path}");
    }
    let nothing = daemon.ask_admin("/nothing").await;
    assert_eq!((nothing.status, nothing.code().as_str()), (404, "request.not_found"));
}

#[tokio::test]
async fn an_operator_sees_more_of_the_log_until_the_settings_are_read_again() {
    let daemon = Daemon::with(&[("log.format", "json")]).await;
    let level = async || daemon.ask_admin("/log/level").await.json()["level"].clone();
    let set = async |query: &str| request(daemon.admin, "PUT", &format!("/log/level{query}"), &[], b"").await;
    let path = "/runner-jobs/nobody/events";
    let is_logged = || daemon.log().lines().any(|line| line.contains(path));
    assert_eq!(level().await, "info");
    for query in ["", "?level=", "?level=loud", "?level=DEBUG", "?level=debug&level=info", "?level=debug&access=true"] {
        let answer = set(query).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "request.query"), "{query}");
    }
    let detail = set("?level=loud").await.json()["detail"].clone();
    assert_eq!(detail, "level=\"loud\" is none of error, warn, info, debug, trace");
    daemon.get(path).await;
    assert_eq!((level().await, is_logged()), ("info".into(), false));

    assert_eq!(set("?level=debug").await.json()["level"], "debug");
    daemon.logs(&["the level of the log is changed by an operator", "\"before\":\"info\",\"after\":\"debug\""]).await;
    daemon.get(path).await;
    daemon.logs(&[path]).await;
    assert_eq!(level().await, "debug");
    let settings = daemon.ask_admin("/settings").await.text();
    assert!(settings.contains("level = \"info\""), "the settings are still those of the file: {settings}");

    daemon.signal("HUP");
    daemon.logs(&["settings reloaded"]).await;
    assert_eq!(level().await, "info");
    // The less is logged, the more this is said before.
    set("?level=error").await;
    daemon.logs(&["the level of the log is changed by an operator", "\"level\":\"WARN\"", "\"after\":\"error\""]).await;
}

#[tokio::test]
async fn an_operator_makes_it_leave_as_a_signal_does_and_the_signal_that_follows_does_not_hurry_it() {
    let settings = [("shutdown.grace", "0s"), ("shutdown.drain", "10m"), ("stream.write_timeout", "10m")];
    let mut daemon = Daemon::with(&settings).await;
    daemon.write("job", 0..1).await;
    let mut stream = daemon.stream("job").await;
    stream.event().await;
    // It keeps the process from leaving for as long as the test wants.
    daemon.write("other", 0..1).await;
    let stalled = narrow(daemon.http, &encode("GET", &stream_path("other"), &[], b"")).await;
    daemon.has_subscribers(2).await;
    write_big(&daemon, "other", 1..800).await;
    daemon.metric_reaches("jobcast_blocked_subscribers", 1.0).await;
    let of_page = request(daemon.admin, "POST", "/drain", &[("Origin", "https://evil.example")], b"").await;
    assert_eq!((of_page.status, of_page.code().as_str()), (403, "request.origin"));
    assert_eq!(daemon.ask_admin("/readyz").await.status, 200);
    let refused = daemon.ask_admin("/drain").await;
    assert_eq!((refused.status, refused.header("Allow")), (405, Some("POST")));

    for _ in 0..2 {
        let answer = request(daemon.admin, "POST", "/drain", &[], b"").await;
        assert_eq!((answer.status, &answer.json()["status"]), (202, &"leaving".into()), "{answer:?}");
    }
    daemon.logs(&["leaving: saying not ready", "POST /drain"]).await;
    assert_eq!(daemon.ask_admin("/readyz").await.json()["code"], "server.draining");
    // An orchestrator sends it once its hook has returned.
    daemon.signal("TERM");
    daemon.logs(&["leaving already", "SIGTERM"]).await;
    let told = stream.rest().await;
    assert!(told.len() == 1 && told[0].is("stream.bye"), "{told:?}");
    assert_eq!(told[0].json()["reason"], "drain");
    drop(stalled);
    assert!(daemon.exit().await.success());
    assert!(!daemon.log().contains("leaving at once"), "{}", daemon.log());
}
