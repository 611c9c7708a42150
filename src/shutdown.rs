//! The phases of a shutdown, and the one place where the system's signals are received.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix;
use tokio::sync::{Notify, mpsc, watch};

/// The longest drain of a process of which a part has failed.
pub const FAILED_DRAIN: Duration = Duration::from_secs(3);
/// Signals that wait to be looked at. The second one already ends the process.
const MAX_WAITING_SIGNALS: usize = 2;

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

#[derive(Clone, Copy, Debug)]
struct Progress {
    phase: Phase,
    /// A part has failed: the streams are closed within [`FAILED_DRAIN`].
    is_failed: bool,
}

/// A view of the present phase; cheap to clone.
#[derive(Clone, Debug)]
pub struct ShutdownWatch(watch::Receiver<Progress>);

impl ShutdownWatch {
    pub fn phase(&self) -> Phase {
        self.0.borrow().phase
    }

    /// Returns the time for closing all streams, where the settings say `configured`.
    pub fn drain_time(&self, configured: Duration) -> Duration {
        if self.0.borrow().is_failed { configured.min(FAILED_DRAIN) } else { configured }
    }

    /// Returns when `phase` or a later one is reached. Also returns if the sender was dropped.
    pub async fn reached(&self, phase: Phase) {
        let mut phases = self.0.clone();
        let _ = phases.wait_for(|now| now.phase >= phase).await;
    }
}

/// Moves the process through the phases. Its drop is the last one.
#[derive(Debug)]
pub struct Shutdown(watch::Sender<Progress>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(watch::Sender::new(Progress { phase: Phase::Serving, is_failed: false }))
    }
}

impl Drop for Shutdown {
    fn drop(&mut self) {
        self.enter(Phase::Stopped);
    }
}

impl Shutdown {
    pub fn watch(&self) -> ShutdownWatch {
        ShutdownWatch(self.0.subscribe())
    }

    /// Enters a phase, unless a later one is reached already.
    pub fn enter(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let later = phase > now.phase;
            now.phase = phase.max(now.phase);
            later
        });
    }

    /// Waits for a signal to leave, or a request to, then goes through the phases. A second signal skips to the last. The drain ends early
    /// when `empty` resolves, which means that no stream is left and every request is answered; it is polled only once the
    /// drain has begun.
    ///
    /// A failure of a part, which `failed` gives, leads to a drain at once and in a hurry, and is returned. `on_failure` is
    /// called when that drain begins.
    pub async fn on_signal<F>(
        &self,
        signals: &mut Signals,
        settings: &Leaving,
        failed: impl Future<Output = F>,
        on_failure: impl Fn(&F),
        empty: impl Future<Output = ()>,
    ) -> Left<F> {
        let (mut failed, mut empty) = (pin!(failed), pin!(empty));
        let mut is_asked = false;
        let mut failure = tokio::select! {
            biased;
            failure = &mut failed => Some(failure),
            Some(first) = signals.received.recv() => {
                self.begin_to_leave(first, settings);
                None
            }
            () = signals.asked.0.notified() => {
                self.begin_to_leave("POST /drain", settings);
                is_asked = true;
                None
            }
        };
        let leave = async {
            if failure.is_none() {
                tokio::select! {
                    biased;
                    part = &mut failed => failure = Some(part),
                    () = self.drain(settings, &mut empty) => {}
                }
            }
            if let Some(failure) = &failure {
                self.0.send_modify(|now| *now = Progress { phase: now.phase.max(Phase::Draining), is_failed: true });
                on_failure(failure);
                self.drain(&Leaving { grace: Duration::ZERO, drain: settings.drain.min(FAILED_DRAIN) }, empty).await;
            }
        };
        let is_hurried = tokio::select! {
            () = leave => false,
            second = signals.second(is_asked) => {
                tracing::warn!(signal = second, "leaving at once");
                true
            }
        };
        self.enter(Phase::Stopped);
        match failure {
            Some(failure) => Left::Failed(failure),
            None if is_hurried => Left::AtOnce,
            None => Left::InOrder,
        }
    }

    fn begin_to_leave(&self, signal: &'static str, settings: &Leaving) {
        let (grace_s, drain_s) = (settings.grace.as_secs_f64(), settings.drain.as_secs_f64());
        tracing::info!(signal, grace_s, drain_s, "leaving: saying not ready, still serving");
        self.enter(Phase::Unready);
    }

    async fn drain(&self, settings: &Leaving, empty: impl Future<Output = ()>) {
        tokio::time::sleep(settings.grace).await;
        self.enter(Phase::Draining);
        let _ = tokio::time::timeout(settings.drain, empty).await;
    }
}

/// The way in which the process came to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left<F> {
    /// It was told to, and everything was answered, or its time was up.
    InOrder,
    /// It was told twice.
    AtOnce,
    /// A part has failed.
    Failed(F),
}

/// The times that a shutdown takes.
#[derive(Clone, Copy, Debug)]
pub struct Leaving {
    /// The time in which everything is still served, so that a load balancer notices.
    pub grace: Duration,
    /// The longest time for closing all streams.
    pub drain: Duration,
}

/// The signals that ask the process to leave, as they come: SIGTERM, SIGINT and SIGQUIT; and an operator's request to.
pub struct Signals {
    received: mpsc::Receiver<&'static str>,
    asked: DrainRequest,
}

/// A request to leave as after SIGTERM; cheap to clone. Only the first counts. The signal that usually follows it, as from an
/// orchestrator whose hook has made the request, does not hurry the process.
#[derive(Clone, Debug, Default)]
pub struct DrainRequest(Arc<Notify>);

impl DrainRequest {
    /// Asks the process to leave, unless it is leaving already.
    pub fn make(&self) {
        self.0.notify_one();
    }
}

/// SIGHUP, which asks the process to reload its settings; cheap to clone. Several that come at once count as one.
#[derive(Clone, Debug, Default)]
pub struct ReloadSignal(Arc<Notify>);

impl ReloadSignal {
    /// Returns when the signal has come since this last returned.
    pub async fn received(&self) {
        self.0.notified().await;
    }
}

impl Signals {
    /// Returns the signal that ends a process at once which is leaving: the second one. Where it was asked to leave
    /// (`is_asked`), the first signal says only what it knows.
    async fn second(&mut self, is_asked: bool) -> &'static str {
        if is_asked && let Some(first) = self.received.recv().await {
            tracing::info!(signal = first, "leaving already");
        }
        match self.received.recv().await {
            Some(second) => second,
            None => std::future::pending().await,
        }
    }

    /// The request to leave that these signals wait for as well.
    pub fn drain_request(&self) -> DrainRequest {
        self.asked.clone()
    }

    /// Begins to receive the signals. They come for as long as the work that is returned goes on.
    pub fn receive() -> std::io::Result<(Self, ReloadSignal, impl Future<Output = ()> + Send + 'static)> {
        let mut system = SystemSignals::new()?;
        let (sender, receiver) = mpsc::channel(MAX_WAITING_SIGNALS);
        let reload = ReloadSignal::default();
        let reload_sender = reload.clone();
        let receive = async move {
            while let Some(signal) = system.next().await {
                match signal {
                    Received::Leave(name) => {
                        let _ = sender.try_send(name);
                    }
                    Received::Reload => reload_sender.0.notify_one(),
                }
            }
        };
        Ok((Self { received: receiver, asked: DrainRequest::default() }, reload, receive))
    }
}

enum Received {
    /// With the signal's name.
    Leave(&'static str),
    Reload,
}

struct SystemSignals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    quit: unix::Signal,
    hangup: unix::Signal,
}

impl SystemSignals {
    fn new() -> std::io::Result<Self> {
        use unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns the next signal; `None` when there will be no more.
    async fn next(&mut self) -> Option<Received> {
        tokio::select! {
            received = self.terminate.recv() => received.map(|()| Received::Leave("SIGTERM")),
            received = self.interrupt.recv() => received.map(|()| Received::Leave("SIGINT")),
            received = self.quit.recv() => received.map(|()| Received::Leave("SIGQUIT")),
            received = self.hangup.recv() => received.map(|()| Received::Reload),
        }
    }
}
