//! The operator's tables: which columns they have, and how events are told apart and ordered by them. Names come from
//! the settings, types from the catalogue. The SQL for them is in [`super::sql`].

use super::columns::EventColumns;
use super::sql::{EventRows, IdColumn, quote, quote_table};
use crate::config::{self, EventOrder};
use crate::source::EventKey;

/// The event table, and the job table where one is configured.
#[derive(Clone, Debug)]
pub struct Tables {
    pub events: EventTable,
    pub jobs: Option<JobTable>,
    /// The best scheme that the event table's columns allow.
    pub best: CursorScheme,
    /// The server knows the functions for the position of its write-ahead log. Some that are PostgreSQL in name only
    /// keep their log elsewhere.
    pub reports_wal: bool,
}

/// The event table's name and columns, quoted. In statements its row is `e`.
#[derive(Clone, Debug)]
pub struct EventTable {
    pub name: String,
    pub id: IdColumn,
    pub job_id: IdColumn,
    pub columns: EventColumns,
    /// The part that tells a job's events apart, as far as the catalogue promises it.
    pub key: EventKey,
    /// Names of all columns that there are.
    pub names: Vec<String>,
    pub kind: RelationKind,
    /// Rows from before the number column was added have none. They come first, ordered by time.
    pub has_unnumbered: bool,
    /// Rows from before the transaction column was added have none. A view that makes one has it for all.
    pub has_undated: bool,
}

/// The job table's name and columns, quoted. In statements its row is `j`.
#[derive(Clone, Debug)]
pub struct JobTable {
    pub name: String,
    pub id: IdColumn,
    pub id_name: String,
    pub status_name: String,
}

/// The meaning of the transaction ids and keys in a cursor.
///
/// A cursor means something only in the scheme that it was made in. A table that gets columns for a better one
/// (`jobcast schema postgres --migrate`) still honours the cursors from before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CursorScheme {
    pub xids: XidSource,
    pub order: RowOrder,
}

impl CursorScheme {
    pub const ALL: [Self; 4] = [
        Self { xids: XidSource::Column, order: RowOrder::Number },
        Self { xids: XidSource::Column, order: RowOrder::Time },
        Self { xids: XidSource::System, order: RowOrder::Number },
        Self { xids: XidSource::System, order: RowOrder::Time },
    ];

    /// The first character of a cursor.
    pub fn letter(self) -> char {
        match (self.xids, self.order) {
            (XidSource::Column, RowOrder::Number) => 'p',
            (XidSource::Column, RowOrder::Time) => 'q',
            (XidSource::System, RowOrder::Number) => 'v',
            (XidSource::System, RowOrder::Time) => 'w',
        }
    }
}

/// The column that tells which transaction wrote a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XidSource {
    /// A column of type `xid8`, which an index can serve. It holds the top-level transaction.
    #[default]
    Column,
    /// The system column `xmin`: 32 bits that have to be widened, and no index can serve it. It holds the
    /// sub-transaction where a savepoint was open.
    System,
}

/// The order of a job's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowOrder {
    /// By a column that grows.
    #[default]
    Number,
    /// By the timestamp, then the id.
    Time,
}

/// A table or view as the catalogue describes it.
#[derive(Clone, Debug)]
pub struct Relation {
    /// The name in the settings.
    pub name: String,
    pub kind: RelationKind,
    pub columns: Vec<Column>,
}

/// Kind of a relation, as far as it decides how it can be tailed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelationKind {
    Table,
    /// A partitioned table, or one that others inherit from.
    Parent,
    View,
    /// A materialized view or a foreign table, whose rows have no transaction of their own.
    Other,
}

/// A column as the catalogue describes it.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    /// Type without its length; of a domain, the type below it.
    pub kind: String,
    pub may_be_null: bool,
    pub has_default: bool,
    /// No two rows of a job have the same value: an identity, a serial, or alone or with the job in a unique index.
    pub is_unique: bool,
}

impl Column {
    /// Returns true for an `xid8` column that is filled: a column of a table that nothing fills tells nothing.
    pub fn tells_xid(&self, of: RelationKind) -> bool {
        self.kind == "xid8" && (of == RelationKind::View || !self.may_be_null || self.has_default)
    }

    /// Returns true for a type of numbers.
    pub fn is_number(&self) -> bool {
        self.is_whole_number() || matches!(&*self.kind, "numeric" | "double precision" | "real")
    }

    pub fn is_whole_number(&self) -> bool {
        matches!(&*self.kind, "bigint" | "integer" | "smallint")
    }

    /// The type to cast a text to that is compared with the column. `character` alone would be one character.
    pub fn cast(&self) -> &str {
        if self.kind == "character" { "bpchar" } else { &self.kind }
    }
}

impl Relation {
    pub fn find(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Finds a column that must be there; `None` where the name is empty.
    pub fn find_named(&self, setting: &'static str, name: &str) -> Result<Option<&Column>, SchemaProblem> {
        if name.is_empty() { Ok(None) } else { self.required(setting, name).map(Some) }
    }

    pub fn required(&self, setting: &'static str, name: &str) -> Result<&Column, SchemaProblem> {
        self.find(name).ok_or_else(|| self.missing(setting, name))
    }

    fn missing(&self, setting: &'static str, name: &str) -> SchemaProblem {
        SchemaProblem::MissingColumn { setting, table: self.name.clone(), name: name.into() }
    }

    /// Returns true for a table whose rows all lie in it.
    pub fn is_plain(&self) -> bool {
        self.kind == RelationKind::Table
    }

    /// Fails for a relation whose rows do not tell which transaction wrote them.
    fn require_xids(&self, tells_xid: bool) -> Result<(), SchemaProblem> {
        let hands_on = || self.find("xmin").is_some_and(|column| column.kind == "xid");
        match self.kind {
            RelationKind::Table | RelationKind::Parent => Ok(()),
            _ if tells_xid => Ok(()),
            RelationKind::View if hands_on() => Ok(()),
            RelationKind::View => Err(SchemaProblem::HiddenXmin { table: self.name.clone() }),
            RelationKind::Other => Err(SchemaProblem::ForeignRows { table: self.name.clone() }),
        }
    }
}

/// Tables that cannot be tailed as they are.
#[derive(Debug, thiserror::Error)]
pub enum SchemaProblem {
    #[error("there is no table or view {name}, or it may not be seen")]
    MissingRelation { name: String },
    #[error("{table} has no column {name}")]
    MissingColumn { setting: &'static str, table: String, name: String },
    #[error("the view {table} does not hand on the transaction that wrote each row")]
    HiddenXmin { table: String },
    #[error("{table} is a materialized view or a foreign table: its rows do not tell which transaction wrote them")]
    ForeignRows { table: String },
    #[error("nothing tells the events of {table} apart")]
    AmbiguousEvents { table: String },
    #[error("the column {name} of type {kind} is no time")]
    UnusableTime { name: String, kind: String },
    #[error("the column {name} of type {kind} is no number that orders events")]
    UnusableSeq { name: String, kind: String },
    #[error("the server knows no time zone {name}")]
    UnknownZone { name: String },
}

impl SchemaProblem {
    pub fn help(&self) -> &'static str {
        match self {
            Self::MissingRelation { .. } => "set its name, or grant the right to see it",
            Self::MissingColumn { setting, .. } if *setting == JobTable::SETTING => {
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
            Self::UnknownZone { .. } => "name one such as Europe/Paris by source.postgres.timestamp_zone",
            Self::UnusableTime { .. } => {
                "name a column of times or numbers by source.postgres.columns.timestamp, or none by \"\""
            }
        }
    }
}

impl Tables {
    /// The columns of job ids: that of the event table, and that of the job table.
    pub fn job_id_columns(&self) -> [Option<&IdColumn>; 2] {
        [Some(&self.events.job_id), self.jobs.as_ref().map(|jobs| &jobs.id)]
    }

    pub fn resolve(
        settings: &config::Postgres,
        events: &Relation,
        jobs: Option<&Relation>,
        reports_wal: bool,
    ) -> Result<Self, SchemaProblem> {
        let (names, usual) = (&settings.columns, config::Columns::default());
        let setting = EventColumns::SETTING;
        let find = |name: &str, usual: &str| match events.find(name) {
            None if name != usual => events.find_named(setting, name),
            found => Ok(found),
        };
        let xid = find(&names.xid, &usual.xid)?;
        let xid = xid.filter(|column| column.tells_xid(events.kind));
        events.require_xids(xid.is_some())?;
        let seq = find(&names.seq, &usual.seq)?;
        if let Some(column) = seq.filter(|column| !column.is_whole_number() && names.seq != usual.seq) {
            return Err(SchemaProblem::UnusableSeq { name: column.name.clone(), kind: column.kind.clone() });
        }
        let seq =
            seq.filter(|column| column.is_whole_number() && column.is_unique && settings.order == EventOrder::Seq);
        let columns = EventColumns::resolve(settings, events)?;
        let id = match events.find(&names.id) {
            Some(id) => IdColumn::of("e", id),
            None => IdColumn::new(columns.id_key.clone(), columns.id_key_type.clone()),
        };
        let is_view = events.kind == RelationKind::View;
        let is_own = |column: &Column| column.is_unique || column.kind == "uuid";
        let key = if events.find(&names.id).or(seq).is_some_and(is_own) { EventKey::Id } else { EventKey::Cursor };
        Ok(Self {
            best: CursorScheme {
                xids: if xid.is_some() { XidSource::Column } else { XidSource::System },
                order: if seq.is_some() { RowOrder::Number } else { RowOrder::Time },
            },
            events: EventTable {
                name: quote_table(&settings.events_table),
                id,
                job_id: IdColumn::of("e", events.required(setting, &names.job_id)?),
                columns,
                key,
                kind: events.kind,
                names: events.columns.iter().map(|column| column.name.clone()).collect(),
                has_unnumbered: seq.is_some_and(|column| column.may_be_null),
                has_undated: xid.is_some_and(|column| column.may_be_null && !is_view),
            },
            jobs: jobs.map(|jobs| JobTable::resolve(settings, jobs)).transpose()?,
            reports_wal,
        })
    }

    /// The rows of the event table as a cursor of `scheme` means them, as far as the columns allow that.
    pub fn rows(&self, scheme: CursorScheme) -> EventRows<'_> {
        EventRows::new(self, self.supported(scheme))
    }

    /// Returns true where the table has the columns that this scheme needs.
    pub fn supports(&self, scheme: CursorScheme) -> bool {
        self.supported(scheme) == scheme
    }

    /// Returns true for a scheme in which a cursor of this table may honestly be: the best one, one that needs columns
    /// which the table has lost or which are not known yet, and one from before a migration. The migration leaves old
    /// rows without values, so columns that are never null were there from the beginning. Reads in a worse scheme than
    /// the best are dear, since no index serves them.
    pub fn honours(&self, scheme: CursorScheme) -> bool {
        let supported = self.supported(scheme);
        (supported.xids == self.best.xids || self.events.has_undated)
            && (supported.order == self.best.order || self.events.has_unnumbered)
    }

    fn supported(&self, scheme: CursorScheme) -> CursorScheme {
        CursorScheme {
            xids: if self.best.xids == XidSource::Column { scheme.xids } else { XidSource::System },
            order: if self.best.order == RowOrder::Number { scheme.order } else { RowOrder::Time },
        }
    }
}

impl JobTable {
    const SETTING: &str = "source.postgres.job_columns";

    fn resolve(settings: &config::Postgres, jobs: &Relation) -> Result<Self, SchemaProblem> {
        let names = &settings.job_columns;
        let id = IdColumn::of("j", jobs.required(Self::SETTING, &names.id)?);
        jobs.required(Self::SETTING, &names.status)?;
        Ok(Self {
            name: quote_table(&settings.jobs_table),
            id,
            id_name: quote(&names.id),
            status_name: quote(&names.status),
        })
    }

    /// Expression on `j`: the status.
    pub fn status(&self) -> String {
        format!("j.{}", self.status_name)
    }
}

impl IdColumn {
    /// The column with its row, `e` or `j`.
    fn of(row: &str, column: &Column) -> Self {
        Self::new(format!("{row}.{}", quote(&column.name)), column.cast().into())
    }
}
