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
        let Self { http, admin, stream, hub, source, auth, ingest, shutdown: _, log, traces } = self;
        let mut problems = Problems::default();
        http.validate(&mut problems);
        stream.validate(&mut problems);
        hub.validate(&mut problems);
        source.validate(&mut problems);
        auth.validate(&mut problems);
        traces.validate(&mut problems);
        ingest.validate(&mut problems);
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

/// Returns true for an origin that a browser can send in `Origin`: the serialization of RFC 6454, section 6.2, to the letter.
pub fn is_origin(text: &str) -> bool {
    let is_web = text.starts_with("http://") || text.starts_with("https://");
    let serialized = url::Url::parse(text).map(|url| url.origin().ascii_serialization());
    is_web && !text.contains('*') && serialized.is_ok_and(|origin| origin == text)
}

/// Returns true for a name or an address without a port; an IPv6 address may have its brackets.
pub fn is_host(text: &str) -> bool {
    let text = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let is_name = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    is_name || text.parse::<std::net::Ipv6Addr>().is_ok()
}

/// Returns true for a name that a header can have (a token of RFC 9110, section 5.6.2).
pub fn is_header_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'+-.^_`|~".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_that_no_browser_sends_is_none() {
        for origin in ["https://example.org", "http://localhost:5173", "https://[2001:db8::1]:8443", "http://10.0.0.1"]
        {
            assert!(is_origin(origin), "{origin}");
        }
        for never in [
            "example.org",
            "https://example.org/",
            "https://example.org/app",
            "https://Example.org",
            "HTTPS://example.org",
            "https://example.org:443",
            "http://example.org:80",
            "https://*.example.org",
            "https://me@example.org",
            "https://",
            "https://ex ample.org",
            "https://bücher.example",
            "file:///srv",
            "null",
            "",
        ] {
            assert!(!is_origin(never), "{never}");
        }
    }

    #[test]
    fn a_host_has_neither_scheme_nor_port() {
        for host in ["jobs.example.org", "localhost", "10.0.0.1", "::1", "[2001:db8::1]"] {
            assert!(is_host(host), "{host}");
        }
        for other in ["", "jobs.example.org:8080", "http://x", "a/b", "[x]:", "*"] {
            assert!(!is_host(other), "{other}");
        }
    }
}
