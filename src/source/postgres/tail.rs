//! Tails the table: one look for all watched jobs says which of them have something new, and what statuses became
//! final; then each of those is read from its own position.
//!
//! Where nothing has ended since the last look, a comparison of snapshots is all it costs. Where the table tells
//! transactions in a column, it finds new rows by the index on that; elsewhere it looks back a while by timestamp, which
//! promises nothing, so every watched job is read whole now and then (a *sweep*). What is delivered, and how far a
//! position gets, comes from the reads alone, which are exact: a look that misses something only makes it late.

use super::link::Link;
use super::moment::{MOMENT, MOMENT_COLUMNS, Moment};
use super::position::{Ended, Position};
use super::table::{Age, Ids, Mark, Tables};
use super::{Store, literal};
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::event::{Event, JobId, JobStatus};
use crate::source::{JobNews, Joiner, Limit, News, Tail, Wakeup};
use crate::sse::{JobEnd, Reset};
use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgListener;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// One read of the tail stops at about so much, ...
const READ: Limit = Limit { events: 2000, bytes: 1 << 20 };
/// ... and after so many jobs, so that a sweep of many does not keep the others' news waiting.
const READ_JOBS: usize = 64;

pub struct PostgresTail {
    store: Arc<Store>,
    notified: Arc<Notify>,
    listener: Option<JoinHandle<()>>,
    /// Watched jobs, each with what was delivered of it.
    live: BTreeMap<JobId, Position>,
    /// Jobs for which a look found something that no read has come to yet; new watches, too.
    pending: BTreeSet<JobId>,
    /// New watches of which it is not known yet whether an event has ended them.
    new: BTreeSet<JobId>,
    /// Jobs whose end was seen.
    ending: BTreeMap<JobId, Ending>,
    /// The database has said that there is something.
    is_woken: bool,
    /// The moment of the last look; none after an error.
    seen: Option<Moment>,
    /// How that look found rows.
    age: Option<Age>,
    /// Something has ended since the last sweep.
    has_changed: bool,
    swept: Instant,
    /// Since when the database has been behind what was delivered.
    behind: Option<Instant>,
}

#[derive(Clone)]
struct Ending {
    status: JobStatus,
    /// Transactions at or above it had not begun when the end was seen.
    xmax: u64,
    since: Instant,
}

impl Ending {
    fn seen(status: JobStatus, at: &Moment) -> Self {
        Self { status, xmax: at.xmax, since: Instant::now() }
    }
}

impl PostgresTail {
    pub fn new(store: Arc<Store>) -> Self {
        let notified = Arc::new(Notify::new());
        let channel = store.settings.listen.clone();
        let listener = (!channel.is_empty()).then(|| tokio::spawn(listen(store.clone(), channel, notified.clone())));
        Self {
            store,
            notified,
            listener,
            live: BTreeMap::new(),
            pending: BTreeSet::new(),
            new: BTreeSet::new(),
            ending: BTreeMap::new(),
            is_woken: false,
            seen: None,
            age: None,
            has_changed: true,
            swept: Instant::now(),
            behind: None,
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
        let position = Position::open(&job, after.as_str()).unwrap_or_default();
        self.pending.insert(job.clone());
        self.new.insert(job.clone());
        self.live.insert(job, position);
    }

    fn unwatch(&mut self, job: &JobId) {
        self.live.remove(job);
        self.pending.remove(job);
        self.new.remove(job);
        self.ending.remove(job);
    }

    async fn woken(&mut self) -> Wakeup {
        self.notified.notified().await;
        self.is_woken = true;
        Wakeup::Notify
    }

    async fn read(&mut self, joining: &[Joiner]) -> Result<News, SourceError> {
        let store = self.store.clone();
        let tables = store.tables().await?;
        let read = async {
            let mut link = store.tail_links.get().await?;
            self.try_read(&mut link, &tables, joining).await
        };
        match read.await {
            Ok(news) => Ok(news),
            Err(error) => {
                // whatever the last look knew may be of another server
                self.seen = None;
                Err(store.failed_at_tables("reading new events", error).await)
            }
        }
    }
}

/// What a look found.
struct Look {
    moment: Moment,
    /// False where nothing has ended since the last look: then there was nothing to find.
    has_changed: bool,
    /// Jobs with rows that may be new.
    jobs: Vec<JobId>,
    ended: BTreeMap<JobId, JobStatus>,
}

/// What a read is about to tell, and where positions are to stand once it is told.
#[derive(Default)]
struct Draft {
    positions: BTreeMap<JobId, Position>,
    events: BTreeMap<JobId, Vec<(Event, Cursor)>>,
    /// Read to the end.
    done: BTreeSet<JobId>,
    rows: usize,
    bytes: usize,
    jobs: usize,
}

impl PostgresTail {
    async fn try_read(&mut self, link: &mut Link, tables: &Tables, joining: &[Joiner]) -> Result<News, sqlx::Error> {
        if self.age.replace(tables.age()).is_some_and(|age| age != tables.age()) {
            // what the last look knew, it knew by other means
            self.seen = None;
            self.pending.extend(self.live.keys().cloned());
        }
        let look = self.look(link, tables).await?;
        if let Some(news) = self.rewound(&look.moment, joining) {
            return Ok(news);
        }
        let mut ending = self.ending.clone();
        if look.has_changed {
            ending.retain(|job, _| look.ended.contains_key(job) || tables.jobs.is_none());
            for (job, status) in &look.ended {
                let new = Ending::seen(*status, &look.moment);
                ending.entry(job.clone()).or_insert(new).status = *status;
            }
        }
        self.has_changed |= look.has_changed;
        let is_sweep =
            tables.age() == Age::System && self.has_changed && self.swept.elapsed() >= self.store.settings.sweep;
        if is_sweep {
            (self.has_changed, self.swept) = (false, Instant::now());
            self.pending.extend(self.live.keys().cloned());
        }
        // those with news first
        let mut to_read: Vec<JobId> = look.jobs;
        let mut over = BTreeSet::new();
        for (job, end) in &ending {
            if look.moment.xmin >= end.xmax || end.since.elapsed() >= self.store.settle {
                over.insert(job.clone());
                to_read.push(job.clone());
            }
        }
        to_read.extend(self.pending.iter().cloned());

        let mut draft = Draft::default();
        let is_joined = joining.iter().map(|reader| &reader.job).filter(|job| self.live.contains_key(*job));
        for job in is_joined.collect::<BTreeSet<_>>().into_iter().chain(&to_read) {
            if !draft.is_full() && !draft.done.contains(job) && self.live.contains_key(job) {
                self.read_job(link, tables, job, &mut draft).await?;
            }
        }
        let mut caught_up_joiners = Vec::with_capacity(joining.len());
        for reader in joining {
            caught_up_joiners.push(
                match draft.positions.get(&reader.job).filter(|_| draft.done.contains(&reader.job)) {
                    Some(level) => self.missing(link, tables, reader, level).await?,
                    None => None,
                },
            );
        }

        for job in self.new.clone() {
            if let Some(status) = self.store.final_event(link, tables, &job).await? {
                let new = Ending::seen(status, &look.moment);
                ending.entry(job).or_insert(new);
            }
        }

        // Everything was read: from here on nothing fails.
        self.new.clear();
        self.pending =
            to_read.into_iter().filter(|job| !draft.done.contains(job) && self.live.contains_key(job)).collect();
        for (job, events) in &draft.events {
            if let Some(status) = self.store.ending(None, events) {
                let new = Ending::seen(status, &look.moment);
                ending.entry(job.clone()).or_insert(new);
            }
        }
        self.live.extend(draft.positions);
        if look.has_changed && tables.age() == Age::Column {
            // the index told of all that is new: whoever is not among it has everything below the mark
            for (job, position) in &mut self.live {
                if !self.pending.contains(job) && !draft.done.contains(job) {
                    let end = position.next_end(look.moment.mark());
                    position.finish(&end);
                    position.adopt(tables.best);
                }
            }
        }
        self.ending = ending;
        self.seen = Some(look.moment);
        let more = !self.pending.is_empty();
        let mut news = News { jobs: Vec::new(), caught_up_joiners, more, outage: None };
        for (job, events) in draft.events {
            news.jobs.push(JobNews { job, events, end: None });
        }
        for job in over.intersection(&draft.done) {
            let Some(end) = self.ending.get(job).map(|end| JobEnd::Complete(end.status)) else { continue };
            match news.jobs.iter_mut().find(|one| one.job == *job) {
                Some(one) => one.end = Some(end),
                None => news.jobs.push(JobNews { job: job.clone(), events: Vec::new(), end: Some(end) }),
            }
            self.unwatch(job);
        }
        Ok(news)
    }

    /// One statement for all watched jobs; before it a short one, which mostly tells that nothing has ended.
    async fn look(&mut self, link: &mut Link, tables: &Tables) -> Result<Look, sqlx::Error> {
        if let Some(seen) = self.seen.clone().filter(|_| !std::mem::take(&mut self.is_woken)) {
            // a standby does not tell by its snapshot
            if !seen.is_standby && self.store.is_now(link, tables, &seen).await? {
                return Ok(Look { moment: seen, has_changed: false, jobs: Vec::new(), ended: BTreeMap::new() });
            }
        }
        let head = self.store.snapshot(tables, None);
        let mut sql = format!("{head} SELECT {MOMENT}, NULL::text, NULL::text FROM s, m");
        let no_moment = ["NULL"; MOMENT_COLUMNS].join(", ");
        // what the last look could see, it has told
        let from = match &self.seen {
            Some(seen) => seen.mark(),
            None => self.live.values().map(|position| position.settled().floor()).min().unwrap_or(0),
        };
        if !self.live.is_empty() {
            let since = tables.since(&Mark::At(Ended::below(from)));
            let ids = || self.live.keys().map(JobId::as_str);
            let news = match (&self.seen, tables.age()) {
                // Few rows: whose they are is looked at here. To compare them with all ids that are watched would cost
                // more, and tempt the planner to read all rows of those. (A standby does not know which transactions
                // are open: its list is empty.)
                (Some(seen), Age::Column) if !seen.is_standby => tables.not_seen_by(&seen.snapshot, seen.reached),
                (_, Age::Column) => format!("{since} AND {}", tables.job_id.is_any(ids())),
                (_, Age::System) => {
                    let lately = tables.lately(self.store.settings.look_back.as_secs_f64());
                    format!("{} AND {since} AND {lately}", tables.job_id.is_any(ids()))
                }
            };
            let _ = write!(
                sql,
                " UNION ALL SELECT {no_moment}, h.job, NULL FROM (
                    SELECT DISTINCT {}::text AS job FROM {} e WHERE {news}) h",
                tables.job_id.column(),
                tables.events,
            );
            if let Some(jobs) = &tables.jobs {
                let finals: Vec<String> = self.store.settings.statuses.all().map(literal).collect();
                let _ = write!(
                    sql,
                    " UNION ALL SELECT {no_moment}, {id}::text, {status}::text FROM {table} j
                      WHERE {} AND {status}::text = ANY (ARRAY[{}]::text[])",
                    jobs.id.is_any(ids()),
                    finals.join(","),
                    id = jobs.id.column(),
                    status = jobs.status,
                    table = jobs.table,
                );
            }
        }
        let answer = link.ask(sql).await?;
        let mut look = Look { moment: Moment::default(), has_changed: true, jobs: Vec::new(), ended: BTreeMap::new() };
        let odd = |ids: &Ids| if answer.len() > 1 { self.spelled_otherwise(ids) } else { HashMap::new() };
        let (odd_events, odd_jobs) =
            (odd(&tables.job_id), tables.jobs.as_ref().map(|jobs| odd(&jobs.id)).unwrap_or_default());
        for row in &answer {
            let Some(spelled) = row.try_get::<Option<String>, _>(MOMENT_COLUMNS)? else {
                look.moment = self.store.moment(row)?;
                continue;
            };
            let status: Option<String> = row.try_get(MOMENT_COLUMNS + 1)?;
            let others = if status.is_none() { &odd_events } else { &odd_jobs };
            let same = spelled.parse().ok().filter(|job| self.live.contains_key(job));
            for job in same.into_iter().chain(others.get(&spelled).into_iter().flatten().map(|job| (*job).clone())) {
                match &status {
                    None => look.jobs.push(job),
                    Some(status) => {
                        look.ended.extend(self.store.settings.statuses.find(status).map(|status| (job, status)));
                    }
                }
            }
        }
        Ok(look)
    }

    /// Watched jobs whose id the database spells in another way than those who asked, by its spelling.
    fn spelled_otherwise(&self, ids: &Ids) -> HashMap<String, Vec<&JobId>> {
        let mut odd: HashMap<String, Vec<&JobId>> = HashMap::new();
        for job in self.live.keys() {
            if let Some(spelled) = ids.spelled(job.as_str()).filter(|spelled| *spelled != job.as_str()) {
                odd.entry(spelled.into_owned()).or_default().push(job);
            }
        }
        odd
    }

    /// Reads one job from its position on, as far as there is room.
    async fn read_job(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
        draft: &mut Draft,
    ) -> Result<(), sqlx::Error> {
        let Some(mut position) = draft.positions.get(job).or_else(|| self.live.get(job)).cloned() else {
            return Ok(());
        };
        let room = Limit { events: READ.events.saturating_sub(draft.rows).max(1), bytes: READ.bytes };
        let told = self.store.tell(link, tables, job, &mut position, room.events).await?;
        let (events, is_last) = told.deliver(job, &mut position, room);
        draft.jobs += 1;
        draft.rows += events.len();
        draft.bytes += events.iter().map(|(event, _)| event.payload.as_json().len()).sum::<usize>();
        draft.positions.insert(job.clone(), position);
        if !events.is_empty() {
            draft.events.entry(job.clone()).or_default().extend(events);
        }
        if is_last {
            draft.done.insert(job.clone());
        }
        Ok(())
    }

    /// What a joining reader lacks of what the job's watch has been given.
    async fn missing(
        &self,
        link: &mut Link,
        tables: &Tables,
        reader: &Joiner,
        level: &Position,
    ) -> Result<Option<Vec<(Event, Cursor)>>, sqlx::Error> {
        let Some(mut position) = Position::open(&reader.job, reader.after.as_str()) else { return Ok(None) };
        self.store.missing(link, tables, &reader.job, &mut position, level, READ).await
    }

    /// The database knows less than was delivered: a standby that lags may come to it, else it is another one, or one
    /// that was restored, and nothing that was given out counts.
    fn rewound(&mut self, moment: &Moment, joining: &[Joiner]) -> Option<News> {
        if self.live.values().all(|position| moment.may_know(position)) {
            self.behind = None;
            return None;
        }
        let since = *self.behind.get_or_insert_with(Instant::now);
        if since.elapsed() < self.store.settle {
            return Some(News::nothing(joining));
        }
        self.behind = None;
        self.seen = None;
        self.pending.clear();
        self.ending.clear();
        let lost = |job| JobNews { job, events: Vec::new(), end: Some(JobEnd::Lost(Reset::Rewound)) };
        let jobs = std::mem::take(&mut self.live).into_keys().map(lost).collect();
        Some(News { jobs, ..News::nothing(joining) })
    }
}

impl Draft {
    fn is_full(&self) -> bool {
        self.rows >= READ.events || self.bytes >= READ.bytes || self.jobs >= READ_JOBS
    }
}

/// Rings whenever the database is notified; without it, the poll does.
async fn listen(store: Arc<Store>, channel: String, notified: Arc<Notify>) {
    let mut is_told = false;
    loop {
        let heard = async {
            let mut listener = PgListener::connect_with(&store.listeners).await?;
            listener.listen(&channel).await?;
            tracing::debug!(channel, "listening for wake-ups");
            // something may have come between two connections
            notified.notify_one();
            loop {
                listener.recv().await?;
                notified.notify_one();
            }
        };
        let result: Result<(), sqlx::Error> = heard.await;
        if let (Err(error), false) = (result, std::mem::replace(&mut is_told, true)) {
            let error = store.failed("listening for wake-ups", error);
            tracing::info!(code = error.code.as_str(), %error, "no wake-ups: new events wait for the poll");
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}
