//! Extractors: typed parts of a request, so that a handler's signature says what it takes from the request and what the
//! caller must have for it.

use super::App;
use super::problem::Problem;
use crate::cursor::Start;
use crate::delivery::connections::Filter;
use crate::event::{BadJobId, JobId, JobStatus};
use crate::source::MAX_JOBS;
use actix_web::dev::Payload;
use actix_web::http::header::{ACCEPT, Accept, Header};
use actix_web::{FromRequest, HttpRequest, web};
use actix_web_lab::header::Forwarded;
use serde::Deserialize;
use std::collections::HashMap;
use std::future::{Ready, ready};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Implements `FromRequest` by a function that needs only the head of the request.
macro_rules! from_head {
    ($type:ty, $function:expr) => {
        impl FromRequest for $type {
            type Error = Problem;
            type Future = Ready<Result<Self, Problem>>;

            fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
                ready($function(request))
            }
        }
    };
}

/// The job in `{job_id}` of the path.
pub struct JobPath(pub JobId);

from_head!(JobPath, |request: &HttpRequest| {
    #[derive(Deserialize)]
    struct Segments {
        job_id: String,
    }
    let segments: Segments = request.match_info().load().map_err(|error| Problem::bad_job_id(error.to_string()))?;
    segments.job_id.parse().map(JobPath).map_err(|error: BadJobId| Problem::bad_job_id(error.to_string()))
});

/// Position at which a stream begins. `Last-Event-ID` counts more than the query: a browser sends it when it reconnects
/// to the same address.
impl FromRequest for Start {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        if let Some(last) = request.headers().get("Last-Event-ID").filter(|last| !last.is_empty()) {
            // No id of ours or of a source has control characters, so this one will not be found.
            return ready(Ok(Start::After(last.to_str().unwrap_or("\0").to_string())));
        }
        ready(Parameters::of(request).and_then(|parameters| parameters.start("lastEventId")))
    }
}

/// Address that a request comes from, if the connection still has one: the peer's, or behind trusted proxies the last
/// one that they name and that is none of them.
pub struct ClientAddress(pub Option<IpAddr>);

from_head!(ClientAddress, |request: &HttpRequest| {
    let Some(peer) = request.peer_addr() else { return Ok(ClientAddress(None)) };
    let peer = peer.ip().to_canonical();
    let trusted = &App::of(request)?.settings.trusted_proxies;
    let is_trusted = |ip: IpAddr| trusted.iter().any(|network| network.contains(ip));
    let client = if is_trusted(peer) { first_untrusted(request, is_trusted).unwrap_or(peer) } else { peer };
    Ok(ClientAddress(Some(client)))
});

/// Goes back along the proxies to the first address that is not one of theirs. It ends at a hop that cannot be read: the
/// hops before that one were named by somebody who is not trusted.
fn first_untrusted(request: &HttpRequest, is_trusted: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let hops = hops(request);
    let mut hops = hops.iter().rev().map_while(|hop| read_hop(hop));
    hops.find(|hop| !is_trusted(*hop))
}

/// Addresses that a request came by, the client's first. `Forwarded` counts only without `X-Forwarded-For`: a proxy that
/// writes the one passes the other on as it came, and the client may have written it. `actix-web-lab` has a type only for
/// `Forwarded`, and leaves the hops in it unread.
fn hops(request: &HttpRequest) -> Vec<String> {
    let values = request.headers().get_all("X-Forwarded-For").filter_map(|value| value.to_str().ok());
    let hops: Vec<String> = values.flat_map(|value| value.split(',')).map(|hop| hop.trim().to_string()).collect();
    if !hops.is_empty() {
        return hops;
    }
    Forwarded::parse(request).map(|forwarded| forwarded.for_chain().map(str::to_string).collect()).unwrap_or_default()
}

/// Reads `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]` and `[2001:db8::1]:4711`.
fn read_hop(hop: &str) -> Option<IpAddr> {
    let ip = hop.parse::<SocketAddr>().map(|address| address.ip());
    let ip = ip.or_else(|_| hop.trim_start_matches('[').trim_end_matches(']').parse());
    ip.ok().map(|ip| ip.to_canonical())
}

/// Tells if the caller takes an event stream. `Accept` is missing in many tools' requests; only a caller that names other
/// types and not this one, or this one with `q=0`, does not take it.
///
/// `actix_web::guard::Acceptable` is not used: it takes a type with `q=0` as accepted.
pub fn accepts_stream(request: &HttpRequest) -> bool {
    if !request.headers().contains_key(ACCEPT) {
        return true;
    }
    let Ok(Accept(ranges)) = Accept::parse(request) else { return false };
    // The most specific range counts (RFC 9110, section 12.5.1).
    let quality = |range: &str| {
        ranges
            .iter()
            .find(|one| one.item.essence_str() == range)
            .map(|one| one.quality > actix_web::http::header::Quality::ZERO)
    };
    quality("text/event-stream").or_else(|| quality("text/*")).or_else(|| quality("*/*")).unwrap_or(false)
}

/// The query as a type, which names every parameter that the handler knows.
pub struct Query<T>(pub T);

/// A type that a query can be read as.
pub trait FromQuery: Sized {
    fn from_query(parameters: &Parameters) -> Result<Self, Problem>;
}

impl<T: FromQuery> FromRequest for Query<T> {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Parameters::of(request).and_then(|parameters| T::from_query(&parameters)).map(Query))
    }
}

/// The query's parameters; the last of equal names counts.
pub struct Parameters(HashMap<String, String>);

impl Parameters {
    fn of(request: &HttpRequest) -> Result<Self, Problem> {
        web::Query::<HashMap<String, String>>::from_query(request.query_string())
            .map(|query| Self(query.into_inner()))
            .map_err(|error| Problem::bad_query(format!("the query cannot be read: {error}")))
    }

    /// A parameter that is not empty.
    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// Fails if there is a parameter with another name.
    fn only(&self, known: &[&str]) -> Result<(), Problem> {
        match self.0.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(Problem::bad_query(format!("{name:?} is none of {}", known.join(", ")))),
            None => Ok(()),
        }
    }

    /// A whole number within its bounds.
    fn number(&self, name: &str, default: usize, bounds: RangeInclusive<usize>) -> Result<usize, Problem> {
        let Some(text) = self.0.get(name) else { return Ok(default) };
        let number = text.parse().ok().filter(|number| bounds.contains(number));
        let (least, most) = bounds.into_inner();
        number.ok_or_else(|| Problem::bad_query(format!("{name}={text:?} is no whole number from {least} to {most}")))
    }

    /// Position to begin at: the cursor or id in the parameter `after`, or else what `from` says.
    fn start(&self, after: &str) -> Result<Start, Problem> {
        if let Some(position) = self.text(after) {
            return Ok(Start::After(position.to_string()));
        }
        match self.0.get("from").map(String::as_str) {
            Some("now") => Ok(Start::Now),
            None | Some("start") => Ok(Start::Beginning),
            Some(other) => Err(Problem::bad_query(format!(
                "from={other:?} is neither \"start\" nor \"now\"; a cursor goes into lastEventId or after"
            ))),
        }
    }
}

/// Tells if a query's parameter is one that some address of Jobcast's knows.
pub fn is_own_parameter(name: &str) -> bool {
    matches!(name, "after" | "from" | "job" | "last" | "lastEventId" | "limit" | "status" | "types" | "wait")
}

/// Query of `GET /runner-jobs/{job_id}/events`.
pub struct PollQuery {
    pub start: Start,
    /// Events of the answer, at most.
    pub limit: usize,
    /// Time to wait for something new.
    pub wait: Duration,
}

impl FromQuery for PollQuery {
    fn from_query(parameters: &Parameters) -> Result<Self, Problem> {
        Ok(Self {
            limit: parameters.number("limit", 100, 1..=1000)?,
            wait: Duration::from_secs(parameters.number("wait", 0, 0..=60)? as u64),
            start: parameters.start("after")?,
        })
    }
}

/// Query of `GET /runner-jobs`.
pub struct JobsQuery {
    /// Jobs of the answer, at most.
    pub limit: usize,
    /// Only jobs with this status.
    pub status: Option<JobStatus>,
}

impl FromQuery for JobsQuery {
    fn from_query(parameters: &Parameters) -> Result<Self, Problem> {
        let status = parameters.text("status").map(str::parse::<JobStatus>).transpose();
        Ok(Self {
            limit: parameters.number("limit", 50, 1..=MAX_JOBS)?,
            status: status.map_err(|error| Problem::bad_query(error.to_string()))?,
        })
    }
}

/// Query of `/connections` on the admin listener.
pub struct ConnectionsQuery {
    pub filter: Filter,
    /// Connections of the answer, at most.
    pub limit: usize,
}

impl FromQuery for ConnectionsQuery {
    fn from_query(parameters: &Parameters) -> Result<Self, Problem> {
        // A misspelt choice would close more than was meant.
        parameters.only(&["id", "job", "subject", "limit"])?;
        let text = |name| parameters.text(name).map(str::to_string);
        let job = parameters.text("job").map(str::parse).transpose();
        Ok(Self {
            filter: Filter {
                id: text("id"),
                job: job.map_err(|error: BadJobId| Problem::bad_query(error.to_string()))?,
                subject: text("subject"),
            },
            limit: parameters.number("limit", 100, 1..=10_000)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    #[test]
    fn a_stream_is_accepted_unless_other_types_are_named_or_its_quality_is_zero() {
        let accepts =
            |accept: &str| accepts_stream(&TestRequest::get().insert_header(("Accept", accept)).to_http_request());
        assert!(accepts_stream(&TestRequest::get().to_http_request()));
        for accept in ["text/event-stream", "*/*", "text/*;q=0.1", "application/json, text/event-stream;q=0.5"] {
            assert!(accepts(accept), "{accept}");
        }
        for accept in ["application/json", "text/event-stream;q=0, */*", "text/*;q=0, */*", "*/*;q=0", "text/html"] {
            assert!(!accepts(accept), "{accept}");
        }
    }

    #[test]
    fn the_last_hop_that_is_no_trusted_proxy_is_the_client() {
        let client = |header: (&str, &str)| {
            let request = TestRequest::get().insert_header(header).to_http_request();
            first_untrusted(&request, |ip| matches!(ip, IpAddr::V4(ip) if ip.octets()[0] == 10))
        };
        let (one, six) = (IpAddr::from([192, 0, 2, 1]), "2001:db8::1".parse().expect("an address"));
        for (header, expected) in [
            (("X-Forwarded-For", "203.0.113.9, 192.0.2.1, 10.0.0.1"), Some(one)),
            (("X-Forwarded-For", "192.0.2.1:4711"), Some(one)),
            (("X-Forwarded-For", "203.0.113.9, unknown, 10.0.0.1"), None),
            (("X-Forwarded-For", "10.0.0.2, 10.0.0.1"), None),
            (("Forwarded", "for=203.0.113.9, for=\"192.0.2.1:80\";proto=https, for=10.0.0.1"), Some(one)),
            (("Forwarded", "for=\"[2001:db8::1]:4711\""), Some(six)),
            (("Forwarded", "for=\"[2001:db8::1]\""), Some(six)),
            (("Forwarded", "proto=https"), None),
        ] {
            assert_eq!(client(header), expected, "{header:?}");
        }
        let both = TestRequest::get()
            .insert_header(("Forwarded", "for=203.0.113.9"))
            .insert_header(("X-Forwarded-For", "192.0.2.1"))
            .to_http_request();
        assert_eq!(first_untrusted(&both, |_| false), Some(one));
    }
}
