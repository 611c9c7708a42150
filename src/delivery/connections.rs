//! Open streams as the admin listener lists and closes them. A delivery thread answers for those that it holds. The
//! [`Registry`] knows those that actix serves: replays, streams whose connection cannot leave, and long polls.

use super::admission::StreamPermit;
use crate::event::{JobId, Rfc3339};
use crate::hub::{Hub, Place};
use crate::topic::Topic;
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// The place of a stream that no ring serves.
const NO_PLACE: Place = Place::MAX;

/// The choice of streams that an operator's request is about. A part that is None allows all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The id in `X-Jobcast-Connection`.
    pub id: Option<String>,
    pub job: Option<JobId>,
    pub subject: Option<String>,
}

impl Filter {
    /// Tells if it allows all streams.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Tells if it allows this stream.
    pub fn allows(&self, permit: &StreamPermit, topic: &Topic) -> bool {
        self.allows_parts(|| permit.id(), topic, permit.subject())
    }

    /// The id comes last, since it is made only to be compared.
    fn allows_parts(&self, id: impl FnOnce() -> String, topic: &Topic, subject: Option<&str>) -> bool {
        self.job.as_ref().is_none_or(|wanted| topic.index(wanted).is_some())
            && self.subject.as_deref().is_none_or(|wanted| subject == Some(wanted))
            && self.id.as_ref().is_none_or(|wanted| *wanted == id())
    }
}

/// One open stream, as the admin listener shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Connection {
    pub id: String,
    /// The job, or the first of a set.
    pub job: JobId,
    /// The number of jobs, where it is a set of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jobs: Option<usize>,
    /// The caller's name, where its credentials have one.
    pub subject: Option<String>,
    pub address: Option<IpAddr>,
    /// When the stream was admitted.
    #[serde(serialize_with = "rfc3339")]
    pub since: Timestamp,
    /// The number of events that were written to it.
    pub delivered: u64,
    /// The number of published events that it has yet to be sent; None while it is fed from the source.
    pub lag: Option<u64>,
}

impl Connection {
    pub fn new(permit: &StreamPermit, topic: &Topic, lag: Option<u64>) -> Self {
        Self {
            id: permit.id(),
            job: topic.jobs()[0].clone(),
            jobs: Some(topic.jobs().len()).filter(|jobs| *jobs > 1),
            subject: permit.subject().map(str::to_string),
            address: permit.address(),
            since: wall_clock(permit.since()),
            delivered: permit.delivered().into(),
            lag,
        }
    }
}

fn rfc3339<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&Rfc3339(*at))
}

fn wall_clock(moment: Instant) -> Timestamp {
    Timestamp::now().checked_sub(moment.elapsed()).unwrap_or(Timestamp::MIN)
}

/// The streams that a filter allows, as one part of the process knows them.
#[derive(Debug, Default)]
pub struct Listed {
    /// The number of all of them.
    pub total: usize,
    /// The first of them, as many as were asked for.
    pub connections: Vec<Connection>,
}

/// The streams that actix serves; cheap to clone. Its lock is taken when a stream begins or leaves, and when an operator
/// asks, never for an event.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<HashMap<String, Arc<Entry>>>>);

/// The part of a stream that the registry and whoever serves the stream share.
struct Entry {
    /// As it was when the stream began.
    connection: Connection,
    topic: Topic,
    delivered: AtomicU64,
    place: AtomicU64,
    is_revoked: AtomicBool,
    revoked: Notify,
}

impl Registry {
    fn entries(&self) -> MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a stream, until what is returned is dropped.
    pub fn enter(&self, permit: &StreamPermit, topic: &Topic) -> Registration {
        let entry = Arc::new(Entry {
            connection: Connection::new(permit, topic, None),
            topic: topic.clone(),
            delivered: AtomicU64::new(0),
            place: AtomicU64::new(NO_PLACE),
            is_revoked: AtomicBool::new(false),
            revoked: Notify::new(),
        });
        self.entries().insert(permit.id(), entry.clone());
        Registration { registry: self.clone(), entry }
    }

    /// Lists the streams that `filter` allows, at most `limit`.
    pub fn list(&self, filter: &Filter, limit: usize, hub: &Hub) -> Listed {
        // Collected first, so that the hub is asked without this lock.
        let chosen: Vec<_> = self.entries().values().filter(|entry| entry.is_allowed(filter)).cloned().collect();
        let connections = chosen.iter().take(limit).map(|entry| entry.connection(hub)).collect();
        Listed { total: chosen.len(), connections }
    }

    /// Revokes the streams that `filter` allows, and returns their ids.
    pub fn revoke(&self, filter: &Filter) -> Vec<String> {
        let entries = self.entries();
        let chosen = entries.iter().filter(|(_, entry)| entry.is_allowed(filter));
        let newly_revoked = chosen.filter(|(_, entry)| !entry.is_revoked.swap(true, Ordering::Relaxed));
        newly_revoked.inspect(|(_, entry)| entry.revoked.notify_one()).map(|(id, _)| id.clone()).collect()
    }
}

impl Entry {
    fn is_allowed(&self, filter: &Filter) -> bool {
        let Connection { id, subject, .. } = &self.connection;
        filter.allows_parts(|| id.clone(), &self.topic, subject.as_deref())
    }

    fn connection(&self, hub: &Hub) -> Connection {
        let place = self.place.load(Ordering::Relaxed);
        let channel = hub.channel(&self.topic).filter(|_| place != NO_PLACE);
        let lag = channel.map(|channel| channel.newest().0.saturating_sub(place));
        Connection { delivered: self.delivered.load(Ordering::Relaxed), lag, ..self.connection.clone() }
    }
}

/// One stream's entry in the registry. It goes with the stream to its delivery thread, and ends there, so that no moment is
/// left in which nobody answers for the stream.
pub struct Registration {
    registry: Registry,
    entry: Arc<Entry>,
}

impl Registration {
    /// Counts events that were given to actix.
    pub fn count(&self, events: u64) {
        self.entry.delivered.fetch_add(events, Ordering::Relaxed);
    }

    /// Sets the stream's place in the ring; None while it is fed from the source.
    pub fn set_place(&self, place: Option<Place>) {
        self.entry.place.store(place.unwrap_or(NO_PLACE), Ordering::Relaxed);
    }

    /// Tells if an operator has closed the stream.
    pub fn is_revoked(&self) -> bool {
        self.entry.is_revoked.load(Ordering::Relaxed)
    }

    /// Returns when the stream may not go on: an operator closes it, or the right that it was opened with has ended.
    pub async fn ended(&self, permit: &StreamPermit) {
        let withdrawn = async {
            match permit.grants() {
                [] => std::future::pending().await,
                grants => {
                    let ends = grants.iter().map(|grant| Box::pin(grant.end()));
                    futures_util::future::select_all(ends).await;
                }
            }
        };
        tokio::select! {
            () = self.entry.revoked.notified() => {}
            () = withdrawn => {}
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.entries().remove(&self.entry.connection.id);
    }
}
