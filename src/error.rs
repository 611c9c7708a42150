//! Failures of a source, as everybody above it needs to know them: a stable code, a decision on retrying, the work that
//! failed, and the remedy.

mod incidents;

pub use incidents::Incidents;

use crate::event::JobId;
use std::fmt;
use std::sync::Arc;

/// The decision on trying again: a later attempt can succeed although nobody fixed anything, or it cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    Yes,
    No,
}

impl Retry {
    /// The end of a message, for people.
    fn notice(self) -> Option<&'static str> {
        match self {
            Self::Yes => Some("it is tried again"),
            Self::No => None,
        }
    }
}

/// The kind of a failure. Its text is stable: logs, metrics, problem details and `stream.error` carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceCode {
    /// Another process holds a lock for longer than we wait.
    Busy,
    /// No room left for writing.
    DiskFull,
    /// The operating system failed a read or a write.
    Io,
    /// The store cannot be opened: missing, a directory, no rights.
    CannotOpen,
    /// The store may be read but not written.
    ReadOnly,
    /// The file is damaged, or no database at all.
    Corrupt,
    /// Tables, columns or keys are missing, or not of the expected kind.
    Schema,
    /// A statement took longer than it may.
    TimedOut,
    /// Nothing answers at the address, or the connection broke.
    Unreachable,
    /// The server is starting, stopping, or failing over.
    Unavailable,
    /// All connections of the server, or of our pool, are taken.
    Exhausted,
    /// The server rejects this user or password.
    Credentials,
    /// The server does not speak TLS, or not with a certificate that we trust.
    Tls,
    /// This user lacks a right.
    Rights,
    /// The store rejects this value: a constraint, a type.
    Refused,
    /// The store aborted the work in favour of other work: a deadlock, a conflict with recovery.
    Conflict,
    /// Any other answer of the source.
    Other,
}

impl SourceCode {
    /// Every kind of failure.
    pub const ALL: [Self; 17] = [
        Self::Busy,
        Self::DiskFull,
        Self::Io,
        Self::CannotOpen,
        Self::ReadOnly,
        Self::Corrupt,
        Self::Schema,
        Self::TimedOut,
        Self::Unreachable,
        Self::Unavailable,
        Self::Exhausted,
        Self::Credentials,
        Self::Tls,
        Self::Rights,
        Self::Refused,
        Self::Conflict,
        Self::Other,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "source.busy",
            Self::DiskFull => "source.disk_full",
            Self::Io => "source.io",
            Self::CannotOpen => "source.cannot_open",
            Self::ReadOnly => "source.read_only",
            Self::Corrupt => "source.corrupt",
            Self::Schema => "source.schema",
            Self::TimedOut => "source.timed_out",
            Self::Unreachable => "source.unreachable",
            Self::Unavailable => "source.unavailable",
            Self::Exhausted => "source.exhausted",
            Self::Credentials => "source.credentials",
            Self::Tls => "source.tls",
            Self::Rights => "source.rights",
            Self::Refused => "source.refused",
            Self::Conflict => "source.conflict",
            Self::Other => "source.error",
        }
    }

    /// The sentence for outsiders: it names no host, no file, no table and no remedy, which are for the log.
    fn told(self) -> &'static str {
        match self {
            Self::Busy | Self::Exhausted => "the event store is busy",
            Self::DiskFull => "the event store has no space left",
            Self::TimedOut => "the event store took too long",
            Self::Unreachable | Self::Unavailable => "the event store does not answer",
            Self::Io | Self::Conflict | Self::Other => "the event store failed",
            Self::CannotOpen | Self::Corrupt | Self::Schema => "the event store cannot be used",
            Self::ReadOnly => "the event store is only read here: nothing can be written to it",
            Self::Credentials | Self::Tls | Self::Rights => "the event store does not let Jobcast in",
            Self::Refused => "the event store does not take this value",
        }
    }

    pub fn retry(self) -> Retry {
        match self {
            Self::Busy | Self::DiskFull | Self::Io | Self::TimedOut | Self::Other => Retry::Yes,
            Self::Unreachable | Self::Unavailable | Self::Exhausted | Self::Conflict => Retry::Yes,
            Self::CannotOpen | Self::ReadOnly | Self::Corrupt | Self::Schema => Retry::No,
            Self::Credentials | Self::Tls | Self::Rights | Self::Refused => Retry::No,
        }
    }
}

/// The extent of a failure. A failure of one event is none: it is delivered with its unreadable parts named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// The rows of one job. All other jobs go on.
    Job(JobId),
    /// The store, or a part of it.
    Source,
}

/// A failure of the source, shown as `operation: cause (help; it is tried again)`. Cheap to clone: every reader that
/// waits for the same read gets a copy.
#[derive(Clone, Debug)]
pub struct SourceError {
    pub code: SourceCode,
    pub scope: Scope,
    /// The decision that readers are told: that of the code, unless the source is forgiven for a while.
    retry: Retry,
    /// The work that failed: "reading events from /var/lib/jobcast.db".
    pub operation: Arc<str>,
    /// The answer of the source, in its own words.
    pub cause: Arc<str>,
    /// An operator's remedy; empty where there is none but to wait.
    pub help: &'static str,
    /// The error of the library below, for [`std::error::Error::source`].
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl SourceError {
    pub fn new(
        code: SourceCode,
        operation: impl Into<Arc<str>>,
        cause: impl Into<Arc<str>>,
        help: &'static str,
    ) -> Self {
        let (scope, retry) = (Scope::Source, code.retry());
        Self { code, scope, retry, operation: operation.into(), cause: cause.into(), help, source: None }
    }

    /// Keeps the error that this one explains.
    pub fn with_source(self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { source: Some(Arc::new(source)), ..self }
    }

    /// Says that only this job's rows are concerned.
    pub fn of_job(self, job: JobId) -> Self {
        Self { scope: Scope::Job(job), ..self }
    }

    /// Tells if only this job's rows are concerned.
    pub fn is_of_job(&self, job: &JobId) -> bool {
        matches!(&self.scope, Scope::Job(of) if of == job)
    }

    /// A fault of one job's rows is retryable whatever its code: the row may be mended.
    pub fn is_retryable(&self) -> bool {
        matches!(self.scope, Scope::Job(_)) || self.retry == Retry::Yes
    }

    /// Has readers told that trying again can help, whatever the code says.
    pub fn forgiven(self) -> Self {
        Self { retry: Retry::Yes, ..self }
    }

    /// Tells if trying again can help by the kind of the failure, whatever readers are told. The metrics and `/readyz` say
    /// this.
    pub fn kind_is_retryable(&self) -> bool {
        matches!(self.scope, Scope::Job(_)) || self.code.retry() == Retry::Yes
    }

    /// Tells if the store has refused one value, and can be used.
    pub fn is_of_value(&self) -> bool {
        self.code == SourceCode::Refused
    }

    /// The sentence for outsiders.
    pub fn told(&self) -> &'static str {
        match self.scope {
            Scope::Job(_) => "a part of this job's history cannot be read",
            Scope::Source => self.code.told(),
        }
    }

    /// The remedy, and that we try again where we do.
    pub fn advice(&self) -> String {
        let notice = if self.is_retryable() { Retry::Yes.notice() } else { Retry::No.notice() };
        match (self.help, notice) {
            (help, None) => help.into(),
            ("", Some(notice)) => notice.into(),
            (help, Some(notice)) => format!("{help}; {notice}"),
        }
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.operation, self.cause, self.advice())
    }
}

impl std::error::Error for SourceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error;

    #[test]
    fn an_error_says_that_it_is_tried_again_where_it_is_and_keeps_its_cause() {
        let io = std::io::Error::other("broken pipe");
        let error = SourceError::new(SourceCode::Unreachable, "reading (db)", io.to_string(), "see the network");
        let error = error.with_source(io).clone();
        assert_eq!(error.to_string(), "reading (db): broken pipe (see the network; it is tried again)");
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("broken pipe"));
        let error = SourceError::new(SourceCode::Conflict, "reading (db)", "deadlock", "");
        assert_eq!(error.to_string(), "reading (db): deadlock (it is tried again)");
        let error = SourceError::new(SourceCode::Rights, "reading (db)", "no rights", "grant them");
        assert_eq!(error.to_string(), "reading (db): no rights (grant them)");
        assert!(error.source().is_none());
    }
}
