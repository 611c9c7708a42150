//! Findings about what the user may see: the right to read, row level security, and the right to write.

use super::super::error::QueryError;
use super::super::position::Position;
use super::super::sql::{self, PageQuery, Scope, XidBound};
use super::super::tables::Tables;
use super::Check;
use crate::event::JobId;
use crate::source::{Finding, Limit};
use sqlx::Row;
use sqlx::postgres::PgRow;

/// A table or view that is read, itself or through a view.
struct Access {
    /// Quoted where needed.
    name: String,
    /// The role in whose name it is read, quoted where needed: the user's, or that of a view's owner.
    reader: String,
    may_read: bool,
    /// Row level security counts for the reader.
    is_guarded: bool,
    /// Policies that let the reader see rows.
    policies: Vec<String>,
}

impl Check<'_> {
    /// Checks the rights on a table and on everything below it. `is_readable` is known where its columns are: then a
    /// right on these is enough.
    pub(super) async fn check_access(&mut self, table: &str, is_readable: bool) -> Result<Vec<Finding>, QueryError> {
        let rows = self.connection.query(sql::check::read_access(&sql::quote_table(table))).await?;
        let mut findings = Vec::new();
        for access in rows.iter().map(Access::parse).collect::<Result<Vec<_>, _>>()? {
            let Access { name, reader, .. } = &access;
            if !access.may_read && !is_readable {
                findings.push(Finding::problem(
                    format!("permission denied: {reader} may not read {name}"),
                    format!("GRANT SELECT ON {name} TO {reader};"),
                ));
            }
            if access.is_guarded && access.policies.is_empty() {
                findings.push(Finding::problem(
                    format!(
                        "{name} has row level security, and no policy lets {reader} see a row: every job is unknown"
                    ),
                    format!("CREATE POLICY jobcast_reads ON {name} FOR SELECT TO {reader} USING (true);"),
                ));
            } else if access.is_guarded {
                findings.push(Finding::fine(format!(
                    "{name} has row level security: {reader} sees only the rows that {} show",
                    access.policies.join(", ")
                )));
            }
        }
        Ok(findings)
    }

    /// Reads as the tail and history do, for a job that does not exist. Returns what the server finds wrong with it.
    pub(super) async fn try_page(&mut self, tables: &Tables) -> Option<QueryError> {
        let no_job: Option<JobId> = ["jobcast-check", "0", "00000000-0000-0000-0000-000000000000"]
            .into_iter()
            .find(|id| tables.events.job_id.canonical(id).is_some())
            .and_then(|id| id.parse().ok());
        let (job, position) = (no_job?, Position::beginning());
        let scope = Scope::of(&job, Limit { events: 1, bytes: 1 });
        let query = PageQuery { scope, position: &position, end: XidBound::OwnMark, published_by: None };
        self.connection.query(sql::page(tables, 0, 1, &query)).await.err()
    }

    pub(super) async fn check_writing(&mut self, tables: &Tables) -> Result<Vec<Finding>, QueryError> {
        let row = self.connection.query_one(sql::may_insert(&tables.events.name)).await?;
        let user: String = row.try_get("user_name")?;
        Ok(vec![Finding::fine(if row.try_get("may_insert")? {
            format!("{user} may read the tables, and write to them; to read is all that is needed without ingest")
        } else {
            format!("{user} may read the tables, and not write to them")
        })])
    }
}

impl Access {
    fn parse(row: &PgRow) -> Result<Self, QueryError> {
        Ok(Self {
            name: row.try_get("name")?,
            reader: row.try_get("reader")?,
            may_read: row.try_get("may_read")?,
            is_guarded: row.try_get("is_guarded")?,
            policies: row.try_get("policies")?,
        })
    }
}
