//! Rights by token (RFC 7519): the token lists the jobs that its bearer may watch.

use super::caller::Fingerprint;
use super::claims::Claims;
use super::jwks::KeySource;
use super::key::Key;
use super::{Caller, Grant, Refusal, SetupError, Wanted, Withdrawal, ring};
use crate::config;
use jsonwebtoken::{Header, Validation};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant, SystemTime};

/// Bytes of a token, at most.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Time that a token must be good for, at least. A stream that is closed as soon as it is open would bring its client back
/// without end.
const MIN_REST: Duration = Duration::from_secs(1);

/// Checks tokens.
pub struct Jwt {
    keys: Keys,
    rules: Rules,
    cookie: String,
    grants: Mutex<HashMap<Fingerprint, Granted>>,
}

/// Origin of the keys. There is one for one issuer, so that the name of a key never finds a key of somebody else.
enum Keys {
    /// A secret or a file.
    Fixed(RwLock<Arc<Key>>),
    /// A key set at an address.
    Fetched(Box<KeySource>),
}

/// A right that was granted, and the key that vouches for it.
struct Granted {
    grant: Weak<Grant>,
    key: Arc<Key>,
}

/// The claims that every token must have.
struct Rules {
    validation: Validation,
    leeway: Duration,
}

impl Jwt {
    pub fn new(settings: &config::Jwt, root_cert: &Path, recheck: Duration) -> Result<Self, SetupError> {
        ring::install();
        let keys = match fixed_key(settings)? {
            Some(key) => Keys::Fixed(RwLock::new(Arc::new(key))),
            None => Keys::Fetched(Box::new(KeySource::new(settings, root_cert, recheck)?)),
        };
        Ok(Self {
            keys,
            rules: Rules::new(settings, recheck),
            cookie: settings.cookie.clone(),
            grants: Mutex::default(),
        })
    }

    pub async fn ask(&self, caller: &Caller, wanted: &Wanted) -> Result<Arc<Grant>, Refusal> {
        let token = caller.token(&self.cookie).ok_or(Refusal::Missing)?;
        let (claims, key) = self.verify(token).await?;
        let rest = self.rules.rest(&claims).ok_or_else(|| refused("it has expired"))?;
        if !claims.allow(wanted) {
            return Err(Refusal::Forbidden);
        }
        Ok(self.grant(token, claims.sub, rest, key))
    }

    async fn verify(&self, token: &str) -> Result<(Claims, Arc<Key>), Refusal> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(refused("it is too long"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(refused)?;
        // An extension that must be understood, and is not (RFC 7515, section 4.1.11).
        if header.crit.is_some() {
            return Err(refused("it has a critical extension"));
        }
        let mut refusal = Refusal::Invalid;
        for key in self.keys_of(&header).await? {
            match jsonwebtoken::decode::<Claims>(token, &key.key, &self.rules.of(&key)) {
                Ok(decoded) => return Ok((decoded.claims, key)),
                Err(error) => refusal = refused(error),
            }
        }
        Err(refusal)
    }

    /// Finds the keys that a token may mean by the name that it gives: mostly one, and each is tried. Its algorithm is only
    /// compared, and other hints to a key, such as an address, are not read.
    async fn keys_of(&self, header: &Header) -> Result<Vec<Arc<Key>>, Refusal> {
        match &self.keys {
            Keys::Fixed(key) => Ok(vec![key.read().unwrap_or_else(PoisonError::into_inner).clone()]),
            Keys::Fetched(source) => source.find(header.kid.as_deref(), header.alg).await,
        }
    }

    /// Returns the grant that the streams of this token share.
    fn grant(&self, token: &str, subject: Option<String>, rest: Duration, key: Arc<Key>) -> Arc<Grant> {
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        let fingerprint = Fingerprint::of([token.as_bytes()]);
        let now = Instant::now();
        let shared = grants.get(&fingerprint).and_then(|granted| granted.grant.upgrade());
        if let Some(grant) = shared.filter(|grant| grant.ended(now).is_none()) {
            return grant;
        }
        // An end that no clock reaches is none.
        let grant = Arc::new(Grant::new(subject, now.checked_add(rest)));
        grants.insert(fingerprint, Granted { grant: Arc::downgrade(&grant), key });
        grant
    }

    /// Tells if the key is a secret's or a file's, and not one of a key set.
    pub fn has_fixed_key(&self) -> bool {
        matches!(self.keys, Keys::Fixed(_))
    }

    /// Replaces a secret or the key of a file by another. Streams that the old one vouched for are closed at the next
    /// recheck.
    pub fn replace_key(&self, key: Key) {
        let Keys::Fixed(held) = &self.keys else { return };
        let mut held = held.write().unwrap_or_else(PoisonError::into_inner);
        if **held != key {
            *held = Arc::new(key);
        }
    }

    /// Reads the key set again if it is time.
    pub async fn refresh_keys(&self) {
        if let Keys::Fetched(source) = &self.keys {
            source.refresh_if_due().await;
        }
    }

    /// Withdraws the rights whose key does not count any more, and forgets those that nobody uses.
    pub fn recheck(&self) {
        let is_good = |key: &Arc<Key>| match &self.keys {
            Keys::Fixed(held) => Arc::ptr_eq(key, &held.read().unwrap_or_else(PoisonError::into_inner)),
            Keys::Fetched(source) => source.holds(key),
        };
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        grants.retain(|_, granted| {
            let Some(grant) = granted.grant.upgrade() else { return false };
            let keeps = is_good(&granted.key);
            if !keeps {
                grant.withdraw(Withdrawal::Revoked);
            }
            keeps
        });
    }
}

/// Reads the key that the settings give by themselves; `None` where they name a key set.
pub fn fixed_key(settings: &config::Jwt) -> Result<Option<Key>, SetupError> {
    if let Some(secret) = settings.secret.get() {
        return Ok(Some(Key::from_secret(secret)));
    }
    let file = &settings.key_file;
    if file.as_os_str().is_empty() { Ok(None) } else { Key::from_file(file).map(Some) }
}

impl Rules {
    fn new(settings: &config::Jwt, recheck: Duration) -> Self {
        let mut validation = Validation::default();
        let mut required = vec!["exp"];
        if !settings.audience.is_empty() {
            validation.set_audience(&settings.audience);
            required.push("aud");
        }
        if !settings.issuer.is_empty() {
            validation.set_issuer(&[&settings.issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        validation.validate_nbf = true;
        let leeway = settings.leeway.min(recheck / 2);
        validation.leeway = leeway.as_secs();
        Self { validation, leeway }
    }

    /// The rules with the one algorithm of this key.
    fn of(&self, key: &Key) -> Validation {
        Validation { algorithms: vec![key.algorithm], ..self.validation.clone() }
    }

    /// Returns the time for which a token is still good; `None` for one that has run out, or is about to.
    fn rest(&self, claims: &Claims) -> Option<Duration> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let end = claims.exp + self.leeway.as_secs_f64();
        let rest = end - now.as_secs_f64();
        (rest >= MIN_REST.as_secs_f64()).then(|| Duration::try_from_secs_f64(rest).unwrap_or(Duration::MAX))
    }
}

/// Notes why a token does not count. Its caller is told only that it does not.
fn refused(reason: impl std::fmt::Display) -> Refusal {
    tracing::debug!(%reason, "a token was refused");
    Refusal::Invalid
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::ring::hmac;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::json;

    fn settings(secret: &str) -> config::Jwt {
        config::Jwt { secret: serde_json::from_value(secret.into()).expect("a secret"), ..config::Jwt::default() }
    }

    async fn ask(jwt: &Jwt, secret: &str) -> Result<Arc<Grant>, Refusal> {
        let part = |json: serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let claims = json!({ "exp": 1e19, "sub": "ann", "jobcast.jobs": ["job"] });
        let message = format!("{}.{}", part(json!({ "alg": "HS256" })), part(claims));
        let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), message.as_bytes());
        let token = format!("Bearer {message}.{}", URL_SAFE_NO_PAD.encode(signature));
        let caller = Caller::new([token.as_bytes()], [], ("/", ""), |_| true)?;
        jwt.ask(&caller, &Wanted::Job("job".parse().expect("an id"))).await
    }

    #[tokio::test]
    async fn streams_of_one_token_share_a_grant_and_another_secret_ends_it_while_the_same_one_does_not() {
        let (old, new) = ("an old secret of thirty-two bytes", "a new secret of thirty-two bytes.");
        let jwt = Jwt::new(&settings(old), Path::new(""), Duration::from_secs(60)).expect("tokens");
        let grant = ask(&jwt, old).await.expect("a grant");
        assert!(Arc::ptr_eq(&grant, &ask(&jwt, old).await.expect("a grant")));
        assert_eq!((grant.subject(), grant.expires()), (Some("ann"), None), "no clock reaches that end");
        assert_eq!(ask(&jwt, new).await.err(), Some(Refusal::Invalid));
        jwt.replace_key(Key::from_secret(old));
        jwt.recheck();
        assert_eq!(grant.ended(Instant::now()), None);
        jwt.replace_key(Key::from_secret(new));
        jwt.recheck();
        assert_eq!(grant.ended(Instant::now()), Some(Withdrawal::Revoked));
        assert_eq!(ask(&jwt, old).await.err(), Some(Refusal::Invalid));
        assert!(ask(&jwt, new).await.is_ok());
        jwt.recheck();
        assert!(jwt.grants.lock().expect("the grants").is_empty(), "nobody holds one");
    }
}
