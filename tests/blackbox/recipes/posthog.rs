//! PostHog: an envelope, and a status in the last event.

use super::{add, is_told, rest, serve};
use crate::support::Redis;
use serde_json::json;

#[tokio::test]
async fn a_run_of_posthog_is_told_to_its_end_with_the_status_inside() {
    let server = Redis::start().await;
    let mut rows = server.connect().await;
    let daemon = serve("posthog", &server).await;
    for (word, status) in [("complete", "COMPLETED"), ("error", "FAILED")] {
        let key = format!("task-run-stream:{word}");
        let events =
            [json!({"type": "log", "line": "null"}), json!({"type": "STREAM_STATUS", "status": word, "error": "x"})];
        add(&mut rows, &key, &["data", &events[0].to_string()]).await;
        let mut stream = daemon.stream(word).await;
        add(&mut rows, &key, &["data", &events[1].to_string()]).await;
        let live = rest(&mut stream).await;
        let expected = events.each_ref().map(|event| (event["type"].as_str().expect("a type"), event.clone()));
        is_told("posthog", &server, &daemon, word, live, (&expected, status)).await;
    }
}
