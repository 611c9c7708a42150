//! The parts of the daemon that take new settings while it runs.

use super::Reloadable;
use crate::auth::Auth;
use crate::cli::files::OpenFiles;
use crate::config;
use crate::delivery::admission::Admission;
use crate::http::Certificates;
use crate::hub::Hub;
use crate::logging;
use crate::source::Source;
use std::sync::Arc;
use tokio::sync::watch;

/// Takes a new secret, or the new content of the key file.
pub fn keys(auth: Auth) -> Reloadable {
    Reloadable::new(&["auth.jwt.secret", "auth.jwt.key_file"], move |settings| {
        auth.read_key(&settings.auth).map_err(|error| error.to_string())
    })
}

/// Takes new credentials for the source, or the new content of the file that holds them. Whoever waits for the source tries
/// again with them.
pub fn credentials(source: Arc<dyn Source>, hub: Hub) -> Reloadable {
    Reloadable::new(&["source.postgres.url", "source.redis.url"], move |settings| {
        let (change, hub) = (source.prepare(&settings.source).map_err(|error| error.to_string())?, hub.clone());
        Ok(Box::new(move || {
            change();
            hub.announce_renewal();
        }))
    })
}

/// Takes the new content of the certificate's files. Other names for them need a restart.
pub fn certificates(certificates: Arc<Certificates>) -> Reloadable {
    Reloadable::new(&[], move |_| {
        let certificates = certificates.clone();
        Ok(Box::new(move || {
            if let Err(error) = certificates.reload() {
                tracing::error!(%error, "the new certificate is not used; the one before it stays");
            }
        }))
    })
}

/// Takes another level, and the access log.
pub fn log() -> Reloadable {
    Reloadable::new(&["log.level", "log.access"], |settings| {
        let (level, access) = (settings.log.level.clone(), settings.log.access);
        Ok(Box::new(move || logging::set_level(&level, access)))
    })
}

/// Takes other origins of pages.
pub fn cors(current: watch::Sender<config::Cors>) -> Reloadable {
    let current = Arc::new(current);
    Reloadable::new(&["http.cors"], move |settings| {
        let (current, cors) = (current.clone(), settings.http.cors.clone());
        Ok(Box::new(move || {
            current.send_replace(cors);
        }))
    })
}

/// Takes other limits on streams.
pub fn limits(files: OpenFiles, admission: Admission) -> Reloadable {
    Reloadable::new(&["http.max_connections", "http.max_connections_per_ip"], move |settings| {
        let shares = files.share(settings.http.max_connections).map_err(|error| error.to_string())?;
        let (admission, max_per_ip) = (admission.clone(), settings.http.max_connections_per_ip);
        Ok(Box::new(move || admission.set_limits(shares.streams, max_per_ip, shares.connections)))
    })
}
