//! The end that is not the end: a final status is told at once, and events that come late come before the end.

use super::*;

/// Reads up to the end, and returns statuses and numbers of events in short.
async fn shown_to_the_end(stream: &mut Stream) -> Vec<String> {
    let mut shown: Vec<String> = Vec::new();
    loop {
        let message = stream.next_or_status().await;
        let data: serde_json::Value = serde_json::from_str(&message.data).expect("JSON");
        let status = || data["status"].as_str().expect("a status").to_string();
        match message.event.as_deref() {
            Some("stream.status") => {
                assert_eq!(message.id, None, "a status is no place");
                shown.push(status());
            }
            Some("stream.complete") => {
                shown.push(format!("complete {}", status()));
                return shown;
            }
            _ => shown.push(message.number().to_string()),
        }
    }
}

#[tokio::test]
async fn late_events_of_an_unknown_source_come_before_the_end_to_who_watches_and_who_comes_late() {
    let (store, address) = serve().await;
    append(&store, 0..2).await;
    let mut early = Stream::open(address, None).await;
    let first = [early.next_or_status().await, early.next_or_status().await, early.next_or_status().await];
    assert_eq!(first[0].event.as_deref(), Some("stream.status"));
    assert_eq!(first[0].data, r#"{"jobId":"job-7","status":"RUNNING"}"#);
    assert_eq!(numbers(&first[1..]), [0, 1]);
    store.set_status(&job(), JobStatus::Failed).await.expect("a status");
    assert!(early.next_or_status().await.data.contains("FAILED"), "it is told at once");
    let mut late = Stream::open(address, None).await;
    append(&store, 2..4).await;
    assert_eq!(shown_to_the_end(&mut early).await, ["2", "3", "complete FAILED"]);
    let late = shown_to_the_end(&mut late).await;
    let events: Vec<&str> = late.iter().map(String::as_str).filter(|shown| shown.len() == 1).collect();
    assert_eq!((events, late.last().map(String::as_str)), (vec!["0", "1", "2", "3"], Some("complete FAILED")));
    // This process has seen the end, and gives all of it at once.
    let again = shown_to_the_end(&mut Stream::open(address, None).await).await;
    assert_eq!(again, ["FAILED", "0", "1", "2", "3", "complete FAILED"]);
}

#[tokio::test]
async fn a_status_that_an_unknown_source_takes_back_is_no_end() {
    let (store, address) = serve().await;
    append(&store, 0..1).await;
    let mut stream = Stream::open(address, None).await;
    stream.next().await;
    for status in [JobStatus::Completed, JobStatus::Running] {
        store.set_status(&job(), status).await.expect("a status");
        assert!(stream.next_or_status().await.data.contains(status.as_str()));
    }
    tokio::time::sleep(2 * memory::END_GRACE).await;
    append(&store, 1..2).await;
    assert_eq!(stream.next().await.number(), 1);
    store.set_status(&job(), JobStatus::Cancelled).await.expect("a status");
    assert_eq!(shown_to_the_end(&mut stream).await, ["CANCELLED", "complete CANCELLED"]);
}
