//! The set-up of logs, and the words of commands for people. Both are best effort: a line that cannot be written is counted
//! and forgotten.
//!
//! While logs are set up, a thread of its own writes to standard error, which may be slow, full or closed: nobody who logs
//! waits for it. Invariant: logging neither blocks its caller, nor panics, nor ends the process; and that thread outlives
//! its own panics, so that one line may be lost by one, and no more.

use crate::supervise::fault;
use crate::telemetry;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::borrow::Cow;
use std::fmt::{self, Display, Write as _};
use std::io::{self, IsTerminal, Write};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;
use tracing::field::Field;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt as lines, registry, reload};

/// Target of the access log's lines, which are logged at info where `log.access` or a lower level asks for them.
pub const ACCESS: &str = "jobcast::access";

/// Target of the spans that are traced, which are no part of the log.
pub const TRACES: &str = "jobcast::spans";

/// The levels from which lines may be logged, from few lines to many.
pub const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// Lines that wait for standard error to take them; those beyond are lost.
const MAX_WAITING_LINES: usize = 4096;
/// Wait for the last lines at the end of the process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Form of the log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Pretty,
    Json,
}

/// A message to the thread that writes.
enum Message {
    /// A line, or several.
    Line(Vec<u8>),
    /// Everything before this is to be written; then this is answered.
    Flush(SyncSender<()>),
}

/// The form of the lines, once there is a log.
static FORM: OnceLock<LogFormat> = OnceLock::new();

/// The queue of the thread that writes, once there is one.
static QUEUE: OnceLock<SyncSender<Message>> = OnceLock::new();

/// Changes the filter of the log that is set up.
type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// A layer that hands spans on to somebody else than the log.
pub type Traces = Box<dyn Layer<Registry> + Send + Sync>;

/// The lines that are logged.
struct Logged {
    /// From this level on.
    level: Cow<'static, str>,
    /// With the access log.
    access: bool,
}

/// The lines that are logged at the moment.
static LOGGED: Mutex<Logged> = Mutex::new(Logged { level: Cow::Borrowed("info"), access: false });

/// Present once there is a log.
static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Waits, when it is dropped, until the lines so far are written, for a second at most.
#[must_use]
pub struct LogGuard(());

impl Drop for LogGuard {
    fn drop(&mut self) {
        let Some(queue) = QUEUE.get() else { return };
        let (done, is_done) = mpsc::sync_channel(1);
        // A full queue means that nobody reads.
        if queue.try_send(Message::Flush(done)).is_ok() {
            let _ = is_done.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

/// Sends logs to standard error, because standard output belongs to the command. Panics are logged as well, since the usual
/// hook would wait for a reader of standard error.
pub fn to_stderr(level: &str, access: bool, format: LogFormat, traces: Option<Traces>) -> LogGuard {
    let (queue, messages) = mpsc::sync_channel(MAX_WAITING_LINES);
    let writer = thread::Builder::new().name("log".into()).spawn(move || keep_writing(&messages, &mut io::stderr()));
    // Without the thread every line is lost, and counted.
    drop(writer);
    let _ = QUEUE.set(queue);
    let _ = FORM.set(format);
    *logged() = Logged { level: level.to_string().into(), access };
    let (filter, handle) = reload::Layer::new(filter(level, access));
    let _ = SET_FILTER.set(Box::new(move |filter| handle.reload(filter)));
    let layer = lines::layer().with_target(false).log_internal_errors(false);
    let layer = match format {
        LogFormat::Pretty => layer
            .with_writer(|| Lines(LogFormat::Pretty))
            .with_ansi(io::stderr().is_terminal())
            .fmt_fields(format::debug_fn(write_field).delimited(" "))
            .boxed(),
        LogFormat::Json => {
            layer.with_writer(|| Lines(LogFormat::Json)).json().flatten_event(true).with_current_span(false).boxed()
        }
    };
    let is_installed = registry().with(traces).with(layer.with_filter(filter)).with(AcceptErrors.only()).try_init();
    if let Err(error) = is_installed {
        say(format_args!("logs cannot be set up: {error}"));
    }
    std::panic::set_hook(Box::new(log_panic));
    LogGuard(())
}

/// Counts the connections that could not be accepted: the server library accepts them, and tells only the log.
struct AcceptErrors;

impl AcceptErrors {
    /// The layer, with a filter so that nobody makes other lines for it.
    fn only<S: Subscriber + for<'a> LookupSpan<'a>>(self) -> impl Layer<S> {
        let filter = filter_fn(|of| *of.level() == Level::ERROR && of.target() == "actix_server::accept");
        self.with_filter(filter.with_max_level_hint(LevelFilter::ERROR))
    }
}

impl<S: Subscriber> Layer<S> for AcceptErrors {
    fn on_event(&self, line: &Event<'_>, _: Context<'_, S>) {
        line.record(&mut |field: &Field, value: &dyn fmt::Debug| {
            if field.name() == "message" && format!("{value:?}").starts_with("Error accepting connection") {
                telemetry::ACCEPT_ERRORS.counter(&[]).increment(1);
            }
        });
    }
}

fn logged() -> MutexGuard<'static, Logged> {
    LOGGED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the level from which lines are logged.
pub fn level() -> String {
    logged().level.to_string()
}

/// Changes the level from which lines are logged, and whether the access log is.
pub fn set_level(level: &str, access: bool) {
    let Some(set) = SET_FILTER.get() else { return };
    match set(filter(level, access)) {
        Ok(()) => *logged() = Logged { level: level.to_string().into(), access },
        Err(error) => tracing::error!(%error, wanted = level, "the level of the log cannot be changed"),
    }
}

/// Changes the level alone, which the next [`set_level`] overrides. The change is said at whichever of the two levels shows more.
pub fn change_level(level: &str) {
    let (before, access) = (self::level(), logged().access);
    let rank = |level: &str| LEVELS.iter().position(|known| *known == level);
    let is_more_detailed = rank(level) > rank(&before);
    if is_more_detailed {
        set_level(level, access);
    }
    tracing::warn!(
        before,
        after = level,
        "the level of the log is changed by an operator, until the settings are read again"
    );
    if !is_more_detailed {
        set_level(level, access);
    }
}

/// Tells if the access log is written.
pub fn has_access_log() -> bool {
    tracing::enabled!(target: ACCESS, Level::INFO)
}

/// The server library's words on its workers, and on peers that do not talk HTTP, are of no use to operators. A level
/// below info is for Jobcast's own lines: a library that logs each change of a file would log each line of the log.
fn filter(level: &str, access: bool) -> EnvFilter {
    let (own, is_detailed) = match level {
        "debug" | "trace" => (format!("info,jobcast={level}"), true),
        other => (other.to_string(), false),
    };
    let access = if access || is_detailed { "info" } else { "off" };
    EnvFilter::try_new(format!("{own},{TRACES}=off,{ACCESS}={access},actix_server=warn,actix_http=off"))
        .unwrap_or_else(|_| "info".into())
}

/// Writes a line for the person who started a command to standard error, if it can be written. It may be several lines. Where
/// programs read the log, it is one of its lines.
pub fn say(line: impl Display) {
    if FORM.get() == Some(&LogFormat::Json) {
        return tracing::error!("{line}");
    }
    let lines: Vec<String> = line.to_string().split('\n').map(|line| Escaped(line).to_string()).collect();
    write_or_count(format!("jobcast: {}\n", lines.join("\n")).into_bytes());
}

/// A text as people may read it: characters that would drive their terminal, end a line, or turn the direction of what
/// follows are shown by their number, as `\u{1b}`.
pub struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| if misleads(c) { write!(f, "{}", c.escape_unicode()) } else { f.write_char(c) })
    }
}

/// Tells if a character does something to a terminal or to its neighbours: controls, ends of lines, and the marks of
/// bidirectional text (Unicode, UAX #9, section 2), which make text look as what it is not.
fn misleads(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}')
}

/// Writes a field of a line in the pretty form. Its text may be foreign.
fn write_field(to: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let text = format!("{value:?}");
    match field.name() {
        "message" => write!(to, "{}", Escaped(&text)),
        name => write!(to, "{name}={}", Escaped(&text)),
    }
}

/// Escapes in lines of JSON what JSON itself does not. Such characters stand in strings only, and have four digits.
pub fn escape_json(lines: &str) -> String {
    let escape = |c: char| if c != '\n' && misleads(c) { format!("\\u{:04x}", c as u32) } else { c.to_string() };
    lines.chars().map(escape).collect()
}

/// Puts the fields of a line's spans beside its own, so that every field stands in one place, whoever gave it. The line's own
/// count more than those of a span, and an inner span's more than an outer one's.
fn flat(line: &str) -> Cow<'_, str> {
    if !line.contains("\"spans\":[") {
        return line.into();
    }
    let Ok(mut fields) = serde_json::from_str::<Map<String, Value>>(line) else { return line.into() };
    let Some(Value::Array(spans)) = fields.remove("spans") else { return line.into() };
    for span in spans.into_iter().rev() {
        let Value::Object(of_span) = span else { continue };
        for (name, value) in of_span.into_iter().filter(|(name, _)| name != "name") {
            fields.entry(name).or_insert(value);
        }
    }
    format!("{}\n", Value::Object(fields)).into()
}

/// Hands lines to the thread that writes, or writes them where there is none.
fn write_or_count(line: Vec<u8>) {
    let Some(queue) = QUEUE.get() else {
        let _ = io::stderr().write_all(&line);
        return;
    };
    match queue.try_send(Message::Line(line)) {
        Ok(()) => {}
        Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => count_lost(),
    }
}

fn count_lost() {
    telemetry::LOG_LINES_LOST.counter(&[]).increment(1);
}

/// Writes what comes, until nobody can send any more. A line at which the writing panics is lost; the next are written.
fn keep_writing(messages: &Receiver<Message>, to: &mut impl Write) {
    while catch_unwind(AssertUnwindSafe(|| write_all(messages, to))).is_err() {
        count_lost();
    }
}

/// Writes what comes, until nobody can send any more. Lines that are refused are counted.
fn write_all(messages: &Receiver<Message>, to: &mut impl Write) {
    for message in messages {
        match message {
            Message::Line(line) => {
                fault::strike("log");
                if to.write_all(&line).is_err() {
                    count_lost();
                }
            }
            Message::Flush(done) => {
                let _ = to.flush();
                let _ = done.try_send(());
            }
        }
    }
}

/// A writer for the log's formatter, which gives each line in one call.
struct Lines(LogFormat);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        write_or_count(match self.0 {
            LogFormat::Pretty => line.to_vec(),
            LogFormat::Json => escape_json(&flat(&String::from_utf8_lossy(line))).into_bytes(),
        });
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let panic = info.payload_as_str().unwrap_or("(no message)");
    let current = thread::current();
    let thread = current.name().unwrap_or("(no name)");
    let at = info.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(thread, at, panic, "a thread panicked");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        backtrace.to_string().lines().for_each(|line| tracing::error!("{line}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes one write, and refuses the others.
    struct Full(Vec<u8>);

    impl Write for Full {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            if !self.0.is_empty() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0.extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_text_neither_forges_a_line_nor_drives_a_terminal() {
        let text = "a\nb\r\u{1b}[31mred\u{9b}1m\u{1b}]0;title\u{7}\u{202e}txt.exe\u{2066}\u{200f} \u{2028}é🦀\\n\t";
        let escaped = Escaped(text).to_string();
        assert_eq!(
            escaped,
            "a\\u{a}b\\u{d}\\u{1b}[31mred\\u{9b}1m\\u{1b}]0;title\\u{7}\\u{202e}txt.exe\\u{2066}\\u{200f} \\u{2028}é🦀\\n\\u{9}"
        );
        let line = serde_json::json!({ "error": text }).to_string();
        let escaped = escape_json(&format!("{line}\n"));
        assert!(!escaped.trim_end().chars().any(misleads), "{escaped}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).expect("JSON")["error"], text);
    }

    #[test]
    fn a_level_below_info_is_for_our_own_lines_and_not_for_those_of_a_library_that_sees_each_line_of_the_log() {
        let shown = |level: &str, access: bool| {
            tracing::subscriber::with_default(registry().with(filter(level, access)), || {
                [
                    tracing::enabled!(target: "jobcast::tail", Level::TRACE),
                    tracing::enabled!(target: "notify::inotify", Level::DEBUG),
                    tracing::enabled!(target: "notify::inotify", Level::INFO),
                    tracing::enabled!(target: ACCESS, Level::INFO),
                ]
            })
        };
        assert_eq!(shown("trace", false), [true, false, true, true]);
        assert_eq!(shown("info", true), [false, false, true, true]);
        assert_eq!(shown("info", false), [false, false, true, false]);
        assert_eq!(shown("error", false), [false; 4]);
    }

    #[test]
    fn the_fields_of_spans_stand_beside_those_of_their_line() {
        let line = r#"{"level":"INFO","job":"own","spans":[{"name":"request","job":"outer","request":"7"},{"name":"read","request":"8"}]}"#;
        let flat: Value = serde_json::from_str(&flat(line)).expect("JSON");
        assert_eq!(flat, serde_json::json!({ "level": "INFO", "job": "own", "request": "8" }));
    }

    /// Panics at the first write, and takes the others.
    struct Panicking(Option<Vec<u8>>);

    impl Write for Panicking {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let taken = self.0.as_mut().map(|taken| taken.extend_from_slice(line));
            self.0.get_or_insert_default();
            taken.expect("on purpose");
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_panic_of_the_thread_that_writes_costs_one_line() {
        let (queue, messages) = mpsc::sync_channel(3);
        for line in ["one", "two", "three"] {
            assert!(queue.try_send(Message::Line(line.into())).is_ok());
        }
        drop(queue);
        let mut panicking = Panicking(None);
        keep_writing(&messages, &mut panicking);
        assert_eq!(panicking.0.as_deref(), Some(&b"twothree"[..]));
    }

    #[test]
    fn a_full_disk_ends_neither_the_thread_that_writes_nor_the_wait_for_it() {
        let (queue, messages) = mpsc::sync_channel(3);
        let (done, is_done) = mpsc::sync_channel(1);
        for message in [Message::Line(b"one".into()), Message::Line(b"two".into()), Message::Flush(done)] {
            assert!(queue.try_send(message).is_ok());
        }
        drop(queue);
        let mut full = Full(Vec::new());
        write_all(&messages, &mut full);
        assert_eq!((full.0.as_slice(), is_done.try_recv()), (&b"one"[..], Ok(())));
    }
}
