//! The tail of the file: woken by our own writer, and by changes of the file for what other processes write.
//!
//! `seq` is the order of commits for all jobs together, so all live jobs are at one mark, and one query reads the news of
//! all of them. A job whose watch begins before the mark is *catching up* first, in the read that it begins with.
//!
//! Invariant: `live` is what `temp.watched` holds on the present connection, and every job in it is read up to `mark`.

use super::changes::{Changes, find_jobs, read_changes};
use super::database::{Connected, Database, FileId};
use super::error::SqliteError;
use super::file_watch::FileWatch;
use super::position::Position;
use super::rows::{bytes_of, job_of, number_of, read_event};
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::event::{Event, JobId, JobStatus};
use crate::source::{JobNews, Joiner, Limit, News, PageBuilder, Tail, TailBatch, Wakeup};
use crate::sse::{JobEnd, Reset};
use crate::telemetry;
use async_trait::async_trait;
use futures_util::TryStreamExt;
use sqlx::sqlite::SqliteConnection;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::Notify;

/// The bounds of one query of a read.
const READ: Limit = Limit { events: 1000, bytes: 1 << 20 };

pub struct SqliteTail {
    database: Arc<Database>,
    /// `None` before the first read, and after a failed one.
    connection: Option<Connected>,
    /// The file of the last read.
    read_from: Option<FileId>,
    /// Notified by our own writer after each commit.
    written: Arc<Notify>,
    file: FileWatch,

    /// The highest `job_events.seq` that was read. `None` before the first read.
    mark: Option<i64>,
    /// The highest `runner_jobs.changed` that was read.
    status_mark: i64,
    live: HashSet<JobId>,
    /// Jobs that readers wait for.
    awaited: Vec<JobId>,
    /// Watched jobs that are not live yet.
    catching_up: Vec<(JobId, ReadUpTo)>,
    /// Jobs to be deleted from `temp.watched`.
    unwatched: Vec<JobId>,
    /// Watched jobs with a final status, until all of their events are read.
    ending: HashMap<JobId, JobStatus>,
}

/// The place up to which a job that is catching up was read.
#[derive(Clone, Copy)]
enum ReadUpTo {
    /// The position that its watch began with. The file may have been replaced since the position was made.
    Position(Position),
    /// The `seq` that the tail itself got to.
    Seq(i64),
}

impl ReadUpTo {
    fn seq(self) -> i64 {
        match self {
            Self::Position(position) => position.seq,
            Self::Seq(seq) => seq,
        }
    }
}

/// The result of all queries of one read. What is left to do with it cannot fail.
enum ReadResult {
    /// It is another file, or the highest `seq` is below the mark: a backup was put in place, or the table was created
    /// anew.
    Rewound {
        newest: i64,
        file: FileId,
    },
    Read(Box<Progress>),
}

struct Progress {
    file: FileId,
    changes: Changes,
    /// The new mark; below `changes.newest` where the read was cut short.
    read_to: i64,
    batch: TailBatch,
    watches: CaughtUpWatches,
    caught_up_joiners: Vec<Option<Vec<(Event, Cursor)>>>,
    appeared: Vec<JobId>,
}

/// Watches that were catching up before a read, after it.
#[derive(Default)]
struct CaughtUpWatches {
    caught_up: HashSet<JobId>,
    /// Too much was missing for one read, or the read ended before the position of the watch.
    behind: Vec<(JobId, ReadUpTo)>,
    /// Another event has the number of the watch's position.
    lost: Vec<JobId>,
}

impl SqliteTail {
    pub fn new(database: Arc<Database>, written: Arc<Notify>) -> Self {
        Self {
            file: FileWatch::new(database.path()),
            database,
            connection: None,
            read_from: None,
            written,
            mark: None,
            status_mark: 0,
            live: HashSet::new(),
            awaited: Vec::new(),
            catching_up: Vec::new(),
            unwatched: Vec::new(),
            ending: HashMap::new(),
        }
    }
}

#[async_trait]
impl Tail for SqliteTail {
    fn watch(&mut self, job: JobId, after: Cursor) {
        let after = Position::open(&job, after.as_str()).unwrap_or(Position::BEGINNING);
        self.catching_up.push((job, ReadUpTo::Position(after)));
    }

    fn unwatch(&mut self, job: &JobId) {
        self.catching_up.retain(|(other, _)| other != job);
        self.ending.remove(job);
        if self.live.remove(job) {
            self.unwatched.push(job.clone());
        }
    }

    fn await_jobs(&mut self, jobs: Vec<JobId>) {
        self.awaited = jobs;
    }

    async fn woken(&mut self) -> Wakeup {
        tokio::select! {
            () = self.written.notified() => Wakeup::Ingest,
            () = self.file.check_due() => Wakeup::File,
        }
    }

    async fn read(&mut self, joining: &[Joiner]) -> Result<News, SourceError> {
        match self.try_read(joining).await {
            Ok(result) => Ok(self.apply(result, joining)),
            Err(error) => {
                // While the file is away, the open connection keeps another file from getting its number.
                if !matches!(error, SqliteError::Missing) || self.connection.is_none() {
                    self.disconnect();
                }
                Err(error.during(format!("reading new events from {}", self.database.path().display())))
            }
        }
    }
}

impl SqliteTail {
    /// Runs all queries of a read, and changes nothing but the connection.
    async fn try_read(&mut self, joining: &[Joiner]) -> Result<ReadResult, SqliteError> {
        let Connected { sqlite: connection, file } = ensure_connection(&mut self.connection, &self.database).await?;
        let file = *file;
        self.database.begin_read(connection).await?;
        if self.read_from.is_some_and(|read| read != file) {
            let newest = read_changes(connection, 0, &[]).await?.newest;
            tracing::warn!(path = %self.database.path().display(), "the database file was replaced by another one");
            return Ok(ReadResult::Rewound { newest, file });
        }
        delete_watched(connection, &self.unwatched).await?;
        // A job that has ended by this query has all of its events in the queries that follow.
        let catching_up: Vec<&JobId> = self.catching_up.iter().map(|(job, _)| job).collect();
        let changes = read_changes(connection, self.status_mark, &catching_up).await?;
        let newest = changes.newest;
        let mark = self.mark.unwrap_or(newest);
        if newest < mark {
            return Ok(ReadResult::Rewound { newest, file });
        }
        let mut batch = TailBatch::new(READ);
        let read_to = if self.live.is_empty() || newest == mark {
            newest
        } else {
            read_new_rows(connection, mark, newest, &mut batch).await?
        };
        let watches = catch_up_watches(connection, &self.catching_up, read_to, newest, &mut batch).await?;
        let mut caught_up_joiners = Vec::with_capacity(joining.len());
        for joiner in joining {
            let is_live = self.live.contains(&joiner.job) || watches.caught_up.contains(&joiner.job);
            caught_up_joiners.push(if is_live { catch_up_joiner(connection, joiner, read_to).await? } else { None });
        }
        let appeared = find_jobs(connection, &self.awaited).await?;
        let progress = Progress { file, changes, read_to, batch, watches, caught_up_joiners, appeared };
        Ok(ReadResult::Read(Box::new(progress)))
    }

    /// Moves the tail on to where the queries got, and tells what is new.
    fn apply(&mut self, result: ReadResult, joining: &[Joiner]) -> News {
        self.unwatched.clear();
        let Progress { file, changes, read_to, mut batch, watches, caught_up_joiners, appeared } = match result {
            ReadResult::Read(progress) => *progress,
            ReadResult::Rewound { newest, file } => {
                self.read_from = Some(file);
                return self.rewind(newest, joining);
            }
        };
        let more = read_to < changes.newest || !watches.behind.is_empty();
        self.read_from = Some(file);
        self.mark = Some(read_to);
        self.status_mark = changes.status_mark;
        self.live.extend(watches.caught_up);
        self.catching_up = watches.behind;
        self.note_statuses(changes.statuses);
        for job in watches.lost {
            batch.end(&job, JobEnd::Lost(Reset::Rewound));
            self.unwatch(&job);
        }
        if !more {
            for (job, status) in self.take_ended() {
                batch.end(&job, JobEnd::Complete(status));
                self.unwatch(&job);
            }
        }
        News { jobs: batch.into_jobs(), caught_up_joiners, more, outage: None, faults: Vec::new(), appeared }
    }

    fn note_statuses(&mut self, statuses: Vec<(JobId, JobStatus)>) {
        for (job, status) in statuses {
            let is_watched = self.live.contains(&job) || self.catching_up.iter().any(|(other, _)| *other == job);
            if status.is_final() && is_watched {
                self.ending.insert(job, status);
            } else {
                self.ending.remove(&job);
            }
        }
    }

    /// Takes out the live jobs with a final status.
    fn take_ended(&mut self) -> Vec<(JobId, JobStatus)> {
        let live = &self.live;
        self.ending.extract_if(|job, _| live.contains(job)).collect()
    }

    /// Ends all watches: nothing that was given out counts any more.
    fn rewind(&mut self, newest: i64, joining: &[Joiner]) -> News {
        let catching_up = self.catching_up.drain(..).map(|(job, _)| job);
        let watched: Vec<JobId> = self.live.drain().chain(catching_up).collect();
        let jobs = watched.iter().map(|job| JobNews {
            job: job.clone(),
            events: Vec::new(),
            end: Some(JobEnd::Lost(Reset::Rewound)),
        });
        let news = News { jobs: jobs.collect(), ..News::nothing(joining) };
        self.unwatched = watched;
        self.ending.clear();
        self.mark = Some(newest);
        self.status_mark = 0;
        news
    }

    /// Gives up a connection that failed. On the next one, live jobs have to catch up, from the mark on.
    fn disconnect(&mut self) {
        self.connection = None;
        let mark = self.mark.unwrap_or(0);
        self.catching_up.extend(self.live.drain().map(|job| (job, ReadUpTo::Seq(mark))));
        self.unwatched.clear();
    }
}

/// Returns a connection to the file that is at the path now. While there is none, an open connection is kept.
async fn ensure_connection<'a>(
    connection: &'a mut Option<Connected>,
    database: &Database,
) -> Result<&'a mut Connected, SqliteError> {
    let file = database.file()?;
    let open = match connection.take() {
        Some(open) if open.file == file => open,
        _ => {
            let mut new = database.open().await?;
            // Without a type, the ids here compare with `job_events.job_id` as a bound one does in the reads of pages.
            let sql = "CREATE TEMP TABLE watched (job_id BLOB PRIMARY KEY) WITHOUT ROWID";
            sqlx::raw_sql(sql).execute(&mut new.sqlite).await?;
            new
        }
    };
    Ok(connection.insert(open))
}

async fn delete_watched(connection: &mut SqliteConnection, jobs: &[JobId]) -> Result<(), SqliteError> {
    if jobs.is_empty() {
        return Ok(());
    }
    let sql = "DELETE FROM temp.watched WHERE job_id IN
         (SELECT value FROM json_each(?1) UNION ALL SELECT CAST(value AS BLOB) FROM json_each(?1))";
    sqlx::query(sql).bind(serde_json::to_string(jobs)?).execute(connection).await?;
    Ok(())
}

async fn insert_watched(connection: &mut SqliteConnection, jobs: &HashSet<JobId>) -> Result<(), SqliteError> {
    if jobs.is_empty() {
        return Ok(());
    }
    let sql = "INSERT OR IGNORE INTO temp.watched
         SELECT value FROM json_each(?1) UNION ALL SELECT CAST(value AS BLOB) FROM json_each(?1)";
    sqlx::query(sql).bind(serde_json::to_string(jobs)?).execute(connection).await?;
    Ok(())
}

/// Reads the events of live jobs in `(mark, newest]`, as far as the batch takes them. Returns the `seq` up to which
/// everything was read. Rows without a job are counted as skipped.
async fn read_new_rows(
    connection: &mut SqliteConnection,
    mark: i64,
    newest: i64,
    batch: &mut TailBatch,
) -> Result<i64, SqliteError> {
    let mut rows = sqlx::query(
        "SELECT seq, id, job_id, step_id, type, timestamp, actor, payload FROM job_events NOT INDEXED
         WHERE seq > ?1 AND seq <= ?2
           AND (job_id IN (SELECT job_id FROM temp.watched) OR job_id IS NULL)
         ORDER BY seq LIMIT ?3",
    )
    .bind(mark)
    .bind(newest)
    .bind(READ.events as i64)
    .fetch(connection);
    let mut last = mark;
    for _ in 0..READ.events {
        let Some(row) = rows.try_next().await? else { return Ok(newest) };
        if let Some(job) = job_of(bytes_of(&row, 2)?) {
            let (event, position) = read_event(&row, &job)?;
            last = position.seq;
            batch.push(&job, event, position.seal(&job));
        } else {
            last = number_of(&row, 0)?;
            telemetry::SKIPPED.counter(&[]).increment(1);
        }
        if batch.is_full() {
            break;
        }
    }
    Ok(last)
}

/// Reads each new watch up to `read_to`, and adds those that got there to `temp.watched`.
async fn catch_up_watches(
    connection: &mut SqliteConnection,
    catching_up: &[(JobId, ReadUpTo)],
    read_to: i64,
    newest: i64,
    batch: &mut TailBatch,
) -> Result<CaughtUpWatches, SqliteError> {
    let mut watches = CaughtUpWatches::default();
    for (job, after) in catching_up {
        let is_lost = match *after {
            ReadUpTo::Position(position) => position.seq > newest || is_contradicted(connection, job, position).await?,
            ReadUpTo::Seq(_) => false,
        };
        if is_lost {
            watches.lost.push(job.clone());
            continue;
        }
        if after.seq() > read_to {
            // If it was made live here, it would get the events up to its position once more.
            watches.behind.push((job.clone(), *after));
            continue;
        }
        let missing = read_missing(connection, job, after.seq(), read_to).await?;
        if missing.is_all {
            watches.caught_up.insert(job.clone());
        } else {
            watches.behind.push((job.clone(), ReadUpTo::Seq(missing.last)));
        }
        batch.extend(job, missing.events);
    }
    insert_watched(connection, &watches.caught_up).await?;
    Ok(watches)
}

/// Tells whether another event has the number of this position. An event that was deleted contradicts nothing.
async fn is_contradicted(
    connection: &mut SqliteConnection,
    job: &JobId,
    position: Position,
) -> Result<bool, SqliteError> {
    let row = sqlx::query(
        "SELECT CASE WHEN job_id IN (?2, CAST(?2 AS BLOB)) THEN coalesce(id, '') END FROM job_events WHERE seq = ?1",
    )
    .bind(position.seq)
    .bind(job.as_str())
    .fetch_optional(connection)
    .await?;
    Ok(match row {
        Some(row) => !position.is_held_by(bytes_of(&row, 0)?.as_deref()),
        None => false,
    })
}

/// Reads what a joiner of a live job lacks. `None` where its cursor is ahead of the read or of another life of the file,
/// or too much is missing.
async fn catch_up_joiner(
    connection: &mut SqliteConnection,
    joiner: &Joiner,
    read_to: i64,
) -> Result<Option<Vec<(Event, Cursor)>>, SqliteError> {
    let Some(after) = Position::open(&joiner.job, joiner.after.as_str()).filter(|after| after.seq <= read_to) else {
        return Ok(None);
    };
    if is_contradicted(connection, &joiner.job, after).await? {
        return Ok(None);
    }
    let missing = read_missing(connection, &joiner.job, after.seq, read_to).await?;
    Ok(missing.is_all.then_some(missing.events))
}

/// Events of one job in `(after, read_to]`.
struct Missing {
    events: Vec<(Event, Cursor)>,
    /// The `seq` up to which they were read.
    last: i64,
    /// The read was not cut short.
    is_all: bool,
}

async fn read_missing(
    connection: &mut SqliteConnection,
    job: &JobId,
    after: i64,
    read_to: i64,
) -> Result<Missing, SqliteError> {
    let mut rows = sqlx::query(
        "SELECT seq, id, job_id, step_id, type, timestamp, actor, payload FROM job_events
         WHERE job_id = ?1 AND seq > ?2 AND seq <= ?3
         UNION ALL SELECT seq, id, job_id, step_id, type, timestamp, actor, payload FROM job_events
         WHERE job_id = CAST(?1 AS BLOB) AND seq > ?2 AND seq <= ?3
         ORDER BY seq LIMIT ?4",
    )
    .bind(job.as_str())
    .bind(after)
    .bind(read_to)
    .bind(READ.events as i64)
    .fetch(connection);
    let (mut page, mut last) = (PageBuilder::new(READ), after);
    while !page.is_full()
        && let Some(row) = rows.try_next().await?
    {
        let (event, position) = read_event(&row, job)?;
        last = position.seq;
        page.push(event, position.seal(job));
    }
    let is_all = !page.is_full();
    Ok(Missing { events: page.into_events(), last, is_all })
}

#[cfg(test)]
mod tests {
    use super::super::options;
    use super::*;
    use crate::config;
    use crate::source::open;
    use sqlx::ConnectOptions;

    #[tokio::test]
    async fn a_read_has_one_entry_for_each_joiner_also_where_the_table_was_rewound() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut settings = config::Source::default();
        settings.sqlite.path = folder.path().join("jobs.db");
        let source = open(&settings).await.expect("the source");
        let job: JobId = "job".parse().expect("an id");
        let mut rows = options(&settings.sqlite.path).connect().await.expect("a connection");
        let insert = "INSERT INTO job_events (id, job_id, type) VALUES ('a', 'job', 'x'), ('b', 'job', 'x')";
        sqlx::raw_sql(insert).execute(&mut rows).await.expect("rows");
        let after = source.newest(&job).await.expect("an answer").expect("the job").cursor;

        let mut tail = source.tail();
        tail.watch(job.clone(), after.clone());
        let stranger = Joiner { job: "other".parse().expect("an id"), after: after.clone() };
        let joining = [stranger, Joiner { job: job.clone(), after: source.beginning(&job) }, Joiner { job, after }];
        let news = tail.read(&joining).await.expect("news");
        let counts: Vec<_> = news.caught_up_joiners.iter().map(|missing| missing.as_ref().map(Vec::len)).collect();
        assert_eq!(counts, [None, Some(2), Some(0)]);

        let rewind = "DELETE FROM job_events; UPDATE sqlite_sequence SET seq = 1 WHERE name = 'job_events'";
        sqlx::raw_sql(rewind).execute(&mut rows).await.expect("a rewound table");
        let news = tail.read(&joining).await.expect("news");
        assert_eq!(news.caught_up_joiners.len(), joining.len());
        assert_eq!(news.jobs.len(), 1);
        assert_eq!(news.jobs[0].end, Some(JobEnd::Lost(Reset::Rewound)));
    }
}
