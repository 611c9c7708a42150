//! The right to watch, as an open stream holds it.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;
use tokio::sync::Notify;

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
    /// Wakes those who wait for the end.
    withdrawals: Notify,
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
        Self { subject, expires, withdrawn: AtomicU8::new(0), withdrawals: Notify::new() }
    }

    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    pub fn expires(&self) -> Option<Instant> {
        self.expires
    }

    /// Ends the grant. The streams that hold it are closed within a quarter of a second.
    pub fn withdraw(&self, reason: Withdrawal) {
        self.withdrawn.store(reason as u8, Ordering::Relaxed);
        self.withdrawals.notify_waiters();
    }

    /// Returns the reason for which the grant has ended, if it has.
    pub fn ended(&self, now: Instant) -> Option<Withdrawal> {
        match self.withdrawn.load(Ordering::Relaxed) {
            0 => self.expires.filter(|expires| *expires <= now).map(|_| Withdrawal::Expired),
            1 => Some(Withdrawal::Expired),
            _ => Some(Withdrawal::Revoked),
        }
    }

    /// Returns when the grant has ended.
    pub async fn end(&self) {
        loop {
            // Made before the look, so that a withdrawal between the two wakes it.
            let withdrawn = self.withdrawals.notified();
            if self.ended(Instant::now()).is_some() {
                return;
            }
            match self.expires {
                Some(expires) => tokio::select! {
                    () = withdrawn => {}
                    () = tokio::time::sleep_until(expires.into()) => {}
                },
                None => withdrawn.await,
            }
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

    #[tokio::test]
    async fn whoever_waits_for_the_end_of_a_grant_is_woken_by_either() {
        let soon = Instant::now() + Duration::from_millis(20);
        Grant::new(None, Some(soon)).end().await;
        assert!(Instant::now() >= soon);
        let grant = Grant::new(None, None);
        tokio::join!(grant.end(), async { grant.withdraw(Withdrawal::Revoked) });
    }
}
