//! Findings about columns: those that tell transactions, order events and hold their times, and about views.

use super::super::error::QueryError;
use super::super::problem::{SchemaProblem, set};
use super::super::sql::{self, quote};
use super::super::store::is_subscribed;
use super::super::tables::{Children, Column, RelationKind, RowOrder, Tables, XidSource};
use super::view::{ForeignOrigin, foreign_origin, with_xmin};
use super::{Check, nearest_relation};
use crate::config::{Columns, TimestampUnit};
use crate::source::Finding;
use sqlx::Row;

/// Most views below each other that are mended at once.
const MAX_VIEWS: usize = 10;

impl Check<'_> {
    /// The mend of a problem, with what only the database knows.
    pub(super) async fn mend(&mut self, problem: &SchemaProblem) -> Result<String, QueryError> {
        match problem {
            SchemaProblem::MissingRelation { setting, name } => self.mend_missing_relation(setting, name).await,
            SchemaProblem::HiddenXmin { table } => {
                let mended = self.views_with_xmin(table, None).await?;
                Ok(mended.unwrap_or_else(|| problem.mend()))
            }
            SchemaProblem::ForeignRows { table } => {
                let view = format!("{table}_events");
                let Some(views) = self.views_with_xmin(table, Some(&view)).await? else { return Ok(problem.mend()) };
                let grant = format!("GRANT SELECT ON {} TO {};", sql::quote_table(&view), self.reader);
                Ok(format!("{views}\n{grant}\n{}", set("source.postgres.events_table", view.as_str(), "")))
            }
            other => Ok(other.mend()),
        }
    }

    async fn mend_missing_relation(&mut self, setting: &str, name: &str) -> Result<String, QueryError> {
        let rows = self.connection.query(sql::check::RELATIONS.into()).await?;
        let mut names = Vec::new();
        for row in &rows {
            let (schema, name): (String, String) = (row.try_get("schema")?, row.try_get("name")?);
            // A dot within a name cannot be said in the settings.
            if !schema.contains('.') && !name.contains('.') {
                names.push((name.clone(), if row.try_get("is_visible")? { name } else { format!("{schema}.{name}") }));
            }
        }
        if let Some(nearest) = nearest_relation(name, &names) {
            return Ok(set(setting, nearest, ""));
        }
        if setting == "source.postgres.events_table" {
            return Ok(format!(
                "name the table of events by {setting}; `jobcast schema postgres` prints the recommended ones"
            ));
        }
        let types = match self.catalogue.without_jobs().resolve(&self.store.settings) {
            Ok(tables) if self.store.settings.final_types.all().next().is_none() => self.final_types(&tables).await?,
            _ => String::new(),
        };
        Ok(format!("{}\n{types}", set(setting, "", "none: jobs end by the types of their events")))
    }

    /// Statements that make a view, and those below it, hand on the transaction; or that make the view `new` of a
    /// materialized one. `None` where a view's rows are no rows of a table.
    async fn views_with_xmin(&mut self, table: &str, new: Option<&str>) -> Result<Option<String>, QueryError> {
        let columns = self.store.settings.columns.clone();
        let kind = columns.kind.column().unwrap_or_default();
        let named = [&*columns.id, &columns.seq, kind, &columns.timestamp, &columns.job_id];
        let mut statements: Vec<String> = Vec::new();
        let mut pending = vec![sql::quote_table(table)];
        while let Some(name) = pending.pop() {
            let rows = self.connection.query(sql::check::view_definition(&name)).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            let definition: Option<String> = row.try_get("definition")?;
            let kind: String = row.try_get("kind")?;
            let is_new = statements.is_empty() && new.is_some();
            match (&*kind, definition) {
                ("r" | "p", _) => continue,
                ("v", _) if row.try_get("hands_on")? => continue,
                ("v", Some(definition)) | ("m", Some(definition)) if kind == "v" || is_new => {
                    let Some(extended) = with_xmin(&definition, &named) else { return Ok(None) };
                    let options: Option<String> = row.try_get("options")?;
                    let options = options.filter(|_| kind == "v").map(|options| format!(" WITH ({options})"));
                    let target = if is_new { sql::quote_table(new.unwrap_or(table)) } else { name };
                    let replace = if is_new { "CREATE" } else { "CREATE OR REPLACE" };
                    let options = options.unwrap_or_default();
                    statements.push(format!("{replace} VIEW {target}{options} AS\n{};", extended.query));
                    pending.extend(extended.origins);
                }
                _ => return Ok(None),
            }
            if statements.len() > MAX_VIEWS {
                return Ok(None);
            }
        }
        statements.reverse();
        Ok(Some(statements.join("\n")).filter(|statements| !statements.is_empty()))
    }

    pub(super) async fn check_columns(&mut self, tables: &Tables) -> Result<Vec<Finding>, QueryError> {
        let mut findings = self.check_xid_column(tables).await?;
        findings.extend(self.check_ids(tables));
        findings.extend(self.check_order(tables));
        findings.extend(self.check_time(tables).await?);
        match tables.events.kind {
            RelationKind::View => findings.extend(self.check_view().await?),
            RelationKind::Parent(Children::Partitions) => findings.push(Finding::fine(format!(
                "{} is partitioned: rows that a table brings with it count as delivered when it is attached. Write them \
                 after ATTACH PARTITION, or UPDATE them then",
                tables.events.name
            ))),
            RelationKind::Parent(Children::Heirs) | RelationKind::Table | RelationKind::Other => {}
        }
        Ok(findings)
    }

    async fn check_xid_column(&mut self, tables: &Tables) -> Result<Vec<Finding>, QueryError> {
        let (events, name) = (&self.catalogue.events, self.store.settings.columns.xid.clone());
        let Some(column) = events.find(&name).cloned() else { return Ok(Vec::new()) };
        let (table, quoted, kind) = (tables.events.name.clone(), quote(&name), events.kind);
        let default =
            |table: &str| format!("ALTER TABLE {table} ALTER COLUMN {quoted} SET DEFAULT pg_current_xact_id();");
        if column.kind != "xid8" {
            let why = format!("the column {name} of type {} is not used: only xid8 tells transactions", column.kind);
            return Ok(vec![Finding::fine(why)]);
        }
        if !column.tells_xid(kind) {
            let summary = format!("the column {name} is not used, since nothing fills it");
            return Ok(vec![Finding::problem(summary, default(&table))]);
        }
        if let Some(finding) = self.check_lives(&table, &quoted).await? {
            return Ok(vec![finding]);
        }
        // Rows that are written into a table below get that table's own default.
        let below = self.rows_below(&table, &[]).await?;
        let bare: Vec<String> =
            below.into_iter().filter(|below| !below.is_top && !below.has_default).map(|below| below.name).collect();
        if bare.is_empty() || matches!(kind, RelationKind::View) {
            return Ok(Vec::new());
        }
        let summary = format!(
            "nothing fills the column {name} of {}: rows that are written there directly reach nobody who watches",
            bare.join(", ")
        );
        let mend: Vec<String> = bare.iter().map(|table| default(table)).collect();
        Ok(vec![Finding::problem(summary, mend.join("\n"))])
    }

    /// Looks for rows whose transaction this server has not begun. A dump brings them with it, and they mean nothing here
    /// until the server's own transactions have come to their numbers, and then something wrong.
    async fn check_lives(&mut self, table: &str, column: &str) -> Result<Option<Finding>, QueryError> {
        if is_subscribed(&mut self.connection, table).await? {
            return Ok(Some(Finding::fine(format!(
                "{table} is filled by a subscription, and its column {column} with transactions of the publisher: it is \
                 not used, and new events are found by the system's own (xmin)"
            ))));
        }
        let rows = self.connection.query(sql::xid_of_another_life(table, column)).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let xid: String = row.try_get("xid")?;
        Ok(Some(Finding::problem(
            format!(
                "{table} has rows of another life of the database: transactions up to {xid}, which this server has not \
                 begun. The column {column} is not used while that is so"
            ),
            format!("UPDATE {table} SET {column} = '1' WHERE {column} >= {};", sql::NOT_BEGUN),
        )))
    }

    /// Says where only the place of a row tells it from others, which a rewrite of the table changes.
    fn check_ids(&self, tables: &Tables) -> Option<Finding> {
        let (events, table) = (&self.catalogue.events, &tables.events.name);
        let unique = events.columns.iter().find(|column| column.is_unique && !column.may_be_null);
        let new = ["event_id", "jobcast_id"].into_iter().find(|name| events.find(name).is_none())?;
        let setting = |name: &str| set("source.postgres.columns.id", name, "");
        let mend = match unique {
            Some(column) => setting(&column.name),
            None => format!(
                "ALTER TABLE {table} ADD COLUMN {new} uuid NOT NULL DEFAULT gen_random_uuid();\n{}",
                setting(new)
            ),
        };
        let summary = format!(
            "nothing tells the events of {table} apart but their place in it (ctid), which VACUUM FULL and CLUSTER change: \
             then the events have other ids, and readers who come back may miss some, or get some again"
        );
        tables.events.columns.ids_are_places().then(|| Finding::improvable(summary, mend))
    }

    /// Finds what keeps an index from serving the order of events.
    fn check_order(&self, tables: &Tables) -> Vec<Finding> {
        let (events, names) = (&self.catalogue.events, &self.store.settings.columns);
        let mut findings = Vec::new();
        let seq = events.find(&names.seq).filter(|_| tables.best.order == RowOrder::Time);
        if let Some(seq) =
            seq.filter(|seq| seq.is_whole_number() && !seq.is_unique && events.kind == RelationKind::Table)
        {
            findings.push(Finding::improvable(
                format!(
                    "no index says that {} is unique within a job: events are ordered by it and by their id",
                    seq.name
                ),
                format!(
                    "CREATE UNIQUE INDEX CONCURRENTLY ON {} ({}, {});",
                    tables.events.name,
                    quote(&names.job_id),
                    quote(&seq.name)
                ),
            ));
        }
        if let Some(seq) = seq.filter(|seq| !seq.is_whole_number() && names.seq == Columns::default().seq) {
            findings.push(Finding::fine(format!(
                "the column {} of type {} is not used: it is no number",
                seq.name, seq.kind
            )));
        }
        findings
    }

    async fn check_time(&mut self, tables: &Tables) -> Result<Vec<Finding>, QueryError> {
        let settings = &self.store.settings;
        let Some(column) = self.catalogue.events.find(&settings.columns.timestamp).cloned() else {
            return Ok(Vec::new());
        };
        let by_time = tables.best.xids == XidSource::System && tables.events.columns.number.is_none();
        let lateness = if by_time { "; a wrong one makes new events late" } else { "" };
        match &*column.kind {
            "timestamp without time zone" | "date" => Ok(vec![Finding::fine(format!(
                "{} has no time zone: its times are taken for {} (source.postgres.timestamp_zone{lateness})",
                column.name, settings.timestamp_zone
            ))]),
            _ if column.is_number() => self.check_unit(tables, &column, by_time).await,
            _ => Ok(Vec::new()),
        }
    }

    /// Names the unit that the numbers of a table seem to have.
    async fn check_unit(
        &mut self,
        tables: &Tables,
        column: &Column,
        by_time: bool,
    ) -> Result<Vec<Finding>, QueryError> {
        const SETTING: &str = "source.postgres.timestamp_unit";
        if self.store.settings.timestamp_unit != TimestampUnit::Auto {
            return Ok(Vec::new());
        }
        let sql = sql::check::time_number(tables, &format!("e.{}", quote(&column.name)));
        let rows = self.connection.query(sql).await?;
        let Some(number) = rows.first().map(|row| row.try_get::<f64, _>("value")).transpose()? else {
            return Ok(vec![Finding::fine(format!("the unit of {} is told by the size of its numbers", column.name))]);
        };
        let unit = match number.abs() {
            n if n < 1e11 => "s",
            n if n < 1e14 => "ms",
            n if n < 1e17 => "us",
            _ => "ns",
        };
        let summary = format!("the numbers in {} are taken for {unit}, by their size", column.name);
        Ok(vec![match by_time {
            true => Finding::improvable(
                format!("{summary}; where the unit is set, an index finds new events"),
                set(SETTING, unit, ""),
            ),
            false => Finding::fine(summary),
        }])
    }

    async fn check_view(&mut self) -> Result<Vec<Finding>, QueryError> {
        let settings = &self.store.settings;
        let (name, job_id) = (settings.events_table.clone(), settings.columns.job_id.clone());
        let rows = self.connection.query(sql::check::view_definition(&sql::quote_table(&name))).await?;
        let definition: Option<String> = rows.first().map(|row| row.try_get("definition")).transpose()?.flatten();
        let foreign = definition.as_deref().and_then(|definition| foreign_origin(definition, &job_id));
        let Some(ForeignOrigin { of_column, of_transaction }) = foreign else {
            return Ok(vec![Finding::fine(format!(
                "{name} is a view: its xmin must be that of the event's own row, and {job_id} must not come from a row \
                 that is committed later"
            ))]);
        };
        // Advice that can be followed: many tables have the job's id nowhere but in the other one.
        let columns = self.connection.query(sql::check::names_job(&of_transaction, &job_id)).await?;
        let others = match columns.is_empty() {
            true => String::new(),
            false => format!("take {job_id} from {of_transaction}, or "),
        };
        Ok(vec![Finding::improvable(
            format!(
                "{name} takes {job_id} from {of_column}, and the transaction from {of_transaction}: an event whose row in \
                 {of_column} is committed after it is not seen by those who watch"
            ),
            format!("{others}see to it that the row of {of_column} is committed before the job's events, or with them"),
        )])
    }
}
