//! Length of payloads that are stored compressed, of which the server tells no more than that form's.

use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes that came of a compressed one in the last page that had such, at least 1. It only decides how many rows a page
/// fetches.
pub struct Expansion(AtomicU64);

impl Default for Expansion {
    fn default() -> Self {
        // What repeats itself most is compressed to a hundredth, logs and JSON to a tenth or a third.
        Self(AtomicU64::new(4))
    }
}

impl Expansion {
    const MAX: u64 = 1000;

    pub fn factor(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Learns from payloads with so many bytes, of those that were stored `whole` and `compressed`.
    pub fn learn(&self, payloads: u64, whole: u64, compressed: u64) {
        if compressed > 0 {
            let factor = payloads.saturating_sub(whole).div_ceil(compressed);
            self.0.store(factor.clamp(1, Self::MAX), Ordering::Relaxed);
        }
    }
}
