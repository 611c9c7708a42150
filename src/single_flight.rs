//! One piece of work for all who ask for the same at the same time.

use crate::supervise::{Panicked, guarded};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Work that has not ended, by what it is for. Cheap to clone.
///
/// Only those who wait for a piece of work drive it: it is dropped when the last of them leaves.
pub struct SingleFlight<K, T>(Arc<Mutex<Flights<K, T>>>);

/// A piece of work that any number of callers wait for.
pub type Flight<T> = Shared<BoxFuture<'static, T>>;

struct Flights<K, T> {
    by_key: HashMap<K, (u64, WeakShared<BoxFuture<'static, T>>)>,
    /// Number of the next flight, which tells it from an earlier one of the same key.
    next_number: u64,
}

/// The caller's share in a piece of work.
pub struct Joined<T> {
    pub flight: Flight<T>,
    /// The work began with this caller. Else it may have begun before something that this caller knows of.
    pub is_own: bool,
}

impl<K, T> Clone for SingleFlight<K, T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K, T> Default for SingleFlight<K, T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Flights { by_key: HashMap::new(), next_number: 0 })))
    }
}

impl<K, T> SingleFlight<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Joins the work in flight for `key`, or begins `work`. Its result goes to all who joined, and to nobody who comes
    /// later. If it panics they get `panicked` instead. `name` is that of the work in tests that make it fail.
    pub fn join<F>(
        &self,
        name: &'static str,
        key: K,
        work: impl FnOnce() -> F,
        panicked: impl FnOnce(Panicked) -> T + Send + 'static,
    ) -> Joined<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut flights = self.lock();
        if let Some(flight) = flights.by_key.get(&key).and_then(|(_, flight)| flight.upgrade()) {
            return Joined { flight, is_own: false };
        }
        let number = flights.next_number;
        flights.next_number += 1;
        let landing = Landing { flights: self.clone(), key: key.clone(), number };
        let work = work();
        let flight = async move {
            // A panic must not get out of here: of those who share the work, only one would be woken.
            let result = guarded(name, work).await.unwrap_or_else(panicked);
            // Forgotten before it is given out, since who asks from now on may need something newer.
            drop(landing);
            result
        };
        let flight = flight.boxed().shared();
        flights.by_key.extend(flight.downgrade().map(|weak| (key, (number, weak))));
        Joined { flight, is_own: true }
    }
}

impl<K, T> SingleFlight<K, T> {
    fn lock(&self) -> MutexGuard<'_, Flights<K, T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stands for a flight until its end; its drop, whichever way it came, forgets the flight.
struct Landing<K: Eq + Hash, T> {
    flights: SingleFlight<K, T>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash, T> Drop for Landing<K, T> {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        if flights.by_key.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            flights.by_key.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::task::yield_now;

    type Results = SingleFlight<&'static str, Result<u32, Panicked>>;

    #[tokio::test]
    async fn all_who_ask_for_the_same_meanwhile_share_one_piece_of_work_and_the_next_begins_anew() {
        let (results, begun) = (Results::default(), Arc::new(AtomicU32::new(0)));
        let ask = |key| {
            let begun = begun.clone();
            let work = || async move {
                let number = begun.fetch_add(1, Ordering::Relaxed);
                yield_now().await;
                Ok(number)
            };
            results.join("work", key, work, Err)
        };
        let asked: Vec<Joined<_>> = (0..5).map(|_| ask("a")).collect();
        assert_eq!(asked.iter().filter(|joined| joined.is_own).count(), 1);
        assert_eq!(join_all(asked.into_iter().map(|joined| joined.flight)).await, [Ok(0); 5]);
        assert_eq!((ask("a").flight.await, ask("b").flight.await), (Ok(1), Ok(2)));
        assert!(results.lock().by_key.is_empty());
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_any_more_is_dropped_and_forgotten() {
        let results = Results::default();
        let abandoned = results.join("work", "a", std::future::pending, Err);
        assert_eq!(abandoned.flight.clone().now_or_never(), None);
        drop(abandoned);
        assert!(results.lock().by_key.is_empty());
        assert_eq!(results.join("work", "a", || async { Ok(7) }, Err).flight.await, Ok(7));
    }

    #[tokio::test]
    async fn a_panic_is_told_to_all_who_wait() {
        let results = Results::default();
        let ask = || results.join("work", "a", || async { panic!("on purpose") }, Err).flight;
        assert_eq!(join_all([ask(), ask()]).await, [Err(Panicked); 2]);
    }
}
