//! Parser of an event stream's bytes, as they arrive, into messages (WHATWG HTML, "Interpreting an event stream").
//!
//! It is ours because it also gives messages that have an `id` and no `data`: browsers do not dispatch those, and
//! Jobcast sends them to say where a subscriber stands.

use std::time::Duration;

/// Longest message that is read; a longer one does not come from Jobcast.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// One message of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Last event id as of this message; empty if the stream has sent none.
    pub id: String,
    /// Lines of `data:`, joined; `None` for a message that only sets the id.
    pub data: Option<String>,
    /// Value of `event:`, or "message" if there is none.
    pub kind: String,
}

/// A message was longer than `MAX_MESSAGE_BYTES`.
#[derive(Debug, thiserror::Error)]
#[error("a message has more than {MAX_MESSAGE_BYTES} bytes")]
pub struct MessageTooLong;

/// State between two pieces of a stream, which may be cut anywhere.
#[derive(Debug, Default)]
pub struct Parser {
    /// Set after the first line, before which a byte order mark is skipped.
    has_begun: bool,
    /// Bytes of the line that has not ended yet.
    line: Vec<u8>,
    /// Set when the last byte was a CR: an LF after it ends the same line.
    after_cr: bool,
    /// Last event id; it stays until another one comes.
    id: String,
    /// Set when the current message has an `id:` of its own.
    has_id: bool,
    kind: String,
    data: Option<String>,
    retry: Option<Duration>,
}

impl Parser {
    /// Reads the next bytes and returns the messages that they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Message>, MessageTooLong> {
        let mut messages = Vec::new();
        for byte in bytes {
            let follows_cr = self.after_cr;
            self.after_cr = *byte == b'\r';
            match byte {
                b'\n' if follows_cr => {}
                b'\n' | b'\r' => {
                    let line = std::mem::take(&mut self.line);
                    messages.extend(self.take_line(&line));
                }
                other => self.line.push(*other),
            }
            if self.line.len() + self.data.as_ref().map_or(0, String::len) > MAX_MESSAGE_BYTES {
                return Err(MessageTooLong);
            }
        }
        Ok(messages)
    }

    /// Wait before reconnecting, as the stream's last `retry:` set it.
    pub fn retry(&self) -> Option<Duration> {
        self.retry
    }

    fn take_line(&mut self, line: &[u8]) -> Option<Message> {
        let is_first = !self.has_begun;
        self.has_begun = true;
        let line = line.strip_prefix(b"\xef\xbb\xbf").filter(|_| is_first).unwrap_or(line);
        if line.is_empty() {
            return self.dispatch();
        }
        let line = String::from_utf8_lossy(line);
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.into()),
            },
            "event" => self.kind = value.into(),
            "id" if !value.contains('\0') => {
                self.id = value.into();
                self.has_id = true;
            }
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.retry = value.parse().ok().map(Duration::from_millis);
            }
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Message> {
        let (kind, data) = (std::mem::take(&mut self.kind), self.data.take());
        let has_id = std::mem::take(&mut self.has_id);
        let kind = if kind.is_empty() { "message".into() } else { kind };
        (data.is_some() || has_id).then(|| Message { id: self.id.clone(), data, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages that a browser would dispatch, each as type, data, last event id.
    fn dispatched(pieces: &[&[u8]]) -> Vec<(String, String, String)> {
        let mut parser = Parser::default();
        let messages = pieces.iter().flat_map(|piece| parser.feed(piece).expect("short"));
        messages.filter_map(|one| Some((one.kind, one.data?, one.id))).collect()
    }

    fn one(kind: &str, data: &str, id: &str) -> (String, String, String) {
        (kind.into(), data.into(), id.into())
    }

    #[test]
    fn a_stream_means_what_the_standard_says() {
        for (stream, meant) in [
            ("data: a\n\n", vec![one("message", "a", "")]),
            ("data:a\rdata: b\r\r", vec![one("message", "a\nb", "")]),
            ("data\r\n\r\n", vec![one("message", "", "")]),
            ("data: a\n\ndata: b", vec![one("message", "a", "")]),
            (":comment\n\nevent: x\n\ndata:  two\n\n", vec![one("message", " two", "")]),
            ("event: x\ndata: 1\n\ndata: 2\n\n", vec![one("x", "1", ""), one("message", "2", "")]),
            (
                "id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\n",
                vec![one("message", "a", "1"), one("message", "b", "1"), one("message", "c", "")],
            ),
            ("id: 1\0\ndata: a\n\n", vec![one("message", "a", "")]),
            ("\u{feff}data: a\n\n\u{feff}data: b\n\n", vec![one("message", "a", "")]),
            ("nonsense: a\n data: b\ndata: c\n\n", vec![one("message", "c", "")]),
        ] {
            assert_eq!(dispatched(&[stream.as_bytes()]), meant, "{stream:?}");
        }
    }

    #[test]
    fn a_stream_means_the_same_wherever_it_is_cut() {
        let stream = "\u{feff}retry: 1500\r\n: hällo\r\n\r\nid: c1\revent: x\rdata: \u{1F980}\r\rdata: a\ndata: ü\n\n"
            .as_bytes();
        let whole = dispatched(&[stream]);
        assert_eq!(whole, [one("x", "\u{1F980}", "c1"), one("message", "a\nü", "c1")]);
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(dispatched(&pieces), whole, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn only_digits_say_when_to_come_back() {
        let mut parser = Parser::default();
        for (line, retry) in [("retry: x", None), ("retry: 1.5", None), ("retry: 20", Some(20)), ("retry:", Some(20))] {
            parser.feed(format!("{line}\n").as_bytes()).expect("short");
            assert_eq!(parser.retry(), retry.map(Duration::from_millis), "{line}");
        }
    }
}
