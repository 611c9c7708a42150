//! Coming back: everything after the cursor, and nothing before it.

use crate::support::daemon::stream_path;
use crate::support::store::Store;
use crate::support::{Daemon, Message, Stream, numbers};
use futures_util::future::join_all;
use serde_json::Value;
use std::collections::BTreeMap;

const EVENTS: u64 = 120;

/// A job with [`EVENTS`] events, what one who watched all the while was given, and a ring that holds the newest of them.
async fn watched<S: Store>() -> (S, Daemon, Vec<Message>) {
    let store = S::start().await;
    let daemon = store.daemon(&[("hub.ring_events", "30")]).await;
    store.append("job", 0..1).await;
    let mut watcher = daemon.stream("job").await;
    let mut history = watcher.take(1).await;
    // one by one, so that the ring can let go of the old in small pieces
    for number in 1..EVENTS {
        store.append("job", number..number + 1).await;
        history.push(watcher.event().await);
    }
    assert_eq!(numbers(&history), Vec::from_iter(0..EVENTS));
    (store, daemon, history)
}

/// From nothing, from every cursor and from every bare event id: how many events are behind it, and how to ask.
fn starts(history: &[Message]) -> Vec<(u64, Option<String>)> {
    let cursors = history.iter().enumerate().flat_map(|(index, message)| {
        let behind = index as u64 + 1;
        [(behind, Some(message.cursor().to_string())), (behind, Some(format!("e-{index}")))]
    });
    [(0, None)].into_iter().chain(cursors).collect()
}

async fn open(daemon: &Daemon, last: Option<&str>) -> Stream {
    match last {
        None => daemon.stream("job").await,
        Some(last) => daemon.stream_after("job", last).await,
    }
}

/// Resumes from every start, writes some more events, and returns how many replays came from where.
async fn all_get_the_rest(store: &impl Store, daemon: &Daemon, history: &[Message]) -> BTreeMap<String, usize> {
    let newest = history.len() as u64;
    let starts = starts(history);
    let mut streams = join_all(starts.iter().map(|(_, last)| open(daemon, last.as_deref()))).await;
    let mut replays = BTreeMap::new();
    for stream in &streams {
        *replays.entry(stream.replay().to_string()).or_insert(0) += 1;
    }
    // and some that are written while they are live
    store.append("job", newest..newest + 5).await;
    for (stream, (behind, last)) in streams.iter_mut().zip(&starts) {
        let rest = stream.take((newest + 5 - behind) as usize).await;
        assert_eq!(numbers(&rest), Vec::from_iter(*behind..newest + 5), "after {last:?}");
    }
    replays
}

pub async fn resuming_from_every_cursor_gives_exactly_the_rest<S: Store>() {
    let (store, daemon, history) = watched::<S>().await;
    let replays = all_get_the_rest(&store, &daemon, &history).await;
    assert!(replays["ring"] > 20 && replays["source"] > 100, "{replays:?}");
}

pub async fn resuming_from_every_cursor_after_kill_9_gives_exactly_the_rest<S: Store>() {
    let (store, mut daemon, history) = watched::<S>().await;
    daemon.kill();
    daemon.restart().await;
    all_get_the_rest(&store, &daemon, &history).await;
}

pub async fn resuming_from_every_cursor_of_an_ended_job_gives_the_rest_and_its_end<S: Store>() {
    let (store, daemon, history) = watched::<S>().await;
    store.set_status("job", "COMPLETED").await;
    for (behind, last) in starts(&history) {
        let mut stream = open(&daemon, last.as_deref()).await;
        if behind == EVENTS {
            assert_eq!(stream.head.status, 204, "after {last:?}");
            continue;
        }
        let mut rest = stream.rest().await;
        let complete = rest.pop().expect("stream.complete");
        assert!(complete.is("stream.complete"), "{complete:?}");
        assert_eq!(numbers(&rest), Vec::from_iter(behind..EVENTS), "after {last:?}");
    }
}

pub async fn a_cursor_from_one_replica_loses_and_repeats_nothing_on_another<S: Store>() {
    let store = S::start().await;
    let (first, second) = (store.daemon(&[]).await, store.daemon(&[]).await);
    store.append("job", 0..1).await;
    let mut stream = first.stream("job").await;
    let mut last = stream.event().await;
    let mut seen = vec![last.number()];
    for round in 0..20_u64 {
        let newest = seen.len() as u64;
        // some of them before it leaves, some after
        store.append("job", newest..newest + 3).await;
        for _ in 0..round % 4 {
            last = stream.event().await;
            seen.push(last.number());
        }
        let next = if round % 2 == 0 { &second } else { &first };
        stream = next.stream_after("job", last.cursor()).await;
        while seen.len() < newest as usize + 3 {
            last = stream.event().await;
            seen.push(last.number());
        }
    }
    assert_eq!(seen, Vec::from_iter(0..61));
}

pub async fn from_now_gives_only_what_comes_and_a_drop_before_it_misses_nothing<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    store.append("job", 0..10).await;
    let path = format!("{}?from=now", stream_path("job"));
    let mut live = Stream::open(daemon.http, &path, &[]).await;
    let position = loop {
        if let Some(id) = live.next().await.expect("open").id {
            break id;
        }
    };
    let shown = live.head.header("X-Jobcast-Cursor");
    assert_eq!(shown, Some(position.as_str()), "for parsers that keep an id to themselves");
    drop(live);
    store.append("job", 10..13).await;
    let mut back = daemon.stream_after("job", &position).await;
    assert_eq!(numbers(&back.take(3).await), [10, 11, 12]);
}

fn numbers_of(page: &Value) -> Vec<u64> {
    page["events"].as_array().expect("events").iter().map(|event| event["payload"]["n"].as_u64().expect("n")).collect()
}

pub async fn pages_of_json_and_the_stream_honour_each_others_cursors<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    store.set_status("job", "RUNNING").await;
    store.append("job", 0..25).await;
    let path = "/runner-jobs/job/events";
    let (mut after, mut seen, mut cursors) = (String::new(), Vec::new(), Vec::new());
    loop {
        let page = daemon.get(&format!("{path}?limit=10&after={after}")).await.json();
        assert_eq!((&page["complete"], &page["status"]), (&Value::Bool(false), &"RUNNING".into()));
        if numbers_of(&page).is_empty() {
            break;
        }
        seen.extend(numbers_of(&page));
        let events = page["events"].as_array().expect("events");
        cursors.extend(events.iter().map(|event| event["cursor"].as_str().expect("a cursor").to_string()));
        after = page["cursor"].as_str().expect("cursor").into();
    }
    assert_eq!(seen, Vec::from_iter(0..25));
    let streamed = daemon.stream("job").await.take(25).await;
    for (number, (polled, streamed)) in (0..).zip(cursors.iter().zip(&streamed)) {
        let rest = Vec::from_iter(number + 1..25);
        assert_eq!(numbers(&daemon.stream_after("job", polled).await.take(rest.len()).await), rest);
        let page = daemon.get(&format!("{path}?after={}", streamed.cursor())).await.json();
        assert_eq!(numbers_of(&page), rest);
    }
    store.set_status("job", "FAILED").await;
    let end = daemon.get(&format!("{path}?after={after}&wait=30")).await.json();
    assert_eq!((&end["complete"], &end["status"]), (&Value::Bool(true), &"FAILED".into()));
    let cut = daemon.get(&format!("{path}?limit=24")).await.json();
    assert_eq!(cut["complete"], false, "not before its last event");
}

/// A new store stands for a restored backup: cursors that are out there know more than it does.
pub async fn a_store_made_anew_is_said_and_read_from_its_beginning<S: Store>() {
    let old = S::start().await;
    let daemon = old.daemon(&[]).await;
    old.append("job", 0..200).await;
    let last = daemon.stream("job").await.take(200).await.remove(150);
    let new = S::start().await;
    let daemon = new.daemon(&[]).await;
    new.append("job", 0..3).await;
    let mut back = daemon.stream_after("job", last.cursor()).await;
    let reset = back.event().await;
    assert!(reset.is("stream.reset") && reset.json()["reason"] == "rewound", "{reset:?}");
    assert_eq!(numbers(&back.take(3).await), [0, 1, 2]);
}
