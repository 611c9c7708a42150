//! One reader against the others: a forged cursor decides only on what its bearer is given, and what is dear to look up
//! is bounded.

use super::daemon_on;
use crate::support::redis::{append, ask, stream_key, xadd};
use crate::support::{Daemon, Redis, Stream, numbers};
use jobcast::cursor::{Cursor, varint};
use redis::{Pipeline, Value};

/// The inside of a cursor, as anybody can write it.
#[derive(Clone, Copy, Debug)]
struct Forged {
    /// The number of the event at whose entry it stands.
    at: usize,
    ordinal: Option<u64>,
    fingerprint: Option<[u8; 4]>,
    /// Milliseconds of the id up to which deleted entries are excused.
    excused_up_to: Option<u64>,
}

impl Forged {
    fn cursor(self, job: &str, entries: &[String]) -> String {
        let (ms, seq) = entries[self.at].split_once('-').expect("an entry's id");
        let flags = u8::from(self.ordinal.is_some())
            + 2 * u8::from(self.fingerprint.is_some())
            + 4 * u8::from(self.excused_up_to.is_some());
        let mut inside = vec![flags];
        [ms, seq].iter().for_each(|part| varint::write(&mut inside, part.parse().expect("a number")));
        self.ordinal.iter().for_each(|ordinal| varint::write(&mut inside, *ordinal));
        inside.extend(self.fingerprint.iter().flatten());
        if let Some(ms) = self.excused_up_to {
            varint::write(&mut inside, ms);
            varint::write(&mut inside, 0);
        }
        Cursor::seal('r', &job.parse().expect("a job"), &inside).to_string()
    }
}

const HONEST: Forged = Forged { at: 4, ordinal: None, fingerprint: None, excused_up_to: None };

const FORGED: [Forged; 7] = [
    Forged { ordinal: Some(1), ..HONEST },
    Forged { ordinal: Some(4), ..HONEST },
    Forged { ordinal: Some(1 << 59), ..HONEST },
    Forged { fingerprint: Some([1, 2, 3, 4]), ..HONEST },
    Forged { excused_up_to: Some(u64::MAX), ..HONEST },
    Forged { ordinal: Some(2), excused_up_to: Some(u64::MAX), ..HONEST },
    Forged { at: 2, ordinal: Some(77), excused_up_to: Some(u64::MAX), ..HONEST },
];

/// Deletes the entry of an event.
async fn delete(server: &Redis, job: &str, entry: &str) {
    server.ask::<()>(&["XDEL", &stream_key(job), entry]).await;
}

#[tokio::test]
async fn a_forged_cursor_that_comes_first_takes_nothing_from_the_readers_beside_it() {
    let server = Redis::start().await;
    let daemon = daemon_on(&server.url(), &[]).await;
    // its rings hold nothing of what was before
    let other = daemon_on(&server.url(), &[("hub.linger", "0s")]).await;
    let mut rows = server.connect().await;
    for (number, forged) in FORGED.into_iter().enumerate() {
        let job = format!("job-{number}");
        let mut entries = append(&mut rows, &job, 0..5).await;
        let forger = daemon.stream_after(&job, &forged.cursor(&job, &entries)).await;
        let mut honest = daemon.stream(&job).await;
        let mut seen = honest.take(5).await;
        entries.extend(append(&mut rows, &job, 5..10).await);
        seen.extend(honest.take(5).await);
        assert_eq!(numbers(&seen), Vec::from_iter(0..10), "{forged:?}");
        for (rest, event) in (1..).zip(&seen) {
            resumes(&other, &job, event.cursor(), rest..10, &forged).await;
        }
        // what nobody lacks may go, and what somebody lacks is said
        server.ask::<()>(&["XTRIM", &stream_key(&job), "MAXLEN", "3"]).await;
        resumes(&other, &job, seen[6].cursor(), 7..10, &forged).await;
        assert_eq!(reset_after(&other, &job, seen[5].cursor()).await.as_deref(), Some("trimmed"), "{forged:?}");
        delete(&server, &job, &entries[8]).await;
        // a ring that is still there would have what was deleted
        other.metric_is("jobcast_channels", 0.0).await;
        assert_eq!(reset_after(&other, &job, seen[7].cursor()).await.as_deref(), Some("trimmed"), "{forged:?}");
        drop(forger);
    }
    assert_eq!(daemon.metric("jobcast_source_errors_total").await, 0.0, "{}", daemon.log());
}

/// Reads on after a cursor, and gets exactly these events.
async fn resumes(daemon: &Daemon, job: &str, cursor: &str, wanted: std::ops::Range<u64>, forged: &Forged) {
    let path = format!("/runner-jobs/{job}/events?after={cursor}");
    let page = daemon.get(&path).await.json();
    let got: Vec<u64> = page["events"]
        .as_array()
        .expect("events")
        .iter()
        .map(|event| event["payload"]["n"].as_u64().expect("a number"))
        .collect();
    assert_eq!(got, Vec::from_iter(wanted), "{forged:?}: {page}");
}

/// Returns the reason of the reset that a reader gets first, if it gets one.
async fn reset_after(daemon: &Daemon, job: &str, cursor: &str) -> Option<String> {
    let first = daemon.stream_after(job, cursor).await.event().await;
    first.is("stream.reset").then(|| first.json()["reason"].as_str().expect("a reason").to_string())
}

/// Bytes that a server has sent so far.
async fn sent(server: &Redis) -> u64 {
    let stats: String = server.ask(&["INFO", "stats"]).await;
    let line = stats.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:")).expect("bytes");
    line.trim().parse().expect("a number")
}

#[tokio::test]
async fn an_id_that_means_nothing_costs_a_bounded_number_of_bytes() {
    let server = Redis::with("appendonly no").await;
    let daemon = daemon_on(&server.url(), &[]).await;
    let mut rows = server.connect().await;
    let payload = format!("{{\"n\":1,\"ballast\":\"{}\"}}", "x".repeat(10_000));
    for first in (0..3000).step_by(500) {
        let mut all = Pipeline::new();
        (first..first + 500).for_each(|number| xadd(&mut all, "large", number, &payload));
        all.query_async::<Value>(&mut rows).await.expect("XADD");
    }
    ask::<()>(&mut rows, &["HSET", "runner-jobs:large", "status", "RUNNING"]).await;
    let before = sent(&server).await;
    let answer = daemon.get("/runner-jobs/large/events?after=nonsense&limit=1").await;
    let cost = sent(&server).await - before;
    assert!(cost < 4 << 20, "{cost} bytes: {answer:?}");
    // one that is near is found, and one among many small ones, too
    let found = daemon.get("/runner-jobs/large/events?after=e-2950&limit=1").await.json();
    assert_eq!(found["events"][0]["id"], "e-2951", "{found}");
    append(&mut rows, "small", 0..6000).await;
    let mut stream: Stream = daemon.stream_after("small", "e-17").await;
    assert_eq!(stream.event().await.number(), 18);
}
