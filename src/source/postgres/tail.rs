//! Tails the event table for all watched jobs: one statement finds the jobs that have something new, and the statuses
//! that changed; then each of those jobs is read from its own position.
//!
//! If no transaction has ended since the last look, comparing snapshots is all that a look costs. Where a column has the
//! transactions, new rows are found by its index. Elsewhere they are found by number, or else by timestamp (`tail/reaches.rs`),
//! which promise nothing, so every watched job is read whole now and then (`tail/sweep.rs`). Only the reads decide what is
//! delivered and how far a position gets, and they are exact. A look that misses a row makes it late, not lost.

mod endings;
mod levels;
mod looks;
mod reaches;
mod sweep;

use super::draft::{Draft, READ_LIMIT};
use super::ends::Reached;
use super::error::QueryError;
use super::listener::listen;
use super::many::FirstRows;
use super::page::raw_bytes;
use super::position::Position;
use super::session::Session;
use super::snapshot::Snapshot;
use super::spelling::{other_spellings, spellings};
use super::sql::{self, ChangesQuery, NewRows};
use super::standby::StandbyLag;
use super::store::Store;
use super::tables::{Tables, XidSource};
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::event::JobId;
use crate::source::awaited::AwaitedJobs;
use crate::source::faults::{Faults, Refusal};
use crate::source::{Ending, Endings, JobNews, Joiner, Limit, News, Tail, Wakeup};
use crate::sse::Reset;
use crate::supervise::restarted;
use async_trait::async_trait;
pub use reaches::ReachedPlace;
use reaches::Reaches;
use sqlx::postgres::PgRow;
use sqlx::{Row, ValueRef};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;
use sweep::Sweep;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// The tail of a PostgreSQL source.
pub struct PostgresTail {
    store: Arc<Store>,
    /// Called by the listener.
    notified: Arc<Notify>,
    /// `None` where no notifications are asked for.
    listener: Option<JoinHandle<()>>,
    /// Watched jobs, with the position of what was published of each.
    positions: BTreeMap<JobId, Position>,
    /// Jobs that the next reads come to: new watches, and those that a read had no room for.
    pending: BTreeSet<JobId>,
    /// New watches of which it is not known yet whether an event has ended the job.
    unchecked: BTreeSet<JobId>,
    /// Watched jobs that have ended, and whose end is not published yet: not before the grace is over, nor while a
    /// transaction may still write that had begun when the end was seen. Each has the xmax of that look.
    endings: Endings<u64>,
    /// Texts of the status column of watched jobs, as they were seen last.
    statuses: BTreeMap<JobId, String>,
    /// Pending jobs for whose next rows a cursor has no room, since when: the read waits until some transactions have ended.
    cramped: BTreeMap<JobId, Instant>,
    /// Watched jobs whose rows cannot be read now.
    faults: Faults,
    /// A look for new rows and statuses that failed by some row.
    whole_look: Refusal,
    /// The same of one for statuses alone.
    status_look: Refusal,
    awaited: AwaitedJobs,
    /// `None` after an error, and where it means nothing any more: then the next look is a full one.
    seen: Option<SeenSnapshot>,
    /// Source of the transaction ids that the last look went by, also if it failed. `None` before the first.
    xid_source: Option<XidSource>,
    sweep: Sweep,
    reaches: Reaches,
    /// Time since which the database has known less than was published.
    behind_since: Option<Instant>,
    standby_lag: StandbyLag,
}

/// Snapshot of the last look, which the next one builds on.
struct SeenSnapshot {
    snapshot: Snapshot,
    /// The database has notified since, so it is not asked again whether anything has changed.
    is_outdated: bool,
    /// The level of the look, where it has one.
    level: Option<Position>,
}

/// The result of a look.
struct Changes {
    snapshot: Snapshot,
    /// `None` if nothing has changed since the last look.
    found: Option<Found>,
    /// The level that jobs are read up to: the look has found all jobs with rows of it that were not published. `None`
    /// where each is read as far as there is something to read.
    level: Option<Position>,
}

#[derive(Default)]
struct Found {
    /// Jobs with rows that may be new.
    jobs: Vec<JobId>,
    /// Texts of the status column that are not those that are known.
    statuses: BTreeMap<JobId, String>,
    /// Awaited jobs that are there.
    appeared: Vec<JobId>,
    /// Numbers of the lowest times among the new rows at the table's end.
    at_end: BTreeMap<JobId, i64>,
    /// Number of the table's blocks.
    blocks: Option<u64>,
}

/// The jobs that a read comes to.
struct Selection {
    /// In the order of reading; a job may occur more than once.
    jobs: Vec<JobId>,
    /// Jobs whose end is published if this read reads them to their end.
    completable: BTreeSet<JobId>,
    /// The level of the look.
    level: Option<Position>,
}

impl PostgresTail {
    pub fn new(store: Arc<Store>) -> Self {
        let notified = Arc::new(Notify::new());
        let channel = store.settings.listen.clone();
        let is_listening = !channel.is_empty();
        let listening = (store.clone(), notified.clone());
        let listen = move || listen(listening.0.clone(), channel.clone(), listening.1.clone());
        let listener = is_listening.then(|| tokio::spawn(restarted("listen", listen)));
        Self {
            notified,
            listener,
            positions: BTreeMap::new(),
            pending: BTreeSet::new(),
            unchecked: BTreeSet::new(),
            endings: Endings::new(store.ends.grace()),
            statuses: BTreeMap::new(),
            cramped: BTreeMap::new(),
            faults: Faults::default(),
            whole_look: Refusal::default(),
            status_look: Refusal::default(),
            awaited: AwaitedJobs::default(),
            seen: None,
            xid_source: None,
            sweep: Sweep::default(),
            reaches: Reaches::default(),
            behind_since: None,
            standby_lag: StandbyLag::default(),
            store,
        }
    }
}

impl Drop for PostgresTail {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
    }
}

#[async_trait]
impl Tail for PostgresTail {
    fn watch(&mut self, job: JobId, after: Cursor) {
        if self.positions.contains_key(&job) {
            return self.endings.repeat(&job);
        }
        let position = Position::from_cursor(&job, after.as_str()).unwrap_or_default();
        self.pending.insert(job.clone());
        self.unchecked.insert(job.clone());
        self.positions.insert(job, position);
    }

    fn unwatch(&mut self, job: &JobId) {
        self.positions.remove(job);
        self.pending.remove(job);
        self.unchecked.remove(job);
        self.cramped.remove(job);
        self.statuses.remove(job);
        self.faults.remove(job);
        self.reaches.remove(job);
        self.sweep.remove(job);
        self.endings.unwatch(&self.store.ends, job);
    }

    fn await_jobs(&mut self, jobs: Vec<JobId>) {
        self.awaited.replace(jobs);
    }

    async fn woken(&mut self) -> Wakeup {
        tokio::select! {
            () = self.notified.notified() => {}
            () = self.endings.next_due() => return Wakeup::End,
        }
        if let Some(seen) = &mut self.seen {
            seen.is_outdated = true;
        }
        Wakeup::Notify
    }

    async fn read(&mut self, joining: &[Joiner]) -> Result<News, SourceError> {
        let store = self.store.clone();
        let tables = store.tables().await?;
        match self.read_with(&store, tables, joining).await {
            Ok(news) => Ok(news),
            Err(error) => {
                // The last look may have been at another server.
                self.seen = None;
                Err(store.table_error("reading new events", error).await)
            }
        }
    }
}

impl PostgresTail {
    async fn read_with(&mut self, store: &Store, tables: Arc<Tables>, joining: &[Joiner]) -> Result<News, QueryError> {
        let connection = store.tail_pool.get().await?;
        self.try_read(&mut Session { store, connection, tables }, joining).await
    }

    /// Looks, and reads what the look found. Until everything was read, it changes nothing that a second try needs.
    async fn try_read(&mut self, session: &mut Session<'_>, joining: &[Joiner]) -> Result<News, QueryError> {
        let began = Instant::now();
        self.go_by(session.tables.best.xids);
        let changes = self.find_changes(session).await?;
        self.standby_lag.measure(session, changes.snapshot.is_standby).await?;
        if let Some(news) = self.check_rewound(&changes.snapshot, joining) {
            return Ok(news);
        }
        let mut endings = self.updated_endings(session, &changes);
        self.note_found_at_end(session, &changes);
        self.sweep_if_due(session, &changes);
        let selection = self.select_jobs(began, &changes, &endings);
        let mut draft = self.read_jobs(session, joining, &selection).await?;
        let level = selection.level.as_ref();
        let caught_up_joiners = self.serve_joiners(session, joining, level, &mut draft).await?;
        self.detect_endings(session, &changes.snapshot, &mut draft, &mut endings).await?;
        // Nothing fails from here on.
        self.endings = endings;
        self.awaited.were_looked_for();
        session.store.ends.note_look(began, Reached::by(&changes.snapshot));
        let appeared = changes.found.as_ref().map(|found| found.appeared.clone()).unwrap_or_default();
        let jobs = self.apply(session, began, changes, selection, draft);
        let faults = self.faults.to_news();
        Ok(News {
            jobs,
            caught_up_joiners,
            level: self.level(),
            more: self.pending.iter().any(|job| !self.cramped.contains_key(job)),
            outage: None,
            faults,
            appeared,
        })
    }

    /// Notices that the tables have other transaction ids than at the last look, which means nothing by the new ones.
    fn go_by(&mut self, xid_source: XidSource) {
        if self.xid_source.replace(xid_source).is_some_and(|last| last != xid_source) {
            self.seen = None;
            self.pending.extend(self.positions.keys().cloned());
            self.sweep.add(self.positions.keys().cloned());
        }
    }

    fn changes_sql(&self, session: &Session<'_>) -> String {
        let xids = session.tables.best.xids;
        let since = match &self.seen {
            Some(look) => look.snapshot.mark(),
            None => self.positions.values().map(|position| position.settled().lowest_open()).min().unwrap_or(0),
        };
        let new_rows = match (&self.seen, xids) {
            // A standby's snapshot does not list the open transactions.
            (Some(SeenSnapshot { snapshot, .. }), XidSource::Column) if !snapshot.is_standby => {
                NewRows::NotVisibleIn { snapshot: &snapshot.text, durable_xid: snapshot.durable_xid }
            }
            (_, XidSource::Column) => NewRows::Since(since),
            (_, XidSource::System) => self.rows_above(session, since),
        };
        let awaited: Vec<&str> = self.awaited.jobs().map(JobId::as_str).collect();
        let finds_all_new = matches!(new_rows, NewRows::NotVisibleIn { .. });
        let awaited_events = if finds_all_new && !self.awaited.has_new() { Vec::new() } else { awaited.clone() };
        let query = ChangesQuery {
            jobs: self.readable().map(JobId::as_str).collect(),
            new_rows,
            by_status: self.jobs_by_status(),
            awaited,
            awaited_events,
        };
        sql::changes(&session.tables.rows(session.tables.best), session.durable_xid(), &query)
    }

    /// The watched jobs without those whose rows cannot be read, which would make a look fail for all.
    fn readable(&self) -> impl Iterator<Item = &JobId> {
        self.positions.keys().filter(|job| !self.faults.contains(job))
    }

    /// Returns the watched jobs that can be read by the status that is known of them.
    fn jobs_by_status(&self) -> BTreeMap<Option<&str>, Vec<&str>> {
        let mut by_status: BTreeMap<Option<&str>, Vec<&str>> = BTreeMap::new();
        for job in self.readable() {
            by_status.entry(self.statuses.get(job).map(String::as_str)).or_default().push(job.as_str());
        }
        by_status
    }

    fn parse_changes(&self, session: &Session<'_>, rows: &[PgRow]) -> Result<Changes, QueryError> {
        let (mut snapshot, mut found) = (None, Found::default());
        // Most looks find nothing but the snapshot.
        let columns = session.tables.job_id_columns().map(|column| column.filter(|_| rows.len() > 1));
        let awaited = spellings(columns, self.awaited.jobs());
        let [in_events, in_jobs] = columns.map(|column| other_spellings(column, self.positions.keys()));
        for row in rows {
            if !row.try_get_raw("snapshot_text")?.is_null() {
                snapshot = Some(session.snapshot_of(row)?);
                found.blocks = row.try_get::<Option<i64>, _>("at_end")?.map(i64::cast_unsigned);
                continue;
            }
            // Nobody can ask for a job that has no id, or one that is no text.
            let Some(Ok(spelled)) = raw_bytes(row, "job_id")?.map(String::from_utf8) else { continue };
            let status: Option<String> = row.try_get("status")?;
            found.appeared.extend(awaited.get(&spelled).into_iter().flatten().map(|job| (*job).clone()));
            let others = if status.is_none() { &in_events } else { &in_jobs };
            let same = spelled.parse().ok().filter(|job| self.positions.contains_key(job));
            let others = others.get(&spelled).into_iter().flatten().map(|job| (*job).clone());
            let jobs = same.into_iter().chain(others);
            let at_end: Option<i64> = row.try_get("at_end")?;
            match status {
                None => jobs.for_each(|job| {
                    found.at_end.extend(at_end.map(|lowest| (job.clone(), lowest)));
                    found.jobs.push(job);
                }),
                Some(status) => found.statuses.extend(jobs.map(|job| (job, status.clone()))),
            }
        }
        Ok(Changes { snapshot: snapshot.ok_or(QueryError::NoRow)?, found: Some(found), level: None })
    }

    /// Returns news if the database knows less than was published. A standby that lags may come to it. After
    /// `source.settle` it is taken for another database, or one that was restored: then no cursor counts any more.
    fn check_rewound(&mut self, snapshot: &Snapshot, joining: &[Joiner]) -> Option<News> {
        if self.positions.values().all(|position| snapshot.may_know(position)) {
            self.behind_since = None;
            return None;
        }
        let since = *self.behind_since.get_or_insert_with(Instant::now);
        if since.elapsed() < self.store.settle {
            return Some(News::nothing(joining));
        }
        self.behind_since = None;
        self.seen = None;
        self.pending.clear();
        self.endings.clear();
        self.statuses.clear();
        self.cramped.clear();
        self.store.ends.clear();
        self.faults.clear();
        self.reaches = Reaches::default();
        self.sweep = Sweep::default();
        let lost = |job| JobNews::lost(job, Reset::Rewound);
        let jobs = std::mem::take(&mut self.positions).into_keys().map(lost).collect();
        Some(News { jobs, ..News::nothing(joining) })
    }

    /// Selects the jobs to read: those with news, then those that may be completed, then the pending ones.
    fn select_jobs(&self, began: Instant, changes: &Changes, endings: &Endings<u64>) -> Selection {
        let is_settled = |ending: &Ending<u64>| {
            changes.snapshot.xmin >= ending.mark || ending.seen_at.elapsed() >= self.store.settle
        };
        let completable = endings.due(began).filter(|(_, ending)| is_settled(ending)).map(|(job, _)| job.clone());
        let completable: BTreeSet<JobId> = completable.collect();
        let mut jobs = changes.found.as_ref().map(|found| found.jobs.clone()).unwrap_or_default();
        jobs.extend(completable.iter().chain(&self.pending).chain(self.faults.due()).cloned());
        jobs.retain(|job| !self.faults.is_waiting(job));
        Selection { jobs, completable, level: changes.level.clone() }
    }

    /// Reads the jobs that somebody joins, then the selected ones, as far as there is room.
    async fn read_jobs(
        &self,
        session: &mut Session<'_>,
        joining: &[Joiner],
        selection: &Selection,
    ) -> Result<Draft, QueryError> {
        let (mut draft, mut first_rows) = (Draft::new(), FirstRows::default());
        let joined: BTreeSet<&JobId> = joining.iter().map(|joiner| &joiner.job).collect();
        for job in joined.iter().copied().chain(&selection.jobs) {
            let is_over = draft.done.contains(job) || draft.failed.contains_key(job) || self.faults.is_waiting(job);
            if !draft.is_full() && !is_over {
                let is_whole = joined.contains(job) || selection.completable.contains(job) || self.sweep.has_left(job);
                let began = Instant::now();
                let read = match self.read_up_to_level(session, job, selection, &mut first_rows, &mut draft).await {
                    Ok(false) => self.read_job(session, job, is_whole, &mut draft).await,
                    read => read.map(drop),
                };
                draft.narrow(job, read)?;
                if self.sweep.has_left(job) {
                    draft.swept_for += began.elapsed();
                }
            }
        }
        Ok(draft)
    }

    /// Reads one job, if it is watched, from its position on.
    async fn read_job(
        &self,
        session: &mut Session<'_>,
        job: &JobId,
        is_whole: bool,
        draft: &mut Draft,
    ) -> Result<(), QueryError> {
        let position = draft.positions.get(job).or_else(|| self.positions.get(job));
        let Some(mut position) = position.cloned() else { return Ok(()) };
        draft.jobs_read += 1;
        if !is_whole && self.read_above_floor(session, job, &position, draft).await? {
            return Ok(());
        }
        let limit = Limit { events: draft.batch.room(), ..READ_LIMIT };
        let can_wait = self.cramped.get(job).is_none_or(|since| since.elapsed() < self.store.settle);
        let rows = session.read_rows(self.scope(job, limit), &mut position, can_wait).await?;
        if rows.is_cramped() {
            draft.cramped.insert(job.clone());
        }
        let reached = ReachedPlace::of(&rows);
        let delivered = rows.deliver(job, &mut position, limit);
        draft.add(job, position, delivered, reached);
        Ok(())
    }

    /// Takes over what was read, and returns the news. Never fails.
    fn apply(
        &mut self,
        session: &Session<'_>,
        began: Instant,
        changes: Changes,
        selection: Selection,
        draft: Draft,
    ) -> Vec<JobNews> {
        let Draft { mut batch, positions, done, failed, cramped, reached, swept_for, .. } = draft;
        let since = cramped.into_iter().map(|job| (self.cramped.get(&job).copied().unwrap_or(began), job));
        self.cramped = since.map(|(since, job)| (job, since)).collect();
        positions.keys().filter(|job| !failed.contains_key(job)).for_each(|job| self.faults.remove(job));
        self.unchecked.retain(|job| self.faults.contains(job) || failed.contains_key(job));
        // An event of theirs may be below what is looked for when they can be read again.
        self.sweep.add(failed.keys().cloned());
        for (job, error) in failed {
            self.faults.add(job.clone(), self.store.error("reading new events", error).of_job(job));
        }
        let is_unread = |job: &JobId| !done.contains(job) && self.positions.contains_key(job);
        let is_unread = |job: &JobId| is_unread(job) && !self.faults.contains(job);
        self.pending = selection.jobs.into_iter().filter(is_unread).collect();
        self.positions.extend(positions);
        self.learn_reaches(reached);
        self.reaches.learn_blocks(&changes);
        self.sweep.go_on(swept_for, |job| !done.contains(job) && self.positions.contains_key(job));
        if changes.found.is_some() && session.tables.best.xids == XidSource::Column {
            // The index found all new rows. So every other job has nothing undelivered below the mark.
            for (job, position) in &mut self.positions {
                if !self.pending.contains(job) && !done.contains(job) && !self.faults.contains(job) {
                    match changes.level.as_ref().filter(|level| position.is_below(level)) {
                        Some(level) => *position = level.clone(),
                        None => position.finish(&position.next_end(changes.snapshot.mark())),
                    }
                    position.adopt(session.tables.best);
                }
            }
        }
        self.seen = Some(SeenSnapshot { snapshot: changes.snapshot, is_outdated: false, level: changes.level });
        self.tell_statuses(session, changes.found, &mut batch);
        self.end_due(session, began, |job| selection.completable.contains(job) && done.contains(job), &mut batch);
        batch.into_jobs()
    }
}
