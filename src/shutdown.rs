//! The phases of leaving, and the one place where the system's signals are heard.

use std::time::Duration;
use tokio::sync::watch;

/// What the process is about. Phases only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// `/readyz` says no, so that a load balancer looks elsewhere; everything is still served.
    Unready,
    /// No new streams; the open ones are told to come back, spread over the drain.
    Draining,
    /// Whatever is still open is closed.
    Stopped,
}

/// What anybody may know of leaving.
#[derive(Clone, Debug)]
pub struct ShutdownWatch(watch::Receiver<Phase>);

impl ShutdownWatch {
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Returns when `phase`, or a later one, is there; also when the process forgot about leaving.
    pub async fn reached(&self, phase: Phase) {
        let mut phases = self.0.clone();
        let _ = phases.wait_for(|now| *now >= phase).await;
    }
}

/// Moves the process through the phases.
#[derive(Debug)]
pub struct Shutdown(watch::Sender<Phase>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Serving))
    }
}

impl Shutdown {
    pub fn watch(&self) -> ShutdownWatch {
        ShutdownWatch(self.0.subscribe())
    }

    pub fn enter(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let later = phase > *now;
            *now = phase.max(*now);
            later
        });
    }

    /// Waits for the first SIGTERM or SIGINT, then goes through the phases; a second signal ends it at once. `empty`
    /// resolves when no stream is left, which ends the drain early.
    pub async fn on_signal(
        &self,
        grace: Duration,
        drain: Duration,
        empty: impl Future<Output = ()>,
    ) -> std::io::Result<()> {
        let mut signals = Signals::new()?;
        let first = signals.next().await;
        tracing::info!(signal = first, ?grace, ?drain, "leaving: saying not ready, still serving");
        self.enter(Phase::Unready);
        let leave = async {
            tokio::time::sleep(grace).await;
            self.enter(Phase::Draining);
            let _ = tokio::time::timeout(drain, empty).await;
        };
        tokio::select! {
            () = leave => {}
            second = signals.next() => tracing::warn!(signal = second, "leaving at once"),
        }
        self.enter(Phase::Stopped);
        Ok(())
    }
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
