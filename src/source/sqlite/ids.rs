//! Ids of jobs and events, in whatever way a table stores them.
//!
//! The same id may be stored as text, as the UTF-8 bytes of that text, as a number, or as the 16 bytes of a UUID. Each way
//! that a column allows is a condition of its own, so that an index serves; at most one of them is true of a row.

use super::catalogue::{Affinity, Column, quote};
use crate::event::JobId;
use sqlx::Sqlite;
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use uuid::Uuid;

/// A column of ids.
#[derive(Clone, Debug)]
pub struct IdColumn {
    /// The column with its row.
    sql: String,
    affinity: Affinity,
    /// Ids are texts, or bytes of texts, as in Jobcast's own tables.
    is_own: bool,
}

/// An id in each way in which it may be stored: four parameters of a statement.
#[derive(Clone, Debug)]
pub struct Id {
    pub text: String,
    /// The number that is written so.
    pub number: Option<i64>,
    /// The bytes of the UUID that is written so.
    pub uuid: Option<Vec<u8>>,
}

impl Id {
    /// The number of parameters that an id is bound to.
    pub const PARAMETERS: usize = 4;

    pub fn new(text: &str) -> Self {
        let number = text.parse().ok().filter(|number: &i64| number.to_string() == text);
        let uuid = Uuid::try_parse(text).ok().filter(|uuid| uuid.hyphenated().to_string() == text);
        // Bytes that are a text are read as one.
        let uuid = uuid.filter(|uuid| uuid_text(uuid.as_bytes()).is_some()).map(|uuid| uuid.as_bytes().to_vec());
        Self { text: text.into(), number, uuid }
    }

    pub fn bind<'q>(&self, query: Query<'q, Sqlite, SqliteArguments>) -> Query<'q, Sqlite, SqliteArguments> {
        query.bind(self.text.clone()).bind(self.text.clone().into_bytes()).bind(self.number).bind(self.uuid.clone())
    }
}

impl From<&JobId> for Id {
    fn from(job: &JobId) -> Self {
        Self::new(job.as_str())
    }
}

/// Reads the 16 bytes of a UUID. `None` where they are the UTF-8 of an id: then they are that.
pub fn uuid_text(bytes: &[u8]) -> Option<String> {
    let is_text = || str::from_utf8(bytes).is_ok_and(|text| !text.chars().any(char::is_control));
    let uuid = Uuid::from_slice(bytes).ok()?;
    (!is_text()).then(|| uuid.hyphenated().to_string())
}

impl IdColumn {
    pub fn new(row: &str, column: &Column, is_own: bool) -> Self {
        Self { sql: format!("{row}.{}", quote(&column.name)), affinity: column.affinity(), is_own }
    }

    /// A number of SQLite's own.
    pub fn of_number(sql: String) -> Self {
        Self { sql, affinity: Affinity::Number, is_own: false }
    }

    /// The column with its row.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// Conditions that a row has this id, which is bound from the parameter `first` on.
    pub fn conditions(&self, id: &Id, first: usize) -> Vec<String> {
        let (column, text) = (&self.sql, format!("?{first}"));
        let mut conditions = vec![match (self.is_own, self.affinity) {
            (true, _) => format!("{column} = {text}"),
            // Another number in the same words, or another case under a collation, is another id.
            (false, Affinity::Text | Affinity::Number) => {
                format!("{column} = {text} AND CAST({column} AS TEXT) = {text} COLLATE BINARY")
            }
            (false, Affinity::Blob) => {
                format!("{column} = {text} AND typeof({column}) = 'text' AND {column} = {text} COLLATE BINARY")
            }
        }];
        conditions.push(format!("{column} = ?{}", first + 1));
        if !self.is_own && self.affinity == Affinity::Blob && id.number.is_some() {
            conditions.push(format!("{column} = ?{} AND typeof({column}) = 'integer'", first + 2));
        }
        if !self.is_own && id.uuid.is_some() {
            conditions.push(format!("{column} = ?{}", first + 3));
        }
        conditions
    }
}
