//! The key set at `auth.jwt.jwks_url` (RFC 7517): read at start, again and again, and when a token names a key that is not
//! known; the latter so seldom that tokens with invented names cannot be turned into a flood of requests.
//!
//! A token whose key is not in the set is refused for good only by a set that was asked for after the token came. Where that
//! could not be read, or may not be read again so soon, nobody can say now, and its bearer is to come back.
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
use std::sync::atomic::{AtomicBool, Ordering};
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
const BURST: u32 = 5;
/// ... and one more after each of these.
const REFILL: Duration = Duration::from_secs(10);
/// Keys of one name and algorithm that a token is tried with.
const MAX_TRIED: usize = 8;
/// Age at which a set is not used any more.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// Keys at an address.
pub struct KeySource {
    client: reqwest::Client,
    url: Url,
    /// Time between two reads.
    refresh: Duration,
    set: RwLock<KeySet>,
    /// The last read did not go well.
    is_down: AtomicBool,
    /// Held while the set is read, so that all who miss a key wait for one read.
    reading: Mutex<Pace>,
}

/// The keys that were read last.
#[derive(Default)]
struct KeySet {
    /// Each with its name (`kid`), if it has one.
    keys: Vec<(Option<String>, Arc<Key>)>,
    /// When the read of it began; `None` before the first that went well.
    read_at: Option<Instant>,
}

/// The times of reads.
struct Pace {
    /// When the last one began.
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
            is_down: AtomicBool::new(false),
            reading: Mutex::new(Pace { last: None, left: BURST, refilled: Instant::now() }),
        })
    }

    /// Finds the keys that a token may mean, at least one. A token without a name may mean the only key that its algorithm has.
    pub async fn find(&self, name: Option<&str>, algorithm: Algorithm) -> Result<Vec<Arc<Key>>, Refusal> {
        let came = Instant::now();
        if let Some(found) = self.look_up(name, algorithm) {
            return found;
        }
        let mut pace = self.reading.lock().await;
        // Another's read may have brought the key.
        if let Some(found) = self.look_up(name, algorithm) {
            return found;
        }
        // One that began after this token came says enough, also if it has failed.
        let was_read_since = pace.last.is_some_and(|last| last >= came);
        if !was_read_since && pace.may_read_for_a_token() {
            self.read(&mut pace).await;
        }
        drop(pace);
        let is_fresh = self.set().read_at.is_some_and(|at| at >= came);
        self.look_up(name, algorithm).unwrap_or(Err(if is_fresh { Refusal::Invalid } else { Refusal::Unavailable }))
    }

    /// Returns `None` where another read may help.
    fn look_up(&self, name: Option<&str>, algorithm: Algorithm) -> Option<Result<Vec<Arc<Key>>, Refusal>> {
        let set = self.set();
        set.read_at.filter(|at| at.elapsed() < MAX_AGE)?;
        let of_name = |key: &&(Option<String>, Arc<Key>)| name.is_none() || key.0.as_deref() == name;
        let mut named = set.keys.iter().filter(of_name).peekable();
        named.peek()?;
        let fitting = named.filter(|(_, key)| key.algorithm == algorithm).map(|(_, key)| key.clone());
        let fitting: Vec<Arc<Key>> = fitting.take(MAX_TRIED).collect();
        let is_told = fitting.len() == 1 || name.is_some() && !fitting.is_empty();
        Some(if is_told { Ok(fitting) } else { Err(Refusal::Invalid) })
    }

    fn set(&self) -> std::sync::RwLockReadGuard<'_, KeySet> {
        self.set.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells if a key is in the set that was read last.
    pub fn holds(&self, key: &Arc<Key>) -> bool {
        self.set().keys.iter().any(|(_, held)| Arc::ptr_eq(held, key))
    }

    /// Reads the set if the last read began long enough ago.
    pub async fn refresh_if_due(&self) {
        let mut pace = self.reading.lock().await;
        if pace.last.is_none_or(|last| last.elapsed() >= self.refresh) {
            self.read(&mut pace).await;
        }
    }

    async fn read(&self, pace: &mut Pace) {
        let began = Instant::now();
        pace.last = Some(began);
        match self.fetch().await {
            Ok(keys) => {
                self.replace(keys, began);
                if self.is_down.swap(false, Ordering::Relaxed) {
                    tracing::info!("the key set of auth.jwt.jwks_url can be read again");
                }
            }
            // Said once, however often it is read in vain.
            Err(problem) if self.is_down.swap(true, Ordering::Relaxed) => {
                tracing::debug!(problem, "the key set of auth.jwt.jwks_url still cannot be read");
            }
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
    fn replace(&self, keys: Vec<(Option<String>, Key)>, began: Instant) {
        let mut set = self.set.write().unwrap_or_else(PoisonError::into_inner);
        let held = std::mem::take(&mut set.keys);
        let kept = |name: &Option<String>, key: Key| {
            let same = held.iter().find(|(held_name, held)| held_name == name && **held == key);
            same.map_or_else(|| Arc::new(key), |(_, held)| held.clone())
        };
        set.keys = keys.into_iter().map(|(name, key)| (name.clone(), kept(&name, key))).collect();
        set.read_at = Some(began);
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
