//! Gauges that say how the daemon is set up, and those that change by themselves.

use crate::config::{Effective, Settings, SourceKind};
use crate::shutdown::{Phase, ShutdownWatch};
use crate::tail::Progress;
use crate::telemetry::{self, MetricsExporter};
use sha2::{Digest, Sha256};
use std::time::Instant;

/// Has the gauges that change by themselves measured whenever the metrics are read.
pub fn measured(metrics: MetricsExporter, progress: Progress, shutdown: ShutdownWatch) -> MetricsExporter {
    metrics.measuring(move || {
        telemetry::SOURCE_LAG.gauge(&[]).set(progress.lag(Instant::now()).as_secs_f64());
        telemetry::DRAINING.gauge(&[]).set(f64::from(u8::from(shutdown.phase() > Phase::Serving)));
    })
}

/// Sets the gauges of the settings. The limits on streams and connections are set where they are kept, since the number of
/// open files may lower them. Returns the settings as they are in effect now.
pub fn show(settings: &Settings) -> Effective {
    let bytes = settings.hub.total_bytes.as_u64() as f64;
    let is_pooled = settings.source.kind == SourceKind::Postgres;
    let pool = if is_pooled { f64::from(settings.source.postgres.pool) } else { 0.0 };
    for (of, limit) in [
        ("jobs", settings.hub.max_jobs as f64),
        ("ring_bytes", bytes),
        ("backlog_bytes", bytes),
        ("replays", settings.http.max_replays as f64),
        ("queued_replays", settings.http.max_queued_replays as f64),
        ("waiting", settings.http.max_waiting as f64),
        ("source_connections", pool),
    ] {
        telemetry::LIMIT.set(&[("of", of)], limit);
    }
    let effective = Effective::new(settings);
    show_hash(&effective);
    effective
}

/// Sets the number that is made of all settings. Secrets are masked in it, since a number is no place for them.
pub fn show_hash(effective: &Effective) {
    let hash = Sha256::digest(effective.to_toml());
    // As many bits as a gauge shows exactly.
    let number = hash.iter().take(6).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    telemetry::SETTINGS_HASH.gauge(&[]).set(number as f64);
}
