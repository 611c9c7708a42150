//! Errors of the servers and of the connections to them, as codes of ours.
//!
//! There is no list of the server's error codes. These come from the "Redis serialization protocol specification" and
//! from the texts in the server's source.

use super::topology::NodeError;
use crate::error::{SourceCode, SourceError};
use crate::source::tls::is_handshake_failure;
use redis::{ErrorKind, RedisError, ServerErrorKind};
use std::error::Error;
use std::io;
use std::sync::Arc;

/// Explains an error that stopped `operation`.
pub fn failed(operation: &str, error: NodeError) -> SourceError {
    let NodeError { server, error } = error;
    let code = code_of(&error);
    let help = match code {
        SourceCode::Unreachable => "see whether the server runs and source.redis.url leads to it",
        SourceCode::Unavailable => "the server is starting, or changing over to another",
        SourceCode::Busy => "a script or module keeps the server busy",
        SourceCode::TimedOut => "the server or the way to it is slow",
        SourceCode::Exhausted => "raise the server's maxclients or maxmemory",
        SourceCode::Io => "see the server's log and disk",
        SourceCode::Credentials => "correct user, password and database in source.redis.url",
        SourceCode::Tls => "see whether the server speaks TLS (rediss://), and source.redis.root_cert",
        SourceCode::Rights => "give this user the commands and keys that docs/redis.md names, see ACL SETUSER",
        SourceCode::Schema if is_moved(&error) => {
            "this server is part of a Cluster: name several of its nodes in source.redis.url, comma-separated"
        }
        SourceCode::Schema if is_unknown_command(&error) => {
            "the server, or a proxy before it, lacks a command: Jobcast needs HELLO 3 (RESP3), XRANGE, XREVRANGE, XINFO \
             STREAM and HGET, which Redis has from 6.2 on; let source.redis.url lead to the server itself"
        }
        SourceCode::Schema => "see source.redis.events_key and source.redis.job_key, and `jobcast check`",
        _ => "see the cause",
    };
    SourceError::new(code, format!("{operation} ({server})"), cause_of(&error), help).with_source(error)
}

/// Tells an error after which its connection cannot be used any more.
pub fn is_broken(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Parse | ErrorKind::AuthenticationFailed)
}

/// The extent of an error of work on one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Only this key is concerned.
    Key,
    /// The user has no right to this key. Others may be open to it.
    RightsOfKey,
    /// The server is concerned, or the way to it.
    Source,
}

pub fn extent(error: &RedisError) -> Extent {
    let detail = error.detail().unwrap_or_default();
    // These are the texts of 7.0, of 6.2, and of 6.2 in a script.
    let denies_key = ["access a key", "access one of the keys", "access at least one of the keys"];
    if is_wrong_type(error) || error.kind() == ErrorKind::UnexpectedReturnType {
        Extent::Key
    } else if denies_key.iter().any(|text| detail.contains(text)) {
        Extent::RightsOfKey
    } else {
        Extent::Source
    }
}

/// Tells the error of a command on a key that the user has no right to.
pub fn is_denied_key(error: &RedisError) -> bool {
    extent(error) == Extent::RightsOfKey
}

/// Tells the error of a command on a key of another type. Before 7.0 a script has it in the text of its own error.
pub fn is_wrong_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE") || error.detail().is_some_and(|detail| detail.contains("WRONGTYPE "))
}

/// Tells a server, or a proxy, without a command that is needed.
fn is_unknown_command(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default().to_ascii_lowercase();
    error.kind() == ErrorKind::RESP3NotSupported
        || detail.contains("unknown command")
        || detail.contains("unknown subcommand")
}

pub fn is_moved(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::Moved)
}

/// Tells an error that may be over once the topology is known anew.
pub fn may_be_stale_topology(error: &RedisError) -> bool {
    is_broken(error) || is_moved(error) || code_of(error) == SourceCode::Unavailable
}

fn code_of(error: &RedisError) -> SourceCode {
    let detail = error.detail().unwrap_or_default();
    match error.kind() {
        ErrorKind::Server(kind) => match kind {
            ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown | ServerErrorKind::ClusterDown => {
                SourceCode::Unavailable
            }
            ServerErrorKind::TryAgain | ServerErrorKind::Ask | ServerErrorKind::ReadOnly => SourceCode::Unavailable,
            ServerErrorKind::NoPerm => SourceCode::Rights,
            ServerErrorKind::Moved | ServerErrorKind::CrossSlot => SourceCode::Schema,
            _ if detail.contains("max number of clients") => SourceCode::Exhausted,
            _ if detail.contains("DB index is out of range") => SourceCode::Credentials,
            _ if detail.contains("AUTH") && detail.contains("password") => SourceCode::Credentials,
            _ if detail.contains("unknown command") || detail.contains("unknown subcommand") => SourceCode::Schema,
            _ => SourceCode::Other,
        },
        ErrorKind::AuthenticationFailed => SourceCode::Credentials,
        ErrorKind::RESP3NotSupported => SourceCode::Schema,
        ErrorKind::MasterNameNotFoundBySentinel | ErrorKind::ClusterConnectionNotFound => SourceCode::Unavailable,
        ErrorKind::Extension => match error.code().unwrap_or_default() {
            "WRONGPASS" | "NOAUTH" => SourceCode::Credentials,
            "WRONGTYPE" => SourceCode::Schema,
            "OOM" => SourceCode::Exhausted,
            "MISCONF" => SourceCode::Io,
            "BUSY" => SourceCode::Busy,
            "NOREPLICAS" | "UNBLOCKED" | "NOMASTERLINK" | "FAILOVER" => SourceCode::Unavailable,
            _ => SourceCode::Other,
        },
        ErrorKind::Io if error.is_timeout() => SourceCode::TimedOut,
        ErrorKind::Io if is_tls(error) => SourceCode::Tls,
        ErrorKind::Io => SourceCode::Unreachable,
        ErrorKind::Parse => SourceCode::Unreachable,
        ErrorKind::InvalidClientConfig => SourceCode::Tls,
        _ => SourceCode::Other,
    }
}

/// Tells a failed TLS handshake from a network that failed.
fn is_tls(error: &RedisError) -> bool {
    type Shared = Arc<dyn Error + Send + Sync>;
    let shared = error.source().and_then(|source| source.downcast_ref::<Shared>());
    let io = shared.and_then(|shared| shared.downcast_ref::<io::Error>());
    io.is_some_and(is_handshake_failure)
}

fn cause_of(error: &RedisError) -> String {
    match (error.kind(), error.code(), error.detail()) {
        (ErrorKind::Server(_) | ErrorKind::Extension, Some(code), Some(detail)) => format!("{code} {detail}"),
        (ErrorKind::Io, ..) if error.is_timeout() => "no answer in time".into(),
        (ErrorKind::RESP3NotSupported, ..) => "it does not speak RESP3: Redis 6.2 is the oldest that will do".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Retry;

    fn error(text: &str) -> RedisError {
        match redis::parse_redis_value(format!("-{text}\r\n").as_bytes()) {
            Ok(redis::Value::ServerError(error)) => error.into(),
            other => panic!("{text} is no error: {other:?}"),
        }
    }

    fn code(text: &str) -> SourceCode {
        code_of(&error(text))
    }

    #[test]
    fn every_error_of_a_server_has_a_code_and_a_decision_on_trying_again() {
        for text in [
            "LOADING Redis is loading the dataset in memory",
            "READONLY You can't write against a read only replica.",
            "CLUSTERDOWN The cluster is down",
            "CLUSTERDOWN Hash slot not served",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
            "NOREPLICAS Not enough good replicas to write.",
        ] {
            assert_eq!(code(text), SourceCode::Unavailable, "{text}");
        }
        for (text, expected, retry) in [
            ("WRONGPASS invalid username-password pair or user is disabled.", SourceCode::Credentials, Retry::No),
            ("NOAUTH Authentication required.", SourceCode::Credentials, Retry::No),
            ("ERR DB index is out of range", SourceCode::Credentials, Retry::No),
            ("NOPERM User reader has no permissions to run the 'xrange' command", SourceCode::Rights, Retry::No),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", SourceCode::Schema, Retry::No),
            ("MOVED 3999 127.0.0.1:6381", SourceCode::Schema, Retry::No),
            ("ERR max number of clients reached", SourceCode::Exhausted, Retry::Yes),
            ("OOM command not allowed when used memory > 'maxmemory'.", SourceCode::Exhausted, Retry::Yes),
            ("MISCONF Redis is configured to save RDB snapshots", SourceCode::Io, Retry::Yes),
            ("BUSY Redis is busy running a script.", SourceCode::Busy, Retry::Yes),
            ("ERR something else", SourceCode::Other, Retry::Yes),
        ] {
            assert_eq!((code(text), code(text).retry()), (expected, retry), "{text}");
        }
    }

    #[test]
    fn an_error_of_one_key_is_told_from_one_of_the_server() {
        for (text, expected) in [
            ("WRONGTYPE Operation against a key holding the wrong kind of value", Extent::Key),
            ("ERR Error running script (call to f_1): @user_script:9: WRONGTYPE Operation against a key", Extent::Key),
            ("NOPERM No permissions to access a key", Extent::RightsOfKey),
            ("NOPERM this user has no permissions to access one of the keys used as arguments", Extent::RightsOfKey),
            ("ERR ACL failure in script: No permissions to access a key", Extent::RightsOfKey),
            ("NOPERM User reader has no permissions to run the 'xrange' command", Extent::Source),
            ("OOM command not allowed when used memory > 'maxmemory'.", Extent::Source),
            ("LOADING Redis is loading the dataset in memory", Extent::Source),
        ] {
            assert_eq!(extent(&error(text)), expected, "{text}");
        }
    }
}
