//! Looks: the statements that find out which watched jobs have something new.

use super::{Changes, PostgresTail};
use crate::event::JobId;
use crate::source::postgres::error::QueryError;
use crate::source::postgres::session::Session;
use crate::source::postgres::sql::{self, ChangesQuery, NewRows};
use crate::source::postgres::tables::{CursorScheme, XidSource};
use sqlx::postgres::PgRow;

impl PostgresTail {
    /// Looks for changes since the last look: a short statement, and if something has ended, one for all watched jobs.
    pub(super) async fn find_changes(&mut self, session: &mut Session<'_>) -> Result<Changes, QueryError> {
        if let Some(seen) = &self.seen {
            // A standby's snapshot does not tell, and nothing is known yet of the status of a new watch.
            let is_current = !seen.is_outdated && !seen.snapshot.is_standby;
            let may_be_unchanged = is_current && self.unchecked.is_empty() && !self.awaited.has_new();
            if may_be_unchanged && session.is_unchanged(&seen.snapshot).await? {
                return Ok(Changes { snapshot: seen.snapshot.clone(), found: None, level: seen.level.clone() });
            }
        }
        if self.whole_look.is_waiting() {
            return self.changes_without_look(session).await;
        }
        let sql = self.changes_sql(session);
        match session.connection.query(sql).await {
            Ok(rows) => {
                self.whole_look.ends();
                self.note_statuses();
                Ok(self.with_level(session, self.parse_changes(session, &rows)?))
            }
            Err(error) if error.is_of_rows() => {
                self.whole_look.begins();
                self.changes_without_look(session).await
            }
            Err(error) => Err(error),
        }
    }

    /// Takes every watched job for changed, because the rows of some job make the look itself fail. The read of each of
    /// them tells which it is, and a read comes to a bounded number of them. Where the statuses are the cause, nothing ends
    /// until that is known, and all else goes on.
    async fn changes_without_look(&mut self, session: &mut Session<'_>) -> Result<Changes, QueryError> {
        let jobs = self.readable().map(JobId::as_str).collect();
        let (by_status, awaited, awaited_events) = (self.jobs_by_status(), Vec::new(), Vec::new());
        let query = ChangesQuery { jobs, new_rows: NewRows::None, by_status, awaited, awaited_events };
        let system = CursorScheme { xids: XidSource::System, ..session.tables.best };
        let with_statuses = sql::changes(&session.tables.rows(system), session.durable_xid(), &query);
        let without = ChangesQuery { jobs: Vec::new(), ..query };
        let without = sql::changes(&session.tables.rows(system), session.durable_xid(), &without);
        let rows = match self.look_for_statuses(session, with_statuses).await? {
            Some(rows) => rows,
            None => session.connection.query(without).await?,
        };
        let mut changes = self.parse_changes(session, &rows)?;
        if let Some(found) = &mut changes.found {
            found.jobs = self.positions.keys().cloned().collect();
            found.appeared = self.awaited.jobs().cloned().collect();
        }
        Ok(changes)
    }

    /// Asks for the statuses; `None` where some row makes that fail, and while it is too early to ask again.
    async fn look_for_statuses(
        &mut self,
        session: &mut Session<'_>,
        sql: String,
    ) -> Result<Option<Vec<PgRow>>, QueryError> {
        if self.status_look.is_waiting() {
            return Ok(None);
        }
        match session.connection.query(sql).await {
            Ok(rows) => {
                self.note_statuses();
                Ok(Some(rows))
            }
            Err(error) if error.is_of_rows() => {
                if self.status_look.begins() {
                    let error = self.store.error("reading the statuses of jobs", error);
                    tracing::warn!(code = error.code.as_str(), %error, "no job ends until it is known whose status cannot be read");
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Notes that all statuses could be read.
    fn note_statuses(&mut self) {
        if self.status_look.ends() {
            tracing::info!("the statuses of jobs can be read again");
        }
    }
}
