//! Settings: a TOML file, environment variables over it, checked and typed. Nobody else reads either.
//!
//! A setting is one field here; `config/jobcast.toml` shows each with its default and a line on it, and a test holds the
//! two together. A module is given its own section, never the whole.

use crate::event::JobStatus;
use crate::sse::Shape;
use crate::telemetry::LogFormat;
use bytesize::ByteSize;
use config::{Config, File, FileFormat, Value, ValueKind};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Settings {
    pub http: Http,
    pub admin: Admin,
    pub stream: Stream,
    pub hub: Hub,
    pub source: Source,
    pub auth: Auth,
    pub ingest: Ingest,
    pub shutdown: Shutdown,
    pub log: Log,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Http {
    pub listen: SocketAddr,
    pub workers: usize,
    pub stream_path: String,
    pub events_path: String,
    pub max_connections: usize,
    pub max_connections_per_ip: usize,
    #[serde(with = "span")]
    pub header_timeout: Duration,
    #[serde(with = "size")]
    pub max_body: ByteSize,
    pub cors: Cors,
    pub trusted_proxies: Vec<IpAddr>,
    pub live_page: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cors {
    pub origins: Vec<String>,
    pub credentials: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Admin {
    pub listen: SocketAddr,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stream {
    #[serde(with = "span")]
    pub retry: Duration,
    #[serde(with = "span")]
    pub heartbeat: Duration,
    #[serde(with = "span")]
    pub write_timeout: Duration,
    #[serde(with = "span")]
    pub max_age: Duration,
    pub data: Shape,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hub {
    pub ring_events: usize,
    #[serde(with = "size")]
    pub ring_bytes: ByteSize,
    #[serde(with = "size")]
    pub total_bytes: ByteSize,
    #[serde(with = "span")]
    pub linger: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Source {
    pub kind: SourceKind,
    #[serde(with = "span")]
    pub poll_interval: Duration,
    #[serde(with = "span")]
    pub retry_initial: Duration,
    #[serde(with = "span")]
    pub retry_max: Duration,
    #[serde(with = "span")]
    pub ready_grace: Duration,
    #[serde(with = "span")]
    pub settle: Duration,
    pub sqlite: Sqlite,
    pub postgres: Postgres,
    pub redis: Redis,
}

/// Intervals of the loops that read a source: the part of its section that they are given, without any address in it.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Longest time between two reads of the tail.
    pub poll_interval: Duration,
    /// First wait after a failed read; it doubles with each further one.
    pub retry_initial: Duration,
    /// Longest wait after a failed read.
    pub retry_max: Duration,
}

impl Source {
    pub fn pace(&self) -> Pace {
        Pace { poll_interval: self.poll_interval, retry_initial: self.retry_initial, retry_max: self.retry_max }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    Sqlite,
    Postgres,
    Redis,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sqlite {
    pub path: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Postgres {
    pub url: Secret,
    /// Empty: the authorities that everybody trusts.
    pub root_cert: PathBuf,
    pub pool: u32,
    pub events_table: String,
    /// Empty: there is none.
    pub jobs_table: String,
    pub columns: Columns,
    pub job_columns: JobColumns,
    pub statuses: FinalStatuses,
    pub final_types: FinalStatuses,
    /// Empty: polls only.
    pub listen: String,
    #[serde(with = "span")]
    pub look_back: Duration,
    #[serde(with = "span")]
    pub sweep: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Redis {
    pub url: Secret,
    /// Empty: the authorities that everybody trusts.
    pub root_cert: PathBuf,
    pub events_key: String,
    /// Empty: there is none.
    pub job_key: String,
    pub statuses: FinalStatuses,
    pub final_types: FinalStatuses,
}

impl Redis {
    /// What stands for the job's id in a key.
    pub const JOB_ID: &str = "$job_id";
}

/// What the event table's columns are called.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Columns {
    pub id: String,
    pub job_id: String,
    pub step_id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub timestamp: String,
    pub actor: String,
    pub payload: String,
    pub seq: String,
    pub xid: String,
}

/// What the job table's columns are called.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobColumns {
    pub id: String,
    pub status: String,
}

/// Texts that say how a job ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FinalStatuses {
    pub completed: Vec<String>,
    pub failed: Vec<String>,
    pub cancelled: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Auth {
    pub mode: AuthMode,
    pub allow_anonymous: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    None,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ingest {
    pub enabled: AutoBool,
    pub token: Secret,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shutdown {
    #[serde(with = "span")]
    pub grace: Duration,
    #[serde(with = "span")]
    pub drain: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Log {
    pub level: String,
    pub format: LogFormat,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            workers: 0,
            stream_path: "/runner-jobs/{job_id}/events/stream".into(),
            events_path: "/runner-jobs/{job_id}/events".into(),
            max_connections: 10_000,
            max_connections_per_ip: 0,
            header_timeout: Duration::from_secs(5),
            max_body: ByteSize::kib(256),
            cors: Cors::default(),
            trusted_proxies: Vec::new(),
            live_page: true,
        }
    }
}

impl Http {
    /// Worker threads, and delivery threads: as set, or one per core.
    pub fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9464)) }
    }
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            retry: Duration::from_secs(3),
            heartbeat: Duration::from_secs(15),
            write_timeout: Duration::from_secs(30),
            max_age: Duration::ZERO,
            data: Shape::Envelope,
        }
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            ring_events: 1024,
            ring_bytes: ByteSize::mib(1),
            total_bytes: ByteSize::mib(256),
            linger: Duration::from_secs(30),
        }
    }
}

impl Default for Source {
    fn default() -> Self {
        Self {
            kind: SourceKind::Sqlite,
            poll_interval: Duration::from_millis(500),
            retry_initial: Duration::from_millis(200),
            retry_max: Duration::from_secs(10),
            ready_grace: Duration::from_secs(10),
            settle: Duration::from_secs(2),
            sqlite: Sqlite { path: "jobcast.db".into() },
            postgres: Postgres::default(),
            redis: Redis::default(),
        }
    }
}

impl Default for Postgres {
    fn default() -> Self {
        Self {
            url: Secret::default(),
            root_cert: PathBuf::new(),
            pool: 4,
            events_table: "job_events".into(),
            jobs_table: "runner_jobs".into(),
            columns: Columns {
                id: "id".into(),
                job_id: "job_id".into(),
                step_id: "step_id".into(),
                kind: "type".into(),
                timestamp: "timestamp".into(),
                actor: "actor".into(),
                payload: "payload".into(),
                seq: "seq".into(),
                xid: "xid".into(),
            },
            job_columns: JobColumns { id: "id".into(), status: "status".into() },
            statuses: FinalStatuses::usual_statuses(),
            final_types: FinalStatuses::default(),
            listen: "jobcast".into(),
            look_back: Duration::from_secs(60),
            sweep: Duration::from_secs(30),
        }
    }
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: Secret::default(),
            root_cert: PathBuf::new(),
            events_key: "runner-jobs:$job_id:events".into(),
            job_key: "runner-jobs:$job_id".into(),
            statuses: FinalStatuses::usual_statuses(),
            final_types: FinalStatuses::default(),
        }
    }
}

impl FinalStatuses {
    fn usual_statuses() -> Self {
        Self { completed: vec!["COMPLETED".into()], failed: vec!["FAILED".into()], cancelled: vec!["CANCELLED".into()] }
    }

    /// How a job ended that is told of by this text.
    pub fn find(&self, text: &str) -> Option<JobStatus> {
        let is_in = |texts: &[String]| texts.iter().any(|one| one == text);
        match () {
            () if is_in(&self.completed) => Some(JobStatus::Completed),
            () if is_in(&self.failed) => Some(JobStatus::Failed),
            () if is_in(&self.cancelled) => Some(JobStatus::Cancelled),
            () => None,
        }
    }

    /// Returns the status that `text` means: one of these, else one of the usual words.
    pub fn resolve(&self, text: &str) -> Option<JobStatus> {
        self.find(text).or_else(|| text.parse().ok())
    }

    /// Returns the text to write for `status`: the first of these, else the usual word.
    pub fn spelling(&self, status: JobStatus) -> &str {
        let own = match status {
            JobStatus::Completed => self.completed.first(),
            JobStatus::Failed => self.failed.first(),
            JobStatus::Cancelled => self.cancelled.first(),
            JobStatus::Pending | JobStatus::Queued | JobStatus::Running => None,
        };
        own.map_or(status.as_str(), String::as_str)
    }

    pub fn all(&self) -> impl Iterator<Item = &str> {
        [&self.completed, &self.failed, &self.cancelled].into_iter().flatten().map(String::as_str)
    }
}

impl Default for Auth {
    fn default() -> Self {
        Self { mode: AuthMode::None, allow_anonymous: false }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { grace: Duration::from_secs(5), drain: Duration::from_secs(20) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Pretty }
    }
}

/// On, off, or as the rest of the settings suggest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoBool {
    #[default]
    Auto,
    On,
    Off,
}

impl Serialize for AutoBool {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => to.serialize_str("auto"),
            Self::On => to.serialize_bool(true),
            Self::Off => to.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for AutoBool {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match String::deserialize(from)?.as_str() {
            "auto" => Ok(Self::Auto),
            "true" => Ok(Self::On),
            "false" => Ok(Self::Off),
            other => Err(serde::de::Error::custom(format!("{other:?} is neither true, false nor \"auto\""))),
        }
    }
}

/// A string that is never printed; empty is not set.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn get(&self) -> Option<&str> {
        (!self.0.is_empty()).then_some(&*self.0)
    }

    fn masked(&self) -> &'static str {
        self.get().map_or("", |_| "********")
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.masked())
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.masked())
    }
}

/// The settings that are secrets; each may also come from a file named by `JOBCAST_…_FILE`.
const SECRETS: &[&str] = &["ingest.token", "source.postgres.url", "source.redis.url"];

/// Durations as `500ms`, `15s`, `5m`; `0` or `0s` for none.
mod span {
    use super::*;

    pub fn serialize<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*span))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_duration(&text).map_err(|error| {
            serde::de::Error::custom(format!("{text:?} is no duration such as 500ms, 15s or 5m ({error})"))
        })
    }
}

/// Sizes as `64KiB`, `1MiB`; a bare number is bytes.
mod size {
    use super::*;

    pub fn serialize<S: Serializer>(size: &ByteSize, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&size.display().iec())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ByteSize, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(|_| serde::de::Error::custom(format!("{text:?} is no size such as 64KiB or 1MiB")))
    }
}

/// Everything that is wrong with the settings, each with its key and where it stood.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

/// One value that was given, and where.
struct Override {
    key: String,
    value: Value,
    origin: String,
}

impl Settings {
    /// Reads `file`, if there is one, and the variables over it.
    pub fn load(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let mut problems = Vec::new();
        let mut given = Vec::new();
        if let Some(path) = file {
            match read_file(path) {
                Ok(values) => given.extend(values),
                Err(why) => problems.push(why),
            }
        }
        given.extend(read_variables(variables, &mut problems));
        let defaults = defaults().map_err(|e| ConfigErrors(vec![e.to_string()]))?;
        given.retain(|one| match validate_value(&defaults, one) {
            Some(why) => {
                problems.push(why);
                false
            }
            None => true,
        });
        let settings: Self = overlay(&defaults, &given).map_err(|e| ConfigErrors(vec![e.to_string()]))?;
        for (key, why) in settings.validate() {
            let origin = given.iter().rev().find(|one| one.key == key).map_or("the defaults", |one| &one.origin);
            problems.push(format!("{key}, in {origin}: {why}"));
        }
        if problems.is_empty() { Ok(settings) } else { Err(ConfigErrors(problems)) }
    }

    /// Every key as `group.key`, in the order of the file.
    pub fn to_toml(&self) -> String {
        let mut groups = Vec::new();
        if let Ok(serde_json::Value::Object(all)) = serde_json::to_value(self) {
            for (name, group) in all {
                write_group(&name, &group, &mut groups);
            }
        }
        groups.join("\n")
    }

    /// Whether events may be sent in, where that was not said.
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

    /// Values of the right type that make no sense: the key, and why.
    fn validate(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut must = |holds: bool, key: &'static str, why: &str| {
            if !holds {
                found.push((key, why.to_string()));
            }
        };
        let some = |span: Duration| !span.is_zero();
        let Self { http, stream, hub, source, auth, ingest: _, shutdown: _, log, admin } = self;
        must(http.workers <= 1024, "http.workers", "at most 1024");
        must(http.max_connections > 0, "http.max_connections", "must be at least 1");
        must(some(http.header_timeout), "http.header_timeout", "must be longer than 0");
        must(http.max_body.as_u64() > 0, "http.max_body", "must be larger than 0");
        must(http.max_body.as_u64() <= 1 << 30, "http.max_body", "at most 1GiB");
        must(
            is_job_path(&http.stream_path),
            "http.stream_path",
            "must begin with / and hold {job_id} once, as a segment",
        );
        must(
            is_job_path(&http.events_path),
            "http.events_path",
            "must begin with / and hold {job_id} once, as a segment",
        );
        must(http.stream_path != http.events_path, "http.events_path", "must not be http.stream_path");
        must(
            !(http.cors.credentials && http.cors.origins.iter().any(|origin| origin == "*")),
            "http.cors.origins",
            "\"*\" cannot be used with http.cors.credentials: browsers refuse it; name the origins",
        );
        must(
            http.cors.origins.iter().all(|origin| origin == "*" || is_origin(origin)),
            "http.cors.origins",
            "each must be \"*\" or a scheme and host such as https://example.org, without a path",
        );
        must(admin.listen != http.listen || http.listen.port() == 0, "admin.listen", "must not be http.listen");
        must(some(stream.retry), "stream.retry", "must be longer than 0: clients would reconnect without pause");
        must(some(stream.heartbeat), "stream.heartbeat", "must be longer than 0");
        must(some(stream.write_timeout), "stream.write_timeout", "must be longer than 0");
        must(hub.ring_events > 0, "hub.ring_events", "must be at least 1");
        must(hub.ring_bytes.as_u64() > 0, "hub.ring_bytes", "must be larger than 0");
        must(hub.total_bytes >= hub.ring_bytes, "hub.total_bytes", "must be at least hub.ring_bytes");
        must(some(source.poll_interval), "source.poll_interval", "must be longer than 0");
        must(some(source.retry_initial), "source.retry_initial", "must be longer than 0");
        must(source.retry_max >= source.retry_initial, "source.retry_max", "must be at least source.retry_initial");
        let postgres = &source.postgres;
        must(
            source.kind != SourceKind::Postgres || postgres.url.get().is_some(),
            "source.postgres.url",
            "must be given for source.kind = \"postgres\", such as postgres://user:password@host:5432/database",
        );
        must(postgres.pool > 0, "source.postgres.pool", "must be at least 1");
        must(!postgres.events_table.is_empty(), "source.postgres.events_table", "must name a table");
        must(some(postgres.look_back), "source.postgres.look_back", "must be longer than 0");
        must(some(postgres.sweep), "source.postgres.sweep", "must be longer than 0");
        let redis = &source.redis;
        must(
            source.kind != SourceKind::Redis || redis.url.get().is_some(),
            "source.redis.url",
            "must be given for source.kind = \"redis\", such as redis://user:password@host:6379/0",
        );
        let names_job = |key: &str| key.matches(Redis::JOB_ID).count() == 1;
        must(names_job(&redis.events_key), "source.redis.events_key", "must hold $job_id once");
        must(
            redis.job_key.is_empty() || names_job(&redis.job_key),
            "source.redis.job_key",
            "must hold $job_id once, or be \"\" where there is none",
        );
        must(redis.job_key != redis.events_key, "source.redis.job_key", "must not be source.redis.events_key");
        must(!source.sqlite.path.as_os_str().is_empty(), "source.sqlite.path", "must name a file");
        must(
            auth.allow_anonymous || auth.mode != AuthMode::None || http.listen.ip().is_loopback(),
            "auth.allow_anonymous",
            "anybody who reaches http.listen could watch every job; set it to true if that is meant, or listen on loopback",
        );
        must(
            matches!(&*log.level, "error" | "warn" | "info" | "debug" | "trace"),
            "log.level",
            "must be error, warn, info, debug or trace",
        );
        found
    }
}

fn is_job_path(path: &str) -> bool {
    path.starts_with('/')
        && path.split('/').filter(|segment| *segment == "{job_id}").count() == 1
        && path.matches(['{', '}']).count() == 2
        && path.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '?' | '#'))
}

fn is_origin(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, host)| {
        matches!(scheme, "http" | "https") && !host.is_empty() && !host.contains(['/', ' ', '@'])
    })
}

fn read_file(path: &Path) -> Result<Vec<Override>, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error} (give the settings file by --config)", path.display()))?;
    let file = Config::builder()
        .add_source(File::from_str(&text, FileFormat::Toml))
        .build()
        .map_err(|error| format!("{} is no valid TOML: {error}", path.display()))?;
    let mut given = Vec::new();
    flatten("", file.cache, &path.display().to_string(), &mut given);
    for one in &mut given {
        if let Some(line) = line_of(&text, &one.key) {
            one.origin = format!("{}:{line}", path.display());
        }
    }
    Ok(given)
}

/// The line, counted from 1, on which a dotted key stands in a TOML text; for the reader of an error only.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let mut group = String::new();
    text.lines().enumerate().find_map(|(index, line)| {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            group = format!("{}.", name.trim());
            return (group.trim_end_matches('.') == key).then_some(index + 1);
        }
        let name = line.split('=').next().unwrap_or_default().trim().trim_matches('"');
        let full = format!("{group}{name}");
        (full == key || (!name.is_empty() && key.starts_with(&format!("{full}.")))).then_some(index + 1)
    })
}

/// Every key there is, with its default.
fn defaults() -> Result<Config, config::ConfigError> {
    Config::builder().add_source(File::from_str(&Settings::default().to_toml(), FileFormat::Toml)).build()
}

fn flatten(prefix: &str, value: Value, origin: &str, into: &mut Vec<Override>) {
    match value.kind {
        ValueKind::Table(table) => {
            let mut entries: Vec<_> = table.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            for (name, value) in entries {
                let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
                flatten(&key, value, origin, into);
            }
        }
        kind => {
            into.push(Override { key: prefix.to_string(), value: Value::new(None, kind), origin: origin.to_string() })
        }
    }
}

/// `JOBCAST_SOURCE__SQLITE__PATH=…` is `source.sqlite.path`. Names without `__` are the command line's own.
fn read_variables(variables: impl IntoIterator<Item = (String, String)>, problems: &mut Vec<String>) -> Vec<Override> {
    let mut given = Vec::new();
    for (name, text) in variables {
        let Some(path) = name.strip_prefix("JOBCAST_").filter(|path| path.contains("__")) else { continue };
        let key = path.to_lowercase().replace("__", ".");
        let secret = key.strip_suffix("_file").filter(|key| SECRETS.contains(key)).map(str::to_string);
        let (key, text) = match secret {
            None => (key, text),
            Some(key) => match std::fs::read_to_string(&text) {
                Ok(secret) => (key, secret.trim_end_matches(['\n', '\r']).to_string()),
                Err(error) => {
                    problems.push(format!("{key}, in {name}: cannot read {text}: {error}"));
                    continue;
                }
            },
        };
        given.push(Override { key, value: Value::new(None, ValueKind::String(text)), origin: name });
    }
    given.sort_by(|a, b| a.key.cmp(&b.key));
    given
}

/// Why this one value cannot be taken, tried alone over the defaults.
fn validate_value(defaults: &Config, one: &Override) -> Option<String> {
    let Override { key, origin, .. } = one;
    match defaults.get::<Value>(key).map(|known| known.kind) {
        Err(_) => Some(format!("unknown key {key}, in {origin}{}", nearest(defaults, key))),
        Ok(ValueKind::Table(_)) => Some(format!("{key}, in {origin}: is a group of settings, not a value")),
        Ok(_) => {
            let error = overlay(defaults, [one]).err()?;
            let shown = if SECRETS.contains(&key.as_str()) { "wrong type".into() } else { error.to_string() };
            // the library ends with the key once more
            let why = shown.split(" for key `").next().unwrap_or(&shown);
            Some(format!("{key}, in {origin}: {why}"))
        }
    }
}

/// The known key that was probably meant.
fn nearest(defaults: &Config, key: &str) -> String {
    let mut known = Vec::new();
    flatten("", defaults.cache.clone(), "", &mut known);
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_string();
    known
        .iter()
        .find(|one| last(&one.key) == last(key))
        .map(|one| format!(" (did you mean {}?)", one.key))
        .unwrap_or_default()
}

fn overlay<'a>(
    defaults: &Config,
    given: impl IntoIterator<Item = &'a Override>,
) -> Result<Settings, config::ConfigError> {
    let mut builder = Config::builder().add_source(defaults.clone());
    for Override { key, value, .. } in given {
        let is_list = matches!(defaults.get::<Value>(key)?.kind, ValueKind::Array(_));
        builder = match (&value.kind, is_list) {
            (ValueKind::String(text), true) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                builder.set_override(key, items.map(str::to_string).collect::<Vec<_>>())?
            }
            _ => builder.set_override(key, value.clone())?,
        };
    }
    builder.build()?.try_deserialize()
}

fn write_group(name: &str, group: &serde_json::Value, to: &mut Vec<String>) {
    let Some(entries) = group.as_object() else { return };
    let (groups, keys): (Vec<_>, Vec<_>) = entries.iter().partition(|(_, value)| value.is_object());
    let lines: String = keys.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    to.push(format!("[{name}]\n{lines}"));
    for (key, value) in groups {
        write_group(&format!("{name}.{key}"), value, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Settings, String> {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().map_err(|e| e.to_string())?;
        std::fs::write(file.path(), text).map_err(|e| e.to_string())?;
        let variables = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Settings::load(Some(file.path()), variables).map_err(|e| e.to_string())
    }

    #[test]
    fn the_file_in_the_repository_holds_every_key_with_its_default() {
        let text = include_str!("../config/jobcast.toml");
        let mut shown = Vec::new();
        let file = Config::builder().add_source(File::from_str(text, FileFormat::Toml)).build().expect("TOML");
        flatten("", file.cache, "", &mut shown);
        let mut known = Vec::new();
        flatten("", defaults().expect("defaults").cache, "", &mut known);
        let keys = |all: &[Override]| all.iter().map(|one| one.key.clone()).collect::<Vec<_>>();
        assert_eq!(keys(&shown), keys(&known));
        let read = load(text, &[]).expect("valid");
        assert_eq!(read.to_toml(), Settings::default().to_toml());
    }

    #[test]
    fn variables_lie_over_the_file_and_lists_are_comma_separated() {
        let read = load(
            "[stream]\nretry = \"5s\"\nheartbeat = \"20s\"\n",
            &[
                ("JOBCAST_STREAM__RETRY", "7s"),
                ("JOBCAST_HTTP__CORS__ORIGINS", "https://a.example, https://b.example"),
                ("JOBCAST_HUB__RING_EVENTS", "5"),
                ("JOBCAST_INGEST__ENABLED", "false"),
            ],
        )
        .expect("valid");
        assert_eq!(read.stream.retry, Duration::from_secs(7));
        assert_eq!(read.stream.heartbeat, Duration::from_secs(20));
        assert_eq!(read.http.cors.origins, ["https://a.example", "https://b.example"]);
        assert_eq!(read.hub.ring_events, 5);
        assert!(!read.ingest_enabled());
    }

    #[test]
    fn every_problem_is_said_at_once_with_its_key_and_its_line() {
        let text = "[http]\nlisten = \"nowhere\"\n\n[stream]\nretry = \"0s\"\nheartbeet = \"1s\"\n[hub]\nring_bytes = \"much\"\n";
        let why = load(text, &[("JOBCAST_HUB__RING_EVENTS", "many")]).expect_err("wrong");
        for part in [
            "http.listen, in ",
            ".toml:2: ",
            "stream.retry, in ",
            ".toml:5: must be longer",
            "unknown key stream.heartbeet, in ",
            ".toml:6",
            "hub.ring_bytes, in ",
            "\"much\" is no size",
            "hub.ring_events, in JOBCAST_HUB__RING_EVENTS: ",
        ] {
            assert!(why.contains(part), "{part:?} is missing in:\n{why}");
        }
    }

    #[test]
    fn a_secret_is_never_printed() {
        let read = load("[ingest]\ntoken = \"hunter2\"\n", &[]).expect("valid");
        assert_eq!(read.ingest.token.get(), Some("hunter2"));
        assert!(!format!("{read:?}{}", read.to_toml()).contains("hunter2"));
    }
}
