//! Dify: an envelope with times in seconds.

use super::{add, is_told, rest, serve};
use crate::support::Redis;
use serde_json::json;

#[tokio::test]
async fn a_run_of_dify_is_told_to_its_end_with_its_own_times() {
    let server = Redis::start().await;
    let mut rows = server.connect().await;
    let daemon = serve("dify", &server).await;
    let ends = [("run_succeeded", "COMPLETED"), ("run_failed", "FAILED"), ("run_cancelled", "CANCELLED")];
    for (last, status) in ends {
        let key = format!("dify-agent:runs:{last}:events");
        let at = |kind: &str| json!({"type": kind, "created_at": 1795694400, "data": {"text": "1"}});
        let events = [at("node_started"), at(last)];
        add(&mut rows, &key, &["payload", &events[0].to_string()]).await;
        let mut stream = daemon.stream(last).await;
        let first = stream.event().await.json();
        assert_eq!(first["timestamp"], "2026-11-26T12:00:00.000Z");
        add(&mut rows, &key, &["payload", &events[1].to_string()]).await;
        let (mut live, told) = rest(&mut stream).await;
        live.insert(0, ("node_started".into(), first["payload"].clone()));
        let expected = [("node_started", at("node_started")), (last, at(last))];
        is_told("dify", &server, &daemon, last, (live, told), (&expected, status)).await;
    }
}
