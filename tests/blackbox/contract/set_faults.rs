//! A set of jobs while the rows of one of them cannot be read.

use super::sets::{by_job, event, expect, set_path};
use crate::support::{Daemon, Message, Stream};
use std::ops::Range;

/// The ways to change a store.
pub trait Spoils {
    async fn append(&self, job: &str, numbers: Range<u64>);
    /// Makes the job `bad` one that cannot be read.
    async fn spoil(&self);
    async fn mend(&self);
}

/// Reads so many events and words of faults.
pub async fn take(stream: &mut Stream, count: usize, faults: usize) -> (Vec<Message>, Vec<Message>) {
    let (mut events, mut errors) = (Vec::new(), Vec::new());
    while events.len() < count || errors.len() < faults {
        let message = stream.next().await.expect("the stream is open");
        match message.event.as_deref() {
            Some("stream.error") => errors.push(message),
            Some(event) if !event.starts_with("stream.") => events.push(message),
            _ => {}
        }
    }
    (events, errors)
}

/// Expects one word of the fault, which says that it may pass.
pub fn is_of_the_bad(errors: &[Message]) {
    let [error] = errors else { panic!("{errors:?}") };
    let error = error.json();
    assert_eq!((&error["jobId"], &error["retryable"]), (&"bad".into(), &true.into()), "{error}");
}

pub async fn the_others_of_a_set_go_on_while_one_cannot_be_read_which_then_loses_nothing(
    daemon: &Daemon,
    store: &impl Spoils,
) {
    let jobs = ["a", "bad", "z"];
    for job in jobs {
        store.append(job, 0..3).await;
    }
    store.spoil().await;
    let mut stream = Stream::open(daemon.http, &set_path(&jobs, ""), &[]).await;
    store.append("a", 3..5).await;
    let (history, errors) = take(&mut stream, 8, 1).await;
    assert_eq!(by_job(&history), expect(&[("a", 0..5), ("z", 0..3)]));
    is_of_the_bad(&errors);

    let page = daemon.get(&set_path(&jobs, "").replace("/stream", "")).await.json();
    let (events, error) = (page["events"].as_array().map(Vec::len), &page["jobs"]["bad"]["error"]);
    assert_eq!((events, &error["retryable"], &page["complete"]), (Some(8), &true.into(), &false.into()), "{page}");
    let mut last = Stream::open(daemon.http, &set_path(&jobs, "&last=1"), &[]).await;
    let (newest, errors) = take(&mut last, 2, 1).await;
    assert_eq!(by_job(&newest), expect(&[("a", 4..5), ("z", 2..3)]));
    is_of_the_bad(&errors);

    let place = history.last().map(|message| message.cursor().to_string()).expect("an id");
    let mut resumed = Stream::open(daemon.http, &set_path(&jobs, ""), &[("Last-Event-ID", &place)]).await;
    let mut polled = daemon.get(&format!("{}&after={place}", set_path(&jobs, "").replace("/stream", ""))).await.json();
    assert_eq!(polled["events"], serde_json::json!([]), "{polled}");
    store.append("z", 3..5).await;
    let mut more_errors = [Vec::new(), Vec::new()];
    for (stream, errors) in [&mut stream, &mut resumed].into_iter().zip(&mut more_errors) {
        let (live, more) = take(stream, 2, 0).await;
        assert_eq!(by_job(&live), expect(&[("z", 3..5)]));
        errors.extend(more);
    }
    store.mend().await;
    store.append("bad", 3..5).await;
    for (stream, errors) in [&mut stream, &mut resumed].into_iter().zip(&mut more_errors) {
        let (rest, more) = take(stream, 5, 0).await;
        assert_eq!(by_job(&rest), expect(&[("bad", 0..5)]));
        errors.extend(more);
    }
    let [told_again, errors] = more_errors;
    assert!(told_again.is_empty(), "{told_again:?}");
    is_of_the_bad(&errors);
    let cursor = polled["cursor"].take();
    // What the others have had already comes first.
    let (mut after, mut rest) = (cursor, 0);
    while rest < 7 {
        let more = format!("&after={}&wait=30", after.as_str().expect("a cursor"));
        let mut page = daemon.get(&format!("{}{more}", set_path(&jobs, "").replace("/stream", ""))).await.json();
        rest += page["events"].as_array().map(Vec::len).filter(|events| *events > 0).expect("events");
        after = page["cursor"].take();
    }
    assert_eq!(rest, 7);
    store.append("a", 5..6).await;
    for stream in [&mut stream, &mut resumed] {
        assert_eq!(event(stream).await.number(), 5, "all are live again");
    }
}
