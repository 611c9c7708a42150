//! Redis Streams as a source: one stream for each job, on a single server, on the primary that Sentinel names, or in a
//! Cluster. Watching needs no more than the right to read.
//!
//! - [`topology`] knows the servers, and [`connections`] sends each request to the server that has its key;
//! - [`position`] notices entries that were lost;
//! - [`shared`] reads one stream of many jobs;
//! - [`history`] reads pages, [`many`] those of many jobs, [`lookups`] finds event ids, [`tail`] reads what is new, and
//!   [`invalidation`] wakes the tail up;
//! - [`mapping`] makes events of entries, and [`status`] reads how a job is;
//! - [`writer`] appends, [`jobs`] lists.

mod address;
mod awaited;
mod check;
mod connections;
mod driver;
mod ends;
mod entry;
mod error;
mod history;
mod invalidation;
mod jobs;
mod keys;
mod known_ids;
mod lookups;
mod many;
mod mapping;
mod position;
mod reply;
mod samples;
mod script;
mod shared;
mod status;
mod tail;
mod timestamp;
mod topology;
mod values;
mod writer;

pub use driver::RedisDriver;

use super::{Appended, Change, EventKey, JobSummary, Limit, NewEvent, PageResult, Source, Standing, Tail};
use crate::config;
use crate::cursor::Cursor;
use crate::error::{SourceCode, SourceError};
use crate::event::{JobId, JobStatus};
use crate::sse::Reset;
use async_trait::async_trait;
use connections::{Nodes, Replies, Request};
use entry::{EntryId, StreamInfo, parse_entries, parse_info};
use error::{Extent, failed, is_denied_key, is_wrong_type};
use keys::KeyTemplate;
use mapping::Mapping;
use position::{Position, StreamSlice};
use redis::{Cmd, RedisError, Value, cmd};
use reply::{check_reply, is_no_such_key, unexpected_reply};
use status::{JobState, StatusForm};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;
use topology::{NodeError, Topology};

/// Entries asked for in one request. A larger reply would make the server's other clients wait.
const MAX_ENTRIES_PER_REQUEST: usize = 256;

/// The servers and the settings, shared by readers, writers and the tail.
struct Store {
    settings: config::Redis,
    events_key: KeyTemplate,
    /// `None`: there is no key with a job's status.
    job_key: Option<KeyTemplate>,
    status: StatusForm,
    mapping: Mapping,
    /// The one stream of all jobs; `None`: each job has its own.
    shared: Option<shared::Shared>,
    topology: Arc<Topology>,
    /// Connections of everybody but the tail, which has its own.
    nodes: Nodes,
    poll_interval: Duration,
    /// The ends of jobs, as this process has seen them.
    ends: ends::RedisEnds,
    /// Ids of the events of jobs that were written to lately; used by [`script`].
    known_ids: known_ids::KnownIds,
    /// Writes that wait.
    lines: writer::Lines,
    /// Look-ups of event ids that have not ended.
    lookups: lookups::Lookups,
    /// Keeps the topology up to date for as long as the store lives.
    _refresher: AbortOnDropHandle<()>,
}

impl Store {
    /// Opens the store. A server that is away may come back, so only errors that a retry cannot mend are returned.
    async fn open(settings: &config::Source) -> Result<Arc<Self>, SourceError> {
        let (poll_interval, end_grace) = (settings.poll_interval, settings.end_grace);
        let (deployment, login) = address::from_settings(settings)?;
        let settings = settings.redis.clone();
        let (topology, refresher) = Topology::start(deployment, login).await;
        let events_key = if settings.is_shared() {
            Some(KeyTemplate::one(&settings.events_key))
        } else {
            KeyTemplate::new(&settings.events_key)
        };
        let events_key = events_key.ok_or_else(|| {
            let cause = format!("it does not hold {}", config::Redis::JOB_ID);
            SourceError::new(SourceCode::CannotOpen, "reading source.redis.events_key", cause, "correct it")
        })?;
        let mapping = Mapping::new(&settings).map_err(|error| {
            let help = "name a zone of the IANA database, such as Europe/Paris";
            SourceError::new(SourceCode::CannotOpen, "reading source.redis.timestamp_zone", error.to_string(), help)
        })?;
        let store = Arc::new(Self {
            job_key: KeyTemplate::new(&settings.job_key),
            status: StatusForm::new(&settings),
            mapping,
            shared: settings.is_shared().then(shared::Shared::default),
            events_key,
            nodes: Nodes::new(topology.clone(), None),
            poll_interval,
            ends: ends::RedisEnds::new(end_grace),
            known_ids: known_ids::KnownIds::default(),
            lines: writer::Lines::default(),
            lookups: lookups::Lookups::default(),
            topology,
            settings,
            _refresher: refresher,
        });
        match store.probe_access(&store.nodes).await {
            Ok(None) => {}
            Ok(Some(denied)) => {
                let error = failed("trying a key", denied);
                tracing::warn!(code = error.code.as_str(), %error, "the user may not read the keys of all jobs");
            }
            Err(error) => {
                let error = failed("connecting", error);
                if !error.is_retryable() {
                    return Err(error);
                }
                tracing::warn!(code = error.code.as_str(), %error, "the server does not answer yet");
            }
        }
        Ok(store)
    }

    /// Reads a job that need not exist, with the commands of the tail, to check the connection and the rights. Returns the
    /// refusal of a key of that job: the user may still have a right to those of others.
    async fn probe_access(&self, nodes: &Nodes) -> Result<Option<NodeError>, NodeError> {
        let Ok(job) = "jobcast".parse::<JobId>() else { return Ok(None) };
        let mut requests = vec![self.stream_request(&job, &Position::BEGINNING, 1)];
        requests.extend(self.status_request(&job));
        let mut denied = None;
        for (number, replies) in (0..).zip(nodes.send(&requests).await) {
            // The first is about the one stream of all jobs, where there is one.
            let is_of_job = self.shared.is_none() || number > 0;
            for reply in replies? {
                match check_reply(reply) {
                    Err(error) if is_no_such_key(&error) => {}
                    Err(error) if is_of_job && is_denied_key(&error) => denied = Some(self.topology.node_error(error)),
                    Err(error) => return Err(self.topology.node_error(error)),
                    Ok(_) => {}
                }
            }
        }
        Ok(denied)
    }

    /// Sends one request over the shared connections.
    async fn send(&self, request: Request) -> Replies {
        let reply = self.nodes.send(std::slice::from_ref(&request)).await.pop();
        reply.unwrap_or_else(|| Err(self.topology.node_error(unexpected_reply("an answer"))))
    }

    /// Sends a request of one command, and returns its reply.
    async fn send_command(&self, key: &str, command: Cmd) -> Result<Value, NodeError> {
        let reply = self.send(Request::new(key, vec![command])).await?.pop().unwrap_or(Value::Nil);
        self.checked(check_reply(reply))
    }

    /// Explains an error that stopped work on one job, and says whether it concerns that job alone.
    async fn failed_for(&self, job: &JobId, operation: &str, error: NodeError) -> SourceError {
        let is_of_job = match error::extent(&error.error) {
            Extent::Key => true,
            // The key may be that of the stream of all jobs.
            Extent::RightsOfKey => self.shared.is_none() || self.probe_access(&self.nodes).await.is_ok(),
            Extent::Source => false,
        };
        let error = failed(operation, error);
        if is_of_job { error.of_job(job.clone()) } else { error }
    }

    /// Names the deployment in an error of a reply.
    fn checked<T>(&self, result: Result<T, RedisError>) -> Result<T, NodeError> {
        result.map_err(|error| self.topology.node_error(error))
    }

    // ---- a stream

    fn events_request(&self, job: &JobId, commands: impl FnOnce(&str) -> Vec<Cmd>) -> Request {
        let key = self.events_key.key(job);
        let commands = commands(&key);
        Request::new(&key, commands)
    }

    /// Asks for up to `count` entries after a position, and for the state of the stream.
    fn stream_request(&self, job: &JobId, after: &Position, count: usize) -> Request {
        self.events_request(job, |key| stream_commands(key, after, count))
    }

    /// Asks for the same of the one stream of all jobs.
    fn shared_request(&self, after: &Position, count: usize) -> Request {
        self.shared_commands(|key| stream_commands(key, after, count))
    }

    fn shared_commands(&self, commands: impl FnOnce(&str) -> Vec<Cmd>) -> Request {
        let key = &self.settings.events_key;
        Request::new(key, commands(key))
    }

    /// Parses the replies to [`Store::stream_request`].
    fn parse_stream(&self, replies: Replies, after: &Position, count: usize) -> Result<StreamSlice, NodeError> {
        let replies = <[Value; 2]>::try_from(replies?);
        let [range, info] = self.checked(replies.map_err(|_| unexpected_reply("two answers")))?;
        let mut entries = self.checked(parse_entries(range))?;
        let info = self.checked(parse_info(info))?;
        let has_position = after.id > EntryId::ZERO && entries.first().is_some_and(|entry| entry.id == after.id);
        let at_position = has_position.then(|| entries.remove(0).fingerprint());
        let is_cut = entries.len() > count;
        // Without a state the stream was deleted between the two commands.
        entries.truncate(if info.is_some() { count } else { 0 });
        Ok(StreamSlice { at_position, entries, is_cut, info })
    }

    fn parse_info(&self, reply: Option<Value>) -> Result<Option<StreamInfo>, NodeError> {
        self.checked(parse_info(reply.unwrap_or(Value::Nil)))
    }

    async fn stream_info(&self, job: &JobId) -> Result<Option<StreamInfo>, NodeError> {
        let replies = self.send(self.events_request(job, |key| vec![info_command(key)])).await?;
        self.parse_info(replies.into_iter().next())
    }

    /// Returns the keys of the stream and of the hash.
    fn keys(&self, job: &JobId) -> [Option<String>; 2] {
        [Some(self.events_key.key(job)), self.job_key.as_ref().map(|template| template.key(job))]
    }

    // ---- a status

    /// Asks how a job is. `None`: no key says it.
    fn status_request(&self, job: &JobId) -> Option<Request> {
        let key = self.job_key.as_ref()?.key(job);
        Some(Request::new(&key, vec![self.status.command(&key)]))
    }

    /// Parses the replies to [`Store::status_request`].
    fn parse_status(&self, replies: Replies) -> Result<JobState, NodeError> {
        let reply = replies?.into_iter().next().unwrap_or(Value::Nil);
        self.checked(self.status.parse(reply, &self.settings.statuses))
    }

    /// Parses the replies to [`Store::status_request`], for readers to whom a key of another type is none of this job's.
    fn parse_job_key(&self, replies: Replies) -> Result<JobKey, NodeError> {
        JobKey::of(self.parse_status(replies))
    }

    async fn job_state(&self, job: &JobId) -> Result<JobKey, NodeError> {
        match self.status_request(job) {
            Some(request) => self.parse_job_key(self.send(request).await),
            None => Ok(JobKey::default()),
        }
    }

    /// Returns the status to show: the final one, else the one in the job's key.
    fn resolve_status(&self, end: Option<JobStatus>, state: Option<&JobState>) -> Option<JobStatus> {
        end.or_else(|| self.settings.statuses.resolve(state?.text.as_deref()?))
    }
}

/// The key that says how a job is, as a reader finds it.
enum JobKey {
    State(JobState),
    /// The key holds something else.
    OtherType,
}

impl Default for JobKey {
    fn default() -> Self {
        Self::State(JobState::default())
    }
}

impl JobKey {
    fn of(found: Result<JobState, NodeError>) -> Result<Self, NodeError> {
        match found {
            Ok(state) => Ok(Self::State(state)),
            Err(error) if is_wrong_type(&error.error) => Ok(Self::OtherType),
            Err(error) => Err(error),
        }
    }

    fn state(&self) -> Option<&JobState> {
        match self {
            Self::State(state) => Some(state),
            Self::OtherType => None,
        }
    }
}

fn stream_commands(key: &str, after: &Position, count: usize) -> Vec<Cmd> {
    let mut range = cmd("XRANGE");
    // It asks for two more: the entry at the position, and one that tells whether the reply is cut.
    range.arg(key).arg(after.id.to_string()).arg("+").arg("COUNT").arg(count + 2);
    vec![range, info_command(key)]
}

fn info_command(key: &str) -> Cmd {
    let mut info = cmd("XINFO");
    info.arg("STREAM").arg(key);
    info
}

/// Redis, open.
pub struct Redis(Arc<Store>);

impl Redis {
    pub async fn open(settings: &config::Source) -> Result<Self, SourceError> {
        Ok(Self(Store::open(settings).await?))
    }

    async fn explained<T>(&self, job: &JobId, operation: &str, result: Result<T, NodeError>) -> Result<T, SourceError> {
        match result {
            Ok(done) => Ok(done),
            Err(error) => Err(self.0.failed_for(job, operation, error).await),
        }
    }
}

#[async_trait]
impl Source for Redis {
    fn kind(&self) -> &'static str {
        "redis"
    }

    fn store(&self) -> String {
        self.0.topology.deployment().to_string()
    }

    fn beginning(&self, job: &JobId) -> Cursor {
        Position::BEGINNING.seal(job)
    }

    fn event_key(&self) -> EventKey {
        // Nobody promises that the ids of other writers differ.
        let (fields, usual) = (&self.0.settings.fields, config::EntryFields::default());
        let is_own = fields.id == usual.id && self.0.settings.envelope.is_empty();
        if is_own { EventKey::Id } else { EventKey::Cursor }
    }

    fn prepare(&self, settings: &config::Source) -> Result<Change, SourceError> {
        let (deployment, login) = address::from_settings(settings)?;
        let topology = self.0.topology.clone();
        if deployment != *topology.deployment() {
            let cause = "it leads to other servers than at the start";
            return Err(SourceError::new(
                SourceCode::CannotOpen,
                "reading source.redis.url",
                cause,
                "restart for that",
            ));
        }
        Ok(Box::new(move || topology.renew_login(login)))
    }

    async fn resolve(&self, job: &JobId, text: &str) -> Result<Option<Cursor>, SourceError> {
        if let Some(position) = Position::open(job, text) {
            return Ok(Some(position.seal(job)));
        }
        let found = match &self.0.shared {
            Some(shared) => self.0.shared_find(shared, job, text).await,
            None => self.0.look_up(job, text).await,
        };
        self.explained(job, "looking up an event id", found).await
    }

    async fn newest(&self, job: &JobId) -> Result<Option<Standing>, SourceError> {
        let newest = match &self.0.shared {
            Some(shared) => self.0.shared_newest(shared, job).await,
            None => self.0.newest(job).await,
        };
        self.explained(job, "reading the newest event", newest).await
    }

    async fn page(&self, job: &JobId, after: &Cursor, limit: Limit) -> Result<PageResult, SourceError> {
        let Some(after) = Position::open(job, after.as_str()) else {
            return Ok(PageResult::Lost(Reset::Unknown));
        };
        let page = match &self.0.shared {
            Some(shared) => self.0.shared_page(shared, job, after, limit).await,
            None => self.0.page(job, after, limit).await,
        };
        self.explained(job, "reading history", page).await
    }

    async fn pages(&self, wanted: &[(JobId, Cursor)], limit: Limit) -> Result<Vec<PageResult>, SourceError> {
        let wanted: Vec<many::Wanted> =
            wanted.iter().map(|(job, after)| (job, Position::open(job, after.as_str()))).collect();
        let pages = match &self.0.shared {
            Some(shared) => self.0.shared_pages(shared, &wanted, limit).await,
            None => self.0.pages(&wanted, limit).await,
        };
        match pages {
            Ok(pages) => Ok(pages),
            Err((job, error)) => Err(self.0.failed_for(job, "reading history", error).await),
        }
    }

    async fn before_last(&self, job: &JobId, count: usize) -> Result<Option<Cursor>, SourceError> {
        let found = match &self.0.shared {
            Some(shared) => self.0.shared_before_last(shared, job, count).await,
            None => self.0.before_last(job, count).await,
        };
        self.explained(job, "looking for a job's last events", found).await
    }

    fn tail(&self) -> Box<dyn Tail> {
        match &self.0.shared {
            Some(_) => Box::new(shared::SharedTail::new(self.0.clone())),
            None => Box::new(tail::RedisTail::new(self.0.clone())),
        }
    }

    async fn append(&self, job: &JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError> {
        self.0.append(job, events).await
    }

    async fn set_status(&self, job: &JobId, status: JobStatus) -> Result<(), SourceError> {
        self.0.set_status(job, status).await
    }

    async fn job(&self, job: &JobId) -> Result<Option<JobSummary>, SourceError> {
        let summary = match &self.0.shared {
            Some(shared) => self.0.shared_job(shared, job).await,
            None => self.0.job(job).await,
        };
        self.explained(job, "reading a job", summary).await
    }

    async fn jobs(&self, status: Option<JobStatus>, limit: usize) -> Result<Vec<JobSummary>, SourceError> {
        let jobs = match &self.0.shared {
            Some(shared) => self.0.shared_jobs(shared, status, limit).await,
            None => self.0.jobs(status, limit).await,
        };
        jobs.map_err(|error| failed("listing jobs", error))
    }
}
