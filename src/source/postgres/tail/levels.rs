//! Reads of watched jobs up to the level of a look, so that all of them stand at one position afterwards: see
//! `position/level.rs`.

use super::{Changes, Draft, PostgresTail, QueryError, READ_LIMIT, SeenSnapshot, Selection, Session};
use crate::cursor::{Cursor, Level};
use crate::event::{Event, JobId};
use crate::source::postgres::many::{FirstRows, ROWS_EACH};
use crate::source::postgres::position::Position;
use crate::source::{Joiner, Limit};

/// The events that a joiner lacks; `None` where they are too many.
type Missing = Option<Vec<(Event, Cursor)>>;

impl PostgresTail {
    /// Adds the level of a look that has found all new rows. A standby's snapshot does not list the open transactions.
    pub(super) fn with_level(&self, session: &Session<'_>, changes: Changes) -> Changes {
        if changes.snapshot.is_standby {
            return changes;
        }
        // The source made these positions, so what they claim is durable.
        let known = self.positions.values().map(Position::ceiling).max().unwrap_or(0);
        Changes { level: changes.snapshot.level(&session.tables, known), ..changes }
    }

    /// Reads one job up to the level, as far as there is room. False where it cannot go on to there.
    pub(super) async fn read_up_to_level(
        &self,
        session: &mut Session<'_>,
        job: &JobId,
        selection: &Selection,
        first_rows: &mut FirstRows,
        draft: &mut Draft,
    ) -> Result<bool, QueryError> {
        let (Some(level), Some(mut position)) = (&selection.level, self.position(session, job, draft)) else {
            return Ok(false);
        };
        if position == *level {
            draft.done.insert(job.clone());
            draft.positions.insert(job.clone(), position);
            return Ok(true);
        }
        if !(position.is_below(level) && position.has_room_up_to(level)) {
            return Ok(false);
        }
        let is_beside = |other: &&JobId| {
            let is_over = draft.done.contains(*other) || draft.failed.contains_key(*other);
            !is_over && self.positions.get(*other) == Some(&position) && !self.faults.is_waiting(other)
        };
        let beside = selection.jobs.iter().filter(is_beside);
        let mut first = first_rows.of(session, job, &position, level, beside, READ_LIMIT.events).await?;
        loop {
            let room = draft.batch.room();
            let (page, events) = match first.take() {
                Some(page) => (page, room.min(ROWS_EACH)),
                None => {
                    draft.jobs_read += 1;
                    (session.rows_up_to(job, &position, level, Limit { events: room, ..READ_LIMIT }).await?, room)
                }
            };
            let reaches_level = page.end == *level.settled();
            let (events, has_all) = page.deliver(job, &mut position, Limit { events, ..READ_LIMIT });
            draft.batch.extend(job, events);
            if has_all && reaches_level {
                draft.done.insert(job.clone());
                position = level.clone();
            }
            if draft.done.contains(job) || draft.is_full() {
                draft.positions.insert(job.clone(), position);
                return Ok(true);
            }
        }
    }

    /// Reads, for each joiner, the published rows that it lacks. Only for a job that was read to its end, and for a joiner that
    /// is not too far behind.
    pub(super) async fn serve_joiners(
        &self,
        session: &mut Session<'_>,
        joining: &[Joiner],
        level: Option<&Position>,
        draft: &mut Draft,
    ) -> Result<Vec<Missing>, QueryError> {
        let starts: Vec<Option<Position>> = joining.iter().map(|joiner| self.start(session, joiner, draft)).collect();
        // Those of a set mostly stand at one position, and are read together.
        let mut together: Vec<(&Position, FirstRows)> = Vec::new();
        let mut caught_up = Vec::with_capacity(joining.len());
        for (index, (Joiner { job, .. }, start)) in joining.iter().zip(&starts).enumerate() {
            let published = draft.positions.get(job).cloned();
            let (Some(start), Some(published)) = (start, published) else {
                caught_up.push(None);
                continue;
            };
            let missing = if level == Some(&published) && start.is_below(&published) {
                let place = together.iter().position(|(at, _)| *at == start).unwrap_or_else(|| {
                    together.push((start, FirstRows::default()));
                    together.len() - 1
                });
                let is_beside = |(joiner, other): &(&Joiner, &Option<Position>)| {
                    other.as_ref() == Some(start) && draft.positions.get(&joiner.job) == level
                };
                let behind = joining.iter().zip(&starts).skip(index).filter(is_beside);
                let mut beside: Vec<&JobId> = behind.map(|(joiner, _)| &joiner.job).collect();
                beside.sort_unstable();
                beside.dedup();
                read_up_to(session, job, start, &published, &mut together[place].1, beside).await
            } else {
                session.read_missing(job, &mut start.clone(), &published, READ_LIMIT).await
            };
            let missing = draft.narrow(job, missing)?.flatten();
            // An UPDATE since the job was read may have taken an event away that the joiner lacks in any version.
            if let Some(published) = draft.positions.get_mut(job).filter(|_| missing.is_some()) {
                published.forget_moment();
            }
            caught_up.push(missing);
        }
        Ok(caught_up)
    }

    /// The position of a joiner whose job was read to its end, as this session means it.
    fn start(&self, session: &Session<'_>, joiner: &Joiner, draft: &Draft) -> Option<Position> {
        let mut position = Position::from_cursor(&joiner.job, joiner.after.as_str())?;
        position.settle_in(&session.tables);
        draft.done.contains(&joiner.job).then_some(position)
    }

    /// The position of a watched job, as this session means it.
    fn position(&self, session: &Session<'_>, job: &JobId, draft: &Draft) -> Option<Position> {
        let mut position = draft.positions.get(job).or_else(|| self.positions.get(job)).cloned()?;
        if position.is_beginning() {
            position.adopt(session.tables.best);
        }
        position.settle_in(&session.tables);
        Some(position)
    }

    /// The level of the last look, if every watched job stands at it that can be read.
    pub(super) fn level(&self) -> Option<Level> {
        let SeenSnapshot { level, .. } = self.seen.as_ref().filter(|_| self.pending.is_empty())?;
        let level = level.as_ref()?;
        let is_there = |(job, position): (&JobId, &Position)| position == level || self.faults.contains(job);
        self.positions.iter().all(is_there).then(|| level.to_level())
    }
}

/// Reads what a reader at `start` lacks of a job up to a level, together with the jobs `beside` it that stand there.
async fn read_up_to(
    session: &mut Session<'_>,
    job: &JobId,
    start: &Position,
    level: &Position,
    first_rows: &mut FirstRows,
    beside: Vec<&JobId>,
) -> Result<Missing, QueryError> {
    if start == level {
        return Ok(Some(Vec::new()));
    }
    if let Some(page) = first_rows.of(session, job, start, level, beside.into_iter(), READ_LIMIT.events).await? {
        let (events, has_all) = page.deliver(job, &mut start.clone(), Limit { events: ROWS_EACH, ..READ_LIMIT });
        if has_all {
            return Ok(Some(events));
        }
    }
    session.read_missing(job, &mut start.clone(), level, READ_LIMIT).await
}
