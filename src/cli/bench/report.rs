//! The report of a measurement, as text and as JSON.

use super::Args;
use super::progress::Counts;
use super::subscriber::Tally;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    subscribers: u64,
    jobs: u64,
    /// Jobs that each stream watches.
    watched: u64,
    /// Events of each job.
    events: u64,
    connected_in_ms: f64,
    delivered: u64,
    deliveries_per_second: f64,
    latency_ms: Percentiles,
    lost: u64,
    repeated: u64,
    misordered: u64,
    broken: u64,
    /// Error of the first stream that broke.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// Latency in milliseconds.
#[derive(Default, Serialize)]
struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Percentiles {
    fn of(micros: &Histogram<u64>) -> Self {
        let at = |quantile| micros.value_at_quantile(quantile) as f64 / 1000.0;
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: micros.max() as f64 / 1000.0 }
    }
}

impl Report {
    pub fn new(
        args: &Args,
        connected_in: Duration,
        delivered_in: Duration,
        counts: &Counts,
        tally: Tally,
        latency: Option<Histogram<u64>>,
    ) -> Self {
        let delivered = counts.delivered.load(Ordering::Relaxed);
        Self {
            subscribers: args.subscribers,
            jobs: args.jobs,
            watched: args.watch,
            events: args.events,
            connected_in_ms: connected_in.as_secs_f64() * 1e3,
            delivered,
            deliveries_per_second: delivered as f64 / delivered_in.as_secs_f64(),
            latency_ms: latency.as_ref().map(Percentiles::of).unwrap_or_default(),
            lost: tally.lost,
            repeated: tally.repeated,
            misordered: tally.misordered,
            broken: tally.broken,
            why: tally.first_error.map(|error| error.to_string()),
        }
    }

    /// Returns true if every subscriber received every event once and in order.
    pub fn is_clean(&self) -> bool {
        self.lost + self.repeated + self.misordered + self.broken == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Percentiles { p50, p90, p99, p999, max } = self.latency_ms;
        let each = if self.watched == 1 { String::new() } else { format!("{} at a time of ", self.watched) };
        writeln!(
            f,
            "subscribers  {} of {each}{} jobs, connected in {:.0} ms",
            self.subscribers, self.jobs, self.connected_in_ms
        )?;
        writeln!(f, "delivered    {} events, {:.0} a second", self.delivered, self.deliveries_per_second)?;
        writeln!(f, "latency ms   p50 {p50:.2}  p90 {p90:.2}  p99 {p99:.2}  p99.9 {p999:.2}  max {max:.2}")?;
        writeln!(f, "             from the time at which each event was to be sent to its arrival")?;
        writeln!(
            f,
            "lost {}  repeated {}  out of order {}  broken streams {}",
            self.lost, self.repeated, self.misordered, self.broken
        )?;
        if let Some(why) = &self.why {
            writeln!(f, "broken, the first of them: {why}")?;
        }
        Ok(())
    }
}
