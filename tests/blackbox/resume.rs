//! Coming back: everything after the cursor, and nothing before it.

use crate::support::daemon::{stream_path, write_rows};
use crate::support::{Daemon, Message, Stream, numbers};
use futures_util::future::join_all;
use std::collections::BTreeMap;

const EVENTS: u64 = 120;

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

#[tokio::test]
async fn resuming_from_every_cursor_gives_exactly_the_rest_from_the_ring_and_beyond_it_also_after_kill_9() {
    let mut daemon = Daemon::with(&[("hub.ring_events", "30")]).await;
    let mut watcher = {
        daemon.write("job", [0]).await;
        daemon.stream("job").await
    };
    // one by one, so that the ring can let go of the old in small pieces
    for number in 1..EVENTS {
        daemon.write("job", [number]).await;
    }
    let mut history = watcher.take(EVENTS as usize).await;
    assert_eq!(numbers(&history), Vec::from_iter(0..EVENTS));

    for round in 0..2 {
        let newest = history.len() as u64;
        let starts = starts(&history);
        let mut streams = join_all(starts.iter().map(|(_, last)| open(&daemon, last.as_deref()))).await;
        let mut replays = BTreeMap::new();
        for stream in &streams {
            *replays.entry(stream.replay().to_string()).or_insert(0) += 1;
        }
        if round == 0 {
            assert!(replays["ring"] > 20 && replays["source"] > 100, "{replays:?}");
        }
        // and some that are written while they are live
        daemon.write("job", newest..newest + 5).await;
        for (stream, (behind, last)) in streams.iter_mut().zip(&starts) {
            let rest = stream.take((newest + 5 - behind) as usize).await;
            assert_eq!(numbers(&rest), Vec::from_iter(*behind..newest + 5), "after {last:?}, round {round}");
        }
        history.extend(streams[0].take(0).await);
        let mut again = daemon.stream("job").await;
        history = again.take(newest as usize + 5).await;
        if round == 0 {
            daemon.kill();
            daemon.restart().await;
        }
    }

    daemon.set_status("job", "COMPLETED").await;
    let end = history.len() as u64;
    for (behind, last) in starts(&history) {
        let mut stream = open(&daemon, last.as_deref()).await;
        if behind == end {
            assert_eq!(stream.head.status, 204, "after {last:?}");
            continue;
        }
        let mut rest = stream.rest().await;
        let complete = rest.pop().expect("stream.complete");
        assert!(complete.is("stream.complete"), "{complete:?}");
        assert_eq!(numbers(&rest), Vec::from_iter(behind..end), "after {last:?}");
    }
}

#[tokio::test]
async fn a_page_may_give_its_cursor_in_the_address_and_the_header_of_a_reconnect_wins() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..10).await;
    let history = daemon.stream("job").await.take(10).await;
    let path = format!("{}?lastEventId={}", stream_path("job"), history[3].cursor());
    let mut first = Stream::open(daemon.http, &path, &[]).await;
    assert_eq!(numbers(&first.take(6).await), [4, 5, 6, 7, 8, 9]);
    // a browser sends the address again as it was, and the header beside it
    let mut again = Stream::open(daemon.http, &path, &[("Last-Event-ID", history[7].cursor())]).await;
    assert_eq!(numbers(&again.take(2).await), [8, 9]);
}

#[tokio::test]
async fn from_now_gives_only_what_comes_and_nothing_is_missed_by_a_drop_before_the_first_event() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..10).await;
    let path = format!("{}?from=now", stream_path("job"));
    let mut live = Stream::open(daemon.http, &path, &[]).await;
    let position = loop {
        if let Some(id) = live.next().await.expect("open").id {
            break id;
        }
    };
    assert_eq!(
        live.head.header("X-Jobcast-Cursor"),
        Some(position.as_str()),
        "for parsers that keep an id to themselves"
    );
    drop(live);
    daemon.write("job", 10..13).await;
    let mut back = daemon.stream_after("job", &position).await;
    assert_eq!(numbers(&back.take(3).await), [10, 11, 12]);
}

#[tokio::test]
async fn rows_that_another_process_writes_arrive_without_waiting_for_the_poll() {
    let daemon = Daemon::with(&[("source.poll_interval", "10m")]).await;
    let mut rows = daemon.rows().await;
    write_rows(&mut rows, "job", 0..1).await;
    let mut stream = daemon.stream("job").await;
    stream.take(1).await;
    for number in 1..50 {
        write_rows(&mut rows, "job", [number]).await;
        assert_eq!(stream.event().await.number(), number);
    }
}

#[tokio::test]
async fn a_restored_backup_is_said_and_never_passed_over() {
    let mut daemon = Daemon::start().await;
    daemon.write("job", 0..10).await;
    let before = daemon.stream("job").await.take(10).await;
    let mut rows = daemon.rows().await;
    let backup = daemon.folder().join("backup.db");
    sqlx::query("VACUUM INTO ?1").bind(backup.display().to_string()).execute(&mut rows).await.expect("backup");
    drop(rows);
    daemon.write("job", 10..20).await;
    let lost = daemon.stream("job").await.take(20).await;

    daemon.kill();
    for old in ["jobs.db-wal", "jobs.db-shm"] {
        let _ = std::fs::remove_file(daemon.folder().join(old));
    }
    std::fs::copy(&backup, daemon.database()).expect("restore");
    daemon.restart().await;
    // the same numbers, other events
    let rows = (100..120).map(crate::support::daemon::numbered).collect::<Vec<_>>();
    daemon.send("POST", "/runner-jobs/job/events", &rows.into()).await;

    let mut kept = daemon.stream_after("job", before[9].cursor()).await;
    assert_eq!(numbers(&kept.take(20).await), Vec::from_iter(100..120));
    for message in &lost[10..] {
        let mut stream = daemon.stream_after("job", message.cursor()).await;
        let reset = stream.event().await;
        assert!(reset.is("stream.reset"), "{reset:?}");
        assert_eq!(reset.json()["reason"], "rewound");
        assert_eq!(numbers(&stream.take(30).await), Vec::from_iter((0..10).chain(100..120)));
    }
}

#[tokio::test]
async fn deleted_history_and_a_file_made_anew_are_told_apart_and_said() {
    let mut daemon = Daemon::start().await;
    daemon.write("job", 0..10).await;
    let seen = daemon.stream("job").await.take(10).await;
    let mut rows = daemon.rows().await;
    sqlx::raw_sql("DELETE FROM job_events WHERE id IN ('e-4', 'e-5')").execute(&mut rows).await.expect("delete");
    drop(rows);
    // no stream is open: the ring may not remember
    daemon.kill();
    daemon.restart().await;
    let mut stream = daemon.stream_after("job", seen[4].cursor()).await;
    let reset = stream.event().await;
    assert_eq!((reset.event.as_deref(), &reset.json()["reason"]), (Some("stream.reset"), &"trimmed".into()));
    assert_eq!(numbers(&stream.take(8).await), [0, 1, 2, 3, 6, 7, 8, 9]);

    daemon.kill();
    for file in ["jobs.db", "jobs.db-wal", "jobs.db-shm"] {
        let _ = std::fs::remove_file(daemon.folder().join(file));
    }
    daemon.restart().await;
    daemon.write("job", 100..103).await;
    let mut stream = daemon.stream_after("job", seen[9].cursor()).await;
    assert_eq!(stream.event().await.json()["reason"], "rewound");
    assert_eq!(numbers(&stream.take(3).await), [100, 101, 102]);
}
