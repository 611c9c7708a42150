//! The refusals: requests that are turned away for their form or their number, with the limit that they met. Each is
//! counted by its kind, and logged once for an incident.

use super::App;
use super::client_address::ClientAddress;
use super::problem::Problem;
use super::rate::Rate;
use crate::config;
use crate::delivery::admission::{LimitReached, StreamPermit};
use crate::error::Incidents;
use crate::telemetry;
use crate::topic::Topic;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The kind of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// The request names a host that the listener does not answer to.
    Host,
    /// Its address, its headers or its query are malformed, or larger than anybody needs.
    Head,
    /// Its head did not arrive in time.
    HeadTimeout,
    /// Too much came behind it while it was at work.
    Pipelined,
    /// Its body did not arrive in time.
    BodyTimeout,
    /// Its body is too large, or has too many events.
    Body,
    /// Ingest without a token came through a proxy.
    Forwarded,
    /// As many connections are open as there may be: `http.max_connections`, and some for short requests.
    Connections,
    /// More connections of one address are open than it may have.
    AddressConnections,
    /// `http.max_connections`
    Streams,
    /// `http.max_connections_per_ip`
    AddressStreams,
    /// `http.rate_per_ip`
    Rate,
    /// `http.max_queued_replays`
    Replays,
    /// `hub.max_jobs`
    Jobs,
    /// `http.max_waiting`
    Waiting,
}

/// The incidents that go on.
static INCIDENTS: Incidents<Refusal> = Incidents::new();

impl Refusal {
    /// The label of the metric.
    fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Head => "head",
            Self::HeadTimeout => "head_timeout",
            Self::Pipelined => "pipelined",
            Self::BodyTimeout => "body_timeout",
            Self::Body => "body",
            Self::Forwarded => "forwarded",
            Self::Connections => "connections",
            Self::AddressConnections => "address_connections",
            Self::Streams => "streams",
            Self::AddressStreams => "address_streams",
            Self::Rate => "rate",
            Self::Replays => "replays",
            Self::Jobs => "jobs",
            Self::Waiting => "waiting",
        }
    }

    /// The limit, and what an operator can do, for the log.
    fn help(self) -> &'static str {
        match self {
            Self::Host => "they name a host that this listener does not answer to: name yours in http.hosts",
            Self::Head => "their address, headers or query are malformed or too large",
            Self::HeadTimeout => "their heads did not arrive within http.header_timeout",
            Self::Pipelined => "their clients send more behind a request than is read before its answer",
            Self::BodyTimeout => "their bodies did not arrive within http.body_timeout",
            Self::Body => "their bodies are larger than http.max_body, or have more events than ingest.max_events",
            Self::Forwarded => {
                "they came through a proxy, and ingest.token is not set: set it to take events from there"
            }
            Self::Connections => {
                "as many connections are open as http.max_connections and the process's open files (ulimit -n, \
                 LimitNOFILE) allow for"
            }
            Self::AddressConnections => "one address has more connections than http.max_connections_per_ip allows for",
            Self::Streams => "http.max_connections streams are open",
            Self::AddressStreams => "one address has http.max_connections_per_ip streams",
            Self::Rate => "one address comes more often than http.rate_per_ip",
            Self::Replays => "http.max_queued_replays reads of history wait in line",
            Self::Jobs => "hub.max_jobs jobs are live",
            Self::Waiting => "http.max_waiting requests wait for jobs that the source does not know yet",
        }
    }

    /// Counts it, and logs the first of an incident.
    pub fn note(self, client: Option<IpAddr>) {
        telemetry::REFUSED.increment(&[("reason", self.as_str())], 1);
        if INCIDENTS.begins(self) {
            let client = client.map(tracing::field::display);
            tracing::warn!(reason = self.as_str(), client, "requests are refused: {}", self.help());
        }
    }

    /// The outcome of a request for a stream that it ends.
    pub fn outcome(self) -> &'static str {
        match self {
            Self::AddressStreams => "full_address",
            Self::Rate => "rate",
            Self::Replays => "replays",
            Self::Jobs => "jobs",
            Self::Waiting => "waiting",
            _ => "full",
        }
    }

    /// The answer to a caller that wanted a stream or a poll. Trying again helps.
    pub fn problem(self) -> Problem {
        match self {
            Self::AddressStreams => {
                Problem::too_many_from_address("your address has too many streams open; come back later")
            }
            Self::Rate => Problem::too_often("your address comes too often; come back later"),
            Self::Replays => Problem::too_many_replays("too many streams are being filled; come back later"),
            Self::Jobs => Problem::too_many_jobs("too many jobs are being watched; come back later"),
            Self::Waiting => {
                Problem::too_many_waiting("too many wait for jobs that are not there yet; come back later")
            }
            _ => Problem::too_many_streams("too many streams are open; come back later"),
        }
    }
}

impl From<LimitReached> for Refusal {
    fn from(limit: LimitReached) -> Self {
        match limit {
            LimitReached::Process => Self::Streams,
            LimitReached::Address => Self::AddressStreams,
        }
    }
}

/// The limits that the public listener keeps itself.
pub struct Limits {
    rate: Option<Rate>,
}

impl Limits {
    pub fn new(settings: &config::Http) -> Self {
        Self { rate: Rate::new(settings.rate_per_ip, settings.rate_burst) }
    }
}

impl App {
    /// Lets a client that comes for a job's events in, unless it comes too often or there is too much to do already.
    pub(super) fn let_in(&self, client: ClientAddress, topic: &Topic) -> Result<(), Refusal> {
        let refusal = if self.comes_too_often(client) {
            Refusal::Rate
        } else if self.streams.pages.is_queue_full() {
            Refusal::Replays
        } else if !self.streams.hub.has_room_for(topic) {
            Refusal::Jobs
        } else {
            return Ok(());
        };
        refusal.note(client.0);
        Err(refusal)
    }

    /// Counts a stream, or a poll that is held, until the permit is dropped.
    pub(super) fn admit(&self, client: ClientAddress) -> Result<StreamPermit, Refusal> {
        let refusal = match self.streams.admission.admit(client.counted()) {
            Ok(permit) => return Ok(permit),
            Err(limit) => Refusal::from(limit),
        };
        refusal.note(client.0);
        Err(refusal)
    }

    /// Picks the wait of a caller that was refused: longer than any other, and spread out.
    pub(super) fn retry_later(&self) -> Duration {
        self.streams.reconnect_delay() + self.streams.rules.retry * 3
    }

    fn comes_too_often(&self, client: ClientAddress) -> bool {
        let (Some(rate), Some(address)) = (&self.limits.rate, client.counted()) else { return false };
        !rate.take(address, Instant::now())
    }
}
