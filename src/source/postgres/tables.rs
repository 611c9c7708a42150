//! The operator's tables: which columns they have, and how events are told apart and ordered by them. Names come from
//! the settings, types from the catalogue. The SQL for them is in [`super::sql`].

use super::sql::{EventRows, IdColumn, quote, quote_table};
use crate::config;

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
    /// Rows from before the number column was added have none. They come first, ordered by time.
    pub has_unnumbered: bool,
    /// Rows from before the transaction column was added have none.
    pub has_undated: bool,
}

/// Quoted names of the event table's columns.
#[derive(Clone, Debug)]
pub struct EventColumns {
    pub id: String,
    pub job_id: String,
    pub kind: String,
    pub timestamp: String,
    pub payload: String,
    /// `None` where the table has no such column.
    pub step_id: Option<String>,
    /// `None` where the table has no such column.
    pub actor: Option<String>,
    /// Named in a statement only where the scheme orders by numbers.
    pub seq: String,
    /// Named in a statement only where the scheme has transactions in a column.
    pub xid: String,
    /// Expression on `e`: the id as a part of the order, never null.
    pub id_key: String,
    pub id_key_type: String,
    /// Expression on `e`: the timestamp as a part of the order, never null.
    pub time_key: String,
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

/// A column as the catalogue describes it.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub kind: String,
    pub may_be_null: bool,
    pub has_default: bool,
}

impl Column {
    /// Returns true for an `xid8` column that is filled: a column that nothing fills tells nothing.
    pub fn tells_xid(&self) -> bool {
        self.kind == "xid8" && (!self.may_be_null || self.has_default)
    }

    fn is_number(&self) -> bool {
        matches!(&*self.kind, "bigint" | "integer")
    }
}

/// A configured column that its table does not have.
#[derive(Debug)]
pub struct MissingColumn {
    /// The setting that names the columns of this table.
    pub setting: &'static str,
    pub name: String,
}

impl MissingColumn {
    pub fn help(&self) -> &'static str {
        if self.setting == JobTable::SETTING {
            "name the columns by source.postgres.job_columns"
        } else {
            "name the columns by source.postgres.columns"
        }
    }
}

impl Tables {
    pub fn resolve(
        settings: &config::Postgres,
        events: &[Column],
        jobs: Option<&[Column]>,
        reports_wal: bool,
    ) -> Result<Self, MissingColumn> {
        let find = |name: &str| events.iter().find(|column| column.name == name);
        let tells_xid = find(&settings.columns.xid).is_some_and(Column::tells_xid);
        let seq = find(&settings.columns.seq).filter(|column| column.is_number());
        let columns = EventColumns::resolve(&settings.columns, events)?;
        Ok(Self {
            best: CursorScheme {
                xids: if tells_xid { XidSource::Column } else { XidSource::System },
                order: if seq.is_some() { RowOrder::Number } else { RowOrder::Time },
            },
            events: EventTable {
                name: quote_table(&settings.events_table),
                id: IdColumn::resolve("e", EventColumns::SETTING, &settings.columns.id, events)?,
                job_id: IdColumn::resolve("e", EventColumns::SETTING, &settings.columns.job_id, events)?,
                columns,
                has_unnumbered: seq.is_some_and(|column| column.may_be_null),
                has_undated: tells_xid && find(&settings.columns.xid).is_some_and(|column| column.may_be_null),
            },
            jobs: jobs.map(|columns| JobTable::resolve(settings, columns)).transpose()?,
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

impl EventColumns {
    const SETTING: &str = "source.postgres.columns";

    fn resolve(names: &config::Columns, columns: &[Column]) -> Result<Self, MissingColumn> {
        let required = |name: &str| required(Self::SETTING, name, columns);
        let optional = |name: &str| columns.iter().any(|column| column.name == name).then(|| quote(name));
        let id = required(&names.id)?;
        required(&names.job_id)?;
        required(&names.kind)?;
        let timestamp = required(&names.timestamp)?;
        required(&names.payload)?;
        let (id_key, id_key_type) = if id.may_be_null {
            (format!("coalesce(e.{}::text, '')", quote(&names.id)), "text".into())
        } else {
            (format!("e.{}", quote(&names.id)), id.kind.clone())
        };
        let time_key = if timestamp.may_be_null {
            format!("coalesce(e.{}, '-infinity')", quote(&names.timestamp))
        } else {
            format!("e.{}", quote(&names.timestamp))
        };
        Ok(Self {
            id: quote(&names.id),
            job_id: quote(&names.job_id),
            kind: quote(&names.kind),
            timestamp: quote(&names.timestamp),
            payload: quote(&names.payload),
            step_id: optional(&names.step_id),
            actor: optional(&names.actor),
            seq: quote(&names.seq),
            xid: quote(&names.xid),
            id_key,
            id_key_type,
            time_key,
        })
    }
}

impl JobTable {
    const SETTING: &str = "source.postgres.job_columns";

    fn resolve(settings: &config::Postgres, columns: &[Column]) -> Result<Self, MissingColumn> {
        let names = &settings.job_columns;
        let id = IdColumn::resolve("j", Self::SETTING, &names.id, columns)?;
        required(Self::SETTING, &names.status, columns)?;
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
    fn resolve(row: &str, setting: &'static str, name: &str, columns: &[Column]) -> Result<Self, MissingColumn> {
        let column = required(setting, name, columns)?;
        Ok(Self::new(format!("{row}.{}", quote(name)), column.kind.clone()))
    }
}

fn required<'a>(setting: &'static str, name: &str, columns: &'a [Column]) -> Result<&'a Column, MissingColumn> {
    let found = columns.iter().find(|column| column.name == name);
    found.ok_or_else(|| MissingColumn { setting, name: name.into() })
}
