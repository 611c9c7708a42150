//! HTTP to others: clients with TLS by ring, for the addresses that settings and commands name. They take no proxy from the
//! environment.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

/// The public authorities, which are built in, so that the binary needs no files of the system.
pub fn public_authorities() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

/// Adds the authorities of a PEM file. Fails, with the cause, where there is none in it.
pub fn add_authorities(roots: &mut RootCertStore, file: &Path) -> Result<(), String> {
    let pem = std::fs::read(file).map_err(|error| error.to_string())?;
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    let (added, _) = roots.add_parsable_certificates(certificates);
    if added == 0 { Err("it holds no certificate in PEM".into()) } else { Ok(()) }
}

/// Begins a client that trusts these authorities. Fails, with the cause, where TLS cannot be set up.
pub fn client(roots: RootCertStore) -> Result<reqwest::ClientBuilder, String> {
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy())
}

/// Returns the innermost cause of a client's error, such as "Connection refused". The layers around it repeat the address,
/// which may hold a password.
pub fn cause(error: &reqwest::Error) -> String {
    let mut innermost: &dyn Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
