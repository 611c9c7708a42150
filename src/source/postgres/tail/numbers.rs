//! Looks by number, for tables without a column of transactions.
//!
//! A job's rows have numbers that grow, mostly. So a look asks for rows above a number that the job has *reached*, which an
//! index on job and number answers. No clock takes part in it, no zone, no time that is null.
//!
//! A number says nothing about commits: a transaction that was open for long, or took its number long before, may commit a
//! row below it. So the number decides only when a job is read, never what of it was delivered: the read goes by the
//! position alone, as does the sweep, which finds the rows that no look can see. To keep these few, a number counts as
//! reached when all transactions have ended that were open in the snapshot in which it was seen, and 32 rows above it are
//! left out: then what a serial gives to a transaction is above it, however late the commit.
//!
//! A job in which a look has found something is read above that number, too, by the same index (`position/above.rs`). The
//! first such read after one of all rows fixes its floor there. So a new event costs no read through the job; the sweep does,
//! and so does whoever joins.

use super::{Draft, NewRows, PostgresTail, READ_LIMIT, Session};
use crate::event::JobId;
use crate::source::Limit;
use crate::source::postgres::error::QueryError;
use crate::source::postgres::page::{NoRoom, PageRows};
use crate::source::postgres::position::Position;
use crate::source::postgres::sql::Scope;
use std::collections::BTreeMap;

/// The numbers that watched jobs have reached.
#[derive(Default)]
pub struct Reaches(BTreeMap<JobId, Reach>);

/// The number that a job had reached.
#[derive(Clone, Copy)]
struct Reach {
    number: i64,
    /// The next one, which counts when all transactions below `xmax` have ended.
    next: Option<ReachedNumber>,
}

/// A number that a job had reached when a statement began, and the snapshot's `xmax` then.
#[derive(Clone, Copy)]
pub struct ReachedNumber {
    pub number: i64,
    pub xmax: u64,
}

impl ReachedNumber {
    pub fn of(rows: &PageRows) -> Option<Self> {
        rows.reach.map(|number| Self { number, xmax: rows.snapshot.xmax })
    }
}

impl Reach {
    /// Returns the reach after another statement, with everything below `mark` settled.
    fn after(known: Option<Self>, seen: ReachedNumber, mark: u64) -> Self {
        // Before the first there is nothing better to go by.
        let Some(Self { number, next }) = known else { return Self { number: seen.number, next: None } };
        match next {
            // The rows that had it are gone.
            _ if seen.number < number => Self { number: seen.number, next: None },
            Some(next) if next.xmax > mark => Self { number, next: Some(next) },
            Some(next) => Self { number: number.max(next.number), next: Some(seen) },
            None => Self { number, next: Some(seen) },
        }
    }
}

impl Reaches {
    pub fn remove(&mut self, job: &JobId) {
        self.0.remove(job);
    }
}

impl PostgresTail {
    /// The new rows that a look asks for where their transactions are in no column: those above a number of each job's own,
    /// or else those that are young.
    pub(super) fn rows_above(&self, session: &Session<'_>, xid: u64) -> NewRows<'_> {
        if session.tables.rows(session.tables.best).number().is_none() {
            return NewRows::SinceAndYounger(xid, self.store.settings.look_back.as_secs_f64());
        }
        // Those that are pending are read anyway.
        let looked_for = self.readable().filter(|job| !self.pending.contains(*job));
        let number = |job: &JobId| self.reaches.0.get(job).map_or(i64::MIN, |reach| reach.number);
        NewRows::SinceAndAbove(xid, looked_for.map(|job| (job.as_str(), number(job))).collect())
    }

    /// Reads one job above its floor. False where it is to be read whole: no floor is known, the position does not allow it,
    /// or a cursor has no room.
    pub(super) async fn read_above_floor(
        &self,
        session: &mut Session<'_>,
        job: &JobId,
        before: &Position,
        draft: &mut Draft,
    ) -> Result<bool, QueryError> {
        let mut position = before.clone();
        position.settle_in(&session.tables);
        let Some(floor) = self.floor(session, job, &position) else { return Ok(false) };
        let limit = Limit { events: draft.batch.room(), ..READ_LIMIT };
        let scope = Scope { floor: Some(floor), with_reach: true, ..Scope::of(job, limit.events) };
        let rows = session.read_rows_above(scope, &position).await?;
        if rows.is_cramped() {
            return Ok(false);
        }
        let reached = ReachedNumber::of(&rows);
        match rows.deliver_with_room(job, &mut position, limit) {
            Ok(delivered) => draft.add(job, position, delivered, reached),
            Err(NoRoom) => return Ok(false),
        }
        Ok(true)
    }

    /// The number above which a partial read finds what a look has found: that of the last one, or else the job's reach.
    fn floor(&self, session: &Session<'_>, job: &JobId, position: &Position) -> Option<i64> {
        let (tables, reach) = (&session.tables, self.reaches.0.get(job)?.number);
        let has_numbers = tables.rows(tables.best).number().is_some() && tables.events.keeps_numbers;
        // With `source.dedupe` a position is one of a moment, which only reads of all rows know.
        let is_settled = position.scheme == tables.best && position.range().is_none() && position.fits_list();
        let allows_it = is_settled && session.first_versions().is_none();
        let floor = position.above().map_or(reach, |above| above.floor);
        // Where rows are gone, the next ones may have numbers below the floor.
        (has_numbers && allows_it && floor <= reach).then_some(floor)
    }

    /// Takes over the numbers that jobs had reached when they were read to their end.
    pub(super) fn learn_reaches(&mut self, reached: BTreeMap<JobId, ReachedNumber>) {
        for (job, seen) in reached {
            if let Some(position) = self.positions.get(&job) {
                let known = self.reaches.0.get(&job).copied();
                let settled = position.above().map_or(position.settled(), |above| &above.ended);
                let reach = Reach::after(known, seen, settled.lowest_open());
                self.reaches.0.insert(job, reach);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_counts_when_all_have_ended_who_may_have_taken_a_lower_one() {
        let seen = |number, xmax| ReachedNumber { number, xmax };
        let reach = Reach::after(None, seen(10, 700), 650);
        assert_eq!(reach.number, 10, "the first is the best there is");
        let reach = Reach::after(Some(reach), seen(20, 705), 690);
        let reach = Reach::after(Some(reach), seen(30, 710), 704);
        assert_eq!(reach.number, 10, "704 may be open since before 20 was taken");
        let reach = Reach::after(Some(reach), seen(40, 720), 705);
        assert_eq!(reach.number, 20);
        let reach = Reach::after(Some(reach), seen(50, 730), 720);
        assert_eq!(reach.number, 40);
        assert_eq!(Reach::after(Some(reach), seen(30, 740), 720).number, 30, "it has gone back");
    }
}
