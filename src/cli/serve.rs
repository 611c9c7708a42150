//! `jobcast serve`: source → hub → http, and the order in which they come and go.

use super::{ConfigFile, failed, misused};
use crate::config::Settings;
use crate::delivery::admission::Admission;
use crate::delivery::threads::Threads;
use crate::delivery::{StreamContext, StreamRules};
use crate::http::{self, App, Health};
use crate::hub::Hub;
use crate::replay::Pages;
use crate::shutdown::{Phase, Shutdown, ShutdownWatch};
use crate::source::Source;
use crate::telemetry::{self, MetricsExporter};
use crate::{source, tail};
use actix_web::web;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

pub(super) async fn run(config: ConfigFile) -> ExitCode {
    let settings = match config.load() {
        Ok(settings) => settings,
        Err(errors) => return misused(errors),
    };
    telemetry::log_to_stderr(&settings.log.level, settings.log.format);
    match serve(settings, |_, _| {}).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(why),
    }
}

/// Serves until told to leave. `serving` is called with the public address once it is open.
pub async fn serve(
    settings: Settings,
    serving: impl FnOnce(SocketAddr, ShutdownWatch),
) -> Result<(), Box<dyn std::error::Error>> {
    let exposition = MetricsExporter::install()?;
    let source = source::open(&settings.source).await?;
    serve_source(settings, source, exposition, serving).await
}

/// Serves a source that is open. Tests bring sources of their own.
pub async fn serve_source(
    settings: Settings,
    source: Arc<dyn Source>,
    exposition: MetricsExporter,
    serving: impl FnOnce(SocketAddr, ShutdownWatch),
) -> Result<(), Box<dyn std::error::Error>> {
    raise_open_files(settings.http.max_connections);
    let public = http::listen("http.listen", settings.http.listen)?;
    let admin = http::listen("admin.listen", settings.admin.listen)?;
    let (public_address, admin_address) = (public.local_addr()?, admin.local_addr()?);

    let shutdown = Shutdown::default();
    let hub = Hub::new(settings.hub.clone());
    let admission = Admission::new(settings.http.max_connections, settings.http.max_connections_per_ip);
    let shape = settings.stream.data;
    let streams = StreamContext {
        hub: hub.clone(),
        pages: Pages::new(source.clone(), shape, settings.source.pace()),
        rules: StreamRules::new(&settings.stream, &settings.shutdown),
        admission: admission.clone(),
        shutdown: shutdown.watch(),
    };
    let runtime = tokio::runtime::Handle::current();
    let lag_bytes = settings.hub.total_bytes.as_u64() as usize;
    let (threads, thread_handles) = Threads::start(settings.http.worker_count(), &streams, lag_bytes, &runtime)?;
    let tail = tokio::spawn(tail::run(source.clone(), hub.clone(), settings.source.pace(), shape, shutdown.watch()));
    let messenger = tokio::spawn(tell_threads(threads.clone(), hub.clone(), shutdown.watch()));
    let upkeep = tokio::spawn(keep_up(exposition.clone(), shutdown.watch()));

    let app = web::Data::new(App {
        source: source.clone(),
        streams,
        ingest_enabled: settings.ingest_enabled(),
        ingest: settings.ingest.clone(),
        settings: settings.http.clone(),
    });
    let public = http::serve(public, app, threads.clone())?;
    let health = Health {
        hub,
        admission: admission.clone(),
        shutdown: shutdown.watch(),
        exposition,
        ready_grace: settings.source.ready_grace,
    };
    let admin = http::serve_admin(admin, health)?;
    let (public_handle, admin_handle) = (public.handle(), admin.handle());
    let servers = [tokio::spawn(public), tokio::spawn(admin)];

    tracing::info!(http = %public_address, admin = %admin_address, source = source.kind(), "serving");
    serving(public_address, shutdown.watch());
    shutdown.on_signal(settings.shutdown.grace, settings.shutdown.drain, admission.empty()).await?;

    // from the outside in: no new requests, then the streams, then the tail, then who looks on
    threads.stop();
    public_handle.stop(false).await;
    for handle in thread_handles {
        let _ = handle.join();
    }
    let _ = tail.await;
    let _ = messenger.await;
    let _ = upkeep.await;
    admin_handle.stop(false).await;
    for server in servers {
        let _ = server.await;
    }
    tracing::info!("left");
    Ok(())
}

/// Passes on to the delivery threads what concerns all of their streams.
async fn tell_threads(threads: Threads, hub: Hub, shutdown: ShutdownWatch) {
    let mut outages = hub.outages();
    let mut draining = false;
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
            () = shutdown.reached(Phase::Draining), if !draining => {
                draining = true;
                threads.drain();
            }
            () = shutdown.reached(Phase::Stopped) => return,
        }
    }
}

async fn keep_up(exposition: MetricsExporter, shutdown: ShutdownWatch) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(5)) => exposition.upkeep(),
            () = shutdown.reached(Phase::Stopped) => return,
        }
    }
}

/// Each stream is an open file; the soft limit of many systems is 1,024.
fn raise_open_files(streams: usize) {
    let wanted = streams as u64 + 1024;
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
