//! Sending events in: each is stored once, answered as it is stored, and delivered.

use crate::support::daemon::{numbered, run};
use crate::support::numbers;
use crate::support::store::Store;
use futures_util::future::join_all;
use serde_json::{Value, json};

const PATH: &str = "/runner-jobs/job/events";

pub async fn an_event_is_answered_as_it_is_stored_and_a_repeated_id_is_stored_once<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    let event = json!({
        "type": "step.output", "stepId": "compile", "actor": "runner-7", "id": "e-1",
        "timestamp": "2026-11-23T22:00:00.5+01:00", "payload": { "line": "héllo\n\u{1F980}", "n": 1.50 },
    });
    let first = daemon.send("POST", PATH, &event).await;
    assert_eq!(first.status, 201);
    let stored = first.json();
    assert_eq!(stored["timestamp"], "2026-11-23T21:00:00.500Z");
    assert_eq!((&stored["jobId"], &stored["stepId"]), (&json!("job"), &json!("compile")));

    let mut other = event.clone();
    other["payload"] = json!({ "line": "changed" });
    let again = daemon.send("POST", PATH, &other).await;
    assert_eq!((again.status, without_cursor(&again.json())), (200, without_cursor(&stored)));
    // in an array as well, beside new ones and beside itself
    let array = json!([{ "type": "x", "id": "e-2" }, other, { "type": "x", "id": "e-2" }]);
    let mixed = daemon.send("POST", PATH, &array).await;
    assert_eq!(mixed.status, 201);
    assert_eq!(without_cursor(&mixed.json()[1]), without_cursor(&stored));
    assert_eq!(without_cursor(&mixed.json()[0]), without_cursor(&mixed.json()[2]));
    // the same id in another job is another event
    assert_eq!(daemon.send("POST", "/runner-jobs/other/events", &event).await.status, 201);

    let seen = daemon.stream("job").await.take(2).await;
    assert_eq!(seen[0].json(), without_cursor(&stored));
    assert_eq!(seen[1].json()["id"], "e-2");
    // wherever the cursor of the first comes from, it says the same
    for answer in [&stored, &again.json(), &mixed.json()[1], &json!({ "cursor": seen[0].cursor() })] {
        let cursor = answer["cursor"].as_str().expect("a cursor");
        assert_eq!(daemon.stream_after("job", cursor).await.event().await.json()["id"], "e-2");
        // a place has one name, where no mark moves by itself
        assert!(!S::ONE_CURSOR_PER_PLACE || cursor == stored["cursor"], "{answer} {stored}");
    }
    if S::ONE_CURSOR_PER_PLACE {
        assert_eq!(mixed.json()[0]["cursor"], mixed.json()[2]["cursor"]);
    }
}

fn without_cursor(answer: &Value) -> Value {
    let mut event = answer.clone();
    event.as_object_mut().expect("an object").remove("cursor");
    event
}

pub async fn events_that_are_sent_in_reach_the_subscribers_of_every_replica<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    daemon.write("job", 0..20).await;
    let mut stream = daemon.stream("job").await;
    assert_eq!(numbers(&stream.take(20).await), Vec::from_iter(0..20));
    // a repeat is answered with what is there, also by a process that knows nothing yet
    let other = store.daemon(&[]).await;
    for daemon in [&daemon, &other] {
        let again = daemon.send("POST", PATH, &numbered(7)).await;
        assert_eq!((again.status, &again.json()["payload"]["n"]), (200, &7.into()));
        let after = again.json()["cursor"].as_str().expect("a cursor").to_string();
        assert_eq!(daemon.stream_after("job", &after).await.event().await.number(), 8);
    }
    let mixed = json!([numbered(19), numbered(20), numbered(20), numbered(21)]);
    let mixed = other.send("POST", PATH, &mixed).await;
    assert_eq!((mixed.status, mixed.json().as_array().map(Vec::len)), (201, Some(4)));
    assert_eq!(numbers(&stream.take(2).await), [20, 21]);
    assert_eq!(daemon.get("/runner-jobs/nosuch/events").await.status, 404);
    daemon.set_status("job", "CANCELLED").await;
    assert_eq!(stream.event().await.json()["status"], "CANCELLED");
    let own = store.settings();
    let settings: Vec<(&str, &str)> = own.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let emitted = run(&["emit", "job-2", "hello", "--payload", "{\"n\":1}"], &settings).await;
    assert!(emitted.status.success(), "{emitted:?}");
    assert_eq!(other.stream("job-2").await.event().await.number(), 1);
}

const WRITERS: u64 = 64;
const EVENTS: u64 = 2000;

pub async fn of_64_writers_at_once_on_two_daemons_each_event_is_acknowledged_and_received_once<S: Store>() {
    let store = S::start().await;
    let daemons = [store.daemon(&[]).await, store.daemon(&[]).await];
    daemons[0].set_status("job", "RUNNING").await;
    let mut streams = [daemons[0].stream("job").await, daemons[1].stream("job").await];
    let writers = (0..WRITERS).map(async |writer| {
        for number in (writer..EVENTS).step_by(WRITERS as usize) {
            let answer = daemons[(writer % 2) as usize].send("POST", PATH, &numbered(number)).await;
            assert_eq!((answer.status, &answer.json()["payload"]["n"]), (201, &number.into()), "{answer:?}");
        }
    });
    join_all(writers).await;
    for stream in &mut streams {
        let mut seen = numbers(&stream.take(EVENTS as usize).await);
        // Each writer waited for its own events.
        for writer in 0..WRITERS {
            let own: Vec<u64> = seen.iter().copied().filter(|number| number % WRITERS == writer).collect();
            assert!(own.is_sorted(), "{own:?}");
        }
        seen.sort();
        assert_eq!(seen, Vec::from_iter(0..EVENTS));
    }
}
