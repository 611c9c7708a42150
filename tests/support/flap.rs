//! A subscriber that comes and goes.

use super::daemon::stream_path;
use super::{Message, Stream};
use rand::RngExt;
use rand::seq::IndexedRandom;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// The ways in which a subscriber says where it was.
#[derive(Clone, Copy)]
pub enum Resume {
    Query,
    Header,
    /// Sends the event's own id.
    EventId,
}

/// The habits of a subscriber that comes and goes.
pub struct Flap {
    /// It stays for less than so many milliseconds.
    pub stays: u64,
    /// It is away for less than so many milliseconds.
    pub away: u64,
    pub resumes: &'static [Resume],
    /// So long it goes on without being given anything; a busy machine takes its time for the whole.
    pub patience: Duration,
}

/// The most times as long that one stays while nothing comes.
const MOST_LONGER: u64 = 32;

impl Flap {
    /// Watches a job to its end, now on one daemon, now on another, leaving at random in the middle of anything, and
    /// returns the numbers that it was given.
    pub async fn watch(&self, daemons: &[SocketAddr], job: &str) -> Vec<u64> {
        let mut seen: Vec<u64> = Vec::new();
        let mut last: Option<Message> = None;
        let mut known = HashSet::new();
        let mut last_given = Instant::now();
        // While nothing comes it stays longer each time, so that it gets on also where a read takes longer than it would stay.
        let mut longer = 1;
        while last_given.elapsed() < self.patience {
            let (to, resume, stays, away) = {
                let mut rng = rand::rng();
                let (to, resume) = (daemons.choose(&mut rng), self.resumes.choose(&mut rng));
                (
                    *to.expect("a daemon"),
                    *resume.expect("a way"),
                    longer * rng.random_range(0..self.stays),
                    rng.random_range(0..self.away),
                )
            };
            let cursor = last.as_ref().map(|message| message.cursor().to_string());
            let (mut path, mut header) = (stream_path(job), None);
            match (&cursor, resume) {
                (None, _) => {}
                (Some(cursor), Resume::Query) => path = format!("{path}?lastEventId={cursor}"),
                (Some(cursor), Resume::Header) => header = Some(cursor.clone()),
                (Some(_), Resume::EventId) => header = Some(format!("e-{}", seen.last().expect("seen"))),
            }
            let headers: Vec<(&str, &str)> = header.iter().map(|last| ("Last-Event-ID", last.as_str())).collect();
            let until = Instant::now() + Duration::from_millis(stays);
            let before = seen.len();
            if let Ok(Ok(mut stream)) = timeout_at(until, Stream::try_open(to, &path, &headers)).await {
                if stream.head.status == 204 {
                    return seen;
                }
                while let Ok(Ok(Some(message))) = timeout_at(until, stream.try_next()).await {
                    if message.is("stream.complete") {
                        return seen;
                    }
                    assert!(!message.is("stream.reset"), "{message:?} after {cursor:?} on {job}, {} seen", seen.len());
                    if message.data.is_some() && message.id.is_some() {
                        last_given = Instant::now();
                        seen.push(message.number());
                        assert!(known.insert(message.number()), "{message:?} came twice, after {cursor:?} on {job}");
                        last = Some(message);
                    }
                }
            }
            longer = if seen.len() > before { 1 } else { (2 * longer).min(MOST_LONGER) };
            sleep(Duration::from_millis(away)).await;
        }
        panic!("nothing came of {job} for {:?}, nor its end; {} events seen", self.patience, seen.len());
    }
}
