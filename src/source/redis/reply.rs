//! Replies of a server, taken apart.

use redis::{ErrorKind, RedisError, Value};

/// Returns the reply, or the error that the server replied with.
pub fn check_reply(reply: Value) -> Result<Value, RedisError> {
    match reply {
        Value::ServerError(error) => Err(error.into()),
        reply => Ok(reply),
    }
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
