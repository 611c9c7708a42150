//! Requests that wait for a job that is not there yet: the limits that they count against, and their ends.

use crate::auth::{SECRET, with_tokens};
use crate::limits::refusals;
use crate::support::daemon::stream_path;
use crate::support::http::{encode, request};
use crate::support::http2::Secure;
use crate::support::tls::Authority;
use crate::support::token::{bearer, claims, claims_with, seconds_from_now};
use crate::support::{Daemon, Postgres, Signer, Stream, eventually, numbers};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longer than any test may take.
const FOREVER: (&str, &str) = ("source.appear", "10m");
const POLL: &str = "/runner-jobs/job/events?wait=60";

/// Sends a request on a connection of its own, and leaves it open.
async fn begun(daemon: &Daemon, path: &str) -> TcpStream {
    let mut socket = TcpStream::connect(daemon.http).await.expect("connect");
    socket.write_all(&encode("GET", path, &[], b"")).await.expect("ask");
    socket
}

#[tokio::test]
async fn so_many_may_wait_and_one_more_is_told_to_come_back_until_somebody_leaves() {
    let daemon = Daemon::with(&[FOREVER, ("http.max_waiting", "2")]).await;
    let mut held = vec![begun(&daemon, &stream_path("job")).await, begun(&daemon, POLL).await];
    daemon.has_waiting(2).await;
    let mut refused = daemon.stream("job").await;
    let told = refused.rest().await;
    assert_eq!((refused.head.status, told.len()), (200, 1), "{told:?}");
    let said = told[0].json();
    assert_eq!((&said["code"], &said["retryable"]), (&"server.too_many_waiting".into(), &true.into()));
    let polled = daemon.get(POLL).await;
    assert_eq!((polled.status, polled.code().as_str()), (503, "server.too_many_waiting"));
    assert!(polled.header("Retry-After").is_some());
    daemon.logs_times("http.max_waiting", 1).await;
    daemon.metric_is(&refusals("waiting"), 2.0).await;
    for count in [1, 0] {
        drop(held.pop());
        daemon.has_waiting(count).await;
    }
    let (mut stream, ()) = tokio::join!(daemon.stream("job"), async {
        daemon.has_waiting(1).await;
        daemon.write("job", 0..1).await;
    });
    assert_eq!(stream.event().await.number(), 0);
}

#[tokio::test]
async fn a_request_that_waits_counts_as_a_stream_and_operators_see_and_close_it() {
    let daemon = Daemon::with(&[FOREVER, ("http.max_connections", "2")]).await;
    let waiting = begun(&daemon, POLL).await;
    daemon.has_waiting(1).await;
    let (mut stream, ()) = tokio::join!(daemon.stream("job"), async {
        daemon.has_waiting(2).await;
        let told = daemon.stream("other").await.rest().await;
        assert_eq!(told[0].json()["code"], "server.too_many_streams");
        let listed = daemon.ask_admin("/connections?job=job").await.json();
        assert_eq!(listed["total"], 2, "{listed}");
        let closed = request(daemon.admin, "DELETE", "/connections?job=job", &[], b"").await;
        assert_eq!(closed.json()["closed"], 2, "{closed:?}");
    });
    let told = stream.rest().await;
    assert!(told[0].is("stream.bye") && told[0].json()["reason"] == "revoked", "{told:?}");
    let mut socket = waiting;
    let mut answer = vec![0; 12];
    socket.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(answer, b"HTTP/1.1 503");
    daemon.has_waiting(0).await;
}

#[tokio::test]
async fn a_drain_sends_those_who_wait_to_the_next_process() {
    let mut daemon = Daemon::with(&[FOREVER, ("shutdown.grace", "0s"), ("shutdown.drain", "20s")]).await;
    let (mut stream, polled, ()) = tokio::join!(daemon.stream("job"), daemon.get(POLL), async {
        daemon.has_waiting(2).await;
        daemon.signal("TERM");
    });
    let told = stream.rest().await;
    assert!(told[0].is("stream.bye") && told[0].json()["reason"] == "drain", "{told:?}");
    assert_eq!((polled.status, polled.code().as_str()), (503, "server.draining"));
    assert!(polled.header("Retry-After").is_some());
    assert!(daemon.exit().await.success());
}

#[tokio::test]
async fn nobody_waits_for_a_job_without_the_right_to_watch_it_nor_for_longer_than_that_lasts() {
    let daemon = with_tokens(&[FOREVER, ("auth.jwt.leeway", "0s")]).await;
    let signer = Signer::secret(SECRET);
    let other = bearer(&signer.token(&claims(&["other"])));
    for path in [&stream_path("job"), POLL] {
        for (headers, status) in [(vec![], 401), (vec![("Authorization", other.as_str())], 403)] {
            assert_eq!(request(daemon.http, "GET", path, &headers, b"").await.status, status, "{path}");
        }
    }
    let brief = bearer(&signer.token(&claims_with(&["job"], json!({ "exp": seconds_from_now(3) }))));
    let brief = [("Authorization", brief.as_str())];
    let path = stream_path("job");
    let (mut stream, ()) = tokio::join!(Stream::open(daemon.http, &path, &brief), daemon.has_waiting(1));
    let told = stream.rest().await;
    assert!(told[0].is("stream.bye") && told[0].json()["reason"] == "expired", "{told:?}");
}

/// The time that a request's head may take is long over when the job appears.
#[tokio::test]
async fn the_wait_outlasts_the_time_for_heads_on_each_protocol() {
    let settings = [FOREVER, ("http.header_timeout", "400ms")];
    let (plain, secure) = (Daemon::with(&settings).await, Secure::start(&settings).await);
    let client = secure.client().await;
    let over_tls = async |authority: &Authority| {
        let mut socket = authority.connect(secure.daemon.http, "http/1.1").await.expect("TLS");
        socket.write_all(&encode("GET", &stream_path("job"), &[], b"")).await.expect("ask");
        Stream::on(socket).await.expect("an answer")
    };
    let write = async {
        plain.has_waiting(1).await;
        secure.daemon.has_waiting(2).await;
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        plain.write("job", 0..2).await;
        secure.client().await.write("job", 0..2).await;
    };
    let (mut first, mut second, mut third, ()) =
        tokio::join!(plain.stream("job"), over_tls(&secure.authority), client.stream("job"), write);
    assert_eq!(numbers(&first.take(2).await), [0, 1]);
    assert_eq!(numbers(&second.take(2).await), [0, 1]);
    assert_eq!(numbers(&third.take(2).await), [0, 1]);
    // A client of HTTP/2 takes its request back.
    let other = stream_path("other");
    let asked = client.request("GET", &other, b"");
    tokio::select! {
        _ = asked => panic!("there is no such job"),
        () = secure.daemon.has_waiting(1) => {}
    }
    secure.daemon.has_waiting(0).await;
}

/// Nothing notifies, and the rows have no transaction ids and no time that could be believed.
#[tokio::test]
async fn a_job_appears_by_the_poll_in_a_table_of_others_and_by_ingest_at_once() {
    let server = Postgres::start().await;
    let tables = "CREATE TABLE job_events (id text PRIMARY KEY, job_id uuid NOT NULL, step_id text, type text NOT NULL,
                    timestamp timestamptz NOT NULL, actor text, payload jsonb);
                  CREATE INDEX ON job_events (job_id, timestamp);
                  CREATE TABLE runner_jobs (id uuid PRIMARY KEY, status text NOT NULL)";
    server.execute(tables).await;
    let settings = [FOREVER, ("source.postgres.listen", ""), ("ingest.enabled", "true")];
    let daemon = Daemon::on("postgres", &server.url("postgres"), &settings).await;
    let [old, new] = [1, 2].map(|number| format!("0000000A-0000-0000-0000-00000000000{number}"));
    let (mut stream, ()) = tokio::join!(daemon.stream(&old), async {
        daemon.has_waiting(1).await;
        let insert =
            format!("INSERT INTO job_events VALUES ('e', '{old}', NULL, 'x', '1970-01-01', NULL, '{{\"n\":7}}')");
        server.execute(&insert).await;
    });
    assert_eq!(stream.event().await.number(), 7);

    let slow = [&settings[..], &[("source.poll_interval", "10m")]].concat();
    let daemon = Daemon::on("postgres", &server.url("postgres"), &slow).await;
    let (stream, ()) = tokio::join!(daemon.stream(&new), async {
        daemon.has_waiting(1).await;
        daemon.set_status(&new, "QUEUED").await;
    });
    assert_eq!(stream.head.status, 200);
    daemon.write(&new, 0..1).await;
    drop(stream);
    eventually("the event", async || {
        let page = daemon.get(&format!("/runner-jobs/{new}/events")).await.json();
        (page["events"][0]["payload"]["n"] == 0).then_some(())
    })
    .await;
}
