//! Findings of `jobcast check`.

use crate::error::SourceError;
use serde::Serialize;

/// The weight of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be, or worth knowing.
    Fine,
    /// Nothing is wrong, and something could be faster or surer. The table may be somebody else's.
    Improvable,
    /// Events or ends would be missing, or nothing works at all.
    Wrong,
}

/// One line of `jobcast check`.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub grade: Grade,
    pub summary: String,
    /// Lines to paste: SQL statements, each with its semicolon, or lines of the settings file. A sentence where there is
    /// nothing to paste, and empty where nothing is to be done.
    pub mend: String,
}

impl Finding {
    pub fn fine(summary: impl Into<String>) -> Self {
        Self { grade: Grade::Fine, summary: summary.into(), mend: String::new() }
    }

    /// A finding that makes no exit code: the mend is the operator's choice.
    pub fn improvable(summary: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { grade: Grade::Improvable, summary: summary.into(), mend: mend.into() }
    }

    pub fn problem(summary: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { grade: Grade::Wrong, summary: summary.into(), mend: mend.into() }
    }

    pub fn is_problem(&self) -> bool {
        self.grade == Grade::Wrong
    }
}

impl From<SourceError> for Finding {
    fn from(error: SourceError) -> Self {
        Self::problem(format!("{}: {}", error.operation, error.cause), error.advice())
    }
}
