//! The rate at which one address may come, with a burst.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Addresses that are looked through for ones that may be forgotten, at least.
const MIN_KNOWN: usize = 1024;
/// Addresses that are known at a time. Of more than these none is refused, rather than take memory without a bound.
const MAX_KNOWN: usize = 1 << 18;

/// A limit on the requests of each address (the generic cell rate algorithm, ITU-T I.371).
pub struct Rate {
    /// The time between two requests of an address that comes as often as it may.
    interval: Duration,
    /// The lead that a burst may have on that.
    lead: Duration,
    known: Mutex<Known>,
}

struct Known {
    /// The moment at which each address has paid for all of its requests. One that has is as good as unknown.
    paid_at: HashMap<IpAddr, Instant>,
    /// The number of addresses at which those that have paid are forgotten.
    forget_at: usize,
}

impl Rate {
    /// A limit of so many requests a second, after `burst` at once; `None` for a rate of 0.
    pub fn new(per_second: u32, burst: u32) -> Option<Self> {
        let interval = Duration::from_secs(1) / NonZeroU32::new(per_second)?.get();
        let known = Mutex::new(Known { paid_at: HashMap::new(), forget_at: MIN_KNOWN });
        Some(Self { interval, lead: interval * burst.saturating_sub(1), known })
    }

    /// Counts a request of an address; false if it comes too often, and is not counted.
    pub fn take(&self, address: IpAddr, now: Instant) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let paid_at = known.paid_at.get(&address).map_or(now, |paid_at| now.max(*paid_at));
        if paid_at.saturating_duration_since(now) > self.lead {
            return false;
        }
        known.forget(now);
        if known.paid_at.len() < MAX_KNOWN || known.paid_at.contains_key(&address) {
            known.paid_at.insert(address, paid_at + self.interval);
        }
        true
    }
}

impl Known {
    fn forget(&mut self, now: Instant) {
        if self.paid_at.len() >= self.forget_at {
            self.paid_at.retain(|_, paid_at| *paid_at > now);
            self.forget_at = MIN_KNOWN.max(self.paid_at.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_come_in_a_burst_and_then_at_its_rate() {
        let (rate, began) = (Rate::new(10, 3).expect("a rate"), Instant::now());
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let at = |ms| began + Duration::from_millis(ms);
        assert_eq!((0..5).filter(|_| rate.take(one, at(0))).count(), 3, "the burst");
        assert!(rate.take(other, at(0)), "another is another");
        assert!(!rate.take(one, at(99)) && rate.take(one, at(100)) && !rate.take(one, at(101)));
        assert_eq!((0..50).filter(|step| rate.take(one, at(200 + step * 20))).count(), 10, "1 s at its rate");
        assert_eq!((0..5).filter(|_| rate.take(one, at(5000))).count(), 3, "rest brings the burst back");
        assert!(Rate::new(0, 3).is_none());
    }

    #[test]
    fn addresses_that_do_not_come_back_are_forgotten() {
        let (rate, began) = (Rate::new(10, 1).expect("a rate"), Instant::now());
        for number in 0..20_000_u32 {
            assert!(rate.take(IpAddr::from(number.to_be_bytes()), began + Duration::from_millis(number.into())));
        }
        let known = rate.known.lock().expect("no panic").paid_at.len();
        assert!(known <= MIN_KNOWN, "{known}");
    }
}
