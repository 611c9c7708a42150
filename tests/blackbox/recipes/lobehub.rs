//! LobeHub: an outcome inside of the last event, and a hash with the status.

use super::{Servers, add, is_told, rest, serve};
use crate::support::Redis;
use crate::support::redis::ask;
use serde_json::json;

#[tokio::test]
async fn an_operation_of_lobehub_is_told_to_its_end_with_the_reason_inside() {
    operations_are_told(&Redis::start().await).await;
}

/// Sets the status of an operation.
async fn set_status(servers: &impl Servers, operation: &str, status: &str) {
    let key = format!("agent_runtime_meta:{operation}");
    ask::<()>(&mut servers.link(&key).await, &["HSET", &key, "status", status]).await;
}

pub async fn operations_are_told(servers: &impl Servers) {
    let daemon = serve("lobehub", servers).await;
    let ends =
        [("completed", "done", "COMPLETED"), ("error", "error", "FAILED"), ("interrupted", "interrupted", "CANCELLED")];
    for (reason, word, status) in ends {
        let job = format!("op-{reason}");
        let key = format!("agent_runtime_stream:{job}");
        let link = servers.link(&key).await;
        let entry = async |kind: &str, step: &str, data: String| {
            let fields =
                ["type", kind, "stepIndex", step, "operationId", &job, "data", &data, "timestamp", "1795694400000"];
            add(&mut link.clone(), &key, &fields).await;
        };
        set_status(servers, &job, "running").await;
        entry("step_start", "0", json!({"model": "m"}).to_string()).await;
        let mut stream = daemon.stream(&job).await;
        let first = stream.event().await.json();
        assert_eq!((&first["stepId"], &first["timestamp"]), (&json!("0"), &json!("2026-11-26T12:00:00.000Z")));
        assert_eq!((&first["type"], &first["payload"]), (&json!("step_start"), &json!({"model": "m"})));
        // The hash says so first, and the end is not the last entry.
        set_status(servers, &job, word).await;
        ask::<()>(&mut link.clone(), &["MULTI"]).await;
        entry("agent_runtime_end", "1", json!({ "reason": reason }).to_string()).await;
        entry("usage", "1", "{\"tokens\":42}".into()).await;
        ask::<()>(&mut link.clone(), &["EXEC"]).await;
        let (mut events, told) = rest(&mut stream).await;
        events.insert(0, ("step_start".into(), json!({"model": "m"})));
        let expected = [
            ("step_start", json!({"model": "m"})),
            ("agent_runtime_end", json!({ "reason": reason })),
            ("usage", json!({"tokens": 42})),
        ];
        is_told("lobehub", servers, &daemon, &job, (events, told), (&expected, status)).await;
        // The hash alone says how it was, once the stream has expired.
        ask::<()>(&mut link.clone(), &["DEL", &key]).await;
        assert_eq!(daemon.get(&format!("/runner-jobs/{job}")).await.json()["status"], status);
    }
    // A runtime that dies writes no last event.
    let key = "agent_runtime_stream:dead";
    set_status(servers, "dead", "running").await;
    add(&mut servers.link(key).await, key, &["type", "step_start", "data", "{}"]).await;
    let mut stream = daemon.stream("dead").await;
    stream.event().await;
    set_status(servers, "dead", "error").await;
    assert_eq!(rest(&mut stream).await, (vec![], "FAILED".into()));
}
