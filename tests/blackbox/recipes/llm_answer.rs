//! A language model's answer: pieces of text.

use super::{Servers, add, is_told, rest, serve};
use crate::support::Redis;
use serde_json::{Value, json};

#[tokio::test]
async fn an_answer_arrives_as_the_text_that_it_is_and_a_reload_loses_nothing() {
    answers_are_told(&Redis::start().await).await;
}

pub async fn answers_are_told(servers: &impl Servers) {
    let daemon = serve("llm-answer", servers).await;
    let mut rows = servers.link("answer:a").await;
    let pieces = ["Hel", "42", "true", "null", "", " {\"a\":1} ", "[DONE]", "\u{1f600}\n"];
    add(&mut rows, "answer:a", &["chunk", pieces[0]]).await;
    let mut stream = daemon.stream("a").await;
    for piece in &pieces[1..4] {
        add(&mut rows, "answer:a", &["chunk", piece]).await;
    }
    let seen = stream.take(4).await;
    // A reload.
    drop(stream);
    let mut again = daemon.stream_after("a", seen[1].cursor()).await;
    let mut whole = daemon.stream("a").await;
    for piece in &pieces[4..] {
        add(&mut rows, "answer:a", &["chunk", piece]).await;
    }
    add(&mut rows, "answer:a", &["done", "1"]).await;
    let mut expected: Vec<(&str, Value)> = pieces.iter().map(|piece| ("token", json!(piece))).collect();
    expected.push(("token", Value::Null));
    let (rest_of_it, status) = rest(&mut again).await;
    assert_eq!((rest_of_it.len(), &*status), (expected.len() - 2, "COMPLETED"));
    assert_eq!(rest_of_it[0].1, json!("true"));
    let live = rest(&mut whole).await;
    is_told("llm-answer", servers, &daemon, "a", live, (&expected, "COMPLETED")).await;
    for (end, status) in [("failed", "FAILED"), ("stopped", "CANCELLED")] {
        let key = format!("answer:{end}");
        let mut rows = servers.link(&key).await;
        add(&mut rows, &key, &["chunk", "a"]).await;
        add(&mut rows, &key, &["done", end]).await;
        let (_, told) = rest(&mut daemon.stream(end).await).await;
        assert_eq!(told, status);
    }
}
