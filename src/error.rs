//! What can go wrong with a source, as everybody above it needs to know: a stable code, whether trying again can help,
//! what was tried, and what to do about it.

use std::fmt;

/// Whether the same thing, tried again later, can succeed without anybody mending anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    Yes,
    No,
}

/// Stable, for logs, metrics, problem details and `stream.error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceCode {
    /// Somebody else holds a lock for longer than we wait.
    Busy,
    /// No room left for writing.
    DiskFull,
    /// The operating system failed a read or a write.
    Io,
    /// It cannot be opened: missing, a directory, no rights.
    CannotOpen,
    /// It may be read but not written.
    ReadOnly,
    /// The file is damaged, or no database at all.
    Corrupt,
    /// Tables or columns are not there, or not as they must be.
    Schema,
    /// A read took longer than it may.
    TimedOut,
    /// Nobody answers at its address, or the connection broke.
    Unreachable,
    /// It is starting, stopping, or changing over.
    Unavailable,
    /// All of its connections, or of ours, are taken.
    Exhausted,
    /// It does not know this user, or not with this password.
    Credentials,
    /// It does not speak TLS, or not with a certificate that we trust.
    Tls,
    /// This user may not do that.
    Rights,
    /// It does not take this value.
    Refused,
    /// It went away in the middle of it for others' sake: a deadlock, a conflict with recovery.
    Conflict,
    /// Anything else that the source said.
    Other,
}

impl SourceCode {
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

    pub fn retry(self) -> Retry {
        match self {
            Self::Busy | Self::DiskFull | Self::Io | Self::TimedOut | Self::Other => Retry::Yes,
            Self::Unreachable | Self::Unavailable | Self::Exhausted | Self::Conflict => Retry::Yes,
            Self::CannotOpen | Self::ReadOnly | Self::Corrupt | Self::Schema => Retry::No,
            Self::Credentials | Self::Tls | Self::Rights | Self::Refused => Retry::No,
        }
    }
}

/// `operation: cause (mend)`
#[derive(Clone, Debug)]
pub struct SourceError {
    pub code: SourceCode,
    /// What was being done: "reading events from /var/lib/jobcast.db".
    pub operation: String,
    /// What the source answered.
    pub cause: String,
    /// What an operator can do.
    pub help: &'static str,
}

impl SourceError {
    pub fn is_retryable(&self) -> bool {
        self.code.retry() == Retry::Yes
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.operation, self.cause, self.help)
    }
}

impl std::error::Error for SourceError {}
