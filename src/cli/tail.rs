//! `jobcast tail`: a subscriber for terminals. It reconnects by itself, and its exit code says how the job ended.

use super::client::{Failure, Jobcast, Trust};
use super::sse_parser::Message;
use super::{failed, misused};
use crate::backoff::Backoff;
use crate::cursor::Start;
use crate::event::{BadStatus, JobId, JobStatus};
use crate::logging::{Escaped, escape_json};
use crate::sse;
use anstyle::{AnsiColor, Style};
use reqwest::Method;
use serde_json::Value;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    /// The job to follow
    job: String,
    /// The Jobcast to ask
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// First position: start, now, a cursor, or an event's id
    #[arg(long, default_value = "start", value_name = "CURSOR")]
    from: String,
    /// Each event as one line of JSON
    #[arg(long)]
    json: bool,
    /// Sent as `Authorization: Bearer`
    #[arg(long, env = "JOBCAST_TOKEN", hide_env_values = true)]
    token: Option<String>,
    #[command(flatten)]
    trust: Trust,
}

pub async fn run(args: Args) -> ExitCode {
    let job = match args.job.parse() {
        Ok(job) => job,
        Err(error) => return misused(error),
    };
    let start = match args.from.as_str() {
        "start" => Start::Beginning,
        "now" => Start::Now,
        cursor => Start::After(cursor.to_string()),
    };
    let jobcast = match Jobcast::new(&args.url, args.token, &args.trust) {
        Ok(jobcast) => jobcast,
        Err(failure) => return failed(failure),
    };
    let mut tail = Tail { jobcast, job, start, was_connected: false, status: String::new(), as_json: args.json };
    let ended = tokio::select! {
        ended = tail.follow() => ended,
        _ = tokio::signal::ctrl_c() => return ExitCode::from(130),
    };
    match ended {
        Ok(JobStatus::Failed) => ExitCode::from(3),
        Ok(JobStatus::Cancelled) => ExitCode::from(4),
        Ok(_) | Err(Stopped::OutputClosed) => ExitCode::SUCCESS,
        Err(Stopped::Failed(error)) => failed(error),
    }
}

struct Tail {
    jobcast: Jobcast,
    job: JobId,
    /// Position after everything that was shown.
    start: Start,
    /// Set once a stream was open: from then on, a connection that fails is tried again.
    was_connected: bool,
    /// The job's status as it was shown last.
    status: String,
    as_json: bool,
}

/// Reason why the command stops before the job ends.
enum Stopped {
    /// Standard output was closed: nobody reads it any more.
    OutputClosed,
    Failed(TailError),
}

#[derive(Debug, thiserror::Error)]
enum TailError {
    #[error(transparent)]
    Connection(#[from] Failure),
    #[error("cannot print: {0}")]
    Output(io::Error),
    #[error("the job ended, but {0}")]
    UnknownStatus(#[from] BadStatus),
    #[error("{message} ({code})")]
    Source { message: String, code: String },
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Failed(TailError::Output(error)),
        }
    }
}

impl From<TailError> for Stopped {
    fn from(error: TailError) -> Self {
        Self::Failed(error)
    }
}

/// End of one connection.
enum Disconnect {
    JobEnded(JobStatus),
    /// Reconnect, after this wait or longer.
    Reconnect(Option<Duration>),
}

/// Meaning of one of Jobcast's own messages.
enum Control {
    JobEnded(JobStatus),
    /// The stream goes on, or is about to close and asks for this wait.
    GoOn(Option<Duration>),
}

impl Tail {
    /// Follows the job until it ends; reconnects after whatever happens to a connection.
    async fn follow(&mut self) -> Result<JobStatus, Stopped> {
        let fresh = || Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        let mut backoff = fresh();
        loop {
            let before = self.start.clone();
            let not_before = match self.connect().await {
                Ok(Disconnect::JobEnded(status)) => return Ok(status),
                Ok(Disconnect::Reconnect(not_before)) => not_before,
                // A first connection that fails is most often a wrong address.
                Err(Stopped::Failed(TailError::Connection(failure)))
                    if failure.is_retryable() && self.was_connected =>
                {
                    print_notice(&failure.to_string());
                    failure.retry_after()
                }
                Err(stopped) => return Err(stopped),
            };
            if self.start != before {
                backoff = fresh();
            }
            let wait = backoff.failed().max(not_before.unwrap_or_default());
            print_notice(&format!("coming back in {:.1} s", wait.as_secs_f64()));
            tokio::time::sleep(wait).await;
        }
    }

    /// Opens a stream and shows its events until it closes.
    async fn connect(&mut self) -> Result<Disconnect, Stopped> {
        let opened = self.jobcast.stream(&self.job, &self.start).await.map_err(TailError::from)?;
        let Some(mut stream) = opened else { return Ok(Disconnect::JobEnded(self.final_status().await?)) };
        if self.was_connected {
            print_notice("connected again");
        }
        self.was_connected = true;
        let mut not_before = None;
        while let Some(message) = stream.next().await.map_err(TailError::from)? {
            match &message.data {
                Some(data) if sse::is_reserved(&message.kind) => match self.control(&message.kind, data)? {
                    Control::JobEnded(status) => return Ok(Disconnect::JobEnded(status)),
                    Control::GoOn(wait) => not_before = wait.or(not_before),
                },
                Some(data) => self.show(&message, data)?,
                None => {}
            }
            if !message.id.is_empty() {
                self.start = Start::After(message.id);
            }
        }
        Ok(Disconnect::Reconnect(not_before.or(stream.retry())))
    }

    /// Says what one of Jobcast's own messages means. Unknown ones are ignored: a newer Jobcast may send more.
    fn control(&mut self, kind: &str, data: &str) -> Result<Control, TailError> {
        let fields: Value = serde_json::from_str(data).unwrap_or_default();
        let text = |name: &str| fields[name].as_str().unwrap_or_default();
        match kind {
            "stream.complete" => return Ok(Control::JobEnded(text("status").parse()?)),
            "stream.reset" => {
                print_notice(&format!("what follows is all there is, from the beginning ({})", text("reason")))
            }
            "stream.error" if fields["retryable"] == Value::Bool(false) => {
                return Err(TailError::Source { message: text("message").into(), code: text("code").into() });
            }
            "stream.error" => print_notice(&format!("{} ({})", text("message"), text("code"))),
            // Each connection begins with it.
            "stream.status" if text("status") != self.status => {
                self.status = text("status").into();
                print_dim(&format!("the job is {}", self.status));
            }
            "stream.bye" => print_notice(&format!("the stream was closed ({})", text("reason"))),
            _ => {}
        }
        Ok(Control::GoOn(fields["retryInMs"].as_u64().map(Duration::from_millis)))
    }

    /// Fetches how the job ended, when its stream has nothing more to send.
    async fn final_status(&self) -> Result<JobStatus, TailError> {
        let url = format!("{}?limit=1", self.jobcast.events_url(&self.job));
        let page = self.jobcast.json(Method::GET, &url, None).await?;
        Ok(page["status"].as_str().unwrap_or_default().parse()?)
    }

    /// Prints one event.
    fn show(&self, message: &Message, data: &str) -> io::Result<()> {
        let mut out = anstream::stdout().lock();
        if self.as_json {
            return writeln!(out, "{}", escape_json(data));
        }
        let event: Value = serde_json::from_str(data).unwrap_or_default();
        let text = |name: &str| printable(event[name].as_str().unwrap_or_default());
        // With `stream.data = "payload"`, the data is the payload.
        let payload = event.get("payload").unwrap_or(&event);
        let time = text("timestamp").get(11..23).unwrap_or_default().to_string();
        let kind = printable(event["type"].as_str().unwrap_or(&message.kind));
        let shown = match payload["line"].as_str() {
            Some(line) => printable(line.trim_end_matches(['\r', '\n'])),
            None if payload == &Value::Object(Default::default()) => String::new(),
            None => printable(&payload.to_string()),
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

/// Prints a notice about the connection to standard error, so that standard output holds only events.
fn print_notice(notice: &str) {
    let tone = AnsiColor::Yellow.on_default();
    let _ = writeln!(anstream::stderr(), "{tone}jobcast: {}{tone:#}", printable(notice));
}

/// Prints what one may want to know and need not do anything about, where notices go.
fn print_dim(notice: &str) {
    let dim = Style::new().dimmed();
    let _ = writeln!(anstream::stderr(), "{dim}jobcast: {}{dim:#}", printable(notice));
}

/// Makes a text safe to print, so that a job cannot drive the terminal. A tab is a space.
fn printable(text: &str) -> String {
    Escaped(&text.replace('\t', " ")).to_string()
}
