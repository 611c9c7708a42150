//! Extractors: typed parts of a request, so that a handler's signature says what it takes from the request and what the
//! caller must have for it.

use super::access;
use super::problem::Problem;
use crate::cursor::Start;
use crate::cursor::set::Size;
use crate::delivery::connections::Filter;
use crate::event::{BadJobId, JobId, JobStatus};
use crate::logging::LEVELS;
use crate::source::MAX_JOBS;
use crate::topic::Types;
use actix_web::dev::Payload;
use actix_web::http::header::{ACCEPT, Accept, Header};
use actix_web::{FromRequest, HttpRequest, web};
use serde::Deserialize;
use std::collections::HashMap;
use std::future::{Ready, ready};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Most events before the end that a stream begins with.
const MAX_LAST: usize = 1000;

/// Implements `FromRequest` by a function that needs only the head of the request.
macro_rules! from_head {
    ($type:ty, $function:expr) => {
        impl actix_web::FromRequest for $type {
            type Error = Problem;
            type Future = std::future::Ready<Result<Self, Problem>>;

            fn from_request(request: &HttpRequest, _: &mut actix_web::dev::Payload) -> Self::Future {
                std::future::ready($function(request))
            }
        }
    };
}
pub(super) use from_head;

/// The job in `{job_id}` of the path.
pub struct JobPath(pub JobId);

from_head!(JobPath, |request: &HttpRequest| {
    #[derive(Deserialize)]
    struct Segments {
        job_id: String,
    }
    let segments: Segments = request.match_info().load().map_err(|error| Problem::bad_job_id(error.to_string()))?;
    let job = segments.job_id.parse().map_err(|error: BadJobId| Problem::bad_job_id(error.to_string()))?;
    access::note_job(&job);
    Ok(JobPath(job))
});

/// Position at which a stream begins. `Last-Event-ID` counts more than the query: a browser sends it when it reconnects
/// to the same address.
impl FromRequest for Start {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        if let Some(last) = request.headers().get("Last-Event-ID").filter(|last| !last.is_empty()) {
            // No id of ours or of a source has control characters, so this one will not be found.
            let text = last.to_str().unwrap_or("\0").to_string();
            let otherwise = Parameters::of(request).and_then(|parameters| parameters.beginning());
            return ready(otherwise.map(|otherwise| Start::After(text, Box::new(otherwise))));
        }
        ready(Parameters::of(request).and_then(|parameters| parameters.start("lastEventId")))
    }
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

/// The query's parameters; the last of equal names counts, where it matters little.
pub struct Parameters {
    values: HashMap<String, String>,
    /// All values of `job`, which may be there many times.
    jobs: Vec<String>,
    /// A name that is there more than once.
    repeated: Option<String>,
}

impl Parameters {
    fn of(request: &HttpRequest) -> Result<Self, Problem> {
        let pairs = web::Query::<Vec<(String, String)>>::from_query(request.query_string())
            .map_err(|error| Problem::bad_query(format!("the query cannot be read: {error}")))?;
        let (mut values, mut jobs, mut repeated) = (HashMap::new(), Vec::new(), None);
        for (name, value) in pairs.into_inner() {
            if name == "job" {
                jobs.push(value.clone());
            }
            if values.insert(name.clone(), value).is_some() {
                repeated = Some(name);
            }
        }
        Ok(Self { values, jobs, repeated })
    }

    /// A parameter that is not empty.
    fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// Fails if there is a parameter with another name, or one that is given twice, so that nobody knows which is meant.
    fn only(&self, known: &[&str]) -> Result<(), Problem> {
        if let Some(name) = &self.repeated {
            return Err(Problem::bad_query(format!("{name:?} is there more than once")));
        }
        match self.values.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(Problem::bad_query(format!("{name:?} is none of {}", known.join(", ")))),
            None => Ok(()),
        }
    }

    /// A whole number within its bounds.
    fn number(&self, name: &str, default: usize, bounds: RangeInclusive<usize>) -> Result<usize, Problem> {
        let Some(text) = self.values.get(name) else { return Ok(default) };
        let number = text.parse().ok().filter(|number| bounds.contains(number));
        let (least, most) = bounds.into_inner();
        number.ok_or_else(|| Problem::bad_query(format!("{name}={text:?} is no whole number from {least} to {most}")))
    }

    /// The types of events that are wanted.
    fn types(&self) -> Result<Types, Problem> {
        let types = self.values.get("types").map_or(Ok(Types::All), |text| Types::parse(text));
        types.map_err(|error| Problem::bad_query(format!("types: {error}")))
    }

    /// The size of a set's cursors.
    fn ids(&self) -> Result<Size, Problem> {
        match self.values.get("ids").map(String::as_str) {
            None | Some("short") => Ok(Size::Short),
            Some("full") => Ok(Size::Full),
            Some(other) => Err(Problem::bad_query(format!("ids={other:?} is neither \"short\" nor \"full\""))),
        }
    }

    /// The jobs of a set, at most `most` of them.
    fn jobs(&self, most: usize) -> Result<Vec<JobId>, Problem> {
        if self.jobs.is_empty() {
            return Err(Problem::bad_query("name the jobs, as in ?job=A&job=B"));
        }
        if self.jobs.len() > most {
            return Err(Problem::bad_query(format!("there are more than {most} jobs (stream.max_set)")));
        }
        let jobs = self.jobs.iter().map(|job| job.parse());
        jobs.collect::<Result<_, _>>().map_err(|error: BadJobId| Problem::bad_job_id(error.to_string()))
    }

    /// Position to begin at: the cursor or id in the parameter `after`, or else what `last` or `from` says.
    fn start(&self, after: &str) -> Result<Start, Problem> {
        let otherwise = self.beginning()?;
        Ok(match self.text(after) {
            Some(position) => Start::After(position.to_string(), Box::new(otherwise)),
            None => otherwise,
        })
    }

    /// Position to begin at without a cursor, as `last` or else `from` says.
    fn beginning(&self) -> Result<Start, Problem> {
        let from = match self.values.get("from").map(String::as_str) {
            Some("now") => Start::Now,
            None | Some("start") => Start::Beginning,
            Some(other) => {
                return Err(Problem::bad_query(format!(
                    "from={other:?} is neither \"start\" nor \"now\"; a cursor goes into lastEventId or after"
                )));
            }
        };
        if !self.values.contains_key("last") {
            return Ok(from);
        }
        Ok(match self.number("last", 0, 0..=MAX_LAST)? {
            0 => Start::Now,
            count => Start::Last(count),
        })
    }
}

/// Tells if a query's parameter is one that some address of Jobcast's knows.
pub fn is_own_parameter(name: &str) -> bool {
    // `_` is different with each request of our client, so that no cache has the answer.
    matches!(
        name,
        "_" | "after" | "from" | "ids" | "job" | "last" | "lastEventId" | "limit" | "status" | "types" | "wait"
    )
}

/// Query of `GET /runner-jobs/{job_id}/events`.
pub struct PollQuery {
    pub start: Start,
    /// Events of the answer, at most.
    pub limit: usize,
    /// Time to wait for something new.
    pub wait: Duration,
    pub types: Types,
}

impl FromQuery for PollQuery {
    fn from_query(parameters: &Parameters) -> Result<Self, Problem> {
        Ok(Self {
            limit: parameters.number("limit", 100, 1..=1000)?,
            wait: Duration::from_secs(parameters.number("wait", 0, 0..=60)? as u64),
            start: parameters.start("after")?,
            types: parameters.types()?,
        })
    }
}

/// Query of a stream: the types of events that are wanted.
pub struct TypesQuery(pub Types);

impl FromQuery for TypesQuery {
    fn from_query(parameters: &Parameters) -> Result<Self, Problem> {
        parameters.types().map(Self)
    }
}

/// The jobs of a set, as the query names them, and what is wanted of them.
pub struct SetQuery {
    pub jobs: Vec<JobId>,
    pub types: Types,
    pub ids: Size,
}

impl SetQuery {
    /// Reads the query of a request that may name at most so many jobs.
    pub fn of(request: &HttpRequest, most: usize) -> Result<Self, Problem> {
        let parameters = Parameters::of(request)?;
        Ok(Self { jobs: parameters.jobs(most)?, types: parameters.types()?, ids: parameters.ids()? })
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
        let status = parameters.values.get("status").map(|status| status.parse::<JobStatus>()).transpose();
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

/// Query of `PUT /log/level` on the admin listener: the new level.
pub struct LevelQuery(pub String);

impl FromQuery for LevelQuery {
    fn from_query(parameters: &Parameters) -> Result<Self, Problem> {
        parameters.only(&["level"])?;
        let accepted = LEVELS.join(", ");
        match parameters.text("level") {
            Some(level) if LEVELS.contains(&level) => Ok(Self(level.to_string())),
            Some(other) => Err(Problem::bad_query(format!("level={other:?} is none of {accepted}"))),
            None => Err(Problem::bad_query(format!("say which level, as in ?level=debug; there are {accepted}"))),
        }
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
}
