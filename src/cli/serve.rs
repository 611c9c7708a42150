//! `jobcast serve`: puts source, hub, delivery and http together, and takes them apart again in the right order.

use super::{ConfigFile, failed, misused};
use crate::config::{AuthMode, Settings};
use crate::delivery::admission::Admission;
use crate::delivery::threads::Threads;
use crate::delivery::{StreamContext, StreamRules};
use crate::error::SourceError;
use crate::http::{self, App, Health, Hosts, Limits, ListenError, Listener};
use crate::hub::Hub;
use crate::logging;
use crate::replay::{Pages, Turns};
use crate::shutdown::{FAILED_DRAIN, Leaving, Phase, Shutdown, ShutdownWatch, Signals};
use crate::source::{self, Source};
use crate::supervise::{PartFailure, Supervisor, guarded};
use crate::tail;
use crate::telemetry::MetricsExporter;
use actix_server::ServerHandle;
use actix_web::web;
use metrics_exporter_prometheus::BuildError;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::task::JoinHandle as Task;

/// Interval at which histograms fold what they gathered.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);
/// Files that the process needs besides one for each stream.
const OTHER_FILES: u64 = 1024;
/// Time for the threads and tasks to end, once everything is closed.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval between two looks whether a thread has ended.
const JOIN_LOOK: Duration = Duration::from_millis(5);

pub(super) async fn run(config: ConfigFile) -> ExitCode {
    let settings = match config.load() {
        Ok(settings) => settings,
        Err(errors) => return misused(errors),
    };
    let _log = logging::to_stderr(&settings.log.level, settings.log.format);
    match guarded("serve", serve(settings, |_, _| {})).await {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => failed(error),
        Err(panicked) => failed(panicked),
    }
}

/// Reason why the daemon could not start, or not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("metrics cannot be set up: {0}")]
    Metrics(#[from] BuildError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Part(#[from] PartFailure),
}

/// Opens the configured source and serves it until a signal says to leave. `on_serving` is called with the public address
/// once it is open.
pub async fn serve(settings: Settings, on_serving: impl FnOnce(SocketAddr, ShutdownWatch)) -> Result<(), ServeError> {
    let metrics = MetricsExporter::install()?;
    let source = source::open(&settings.source).await?;
    serve_source(settings, source, metrics, on_serving).await
}

/// Serves a source that is open. Tests bring sources of their own.
pub async fn serve_source(
    settings: Settings,
    source: Arc<dyn Source>,
    metrics: MetricsExporter,
    on_serving: impl FnOnce(SocketAddr, ShutdownWatch),
) -> Result<(), ServeError> {
    raise_open_files(settings.http.max_connections);
    let public = http::listen(Listener::Public, settings.http.listen)?;
    let admin = http::listen(Listener::Admin, settings.admin.listen)?;
    let (public_address, admin_address) = (public.local_addr()?, admin.local_addr()?);

    let shutdown = Shutdown::default();
    let supervisor = Supervisor::new(shutdown.watch());
    let (mut signals, receive_signals) = Signals::receive()?;
    let admission = Admission::new(settings.http.max_connections, settings.http.max_connections_per_ip);
    let delivery = Delivery::start(&settings, source.clone(), admission.clone(), &shutdown, &supervisor)?;
    let upkeep = supervisor.task("metrics", keep_metrics(metrics.clone(), shutdown.watch()));
    let receiver = supervisor.task("signals", receive_signals);
    let health = Health {
        hub: delivery.streams.hub.clone(),
        admission: admission.clone(),
        shutdown: shutdown.watch(),
        supervisor: supervisor.clone(),
        metrics,
        ready_grace: settings.source.ready_grace,
        hosts: Hosts::new(settings.admin.listen, &settings.http.hosts, false),
    };
    let app = web::Data::new(App {
        source: source.clone(),
        streams: delivery.streams.clone(),
        ingest_enabled: settings.ingest_enabled(),
        ingest: settings.ingest.clone(),
        limits: Limits::new(&settings.http),
        hosts: Hosts::new(settings.http.listen, &settings.http.hosts, settings.auth.mode != AuthMode::None),
        settings: settings.http.clone(),
    });
    let public = Server::start("http", http::serve(public, app, delivery.threads.clone())?, &supervisor);
    let admin = Server::start("admin", http::serve_admin(admin, health)?, &supervisor);

    tracing::info!(http = %public_address, admin = %admin_address, source = source.kind(), "serving");
    on_serving(public_address, shutdown.watch());
    let leaving = Leaving { grace: settings.shutdown.grace, drain: settings.shutdown.drain };
    // The part that failed may be the one that passes the drain on.
    let drain_now = |failure: &PartFailure| {
        tracing::error!(part = %failure.part, "leaving: a part of the daemon has failed");
        delivery.threads.drain();
        exit_at_the_latest();
    };
    let failure = shutdown.on_signal(&mut signals, &leaving, supervisor.failed(), drain_now, admission.empty()).await;

    Parts { delivery, upkeep, receiver, public, admin }.end().await;
    match failure {
        None => {
            tracing::info!("left");
            Ok(())
        }
        Some(failure) => Err(failure.into()),
    }
}

/// Everything that runs besides the wait for a signal.
struct Parts {
    delivery: Delivery,
    /// Folds the metrics.
    upkeep: Task<()>,
    /// Receives the signals.
    receiver: Task<()>,
    public: Server,
    admin: Server,
}

impl Parts {
    /// Ends all, from the outside in: new requests, streams, the tail, and last the listener that shows how it goes.
    async fn end(self) {
        let Self { delivery, upkeep, receiver, public, admin } = self;
        receiver.abort();
        let ended = async {
            delivery.threads.stop();
            public.handle.stop(false).await;
            delivery.join().await;
            let _ = upkeep.await;
            admin.handle.stop(false).await;
            let _ = public.task.await;
            let _ = admin.task.await;
        };
        if tokio::time::timeout(JOIN_TIMEOUT, ended).await.is_err() {
            tracing::error!("not every part ended in time");
        }
    }
}

/// Ends the process with an error after the time that a failed one has, in case that some other part keeps it from leaving.
fn exit_at_the_latest() {
    let exit = || {
        std::thread::sleep(FAILED_DRAIN + 2 * JOIN_TIMEOUT);
        std::process::exit(1);
    };
    if let Err(error) = std::thread::Builder::new().name("exit".into()).spawn(exit) {
        tracing::warn!(%error, "nothing ends the process if it cannot leave by itself");
    }
}

/// The way of events from the source to the sockets: the tail, the hub, and the delivery threads.
struct Delivery {
    streams: StreamContext,
    threads: Threads,
    thread_handles: Vec<JoinHandle<()>>,
    tail: Task<()>,
    /// Passes outages and the drain on to the threads.
    messenger: Task<()>,
}

impl Delivery {
    fn start(
        settings: &Settings,
        source: Arc<dyn Source>,
        admission: Admission,
        shutdown: &Shutdown,
        supervisor: &Supervisor,
    ) -> std::io::Result<Self> {
        let (hub, shape, pace) = (Hub::new(settings.hub.clone()), settings.stream.data, settings.source.pace());
        let turns = Turns::new(settings.http.max_replays, settings.http.max_queued_replays);
        let streams = StreamContext {
            hub: hub.clone(),
            pages: Pages::new(source.clone(), shape, pace, turns),
            rules: StreamRules::new(&settings.stream, &settings.shutdown),
            admission,
            shutdown: shutdown.watch(),
        };
        let lag_bytes = settings.hub.total_bytes.as_u64() as usize;
        let runtime = tokio::runtime::Handle::current();
        let count = settings.http.worker_count();
        let (threads, thread_handles) = Threads::start(count, &streams, lag_bytes, &runtime, supervisor)?;
        let tail = supervisor.task("tail", tail::run(source, hub.clone(), pace, shape, shutdown.watch()));
        let messenger = supervisor.task("messenger", notify_threads(threads.clone(), hub, shutdown.watch()));
        Ok(Self { streams, threads, thread_handles, tail, messenger })
    }

    /// Waits for the threads, which were told to stop, and for the tasks, which the shutdown ends.
    async fn join(self) {
        // Not joined, since that would block the runtime, and with it the time that all this may take.
        while !self.thread_handles.iter().all(JoinHandle::is_finished) {
            tokio::time::sleep(JOIN_LOOK).await;
        }
        let _ = self.tail.await;
        let _ = self.messenger.await;
    }
}

/// A running server.
struct Server {
    handle: ServerHandle,
    task: Task<()>,
}

impl Server {
    fn start(name: &'static str, server: actix_server::Server, supervisor: &Supervisor) -> Self {
        let handle = server.handle();
        let serve = async move {
            if let Err(error) = server.await {
                tracing::error!(listener = name, %error, "a server failed");
            }
        };
        Self { handle, task: supervisor.task(name, serve) }
    }
}

/// Passes the outages of the source and the drain on to the delivery threads.
async fn notify_threads(threads: Threads, hub: Hub, shutdown: ShutdownWatch) {
    let mut outages = hub.outages();
    let mut is_draining = false;
    loop {
        tokio::select! {
            changed = outages.changed() => {
                let now = outages.borrow_and_update().clone();
                match (changed, now) {
                    (Ok(()), Some(outage)) => threads.announce_outage(&outage),
                    (Ok(()), None) => {}
                    (Err(_), _) => return,
                }
            }
            () = shutdown.reached(Phase::Draining), if !is_draining => {
                is_draining = true;
                threads.drain();
            }
            () = shutdown.reached(Phase::Stopped) => return,
        }
    }
}

/// Folds what the histograms gathered, every few seconds.
async fn keep_metrics(metrics: MetricsExporter, shutdown: ShutdownWatch) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(METRICS_UPKEEP) => metrics.upkeep(),
            () = shutdown.reached(Phase::Stopped) => return,
        }
    }
}

/// Raises the soft limit of open files, 1,024 on many systems: each stream is an open file.
fn raise_open_files(streams: usize) {
    let wanted = streams as u64 + OTHER_FILES;
    match rlimit::increase_nofile_limit(wanted) {
        Ok(limit) if limit < wanted => tracing::warn!(
            limit,
            wanted,
            "this process may hold fewer open files than http.max_connections needs: raise its limit (ulimit -n, LimitNOFILE)"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be read"),
    }
}
