//! The file at the configured path, and the connections to it.
//!
//! A file may be removed, or replaced by another one, while connections to it are open. They would go on with a file that
//! nobody else sees. Every use therefore compares the file at the path with the one that was opened. The tail alone opens
//! a file anew, since it also has to tell its watched jobs; readers and the writer use the file that it opened last.

use super::check::check_schema;
use super::error::SqliteError;
use super::{READERS, SCHEMA, options};
use sqlx::ConnectOptions;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{Sqlite, SqliteConnection, SqlitePool, SqlitePoolOptions};
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest wait for other processes' locks while the file is opened. A failed attempt is repeated by the tail.
const OPENING: Duration = Duration::from_secs(1);
/// Steps of SQLite's virtual machine between two looks whether a read takes too long: some ten thousand take a millisecond.
const STEPS_BETWEEN_LOOKS: i32 = 10_000;

pub struct Database {
    path: PathBuf,
    /// Time that one read may take.
    read_timeout: Duration,
    /// `None` until the file could be opened for the first time.
    opened: Mutex<Option<Opened>>,
}

/// A file that has its tables.
#[derive(Clone)]
struct Opened {
    file: FileId,
    /// Connections for everybody but the tail and the writer, which have their own.
    readers: SqlitePool,
}

/// The identity of a file, which it keeps when it is renamed. No other file has it while a connection is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

/// A connection, and the file that it was opened on.
pub struct Connected {
    pub sqlite: SqliteConnection,
    pub file: FileId,
}

impl Database {
    pub fn new(path: &Path, read_timeout: Duration) -> Self {
        Self { path: path.to_path_buf(), read_timeout, opened: Mutex::new(None) }
    }

    pub fn path(&self) -> &Path {
        &self.path
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

    /// Lends a connection for one read, which begins now.
    pub async fn reader(&self) -> Result<PoolConnection<Sqlite>, SqliteError> {
        let mut connection = self.opened_here()?.readers.acquire().await?;
        self.begin_read(&mut connection).await?;
        Ok(connection)
    }

    /// Has SQLite interrupt what runs on a connection once `source.read_timeout` has passed from now on.
    pub async fn begin_read(&self, connection: &mut SqliteConnection) -> Result<(), SqliteError> {
        let until = Instant::now() + self.read_timeout;
        connection.lock_handle().await?.set_progress_handler(STEPS_BETWEEN_LOOKS, move || Instant::now() < until);
        Ok(())
    }

    /// Opens one more connection to the file that was opened last.
    pub async fn connect(&self) -> Result<Connected, SqliteError> {
        let file = self.current()?;
        let sqlite = options(&self.path).connect().await?;
        self.confirm(file)?;
        Ok(Connected { sqlite, file })
    }

    /// Opens the file that is at the path now. Only for the first time, which is the start, it makes the file and the
    /// tables where they are not there.
    pub async fn open(&self) -> Result<Connected, SqliteError> {
        let known = self.lock().as_ref().map(|opened| opened.file);
        if known.is_some() && self.metadata()?.len() == 0 {
            return Err(SqliteError::Missing);
        }
        let before = self.file().ok();
        let opening = options(&self.path).create_if_missing(known.is_none()).busy_timeout(OPENING);
        let mut sqlite = opening.connect().await?;
        let file = self.file()?;
        if before.is_some_and(|before| before != file) {
            return Err(SqliteError::Replaced);
        }
        if known != Some(file) {
            prepare(&mut sqlite, known.is_none()).await?;
            let pool = SqlitePoolOptions::new().max_connections(READERS).acquire_timeout(Duration::from_secs(5));
            let readers = pool.connect_lazy_with(options(&self.path));
            *self.lock() = Some(Opened { file, readers });
        }
        Ok(Connected { sqlite, file })
    }

    fn opened_here(&self) -> Result<Opened, SqliteError> {
        let opened = self.lock().clone().ok_or(SqliteError::NotOpenYet)?;
        self.confirm(opened.file)?;
        Ok(opened)
    }

    fn metadata(&self) -> Result<Metadata, SqliteError> {
        std::fs::metadata(&self.path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => SqliteError::Missing,
            _ => sqlx::Error::Io(error).into(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Opened>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks the tables; makes those that are missing where `may_create` says so. Writes nothing where none is missing, so
/// that a writer's lock does not matter.
async fn prepare(sqlite: &mut SqliteConnection, may_create: bool) -> Result<(), SqliteError> {
    if may_create && !is_complete(sqlite).await? {
        sqlx::raw_sql(SCHEMA).execute(&mut *sqlite).await?;
    }
    match check_schema(sqlite).await?.into_iter().find(|finding| finding.is_problem) {
        Some(problem) => Err(SqliteError::Tables(problem.summary)),
        None => Ok(()),
    }
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
        let mut rows = options(&new).connect().await.expect("a connection");
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
        let database = Database::new(&folder.path().join("jobs.db"), Duration::from_millis(50));
        let mut connected = database.open().await.expect("a file");
        let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n";
        for _ in 0..2 {
            let mut reader = database.reader().await.expect("a connection");
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
        let mut writer = options(&path).connect().await.expect("a connection");
        sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut writer).await.expect("a lock");
        assert_eq!(ids(&*open_at(&path).await).await.expect("a page"), ["a"], "tables that are there need no lock");

        let foreign = sqlx::sqlite::SqliteConnectOptions::new().filename(&empty).create_if_missing(true);
        let mut writer = foreign.connect().await.expect("a connection");
        sqlx::raw_sql("CREATE TABLE t (x); BEGIN EXCLUSIVE").execute(&mut writer).await.expect("a lock");
        let source = open_at(&empty).await;
        assert_eq!(append(&*source, "a").await.expect_err("locked").code, SourceCode::Busy);
        let mut tail = source.tail();
        assert_eq!(tail.read(&[]).await.expect_err("locked").code, SourceCode::Busy);
        sqlx::raw_sql("ROLLBACK").execute(&mut writer).await.expect("unlocked");
        tail.read(&[]).await.expect("news");
        append(&*source, "a").await.expect("stored");
        assert_eq!(ids(&*source).await.expect("a page"), ["a"]);
    }
}
