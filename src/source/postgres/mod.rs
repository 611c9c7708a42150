//! PostgreSQL: a job-event table as it is, read with no more than SELECT. [`position`] says how no row is lost although
//! rows become visible out of order.
//!
//! Every statement goes by the simple protocol, in one piece: a pooler in transaction mode may give each to another
//! connection, where nothing that was prepared is known. What goes into a statement is a number, a quoted name, or a
//! [`literal`].

mod check;
mod driver;
mod error;
mod history;
mod link;
mod moment;
mod position;
mod table;
mod tail;
mod tell;
mod writer;

pub use driver::PostgresDriver;

use super::tls::root_certificate;
use super::{Appended, JobSummary, Limit, NewEvent, PageResult, Source, Standing, Tail};
use crate::config;
use crate::cursor::Cursor;
use crate::error::{SourceCode, SourceError};
use crate::event::{JobId, JobStatus};
use crate::sse::Reset;
use async_trait::async_trait;
use error::failed;
use link::{Link, Links};
use moment::Durable;
use position::Position;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::{ConnectOptions, Row};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use table::{Column, Tables, quote, quote_table};
use tokio::sync::RwLock;

pub const SCHEMA: &str = include_str!("schema.sql");
/// What wakes Jobcast up.
pub const TRIGGER: &str = include_str!("trigger.sql");

/// What an event table without the columns `xid` and `seq` lacks, by the names that are configured.
pub fn migration(settings: &config::Postgres, with_trigger: bool) -> String {
    let (events, columns) = (&settings.events_table, &settings.columns);
    let (events_sql, table) = (quote_table(events), events.rsplit('.').next().unwrap_or(events));
    let sequence = quote_table(&format!("{events}_seq"));
    let mut sql = include_str!("migrate.sql").to_string();
    for (name, value) in [
        ("{events}", events_sql.clone()),
        ("{events_text}", literal(&events_sql)),
        ("{xid}", quote(&columns.xid)),
        ("{xid_text}", literal(&columns.xid)),
        ("{seq}", quote(&columns.seq)),
        ("{seq_text}", literal(&columns.seq)),
        ("{sequence}", sequence.clone()),
        ("{sequence_text}", literal(&sequence)),
        ("{job_id}", quote(&columns.job_id)),
        ("{timestamp}", quote(&columns.timestamp)),
        ("{xid_index}", quote(&format!("{table}_xid"))),
        ("{seq_index}", quote(&format!("{table}_job_seq"))),
        ("{time_index}", quote(&format!("{table}_job_time"))),
    ] {
        sql = sql.replace(name, &value);
    }
    if with_trigger && !settings.listen.is_empty() {
        // the part of the job table is the last
        let (wake, wake_jobs) = TRIGGER.split_at(TRIGGER.find("DROP TRIGGER IF EXISTS runner_jobs_wake").unwrap_or(0));
        sql.push('\n');
        sql.push_str(&wake.replace("ON job_events", &format!("ON {events_sql}")));
        if !settings.jobs_table.is_empty() {
            sql.push_str(&wake_jobs.replace("ON runner_jobs", &format!("ON {}", quote_table(&settings.jobs_table))));
        }
        sql = sql
            .replace("NOTIFY jobcast;", &format!("NOTIFY {};", quote(&settings.listen)))
            .replace("OF status", &format!("OF {}", quote(&settings.job_columns.status)));
    }
    sql
}

struct Store {
    settings: config::Postgres,
    settle: Duration,
    /// For history and for writing.
    links: Links,
    /// For the tail, which waits for nobody.
    tail_links: Links,
    /// For the one connection that hears wake-ups.
    listeners: PgPool,
    /// Learnt when first needed, and again when the database says that it has changed.
    tables: RwLock<Option<Arc<Tables>>>,
    /// For messages: host and database, never a password.
    shown: String,
    /// None for a socket of this machine.
    port: Option<u16>,
    durable: Mutex<Durable>,
}

impl Store {
    /// Fails only for what trying again cannot mend; a database that is away may come.
    async fn open(settings: &config::Source) -> Result<Arc<Self>, SourceError> {
        let options = options(&settings.postgres)?;
        let shown =
            format!("{}:{}/{}", options.get_host(), options.get_port(), options.get_database().unwrap_or_default());
        let port = options.get_socket().is_none().then(|| options.get_port());
        let links = Links::new(options.clone(), settings.postgres.pool);
        let tail_links = Links::new(options.clone(), 1);
        let listeners = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
        let source = Self {
            settings: settings.postgres.clone(),
            settle: settings.settle,
            links,
            tail_links,
            listeners,
            tables: RwLock::default(),
            shown,
            port,
            durable: Mutex::default(),
        };
        match source.tables().await {
            Err(error) if !error.is_retryable() => Err(error),
            Err(error) => {
                tracing::warn!(code = error.code.as_str(), %error, "the database does not answer yet");
                Ok(Arc::new(source))
            }
            Ok(_) => Ok(Arc::new(source)),
        }
    }

    fn failed(&self, operation: &str, error: sqlx::Error) -> SourceError {
        failed(format!("{operation} ({})", self.shown), error)
    }

    /// Whether the server that answers is not the one that was called, by the port that it says it was called at.
    fn is_behind_another(&self, own: Option<i32>) -> bool {
        self.port.is_some() && own != self.port.map(i32::from)
    }

    /// What the tables are like.
    async fn tables(&self) -> Result<Arc<Tables>, SourceError> {
        if let Some(tables) = &*self.tables.read().await {
            return Ok(tables.clone());
        }
        let looked = async {
            let mut link = self.links.get().await?;
            let events = columns_of(&mut link, &self.settings.events_table).await?;
            let jobs = match &*self.settings.jobs_table {
                "" => None,
                table => Some(columns_of(&mut link, table).await?),
            };
            // some servers that are PostgreSQL in name keep their log elsewhere
            let log = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN
                         pg_current_wal_insert_lsn() - pg_current_wal_flush_lsn() END";
            let tells_log = match link.ask(log.into()).await {
                Err(sqlx::Error::Database(_)) => false,
                answer => answer.map(|_| true)?,
            };
            Ok((events, jobs, tells_log))
        };
        let (events, jobs, tells_log) = looked.await.map_err(|error| self.failed("looking at the tables", error))?;
        let wrong = |cause: String, help: &'static str| {
            SourceError::new(SourceCode::Schema, format!("looking at the tables ({})", self.shown), cause, help)
        };
        let missing = |table: &str| {
            let cause = format!("there is no table {table}, or it may not be seen");
            wrong(cause, "set its name, or grant the right to see it")
        };
        if events.is_empty() {
            return Err(missing(&self.settings.events_table));
        }
        if jobs.as_ref().is_some_and(Vec::is_empty) {
            return Err(missing(&self.settings.jobs_table));
        }
        let tables = Tables::new(&self.settings, &events, jobs.as_deref(), tells_log).map_err(|(key, name)| {
            let help = match key {
                _ if key.contains("job_columns") => "name the columns by source.postgres.job_columns",
                _ => "name the columns by source.postgres.columns",
            };
            wrong(format!("there is no column {name}"), help)
        })?;
        tracing::info!(age = ?tables.age(), order = ?tables.order(), has_jobs = tables.jobs.is_some(), "the tables are understood");
        let tables = Arc::new(tables);
        *self.tables.write().await = Some(tables.clone());
        Ok(tables)
    }

    /// The same, for a position of this view: where another process knows of columns that we have not seen, they are
    /// new.
    async fn tables_for(&self, position: &Position) -> Result<Arc<Tables>, SourceError> {
        let tables = self.tables().await?;
        if position.is_beginning() || tables.allows(position.view) {
            return Ok(tables);
        }
        *self.tables.write().await = None;
        self.tables().await
    }

    /// The same for what was asked of the tables: where it says that they are not what they were, they are forgotten.
    async fn failed_at_tables(&self, operation: &str, error: sqlx::Error) -> SourceError {
        let error = self.failed(operation, error);
        if error.code == SourceCode::Schema {
            *self.tables.write().await = None;
        }
        error
    }
}

fn options(settings: &config::Postgres) -> Result<PgConnectOptions, SourceError> {
    let url = settings.url.get().unwrap_or_default();
    let options: PgConnectOptions = url.parse().map_err(|_| {
        // not its text: there may be a password in it
        let cause = "it is no address such as postgres://user:password@host:5432/database";
        SourceError::new(SourceCode::CannotOpen, "reading source.postgres.url", cause, "correct it")
    })?;
    // read again for each connection, by the driver: a renewed certificate needs no restart
    let options = match root_certificate("source.postgres.root_cert", &settings.root_cert)? {
        Some(_) => options.ssl_root_cert(&settings.root_cert),
        None => options,
    };
    Ok(options
        .application_name("jobcast")
        .statement_cache_capacity(0)
        // poolers refuse start-up parameters that they do not know
        .extra_float_digits(None)
        .disable_statement_logging())
}

/// A text as it may stand in a statement, whatever the server's settings (PostgreSQL, "String Constants with C-Style
/// Escapes").
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'").replace('\0', ""))
}

async fn columns_of(link: &mut Link, table: &str) -> Result<Vec<Column>, sqlx::Error> {
    let sql = format!(
        "SELECT attname::text, format_type(atttypid, NULL), NOT attnotnull, atthasdef FROM pg_attribute
         WHERE attrelid = to_regclass({}) AND attnum > 0 AND NOT attisdropped",
        literal(&quote_table(table))
    );
    let rows = link.ask(sql).await?;
    let column = |row: &PgRow| {
        Ok(Column {
            name: row.try_get(0)?,
            kind: row.try_get(1)?,
            may_be_null: row.try_get(2)?,
            has_default: row.try_get(3)?,
        })
    };
    rows.iter().map(column).collect()
}

/// Where the source stands, shared by readers and the tail.
pub struct Postgres(Arc<Store>);

impl Postgres {
    pub async fn open(settings: &config::Source) -> Result<Self, SourceError> {
        Ok(Self(Store::open(settings).await?))
    }
}

#[async_trait]
impl Source for Postgres {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn beginning(&self, job: &JobId) -> Cursor {
        Position::beginning().seal(job)
    }

    async fn resolve(&self, job: &JobId, text: &str) -> Result<Option<Cursor>, SourceError> {
        if let Some(position) = Position::open(job, text) {
            return Ok(Some(position.seal(job)));
        }
        let store = &self.0;
        store.reading("looking up an event id", async |link, tables| store.find(link, tables, job, text).await).await
    }

    async fn newest(&self, job: &JobId) -> Result<Option<Standing>, SourceError> {
        let store = &self.0;
        store.reading("reading the newest event", async |link, tables| store.newest(link, tables, job).await).await
    }

    async fn page(&self, job: &JobId, after: &Cursor, limit: Limit) -> Result<PageResult, SourceError> {
        let Some(position) = Position::open(job, after.as_str()) else {
            return Ok(PageResult::Lost(Reset::Unknown));
        };
        let tables = self.0.tables_for(&position).await?;
        let link = self.0.links.get().await;
        let (store, job) = (self.0.clone(), job.clone());
        // Read to its end, although all who asked for it may leave meanwhile: the server would not stop either, and who
        // comes back at once would have it do the same beside.
        let read = tokio::spawn(async move {
            let read = async { store.page(&mut *link?, &tables, &job, position, limit).await };
            match read.await {
                Ok(answer) => Ok(answer),
                Err(error) => Err(store.failed_at_tables("reading history", error).await),
            }
        });
        read.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    fn tail(&self) -> Box<dyn Tail> {
        Box::new(tail::PostgresTail::new(self.0.clone()))
    }

    async fn append(&self, job: &JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError> {
        let store = &self.0;
        let append = async || {
            let events = events.clone();
            store.reading("writing events", async |link, tables| store.append(link, tables, job, events).await).await
        };
        match append().await {
            // perhaps another process has just appended the same: then it is there the second time
            Err(error) if error.code == SourceCode::Refused => append().await,
            done => done,
        }
    }

    async fn set_status(&self, job: &JobId, status: JobStatus) -> Result<(), SourceError> {
        let store = &self.0;
        store.reading("writing a status", async |link, tables| store.set_status(link, tables, job, status).await).await
    }

    async fn jobs(&self, status: Option<JobStatus>, limit: usize) -> Result<Vec<JobSummary>, SourceError> {
        let store = &self.0;
        store.reading("listing jobs", async |link, tables| store.jobs(link, tables, status, limit).await).await
    }
}

impl Store {
    /// Does something on a connection of the pool, with what is known of the tables.
    async fn reading<T>(
        &self,
        what: &str,
        work: impl AsyncFnOnce(&mut Link, &Tables) -> Result<T, sqlx::Error>,
    ) -> Result<T, SourceError> {
        let tables = self.tables().await?;
        let done = async {
            let mut link = self.links.get().await?;
            work(&mut link, &tables).await
        };
        match done.await {
            Ok(done) => Ok(done),
            Err(error) => Err(self.failed_at_tables(what, error).await),
        }
    }
}
