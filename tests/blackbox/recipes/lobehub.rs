//! LobeHub: an outcome inside of the last event.

use super::{add, is_told, rest, serve};
use crate::support::Redis;
use crate::support::redis::ask;
use serde_json::json;

#[tokio::test]
async fn an_operation_of_lobehub_is_told_to_its_end_with_the_reason_inside() {
    let server = Redis::start().await;
    let mut rows = server.connect().await;
    let daemon = serve("lobehub", &server).await;
    for (reason, status) in [("completed", "COMPLETED"), ("error", "FAILED"), ("interrupted", "CANCELLED")] {
        let job = format!("op-{reason}");
        let (key, link) = (format!("agent_runtime_stream:{job}"), rows.clone());
        let entry = |kind: &'static str, step: &'static str, data: String| {
            let mut rows = link.clone();
            let (key, job) = (&key, &job);
            async move {
                let fields =
                    ["type", kind, "stepIndex", step, "operationId", job, "data", &data, "timestamp", "1795694400000"];
                add(&mut rows, key, &fields).await;
            }
        };
        entry("step_start", "0", json!({"model": "m"}).to_string()).await;
        let mut stream = daemon.stream(&job).await;
        let first = stream.event().await.json();
        assert_eq!((&first["stepId"], &first["timestamp"]), (&json!("0"), &json!("2026-11-26T12:00:00.000Z")));
        assert_eq!((&first["type"], &first["payload"]), (&json!("step_start"), &json!({"model": "m"})));
        // The end is not the last entry.
        ask::<()>(&mut rows, &["MULTI"]).await;
        entry("agent_runtime_end", "1", json!({ "reason": reason }).to_string()).await;
        entry("usage", "1", "{\"tokens\":42}".into()).await;
        ask::<()>(&mut rows, &["EXEC"]).await;
        let (mut events, told) = rest(&mut stream).await;
        events.insert(0, ("step_start".into(), json!({"model": "m"})));
        let expected = [
            ("step_start", json!({"model": "m"})),
            ("agent_runtime_end", json!({ "reason": reason })),
            ("usage", json!({"tokens": 42})),
        ];
        is_told("lobehub", &server, &daemon, &job, (events, told), (&expected, status)).await;
    }
}
