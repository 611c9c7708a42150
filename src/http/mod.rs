//! The addresses, one module each, and the servers that answer them. No SQL, and no bytes of events.

mod accept;
mod access;
mod admin;
mod answer;
mod appear;
mod bounded;
mod certificates;
mod client_address;
mod connections;
mod cors;
mod current_cors;
mod edge;
mod events;
mod extract;
mod h2;
mod hosts;
mod in_flight;
mod ingest;
mod jobs;
mod limits;
mod opening;
mod page;
mod problem;
mod rate;
mod rights;
mod routes;
mod server;
mod sets;
mod stream;

pub use admin::MAX_CONNECTIONS as MAX_ADMIN_CONNECTIONS;
pub use admin::{Health, serve as serve_admin};
pub use answer::Answers;
pub use certificates::{BadCertificate, Certificates};
pub use client_address::{forwarded, x_forwarded_for};
pub use connections::Connections;
pub use hosts::Hosts;
pub use in_flight::InFlight;
pub use ingest::Sent;
pub use limits::Limits;
pub use server::{ListenError, Listener, listen, serve};

use crate::auth::Auth;
use crate::config;
use crate::cursor::Cursor;
use crate::delivery::StreamContext;
use crate::error::SourceError;
use crate::event::JobId;
use crate::source::{Source, Standing};
use actix_web::{HttpRequest, web};
use problem::Problem;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Longest text that is looked up as a cursor or an event's id: no id of ours is longer, and none of a source's.
const MAX_ID_BYTES: usize = 256;

/// Parts of the process that handlers work with.
pub struct App {
    /// Says who may watch what.
    pub auth: Auth,
    /// The store: pages of history for polling, and where ingest writes to.
    pub source: Arc<dyn Source>,
    /// Parts that every stream needs; `hub` and `pages` also serve polling.
    pub streams: StreamContext,
    pub settings: config::Http,
    /// `stream.max_set`
    pub max_set: usize,
    /// `source.appear`
    pub appear: Duration,
    /// `http.cors` of the moment.
    pub cors: watch::Receiver<config::Cors>,
    /// The requests that are being answered.
    pub in_flight: InFlight,
    pub limits: Limits,
    /// Room for answers with events as JSON.
    pub answers: Answers,
    /// Names that the listener answers to.
    pub hosts: Hosts,
    /// Section that holds the token of senders.
    pub ingest: config::Ingest,
    /// Set if events may be sent in: `ingest.enabled`, with `auto` decided.
    pub ingest_enabled: bool,
}

impl App {
    /// The app of the worker that serves a request, for extractors.
    fn of(request: &HttpRequest) -> Result<&web::Data<Self>, Problem> {
        request.app_data().ok_or_else(|| Problem::internal("this address was set up without its data"))
    }

    /// Finds the cursor that foreign text stands for: a cursor, or an event's id.
    async fn resolve(&self, job: &JobId, text: &str) -> Result<Option<Cursor>, SourceError> {
        if text.is_empty() || text.len() > MAX_ID_BYTES || text.chars().any(char::is_control) {
            return Ok(None);
        }
        self.source.resolve(job, text).await
    }

    /// Returns the position after the job's newest event, from its ring if it is live; `None` if there is no such job.
    async fn newest(&self, job: &JobId) -> Result<Option<Standing>, SourceError> {
        match self.streams.hub.newest(job) {
            Some((cursor, status)) => Ok(Some(Standing { cursor, status })),
            None => self.source.newest(job).await,
        }
    }
}
