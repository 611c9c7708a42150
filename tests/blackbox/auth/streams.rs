//! Open streams and their rights.

use super::{SECRET, ask_with, refusal, with_tokens};
use crate::support::daemon::stream_path;
use crate::support::http::request;
use crate::support::token::{bearer, claims, claims_with, seconds_from_now};
use crate::support::{Daemon, Signer, Stream};
use serde_json::json;

async fn open(daemon: &Daemon, job: &str, token: &str) -> Stream {
    Stream::open(daemon.http, &stream_path(job), &[("Authorization", &bearer(token))]).await
}

#[tokio::test]
async fn a_stream_ends_with_its_token_and_says_when_to_come_back() {
    let daemon = with_tokens(&[("auth.jwt.leeway", "1s"), ("auth.recheck", "10m"), ("stream.retry", "2s")]).await;
    daemon.write("job", 0..1).await;
    let signer = Signer::secret(SECRET);
    // Time enough to open a stream, also on a busy machine.
    let end = seconds_from_now(8);
    let short = signer.token(&claims_with(&["job"], json!({ "exp": end })));
    let mut stream = open(&daemon, "job", &short).await;
    let mut other = open(&daemon, "job", &signer.token(&claims(&["job"]))).await;
    assert_eq!((stream.event().await.number(), other.event().await.number()), (0, 0));
    let told = stream.rest().await;
    // Not before its time; and no more than the end of the token is to come for long after it.
    assert!(seconds_from_now(0) >= end);
    assert!(told.len() == 1 && told[0].is("stream.bye"), "{told:?}");
    let said = told[0].json();
    assert_eq!(said["reason"], "expired");
    assert!(said["retryInMs"].as_u64().is_some_and(|wait| wait >= 500), "{said}");
    assert_eq!(told[0].retry, said["retryInMs"].as_u64());
    assert_eq!(refusal(&ask_with(&daemon, &stream_path("job"), &short).await).1, "auth.invalid");
    daemon.write("job", 1..2).await;
    assert_eq!(other.event().await.number(), 1);
    drop(stream);
    daemon.metric_is("jobcast_disconnects_total{reason=\"expired\"}", 1.0).await;
}

#[tokio::test]
async fn a_token_that_is_about_to_end_opens_no_stream_that_would_end_at_once() {
    let daemon = with_tokens(&[("auth.jwt.leeway", "0s")]).await;
    daemon.write("job", 0..1).await;
    // Less than a second is left, whatever the clock says between.
    let token =
        Signer::secret(SECRET).token(&claims_with(&["job"], json!({ "exp": seconds_from_now(0) as f64 + 0.9 })));
    for path in [stream_path("job"), "/runner-jobs/job/events".into()] {
        assert_eq!(refusal(&ask_with(&daemon, &path, &token).await), (401, "auth.invalid".into()));
    }
}

#[tokio::test]
async fn a_long_poll_that_outlives_its_token_is_told_so() {
    let daemon = with_tokens(&[("auth.jwt.leeway", "0s")]).await;
    daemon.write("job", 0..1).await;
    let token = Signer::secret(SECRET).token(&claims_with(&["job"], json!({ "exp": seconds_from_now(8) })));
    let path = format!("/runner-jobs/job/events?access_token={token}");
    let cursor = daemon.get(&path).await.json()["cursor"].as_str().expect("a cursor").to_string();
    let path = format!("/runner-jobs/job/events?wait=60&after={cursor}");
    assert_eq!(refusal(&ask_with(&daemon, &path, &token).await), (401, "auth.invalid".into()));
}

#[tokio::test]
async fn an_operator_finds_and_ends_the_streams_of_one_caller_by_name() {
    let daemon = with_tokens(&[("log.format", "json"), ("log.access", "true")]).await;
    daemon.write("job", 0..1).await;
    let token = |name: &str| Signer::secret(SECRET).token(&claims_with(&["job"], json!({ "sub": name })));
    let (mut of_ann, mut of_bob) =
        (open(&daemon, "job", &token("ann")).await, open(&daemon, "job", &token("bob")).await);
    assert_eq!((of_ann.event().await.number(), of_bob.event().await.number()), (0, 0));
    let id = |stream: &Stream| stream.head.header("X-Jobcast-Connection").expect("an id").to_string();
    let of = async |name: &str| daemon.ask_admin(&format!("/connections?subject={name}")).await.json();
    let (listed, nobody) = (of("ann").await, of("an").await);
    assert_eq!((&listed["total"], &nobody["total"]), (&1.into(), &0.into()), "{listed}");
    let one = &listed["connections"][0];
    assert_eq!((&one["subject"], &one["id"]), (&"ann".into(), &id(&of_ann).into()), "{one}");

    let closed = request(daemon.admin, "DELETE", "/connections?subject=ann", &[], b"").await;
    assert_eq!((closed.status, &closed.json()["closed"]), (200, &1.into()));
    let told = of_ann.rest().await;
    assert!(told.len() == 1 && told[0].is("stream.bye"), "{told:?}");
    assert_eq!(told[0].json()["reason"], "revoked");
    daemon.write("job", 1..2).await;
    assert_eq!(of_bob.event().await.number(), 1);
    assert_eq!((&of("ann").await["total"], &of("bob").await["total"]), (&0.into(), &1.into()));
    drop(of_ann);
    for message in ["stream begins", "stream ended", "request"] {
        let parts = [
            format!("\"message\":\"{message}\""),
            format!("\"connection\":\"{}\"", one["id"].as_str().expect("an id")),
        ];
        let line = daemon.logs(&[&parts[0], &parts[1]]).await;
        assert!(line.contains("\"subject\":\"ann\""), "{line}");
    }
}

#[tokio::test]
async fn the_command_that_follows_a_job_brings_a_token() {
    let daemon = with_tokens(&[]).await;
    daemon.write("job", 0..2).await;
    daemon.set_status("job", "COMPLETED").await;
    let url = format!("http://{}", daemon.http);
    let token = Signer::secret(SECRET).token(&claims(&["job"]));
    let refused = crate::support::daemon::run(&["tail", "job", "--url", &url], &[]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("auth.missing"), "{said}");
    let followed = crate::support::daemon::run(&["tail", "job", "--url", &url, "--token", &token, "--json"], &[]).await;
    assert!(followed.status.success(), "{followed:?}");
    assert_eq!(String::from_utf8_lossy(&followed.stdout).lines().count(), 2);
}
