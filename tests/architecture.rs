//! Checks that the code agrees with ARCHITECTURE.md: which room may use which, and how the files read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A room, and the rooms that it may use.
const ROOMS: &[(&str, &[&str])] = &[
    ("event", &[]),
    ("cursor", &["event"]),
    ("topic", &["event", "cursor", "telemetry"]),
    ("sse", &["event", "cursor"]),
    ("error", &["event"]),
    ("config", &["event", "sse", "logging"]),
    ("telemetry", &[]),
    ("backoff", &[]),
    ("shutdown", &[]),
    ("systemd", &["shutdown", "supervise"]),
    ("outbound", &[]),
    ("logging", &["telemetry", "supervise"]),
    ("traces", &["config", "logging", "outbound"]),
    ("supervise", &["shutdown"]),
    ("single_flight", &["supervise"]),
    ("source", &["event", "cursor", "error", "sse", "backoff", "config", "telemetry", "supervise", "single_flight"]),
    ("hub", &["event", "cursor", "topic", "error", "sse", "config", "telemetry"]),
    (
        "tail",
        &[
            "backoff",
            "event",
            "cursor",
            "topic",
            "error",
            "sse",
            "config",
            "telemetry",
            "traces",
            "shutdown",
            "source",
            "hub",
        ],
    ),
    (
        "replay",
        &[
            "backoff",
            "event",
            "cursor",
            "topic",
            "error",
            "sse",
            "traces",
            "telemetry",
            "config",
            "supervise",
            "single_flight",
            "source",
            "hub",
            "tail",
        ],
    ),
    ("auth", &["event", "config", "telemetry", "shutdown", "supervise", "outbound"]),
    (
        "delivery",
        &[
            "event",
            "cursor",
            "topic",
            "error",
            "sse",
            "config",
            "telemetry",
            "logging",
            "shutdown",
            "supervise",
            "hub",
            "replay",
            "auth",
        ],
    ),
    (
        "http",
        &[
            "event",
            "cursor",
            "topic",
            "error",
            "sse",
            "config",
            "traces",
            "telemetry",
            "logging",
            "shutdown",
            "supervise",
            "source",
            "hub",
            "tail",
            "replay",
            "auth",
            "delivery",
        ],
    ),
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(at: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(at).expect("a directory").map(|entry| entry.expect("an entry").path());
    let nested = entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] });
    nested.filter(|path| path.extension().is_some_and(|end| end == "rs")).collect()
}

/// `use crate::x::…`, `crate::x::…`, and `use crate::{x, y}`.
fn named(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for rest in line.split("crate::").skip(1) {
        let group = rest.strip_prefix('{').map(|group| group.split('}').next().unwrap_or_default());
        for one in group.unwrap_or(rest).split(", ") {
            found.push(one.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default());
            if group.is_none() {
                break;
            }
        }
    }
    found
}

#[test]
fn nothing_points_back() {
    let src = source();
    let mut met = BTreeSet::new();
    for file in files(&src) {
        let inside = file.strip_prefix(&src).expect("inside");
        let room = inside.iter().next().and_then(|name| name.to_str()).expect("a name").trim_end_matches(".rs");
        if ABOVE_ALL.contains(&room) {
            continue;
        }
        met.insert(room.to_string());
        let (_, may) = ROOMS.iter().find(|(name, _)| *name == room).unwrap_or_else(|| panic!("{room} is in no table"));
        for (number, line) in fs::read_to_string(&file).expect("a file").lines().enumerate() {
            for other in named(line) {
                assert!(
                    other == room || may.contains(&other),
                    "{}:{}: {room} may not use {other}; see ARCHITECTURE.md",
                    inside.display(),
                    number + 1
                );
            }
        }
    }
    assert_eq!(met.len(), ROOMS.len(), "a room of the table is gone: {met:?}");
}

#[test]
fn every_file_says_first_why_it_exists() {
    for file in files(&source()) {
        let text = fs::read_to_string(&file).expect("a file");
        assert!(text.starts_with("//! "), "{} does not begin with what it is for", file.display());
    }
}

// ---- how it reads

/// Words that leave out what the sentence is about.
const NO_SUBJECT: [&str; 11] =
    ["What", "Who", "Whether", "That", "Of", "Where", "How", "So", "Which", "Whoever", "Whatever"];

/// The lines, from 1, on which a doc comment begins with one of [`NO_SUBJECT`].
fn comments_without_subject(text: &str) -> Vec<(usize, &str)> {
    let doc = |line: &'_ str| line.trim_start().starts_with("///") || line.trim_start().starts_with("//!");
    let mut found = Vec::new();
    let mut is_inside = false;
    for (number, line) in (1..).zip(text.lines()) {
        let is_doc = doc(line);
        let said = line.trim_start().trim_start_matches("///").trim_start_matches("//!");
        let first = said.trim_start().split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        if is_doc && !is_inside && NO_SUBJECT.contains(&first) {
            found.push((number, line.trim()));
        }
        is_inside = is_doc;
    }
    found
}

#[test]
fn a_doc_comment_begins_with_its_subject_or_verb() {
    let sample = "//! Where events live.\n//! What follows is a second line.\n\n/// Room of the newest events.\n/// Who came, \
                  goes.\npub struct A {\n    /// What came.\n    a: u8,\n    /// Whatsoever.\n    b: u8, // Who?\n}\n\n    ///That\n";
    let found: Vec<usize> = comments_without_subject(sample).into_iter().map(|(line, _)| line).collect();
    assert_eq!(found, [1, 7, 13]);

    let src = source();
    let mut wrong = Vec::new();
    for file in files(&src) {
        let text = fs::read_to_string(&file).expect("a file");
        for (line, said) in comments_without_subject(&text) {
            wrong.push(format!("src/{}:{line}: {said}", file.strip_prefix(&src).expect("inside").display()));
        }
    }
    wrong.sort();
    assert!(wrong.is_empty(), "{} doc comments begin with no subject or verb:\n{}", wrong.len(), wrong.join("\n"));
}

const MOST_LINES: usize = 500;
/// These hold data.
const MAY_BE_LONGER: [&str; 1] = ["cli/demo/runner/scripts.rs"];

/// Lines of a file but those of its tests, which stand at its end.
fn lines_without_tests(text: &str) -> usize {
    let is_test_module = |rest: &str| rest.trim_start().starts_with("mod ");
    let tests = text.match_indices("\n#[cfg(test)]\n").find(|(at, mark)| is_test_module(&text[at + mark.len()..]));
    text[..tests.map_or(text.len(), |(at, _)| at)].lines().count()
}

#[test]
fn no_file_has_more_than_500_lines_but_data() {
    let sample = "a\n#[cfg(test)]\nfn b() {}\nc\n#[cfg(test)]\nmod tests {\nd\n}\n";
    assert_eq!((lines_without_tests(sample), lines_without_tests("a\nb\n")), (4, 2));

    let src = source();
    for data in MAY_BE_LONGER {
        assert!(src.join(data).exists(), "{data} is gone");
    }
    let mut long = Vec::new();
    for file in files(&src) {
        let inside = file.strip_prefix(&src).expect("inside").display().to_string();
        let lines = lines_without_tests(&fs::read_to_string(&file).expect("a file"));
        if lines > MOST_LINES && !MAY_BE_LONGER.contains(&&*inside) {
            long.push(format!("src/{inside}: {lines} lines"));
        }
    }
    assert!(long.is_empty(), "longer than {MOST_LINES} lines without their tests:\n{}", long.join("\n"));
}

// ---- tests that depend on no luck

/// Tells if a line of a test asserts that the log has something by now. A thread of its own writes the log, so that a test
/// has to wait: `Daemon::logs` and `Daemon::logs_times` do.
fn expects_the_log_at_once(line: &str) -> bool {
    let asserts_it_has = |rest: &str| !rest.starts_with('!') && rest.contains(".log().contains(");
    line.contains(".log().matches(") || line.trim_start().strip_prefix("assert!(").is_some_and(asserts_it_has)
}

#[test]
fn no_test_expects_a_line_of_the_log_before_it_is_written() {
    assert!(expects_the_log_at_once("    assert!(daemon.log().contains(\"x\"), \"{}\", daemon.log());"));
    assert!(expects_the_log_at_once("let times = daemon.log().matches(\"x\").count();"));
    assert!(!expects_the_log_at_once("assert!(!daemon.log().contains(\"x\"), \"{}\", daemon.log());"));

    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/blackbox");
    let mut wrong = Vec::new();
    for file in files(&tests) {
        let text = fs::read_to_string(&file).expect("a file");
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| expects_the_log_at_once(line)) {
            wrong.push(format!("{}:{number}: {}", file.display(), line.trim()));
        }
    }
    assert!(wrong.is_empty(), "these do not wait for the line:\n{}", wrong.join("\n"));
}

// ---- the map

/// Rooms that put the others together: they may use all, and nobody uses them.
const ABOVE_ALL: [&str; 3] = ["main", "lib", "cli"];

/// The names in backticks, without a folder's slash or a file's ending.
fn in_backticks(cell: &str) -> BTreeSet<String> {
    let names = cell.split('`').skip(1).step_by(2).flat_map(str::split_whitespace);
    names.map(|name| name.trim_end_matches('/').trim_end_matches(".rs").trim_end_matches(',').to_string()).collect()
}

/// Each room of the table `| room | … | may use |`, with the rooms that it may use.
fn table(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect()
    };
    let mut lines = text.lines().skip_while(|line| {
        let cells = cells(line);
        cells.first().map(String::as_str) != Some("room") || cells.last().map(String::as_str) != Some("may use")
    });
    let mut rooms = BTreeMap::new();
    for line in lines.by_ref().skip(2).take_while(|line| line.trim_start().starts_with('|')) {
        let cells = cells(line);
        let (names, may_use) = (in_backticks(&cells[0]), in_backticks(cells.last().expect("a cell")));
        for name in names {
            rooms.insert(name, may_use.clone());
        }
    }
    rooms
}

#[test]
fn the_table_of_rooms_in_architecture_md_is_the_one_that_is_enforced() {
    let sample = "| a | b |\n|---|---|\n| `x` | y |\n\n| room | holds | may use |\n|---|---|---|\n| `a.rs b/` | `z` | nothing |\n\
                  | `c` | x | `a`, `b` |\n\nafter `all`\n";
    let set = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>();
    assert_eq!(table(sample), [("a", &[][..]), ("b", &[]), ("c", &["a", "b"])].map(|(a, b)| (a.into(), set(b))).into());

    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).expect("a file");
    let mut documented = table(&text);
    documented.retain(|room, _| !ABOVE_ALL.contains(&room.as_str()));
    let enforced: BTreeMap<_, _> = ROOMS.iter().map(|(room, may_use)| (room.to_string(), set(may_use))).collect();
    let rooms = |table: &BTreeMap<String, BTreeSet<String>>| table.keys().cloned().collect::<Vec<_>>();
    assert_eq!(rooms(&documented), rooms(&enforced), "ARCHITECTURE.md (left) and ROOMS (right) name the same rooms");
    for (room, may_use) in &enforced {
        assert_eq!(&documented[room], may_use, "what `{room}` may use, in ARCHITECTURE.md (left) and in ROOMS (right)");
    }
}
