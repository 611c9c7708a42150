//! Findings of `jobcast check` about the database.

use super::error::QueryError;
use super::position::Position;
use super::session::Session;
use super::sql::{self, PageQuery, XidBound, quote_table};
use super::store::{Store, read_relation};
use super::tables::{CursorScheme, RelationKind, RowOrder, XidSource};
use crate::config;
use crate::error::SourceError;
use crate::event::JobId;
use crate::source::Finding;
use sqlx::Row;

pub async fn check(settings: &config::Source) -> Vec<Finding> {
    try_check(settings).await.unwrap_or_else(|error| vec![error.into()])
}

async fn try_check(settings: &config::Source) -> Result<Vec<Finding>, SourceError> {
    let store = Store::open(settings).await?;
    store.with_session("checking the database", async |session| session.check().await).await
}

/// An index that reads are slow without.
struct WantedIndex<'a> {
    /// Quoted.
    table: &'a str,
    columns: Vec<&'a str>,
    reason: &'static str,
}

impl Session<'_> {
    async fn check(&mut self) -> Result<Vec<Finding>, QueryError> {
        let mut findings = self.check_server().await?;
        findings.push(Finding::fine(describe(self.tables.best)));
        findings.extend(self.check_columns().await?);
        findings.extend(self.check_indexes().await?);
        findings.extend(self.check_rights().await?);
        findings.push(self.check_wakeups().await?);
        Ok(findings)
    }

    async fn check_server(&mut self) -> Result<Vec<Finding>, QueryError> {
        let row = self.connection.query_one(sql::SERVER.into()).await?;
        let version: String = row.try_get("version")?;
        let mut findings = vec![if row.try_get::<i32, _>("version_number")? >= 130_000 {
            Finding::fine(format!("PostgreSQL {version}"))
        } else {
            Finding::problem(format!("PostgreSQL {version} is too old"), "13 is the oldest that tells what is needed")
        }];
        if row.try_get("is_standby")? {
            findings.push(Finding::fine("a standby: it hears no wake-ups, new events wait for the poll"));
        }
        if self.store.is_behind_proxy(row.try_get("port")?) {
            findings.push(Finding::fine(
                "a pooler or proxy stands before the server: where it keeps no sessions (PgBouncer's pool_mode = \
                 transaction), wake-ups do not pass, and new events wait for the poll; then set source.postgres.listen = \"\"",
            ));
        }
        Ok(findings)
    }

    /// Finds columns that make events late or slow.
    async fn check_columns(&mut self) -> Result<Vec<Finding>, QueryError> {
        let mut findings = Vec::new();
        let names = &self.store.settings.columns;
        let relation = read_relation(&mut self.connection, &self.store.settings.events_table, &names.job_id).await?;
        let table = &self.tables.events.name;
        // A view's columns may be null as far as the catalogue knows, and have no index of their own.
        let columns = relation.columns.iter().filter(|_| relation.kind != RelationKind::View);
        for column in columns {
            let is = |name: &str| column.name == name;
            if is(&names.xid) && column.kind == "xid8" && !column.tells_xid(relation.kind) {
                findings.push(Finding::problem(
                    format!("the column {} is not used, since nothing fills it", column.name),
                    format!("ALTER TABLE {table} ALTER COLUMN {} SET DEFAULT pg_current_xact_id()", column.name),
                ));
            }
            if column.may_be_null && (is(&names.timestamp) || is(&names.id)) {
                findings.push(Finding::problem(
                    format!("the column {} may be null: then no index can serve the order of events", column.name),
                    format!("ALTER TABLE {table} ALTER COLUMN {} SET NOT NULL", column.name),
                ));
            }
        }
        Ok(findings)
    }

    async fn check_indexes(&mut self) -> Result<Vec<Finding>, QueryError> {
        let mut findings = Vec::new();
        let tables = self.tables.clone();
        for WantedIndex { table, columns, reason } in wanted_indexes(&self.store.settings, &tables) {
            let row = self.connection.query_one(sql::has_index(table, columns.iter().copied())).await?;
            let columns = columns.join(", ");
            findings.push(if row.try_get("has_index")? {
                Finding::fine(format!("there is an index on {table} ({columns})"))
            } else {
                Finding::problem(
                    format!("there is no index on {table} ({columns}): {reason}"),
                    format!("CREATE INDEX CONCURRENTLY ON {table} ({columns})"),
                )
            });
        }
        Ok(findings)
    }

    /// Reads as the tail and history do, for a job that does not exist.
    async fn check_rights(&mut self) -> Result<Vec<Finding>, QueryError> {
        let no_job: Option<JobId> = ["jobcast-check", "0", "00000000-0000-0000-0000-000000000000"]
            .into_iter()
            .find(|id| self.tables.events.job_id.canonical(id).is_some())
            .and_then(|id| id.parse().ok());
        if let Some(job) = &no_job {
            let position = &Position::beginning();
            let query = PageQuery { job, position, end: XidBound::OwnMark, published_by: None, limit: 1 };
            let sql = sql::page(&self.tables, self.durable_xid(), &query);
            if let Err(error) = self.connection.query(sql).await {
                return Ok(vec![self.store.error("reading events and statuses", error).into()]);
            }
        }
        let row = self.connection.query_one(sql::may_insert(&self.tables.events.name)).await?;
        let user: String = row.try_get("user_name")?;
        Ok(vec![Finding::fine(if row.try_get("may_insert")? {
            format!("{user} may read the tables, and write to them; to read is all that is needed without ingest")
        } else {
            format!("{user} may read the tables, and not write to them")
        })])
    }

    async fn check_wakeups(&mut self) -> Result<Finding, QueryError> {
        let settings = &self.store.settings;
        if settings.listen.is_empty() {
            return Ok(Finding::fine("no wake-ups are asked for: new events wait for the poll"));
        }
        let row = self.connection.query_one(sql::has_notify_trigger(&self.tables.events.name)).await?;
        Ok(Finding::fine(if row.try_get("has_trigger")? {
            format!("a trigger notifies; Jobcast listens on {}", settings.listen)
        } else {
            format!(
                "no trigger on {} notifies: new events wait for the poll; `jobcast schema postgres` has one",
                quote_table(&settings.events_table)
            )
        }))
    }
}

fn describe(scheme: CursorScheme) -> &'static str {
    match (scheme.xids, scheme.order) {
        (XidSource::Column, RowOrder::Number) => {
            "the event table tells transactions and numbers by columns: new events are found by index"
        }
        (XidSource::Column, RowOrder::Time) => {
            "the event table tells transactions by a column; events are ordered by timestamp"
        }
        (XidSource::System, _) => {
            "the event table has no column of type xid8: new events are found by timestamp, and by sweeps; \
             `jobcast schema postgres --migrate` shows how to add the column that makes it cheap"
        }
    }
}

fn wanted_indexes<'a>(settings: &'a config::Postgres, tables: &'a super::Tables) -> Vec<WantedIndex<'a>> {
    let names = &settings.columns;
    // The indexes of a view are those of the tables below it, which are not looked for.
    if tables.events.kind == RelationKind::View {
        return Vec::new();
    }
    let on_events = |columns, reason| WantedIndex { table: &tables.events.name, columns, reason };
    let mut wanted = Vec::new();
    match tables.best.order {
        RowOrder::Number => {
            wanted.push(on_events(vec![&*names.job_id, &names.seq], "history is read by it"));
            if tables.events.has_unnumbered {
                let reason = "history from before there were numbers is read by it";
                wanted.push(on_events(vec![&*names.job_id, &names.timestamp], reason));
            }
        }
        RowOrder::Time => {
            let columns = [&*names.job_id, &names.timestamp].into_iter().filter(|name| !name.is_empty()).collect();
            wanted.push(on_events(columns, "history and new events are read by it"));
        }
    }
    if tables.best.xids == XidSource::Column {
        wanted.push(on_events(vec![&*names.xid], "new events are found by it"));
    }
    if let Some(jobs) = &tables.jobs {
        let columns = vec![&*settings.job_columns.id];
        wanted.push(WantedIndex { table: &jobs.name, columns, reason: "the status of a job is found by it" });
    }
    wanted
}
