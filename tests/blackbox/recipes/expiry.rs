//! Streams with no key beside them, which go after their end: what is told to those who watched, and to those who come back.

use super::{Servers, add, serve, settings};
use crate::support::redis::ask;
use crate::support::{Daemon, Redis, eventually};

/// A recipe, the key of its job's stream, and the fields of an entry and of the last one.
type Shape = (&'static str, fn(&str) -> String, [&'static str; 2], [&'static str; 2]);

pub const WITHOUT_A_KEY: [Shape; 4] = [
    ("autogpt", |job| format!("chat:stream:{job}"), ["data", r#"{"type":"start"}"#], ["data", r#"{"type":"finish"}"#]),
    (
        "posthog",
        |job| format!("task-run-stream:{job}"),
        ["data", r#"{"type":"log"}"#],
        ["data", r#"{"type":"STREAM_STATUS","status":"complete"}"#],
    ),
    (
        "dify",
        |job| format!("dify-agent:runs:{job}:events"),
        ["payload", r#"{"type":"node_started"}"#],
        ["payload", r#"{"type":"run_succeeded"}"#],
    ),
    ("llm-answer", |job| format!("answer:{job}"), ["chunk", "Hel"], ["done", "1"]),
];

#[tokio::test]
async fn a_stream_without_a_key_that_goes_after_its_end_is_over_for_who_had_everything_while_the_end_is_remembered() {
    let server = Redis::start().await;
    for shape in WITHOUT_A_KEY {
        is_over_for_who_had_everything(&server, shape).await;
    }
}

/// The answer to a poll after this cursor.
async fn polled(daemon: &Daemon, job: &str, after: &str) -> (u16, serde_json::Value) {
    let answer = daemon.get(&format!("/runner-jobs/{job}/events?after={after}")).await;
    (answer.status, answer.json())
}

pub async fn is_over_for_who_had_everything(servers: &impl Servers, (recipe, key_of, entry, last): Shape) {
    let url = servers.url();
    let daemon =
        Daemon::with(&[("config", &settings(recipe)), ("source.redis.url", &url), ("source.end_grace", "300ms")]).await;
    let other = serve(recipe, servers).await;
    for (job, goes) in [("deleted", vec!["DEL"]), ("expired", vec!["PEXPIRE", "1"])] {
        let key = key_of(job);
        let mut rows = servers.link(&key).await;
        let go = [&goes[..1], &[&*key], &goes[1..]].concat();
        add(&mut rows, &key, &entry).await;
        let mut stream = daemon.stream(job).await;
        let first = stream.event().await;
        add(&mut rows, &key, &last).await;
        let end = stream.event().await;
        // It goes while it is watched, before its end is told.
        ask::<()>(&mut rows, &go).await;
        let complete = stream.event().await;
        assert!(complete.is("stream.complete") && stream.next().await.is_none(), "{recipe} {job}: {complete:?}");
        eventually("the stream to go", async || {
            (ask::<u64>(&mut rows.clone(), &["EXISTS", &key]).await == 0).then_some(())
        })
        .await;
        for cursor in [end.cursor(), complete.cursor()] {
            assert_eq!(daemon.stream_after(job, cursor).await.head.status, 204, "{recipe} {job}");
            let (status, page) = polled(&daemon, job, cursor).await;
            assert_eq!((status, &page["complete"], page.get("reset")), (200, &true.into(), None), "{recipe}: {page}");
        }
        // Whoever lacks some, and a process that has not seen the end, can only say that there is no such job.
        assert_eq!(polled(&daemon, job, first.cursor()).await.0, 404, "{recipe} {job}");
        assert_eq!(polled(&other, job, complete.cursor()).await.0, 404, "{recipe} {job}");
    }
}
