//! `jobcast doctor`: asks a running Jobcast from where its users are, through their proxies, and says what stands in the
//! way of its streams.

mod finding;
mod handshake;
mod watch;

use super::client::{Failure, Jobcast, Trust, http_client};
use super::{failed, misused, printed};
use crate::event::JobId;
use actix_web::http::header::HttpDate;
use finding::{Finding, Weight};
use handshake::HandshakeError;
use reqwest::header::{self, HeaderMap};
use reqwest::{Method, Response, Url};
use rustls::RootCertStore;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};
use watch::{End, Watched};

/// Time in which everything but a stream must answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Delay of what Jobcast sends at once that only a buffer explains.
const LATE: Duration = Duration::from_secs(2);
/// Difference between two clocks that tokens and the times in the page survive.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub struct Args {
    /// Address that the users' browsers ask, with the path before /runner-jobs if there is one
    url: String,
    /// A job that is running now; by default the newest one
    #[arg(long)]
    job: Option<String>,
    /// Sent as `Authorization: Bearer`
    #[arg(long, env = "JOBCAST_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Origin of the page that watches, as https://app.example.org, if it is another one
    #[arg(long)]
    origin: Option<String>,
    /// Longest time to watch a stream, which has to be silent once for stream.heartbeat
    #[arg(long, value_name = "SECONDS", default_value_t = 40)]
    watch: u64,
    #[command(flatten)]
    trust: Trust,
}

pub async fn run(args: Args) -> ExitCode {
    let url = match Url::parse(&args.url) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
        _ => return misused(format!("{}: an address such as https://app.example.org/live is needed", args.url)),
    };
    let job = match args.job.as_deref().map(str::parse::<JobId>).transpose() {
        Ok(job) => job,
        Err(error) => return misused(error),
    };
    let doctor = match Doctor::new(&args, url) {
        Ok(doctor) => doctor,
        Err(failure) => return failed(failure),
    };
    let findings = tokio::select! {
        findings = doctor.examine(job) => findings,
        _ = tokio::signal::ctrl_c() => return ExitCode::from(130),
    };
    let exit = match findings.iter().any(|finding| finding.weight() == Weight::Problem) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    };
    let report: Vec<String> = findings.iter().map(Finding::to_string).collect();
    printed(report.join("\n"), exit)
}

struct Doctor<'a> {
    args: &'a Args,
    url: Url,
    /// The authorities that the user trusts.
    roots: RootCertStore,
    client: reqwest::Client,
    jobcast: Jobcast,
}

impl<'a> Doctor<'a> {
    fn new(args: &'a Args, url: Url) -> Result<Self, Failure> {
        let jobcast = Jobcast::new(&args.url, args.token.clone(), &args.trust)?;
        Ok(Self { args, url, roots: args.trust.roots()?, client: http_client(&args.trust)?, jobcast })
    }

    /// Asks one thing after the other; what makes the next question senseless ends it.
    async fn examine(&self, job: Option<JobId>) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Err(finding) = self.look(job, &mut findings).await {
            findings.push(finding);
        }
        findings
    }

    async fn look(&self, job: Option<JobId>, findings: &mut Vec<Finding>) -> Result<(), Finding> {
        findings.push(self.protocol().await?);
        let job = match job {
            Some(job) => job,
            None => self.find_job().await?,
        };
        let events = self.jobcast.events_url(&job);
        let answer = self.ask(Method::GET, &format!("{events}?limit=1"), &[]).await?;
        findings.extend(clock(answer.headers(), SystemTime::now()));
        let status = answer.status();
        if !status.is_success() {
            let body = answer.text().await.unwrap_or_default();
            return Err(Finding::Refused { url: events, status, body });
        }
        findings.push(Finding::Answers { job: job.to_string() });
        let stream = format!("{events}/stream");
        if let Some(origin) = &self.args.origin {
            findings.push(self.cors(&stream, origin).await?);
        }
        self.stream(&stream, findings).await
    }

    /// Says which version of HTTP browsers would speak.
    async fn protocol(&self) -> Result<Finding, Finding> {
        let (url, roots) = (self.url.clone(), self.roots.clone());
        let shown = url.to_string();
        if url.scheme() == "http" {
            return Ok(Finding::SixConnections { why: "browsers speak HTTP/2 over TLS only" });
        }
        let shake = tokio::task::spawn_blocking(move || handshake::protocol(&url, roots, ANSWER_TIMEOUT));
        match shake.await {
            Ok(Ok(protocol)) if protocol == b"h2" => Ok(Finding::Http2),
            Ok(Ok(_)) => Ok(Finding::SixConnections { why: "the TLS handshake did not choose HTTP/2 (h2)" }),
            Ok(Err(HandshakeError::NoAnswer(cause))) => Err(Finding::NoAnswer { url: shown, cause: cause.to_string() }),
            Ok(Err(HandshakeError::Tls(cause))) => Err(Finding::Tls { url: shown, cause }),
            Err(panic) => Err(Finding::NoAnswer { url: shown, cause: panic.to_string() }),
        }
    }

    /// Returns the newest running job.
    async fn find_job(&self) -> Result<JobId, Finding> {
        let url = format!("{}/runner-jobs?status=RUNNING&limit=1", self.args.url.trim_end_matches('/'));
        let answer = self.ask(Method::GET, &url, &[]).await?;
        let status = answer.status();
        let body = answer.text().await.unwrap_or_default();
        if !status.is_success() {
            return Err(Finding::Refused { url, status, body });
        }
        let list: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        match list["jobs"].as_array().map(Vec::as_slice) {
            None => Err(Finding::NotJobcast { url }),
            Some([]) => Err(Finding::NoJob),
            Some([job, ..]) => job["jobId"].as_str().and_then(|id| id.parse().ok()).ok_or(Finding::NotJobcast { url }),
        }
    }

    /// Asks as a page of another origin does: the request itself, and the preflight of a reconnect.
    async fn cors(&self, stream: &str, origin: &str) -> Result<Finding, Finding> {
        let wanted = match self.args.token {
            Some(_) => "authorization,last-event-id",
            None => "last-event-id",
        };
        let preflight = [
            (header::ORIGIN, origin),
            (header::ACCESS_CONTROL_REQUEST_METHOD, "GET"),
            (header::ACCESS_CONTROL_REQUEST_HEADERS, wanted),
        ];
        let own = [(header::ORIGIN, origin), (header::ACCEPT, "text/event-stream")];
        for (what, answer) in [
            ("a request", self.ask(Method::GET, stream, &own).await?),
            ("the question before a reconnect (OPTIONS)", self.ask(Method::OPTIONS, stream, &preflight).await?),
        ] {
            let allowed: Vec<_> = answer.headers().get_all(header::ACCESS_CONTROL_ALLOW_ORIGIN).iter().collect();
            let origin = origin.to_string();
            match allowed.as_slice() {
                [one] if *one == "*" || **one == *origin.as_str() => {}
                [] => return Ok(Finding::Cors { origin, seen: format!("{what} is answered without it") }),
                [one] => return Ok(Finding::Cors { origin, seen: format!("{what} is answered with {one:?}") }),
                _ => return Ok(Finding::CorsTwice { origin }),
            }
        }
        Ok(Finding::CorsAllowed { origin: origin.to_string() })
    }

    /// Watches the stream and judges what came when.
    async fn stream(&self, url: &str, findings: &mut Vec<Finding>) -> Result<(), Finding> {
        // The job's past would come in one piece, and be no sign of anything.
        let request = self.request(Method::GET, &format!("{url}?from=now")).header(header::ACCEPT, "text/event-stream");
        // Browsers offer all of these, and a proxy then takes one.
        let request = request.header(header::ACCEPT_ENCODING, "gzip, deflate, br, zstd");
        let limit = Duration::from_secs(self.args.watch);
        let watched =
            watch::watch(request, limit).await.map_err(|cause| Finding::NoAnswer { url: url.to_string(), cause })?;
        let Some(head) = &watched.head else {
            return Err(Finding::Buffered { waited: limit, came: None });
        };
        if !head.status.is_success() {
            let (status, body) = (head.status, String::new());
            return Err(Finding::Refused { url: url.to_string(), status, body });
        }
        findings.extend(head.findings());
        findings.extend(judge(&watched, limit));
        Ok(())
    }

    async fn ask(
        &self,
        method: Method,
        url: &str,
        headers: &[(header::HeaderName, &str)],
    ) -> Result<Response, Finding> {
        let mut request = self.request(method, url).timeout(ANSWER_TIMEOUT);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        request.send().await.map_err(|error| Finding::unreachable(url, &error))
    }

    fn request(&self, method: Method, url: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, url);
        match &self.args.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }
}

/// Compares the answer's `Date` with this machine's clock.
fn clock(answer: &HeaderMap, now: SystemTime) -> Option<Finding> {
    let date = answer.get(header::DATE)?.to_str().ok()?;
    let theirs: SystemTime = date.parse::<HttpDate>().ok()?.into();
    let apart = now.duration_since(theirs).unwrap_or_else(|error| error.duration());
    (apart > CLOCK_TOLERANCE).then_some(Finding::Clock { apart })
}

/// Says what the times at which a stream's bytes came mean.
fn judge(watched: &Watched, limit: Duration) -> Option<Finding> {
    match watched.first {
        None => return Some(Finding::Buffered { waited: limit, came: None }),
        Some(first) if first > LATE => return Some(Finding::Buffered { waited: first, came: Some(first) }),
        Some(_) => {}
    }
    match watched.end {
        End::Heartbeat { silence } => Some(Finding::Heartbeat { silence }),
        End::Cut { silence } => Some(Finding::Cut { silence }),
        End::Bunch { spread } => Some(Finding::Bunched { spread }),
        End::Farewell => Some(Finding::Ended),
        End::Watched { silence } if silence * 2 > limit => Some(Finding::NoHeartbeat { silence }),
        End::Watched { .. } => Some(Finding::Busy),
    }
}

/// Time since a moment, for the arrivals.
fn since(moment: Instant) -> Duration {
    moment.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    /// The finding on an answer with this `Date` while this machine's clock shows 12:00:00, as it is printed.
    fn said(date: Option<&'static str>) -> Option<String> {
        let noon = SystemTime::from("Fri, 27 Nov 2026 12:00:00 GMT".parse::<HttpDate>().expect("a date"));
        let date = date.map(|date| (header::DATE, HeaderValue::from_static(date)));
        clock(&date.into_iter().collect(), noon).map(|finding| finding.to_string())
    }

    #[test]
    fn clocks_that_are_too_far_apart_are_named_whichever_is_ahead_and_others_are_not() {
        for (date, apart) in [
            ("Fri, 27 Nov 2026 12:00:06 GMT", "6.0 s"),
            ("Fri, 27 Nov 2026 11:59:54 GMT", "6.0 s"),
            ("Thu, 26 Nov 2026 12:00:00 GMT", "86400.0 s"),
        ] {
            let said = said(Some(date)).expect("a finding");
            let line = format!("warning  clock: this clock and the server's are {apart} apart: ");
            assert!(said.starts_with(&line) && said.contains("chrony"), "{said}");
        }
        for date in [None, Some("Fri, 27 Nov 2026 12:00:05 GMT"), Some("Fri, 27 Nov 2026 11:59:55 GMT"), Some("noon")] {
            assert_eq!(said(date), None, "{date:?}");
        }
    }
}
