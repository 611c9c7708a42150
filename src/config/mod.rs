//! Settings: the defaults, a TOML file over them, environment variables over both; checked and typed. Only `cli` hands in
//! the variables; only `load` reads the file.
//!
//! - `sections`, `auth`, `source`, `redis` and `traces`: one struct for each section, with its defaults and its `validate`.
//! - `mapping`: the columns and fields of other people's stores, and how they are read.
//! - `values`: types of single values, such as secrets and networks.
//! - `load`: reads the file and the variables, and finds everything that is wrong at once.
//! - `effective`: the settings as they are in effect, after reloads.
//! - `validate`: the list of problems, and the rules that concern two sections.
//! - `docs`: makes `config/jobcast.toml` and `docs/settings.md` from the doc comments on the fields.
//!
//! A module is given the sections that it needs, never all settings.

mod auth;
#[cfg(test)]
mod docs;
mod effective;
mod load;
mod mapping;
mod redis;
mod sections;
mod source;
mod traces;
mod validate;
mod values;

pub use auth::{Auth, AuthMode, Forward, Jwt};
pub use effective::Effective;
pub use load::{ConfigErrors, Values};
pub use mapping::{Create, EventOrder, Field, PayloadColumns, PayloadKind, TimestampUnit};
pub use redis::{EntryFields, Redis};
pub use sections::{Admin, Cors, Http, Hub, Ingest, Log, Shutdown, Stream, Tls};
pub use source::{Columns, FinalStatuses, JobColumns, Pace, Postgres, Source, SourceKind, Sqlite};
pub use traces::Traces;
pub use values::{AutoBool, Network, Secret, SecretUrl};

use serde::{Deserialize, Serialize};

/// All settings. Only `cli` holds them all.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Settings {
    /// The public listener, which browsers connect to.
    pub http: Http,
    /// The listener for operators: health, metrics and a view of the live jobs.
    pub admin: Admin,
    /// Rules that every stream follows.
    pub stream: Stream,
    /// Memory for live jobs.
    pub hub: Hub,
    /// The event store that is tailed.
    pub source: Source,
    /// Permission to watch jobs.
    pub auth: Auth,
    /// Events and statuses that are sent in over HTTP.
    pub ingest: Ingest,
    /// Times of leaving after SIGTERM. All open streams are told to reconnect.
    pub shutdown: Shutdown,
    /// Logs, which go to standard error.
    pub log: Log,
    /// Spans of requests and reads, for OpenTelemetry.
    pub traces: Traces,
}

impl Settings {
    /// All settings as TOML, with secrets masked.
    pub fn to_toml(&self) -> String {
        // Every value came from TOML or is a default that a test writes, so it can be written as TOML.
        toml::to_string(self).unwrap_or_else(|error| format!("# the settings cannot be printed: {error}\n"))
    }

    /// Returns the settings that weaken who may watch, each with what follows from it.
    pub fn weaknesses(&self) -> Vec<(&'static str, &'static str)> {
        self.auth.weaknesses(&self.http)
    }

    /// Returns true if events may be sent in: as `ingest.enabled` says, or else as the source and the listener suggest.
    pub fn ingest_enabled(&self) -> bool {
        match self.ingest.enabled {
            AutoBool::On => true,
            AutoBool::Off => false,
            AutoBool::Auto => match self.source.kind {
                SourceKind::Sqlite => self.http.listen.ip().is_loopback(),
                SourceKind::Postgres | SourceKind::Redis => false,
            },
        }
    }
}
