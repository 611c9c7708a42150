//! ARCHITECTURE.md says which room may know which; this holds the code to it.

use std::fs;
use std::path::{Path, PathBuf};

/// A room, and the rooms that it may name.
const ROOMS: &[(&str, &[&str])] = &[
    ("event", &[]),
    ("cursor", &["event"]),
    ("sse", &["event", "cursor"]),
    ("error", &["event", "cursor", "sse"]),
    ("config", &["event", "sse", "telemetry"]),
    ("telemetry", &[]),
    ("backoff", &[]),
    ("shutdown", &[]),
    ("source", &["event", "cursor", "error", "sse", "config", "telemetry"]),
    ("hub", &["event", "cursor", "error", "sse", "config", "telemetry"]),
    ("tail", &["backoff", "event", "cursor", "error", "sse", "config", "telemetry", "shutdown", "source", "hub"]),
    ("replay", &["backoff", "event", "cursor", "error", "sse", "config", "telemetry", "source", "hub", "tail"]),
    ("delivery", &["event", "cursor", "error", "sse", "config", "telemetry", "shutdown", "hub", "replay"]),
    (
        "http",
        &[
            "event",
            "cursor",
            "error",
            "sse",
            "config",
            "telemetry",
            "shutdown",
            "source",
            "hub",
            "tail",
            "replay",
            "delivery",
        ],
    ),
];

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
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut met = std::collections::BTreeSet::new();
    for file in files(&src) {
        let inside = file.strip_prefix(&src).expect("inside");
        let room = inside.iter().next().and_then(|name| name.to_str()).expect("a name").trim_end_matches(".rs");
        if matches!(room, "main" | "lib" | "cli") {
            continue;
        }
        met.insert(room.to_string());
        let (_, may) = ROOMS.iter().find(|(name, _)| *name == room).unwrap_or_else(|| panic!("{room} is in no table"));
        for (number, line) in fs::read_to_string(&file).expect("a file").lines().enumerate() {
            for other in named(line) {
                assert!(
                    other == room || may.contains(&other),
                    "{}:{}: {room} may not know {other}; see ARCHITECTURE.md",
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
    for file in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = fs::read_to_string(&file).expect("a file");
        assert!(text.starts_with("//! "), "{} does not begin with what it is for", file.display());
    }
}
