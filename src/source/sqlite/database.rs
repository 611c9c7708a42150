//! The file at the configured path, and the connections to it.
//!
//! A file may be removed, or replaced by another one, while connections to it are open. They would go on with a file that
//! nobody else sees. Every use therefore compares the file at the path with the one that was opened. The tail alone opens
//! a file anew, since it also has to tell its watched jobs; readers and the writer use the file that it opened last.
//!
//! A file with tables of others is opened read-only, and keeps its journal mode: nothing is made or changed in it.

use super::catalogue::{names, read_relation};
use super::error::SqliteError;
use super::numbers;
use super::tables::{SchemaProblem, Tables};
use super::{READERS, SCHEMA};
use crate::config::{self, Create};
use crate::error::SourceCode;
use sqlx::ConnectOptions;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    Sqlite, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use std::fs::Metadata;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest wait for other processes' locks while the file is opened. A failed attempt is repeated by the tail.
const OPENING: Duration = Duration::from_secs(1);
/// The longest wait for other processes' locks later.
const BUSY: Duration = Duration::from_secs(5);
/// Tells if there is a table or a trigger that Jobcast's own schema alone has.
const HAS_OWN_PARTS: &str = "SELECT EXISTS (SELECT 1 FROM sqlite_schema
     WHERE name IN ('jobcast_changes', 'job_events_make_job', 'runner_jobs_made', 'runner_jobs_status'))";
/// Steps of SQLite's virtual machine between two looks whether a read takes too long: some ten thousand take a millisecond.
const STEPS_BETWEEN_LOOKS: i32 = 10_000;

pub struct Database {
    settings: config::Sqlite,
    /// Time that one read may take.
    read_timeout: Duration,
    /// `None` until the file could be opened for the first time.
    opened: Mutex<Option<Opened>>,
}

/// A file that has its tables.
#[derive(Clone)]
struct Opened {
    file: FileId,
    owner: Owner,
    tables: Arc<Tables>,
    /// Connections for everybody but the tail and the writer, which have their own.
    readers: SqlitePool,
    /// The tables are no longer as they were read.
    is_stale: bool,
}

/// The program that a file's tables belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Jobcast, which may write to it.
    Jobcast,
    Other,
}

/// The identity of a file, which it keeps when it is renamed. No other file has it while a connection is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

/// A connection, the file that it was opened on, and the tables in it.
pub struct Connected {
    pub sqlite: SqliteConnection,
    pub file: FileId,
    pub tables: Arc<Tables>,
}

impl Owner {
    /// Returns the options of a connection. None of them changes a file of others.
    pub fn options(self, path: &Path) -> SqliteConnectOptions {
        let options = SqliteConnectOptions::new().filename(path).busy_timeout(BUSY).disable_statement_logging();
        match self {
            Self::Jobcast => options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Normal),
            Self::Other => options.read_only(true).pragma("temp_store", "memory"),
        }
    }
}

impl Database {
    pub fn new(settings: &config::Sqlite, read_timeout: Duration) -> Self {
        Self { settings: settings.clone(), read_timeout, opened: Mutex::new(None) }
    }

    pub fn path(&self) -> &Path {
        &self.settings.path
    }

    /// Returns the file at the path.
    pub fn file(&self) -> Result<FileId, SqliteError> {
        let found = self.metadata()?;
        Ok(FileId { device: found.dev(), inode: found.ino() })
    }

    /// Fails where another file, or none, is at the path. A commit that is not confirmed may be in a deleted file.
    pub fn confirm(&self, file: FileId) -> Result<(), SqliteError> {
        if self.file()? == file { Ok(()) } else { Err(SqliteError::Replaced) }
    }

    /// Returns the file that was opened last, if it is still the one at the path.
    pub fn current(&self) -> Result<FileId, SqliteError> {
        Ok(self.opened_here()?.file)
    }

    /// Returns the tables as they were when the file was opened.
    pub fn tables(&self) -> Result<Arc<Tables>, SqliteError> {
        Ok(self.opened_here()?.tables)
    }

    /// Lends a connection for one read, which begins now, and the tables.
    pub async fn reader(&self) -> Result<(PoolConnection<Sqlite>, Arc<Tables>), SqliteError> {
        let opened = self.opened_here()?;
        let mut connection = opened.readers.acquire().await?;
        self.begin_read(&mut connection).await?;
        Ok((connection, opened.tables))
    }

    /// Has SQLite interrupt what runs on a connection once `source.read_timeout` has passed from now on.
    pub async fn begin_read(&self, connection: &mut SqliteConnection) -> Result<(), SqliteError> {
        let until = Instant::now() + self.read_timeout;
        connection.lock_handle().await?.set_progress_handler(STEPS_BETWEEN_LOOKS, move || Instant::now() < until);
        Ok(())
    }

    /// Fails for a file of others, which is never written to.
    pub fn require_own(&self) -> Result<(), SqliteError> {
        match self.lock().as_ref() {
            Some(opened) if opened.owner == Owner::Other => Err(SqliteError::OfOthers),
            None if self.settings.is_mapped() => Err(SqliteError::OfOthers),
            _ => Ok(()),
        }
    }

    /// Has the tables read anew when the file is opened next: another program has changed them.
    pub fn note_changed_tables(&self) {
        if let Some(opened) = self.lock().as_mut() {
            opened.is_stale = true;
        }
    }

    /// Opens one more connection to the file that was opened last.
    pub async fn connect(&self) -> Result<Connected, SqliteError> {
        let Opened { file, owner, tables, .. } = self.opened_here()?;
        let sqlite = owner.options(self.path()).connect().await?;
        self.confirm(file)?;
        Ok(Connected { sqlite, file, tables })
    }

    /// Opens the file that is at the path now. Only for the first time, which is the start, it makes the file and the
    /// tables where they are not there and the settings allow it.
    pub async fn open(&self) -> Result<Connected, SqliteError> {
        let known = self.lock().clone();
        let is_first = known.is_none();
        let before = self.file().ok();
        if self.path().is_dir() {
            return Err(SqliteError::Directory);
        }
        let is_there = before.is_some() && self.metadata()?.len() > 0;
        let owner = match (&known, is_there) {
            (Some(_), false) => return Err(SqliteError::Missing),
            (Some(known), true) if before == Some(known.file) => known.owner,
            (_, true) => self.find_owner(is_first).await?,
            (None, false) if self.may_make_tables() => Owner::Jobcast,
            (None, false) => return Err(SqliteError::NotMadeYet),
        };
        let may_create = is_first && owner == Owner::Jobcast && self.settings.create != Create::Never;
        let opening = owner.options(self.path()).create_if_missing(may_create).busy_timeout(OPENING);
        let mut sqlite = opening.connect().await.map_err(|error| self.explain(error, owner))?;
        let file = self.file()?;
        if before.is_some_and(|before| before != file) {
            return Err(SqliteError::Replaced);
        }
        if let Some(known) = known.filter(|known| known.file == file && !known.is_stale) {
            return Ok(Connected { sqlite, file, tables: known.tables });
        }
        let tables = Arc::new(self.prepare(&mut sqlite, owner, may_create).await?);
        let pool = SqlitePoolOptions::new().max_connections(READERS).acquire_timeout(BUSY);
        let readers = pool.connect_lazy_with(owner.options(self.path()));
        if is_first && owner == Owner::Other {
            tracing::info!(path = %self.path().display(), "the file has tables of others: it is read, and never written to");
        }
        *self.lock() = Some(Opened { file, owner, tables: tables.clone(), readers, is_stale: false });
        Ok(Connected { sqlite, file, tables })
    }

    /// Tells whose tables the file has. Opens it read-only.
    pub async fn find_owner(&self, is_first: bool) -> Result<Owner, SqliteError> {
        if self.settings.create == Create::Always {
            return Ok(Owner::Jobcast);
        }
        let opening = Owner::Other.options(self.path()).busy_timeout(OPENING);
        let mut sqlite = opening.connect().await.map_err(|error| self.explain(error, Owner::Other))?;
        let names = names(&mut sqlite).await.map_err(|error| self.explain(error, Owner::Other))?;
        // Jobcast's own file counts as that also where a part of it is missing: `jobcast check` says which.
        let is_own: bool = sqlx::query_scalar(HAS_OWN_PARTS).fetch_one(&mut sqlite).await?;
        if !self.settings.is_mapped() && is_own {
            return Ok(Owner::Jobcast);
        }
        match names.is_empty() {
            true if is_first && self.may_make_tables() => Ok(Owner::Jobcast),
            true => Err(SqliteError::NotMadeYet),
            false => Ok(Owner::Other),
        }
    }

    /// Tells a file that may be read, but whose log cannot be opened, from one that cannot be read.
    fn explain(&self, error: impl Into<SqliteError>, owner: Owner) -> SqliteError {
        let error = error.into();
        let is_refused = matches!(error.code(), SourceCode::CannotOpen | SourceCode::ReadOnly);
        let is_cut_off = owner == Owner::Other && is_refused && is_in_wal_mode(self.path());
        if is_cut_off { SqliteError::NoWal } else { error }
    }

    /// Tells whether tables may be made in a file without any.
    pub fn may_make_tables(&self) -> bool {
        self.settings.create != Create::Never && !self.settings.is_mapped()
    }

    /// Finds the tables; makes those of Jobcast's own that are missing where `may_create` says so. Writes nothing where
    /// none is missing, so that a writer's lock does not matter.
    async fn prepare(
        &self,
        sqlite: &mut SqliteConnection,
        owner: Owner,
        may_create: bool,
    ) -> Result<Tables, SqliteError> {
        if may_create && !is_complete(sqlite).await? {
            sqlx::raw_sql(SCHEMA).execute(&mut *sqlite).await?;
        }
        read_tables(sqlite, &self.settings, owner).await?.map_err(SqliteError::Tables)
    }

    fn opened_here(&self) -> Result<Opened, SqliteError> {
        let not_open = || if self.may_make_tables() { SqliteError::NotOpenYet } else { SqliteError::NotMadeYet };
        let opened = self.lock().clone().ok_or_else(not_open)?;
        self.confirm(opened.file)?;
        Ok(opened)
    }

    fn metadata(&self) -> Result<Metadata, SqliteError> {
        std::fs::metadata(self.path()).map_err(|error| match error.kind() {
            ErrorKind::NotFound => SqliteError::Missing,
            _ => sqlx::Error::Io(error).into(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Opened>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the version of the format that readers need from the file's header ("Database File Format", section 1.3).
pub fn is_in_wal_mode(path: &Path) -> bool {
    let mut header = [0; 20];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut header)).is_ok() && header[19] == 2
}

/// Reads how the tables are made that the settings name, or everything that is wrong with them.
pub async fn read_tables(
    sqlite: &mut SqliteConnection,
    settings: &config::Sqlite,
    owner: Owner,
) -> Result<Result<Tables, Vec<SchemaProblem>>, SqliteError> {
    let events = read_relation(sqlite, &settings.events_table).await?;
    let jobs = if settings.jobs_table.is_empty() { None } else { read_relation(sqlite, &settings.jobs_table).await? };
    let names = names(sqlite).await?;
    let is_own = owner == Owner::Jobcast;
    let mut tables = Tables::resolve(settings, events.as_ref(), jobs.as_ref(), &names, is_own);
    if let (Ok(found), Some(relation)) = (&tables, &events)
        && let Some(problem) = numbers::find_problem(sqlite, settings, relation, &found.events).await
    {
        return Ok(Err(vec![problem]));
    }
    if let Ok(tables) = &mut tables {
        tables.events.is_indexed = tables.finds_jobs_by_index(sqlite).await?;
    }
    Ok(tables)
}

/// Tells whether everything that [`SCHEMA`] makes is there.
async fn is_complete(sqlite: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let made: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM sqlite_schema WHERE name IN ('runner_jobs', 'job_events', 'jobcast_changes',
           'runner_jobs_changed', 'job_events_job_id', 'job_events_job_seq',
           'job_events_make_job', 'runner_jobs_made', 'runner_jobs_status')",
    )
    .fetch_one(&mut *sqlite)
    .await?;
    if made < 9 {
        return Ok(false);
    }
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM jobcast_changes)").fetch_one(sqlite).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::error::{SourceCode, SourceError};
    use crate::event::{JobId, Payload};
    use crate::source::{Limit, NewEvent, PageResult, Source, open};
    use crate::sse::{JobEnd, Reset};
    use std::sync::Arc;

    const LIMIT: Limit = Limit { events: 10, bytes: 1 << 20 };

    fn job() -> JobId {
        "job".parse().expect("an id")
    }

    async fn open_at(path: &Path) -> Arc<dyn Source> {
        let mut settings = config::Source::default();
        settings.sqlite.path = path.to_path_buf();
        open(&settings).await.expect("the source")
    }

    async fn append(to: &dyn Source, id: &str) -> Result<(), SourceError> {
        let (kind, timestamp) = ("x".to_string(), jiff::Timestamp::UNIX_EPOCH);
        let event = NewEvent { id: id.into(), step_id: None, kind, timestamp, actor: None, payload: Payload::null() };
        to.append(&job(), vec![event]).await.map(drop)
    }

    async fn ids(source: &dyn Source) -> Result<Vec<String>, SourceError> {
        match source.page(&job(), &source.beginning(&job()), LIMIT).await? {
            PageResult::Page(page) => Ok(page.events.into_iter().map(|(event, _)| event.id).collect()),
            other => panic!("no page: {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_replaced_file_is_said_to_watched_jobs_and_everybody_goes_on_with_the_new_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, new) = (folder.path().join("jobs.db"), folder.path().join("new.db"));
        let source = open_at(&path).await;
        append(&*source, "a").await.expect("stored");
        let mut tail = source.tail();
        tail.watch(job(), source.beginning(&job()));
        assert_eq!(tail.read(&[]).await.expect("news").jobs[0].events.len(), 1);

        append(&*open_at(&new).await, "b").await.expect("stored");
        let mut rows = Owner::Jobcast.options(&new).connect().await.expect("a connection");
        sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut rows).await.expect("one file");
        std::fs::rename(&new, &path).expect("renamed");
        for old in ["jobs.db-wal", "jobs.db-shm"] {
            std::fs::remove_file(folder.path().join(old)).expect("removed");
        }

        let error = append(&*source, "lost").await.expect_err("no answer from a deleted file");
        assert_eq!((error.code, error.is_retryable()), (SourceCode::Unavailable, true), "{error}");
        assert_eq!(ids(&*source).await.expect_err("no answer from a deleted file").code, SourceCode::Unavailable);
        let news = tail.read(&[]).await.expect("news");
        assert_eq!(news.jobs[0].end, Some(JobEnd::Lost(Reset::Rewound)));
        append(&*source, "c").await.expect("stored");
        assert_eq!(ids(&*source).await.expect("a page"), ["b", "c"]);
        tail.watch(job(), source.beginning(&job()));
        assert_eq!(tail.read(&[]).await.expect("news").jobs[0].events.len(), 2);
    }

    #[tokio::test]
    async fn a_read_that_takes_too_long_is_interrupted_and_the_connection_serves_the_next_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = config::Sqlite { path: folder.path().join("jobs.db"), ..config::Sqlite::default() };
        let database = Database::new(&settings, Duration::from_millis(50));
        let mut connected = database.open().await.expect("a file");
        let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n";
        for _ in 0..2 {
            let (mut reader, _) = database.reader().await.expect("a connection");
            let error = sqlx::query(endless).fetch_one(&mut *reader).await.expect_err("no end");
            assert_eq!(SqliteError::from(error).code(), SourceCode::TimedOut);
            database.begin_read(&mut connected.sqlite).await.expect("a read");
            let one: i64 = sqlx::query_scalar("SELECT 1").fetch_one(&mut connected.sqlite).await.expect("a row");
            assert_eq!(one, 1);
            let error = sqlx::query(endless).fetch_one(&mut connected.sqlite).await.expect_err("no end");
            assert_eq!(SqliteError::from(error).code(), SourceCode::TimedOut);
        }
        assert!(SourceError::new(SourceCode::TimedOut, "", "", "").is_retryable());
    }

    #[tokio::test]
    async fn a_removed_file_is_an_outage_until_it_is_back_and_no_new_one_is_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, away) = (folder.path().join("jobs.db"), folder.path().join("away.db"));
        let source = open_at(&path).await;
        append(&*source, "a").await.expect("stored");
        let mut tail = source.tail();
        tail.watch(job(), source.beginning(&job()));
        tail.read(&[]).await.expect("news");

        std::fs::rename(&path, &away).expect("renamed");
        for result in [append(&*source, "b").await, ids(&*source).await.map(drop), tail.read(&[]).await.map(drop)] {
            let error = result.expect_err("an outage");
            assert_eq!((error.code, error.is_retryable()), (SourceCode::Unavailable, true), "{error}");
        }
        std::fs::write(&path, b"").expect("an empty file");
        assert_eq!(tail.read(&[]).await.expect_err("an outage").code, SourceCode::Unavailable);
        assert_eq!(std::fs::metadata(&path).expect("a file").len(), 0, "nothing was written into it");
        std::fs::rename(&away, &path).expect("renamed");
        append(&*source, "b").await.expect("stored");
        let news = tail.read(&[]).await.expect("news");
        let read: Vec<_> = news.jobs[0].events.iter().map(|(event, _)| event.id.as_str()).collect();
        assert_eq!((read, &news.jobs[0].end), (vec!["b"], &None));
    }

    #[tokio::test]
    async fn a_start_during_another_process_writing_serves_at_once_or_when_the_lock_is_free() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, empty) = (folder.path().join("jobs.db"), folder.path().join("empty.db"));
        append(&*open_at(&path).await, "a").await.expect("stored");
        let mut writer = Owner::Jobcast.options(&path).connect().await.expect("a connection");
        sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut writer).await.expect("a lock");
        assert_eq!(ids(&*open_at(&path).await).await.expect("a page"), ["a"], "tables that are there need no lock");

        let foreign = sqlx::sqlite::SqliteConnectOptions::new().filename(&empty).create_if_missing(true);
        let mut writer = foreign.connect().await.expect("a connection");
        sqlx::raw_sql("CREATE TABLE t (x); BEGIN EXCLUSIVE").execute(&mut writer).await.expect("a lock");
        let mut settings = config::Source::default();
        (settings.sqlite.path, settings.sqlite.create) = (empty, Create::Always);
        let source = open(&settings).await.expect("the source");
        assert_eq!(append(&*source, "a").await.expect_err("locked").code, SourceCode::Busy);
        let mut tail = source.tail();
        assert_eq!(tail.read(&[]).await.expect_err("locked").code, SourceCode::Busy);
        sqlx::raw_sql("ROLLBACK").execute(&mut writer).await.expect("unlocked");
        tail.read(&[]).await.expect("news");
        append(&*source, "a").await.expect("stored");
        assert_eq!(ids(&*source).await.expect("a page"), ["a"]);
    }
}
