//! `jobcast tail`: a subscriber for terminals. It comes back by itself, and ends as the job ends.

use super::client::{Failure, Jobcast, Message};
use super::{failed, misused};
use crate::backoff::Backoff;
use crate::event::{JobId, JobStatus};
use anstyle::{AnsiColor, Style};
use awc::http::Method;
use serde_json::Value;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    job: String,
    /// The Jobcast to ask
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Where to begin: start, now, a cursor, or an event's id
    #[arg(long, default_value = "start", value_name = "CURSOR")]
    from: String,
    /// Each event as one line of JSON
    #[arg(long)]
    json: bool,
    /// Sent as `Authorization: Bearer`
    #[arg(long, env = "JOBCAST_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

pub async fn run(args: Args) -> ExitCode {
    let job = match args.job.parse() {
        Ok(job) => job,
        Err(error) => return misused(error),
    };
    let (last, from_now) = match args.from.as_str() {
        "start" => (None, false),
        "now" => (None, true),
        cursor => (Some(cursor.to_string()), false),
    };
    let mut tail = Tail { jobcast: Jobcast::new(&args.url, args.token), job, last, from_now, as_json: args.json };
    let ended = tokio::select! {
        ended = tail.follow() => ended,
        _ = tokio::signal::ctrl_c() => return ExitCode::from(130),
    };
    match ended {
        Ok(JobStatus::Failed) => ExitCode::from(3),
        Ok(JobStatus::Cancelled) => ExitCode::from(4),
        Ok(_) | Err(Stopped::Unheard) => ExitCode::SUCCESS,
        Err(Stopped::Failed(why)) => failed(why),
    }
}

struct Tail {
    jobcast: Jobcast,
    job: JobId,
    /// The position after everything that was shown.
    last: Option<String>,
    from_now: bool,
    as_json: bool,
}

/// Why it stopped before the job did.
enum Stopped {
    /// Nobody reads what it prints.
    Unheard,
    Failed(String),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Unheard,
            _ => Self::Failed(format!("cannot print: {error}")),
        }
    }
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure.to_string())
    }
}

/// What one connection came to.
enum Left {
    Ended(JobStatus),
    /// Come back, not before so long.
    ComeBack(Option<Duration>),
}

impl Tail {
    /// Until the job ends; comes back after whatever happens to the connection.
    async fn follow(&mut self) -> Result<JobStatus, Stopped> {
        let fresh = || Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        let mut backoff = fresh();
        let mut was_connected = false;
        loop {
            let before = self.last.clone();
            let not_before = match self.connect(&mut was_connected).await {
                Ok(Left::Ended(status)) => return Ok(status),
                Ok(Left::ComeBack(not_before)) => not_before,
                Err(Trouble::Stopped(stopped)) => return Err(stopped),
                // a first connection that fails is most often a wrong address
                Err(Trouble::Connection(failure)) if !failure.is_retryable() || !was_connected => {
                    return Err(failure.into());
                }
                Err(Trouble::Connection(failure)) => {
                    say(&failure.to_string());
                    failure.retry_after()
                }
            };
            if self.last != before {
                backoff = fresh();
            }
            let wait = backoff.failed().max(not_before.unwrap_or_default());
            say(&format!("coming back in {:.1} s", wait.as_secs_f64()));
            tokio::time::sleep(wait).await;
        }
    }

    async fn connect(&mut self, was_connected: &mut bool) -> Result<Left, Trouble> {
        let from_now = self.from_now && self.last.is_none();
        let Some(mut stream) = self.jobcast.stream(&self.job, self.last.as_deref(), from_now).await? else {
            return Ok(Left::Ended(self.status().await?));
        };
        if std::mem::replace(was_connected, true) {
            say("connected again");
        }
        let mut not_before = None;
        while let Some(message) = stream.next().await? {
            if let Some(left) = self.take(&message, &mut not_before)? {
                return Ok(left);
            }
            if !message.id.is_empty() {
                self.last = Some(message.id);
            }
        }
        Ok(Left::ComeBack(not_before.or(stream.retry())))
    }

    fn take(&self, message: &Message, not_before: &mut Option<Duration>) -> Result<Option<Left>, Stopped> {
        let Some(data) = &message.data else { return Ok(None) };
        if !crate::sse::is_reserved(&message.kind) {
            self.show(message, data)?;
            return Ok(None);
        }
        let said: Value = serde_json::from_str(data).unwrap_or_default();
        let text = |name: &str| said[name].as_str().unwrap_or_default();
        if let Some(ms) = said["retryInMs"].as_u64() {
            *not_before = Some(Duration::from_millis(ms));
        }
        match message.kind.as_str() {
            "stream.complete" => {
                return match text("status").parse() {
                    Ok(status) => Ok(Some(Left::Ended(status))),
                    Err(error) => Err(Stopped::Failed(format!("the job ended, but {error}"))),
                };
            }
            "stream.reset" => say(&format!("what follows is all there is, from the beginning ({})", text("reason"))),
            "stream.error" if said["retryable"] == Value::Bool(false) => {
                return Err(Stopped::Failed(format!("{} ({})", text("message"), text("code"))));
            }
            "stream.error" => say(&format!("{} ({})", text("message"), text("code"))),
            "stream.bye" => say(&format!("the stream was closed ({})", text("reason"))),
            _ => {}
        }
        Ok(None)
    }

    /// How a job ended that has nothing more to tell.
    async fn status(&self) -> Result<JobStatus, Trouble> {
        let url = format!("{}?limit=1", self.jobcast.events_url(&self.job));
        let polled = self.jobcast.json(Method::GET, &url, None).await?;
        let status = polled["status"].as_str().unwrap_or_default();
        status.parse().map_err(|error: crate::event::BadStatus| Stopped::Failed(error.to_string()).into())
    }

    fn show(&self, message: &Message, data: &str) -> io::Result<()> {
        let mut out = anstream::stdout().lock();
        if self.as_json {
            return writeln!(out, "{data}");
        }
        let event: Value = serde_json::from_str(data).unwrap_or_default();
        let text = |name: &str| harmless(event[name].as_str().unwrap_or_default());
        // `stream.data = "payload"` sends no more than that
        let payload = event.get("payload").unwrap_or(&event);
        let time = text("timestamp").get(11..23).unwrap_or_default().to_string();
        let kind = harmless(event["type"].as_str().unwrap_or(&message.kind));
        let shown = match payload["line"].as_str() {
            Some(line) => harmless(line.trim_end_matches(['\r', '\n'])),
            None if payload == &Value::Object(Default::default()) => String::new(),
            None => harmless(&payload.to_string()),
        };
        let (dim, step) = (Style::new().dimmed(), AnsiColor::Cyan.on_default());
        let tone = match &*kind {
            kind if kind.ends_with(".failed") => AnsiColor::Red.on_default().bold(),
            kind if kind.ends_with(".completed") => AnsiColor::Green.on_default(),
            _ => Style::new(),
        };
        writeln!(out, "{dim}{time}{dim:#} {step}{:<12}{step:#} {tone}{kind}{tone:#} {shown}", text("stepId"))
    }
}

enum Trouble {
    Connection(Failure),
    Stopped(Stopped),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Connection(failure)
    }
}

impl From<Stopped> for Trouble {
    fn from(stopped: Stopped) -> Self {
        Self::Stopped(stopped)
    }
}

/// What concerns the connection, beside what the job says.
fn say(what: &str) {
    let tone = AnsiColor::Yellow.on_default();
    let _ = writeln!(anstream::stderr(), "{tone}jobcast: {}{tone:#}", harmless(what));
}

/// Control characters as their pictures: a job may not drive the terminal.
fn harmless(text: &str) -> String {
    let picture = |c: char| match c {
        '\t' => ' ',
        '\0'..='\x1f' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'),
        '\x7f' => '\u{2421}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(picture).collect()
}
