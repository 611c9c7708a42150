//! Failures of SQLite and of our own tasks around it, as a [`SourceError`].

use super::tables::SchemaProblem;
use crate::error::{SourceCode, SourceError};
use crate::event::JobId;
use sqlx::error::DatabaseError;

/// The value by which a row is ordered is no integer, so the row has no place in its job.
#[derive(Debug, thiserror::Error)]
#[error("{column} orders the rows of a job, and holds no integer in one of them")]
pub struct NoInteger {
    /// The column, with the row.
    pub column: String,
}

/// A failure inside this source.
#[derive(Debug, thiserror::Error)]
pub enum SqliteError {
    #[error(transparent)]
    Sqlx(#[from] sqlx::Error),
    /// A statement that is in order met a value in this job's rows that a view or a column cannot make anything of.
    #[error("{error}")]
    OfJob { job: JobId, error: sqlx::Error },
    #[error("a list for SQLite cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The writer left a request without an answer, which only a panic can bring about. The next one is served.
    #[error("the task that writes gave no answer")]
    WriterStopped,
    #[error("another process has kept the database locked since the start")]
    NotOpenYet,
    #[error("the database file is gone, or empty")]
    Missing,
    #[error("the database file was replaced by another one")]
    Replaced,
    #[error("it is a directory")]
    Directory,
    #[error("the file is not there yet, or has no tables yet")]
    NotMadeYet,
    #[error("the file is in WAL mode, and the files -wal and -shm beside it are neither there nor can they be made")]
    NoWal,
    #[error("the file has tables of others, and is only read")]
    OfOthers,
    /// Tables or columns that the settings name are missing.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Tables(Vec<SchemaProblem>),
}

impl SqliteError {
    /// Says what failed, and what an operator can do about it.
    pub fn during(self, operation: String) -> SourceError {
        let code = self.code();
        let cause = match &self {
            Self::Sqlx(sqlx::Error::Database(answer)) | Self::OfJob { error: sqlx::Error::Database(answer), .. } => {
                answer.message().to_string()
            }
            Self::OfJob { error: sqlx::Error::Decode(cause), .. } => cause.to_string(),
            other => other.to_string(),
        };
        let help = match &self {
            Self::WriterStopped => "see the log",
            Self::Missing => "put the file back; Jobcast makes a new one only when it starts",
            Self::Replaced => "the new file is opened at once",
            Self::NotMadeYet => {
                "the program that it belongs to makes it; source.sqlite.create = \"auto\" and tables of the usual names \
                 let Jobcast make one of its own"
            }
            Self::OfOthers => {
                "write events as the program does that the file belongs to; ingest.enabled = false says so"
            }
            Self::Tables(_) => {
                "see `jobcast check`, docs/sqlite.md and `jobcast schema sqlite`, or give another file by source.sqlite.path"
            }
            Self::NoWal => NEEDS_WAL,
            Self::OfJob { .. } => "mend the row, or the view or column that cannot read it",
            Self::Sqlx(sqlx::Error::Database(answer)) if is_of_journal(answer.code().as_deref()) => {
                "what a writer has left is put right when that program opens the file again, or by a user who may write \
                 to the file and its directory"
            }
            Self::NotOpenYet | Self::Directory | Self::Sqlx(_) | Self::Json(_) => help(code),
        };
        let job = match &self {
            Self::OfJob { job, .. } => Some(job.clone()),
            _ => None,
        };
        let error = SourceError::new(code, operation, cause, help).with_source(self);
        match job {
            Some(job) => error.of_job(job),
            None => error,
        }
    }

    pub fn code(&self) -> SourceCode {
        match self {
            Self::Sqlx(sqlx::Error::Database(answer)) => code_of_result(result_of(&**answer)),
            Self::Sqlx(sqlx::Error::PoolTimedOut) => SourceCode::TimedOut,
            Self::Sqlx(sqlx::Error::Io(_)) => SourceCode::Io,
            Self::Sqlx(sqlx::Error::ColumnNotFound(_) | sqlx::Error::ColumnDecode { .. }) => SourceCode::Schema,
            Self::NotOpenYet => SourceCode::Busy,
            Self::Directory => SourceCode::CannotOpen,
            Self::Missing | Self::Replaced | Self::NotMadeYet | Self::NoWal => SourceCode::Unavailable,
            Self::OfOthers => SourceCode::ReadOnly,
            Self::Tables(_) => SourceCode::Schema,
            Self::OfJob { .. } => SourceCode::Refused,
            Self::Sqlx(_) | Self::Json(_) | Self::WriterStopped => SourceCode::Other,
        }
    }

    /// Returns true for an error that values in rows can be the cause of: SQLite says the same where a statement does not fit
    /// the tables.
    pub fn may_be_of_rows(&self) -> bool {
        match self {
            Self::Sqlx(sqlx::Error::Database(answer)) => {
                matches!(result_of(&**answer), SQLITE_ERROR | SQLITE_TOOBIG | SQLITE_MISMATCH)
            }
            Self::Sqlx(sqlx::Error::Decode(cause)) => cause.is::<NoInteger>(),
            _ => false,
        }
    }
}

/// Returns the result code, an extended one, of an answer of SQLite.
fn result_of(answer: &dyn DatabaseError) -> i32 {
    answer.code().and_then(|code| code.parse().ok()).unwrap_or(SQLITE_ERROR)
}

/// The remedies for a file in WAL mode that this user cannot open.
pub const NEEDS_WAL: &str = "keep a connection of a writer open, or give this user the right to write to the directory, or \
     have the file's program set PRAGMA journal_mode = DELETE";

/// Tells codes of a journal that only somebody who may write can put right: SQLITE_READONLY_RECOVERY, _ROLLBACK,
/// _CANTLOCK and _CANTINIT.
fn is_of_journal(code: Option<&str>) -> bool {
    matches!(code, Some("264" | "776" | "520" | "1288"))
}

/// A table or column is missing, or a function has failed on a value.
const SQLITE_ERROR: i32 = 1;
/// A value that an expression makes is too large.
const SQLITE_TOOBIG: i32 = 18;
/// A value is of another type than is needed.
const SQLITE_MISMATCH: i32 = 20;

/// Maps a result code of SQLite ("Result and Error Codes"); the low byte of an extended one is the primary one.
fn code_of_result(extended: i32) -> SourceCode {
    if is_of_journal(Some(&extended.to_string())) {
        return SourceCode::Unavailable;
    }
    match extended & 0xff {
        SQLITE_ERROR => SourceCode::Schema,
        // SQLITE_PERM, SQLITE_CANTOPEN
        3 | 14 => SourceCode::CannotOpen,
        // SQLITE_BUSY, SQLITE_LOCKED
        5 | 6 => SourceCode::Busy,
        // SQLITE_READONLY
        8 => SourceCode::ReadOnly,
        // SQLITE_INTERRUPT
        9 => SourceCode::TimedOut,
        // SQLITE_IOERR
        10 => SourceCode::Io,
        // SQLITE_CORRUPT, SQLITE_NOTADB
        11 | 26 => SourceCode::Corrupt,
        // SQLITE_FULL
        13 => SourceCode::DiskFull,
        _ => SourceCode::Other,
    }
}

fn help(code: SourceCode) -> &'static str {
    match code {
        SourceCode::Busy => "another process holds the database's lock; keep its transactions short",
        SourceCode::ReadOnly => {
            "give this user the right to write to the file and to its directory, where SQLite keeps -wal and -shm"
        }
        SourceCode::Io => "see whether the disk works and the file system is local; SQLite needs working locks",
        SourceCode::Corrupt => {
            "the file is no SQLite database or is damaged; restore a backup, or give another file by source.sqlite.path"
        }
        SourceCode::DiskFull => "make room on the disk; nothing that was answered 201 is lost",
        SourceCode::CannotOpen => {
            "see whether its directory exists and this user may write to it, or give another file by source.sqlite.path"
        }
        SourceCode::Schema => "compare the tables with `jobcast schema sqlite`",
        SourceCode::TimedOut => "too many reads at once, or one that takes longer than source.read_timeout",
        _ => "see the cause",
    }
}
