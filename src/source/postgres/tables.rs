//! The operator's tables: which columns they have, and how events are told apart and ordered by them. Names come from
//! the settings, types from the catalogue. The SQL for them is in [`super::sql`].

use super::columns::EventColumns;
use super::lookup::Lookup;
use super::position::{Floor, Life};
use super::problem::SchemaProblem;
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
    /// The life of the database; `None` where the server does not tell.
    pub life: Option<Life>,
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
    /// A row's number is its own, and does not change when another row comes.
    pub keeps_numbers: bool,
    /// The same of its time, which nothing changes but who writes the row: it is a column of a table.
    pub keeps_times: bool,
    /// The table is one heap, in whose last blocks the newest rows mostly lie, and which can be read from a block on.
    pub has_end: bool,
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
    /// The rows tell which transaction wrote them.
    pub has_xmin: bool,
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
    /// The column of transactions has some that the server has not begun, since the rows were restored from a dump. They
    /// mean nothing here.
    pub has_other_life: bool,
    /// A view that may make values out of several rows, so that they change when another row comes.
    pub counts_rows: bool,
    /// One heap that can be read from a block on.
    pub has_end: bool,
    /// The server tells which values it stores compressed, as all do since PostgreSQL 14.
    pub tells_compression: bool,
}

/// Kind of a relation, as far as it decides how it can be tailed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelationKind {
    Table,
    /// A table whose rows lie in others.
    Parent(Children),
    View,
    /// A materialized view or a foreign table, whose rows have no transaction of their own.
    Other,
}

/// The tables below a parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Children {
    Partitions,
    /// By INHERITS.
    Heirs,
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
    /// The type is an enum.
    pub is_enum: bool,
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

    /// Returns true for a type of times.
    pub fn is_calendar(&self) -> bool {
        matches!(&*self.kind, "timestamp with time zone" | "timestamp without time zone" | "date")
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

    /// Returns false for a relation that is not there, or may not be seen.
    pub fn is_there(&self) -> bool {
        !self.columns.is_empty()
    }

    /// Returns true for a table whose rows all lie in it.
    pub fn is_plain(&self) -> bool {
        self.kind == RelationKind::Table
    }

    /// Finds a reason why the rows do not tell which transaction wrote them.
    fn hides_xids(&self, tells_xid: bool) -> Option<SchemaProblem> {
        let table = self.name.clone();
        let hands_on = || self.find("xmin").is_some_and(|column| column.kind == "xid");
        match self.kind {
            RelationKind::Table | RelationKind::Parent(_) => None,
            _ if tells_xid => None,
            RelationKind::View if hands_on() => None,
            RelationKind::View => Some(SchemaProblem::HiddenXmin { table }),
            RelationKind::Other => Some(SchemaProblem::ForeignRows { table }),
        }
    }
}

impl Tables {
    /// The columns of job ids: that of the event table, and that of the job table.
    pub fn job_id_columns(&self) -> [Option<&IdColumn>; 2] {
        [Some(&self.events.job_id), self.jobs.as_ref().map(|jobs| &jobs.id)]
    }

    /// Understands the tables by the settings, or finds everything that is wrong with them.
    pub fn resolve(
        settings: &config::Postgres,
        events: &Relation,
        jobs: Option<&Relation>,
        reports_wal: bool,
    ) -> Result<Self, Vec<SchemaProblem>> {
        let jobs = jobs.map(|jobs| JobTable::resolve(settings, jobs)).transpose();
        let mut lookup = Lookup::new(events);
        let (best, events) = EventTable::resolve(settings, &mut lookup);
        match (lookup.finish(events), jobs) {
            (Ok(events), Ok(jobs)) => Ok(Self { best, events, jobs, life: None, reports_wal }),
            (events, jobs) => Err(events.err().into_iter().chain(jobs.err()).flatten().collect()),
        }
    }

    /// Returns true where a version of an event can be known for one, since nothing else in its job has its id and number.
    pub fn tells_versions(&self) -> bool {
        self.events.key == EventKey::Id || self.best.order == RowOrder::Number
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

impl EventTable {
    /// Returns true where rows stay above a floor, or below it, until somebody writes them.
    pub fn keeps(&self, floor: Floor) -> bool {
        match floor {
            Floor::Number(_) => self.keeps_numbers,
            Floor::Time(_) => self.keeps_times,
        }
    }

    /// Notes what is wrong; then the result means nothing.
    fn resolve(settings: &config::Postgres, lookup: &mut Lookup) -> (CursorScheme, Self) {
        let (names, usual, relation) = (&settings.columns, config::Columns::default(), lookup.relation);
        let xid = lookup.named_unless(&usual.xid, "source.postgres.columns.xid", &names.xid);
        if let Some(column) = xid.filter(|column| column.kind != "xid8" && names.xid != usual.xid) {
            lookup.note(SchemaProblem::UnusableXid { name: column.name.clone(), kind: column.kind.clone() });
        }
        let xid = xid.filter(|column| column.tells_xid(relation.kind));
        if let Some(problem) = relation.hides_xids(xid.is_some()) {
            lookup.note(problem);
        }
        let xid = xid.filter(|_| !relation.has_other_life || relation.hides_xids(false).is_some());
        let seq = lookup.named_unless(&usual.seq, "source.postgres.columns.seq", &names.seq);
        if let Some(column) = seq.filter(|column| !column.is_whole_number() && names.seq != usual.seq) {
            let nearest = lookup.nearest("source.postgres.columns.seq", "seq");
            let (name, kind) = (column.name.clone(), column.kind.clone());
            lookup.note(SchemaProblem::UnusableSeq { name, kind, nearest });
        }
        let seq =
            seq.filter(|column| column.is_whole_number() && column.is_unique && settings.order == EventOrder::Seq);
        let job_id = lookup.named("source.postgres.columns.job_id", &names.job_id);
        let columns = EventColumns::resolve(settings, lookup);
        let id = match relation.find(&names.id) {
            Some(id) => IdColumn::of("e", id),
            None => IdColumn::new(columns.id_key.clone(), columns.id_key_type.clone()),
        };
        let is_view = relation.kind == RelationKind::View;
        let is_own = |column: &Column| column.is_unique || column.kind == "uuid";
        let key = relation.find(&names.id).or(seq).is_some_and(is_own);
        let best = CursorScheme {
            xids: if xid.is_some() { XidSource::Column } else { XidSource::System },
            order: if seq.is_some() { RowOrder::Number } else { RowOrder::Time },
        };
        let events = Self {
            name: quote_table(&settings.events_table),
            job_id: job_id.map_or_else(|| id.clone(), |job_id| IdColumn::of("e", job_id)),
            id,
            columns,
            key: if key { EventKey::Id } else { EventKey::Cursor },
            kind: relation.kind,
            names: relation.columns.iter().map(|column| column.name.clone()).collect(),
            keeps_numbers: !relation.counts_rows,
            keeps_times: matches!(relation.kind, RelationKind::Table | RelationKind::Parent(_)),
            has_end: relation.has_end,
            has_unnumbered: seq.is_some_and(|column| column.may_be_null),
            has_undated: xid.is_some_and(|column| column.may_be_null && !is_view),
        };
        (best, events)
    }
}

impl JobTable {
    pub const SETTING: &str = "source.postgres.job_columns";

    fn resolve(settings: &config::Postgres, jobs: &Relation) -> Result<Self, Vec<SchemaProblem>> {
        let names = &settings.job_columns;
        let mut lookup = Lookup::new(jobs);
        let id = lookup.named("source.postgres.job_columns.id", &names.id);
        let id = id.map_or_else(|| IdColumn::new(String::new(), String::new()), |id| IdColumn::of("j", id));
        lookup.named("source.postgres.job_columns.status", &names.status);
        lookup.finish(Self {
            name: quote_table(&settings.jobs_table),
            id,
            id_name: quote(&names.id),
            status_name: quote(&names.status),
            has_xmin: jobs.hides_xids(false).is_none(),
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
        let name = format!("{row}.{}", quote(&column.name));
        let id = Self::new(name, column.cast().into());
        if column.is_enum { id.of_enum() } else { id }
    }
}
