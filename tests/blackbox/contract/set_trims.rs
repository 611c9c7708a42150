//! A set of jobs one of which loses the older part of its history.

use super::sets::{by_job, event, events, expect, set_path};
use crate::support::store::Store;
use crate::support::{Daemon, Message, Stream, numbers};
use serde_json::Value;
use std::collections::BTreeMap;

const JOBS: [&str; 3] = ["a", "b", "c"];
/// The job that is trimmed, its events, and the first one that is left.
const TRIMMED: &str = "b";
const EVENTS: u64 = 10;
const LEFT: u64 = 7;

/// An id, and the number of events that its bearer has of each job.
type Known = (String, BTreeMap<String, u64>);

/// The ids of a reader's events.
fn known(messages: &[Message]) -> Vec<Known> {
    let mut has: BTreeMap<String, u64> = JOBS.iter().map(|job| (job.to_string(), 0)).collect();
    let ids = messages.iter().map(|message| {
        let job = message.json()["jobId"].as_str().expect("a job").to_string();
        has.insert(job, message.number() + 1);
        (message.cursor().to_string(), has.clone())
    });
    ids.collect()
}

/// Reads so many events, and the resets before them.
async fn take(stream: &mut Stream, count: usize) -> (Vec<Message>, Vec<Value>) {
    let (mut events, mut resets) = (Vec::new(), Vec::new());
    while events.len() < count {
        let message = stream.event().await;
        match message.event.as_deref() {
            Some("stream.reset") => resets.push(message.json()),
            Some(event) => {
                assert!(!event.starts_with("stream."), "{message:?}");
                events.push(message);
            }
            None => panic!("{message:?}"),
        }
    }
    (events, resets)
}

/// The events of each job that a bearer of an id is to be given.
fn due(has: &BTreeMap<String, u64>) -> BTreeMap<String, Vec<u64>> {
    let first = |job: &str| if job == TRIMMED { has[job].max(LEFT) } else { has[job] };
    let due = JOBS.iter().map(|job| (job.to_string(), (first(job)..EVENTS).collect()));
    due.filter(|(_, numbers): &(String, Vec<u64>)| !numbers.is_empty()).collect()
}

/// Checks what the bearer of an id was told. Whoever has exactly what was trimmed, or had nothing yet, may be told of it: all
/// that is left comes in either case.
fn is_told<S: Store>(has: u64, resets: &[Value]) {
    for reset in resets {
        assert_eq!((&reset["jobId"], &reset["reason"]), (&TRIMMED.into(), &"trimmed".into()), "{reset}");
    }
    match has {
        _ if !S::TELLS_TRIMS => assert_eq!(resets.len(), 0, "{has}"),
        0 | LEFT => assert!(resets.len() <= 1, "{has}: {resets:?}"),
        has => assert_eq!(resets.len(), usize::from(has < LEFT), "{has}: {resets:?}"),
    }
}

/// Reads everything after an id from the JSON address, with the resets.
async fn poll(daemon: &Daemon, id: &str) -> (BTreeMap<String, Vec<u64>>, Vec<Value>) {
    let (mut polled, mut resets, mut after) = (BTreeMap::<String, Vec<u64>>::new(), Vec::new(), id.to_string());
    loop {
        let path = format!("{}&limit=1000&after={after}", set_path(&JOBS, "").replace("/stream", ""));
        let page = daemon.get(&path).await.json();
        let events = page["events"].as_array().expect("events");
        for event in events {
            let job = event["jobId"].as_str().expect("a job").to_string();
            polled.entry(job).or_default().push(event["payload"]["n"].as_u64().expect("a number"));
        }
        let told = page.get("resets").and_then(Value::as_array).cloned().unwrap_or_default();
        if events.is_empty() && told.is_empty() {
            return (polled, resets);
        }
        resets.extend(told);
        after = page["cursor"].as_str().expect("a cursor").to_string();
    }
}

/// Writes the jobs' events in turns, while one watches. Returns the ids of that one, and of another who reads it all at once.
async fn written_and_read<S: Store>(store: &S, daemon: &Daemon) -> Vec<Known> {
    for job in JOBS {
        store.append(job, 0..1).await;
    }
    let mut watching = Stream::open(daemon.http, &set_path(&JOBS, ""), &[]).await;
    let mut seen = events(&mut watching, JOBS.len()).await;
    for number in 1..EVENTS {
        for job in JOBS {
            store.append(job, number..number + 1).await;
            seen.push(event(&mut watching).await);
        }
    }
    let mut reading = Stream::open(daemon.http, &set_path(&JOBS, ""), &[]).await;
    let all = events(&mut reading, JOBS.len() * EVENTS as usize).await;
    known(&seen).into_iter().chain(known(&all)).collect()
}

pub async fn of_a_set_only_the_job_whose_history_was_trimmed_begins_anew_and_the_others_lose_nothing<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    let ids = written_and_read(&store, &daemon).await;
    store.trim(TRIMMED, EVENTS - LEFT).await;
    // Its rings hold nothing of what was before.
    let other = store.daemon(&[]).await;
    let mut streams = Vec::new();
    for (id, has) in &ids {
        let mut back = Stream::open(other.http, &set_path(&JOBS, ""), &[("Last-Event-ID", id)]).await;
        let due = due(has);
        let (rest, resets) = take(&mut back, due.values().map(Vec::len).sum()).await;
        assert_eq!(by_job(&rest), due, "after {has:?}");
        streams.push((back, has, resets));

        let (polled, resets) = poll(&other, id).await;
        assert_eq!(polled, due, "after {has:?}");
        is_told::<S>(has[TRIMMED], &resets);
    }
    // All are live, and told of nothing more.
    for job in JOBS {
        store.append(job, EVENTS..EVENTS + 1).await;
    }
    for (mut back, has, mut resets) in streams {
        let (new, more) = take(&mut back, JOBS.len()).await;
        assert_eq!(by_job(&new), expect(&JOBS.map(|job| (job, EVENTS..EVENTS + 1))), "after {has:?}");
        resets.extend(more);
        is_told::<S>(has[TRIMMED], &resets);
    }
    let mut whole = other.stream(TRIMMED).await;
    assert_eq!(numbers(&whole.take(4).await), Vec::from_iter(LEFT..EVENTS + 1));
}
