//! TLS to a store: the authority's certificate, and failed handshakes.

use crate::error::{SourceCode, SourceError};
use std::io;
use std::path::Path;

/// Reads the PEM file that `setting` names. `None` where it names none: then the usual authorities are trusted.
pub fn root_certificate(setting: &str, file: &Path) -> Result<Option<Vec<u8>>, SourceError> {
    if file.as_os_str().is_empty() {
        return Ok(None);
    }
    std::fs::read(file).map(Some).map_err(|error| {
        let cause = match error.kind() {
            io::ErrorKind::NotFound => format!("there is no file {}", file.display()),
            _ => format!("{}: {error}", file.display()),
        };
        let help = "name the PEM file with the authority's certificate";
        SourceError::new(SourceCode::CannotOpen, format!("reading {setting}"), cause, help).with_source(error)
    })
}

/// Tells a handshake that failed from a network that did.
pub fn is_handshake_failure(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}
