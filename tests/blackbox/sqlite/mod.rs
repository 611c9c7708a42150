//! SQLite: one file, one writer at a time, whichever process it is in.

mod file;
mod foreign;
mod foreign_torture;
mod lost;
mod many;
mod mapping;
mod odd_rows;
mod outage;
mod scopes;
mod torture;

use super::contract::cursors::{EVENTS, are_refused};
use crate::support::{Daemon, numbers};
use jobcast::cursor::Cursor;
use jobcast::event::JobId;
use rand::{RngExt, SeedableRng};

/// Sealed as ours are, with things inside that never were.
#[tokio::test]
async fn forged_cursors_get_a_reset_and_never_a_wrong_answer() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..EVENTS).await;
    daemon.write("other", 100..110).await;
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    let job: JobId = "job".parse().expect("id");
    let mut forged: Vec<Vec<u8>> = Vec::new();
    for length in 1..40 {
        let inside: Vec<u8> = (0..length).map(|_| rng.random()).collect();
        forged.push(Cursor::seal('s', &job, &inside).as_str().into());
    }
    for version in ['p', 'r', 'S', '0'] {
        forged.push(Cursor::seal(version, &job, &[0, 0, 0, 0, 5]).as_str().into());
    }
    are_refused(&daemon, forged).await;
}

#[tokio::test]
async fn rows_of_other_writers_are_told_whatever_they_hold() {
    let daemon = Daemon::start().await;
    let mut rows = daemon.rows().await;
    // not made through ingest: times of SQLite's own spelling or nobody's, types that break lines
    for (id, kind, timestamp, payload) in [
        ("a", "x", "2026-11-23 21:00:00", "{\n  \"n\": 0\n}"),
        ("b", "with\nline: ends\r\n", "soon", "{\"n\":1}"),
        ("c", "Ümläut", "2026-11-23T21:00:00Z", "{\"n\":2}"),
    ] {
        sqlx::query("INSERT INTO job_events (id, job_id, type, timestamp, payload) VALUES (?1, 'job', ?2, ?3, ?4)")
            .bind(id)
            .bind(kind)
            .bind(timestamp)
            .bind(payload)
            .execute(&mut rows)
            .await
            .expect("insert");
    }
    let seen = daemon.stream("job").await.take(3).await;
    assert_eq!(numbers(&seen), [0, 1, 2]);
    assert_eq!(seen[0].json()["timestamp"], "2026-11-23T21:00:00.000Z");
    assert_eq!(seen[1].event, None);
    assert_eq!(seen[1].json()["type"], "with\nline: ends\r\n");
    assert!(seen[2].is("Ümläut"));
}
