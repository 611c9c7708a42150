//! Reads of many jobs at once, of the source itself.

#[path = "../../source/promises.rs"]
pub mod promises;

use crate::support::store::Store;
use jobcast::config::{self, Settings};
use jobcast::event::JobId;
use jobcast::source::{self, Source};
use promises::{Tried, keep_on_many_jobs};
use std::ops::Range;
use std::sync::Arc;

const SCHEDULES: u64 = 8;
/// Events of one call. A slow disk acknowledges these in time.
const WRITTEN_AT_ONCE: usize = 100;

/// Opens the source that these settings of a daemon name.
pub async fn open(settings: &[(impl AsRef<str>, String)]) -> Arc<dyn Source> {
    let of_source = settings.iter().filter(|(key, _)| key.as_ref().starts_with("source."));
    let lines: Vec<String> = of_source.map(|(key, value)| format!("{} = {value:?}", key.as_ref())).collect();
    let settings: config::Source = Settings::from_toml(&lines.join("\n")).expect("settings").source;
    source::open(&settings).await.expect("the source")
}

pub async fn positions_of_any_kind_lose_and_repeat_nothing_on_many_jobs<S: Store>() {
    let store = S::start().await;
    let replicas = [open(&store.settings()).await, open(&store.settings()).await];
    let append = async |job: &JobId, numbers: Range<u64>| {
        for first in numbers.clone().step_by(WRITTEN_AT_ONCE) {
            let end = numbers.end.min(first + WRITTEN_AT_ONCE as u64);
            store.append(job.as_str(), first..end).await;
        }
    };
    for seed in 0..SCHEDULES {
        let tried = Tried { replicas: &replicas, has_levels: S::HAS_LEVELS, many: 2500 };
        keep_on_many_jobs(seed, &tried, &append).await;
    }
}
