//! AutoGPT: an envelope, and ids that are not one event's alone.

use super::{add, is_told, rest, serve};
use crate::support::Redis;
use serde_json::json;

#[tokio::test]
async fn a_turn_of_autogpt_is_told_to_its_end_and_deltas_with_one_id_all_arrive() {
    let server = Redis::start().await;
    let mut rows = server.connect().await;
    let daemon = serve("autogpt", &server).await;
    let events = [
        json!({"type": "start", "messageId": "m"}),
        json!({"type": "text-delta", "id": "t", "delta": "Hel"}),
        json!({"type": "text-delta", "id": "t", "delta": "42"}),
        json!({"type": "finish"}),
    ];
    add(&mut rows, "chat:stream:turn", &["data", &events[0].to_string()]).await;
    let mut stream = daemon.stream("turn").await;
    for event in &events[1..] {
        add(&mut rows, "chat:stream:turn", &["data", &event.to_string()]).await;
    }
    let live = rest(&mut stream).await;
    let expected = events.each_ref().map(|event| (event["type"].as_str().expect("a type"), event.clone()));
    is_told("autogpt", &server, &daemon, "turn", live, (&expected, "COMPLETED")).await;
}
