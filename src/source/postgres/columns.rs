//! The parts of an event as expressions on its row `e`, by the operator's settings and the columns' types.

use super::lookup::Lookup;
use super::problem::SchemaProblem;
use super::sql::{literal, quote, zone};
use super::tables::Column;
use crate::config::{self, EventOrder, Field, PayloadColumns, PayloadKind, TimestampUnit};
use crate::event::{Part, Payload, text_of};

/// Expressions on `e` for the parts of an event.
#[derive(Clone, Debug)]
pub struct EventColumns {
    /// A text, never null.
    pub id: String,
    /// A text, never null.
    pub kind: String,
    /// A text or null.
    pub step_id: String,
    /// A text or null.
    pub actor: String,
    pub payload: PayloadColumn,
    pub time: TimeColumn,
    /// The first part of the order where the scheme does not order by numbers alone: the time, or a number that does not
    /// tell a job's events apart, so that the id has to.
    pub order: TimeColumn,
    /// A column of whole numbers that orders a job's events, whether or not they tell them apart.
    pub number: Option<String>,
    /// Quoted name. In a statement only where the scheme orders by numbers.
    pub seq: String,
    /// Quoted name. In a statement only where the scheme has transactions in a column.
    pub xid: String,
    /// The id as a part of the order, never null.
    pub id_key: String,
    pub id_key_type: String,
}

/// The payload of an event.
#[derive(Clone, Debug)]
pub struct PayloadColumn {
    /// A text or null.
    pub sql: String,
    pub size: PayloadSize,
    /// The text is the hexadecimal form of bytes.
    pub is_hex: bool,
    /// The text is JSON.
    pub is_json: bool,
}

/// Expressions for the bytes of a payload, which the server tells without fetching it.
#[derive(Clone, Debug)]
pub struct PayloadSize {
    /// Bytes of what is stored as it is, or whose whole length the server knows.
    pub whole: String,
    /// Bytes of what is stored compressed, in that form.
    pub compressed: String,
}

/// The time of an event.
#[derive(Clone, Debug)]
pub struct TimeColumn {
    /// The column, quoted, with its row; `None` where there is none.
    column: Option<String>,
    may_be_null: bool,
    kind: TimeKind,
}

/// The type of a column of times.
#[derive(Clone, Debug)]
enum TimeKind {
    /// `timestamp with time zone`
    Zoned,
    /// `timestamp without time zone` or `date`, with the zone that it is meant in, as an expression.
    Local { zone: String },
    /// A whole number.
    Integer(TimestampUnit),
    /// A number with a fraction, which no index serves.
    Fraction(TimestampUnit),
}

impl EventColumns {
    /// Resolves the names in the settings. A step or an actor that only the defaults name may be missing. Notes what is
    /// wrong; then the result means nothing.
    pub fn resolve(settings: &config::Postgres, lookup: &mut Lookup) -> Self {
        let (names, usual) = (&settings.columns, config::Columns::default());
        let field = |lookup: &mut Lookup, setting, field: &Field, usual: &Field| match field {
            Field::Absent => None,
            Field::Constant(text) => Some(literal(text)),
            Field::Column(name) => {
                let column = lookup.named_unless(usual.column().unwrap_or_default(), setting, name);
                column.map(|column| format!("e.{}::text", quote(&column.name)))
            }
        };
        let seq = lookup.relation.find(&names.seq);
        let (id, id_key, id_key_type) = Self::resolve_id(settings, lookup, seq);
        let time = lookup.named("source.postgres.columns.timestamp", &names.timestamp);
        let time = TimeColumn::resolve(settings, lookup, time);
        let number = seq.filter(|seq| seq.is_whole_number() && settings.order == EventOrder::Seq);
        let repeated = number.filter(|seq| !seq.is_unique);
        let kind = field(lookup, "source.postgres.columns.type", &names.kind, &Field::Absent);
        let step_id = field(lookup, "source.postgres.columns.step_id", &names.step_id, &usual.step_id);
        let actor = field(lookup, "source.postgres.columns.actor", &names.actor, &usual.actor);
        Self {
            id,
            number: number.map(|seq| format!("e.{}", quote(&seq.name))),
            order: repeated.map_or_else(|| time.clone(), TimeColumn::of_number),
            kind: kind.map_or_else(|| literal("event"), |kind| format!("coalesce({kind}, '')")),
            step_id: step_id.unwrap_or_else(|| "NULL::text".into()),
            actor: actor.unwrap_or_else(|| "NULL::text".into()),
            payload: PayloadColumn::resolve(settings, lookup),
            time,
            seq: quote(&names.seq),
            xid: quote(&names.xid),
            id_key,
            id_key_type,
        }
    }

    /// Returns true where nothing tells the events apart but the place of a row in its table.
    pub fn ids_are_places(&self) -> bool {
        self.id_key_type == "tid"
    }

    /// Returns the id as a text, as a part of the order, and the type of the latter.
    fn resolve_id(settings: &config::Postgres, lookup: &mut Lookup, seq: Option<&Column>) -> (String, String, String) {
        let name = &settings.columns.id;
        let as_is = |column: &Column| {
            let quoted = format!("e.{}", quote(&column.name));
            (format!("{quoted}::text"), quoted, column.cast().into())
        };
        match (lookup.named("source.postgres.columns.id", name), seq) {
            (Some(id), _) if id.may_be_null => {
                let text = format!("coalesce(e.{}::text, '')", quote(&id.name));
                (text.clone(), text, "text".into())
            }
            (Some(id), _) => as_is(id),
            (None, Some(seq)) => as_is(seq),
            (None, None) => {
                if !lookup.relation.is_plain() && name.is_empty() {
                    let nearest = lookup.nearest("source.postgres.columns.id", "id");
                    lookup.note(SchemaProblem::AmbiguousEvents { table: lookup.relation.name.clone(), nearest });
                }
                ("e.ctid::text".into(), "e.ctid".into(), "tid".into())
            }
        }
    }
}

impl PayloadColumn {
    fn resolve(settings: &config::Postgres, lookup: &mut Lookup) -> Self {
        const SETTING: &str = "source.postgres.columns.payload";
        let tells_compression = lookup.relation.tells_compression;
        let object = |columns: Vec<&Column>| Self::object(&columns, tells_compression);
        match &settings.columns.payload {
            PayloadColumns::Absent => Self::none(),
            PayloadColumns::One(name) => lookup
                .named(SETTING, name)
                .map_or_else(Self::none, |column| Self::of(column, settings.payload_kind, tells_compression)),
            PayloadColumns::Object(names) => object(lookup.named_list(SETTING, names)),
            // A view may hand on the transaction as a column, which is nobody's payload.
            PayloadColumns::Row => {
                object(lookup.relation.columns.iter().filter(|column| column.kind != "xid").collect())
            }
        }
    }

    fn of(column: &Column, kind: PayloadKind, tells_compression: bool) -> Self {
        let name = format!("e.{}", quote(&column.name));
        let (is_bytes, is_json_type) = (column.kind == "bytea", matches!(&*column.kind, "json" | "jsonb"));
        let is_value = column.is_number() || column.kind == "boolean" || column.kind.ends_with("[]");
        let text = format!("{name}::text");
        let (sql, is_json) = match kind {
            _ if is_bytes => (format!("encode({name}, 'hex')"), kind == PayloadKind::Json),
            PayloadKind::Auto | PayloadKind::Json if is_value => (format!("to_json({name})::text"), true),
            PayloadKind::Auto => (text, is_json_type),
            PayloadKind::Json => (text, true),
            PayloadKind::Text | PayloadKind::Bytes => (text, false),
        };
        Self { sql, size: PayloadSize::of(&[column], tells_compression), is_hex: is_bytes, is_json }
    }

    /// An object of columns. By a row of just these, since a function takes a hundred arguments at most.
    fn object(columns: &[&Column], tells_compression: bool) -> Self {
        let list: Vec<String> = columns.iter().map(|column| format!("e.{}", quote(&column.name))).collect();
        let sql = format!("(SELECT row_to_json(part)::text FROM (SELECT {}) part)", list.join(", "));
        Self { size: PayloadSize::of(columns, tells_compression), ..Self::json(sql) }
    }

    fn none() -> Self {
        Self::json("NULL::text".into())
    }

    fn json(sql: String) -> Self {
        Self { sql, size: PayloadSize::of(&[], false), is_hex: false, is_json: true }
    }

    /// Reads the value of the expression. What is no UTF-8 or no JSON, where it should be, becomes a text as far as it can
    /// be read, and the payload joins the `unreadable` parts.
    pub fn read(&self, value: Option<Vec<u8>>, unreadable: &mut Vec<Part>) -> Payload {
        let Some(value) = value else { return Payload::null() };
        let bytes = if self.is_hex { decode_hex(&value) } else { Some(value) };
        let text = text_of(Part::Payload, bytes.unwrap_or_default(), unreadable);
        if !self.is_json {
            return Payload::text(&text);
        }
        Payload::json(&text).unwrap_or_else(|| {
            if !unreadable.contains(&Part::Payload) {
                unreadable.push(Part::Payload);
            }
            Payload::text(&text)
        })
    }
}

impl PayloadSize {
    /// The size of some columns. Servers before 14 do not tell what is compressed: there that counts as it is stored.
    fn of(columns: &[&Column], tells_compression: bool) -> Self {
        let (mut whole, mut compressed) = (Vec::new(), Vec::new());
        for column in columns {
            let name = format!("e.{}", quote(&column.name));
            let stored = format!("coalesce(pg_column_size({name}), 0)");
            if matches!(&*column.kind, "text" | "character varying" | "bytea") {
                whole.push(format!("coalesce(octet_length({name}), 0)"));
            } else if tells_compression {
                let is_compressed = format!("pg_column_compression({name}) IS NOT NULL");
                whole.push(format!("CASE WHEN {is_compressed} THEN 0 ELSE {stored} END"));
                compressed.push(format!("CASE WHEN {is_compressed} THEN {stored} ELSE 0 END"));
            } else {
                whole.push(stored);
            }
        }
        let sum = |parts: Vec<String>| if parts.is_empty() { "0".into() } else { format!("({})", parts.join(" + ")) };
        Self { whole: sum(whole), compressed: sum(compressed) }
    }
}

fn decode_hex(digits: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(digits).ok()?;
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

impl TimeColumn {
    fn resolve(settings: &config::Postgres, lookup: &mut Lookup, column: Option<&Column>) -> Self {
        let none = || Self { column: None, may_be_null: false, kind: TimeKind::Integer(TimestampUnit::Us) };
        let Some(column) = column else { return none() };
        let kind = match &*column.kind {
            "timestamp with time zone" => TimeKind::Zoned,
            "timestamp without time zone" | "date" => TimeKind::Local { zone: zone(&settings.timestamp_zone) },
            "bigint" | "integer" => TimeKind::Integer(settings.timestamp_unit),
            "numeric" | "double precision" | "real" => TimeKind::Fraction(settings.timestamp_unit),
            other => {
                let nearest = lookup.nearest("source.postgres.columns.timestamp", &column.name);
                let (name, kind) = (column.name.clone(), other.into());
                lookup.note(SchemaProblem::UnusableTime { name, kind, nearest });
                return none();
            }
        };
        Self::of(column, kind)
    }

    /// A number that takes the place of the time in the order.
    fn of_number(column: &Column) -> Self {
        Self::of(column, TimeKind::Integer(TimestampUnit::Us))
    }

    fn of(column: &Column, kind: TimeKind) -> Self {
        Self { column: Some(format!("e.{}", quote(&column.name))), may_be_null: column.may_be_null, kind }
    }

    pub fn column(&self) -> Option<&str> {
        self.column.as_deref()
    }

    /// Conditions: the key is the lowest of all, as it is of rows without a time, and it is another one. Of the others the
    /// column itself is the key. `None` where it is so of all rows, and where no index can serve.
    pub fn lowest_and_others(&self) -> Option<(String, String)> {
        let column = self.column().filter(|_| self.may_be_null && !matches!(self.kind, TimeKind::Fraction(_)))?;
        let lowest = self.key_value(i64::MIN);
        Some((format!("({column} IS NULL OR {column} = {lowest})"), format!("{column} > {lowest}")))
    }

    /// Expression: microseconds since 1970 as a bigint, or null. Beyond all calendars it is the lowest or the highest
    /// number.
    pub fn micros(&self) -> String {
        let Some(column) = &self.column else { return "NULL::bigint".into() };
        match &self.kind {
            TimeKind::Zoned => micros_of(column),
            TimeKind::Local { zone } => micros_of(&format!("({column}::timestamp AT TIME ZONE {zone})")),
            TimeKind::Integer(unit) | TimeKind::Fraction(unit) => scaled(column, *unit),
        }
    }

    /// Expression: the row has a time.
    pub fn is_there(&self) -> String {
        self.column.as_ref().map_or_else(|| "false".into(), |column| format!("{column} IS NOT NULL"))
    }

    /// Expression: the time as a part of the order, never null.
    pub fn key(&self) -> String {
        let Some(column) = &self.column else { return "0::bigint".into() };
        match &self.kind {
            TimeKind::Fraction(unit) => format!("coalesce({}, '{}'::bigint)", scaled(column, *unit), i64::MIN),
            TimeKind::Integer(_) if self.may_be_null => format!("coalesce({column}::bigint, '{}'::bigint)", i64::MIN),
            TimeKind::Zoned | TimeKind::Local { .. } if self.may_be_null => format!("coalesce({column}, '-infinity')"),
            _ => column.clone(),
        }
    }

    /// Expression: the key as a bigint.
    pub fn key_number(&self) -> String {
        match &self.kind {
            TimeKind::Zoned | TimeKind::Local { .. } => micros_of(&self.key()),
            TimeKind::Integer(_) | TimeKind::Fraction(_) => format!("{}::bigint", self.key()),
        }
    }

    /// The key with this number, as a value that [`TimeColumn::key`] is compared with.
    pub fn key_value(&self, number: i64) -> String {
        let epoch = match &self.kind {
            TimeKind::Zoned => "'epoch'::timestamptz",
            TimeKind::Local { .. } => "'epoch'::timestamp",
            TimeKind::Integer(_) | TimeKind::Fraction(_) => return format!("'{number}'::bigint"),
        };
        match number {
            ..FIRST_MICROSECOND => "'-infinity'".into(),
            i64::MAX => "'infinity'".into(),
            // Intervals are multiplied as doubles, which have no room for all microseconds after the year 2255.
            number => {
                let (seconds, rest) = (number.div_euclid(1_000_000), number.rem_euclid(1_000_000));
                format!("{epoch} + {seconds} * interval '1 second' + {rest} * interval '1 microsecond'")
            }
        }
    }

    /// Expression: the time as a `timestamptz`, or null.
    pub fn instant(&self) -> String {
        let Some(column) = &self.column else { return "NULL::timestamptz".into() };
        match &self.kind {
            TimeKind::Zoned => column.clone(),
            TimeKind::Local { zone } => format!("({column}::timestamp AT TIME ZONE {zone})"),
            TimeKind::Integer(unit) | TimeKind::Fraction(unit) => {
                // Years that `to_timestamp` takes, so that no row can make a statement fail.
                let micros = scaled(column, *unit);
                format!("to_timestamp(least(greatest({micros}, 0), 253402300799000000) / 1000000.0)")
            }
        }
    }

    /// Expression on the rows of a job: the newest time, which an index may serve.
    pub fn newest(&self) -> String {
        match (&self.column, &self.kind) {
            (Some(column), TimeKind::Zoned | TimeKind::Local { .. } | TimeKind::Integer(_)) => {
                let newest = Self { column: Some(format!("max({column})")), ..self.clone() };
                newest.instant()
            }
            _ => format!("max({})", self.instant()),
        }
    }

    /// Condition: the time is at most so many seconds old.
    pub fn is_younger_than(&self, seconds: f64) -> String {
        self.compared_to_age(">", seconds)
    }

    /// Condition: the time is older than that. Not true where there is none.
    pub fn is_older_than(&self, seconds: f64) -> String {
        self.compared_to_age("<=", seconds)
    }

    fn compared_to_age(&self, operator: &str, seconds: f64) -> String {
        let Some(column) = &self.column else { return "true".into() };
        let since = |per_second: i64| format!("((extract(epoch FROM now()) - {seconds}) * {per_second})::bigint");
        match &self.kind {
            TimeKind::Zoned => format!("{column} {operator} now() - interval '{seconds} seconds'"),
            TimeKind::Local { zone } => {
                format!("{column} {operator} (now() AT TIME ZONE {zone}) - interval '{seconds} seconds'")
            }
            // As it is stored, so that an index serves, where the unit is known.
            TimeKind::Integer(unit) if let Some(per_second) = per_second(*unit) => {
                format!("{column} {operator} {}", since(per_second))
            }
            TimeKind::Integer(unit) | TimeKind::Fraction(unit) => {
                format!("{} {operator} {}", scaled(column, *unit), since(1_000_000))
            }
        }
    }

    /// Returns true where an index on the column finds the rows with a key above another.
    pub fn is_ordered_by_column(&self) -> bool {
        self.column.is_some() && !matches!(self.kind, TimeKind::Fraction(_))
    }

    /// Expression: the key, as a bigint, that is next below that of a row which has a time.
    pub fn next_lower_number(&self) -> String {
        // The calendar has no time before its first.
        let lowest = if matches!(self.kind, TimeKind::Integer(_)) { i64::MIN } else { FIRST_MICROSECOND };
        format!("greatest({}, {}) - 1", self.key_number(), lowest + 1)
    }

    /// The key whose number is the value of a bigint expression, as [`TimeColumn::key_value`] has it.
    pub fn key_value_of(&self, number: &str) -> String {
        let epoch = match &self.kind {
            TimeKind::Zoned => "'epoch'::timestamptz",
            TimeKind::Local { .. } => "'epoch'::timestamp",
            TimeKind::Integer(_) | TimeKind::Fraction(_) => return number.into(),
        };
        format!(
            "CASE WHEN {number} < {FIRST_MICROSECOND} THEN '-infinity'
                  ELSE {epoch} + {number} / 1000000 * interval '1 second' + {number} % 1000000 * interval '1 microsecond' END"
        )
    }
}

/// The first time of PostgreSQL's calendar, 24 November 4714 BC, in microseconds since 1970.
const FIRST_MICROSECOND: i64 = -210_866_803_200_000_000;

/// Microseconds since 1970 of a time that may be infinite.
fn micros_of(time: &str) -> String {
    format!(
        "CASE WHEN isfinite({time}) THEN least(extract(epoch FROM {time}) * 1000000, '{max}')::bigint
                  WHEN {time} < 'epoch' THEN '{min}'::bigint ELSE '{max}'::bigint END",
        min = i64::MIN,
        max = i64::MAX,
    )
}

/// Units in a second; `None` where the number itself tells.
fn per_second(unit: TimestampUnit) -> Option<i64> {
    match unit {
        TimestampUnit::Auto => None,
        TimestampUnit::S => Some(1),
        TimestampUnit::Ms => Some(1_000),
        TimestampUnit::Us => Some(1_000_000),
        TimestampUnit::Ns => Some(1_000_000_000),
    }
}

/// A number of some unit as microseconds. No number makes the statement fail.
fn scaled(column: &str, unit: TimestampUnit) -> String {
    let number = format!("{column}::numeric");
    let micros = match unit {
        TimestampUnit::S => format!("{number} * 1000000"),
        TimestampUnit::Ms => format!("{number} * 1000"),
        TimestampUnit::Us => number,
        TimestampUnit::Ns => format!("{number} / 1000"),
        TimestampUnit::Auto => format!(
            "CASE WHEN abs({number}) < 1e11 THEN {number} * 1000000 WHEN abs({number}) < 1e14 THEN {number} * 1000
                  WHEN abs({number}) < 1e17 THEN {number} ELSE {number} / 1000 END"
        ),
    };
    format!("least(greatest(floor({micros}), '{}'), '{}')::bigint", i64::MIN, i64::MAX)
}
