//! The certificate of the public listener: read, checked, and read again when its files change. A handshake takes the
//! newest one; connections keep the keys that they agreed on, so that no stream notices.

use crate::config::Tls;
use crate::shutdown::{Phase, ShutdownWatch};
use crate::telemetry;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use std::{fmt, io};

/// Interval between two looks at the files. They are compared by content: certificates are swapped by renaming them, by
/// turning a link to them (Kubernetes), and by writing over them.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A moment after the end of every certificate (RFC 5280, section 4.1.2.5: 99991231235959Z is for those without an end).
const AFTER_ALL_CERTIFICATES: Duration = Duration::from_secs(253_402_300_800);

/// The pair of files, and the certificate from them that handshakes are answered with.
pub struct Certificates {
    files: Tls,
    current: RwLock<Arc<CertifiedKey>>,
    /// The content that was last looked at.
    seen: Mutex<Seen>,
}

/// A content of the two files, and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// In use, or refused and said so.
    Settled(Fingerprint),
    /// Unusable, but it may be that only one of the files has been replaced yet: said at the next look.
    Doubtful(Fingerprint),
}

/// A digest of both files; of the error where one cannot be read.
type Fingerprint = [u8; 32];

/// A reason why a pair of files cannot be used, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum BadCertificate {
    #[error("{setting}: {} cannot be read: {cause} (name a PEM file that this process may read)", .file.display())]
    Unreadable { setting: &'static str, file: PathBuf, cause: io::Error },
    #[error("http.tls.cert: {} holds no certificate in PEM (its blocks begin with \"BEGIN CERTIFICATE\")", .0.display())]
    NoCertificate(PathBuf),
    #[error("http.tls.key: {} holds no private key in PEM (PKCS#8, PKCS#1 or SEC1, without a passphrase)", .0.display())]
    NoKey(PathBuf),
    #[error("http.tls.key: {} is not the key of the first certificate in {} (name the pair that was issued together, the \
             server's own certificate first)", .key.display(), .cert.display())]
    Mismatch { cert: PathBuf, key: PathBuf },
    #[error(
        "http.tls.cert and http.tls.key cannot be used: {0} (have the pair issued anew, with an ECDSA, Ed25519 or RSA key)"
    )]
    Unusable(rustls::Error),
}

/// Both files as they were read.
struct Pair {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Certificates {
    /// Reads the files.
    pub fn open(files: &Tls) -> Result<Arc<Self>, BadCertificate> {
        let pair = Pair::read(files);
        let seen = Seen::Settled(fingerprint(&pair));
        let current = RwLock::new(certified(files, &pair?)?);
        Ok(Arc::new(Self { files: files.clone(), current, seen: Mutex::new(seen) }))
    }

    /// Makes the rules of TLS for the public listener: 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, BadCertificate> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(BadCertificate::Unusable)?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Sessions are resumed by tickets, so that thousands who reconnect cost neither memory nor signatures.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = ring::Ticketer::new().map_err(BadCertificate::Unusable)?;
        Ok(Arc::new(config))
    }

    /// Reads the files again, and uses them from the next handshake on. A pair that cannot be used is refused, and the
    /// one before it stays.
    pub fn reload(&self) -> Result<(), BadCertificate> {
        let pair = Pair::read(&self.files);
        self.note(Seen::Settled(fingerprint(&pair)));
        self.adopt(pair)
    }

    /// Looks at the files until the process stops, and reloads them whenever they have changed.
    pub async fn watch(self: Arc<Self>, shutdown: ShutdownWatch) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = shutdown.reached(Phase::Stopped) => return,
            }
            let certificates = self.clone();
            // A disk that does not answer blocks a thread for such work, and nothing else.
            let _ = tokio::task::spawn_blocking(move || certificates.look()).await;
        }
    }

    fn look(&self) {
        let pair = Pair::read(&self.files);
        let now = fingerprint(&pair);
        let before = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if before == Seen::Settled(now) {
            return;
        }
        self.note(Seen::Settled(now));
        match self.adopt(pair) {
            Ok(()) => {}
            Err(_) if before != Seen::Doubtful(now) => self.note(Seen::Doubtful(now)),
            Err(error) => tracing::error!(%error, "the new certificate is not used; the one before it stays"),
        }
    }

    fn note(&self, seen: Seen) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    fn adopt(&self, pair: Result<Pair, BadCertificate>) -> Result<(), BadCertificate> {
        let key = certified(&self.files, &pair?)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = key;
        tracing::info!(cert = %self.files.cert.display(), "a new certificate is in use");
        Ok(())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Pair {
    fn read(files: &Tls) -> Result<Self, BadCertificate> {
        let read = |setting, file: &Path| {
            std::fs::read(file).map_err(|cause| BadCertificate::Unreadable { setting, file: file.into(), cause })
        };
        Ok(Self { cert: read("http.tls.cert", &files.cert)?, key: read("http.tls.key", &files.key)? })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn fingerprint(pair: &Result<Pair, BadCertificate>) -> Fingerprint {
    let mut digest = Sha256::new();
    match pair {
        Ok(pair) => {
            digest.update((pair.cert.len() as u64).to_be_bytes());
            digest.update(&pair.cert);
            digest.update(&pair.key);
        }
        Err(error) => digest.update(error.to_string()),
    }
    digest.finalize().into()
}

/// Checks a pair; warns of a certificate that has run out, which some clients may still take.
fn certified(files: &Tls, pair: &Pair) -> Result<Arc<CertifiedKey>, BadCertificate> {
    let no_certificate = || BadCertificate::NoCertificate(files.cert.clone());
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(&pair.cert).collect::<Result<_, _>>().map_err(|_| no_certificate())?;
    let own = chain.first().ok_or_else(no_certificate)?;
    let not_after = not_after(own);
    let key = PrivateKeyDer::from_pem_slice(&pair.key).map_err(|_| BadCertificate::NoKey(files.key.clone()))?;
    let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            BadCertificate::Mismatch { cert: files.cert.clone(), key: files.key.clone() }
        }
        other => BadCertificate::Unusable(other),
    })?;
    if let Some(not_after) = not_after {
        telemetry::TLS_EXPIRY.gauge(&[]).set(not_after.as_secs() as f64);
        if not_after.as_secs() < UnixTime::now().as_secs() {
            let cert = files.cert.display();
            tracing::warn!(%cert, "the certificate has run out: browsers refuse it; have it renewed");
        }
    }
    Ok(Arc::new(certified))
}

/// Returns the end of a certificate's time: a check at a moment after it names it.
fn not_after(own: &CertificateDer<'_>) -> Option<UnixTime> {
    let parsed = ParsedCertificate::try_from(own).ok()?;
    let then = UnixTime::since_unix_epoch(AFTER_ALL_CERTIFICATES);
    let algorithms = ring::default_provider().signature_verification_algorithms.all;
    let checked = rustls::client::verify_server_cert_signed_by_trust_anchor(
        &parsed,
        &RootCertStore::empty(),
        &[],
        then,
        algorithms,
    );
    match checked {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => Some(not_after),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    #[test]
    fn the_end_of_a_certificate_is_read_from_it() {
        let mut params = CertificateParams::new(vec!["jobcast.test".into()]).expect("parameters");
        params.not_after = date_time_ymd(2031, 2, 3);
        let own = params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate");
        assert_eq!(not_after(own.der()).map(|end| end.as_secs()), Some(1_927_843_200));
    }
}
