//! Failures that go on are said once: the first of them is logged, and the metrics count the others.

use super::{Scope, SourceCode, SourceError};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The silence after which an incident is over.
const OVER_AFTER: Duration = Duration::from_secs(60);
/// Incidents that are known at a time. More lines than these would help nobody.
const MAX_INCIDENTS: usize = 1024;

/// Incidents that go on, each with the moment at which it was last met.
pub struct Incidents<K>(Mutex<BTreeMap<K, Instant>>);

impl<K: Ord> Incidents<K> {
    pub const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Notes one more failure of an incident; true if it is the first, and is to be said.
    pub fn begins(&self, incident: K) -> bool {
        self.begins_at(incident, Instant::now())
    }

    fn begins_at(&self, incident: K, now: Instant) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = known.get_mut(&incident) {
            let is_over = now.saturating_duration_since(*last) >= OVER_AFTER;
            *last = now;
            return is_over;
        }
        known.retain(|_, last| now.saturating_duration_since(*last) < OVER_AFTER);
        let is_said = known.len() < MAX_INCIDENTS;
        if is_said {
            known.insert(incident, now);
        }
        is_said
    }

    /// Notes that all incidents that are `ended` are over: the next failure begins another.
    pub fn end(&self, ended: impl Fn(&K) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|incident, _| !ended(incident));
    }
}

impl<K: Ord> Default for Incidents<K> {
    fn default() -> Self {
        Self::new()
    }
}

/// An incident of a source: failures of one kind in one scope.
type Incident = (Scope, SourceCode);

/// The incidents of the source that this process has said.
static SAID: Incidents<Incident> = Incidents::new();

impl SourceError {
    /// Tells whether this failure begins an incident, and is therefore to be logged.
    pub fn begins_incident(&self) -> bool {
        SAID.begins((self.scope.clone(), self.code))
    }

    /// Notes that a scope can be read again.
    pub fn incidents_end(scope: &Scope) {
        SAID.end(|(known, _)| known == scope);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incident_is_said_once_until_it_is_over() {
        let (incidents, began) = (Incidents::new(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        assert!(incidents.begins_at("a", at(0)));
        assert!((1..200).all(|second| !incidents.begins_at("a", at(second))));
        assert!(incidents.begins_at("b", at(200)), "another is another");
        assert!(incidents.begins_at("a", at(300)), "it was over for a minute");
        incidents.end(|incident| *incident == "a");
        assert!(incidents.begins_at("a", at(301)));
    }

    #[test]
    fn no_number_of_incidents_takes_more_than_so_much_memory() {
        let (incidents, now) = (Incidents::new(), Instant::now());
        let said = (0..10_000).filter(|number| incidents.begins_at(*number, now)).count();
        assert_eq!(said, MAX_INCIDENTS);
    }
}
