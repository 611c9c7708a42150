//! Reads of many jobs keep their promises. The same is tried on every real store.

use super::append_to;
use super::memory::Memory;
use super::promises::{Tried, keep_on_many_jobs};
use jobcast::event::JobId;
use jobcast::source::Source;
use std::ops::Range;
use std::sync::Arc;

#[tokio::test]
async fn positions_of_any_kind_lose_and_repeat_nothing_on_many_jobs_in_memory() {
    for seed in 0..200 {
        let store = Memory::default();
        let replicas: [Arc<dyn Source>; 1] = [Arc::new(store.clone())];
        let append = async |job: &JobId, numbers: Range<u64>| {
            append_to(&store, job, numbers.start as usize..numbers.end as usize).await;
        };
        keep_on_many_jobs(seed, &Tried { replicas: &replicas, has_levels: true, many: 50 }, &append).await;
    }
}
