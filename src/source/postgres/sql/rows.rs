//! Expressions and conditions on a row `e` of the event table, in one cursor scheme.

use super::super::columns::{EventColumns, PayloadColumn, PayloadSize, TimeColumn};
use super::super::position::{EndedXids, Floor, Key, KeyId};
use super::super::tables::{CursorScheme, RowOrder, Tables, XidSource};
use super::{literal, number_list};
use crate::event::JobId;
use std::collections::BTreeSet;

/// A bound of the payloads that a statement gives.
#[derive(Clone, Copy, Debug)]
pub struct MostBytes {
    pub bytes: usize,
    /// Bytes that are made of one that is stored compressed.
    pub expansion: u64,
}

/// Rows of a job that are newer than its reach, for those who draw a number a little before their transaction begins.
const ROWS_ABOVE: u64 = 32;

/// The column by which new rows are looked for where no column tells their transactions.
#[derive(Clone, Copy)]
pub enum LookColumn<'a> {
    /// Numbers that grow within a job.
    Number(&'a str),
    Time(&'a TimeColumn),
}

impl LookColumn<'_> {
    pub fn name(&self) -> &str {
        match self {
            Self::Number(number) => number,
            Self::Time(time) => time.column().unwrap_or("NULL"),
        }
    }

    /// The floor that is this number, or the time with this number.
    pub fn floor(&self, number: i64) -> Floor {
        match self {
            Self::Number(_) => Floor::Number(number),
            Self::Time(_) => Floor::Time(number),
        }
    }

    /// The value that the column is compared with, of a bigint expression.
    pub fn value_of(&self, number: &str) -> String {
        match self {
            Self::Number(_) => number.into(),
            Self::Time(time) => time.key_value_of(number),
        }
    }
}

/// The rows of the event table as cursors of one scheme number and order them.
#[derive(Clone, Copy)]
pub struct EventRows<'a> {
    pub tables: &'a Tables,
    scheme: CursorScheme,
    /// Some of these rows have no number.
    has_unnumbered: bool,
    /// All of these rows have a time, or a number in its place, that is not the lowest.
    is_timed: bool,
}

/// A part of a job's rows, in an order that an index can serve.
pub struct RowsPart<'a> {
    pub rows: EventRows<'a>,
    /// The row is of this part; `None` where all are.
    condition: Option<String>,
    /// Rows with a number come after all of these.
    is_unnumbered: bool,
    /// Rows whose time, or number in its place, is the lowest.
    is_lowest: bool,
}

impl RowsPart<'_> {
    /// The condition behind an `AND`, or nothing.
    pub fn and_condition(&self) -> String {
        self.condition.as_ref().map(|condition| format!(" AND {condition}")).unwrap_or_default()
    }

    /// Returns false where all rows are known to be no higher than any floor of this kind.
    pub fn may_be_above(&self, floor: Floor) -> bool {
        let is_of_order = || self.rows.floor_column(floor) == self.rows.columns().order.column();
        let is_below = match floor {
            Floor::Number(_) => self.is_unnumbered,
            Floor::Time(_) => false,
        };
        !(is_below || self.is_lowest && is_of_order())
    }

    /// Condition: the row of this part comes after the row of the job that has this key.
    pub fn after_key(&self, job: &str, key: &Key) -> String {
        match (key, self.rows.scheme.order) {
            (Key::Number(_), _) if self.is_unnumbered => "false".into(),
            (Key::Time { .. }, RowOrder::Number) => "true".into(),
            _ => self.rows.after_key(job, key),
        }
    }
}

/// Expression: the transaction in the system column of a row, as a bigint.
pub fn system_xid(row: &str) -> String {
    format!("CASE WHEN age({row}.xmin) > 0 THEN (SELECT age_base FROM jobcast_snapshot) - age({row}.xmin) ELSE 0 END")
}

/// A set of ended transactions that rows are compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XidBound {
    /// All below the settled mark of the statement's own snapshot: CTE `jobcast_mark`.
    OwnMark,
    Fixed(EndedXids),
}

impl XidBound {
    /// All transactions below `mark`.
    pub fn below(mark: u64) -> Self {
        Self::Fixed(EndedXids::below(mark))
    }

    /// Ended transactions above the mark; `None` where there are none.
    fn also(&self) -> Option<&BTreeSet<u64>> {
        match self {
            Self::Fixed(ended) => Some(&ended.also).filter(|also| !also.is_empty()),
            Self::OwnMark => None,
        }
    }
}

impl<'a> EventRows<'a> {
    pub fn new(tables: &'a Tables, scheme: CursorScheme) -> Self {
        let has_unnumbered = tables.events.has_unnumbered && scheme.order == RowOrder::Number;
        Self { tables, scheme, has_unnumbered, is_timed: false }
    }

    pub fn xid_source(&self) -> XidSource {
        self.scheme.xids
    }

    /// Splits the rows into parts that come one after the other: those without a number, ordered by time, and of these
    /// the ones without a time first; then those with a number.
    pub fn parts(&self) -> Vec<RowsPart<'a>> {
        if !self.has_unnumbered {
            return self.parts_by_time(None);
        }
        let by_time = CursorScheme { order: RowOrder::Time, ..self.scheme };
        let is_unnumbered = self.is_unnumbered();
        let numbered = Self { has_unnumbered: false, ..*self };
        let condition = Some(format!("NOT {is_unnumbered}"));
        let mut parts = Self { scheme: by_time, ..numbered }.parts_by_time(Some(is_unnumbered));
        parts.push(RowsPart { rows: numbered, condition, is_unnumbered: false, is_lowest: false });
        parts
    }

    fn parts_by_time(&self, is_unnumbered: Option<String>) -> Vec<RowsPart<'a>> {
        let by_time = || self.columns().order.lowest_and_others().filter(|_| self.scheme.order == RowOrder::Time);
        let part = |is_timed, more: Option<String>| RowsPart {
            rows: Self { is_timed, ..*self },
            is_unnumbered: is_unnumbered.is_some(),
            is_lowest: !is_timed && more.is_some(),
            condition: match (&is_unnumbered, more) {
                (Some(one), Some(other)) => Some(format!("{one} AND {other}")),
                (one, other) => one.clone().or(other),
            },
        };
        match by_time() {
            Some((lowest, others)) => vec![part(false, Some(lowest)), part(true, Some(others))],
            None => vec![part(false, None)],
        }
    }

    /// Expression: the first part of the key where that is a time, or a number in its place.
    fn time_key(&self) -> String {
        let order = &self.columns().order;
        order.column().filter(|_| self.is_timed).map_or_else(|| order.key(), str::to_string)
    }

    /// The event table's quoted name.
    pub fn table(&self) -> &'a str {
        &self.tables.events.name
    }

    fn columns(&self) -> &'a EventColumns {
        &self.tables.events.columns
    }

    /// The transaction that wrote the row, as a bigint.
    ///
    /// Rows from before the column was added are older than any open transaction: 0. Of the system column its `age` is
    /// asked. A visible row is older than the next transaction (`jobcast_snapshot.age_base`), or so old that 32 bits cannot tell.
    pub fn xid(&self) -> String {
        match self.scheme.xids {
            XidSource::Column => format!("coalesce(e.{}::text::bigint, 0)", self.columns().xid),
            XidSource::System => system_xid("e"),
        }
    }

    /// The transaction in the type that an index on the column serves.
    pub fn indexed_xid(&self) -> String {
        match self.scheme.xids {
            XidSource::Column => format!("e.{}", self.columns().xid),
            XidSource::System => self.xid(),
        }
    }

    fn xid_value(&self, xid: u64) -> String {
        match self.scheme.xids {
            XidSource::Column => format!("'{xid}'::xid8"),
            XidSource::System => xid.to_string(),
        }
    }

    fn xid_array<'x>(&self, xids: impl IntoIterator<Item = &'x u64>) -> String {
        let kind = if self.scheme.xids == XidSource::Column { "xid8" } else { "bigint" };
        format!("'{}'::{kind}[]", number_list(xids))
    }

    fn own_mark(&self) -> &'static str {
        match self.scheme.xids {
            XidSource::Column => "(SELECT xid8 FROM jobcast_mark)",
            XidSource::System => "(SELECT xid FROM jobcast_mark)",
        }
    }

    /// Condition: the row was written by a transaction that had not ended at the bound.
    pub fn written_since(&self, bound: &XidBound) -> String {
        let xid = self.indexed_xid();
        let since = match bound {
            XidBound::OwnMark => format!("{xid} >= {}", self.own_mark()),
            XidBound::Fixed(ended) if ended.mark == 0 => "true".into(),
            XidBound::Fixed(ended) if ended.open.is_empty() => format!("{xid} >= {}", self.xid_value(ended.mark)),
            XidBound::Fixed(ended) => {
                format!("({xid} >= {} OR {xid} = ANY ({}))", self.xid_value(ended.mark), self.xid_array(&ended.open))
            }
        };
        match bound.also() {
            Some(also) => format!("({since} AND ({xid} = ANY ({})) IS NOT TRUE)", self.xid_array(also)),
            None => since,
        }
    }

    /// Condition: the row was written by a transaction that had ended at the bound.
    pub fn written_before(&self, bound: &XidBound) -> String {
        let xid = self.indexed_xid();
        let below = match bound {
            XidBound::OwnMark => format!("{xid} < {}", self.own_mark()),
            XidBound::Fixed(ended) if ended.open.is_empty() => format!("{xid} < {}", self.xid_value(ended.mark)),
            XidBound::Fixed(ended) => {
                format!("({xid} < {} AND {xid} <> ALL ({}))", self.xid_value(ended.mark), self.xid_array(&ended.open))
            }
        };
        let also = bound.also().map(|also| format!("{xid} = ANY ({})", self.xid_array(also)));
        // Rows from before the column was added have none.
        let is_old = (self.scheme.xids == XidSource::Column).then(|| format!("{xid} IS NULL"));
        let any: Vec<String> = is_old.into_iter().chain([below]).chain(also).collect();
        if any.len() == 1 { any.concat() } else { format!("({})", any.join(" OR ")) }
    }

    /// Condition: the row was written by this transaction. Only rows that no column tells of have transaction 0.
    pub fn written_by(&self, xid: u64) -> String {
        match self.scheme.xids {
            XidSource::Column if xid == 0 => format!("e.{} IS NULL", self.columns().xid),
            XidSource::Column => format!("e.{} = '{xid}'::xid8", self.columns().xid),
            XidSource::System => format!("{} = {xid}", self.xid()),
        }
    }

    /// Condition: the row was not visible in a primary's snapshot, of which only what is below `durable_xid` is sure to
    /// survive a crash. By the column only, whose ids are those that a snapshot lists: two short ranges of its index.
    pub fn not_visible_in(&self, snapshot: &str, durable_xid: u64) -> String {
        let mut parts = snapshot.splitn(3, ':');
        let xmax = parts.nth(1).and_then(|xmax| xmax.parse().ok()).unwrap_or(0);
        let (xid, open) = (&self.columns().xid, parts.next().unwrap_or_default());
        format!("(e.{xid} >= {} OR e.{xid} = ANY ('{{{open}}}'::xid8[]))", self.xid_value(durable_xid.min(xmax)))
    }

    /// The column by which new rows are looked for. `None` where a column tells their transactions, and where there is none
    /// that an index can serve.
    pub fn look_column(&self) -> Option<LookColumn<'a>> {
        let (number, time) = (self.columns().number.as_deref(), &self.columns().time);
        let time = || time.is_ordered_by_column().then_some(LookColumn::Time(time));
        number.map(LookColumn::Number).or_else(time).filter(|_| self.scheme.xids == XidSource::System)
    }

    /// Returns true for a table whose newest rows mostly lie in its last blocks, which can be read by themselves. They are
    /// where new rows are looked for by time.
    pub fn has_end(&self) -> bool {
        self.tables.events.has_end && matches!(self.look_column(), Some(LookColumn::Time(_)))
    }

    /// The column that rows above such a floor are told by.
    fn floor_column(&self, floor: Floor) -> Option<&'a str> {
        let columns = self.columns();
        let column = match floor {
            Floor::Number(_) => columns.number.as_deref(),
            Floor::Time(_) => columns.time.column().filter(|_| columns.time.is_ordered_by_column()),
        };
        column.filter(|_| self.scheme.xids == XidSource::System)
    }

    /// Condition: the row is above this floor; `None` where rows have nothing that tells it.
    pub fn above(&self, floor: Floor) -> Option<String> {
        let column = self.floor_column(floor)?;
        Some(match floor {
            Floor::Number(number) => format!("{column} > '{number}'::bigint"),
            Floor::Time(at) => format!("{column} > {}", self.columns().time.key_value(at)),
        })
    }

    /// Expression: a number, or that of a time, which all rows of the job but the newest are at or below. Null where it has
    /// no more, and where new rows are looked for by neither. Times of the last `look_back` seconds are above it, whichever
    /// clock is ahead.
    pub fn reach(&self, job: &JobId, look_back: f64) -> String {
        let Some(column) = self.look_column() else { return "NULL::bigint".into() };
        let name = column.name();
        let (value, is_reached) = match column {
            LookColumn::Number(number) => (format!("{number}::bigint"), format!("{number} IS NOT NULL")),
            // Below the time itself, since many rows may have the same.
            LookColumn::Time(time) => (
                time.next_lower_number(),
                format!("{name} > {} AND {}", time.key_value(i64::MIN), time.is_older_than(look_back)),
            ),
        };
        format!(
            "(SELECT {value} FROM {} e WHERE {} AND {is_reached} ORDER BY {name} DESC
              OFFSET {ROWS_ABOVE} LIMIT 1)",
            self.table(),
            self.tables.events.job_id.equals(job.as_str()),
        )
    }

    /// The terms of `ORDER BY`.
    pub fn order(&self) -> String {
        let EventColumns { seq, id_key, .. } = self.columns();
        let time_key = self.time_key();
        match self.scheme.order {
            RowOrder::Number if self.has_unnumbered => format!("e.{seq} NULLS FIRST, {time_key}, {id_key}"),
            RowOrder::Number => format!("e.{seq}"),
            RowOrder::Time => format!("{time_key}, {id_key}"),
        }
    }

    /// The terms of `ORDER BY` from the last row to the first.
    pub fn newest_first(&self) -> String {
        let EventColumns { seq, id_key, .. } = self.columns();
        let by_time = format!("{} DESC, {id_key} DESC", self.time_key());
        match self.scheme.order {
            RowOrder::Number if self.has_unnumbered => format!("e.{seq} DESC NULLS LAST, {by_time}"),
            RowOrder::Number => format!("e.{seq} DESC"),
            RowOrder::Time => by_time,
        }
    }

    /// The key as a row that may be compared with another.
    pub fn comparable_key(&self) -> String {
        let EventColumns { seq, order, id_key, .. } = self.columns();
        let time_key = order.key();
        if self.has_unnumbered {
            return format!("coalesce(e.{seq}, '{}'::bigint), {time_key}, {id_key}", i64::MIN);
        }
        self.order()
    }

    /// Condition: the row has no number.
    pub fn is_unnumbered(&self) -> String {
        format!("e.{} IS NULL", self.columns().seq)
    }

    /// Condition: the row comes after the row of the job that has this key.
    pub fn after_key(&self, job: &str, key: &Key) -> String {
        match (self.scheme.order, key) {
            (RowOrder::Number, Key::Number(number)) => format!("e.{} > {number}", self.columns().seq),
            // The table has lost the column that the cursor was ordered by: rather repeat than lose.
            (RowOrder::Time, Key::Number(_)) => "true".into(),
            (RowOrder::Time, Key::Time { at, id }) => self.after_time(job, *at, id),
            (RowOrder::Number, Key::Time { at, id }) => {
                format!("(e.{} IS NOT NULL OR {})", self.columns().seq, self.after_time(job, *at, id))
            }
        }
    }

    fn after_time(&self, job: &str, at: i64, id: &KeyId) -> String {
        let EventColumns { order, id_key, id_key_type, .. } = self.columns();
        let (time_key, at) = (self.time_key(), order.key_value(at));
        match id {
            KeyId::Whole(id) => format!("({time_key}, {id_key}) > ({at}, {}::{id_key_type})", literal(id)),
            // The digest finds the event that it is of. Where that is gone, all of the same time come once more.
            KeyId::Digest(digest) => format!(
                "({time_key} >= {at} AND (({time_key}, {id_key}) > ({at}, (SELECT {id_key} FROM {} e
                 WHERE {} AND {time_key} = {at} AND substr(sha256(convert_to({id_key}::text,
                   CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END)), 1, 8)
                 = decode('{}', 'hex') LIMIT 1))) IS NOT FALSE)",
                self.table(),
                self.tables.events.job_id.equals(job),
                digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            ),
        }
    }

    /// The columns that a key is made of: `number, time_key, id`, and `time_order, id_order` to sort by.
    pub fn key_list(&self) -> String {
        let EventColumns { id, order, id_key, .. } = self.columns();
        format!(
            "{number} AS number, {time_key} AS time_key, {id} AS id, {time_order} AS time_order, {id_key} AS id_order",
            number = self.key_number(),
            time_key = order.key_number(),
            time_order = order.key(),
        )
    }

    /// Expression: the number in a row's key, or null.
    fn key_number(&self) -> String {
        match self.scheme.order {
            RowOrder::Number => format!("e.{}::bigint", self.columns().seq),
            RowOrder::Time => "NULL::bigint".into(),
        }
    }

    /// The columns that an event is made of: `ordinal, xid, number, time_key, at, has_time, id, step_id, type, actor,
    /// payload`.
    ///
    /// `ordinal` counts in the order of keys; `number` is null where the key is none; `time_key` is the first part of
    /// the key otherwise, `at` is the time in microseconds since 1970. The payload is a text as
    /// [`PayloadColumn`](super::super::columns::PayloadColumn) has it.
    pub fn select_list(&self) -> String {
        self.select_list_with(&self.columns().payload.sql)
    }

    /// The same up to so many bytes of payloads, within each `partition` (`PARTITION BY …`, or nothing). Rows before which
    /// there are more have `is_withheld`, and no payload: the server does not even fetch it. `whole_bytes` and
    /// `compressed_bytes` are those of a payload as it is stored.
    pub fn select_list_up_to(&self, most: MostBytes, partition: &str) -> String {
        let PayloadColumn { sql, size: PayloadSize { whole, compressed }, .. } = &self.columns().payload;
        let MostBytes { bytes, expansion } = most;
        let own = format!("({whole} + {compressed} * {expansion}::bigint)");
        let order = self.order();
        let before = format!("(sum({own}) OVER ({partition} ORDER BY {order} ROWS UNBOUNDED PRECEDING) - {own})");
        let payload = format!("CASE WHEN {before} <= {bytes} THEN {sql} END");
        format!(
            "{list}, {whole} AS whole_bytes, {compressed} AS compressed_bytes, {before} > {bytes} AS is_withheld",
            list = self.select_list_with(&payload)
        )
    }

    fn select_list_with(&self, payload: &str) -> String {
        let EventColumns { id, step_id, kind, time, order, actor, .. } = self.columns();
        let number = self.key_number();
        format!(
            "row_number() OVER (ORDER BY {order}) AS ordinal, {xid} AS xid, {number} AS number,
             {time_key} AS time_key, {at} AS at, {has_time} AS has_time,
             {id} AS id, {step_id} AS step_id, {kind} AS type, {actor} AS actor, {payload} AS payload",
            order = self.order(),
            xid = self.xid(),
            time_key = order.key_number(),
            at = time.micros(),
            has_time = time.is_there(),
        )
    }
}
