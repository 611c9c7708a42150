//! What PostgreSQL said, as everybody else needs to know it (its manual, "PostgreSQL Error Codes").

use crate::error::{SourceCode, SourceError};
use crate::source::tls::is_handshake_failure;

pub fn failed(operation: String, error: sqlx::Error) -> SourceError {
    let state = error.as_database_error().and_then(|said| said.code()).unwrap_or_default().into_owned();
    let code = match (&error, state.as_str()) {
        (sqlx::Error::Tls(_), _) => SourceCode::Tls,
        (sqlx::Error::Io(error), _) if is_handshake_failure(error) => SourceCode::Tls,
        (sqlx::Error::PoolTimedOut, _) => SourceCode::TimedOut,
        (sqlx::Error::PoolClosed, _) => SourceCode::Exhausted,
        (sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed, _) => SourceCode::Unreachable,
        (sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::Decode(_), _) => {
            SourceCode::Schema
        }
        (_, "42501") => SourceCode::Rights,
        (_, "42P01" | "42703" | "42883" | "3F000" | "42804" | "42704") => SourceCode::Schema,
        (_, "3D000" | "28000" | "28P01") => SourceCode::Credentials,
        (_, "53300" | "53400") => SourceCode::Exhausted,
        (_, "53100") => SourceCode::DiskFull,
        (_, "25006") => SourceCode::Unavailable,
        (_, "57014") => SourceCode::TimedOut,
        (_, state) if state.starts_with("22") || state.starts_with("23") => SourceCode::Refused,
        (_, state) if state.starts_with("57P") => SourceCode::Unavailable,
        (_, state) if state.starts_with("08") => SourceCode::Unreachable,
        (_, state) if state.starts_with("40") => SourceCode::Conflict,
        (_, state) if state.starts_with("53") => SourceCode::Exhausted,
        (_, state) if state.starts_with("58") || state.starts_with("XX") => SourceCode::Io,
        _ => SourceCode::Other,
    };
    let help = match code {
        SourceCode::Unreachable => "see whether the server runs and source.postgres.url leads to it",
        SourceCode::Unavailable => "the server is starting, stopping or changing over",
        SourceCode::Exhausted => "raise the server's max_connections, or source.postgres.pool where ours are all taken",
        SourceCode::TimedOut => "the server is busy",
        SourceCode::Conflict => "",
        SourceCode::Credentials => "correct user, password or database in source.postgres.url",
        SourceCode::Tls => "see sslmode in source.postgres.url, and source.postgres.root_cert",
        SourceCode::Rights => "grant this user SELECT on both tables, and INSERT where ingest is enabled",
        SourceCode::Refused => "send what the table's columns and constraints take",
        SourceCode::Schema => "see `jobcast check`",
        _ => "see the cause",
    };
    let cause = match &error {
        sqlx::Error::Database(said) => said.message().to_string(),
        sqlx::Error::PoolTimedOut => "no answer in time".into(),
        sqlx::Error::PoolClosed => "all of our connections are taken".into(),
        other => other.to_string(),
    };
    SourceError::new(code, operation, cause, help).with_source(error)
}
