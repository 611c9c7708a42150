//! The tail of the file: woken by our own writer, and by changes of the file for what other processes write.
//!
//! The number of a row is the order of commits for all jobs together, so all live jobs are at one mark, and one query reads
//! the news of all of them. A job whose watch begins before the mark is *catching up* first, in the read that it begins
//! with. Where each job has numbers of its own ([`Numbering::Job`]), each live job has a mark of its own, too, and is read
//! by itself when the file has changed.
//!
//! A job whose own rows cannot be read is not live: it goes back to catching up, from where it was, and waits longer after each
//! failure.
//!
//! Invariant: `temp.watched` holds `live` on the present connection, and every job in it is read up to its mark.

use super::changes::{Changes, Mark, Reached, SqliteEnds, find_jobs, look};
use super::database::{Connected, Database, FileId};
use super::error::SqliteError;
use super::file_watch::FileWatch;
use super::position::Position;
use super::reads::{
    CaughtUpWatches, READ, ReadUpTo, catch_up_joiners, catch_up_watches, delete_watched, ensure_connection,
    insert_watched, read_new_rows, read_version,
};
use super::tables::{Numbering, Tables};
use crate::cursor::Cursor;
use crate::error::{SourceCode, SourceError};
use crate::event::{Event, JobId, JobStatus};
use crate::source::awaited::AwaitedJobs;
use crate::source::faults::Faults;
use crate::source::{Endings, JobNews, Joiner, News, Tail, TailBatch, Wakeup};
use crate::sse::{JobEnd, Reset};
use async_trait::async_trait;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Notify;

pub struct SqliteTail {
    database: Arc<Database>,
    /// `None` before the first read, and after a failed one.
    connection: Option<Connected>,
    /// The file of the last read.
    read_from: Option<FileId>,
    /// Notified by our own writer after each commit.
    written: Arc<Notify>,
    file: FileWatch,

    /// The place up to which all live jobs were read. `None` before the first read.
    mark: Option<Mark>,
    /// The place up to which each live job was read, where each has numbers of its own.
    marks: HashMap<JobId, ReadUpTo>,
    /// The version of a file of others at the last read that was not cut short ([`read_version`]).
    version: Option<i64>,
    /// The highest `runner_jobs.changed` that was read.
    status_mark: i64,
    live: HashSet<JobId>,
    /// Jobs that readers wait for.
    awaited: AwaitedJobs,
    /// Watched jobs that are not live yet.
    catching_up: Vec<(JobId, ReadUpTo)>,
    /// Those of them whose rows cannot be read.
    faults: Faults,
    /// Jobs to be deleted from `temp.watched`.
    unwatched: Vec<JobId>,
    /// Watched jobs with a final status.
    endings: Endings<()>,
    ends: Arc<SqliteEnds>,
}

/// The result of all queries of one read. What is left to do with it cannot fail.
enum ReadResult {
    /// It is another file, or numbers up to the mark were given out anew: a backup was put in place, the table was created
    /// anew, or its newest rows were deleted.
    Rewound {
        newest: Mark,
        file: FileId,
    },
    /// Nothing was written since the last read, and nothing is asked for.
    Unchanged,
    Read(Box<Progress>),
}

struct Progress {
    /// When the read began.
    began: Instant,
    file: FileId,
    tables: Arc<Tables>,
    version: Option<i64>,
    changes: Changes,
    /// The new mark; below `changes.newest` where the read was cut short.
    read_to: Mark,
    batch: TailBatch,
    watches: CaughtUpWatches,
    /// Jobs with a fault, whose next attempt is to be waited for.
    waiting: Vec<(JobId, ReadUpTo)>,
    caught_up_joiners: Vec<Option<Vec<(Event, Cursor)>>>,
    appeared: Vec<JobId>,
}

impl SqliteTail {
    pub fn new(database: Arc<Database>, written: Arc<Notify>, ends: Arc<SqliteEnds>) -> Self {
        Self {
            file: FileWatch::new(database.path()),
            database,
            connection: None,
            read_from: None,
            written,
            mark: None,
            marks: HashMap::new(),
            version: None,
            status_mark: 0,
            live: HashSet::new(),
            awaited: AwaitedJobs::default(),
            catching_up: Vec::new(),
            faults: Faults::default(),
            unwatched: Vec::new(),
            endings: Endings::new(ends.grace()),
            ends,
        }
    }
}

#[async_trait]
impl Tail for SqliteTail {
    fn watch(&mut self, job: JobId, after: Cursor) {
        if self.is_watched(&job) {
            return self.endings.repeat(&job);
        }
        let after = Position::open(&job, after.as_str()).unwrap_or(Position::BEGINNING);
        self.catching_up.push((job, ReadUpTo::Position(after)));
    }

    fn unwatch(&mut self, job: &JobId) {
        let before = self.catching_up.len();
        self.catching_up.retain(|(other, _)| other != job);
        self.endings.unwatch(&self.ends, job);
        self.marks.remove(job);
        self.faults.remove(job);
        if self.live.remove(job) || self.catching_up.len() < before {
            self.unwatched.push(job.clone());
        }
    }

    fn await_jobs(&mut self, jobs: Vec<JobId>) {
        self.awaited.replace(jobs);
    }

    async fn woken(&mut self) -> Wakeup {
        tokio::select! {
            () = self.written.notified() => Wakeup::Ingest,
            () = self.file.check_due() => Wakeup::File,
            () = self.endings.next_due() => Wakeup::End,
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
                if error.code() == SourceCode::Schema {
                    self.database.note_changed_tables();
                }
                Err(self.failed(error))
            }
        }
    }
}

impl SqliteTail {
    fn failed(&self, error: SqliteError) -> SourceError {
        error.during(format!("reading new events from {}", self.database.path().display()))
    }

    /// Runs all queries of a read, and changes nothing but the connection.
    async fn try_read(&mut self, joining: &[Joiner]) -> Result<ReadResult, SqliteError> {
        let began = Instant::now();
        let Connected { sqlite: connection, file, tables } =
            ensure_connection(&mut self.connection, &self.database).await?;
        let (file, tables) = (*file, tables.clone());
        self.database.begin_read(connection).await?;
        if self.read_from.is_some_and(|read| read != file) {
            let newest = look(connection, &tables, (None, 0), &HashSet::new(), &[]).await?.0.newest;
            tracing::warn!(path = %self.database.path().display(), "the database file was replaced by another one");
            return Ok(ReadResult::Rewound { newest, file });
        }
        let version = if tables.is_own { None } else { Some(read_version(connection).await?) };
        let is_unchanged = version.is_some() && version == self.version;
        let is_asked = !joining.is_empty() || self.awaited.has_new();
        let (waiting, due): (Vec<_>, Vec<_>) =
            self.catching_up.iter().cloned().partition(|(job, _)| self.faults.is_waiting(job));
        if is_unchanged && due.is_empty() && self.endings.is_empty() && !is_asked {
            return Ok(ReadResult::Unchanged);
        }
        delete_watched(connection, &tables, &self.unwatched).await?;
        // A job that has ended by this query has all of its events in the queries that follow.
        let catching_up: Vec<&JobId> = due.iter().map(|(job, _)| job).collect();
        if !tables.is_own {
            insert_watched(connection, &tables, catching_up.iter().copied()).await?;
        }
        let marks = (self.mark, self.status_mark);
        let (changes, failed) = look(connection, &tables, marks, &self.live, &catching_up).await?;
        let newest = changes.newest;
        let mark = self.mark.unwrap_or(newest);
        if self.mark.is_some_and(|mark| changes.is_rewound(mark, tables.events.numbering)) {
            tracing::warn!(path = %self.database.path().display(), "numbers of events were given out anew: whoever watches begins anew");
            return Ok(ReadResult::Rewound { newest, file });
        }
        let mut batch = TailBatch::new(READ);
        let has_own_marks = tables.events.numbering == Numbering::Job;
        let read_to = if self.live.is_empty() || newest.seq == mark.seq || has_own_marks {
            Some(newest)
        } else {
            let is_live = |job: &JobId| self.live.contains(job) && !failed.contains_key(job);
            read_new_rows(connection, &tables, (mark, newest), is_live, &mut batch).await?
        };
        let are_read_alone = (has_own_marks && !is_unchanged) || read_to.is_none();
        let read_alone = self.live.iter().filter(|job| are_read_alone || failed.contains_key(*job));
        let place = |job: &JobId| self.marks.get(job).copied().unwrap_or(ReadUpTo::Seq(mark.seq));
        let behind = due.into_iter().chain(read_alone.map(|job| (job.clone(), place(job)))).collect();
        let read_to = read_to.unwrap_or(newest);
        let range = (read_to.seq, newest.seq);
        let watches = catch_up_watches(connection, &tables, (behind, failed), range, &mut batch).await?;
        let reached = |joiner: &Joiner| {
            let job = &joiner.job;
            let is_live = (self.live.contains(job) && !watches.leaves_out(job)) || watches.caught_up.contains_key(job);
            let read_to = match tables.events.numbering {
                Numbering::Table(_) => Some(read_to.seq),
                Numbering::Job => watches.caught_up.get(job).or_else(|| self.marks.get(job)).map(|at| at.seq()),
            };
            read_to.filter(|_| is_live)
        };
        let joining: Vec<(&Joiner, Option<i64>)> = joining.iter().map(|joiner| (joiner, reached(joiner))).collect();
        let caught_up_joiners = catch_up_joiners(connection, &tables, &joining).await?;
        let is_looked_for = !is_unchanged || self.awaited.has_new();
        let awaited: Vec<&JobId> = self.awaited.jobs().filter(|_| is_looked_for).collect();
        let appeared = find_jobs(connection, &tables, &awaited).await?;
        Ok(ReadResult::Read(Box::new(Progress {
            began,
            file,
            tables,
            version,
            changes,
            read_to,
            batch,
            watches,
            waiting,
            caught_up_joiners,
            appeared,
        })))
    }

    /// Moves the tail on to where the queries got, and tells what is new.
    fn apply(&mut self, result: ReadResult, joining: &[Joiner]) -> News {
        let progress = match result {
            ReadResult::Read(progress) => *progress,
            ReadResult::Unchanged => return News { faults: self.faults.to_news(), ..News::nothing(joining) },
            ReadResult::Rewound { newest, file } => {
                self.read_from = Some(file);
                return self.rewind(newest, joining);
            }
        };
        let Progress {
            began,
            file,
            tables,
            version,
            changes,
            read_to,
            mut batch,
            watches,
            waiting,
            caught_up_joiners,
            appeared,
        } = progress;
        self.awaited.were_looked_for();
        self.unwatched.clear();
        let more = read_to.seq < changes.newest.seq || !watches.behind.is_empty();
        let level = match tables.events.numbering {
            Numbering::Table(_) if watches.behind.is_empty() => read_to.level(),
            Numbering::Table(_) | Numbering::Job => None,
        };
        self.read_from = Some(file);
        self.version = version.filter(|_| !more);
        self.mark = Some(read_to);
        self.status_mark = changes.status_mark;
        self.take_watches(watches.caught_up, watches.behind, tables.events.numbering);
        self.take_faults(watches.failed, waiting);
        self.ends.note_look(began, Reached { seq: changes.newest.seq.max(0), changed: changes.status_mark });
        self.note_statuses(changes.statuses, &mut batch);
        self.note_final_types(&mut batch, &tables);
        for job in watches.lost {
            batch.end(&job, JobEnd::Lost(Reset::Rewound));
            self.unwatch(&job);
        }
        for news in batch.jobs().iter().filter(|news| !news.events.is_empty()) {
            self.endings.note_events(&self.ends, &news.job);
        }
        if !more {
            for (job, status) in self.due(began) {
                batch.end(&job, JobEnd::Complete(status));
                self.endings.publish(&self.ends, &job);
            }
        }
        let faults = self.faults.to_news();
        News { jobs: batch.into_jobs(), caught_up_joiners, level, more, outage: None, faults, appeared }
    }

    fn take_watches(
        &mut self,
        caught_up: HashMap<JobId, ReadUpTo>,
        behind: Vec<(JobId, ReadUpTo)>,
        numbering: Numbering,
    ) {
        for (job, at) in caught_up {
            if numbering == Numbering::Job {
                self.marks.insert(job.clone(), at);
            }
            self.faults.remove(&job);
            self.live.insert(job);
        }
        for (job, _) in &behind {
            self.faults.remove(job);
            self.live.remove(job);
            self.marks.remove(job);
        }
        self.catching_up = behind;
    }

    /// Lets jobs wait whose rows cannot be read.
    fn take_faults(&mut self, failed: Vec<(JobId, ReadUpTo, SqliteError)>, waiting: Vec<(JobId, ReadUpTo)>) {
        for (job, at, error) in failed {
            let error = self.failed(error);
            self.faults.add(job.clone(), error);
            self.live.remove(&job);
            self.marks.remove(&job);
            self.catching_up.push((job, at));
        }
        self.catching_up.extend(waiting);
    }

    /// Notes the ends that events bring, where there is no table of jobs.
    fn note_final_types(&mut self, batch: &mut TailBatch, tables: &Tables) {
        let final_type =
            |events: &[(Event, Cursor)]| events.iter().rev().find_map(|(event, _)| tables.final_type(&event.kind));
        let ends = batch.jobs().iter().filter_map(|news| Some((news.job.clone(), Some(final_type(&news.events)?))));
        self.note_statuses(ends.collect(), batch);
    }

    fn note_statuses(&mut self, statuses: Vec<(JobId, Option<JobStatus>)>, batch: &mut TailBatch) {
        for (job, status) in statuses {
            if !self.is_watched(&job) {
                continue;
            }
            if let Some(status) = status {
                batch.set_status(&job, status);
            }
            if let Some(status) = status.filter(|status| status.is_final()) {
                self.endings.begin(&self.ends, &job, status, ());
            } else {
                self.endings.remove(&self.ends, &job);
            }
        }
    }

    fn is_watched(&self, job: &JobId) -> bool {
        self.live.contains(job) || self.catching_up.iter().any(|(other, _)| other == job)
    }

    /// Returns the live jobs whose end is due, for a read that began then.
    fn due(&self, began: Instant) -> Vec<(JobId, JobStatus)> {
        let due = self.endings.due(began).filter(|(job, _)| self.live.contains(*job));
        due.map(|(job, ending)| (job.clone(), ending.status)).collect()
    }

    /// Ends all watches: nothing that was given out counts any more.
    fn rewind(&mut self, newest: Mark, joining: &[Joiner]) -> News {
        let catching_up = self.catching_up.drain(..).map(|(job, _)| job);
        let watched: Vec<JobId> = self.live.drain().chain(catching_up).collect();
        let jobs = watched.iter().map(|job| JobNews::lost(job.clone(), Reset::Rewound));
        let news = News { jobs: jobs.collect(), ..News::nothing(joining) };
        self.unwatched.extend(watched);
        self.endings.clear();
        self.faults.clear();
        self.ends.clear();
        self.marks.clear();
        self.version = None;
        self.mark = Some(newest);
        self.status_mark = 0;
        news
    }

    /// Gives up a connection that failed. On the next one, live jobs have to catch up, from the mark on.
    fn disconnect(&mut self) {
        self.connection = None;
        self.version = None;
        let mark = ReadUpTo::Seq(self.mark.map_or(i64::MIN, |mark| mark.seq));
        let marks = std::mem::take(&mut self.marks);
        let own = |job: &JobId| marks.get(job).copied().unwrap_or(mark);
        self.catching_up.extend(self.live.drain().map(|job| (job.clone(), own(&job))));
        self.unwatched.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::database::Owner;
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
        let mut rows = Owner::Jobcast.options(&settings.sqlite.path).connect().await.expect("a connection");
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
