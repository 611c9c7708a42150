//! The subject of a channel: one job, or a set of jobs, with all events or those of some types. Equal topics share one
//! channel. No I/O.

use crate::cursor::set::{self, Members, Size};
use crate::cursor::{Cursor, Level};
use crate::event::JobId;
use crate::telemetry;
use std::fmt;
use std::sync::Arc;

/// One job with all of its events, or a set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    Job(JobId),
    Set(Arc<Set>),
}

/// Several jobs, or one of which only some events are wanted.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Set {
    members: Members,
    types: Types,
    size: Size,
}

/// A place in every job of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    pub token: Cursor,
    /// The position in each job of a set. Empty for one job alone, whose cursor is the token.
    pub levels: Arc<[Level]>,
}

impl Position {
    pub fn of_job(cursor: Cursor) -> Self {
        Self { token: cursor, levels: Arc::default() }
    }

    /// The cursor of each job, in their order.
    pub fn cursors(&self, topic: &Topic) -> Vec<Cursor> {
        match self.levels.is_empty() {
            true => vec![self.token.clone()],
            false => topic.jobs().iter().zip(&*self.levels).map(|(job, level)| level.cursor(job)).collect(),
        }
    }
}

/// The types of events that are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Types {
    #[default]
    All,
    /// Sorted; each once.
    Some(Vec<Pattern>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pattern {
    Exact(String),
    /// With its last dot: `step.` for `step.*`.
    Prefix(String),
}

/// The most patterns of one request.
pub const MAX_TYPES: usize = 50;
/// The most characters of one pattern.
const MAX_TYPE_CHARS: usize = 200;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTypes {
    #[error("there are more than {MAX_TYPES} types")]
    TooMany,
    #[error("a type is empty or longer than {MAX_TYPE_CHARS} characters")]
    Length,
    #[error("{0:?} has a * that is not its end after a dot, as in step.*")]
    Star(String),
}

impl Types {
    /// Reads a list of types, with commas between them.
    pub fn parse(text: &str) -> Result<Self, BadTypes> {
        let (mut patterns, mut has_all) = (Vec::new(), false);
        for (index, part) in text.split(',').enumerate() {
            if index == MAX_TYPES {
                return Err(BadTypes::TooMany);
            }
            if part.is_empty() || part.chars().count() > MAX_TYPE_CHARS {
                return Err(BadTypes::Length);
            }
            patterns.push(match part.strip_suffix('*') {
                Some("") => {
                    has_all = true;
                    continue;
                }
                Some(prefix) if prefix.ends_with('.') && !prefix.contains('*') => Pattern::Prefix(prefix.into()),
                None if !part.contains('*') => Pattern::Exact(part.into()),
                _ => return Err(BadTypes::Star(part.into())),
            });
        }
        if has_all {
            return Ok(Self::All);
        }
        patterns.sort_unstable();
        patterns.dedup();
        Ok(Self::Some(patterns))
    }

    /// Tells if events of this type are wanted.
    pub fn has(&self, kind: &str) -> bool {
        let Self::Some(patterns) = self else { return true };
        patterns.iter().any(|pattern| match pattern {
            Pattern::Exact(name) => name == kind,
            Pattern::Prefix(prefix) => kind.starts_with(prefix),
        })
    }
}

impl Set {
    /// Makes the cursor of these positions. One that is longer than a browser sends unasked is counted, unless it was wanted so.
    fn seal(&self, positions: &[Level]) -> Cursor {
        let cursor = set::seal(&self.members, positions, self.size);
        if self.size == Size::Short && cursor.as_str().len() > Cursor::MAX_BYTES {
            telemetry::LONG_SET_IDS.counter(&[]).increment(1);
        }
        cursor
    }
}

impl Topic {
    /// The topic of these jobs, at least one of them, in any order. One job alone with all of its events has its own cursors.
    pub fn new(jobs: impl IntoIterator<Item = JobId>, types: Types, size: Size) -> Self {
        let members = Members::new(jobs);
        match members.jobs() {
            [job] if types == Types::All => Self::Job(job.clone()),
            _ => Self::Set(Arc::new(Set { members, types, size })),
        }
    }

    /// The jobs, each once, in the order of the positions.
    pub fn jobs(&self) -> &[JobId] {
        match self {
            Self::Job(job) => std::slice::from_ref(job),
            Self::Set(set) => set.members.jobs(),
        }
    }

    /// The place of a job among the others.
    pub fn index(&self, job: &JobId) -> Option<usize> {
        match self {
            Self::Job(own) => (own == job).then_some(0),
            Self::Set(set) => set.members.index(job),
        }
    }

    /// Tells if events of this type are wanted.
    pub fn has_type(&self, kind: &str) -> bool {
        match self {
            Self::Job(_) => true,
            Self::Set(set) => set.types.has(kind),
        }
    }

    /// The token of these positions, one for each job. A single job's is its own cursor, also where only some of its events
    /// are wanted.
    pub fn token(&self, positions: &[Level]) -> Cursor {
        match (self.jobs(), self) {
            ([job], _) => positions[0].cursor(job),
            (_, Self::Set(set)) => set.seal(positions),
            (jobs, Self::Job(_)) => positions[0].cursor(&jobs[0]),
        }
    }

    /// The position at one cursor for each job, in their order.
    pub fn position_at(&self, cursors: &[Cursor]) -> Position {
        match self {
            Self::Job(_) => Position::of_job(cursors[0].clone()),
            Self::Set(_) => self.position(cursors.iter().map(Cursor::level).collect()),
        }
    }

    /// The position of a set.
    pub fn position(&self, levels: Vec<Level>) -> Position {
        Position { token: self.token(&levels), levels: levels.into() }
    }

    /// Reads the token that was made for this topic, or for another set: the cursor of each job where it knows one. `None`
    /// where it means nothing.
    pub fn open(&self, token: &str) -> Option<Vec<Option<Cursor>>> {
        match self {
            Self::Job(_) => None,
            Self::Set(set) if token.starts_with(set::LETTER) => set::open(&set.members, token),
            // The cursor of one job alone.
            Self::Set(set) => {
                let known: Vec<_> = set.members.jobs().iter().map(|job| Cursor::of_job(job, token)).collect();
                known.iter().any(Option::is_some).then_some(known)
            }
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.jobs() {
            [job] => job.fmt(f),
            jobs => write!(f, "{} and {} more", jobs[0], jobs.len() - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_names_and_prefixes_that_end_with_a_dot() {
        let types = Types::parse("step.*,job.failed").expect("types");
        for (kind, is_wanted) in [
            ("step.output", true),
            ("step.", true),
            ("step", false),
            ("steps.x", false),
            ("job.failed", true),
            ("job", false),
        ] {
            assert_eq!(types.has(kind), is_wanted, "{kind}");
        }
        assert_eq!(Types::parse("b,a,b"), Types::parse("a,b"));
        assert_eq!(Types::parse("a,*"), Ok(Types::All));
        for bad in ["", "a,", "*,", "*,st*", "*.x", "st*", "a.*.b", "a*.*"] {
            assert!(Types::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Types::parse(&["x"; 51].join(",")), Err(BadTypes::TooMany));
    }
}
