//! Reasons why tables cannot be tailed as they are, each with its mend.

use super::tables::JobTable;

/// A table or a setting that has to be mended first.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SchemaProblem {
    #[error("there is no table or view {name}, or it may not be seen")]
    MissingRelation { setting: &'static str, name: String },
    #[error("{table} has no column {name}")]
    MissingColumn {
        /// The setting that names it.
        setting: &'static str,
        table: String,
        name: String,
        /// A line of the settings file.
        mend: String,
    },
    #[error("the view {table} does not hand on the transaction that wrote each row")]
    HiddenXmin { table: String },
    #[error("{table} is a materialized view or a foreign table: its rows do not tell which transaction wrote them")]
    ForeignRows { table: String },
    #[error("nothing tells the events of {table} apart")]
    AmbiguousEvents { table: String, nearest: Option<String> },
    #[error("the column {name} of type {kind} is no time")]
    UnusableTime { name: String, kind: String, nearest: Option<String> },
    #[error("the column {name} of type {kind} is no number that orders events")]
    UnusableSeq { name: String, kind: String, nearest: Option<String> },
    #[error("the column {name} of type {kind} does not tell transactions")]
    UnusableXid { name: String, kind: String },
    #[error("the server knows no time zone {name}")]
    UnknownZone { name: String },
}

impl SchemaProblem {
    /// The mend in words, where the tables are not at hand.
    pub fn help(&self) -> &'static str {
        match self {
            Self::MissingRelation { .. } => "set its name, or grant the right to see it",
            Self::MissingColumn { setting, .. } if setting.starts_with(JobTable::SETTING) => {
                "name the columns by source.postgres.job_columns"
            }
            Self::MissingColumn { .. } => "name the columns by source.postgres.columns; \"\" is none",
            Self::HiddenXmin { .. } => {
                "add the event row's own transaction to the view: SELECT e.xmin AS xmin, … FROM the events e"
            }
            Self::ForeignRows { .. } => "name the table, or a plain view of it",
            Self::AmbiguousEvents { .. } => {
                "name a column by source.postgres.columns.id or source.postgres.columns.seq"
            }
            Self::UnusableSeq { .. } => {
                "name a column of type bigint, integer or smallint by source.postgres.columns.seq, or none by \"\""
            }
            Self::UnusableXid { .. } => "name a column of type xid8 by source.postgres.columns.xid, or none by \"\"",
            Self::UnknownZone { .. } => "name one such as Europe/Paris or +02:00 by source.postgres.timestamp_zone",
            Self::UnusableTime { .. } => {
                "name a column of times or numbers by source.postgres.columns.timestamp, or none by \"\""
            }
        }
    }

    /// The mend as a line of the settings file, as far as one is known.
    pub fn mend(&self) -> String {
        match self {
            Self::MissingColumn { mend, .. } => mend.clone(),
            Self::AmbiguousEvents { nearest: Some(name), .. } => set("source.postgres.columns.id", name.as_str(), ""),
            Self::UnusableTime { nearest, .. } => or_none("source.postgres.columns.timestamp", nearest.as_deref()),
            Self::UnusableSeq { nearest, .. } => or_none("source.postgres.columns.seq", nearest.as_deref()),
            Self::UnusableXid { .. } => {
                set("source.postgres.columns.xid", "", "none; `jobcast schema postgres --migrate` has one of type xid8")
            }
            Self::UnknownZone { .. } => {
                set("source.postgres.timestamp_zone", "UTC", "or one of SELECT name FROM pg_timezone_names")
            }
            other => other.help().into(),
        }
    }
}

/// A line of the settings file, with a remark.
pub fn set(setting: &str, value: impl Into<toml::Value>, remark: &str) -> String {
    let value: toml::Value = value.into();
    let line = format!("{setting} = {value}");
    if remark.is_empty() { line } else { format!("{line}  # {remark}") }
}

fn or_none(setting: &str, name: Option<&str>) -> String {
    match name {
        Some(name) => set(setting, name, "or \"\" for none"),
        None => set(setting, "", "none"),
    }
}
