//! The time of a job's end, by the transactions that wrote it: what a snapshot knew to have ended, had ended by then,
//! whatever any clock says.

use super::error::QueryError;
use super::session::Session;
use super::snapshot::Snapshot;
use super::sql;
use crate::event::JobId;
use crate::source::{Ends, Evidence, Seen};
use jiff::Timestamp;
use sqlx::Row;

/// The ends of jobs.
pub type PostgresEnds = Ends<Reached, LastWrites>;

/// The transactions that had ended, and those that had not begun, at a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reached {
    xmin: u64,
    xmax: u64,
}

impl Reached {
    pub fn by(snapshot: &Snapshot) -> Self {
        Self { xmin: snapshot.xmin, xmax: snapshot.xmax }
    }
}

/// The transactions that wrote a job last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastWrites {
    /// The one that set the status; `None` where the job table does not tell.
    status: Option<u64>,
    /// The latest that wrote one of the newest events.
    events: u64,
}

impl LastWrites {
    fn seen_by(self, reached: &Reached) -> Seen {
        let latest = self.events.max(self.status.unwrap_or(0));
        if latest >= reached.xmax {
            Seen::After
        } else if self.status.is_some() && latest < reached.xmin {
            Seen::Before
        } else {
            Seen::Unknown
        }
    }
}

impl Session<'_> {
    /// Tells if a job with a final status ended so long ago that no more events are to be expected. While transactions are
    /// open, `source.settle` has to be over, too.
    pub async fn is_over(&mut self, job: &JobId, nothing_is_open: bool) -> Result<bool, QueryError> {
        let ends = &self.store.ends;
        let window = if nothing_is_open { ends.grace() } else { ends.grace().max(self.store.settle) };
        if window.is_zero() {
            return Ok(true);
        }
        let row = match self.connection.query_one(sql::last_writes(&self.tables, job, true)).await {
            // A role with rights to single columns only may not see who wrote the status.
            Err(error) if error.is_denied() => {
                self.connection.query_one(sql::last_writes(&self.tables, job, false)).await?
            }
            row => row?,
        };
        let status = match self.tables.jobs {
            Some(_) => row.try_get::<Option<i64>, _>("status_xid")?.map(|xid| xid as u64),
            None => Some(0),
        };
        let events = row.try_get::<Option<i64>, _>("events_xid")?.unwrap_or(0) as u64;
        let newest_at = row.try_get::<Option<i64>, _>("newest_at")?.and_then(|at| Timestamp::from_microsecond(at).ok());
        let state = LastWrites { status, events };
        let age = ends.age(|reached| state.seen_by(reached));
        Ok(ends.is_over_for(window, job, Evidence { state, age, newest_at }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_look_knew_to_have_ended_was_there() {
        let reached = Reached { xmin: 700, xmax: 710 };
        let seen = |status, events| LastWrites { status, events }.seen_by(&reached);
        assert_eq!(seen(Some(699), 650), Seen::Before);
        assert_eq!(seen(Some(650), 699), Seen::Before);
        assert_eq!(seen(Some(650), 700), Seen::Unknown, "it may have been open");
        assert_eq!(seen(None, 699), Seen::Unknown, "the status may be newer");
        assert_eq!(seen(None, 710), Seen::After);
        assert_eq!(seen(Some(710), 699), Seen::After);
    }
}
