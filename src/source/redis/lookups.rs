//! Look-ups of event ids. Redis has no index that leads from an event's id to its entry, so that each look-up searches its
//! job's stream from the newest entry back.
//!
//! An id is foreign input, and one that means nothing costs the most. So one search of a stream at a time looks for all
//! ids that were asked for before it began, and all searches together ask for [`MAX_PIECES`] pieces of their streams at a
//! time, one after the other. However many ask, the server's other clients and the connection's other replies wait for no
//! more than those pieces, and an id that is found soon for no whole search of another stream.

use super::topology::NodeError;
use crate::cursor::Cursor;
use crate::event::JobId;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Pieces of streams that are asked for at a time, all searches together.
const MAX_PIECES: usize = 2;

/// Event ids that were found, each with the position after its event.
pub type Found = HashMap<String, Cursor>;

pub struct Lookups {
    /// Jobs that somebody looks for an id in.
    jobs: Mutex<HashMap<JobId, Weak<JobLookups>>>,
    pieces: Semaphore,
}

struct JobLookups {
    asked: Mutex<Asked>,
    /// The newest search that has ended. Held by whoever searches.
    newest: tokio::sync::Mutex<Search>,
}

/// The ids that are asked for.
#[derive(Default)]
struct Asked {
    /// Each id with the number of those who wait for it.
    ids: HashMap<String, usize>,
    /// Searches that have begun.
    begun: u64,
}

/// A search that has ended.
struct Search {
    /// 1 for the first one of a job.
    number: u64,
    result: Result<Found, NodeError>,
}

/// An id that is asked for until this is dropped.
struct Wish<'a> {
    job: &'a JobLookups,
    id: &'a str,
    /// Searches that had begun before.
    before: u64,
}

impl Default for Lookups {
    fn default() -> Self {
        Self { jobs: Mutex::default(), pieces: Semaphore::new(MAX_PIECES) }
    }
}

impl Lookups {
    /// Returns the position after the event with this id, as the first search finds it that begins from now on. `search`
    /// is called where that is the caller's own, with all ids that are asked for by then.
    pub async fn find<F>(
        &self,
        job: &JobId,
        id: &str,
        search: impl FnOnce(HashSet<String>) -> F,
    ) -> Result<Option<Cursor>, NodeError>
    where
        F: Future<Output = Result<Found, NodeError>>,
    {
        let of_job = self.of(job);
        let wish = Wish::new(&of_job, id);
        let mut newest = of_job.newest.lock().await;
        // An earlier one may have read the newest entries before the event was written.
        if newest.number <= wish.before {
            let (number, ids) = of_job.begin();
            *newest = Search { number, result: search(ids).await };
        }
        newest.result.as_ref().map(|found| found.get(id).cloned()).map_err(Clone::clone)
    }

    /// Waits for a search's turn to ask for one more piece of its stream; it is over when what is returned is dropped. None
    /// only if the semaphore was closed, which nobody does.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.pieces.acquire().await.ok()
    }

    fn of(&self, job: &JobId) -> Arc<JobLookups> {
        let mut jobs = lock(&self.jobs);
        if let Some(known) = jobs.get(job).and_then(Weak::upgrade) {
            return known;
        }
        jobs.retain(|_, known| known.strong_count() > 0);
        let newest = Search { number: 0, result: Ok(Found::new()) };
        let new = Arc::new(JobLookups { asked: Mutex::default(), newest: tokio::sync::Mutex::new(newest) });
        jobs.insert(job.clone(), Arc::downgrade(&new));
        new
    }
}

impl JobLookups {
    /// Begins a search. Returns its number and what it is to look for.
    fn begin(&self) -> (u64, HashSet<String>) {
        let mut asked = lock(&self.asked);
        asked.begun += 1;
        (asked.begun, asked.ids.keys().cloned().collect())
    }
}

impl<'a> Wish<'a> {
    fn new(job: &'a JobLookups, id: &'a str) -> Self {
        let mut asked = lock(&job.asked);
        *asked.ids.entry(id.to_string()).or_default() += 1;
        Self { job, id, before: asked.begun }
    }
}

impl Drop for Wish<'_> {
    fn drop(&mut self) {
        let mut asked = lock(&self.job.asked);
        if let Some(waiting) = asked.ids.get_mut(self.id) {
            *waiting -= 1;
            if *waiting == 0 {
                asked.ids.remove(self.id);
            }
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::position::Position;
    use super::*;
    use futures_util::FutureExt;
    use futures_util::future::{join, join_all, join3};
    use std::cell::RefCell;
    use tokio::sync::Notify;

    fn job(name: &str) -> JobId {
        name.parse().expect("an id")
    }

    /// Finds all that is looked for.
    fn all(job: &JobId, ids: HashSet<String>) -> Found {
        ids.into_iter().map(|id| (id, Position::BEGINNING.seal(job))).collect()
    }

    #[tokio::test]
    async fn all_who_ask_while_a_search_is_at_work_share_the_next_one() {
        let (lookups, job, searches, gate) = (Lookups::default(), job("job"), RefCell::new(Vec::new()), Notify::new());
        let ask = async |id: &str| {
            let search = async |ids: HashSet<String>| {
                searches.borrow_mut().push(ids.len());
                if ids.contains("first") {
                    gate.notified().await;
                }
                Ok(all(&job, ids.into_iter().filter(|id| id != "nobody").collect()))
            };
            lookups.find(&job, id, search).await.expect("an answer").is_some()
        };
        let ids: Vec<String> = (0..20).map(|number| format!("e-{number}")).collect();
        let later = join3(ask("nobody"), join_all(ids.iter().map(|id| ask(id))), async { gate.notify_one() });
        let (first, (nobody, others, ())) = join(ask("first"), later).await;
        assert!(first && !nobody && others.iter().all(|is_found| *is_found));
        assert_eq!(*searches.borrow(), [1, 21]);
        assert!(ask("later").await);
        assert_eq!((searches.borrow().len(), lock(&lookups.jobs).len()), (3, 1), "nothing old is given out");
    }

    #[tokio::test]
    async fn a_search_that_is_given_up_is_made_again_for_those_who_wait_and_two_pieces_are_read_at_a_time() {
        let (lookups, job) = (Lookups::default(), job("job"));
        let mut stuck = Box::pin(lookups.find(&job, "x", |_| std::future::pending()));
        let mut same = Box::pin(lookups.find(&job, "y", async |ids| Ok(all(&job, ids))));
        assert!((&mut stuck).now_or_never().is_none() && (&mut same).now_or_never().is_none());
        drop(stuck);
        assert!(same.await.expect("an answer").is_some());

        let held = [lookups.turn().await, lookups.turn().await];
        assert!(lookups.turn().now_or_never().is_none());
        drop(held);
        assert!(lookups.turn().now_or_never().is_some());
    }
}
