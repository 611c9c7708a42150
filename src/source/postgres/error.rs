//! Errors of a statement, and how they become the [`SourceError`] that the rest of Jobcast understands (PostgreSQL's
//! manual, "PostgreSQL Error Codes").

use crate::error::{SourceCode, SourceError};
use crate::source::tls::is_handshake_failure;
use sqlx::postgres::{PgDatabaseError, PgErrorPosition};

/// A reason why a statement has no result.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The statement took longer than it may.
    #[error("no answer in time")]
    Timeout,
    /// All connections of the pool are in use, and none became free in time.
    #[error("all of our connections are taken")]
    PoolExhausted,
    /// The pool could not make a connection, for another reason than the server's answer.
    #[error("no connection: {0}")]
    NotConnected(String),
    /// A status is to be written, and no job table is configured.
    #[error("source.postgres.jobs_table is not set")]
    NoJobsTable,
    /// Events are to be written, and the settings make their parts of anything but one column each.
    #[error("events cannot be written to tables that source.postgres.columns only reads so")]
    NotWritable,
    /// A statement that always returns a row returned none.
    #[error("the statement returned no row")]
    NoRow,
    /// An event that was just written is not found.
    #[error("an event that was written is not there")]
    EventNotStored,
    /// A row of a column of transactions that the server has not begun: it was restored from a dump.
    #[error("rows carry transactions of another life of the database")]
    OtherLife,
    /// The server that answers is of another life of the database than the one before.
    #[error("another server answers than before, with another database or one that was restored")]
    OtherServer,
    #[error(transparent)]
    Sqlx(#[from] sqlx::Error),
}

impl QueryError {
    pub fn code(&self) -> SourceCode {
        match self {
            Self::Timeout => SourceCode::TimedOut,
            Self::PoolExhausted => SourceCode::Exhausted,
            Self::NotConnected(_) => SourceCode::Unreachable,
            Self::NoJobsTable | Self::NotWritable => SourceCode::Schema,
            Self::NoRow | Self::EventNotStored => SourceCode::Other,
            Self::OtherLife | Self::OtherServer => SourceCode::Unavailable,
            Self::Sqlx(sqlx::Error::Tls(_)) => SourceCode::Tls,
            Self::Sqlx(sqlx::Error::Io(error)) if is_handshake_failure(error) => SourceCode::Tls,
            Self::Sqlx(sqlx::Error::Io(_)) => SourceCode::Unreachable,
            Self::Sqlx(sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::Decode(_)) => {
                SourceCode::Schema
            }
            Self::Sqlx(sqlx::Error::Database(error)) => error.code().map_or(SourceCode::Other, |state| code_of(&state)),
            Self::Sqlx(_) => SourceCode::Other,
        }
    }

    /// Returns true for an error that the rows of one job can cause: a cast that fails on a value, a function of a view
    /// that raises, a damaged page. What the server finds wrong with the statement itself, before it runs, points into
    /// its text, and concerns every job.
    pub fn is_of_rows(&self) -> bool {
        match self {
            Self::Sqlx(sqlx::Error::Database(error)) => {
                let error = error.try_downcast_ref::<PgDatabaseError>();
                error.is_some_and(|error| {
                    !matches!(error.position(), Some(PgErrorPosition::Original(_))) && is_state_of_rows(error.code())
                })
            }
            Self::Sqlx(sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_)) => true,
            _ => false,
        }
    }

    /// Returns true for an error that says that the tables are not what they were.
    pub fn is_of_tables(&self) -> bool {
        matches!(self, Self::OtherLife | Self::OtherServer) || self.code() == SourceCode::Schema
    }

    /// Returns true for an error that the role's rights are the cause of.
    pub fn is_denied(&self) -> bool {
        self.code() == SourceCode::Rights
    }

    /// Describes the error to an operator, with the `operation` that it ended.
    pub fn into_source_error(self, operation: String) -> SourceError {
        let code = self.code();
        let cause = match &self {
            Self::Sqlx(sqlx::Error::Database(error)) => error.message().to_string(),
            other => other.to_string(),
        };
        SourceError::new(code, operation, cause, help_for(code)).with_source(self)
    }
}

/// Sorts an SQLSTATE, first by its five characters, then by its class.
fn code_of(state: &str) -> SourceCode {
    match state {
        "42501" => SourceCode::Rights,
        "42P01" | "42703" | "42883" | "3F000" | "42804" | "42704" => SourceCode::Schema,
        "3D000" | "28000" | "28P01" => SourceCode::Credentials,
        "53300" | "53400" => SourceCode::Exhausted,
        "53100" => SourceCode::DiskFull,
        "25006" => SourceCode::Unavailable,
        "57014" => SourceCode::TimedOut,
        state if state.starts_with("22") || state.starts_with("23") => SourceCode::Refused,
        state if state.starts_with("57P") => SourceCode::Unavailable,
        state if state.starts_with("08") => SourceCode::Unreachable,
        state if state.starts_with("40") => SourceCode::Conflict,
        state if state.starts_with("53") => SourceCode::Exhausted,
        state if state.starts_with("58") || state.starts_with("XX") => SourceCode::Io,
        _ => SourceCode::Other,
    }
}

/// Returns true for an SQLSTATE that depends on the values that a statement meets.
fn is_state_of_rows(state: &str) -> bool {
    // Data exceptions, constraints of a domain, limits; then what functions and subqueries of a view run into.
    let is_of_class = ["22", "23", "54", "2F", "38", "39", "P0"].iter().any(|class| state.starts_with(class));
    is_of_class || matches!(state, "21000" | "42883" | "42804" | "42846" | "XX001" | "XX002")
}

fn help_for(code: SourceCode) -> &'static str {
    match code {
        SourceCode::Unreachable => "see whether the server runs and source.postgres.url leads to it",
        SourceCode::Unavailable => "the server is starting, stopping or changing over",
        SourceCode::Exhausted => "raise the server's max_connections, or source.postgres.pool where ours are all taken",
        SourceCode::TimedOut => "the server is busy, or see source.read_timeout",
        SourceCode::Conflict => "",
        SourceCode::Credentials => "correct user, password or database in source.postgres.url",
        SourceCode::Tls => "see sslmode in source.postgres.url, and source.postgres.root_cert",
        SourceCode::Rights => "grant this user SELECT on both tables, and INSERT where ingest is enabled",
        SourceCode::Refused => "send what the table's columns and constraints take",
        SourceCode::Schema => "see `jobcast check`",
        _ => "see the cause",
    }
}
