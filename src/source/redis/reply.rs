//! Replies of a server, taken apart.

use super::error::{Extent, extent};
use redis::{Arg, Cmd, ErrorKind, RedisError, Value};

/// Returns the reply, or the error that the server replied with.
pub fn check_reply(reply: Value) -> Result<Value, RedisError> {
    match reply {
        Value::ServerError(error) => Err(error.into()),
        reply => Ok(reply),
    }
}

/// Completes the reply to a command on a key that the user has no right to: the server's text names neither of the two.
pub fn name_denied_key(reply: Value, command: &Cmd) -> Value {
    let Value::ServerError(error) = &reply else { return reply };
    let error = RedisError::from(error.clone());
    if extent(&error) != Extent::RightsOfKey {
        return reply;
    }
    let words: Vec<&[u8]> =
        command.args_iter().map_while(|word| if let Arg::Simple(word) = word { Some(word) } else { None }).collect();
    let place = match words.first().copied() {
        Some(b"XINFO") => 2,
        Some(b"EVAL" | b"EVALSHA") => 3,
        _ => 1,
    };
    let name = |place: usize| String::from_utf8_lossy(words.get(place).copied().unwrap_or_default());
    let (code, detail) = (error.code().unwrap_or_default(), error.detail().unwrap_or_default());
    let line = format!("-{code} {detail}: {} {}\r\n", name(0), name(place));
    redis::parse_redis_value(line.as_bytes()).unwrap_or(reply)
}

/// Makes the error for a reply that does not have the form of `expected`.
pub fn unexpected_reply(expected: &'static str) -> RedisError {
    (ErrorKind::UnexpectedReturnType, "an answer that cannot be read", expected.to_string()).into()
}

/// Tells the error of a command on a key that does not exist. The server's text is the only sign of it.
pub fn is_no_such_key(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("no such key"))
}

pub fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

pub fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        other => text(other)?.parse().ok(),
    }
}

/// Returns the bytes of a stored value. A script or a proxy may have changed its type on the way.
pub fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        Value::Int(number) => Some(number.to_string().into_bytes()),
        Value::Okay => Some(b"OK".to_vec()),
        _ => None,
    }
}
