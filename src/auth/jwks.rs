//! The key set at `auth.jwt.jwks_url` (RFC 7517): read at start, again and again, and when a token names a key that is not
//! known; the latter so seldom that tokens with invented names cannot be turned into a flood of requests.
//!
//! The set belongs to the one issuer of the settings. The last one that could be read stays in use while its address does
//! not answer.

use super::client::{cause, http_client, read_body};
use super::key::Key;
use super::{Refusal, SetupError};
use crate::config;
use jsonwebtoken::Algorithm;
use jsonwebtoken::jwk::Jwk;
use serde::Deserialize;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use url::Url;

/// Time in which the set must arrive.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a set, at most.
const MAX_BYTES: usize = 512 * 1024;
/// Keys of a set that are looked at.
const MAX_KEYS: usize = 100;
/// Time between two reads, at most.
const MAX_REFRESH: Duration = Duration::from_secs(300);
/// Time between two reads that nobody asks for, at least.
const MIN_REFRESH: Duration = Duration::from_secs(1);
/// Reads because of unknown keys: so many at once, ...
const BURST: u32 = 3;
/// ... and one more after each of these.
const REFILL: Duration = Duration::from_secs(10);
/// Age at which a set is not used any more.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// Keys at an address.
pub struct KeySource {
    client: reqwest::Client,
    url: Url,
    /// Time between two reads.
    refresh: Duration,
    set: RwLock<KeySet>,
    /// Reads so far, whether they went well or not.
    reads: AtomicU64,
    /// Held while the set is read, so that all who miss a key wait for one read.
    reading: Mutex<Pace>,
}

/// The keys that were read last.
#[derive(Default)]
struct KeySet {
    /// Each with its name (`kid`), if it has one.
    keys: Vec<(Option<String>, Arc<Key>)>,
    /// None before the first read that went well.
    read_at: Option<Instant>,
}

/// The times of reads.
struct Pace {
    last: Option<Instant>,
    /// Reads because of unknown keys that are left.
    left: u32,
    refilled: Instant,
}

#[derive(Deserialize)]
struct Document {
    /// Read one by one, so that one key of an unknown kind does not cost the others.
    keys: Vec<serde_json::Value>,
}

impl KeySource {
    pub fn new(settings: &config::Jwt, root_cert: &Path, recheck: Duration) -> Result<Self, SetupError> {
        let url = settings.jwks_url.get().ok_or(SetupError::NothingToCheckWith)?;
        Ok(Self {
            client: http_client(root_cert, TIMEOUT)?,
            url,
            refresh: (recheck / 2).clamp(MIN_REFRESH, MAX_REFRESH),
            set: RwLock::default(),
            reads: AtomicU64::new(0),
            reading: Mutex::new(Pace { last: None, left: BURST, refilled: Instant::now() }),
        })
    }

    /// Finds the key of a token. A token without a name may mean the only key that its algorithm has.
    pub async fn find(&self, name: Option<&str>, algorithm: Algorithm) -> Result<Arc<Key>, Refusal> {
        let reads = self.reads.load(Ordering::Acquire);
        if let Some(found) = self.look_up(name, algorithm) {
            return found;
        }
        let mut pace = self.reading.lock().await;
        // Whoever waited for another's read only looks again.
        if self.reads.load(Ordering::Acquire) == reads && pace.may_read_for_a_token() {
            self.read(&mut pace).await;
        }
        drop(pace);
        let is_usable = self.set().read_at.is_some_and(|at| at.elapsed() < MAX_AGE);
        self.look_up(name, algorithm).unwrap_or(Err(if is_usable { Refusal::Invalid } else { Refusal::Unavailable }))
    }

    /// Returns `None` where another read may help.
    fn look_up(&self, name: Option<&str>, algorithm: Algorithm) -> Option<Result<Arc<Key>, Refusal>> {
        let set = self.set();
        set.read_at.filter(|at| at.elapsed() < MAX_AGE)?;
        let of_name = |key: &&(Option<String>, Arc<Key>)| name.is_none() || key.0.as_deref() == name;
        let mut named = set.keys.iter().filter(of_name).peekable();
        named.peek()?;
        let mut fitting = named.filter(|(_, key)| key.algorithm == algorithm);
        match (fitting.next(), fitting.next()) {
            (Some((_, key)), None) => Some(Ok(key.clone())),
            // Two keys of one name are told apart by their algorithms, or not at all.
            _ => Some(Err(Refusal::Invalid)),
        }
    }

    fn set(&self) -> std::sync::RwLockReadGuard<'_, KeySet> {
        self.set.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells if a key is in the set that was read last.
    pub fn holds(&self, key: &Arc<Key>) -> bool {
        self.set().keys.iter().any(|(_, held)| Arc::ptr_eq(held, key))
    }

    /// Reads the set if the last read is old enough.
    pub async fn refresh_if_due(&self) {
        let mut pace = self.reading.lock().await;
        if pace.last.is_none_or(|last| last.elapsed() >= self.refresh) {
            self.read(&mut pace).await;
        }
    }

    async fn read(&self, pace: &mut Pace) {
        let fetched = self.fetch().await;
        pace.last = Some(Instant::now());
        match fetched {
            Ok(keys) => self.replace(keys),
            Err(problem) => {
                let is_known = self.set().read_at.is_some();
                tracing::warn!(
                    host = self.url.host_str(),
                    problem,
                    is_known,
                    "the key set of auth.jwt.jwks_url cannot be read"
                );
            }
        }
        self.reads.fetch_add(1, Ordering::Release);
    }

    async fn fetch(&self) -> Result<Vec<(Option<String>, Key)>, String> {
        let answer = self.client.get(self.url.clone()).send().await.map_err(cause)?;
        if !answer.status().is_success() {
            return Err(format!("it answers {}", answer.status()));
        }
        let body = read_body(answer, MAX_BYTES).await?;
        let document: Document = serde_json::from_slice(&body).map_err(|_| "it is no key set".to_string())?;
        let read = |value| {
            let jwk: Jwk = serde_json::from_value(value).ok()?;
            Some((jwk.common.key_id.clone(), Key::from_jwk(&jwk)?))
        };
        let keys: Vec<_> = document.keys.into_iter().take(MAX_KEYS).filter_map(read).collect();
        if keys.is_empty() { Err("it has no key for RS256, ES256 or EdDSA".into()) } else { Ok(keys) }
    }

    /// Puts a new set in the place of the old one. Keys that are in both stay what they are, with the rights that they vouch
    /// for.
    fn replace(&self, keys: Vec<(Option<String>, Key)>) {
        let mut set = self.set.write().unwrap_or_else(PoisonError::into_inner);
        let held = std::mem::take(&mut set.keys);
        let kept = |name: &Option<String>, key: Key| {
            let same = held.iter().find(|(held_name, held)| held_name == name && **held == key);
            same.map_or_else(|| Arc::new(key), |(_, held)| held.clone())
        };
        set.keys = keys.into_iter().map(|(name, key)| (name.clone(), kept(&name, key))).collect();
        set.read_at = Some(Instant::now());
    }
}

impl Pace {
    /// Takes one of the reads that tokens may cause, if one is left.
    fn may_read_for_a_token(&mut self) -> bool {
        let refills = (self.refilled.elapsed().as_nanos() / REFILL.as_nanos()).min(u128::from(BURST)) as u32;
        if refills > 0 {
            self.left = (self.left + refills).min(BURST);
            self.refilled = Instant::now();
        }
        let may = self.left > 0;
        self.left -= u32::from(may);
        may
    }
}
