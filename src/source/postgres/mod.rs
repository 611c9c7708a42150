//! PostgreSQL: a job-event table as it is, read with no more than SELECT. [`position`] says how no row is lost although
//! rows become visible out of order.
//!
//! Every statement goes by the simple protocol, in one piece: a pooler in transaction mode may give each to another
//! connection, where nothing that was prepared is known. What goes into a statement is a number, a quoted name, or a
//! [`literal`].

mod check;
mod error;
mod position;
mod table;
mod tail;

pub use check::check;

use super::{Answer, Appended, JobSummary, Limit, NewEvent, Page, Source, Standing, Tail};
use crate::config;
use crate::cursor::Cursor;
use crate::error::{SourceCode, SourceError};
use crate::event::{Event, JobId, JobStatus, Payload};
use crate::sse::Reset;
use async_trait::async_trait;
use error::failed;
use jiff::Timestamp;
use position::{Ended, Key, Position};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use table::{Age, Column, Mark, Order, Tables, quote_table};
use tokio::sync::RwLock;

pub const SCHEMA: &str = include_str!("schema.sql");
/// What wakes Jobcast up.
pub const TRIGGER: &str = include_str!("trigger.sql");

const VERSION: char = 'p';
/// One statement of a page or of the tail.
const PATIENCE: Duration = Duration::from_secs(30);
/// When a position counts so many transactions, it is time to list the open ones instead.
const MANY: usize = 6;
/// So many of them fit into a cursor.
const FEW: usize = 14;
/// How much of a cursor that list may take.
const MOST_OPEN_BYTES: usize = 30;
/// Of so many transactions the database is asked, one by one, which of them are open.
const WIDEST: i64 = 100_000;

struct Store {
    settings: config::Postgres,
    settle: Duration,
    pool: PgPool,
    /// For the one connection that hears wake-ups.
    listeners: PgPool,
    /// Learnt when first needed, and again when the database says that it has changed.
    tables: RwLock<Option<Arc<Tables>>>,
    /// For messages: host and database, never a password.
    shown: String,
}

impl Store {
    /// Fails only for what trying again cannot mend; a database that is away may come.
    async fn open(settings: &config::Source) -> Result<Arc<Self>, SourceError> {
        let options = options(&settings.postgres)?;
        let shown =
            format!("{}:{}/{}", options.get_host(), options.get_port(), options.get_database().unwrap_or_default());
        let pool = PgPoolOptions::new()
            .max_connections(settings.postgres.pool)
            .acquire_timeout(Duration::from_secs(5))
            .idle_timeout(Duration::from_secs(300))
            .connect_lazy_with(options.clone());
        let listeners = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
        let source = Self {
            settings: settings.postgres.clone(),
            settle: settings.settle,
            pool,
            listeners,
            tables: RwLock::default(),
            shown,
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

    fn failed(&self, tried: &str, error: sqlx::Error) -> SourceError {
        failed(format!("{tried} ({})", self.shown), error)
    }

    /// What the tables are like.
    async fn tables(&self) -> Result<Arc<Tables>, SourceError> {
        if let Some(tables) = &*self.tables.read().await {
            return Ok(tables.clone());
        }
        let events = columns(&self.pool, &self.settings.events_table);
        let events = events.await.map_err(|error| self.failed("looking at the tables", error))?;
        let jobs = match self.settings.jobs_table.is_empty() {
            true => None,
            false => {
                let columns = columns(&self.pool, &self.settings.jobs_table);
                Some(columns.await.map_err(|error| self.failed("looking at the tables", error))?)
            }
        };
        let missing = |table: &str, key: &str| SourceError {
            code: SourceCode::Schema,
            tried: format!("looking at the tables ({})", self.shown),
            cause: format!("there is no table {table}, or it may not be seen"),
            mend: if key.is_empty() {
                "see `jobcast schema postgres`"
            } else {
                "set its name, or grant the right to see it"
            },
        };
        if events.is_empty() {
            return Err(missing(&self.settings.events_table, "source.postgres.events_table"));
        }
        if jobs.as_ref().is_some_and(Vec::is_empty) {
            return Err(missing(&self.settings.jobs_table, "source.postgres.jobs_table"));
        }
        let tables = Tables::new(&self.settings, &events, jobs.as_deref()).map_err(|(key, name)| SourceError {
            code: SourceCode::Schema,
            tried: format!("looking at the tables ({})", self.shown),
            cause: format!("there is no column {name}"),
            mend: match key {
                _ if key.contains("job_columns") => "name the columns by source.postgres.job_columns",
                _ => "name the columns by source.postgres.columns",
            },
        })?;
        tracing::info!(age = ?tables.age, order = ?tables.order, has_jobs = tables.jobs.is_some(), "the tables are understood");
        let tables = Arc::new(tables);
        *self.tables.write().await = Some(tables.clone());
        Ok(tables)
    }

    /// After an error that says that the tables are not what they were.
    async fn forget_tables(&self, error: SourceError) -> SourceError {
        if error.code == SourceCode::Schema {
            *self.tables.write().await = None;
        }
        error
    }
}

fn options(settings: &config::Postgres) -> Result<PgConnectOptions, SourceError> {
    let url = settings.url.get().unwrap_or_default();
    let options: PgConnectOptions = url.parse().map_err(|_| SourceError {
        code: SourceCode::Other,
        tried: "reading source.postgres.url".into(),
        // not its text: there may be a password in it
        cause: "it is no address such as postgres://user:password@host:5432/database".into(),
        mend: "correct it",
    })?;
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

async fn columns(pool: &PgPool, table: &str) -> Result<Vec<Column>, sqlx::Error> {
    let sql = format!(
        "SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute
         WHERE attrelid = to_regclass({}) AND attnum > 0 AND NOT attisdropped",
        literal(&quote_table(table))
    );
    let rows = pool.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    rows.iter().map(|row| Ok(Column { name: row.try_get(0)?, kind: row.try_get(1)? })).collect()
}

/// A statement's view of what has ended: `s` in all statements here.
const SNAPSHOT: &str = "WITH s AS MATERIALIZED (
    SELECT now::text AS snapshot, pg_snapshot_xmin(now) AS mark8, pg_snapshot_xmin(now)::text::bigint AS mark,
           pg_snapshot_xmax(now)::text::bigint AS xmax, pg_is_in_recovery() AS is_standby
    FROM (SELECT pg_current_snapshot() AS now) one)";
/// What [`Moment::read`] reads.
const MOMENT: &str = "s.snapshot, s.mark, s.xmax, s.is_standby";

/// What one row of an answer says of the moment that it is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Moment {
    snapshot: String,
    /// Every transaction below it has ended.
    mark: u64,
    /// No transaction at or above it has begun.
    xmax: u64,
    is_standby: bool,
}

/// One event as the database has it.
struct Stored {
    xid: u64,
    key: Key,
    event: Event,
}

/// The columns of [`Tables::row`], from `first` on.
fn read_row(row: &PgRow, first: usize, order: Order) -> Result<Stored, sqlx::Error> {
    let at: i64 = row.try_get(first + 2)?;
    let id: String = row.try_get(first + 3)?;
    let key = match order {
        Order::Number => Key::Number(row.try_get(first + 1)?),
        Order::Time => Key::Time { at, id: id.clone() },
    };
    let job: String = row.try_get(first + 4)?;
    let event = Event {
        id,
        job_id: job.parse().map_err(|error| {
            sqlx::Error::Decode(Box::<dyn std::error::Error + Send + Sync>::from(format!("{error}")))
        })?,
        step_id: row.try_get(first + 5)?,
        kind: row.try_get(first + 6)?,
        timestamp: Timestamp::from_microsecond(at).unwrap_or(Timestamp::UNIX_EPOCH),
        actor: row.try_get(first + 7)?,
        payload: Payload::from_text(row.try_get::<Option<String>, _>(first + 8)?.unwrap_or_else(|| "null".into())),
    };
    Ok(Stored { xid: row.try_get::<i64, _>(first)? as u64, key, event })
}

impl Position {
    fn seal(&self, job: &JobId) -> Cursor {
        let (bytes, left_out) = self.to_bytes(Cursor::MAX_INSIDE);
        if left_out {
            crate::telemetry::CURSORS_SHORTENED.counts(&[]).increment(1);
        }
        Cursor::seal(VERSION, job, &bytes)
    }

    fn open(job: &JobId, text: &str) -> Option<Self> {
        Self::from_bytes(&Cursor::open(VERSION, job, text)?)
    }
}

impl Moment {
    /// The columns of [`MOMENT`].
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            snapshot: row.try_get(0)?,
            mark: row.try_get::<i64, _>(1)? as u64,
            xmax: row.try_get::<i64, _>(2)? as u64,
            is_standby: row.try_get(3)?,
        })
    }

    /// Whether a position can be of this database and this time at all.
    fn may_know(&self, position: &Position) -> bool {
        position.ceiling() <= self.xmax
    }
}

/// Which snapshot a statement reads by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// Its own.
    Now,
    /// That of the transaction that it is part of.
    Transaction,
}

/// What a page statement told.
struct Told {
    moment: Moment,
    /// Where the range of this answer ends.
    end: Ended,
    listed: Option<Ended>,
    status: Option<String>,
    has_job: bool,
    rows: Vec<Stored>,
}

/// The statement for what a position has not been given of one job, in the order of delivery: its range up to `end` by
/// key, then the others by key. At most `most` rows and one, in each of the two.
fn page_statement(tables: &Tables, job: &JobId, position: &Position, end: &Mark, most: usize) -> String {
    let of_job = tables.of_job(job.as_str());
    let (key, row, events, limit) = (tables.key(), tables.row(), &tables.events, most + 1);
    let beyond_key = position.range().map_or_else(|| "true".into(), |(_, key)| tables.after(key));
    let since = tables.since(&Mark::At(position.settled().clone()));
    // of a transaction that is counted the first rows are behind: those up to the key of the last one
    let counted: String = position
        .counted()
        .iter()
        .map(|(xid, count)| {
            let of_xid = tables.of(*xid);
            format!(
                " AND (NOT ({of_xid}) OR ((({key}) > (SELECT {key} FROM {events} e WHERE {of_job} AND {of_xid}
                  ORDER BY {key} LIMIT 1 OFFSET {})) IS NOT FALSE))",
                count - 1
            )
        })
        .collect();
    let (status, has_job) = job_columns(tables, job);
    format!(
        "{SNAPSHOT}, settled AS MATERIALIZED (
           SELECT 0 AS part, {row} FROM {events} e
           WHERE {of_job} AND {since} AND {before} AND {beyond_key}{counted} ORDER BY {key} LIMIT {limit}
         ), newer AS (
           SELECT 1 AS part, {row} FROM {events} e
           WHERE (SELECT count(*) FROM settled) < {limit} AND {of_job} AND {since} AND {after}{counted}
           ORDER BY {key} LIMIT {limit}
         )
         SELECT {MOMENT}, {status}, {has_job}, r.* FROM s
         LEFT JOIN (SELECT * FROM settled UNION ALL SELECT * FROM newer) r ON true ORDER BY r.part, r.place",
        before = tables.before(end),
        after = tables.since(end),
    )
}

/// The job's status as a text, and whether the job table has it.
fn job_columns(tables: &Tables, job: &JobId) -> (String, String) {
    match &tables.jobs {
        Some(jobs) if table::is_value(&jobs.id_type, job.as_str()) => {
            let one = format!("{} = {}::{}", jobs.id, literal(job.as_str()), jobs.id_type);
            (
                format!("(SELECT {}::text FROM {} WHERE {one})", jobs.status, jobs.table),
                format!("EXISTS (SELECT FROM {} WHERE {one})", jobs.table),
            )
        }
        _ => ("NULL::text".into(), "false".into()),
    }
}

impl Store {
    /// One statement, which must be done in time.
    async fn ask(&self, connection: &mut PgConnection, sql: String) -> Result<Vec<PgRow>, sqlx::Error> {
        let asked = connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql)));
        tokio::time::timeout(PATIENCE, asked).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    async fn tell(
        &self,
        connection: &mut PgConnection,
        tables: &Tables,
        job: &JobId,
        position: &Position,
        most: usize,
        when: When,
    ) -> Result<Told, sqlx::Error> {
        // what the system says of transactions is of the moment in which it is asked, which an older snapshot must not
        // be read by
        let may_list = when == When::Now || tables.age == Age::Column;
        let end = match position.range() {
            Some((end, _)) => Mark::At(end.clone()),
            None if position.settled().open.is_empty() => Mark::Now,
            // which end it is depends on the mark: that of a moment before
            None => {
                let answer = self.ask(connection, format!("{SNAPSHOT} SELECT {MOMENT} FROM s")).await?;
                let first = answer.first().ok_or(sqlx::Error::RowNotFound)?;
                Mark::At(position.next_end(Moment::read(first)?.mark))
            }
        };
        let told = self.tell_up_to(connection, tables, job, position, end, most).await?;
        // beyond the end each transaction is counted: of many of them the open ones are listed instead
        let counted = position.counted().keys().copied();
        let xids: BTreeSet<u64> = told.rows.iter().map(|row| row.xid).chain(counted).collect();
        let beyond = xids.iter().filter(|xid| !told.end.has(**xid)).count();
        if beyond > MANY
            && may_list
            && position.range().is_none()
            && let Some(listed) = self.list_open(connection, tables, position).await?
        {
            let end = Mark::At(told.end);
            let told = self.tell_up_to(connection, tables, job, position, end, most).await?;
            return Ok(Told { listed: Some(listed).filter(|_| told.rows.len() <= most), ..told });
        }
        Ok(told)
    }

    async fn tell_up_to(
        &self,
        connection: &mut PgConnection,
        tables: &Tables,
        job: &JobId,
        position: &Position,
        end: Mark,
        most: usize,
    ) -> Result<Told, sqlx::Error> {
        let answer = self.ask(connection, page_statement(tables, job, position, &end, most)).await?;
        let first = answer.first().ok_or(sqlx::Error::RowNotFound)?;
        let moment = Moment::read(first)?;
        let mut told = Told {
            end: match end {
                Mark::At(end) => end,
                Mark::Now => position.next_end(moment.mark),
            },
            listed: None,
            moment,
            status: first.try_get(4)?,
            has_job: first.try_get(5)?,
            rows: Vec::new(),
        };
        for row in &answer {
            if row.try_get::<Option<i32>, _>(6)?.is_some() {
                told.rows.push(read_row(row, 8, tables.order)?);
            }
        }
        Ok(told)
    }

    /// Everything that has ended by now, where an open transaction keeps the mark from telling; `None` where the
    /// database cannot say. Not within a transaction: its snapshot may be older than the answer.
    async fn list_open(
        &self,
        connection: &mut PgConnection,
        tables: &Tables,
        position: &Position,
    ) -> Result<Option<Ended>, sqlx::Error> {
        let open = match tables.age {
            // the column has top-level ids, which is what a snapshot lists
            Age::Column => "SELECT x::text::bigint AS x FROM pg_snapshot_xip(pg_current_snapshot()) x".to_string(),
            // the system column has those of savepoints, too
            Age::System => format!(
                "SELECT x FROM s, generate_series(s.mark, s.xmax - 1) x
                 WHERE s.xmax - s.mark < {WIDEST} AND pg_xact_status(x::text::xid8) = 'in progress'"
            ),
        };
        let sql = format!("{SNAPSHOT} SELECT {MOMENT}, o.x FROM s LEFT JOIN ({open}) o ON true");
        let answer = self.ask(connection, sql).await?;
        let moment = Moment::read(answer.first().ok_or(sqlx::Error::RowNotFound)?)?;
        let mut open = BTreeSet::new();
        for row in &answer {
            open.extend(row.try_get::<Option<i64>, _>(4)?.map(|xid| xid as u64));
        }
        let is_known = !moment.is_standby && (tables.age == Age::Column || moment.xmax - moment.mark < WIDEST as u64);
        let mut ended = Ended { mark: moment.xmax, open };
        // as far as fits into a cursor, also beside another that a range began with
        while ended.length() > MOST_OPEN_BYTES
            && let Some(last) = ended.open.pop_last()
        {
            ended.mark = last;
        }
        Ok(Some(ended).filter(|ended| is_known && ended.mark >= position.settled().mark))
    }

    /// How the job ended, as far as its status or its events say.
    fn ending(&self, status: Option<&str>, events: &[(Event, Cursor)]) -> Option<JobStatus> {
        let by_event = || events.iter().rev().find_map(|(event, _)| self.settings.final_types.find(&event.kind));
        status.and_then(|status| self.settings.statuses.find(status)).or_else(by_event)
    }
}

impl Told {
    /// Delivers at most `most` rows: moves the position past each, and says whether those were all.
    fn deliver(self, job: &JobId, position: &mut Position, limit: Limit) -> (Vec<(Event, Cursor)>, bool) {
        let (mut events, mut bytes, mut is_last) = (Vec::new(), 0, true);
        let Self { rows, end, listed, .. } = self;
        // a count for each of few transactions is shorter than a range with its end
        let counted = position.counted().keys().copied();
        let xids: BTreeSet<u64> = rows.iter().map(|row| row.xid).filter(|xid| end.has(*xid)).chain(counted).collect();
        let counts = position.range().is_none() && xids.len() <= FEW;
        let answer = position::Answer { rows, end: end.clone(), listed: listed.clone() };
        for (before, Stored { xid, key, event }) in answer.steps(position, |row| row.xid) {
            if events.len() == limit.events || bytes > limit.bytes {
                is_last = false;
                break;
            }
            if let Some(ended) = before {
                position.finish(&ended);
            }
            bytes += event.payload.as_json().len();
            match counts {
                true => position.count(xid),
                false => position.take(xid, key, &end),
            }
            events.push((event, position.seal(job)));
        }
        if is_last {
            position.finish(&end);
            if let Some(listed) = listed.filter(|listed| listed.mark >= position.settled().mark) {
                position.finish(&listed);
            }
        }
        (events, is_last)
    }
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
        store
            .reading("looking up an event id", async |connection, tables| {
                store.find(connection, tables, job, text).await
            })
            .await
    }

    async fn newest(&self, job: &JobId) -> Result<Option<Standing>, SourceError> {
        let store = &self.0;
        store
            .reading("reading the newest event", async |connection, tables| store.newest(connection, tables, job).await)
            .await
    }

    async fn page(&self, job: &JobId, after: &Cursor, limit: Limit) -> Result<Answer, SourceError> {
        let Some(position) = Position::open(job, after.as_str()) else {
            return Ok(Answer::Lost(Reset::Unknown));
        };
        let store = &self.0;
        store
            .reading("reading history", async |connection, tables| {
                store.page(connection, tables, job, position.clone(), limit).await
            })
            .await
    }

    fn tail(&self) -> Box<dyn Tail> {
        Box::new(tail::PostgresTail::new(self.0.clone()))
    }

    async fn append(&self, job: &JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError> {
        let store = &self.0;
        store
            .reading("writing events", async |connection, tables| store.append(connection, tables, job, events).await)
            .await
    }

    async fn set_status(&self, job: &JobId, status: JobStatus) -> Result<(), SourceError> {
        let store = &self.0;
        store
            .reading("writing a status", async |connection, tables| {
                store.set_status(connection, tables, job, status).await
            })
            .await
    }

    async fn jobs(&self, status: Option<JobStatus>, limit: usize) -> Result<Vec<JobSummary>, SourceError> {
        let store = &self.0;
        store
            .reading("listing jobs", async |connection, tables| store.jobs(connection, tables, status, limit).await)
            .await
    }
}

impl Store {
    /// Does something on a connection of the pool, with what is known of the tables.
    async fn reading<T>(
        &self,
        what: &str,
        work: impl AsyncFnOnce(&mut PgConnection, &Tables) -> Result<T, sqlx::Error>,
    ) -> Result<T, SourceError> {
        let tables = self.tables().await?;
        let done = async {
            let mut connection = self.pool.acquire().await?;
            work(&mut connection, &tables).await
        };
        match done.await {
            Ok(done) => Ok(done),
            Err(error) => Err(self.forget_tables(self.failed(what, error)).await),
        }
    }

    async fn page(
        &self,
        connection: &mut PgConnection,
        tables: &Tables,
        job: &JobId,
        mut position: Position,
        limit: Limit,
    ) -> Result<Answer, sqlx::Error> {
        if !tables.is_job_id(job.as_str()) {
            return Ok(Answer::NoSuchJob);
        }
        let began = Instant::now();
        let told = loop {
            let told = self.tell(connection, tables, job, &position, limit.events, When::Now).await?;
            if told.moment.may_know(&position) {
                break told;
            }
            // a standby that lags may come to it; another database, or one that was restored, does not
            if began.elapsed() >= self.settle {
                return Ok(Answer::Lost(Reset::Rewound));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let is_fresh = position == Position::beginning();
        let (has_job, nothing_is_open) = (told.has_job, told.moment.mark >= told.moment.xmax);
        let status = told.status.clone();
        let before = position.clone();
        let (events, is_last) = told.deliver(job, &mut position, limit);
        if is_fresh && events.is_empty() && !has_job {
            return Ok(Answer::NoSuchJob);
        }
        let ending = self.ending(status.as_deref(), &events);
        // a reader that was given nothing stays where it stood, so that its token is known to the ring
        let end = if events.is_empty() { before } else { position };
        Ok(Answer::Page(Page {
            end: end.seal(job),
            is_complete: is_last && ending.is_some() && nothing_is_open,
            status: ending.or_else(|| status.and_then(|status| status.parse().ok())),
            events,
            is_last,
        }))
    }

    /// The position after the event with this id, as one who shows events by key would mean it.
    async fn find(
        &self,
        connection: &mut PgConnection,
        tables: &Tables,
        job: &JobId,
        id: &str,
    ) -> Result<Option<Cursor>, sqlx::Error> {
        if !tables.is_job_id(job.as_str()) || !tables.is_event_id(id) {
            return Ok(None);
        }
        let (of_job, row, events) = (tables.of_job(job.as_str()), tables.row(), &tables.events);
        let of_id = format!("{} = {}::{}", tables.id(), literal(id), tables.id_type);
        let sql = format!(
            "{SNAPSHOT} SELECT {MOMENT}, r.* FROM s, (SELECT {row} FROM {events} e WHERE {of_job} AND {of_id} LIMIT 1) r"
        );
        let answer = self.ask(connection, sql).await?;
        let Some(found) = answer.first() else { return Ok(None) };
        let (moment, stored) = (Moment::read(found)?, read_row(found, 5, tables.order)?);
        // what is not settled yet, up to it, is counted
        let sql = format!(
            "{SNAPSHOT} SELECT c.xid, count(*)::bigint FROM (SELECT {row} FROM {events} e
             WHERE {of_job} AND {} AND NOT ({})) c GROUP BY 1",
            tables.since(&Mark::At(Ended::below(moment.mark))),
            tables.after(&stored.key),
        );
        let mut counted = BTreeMap::new();
        for row in self.ask(connection, sql).await? {
            counted.insert(row.try_get::<i64, _>(0)? as u64, row.try_get::<i64, _>(1)? as u64);
        }
        Ok(Some(Position::after_key(moment.mark, stored.key, counted).seal(job)))
    }

    async fn newest(
        &self,
        connection: &mut PgConnection,
        tables: &Tables,
        job: &JobId,
    ) -> Result<Option<Standing>, sqlx::Error> {
        if !tables.is_job_id(job.as_str()) {
            return Ok(None);
        }
        let (of_job, row, events) = (tables.of_job(job.as_str()), tables.row(), &tables.events);
        let (status, has_job) = job_columns(tables, job);
        let sql = format!(
            "{SNAPSHOT} SELECT {MOMENT}, {status}, {has_job} OR EXISTS (SELECT FROM {events} e WHERE {of_job}), c.xid, c.count
             FROM s LEFT JOIN (SELECT xid, count(*)::bigint AS count FROM (SELECT {row} FROM {events} e
               WHERE {of_job} AND {}) o GROUP BY 1) c ON true",
            tables.since(&Mark::Now)
        );
        let answer = self.ask(connection, sql).await?;
        let first = answer.first().ok_or(sqlx::Error::RowNotFound)?;
        if !first.try_get::<bool, _>(5)? {
            return Ok(None);
        }
        let mut counted = BTreeMap::new();
        for row in &answer {
            if let Some(xid) = row.try_get::<Option<i64>, _>(6)? {
                counted.insert(xid as u64, row.try_get::<i64, _>(7)? as u64);
            }
        }
        let status: Option<String> = first.try_get(4)?;
        let cursor = Position::level(Moment::read(first)?.mark, counted).seal(job);
        let status = self.ending(status.as_deref(), &[]).or_else(|| status.and_then(|status| status.parse().ok()));
        Ok(Some(Standing { cursor, status }))
    }

    /// All or none. Where another process appends the same id at the same time, the table's own constraint decides.
    async fn append(
        &self,
        connection: &mut PgConnection,
        tables: &Tables,
        job: &JobId,
        events: Vec<NewEvent>,
    ) -> Result<Vec<Appended>, sqlx::Error> {
        let mut transaction = connection.begin().await?;
        let mut known = self.stored(&mut transaction, tables, job, &events).await?;
        let mut fresh: BTreeSet<String> = BTreeSet::new();
        let new: Vec<&NewEvent> =
            events.iter().filter(|event| !known.contains_key(&event.id) && fresh.insert(event.id.clone())).collect();
        if !new.is_empty() {
            self.ask(&mut transaction, tables.insert(job.as_str(), new.into_iter())).await?;
        }
        if let Some(jobs) = &tables.jobs {
            let sql = format!(
                "INSERT INTO {} ({}, {}) SELECT {id}, 'RUNNING' WHERE NOT EXISTS (SELECT FROM {} WHERE {} = {id})",
                jobs.table,
                jobs.id,
                jobs.status,
                jobs.table,
                jobs.id,
                id = format_args!("{}::{}", literal(job.as_str()), jobs.id_type)
            );
            self.ask(&mut transaction, sql).await?;
        }
        transaction.commit().await?;
        known.extend(self.stored(connection, tables, job, &events).await?);
        let mut stored = Vec::with_capacity(events.len());
        for event in events {
            let cursor = self.find(connection, tables, job, &event.id).await?;
            let found = known.get(&event.id).cloned().zip(cursor).ok_or(sqlx::Error::RowNotFound)?;
            // the same id once more in this batch is a repeat
            stored.push(Appended { event: found.0, cursor: found.1, is_new: fresh.remove(&event.id) });
        }
        Ok(stored)
    }

    /// Those that the job has already, by their ids.
    async fn stored(
        &self,
        connection: &mut PgConnection,
        tables: &Tables,
        job: &JobId,
        events: &[NewEvent],
    ) -> Result<BTreeMap<String, Event>, sqlx::Error> {
        let ids: Vec<String> =
            events.iter().filter(|event| tables.is_event_id(&event.id)).map(|event| literal(&event.id)).collect();
        let sql = format!(
            "{SNAPSHOT} SELECT {} FROM {} e WHERE {} AND {} = ANY (ARRAY[{}]::{}[])",
            tables.row(),
            tables.events,
            tables.of_job(job.as_str()),
            tables.id(),
            ids.join(","),
            tables.id_type
        );
        let rows = self.ask(connection, sql).await?;
        rows.iter().map(|row| Ok((row.try_get(4)?, read_row(row, 1, tables.order)?.event))).collect()
    }

    async fn set_status(
        &self,
        connection: &mut PgConnection,
        tables: &Tables,
        job: &JobId,
        status: JobStatus,
    ) -> Result<(), sqlx::Error> {
        let Some(jobs) = &tables.jobs else {
            return Err(sqlx::Error::ColumnNotFound("source.postgres.jobs_table".into()));
        };
        let statuses = &self.settings.statuses;
        let own = match status {
            JobStatus::Completed => statuses.completed.first(),
            JobStatus::Failed => statuses.failed.first(),
            JobStatus::Cancelled => statuses.cancelled.first(),
            _ => None,
        };
        let sql = format!(
            "INSERT INTO {table} ({id}, {status}) VALUES ({job}, {own})
             ON CONFLICT ({id}) DO UPDATE SET {status} = excluded.{status}",
            table = jobs.table,
            id = jobs.id,
            status = jobs.status,
            job = literal(job.as_str()),
            own = literal(own.map_or(status.as_str(), String::as_str)),
        );
        self.ask(connection, sql).await.map(drop)
    }

    async fn jobs(
        &self,
        connection: &mut PgConnection,
        tables: &Tables,
        status: Option<JobStatus>,
        limit: usize,
    ) -> Result<Vec<JobSummary>, sqlx::Error> {
        let Some(jobs) = &tables.jobs else { return Ok(Vec::new()) };
        let wanted = status
            .map_or_else(|| "true".into(), |status| format!("j.{}::text = {}", jobs.status, literal(status.as_str())));
        let sql = format!(
            "SELECT j.{id}::text, j.{status}::text, to_char(l.at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')
             FROM {table} j LEFT JOIN LATERAL (
               SELECT max({at}) AS at FROM {events} e WHERE {job_id} = j.{id}
             ) l ON true WHERE {wanted} ORDER BY l.at DESC NULLS LAST, 1 LIMIT {limit}",
            id = jobs.id,
            status = jobs.status,
            table = jobs.table,
            at = tables.timestamp(),
            events = tables.events,
            job_id = tables.job_id(),
        );
        let answer = self.ask(connection, sql).await?;
        let summary = |row: &PgRow| {
            let status: Option<String> = row.try_get(1).ok()?;
            Some(JobSummary {
                job_id: row.try_get::<String, _>(0).ok()?.parse().ok()?,
                status: self.ending(status.as_deref(), &[]).or_else(|| status.and_then(|status| status.parse().ok())),
                last_event_at: row.try_get(2).ok()?,
            })
        };
        Ok(answer.iter().filter_map(summary).collect())
    }
}
