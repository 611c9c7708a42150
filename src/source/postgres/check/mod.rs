//! Findings of `jobcast check` about the database. Each mend is a statement or a setting that can be pasted, and that is
//! possible on that kind of relation.

mod columns;
mod cost;
mod ends;
mod indexes;
mod rights;
mod view;

use super::error::QueryError;
use super::pool::PooledConnection;
use super::sql::{self, quote_table};
use super::store::{Catalogue, Store};
use super::tables::{RowOrder, Tables, XidSource};
use crate::config;
use crate::error::{SourceCode, SourceError};
use crate::source::Finding;
use crate::source::names::nearest_name;
use sqlx::Row;

pub async fn check(settings: &config::Source) -> Vec<Finding> {
    try_check(settings).await.unwrap_or_else(|error| vec![error.into()])
}

async fn try_check(settings: &config::Source) -> Result<Vec<Finding>, SourceError> {
    let store = Store::prepare(settings)?;
    let began = async || {
        let mut connection = store.pool.get().await?;
        let server = connection.query_one(sql::SERVER.into()).await?;
        let reader: String = server.try_get("reader")?;
        Ok::<_, QueryError>((connection, server, reader))
    };
    let (mut connection, server, reader) =
        began().await.map_err(|error| store.error("looking at the tables", error))?;
    let mut findings = check_server(&store, &server).map_err(|error| store.error("asking the server", error))?;
    match Catalogue::read(&store.settings, &mut connection).await {
        Ok(catalogue) => {
            let mut check = Check { store: &store, connection, catalogue, reader, findings };
            check.run().await;
            findings = check.findings;
        }
        Err(error) => findings.push(unreadable_catalogue(&store, error, &reader)),
    }
    let mut seen = std::collections::HashSet::new();
    findings.retain(|finding| seen.insert(finding.summary.clone()));
    Ok(findings)
}

/// A check that goes on, whatever it finds.
struct Check<'a> {
    store: &'a Store,
    connection: PooledConnection,
    catalogue: Catalogue,
    /// The user, quoted where needed.
    reader: String,
    findings: Vec<Finding>,
}

impl Check<'_> {
    async fn run(&mut self) {
        let tables = match self.catalogue.resolve(&self.store.settings) {
            Ok(tables) => Some(tables),
            Err(problems) => {
                for problem in problems {
                    let mend = self.mend(&problem).await.unwrap_or_else(|_| problem.mend());
                    self.findings.push(Finding::problem(problem.to_string(), mend));
                }
                None
            }
        };
        let Some(tables) = tables else { return self.check_tables(false).await };
        self.findings.push(Finding::fine(describe(&tables)));
        let failed = self.try_page(&tables).await;
        let is_denied = failed.as_ref().is_some_and(|error| error.code() == SourceCode::Rights);
        let before = self.findings.len();
        self.check_tables(!is_denied).await;
        let is_explained = is_denied && self.findings[before..].iter().any(|finding| !finding.mend.is_empty());
        if let Some(error) = failed.filter(|_| !is_explained) {
            self.add_error("reading events and statuses", error);
        }
        let found = self.check_columns(&tables).await;
        self.add("looking at the columns", unless_denied(found, is_denied));
        let found = self.check_ends(&tables).await;
        self.add("looking at the ends of jobs", unless_denied(found, is_denied));
        let found = self.check_indexes(&tables).await;
        self.add("looking at the indexes", found);
        let found = self.check_cost(&tables).await;
        self.add("estimating", unless_denied(found, is_denied));
        if !is_denied {
            let found = self.check_writing(&tables).await;
            self.add("asking for the right to write", found);
        }
        let found = self.check_wakeups(&tables).await;
        self.add("looking for triggers", found);
    }

    /// Checks what holds for a relation whatever its columns are.
    async fn check_tables(&mut self, is_readable: bool) {
        let settings = &self.store.settings;
        for table in [settings.events_table.clone(), settings.jobs_table.clone()].iter().filter(|name| !name.is_empty())
        {
            let found = self.check_access(table, is_readable).await;
            self.add("asking for rights", found);
        }
    }

    fn add(&mut self, operation: &str, found: Result<Vec<Finding>, QueryError>) {
        match found {
            Ok(findings) => self.findings.extend(findings),
            Err(error) => self.add_error(operation, error),
        }
    }

    fn add_error(&mut self, operation: &str, error: QueryError) {
        let error = self.store.error(operation, error);
        if error.code == SourceCode::TimedOut {
            let summary = format!("{}: {}", error.operation, error.cause);
            let mend = "an index for the question, as named here, or another time: what is not known is not wrong";
            return self.findings.push(Finding::improvable(summary, mend));
        }
        let mend = match error.code {
            SourceCode::Schema => "name other columns, or make a view of the table: docs/map-your-table.md".into(),
            _ => error.advice(),
        };
        self.findings.push(Finding { mend, ..error.into() });
    }

    /// The column `value` of the rows that a statement reads, without nulls.
    async fn values(&mut self, sql: String) -> Result<Vec<String>, QueryError> {
        let rows = self.connection.query(sql).await?;
        let values: Result<Vec<Option<String>>, _> = rows.iter().map(|row| row.try_get("value")).collect();
        Ok(values?.into_iter().flatten().collect())
    }

    async fn check_wakeups(&mut self, tables: &Tables) -> Result<Vec<Finding>, QueryError> {
        let settings = &self.store.settings;
        if settings.listen.is_empty() {
            return Ok(vec![Finding::fine("no wake-ups are asked for: new events wait for the poll")]);
        }
        let row = self.connection.query_one(sql::has_notify_trigger(&tables.events.name)).await?;
        Ok(vec![Finding::fine(if row.try_get("has_trigger")? {
            format!("a trigger notifies; Jobcast listens on {}", settings.listen)
        } else {
            format!(
                "no trigger on {} notifies: new events wait for the poll; `jobcast schema postgres` has one",
                quote_table(&settings.events_table)
            )
        })])
    }
}

/// Leaves out an error that follows from a right that is known to be missing.
fn unless_denied(found: Result<Vec<Finding>, QueryError>, is_denied: bool) -> Result<Vec<Finding>, QueryError> {
    found.or_else(|error| if is_denied && error.code() == SourceCode::Rights { Ok(Vec::new()) } else { Err(error) })
}

fn check_server(store: &Store, row: &sqlx::postgres::PgRow) -> Result<Vec<Finding>, QueryError> {
    let (version, reader): (String, String) = (row.try_get("version")?, row.try_get("reader")?);
    let mut findings = vec![if row.try_get::<i32, _>("version_number")? >= 130_000 {
        Finding::fine(format!("PostgreSQL {version} at {}, as {reader}", store.address()))
    } else {
        Finding::problem(format!("PostgreSQL {version} is too old"), "13 is the oldest that tells what is needed")
    }];
    if row.try_get("is_standby")? {
        findings.push(Finding::fine("a standby: it hears no wake-ups, new events wait for the poll"));
    }
    if row.try_get::<String, _>("encoding")? == "SQL_ASCII" {
        findings.push(Finding::fine(
            "the database has no encoding (SQL_ASCII): its texts are taken for UTF-8, and what is none arrives with U+FFFD \
             and \"unreadable\"",
        ));
    }
    if store.is_behind_proxy(row.try_get("port")?) {
        findings.push(Finding::fine(
            "a pooler or proxy stands before the server: where it keeps no sessions (PgBouncer's pool_mode = \
             transaction), wake-ups do not pass, and new events wait for the poll; then set source.postgres.listen = \"\"",
        ));
    }
    Ok(findings)
}

/// Makes the finding that the catalogue could not be read: a schema without USAGE is the one cause that has a mend.
fn unreadable_catalogue(store: &Store, error: QueryError, reader: &str) -> Finding {
    let error = store.error("looking at the tables", error);
    let schema = error.cause.strip_prefix("permission denied for schema ").map(sql::quote);
    match schema {
        Some(schema) => {
            let mend = format!("GRANT USAGE ON SCHEMA {schema} TO {reader};");
            Finding { mend, ..error.into() }
        }
        None => error.into(),
    }
}

fn describe(tables: &Tables) -> &'static str {
    let has_number = tables.events.columns.number.is_some();
    match (tables.best.xids, tables.best.order) {
        (XidSource::Column, RowOrder::Number) => {
            "the event table tells transactions and numbers by columns: new events are found by index"
        }
        (XidSource::Column, RowOrder::Time) => {
            "the event table tells transactions by a column; events are ordered by timestamp"
        }
        (XidSource::System, _) if has_number => {
            "the event table has no column of type xid8: new events are found by number, those with a number long past by \
             sweeps; `jobcast schema postgres --migrate` shows how to add the column that makes it cheap"
        }
        (XidSource::System, _) if tables.events.keeps_times && tables.rows(tables.best).look_column().is_some() => {
            "the event table has no column of type xid8 and no number: new events are found by timestamp, those with a time long \
             past by sweeps; `jobcast schema postgres --migrate` shows how to add the columns that make it cheap"
        }
        (XidSource::System, _) => {
            "the event table has no column of type xid8 and no number: new events are found by timestamp, and by sweeps, and each \
             costs a read of its whole job, since a time that is made by a view, or is no date and no whole number, cannot bound \
             it; `jobcast schema postgres --migrate` shows how to add the columns that make it cheap"
        }
    }
}

/// Returns the relation that was probably meant, as it is written in the settings. `names` are pairs of the name alone
/// and that.
fn nearest_relation<'n>(meant: &str, names: &'n [(String, String)]) -> Option<&'n str> {
    let own = meant.rsplit('.').next().unwrap_or(meant);
    let nearest = nearest_name(own, names.iter().map(|(name, _)| &**name))?;
    names.iter().find(|(name, _)| name == nearest).map(|(_, written)| &**written)
}
