//! The phases of a shutdown, and the one place where the system's signals are received.

use std::time::Duration;
use tokio::sync::watch;

/// The progress of a shutdown. A process goes through the phases in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// `/readyz` answers 503, so that a load balancer sends new requests elsewhere. Everything is still served.
    Unready,
    /// No new streams are opened. The open ones are closed, spread over the drain; their clients reconnect elsewhere.
    Draining,
    /// Everything that is still open is closed.
    Stopped,
}

/// A view of the present phase; cheap to clone.
#[derive(Clone, Debug)]
pub struct ShutdownWatch(watch::Receiver<Phase>);

impl ShutdownWatch {
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Returns when `phase` or a later one is reached. Also returns if the sender was dropped.
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

    /// Enters a phase, unless a later one is reached already.
    pub fn enter(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let later = phase > *now;
            *now = phase.max(*now);
            later
        });
    }

    /// Waits for SIGTERM or SIGINT, then goes through the phases. A second signal skips to the last. The drain ends early
    /// when `empty` resolves, which means that no stream is left.
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
        tokio::select! {
            () = self.drain(grace, drain, empty) => {}
            second = signals.next() => tracing::warn!(signal = second, "leaving at once"),
        }
        self.enter(Phase::Stopped);
        Ok(())
    }

    async fn drain(&self, grace: Duration, drain: Duration, empty: impl Future<Output = ()>) {
        tokio::time::sleep(grace).await;
        self.enter(Phase::Draining);
        let _ = tokio::time::timeout(drain, empty).await;
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
