//! `jobcast serve`: puts source, hub, delivery and http together, and takes them apart again in the right order.

use super::files::{OpenFiles, TooFewFiles};
use super::reload::{Reloadable, Reloader, parts};
use super::{ConfigFile, failed, meters, misused};
use crate::auth::{Auth, SetupError};
use crate::config::{self, AuthMode, Effective, Settings};
use crate::delivery::admission::Admission;
use crate::delivery::connections::Registry;
use crate::delivery::threads::Threads;
use crate::delivery::{StreamContext, StreamRules};
use crate::error::SourceError;
use crate::http::{
    self, Answers, App, BadCertificate, Certificates, Connections, Health, Hosts, InFlight, Limits, ListenError,
    Listener,
};
use crate::hub::Hub;
use crate::logging;
use crate::replay::{Pages, Turns};
use crate::shutdown::{
    DrainRequest, FAILED_DRAIN, Leaving, Left, Phase, ReloadSignal, Shutdown, ShutdownWatch, Signals,
};
use crate::source::{self, Forgiving, SharedLists, Source};
use crate::supervise::{PartFailure, Supervisor, guarded};
use crate::systemd::{self, Sockets};
use crate::tail;
use crate::telemetry::MetricsExporter;
use crate::traces;
use actix_server::ServerHandle;
use actix_web::web;
use metrics_exporter_prometheus::BuildError;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle as Task;

/// Interval at which histograms fold what they gathered.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);
/// Time in which connections that were accepted just before accepting ended reach a worker and send their requests.
const ACCEPT_SETTLES: Duration = Duration::from_millis(250);
/// Time for the threads and tasks to end, once everything is closed.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval between two looks whether a thread has ended.
const JOIN_LOOK: Duration = Duration::from_millis(5);

pub(super) async fn run(config: ConfigFile) -> ExitCode {
    let sockets = match Sockets::inherited() {
        Ok(sockets) => sockets,
        Err(error) => return misused(error),
    };
    let (http, admin) = sockets.addresses();
    let loaded = config.load_with_values();
    let (settings, values) = match loaded.and_then(|(all, values)| Ok((all.listening_on(http, admin)?, values))) {
        Ok(loaded) => loaded,
        Err(errors) => return misused(errors),
    };
    let (traces, layer) = match traces::start(&settings.traces) {
        Ok(started) => started.unzip(),
        Err(cause) => return failed(format!("traces cannot be sent: {cause}")),
    };
    let _log = logging::to_stderr(&settings.log.level, settings.log.access, settings.log.format, layer);
    let surroundings = Surroundings { sockets, reloader: Some(Reloader::new(config, values)) };
    let served = guarded("serve", open_and_serve(settings, surroundings, |_, _| {})).await;
    if let Some(traces) = traces {
        traces.end().await;
    }
    match served {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(ServeError::Certificate(error))) => misused(error),
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
    Certificate(#[from] BadCertificate),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Auth(#[from] SetupError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Files(#[from] TooFewFiles),
    #[error(transparent)]
    Part(#[from] PartFailure),
}

/// The parts of a daemon's surroundings that a demo or a test does without.
#[derive(Default)]
struct Surroundings {
    sockets: Sockets,
    /// Reads the settings again; None where they came from nowhere.
    reloader: Option<Reloader>,
}

/// Opens the configured source and serves it until a signal says to leave. `on_serving` is called with the public address
/// once it is open.
pub async fn serve(settings: Settings, on_serving: impl FnOnce(SocketAddr, ShutdownWatch)) -> Result<(), ServeError> {
    open_and_serve(settings, Surroundings::default(), on_serving).await
}

async fn open_and_serve(
    settings: Settings,
    surroundings: Surroundings,
    on_serving: impl FnOnce(SocketAddr, ShutdownWatch),
) -> Result<(), ServeError> {
    let metrics = MetricsExporter::install()?;
    let source = source::open(&settings.source).await?;
    serve_in(settings, surroundings, source, metrics, on_serving).await
}

/// Serves a source that is open. Tests bring sources of their own.
pub async fn serve_source(
    settings: Settings,
    source: Arc<dyn Source>,
    metrics: MetricsExporter,
    on_serving: impl FnOnce(SocketAddr, ShutdownWatch),
) -> Result<(), ServeError> {
    serve_in(settings, Surroundings::default(), source, metrics, on_serving).await
}

async fn serve_in(
    settings: Settings,
    surroundings: Surroundings,
    source: Arc<dyn Source>,
    metrics: MetricsExporter,
    on_serving: impl FnOnce(SocketAddr, ShutdownWatch),
) -> Result<(), ServeError> {
    let source: Arc<dyn Source> = SharedLists::new(Forgiving::new(source, settings.source.forgive));
    warn_of_weaknesses(&settings);
    let auth = Auth::new(&settings.auth)?;
    let certificates = settings.http.tls.is_enabled().then(|| Certificates::open(&settings.http.tls)).transpose()?;
    let tls = certificates.as_ref().map(Certificates::server_config).transpose()?;
    let Surroundings { sockets, reloader } = surroundings;
    let outlives = sockets.http.is_some();
    let public = sockets.http.map_or_else(|| http::listen(Listener::Public, settings.http.listen), Ok)?;
    let admin = sockets.admin.map_or_else(|| http::listen(Listener::Admin, settings.admin.listen), Ok)?;
    let (public_address, admin_address) = (public.local_addr()?, admin.local_addr()?);
    let files = OpenFiles::measure(2 * settings.http.worker_count());
    let shares = files.share(settings.http.max_connections)?;

    let shutdown = Shutdown::default();
    let supervisor = Supervisor::new(shutdown.watch());
    let (mut signals, reload_signal, receive_signals) = Signals::receive()?;
    let admission = Admission::new(shares.streams, settings.http.max_connections_per_ip, shares.connections);
    let delivery = Delivery::start(&settings, source.clone(), admission.clone(), &shutdown, &supervisor)?;
    let effective = meters::show(&settings);
    let metrics = meters::measured(metrics, delivery.progress.clone(), shutdown.watch());
    let (cors, current_cors) = watch::channel(settings.http.cors.clone());
    let in_flight = InFlight::default();
    let app = delivery.app(&settings, auth.clone(), source.clone(), current_cors, in_flight.clone());
    let app = web::Data::new(app);
    let mut parts = vec![parts::log(), parts::cors(cors), parts::limits(files, admission.clone())];
    parts.extend([parts::keys(auth.clone()), parts::credentials(source.clone(), delivery.streams.hub.clone())]);
    parts.extend(certificates.clone().map(parts::certificates));
    let mut helpers = vec![
        supervisor.task("metrics", keep_metrics(metrics.clone(), shutdown.watch())),
        supervisor.task("auth", auth.clone().run(shutdown.watch())),
        supervisor.task("service manager", keep_informed(&delivery, &supervisor, shutdown.watch())),
        supervisor.task("reload", keep_reloading(reloader, parts, effective.clone(), reload_signal, shutdown.watch())),
    ];
    helpers.extend(certificates.map(|renewed| supervisor.task("certificates", renewed.watch(shutdown.watch()))));
    let receiver = supervisor.task("signals", receive_signals);
    let public = Server::start("http", http::serve(public, app, delivery.threads.clone(), tls)?, &supervisor);
    let health = delivery.health(&supervisor, metrics, &settings, effective, signals.drain_request());
    let admin = http::serve_admin(admin, health, delivery.connections(auth))?;
    let admin = Server::start("admin", admin, &supervisor);

    let (version, store) = (env!("CARGO_PKG_VERSION"), source.store());
    let (http, admin_at) = (tracing::field::display(public_address), tracing::field::display(admin_address));
    tracing::info!(version, http, admin = admin_at, source = source.kind(), store, "serving");
    systemd::ready();
    on_serving(public_address, shutdown.watch());
    let leaving = Leaving { grace: settings.shutdown.grace, drain: settings.shutdown.drain };
    // The part that failed may be the one that passes the drain on.
    let drain_now = |failure: &PartFailure| {
        tracing::error!(part = %failure.part, "leaving: a part of the daemon has failed");
        delivery.threads.drain();
        exit_at_the_latest();
    };
    let empty = all_answered(public.handle.clone(), outlives, admission, in_flight);
    let left = shutdown.on_signal(&mut signals, &leaving, supervisor.failed(), drain_now, empty).await;

    let parts = Parts { delivery, helpers, receiver, public, admin };
    parts.end(left == Left::InOrder).await;
    match left {
        Left::InOrder | Left::AtOnce => {
            tracing::info!("left");
            Ok(())
        }
        Left::Failed(failure) => Err(failure.into()),
    }
}

/// Says at every start which settings give safety away.
fn warn_of_weaknesses(settings: &Settings) {
    for (setting, meaning) in settings.weaknesses() {
        tracing::warn!(setting, "less safe than it could be: {meaning}");
    }
}

/// Returns when no stream is left and every request is answered. A listener that outlives the process accepts nothing more:
/// who connects now waits for the next process.
async fn all_answered(public: ServerHandle, outlives: bool, admission: Admission, in_flight: InFlight) {
    if outlives {
        public.pause().await;
        tokio::time::sleep(ACCEPT_SETTLES).await;
    }
    loop {
        admission.empty().await;
        in_flight.empty().await;
        if admission.open() == 0 {
            return;
        }
    }
}

/// Tells the service manager how the process stands, for as long as its delivery threads answer.
fn keep_informed(
    delivery: &Delivery,
    supervisor: &Supervisor,
    shutdown: ShutdownWatch,
) -> impl Future<Output = ()> + Send + 'static {
    let (threads, supervisor) = (delivery.threads.clone(), supervisor.clone());
    systemd::keep_informed(supervisor, shutdown, move || {
        let threads = threads.clone();
        async move { threads.answer().await.is_ok() }
    })
}

/// Reloads the settings when that is asked for, or only waits for the end where they came from nowhere.
async fn keep_reloading(
    reloader: Option<Reloader>,
    parts: Vec<Reloadable>,
    effective: Effective,
    signal: ReloadSignal,
    shutdown: ShutdownWatch,
) {
    let Some(reloader) = reloader else { return shutdown.reached(Phase::Stopped).await };
    reloader.run(parts, effective, signal, shutdown).await;
}

/// Everything that runs besides the wait for a signal.
struct Parts {
    delivery: Delivery,
    /// Tasks that end by themselves when the process stops.
    helpers: Vec<Task<()>>,
    /// Receives the signals.
    receiver: Task<()>,
    public: Server,
    admin: Server,
}

impl Parts {
    /// Ends all, from the outside in: new requests, streams, the tail, and last the listener that shows how it goes. In
    /// order, what has been answered is also sent.
    async fn end(self, is_in_order: bool) {
        let Self { delivery, helpers, receiver, public, admin } = self;
        receiver.abort();
        let ended = async {
            delivery.threads.stop();
            public.handle.stop(is_in_order).await;
            delivery.join().await;
            for helper in helpers {
                let _ = helper.await;
            }
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
    progress: tail::Progress,
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
            registry: Registry::default(),
            shutdown: shutdown.watch(),
        };
        let lag_bytes = settings.hub.total_bytes.as_u64() as usize;
        let runtime = tokio::runtime::Handle::current();
        let count = settings.http.worker_count();
        let (threads, thread_handles) = Threads::start(count, &streams, lag_bytes, &runtime, supervisor)?;
        let progress = tail::Progress::default();
        let tail = tail::run(source, hub.clone(), pace, shape, shutdown.watch(), progress.clone());
        let tail = supervisor.task("tail", tail);
        let messenger = supervisor.task("messenger", notify_threads(threads.clone(), hub, shutdown.watch()));
        Ok(Self { streams, threads, thread_handles, tail, progress, messenger })
    }

    fn app(
        &self,
        settings: &Settings,
        auth: Auth,
        source: Arc<dyn Source>,
        cors: watch::Receiver<config::Cors>,
        in_flight: InFlight,
    ) -> App {
        App {
            auth,
            source,
            streams: self.streams.clone(),
            appear: settings.source.appear,
            max_set: settings.stream.max_set,
            ingest_enabled: settings.ingest_enabled(),
            ingest: settings.ingest.clone(),
            limits: Limits::new(&settings.http),
            answers: Answers::default(),
            hosts: Hosts::new(settings.http.listen, &settings.http.hosts, settings.auth.mode != AuthMode::None),
            settings: settings.http.clone(),
            cors,
            in_flight,
        }
    }

    fn health(
        &self,
        of: &Supervisor,
        metrics: MetricsExporter,
        settings: &Settings,
        effective: Effective,
        drain: DrainRequest,
    ) -> Health {
        Health {
            hub: self.streams.hub.clone(),
            admission: self.streams.admission.clone(),
            shutdown: self.streams.shutdown.clone(),
            drain,
            supervisor: of.clone(),
            metrics,
            ready_grace: settings.source.ready_grace,
            hosts: Hosts::new(settings.admin.listen, &settings.http.hosts, false),
            settings: effective,
        }
    }

    fn connections(&self, auth: Auth) -> Connections {
        Connections {
            hub: self.streams.hub.clone(),
            registry: self.streams.registry.clone(),
            threads: self.threads.clone(),
            forget_rights: Arc::new(move |job, subject| auth.forget(job, subject)),
        }
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
