//! `jobcast emit`: appends one event to the configured source, for scripts and for trying things out.

use super::{ConfigFile, failed, misused, printed};
use crate::config;
use crate::error::SourceError;
use crate::event::{JobId, Payload};
use crate::source::{self, Appended, NewEvent};
use crate::sse;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// The job that the event belongs to
    job: String,
    /// The event's type, such as step.output
    r#type: String,
    /// Any JSON
    #[arg(long, default_value = "{}")]
    payload: String,
    #[arg(long)]
    step: Option<String>,
    #[command(flatten)]
    config: ConfigFile,
}

pub async fn run(args: Args) -> ExitCode {
    let settings = match args.config.load() {
        Ok(settings) => settings,
        Err(errors) => return misused(errors),
    };
    let job: JobId = match args.job.parse() {
        Ok(job) => job,
        Err(error) => return misused(error),
    };
    if let Err(error) = serde_json::from_str::<serde_json::Value>(&args.payload) {
        return misused(format!(
            "--payload is no JSON: {error} (quote it for your shell: --payload '{{\"line\":\"hello\"}}')"
        ));
    }
    let kind = args.r#type;
    if sse::is_reserved(&kind) || kind.is_empty() || kind.chars().count() > 200 || kind.contains(char::is_control) {
        return misused(format!(
            "{kind:?} cannot be an event's type: 1 to 200 characters, not beginning with \"stream.\""
        ));
    }
    let event = NewEvent {
        id: uuid::Uuid::now_v7().to_string(),
        step_id: args.step,
        kind,
        timestamp: jiff::Timestamp::now(),
        actor: Some("jobcast emit".into()),
        payload: Payload::from_text(args.payload),
    };
    match append(&settings.source, &job, event).await {
        Ok(stored) => {
            let ids: Vec<&str> = stored.iter().map(|one| one.event.id.as_str()).collect();
            printed(ids.join("\n"), ExitCode::SUCCESS)
        }
        Err(error) => failed(error),
    }
}

async fn append(settings: &config::Source, job: &JobId, event: NewEvent) -> Result<Vec<Appended>, SourceError> {
    source::open(settings).await?.append(job, vec![event]).await
}
