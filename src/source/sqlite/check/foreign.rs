//! Findings about the tables of others: what is wrong, what can be promised, and what could be faster.

use super::super::catalogue::{RowNumbers, names, quote};
use super::super::database::{Owner, read_tables};
use super::super::error::SqliteError;
use super::super::ids::Id;
use super::super::position::Of;
use super::super::sql::MAKE_WATCHED;
use super::super::tables::{Numbering, Tables};
use crate::config;
use crate::source::Finding;
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;

pub async fn check(connection: &mut SqliteConnection, settings: &config::Sqlite) -> Result<Vec<Finding>, SqliteError> {
    let mut findings = check_file(connection).await?;
    let tables = match read_tables(connection, settings, Owner::Other).await? {
        Ok(tables) => tables,
        Err(problems) => {
            let problems = problems.iter().map(|problem| Finding::problem(problem.to_string(), problem.mend()));
            findings.extend(problems);
            return Ok(findings);
        }
    };
    findings.extend(check_numbers(&tables, settings));
    findings.extend(check_meaning(&tables, settings));
    findings.extend(check_plans(connection, &tables).await?);
    findings.push(try_reading(connection, &tables).await);
    Ok(findings)
}

async fn check_file(connection: &mut SqliteConnection) -> Result<Vec<Finding>, SqliteError> {
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *connection).await?;
    let encoding: String = sqlx::query_scalar("PRAGMA encoding").fetch_one(&mut *connection).await?;
    let names = names(connection).await?.join(", ");
    let journal = match &*mode {
        "wal" => "in WAL mode: readers and writers do not wait for each other",
        _ => {
            "with a rollback journal: a commit waits for some milliseconds while a page is read, so writers should set \
             PRAGMA busy_timeout"
        }
    };
    Ok(vec![
        Finding::fine(format!(
            "the file has tables of others ({names}): it is opened read-only, and nothing is made or changed in it"
        )),
        Finding::fine(format!("the file is {journal}; its texts are {encoding}")),
    ])
}

/// Says what the numbers of the rows promise.
fn check_numbers(tables: &Tables, settings: &config::Sqlite) -> Vec<Finding> {
    let events = &tables.events;
    let number = events.number.trim_start_matches("e.");
    let place = format!("{}.{number}", events.name);
    let comes_back = "after the newest rows are deleted, new ones get their numbers. Jobcast notices that by what else \
         stands in the row, and has pages begin anew (stream.reset)";
    let anew = format!("when {} is next made anew: INTEGER PRIMARY KEY AUTOINCREMENT", events.name);
    let mut findings = vec![match events.numbering {
        Numbering::Table(RowNumbers::Autoincrement) => Finding::fine(format!(
            "events come in the order of {place}, which SQLite never gives out twice: none is lost or repeated"
        )),
        Numbering::Table(RowNumbers::Reused) => Finding::improvable(
            format!("events come in the order of {place}, which is not AUTOINCREMENT: {comes_back}"),
            anew,
        ),
        Numbering::Table(RowNumbers::Renumbered) => Finding::improvable(
            format!(
                "events come in the order of {place}, which SQLite keeps by itself: {comes_back}. VACUUM numbers \
                 the rows of a table without an index anew, which has pages begin anew, too"
            ),
            anew,
        ),
        Numbering::Job => Finding::fine(format!(
            "events come in the order of {place}, which must be an integer, grow within each job, and never repeat in it: a \
             row with a lower number than one that was read is not told to those who watch, and a row without an integer \
             stops its job, which is told so"
        )),
    }];
    if matches!(events.numbering, Numbering::Table(_)) {
        findings.push(Finding::fine(
            "a row that is written with a number of the writer's own below the newest one is in the history, and is not \
             told to those who watch; neither is an UPDATE",
        ));
        let seq = &settings.columns.seq;
        if *seq != config::Columns::default().seq && !seq.is_empty() && quote(seq) != number {
            findings.push(Finding::fine(format!(
                "the column {seq} does not order events: the number of the row does, which is the order of writing"
            )));
        }
    }
    findings
}

/// Says how ends, payloads and times are understood.
fn check_meaning(tables: &Tables, settings: &config::Sqlite) -> Vec<Finding> {
    let mut findings = Vec::new();
    if tables.jobs.is_none() && tables.final_types.all().next().is_none() {
        findings.push(Finding::problem(
            "nothing says that a job has ended: pages wait for ever",
            "name the table of the jobs by source.sqlite.jobs_table, or the types of events that end a job by \
             source.sqlite.final_types",
        ));
    }
    if tables.jobs.is_some() {
        let texts: Vec<&str> = tables.statuses.all().collect();
        findings.push(Finding::fine(format!("a job has ended when its status is one of: {}", texts.join(", "))));
    }
    if settings.columns.timestamp.is_empty() {
        findings.push(Finding::fine("events have no time"));
    } else {
        let zone = &settings.timestamp_zone;
        findings.push(Finding::fine(format!("times that are stored without a zone are taken for those of {zone}")));
    }
    findings
}

/// Says what the plans of the statements cost.
async fn check_plans(connection: &mut SqliteConnection, tables: &Tables) -> Result<Vec<Finding>, SqliteError> {
    let events = &tables.events;
    let column = |sql: &str| sql.split_once('.').map_or(sql, |(_, column)| column).to_string();
    let index = |table: &str, name: &str, columns: &str| {
        format!("CREATE INDEX {} ON {table} ({columns});", quote(&format!("{}_{name}", table.trim_matches('"'))))
    };
    let job = column(events.job.sql());
    let keys = match events.numbering {
        Numbering::Table(_) => job,
        Numbering::Job => format!("{job}, {}", column(&events.number)),
    };
    let mut findings = vec![if !events.is_indexed {
        Finding::improvable(
            format!(
                "no index leads to the events of one job in {}: each page of history reads the whole table. It could be \
                 faster, if the table is yours",
                events.name
            ),
            index(&events.name, "jobcast", &keys),
        )
    } else if tables.sorts_history(connection).await? {
        Finding::improvable(
            format!("each page of history sorts all that is left of its job in {}: it could be faster", events.name),
            index(&events.name, "jobcast", &keys),
        )
    } else {
        Finding::fine("history is read by an index, page by page")
    }];
    if let Some(jobs) = &tables.jobs {
        findings.push(if tables.finds_status_by_index(connection).await? {
            Finding::fine("the status of a job is found by an index")
        } else {
            Finding::improvable(
                format!("no index leads to a job in {}: each look at a status reads the whole table", jobs.name),
                index(&jobs.name, "jobcast", &column(jobs.id.sql())),
            )
        });
    }
    Ok(findings)
}

/// Reads as the tail and history do, for a job that does not exist.
async fn try_reading(connection: &mut SqliteConnection, tables: &Tables) -> Finding {
    let job = Id::new("jobcast-check");
    let events = &tables.events;
    let mut statements = vec![MAKE_WATCHED.to_string(), tables.look(), tables.page(&job, Of::Job), tables.newest(&job)];
    if matches!(events.numbering, Numbering::Table(_)) {
        statements.push(events.range_of_watched());
    }
    for sql in statements {
        // Every parameter of the longest one, and a limit that is a number.
        let query = (0..7).fold(sqlx::query::<sqlx::Sqlite>(AssertSqlSafe(sql)), |query, _| query.bind(0));
        if let Err(error) = query.fetch_all(&mut *connection).await {
            return SqliteError::from(error).during("reading events and statuses".into()).into();
        }
    }
    Finding::fine("events and statuses can be read")
}
