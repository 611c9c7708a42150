//! BullMQ: one stream for all jobs of a queue.

use super::{Servers, add, is_told, rest, serve};
use crate::support::Redis;
use crate::support::redis::ask;
use serde_json::json;

#[tokio::test]
async fn jobs_of_a_bullmq_queue_are_told_apart_and_each_to_its_end() {
    jobs_are_told(&Redis::start().await).await;
}

pub async fn jobs_are_told(servers: &impl Servers) {
    let daemon = serve("bullmq", servers).await;
    let key = "bull:orders:events";
    let mut rows = servers.link(key).await;
    for job in ["1", "2"] {
        add(&mut rows, key, &["event", "active", "jobId", job, "prev", "waiting"]).await;
    }
    let (mut one, mut two) = (daemon.stream("1").await, daemon.stream("2").await);
    add(&mut rows, key, &["event", "progress", "jobId", "2", "data", "42"]).await;
    let mut last = redis::pipe();
    last.atomic();
    last.cmd("XADD").arg(key).arg(&["*", "event", "completed", "jobId", "1", "returnvalue", "{\"ok\":true}"]);
    last.cmd("XADD").arg(key).arg(&["*", "event", "failed", "jobId", "2", "failedReason", "boom", "prev", "active"]);
    last.cmd("XADD").arg(key).arg(&["*", "event", "retries-exhausted", "jobId", "2", "attemptsMade", "3"]);
    last.cmd("XADD").arg(key).arg(&["*", "event", "drained"]);
    last.exec_async(&mut rows).await.expect("the last entries");
    let (one, two) = (rest(&mut one).await, rest(&mut two).await);
    let expected = [("active", json!({"prev": "waiting"})), ("completed", json!({"returnvalue": "{\"ok\":true}"}))];
    is_told("bullmq", servers, &daemon, "1", one, (&expected, "COMPLETED")).await;
    let expected = [
        ("active", json!({"prev": "waiting"})),
        ("progress", json!({"data": "42"})),
        ("failed", json!({"failedReason": "boom", "prev": "active"})),
        ("retries-exhausted", json!({"attemptsMade": "3"})),
    ];
    is_told("bullmq", servers, &daemon, "2", two, (&expected, "FAILED")).await;
    // A job whose entries are trimmed away is known by its hash, which says how it ended.
    let old = ["HSET", "bull:orders:old", "finishedOn", "1795694400000", "failedReason", "boom"];
    ask::<()>(&mut servers.link(old[1]).await, &old).await;
    assert_eq!(rest(&mut daemon.stream("old").await).await, (vec![], "FAILED".into()));
    let older = ["HSET", "bull:orders:older", "finishedOn", "1795694400000"];
    ask::<()>(&mut servers.link(older[1]).await, &older).await;
    assert_eq!(rest(&mut daemon.stream("older").await).await, (vec![], "COMPLETED".into()));
    assert_eq!(daemon.get("/runner-jobs/unknown/events").await.status, 404);
}
