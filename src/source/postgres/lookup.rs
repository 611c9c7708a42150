//! Looking up the columns that the settings name, and the names that were meant where there is no such column.

use super::problem::{SchemaProblem, set};
use super::tables::{Column, JobTable, Relation};
use crate::source::names::{nearest_name, plain};

/// The columns of one relation. Notes everything that is wrong with them, so that an operator sees it all at once.
pub struct Lookup<'a> {
    pub relation: &'a Relation,
    problems: Vec<SchemaProblem>,
}

impl<'a> Lookup<'a> {
    pub fn new(relation: &'a Relation) -> Self {
        Self { relation, problems: Vec::new() }
    }

    /// Finds the column that the `setting` names. `None` where the name is empty, and where there is no such column, which
    /// is noted.
    pub fn named(&mut self, setting: &'static str, name: &str) -> Option<&'a Column> {
        let found = self.relation.find(name);
        if found.is_none() && !name.is_empty() {
            let mend = self.mend(setting, name);
            self.note_missing(setting, name, mend);
        }
        found
    }

    /// Finds each column of a list, and notes those that are missing with the list as it was probably meant.
    pub fn named_list(&mut self, setting: &'static str, names: &[String]) -> Vec<&'a Column> {
        let meant = |name: &String| {
            let is_there = self.relation.find(name).is_some();
            if is_there { Some(name.clone()) } else { self.nearest(setting, name) }
        };
        let meant: Vec<String> = names.iter().filter_map(meant).collect();
        let (found, missing): (Vec<_>, Vec<_>) = names.iter().partition(|name| self.relation.find(name).is_some());
        for name in missing {
            self.note_missing(setting, name, set(setting, meant.clone(), &self.columns()));
        }
        found.into_iter().filter_map(|name| self.relation.find(name)).collect()
    }

    fn note_missing(&mut self, setting: &'static str, name: &str, mend: String) {
        let (table, name) = (self.relation.name.clone(), name.into());
        self.note(SchemaProblem::MissingColumn { setting, table, name, mend });
    }

    fn mend(&self, setting: &str, name: &str) -> String {
        let must_be_there = setting.starts_with(JobTable::SETTING) || setting == "source.postgres.columns.job_id";
        let columns = self.columns();
        match self.nearest(setting, name) {
            Some(name) => set(setting, name, &columns),
            None if must_be_there => format!("name the column by {setting}; {columns}"),
            None => set(setting, "", &format!("none; {columns}")),
        }
    }

    fn columns(&self) -> String {
        let names: Vec<&str> = self.relation.columns.iter().map(|column| &*column.name).collect();
        format!("there are {}", names.join(", "))
    }

    /// The same for a column that may be missing where the setting has its `usual` name.
    pub fn named_unless(&mut self, usual: &str, setting: &'static str, name: &str) -> Option<&'a Column> {
        if name == usual { self.relation.find(name) } else { self.named(setting, name) }
    }

    pub fn note(&mut self, problem: SchemaProblem) {
        self.problems.push(problem);
    }

    /// Returns the value, or everything that was noted meanwhile.
    pub fn finish<T>(self, value: T) -> Result<T, Vec<SchemaProblem>> {
        if self.problems.is_empty() { Ok(value) } else { Err(self.problems) }
    }

    /// Returns the column that was probably meant.
    pub fn nearest(&self, setting: &str, name: &str) -> Option<String> {
        let fitting: Vec<&Column> = self.relation.columns.iter().filter(|column| fits(setting, column)).collect();
        if let Some(spelled) = nearest_name(name, fitting.iter().map(|column| &*column.name)) {
            return Some(spelled.into());
        }
        let named = |usual: &&str| fitting.iter().find(|column| plain(&column.name) == plain(usual));
        let usual = usual_names(setting).iter().find_map(named);
        let mut calendar = fitting.iter().filter(|column| column.is_calendar() && setting.ends_with(".timestamp"));
        let only = calendar.next().filter(|_| calendar.next().is_none());
        usual.or(only).map(|column| column.name.clone())
    }
}

/// Returns true for a column that can have the meaning of the setting, by its type.
fn fits(setting: &str, column: &Column) -> bool {
    match setting.rsplit('.').next() {
        Some("timestamp") => column.is_calendar() || column.is_number() && column.kind != "smallint",
        Some("seq") => column.is_whole_number(),
        Some("xid") => column.kind == "xid8",
        _ => column.kind != "xid",
    }
}

/// Names that such a column has in many tables.
fn usual_names(setting: &str) -> &'static [&'static str] {
    match setting {
        "source.postgres.columns.timestamp" => &[
            "created_at",
            "created",
            "occurred_at",
            "inserted_at",
            "event_timestamp",
            "event_time",
            "time",
            "ts",
            "at",
        ],
        "source.postgres.columns.type" => &["event_type", "event", "kind", "level", "name"],
        "source.postgres.columns.payload" => &["data", "body", "message", "output", "content", "value", "line"],
        "source.postgres.columns.id" => &["event_id", "uuid", "key", "uid"],
        "source.postgres.columns.job_id" => {
            &["run_id", "build_id", "execution_id", "flow_run_id", "pipeline_id", "workflow_id", "task_id", "job"]
        }
        "source.postgres.job_columns.status" => &["state", "job_status", "phase", "result"],
        "source.postgres.job_columns.id" => &["job_id", "uuid", "key", "run_id"],
        _ => &[],
    }
}
