//! A store in memory: the smallest source there can be, and an example of one.
//!
//! A job is a list of numbered slots. A writer may reserve a slot and fill it later, as a transaction does that commits late.
//! Everything is behind one lock, so a read of the tail sees all jobs at one moment.

use super::position::{Place, Position};
use async_trait::async_trait;
use jobcast::cursor::{Cursor, Level};
use jobcast::error::SourceError;
use jobcast::event::{Event, JobId, JobStatus};
use jobcast::source::{
    Age, Appended, Change, Endings, Ends, EventKey, Evidence, JobSummary, Joiner, Limit, NewEvent, News, Page,
    PageBuilder, PageResult, PagesBuilder, Source, Standing, Tail, TailBatch, Wakeup, brings_on,
};
use jobcast::sse::{JobEnd, Reset};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The bounds of one read of the tail, and of a page; small, so that tests meet them.
const READ: Limit = Limit { events: 20, bytes: 1 << 20 };

#[derive(Clone, Default)]
pub struct Memory(Arc<Store>);

/// The grace of a job's end.
pub const END_GRACE: Duration = Duration::from_secs(1);

struct Store {
    jobs: Mutex<HashMap<JobId, Job>>,
    /// The number of events that were stored, of all jobs together. It is read and changed under the lock of `jobs`.
    writes: AtomicU64,
    /// Notified by every write. One tail waits for it.
    changed: Notify,
    /// The number of times that a tail asked for the rows of a job that cannot be read.
    asked_in_vain: AtomicUsize,
    /// Jobs with a final status, each with its status and the number of its events.
    ends: Ends<(), (JobStatus, usize)>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            jobs: Mutex::default(),
            writes: AtomicU64::default(),
            changed: Notify::default(),
            asked_in_vain: AtomicUsize::default(),
            ends: Ends::new(END_GRACE),
        }
    }
}

#[derive(Default)]
struct Job {
    /// Events, each with the number of its write. A slot without one is reserved.
    slots: Vec<Option<(Event, u64)>>,
    status: Option<JobStatus>,
    /// The job's rows cannot be read, for this reason.
    fault: Option<SourceError>,
}

impl Job {
    fn events(&self) -> impl Iterator<Item = (usize, &Event)> {
        self.slots.iter().enumerate().filter_map(|(slot, stored)| Some((slot, &stored.as_ref()?.0)))
    }

    /// Returns the job's final status, once it has one and no slot is reserved.
    fn ending(&self) -> Option<JobStatus> {
        self.status.filter(|status| status.is_final() && self.slots.iter().all(Option::is_some))
    }

    /// Returns the position after everything that can be seen now.
    fn newest(&self) -> Position {
        self.position_at(self.slots.len())
    }

    /// Returns the position after the events up to a slot that can be seen now.
    fn position_at(&self, slot: usize) -> Position {
        let mut position = Position::default();
        self.events().filter(|(other, _)| *other <= slot).for_each(|(slot, _)| position.add(slot));
        position
    }

    /// Returns the slots that a place means in this job.
    fn slots_of(&self, place: Place) -> Position {
        let until = match place {
            Place::Slots(position) => return position,
            Place::Write(until) => until,
        };
        let mut position = Position::default();
        let stored = self.slots.iter().enumerate().filter_map(|(slot, stored)| Some((slot, stored.as_ref()?.1)));
        stored.filter(|(_, write)| *write <= until).for_each(|(slot, _)| position.add(slot));
        position
    }

    /// Returns the events that `after` has not, each with the cursor after it.
    fn events_after(&self, job: &JobId, mut after: Position) -> Vec<(usize, Event, Cursor)> {
        let lacking: Vec<_> = self.events().filter(|(slot, _)| !after.has(*slot)).collect();
        let mut numbered = Vec::new();
        for (slot, event) in lacking {
            after.add(slot);
            numbered.push((slot, event.clone(), after.seal(job)));
        }
        numbered
    }
}

impl Store {
    fn jobs(&self) -> MutexGuard<'_, HashMap<JobId, Job>> {
        self.jobs.lock().expect("no writer has panicked")
    }

    /// Returns the number of a new write.
    fn next_write(&self) -> u64 {
        self.writes.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Returns the place of all jobs at this moment.
    fn level(&self) -> Level {
        Place::level(self.writes.load(Ordering::SeqCst))
    }

    /// Reads a page of a job, the last one up to `level`; a staged one, too, which stays below it.
    fn page(
        &self,
        stored: Option<&Job>,
        (job, after): (&JobId, &Cursor),
        limit: Limit,
        level: &Level,
        is_stage: bool,
    ) -> Result<PageResult, SourceError> {
        let Some(after) = Place::open(job, after.as_str()) else { return Ok(PageResult::Lost(Reset::Unknown)) };
        let Some(stored) = stored else { return Ok(PageResult::NoSuchJob) };
        if let Some(error) = &stored.fault {
            return Err(error.clone());
        }
        let is_beyond = match &after {
            Place::Slots(position) => position.is_beyond(stored.slots.len()),
            Place::Write(write) => *write > self.writes.load(Ordering::SeqCst),
        };
        if is_beyond {
            return Ok(PageResult::Lost(Reset::Rewound));
        }
        let mut page = PageBuilder::new(Limit { events: limit.events.min(READ.events), ..limit });
        let after = stored.slots_of(after);
        let within = Place::open(job, level.cursor(job).as_str()).map(|level| stored.slots_of(level));
        let is_within = |slot: usize| !is_stage || within.as_ref().is_some_and(|within| within.has(slot));
        let is_ahead = is_stage && within.as_ref().is_some_and(|within| !after.is_within(within));
        let mut rest =
            stored.events_after(job, after.clone()).into_iter().filter(|(slot, ..)| is_within(*slot) && !is_ahead);
        while !page.is_full()
            && let Some((_, event, cursor)) = rest.next()
        {
            page.push(event, cursor);
        }
        let has_all = rest.next().is_none();
        let (is_last, is_staged) = (has_all && !is_stage, has_all && is_stage);
        if is_ahead {
            return Ok(PageResult::Page(Page::staged(after.seal(job))));
        }
        // The end of the last page is made of what is seen here, and of nothing that a reader sent.
        let end = page.end().filter(|_| !has_all).cloned();
        Ok(PageResult::Page(Page {
            end: end.unwrap_or_else(|| level.cursor(job)),
            events: page.into_events(),
            is_last,
            is_staged,
            status: stored.status,
            is_complete: is_last && stored.ending().is_some_and(|status| self.is_over(job, stored, status)),
        }))
    }

    /// Tells if the grace of a job's end is over, as far as this process remembers: nothing in the store tells the time.
    fn is_over(&self, job: &JobId, stored: &Job, status: JobStatus) -> bool {
        let state = (status, stored.events().count());
        self.ends.is_over(job, Evidence { state, age: Age::Unknown, newest_at: None })
    }
}

impl Memory {
    /// Reserves the next slot of a job, and returns its number.
    pub fn reserve(&self, job: &JobId) -> usize {
        let mut jobs = self.0.jobs();
        let stored = jobs.entry(job.clone()).or_default();
        stored.slots.push(None);
        stored.slots.len() - 1
    }

    /// Fills a reserved slot.
    pub fn fill(&self, job: &JobId, slot: usize, event: NewEvent) {
        let mut jobs = self.0.jobs();
        jobs.get_mut(job).expect("a job").slots[slot] = Some((event.into_event(job.clone()), self.0.next_write()));
        drop(jobs);
        self.0.changed.notify_one();
    }

    /// Makes the rows of one job unreadable, or readable again.
    pub fn set_fault(&self, job: &JobId, fault: Option<SourceError>) {
        self.0.jobs().entry(job.clone()).or_default().fault = fault.map(|error| error.of_job(job.clone()));
        self.0.changed.notify_one();
    }

    /// Returns how often a tail asked for the rows of a job that cannot be read.
    pub fn asked_in_vain(&self) -> usize {
        self.0.asked_in_vain.load(Ordering::SeqCst)
    }

    /// Stores an event as it is.
    pub fn put(&self, job: &JobId, event: Event) {
        let mut jobs = self.0.jobs();
        jobs.entry(job.clone()).or_default().slots.push(Some((event, self.0.next_write())));
        drop(jobs);
        self.0.changed.notify_one();
    }
}

#[async_trait]
impl Source for Memory {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn store(&self) -> String {
        "memory".into()
    }

    fn event_key(&self) -> EventKey {
        EventKey::Id
    }

    fn prepare(&self, _: &jobcast::config::Source) -> Result<Change, SourceError> {
        Ok(Box::new(|| {}))
    }

    fn beginning(&self, job: &JobId) -> Cursor {
        Position::default().seal(job)
    }

    async fn resolve(&self, job: &JobId, text: &str) -> Result<Option<Cursor>, SourceError> {
        if let Some(place) = Place::open(job, text) {
            return Ok(Some(place.seal(job)));
        }
        let jobs = self.0.jobs();
        let Some(stored) = jobs.get(job) else { return Ok(None) };
        let found = stored.events().find(|(_, event)| event.id == text);
        Ok(found.map(|(slot, _)| stored.position_at(slot).seal(job)))
    }

    async fn newest(&self, job: &JobId) -> Result<Option<Standing>, SourceError> {
        let jobs = self.0.jobs();
        Ok(jobs.get(job).map(|stored| Standing { cursor: stored.newest().seal(job), status: stored.status }))
    }

    async fn page(&self, job: &JobId, after: &Cursor, limit: Limit) -> Result<PageResult, SourceError> {
        let jobs = self.0.jobs();
        self.0.page(jobs.get(job), (job, after), limit, &self.0.level(), false)
    }

    async fn pages(&self, wanted: &[(JobId, Cursor)], limit: Limit) -> Result<Vec<PageResult>, SourceError> {
        // All of them are read at one moment, under one lock.
        let jobs = self.0.jobs();
        let read = |level: Level, is_stage| -> Result<Vec<PageResult>, SourceError> {
            let mut pages = PagesBuilder::new(limit);
            for (job, after) in wanted {
                let Some(rest) = pages.rest() else { break };
                pages.push(self.0.page(jobs.get(job), (job, after), rest, &level, is_stage)?);
            }
            Ok(pages.into_results())
        };
        let writes = wanted.iter().filter_map(|(job, after)| match Place::open(job, after.as_str())? {
            Place::Write(write) => Some(write),
            Place::Slots(_) => None,
        });
        let stored = self.0.writes.load(Ordering::SeqCst);
        if let Some(stage) = writes.filter(|write| *write <= stored).max() {
            let pages = read(Place::level(stage), true)?;
            if brings_on(wanted, &pages) {
                return Ok(pages);
            }
        }
        read(self.0.level(), false)
    }

    async fn before_last(&self, job: &JobId, count: usize) -> Result<Option<Cursor>, SourceError> {
        let jobs = self.0.jobs();
        let Some(stored) = jobs.get(job) else { return Ok(None) };
        let mut position = Position::default();
        let before = stored.events().count().saturating_sub(count);
        stored.events().take(before).for_each(|(slot, _)| position.add(slot));
        Ok(Some(position.seal(job)))
    }

    fn tail(&self) -> Box<dyn Tail> {
        Box::new(MemoryTail {
            store: self.0.clone(),
            watched: HashMap::new(),
            told: HashMap::new(),
            awaited: Vec::new(),
            endings: Endings::new(END_GRACE),
        })
    }

    async fn append(&self, job: &JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError> {
        let mut jobs = self.0.jobs();
        let stored =
            jobs.entry(job.clone()).or_insert_with(|| Job { status: Some(JobStatus::Running), ..Job::default() });
        let mut appended = Vec::new();
        for new in events {
            let known = stored.events().find(|(_, event)| event.id == new.id).map(|(slot, _)| slot);
            let slot = known.unwrap_or(stored.slots.len());
            if known.is_none() {
                stored.slots.push(Some((new.into_event(job.clone()), self.0.next_write())));
            }
            let (event, _) = stored.slots[slot].clone().expect("just found, or just stored");
            appended.push(Appended { event, cursor: stored.position_at(slot).seal(job), is_new: known.is_none() });
        }
        self.0.changed.notify_one();
        Ok(appended)
    }

    async fn set_status(&self, job: &JobId, status: JobStatus) -> Result<(), SourceError> {
        self.0.jobs().entry(job.clone()).or_default().status = Some(status);
        self.0.changed.notify_one();
        Ok(())
    }

    async fn job(&self, job: &JobId) -> Result<Option<JobSummary>, SourceError> {
        Ok(self.0.jobs().get(job).map(|stored| summary((job, stored))))
    }

    async fn jobs(&self, status: Option<JobStatus>, limit: usize) -> Result<Vec<JobSummary>, SourceError> {
        let jobs = self.0.jobs();
        let wanted = jobs.iter().filter(|(_, stored)| status.is_none() || stored.status == status);
        Ok(wanted.map(summary).take(limit).collect())
    }
}

fn summary((job, stored): (&JobId, &Job)) -> JobSummary {
    JobSummary {
        job_id: job.clone(),
        status: stored.status,
        last_event_at: stored.events().last().and_then(|(_, event)| event.timestamp).map(|at| at.to_string()),
    }
}

struct MemoryTail {
    store: Arc<Store>,
    /// Watched jobs, each with the position up to which its events were published.
    watched: HashMap<JobId, Position>,
    /// The status of each as it was told last.
    told: HashMap<JobId, JobStatus>,
    /// Those of them with a final status.
    endings: Endings<()>,
    awaited: Vec<JobId>,
}

impl MemoryTail {
    /// Moves on the watch of one job, as far as the batch takes it. Returns whether something is left.
    fn read_job(&mut self, job: &JobId, stored: &Job, began: Instant, batch: &mut TailBatch) -> bool {
        if let Some(status) = stored.status
            && self.told.insert(job.clone(), status) != Some(status)
        {
            batch.set_status(job, status);
        }
        match stored.ending() {
            Some(status) => self.endings.begin(&self.store.ends, job, status, ()),
            None => self.endings.remove(&self.store.ends, job),
        }
        let published = self.watched.entry(job.clone()).or_default();
        let mut rest = stored.events_after(job, published.clone()).into_iter();
        while !batch.is_full()
            && let Some((slot, event, cursor)) = rest.next()
        {
            published.add(slot);
            batch.push(job, event, cursor);
            self.endings.note_events(&self.store.ends, job);
        }
        let is_left = rest.next().is_some();
        let due = self.endings.due(began).find(|(due, _)| *due == job).map(|(_, ending)| ending.status);
        if let Some(status) = due.filter(|_| !is_left) {
            batch.end(job, JobEnd::Complete(status));
            self.endings.publish(&self.store.ends, job);
        }
        is_left
    }

    /// Returns the published events that a joiner lacks; `None` where its job is not watched, or it is ahead of the watch.
    fn catch_up(&self, joiner: &Joiner, stored: &Job) -> Option<Vec<(Event, Cursor)>> {
        let published = self.watched.get(&joiner.job)?;
        let mut reached = stored.slots_of(Place::open(&joiner.job, joiner.after.as_str())?);
        if !reached.is_within(published) {
            return None;
        }
        let lacking = stored.events().filter(|(slot, _)| published.has(*slot) && !reached.has(*slot));
        let lacking: Vec<_> = lacking.map(|(slot, event)| (slot, event.clone())).collect();
        let missing = lacking.into_iter().map(|(slot, event)| {
            reached.add(slot);
            (event, reached.seal(&joiner.job))
        });
        Some(missing.collect())
    }
}

#[async_trait]
impl Tail for MemoryTail {
    fn watch(&mut self, job: JobId, after: Cursor) {
        if self.watched.contains_key(&job) {
            return self.endings.repeat(&job);
        }
        // Believed as it is: no reader made it.
        let place = Place::open(&job, after.as_str()).expect("a position of this source");
        let published = self.store.jobs().get(&job).map(|stored| stored.slots_of(place));
        self.watched.insert(job, published.unwrap_or_default());
    }

    fn unwatch(&mut self, job: &JobId) {
        self.watched.remove(job);
        self.told.remove(job);
        self.endings.unwatch(&self.store.ends, job);
    }

    fn await_jobs(&mut self, jobs: Vec<JobId>) {
        self.awaited = jobs;
    }

    async fn woken(&mut self) -> Wakeup {
        tokio::select! {
            () = self.store.changed.notified() => Wakeup::Notify,
            () = self.endings.next_due() => Wakeup::End,
        }
    }

    async fn read(&mut self, joining: &[Joiner]) -> Result<News, SourceError> {
        let began = Instant::now();
        let store = self.store.clone();
        let jobs = store.jobs();
        let mut batch = TailBatch::new(READ);
        let mut news = News::nothing(joining);
        let mut is_cut = false;
        for job in self.watched.keys().cloned().collect::<Vec<_>>() {
            match jobs.get(&job) {
                Some(Job { fault: Some(error), .. }) => {
                    store.asked_in_vain.fetch_add(1, Ordering::SeqCst);
                    news.faults.push((job, error.clone()));
                    // There may well be more to read, which must not make anybody ask at once.
                    news.more = true;
                }
                Some(stored) => is_cut |= self.read_job(&job, stored, began, &mut batch),
                None => {}
            }
        }
        news.more |= is_cut;
        news.level = (!is_cut).then(|| store.level());
        let missing = |joiner: &Joiner| {
            let stored = jobs.get(&joiner.job).filter(|stored| stored.fault.is_none())?;
            self.catch_up(joiner, stored)
        };
        news.caught_up_joiners = joining.iter().map(missing).collect();
        news.appeared = self.awaited.iter().filter(|job| jobs.contains_key(job)).cloned().collect();
        news.jobs = batch.into_jobs();
        Ok(news)
    }
}
