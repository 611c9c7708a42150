//! Requests to services that the settings name: never to an address from anywhere else, never along a redirect, and never
//! for more than a bounded time and a bounded answer.

use super::SetupError;
use crate::outbound::{self, add_authorities, public_authorities};
use bytes::{Bytes, BytesMut};
use rustls::RootCertStore;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Makes a client that trusts the authorities of this PEM file, or, where it names none, the public ones.
pub fn http_client(root_cert: &Path, timeout: Duration) -> Result<reqwest::Client, SetupError> {
    outbound::client(authorities(root_cert)?)
        .map_err(SetupError::Client)?
        .redirect(reqwest::redirect::Policy::none())
        .timeout(timeout)
        .build()
        .map_err(|error| SetupError::Client(cause(error)))
}

fn authorities(root_cert: &Path) -> Result<RootCertStore, SetupError> {
    if root_cert.as_os_str().is_empty() {
        return Ok(public_authorities());
    }
    let mut roots = RootCertStore::empty();
    let added = add_authorities(&mut roots, root_cert);
    added.map_err(|cause| SetupError::Authority { file: PathBuf::from(root_cert), cause })?;
    Ok(roots)
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

/// Returns the cause, which never holds the address.
pub fn cause(error: reqwest::Error) -> String {
    outbound::cause(&error.without_url())
}
