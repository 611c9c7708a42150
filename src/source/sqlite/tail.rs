//! Tails the file: woken by our own writer and by changes of the file, which others write to.
//!
//! All watched jobs stand at one mark, since `seq` is the order of commits for all of them. A job that begins to be
//! watched at an earlier place first catches up to the mark, in the read that it begins with, as do joining readers.
//!
//! Invariant: `live` is what `temp.watched` holds on the present connection; every job in it stands at `mark`.

use super::{Position, failed, options, read_event};
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::event::{Event, JobId, JobStatus};
use crate::source::{JobNews, Joiner, Limit, News, Tail, TailBatch, Wakeup};
use crate::sse::{JobEnd, Reset};
use async_trait::async_trait;
use futures_util::TryStreamExt;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{ConnectOptions, Row};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The bounds of one read.
const READ: Limit = Limit { events: 1000, bytes: 1 << 20 };

/// The file changes a little before the commit in it can be seen, and several times for one commit: it is looked at
/// after so long, again after four times as long, and so on. The poll makes it certain.
const LOOK_AFTER: Duration = Duration::from_millis(1);
const LOOK_LAST: Duration = Duration::from_millis(64);

pub struct SqliteTail {
    path: PathBuf,
    connection: Option<SqliteConnection>,
    written: Arc<Notify>,
    changed: Arc<Notify>,
    /// Keeps the watch on the directory alive; without it, the poll does.
    _watcher: Option<RecommendedWatcher>,
    /// When to look at the file, and how long after the change that is.
    look: Option<(Instant, Duration)>,

    seen: Seen,
    live: HashSet<JobId>,
    /// Watched, but not level with `mark` yet: the `seq` after which each goes on.
    fresh: Vec<(JobId, i64)>,
    /// To be taken out of `temp.watched`.
    unwatched: Vec<JobId>,
    /// Live jobs with a final status whose events were not all read yet.
    ending: HashMap<JobId, JobStatus>,
}

/// Up to where everything was read.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// `job_events.seq`; none before the first read.
    mark: Option<i64>,
    /// `runner_jobs.changed`
    statuses: i64,
}

impl SqliteTail {
    pub fn new(path: &Path, written: Arc<Notify>) -> Self {
        let changed = Arc::new(Notify::new());
        let watcher = watch_file(path, changed.clone());
        if let Err(error) = &watcher {
            tracing::warn!(%error, "cannot watch the database file for changes; other processes' writes wait for the poll");
        }
        Self {
            path: path.to_path_buf(),
            connection: None,
            written,
            changed,
            _watcher: watcher.ok(),
            look: None,
            seen: Seen::default(),
            live: HashSet::new(),
            fresh: Vec::new(),
            unwatched: Vec::new(),
            ending: HashMap::new(),
        }
    }
}

fn watch_file(path: &Path, changed: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let path = std::path::absolute(path)?;
    let name = path.file_name().unwrap_or_default().to_os_string().into_encoded_bytes();
    let folder = path.parent().unwrap_or(Path::new("/")).to_path_buf();
    let ours = move |path: &PathBuf| {
        path.file_name().is_some_and(|file| {
            // the database, or its -wal; -shm is mapped memory and also ours to write
            file.as_encoded_bytes().strip_prefix(&name[..]).is_some_and(|rest| rest.is_empty() || rest == b"-wal")
        })
    };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let touched =
            event.map_or(true, |event| !matches!(event.kind, EventKind::Access(_)) && event.paths.iter().any(&ours));
        if touched {
            changed.notify_one();
        }
    })?;
    watcher.watch(&folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

#[async_trait]
impl Tail for SqliteTail {
    fn watch(&mut self, job: JobId, after: Cursor) {
        let after = Position::open(&job, after.as_str()).unwrap_or(Position::BEGINNING);
        self.fresh.push((job, after.seq));
    }

    fn unwatch(&mut self, job: &JobId) {
        self.fresh.retain(|(fresh, _)| fresh != job);
        self.ending.remove(job);
        if self.live.remove(job) {
            self.unwatched.push(job.clone());
        }
    }

    async fn woken(&mut self) -> Wakeup {
        loop {
            let look = self.look;
            let time_to_look = async {
                match look {
                    Some((at, _)) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.written.notified() => return Wakeup::Ingest,
                () = self.changed.notified() => {
                    let is_early = look.is_some_and(|(_, wait)| wait == LOOK_AFTER);
                    if !is_early {
                        self.look = Some((Instant::now() + LOOK_AFTER, LOOK_AFTER));
                    }
                }
                () = time_to_look => {
                    let next = look.map(|(_, wait)| wait * 4).filter(|wait| *wait <= LOOK_LAST);
                    self.look = next.map(|wait| (Instant::now() + wait, wait));
                    return Wakeup::File;
                }
            }
        }
    }

    async fn read(&mut self, joining: &[Joiner]) -> Result<News, SourceError> {
        let result = self.try_read(joining).await;
        if result.is_err() {
            // a connection that failed once is not asked again; the next one learns what is watched
            self.connection = None;
            let mark = self.seen.mark.unwrap_or(0);
            self.fresh.extend(self.live.drain().map(|job| (job, mark)));
            self.unwatched.clear();
        }
        result.map_err(|error| failed(format!("reading new events from {}", self.path.display()), error))
    }
}

impl SqliteTail {
    async fn try_read(&mut self, joining: &[Joiner]) -> Result<News, sqlx::Error> {
        let connection = match self.connection.take() {
            Some(connection) => self.connection.insert(connection),
            None => {
                let mut new = options(&self.path).connect().await?;
                sqlx::raw_sql("CREATE TEMP TABLE watched (job_id TEXT PRIMARY KEY) WITHOUT ROWID")
                    .execute(&mut new)
                    .await?;
                self.connection.insert(new)
            }
        };
        if !self.unwatched.is_empty() {
            sqlx::query("DELETE FROM temp.watched WHERE job_id IN (SELECT value FROM json_each(?1))")
                .bind(json(&self.unwatched)?)
                .execute(&mut *connection)
                .await?;
            self.unwatched.clear();
        }

        // One cheap question first: how far the events go, and which statuses changed. A job that has ended by now has
        // all of its events in the reads that begin after this.
        let mut seen = self.seen;
        let mut newest = 0;
        let mut statuses: Vec<(JobId, JobStatus)> = Vec::new();
        let mut rows = sqlx::query(
            "SELECT NULL, NULL, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'job_events'), (SELECT max(seq) FROM job_events), 0)
             UNION ALL SELECT id, status, changed FROM runner_jobs WHERE changed > ?1
             UNION ALL SELECT id, status, ?1 FROM runner_jobs WHERE id IN (SELECT value FROM json_each(?2))",
        )
        .bind(seen.statuses)
        .bind(json(&self.fresh.iter().map(|(job, _)| job).collect::<Vec<_>>())?)
        .fetch(&mut *connection);
        while let Some(row) = rows.try_next().await? {
            let number = row.try_get(2)?;
            match (row.try_get::<Option<String>, _>(0)?, row.try_get::<Option<String>, _>(1)?) {
                (Some(job), Some(status)) => {
                    seen.statuses = seen.statuses.max(number);
                    if let (Ok(job), Ok(status)) = (job.parse(), status.parse()) {
                        statuses.push((job, status));
                    }
                }
                _ => newest = number,
            }
        }
        drop(rows);
        let mark = seen.mark.unwrap_or(newest);
        if newest < mark {
            return Ok(self.rewound(newest, joining));
        }

        let mut news = News::nothing(joining);
        let mut found = TailBatch::new(READ);
        let upto = if self.live.is_empty() || newest == mark {
            newest
        } else {
            let rows = sqlx::query(
                "SELECT seq, id, job_id, step_id, type, timestamp, actor, payload FROM job_events NOT INDEXED
                 WHERE seq > ?1 AND seq <= ?2 AND job_id IN (SELECT job_id FROM temp.watched) ORDER BY seq LIMIT ?3",
            )
            .bind(mark)
            .bind(newest)
            .bind(READ.events as i64)
            .fetch(&mut *connection);
            match take(&mut found, rows).await? {
                Some(cut) => cut,
                None => newest,
            }
        };
        news.more = upto < newest;

        let (caught_up, behind) = self.catch_up(joining, upto, &mut news, &mut found).await?;

        // Everything was read: from here on nothing fails.
        seen.mark = Some(upto);
        news.more |= !behind.is_empty();
        self.seen = seen;
        self.fresh = behind;
        self.live.extend(caught_up);
        for (job, status) in statuses {
            if status.is_final() && (self.live.contains(&job) || self.fresh.iter().any(|(fresh, _)| *fresh == job)) {
                self.ending.insert(job, status);
            } else {
                self.ending.remove(&job);
            }
        }
        let ended: Vec<JobId> = match news.more {
            true => Vec::new(),
            false => self.ending.keys().filter(|job| self.live.contains(*job)).cloned().collect(),
        };
        for job in ended {
            if let Some(status) = self.ending.remove(&job) {
                found.end(&job, JobEnd::Complete(status));
            }
            self.unwatch(&job);
        }
        news.jobs = found.into_jobs();
        Ok(news)
    }

    /// Reads for fresh watches and joining readers up to `upto`; returns the watches that are level with it now, and
    /// those that are not, with the place that each has got to.
    async fn catch_up(
        &mut self,
        joining: &[Joiner],
        upto: i64,
        news: &mut News,
        found: &mut TailBatch,
    ) -> Result<(HashSet<JobId>, Vec<(JobId, i64)>), sqlx::Error> {
        let (mut level, mut behind) = (HashSet::new(), Vec::new());
        let Some(connection) = self.connection.as_mut() else { return Ok((level, behind)) };
        for (job, after) in &self.fresh {
            let (events, is_level) = read_after(connection, job, *after, upto).await?;
            if is_level {
                level.insert(job.clone());
            } else {
                behind.push((job.clone(), events.last().map_or(*after, |(_, last)| last.seq)));
            }
            found.extend(job, sealed(job, events));
        }
        if !level.is_empty() {
            sqlx::query("INSERT OR IGNORE INTO temp.watched SELECT value FROM json_each(?1)")
                .bind(json(&level)?)
                .execute(&mut *connection)
                .await?;
        }
        for (reader, caught_up_joiners) in joining.iter().zip(&mut news.caught_up_joiners) {
            let is_watched = self.live.contains(&reader.job) || level.contains(&reader.job);
            let after = Position::open(&reader.job, reader.after.as_str());
            let Some(after) = after.filter(|after| is_watched && after.seq <= upto) else { continue };
            let (events, is_level) = read_after(connection, &reader.job, after.seq, upto).await?;
            *caught_up_joiners = is_level.then(|| sealed(&reader.job, events));
        }
        Ok((level, behind))
    }

    /// The numbers went back: a backup was put in place, or the table was made anew. Nothing that was given out counts.
    fn rewound(&mut self, newest: i64, joining: &[Joiner]) -> News {
        let fresh = self.fresh.drain(..).map(|(job, _)| job);
        let jobs = self.live.drain().chain(fresh).map(|job| JobNews {
            job,
            events: Vec::new(),
            end: Some(JobEnd::Lost(Reset::Rewound)),
        });
        let news = News { jobs: jobs.collect(), ..News::nothing(joining) };
        self.unwatched = news.jobs.iter().map(|job| job.job.clone()).collect();
        self.ending.clear();
        self.seen = Seen { mark: Some(newest), ..Seen::default() };
        news
    }
}

/// The events of `job` in `(after, upto]`, and whether those are all.
async fn read_after(
    connection: &mut SqliteConnection,
    job: &JobId,
    after: i64,
    upto: i64,
) -> Result<(Vec<(Event, Position)>, bool), sqlx::Error> {
    let mut rows = sqlx::query(
        "SELECT seq, id, job_id, step_id, type, timestamp, actor, payload FROM job_events
         WHERE job_id = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq LIMIT ?4",
    )
    .bind(job.as_str())
    .bind(after)
    .bind(upto)
    .bind(READ.events as i64)
    .fetch(connection);
    let (mut events, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.try_next().await? {
        let (event, position) = read_event(&row, job)?;
        bytes += event.payload.as_json().len();
        events.push((event, position));
        if READ.is_reached_by(events.len(), bytes) {
            return Ok((events, false));
        }
    }
    let is_all = events.len() < READ.events;
    Ok((events, is_all))
}

fn sealed(job: &JobId, events: Vec<(Event, Position)>) -> Vec<(Event, Cursor)> {
    events.into_iter().map(|(event, position)| (event, position.seal(job))).collect()
}

fn json(jobs: &impl serde::Serialize) -> Result<String, sqlx::Error> {
    serde_json::to_string(jobs).map_err(|error| sqlx::Error::Encode(error.into()))
}

/// Takes rows until they end, or one read has enough: then the number of the last one taken.
async fn take(
    batch: &mut TailBatch,
    mut rows: impl futures_util::Stream<Item = Result<SqliteRow, sqlx::Error>> + Unpin,
) -> Result<Option<i64>, sqlx::Error> {
    while let Some(row) = rows.try_next().await? {
        let Ok(job) = row.try_get::<String, _>(2)?.parse::<JobId>() else { continue };
        let (event, position) = read_event(&row, &job)?;
        batch.push(&job, event, position.seal(&job));
        if batch.is_full() {
            return Ok(Some(position.seq));
        }
    }
    Ok(None)
}
