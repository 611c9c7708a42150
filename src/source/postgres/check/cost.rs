//! Findings about what a look and a page of history cost on these tables, by the server's own plans. Estimates: nothing
//! is run.

use super::super::error::QueryError;
use super::super::page::raw_bytes;
use super::super::position::{EndedXids, Floor, Position};
use super::super::sql::{self, ChangesQuery, NewRows, PageQuery, Scope, XidBound};
use super::super::tables::{RelationKind, Tables, XidSource};
use super::Check;
use super::indexes::RowsTable;
use crate::event::JobId;
use crate::source::{Finding, Limit};
use serde_json::Value;
use sqlx::Row;
use std::collections::BTreeMap;
use std::time::Duration;

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

/// The share of the rows that pass the filters of a statement, on transactions as a rule.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Passing {
    /// Rows of a history: as many are read as are asked for.
    Most,
    /// Rows that are new: all are read, however few are asked for.
    HardlyAny,
}

/// A place in a job from which the tail and history read on.
struct Standing<'a> {
    tables: &'a Tables,
    job: &'a JobId,
    snapshot: String,
    xmax: u64,
    position: Position,
    /// The number or time that new rows are looked for above.
    reach: Option<Floor>,
}

impl Standing<'_> {
    /// The statement that finds out which watched jobs have something new.
    fn look(&self, look_back: Duration) -> String {
        let Self { tables, snapshot, xmax, .. } = self;
        let (rows, job) = (tables.rows(tables.best), self.job.as_str());
        let new_rows = match tables.best.xids {
            XidSource::Column => NewRows::NotVisibleIn { snapshot, durable_xid: *xmax },
            XidSource::System if rows.look_column().is_some() => {
                NewRows::SinceAndAbove(*xmax, vec![(job, self.reach)], None)
            }
            XidSource::System => NewRows::SinceAndYounger(*xmax, look_back.as_secs_f64()),
        };
        let query = ChangesQuery { jobs: vec![job], new_rows, ..ChangesQuery::default() };
        sql::changes(&rows, 0, &query)
    }

    /// The statement that reads the job's events from here on: all that are not delivered, or those above a floor.
    fn page(&self, floor: Option<Floor>) -> String {
        let Self { tables, job, position, .. } = self;
        let scope = Scope { floor, ..Scope::of(job, Limit::PAGE) };
        sql::page(tables, 0, 1, &PageQuery { scope, position, end: XidBound::OwnMark, published_by: None })
    }
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
        let standing = self.standing(tables, &job).await?;
        let look = self.explain(&standing.look(self.store.settings.look_back)).await?;
        let look = Reading::of(&look, &sizes, Passing::HardlyAny);
        let floor = standing.reach.filter(|floor| tables.events.keeps(*floor));
        let news = self.explain(&standing.page(floor)).await?;
        let news = Reading::of(&news, &sizes, Passing::HardlyAny);
        let mut position = Position::beginning();
        position.adopt(tables.best);
        let beginning = Standing { position, ..standing };
        let mut page = self.explain(&beginning.page(None)).await?;
        fill_page(&mut page);
        let page = Reading::of(&page, &sizes, Passing::Most);
        let long = format!("of a long job in {table} ({job}, about {job_rows} events)");
        let mend = self.cheaper_reads(tables).await?;
        Ok(vec![
            look.finding(&format!("a look for new events of all watched jobs in {table}"), &mend),
            news.finding(&format!("a read of what is new {long}"), &mend),
            page.finding(&format!("a page of the history {long}"), &mend),
        ])
    }

    /// The statements that make reads of many rows cheaper: the indexes that are missing, or else what there is left.
    async fn cheaper_reads(&mut self, tables: &Tables) -> Result<String, QueryError> {
        if tables.events.kind == RelationKind::View {
            return Ok(
                "an index on the tables below the view, over the job's id and the number or time of the event".into()
            );
        }
        let missing = self.missing_indexes(tables).await?;
        Ok(match tables.best.xids {
            _ if !missing.is_empty() => missing,
            XidSource::System => "the columns that `jobcast schema postgres --migrate` adds".into(),
            XidSource::Column => format!("ANALYZE {};", tables.events.name),
        })
    }

    /// The place of the tail in a job of which it has delivered everything.
    async fn standing<'a>(&mut self, tables: &'a Tables, job: &'a JobId) -> Result<Standing<'a>, QueryError> {
        let look_back = self.store.settings.look_back.as_secs_f64();
        let row = self.connection.query_one(sql::check::reach(tables, job, look_back)).await?;
        let (snapshot, reach): (String, Option<i64>) = (row.try_get("snapshot")?, row.try_get("reach")?);
        let reach = tables.rows(tables.best).look_column().zip(reach).map(|(column, number)| column.floor(number));
        let xmax = snapshot.split(':').nth(1).and_then(|xmax| xmax.parse().ok()).unwrap_or(0);
        let position = Position::new_settled(tables.best, EndedXids::below(xmax), BTreeMap::new());
        Ok(Standing { tables, job, snapshot, xmax, position, reach })
    }

    async fn explain(&mut self, statement: &str) -> Result<Value, QueryError> {
        let row = self.connection.query_one(sql::check::explain(statement)).await?;
        let plan = raw_bytes(&row, "QUERY PLAN")?.unwrap_or_default();
        let mut plan: Value = serde_json::from_slice(&plan).unwrap_or_default();
        Ok(plan[0]["Plan"].take())
    }
}

impl Reading {
    pub(super) fn of(plan: &Value, sizes: &Sizes, passing: Passing) -> Self {
        let mut reading = Self::default();
        reading.add(plan, None, sizes, passing);
        reading.by.sort();
        reading.by.dedup();
        reading
    }

    /// Adds the scans of a part of the plan. `limit`: nothing above asks for more rows than these.
    fn add(&mut self, node: &Value, limit: Option<f64>, sizes: &Sizes, passing: Passing) {
        let text = |key: &str| node[key].as_str().unwrap_or_default();
        let rows = node["Plan Rows"].as_f64().unwrap_or_default();
        let is_of_jobs = text("Alias") == "j" || text("Alias").starts_with("j_");
        let is_short = passing == Passing::Most || !text("Filter").contains("age(");
        let at_most = |rows: f64| limit.filter(|_| is_short).map_or(rows, |limit| rows.min(limit));
        match text("Node Type") {
            _ if is_of_jobs || text("Relation Name") == "pg_enum" => {}
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
                self.rows += if is_of_job && !is_narrow { at_most(rows.max(sizes.job_rows)) } else { at_most(rows) };
                self.by.push(text("Index Name").into());
            }
            _ => {}
        }
        let limit = match text("Node Type") {
            "Limit" => Some(rows),
            // These read all that is below them before they give anything.
            "Sort" | "Aggregate" | "Hash" | "Bitmap Heap Scan" => None,
            _ => limit,
        };
        for part in node["Plans"].as_array().into_iter().flatten() {
            self.add(part, limit, sizes, passing);
        }
    }

    fn finding(&self, reading: &str, mend: &str) -> Finding {
        let by = match &self.by[..] {
            [] => String::new(),
            by if by.len() > 4 => format!(", by {} and {} more", by[..3].join(", "), by.len() - 3),
            by => format!(", by {}", by.join(", ")),
        };
        let summary = format!("{reading} reads about {} rows{by}", self.rows.round());
        if self.rows < MANY_ROWS {
            return Finding::fine(summary);
        }
        Finding::improvable(format!("{summary}: {}", weight(self.rows)), mend)
    }
}

/// Leaves out of the plan of a page what it reads only where it is not full: the rows that are newer than its own.
fn fill_page(plan: &mut Value) {
    let parts = plan.get_mut("Plans").and_then(Value::as_array_mut);
    let is_cte = |part: &Value| part["Subplan Name"].as_str().is_some_and(|name| name.starts_with("CTE "));
    if let Some(parts) = parts {
        parts.retain(|part| is_cte(part) || part["One-Time Filter"].is_null());
        parts.iter_mut().filter(|part| !is_cte(part)).for_each(fill_page);
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
