//! PostgreSQL: a job-event table as it is, read with no more than SELECT. [`position`] says how no row is lost although
//! rows become visible out of order.
//!
//! Every statement goes by the simple protocol, in one piece: a pooler in transaction mode may give each to another
//! connection, where nothing that was prepared is known. What goes into a statement is a number, a quoted name, or a
//! [`literal`].

mod check;
mod error;
mod link;
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
use link::{Link, Links};
use position::{Ended, Key, KeyId, Position};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::{ConnectOptions, Row};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use table::{Age, Column, Mark, Tables, View, quote, quote_table};
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

/// When a position counts more transactions, it is time to list the open ones instead.
const MANY: usize = 3;
/// What a list of open ones may take of a cursor, in bytes.
const LIST_BYTES: usize = 30;
/// Within so many bytes transactions are counted beside that. A range that ends with a list has room then, too.
const LEVEL_BYTES: usize = 42;
/// What a key takes, at most.
const KEY_BYTES: usize = 28;
/// Of so many transactions the database is asked, one by one, which of them are open.
const WIDEST: i64 = 100_000;

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

    fn failed(&self, tried: &str, error: sqlx::Error) -> SourceError {
        failed(format!("{tried} ({})", self.shown), error)
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
        let tables =
            Tables::new(&self.settings, &events, jobs.as_deref(), tells_log).map_err(|(key, name)| SourceError {
                code: SourceCode::Schema,
                tried: format!("looking at the tables ({})", self.shown),
                cause: format!("there is no column {name}"),
                mend: match key {
                    _ if key.contains("job_columns") => "name the columns by source.postgres.job_columns",
                    _ => "name the columns by source.postgres.columns",
                },
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
    let options = match &settings.root_cert {
        none if none.as_os_str().is_empty() => options,
        file if file.is_file() => options.ssl_root_cert(file),
        file => {
            return Err(SourceError {
                code: SourceCode::CannotOpen,
                tried: "reading source.postgres.root_cert".into(),
                cause: format!("there is no file {}", file.display()),
                mend: "name the PEM file with the authority's certificate",
            });
        }
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

/// What one row of an answer says of the moment that it is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Moment {
    snapshot: String,
    /// Every transaction below it has ended.
    xmin: u64,
    /// No transaction at or above it has begun.
    xmax: u64,
    /// What was visible below it stays so, also after a crash.
    reached: u64,
    is_standby: bool,
    /// How far the log has got.
    inserted: Option<i64>,
}

/// What [`Store::moment`] reads.
const MOMENT: &str = "s.snapshot, s.xmin, s.xmax, m.reached, s.is_standby, s.inserted, s.flushed";
/// How many columns that is.
const MOMENT_COLUMNS: usize = 7;

/// How far the server's memory of transactions would survive a crash.
///
/// A transaction that rolled back leaves nothing on the disk that anybody waits for. When the server crashes just then,
/// it does not know any more that there was one, and gives the same id to another, which may commit. So a mark that is
/// to be remembered must not lie above what the log on the disk has: all that was written to the log when the mark was
/// read. A transaction that has committed, and all before it, is there (with `synchronous_commit` on).
#[derive(Default)]
struct Durable {
    mark: u64,
    /// A mark, and how far the log must be on the disk until it counts.
    next: Option<(u64, i64)>,
}

impl Durable {
    /// Answers overtake each other, but not by so many transactions.
    const LATE: u64 = 10_000;

    fn learn(&mut self, xmin: u64, inserted: Option<i64>, flushed: Option<i64>) {
        let (Some(inserted), Some(flushed)) = (inserted, flushed) else { return };
        if xmin + Self::LATE < self.mark {
            // another database, or another life of it
            *self = Self::default();
        }
        if let Some((mark, _)) = self.next.take_if(|(_, end)| *end <= flushed) {
            self.mark = self.mark.max(mark);
        }
        if inserted <= flushed {
            self.mark = self.mark.max(xmin);
        } else {
            self.next.get_or_insert((xmin, inserted));
        }
    }
}

impl Store {
    /// The head of a statement: `s`, its view of what has ended, and `m`, how far that may be remembered. Of what has
    /// committed, which may always be, it looks at one job, or, where an index can tell, at all.
    fn snapshot(&self, tables: &Tables, job: Option<&JobId>) -> String {
        let durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner).mark;
        let (inserted, flushed) = match tables.tells_log {
            true => ("pg_current_wal_insert_lsn() - '0/0'", "pg_current_wal_flush_lsn() - '0/0'"),
            false => ("1", "0"),
        };
        let of_job = job.map_or_else(|| "true".into(), |job| tables.job_id.is(job.as_str()));
        let committed = match (job, tables.age()) {
            (None, Age::System) => "0".into(),
            _ => format!(
                "coalesce((SELECT {xid} + 1 FROM {} e WHERE {of_job} AND {} ORDER BY {raw} DESC LIMIT 1), 0)",
                tables.events,
                tables.since(&Mark::At(Ended::below(durable.max(1)))),
                xid = tables.xid(),
                raw = tables.raw_xid(),
            ),
        };
        format!(
            "WITH s AS MATERIALIZED (
               SELECT now::text AS snapshot, pg_snapshot_xmin(now)::text::bigint AS xmin,
                      pg_snapshot_xmax(now)::text::bigint AS xmax, is_standby,
                      pg_snapshot_xmax(now)::text::bigint + age(pg_snapshot_xmax(now)::xid) AS base,
                      (CASE WHEN NOT is_standby THEN {inserted} END)::bigint AS inserted,
                      (CASE WHEN NOT is_standby THEN {flushed} END)::bigint AS flushed
               FROM (SELECT pg_current_snapshot() AS now, pg_is_in_recovery() AS is_standby) one
             ), r AS MATERIALIZED (
               SELECT CASE WHEN is_standby OR flushed >= inserted THEN xmax
                           ELSE least(xmax, greatest({durable}, {committed})) END AS reached FROM s
             ), m AS MATERIALIZED (
               SELECT reached, least(xmin, reached) AS mark, least(xmin, reached)::text::xid8 AS mark8 FROM s, r
             )"
        )
    }

    /// The columns of [`MOMENT`].
    fn moment(&self, row: &PgRow) -> Result<Moment, sqlx::Error> {
        let moment = Moment {
            snapshot: row.try_get(0)?,
            xmin: row.try_get::<i64, _>(1)? as u64,
            xmax: row.try_get::<i64, _>(2)? as u64,
            reached: row.try_get::<i64, _>(3)? as u64,
            is_standby: row.try_get(4)?,
            inserted: row.try_get(5)?,
        };
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        durable.learn(moment.xmin, moment.inserted, row.try_get(6)?);
        Ok(moment)
    }
}

/// One event as the database has it.
struct Stored {
    xid: u64,
    key: Key,
    event: Event,
}

/// The columns of [`Tables::row`], from `first` on.
fn read_row(row: &PgRow, first: usize, job: &JobId) -> Result<Stored, sqlx::Error> {
    let at: i64 = row.try_get(first + 2)?;
    let id: String = row.try_get(first + 3)?;
    let key = match row.try_get(first + 1)? {
        Some(number) => Key::Number(number),
        None => Key::Time { at, id: KeyId::of(&id) },
    };
    let event = Event {
        id,
        job_id: job.clone(),
        step_id: row.try_get(first + 4)?,
        kind: row.try_get(first + 5)?,
        // one that no clock has shown is as old as can be
        timestamp: Timestamp::from_microsecond(at).unwrap_or(Timestamp::UNIX_EPOCH),
        actor: row.try_get(first + 6)?,
        payload: Payload::from_text(row.try_get::<Option<String>, _>(first + 7)?.unwrap_or_else(|| "null".into())),
    };
    Ok(Stored { xid: row.try_get::<i64, _>(first)? as u64, key, event })
}

impl Position {
    fn seal(&self, job: &JobId) -> Cursor {
        let (bytes, left_out) = self.to_bytes(Cursor::MAX_INSIDE);
        if left_out {
            crate::telemetry::CURSORS_SHORTENED.counts(&[]).increment(1);
            // once: the metric counts the rest
            static TOLD: std::sync::Once = std::sync::Once::new();
            TOLD.call_once(|| {
                tracing::warn!(%job, counted = self.counted().len(), "a cursor has no room for all that was counted: whoever resumes with it gets events twice, with the same ids");
            });
        }
        Cursor::seal(self.view.letter(), job, &bytes)
    }

    /// Whether a cursor can hold this list when it is settled, and before that, when a range is to end with it.
    fn has_room_for(&self, ended: &Ended, ends_range: bool) -> bool {
        let settled = Self::level(self.view, ended.clone(), BTreeMap::new());
        settled.length() <= LIST_BYTES && (!ends_range || self.amid(ended).length() + KEY_BYTES <= Cursor::MAX_INSIDE)
    }

    fn open(job: &JobId, text: &str) -> Option<Self> {
        let view = View::ALL.into_iter().find(|view| text.starts_with(view.letter()))?;
        Self::from_bytes(view, &Cursor::open(view.letter(), job, text)?)
    }
}

impl Moment {
    /// Every transaction below it has ended, and a crash does not change that.
    fn mark(&self) -> u64 {
        self.xmin.min(self.reached)
    }

    /// Whether a position can be of this database and this time at all.
    fn may_know(&self, position: &Position) -> bool {
        position.ceiling() <= self.xmax
    }
}

/// What a page statement told.
struct Told {
    moment: Moment,
    /// Where the range of this answer ends.
    end: Ended,
    listed: Option<Ended>,
    /// Beyond the range there is more, to be asked for when that is through.
    has_more: bool,
    status: Option<String>,
    has_job: bool,
    rows: Vec<Stored>,
    /// What a position may go on in.
    best: View,
}

/// That row `e` is among the first so many of its transaction: not beyond the key of the last of them.
fn is_counted(tables: &Tables, job: &JobId, (xid, count): (&u64, &u64)) -> String {
    let (of_xid, comparable) = (tables.of(*xid), tables.comparable_key());
    format!(
        "(({of_xid}) IS TRUE AND (({comparable}) > (SELECT {comparable} FROM {} e WHERE {} AND {of_xid}
          ORDER BY {} LIMIT 1 OFFSET {})) IS FALSE)",
        tables.events,
        tables.job_id.is(job.as_str()),
        tables.key(),
        count - 1
    )
}

/// That row `e` was delivered to one who is at this position, which is in no range.
fn is_delivered(tables: &Tables, job: &JobId, position: &Position) -> String {
    let tables = &*tables.seen_by(position.view);
    let settled = tables.before(&Mark::At(position.settled().clone()));
    let counted = position.counted().iter().map(|one| is_counted(tables, job, one));
    std::iter::once(settled).chain(counted).collect::<Vec<_>>().join(" OR ")
}

/// What is asked of one job.
struct Wanted<'a> {
    job: &'a JobId,
    /// What it has not been given.
    position: &'a Position,
    /// Where the range of the answer is to end.
    end: Mark,
    /// No more than what one who is level was given.
    within: Option<&'a Position>,
    /// So many rows and one, in each part of the answer.
    most: usize,
}

/// The statement for that, in the order of delivery: the range up to its end by key, then the others by key.
fn page_statement(head: &str, tables: &Tables, wanted: &Wanted) -> String {
    let Wanted { job, position, end, within, most } = wanted;
    let mut of_job = tables.job_id.is(job.as_str());
    if let Some(within) = within {
        let _ = write!(of_job, " AND ({})", is_delivered(tables, job, within));
    }
    let (key, row, events, limit) = (tables.key(), tables.row(), &tables.events, most + 1);
    let since = tables.since(&Mark::At(position.settled().clone()));
    let before = tables.before(end);
    let counted: String =
        position.counted().iter().map(|one| format!(" AND NOT {}", is_counted(tables, job, one))).collect();
    let until = position.range().map(|(_, key)| key);
    let settled = match tables.halves() {
        None => {
            let beyond_key = until.map_or_else(|| "true".into(), |key| tables.after(job.as_str(), key));
            format!(
                "settled AS MATERIALIZED (
                   SELECT 0 AS part, {row} FROM {events} e
                   WHERE {of_job} AND {since} AND {before} AND {beyond_key}{counted} ORDER BY {key} LIMIT {limit}
                 )"
            )
        }
        // in two parts, so that an index can serve each
        Some((unnumbered, numbered)) => {
            let (first, then) = match until {
                None => ("true".into(), "true".into()),
                Some(key @ Key::Time { .. }) => (unnumbered.after(job.as_str(), key), "true".into()),
                Some(key @ Key::Number(_)) => ("false".into(), numbered.after(job.as_str(), key)),
            };
            format!(
                "unnumbered AS MATERIALIZED (
                   SELECT 0 AS part, {} FROM {events} e WHERE {of_job} AND {is_unnumbered} AND {since} AND {before}
                   AND {first}{counted} ORDER BY {} LIMIT {limit}
                 ), numbered AS MATERIALIZED (
                   SELECT 1 AS part, {} FROM {events} e WHERE (SELECT count(*) FROM unnumbered) < {limit}
                   AND {of_job} AND NOT {is_unnumbered} AND {since} AND {before}
                   AND {then}{counted} ORDER BY {} LIMIT {limit}
                 ), settled AS (SELECT * FROM unnumbered UNION ALL SELECT * FROM numbered)",
                unnumbered.row(),
                unnumbered.key(),
                numbered.row(),
                numbered.key(),
                is_unnumbered = tables.is_unnumbered(),
            )
        }
    };
    let (status, has_job) = job_columns(tables, job);
    format!(
        "{head}, {settled}, newer AS (
           SELECT 2 AS part, {row} FROM {events} e
           WHERE (SELECT count(*) FROM settled) < {limit} AND {of_job} AND {since} AND {after}{counted}
           ORDER BY {key} LIMIT {limit}
         )
         SELECT {MOMENT}, {status}, {has_job}, r.* FROM s CROSS JOIN m
         LEFT JOIN (SELECT * FROM settled UNION ALL SELECT * FROM newer) r ON true ORDER BY r.part, r.place",
        after = tables.since(end),
    )
}

/// The job's status as a text, and whether the job table has it.
fn job_columns(tables: &Tables, job: &JobId) -> (String, String) {
    let Some(jobs) = &tables.jobs else { return ("NULL::text".into(), "false".into()) };
    let one = format!("FROM {} j WHERE {}", jobs.table, jobs.id.is(job.as_str()));
    (format!("(SELECT {}::text {one} LIMIT 1)", jobs.status), format!("EXISTS (SELECT {one})"))
}

impl Store {
    /// What a position lacks of one job, or the beginning of it: always something, where there is something. A range
    /// that has nothing left is finished.
    async fn tell(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
        position: &mut Position,
        most: usize,
    ) -> Result<Told, sqlx::Error> {
        if position.is_beginning() {
            position.adopt(tables.best);
        }
        let tables = &*tables.seen_by(position.view);
        loop {
            let end = match position.range() {
                Some((end, _)) => Mark::At(end.clone()),
                None if position.settled().open.is_empty() => Mark::Now,
                // which end it is depends on the mark: that of a moment before
                None => {
                    let head = self.snapshot(tables, Some(job));
                    let answer = link.ask(format!("{head} SELECT {MOMENT} FROM s, m")).await?;
                    let first = answer.first().ok_or(sqlx::Error::RowNotFound)?;
                    Mark::At(position.next_end(self.moment(first)?.mark()))
                }
            };
            let mut told = self.ask(link, tables, Wanted { job, position, end, within: None, most }).await?;
            // beyond the end each transaction is counted: where they are many, or have much to tell, the open ones are
            // listed instead
            let is_cut = told.rows.len() > most;
            let beyond = told.beyond(position).len();
            if beyond <= MANY && !(is_cut && beyond > 0) {
                return Ok(told);
            }
            if position.range().is_some() {
                // first what a reader before us left unfinished
                told.rows.retain(|row| told.end.has(row.xid));
                if told.rows.is_empty() {
                    position.finish(&told.end);
                    continue;
                }
                return Ok(Told { has_more: true, ..told });
            }
            let Some((listed, reached)) = self.list_open(link, tables, position, is_cut).await? else {
                return Ok(told.that_fits(position));
            };
            // what has committed is not forgotten in a crash
            let reached = told.rows.iter().map(|row| row.xid + 1).fold(reached, u64::max);
            if !is_cut {
                let end = Mark::At(told.end.clone());
                let told = self.ask(link, tables, Wanted { job, position, end, within: None, most }).await?;
                if told.rows.len() <= most {
                    let counted = position.counted().keys().copied();
                    let committed = told.rows.iter().map(|row| row.xid).chain(counted).map(|xid| xid + 1);
                    let listed = listed.until(committed.fold(reached, u64::max));
                    return Ok(Told { listed: Some(listed), ..told }.that_fits(position));
                }
                continue;
            }
            let end = listed.until(reached);
            if end.mark <= told.end.mark {
                return Ok(told.that_fits(position));
            }
            let mut long =
                self.ask(link, tables, Wanted { job, position, end: Mark::At(end), within: None, most }).await?;
            long.rows.retain(|row| long.end.has(row.xid));
            if !long.rows.is_empty() {
                return Ok(Told { has_more: true, ..long });
            }
            if told.rows.iter().any(|row| !long.end.has(row.xid)) {
                // the list had no room for those who have something to tell
                return Ok(told.that_fits(position));
            }
        }
    }

    /// What one who joins lacks of what was delivered to the tail, which is level: it has been given all there was, and
    /// so what both were given does not depend on the moment. `None` where that is more than `limit`.
    async fn missing(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
        position: &mut Position,
        level: &Position,
        limit: Limit,
    ) -> Result<Option<Vec<(Event, Cursor)>>, sqlx::Error> {
        let tables = &*tables.seen_by(position.view);
        let mut missing = Vec::new();
        loop {
            let range = position.range().map(|(end, _)| end.clone());
            let is_range = range.is_some();
            let end = range.unwrap_or_else(|| position.next_end(level.settled().floor()));
            let end = Mark::At(end);
            let mut told =
                self.ask(link, tables, Wanted { job, position, end, within: Some(level), most: limit.events }).await?;
            if is_range {
                told.rows.retain(|row| told.end.has(row.xid));
            } else if position.view == level.view {
                told.listed = Some(level.settled().clone());
            }
            let (events, is_last) = told.deliver(job, position, limit);
            missing.extend(events);
            if !is_last {
                return Ok(None);
            }
            if !is_range {
                return Ok(Some(missing));
            }
        }
    }

    async fn ask(&self, link: &mut Link, tables: &Tables, wanted: Wanted<'_>) -> Result<Told, sqlx::Error> {
        let Wanted { job, position, .. } = wanted;
        let head = self.snapshot(tables, matches!(wanted.end, Mark::Now).then_some(job));
        let answer = link.ask(page_statement(&head, tables, &wanted)).await?;
        let first = answer.first().ok_or(sqlx::Error::RowNotFound)?;
        let moment = self.moment(first)?;
        let mut told = Told {
            end: match wanted.end {
                Mark::At(end) => end,
                Mark::Now => position.next_end(moment.mark()),
            },
            listed: None,
            has_more: false,
            moment,
            status: first.try_get(MOMENT_COLUMNS)?,
            has_job: first.try_get(MOMENT_COLUMNS + 1)?,
            rows: Vec::new(),
            best: tables.best,
        };
        for row in &answer {
            if row.try_get::<Option<i32>, _>(MOMENT_COLUMNS + 2)?.is_some() {
                told.rows.push(read_row(row, MOMENT_COLUMNS + 4, job)?);
            }
        }
        Ok(told)
    }

    /// Everything that has ended by now, where an open transaction keeps the mark from telling, and how far that would
    /// survive a crash; `None` where the database cannot say. Not within a transaction: its snapshot may be older than the
    /// answer.
    async fn list_open(
        &self,
        link: &mut Link,
        tables: &Tables,
        position: &Position,
        ends_range: bool,
    ) -> Result<Option<(Ended, u64)>, sqlx::Error> {
        // a snapshot lists top-level ids, which is what the column has; the system column has those of savepoints, too,
        // and a standby lists nothing
        let listed = match tables.age() {
            Age::Column => "NOT is_standby",
            Age::System => "false",
        };
        let open = format!(
            "SELECT x::text::bigint AS x FROM s, pg_snapshot_xip(pg_current_snapshot()) x WHERE {listed}
             UNION ALL SELECT x FROM s, generate_series(s.xmin, s.xmax - 1) x
             WHERE NOT ({listed}) AND s.xmax - s.xmin < {WIDEST} AND pg_xact_status(x::text::xid8) = 'in progress'"
        );
        let head = self.snapshot(tables, None);
        let sql = format!("{head} SELECT {MOMENT}, o.x FROM s CROSS JOIN m LEFT JOIN ({open}) o ON true");
        let answer = link.ask(sql).await?;
        let moment = self.moment(answer.first().ok_or(sqlx::Error::RowNotFound)?)?;
        let mut open = BTreeSet::new();
        for row in &answer {
            open.extend(row.try_get::<Option<i64>, _>(MOMENT_COLUMNS)?.map(|xid| xid as u64));
        }
        let is_listed = tables.age() == Age::Column && !moment.is_standby;
        let is_known = is_listed || moment.xmax - moment.xmin < WIDEST as u64;
        let mut ended = Ended { mark: moment.xmax, open };
        // as far as fits into a cursor
        while !ended.open.is_empty() && !position.has_room_for(&ended, ends_range) {
            ended.mark = ended.open.pop_last().unwrap_or(ended.mark);
        }
        Ok(Some((ended, moment.reached)).filter(|(ended, _)| is_known && ended.mark >= position.settled().mark))
    }

    /// How a job without a status ended, by the event that says so.
    async fn final_event(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
    ) -> Result<Option<JobStatus>, sqlx::Error> {
        let finals: Vec<String> = self.settings.final_types.all().map(literal).collect();
        if tables.jobs.is_some() || finals.is_empty() {
            return Ok(None);
        }
        let sql = format!(
            "SELECT {kind}::text FROM {} e WHERE {} AND {kind}::text = ANY (ARRAY[{}]::text[]) LIMIT 1",
            tables.events,
            tables.job_id.is(job.as_str()),
            finals.join(","),
            kind = tables.kind(),
        );
        let answer = link.ask(sql).await?;
        let kind: Option<String> = answer.first().map(|row| row.try_get(0)).transpose()?;
        Ok(kind.and_then(|kind| self.settings.final_types.find(&kind)))
    }

    /// How the job ended, as far as its status or its events say.
    fn ending(&self, status: Option<&str>, events: &[(Event, Cursor)]) -> Option<JobStatus> {
        let by_event = || events.iter().rev().find_map(|(event, _)| self.settings.final_types.find(&event.kind));
        status.and_then(|status| self.settings.statuses.find(status)).or_else(by_event)
    }
}

impl Told {
    /// The transactions that are counted when this is delivered.
    fn beyond(&self, position: &Position) -> BTreeSet<u64> {
        let counted = position.counted().keys().copied();
        self.rows.iter().map(|row| row.xid).chain(counted).filter(|xid| !self.end.has(*xid)).collect()
    }

    /// Without those beyond the range, and the list, that a cursor has no room to count. Where it has room for none of
    /// them and there is nothing else, with all: rather twice than never.
    fn that_fits(mut self, position: &Position) -> Self {
        let mut position = position.clone();
        let is_beyond = |xid| !self.end.has(xid) && !self.listed.as_ref().is_some_and(|listed| listed.has(xid));
        position.finish(&self.end);
        if let Some(listed) = self.listed.as_ref().filter(|listed| listed.mark >= position.settled().mark) {
            position.finish(listed);
        }
        let mut rows: BTreeMap<u64, u64> = BTreeMap::new();
        self.rows.iter().filter(|row| is_beyond(row.xid)).for_each(|row| *rows.entry(row.xid).or_default() += 1);
        let mut dropped = BTreeSet::new();
        for (xid, count) in rows {
            let counted = position.clone();
            (0..count).for_each(|_| position.count(xid));
            if position.length() > LEVEL_BYTES {
                position = counted;
                dropped.insert(xid);
            }
        }
        if self.rows.iter().any(|row| !dropped.contains(&row.xid)) {
            self.rows.retain(|row| !dropped.contains(&row.xid));
            self.has_more |= !dropped.is_empty();
        }
        self
    }

    /// Delivers as many rows as `limit` allows: moves the position past each, and says whether those were all.
    fn deliver(self, job: &JobId, position: &mut Position, limit: Limit) -> (Vec<(Event, Cursor)>, bool) {
        let (mut events, mut bytes, mut is_last) = (Vec::new(), 0, true);
        let Self { rows, end, listed, has_more, best, .. } = self;
        // a count for each of few transactions is shorter than a range with its end
        let counts = position.range().is_none() && rows.len() <= limit.events && {
            let mut counted = position.clone();
            rows.iter().filter(|row| end.has(row.xid)).for_each(|row| counted.count(row.xid));
            counted.length() <= LEVEL_BYTES
        };
        let answer = position::Answer { rows, end: end.clone(), listed: listed.clone() };
        for (before, Stored { xid, key, event }) in answer.steps(position, LEVEL_BYTES, |row| row.xid) {
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
            if has_more {
                return (events, false);
            }
            position.adopt(best);
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
        store.reading("looking up an event id", async |link, tables| store.find(link, tables, job, text).await).await
    }

    async fn newest(&self, job: &JobId) -> Result<Option<Standing>, SourceError> {
        let store = &self.0;
        store.reading("reading the newest event", async |link, tables| store.newest(link, tables, job).await).await
    }

    async fn page(&self, job: &JobId, after: &Cursor, limit: Limit) -> Result<Answer, SourceError> {
        let Some(position) = Position::open(job, after.as_str()) else {
            return Ok(Answer::Lost(Reset::Unknown));
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
                Err(error) => Err(store.forget_tables(store.failed("reading history", error)).await),
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
            Err(error) => Err(self.forget_tables(self.failed(what, error)).await),
        }
    }

    async fn page(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
        mut position: Position,
        limit: Limit,
    ) -> Result<Answer, sqlx::Error> {
        if tables.job_id.spelled(job.as_str()).is_none() {
            return Ok(Answer::NoSuchJob);
        }
        let began = Instant::now();
        let before = position.clone();
        let is_fresh = position.is_beginning();
        let told = loop {
            let told = self.tell(link, tables, job, &mut position, limit.events).await?;
            let may_know = told.moment.may_know(&before);
            if may_know && self.has_seen(link, &told.moment, &before).await? {
                break told;
            }
            // a standby that lags comes to it; another database, or one that was restored, does not
            if began.elapsed() >= self.settle {
                let wait = Page {
                    end: before.seal(job),
                    is_complete: false,
                    status: None,
                    events: Vec::new(),
                    is_last: false,
                };
                return Ok(if may_know { Answer::Page(wait) } else { Answer::Lost(Reset::Rewound) });
            }
            position = before.clone();
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let (has_job, nothing_is_open) = (told.has_job, told.moment.xmin >= told.moment.xmax);
        let status = told.status.clone();
        let (events, is_last) = told.deliver(job, &mut position, limit);
        if is_fresh && events.is_empty() && !has_job {
            return Ok(Answer::NoSuchJob);
        }
        let mut ending = self.ending(status.as_deref(), &events);
        if is_last && ending.is_none() {
            ending = self.final_event(link, tables, job).await?;
        }
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

    /// Whether the server knows the end of every transaction that a position speaks of. A standby may not have come to
    /// it: then its tail would tell again what the position was given elsewhere.
    async fn has_seen(&self, link: &mut Link, moment: &Moment, position: &Position) -> Result<bool, sqlx::Error> {
        if !moment.is_standby || position.ceiling() <= moment.xmin {
            return Ok(true);
        }
        let ended = position.range().map_or(position.settled(), |(end, _)| end);
        let open = ended.open.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let counted = position.counted().keys().map(u64::to_string).collect::<Vec<_>>().join(",");
        let (xmin, mark) = (moment.xmin, ended.mark);
        if mark.saturating_sub(xmin) > WIDEST as u64 {
            // rather twice than never
            return Ok(true);
        }
        let sql = format!(
            "SELECT NOT EXISTS (
               SELECT FROM (SELECT generate_series({xmin}, {mark}::bigint - 1) EXCEPT SELECT unnest('{{{open}}}'::bigint[])
                 UNION SELECT unnest('{{{counted}}}'::bigint[])) known (x)
               WHERE x >= {xmin} AND pg_xact_status(x::text::xid8) = 'in progress')"
        );
        let answer = link.ask(sql).await?;
        answer.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
    }

    /// The position after the event with this id, as one who shows events by key would mean it.
    async fn find(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
        id: &str,
    ) -> Result<Option<Cursor>, sqlx::Error> {
        if tables.job_id.spelled(job.as_str()).is_none() || tables.id.spelled(id).is_none() {
            return Ok(None);
        }
        let (of_job, of_id) = (tables.job_id.is(job.as_str()), tables.id.is(id));
        let (row, events) = (tables.row(), &tables.events);
        let head = self.snapshot(tables, Some(job));
        let sql = format!(
            "{head} SELECT {MOMENT}, r.* FROM s, m, (SELECT {row} FROM {events} e WHERE {of_job} AND {of_id} LIMIT 1) r"
        );
        let answer = link.ask(sql).await?;
        let Some(found) = answer.first() else { return Ok(None) };
        let (moment, stored) = (self.moment(found)?, read_row(found, MOMENT_COLUMNS + 1, job)?);
        // what is not settled yet, up to it, is counted
        let up_to = format!("({}) IS NOT TRUE", tables.after(job.as_str(), &stored.key));
        let (end, counted) = self.count_newer(link, tables, job, moment.mark(), &up_to).await?;
        Ok(Some(Position::after_key(tables.best, end, stored.key, counted).seal(job)))
    }

    /// How many rows there are of each transaction that had not ended at this mark, or, where those are many, at a list
    /// of the open ones instead.
    async fn count_newer(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
        mark: u64,
        which: &str,
    ) -> Result<(Ended, BTreeMap<u64, u64>), sqlx::Error> {
        let mut end = Ended::below(mark);
        loop {
            let sql = format!(
                "{} SELECT c.xid, count(*)::bigint FROM (SELECT {} FROM {} e WHERE {} AND {} AND {which}) c GROUP BY 1",
                self.snapshot(tables, None),
                tables.row(),
                tables.events,
                tables.job_id.is(job.as_str()),
                tables.since(&Mark::At(end.clone())),
            );
            let mut counted = BTreeMap::new();
            for row in link.ask(sql).await? {
                counted.insert(row.try_get::<i64, _>(0)? as u64, row.try_get::<i64, _>(1)? as u64);
            }
            if counted.len() <= MANY || !end.open.is_empty() {
                return Ok((end, counted));
            }
            let level = Position::level(tables.best, end.clone(), BTreeMap::new());
            match self.list_open(link, tables, &level, false).await? {
                Some((listed, reached)) if listed.mark > end.mark => {
                    // what has committed is not forgotten in a crash
                    let last = counted.keys().next_back().map_or(0, |last| last + 1);
                    end = listed.until(reached.max(last));
                    if end.open.is_empty() && end.mark == mark {
                        return Ok((end, counted));
                    }
                }
                _ => return Ok((end, counted)),
            }
        }
    }

    async fn newest(&self, link: &mut Link, tables: &Tables, job: &JobId) -> Result<Option<Standing>, sqlx::Error> {
        if tables.job_id.spelled(job.as_str()).is_none() {
            return Ok(None);
        }
        let (of_job, events) = (tables.job_id.is(job.as_str()), &tables.events);
        let (status, has_job) = job_columns(tables, job);
        let head = self.snapshot(tables, Some(job));
        let sql = format!(
            "{head} SELECT {MOMENT}, {status}, {has_job} OR EXISTS (SELECT FROM {events} e WHERE {of_job}) FROM s, m"
        );
        let answer = link.ask(sql).await?;
        let first = answer.first().ok_or(sqlx::Error::RowNotFound)?;
        if !first.try_get::<bool, _>(MOMENT_COLUMNS + 1)? {
            return Ok(None);
        }
        let mark = self.moment(first)?.mark();
        let (end, counted) = self.count_newer(link, tables, job, mark, "true").await?;
        let status: Option<String> = first.try_get(MOMENT_COLUMNS)?;
        let cursor = Position::level(tables.best, end, counted).seal(job);
        let status = self.ending(status.as_deref(), &[]).or_else(|| status.and_then(|status| status.parse().ok()));
        Ok(Some(Standing { cursor, status }))
    }

    /// All or none. Where another process appends the same id at the same time, the table's own constraint decides.
    async fn append(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
        events: Vec<NewEvent>,
    ) -> Result<Vec<Appended>, sqlx::Error> {
        link.begin("").await?;
        let mut known = self.stored(link, tables, job, &events).await?;
        let mut fresh: BTreeSet<String> = BTreeSet::new();
        let new: Vec<&NewEvent> =
            events.iter().filter(|event| !known.contains_key(&event.id) && fresh.insert(event.id.clone())).collect();
        if !new.is_empty() {
            link.ask(tables.insert(job.as_str(), new.into_iter())).await?;
        }
        if let Some(jobs) = &tables.jobs {
            let [id, status] = &jobs.names;
            let sql = format!(
                "INSERT INTO {table} ({id}, {status}) SELECT {job}, 'RUNNING'
                 WHERE NOT EXISTS (SELECT FROM {table} j WHERE {}) ON CONFLICT DO NOTHING",
                jobs.id.is(job.as_str()),
                table = jobs.table,
                job = jobs.id.value(job.as_str()),
            );
            link.ask(sql).await?;
        }
        link.commit().await?;
        known.extend(self.stored(link, tables, job, &events).await?);
        let mut stored = Vec::with_capacity(events.len());
        for event in events {
            let cursor = self.find(link, tables, job, &event.id).await?;
            let found = known.get(&event.id).cloned().zip(cursor).ok_or(sqlx::Error::RowNotFound)?;
            // the same id once more in this batch is a repeat
            stored.push(Appended { event: found.0, cursor: found.1, is_new: fresh.remove(&event.id) });
        }
        Ok(stored)
    }

    /// Those that the job has already, by their ids.
    async fn stored(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
        events: &[NewEvent],
    ) -> Result<BTreeMap<String, Event>, sqlx::Error> {
        let sql = format!(
            "{} SELECT {} FROM {} e WHERE {} AND {}",
            self.snapshot(tables, None),
            tables.row(),
            tables.events,
            tables.job_id.is(job.as_str()),
            tables.id.is_any(events.iter().map(|event| &*event.id)),
        );
        let rows = link.ask(sql).await?;
        let event = |row| read_row(row, 1, job).map(|stored| (stored.event.id.clone(), stored.event));
        rows.iter().map(event).collect()
    }

    async fn set_status(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
        status: JobStatus,
    ) -> Result<(), sqlx::Error> {
        let Some(jobs) = &tables.jobs else {
            return Err(sqlx::Error::ColumnNotFound("source.postgres.jobs_table".into()));
        };
        let [id, status_name] = &jobs.names;
        let statuses = &self.settings.statuses;
        let own = match status {
            JobStatus::Completed => statuses.completed.first(),
            JobStatus::Failed => statuses.failed.first(),
            JobStatus::Cancelled => statuses.cancelled.first(),
            _ => None,
        };
        let sql = format!(
            "INSERT INTO {table} ({id}, {status_name}) VALUES ({job}, {own})
             ON CONFLICT ({id}) DO UPDATE SET {status_name} = excluded.{status_name}",
            table = jobs.table,
            job = jobs.id.value(job.as_str()),
            own = literal(own.map_or(status.as_str(), String::as_str)),
        );
        link.ask(sql).await.map(drop)
    }

    async fn jobs(
        &self,
        link: &mut Link,
        tables: &Tables,
        status: Option<JobStatus>,
        limit: usize,
    ) -> Result<Vec<JobSummary>, sqlx::Error> {
        let Some(jobs) = &tables.jobs else { return Ok(Vec::new()) };
        let wanted = status
            .map_or_else(|| "true".into(), |status| format!("{}::text = {}", jobs.status, literal(status.as_str())));
        let sql = format!(
            "SELECT {id}::text, {status}::text, to_char(l.at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')
             FROM {table} j LEFT JOIN LATERAL (
               SELECT max({at}) AS at FROM {events} e WHERE {job_id} = {id}
             ) l ON true WHERE {wanted} ORDER BY l.at DESC NULLS LAST, 1 LIMIT {limit}",
            id = jobs.id.column(),
            status = jobs.status,
            table = jobs.table,
            at = tables.timestamp(),
            events = tables.events,
            job_id = tables.job_id.column(),
        );
        let answer = link.ask(sql).await?;
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
