//! Every metric, declared once with its unit, its help and its labels.
//!
//! The values of a label are always a closed list of ours, never job ids, paths or anything else that outsiders choose:
//! each value is a time series in Prometheus.

use metrics::{Counter, Gauge, Histogram, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::Arc;

/// One metric, as the table declares it.
pub struct Metric {
    name: &'static str,
    help: &'static str,
    unit: Unit,
    kind: Kind,
    /// Labels that every value of it has, in this order.
    labels: &'static [Label],
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

/// A label of a metric.
struct Label {
    name: &'static str,
    values: Values,
}

/// Values that a label may have.
enum Values {
    /// These.
    OneOf(&'static [&'static str]),
    /// Those of a closed list in another module, which this one cannot see.
    ListedElsewhere,
}

const fn one_of(name: &'static str, values: &'static [&'static str]) -> Label {
    Label { name, values: Values::OneOf(values) }
}

const fn listed_elsewhere(name: &'static str) -> Label {
    Label { name, values: Values::ListedElsewhere }
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, help, unit: Unit::Count, kind: Kind::Counter, labels: &[] }
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, help, unit: Unit::Count, kind: Kind::Gauge, labels: &[] }
}

const fn seconds(name: &'static str, help: &'static str, buckets: &'static [f64]) -> Metric {
    Metric { name, help, unit: Unit::Seconds, kind: Kind::Histogram(buckets), labels: &[] }
}

/// Names of labels with their values.
type Pairs = [(&'static str, &'static str)];

impl Metric {
    const fn of(mut self, unit: Unit) -> Self {
        self.unit = unit;
        self
    }

    const fn by(mut self, labels: &'static [Label]) -> Self {
        self.labels = labels;
        self
    }

    pub fn counter(&'static self, labels: &'static Pairs) -> Counter {
        self.check(labels);
        metrics::counter!(self.name, labels)
    }

    pub fn gauge(&'static self, labels: &'static Pairs) -> Gauge {
        self.check(labels);
        metrics::gauge!(self.name, labels)
    }

    pub fn histogram(&'static self) -> Histogram {
        self.check(&[]);
        metrics::histogram!(self.name)
    }

    /// Sets a gauge with labels whose values are known only now.
    pub fn set(&self, labels: &Pairs, value: f64) {
        self.check(labels);
        metrics::gauge!(self.name, owned(labels)).set(value);
    }

    /// Adds to a counter with labels whose values are known only now.
    pub fn increment(&'static self, labels: &Pairs, count: u64) {
        self.check(labels);
        metrics::counter!(self.name, owned(labels)).increment(count);
    }

    /// Counts one in a gauge until what is returned is dropped.
    pub fn hold(&'static self) -> Held {
        let gauge = self.gauge(&[]);
        gauge.increment(1.0);
        Held(gauge)
    }

    /// Asserts, in tests, that labels are those of the table.
    fn check(&self, labels: &Pairs) {
        debug_assert!(self.allows(labels), "{} has no labels {labels:?}: see the table in telemetry.rs", self.name);
    }

    fn allows(&self, labels: &Pairs) -> bool {
        let is_allowed = |(label, (name, value)): (&Label, &(&str, &str))| {
            let is_value = match &label.values {
                Values::OneOf(values) => values.contains(value),
                Values::ListedElsewhere => true,
            };
            label.name == *name && is_value
        };
        self.labels.len() == labels.len() && self.labels.iter().zip(labels).all(is_allowed)
    }

    /// Makes every series whose labels are known, so that none is missing until it is first counted: `increase()` does not
    /// see the step from nothing to 1.
    fn begin(&'static self) {
        // A moment that has not been has no number: 0 would be the year 1970.
        if self.name.ends_with("_timestamp_seconds") {
            return;
        }
        let mut all: Vec<Vec<(&'static str, &'static str)>> = vec![Vec::new()];
        for label in self.labels {
            let Values::OneOf(values) = &label.values else { return };
            let with =
                |pairs: &Vec<_>| values.iter().map(|value| [&pairs[..], &[(label.name, *value)]].concat()).collect();
            all = all.iter().flat_map::<Vec<_>, _>(with).collect();
        }
        for pairs in all {
            match self.kind {
                Kind::Counter => self.increment(&pairs, 0),
                Kind::Gauge => self.set(&pairs, 0.0),
                Kind::Histogram(_) => {}
            }
        }
    }

    fn describe(&'static self) {
        match self.kind {
            Kind::Counter => metrics::describe_counter!(self.name, self.unit, self.help),
            Kind::Gauge => metrics::describe_gauge!(self.name, self.unit, self.help),
            Kind::Histogram(_) => metrics::describe_histogram!(self.name, self.unit, self.help),
        }
    }
}

fn owned(labels: &Pairs) -> Vec<metrics::Label> {
    labels.iter().map(|(key, value)| metrics::Label::from_static_parts(key, value)).collect()
}

/// One that is counted in a gauge for as long as this lives.
pub struct Held(Gauge);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Buckets for reads and deliveries.
const QUICK: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Buckets for the age of events, which an outage makes old.
const AGES: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];
/// Buckets for the lives of streams.
const LONG: &[f64] = &[0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0];

/// Kinds of refusals.
const REFUSALS: &[&str] = &[
    "host",
    "head",
    "head_timeout",
    "pipelined",
    "body_timeout",
    "body",
    "forwarded",
    "connections",
    "address_connections",
    "streams",
    "address_streams",
    "rate",
    "replays",
    "jobs",
    "waiting",
];

/// Things that are bounded by a setting, in the words of the settings where they are the same.
const LIMITS: &[&str] = &[
    "streams",
    "address_streams",
    "connections",
    "jobs",
    "ring_bytes",
    "backlog_bytes",
    "replays",
    "queued_replays",
    "waiting",
    "source_connections",
];

macro_rules! metrics_table {
    ($($constant:ident = $metric:expr;)*) => {
        $(pub static $constant: Metric = $metric;)*
        static ALL: &[&Metric] = &[$(&$constant),*];
    };
}

metrics_table! {
    SUBSCRIBERS = gauge("jobcast_subscribers", "Open streams");
    WAITING = gauge("jobcast_waiting_requests", "Streams and polls that wait for a job that the source does not know yet");
    CHANNELS = gauge("jobcast_channels", "Live jobs: watched, or watched until a moment ago");
    CONNECTIONS = counter("jobcast_connections_total", "Requests for a stream, by outcome")
        .by(&[one_of("outcome", &["accepted", "complete", "not_found", "draining", "full", "full_address", "rate", "replays", "jobs", "waiting", "closed", "source_failed"])]);
    REFUSED = counter("jobcast_refused_requests_total", "Requests and connections that were turned away, by the limit or rule that they met")
        .by(&[one_of("reason", REFUSALS)]);
    LONG_POLLS = gauge("jobcast_long_polls", "Polls that are held until there is something new");
    LIMIT = gauge("jobcast_limit", "Limits that are in effect, by what they bound; 0 for none").by(&[one_of("of", LIMITS)]);
    DRAINING = gauge("jobcast_draining", "1 from the signal to leave on, else 0");
    SETTINGS_HASH = gauge("jobcast_settings_hash", "A number made of all settings but the secrets: replicas with other settings have another one");
    ACCEPT_ERRORS = counter("jobcast_accept_errors_total", "Times that a new connection of either listener could not be accepted, for want of files or memory");
    OPEN_CONNECTIONS = gauge("jobcast_open_connections", "Connections of the public listener that carry no live stream");
    DISCONNECTS = counter("jobcast_disconnects_total", "Streams that ended, by reason")
        .by(&[one_of("reason", &["gone", "complete", "slow", "memory", "drain", "age", "expired", "revoked", "failed"])]);
    STREAM_DURATION = seconds("jobcast_stream_duration_seconds", "How long streams were open", LONG);
    RESUMES = counter("jobcast_resumes_total", "Streams begun, by where their past came from")
        .by(&[one_of("from", &["ring", "source", "none", "reset"])]);
    RESETS = counter("jobcast_resets_total", "Streams and polls that were told of a reset, by reason")
        .by(&[one_of("reason", &["unknown", "trimmed", "expired", "rewound"])]);
    REPLAYED = counter("jobcast_replayed_events_total", "Events sent before a stream was live, by where they came from")
        .by(&[one_of("from", &["ring", "source"])]);
    // The source's own name, `Source::kind`.
    EVENTS = counter("jobcast_events_total", "Events read by the tail, by source").by(&[listed_elsewhere("source")]);
    DELIVERIES = counter("jobcast_deliveries_total", "Events written to subscribers");
    DELIVERED_BYTES = counter("jobcast_delivered_bytes_total", "Bytes of events written to subscribers").of(Unit::Bytes);
    EVENT_AGE = seconds("jobcast_event_age_seconds", "An event's timestamp to its handing to subscribers", AGES);
    FANOUT = seconds("jobcast_fanout_seconds", "An event read to its last write by a delivery thread", QUICK);
    RING_EVENTS = gauge("jobcast_ring_events", "Events held in all rings");
    RING_BYTES = gauge("jobcast_ring_bytes", "Bytes held in all rings").of(Unit::Bytes);
    RING_EVICTIONS = counter("jobcast_ring_evictions_total", "Events that rings let go of for newer ones");
    OVERTAKEN = counter("jobcast_subscriber_overtaken_total", "Times that a subscriber fell behind its ring and was fed from the source");
    BACKLOG_BYTES = gauge("jobcast_backlog_bytes", "Bytes that wait for the sockets of subscribers").of(Unit::Bytes);
    BLOCKED = gauge("jobcast_blocked_subscribers", "Subscribers whose sockets take nothing at the moment");
    SOURCE_UP = gauge("jobcast_source_up", "1 while the source answers, else 0");
    SOURCE_READ = seconds("jobcast_source_read_seconds", "One read of the tail, first to last row", QUICK);
    HISTORY_READ = seconds("jobcast_history_read_seconds", "One page of history, for streams and polls, with the wait for its turn", QUICK);
    SOURCE_LAST_READ = gauge("jobcast_source_last_read_timestamp_seconds", "End of the tail's last read that succeeded, since the epoch").of(Unit::Seconds);
    SOURCE_LISTENING = gauge("jobcast_source_listening", "1 while the source tells of changes, 0 while new events wait for the poll");
    STANDBY_LAG = gauge("jobcast_source_standby_lag_seconds", "Age of the last transaction that a standby of PostgreSQL has replayed, if it has not replayed all that it was sent; 0 for a primary").of(Unit::Seconds);
    POOL_IN_USE = gauge("jobcast_source_connections_in_use", "Connections of the pool to PostgreSQL that are lent out");
    POOL_WAITING = gauge("jobcast_source_connections_waiting", "Reads and writes that wait for a connection of the pool to PostgreSQL, or for their turn at one");
    // The codes of `SourceCode`.
    SOURCE_ERRORS = counter("jobcast_source_errors_total", "Failed reads and writes of the source, by code")
        .by(&[listed_elsewhere("code"), one_of("retryable", &["true", "false"])]);
    SOURCE_RETRIES = counter("jobcast_source_retries_total", "Reads of the tail that were tried again");
    SOURCE_LAG = gauge("jobcast_source_lag_seconds", "Age of the oldest work that the tail has not finished: it grows through an outage, and while a read hangs").of(Unit::Seconds);
    CURSORS_SHORTENED = counter("jobcast_cursors_shortened_total", "Cursors too long for an id: a resume from one may repeat events");
    LONG_SET_IDS = counter("jobcast_long_set_ids_total", "Ids of sets of jobs made that are longer than 128 bytes: a resume from one on another origin costs a preflight");
    SKIPPED = counter("jobcast_skipped_entries_total", "Entries of the source that are no events, each time one is read");
    UNTYPED = counter("jobcast_untyped_events_total", "Events of Redis without a type of their own, each time one is read");
    UNREADABLE = counter("jobcast_unreadable_events_total", "Events with a part that could not be read as it is stored, each time one is read");
    LOG_LINES_LOST = counter("jobcast_log_lines_lost_total", "Lines of the log that standard error did not take");
    SOURCE_WAKEUPS = counter("jobcast_source_wakeups_total", "Reads of the tail, by what caused them")
        .by(&[one_of("by", &["ingest", "file", "notify", "poll", "end", "watch", "more", "renewed"])]);
    INGEST = counter("jobcast_ingest_total", "Events and statuses sent in, by outcome")
        .by(&[one_of("outcome", &["appended", "repeated", "status", "refused"])]);
    // It is allowed, it is known and is not allowed, it is not known, nobody can say.
    AUTH = counter("jobcast_auth_total", "Callers asked who they are, by outcome")
        .by(&[one_of("outcome", &["allowed", "denied", "unauthenticated", "unavailable"])]);
    TLS_HANDSHAKES = counter("jobcast_tls_handshakes_total", "TLS handshakes of the public listener, by outcome")
        .by(&[one_of("outcome", &["completed", "failed", "timed_out", "plain_http"])]);
    TLS_EXPIRY = gauge("jobcast_tls_certificate_expiry_timestamp_seconds", "End of the certificate's time, since the epoch").of(Unit::Seconds);
    HTTP2_FLOODS = counter("jobcast_http2_floods_total", "HTTP/2 connections closed because of floods of frames that cost their sender nothing");
    BUILD_INFO = gauge("jobcast_build_info", "1; the version is in the label").by(&[listed_elsewhere("version")]);
}

/// The type of the one counter that has fractions. The recorder counts in whole numbers, so the CPU time is a gauge of its.
const CPU_AS_GAUGE: &str = "# TYPE process_cpu_seconds_total gauge";
const CPU_AS_COUNTER: &str = "# TYPE process_cpu_seconds_total counter";

/// Renders all metrics of this process in the text format of Prometheus.
#[derive(Clone)]
pub struct MetricsExporter {
    handle: PrometheusHandle,
    process: metrics_process::Collector,
    /// Set gauges that are of use only at the moment at which they are read.
    measures: Vec<Arc<dyn Fn() + Send + Sync>>,
}

impl MetricsExporter {
    /// Installs the recorder that all metrics go to: once in a process, before anything is counted.
    pub fn install() -> Result<Self, metrics_exporter_prometheus::BuildError> {
        let mut builder = PrometheusBuilder::new();
        for metric in ALL {
            if let Kind::Histogram(buckets) = metric.kind {
                builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.into()), buckets)?;
            }
        }
        let handle = builder.install_recorder()?;
        for metric in ALL {
            metric.describe();
        }
        let process = metrics_process::Collector::default();
        process.describe();
        BUILD_INFO.gauge(&[("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
        ALL.iter().for_each(|metric| metric.begin());
        Ok(Self { handle, process, measures: Vec::new() })
    }

    /// Has `measure` called before each rendering, to set gauges that change by themselves.
    pub fn measuring(mut self, measure: impl Fn() + Send + Sync + 'static) -> Self {
        self.measures.push(Arc::new(measure));
        self
    }

    pub fn render(&self) -> String {
        self.process.collect();
        self.measures.iter().for_each(|measure| measure());
        self.handle.render().replacen(CPU_AS_GAUGE, CPU_AS_COUNTER, 1)
    }

    /// Folds what the histograms gathered since the last call; must be called every few seconds.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_labels_and_values_of_the_table_are_allowed() {
        assert!(INGEST.allows(&[("outcome", "appended")]));
        assert!(SOURCE_ERRORS.allows(&[("code", "source.busy"), ("retryable", "true")]));
        assert!(CHANNELS.allows(&[]));
        assert!(!INGEST.allows(&[("outcome", "job-7")]));
        assert!(!INGEST.allows(&[("status", "appended")]));
        assert!(!INGEST.allows(&[]));
        assert!(!CHANNELS.allows(&[("job", "job-7")]));
    }
}
