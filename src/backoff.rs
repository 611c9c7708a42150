//! Waits between the attempts at something that keeps failing. No I/O.

use rand::RngExt;
use std::time::Duration;

/// Exponential waits after failures in a row, with jitter, so that many callers do not try again at once.
pub struct Backoff {
    initial: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits that double from `initial` up to `max`.
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, failures: 0 }
    }

    /// Begins anew, because something has changed.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Returns the wait after one more failure: between half of the current ceiling and all of it.
    pub fn failed(&mut self) -> Duration {
        let ceiling = self.initial.saturating_mul(1 << self.failures.min(20)).min(self.max);
        self.failures += 1;
        ceiling.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_and_never_fall_below_half() {
        let (initial, max) = (Duration::from_millis(200), Duration::from_secs(10));
        let mut backoff = Backoff::new(initial, max);
        for failures in 0..40 {
            let ceiling = initial.saturating_mul(1 << failures.min(20)).min(max);
            let wait = backoff.failed();
            assert!(wait >= ceiling / 2 && wait <= ceiling, "{wait:?} after {failures} failures");
        }
    }
}
