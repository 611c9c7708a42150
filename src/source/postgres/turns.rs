//! Turns of readers at the connections, so that nobody's reads keep the others' waiting, however dear they are.
//!
//! A cursor is foreign input, and what it costs the server shows only when it is read from. So reads are told apart by
//! their job and by the form of their position. Those of one kind hold at most half of the connections at a time, and so do
//! all kinds together whose last read was slow. Positions that nobody was given yet are read from one at a time, whatever
//! their job. Whoever waits for a turn holds nothing.

use super::position::{EndedXids, Position};
use crate::event::JobId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A read that took longer makes its kind slow for [`SLOW_FOR`].
const SLOW: Duration = Duration::from_millis(100);
const SLOW_FOR: Duration = Duration::from_secs(10);
/// Transactions that a standby, or what this process knows of the server, may honestly be behind.
const FAR_AHEAD: u64 = 1 << 20;

/// Reads that cost the server about the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    OfJob {
        job: JobId,
        form: Form,
    },
    /// Pages after positions of the future, of all jobs: whoever sends them can name as many jobs as it likes.
    Future,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// The position of an event's id, or the newest.
    Lookup,
    /// A page after a position that has a range, a list of open transactions, counts, something that is said of a floor.
    Page { range: bool, open: bool, counted: bool, above: bool },
    /// A page after a position that may be dear by its looks.
    Dear,
}

impl Kind {
    pub fn lookup(job: &JobId) -> Self {
        Self::OfJob { job: job.clone(), form: Form::Lookup }
    }

    /// A page after a position; `known` is a mark that the server has reached.
    pub fn page(job: &JobId, after: &Position, known: u64) -> Self {
        let ended = after.range().map_or(after.settled(), |range| &range.end);
        let has_list = |ended: &EndedXids| !ended.open.is_empty() || !ended.also.is_empty();
        let (range, open) = (after.range().is_some(), has_list(ended) || has_list(after.settled()));
        // No process was given one that is so far ahead: it has the whole history read once more.
        if known > 0 && after.ceiling() > known.saturating_add(FAR_AHEAD) {
            return Self::Future;
        }
        let form = if after.is_dear() {
            Form::Dear
        } else {
            Form::Page { range, open, counted: !after.counted().is_empty(), above: after.above().is_some() }
        };
        Self::OfJob { job: job.clone(), form }
    }
}

/// Hands out the turns at one pool.
pub struct Turns {
    /// Connections that one kind may hold.
    share: usize,
    /// Kinds that are read now, each with what is left of its share.
    kinds: Mutex<HashMap<Kind, Weak<Semaphore>>>,
    /// Share of all slow kinds together, as far as it is left.
    slow_share: Arc<Semaphore>,
    /// Kinds whose last read was slow, and since when.
    slow: Mutex<HashMap<Kind, Instant>>,
}

/// The right to hold a connection for one read.
pub struct Turn {
    turns: Arc<Turns>,
    kind: Kind,
    began: Instant,
    _of_kind: OwnedSemaphorePermit,
    _of_slow: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub fn new(connections: usize) -> Arc<Self> {
        let share = (connections / 2).max(1);
        let slow_share = Arc::new(Semaphore::new(share));
        Arc::new(Self { share, kinds: Mutex::default(), slow_share, slow: Mutex::default() })
    }

    /// Waits for a turn. None only if the semaphores were closed, which nobody does.
    pub async fn take(self: &Arc<Self>, kind: Kind) -> Option<Turn> {
        let of_kind = self.share_of(&kind).acquire_owned().await.ok()?;
        let of_slow = match self.is_slow(&kind) {
            true => Some(self.slow_share.clone().acquire_owned().await.ok()?),
            false => None,
        };
        Some(Turn { turns: self.clone(), kind, began: Instant::now(), _of_kind: of_kind, _of_slow: of_slow })
    }

    fn share_of(&self, kind: &Kind) -> Arc<Semaphore> {
        let mut kinds = lock(&self.kinds);
        if let Some(share) = kinds.get(kind).and_then(Weak::upgrade) {
            return share;
        }
        kinds.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(if *kind == Kind::Future { 1 } else { self.share }));
        kinds.insert(kind.clone(), Arc::downgrade(&share));
        share
    }

    fn is_slow(&self, kind: &Kind) -> bool {
        let is_expected = matches!(kind, Kind::Future | Kind::OfJob { form: Form::Dear, .. });
        is_expected || lock(&self.slow).get(kind).is_some_and(|since| since.elapsed() < SLOW_FOR)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut slow = lock(&self.turns.slow);
        if self.began.elapsed() >= SLOW {
            slow.retain(|_, since| since.elapsed() < SLOW_FOR);
            slow.insert(self.kind.clone(), Instant::now());
        } else if !slow.is_empty() {
            slow.remove(&self.kind);
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::position::EndedXids;
    use super::super::tables::CursorScheme;
    use super::*;
    use futures_util::FutureExt;
    use std::collections::BTreeMap;

    fn page(job: &str, counted: &[(u64, u64)]) -> Kind {
        let counted: BTreeMap<u64, u64> = counted.iter().copied().collect();
        let position = Position::new_settled(CursorScheme::default(), EndedXids::below(700), counted);
        Kind::page(&job.parse().expect("an id"), &position, 700)
    }

    #[test]
    fn one_kind_of_reads_gets_half_of_the_connections_and_another_its_own() {
        let turns = Turns::new(4);
        let take = |kind| turns.take(kind).now_or_never().flatten();
        let held: Vec<_> = (0..2).map(|_| take(page("big", &[])).expect("a turn")).collect();
        assert!(take(page("big", &[])).is_none());
        assert!(take(page("big", &[(701, 1)])).is_some(), "honest positions have another form than most forged ones");
        assert!(take(page("small", &[])).is_some());
        drop(held);
        assert!(take(page("big", &[])).is_some());
        assert_eq!(lock(&turns.kinds).len(), 1, "kinds that nobody reads are forgotten");
    }

    #[test]
    fn all_that_is_dear_gets_half_of_the_connections_together() {
        let turns = Turns::new(4);
        let take = |kind| turns.take(kind).now_or_never().flatten();
        let dear = [(701, 1 << 40)];
        let held = [take(page("a", &dear)).expect("a turn"), take(page("b", &dear)).expect("a turn")];
        assert!(take(page("c", &dear)).is_none());
        assert!(take(page("c", &[])).is_some());
        drop(held);
        let mut turn = take(page("c", &[])).expect("a turn");
        turn.began = turn.began.checked_sub(SLOW).expect("a machine that runs for longer");
        drop(turn);
        assert!(turns.is_slow(&page("c", &[])), "what took long is expected to");
        drop(take(page("c", &[])));
        assert!(!turns.is_slow(&page("c", &[])), "until it does not");
    }

    #[test]
    fn positions_far_in_the_future_are_read_from_one_at_a_time_once_the_server_is_known() {
        let turns = Turns::new(4);
        let kind = |job: &str, mark, known| {
            let position = Position::new_settled(CursorScheme::default(), EndedXids::below(mark), BTreeMap::new());
            Kind::page(&job.parse().expect("an id"), &position, known)
        };
        let take = |kind| turns.take(kind).now_or_never().flatten();
        let held = take(kind("a", 1 << 61, 700)).expect("a turn");
        assert!(take(kind("b", 1 << 61, 700)).is_none());
        assert!(take(kind("b", 1 << 61, 0)).is_some(), "nothing is known");
        assert!(take(kind("b", 100_000, 700)).is_some(), "a primary may be ahead of its standby");
        drop(held);
        assert!(take(kind("b", 1 << 61, 700)).is_some());
    }
}
