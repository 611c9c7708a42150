//! Makes `config/jobcast.toml` and `docs/settings.md` from the doc comments on the fields and from the defaults, and holds
//! both to them. After a change: `UPDATE_DOCS=1 cargo test --lib settings_pages`.
//!
//! It reads the source text of the sections, because their form is plain and held by rustfmt. A macro around the structs
//! would also see the comments, but everybody who reads a section would have to read the macro first.

use super::Settings;
use std::collections::HashMap;
use std::path::Path;
use toml::{Table, Value};

/// Source text of the files that define settings.
const SOURCES: &[&str] = &[
    include_str!("mod.rs"),
    include_str!("sections.rs"),
    include_str!("auth.rs"),
    include_str!("traces.rs"),
    include_str!("source.rs"),
    include_str!("redis.rs"),
];

const TOML_HEADER: &str = "\
# Every setting of Jobcast with its default, as `docs/settings.md` lists them; made from the code, see src/config/docs.rs.
# Give the file by `jobcast serve --config jobcast.toml`; a variable lies over it:
# JOBCAST_SOURCE__SQLITE__PATH=/var/lib/jobcast.db is source.sqlite.path, lists are comma-separated.
# Durations as \"500ms\", \"15s\", \"5m\"; sizes as \"64KiB\", \"1MiB\".
";

const PAGE_HEADER: &str = "\
# Settings

Jobcast reads a TOML file (`jobcast serve --config jobcast.toml`; [config/jobcast.toml](../config/jobcast.toml) holds every
key with its default) and lays environment variables over it: `JOBCAST_SOURCE__SQLITE__PATH` is `source.sqlite.path`, and
lists are comma-separated. Durations are written as `500ms`, `15s`, `5m`, sizes as `64KiB`, `1MiB`. A secret may also come
from a file, which the variable with `_FILE` at its end names. `jobcast check` prints the settings in effect, with secrets
masked. This page is made from the code.
";

/// Columns of the comments in `config/jobcast.toml`.
const WIDTH: usize = 118;

/// A field of a section, as it stands in the source.
struct Field {
    /// Name in the settings.
    name: String,
    /// Name of its Rust type.
    kind: String,
    doc: String,
}

/// A group of settings, with the keys that are values.
struct Group {
    name: String,
    doc: String,
    /// Key, default in TOML, doc comment.
    keys: Vec<(String, String, String)>,
}

/// Fields of all structs, by the struct's name.
fn structs() -> HashMap<String, Vec<Field>> {
    let mut structs = HashMap::new();
    for source in SOURCES {
        let mut open: Option<(String, Vec<Field>)> = None;
        let (mut doc, mut rename, mut is_skipped) = (Vec::new(), None, false);
        for line in source.lines() {
            if let Some(name) = line.strip_prefix("pub struct ").and_then(|rest| rest.strip_suffix(" {")) {
                open = Some((name.to_string(), Vec::new()));
                doc.clear();
            } else if line == "}" {
                structs.extend(open.take());
            } else if let Some((_, fields)) = &mut open {
                let line = line.trim();
                if let Some(text) = line.strip_prefix("/// ") {
                    doc.push(text.to_string());
                } else if line == "#[serde(skip)]" {
                    is_skipped = true;
                } else if let Some(rest) = line.strip_prefix("#[serde(rename = \"") {
                    rename = rest.split('"').next().map(str::to_string);
                } else if let Some((name, kind)) = line.strip_prefix("pub ").and_then(|rest| rest.split_once(": ")) {
                    let name = rename.take().unwrap_or_else(|| name.to_string());
                    assert!(!doc.is_empty(), "the setting {name} has no doc comment");
                    if !std::mem::take(&mut is_skipped) {
                        fields.push(Field { name, kind: kind.trim_end_matches(',').into(), doc: doc.join(" ") });
                    }
                    doc.clear();
                }
            }
        }
    }
    structs
}

/// Adds the groups inside a struct, in the order of its fields.
fn collect(
    structs: &HashMap<String, Vec<Field>>,
    kind: &str,
    defaults: &Table,
    (name, doc): (&str, &str),
    groups: &mut Vec<Group>,
) {
    let fields = &structs[kind];
    let (inner, plain): (Vec<_>, Vec<_>) = fields.iter().partition(|field| structs.contains_key(&field.kind));
    let default = |field: &Field| {
        let value = defaults.get(&field.name);
        value.unwrap_or_else(|| panic!("{name}.{} has no default", field.name)).to_string()
    };
    let keys = plain.iter().map(|field| (field.name.clone(), default(field), field.doc.clone()));
    groups.push(Group { name: name.into(), doc: doc.into(), keys: keys.collect() });
    for field in inner {
        let Value::Table(defaults) = &defaults[&field.name] else { panic!("{} is no group", field.name) };
        let name = if name.is_empty() { field.name.clone() } else { format!("{name}.{}", field.name) };
        collect(structs, &field.kind, defaults, (&name, &field.doc), groups);
    }
}

fn groups() -> Vec<Group> {
    let defaults = Table::try_from(Settings::default()).expect("defaults");
    let mut groups = Vec::new();
    collect(&structs(), "Settings", &defaults, ("", ""), &mut groups);
    groups.retain(|group| !group.keys.is_empty());
    groups
}

/// A text as lines of a TOML comment.
fn comment(text: &str) -> String {
    let mut lines = String::from("#");
    let mut width = 1;
    for word in text.split(' ') {
        if width + 1 + word.len() > WIDTH {
            lines.push_str("\n#");
            width = 1;
        }
        lines.push(' ');
        lines.push_str(word);
        width += 1 + word.len();
    }
    lines + "\n"
}

fn toml_file() -> String {
    let mut text = TOML_HEADER.to_string();
    for Group { name, doc, keys } in groups() {
        text += &format!("\n{}[{name}]\n", comment(&doc));
        for (key, default, doc) in keys {
            text += &format!("{}{key} = {default}\n", comment(&doc));
        }
    }
    text
}

fn page() -> String {
    let mut text = PAGE_HEADER.to_string();
    for Group { name, doc, keys } in groups() {
        text += &format!("\n## {name}\n\n{doc}\n\n| key | default | meaning |\n|---|---|---|\n");
        for (key, default, doc) in keys {
            text += &format!("| `{key}` | `{default}` | {} |\n", doc.replace('|', "\\|"));
        }
    }
    text
}

#[test]
fn settings_pages_say_what_the_fields_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (file, text) in [("config/jobcast.toml", toml_file()), ("docs/settings.md", page())] {
        let file = root.join(file);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&file, &text).expect("a file");
        }
        let held = std::fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(held, text, "{} is old: UPDATE_DOCS=1 cargo test --lib settings_pages", file.display());
    }
}
