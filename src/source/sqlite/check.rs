//! The findings of `jobcast check` on the database file.

mod foreign;

use super::database::{Database, Owner};
use super::error::SqliteError;
use crate::config;
use crate::source::Finding;
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnection;
use std::path::Path;

const RUN_SCHEMA: &str = "run `jobcast schema sqlite` on the file";

/// Checks the file. Opens it read-only where it exists, and creates nothing.
pub async fn check(settings: &config::Source) -> Vec<Finding> {
    let (settings, database) = (&settings.sqlite, Database::new(&settings.sqlite, settings.read_timeout));
    let path = &settings.path;
    if !path.exists() && database.may_make_tables() {
        return vec![check_folder_of(path)];
    }
    if !path.exists() {
        return vec![Finding::problem(
            format!("{} is not there, and is not Jobcast's to make", path.display()),
            "have its program make it, or change source.sqlite.path",
        )];
    }
    read(settings, &database)
        .await
        .unwrap_or_else(|error| vec![error.during(format!("opening {}", path.display())).into()])
}

async fn read(settings: &config::Sqlite, database: &Database) -> Result<Vec<Finding>, SqliteError> {
    let owner = database.find_owner(true).await?;
    let mut connection = Owner::Other.options(&settings.path).connect().await?;
    match owner {
        Owner::Jobcast => check_schema(&mut connection).await,
        Owner::Other => foreign::check(&mut connection, settings).await,
    }
}

/// Checks that the file can be created.
fn check_folder_of(path: &Path) -> Finding {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match try_writing_to(folder) {
        Ok(()) => Finding::fine(format!("{} is not there yet: the first start makes it", path.display())),
        Err(error) => Finding::problem(
            format!("{} cannot be made: {error}", path.display()),
            "make its directory, and give this user the right to write there, or change source.sqlite.path",
        ),
    }
}

fn try_writing_to(folder: &Path) -> std::io::Result<()> {
    let probe = folder.join(format!(".jobcast-{}", std::process::id()));
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(probe)
}

/// Compares tables and indexes with those that this version needs.
async fn check_schema(connection: &mut SqliteConnection) -> Result<Vec<Finding>, SqliteError> {
    let mut found = Vec::new();
    for (table, columns) in [
        ("runner_jobs", "id status updated_at changed"),
        ("job_events", "seq id job_id step_id type timestamp actor payload"),
        ("jobcast_changes", "number"),
    ] {
        found.push(check_table(connection, table, columns).await?);
    }
    let definition: Option<String> = sqlx::query_scalar("SELECT sql FROM sqlite_schema WHERE name = 'job_events'")
        .fetch_optional(&mut *connection)
        .await?;
    if definition.is_some_and(|sql| !sql.to_uppercase().contains("AUTOINCREMENT")) {
        found.push(Finding::problem(
            "job_events.seq is not AUTOINCREMENT: the number of a deleted event would come back, and an event be lost",
            "rename the table, then run `jobcast schema sqlite` on the file",
        ));
    }
    for index in ["job_events_job_id", "job_events_job_seq", "runner_jobs_changed"] {
        let existing: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM sqlite_schema WHERE type = 'index' AND name = ?1")
                .bind(index)
                .fetch_optional(&mut *connection)
                .await?;
        if existing.is_none() {
            found.push(Finding::problem(format!("index {index} is missing"), RUN_SCHEMA));
        }
    }
    Ok(found)
}

async fn check_table(connection: &mut SqliteConnection, table: &str, columns: &str) -> Result<Finding, SqliteError> {
    let existing: Vec<String> =
        sqlx::query_scalar("SELECT name FROM pragma_table_info(?1)").bind(table).fetch_all(&mut *connection).await?;
    let missing: Vec<&str> = columns.split(' ').filter(|column| !existing.iter().any(|name| name == column)).collect();
    Ok(if missing.is_empty() {
        Finding::fine(format!("table {table} has its columns"))
    } else if existing.is_empty() {
        Finding::problem(format!("table {table} is missing"), RUN_SCHEMA)
    } else {
        Finding::problem(
            format!("table {table} lacks {}", missing.join(", ")),
            "rename it, then run `jobcast schema sqlite` on the file",
        )
    })
}
