//! The column that numbers the rows of each job, where SQLite has no number for them: whether it holds integers. All others
//! order rows, too, but cannot be told from their neighbours: a REAL has no next one, and a text is no number at all.

use super::catalogue::{Column, Relation};
use super::error::SqliteError;
use super::tables::{EventTable, Numbering, SchemaProblem};
use crate::config;
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;
use std::time::{Duration, Instant};

/// Rows that are looked at.
const ROWS: usize = 100;
/// Time that this may take: a view may have to make all of its rows for the first one.
const TIME: Duration = Duration::from_secs(1);
/// Steps of SQLite's virtual machine between two looks at the clock.
const STEPS_BETWEEN_LOOKS: i32 = 10_000;

/// Tells what is wrong with the column that numbers the rows of each job: the rows that are there have no integers in it, or
/// there are none, and its declared type keeps integers out. A single row without one is the trouble of its job.
pub async fn find_problem(
    connection: &mut SqliteConnection,
    settings: &config::Sqlite,
    relation: &Relation,
    events: &EventTable,
) -> Option<SchemaProblem> {
    let column = relation.find(&settings.columns.seq).filter(|_| events.numbering == Numbering::Job)?;
    // What cannot be looked at is found by whoever reads the rows.
    let classes = classes(connection, events).await.unwrap_or_default();
    let has_integers =
        if classes.is_empty() { !keeps_integers_out(column) } else { classes.iter().any(|class| class == "integer") };
    (!has_integers).then(|| SchemaProblem::NoIntegers {
        table: relation.name.clone(),
        column: column.name.clone(),
        found: if classes.is_empty() { column.kind.clone() } else { classes.join(", ") },
    })
}

/// Tells a column that makes a text or a REAL of every integer ("Datatypes In SQLite", section 3.1).
fn keeps_integers_out(column: &Column) -> bool {
    let has = |part: &str| column.kind.contains(part);
    !has("INT") && ["CHAR", "CLOB", "TEXT", "REAL", "FLOA", "DOUB"].into_iter().any(has)
}

/// Returns the storage classes of the number in some rows.
async fn classes(connection: &mut SqliteConnection, events: &EventTable) -> Result<Vec<String>, SqliteError> {
    let (name, number) = (&events.name, &events.number);
    let sql = format!("SELECT DISTINCT typeof(number) FROM (SELECT {number} AS number FROM {name} e LIMIT {ROWS})");
    let until = Instant::now() + TIME;
    connection.lock_handle().await?.set_progress_handler(STEPS_BETWEEN_LOOKS, move || Instant::now() < until);
    let classes = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut *connection).await;
    connection.lock_handle().await?.remove_progress_handler();
    Ok(classes?)
}
