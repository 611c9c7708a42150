//! Counts of a running measurement, and the progress bar that shows them.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Time between two looks at a count.
const STEP: Duration = Duration::from_millis(10);

/// Counts that all subscribers add to.
#[derive(Default)]
pub struct Counts {
    /// Streams that were opened.
    pub connected: AtomicU64,
    /// Events that arrived.
    pub delivered: AtomicU64,
    /// Subscribers that are through, well or not.
    pub ended: AtomicU64,
}

/// A bar on standard error that shows how far the current phase is.
pub struct Progress<'a> {
    bar: ProgressBar,
    counts: &'a Counts,
    subscribers: u64,
}

impl<'a> Progress<'a> {
    pub fn new(counts: &'a Counts, subscribers: u64) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{msg:<10} {bar:40} {human_pos}/{human_len} {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, counts, subscribers }
    }

    /// Waits until a count is at `goal`, no subscriber is left, or the time is up.
    pub async fn until(&self, phase: &'static str, count: impl Fn(&Counts) -> &AtomicU64, goal: u64, limit: Duration) {
        self.bar.reset();
        self.bar.set_message(phase);
        self.bar.set_length(goal);
        let began = Instant::now();
        loop {
            let now = count(self.counts).load(Ordering::Relaxed);
            self.bar.set_position(now);
            let is_any_left = self.counts.ended.load(Ordering::Relaxed) < self.subscribers;
            if now >= goal || !is_any_left || began.elapsed() > limit {
                return;
            }
            tokio::time::sleep(STEP).await;
        }
    }

    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
