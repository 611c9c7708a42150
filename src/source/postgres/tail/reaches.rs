//! Looks by number or time, for tables without a column of transactions.
//!
//! A job's rows have numbers that grow, mostly, or else times that do. So a look asks for rows above a number (a time) that the
//! job has *reached*, which an index on job and number answers. By number no clock takes part in it, no zone, no time that is
//! null.
//!
//! Neither says anything about commits: a transaction that was open for long, or took its number long before, may commit a
//! row below it. So it decides only when a job is read, never what of it was delivered: the read goes by the position alone,
//! as does the sweep, which finds the rows that no look can see. To keep these few, a number counts as reached when all
//! transactions have ended that were open in the snapshot in which it was seen, and 32 rows above it are left out: then what a
//! serial gives to a transaction is above it, however late the commit. Times count so only where they are older than
//! `look_back`, for writers whose clocks are behind those of the job's others; where all are wrong alike it makes no difference.
//!
//! Where the table is one heap, a look by time also reads its last blocks, in which new rows mostly lie, whatever their times
//! are. From which block on is told as the numbers are: rows that are written later lie beyond the end that the table had. Not
//! those for which a block before had room.
//!
//! A job in which a look has found something is read above that number or time, too, by the same index
//! (`position/above.rs`). The first such read after one of all rows fixes its floor there, or below the lowest time that was
//! found at the table's end since the last sweep. So a new event costs no read through the job; the sweep does, and so does
//! whoever joins.

use super::{Changes, Draft, NewRows, PostgresTail, READ_LIMIT, Session};
use crate::event::JobId;
use crate::source::Limit;
use crate::source::postgres::error::QueryError;
use crate::source::postgres::page::{NoRoom, PageRows};
use crate::source::postgres::position::{Floor, Position};
use crate::source::postgres::sql::Scope;
use std::collections::BTreeMap;

/// Blocks before the one that the table had reached which are read all the same: other writers have room in theirs.
const BLOCKS_BEFORE: u64 = 16;
/// Most blocks that a look reads of those that the one before has seen, however long a transaction is open.
const MOST_BLOCKS: u64 = 2_000;

/// The places that watched jobs, and the table, have reached.
#[derive(Default)]
pub struct Reaches {
    jobs: BTreeMap<JobId, Reach<Floor>>,
    /// Floors below the rows that looks have found at the table's end since the last sweep.
    found: BTreeMap<JobId, Floor>,
    /// Number of the table's blocks; `None` where its end is not read by itself.
    blocks: Option<Reach<u64>>,
}

/// A place that was reached.
#[derive(Clone, Copy)]
struct Reach<T> {
    place: T,
    /// The next one, which counts when all transactions below `xmax` have ended.
    next: Option<ReachedPlace<T>>,
}

/// A place that was reached when a statement began, and the snapshot's `xmax` then.
#[derive(Clone, Copy)]
pub struct ReachedPlace<T> {
    pub place: T,
    pub xmax: u64,
}

impl ReachedPlace<Floor> {
    pub fn of(rows: &PageRows) -> Option<Self> {
        rows.reach.map(|place| Self { place, xmax: rows.snapshot.xmax })
    }
}

impl<T: Copy + Ord> Reach<T> {
    /// Returns the reach after another statement, with everything below `mark` settled.
    fn after(known: Option<Self>, seen: ReachedPlace<T>, mark: u64) -> Self {
        // Before the first there is nothing better to go by.
        let Some(Self { place, next }) = known else { return Self { place: seen.place, next: None } };
        match next {
            // The rows that had it are gone.
            _ if seen.place < place => Self { place: seen.place, next: None },
            Some(next) if next.xmax > mark => Self { place, next: Some(next) },
            Some(next) => Self { place: place.max(next.place), next: Some(seen) },
            None => Self { place, next: Some(seen) },
        }
    }
}

impl Reaches {
    pub fn remove(&mut self, job: &JobId) {
        self.jobs.remove(job);
        self.found.remove(job);
    }

    /// Forgets what looks have found at the table's end: from now on jobs are read whole.
    pub fn begin_sweep(&mut self) {
        self.found.clear();
    }

    /// Notes that a look has found new rows of a job at the table's end, all of which are above this floor.
    pub fn note_found(&mut self, job: &JobId, floor: Floor) {
        let lowest = self.found.entry(job.clone()).or_insert(floor);
        *lowest = floor.min(*lowest);
    }

    /// Takes over how many blocks the table has, when nothing fails any more of the read that the look has led to.
    pub fn learn_blocks(&mut self, changes: &Changes) {
        let Some(blocks) = changes.found.as_ref().and_then(|found| found.blocks) else { return };
        let seen = ReachedPlace { place: blocks, xmax: changes.snapshot.xmax };
        self.blocks = Some(Reach::after(self.blocks, seen, changes.snapshot.mark()));
    }

    /// The first block of the table's end.
    fn first_block(&self) -> Option<u64> {
        let Reach { place, next } = self.blocks?;
        let newest = next.map_or(place, |next| next.place);
        Some(place.max(newest.saturating_sub(MOST_BLOCKS)).saturating_sub(BLOCKS_BEFORE))
    }

    /// A floor that everything is above which a look has found of the job. `None` where none is known.
    fn floor(&self, job: &JobId) -> Option<Floor> {
        let reach = self.jobs.get(job)?.place;
        let floor = self.found.get(job).map_or(reach, |found| reach.min(*found));
        // Of rows without a time none is above a floor.
        (floor != Floor::Time(i64::MIN)).then_some(floor)
    }
}

impl PostgresTail {
    /// The new rows that a look asks for where their transactions are in no column: those above a number or time of each job's
    /// own, or else those that are young.
    pub(super) fn rows_above(&self, session: &Session<'_>, xid: u64) -> NewRows<'_> {
        if session.tables.rows(session.tables.best).look_column().is_none() {
            return NewRows::SinceAndYounger(xid, self.store.settings.look_back.as_secs_f64());
        }
        // Those that are pending are read anyway.
        let looked_for = self.readable().filter(|job| !self.pending.contains(*job));
        let reached = |job: &JobId| self.reaches.jobs.get(job).map(|reach| reach.place);
        let floors = looked_for.map(|job| (job.as_str(), reached(job))).collect();
        NewRows::SinceAndAbove(xid, floors, self.reaches.first_block())
    }

    /// Notes the rows that a look has found at the table's end, below whatever their jobs have reached.
    pub(super) fn note_found_at_end(&mut self, session: &Session<'_>, changes: &Changes) {
        let Some(column) = session.tables.rows(session.tables.best).look_column() else { return };
        for (job, lowest) in changes.found.iter().flat_map(|found| &found.at_end) {
            self.reaches.note_found(job, column.floor(lowest.saturating_sub(1)));
        }
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
        let scope = Scope { floor: Some(floor), ..self.scope(job, limit) };
        let rows = session.read_rows_above(scope, &position).await?;
        if rows.is_cramped() {
            return Ok(false);
        }
        let reached = ReachedPlace::of(&rows);
        match rows.deliver_with_room(job, &mut position, limit) {
            Ok(delivered) => draft.add(job, position, delivered, reached),
            Err(NoRoom) => return Ok(false),
        }
        Ok(true)
    }

    /// All rows of a job, and what it has reached.
    pub(super) fn scope<'a>(&self, job: &'a JobId, limit: Limit) -> Scope<'a> {
        Scope { reach_before: Some(self.store.settings.look_back.as_secs_f64()), ..Scope::of(job, limit) }
    }

    /// The floor above which a partial read finds what a look has found: that of the last one, or else the job's reach.
    fn floor(&self, session: &Session<'_>, job: &JobId, position: &Position) -> Option<Floor> {
        let (tables, reach) = (&session.tables, self.reaches.floor(job)?);
        // With `source.dedupe` a position is one of a moment, which only reads of all rows know.
        let is_settled = position.scheme == tables.best && position.range().is_none() && position.fits_list();
        let allows_it = is_settled && session.first_versions().is_none();
        let floor = position.above().map_or(reach, |above| above.floor);
        // One of another kind is from before the table was altered.
        let column = tables.rows(tables.best).look_column()?;
        let is_known = [floor, reach].iter().all(|floor| column.floor(floor.number()) == *floor);
        // Where rows are gone, or a slow clock comes, the next ones may be below the floor.
        (allows_it && is_known && tables.events.keeps(floor) && floor <= reach).then_some(floor)
    }

    /// Takes over what jobs had reached when they were read to their end.
    pub(super) fn learn_reaches(&mut self, reached: BTreeMap<JobId, ReachedPlace<Floor>>) {
        for (job, seen) in reached {
            if let Some(position) = self.positions.get(&job) {
                let known = self.reaches.jobs.get(&job).copied();
                let settled = position.above().map_or(position.settled(), |above| &above.ended);
                let reach = Reach::after(known, seen, settled.lowest_open());
                self.reaches.jobs.insert(job, reach);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_counts_when_all_have_ended_who_may_have_taken_a_lower_one() {
        let seen = |place, xmax| ReachedPlace { place, xmax };
        let reach = Reach::after(None, seen(10, 700), 650);
        assert_eq!(reach.place, 10, "the first is the best there is");
        let reach = Reach::after(Some(reach), seen(20, 705), 690);
        let reach = Reach::after(Some(reach), seen(30, 710), 704);
        assert_eq!(reach.place, 10, "704 may be open since before 20 was taken");
        let reach = Reach::after(Some(reach), seen(40, 720), 705);
        assert_eq!(reach.place, 20);
        let reach = Reach::after(Some(reach), seen(50, 730), 720);
        assert_eq!(reach.place, 40);
        assert_eq!(Reach::after(Some(reach), seen(30, 740), 720).place, 30, "it has gone back");
    }

    #[test]
    fn the_end_of_a_table_is_no_longer_than_what_a_look_can_read() {
        let mut reaches = Reaches::default();
        assert_eq!(reaches.first_block(), None);
        let end = |place, next| Some(Reach { place, next: Some(ReachedPlace { place: next, xmax: 700 }) });
        reaches.blocks = end(1_000, 1_010);
        assert_eq!(reaches.first_block(), Some(1_000 - BLOCKS_BEFORE));
        reaches.blocks = end(1_000, 9_000);
        assert_eq!(reaches.first_block(), Some(9_000 - MOST_BLOCKS - BLOCKS_BEFORE), "a transaction is open for long");
        reaches.blocks = end(10, 20);
        assert_eq!(reaches.first_block(), Some(0));
    }

    #[test]
    fn a_row_that_was_found_below_what_its_job_has_reached_takes_the_floor_down_until_the_next_sweep() {
        let job: JobId = "job".parse().expect("a job id");
        let mut reaches = Reaches::default();
        reaches.note_found(&job, Floor::Time(7));
        assert_eq!(reaches.floor(&job), None, "it has reached nothing");
        reaches.jobs.insert(job.clone(), Reach { place: Floor::Time(50), next: None });
        reaches.note_found(&job, Floor::Time(60));
        assert_eq!(reaches.floor(&job), Some(Floor::Time(7)));
        reaches.note_found(&job, Floor::Time(i64::MIN));
        assert_eq!(reaches.floor(&job), None, "no floor is below a row without a time");
        reaches.begin_sweep();
        assert_eq!(reaches.floor(&job), Some(Floor::Time(50)));
    }
}
