//! The rights of those who watch: who a caller is, which jobs it may see, and for how long. It knows neither sources nor
//! sockets. `http` asks it before it shows anything of a job, and `delivery` ends the streams whose grant has ended.
//!
//! - `caller`: the credentials of a request. `grant`: the right that they were given.
//! - `jwt`: rights by token, with `claims`, `key`, `jwks` and `ring`.
//! - `forward`: rights by a question to another service.
//! - `client`: requests to the services that the settings name.

mod caller;
mod claims;
mod client;
mod forward;
mod grant;
mod jwks;
mod jwt;
mod key;
mod ring;

pub use caller::{Caller, Wanted};
pub use grant::{Grant, Withdrawal};

use crate::config::{self, AuthMode};
use crate::event::JobId;
use crate::shutdown::{Phase, ShutdownWatch};
use crate::telemetry;
use forward::Forward;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jwt::Jwt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// Rights are looked at so many times within `auth.recheck`.
const LOOKS_PER_RECHECK: u32 = 20;

/// Answers who may watch; cheap to clone.
#[derive(Clone)]
pub struct Auth {
    mode: Mode,
    recheck: Duration,
}

#[derive(Clone)]
enum Mode {
    Anonymous,
    Jwt(Arc<Jwt>),
    Forward(Arc<Forward>),
}

/// Reason why a caller may not see what it asks for. It says nothing of whether a job exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There are no credentials.
    Missing,
    /// The credentials do not count, or not any more.
    Invalid,
    /// The caller is known, and has no right to this.
    Forbidden,
    /// Nobody can say now; trying again may help.
    Unavailable,
}

/// Reason why rights cannot be checked with these settings.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("auth.jwt.key_file: cannot read {}: {cause} (name the PEM file with the public key)", file.display())]
    KeyFile { file: PathBuf, cause: std::io::Error },
    #[error("auth.jwt.key_file: {} {problem}", file.display())]
    NoKey { file: PathBuf, problem: &'static str },
    #[error(
        "auth.jwt: a key set takes the place of a secret or a key file, and they that of a key set, only at a start (restart Jobcast)"
    )]
    OtherOrigin,
    #[error("auth.root_cert: {} cannot be used: {cause} (name the PEM file with the authority's certificate)", file.display())]
    Authority { file: PathBuf, cause: String },
    #[error("the client of auth cannot be set up: {0}")]
    Client(String),
    #[error("auth.mode needs a key or an address to check callers with; see the section auth")]
    NothingToCheckWith,
}

impl Auth {
    /// Checks callers as the settings say. Nothing is asked yet.
    pub fn new(settings: &config::Auth) -> Result<Self, SetupError> {
        let recheck = settings.recheck;
        let mode = match settings.mode {
            AuthMode::None => Mode::Anonymous,
            AuthMode::Jwt => Mode::Jwt(Arc::new(Jwt::new(&settings.jwt, &settings.root_cert, recheck)?)),
            AuthMode::Forward => {
                Mode::Forward(Arc::new(Forward::new(&settings.forward, &settings.root_cert, recheck)?))
            }
        };
        Ok(Self { mode, recheck })
    }

    /// Returns the right to see what is wanted; `None` where everybody has it. Streams hold the grant, and end with it.
    pub async fn ask(&self, caller: Caller, wanted: &Wanted) -> Result<Option<Arc<Grant>>, Refusal> {
        let asked = match &self.mode {
            Mode::Anonymous => return Ok(None),
            Mode::Jwt(jwt) => jwt.ask(&caller, wanted).await,
            Mode::Forward(forward) => forward.ask(caller, wanted).await,
        };
        let outcome = match &asked {
            Ok(_) => "allowed",
            Err(Refusal::Missing | Refusal::Invalid) => "unauthenticated",
            Err(Refusal::Forbidden) => "denied",
            Err(Refusal::Unavailable) => "unavailable",
        };
        telemetry::AUTH.increment(&[("outcome", outcome)], 1);
        asked.map(Some)
    }

    /// Checks the rights of open streams again, all of them in this one task, until the process stops.
    pub async fn run(self, shutdown: ShutdownWatch) {
        let stopped = shutdown.reached(Phase::Stopped);
        match &self.mode {
            Mode::Anonymous => stopped.await,
            Mode::Jwt(jwt) => tokio::select! {
                () = self.recheck_tokens(jwt) => {}
                () = stopped => {}
            },
            Mode::Forward(forward) => tokio::select! {
                () = self.recheck_answers(forward) => {}
                () = stopped => {}
            },
        }
    }

    async fn recheck_tokens(&self, jwt: &Jwt) {
        let mut looks = self.looks();
        loop {
            looks.tick().await;
            jwt.refresh_keys().await;
            jwt.recheck();
        }
    }

    async fn recheck_answers(&self, forward: &Arc<Forward>) {
        let mut looks = self.looks();
        let mut questions = FuturesUnordered::new();
        loop {
            tokio::select! {
                _ = looks.tick() => questions.extend(forward.due()),
                Some(()) = questions.next() => {}
            }
        }
    }

    fn looks(&self) -> tokio::time::Interval {
        let pause = (self.recheck / LOOKS_PER_RECHECK).clamp(Duration::from_millis(20), Duration::from_secs(1));
        let mut looks = tokio::time::interval(pause);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        looks
    }

    /// Makes cached answers on this job, or of this caller, or all of them, be asked for anew.
    pub fn forget(&self, job: Option<&JobId>, subject: Option<&str>) {
        if let Mode::Forward(forward) = &self.mode {
            forward.forget(job, subject);
        }
    }

    /// Reads the secret or the key file of reloaded settings. What is returned puts the key in the place of the old one.
    pub fn read_key(&self, settings: &config::Auth) -> Result<Box<dyn FnOnce() + Send>, SetupError> {
        let (Mode::Jwt(jwt), AuthMode::Jwt) = (&self.mode, settings.mode) else { return Ok(Box::new(|| ())) };
        let (jwt, key) = (jwt.clone(), jwt::fixed_key(&settings.jwt)?);
        if key.is_some() != jwt.has_fixed_key() {
            return Err(SetupError::OtherOrigin);
        }
        Ok(Box::new(move || key.map_or((), |key| jwt.replace_key(key))))
    }
}
