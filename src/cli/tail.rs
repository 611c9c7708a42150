//! `jobcast tail`: a subscriber for terminals. It reconnects by itself, and its exit code says how the job ended.

mod line;

use super::client::{Failure, Jobcast, STREAM_PATH, Trust};
use super::sse_parser::Message;
use super::{failed, misused};
use crate::backoff::Backoff;
use crate::cursor::Start;
use crate::event::{BadStatus, JobId, JobStatus};
use crate::logging::escape_json;
use crate::sse;
use anstyle::{AnsiColor, Style};
use line::{Line, printable};
use serde_json::Value;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    /// The job to follow
    job: String,
    /// The Jobcast to ask; or the address of the stream itself, with the job or `{job_id}` in its path
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// The path of a job's stream, where `http.stream_path` or a proxy has changed it
    #[arg(long, default_value = STREAM_PATH, value_name = "PATH")]
    path: String,
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
    let job: JobId = match args.job.parse() {
        Ok(job) => job,
        Err(error) => return misused(error),
    };
    if !args.path.contains(PLACE) {
        return misused(format!("--path {}: it must have {PLACE} in it, where the job stands", args.path));
    }
    let start = match args.from.as_str() {
        "start" => Start::Beginning,
        "now" => Start::Now,
        cursor => Start::after(cursor),
    };
    let jobcast = match Jobcast::new(&args.url, args.token.clone(), &args.trust) {
        Ok(jobcast) => jobcast,
        Err(failure) => return failed(failure),
    };
    let address = stream_address(&jobcast, &job, &args);
    let (status, as_json) = (String::new(), args.json);
    let mut tail = Tail { jobcast, address, start, was_connected: false, status, as_json };
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

/// Place of the job in a path.
const PLACE: &str = "{job_id}";

/// Finds the address of the stream. One whose path names the job is taken as it is.
fn stream_address(jobcast: &Jobcast, job: &JobId, args: &Args) -> String {
    let own = Jobcast::stream_url(jobcast, job, PLACE);
    let segment = own.rsplit('/').next().unwrap_or_default();
    let after_scheme = args.url.split_once("://").map_or(args.url.as_str(), |(_, rest)| rest);
    let path = after_scheme.split_once('/').map_or("", |(_, path)| path);
    if args.url.contains(PLACE) {
        args.url.replace(PLACE, segment)
    } else if path.split(['/', '?']).any(|part| part == segment) {
        args.url.clone()
    } else {
        jobcast.stream_url(job, &args.path)
    }
}

struct Tail {
    jobcast: Jobcast,
    /// Address of the stream.
    address: String,
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
        let opened = self.jobcast.stream_at(&self.address, &self.start).await.map_err(TailError::from)?;
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
                self.start = Start::after(message.id);
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
            "stream.status" if !["", &self.status].contains(&text("status")) => {
                self.status = text("status").into();
                print_dim(&format!("the job is {}", self.status));
            }
            "stream.bye" => print_notice(&format!("the stream was closed ({})", text("reason"))),
            _ => {}
        }
        Ok(Control::GoOn(fields["retryInMs"].as_u64().map(Duration::from_millis)))
    }

    /// Asks how the job ended, when its stream has nothing more to send: from now on it says no more than that.
    async fn final_status(&mut self) -> Result<JobStatus, TailError> {
        let mut stream = self.jobcast.stream_at(&self.address, &Start::Now).await?;
        while let Some(stream) = &mut stream
            && let Some(message) = stream.next().await?
        {
            if let (true, Some(data)) = (sse::is_reserved(&message.kind), &message.data)
                && let Control::JobEnded(status) = self.control(&message.kind, data)?
            {
                return Ok(status);
            }
        }
        Ok("".parse()?)
    }

    /// Prints one event.
    fn show(&self, message: &Message, data: &str) -> io::Result<()> {
        let mut out = anstream::stdout().lock();
        match self.as_json {
            true => writeln!(out, "{}", escape_json(data)),
            false => writeln!(out, "{}", Line::of(&message.kind, data)),
        }
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
