//! Findings about what a look and a page of history cost on these tables, by the server's own plans. Estimates: nothing
//! is run.

use super::super::error::QueryError;
use super::super::page::raw_bytes;
use super::super::position::Position;
use super::super::sql::{self, ChangesQuery, NewRows, PageQuery, XidBound};
use super::super::tables::{RelationKind, RowOrder, Tables, XidSource};
use super::Check;
use super::indexes::RowsTable;
use crate::event::JobId;
use crate::source::Finding;
use serde_json::Value;
use sqlx::Row;

/// Events of a page.
const PAGE: usize = 512;
/// Estimated rows from which on a read is worth a thought.
const MANY_ROWS: f64 = 20_000.0;

/// The events that a statement reads, by its plan.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Reading {
    rows: f64,
    /// Indexes, and tables that are read whole.
    by: Vec<String>,
}

/// Numbers that a plan does not tell.
pub(super) struct Sizes<'a> {
    tables: &'a [RowsTable],
    /// Rows of the job.
    job_rows: f64,
    job_column: &'a str,
    /// Columns by which an index finds only a part of a job.
    narrowing: [&'a str; 3],
}

impl Check<'_> {
    pub(super) async fn check_cost(&mut self, tables: &Tables) -> Result<Vec<Finding>, QueryError> {
        let names = self.store.settings.columns.clone();
        let below = self.rows_below(&tables.events.name, &[]).await?;
        let table = &tables.events.name;
        if below.iter().any(|below| below.rows.is_none()) {
            let what = "what a look and a page read cannot be estimated";
            return Ok(vec![Finding::improvable(
                format!("{table} was never analyzed: {what}"),
                format!("ANALYZE {table};"),
            )]);
        }
        let job = self.values(sql::check::sample_job(tables, &names.job_id)).await?.pop();
        let Some(job) = job.and_then(|job| job.parse::<JobId>().ok()) else {
            return Ok(vec![Finding::fine(format!("{table} is empty"))]);
        };
        let job_plan = self.explain(&sql::check::job_rows(tables, job.as_str())).await?;
        let job_rows = job_plan["Plan Rows"].as_f64().unwrap_or_default();
        let narrowing = [&*names.seq, &names.timestamp, &names.xid];
        let sizes = Sizes { tables: &below, job_rows, job_column: &names.job_id, narrowing };
        let look = self.look(tables, &job).await?;
        let look = Reading::of(&self.explain(&look).await?, &sizes);
        let mut position = Position::beginning();
        position.adopt(tables.best);
        let query =
            PageQuery { job: &job, position: &position, end: XidBound::OwnMark, published_by: None, limit: PAGE };
        let page = Reading::of(&self.explain(&sql::page(tables, 0, &query)).await?, &sizes);
        Ok(vec![
            look.finding(&format!("a look for new events of all watched jobs in {table}"), tables),
            page.finding(&format!("a page of a long job in {table} ({job}, about {job_rows} events)"), tables),
        ])
    }

    /// The statement that finds out which watched jobs have something new.
    async fn look(&mut self, tables: &Tables, job: &JobId) -> Result<String, QueryError> {
        let row = self.connection.query_one("SELECT pg_current_snapshot()::text AS snapshot".into()).await?;
        let snapshot: String = row.try_get("snapshot")?;
        let xmax = snapshot.split(':').nth(1).and_then(|xmax| xmax.parse().ok()).unwrap_or(0);
        let look_back = self.store.settings.look_back.as_secs_f64();
        let new_rows = match tables.best.xids {
            XidSource::Column => NewRows::NotVisibleIn { snapshot: &snapshot, durable_xid: xmax },
            XidSource::System => NewRows::SinceAndYounger(xmax, look_back),
        };
        let query = ChangesQuery { jobs: vec![job.as_str()], new_rows, ..ChangesQuery::default() };
        Ok(sql::changes(&tables.rows(tables.best), 0, &query))
    }

    async fn explain(&mut self, statement: &str) -> Result<Value, QueryError> {
        let row = self.connection.query_one(sql::check::explain(statement)).await?;
        let plan = raw_bytes(&row, "QUERY PLAN")?.unwrap_or_default();
        let mut plan: Value = serde_json::from_slice(&plan).unwrap_or_default();
        Ok(plan[0]["Plan"].take())
    }
}

impl Reading {
    pub(super) fn of(plan: &Value, sizes: &Sizes) -> Self {
        let mut reading = Self::default();
        reading.add(plan, None, sizes);
        reading.by.sort();
        reading.by.dedup();
        reading
    }

    /// Adds the scans of a part of the plan. `limit`: nothing above asks for more rows than these.
    fn add(&mut self, node: &Value, limit: Option<f64>, sizes: &Sizes) {
        let text = |key: &str| node[key].as_str().unwrap_or_default();
        let rows = node["Plan Rows"].as_f64().unwrap_or_default();
        let is_of_jobs = text("Alias") == "j" || text("Alias").starts_with("j_");
        let at_most = |rows: f64| limit.map_or(rows, |limit| rows.min(limit));
        match text("Node Type") {
            _ if is_of_jobs => {}
            "Seq Scan" => {
                let name = text("Relation Name");
                let table = sizes.tables.iter().find(|table| table.short_name == name);
                self.rows += table.and_then(|table| table.rows).unwrap_or(rows);
                self.by.push(format!("the whole of {name}"));
            }
            "Index Scan" | "Index Only Scan" | "Bitmap Index Scan" => {
                let condition = text("Index Cond");
                let is_of_job = condition.contains(sizes.job_column);
                let is_narrow = sizes.narrowing.iter().any(|name| !name.is_empty() && condition.contains(name));
                self.rows += if is_of_job && !is_narrow { at_most(rows.max(sizes.job_rows)) } else { rows };
                self.by.push(text("Index Name").into());
            }
            _ => {}
        }
        let limit = match text("Node Type") {
            "Limit" => Some(rows),
            // These read all that is below them before they give anything.
            "Sort" | "Incremental Sort" | "Aggregate" | "Hash" | "Bitmap Heap Scan" => None,
            _ => limit,
        };
        for part in node["Plans"].as_array().into_iter().flatten() {
            self.add(part, limit, sizes);
        }
    }

    fn finding(&self, reading: &str, tables: &Tables) -> Finding {
        let by = match &self.by[..] {
            [] => String::new(),
            by if by.len() > 4 => format!(", by {} and {} more", by[..3].join(", "), by.len() - 3),
            by => format!(", by {}", by.join(", ")),
        };
        let summary = format!("{reading} reads about {} rows{by}", self.rows.round());
        if self.rows < MANY_ROWS {
            return Finding::fine(summary);
        }
        let is_view = tables.events.kind == RelationKind::View;
        let mend = match (is_view, tables.best.xids, tables.best.order) {
            (true, _, _) => {
                "an index on the tables below the view, over the job's id and the number or time of the event"
            }
            (_, XidSource::System, _) => {
                "the indexes above; or the columns that `jobcast schema postgres --migrate` adds"
            }
            (_, XidSource::Column, RowOrder::Number | RowOrder::Time) => "the indexes above",
        };
        Finding::improvable(format!("{summary}: {}", weight(self.rows)), mend)
    }
}

/// The time that so many rows take, in words.
fn weight(rows: f64) -> &'static str {
    match rows {
        rows if rows < 200_000.0 => "some ten milliseconds of the server, each time",
        rows if rows < 2_000_000.0 => "some hundred milliseconds of the server, each time",
        _ => "seconds of the server, each time",
    }
}
