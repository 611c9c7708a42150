//! Faults of one job's rows stay in that job, and what cannot be read of one event in that event.

use super::memory::Memory;
use super::{METRICS, Message, PATIENCE, Stream, append, append_to, job, numbers, serve};
use jobcast::error::{SourceCode, SourceError};
use jobcast::event::{Event, JobId, Part, Payload};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

fn other() -> JobId {
    "job-8".parse().expect("an id")
}

/// A store with two watched jobs of ten events each, of which the rows of one cannot be read from now on. The reader of that
/// one has been told, and is returned with what it was told and the cursors that it had; after it, the reader of the other.
async fn faulty() -> (Memory, SocketAddr, (Stream, Message, Vec<Message>), Stream) {
    let (store, address) = serve().await;
    append(&store, 0..10).await;
    append_to(&store, &other(), 0..10).await;
    let mut stream = Stream::open(address, None).await;
    let mut beside = Stream::of(address, &other(), None).await;
    let seen = stream.take(10).await;
    assert_eq!(numbers(&beside.take(10).await), Vec::from_iter(0..10));
    // Of a kind that waiting would not mend, were it the source's.
    let error = SourceError::new(SourceCode::Schema, "reading rows", "a cast fails", "mend the row");
    store.set_fault(&job(), Some(error));
    let told = stream.next().await;
    (store, address, (stream, told, seen), beside)
}

/// The answer to a poll, as it is.
async fn poll(address: SocketAddr) -> String {
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    let path = format!("/runner-jobs/{}/events", job().as_str());
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.expect("a request");
    let mut answer = String::new();
    timeout(PATIENCE, socket.read_to_string(&mut answer)).await.expect("in time").expect("an answer");
    answer
}

#[tokio::test]
async fn only_the_readers_of_a_job_whose_rows_cannot_be_read_are_told_once_and_lose_nothing() {
    let (store, _, (mut stream, told, _), mut beside) = faulty().await;
    assert_eq!(told.event.as_deref(), Some("stream.error"), "{told:?}");
    let data: serde_json::Value = serde_json::from_str(&told.data).expect("JSON");
    assert_eq!((&data["code"], &data["retryable"]), (&"source.schema".into(), &true.into()));
    assert!(data["retryInMs"].as_u64().is_some_and(|wait| wait > 0), "{told:?}");
    // Each of these reads meets the fault again.
    for number in 10..30 {
        append_to(&store, &other(), number..number + 1).await;
        assert_eq!(numbers(&beside.take(1).await), [number]);
    }
    assert!(METRICS.render().contains("jobcast_source_up 1"), "the source answers");
    append(&store, 10..15).await;
    store.set_fault(&job(), None);
    assert_eq!(numbers(&stream.take(5).await), Vec::from_iter(10..15), "told once, and nothing is lost");
}

#[tokio::test]
async fn a_reader_that_comes_to_a_job_whose_rows_cannot_be_read_is_told_and_polls_get_a_503() {
    let (store, address, (_stream, _, seen), _) = faulty().await;
    for after in [None, Some(seen[4].cursor()), Some(seen[9].cursor())] {
        let mut late = Stream::open(address, after).await;
        let mut first = late.next().await;
        while first.event.as_deref() == Some("step.output") {
            first = late.next().await;
        }
        assert_eq!(first.event.as_deref(), Some("stream.error"), "{first:?} after {after:?}");
        assert!(first.data.contains("\"retryable\":true"), "{first:?}");
    }
    let answer = poll(address).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("source.schema"), "{answer}");
    assert!(answer.to_lowercase().contains("retry-after: "), "{answer}");
    store.set_fault(&job(), None);
    assert!(poll(address).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_job_whose_rows_cannot_be_read_is_not_asked_for_in_a_tight_loop() {
    let (store, _, _stream, _beside) = faulty().await;
    let before = store.asked_in_vain();
    // Two polls' time; a tight loop asks many thousand times in it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asked = store.asked_in_vain() - before;
    assert!(asked < 20, "{asked} reads in a second");
}

#[tokio::test]
async fn an_event_of_which_a_part_cannot_be_read_says_so_and_is_counted() {
    let (store, address) = serve().await;
    let event = Event {
        id: "e-0".into(),
        job_id: job(),
        step_id: None,
        kind: "step.output".into(),
        timestamp: None,
        actor: None,
        payload: Payload::from_text("\u{fffd}".into()),
        unreadable: vec![Part::Timestamp, Part::Payload],
    };
    store.put(&job(), event);
    append(&store, 1..3).await;
    let mut stream = Stream::open(address, None).await;
    let first = stream.next().await;
    assert!(first.data.contains(r#""unreadable":["timestamp","payload"]"#), "{first:?}");
    let rest = stream.take(2).await;
    assert_eq!(numbers(&rest), [1, 2]);
    assert!(rest.iter().all(|message| !message.data.contains("unreadable")), "{rest:?}");
    let metrics = METRICS.render();
    let count = metrics.lines().find_map(|line| line.strip_prefix("jobcast_unreadable_events_total "));
    assert!(count.and_then(|count| count.parse().ok()).is_some_and(|count: u64| count > 0), "{metrics}");
}
