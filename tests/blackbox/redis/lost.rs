//! History that is gone: said once, with its reason, to those who lack it, and to nobody else.

use super::daemon_on;
use crate::support::address::{host, port};
use crate::support::daemon::stream_path;
use crate::support::redis::{append, ask, payload, set_status, stream_key, xadd};
use crate::support::{Daemon, Message, Redis, Sentinel, Stream, eventually, numbers};
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};

/// Commands on a job's stream, done in one transaction.
type Deed = fn(&mut Pipeline, &str);

fn write(to: &mut Pipeline, job: &str, range: std::ops::Range<u64>) {
    range.for_each(|number| xadd(to, job, number, &payload(number)));
}

fn trim(to: &mut Pipeline, job: &str, left: u64) {
    to.cmd("XTRIM").arg(stream_key(job)).arg("MAXLEN").arg(left);
}

/// Deletes the entry of the number that a script finds.
fn delete(to: &mut Pipeline, job: &str, number: u64) {
    let script = "for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do
        if entry[2][2] == ARGV[1] then return redis.call('XDEL', KEYS[1], entry[1]) end end";
    to.cmd("EVAL").arg(script).arg(1).arg(stream_key(job)).arg(format!("e-{number}"));
}

/// A job with the events 0 to 9 and a copy of its stream from when it had five.
async fn prepare(rows: &mut MultiplexedConnection, job: &str) {
    set_status(rows, job, "RUNNING").await;
    append(rows, job, 0..5).await;
    ask::<()>(rows, &["COPY", &stream_key(job), "copy", "REPLACE"]).await;
    append(rows, job, 5..10).await;
}

async fn does(rows: &mut MultiplexedConnection, job: &str, deed: Deed) {
    let mut all = Pipeline::new();
    all.atomic();
    deed(&mut all, job);
    all.query_async::<Value>(rows).await.expect("a deed");
}

/// Reads a stream up to an event with this number. Returns the reset's reason, if there is one, and the numbers since.
async fn follow(stream: &mut Stream, last: u64) -> (Option<String>, Vec<u64>) {
    let (mut reason, mut seen): (Option<String>, Vec<u64>) = (None, Vec::new());
    while seen.last() != Some(&last) {
        let message = stream.event().await;
        if message.is("stream.reset") {
            assert_eq!(reason.replace(message.json()["reason"].as_str().expect("a reason").into()), None, "{seen:?}");
            seen.clear();
        } else {
            seen.push(message.number());
        }
    }
    (reason, seen)
}

/// A reader that has seen the events up to this one, and the reason that it is told, if any.
type Reader = (u64, Option<&'static str>);

const DEEDS: [(&str, Deed, &[Reader], &[u64]); 12] = [
    // what is done, to whom (after which event) it matters and how, and what is there then; 99 is written afterwards
    ("more", |to, job| write(to, job, 10..13), &[(0, None), (9, None)], &[10, 11, 12]),
    (
        "trimmed",
        |to, job| trim(to, job, 3),
        &[(0, Some("trimmed")), (5, Some("trimmed")), (6, None), (9, None)],
        &[7, 8, 9],
    ),
    ("trimmed to nothing", |to, job| trim(to, job, 0), &[(8, Some("trimmed")), (9, None)], &[]),
    (
        "grown and trimmed",
        |to, job| {
            write(to, job, 10..20);
            trim(to, job, 3);
        },
        &[(9, Some("trimmed")), (0, Some("trimmed"))],
        &[17, 18, 19],
    ),
    (
        "grown and trimmed to what is new",
        |to, job| {
            write(to, job, 10..12);
            trim(to, job, 2);
        },
        &[(9, None), (8, Some("trimmed"))],
        &[10, 11],
    ),
    ("one deleted", |to, job| delete(to, job, 5), &[(4, Some("trimmed")), (5, None), (6, None)], &[6, 7, 8, 9]),
    (
        "one deleted before it was seen",
        |to, job| {
            write(to, job, 10..13);
            delete(to, job, 11);
        },
        &[(9, Some("trimmed"))],
        &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12],
    ),
    (
        "the last deleted, and all before it trimmed",
        |to, job| {
            delete(to, job, 9);
            trim(to, job, 0);
        },
        &[(9, None), (8, Some("trimmed"))],
        &[],
    ),
    (
        "deleted",
        |to, job| {
            to.cmd("DEL").arg(stream_key(job));
        },
        &[(0, Some("rewound")), (9, Some("rewound"))],
        &[],
    ),
    (
        "made anew, shorter",
        |to, job| {
            to.cmd("DEL").arg(stream_key(job));
            write(to, job, 50..53);
        },
        &[(0, Some("rewound")), (9, Some("rewound"))],
        &[50, 51, 52],
    ),
    (
        "made anew, longer",
        |to, job| {
            to.cmd("DEL").arg(stream_key(job));
            write(to, job, 50..65);
        },
        &[(2, Some("rewound")), (9, Some("rewound"))],
        &[50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64],
    ),
    (
        "taken back to an older copy, and written to since",
        |to, job| {
            to.cmd("RENAME").arg("copy").arg(stream_key(job));
            write(to, job, 50..60);
        },
        &[(4, None), (5, Some("rewound")), (9, Some("rewound"))],
        &[0, 1, 2, 3, 4, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59],
    ),
];

#[tokio::test]
async fn lost_history_is_said_once_with_its_reason_and_only_where_there_is_some() {
    let server = Redis::start().await;
    let daemon = daemon_on(&server.url(), &[("hub.linger", "0s")]).await;
    // its rings hold nothing of what was before
    let other = daemon_on(&server.url(), &[("hub.linger", "0s")]).await;
    let mut rows = server.connect().await;
    for (what, deed, readers, left) in DEEDS {
        prepare(&mut rows, "job").await;
        // one that is there all the time, and cursors of all that it saw
        let mut live = daemon.stream("job").await;
        let seen = live.take(10).await;
        does(&mut rows, "job", deed).await;
        let of_live = readers.iter().find(|(after, _)| *after == 9).and_then(|(_, reason)| *reason);
        let news: Vec<u64> = left.iter().copied().filter(|number| of_live.is_some() || *number > 9).collect();
        if let Some(last) = news.last() {
            let (reason, rest) = follow(&mut live, *last).await;
            assert_eq!((reason.as_deref(), rest), (of_live, news.clone()), "{what}, live");
        }
        append(&mut rows, "job", [99]).await;
        for (after, expected) in readers {
            let mut again = other.stream_after("job", seen[*after as usize].cursor()).await;
            let (reason, rest) = follow(&mut again, 99).await;
            assert_eq!(reason.as_deref(), *expected, "{what}, after {after}: {rest:?}");
            let (_, all) = follow(&mut other.stream("job").await, 99).await;
            let wanted: Vec<u64> = match expected {
                Some(_) => all,
                None => all.into_iter().filter(|number| *number > *after).collect(),
            };
            assert_eq!(rest, wanted, "{what}, after {after}");
        }
        let (reason, rest) = follow(&mut live, 99).await;
        let expected = of_live.filter(|_| news.is_empty());
        // One who reads before 99 is written finds no stream at all.
        let reason = reason.as_deref().map(|reason| if what == "deleted" { "rewound" } else { reason });
        assert_eq!((reason, rest), (expected, vec![99]), "{what}, live");
        drop(live);
        ask::<()>(&mut rows, &["DEL", &stream_key("job"), "runner-jobs:job"]).await;
        for daemon in [&daemon, &other] {
            daemon.metric_is("jobcast_channels", 0.0).await;
        }
    }
}

/// The cursor of a client that was given no event yet.
async fn cursor_of_now(daemon: &Daemon, job: &str) -> Message {
    let mut from_now = Stream::open(daemon.http, &format!("{}?from=now", stream_path(job)), &[]).await;
    loop {
        match from_now.next().await.expect("a cursor") {
            message if message.id.is_some() => return message,
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_reader_that_was_given_nothing_yet_is_told_that_the_first_events_are_gone() {
    let server = Redis::start().await;
    let daemon = daemon_on(&server.url(), &[("hub.linger", "0s")]).await;
    let mut rows = server.connect().await;
    for (trims, reason) in [(false, None), (true, Some("trimmed"))] {
        set_status(&mut rows, "job", "RUNNING").await;
        let now = cursor_of_now(&daemon, "job").await;
        let polled =
            daemon.get("/runner-jobs/job/events").await.json()["cursor"].as_str().expect("a cursor").to_string();
        append(&mut rows, "job", 0..10).await;
        if trims {
            ask::<()>(&mut rows, &["XTRIM", &stream_key("job"), "MAXLEN", "4"]).await;
        }
        for cursor in [now.cursor(), &polled] {
            let (told, rest) = follow(&mut daemon.stream_after("job", cursor).await, 9).await;
            assert_eq!((told.as_deref(), rest.len()), (reason, if trims { 4 } else { 10 }));
        }
        // whoever asks for all there is gets that
        assert_eq!(follow(&mut daemon.stream("job").await, 9).await.0, None);
        ask::<()>(&mut rows, &["FLUSHALL"]).await;
    }
}

#[tokio::test]
async fn a_flushed_database_is_said_and_its_jobs_are_no_more() {
    let server = Redis::start().await;
    let daemon = daemon_on(&server.url(), &[("source.appear", "0s")]).await;
    let mut rows = server.connect().await;
    append(&mut rows, "job", 0..10).await;
    let mut stream = daemon.stream("job").await;
    let seen = stream.take(10).await;
    ask::<()>(&mut rows, &["FLUSHALL"]).await;
    let reset = stream.event().await;
    assert_eq!((reset.is("stream.reset"), &reset.json()["reason"]), (true, &"expired".into()), "{reset:?}");
    let back = Stream::open(daemon.http, &stream_path("job"), &[("Last-Event-ID", seen[4].cursor())]).await;
    assert_eq!(back.head.status, 404);
}

/// Redis may lose what a primary acknowledged and had not sent to the replica that takes over. Jobcast has to say so.
#[tokio::test]
async fn events_that_a_failover_loses_are_said_to_be_lost_and_nothing_else_is() {
    let mut sentinel = Sentinel::start().await;
    let daemon = daemon_on(&sentinel.url(), &[]).await;
    let mut rows = sentinel.servers[0].connect().await;
    for job in ["lost", "kept"] {
        set_status(&mut rows, job, "RUNNING").await;
        append(&mut rows, job, 0..10).await;
    }
    let (mut lost, mut kept) = (daemon.stream("lost").await, daemon.stream("kept").await);
    lost.take(10).await;
    kept.take(10).await;
    let reaches = sentinel.servers[0].says(&["WAIT", "1", "5000"]).await;
    assert!(reaches.contains('1'), "{reaches}");
    // the replica loses its connection, and more is written than the primary could send on afterwards; all of it anew it
    // would send much later
    for setting in [["repl-backlog-size", "16kb"], ["repl-diskless-sync-delay", "3600"]] {
        ask::<()>(&mut rows, &["CONFIG", "SET", setting[0], setting[1]]).await;
    }
    sentinel.servers[1].signal("STOP");
    ask::<()>(&mut rows, &["CLIENT", "KILL", "TYPE", "replica"]).await;
    append(&mut rows, "lost", 10..15).await;
    for number in 0..8 {
        ask::<()>(&mut rows, &["SET", &format!("filler-{number}"), &"x".repeat(16 << 10)]).await;
    }
    sentinel.servers[1].signal("CONT");
    let unreplicated = lost.take(5).await;
    assert_eq!(numbers(&unreplicated), [10, 11, 12, 13, 14]);
    sentinel.servers[0].kill();
    sentinel.takes_over().await;
    let mut rows = sentinel.servers[1].connect().await;
    append(&mut rows, "lost", 20..30).await;
    append(&mut rows, "kept", 20..30).await;
    let after_error = async |stream: &mut Stream, last| {
        let mut first = stream.event().await;
        if first.is("stream.error") {
            first = stream.event().await;
        }
        let is_reset = first.is("stream.reset");
        let mut seen = if is_reset { Vec::new() } else { vec![first.number()] };
        while seen.last() != Some(&last) {
            seen.push(stream.event().await.number());
        }
        (is_reset.then(|| first.json()["reason"].clone()), seen)
    };
    let all = Vec::from_iter((0..10).chain(20..30));
    assert_eq!(after_error(&mut lost, 29).await, (Some("rewound".into()), all.clone()));
    assert_eq!(after_error(&mut kept, 29).await, (None, Vec::from_iter(20..30)));
    let (reason, rest) = follow(&mut daemon.stream_after("lost", unreplicated[2].cursor()).await, 29).await;
    assert_eq!((reason.as_deref(), rest), (Some("rewound"), all));
}

/// A cursor from the new primary is ahead of what the old one has.
#[tokio::test]
async fn a_server_that_is_no_primary_any_more_is_not_believed_whatever_sentinel_says() {
    let mut sentinel = Sentinel::start().await;
    let mut old = sentinel.servers[0].connect().await;
    set_status(&mut old, "job", "RUNNING").await;
    append(&mut old, "job", 0..10).await;
    eventually("a replica with all of it", async || {
        (sentinel.servers[1].ask::<u64>(&["XLEN", &stream_key("job")]).await == 10).then_some(())
    })
    .await;
    let daemon = daemon_on(&sentinel.url(), &[]).await;
    assert_eq!(numbers(&daemon.stream("job").await.take(10).await).len(), 10);
    // they say nothing new
    sentinel.kill_sentinels();
    let mut new = sentinel.servers[1].connect().await;
    ask::<()>(&mut new, &["REPLICAOF", "NO", "ONE"]).await;
    // as a Sentinel does it; nobody is there
    let nobody = port().to_string();
    ask::<()>(&mut old, &["REPLICAOF", &host().to_string(), &nobody]).await;
    ask::<()>(&mut old, &["CLIENT", "KILL", "TYPE", "normal"]).await;
    append(&mut new, "job", [10]).await;
    let ahead = daemon_on(&sentinel.servers[1].url(), &[]).await;
    let newest = ahead.stream("job").await.take(11).await.remove(10);
    let mut stream = daemon.stream_after("job", newest.cursor()).await;
    let error = stream.event().await;
    assert!(error.is("stream.error") && error.json()["retryable"] == true, "{error:?}");
    // it has caught up, and is the primary again
    let mut old = sentinel.servers[0].connect().await;
    ask::<()>(&mut old, &["REPLICAOF", &host().to_string(), &sentinel.servers[1].port.to_string()]).await;
    eventually("the old primary to have caught up", async || {
        (sentinel.servers[0].ask::<u64>(&["XLEN", &stream_key("job")]).await == 11).then_some(())
    })
    .await;
    ask::<()>(&mut old, &["REPLICAOF", "NO", "ONE"]).await;
    daemon.metric_is("jobcast_source_up", 1.0).await;
    let mut stream = daemon.stream_after("job", newest.cursor()).await;
    append(&mut old, "job", [11]).await;
    assert_eq!(stream.event().await.number(), 11);
}
