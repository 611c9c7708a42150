//! The names that a listener answers to. A page of others can point a name of its own at a loopback address (DNS
//! rebinding) and then is of the same origin, as far as a browser can tell; only the name in its requests betrays it.

use actix_web::HttpRequest;
use actix_web::http::Version;
use actix_web::http::header::HOST;
use actix_web::http::uri::Authority;
use std::net::{IpAddr, SocketAddr};

/// The names that one listener answers to.
#[derive(Clone, Debug)]
pub struct Hosts {
    /// Names in small letters and addresses without brackets; `None` for any.
    names: Option<Vec<String>>,
    /// Set if names of loopback are right, too: whoever uses one has got here without a name of his own.
    is_loopback: bool,
}

impl Hosts {
    /// The names of a listener at `listen`: those that are set. Where none is, it answers to any, unless it is `guarded` by
    /// nothing but its being on loopback.
    pub fn new(listen: SocketAddr, names: &[String], is_guarded: bool) -> Self {
        let is_loopback = listen.ip().to_canonical().is_loopback();
        if names.is_empty() && (is_guarded || !is_loopback) {
            return Self { names: None, is_loopback };
        }
        let mut names: Vec<String> = names.iter().map(|name| plain(name)).collect();
        if is_loopback {
            names.push(listen.ip().to_string());
        }
        Self { names: Some(names), is_loopback }
    }

    /// Tells if a request is meant for this listener. Only one of HTTP/1.0 may name nobody: no browser sends such.
    pub fn are_named_by(&self, request: &HttpRequest) -> bool {
        if self.names.is_none() {
            return true;
        }
        let target = request.uri().authority().map(Authority::as_str).map(Some);
        let headers = request.headers().get_all(HOST).map(|host| host.to_str().ok());
        let mut named = target.into_iter().chain(headers).peekable();
        let needs_name = request.version() >= Version::HTTP_11;
        (named.peek().is_some() || !needs_name) && named.all(|host| host.is_some_and(|host| self.contain(host)))
    }

    fn contain(&self, host: &str) -> bool {
        let Some(names) = &self.names else { return true };
        let Some(host) = without_port(host).map(plain) else { return false };
        let is_own = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback());
        names.contains(&host) || self.is_loopback && is_own
    }
}

/// A host in small letters, without the brackets of IPv6 and the dot at the end of a full name.
fn plain(host: &str) -> String {
    let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Cuts the port off a host, whose IPv6 address has brackets (RFC 9110, section 7.2). None where what follows the host is
/// no port.
fn without_port(host: &str) -> Option<&str> {
    let end = host.find(']').map_or_else(|| host.find(':').unwrap_or(host.len()), |bracket| bracket + 1);
    let (host, rest) = host.split_at(end);
    let is_port = |port: &str| port.bytes().all(|digit| digit.is_ascii_digit());
    (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port)).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(listen: &str, names: &[&str], is_guarded: bool) -> Hosts {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        Hosts::new(listen.parse().expect("an address"), &names, is_guarded)
    }

    #[test]
    fn a_loopback_listener_without_auth_answers_to_its_own_names_only() {
        let own = hosts("127.0.0.1:8080", &[], false);
        for host in ["localhost", "LOCALHOST:9", "localhost.", "127.0.0.1:8080", "[::1]:8080", "[::1]", "127.0.0.1"] {
            assert!(own.contain(host), "{host}");
        }
        for host in ["evil.example", "evil.example:8080", "localhost.evil.example", "10.0.0.1", "", "[", "]:", "::"] {
            assert!(!own.contain(host), "{host}");
        }
        for host in ["localhost:x", "localhost:80@evil.example", "localhost:80:80", "[::1]x", "[::1]:80]", "[::1]@evil"]
        {
            assert!(!own.contain(host), "{host}");
        }
        assert!(hosts("127.0.0.1:80", &[], true).contain("evil.example"), "auth guards it");
        assert!(hosts("0.0.0.0:80", &[], false).contain("evil.example"), "it is open anyway");
    }

    #[test]
    fn names_that_are_set_are_the_only_ones() {
        let named = hosts("0.0.0.0:80", &["Jobs.example.org", "::2"], true);
        assert!(named.contain("jobs.EXAMPLE.org:443") && named.contain("[::2]:80"));
        assert!(!named.contain("localhost") && !named.contain("other.example.org"));
        let local = hosts("127.0.0.1:80", &["jobs.example.org"], false);
        assert!(local.contain("jobs.example.org") && local.contain("localhost"), "its own stay right");
    }
}
