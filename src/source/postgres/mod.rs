//! PostgreSQL: reads a job-event table as it is, with no more than SELECT. [`position`] says how no row is lost although
//! rows become visible out of order, and [`sql`] has every statement.

mod address;
mod check;
mod columns;
mod draft;
mod driver;
mod ends;
mod error;
mod expansion;
mod first_versions;
mod history;
mod level;
mod listener;
mod lookup;
mod many;
mod open_list;
mod page;
mod pool;
mod position;
mod problem;
mod schema;
mod session;
mod snapshot;
mod spelling;
mod sql;
mod standby;
mod store;
mod tables;
mod tail;
mod turns;
mod writer;

pub use driver::PostgresDriver;

use super::{Appended, Change, EventKey, JobSummary, Limit, NewEvent, PageResult, Source, Standing, Tail};
use crate::config;
use crate::cursor::Cursor;
use crate::error::{SourceCode, SourceError};
use crate::event::{JobId, JobStatus};
use crate::sse::Reset;
use async_trait::async_trait;
use error::QueryError;
use position::Position;
use session::Session;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::Store;
use tables::Tables;
use turns::Kind;

/// The source. Readers and the tail share its [`Store`].
pub struct Postgres {
    store: Arc<Store>,
}

impl Postgres {
    pub async fn open(settings: &config::Source) -> Result<Self, SourceError> {
        Ok(Self { store: Store::open(settings).await? })
    }
}

#[async_trait]
impl Source for Postgres {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn store(&self) -> String {
        self.store.address().to_string()
    }

    fn event_key(&self) -> EventKey {
        self.store.event_key()
    }

    fn beginning(&self, job: &JobId) -> Cursor {
        Position::beginning().to_cursor(job)
    }

    fn prepare(&self, settings: &config::Source) -> Result<Change, SourceError> {
        self.store.prepare_login(&settings.postgres)
    }

    async fn resolve(&self, job: &JobId, text: &str) -> Result<Option<Cursor>, SourceError> {
        if let Some(position) = Position::from_cursor(job, text) {
            return Ok(Some(position.to_cursor(job)));
        }
        self.store
            .with_job_session("looking up an event id", job, async |session| session.find_event(job, text).await)
            .await
    }

    async fn newest(&self, job: &JobId) -> Result<Option<Standing>, SourceError> {
        self.store
            .with_job_session("reading the newest event", job, async |session| session.newest_event(job).await)
            .await
    }

    async fn page(&self, job: &JobId, after: &Cursor, limit: Limit) -> Result<PageResult, SourceError> {
        let Some(position) = Position::from_cursor(job, after.as_str()) else {
            return Ok(PageResult::Lost(Reset::Unknown));
        };
        let tables = self.store.tables_for(&position).await?;
        match read_page(&self.store, tables, job, position, limit).await {
            Ok(page) => Ok(page),
            Err(error) => Err(self.store.job_error("reading history", error, job).await),
        }
    }

    async fn pages(&self, wanted: &[(JobId, Cursor)], limit: Limit) -> Result<Vec<PageResult>, SourceError> {
        match many::read_pages(&self.store, wanted, limit).await? {
            Some(pages) => Ok(pages),
            None => super::pages_one_by_one(self, wanted, limit).await,
        }
    }

    async fn before_last(&self, job: &JobId, count: usize) -> Result<Option<Cursor>, SourceError> {
        self.store
            .with_job_session("looking up the last events", job, async |session| session.before_last(job, count).await)
            .await
    }

    fn tail(&self) -> Box<dyn Tail> {
        Box::new(tail::PostgresTail::new(self.store.clone()))
    }

    async fn append(&self, job: &JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError> {
        let append = async || {
            let events = events.clone();
            self.store.with_session("writing events", async |session| session.append(job, events).await).await
        };
        match append().await {
            // Another process may have appended the same event just now. Then it is found the second time.
            Err(error) if error.code == SourceCode::Refused => append().await,
            result => result,
        }
    }

    async fn set_status(&self, job: &JobId, status: JobStatus) -> Result<(), SourceError> {
        self.store.with_session("writing a status", async |session| session.set_status(job, status).await).await
    }

    async fn job(&self, job: &JobId) -> Result<Option<JobSummary>, SourceError> {
        self.store.with_job_session("reading a job", job, async |session| session.job_summary(job).await).await
    }

    async fn jobs(&self, status: Option<JobStatus>, limit: usize) -> Result<Vec<JobSummary>, SourceError> {
        self.store.with_session("listing jobs", async |session| session.list_jobs(status, limit).await).await
    }
}

/// Pause between two looks at a standby that has not caught up.
const STANDBY_POLL: Duration = Duration::from_millis(100);

/// Reads a page, and waits for `source.settle` until a standby that lags has come to the position. The wait holds no
/// connection.
async fn read_page(
    store: &Store,
    tables: Arc<Tables>,
    job: &JobId,
    position: Position,
    limit: Limit,
) -> Result<PageResult, QueryError> {
    let began = Instant::now();
    loop {
        let known = store.durable_mark().xid();
        let connection = store.pool.get_for(Kind::page(job, &position, known)).await?;
        let mut session = Session { store, connection, tables: tables.clone() };
        let can_wait = began.elapsed() < store.settle;
        if let Some(page) = session.page(job, &position, limit, can_wait).await? {
            return Ok(page);
        }
        drop(session);
        tokio::time::sleep(STANDBY_POLL).await;
    }
}
