//! Readers that write their own cursors, beside honest ones. Nobody signs a cursor: whoever can read the source can write one
//! that was never given out. It decides what its bearer is given, and nothing of what others are.

use crate::support::daemon::stream_path;
use crate::support::flap::{Flap, Resume};
use crate::support::store::Store;
use crate::support::{Stream, alone};
use futures_util::future::join_all;
use jobcast::cursor::{Cursor, varint};
use jobcast::event::JobId;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{sleep, timeout};

const JOBS: [&str; 4] = ["alpha", "beta", "gamma", "delta"];
const HONEST: usize = 12;
const FORGERS: u64 = 50;
/// Events of each job, and of one transaction.
const EVENTS: u64 = 240;
const BATCH: u64 = 8;

const HONESTLY: Flap =
    Flap { stays: 300, away: 300, resumes: &[Resume::Query, Resume::Header], patience: Duration::from_secs(120) };

/// Makes a cursor of `job` that nobody gave out, in the format of some that were: fields changed, put together anew, or, as
/// the format of PostgreSQL has it, "everything up to here is settled".
fn forge(job: &str, given_out: &[String], random: &mut StdRng) -> Option<String> {
    let id: JobId = job.parse().expect("an id");
    let inside_of = |random: &mut StdRng| {
        let honest = given_out.choose(random)?;
        Some((honest.chars().next()?, Cursor::open(honest.chars().next()?, &id, honest)?))
    };
    let (letter, mut inside) = inside_of(random)?;
    match random.random_range(0..5) {
        0 => {
            let mark = varint::read(&mut &*inside)?;
            inside.clear();
            varint::write(&mut inside, mark + random.random_range(0..6));
            inside.extend([0, 0, 0]);
        }
        1 => {
            let (_, other) = inside_of(random)?;
            inside.truncate(random.random_range(0..=inside.len()));
            inside.extend(&other[other.len().min(inside.len())..]);
        }
        2 => inside.truncate(random.random_range(0..=inside.len())),
        _ => {
            for _ in 0..random.random_range(1..3) {
                let at = random.random_range(0..inside.len().max(1));
                let byte = inside.get_mut(at)?;
                *byte = byte.wrapping_add(random.random_range(1..=4));
            }
        }
    }
    inside.truncate(Cursor::MAX_INSIDE);
    Some(Cursor::seal(letter, &id, &inside).as_str().to_string())
}

/// Asks for one job after the other from forged cursors, as a stream or a poll, and takes what it gets.
async fn lie(to: SocketAddr, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    loop {
        let job = *JOBS.choose(&mut random).expect("jobs");
        let poll = format!("/runner-jobs/{job}/events?limit=100");
        let answer = crate::support::http::request(to, "GET", &poll, &[], b"").await;
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let cursors = body["events"].as_array().into_iter().flatten().chain([&body]);
        let given_out: Vec<String> = cursors.filter_map(|event| Some(event["cursor"].as_str()?.to_string())).collect();
        for _ in 0..4 {
            let Some(forged) = forge(job, &given_out, &mut random) else { break };
            if random.random_bool(0.3) {
                let poll = format!("/runner-jobs/{job}/events?after={forged}");
                crate::support::http::request(to, "GET", &poll, &[], b"").await;
                continue;
            }
            let stays = Duration::from_millis(random.random_range(0..150));
            let _ = timeout(stays, async {
                let mut stream = Stream::try_open(to, &stream_path(job), &[("Last-Event-ID", &forged)]).await?;
                while stream.try_next().await?.is_some() {}
                std::io::Result::Ok(())
            })
            .await;
            sleep(Duration::from_millis(random.random_range(0..1000))).await;
        }
    }
}

/// Writes a job in transactions that overlap: some are open while later ones commit.
async fn write<S: Store>(store: &S, job: &str) {
    let batches = (0..EVENTS).step_by(BATCH as usize).enumerate();
    join_all(batches.map(async |(number, first)| {
        sleep(Duration::from_millis(150 * number as u64)).await;
        let open_for = Duration::from_millis(if number % 3 == 0 { 700 } else { 0 });
        store.append_within(job, first..first + BATCH, open_for).await;
    }))
    .await;
    store.set_status(job, "COMPLETED").await;
}

pub async fn honest_readers_beside_50_that_forge_lose_and_repeat_nothing_and_are_never_reset<S: Store>() {
    let _alone = alone();
    let store = S::start().await;
    // Channels come and go, so that many of them begin with a forger.
    let daemon = store.daemon(&[("hub.linger", "10ms"), ("hub.ring_events", "16")]).await;
    for job in JOBS {
        store.set_status(job, "RUNNING").await;
    }
    let to = [daemon.http];
    let honest = join_all((0..HONEST).map(|number| HONESTLY.watch(&to, JOBS[number % JOBS.len()])));
    let liars = join_all((0..FORGERS).map(|seed| lie(daemon.http, seed)));
    let writers = join_all(JOBS.map(|job| write(&store, job)));
    let seen = tokio::select! {
        (seen, _) = async { tokio::join!(honest, writers) } => seen,
        _ = liars => unreachable!("they never end"),
    };
    for (number, mut seen) in seen.into_iter().enumerate() {
        seen.sort_unstable();
        assert_eq!(seen, Vec::from_iter(0..EVENTS), "honest reader {number}");
    }
    daemon.metric_is("jobcast_source_up", 1.0).await;
    assert_eq!(daemon.ask_admin("/readyz").await.json()["status"], "ready");
}
