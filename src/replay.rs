//! The past of a job, or of a set of jobs, for one subscriber: pages from the source, until the ring of the topic's channel
//! reaches back to the subscriber's cursor. Subscribers that need the same page at the same time share one read.
//!
//! A cursor that a subscriber sends is foreign: it may say that events were received that nobody ever gave out. It is spent
//! here, in page reads, and decides what this subscriber is given. It never gets as far as the hub. A replay goes live at a
//! position of the source's own making, which the end of a last page is, and gives a new ring only pages that begin at one;
//! [`Reached`] keeps the two apart.

mod pages;
#[cfg(test)]
mod tests;

pub use crate::topic::Position;
pub use pages::{Pages, Turns};

use crate::backoff::Backoff;
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::event::{JobId, JobStatus};
use crate::hub::{CaughtUp, Hub, Join, Place, Seed, Standpoint, Subscription};
use crate::source::Standing;
use crate::sse::{ControlEvent, Reset, Segment};
use crate::topic::Topic;
use pages::{Encoded, EncodedPage, PageRead};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The pause after which the jobs of a set are read again while one of them cannot be read. The others' events are as late.
const FAULT_PAUSE: Duration = Duration::from_secs(1);

/// One reader on its way to being live.
pub struct Replay {
    pages: Arc<Pages>,
    hub: Hub,
    topic: Topic,
    reached: Reached,
    /// The token before everything that the reader gets.
    began_at: Cursor,
    /// The reader was given something of the past.
    has_given: bool,
    phase: Phase,
    /// The first job that the next page is to be about.
    from: usize,
    /// The last page that held events, if it began at a position of the source's own. If this reader creates the topic's
    /// channel, the ring begins with it.
    seed: Option<Seed>,
    /// The status of each job, as a page or the channel had it last.
    statuses: HashMap<JobId, JobStatus>,
    /// The statuses that the reader has been told.
    told: HashMap<JobId, JobStatus>,
    /// The jobs that a page said to be complete.
    over: HashMap<JobId, JobStatus>,
    /// The jobs of a set that the reader has been told to be complete before this replay.
    told_over: HashSet<JobId>,
    /// The source was asked, since the ring did not reach back to the reader.
    has_read: bool,
    /// The reset of each job that the reader was told last.
    last_resets: HashMap<JobId, Reset>,
    faults: Faults,
    /// Changes when the source may let in whom it refused.
    renewals: watch::Receiver<()>,
}

/// The jobs of a set whose rows could not be read. They stand where they stood, and the others go on by pages until they can
/// be read again: only then does the reader stand at a position of the source's own in all of them.
#[derive(Default)]
struct Faults {
    /// Those of the pages since the first job was read last.
    met: HashSet<JobId>,
    /// Those that the reader has been told of.
    told: HashSet<JobId>,
}

/// The position after everything that a reader got so far, by its lineage.
enum Reached {
    /// The source made it from what it saw itself: the beginning, the end of a last page, or what descends from these.
    Own(Position),
    /// It descends from what the reader sent, and may lie.
    Sent(Position),
}

impl Reached {
    fn position(&self) -> &Position {
        match self {
            Self::Own(position) | Self::Sent(position) => position,
        }
    }

    /// Moves on by a page, and returns the token before it if that was the source's own.
    fn advance(&mut self, end: Position, is_last: bool) -> Option<Cursor> {
        let next = match self {
            Self::Sent(_) if !is_last => Self::Sent(end),
            Self::Own(_) | Self::Sent(_) => Self::Own(end),
        };
        match std::mem::replace(self, next) {
            Self::Own(before) => Some(before.token),
            Self::Sent(_) => None,
        }
    }
}

/// The progress of a replay.
enum Phase {
    /// There may be more in the source.
    Reading,
    /// The source does not answer. The next attempt comes after this wait.
    Waiting { backoff: Backoff, wait: Duration },
    /// All was read of all jobs but of those with a fault. They are all read again after a pause.
    Faulty,
    /// The history of this job is trimmed faster than the reader takes it, again: it goes on at the newest event, rather than
    /// be told of one loss after the other.
    Overrun(JobId),
    /// The source had nothing after the cursor, a moment ago: the reader goes live.
    CaughtUp,
    /// All jobs have ended, this one as the last, and the reader got all of their events.
    Complete(JobId, JobStatus),
}

/// One step of a replay.
pub enum Step {
    /// Events of the past.
    Events(Vec<Arc<Segment>>),
    /// The last step: after `missing`, everything is in the ring from `place` on. `cursor` is the position there. The notices
    /// say what the reader has not been told of its jobs.
    Live {
        missing: Vec<Arc<Segment>>,
        notices: Vec<ControlEvent>,
        subscription: Subscription,
        place: Place,
        cursor: Cursor,
    },
    /// The job has ended, as all others of its set, and the reader got all of their events.
    Complete {
        job: JobId,
        status: JobStatus,
        cursor: Cursor,
    },
    /// The source cannot go on from the reader's cursor. The next steps give all there is, from the beginning. In a set it is
    /// said of one job.
    Reset(Option<JobId>, Reset, Cursor),
    NoSuchJob,
    /// The source does not answer. Given once for each outage; the next step comes when it answers again.
    Outage(SourceError, Duration),
}

impl Faults {
    /// Returns the faults of a page that the reader has not been told of. After the last page, jobs that could be read again
    /// count as whole.
    fn take_untold(&mut self, page: &Encoded) -> Vec<ControlEvent> {
        let untold = page.faults.iter().filter(|(job, _)| self.told.insert(job.clone()));
        let notices = untold.map(|(job, error)| ControlEvent::ErrorOf {
            job: job.clone(),
            code: error.code.as_str(),
            message: error.told().to_string(),
            retry_in: Some(FAULT_PAUSE),
        });
        let notices = notices.collect();
        if page.is_last {
            self.told = std::mem::take(&mut self.met);
        }
        notices
    }
}

impl Replay {
    /// A replay of the whole history.
    pub fn from_beginning(pages: Arc<Pages>, hub: Hub, topic: Topic) -> Self {
        let beginnings: Vec<Cursor> = topic.jobs().iter().map(|job| pages.source.beginning(job)).collect();
        let position = topic.position_at(&beginnings);
        Self::at(pages, hub, topic, position)
    }

    fn new(pages: Arc<Pages>, hub: Hub, topic: Topic, reached: Reached) -> Self {
        Self {
            renewals: hub.renewals(),
            pages,
            hub,
            topic,
            began_at: reached.position().token.clone(),
            reached,
            has_given: false,
            phase: Phase::Reading,
            from: 0,
            seed: None,
            statuses: HashMap::new(),
            told: HashMap::new(),
            over: HashMap::new(),
            told_over: HashSet::new(),
            has_read: false,
            last_resets: HashMap::new(),
            faults: Faults::default(),
        }
    }

    /// A replay of everything after a position, which may be foreign.
    pub fn after(pages: Arc<Pages>, hub: Hub, topic: Topic, after: Position) -> Self {
        Self::new(pages, hub, topic, Reached::Sent(after))
    }

    /// A replay of everything after a position that the source made itself.
    pub fn at(pages: Arc<Pages>, hub: Hub, topic: Topic, after: Position) -> Self {
        Self::new(pages, hub, topic, Reached::Own(after))
    }

    /// A replay of everything after a token of this process' own.
    pub fn after_token(pages: Arc<Pages>, hub: Hub, topic: Topic, token: Cursor) -> Self {
        let position = match &topic {
            Topic::Job(_) => Some(Position::of_job(token)),
            Topic::Set(_) => {
                let cursors: Option<Vec<Cursor>> = topic.open(token.as_str()).and_then(|all| all.into_iter().collect());
                cursors.map(|cursors| Position { token, ..topic.position_at(&cursors) })
            }
        };
        debug_assert!(position.is_some(), "a token of the topic's own can be read");
        match position {
            Some(position) => Self::after(pages, hub, topic, position),
            None => Self::from_beginning(pages, hub, topic),
        }
    }

    /// A replay of nothing but what comes from now on. `newest` is the job's newest position, as the source gave it just
    /// now.
    pub fn from_newest(pages: Arc<Pages>, hub: Hub, job: JobId, newest: Standing) -> Self {
        let Standing { cursor, status } = newest;
        // A page tells whether the end of a job with a final status is long ago.
        let may_be_over = status.is_some_and(JobStatus::is_final);
        let phase = if may_be_over { Phase::Reading } else { Phase::CaughtUp };
        let statuses = status.map(|status| (job.clone(), status)).into_iter().collect();
        Self { phase, statuses, ..Self::at(pages, hub, Topic::Job(job), Position::of_job(cursor)) }
    }

    /// Notes the statuses, the ends and the faults of jobs that the reader has been told already.
    pub fn told(self, statuses: Vec<(JobId, JobStatus)>, over: Vec<(JobId, JobStatus)>, faults: Vec<JobId>) -> Self {
        let told_over = over.into_iter().map(|(job, _)| job).collect();
        let faults = Faults { told: faults.into_iter().collect(), ..Faults::default() };
        Self { told: statuses.into_iter().collect(), told_over, faults, ..self }
    }

    /// Returns the statuses that are known and that the reader has not been told. From then on it has.
    pub fn untold_statuses(&mut self) -> Vec<ControlEvent> {
        let mut untold = Vec::new();
        for job in self.topic.jobs() {
            let Some(status) = self.statuses.get(job).filter(|status| self.told.get(job) != Some(*status)) else {
                continue;
            };
            self.told.insert(job.clone(), *status);
            untold.push(ControlEvent::Status { job: job.clone(), status: *status });
        }
        untold
    }

    pub fn began_at(&self) -> &Cursor {
        &self.began_at
    }

    /// Tells if the reader was given something of the past.
    pub fn has_given(&self) -> bool {
        self.has_given
    }

    /// Tells if all jobs have ended, and there was nothing of them that the reader had not got before.
    pub fn is_complete_without_news(&self) -> bool {
        matches!(self.phase, Phase::Complete(..)) && !self.has_given
    }

    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// The position after everything that the reader got so far.
    pub fn cursor(&self) -> &Cursor {
        &self.reached.position().token
    }

    /// True if the source was asked; false if the ring reached back to the reader from the start.
    pub fn has_read(&self) -> bool {
        self.has_read
    }

    /// Returns the next step. It may be dropped at any time, and called again, without losing or repeating anything.
    pub async fn next(&mut self) -> Step {
        loop {
            if let Phase::Complete(job, status) = &self.phase {
                return Step::Complete { job: job.clone(), status: *status, cursor: self.cursor().clone() };
            }
            if let Some((subscription, place)) = self.hub.join(&self.topic, self.cursor()) {
                let cursor = self.cursor().clone();
                return self.live(CaughtUp { missing: Vec::new(), subscription, place, cursor });
            }
            match &mut self.phase {
                Phase::CaughtUp => {
                    if let Some(caught_up) = self.join_or_create().await {
                        return self.live(caught_up);
                    }
                    (self.phase, self.from) = (Phase::Reading, 0);
                }
                Phase::Waiting { backoff, wait } => tokio::select! {
                    () = tokio::time::sleep(*wait) => {}
                    Ok(()) = self.renewals.changed() => backoff.reset(),
                },
                Phase::Faulty => tokio::time::sleep(FAULT_PAUSE).await,
                Phase::Overrun(job) => match self.pages.source.newest(job).await {
                    Ok(Some(newest)) => {
                        let job = job.clone();
                        return self.reset(&job, Reset::Trimmed, newest.cursor);
                    }
                    Ok(None) if self.topic.jobs().len() == 1 => return Step::NoSuchJob,
                    // Reading goes on, and says so.
                    Ok(None) | Err(_) => self.phase = Phase::Reading,
                },
                Phase::Reading | Phase::Complete(..) => {}
            }
            self.has_read = true;
            self.renewals.mark_unchanged();
            let read = self.pages.read(&self.topic, self.reached.position(), self.from).await;
            if let Some(step) = self.take_page(read) {
                return step;
            }
        }
    }

    /// Makes a reader live that has caught up with the source, and so stands at a position of its making. None if the channel
    /// ended, or the tail gave up, before the reader was caught up with the channel: then it must read on.
    async fn join_or_create(&mut self) -> Option<CaughtUp> {
        let Reached::Own(position) = &self.reached else { return None };
        let pairs = |map: &HashMap<JobId, JobStatus>| map.iter().map(|(job, status)| (job.clone(), *status)).collect();
        let after = Standpoint { position: position.clone(), over: pairs(&self.over) };
        match self.hub.join_or_create(&self.topic, &after, self.seed.take(), pairs(&self.statuses)) {
            Join::CaughtUp(caught_up) => Some(caught_up),
            Join::Wait(answer) => answer.await.ok(),
        }
    }

    /// Moves on by a page; None if that gives the reader nothing.
    fn take_page(&mut self, read: PageRead) -> Option<Step> {
        match read.as_deref() {
            Ok(EncodedPage::Page(page)) => self.take_encoded(page),
            Ok(EncodedPage::NoSuchJob) => Some(Step::NoSuchJob),
            Ok(EncodedPage::Lost(reset)) => {
                let job = self.topic.jobs()[0].clone();
                if self.is_overrun(&job, *reset) {
                    self.phase = Phase::Overrun(job);
                    return None;
                }
                let beginning = self.pages.source.beginning(&job);
                Some(self.reset(&job, *reset, beginning))
            }
            Err(error) => {
                let (is_first, mut backoff) = match std::mem::replace(&mut self.phase, Phase::Reading) {
                    Phase::Waiting { backoff, .. } => (false, backoff),
                    _ => (true, Backoff::new(self.pages.pace.retry_initial, self.pages.pace.retry_max)),
                };
                let wait = backoff.failed();
                self.phase = Phase::Waiting { backoff, wait };
                is_first.then(|| Step::Outage(error.clone(), wait))
            }
        }
    }

    fn take_encoded(&mut self, page: &Encoded) -> Option<Step> {
        if let Some((job, _)) = page.resets.iter().find(|(job, reset)| self.is_overrun(job, *reset)) {
            self.phase = Phase::Overrun(job.clone());
            return None;
        }
        self.last_resets.extend(page.resets.iter().cloned());
        self.statuses.extend(page.statuses.iter().cloned());
        // One that has gone on since the reader was told its end may have another.
        self.told_over.retain(|job| !page.moved.contains(job));
        self.over.extend(page.over.iter().cloned());
        let live = self.hub.channel(&self.topic).map(|channel| channel.statuses()).unwrap_or_default();
        self.statuses.extend(live);
        self.from = if page.is_last { 0 } else { page.next };
        self.faults.met.extend(page.faults.iter().map(|(job, _)| job.clone()));
        let has_all = page.is_last && self.faults.met.is_empty();
        let jobs = self.topic.jobs();
        let last = jobs.iter().rfind(|job| !self.told_over.contains(*job)).or(jobs.last());
        self.phase = match last.filter(|_| has_all && jobs.iter().all(|job| self.over.contains_key(job))) {
            Some(last) => Phase::Complete(last.clone(), self.over[last]),
            None if has_all => Phase::CaughtUp,
            None if page.is_last => Phase::Faulty,
            None => Phase::Reading,
        };
        let mut segments = page.segments.clone();
        self.has_given |= !segments.is_empty();
        let base = self.reached.advance(page.end.clone(), has_all);
        if !segments.is_empty() {
            self.seed = base.map(|base| Seed { base, segments: segments.clone() });
        }
        let at = self.cursor().clone();
        let notices = self.ends_of_others().into_iter().chain(self.faults.take_untold(page));
        segments.extend(notices.map(|notice| Arc::new(Segment::control(&notice, at.clone()))));
        (!segments.is_empty()).then_some(Step::Events(segments))
    }

    /// Returns the ends of all jobs but the last, where all have ended. Those of a set that goes on are told when the reader
    /// goes live: the channel may have them yet to come.
    fn ends_of_others(&self) -> Vec<ControlEvent> {
        let Phase::Complete(last, _) = &self.phase else { return Vec::new() };
        let others = self.topic.jobs().iter().filter(|job| *job != last);
        self.ends(others.filter_map(|job| Some((job.clone(), *self.over.get(job)?))))
    }

    fn ends(&self, over: impl IntoIterator<Item = (JobId, JobStatus)>) -> Vec<ControlEvent> {
        let untold = over.into_iter().filter(|(job, _)| !self.told_over.contains(job));
        let cursor = self.cursor();
        untold.map(|(job, status)| ControlEvent::Complete { job, status, cursor: cursor.clone() }).collect()
    }

    fn is_overrun(&self, job: &JobId, reset: Reset) -> bool {
        reset == Reset::Trimmed && self.last_resets.get(job) == Some(&Reset::Trimmed)
    }

    /// Goes on with a job at `cursor`, a position of the source's own.
    fn reset(&mut self, job: &JobId, reset: Reset, cursor: Cursor) -> Step {
        (self.phase, self.seed, self.from) = (Phase::Reading, None, 0);
        self.last_resets.insert(job.clone(), reset);
        let position = self.reached.position();
        let (reached, of_job) = match (&self.topic, self.topic.index(job)) {
            (Topic::Set(_), Some(index)) => {
                let mut levels = position.levels.to_vec();
                levels[index] = cursor.level();
                let position = self.topic.position(levels);
                // The other jobs' places may still be the reader's own.
                let is_own = matches!(self.reached, Reached::Own(_)) || self.topic.jobs().len() == 1;
                let reached = if is_own { Reached::Own(position) } else { Reached::Sent(position) };
                (reached, (self.topic.jobs().len() > 1).then(|| job.clone()))
            }
            _ => (Reached::Own(Position::of_job(cursor)), None),
        };
        self.reached = reached;
        Step::Reset(of_job, reset, self.cursor().clone())
    }

    fn live(&mut self, caught_up: CaughtUp) -> Step {
        let CaughtUp { missing, mut subscription, place, cursor } = caught_up;
        subscription.note_told(&self.faults.told);
        let channel = subscription.channel();
        let position = match &self.topic {
            Topic::Job(_) => Position::of_job(missing.last().map_or_else(|| self.cursor().clone(), |last| last.end())),
            // Only the token counts from here on.
            Topic::Set(_) => Position { token: cursor, levels: self.reached.position().levels.clone() },
        };
        self.statuses.extend(channel.statuses());
        let over = channel.over_at(place);
        self.reached = Reached::Own(position);
        let cursor = self.cursor().clone();
        let mut notices = self.untold_statuses();
        notices.extend(self.ends(over));
        Step::Live { missing, notices, subscription, place, cursor }
    }
}
