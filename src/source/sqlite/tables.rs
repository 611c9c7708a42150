//! The event and job tables of a file, mapped by the settings. The statements on them are in [`super::sql`].

use super::catalogue::{Column, Relation, RelationKind, RowNumbers, literal, quote};
use super::ids::IdColumn;
use super::values::{PayloadForm, Times};
use crate::config::{self, Field, FinalStatuses, PayloadColumns};
use crate::event::JobStatus;
use crate::source::names::nearest_name;
use std::collections::BTreeMap;
use std::fmt;

/// The tables of a file, and the meaning of what stands in them.
#[derive(Clone, Debug)]
pub struct Tables {
    pub events: EventTable,
    pub jobs: Option<JobTable>,
    /// They are Jobcast's own, which number the changes of status.
    pub is_own: bool,
    pub statuses: FinalStatuses,
    pub final_types: FinalStatuses,
    pub types: BTreeMap<String, String>,
}

/// The event table. In statements its row is `e`.
#[derive(Clone, Debug)]
pub struct EventTable {
    /// Quoted.
    pub name: String,
    /// The name as a text.
    pub name_text: String,
    /// Number that orders a job's rows, with its row.
    pub number: String,
    pub numbering: Numbering,
    pub job: IdColumn,
    pub id: IdColumn,
    /// Expressions for the parts of an event, in the order in which [`super::rows`] reads them.
    pub parts: [String; 6],
    /// Expression that tells two rows apart that have had the same number. `None`: the id does.
    pub identity: Option<String>,
    /// Type of an event, as it is stored.
    pub kind: String,
    pub payload: PayloadForm,
    pub times: Times,
    /// An index leads to the rows of a job.
    pub is_indexed: bool,
}

/// The reach of the numbers that order events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbering {
    /// One number for all rows of the table, in the order of writing.
    Table(RowNumbers),
    /// A number that grows within each job.
    Job,
}

impl Numbering {
    /// Tells whether SQLite may give a number again that a deleted row had.
    pub fn gives_again(self) -> bool {
        match self {
            Self::Table(RowNumbers::Reused | RowNumbers::Renumbered) => true,
            Self::Table(RowNumbers::Autoincrement) | Self::Job => false,
        }
    }
}

/// The job table. In statements its row is `j`.
#[derive(Clone, Debug)]
pub struct JobTable {
    /// Quoted.
    pub name: String,
    pub id: IdColumn,
    /// The status, with its row.
    pub status: String,
}

/// A reason why tables cannot be read as the settings say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchemaProblem {
    MissingTable { setting: &'static str, name: String, nearest: Option<String> },
    MissingColumn { setting: &'static str, table: String, name: String, nearest: Option<String> },
    NoNumber { table: String, kind: &'static str },
    NoIntegers { table: String, column: String, found: String },
    UnknownZone { name: String },
}

impl fmt::Display for SchemaProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingTable { name, .. } => write!(f, "there is no table or view {name}"),
            Self::MissingColumn { table, name, .. } => write!(f, "{table} has no column {name}"),
            Self::NoNumber { table, kind } => {
                write!(f, "{table} is {kind}: nothing numbers its rows, so nothing tells which ones are new")
            }
            Self::NoIntegers { table, column, found } => {
                write!(f, "{table}.{column} is to order the rows of each job, and holds no integers ({found})")
            }
            Self::UnknownZone { name } => write!(f, "this machine knows no time zone {name}"),
        }
    }
}

impl SchemaProblem {
    /// The line of the settings file that mends it, or a sentence where there is none to paste.
    pub fn mend(&self) -> String {
        match self {
            Self::MissingTable { setting, nearest: Some(nearest), .. }
            | Self::MissingColumn { setting, nearest: Some(nearest), .. } => format!("{setting} = {nearest:?}"),
            Self::MissingTable { setting, .. } if *setting == JOBS => format!("{setting} = \"\"  # none"),
            Self::MissingColumn { setting, .. }
                if setting.starts_with("source.sqlite.columns.") && !setting.ends_with(".job_id") =>
            {
                format!("{setting} = \"\"  # none")
            }
            Self::UnknownZone { .. } => {
                "source.sqlite.timestamp_zone = \"UTC\"  # or such as Europe/Paris or +02:00".into()
            }
            other => other.help(),
        }
    }

    /// The mend in words, for the log.
    pub fn help(&self) -> String {
        match self {
            Self::MissingTable { setting, nearest: Some(nearest), .. }
            | Self::MissingColumn { setting, nearest: Some(nearest), .. } => {
                format!("did you mean {nearest}? {setting} = {nearest:?}")
            }
            Self::MissingTable { setting, .. } if setting.ends_with("jobs_table") => {
                format!("name the table of the jobs by {setting}; \"\" is none")
            }
            Self::MissingTable { setting, .. } => format!(
                "name the table of the events by {setting}, or give another file by source.sqlite.path; \
                 source.sqlite.create = \"always\" makes Jobcast's own tables in this one"
            ),
            Self::MissingColumn { setting, .. } => format!("name the column by {setting}; \"\" is none"),
            Self::NoNumber { .. } => "name a column that grows within each job by source.sqlite.columns.seq; \
                 a view hands on the number of the event's row: SELECT e.rowid AS seq, …"
                .into(),
            Self::NoIntegers { .. } => {
                "name a column of integers that grow within each job, and never repeat in it, by \
                 source.sqlite.columns.seq; a view hands on the number of the event's row: SELECT e.rowid AS seq, …"
                    .into()
            }
            Self::UnknownZone { .. } => {
                "name one such as Europe/Paris, whose data comes with the package tzdata, or an offset such as +02:00, \
                 by source.sqlite.timestamp_zone"
                    .into()
            }
        }
    }
}

const EVENTS: &str = "source.sqlite.events_table";
const JOBS: &str = "source.sqlite.jobs_table";

impl Tables {
    /// Tells if every new event and every change of a status has a number in the order of commits.
    pub fn numbers_all_changes(&self) -> bool {
        let are_events_numbered = self.events.numbering == Numbering::Table(RowNumbers::Autoincrement);
        self.is_own || are_events_numbered && self.jobs.is_none()
    }

    /// Resolves the names in the settings, or says everything that is wrong with them. `names` are those of all tables.
    pub fn resolve(
        settings: &config::Sqlite,
        events: Option<&Relation>,
        jobs: Option<&Relation>,
        names: &[String],
        is_own: bool,
    ) -> Result<Self, Vec<SchemaProblem>> {
        let mut problems = Vec::new();
        let missing = |setting: &'static str, name: &str| SchemaProblem::MissingTable {
            setting,
            name: name.into(),
            nearest: nearest_name(name, names.iter().map(String::as_str)).map(String::from),
        };
        let mut tables = None;
        match events {
            Some(events) => tables = EventTable::resolve(settings, events, is_own, &mut problems),
            None => problems.push(missing(EVENTS, &settings.events_table)),
        }
        let jobs = match jobs {
            Some(jobs) => JobTable::resolve(settings, jobs, is_own, &mut problems),
            None => {
                if !settings.jobs_table.is_empty() {
                    problems.push(missing(JOBS, &settings.jobs_table));
                }
                None
            }
        };
        match tables {
            Some(events) if problems.is_empty() => Ok(Self {
                events,
                jobs,
                is_own,
                statuses: settings.statuses.clone(),
                final_types: settings.final_types.clone(),
                types: settings.types.clone(),
            }),
            _ => Err(problems),
        }
    }
}

impl Tables {
    /// Returns the name of a stored type.
    pub fn name_of<'a>(&'a self, stored: &'a str) -> &'a str {
        self.types.get(stored).map_or(stored, String::as_str)
    }

    /// Returns the status that an event of this name gives its job, where there is no table of jobs.
    pub fn final_type(&self, name: &str) -> Option<JobStatus> {
        if self.jobs.is_some() { None } else { self.final_types.find(name) }
    }

    /// Returns the types that end a job, as they are stored.
    pub fn stored_final_types(&self) -> Vec<&str> {
        let named = self.types.iter().filter(|(_, name)| self.final_types.find(name).is_some());
        let own = self.final_types.all().filter(|name| !self.types.contains_key(*name));
        named.map(|(stored, _)| stored.as_str()).chain(own).collect()
    }
}

/// Looks up the columns that the settings name, and notes those that are missing.
struct Columns<'a> {
    relation: &'a Relation,
    problems: &'a mut Vec<SchemaProblem>,
}

impl<'a> Columns<'a> {
    /// Finds a column that must be there; `None` where the name is empty or it is missing.
    fn find(&mut self, setting: &'static str, name: &str) -> Option<&'a Column> {
        let found = self.relation.find(name);
        if found.is_none() && !name.is_empty() {
            let names = self.relation.columns.iter().map(|column| column.name.as_str());
            self.problems.push(SchemaProblem::MissingColumn {
                setting,
                table: self.relation.name.clone(),
                name: name.into(),
                nearest: nearest_name(name, names).map(String::from),
            });
        }
        found
    }

    /// The same for a column that may be missing where only the defaults name it.
    fn find_unless(&mut self, usual: &str, setting: &'static str, name: &str) -> Option<&'a Column> {
        if name == usual { self.relation.find(name) } else { self.find(setting, name) }
    }

    fn field(&mut self, usual: Option<&Field>, setting: &'static str, field: &Field) -> Option<String> {
        match field {
            Field::Absent => None,
            Field::Constant(text) => Some(literal(text)),
            Field::Column(name) if usual == Some(field) => self.relation.find(name).map(of_event),
            Field::Column(name) => self.find(setting, name).map(of_event),
        }
    }
}

fn of_event(column: &Column) -> String {
    format!("e.{}", quote(&column.name))
}

impl EventTable {
    fn resolve(
        settings: &config::Sqlite,
        relation: &Relation,
        is_own: bool,
        problems: &mut Vec<SchemaProblem>,
    ) -> Option<Self> {
        let (names, usual) = (&settings.columns, config::Columns::default());
        let times = Times::new((!is_own).then_some(settings.timestamp_unit), &settings.timestamp_zone);
        if times.is_none() {
            problems.push(SchemaProblem::UnknownZone { name: settings.timestamp_zone.clone() });
        }
        let mut columns = Columns { relation, problems };
        let seq = columns.find_unless(&usual.seq, "source.sqlite.columns.seq", &names.seq);
        let number = number_of(relation, seq, columns.problems);
        let job = columns.find("source.sqlite.columns.job_id", &names.job_id);
        let id = columns.find("source.sqlite.columns.id", &names.id);
        let step = columns.field(Some(&usual.step_id), "source.sqlite.columns.step_id", &names.step_id);
        let kind = columns.field(None, "source.sqlite.columns.type", &names.kind);
        let time = columns.find("source.sqlite.columns.timestamp", &names.timestamp).map(of_event);
        let actor = columns.field(Some(&usual.actor), "source.sqlite.columns.actor", &names.actor);
        let (payload, form) = payload_of(settings, &mut columns, is_own);
        let ((number, numbering), job, times) = (number?, job?, times?);
        let null = || "NULL".to_string();
        let kind = kind.unwrap_or_else(|| literal("event"));
        let time = time.unwrap_or_else(null);
        let is_number = id.is_none_or(|id| of_event(id) == number);
        Some(Self {
            name: quote(&relation.name),
            name_text: literal(&relation.name),
            job: IdColumn::new("e", job, is_own),
            id: id.map_or_else(|| IdColumn::of_number(number.clone()), |id| IdColumn::new("e", id, is_own)),
            identity: is_number.then(|| identity(numbering, &of_event(job), &kind, &time, &payload)),
            parts: [
                id.map_or_else(|| number.clone(), of_event),
                step.unwrap_or_else(null),
                kind.clone(),
                time,
                actor.unwrap_or_else(null),
                payload,
            ],
            number,
            numbering,
            kind,
            payload: form,
            times,
            is_indexed: true,
        })
    }
}

/// Chooses the number that orders rows: that of SQLite's own where there is one, since it is the order of writing.
fn number_of(
    relation: &Relation,
    seq: Option<&Column>,
    problems: &mut Vec<SchemaProblem>,
) -> Option<(String, Numbering)> {
    let kind = match &relation.kind {
        RelationKind::Table { rowid, numbers } => return Some((format!("e.{rowid}"), Numbering::Table(*numbers))),
        RelationKind::WithoutRowid => "a table WITHOUT ROWID",
        RelationKind::View => "a view",
        RelationKind::Virtual => "a virtual table",
    };
    if let Some(seq) = seq {
        return Some((of_event(seq), Numbering::Job));
    }
    problems.push(SchemaProblem::NoNumber { table: relation.name.clone(), kind });
    None
}

/// Makes an expression that tells rows apart where the id is the number. Where numbers come back at once, also by the
/// payload's beginning and length: then a row that is updated counts as another one.
fn identity(numbering: Numbering, job: &str, kind: &str, time: &str, payload: &str) -> String {
    let (beginning, length) = (format!("substr({payload}, 1, 200)"), format!("length({payload})"));
    let parts = match numbering {
        Numbering::Table(RowNumbers::Autoincrement) => vec![job, kind, time],
        Numbering::Table(RowNumbers::Reused | RowNumbers::Renumbered) | Numbering::Job => {
            vec![job, kind, time, &*beginning, &*length]
        }
    };
    let parts: Vec<String> = parts.iter().map(|part| format!("coalesce({part}, '')")).collect();
    parts.join(" || '|' || ")
}

/// Makes the expression for the payload, and the way in which its value is read.
fn payload_of(settings: &config::Sqlite, columns: &mut Columns<'_>, is_own: bool) -> (String, PayloadForm) {
    let setting = "source.sqlite.columns.payload";
    let parts: Vec<&Column> = match &settings.columns.payload {
        PayloadColumns::Absent => return ("NULL".into(), PayloadForm::Text),
        PayloadColumns::One(name) => {
            let Some(column) = columns.find(setting, name) else { return ("NULL".into(), PayloadForm::Text) };
            let form = PayloadForm::of(settings.payload_kind, &column.kind, is_own);
            let value = of_event(column);
            let sql = if form == PayloadForm::Json { from_jsonb(&value, &value) } else { value };
            return (sql, form);
        }
        PayloadColumns::Object(names) => names.iter().filter_map(|name| columns.find(setting, name)).collect(),
        PayloadColumns::Row => columns.relation.columns.iter().collect(),
    };
    let members: Vec<String> = parts.into_iter().map(member).collect();
    (format!("'{{' || {} || '}}'", members.join(" || ',' || ")), PayloadForm::Json)
}

/// Makes an expression for a column as a member of a JSON object.
fn member(column: &Column) -> String {
    let value = of_event(column);
    // A JSON function fails on bytes, and these are read as UTF-8.
    let text = format!("json_quote(CASE typeof({value}) WHEN 'blob' THEN CAST({value} AS TEXT) ELSE {value} END)");
    let json = if column.kind.contains("JSON") {
        let parsed = format!("CASE WHEN json_valid({value}) THEN CAST({value} AS TEXT) ELSE {text} END");
        from_jsonb(&value, &parsed)
    } else if column.kind.contains("BOOL") {
        format!(
            "CASE WHEN typeof({value}) <> 'integer' THEN {text} WHEN {value} = 1 THEN 'true' WHEN {value} = 0 THEN 'false' ELSE {text} END"
        )
    } else {
        text
    };
    format!("{} || {json}", literal(&format!("{}:", serde_json::Value::from(column.name.as_str()))))
}

/// Makes an expression that turns SQLite's binary JSON into text; all else is `otherwise`.
fn from_jsonb(value: &str, otherwise: &str) -> String {
    format!(
        "CASE WHEN typeof({value}) = 'blob' AND NOT json_valid({value}) AND json_valid({value}, 8) \
         THEN json({value}) ELSE {otherwise} END"
    )
}

impl JobTable {
    fn resolve(
        settings: &config::Sqlite,
        relation: &Relation,
        is_own: bool,
        problems: &mut Vec<SchemaProblem>,
    ) -> Option<Self> {
        let mut columns = Columns { relation, problems };
        let id = columns.find("source.sqlite.job_columns.id", &settings.job_columns.id);
        let status = columns.find("source.sqlite.job_columns.status", &settings.job_columns.status);
        let (id, status) = (id?, status?);
        Some(Self {
            name: quote(&relation.name),
            id: IdColumn::new("j", id, is_own),
            status: format!("j.{}", quote(&status.name)),
        })
    }
}
