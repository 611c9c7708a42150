//! The events of several jobs on their way into one stream: their order, and the cursor of the set after each of them.
//!
//! A round of the tail gives the news of each job from its own position on. In a set the jobs come one after the other, in
//! the order of its members, and the set's cursor names a position for each: those that came stand after the round, the one
//! whose turn it is stands after its event, and the others stand before the round. Where the source has a level for the round,
//! a job that has had its turn stands there, and after the last event all do.

use super::watches::Watched;
use crate::cursor::{Cursor, Level};
use crate::event::{Event, JobId, JobStatus};
use crate::hub::Published;
use crate::sse::{self, Segment, Shape};
use crate::topic::Topic;
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Events that are not wanted, after which the reader is told the position all the same, so that it need not read them again.
pub const MAX_SKIPPED: usize = 256;

/// The news of one job for a set.
pub struct Turn<'a> {
    /// The job's place among the members.
    pub index: usize,
    pub events: &'a [(Event, Cursor)],
    /// The position after them, where it is not that of the last event.
    pub end: Option<Level>,
    pub status: Option<JobStatus>,
    /// The job has ended with this status, and nothing more of it comes.
    pub over: Option<JobStatus>,
    /// It was over, and goes on.
    pub goes_on: bool,
}

/// Events that were encoded once, for all sets of a round, by the job and the place among its news.
#[derive(Default)]
pub struct Rests(HashMap<(JobId, usize), Bytes>);

impl Rests {
    fn get(&mut self, event: &Event, number: usize) -> Bytes {
        let key = (event.job_id.clone(), number);
        self.0.entry(key).or_insert_with(|| sse::rest(event, Shape::Envelope)).clone()
    }
}

/// One round for one set.
pub struct Round<'a> {
    pub topic: &'a Topic,
    /// Its one job's shape; several jobs need the envelope, which names the job.
    pub shape: Shape,
    /// The position of each job before the round, and then after it.
    pub positions: &'a mut [Level],
    /// The position of all jobs after the round, where the source has one, with those that it does not hold for.
    pub level: Option<(&'a Level, Vec<bool>)>,
}

/// The position of all watched jobs after a round.
pub struct RoundLevel {
    pub level: Level,
    /// The jobs that could not be read.
    pub excepted: HashSet<JobId>,
}

impl RoundLevel {
    /// Returns the level, with the jobs of a topic that do not stand at it: those that could not be read, and those of which
    /// nothing was ever given. A level says nothing of one job, and so the source could not tell one of
    /// which there was nothing yet from one whose events are gone.
    pub fn of(&self, topic: &Topic, watched: &Watched, positions: &[Level]) -> (&Level, Vec<bool>) {
        let jobs = topic.jobs().iter().zip(positions).zip(&watched.beginnings);
        let excepted = jobs.map(|((job, at), beginning)| self.excepted.contains(job) || at == beginning);
        (&self.level, excepted.collect())
    }
}

/// The turns of jobs whose readers lack these events.
pub fn turns(missing: &[(usize, Vec<(Event, Cursor)>)]) -> Vec<Turn<'_>> {
    let turn = |index, events| Turn { index, events, end: None, status: None, over: None, goes_on: false };
    missing.iter().map(|(index, events)| turn(*index, events)).collect()
}

/// The encoded events of one turn, before they are told apart by segment.
struct Wanted {
    turn: usize,
    rest: Bytes,
    level: Level,
}

impl Round<'_> {
    /// Encodes the events of all turns, whose order is that of the members. Returns the news of each job; what `skipped`
    /// counts is updated.
    pub fn publish(mut self, turns: &[Turn<'_>], rests: &mut Rests, skipped: &mut usize) -> Vec<Published> {
        let wanted = self.wanted(turns, rests);
        let all: usize = turns.iter().map(|turn| turn.events.len()).sum();
        *skipped = if wanted.is_empty() { *skipped + all } else { 0 };
        let mut encoded: Vec<Vec<(Bytes, Cursor)>> = turns.iter().map(|_| Vec::new()).collect();
        for (at, Wanted { turn, rest, level }) in wanted.iter().enumerate() {
            let (index, next) = (turns[*turn].index, wanted.get(at + 1));
            self.positions[index] = level.clone();
            match next {
                None => self.pass(turns, usize::MAX),
                Some(next) if next.turn != *turn => self.pass(&turns[..=*turn], index + 1),
                Some(_) => {}
            }
            encoded[*turn].push((rest.clone(), self.topic.token(self.positions)));
        }
        if wanted.is_empty() {
            self.pass(turns, usize::MAX);
        }
        let token = || self.topic.token(self.positions);
        let mut published: Vec<Published> = turns
            .iter()
            .zip(encoded)
            .map(|(turn, events)| Published {
                job: self.topic.jobs()[turn.index].clone(),
                events: segments(events.iter().map(|(rest, cursor)| (rest, cursor.clone()))),
                status: turn.status,
                over: turn.over.map(|status| (status, token())),
                goes_on: turn.goes_on,
            })
            .collect();
        if all > 0
            && *skipped >= MAX_SKIPPED
            && let Some(last) = published.last_mut()
        {
            *skipped = 0;
            last.events.push(Arc::new(Segment::position(token())));
        }
        published
    }

    fn wanted(&self, turns: &[Turn<'_>], rests: &mut Rests) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for (turn, Turn { events, .. }) in turns.iter().enumerate() {
            let chosen = events.iter().enumerate().filter(|(_, (event, _))| self.topic.has_type(&event.kind));
            for (number, (event, cursor)) in chosen {
                let rest = match self.topic.jobs() {
                    [_] => sse::rest(event, self.shape),
                    _ => rests.get(event, number),
                };
                wanted.push(Wanted { turn, rest, level: cursor.level() });
            }
        }
        wanted
    }

    /// The jobs of these turns, and the first `count` of all jobs, stand after the round.
    fn pass(&mut self, turns: &[Turn<'_>], count: usize) {
        for turn in turns {
            let last = turn.events.last().map(|(_, cursor)| cursor);
            if let Some(end) = turn.end.clone().or_else(|| last.map(Cursor::level)) {
                self.positions[turn.index] = end;
            }
        }
        let Some((level, excepted)) = &self.level else { return };
        for (position, is_excepted) in self.positions.iter_mut().zip(excepted).take(count) {
            if !is_excepted {
                *position = (*level).clone();
            }
        }
    }
}

fn segments<'a>(events: impl IntoIterator<Item = (&'a Bytes, Cursor)>) -> Vec<Arc<Segment>> {
    sse::encode_rests(events).into_iter().map(Arc::new).collect()
}
