//! Every metric, declared once with its unit and help, and the set-up of logs. A label's values are always ours: no
//! job ids, no paths.

use metrics::{Counter, Gauge, Histogram, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};

/// One metric: what it is called, what it counts, and in what unit.
pub struct Metric {
    name: &'static str,
    help: &'static str,
    unit: Unit,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Counter,
    Gauge,
    Histogram(&'static [f64]),
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, help, unit: Unit::Count, kind: Kind::Counter }
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, help, unit: Unit::Count, kind: Kind::Gauge }
}

const fn seconds(name: &'static str, help: &'static str, buckets: &'static [f64]) -> Metric {
    Metric { name, help, unit: Unit::Seconds, kind: Kind::Histogram(buckets) }
}

type Labels = [(&'static str, &'static str)];

impl Metric {
    const fn of(mut self, unit: Unit) -> Self {
        self.unit = unit;
        self
    }

    pub fn counter(&'static self, labels: &'static Labels) -> Counter {
        metrics::counter!(self.name, labels)
    }

    pub fn gauge(&'static self, labels: &'static Labels) -> Gauge {
        metrics::gauge!(self.name, labels)
    }

    pub fn histogram(&'static self) -> Histogram {
        metrics::histogram!(self.name)
    }

    /// Counts with labels whose values are known only now, each out of a closed list.
    pub fn increment(&'static self, labels: &[(&'static str, &'static str)], count: u64) {
        let labels: Vec<metrics::Label> =
            labels.iter().map(|(key, value)| metrics::Label::from_static_parts(key, value)).collect();
        metrics::counter!(self.name, labels).increment(count);
    }

    fn describe(&'static self) {
        match self.kind {
            Kind::Counter => metrics::describe_counter!(self.name, self.unit, self.help),
            Kind::Gauge => metrics::describe_gauge!(self.name, self.unit, self.help),
            Kind::Histogram(_) => metrics::describe_histogram!(self.name, self.unit, self.help),
        }
    }
}

const QUICK: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const LONG: &[f64] = &[0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0];

macro_rules! metrics_table {
    ($($constant:ident = $metric:expr;)*) => {
        $(pub static $constant: Metric = $metric;)*
        static ALL: &[&Metric] = &[$(&$constant),*];
    };
}

metrics_table! {
    SUBSCRIBERS = gauge("jobcast_subscribers", "Open streams");
    CHANNELS = gauge("jobcast_channels", "Live jobs: watched, or watched until a moment ago");
    CONNECTIONS = counter("jobcast_connections_total", "Requests for a stream, by outcome");
    DISCONNECTS = counter("jobcast_disconnects_total", "Streams that ended, by reason");
    STREAM_DURATION = seconds("jobcast_stream_duration_seconds", "How long streams were open", LONG);
    RESUMES = counter("jobcast_resumes_total", "Streams begun, by where their past came from");
    REPLAYED = counter("jobcast_replayed_events_total", "Events sent before a stream was live, by where they came from");
    EVENTS = counter("jobcast_events_total", "Events read by the tail, by source");
    DELIVERIES = counter("jobcast_deliveries_total", "Events written to subscribers");
    DELIVERED_BYTES = counter("jobcast_delivered_bytes_total", "Bytes of events written to subscribers").of(Unit::Bytes);
    EVENT_AGE = seconds("jobcast_event_age_seconds", "An event's timestamp to its handing to subscribers", QUICK);
    FANOUT = seconds("jobcast_fanout_seconds", "An event read to its last write by a delivery thread", QUICK);
    RING_EVENTS = gauge("jobcast_ring_events", "Events held in all rings");
    RING_BYTES = gauge("jobcast_ring_bytes", "Bytes held in all rings").of(Unit::Bytes);
    RING_EVICTIONS = counter("jobcast_ring_evictions_total", "Events that rings let go of for newer ones");
    OVERTAKEN = counter("jobcast_subscriber_overtaken_total", "Times that a subscriber fell behind its ring and was fed from the source");
    SOURCE_UP = gauge("jobcast_source_up", "1 while the source answers, else 0");
    SOURCE_READ = seconds("jobcast_source_read_seconds", "One read of the tail, first to last row", QUICK);
    SOURCE_ERRORS = counter("jobcast_source_errors_total", "Failed reads and writes of the source, by code");
    SOURCE_RETRIES = counter("jobcast_source_retries_total", "Reads of the tail that were tried again");
    SOURCE_LAG = gauge("jobcast_source_lag_seconds", "Age of the oldest work that the tail has not finished").of(Unit::Seconds);
    CURSORS_SHORTENED = counter("jobcast_cursors_shortened_total", "Cursors too long for an id: a resume from one may repeat events");
    SKIPPED = counter("jobcast_skipped_entries_total", "Entries of the source that are no events, each time one is read");
    SOURCE_WAKEUPS = counter("jobcast_source_wakeups_total", "Reads of the tail, by what caused them");
    INGEST = counter("jobcast_ingest_total", "Events and statuses sent in, by outcome");
    AUTH = counter("jobcast_auth_total", "Callers asked who they are, by outcome");
    BUILD_INFO = gauge("jobcast_build_info", "1; the version is in the label");
}

/// Renders what was measured, in Prometheus' text format.
#[derive(Clone)]
pub struct MetricsExporter {
    handle: PrometheusHandle,
    process: metrics_process::Collector,
}

impl MetricsExporter {
    /// Makes this process' metrics countable; once per process, before anything is counted.
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
        for gauge in [&SUBSCRIBERS, &CHANNELS, &RING_EVENTS, &RING_BYTES, &SOURCE_UP, &SOURCE_LAG] {
            gauge.gauge(&[]).set(0.0);
        }
        Ok(Self { handle, process })
    }

    pub fn render(&self) -> String {
        self.process.collect();
        self.handle.render()
    }

    /// Folds what histograms gathered since the last call; to be called every few seconds.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Pretty,
    Json,
}

/// Logs go to standard error, so that standard output stays the command's own.
pub fn log_to_stderr(level: &str, format: LogFormat) {
    // what the server library says of its workers, and of peers who talk validate, is of no use to operators
    let filter = format!("{level},actix_server=warn,actix_http=off");
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|_| "info".into());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Pretty => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
