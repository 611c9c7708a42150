//! Checks of values that have the right type and make no sense. A section's own rules stand beside its struct; the rules
//! that concern two sections stand here.

use super::{AuthMode, Settings};
use bytesize::ByteSize;
use std::time::Duration;

/// Problems that were found, each with the key of its setting.
#[derive(Debug, Default)]
pub struct Problems(Vec<(&'static str, String)>);

impl Problems {
    /// Notes a problem with `key` unless `holds`.
    pub fn require(&mut self, holds: bool, key: &'static str, problem: &str) {
        if !holds {
            self.0.push((key, problem.to_string()));
        }
    }

    pub fn require_longer_than_zero(&mut self, duration: Duration, key: &'static str) {
        self.require(!duration.is_zero(), key, "must be longer than 0");
    }

    pub fn require_larger_than_zero(&mut self, size: ByteSize, key: &'static str) {
        self.require(size.as_u64() > 0, key, "must be larger than 0");
    }
}

impl IntoIterator for Problems {
    type Item = (&'static str, String);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Settings {
    pub(super) fn validate(&self) -> Problems {
        // Every section is named, so that a new one cannot be forgotten.
        let Self { http, admin, stream, hub, source, auth, ingest: _, shutdown: _, log } = self;
        let mut problems = Problems::default();
        http.validate(&mut problems);
        stream.validate(&mut problems);
        hub.validate(&mut problems);
        source.validate(&mut problems);
        auth.validate(&mut problems);
        log.validate(&mut problems);
        problems.require(
            admin.listen != http.listen || http.listen.port() == 0,
            "admin.listen",
            "must not be http.listen",
        );
        problems.require(
            auth.allow_anonymous || auth.mode != AuthMode::None || http.listen.ip().is_loopback(),
            "auth.allow_anonymous",
            "anybody who reaches http.listen could watch every job; set it to true if that is meant, or listen on loopback",
        );
        problems
    }
}

/// Returns true for a path with `{job_id}` as exactly one of its segments and no other placeholder.
pub fn is_job_path(path: &str) -> bool {
    path.starts_with('/')
        && path.split('/').filter(|segment| *segment == "{job_id}").count() == 1
        && path.matches(['{', '}']).count() == 2
        && path.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '?' | '#'))
}

/// Returns true for a scheme and a host, as browsers send them in `Origin`.
pub fn is_origin(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, host)| {
        matches!(scheme, "http" | "https") && !host.is_empty() && !host.contains(['/', ' ', '@'])
    })
}
