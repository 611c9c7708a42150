//! An event as a line of a terminal. Its text is foreign: colours pass, and nothing else drives the terminal.

use crate::logging::Escaped;
use anstyle::{AnsiColor, Reset, Style};
use serde_json::Value;
use std::fmt::{self, Display, Write};

/// Longest parameters of a colour that are passed: those of several colours in one sequence.
const MAX_PARAMETERS: usize = 64;

/// The part of an event that is shown. Text that is not a terminal's gets no colours: the stream that it is printed to strips them.
pub struct Line {
    time: String,
    step: String,
    kind: String,
    shown: String,
}

impl Line {
    /// Reads the data of an event, which is its envelope, only its payload (`stream.data = "payload"`), or anything at all.
    pub fn of(kind: &str, data: &str) -> Self {
        let Ok(event) = serde_json::from_str::<Value>(data) else {
            return Self { time: String::new(), step: String::new(), kind: printable(kind), shown: coloured(data) };
        };
        let has_envelope = event["id"].is_string() && event.get("type").is_some();
        let payload = event.get("payload").filter(|_| has_envelope).unwrap_or(&event);
        let unreadable = match &event["unreadable"] {
            Value::Array(parts) if has_envelope => {
                let parts: Vec<String> = parts.iter().map(short).collect();
                format!("(unreadable: {}) ", parts.join(", "))
            }
            _ => String::new(),
        };
        Self {
            time: printable(event["timestamp"].as_str().and_then(|time| time.get(11..23)).unwrap_or_default()),
            step: short(&event["stepId"]),
            kind: match &event["type"] {
                Value::String(own) if has_envelope => printable(own),
                _ => printable(kind),
            },
            shown: unreadable + &text_of(payload),
        }
    }
}

impl Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, step, kind, shown } = self;
        let (dim, cyan) = (Style::new().dimmed(), AnsiColor::Cyan.on_default());
        let tone = match kind.as_str() {
            kind if kind.ends_with(".failed") => AnsiColor::Red.on_default().bold(),
            kind if kind.ends_with(".completed") => AnsiColor::Green.on_default(),
            _ => Style::new(),
        };
        write!(f, "{dim}{time:<12}{dim:#} {cyan}{step:<12}{cyan:#} {tone}{kind}{tone:#} {shown}")
    }
}

/// A text or number; nothing for null.
fn short(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => printable(text),
        other => printable(&other.to_string()),
    }
}

/// A line of output as it was written, else the payload's JSON. An empty payload says nothing.
fn text_of(payload: &Value) -> String {
    match (payload, payload["line"].as_str()) {
        (_, Some(line)) => coloured(line),
        (Value::String(text), _) => coloured(text),
        (Value::Null, _) => String::new(),
        (Value::Object(fields), _) if fields.is_empty() => String::new(),
        (other, _) => printable(&other.to_string()),
    }
}

/// Makes a text safe to print, so that a job cannot drive the terminal. A tab is a space.
pub fn printable(text: &str) -> String {
    Escaped(&text.replace('\t', " ")).to_string()
}

/// As [`printable`], but colours (SGR, ECMA-48 section 8.3.117) stay, and end with the text. Of a line that was overwritten
/// by carriage returns the last state is left.
fn coloured(text: &str) -> String {
    let text = text.trim_end_matches(['\r', '\n']);
    let mut rest = text.rsplit('\r').next().unwrap_or(text);
    let mut shown = String::new();
    let mut has_colours = false;
    while let Some(at) = rest.find("\u{1b}[") {
        let (before, sequence) = rest.split_at(at);
        shown += &printable(before);
        let parameters = sequence[2..].bytes().take_while(|byte| matches!(byte, b'0'..=b'9' | b';' | b':')).count();
        let end = 2 + parameters;
        if parameters <= MAX_PARAMETERS && sequence[end..].starts_with('m') {
            shown += &sequence[..=end];
            rest = &sequence[end + 1..];
            has_colours = true;
        } else {
            shown += &printable(&sequence[..2]);
            rest = &sequence[2..];
        }
    }
    shown += &printable(rest);
    if has_colours {
        let _ = write!(shown, "{Reset}");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(data: Value) -> String {
        let line = Line::of("message", &data.to_string());
        anstream::adapter::strip_str(&line.to_string()).to_string()
    }

    #[test]
    fn colours_pass_and_end_with_their_line_and_nothing_else_drives_the_terminal() {
        let text = "\u{1b}[1;38;5;208mwarm\u{1b}[0m \u{1b}[2J\u{1b}]0;title\u{7}\u{9b}31m \u{1b}[38:2::1:2:3mexact";
        let expected = "\u{1b}[1;38;5;208mwarm\u{1b}[0m \\u{1b}[2J\\u{1b}]0;title\\u{7}\\u{9b}31m \u{1b}[38:2::1:2:3mexact\u{1b}[0m";
        assert_eq!(coloured(text), expected);
        assert_eq!(coloured("10%\r 50%\r100%\r\n"), "100%");
        let endless = format!("\u{1b}[{}m", "1;".repeat(100));
        assert!(coloured(&endless).starts_with("\\u{1b}[1;"));
    }

    #[test]
    fn an_event_of_any_shape_is_shown() {
        let event = |payload: Value| serde_json::json!({ "id": "1", "jobId": "a", "stepId": null, "type": "x", "timestamp": null, "payload": payload });
        for (payload, expected) in [
            (Value::Null, "x "),
            (7.into(), "x 7"),
            ("plain".into(), "x plain"),
            (serde_json::json!([1, { "line": "no" }]), "x [1,{\"line\":\"no\"}]"),
            (serde_json::json!({ "line": 5 }), "x {\"line\":5}"),
            (serde_json::json!({ "line": "text" }), "x text"),
            (serde_json::json!({}), "x "),
        ] {
            let line = shown(event(payload.clone()));
            assert_eq!(line.trim_start(), expected, "{payload}");
        }
        let mut odd = event(serde_json::json!({ "line": "text" }));
        odd["type"] = Value::Null;
        odd["stepId"] = 5.into();
        odd["unreadable"] = serde_json::json!(["type", "timestamp"]);
        assert_eq!(shown(odd).trim_start(), "5            message (unreadable: type, timestamp) text");
        for bare in ["5", "\"text\"", "null", "{\"line\":\"text\"}", "no JSON"] {
            let line = Line::of("own", bare).to_string();
            assert!(line.contains("own"), "{bare}: {line}");
        }
        assert!(Line::of("own", "no JSON").to_string().ends_with("no JSON"));
    }
}
