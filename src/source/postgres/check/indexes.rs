//! Findings about indexes, and the statements that make those that are missing while writers go on.

use super::super::error::QueryError;
use super::super::sql::{self, quote};
use super::super::tables::{Children, RelationKind, RowOrder, Tables, XidSource};
use super::Check;
use crate::source::{Finding, Grade};
use sqlx::Row;

/// An index that reads are slow without.
struct WantedIndex<'a> {
    /// Quoted.
    table: &'a str,
    kind: RelationKind,
    columns: Vec<&'a str>,
    reason: &'static str,
}

/// A table that holds rows: the configured one, or one below it.
pub(super) struct RowsTable {
    /// Quoted where needed.
    pub name: String,
    /// Without its schema and without quotes, as plans name it.
    pub short_name: String,
    /// Estimated; `None` where the table was never analyzed.
    pub rows: Option<f64>,
    pub has_index: bool,
    /// The column of transactions is filled by a default.
    pub has_default: bool,
    /// The configured table itself.
    pub is_top: bool,
}

impl Check<'_> {
    pub(super) async fn check_indexes(&mut self, tables: &Tables) -> Result<Vec<Finding>, QueryError> {
        let mut findings = Vec::new();
        for wanted in wanted_indexes(self, tables) {
            findings.push(self.check_index(&wanted).await?);
        }
        Ok(findings)
    }

    /// The statements that make the indexes of the event table that are missing.
    pub(super) async fn missing_indexes(&mut self, tables: &Tables) -> Result<String, QueryError> {
        let mut statements = Vec::new();
        let events = &tables.events.name;
        for wanted in wanted_indexes(self, tables).into_iter().filter(|wanted| wanted.table == events) {
            let found = self.check_index(&wanted).await?;
            statements.extend((found.grade == Grade::Improvable).then_some(found.mend));
        }
        Ok(statements.join("\n"))
    }

    async fn check_index(&mut self, wanted: &WantedIndex<'_>) -> Result<Finding, QueryError> {
        let WantedIndex { table, kind, columns, reason } = wanted;
        let row = self.connection.query_one(sql::check::has_index(table, columns.iter().copied())).await?;
        let is_partitioned = *kind == RelationKind::Parent(Children::Partitions);
        // The index of a parent of heirs has nothing of their rows.
        let has_index = row.try_get("has_index")? && *kind != RelationKind::Parent(Children::Heirs);
        let lacking: Vec<RowsTable> = match has_index {
            true => Vec::new(),
            false => self.rows_below(table, columns).await?.into_iter().filter(|below| !below.has_index).collect(),
        };
        let list = columns.iter().map(|column| quote(column)).collect::<Vec<_>>().join(", ");
        if has_index || lacking.is_empty() && !is_partitioned {
            return Ok(Finding::fine(format!("there is an index on {table} ({list})")));
        }
        let mut statements: Vec<String> =
            lacking.iter().map(|below| format!("CREATE INDEX CONCURRENTLY ON {} ({list});", below.name)).collect();
        if is_partitioned {
            // Takes the partitions' own indexes over instead of building them, and brings one to each later partition.
            statements.push(format!("CREATE INDEX ON {table} ({list});"));
        }
        let places = match &lacking[..] {
            [] => table.to_string(),
            [only] => only.name.clone(),
            [first, .., last] => {
                format!("{} tables below {table}, from {} to {}", lacking.len(), first.name, last.name)
            }
        };
        Ok(Finding::improvable(format!("there is no index on {places} ({list}): {reason}"), statements.join("\n")))
    }

    /// The tables that hold the rows of a quoted table. None for a view.
    pub(super) async fn rows_below(&mut self, table: &str, columns: &[&str]) -> Result<Vec<RowsTable>, QueryError> {
        let sql = sql::check::rows_below(table, columns.iter().copied(), &self.store.settings.columns.xid);
        let rows = self.connection.query(sql).await?;
        let parse = |row: &sqlx::postgres::PgRow| {
            let rows: f64 = row.try_get("rows")?;
            Ok(RowsTable {
                name: row.try_get("name")?,
                short_name: row.try_get("short_name")?,
                rows: (rows >= 0.0).then_some(rows),
                has_index: row.try_get("has_index")?,
                has_default: row.try_get("has_default")?,
                is_top: row.try_get("is_top")?,
            })
        };
        rows.iter().map(parse).collect()
    }
}

fn wanted_indexes<'a>(check: &Check<'a>, tables: &'a Tables) -> Vec<WantedIndex<'a>> {
    let (settings, events) = (&check.store.settings, &tables.events);
    let names = &settings.columns;
    let mut wanted = Vec::new();
    let mut on_events = |columns: &[&'a str], reason| {
        // The indexes of a view are those of the tables below it. What the cost of a look says is true of these, too.
        let columns: Vec<&str> = columns.iter().copied().filter(|column| !column.is_empty()).collect();
        if !matches!(events.kind, RelationKind::View | RelationKind::Other) {
            wanted.push(WantedIndex { table: &events.name, kind: events.kind, columns, reason });
        }
    };
    match tables.best.order {
        RowOrder::Number => {
            on_events(&[&names.job_id, &names.seq], "history is read by it");
            if events.has_unnumbered {
                on_events(&[&names.job_id, &names.timestamp], "history from before there were numbers is read by it");
            }
        }
        // Numbers that may repeat order history all the same.
        RowOrder::Time if events.columns.number.is_some() => {
            on_events(&[&names.job_id, &names.seq], "history is read by it");
        }
        RowOrder::Time => on_events(&[&names.job_id, &names.timestamp], "history and new events are read by it"),
    }
    if tables.best.xids == XidSource::Column {
        on_events(&[&names.xid], "new events are found by it");
    }
    let relation = check.catalogue.jobs.as_ref();
    let kind = relation.map(|jobs| jobs.kind).filter(|kind| !matches!(kind, RelationKind::View | RelationKind::Other));
    if let (Some(jobs), Some(kind)) = (&tables.jobs, kind) {
        let columns = vec![&*settings.job_columns.id];
        wanted.push(WantedIndex { table: &jobs.name, kind, columns, reason: "the status of a job is found by it" });
    }
    wanted
}
