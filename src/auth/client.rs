//! Requests to services that the settings name: never to an address from anywhere else, never along a redirect, and never
//! for more than a bounded time and a bounded answer.

use super::SetupError;
use bytes::{Bytes, BytesMut};
use std::error::Error;
use std::time::Duration;

/// Makes a client with TLS by ring and the public authorities built in. It takes no proxy from the environment.
pub fn http_client(timeout: Duration) -> Result<reqwest::Client, SetupError> {
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| SetupError::Client(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(timeout)
        .build()
        .map_err(|error| SetupError::Client(cause(error)))
}

/// Reads the body of an answer; fails where it has more than `limit` bytes.
pub async fn read_body(mut answer: reqwest::Response, limit: usize) -> Result<Bytes, String> {
    let mut body = BytesMut::new();
    while let Some(bytes) = answer.chunk().await.map_err(cause)? {
        if body.len() + bytes.len() > limit {
            return Err(format!("the answer has more than {limit} bytes"));
        }
        body.extend_from_slice(&bytes);
    }
    Ok(body.freeze())
}

/// Returns the innermost cause, which says most, and never the address, which may hold a password.
pub fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut innermost: &dyn Error = &error;
    while let Some(inner) = innermost.source() {
        innermost = inner;
    }
    innermost.to_string()
}
