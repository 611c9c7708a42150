//! The sections of the settings but for the source's: each with its fields, its defaults and its checks.
//!
//! The doc comment on a field is also its line in `config/jobcast.toml` and `docs/settings.md`, so it is written for
//! operators.

use super::validate::{Problems, is_header_name, is_host, is_job_path, is_origin};
use super::values::{AutoBool, Network, Secret, duration, listen, one_of, size};
use crate::logging::{self, LogFormat};
use crate::sse::Shape;
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Http {
    /// Address of the public listener: an address and a port, "localhost:8080", or ":8080" for all addresses.
    #[serde(with = "listen")]
    pub listen: SocketAddr,
    /// Names that the listener answers to, without ports, as "jobs.example.org"; others get a 421. []: any, but on loopback
    /// without auth only localhost and the listener's own addresses, so that no page of others gets at it (DNS rebinding).
    pub hosts: Vec<String>,
    /// Threads that answer requests, and as many that deliver events. 0: one for each core.
    pub workers: usize,
    /// Path of a job's stream.
    pub stream_path: String,
    /// Path of JSON polling (GET) and of ingest (POST).
    pub events_path: String,
    /// Open streams and long polls, at most; further ones are told to come back later.
    pub max_connections: usize,
    /// Open streams and long polls from one address, at most; IPv6 addresses count by their /64. 0: no limit.
    pub max_connections_per_ip: usize,
    /// New streams and polls per second from one address; further ones are told to come back later. 0: no limit.
    pub rate_per_ip: u32,
    /// New streams and polls from one address that may come at once, before http.rate_per_ip counts.
    pub rate_burst: u32,
    /// Reads of history at a time, for all streams and polls. Others wait in line.
    pub max_replays: usize,
    /// Reads of history that wait in line, at most; new streams are then told to come back later.
    pub max_queued_replays: usize,
    /// Jobs that streams and polls wait for at a time, since the source does not know them yet (source.appear), at most, counted
    /// for each that waits; further ones are told to come back later.
    pub max_waiting: usize,
    /// Time in which the head of a request must arrive.
    #[serde(with = "duration")]
    pub header_timeout: Duration,
    /// Time in which the body of a request must arrive.
    #[serde(with = "duration")]
    pub body_timeout: Duration,
    /// Size of a request that sends events in, at most.
    #[serde(with = "size")]
    pub max_body: ByteSize,
    /// Addresses and networks of proxies that are trusted to say where a request comes from (X-Forwarded-For, or else
    /// Forwarded), as "10.0.0.0/8". The limits for one address use it.
    pub trusted_proxies: Vec<Network>,
    /// The live page at /.
    pub live_page: bool,
    /// HTTPS, with HTTP/2. Both files are read again when they change; open streams go on.
    pub tls: Tls,
    /// Pages of other origins.
    pub cors: Cors,
    /// Set by `jobcast demo` alone: the page shows what is there for trying things out.
    #[serde(skip)]
    pub is_demo: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tls {
    /// PEM file with the certificate, followed by those of its intermediate authorities; "": plain HTTP.
    pub cert: PathBuf,
    /// PEM file with the certificate's private key.
    pub key: PathBuf,
}

impl Tls {
    pub fn is_enabled(&self) -> bool {
        !self.cert.as_os_str().is_empty()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cors {
    /// Origins whose pages may watch, as "https://app.example.org"; "*": any.
    pub origins: Vec<String>,
    /// Lets these pages send cookies.
    pub credentials: bool,
    /// Headers that these pages may send, besides those that Jobcast reads.
    pub headers: Vec<String>,
}

impl Default for Cors {
    fn default() -> Self {
        let tracing = ["traceparent", "tracestate", "baggage", "sentry-trace", "x-csrf-token", "x-requested-with"];
        Self { origins: Vec::new(), credentials: false, headers: tracing.map(String::from).to_vec() }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            hosts: Vec::new(),
            workers: 0,
            stream_path: "/runner-jobs/{job_id}/events/stream".into(),
            events_path: "/runner-jobs/{job_id}/events".into(),
            max_connections: 10_000,
            max_connections_per_ip: 0,
            rate_per_ip: 0,
            rate_burst: 20,
            max_replays: 64,
            max_queued_replays: 10_000,
            max_waiting: 1000,
            header_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(30),
            max_body: ByteSize::kib(256),
            trusted_proxies: Vec::new(),
            live_page: true,
            tls: Tls::default(),
            cors: Cors::default(),
            is_demo: false,
        }
    }
}

impl Http {
    /// Number of worker threads, and of delivery threads: as set, or one for each core.
    pub fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        }
    }

    pub(super) fn validate(&self, problems: &mut Problems) {
        problems.require(self.workers <= 1024, "http.workers", "at most 1024");
        problems.require(self.max_connections > 0, "http.max_connections", "must be at least 1");
        problems.require(
            self.hosts.iter().all(|host| is_host(host)),
            "http.hosts",
            "each must be a name or an address, as \"jobs.example.org\", without a scheme, a port or a path",
        );
        problems.require(self.rate_burst > 0, "http.rate_burst", "must be at least 1");
        problems.require(self.max_replays > 0, "http.max_replays", "must be at least 1");
        problems.require(self.max_queued_replays > 0, "http.max_queued_replays", "must be at least 1");
        problems.require(
            self.max_waiting > 0,
            "http.max_waiting",
            "must be at least 1; source.appear = \"0s\" waits for no job",
        );
        problems.require_longer_than_zero(self.header_timeout, "http.header_timeout");
        problems.require_longer_than_zero(self.body_timeout, "http.body_timeout");
        problems.require_larger_than_zero(self.max_body, "http.max_body");
        problems.require(self.max_body <= ByteSize::gib(1), "http.max_body", "at most 1GiB");
        for (path, key) in [(&self.stream_path, "http.stream_path"), (&self.events_path, "http.events_path")] {
            problems.require(is_job_path(path), key, "must begin with / and hold {job_id} once, as a segment");
        }
        problems.require(self.stream_path != self.events_path, "http.events_path", "must not be http.stream_path");
        let Tls { cert, key } = &self.tls;
        let is_set = |file: &PathBuf| !file.as_os_str().is_empty();
        problems.require(is_set(cert) || !is_set(key), "http.tls.cert", "must name a file where http.tls.key does");
        problems.require(is_set(key) || !is_set(cert), "http.tls.key", "must name a file where http.tls.cert does");
        self.cors.validate(problems);
    }
}

impl Cors {
    fn validate(&self, problems: &mut Problems) {
        let Self { origins, credentials, headers } = self;
        problems.require(
            !(*credentials && origins.iter().any(|origin| origin == "*")),
            "http.cors.origins",
            "\"*\" cannot be used with http.cors.credentials: browsers refuse it; name the origins",
        );
        for origin in origins.iter().filter(|origin| *origin != "*" && !is_origin(origin)) {
            let problem = format!(
                "{origin:?} never matches: give \"*\", or a scheme and a host as browsers send them, such as \
                 https://example.org (small letters, no path, no slash at the end, no default port, no pattern)"
            );
            problems.require(false, "http.cors.origins", &problem);
        }
        problems.require(
            headers.iter().all(|header| is_header_name(header)),
            "http.cors.headers",
            "each must be the name of a header, such as \"traceparent\"",
        );
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Admin {
    /// Address of /healthz, /readyz, /metrics, /settings and /debug/channels, written as http.listen is.
    #[serde(with = "listen")]
    pub listen: SocketAddr,
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9464)) }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stream {
    /// Time that a browser waits before it reconnects.
    #[serde(with = "duration")]
    pub retry: Duration,
    /// Silence after which a comment is sent. Set it below the idle time-out of your proxies.
    #[serde(with = "duration")]
    pub heartbeat: Duration,
    /// Time after which a socket that takes nothing is closed.
    #[serde(with = "duration")]
    pub write_timeout: Duration,
    /// Age at which a stream is closed, to reconnect elsewhere. 0s: never.
    #[serde(with = "duration")]
    pub max_age: Duration,
    /// Most jobs of one stream over a set of jobs.
    pub max_set: usize,
    /// Content of `data:`. envelope: the whole event; payload: only its payload, with stepId merged in.
    #[serde(deserialize_with = "one_of")]
    pub data: Shape,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            retry: Duration::from_secs(3),
            heartbeat: Duration::from_secs(15),
            write_timeout: Duration::from_secs(30),
            max_age: Duration::ZERO,
            max_set: 200,
            data: Shape::Envelope,
        }
    }
}

impl Stream {
    pub(super) fn validate(&self, problems: &mut Problems) {
        problems.require(
            !self.retry.is_zero(),
            "stream.retry",
            "must be longer than 0: clients would reconnect without pause",
        );
        problems.require_longer_than_zero(self.heartbeat, "stream.heartbeat");
        problems.require_longer_than_zero(self.write_timeout, "stream.write_timeout");
        problems.require((1..=1000).contains(&self.max_set), "stream.max_set", "must be from 1 to 1000");
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hub {
    /// Newest events of each live job that are kept in memory, at most.
    pub ring_events: usize,
    /// Size of the events that are kept for each live job, at most.
    #[serde(with = "size")]
    pub ring_bytes: ByteSize,
    /// Size for all live jobs together, at most; and as much again for subscribers that lag.
    #[serde(with = "size")]
    pub total_bytes: ByteSize,
    /// Time that a job stays live after its last subscriber left.
    #[serde(with = "duration")]
    pub linger: Duration,
    /// Live jobs, at most, each job of a set counted; streams of further ones are told to come back later, and jobs that nobody
    /// watches do not linger.
    pub max_jobs: usize,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            ring_events: 1024,
            ring_bytes: ByteSize::mib(1),
            total_bytes: ByteSize::mib(256),
            linger: Duration::from_secs(30),
            max_jobs: 100_000,
        }
    }
}

impl Hub {
    pub(super) fn validate(&self, problems: &mut Problems) {
        problems.require(self.ring_events > 0, "hub.ring_events", "must be at least 1");
        problems.require(self.max_jobs > 0, "hub.max_jobs", "must be at least 1");
        problems.require_larger_than_zero(self.ring_bytes, "hub.ring_bytes");
        problems.require(self.total_bytes >= self.ring_bytes, "hub.total_bytes", "must be at least hub.ring_bytes");
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ingest {
    /// true, false, or auto: where the source is sqlite and http.listen is loopback.
    pub enabled: AutoBool,
    /// Token that senders must give as `Authorization: Bearer`; "": none, and then nothing is taken that came through a
    /// proxy. Also by JOBCAST_INGEST__TOKEN_FILE.
    pub token: Secret,
    /// Events in one request, at most.
    pub max_events: usize,
}

impl Default for Ingest {
    fn default() -> Self {
        Self { enabled: AutoBool::Auto, token: Secret::default(), max_events: 1000 }
    }
}

impl Ingest {
    pub(super) fn validate(&self, problems: &mut Problems) {
        problems.require(self.max_events > 0, "ingest.max_events", "must be at least 1");
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shutdown {
    /// Time after SIGTERM in which /readyz says no and everything is still served.
    #[serde(with = "duration")]
    pub grace: Duration,
    /// Time after that over which the open streams are closed, at most.
    #[serde(with = "duration")]
    pub drain: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { grace: Duration::from_secs(5), drain: Duration::from_secs(20) }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Log {
    /// error, warn, info, debug or trace.
    pub level: String,
    /// pretty or json.
    #[serde(deserialize_with = "one_of")]
    pub format: LogFormat,
    /// Log each request with its answer, and the beginning and end of each stream.
    pub access: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Pretty, access: false }
    }
}

impl Log {
    pub(super) fn validate(&self, problems: &mut Problems) {
        problems.require(
            logging::LEVELS.contains(&&*self.level),
            "log.level",
            "must be error, warn, info, debug or trace",
        );
    }
}
