//! The right to watch, as an open stream holds it.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

/// A right to watch that was granted to one caller. All streams that were opened with the same right share one grant, so
/// that it is checked again once for all of them.
#[derive(Debug)]
pub struct Grant {
    /// The caller's name, where the credentials have one.
    subject: Option<String>,
    /// The moment at which the credentials run out.
    expires: Option<Instant>,
    /// 0 while it is good, else a [`Withdrawal`].
    withdrawn: AtomicU8,
}

/// The reason for which a grant has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawal {
    /// The credentials have run out.
    Expired = 1,
    /// The caller has lost the right, or an operator took it away.
    Revoked = 2,
}

impl Grant {
    pub fn new(subject: Option<String>, expires: Option<Instant>) -> Self {
        Self { subject, expires, withdrawn: AtomicU8::new(0) }
    }

    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    pub fn expires(&self) -> Option<Instant> {
        self.expires
    }

    /// Ends the grant. The streams that hold it are closed at the next tick of their timers.
    pub fn withdraw(&self, reason: Withdrawal) {
        self.withdrawn.store(reason as u8, Ordering::Relaxed);
    }

    /// Returns the reason for which the grant has ended, if it has.
    pub fn ended(&self, now: Instant) -> Option<Withdrawal> {
        match self.withdrawn.load(Ordering::Relaxed) {
            0 => self.expires.filter(|expires| *expires <= now).map(|_| Withdrawal::Expired),
            1 => Some(Withdrawal::Expired),
            _ => Some(Withdrawal::Revoked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_grant_ends_with_its_credentials_or_when_it_is_withdrawn() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let grant = Grant::new(Some("ann".into()), Some(later));
        assert_eq!(grant.ended(now), None);
        assert_eq!(grant.ended(later), Some(Withdrawal::Expired));
        grant.withdraw(Withdrawal::Revoked);
        assert_eq!(grant.ended(now), Some(Withdrawal::Revoked));
    }
}
