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
        let mut published: Vec<Published> = together(turns, encoded)
            .into_iter()
            .map(|(turn, events)| Published {
                job: self.topic.jobs()[turn.index].clone(),
                events: segments(events.iter().map(|(rest, cursor)| (rest, cursor.clone()))),
                status: turn.status,
                over: turn.over,
                goes_on: turn.goes_on,
            })
            .collect();
        if all > 0
            && *skipped >= MAX_SKIPPED
            && let Some(last) = published.last_mut()
        {
            *skipped = 0;
            last.events.push(Arc::new(Segment::position(self.topic.token(self.positions))));
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

/// The events of each turn, with those of the turns behind it between which nothing else is told: so they are in few segments,
/// which cost less to write than one for each job.
fn together<'a, T>(turns: &'a [Turn<'a>], events: Vec<Vec<T>>) -> Vec<(&'a Turn<'a>, Vec<T>)> {
    let mut joined: Vec<(&Turn<'_>, Vec<T>)> = Vec::new();
    for (turn, events) in turns.iter().zip(events) {
        let tells_nothing = |turn: &Turn<'_>| turn.status.is_none() && turn.over.is_none();
        match joined.last_mut() {
            Some((before, all)) if tells_nothing(before) && tells_nothing(turn) && !turn.goes_on => all.extend(events),
            _ => joined.push((turn, events)),
        }
    }
    joined
}

fn segments<'a>(events: impl IntoIterator<Item = (&'a Bytes, Cursor)>) -> Vec<Arc<Segment>> {
    sse::encode_rests(events).into_iter().map(Arc::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::cursor::set::Size;
    use crate::hub::{Hub, Join, Standpoint};
    use crate::topic::Types;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::time::Instant;

    const JOBS: usize = 5;

    /// The place after the event with this number, of all jobs together.
    fn level(number: u8) -> Level {
        Level { version: 't', inside: [number].into() }
    }

    /// One round of the tail: the job of each of its events, the jobs that end in it, and the presence of a level.
    #[derive(Clone, Debug)]
    struct Act {
        events: Vec<usize>,
        ends: Vec<usize>,
        has_level: bool,
    }

    fn act() -> impl Strategy<Value = Act> {
        let (events, ends) = (prop::collection::vec(0..JOBS, 0..8), prop::collection::vec(0..JOBS, 0..3));
        (events, ends, any::<bool>()).prop_map(|(events, ends, has_level)| Act { events, ends, has_level })
    }

    /// Events, each with its job's place in the set, and its number.
    type Numbered = Vec<(usize, u8)>;

    /// Publishes the news of a round, whose events have the next numbers.
    fn publish(hub: &Hub, topic: &Topic, act: &Act, (positions, all): (&mut [Level], &mut Numbered)) {
        let mut news: BTreeMap<usize, Vec<(Event, Cursor)>> = BTreeMap::new();
        for index in &act.events {
            let (job, number) = (&topic.jobs()[*index], all.len() as u8 + 1);
            let event = Event::sample(job.clone(), number.to_string());
            news.entry(*index).or_default().push((event, level(number).cursor(job)));
            all.push((*index, number));
        }
        for index in &act.ends {
            news.entry(*index).or_default();
        }
        let over = |index| act.ends.contains(&index).then_some(JobStatus::Completed);
        let turns = news.iter().map(|(index, events)| Turn {
            index: *index,
            events,
            end: None,
            status: None,
            over: over(*index),
            goes_on: false,
        });
        let turns: Vec<Turn<'_>> = turns.collect();
        let at = level(all.len() as u8);
        let level = act.has_level.then(|| (&at, vec![false; JOBS]));
        let round = Round { topic, shape: Shape::Envelope, positions, level };
        hub.publish(topic, round.publish(&turns, &mut Rests::default(), &mut 0), Instant::now());
    }

    /// The number of the event in these lines, if it is one of a job.
    fn number_of(lines: &str) -> Option<u8> {
        let id = lines.lines().find_map(|line| line.strip_prefix("data: {\"id\":\""))?;
        id.split('"').next()?.parse().ok()
    }

    #[test]
    fn events_of_several_jobs_are_in_one_segment_unless_something_is_told_between_them() {
        let turn = |index, status, over, goes_on| Turn { index, events: &[], end: None, status, over, goes_on };
        let (running, done) = (Some(JobStatus::Running), Some(JobStatus::Completed));
        let turns = [
            turn(0, None, None, false),
            turn(1, None, None, false),
            turn(2, running, None, false),
            turn(3, None, None, false),
            turn(4, None, done, false),
            turn(5, None, None, true),
            turn(6, None, None, false),
        ];
        let joined = together(&turns, (0..7).map(|number| vec![number]).collect());
        let joined: Vec<_> = joined.into_iter().map(|(turn, events)| (turn.index, events)).collect();
        let expected = [(0, vec![0, 1]), (2, vec![2]), (3, vec![3]), (4, vec![4]), (5, vec![5, 6])];
        assert_eq!(joined, expected);
    }

    proptest! {
        #[test]
        fn every_id_of_a_set_stands_after_all_that_came_before_it_and_before_all_that_comes(
            acts in prop::collection::vec(act(), 1..6)
        ) {
            let jobs = (0..JOBS).map(|job| format!("job-{job}").parse().expect("an id"));
            let topic = Topic::new(jobs, Types::All, Size::Full);
            let hub = Hub::new(config::Hub::default());
            let (mut positions, mut all) = (vec![level(0); JOBS], Numbered::new());
            let after = Standpoint { position: topic.position(positions.clone()), over: Vec::new() };
            let Join::CaughtUp(reader) = hub.join_or_create(&topic, &after, None, Vec::new()) else {
                panic!("the first reader makes the channel")
            };
            acts.iter().for_each(|act| publish(&hub, &topic, act, (&mut positions, &mut all)));
            let run = reader.subscription.channel().read_from(reader.place).expect("nothing has left the ring").run;
            let mut given = Numbered::new();
            for (segment, index) in run.segments.iter().flat_map(|segment| (0..segment.len()).map(move |at| (segment, at))) {
                let lines = String::from_utf8(segment.event(index).to_vec()).expect("UTF-8");
                given.extend(number_of(&lines).and_then(|number| all.get(usize::from(number) - 1)));
                let known = topic.open(segment.cursor(index)).expect("a token of the set");
                for (job, cursor) in known.into_iter().enumerate() {
                    let inside = Cursor::open('t', &topic.jobs()[job], cursor.expect("known").as_str());
                    let stands_at = inside.expect("of this job")[0];
                    let claimed = all.iter().filter(|(other, number)| *other == job && *number <= stands_at).count();
                    prop_assert_eq!(claimed, given.iter().filter(|(other, _)| *other == job).count(), "{}", lines);
                }
            }
            prop_assert_eq!(given.len(), all.len());
        }
    }
}
