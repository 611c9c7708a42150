//! A SQLite file of another program, which Jobcast only reads.

use super::Daemon;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

pub struct ForeignFile {
    folder: TempDir,
}

impl ForeignFile {
    /// Makes the file and its tables.
    pub async fn make(sql: &str) -> Self {
        let file = Self::not_yet();
        file.execute(sql).await;
        file
    }

    /// A file that is not there yet.
    pub fn not_yet() -> Self {
        Self { folder: tempfile::tempdir().expect("a directory") }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("app.db")
    }

    /// A connection as the program has it.
    pub async fn connect(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(self.path()).create_if_missing(true);
        options.busy_timeout(Duration::from_secs(20)).connect().await.expect("the file")
    }

    pub async fn execute(&self, sql: &str) {
        let mut rows = self.connect().await;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut rows).await.expect(sql);
        rows.close().await.expect("closed");
    }

    /// Serves it, with settings by their names below `source.sqlite`.
    pub async fn serve(&self, settings: &[(&str, &str)]) -> Daemon {
        let settings = self.settings(settings);
        let mut all: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (&**key, &**value)).collect();
        all.push(("source.retry_max", "300ms"));
        Daemon::with(&all).await
    }

    /// The settings with their whole names, and the path.
    pub fn settings(&self, settings: &[(&str, &str)]) -> Vec<(String, String)> {
        let own = settings.iter().map(|(key, value)| (format!("source.sqlite.{key}"), value.to_string()));
        own.chain([("source.sqlite.path".to_string(), self.path().display().to_string())]).collect()
    }

    /// Everything that must stay as it is: the schema, the journal mode and the encoding.
    pub async fn shape(&self) -> Vec<String> {
        let mut rows = self.connect().await;
        let schema = "SELECT type || name || coalesce(sql, '') FROM sqlite_schema ORDER BY 1";
        let mut shape: Vec<String> = sqlx::query_scalar(schema).fetch_all(&mut rows).await.expect("the schema");
        let rest = "SELECT j.journal_mode || ' ' || e.encoding || ' ' || v.schema_version || ' ' || u.user_version
             FROM pragma_journal_mode j, pragma_encoding e, pragma_schema_version v, pragma_user_version u";
        shape.push(sqlx::query_scalar(rest).fetch_one(&mut rows).await.expect("the file's form"));
        rows.close().await.expect("closed");
        shape
    }
}
