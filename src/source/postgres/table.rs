//! What the operator's tables are like, and the SQL that speaks of them. Names come from settings and are quoted; what
//! the columns are is learnt from the catalogue.

use super::literal;
use super::position::{Ended, Key, KeyId};
use crate::config;
use crate::event::Rfc3339;
use crate::source::NewEvent;
use std::borrow::Cow;

/// The event table, and the job table where there is one.
#[derive(Clone, Debug)]
pub struct Tables {
    pub events: String,
    columns: Quoted,
    pub job_id: Ids,
    pub id: Ids,
    /// What the columns allow, at best.
    pub best: View,
    /// What the SQL here is written for.
    view: View,
    /// Rows from before the column was added have no number: they come first, by time.
    has_unnumbered: bool,
    pub jobs: Option<Jobs>,
    /// Whether the server says how far its log has got.
    pub tells_log: bool,
}

#[derive(Clone, Debug)]
struct Quoted {
    id: String,
    /// The id as a part of the order: never null.
    id_key: String,
    id_key_type: String,
    job_id: String,
    step_id: String,
    kind: String,
    timestamp: String,
    /// The timestamp as a part of the order: never null.
    time_key: String,
    actor: String,
    payload: String,
    seq: String,
    xid: String,
}

/// Row `j`.
#[derive(Clone, Debug)]
pub struct Jobs {
    pub table: String,
    pub id: Ids,
    pub status: String,
    /// The columns' quoted names.
    pub names: [String; 2],
}

/// How rows are told apart and ordered. A cursor means something in the view that it was made in only; a table that
/// gets columns for a better one (`jobcast schema postgres --migrate`) still honours those from before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub age: Age,
    pub order: Order,
}

impl View {
    pub const ALL: [Self; 4] = [
        Self { age: Age::Column, order: Order::Number },
        Self { age: Age::Column, order: Order::Time },
        Self { age: Age::System, order: Order::Number },
        Self { age: Age::System, order: Order::Time },
    ];

    /// What a cursor begins with.
    pub fn letter(self) -> char {
        match (self.age, self.order) {
            (Age::Column, Order::Number) => 'p',
            (Age::Column, Order::Time) => 'q',
            (Age::System, Order::Number) => 'v',
            (Age::System, Order::Time) => 'w',
        }
    }
}

/// Where a row's transaction is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Age {
    /// A column of type `xid8`, with an index.
    #[default]
    Column,
    /// The system column `xmin`: 32 bits, to be widened, and no index can serve it.
    System,
}

/// Which transactions had ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// All below the mark of the statement itself.
    Now,
    At(Ended),
}

/// What a job's rows are ordered by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    Number,
    /// The timestamp, then the id.
    Time,
}

/// A column as the catalogue tells it.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub kind: String,
    pub may_be_null: bool,
    pub has_default: bool,
}

/// A column of ids, and what its type takes.
#[derive(Clone, Debug)]
pub struct Ids {
    column: String,
    kind: String,
}

impl Ids {
    /// An id in the database's own spelling; `None` where it can be none of this type.
    pub fn spelled<'a>(&self, id: &'a str) -> Option<Cow<'a, str>> {
        match &*self.kind {
            "uuid" => uuid::Uuid::try_parse(id).ok().map(|uuid| uuid.to_string().into()),
            "bigint" => id.parse::<i64>().ok().map(|number| number.to_string().into()),
            "integer" => id.parse::<i32>().ok().map(|number| number.to_string().into()),
            "smallint" => id.parse::<i16>().ok().map(|number| number.to_string().into()),
            _ => Some(id.into()).filter(|_| !id.contains('\0')),
        }
    }

    /// That the column has this value.
    pub fn is(&self, id: &str) -> String {
        self.is_any([id])
    }

    /// That the column has one of these values.
    pub fn is_any<'a>(&self, ids: impl IntoIterator<Item = &'a str>) -> String {
        let list: Vec<String> = ids.into_iter().filter_map(|id| self.spelled(id)).map(|id| literal(&id)).collect();
        let (column, kind) = match &*self.kind {
            "uuid" | "bigint" | "integer" | "smallint" | "text" | "character varying" | "character" | "citext" => {
                (self.column.clone(), &*self.kind)
            }
            // whatever it is: by what it looks like
            _ => (format!("{}::text", self.column), "text"),
        };
        match &list[..] {
            [] => "false".into(),
            [one] => format!("{column} = {one}::{kind}"),
            many => format!("{column} = ANY (ARRAY[{}]::{kind}[])", many.join(",")),
        }
    }

    /// As a value of the column.
    pub fn value(&self, id: &str) -> String {
        format!("{}::{}", literal(self.spelled(id).as_deref().unwrap_or(id)), self.kind)
    }

    pub fn column(&self) -> &str {
        &self.column
    }
}

impl Tables {
    /// `None` for a column that must be there and is not: its setting and name.
    pub fn new(
        settings: &config::Postgres,
        events: &[Column],
        jobs: Option<&[Column]>,
        tells_log: bool,
    ) -> Result<Self, (&'static str, String)> {
        let names = &settings.columns;
        let find = |columns: &[Column], name: &str| columns.iter().find(|one| one.name == *name).cloned();
        let need = |key: &'static str, name: &str| find(events, name).ok_or((key, name.to_string()));
        let id = need("source.postgres.columns.id", &names.id)?;
        let job_id = need("source.postgres.columns.job_id", &names.job_id)?;
        need("source.postgres.columns.type", &names.kind)?;
        let timestamp = need("source.postgres.columns.timestamp", &names.timestamp)?;
        need("source.postgres.columns.payload", &names.payload)?;
        // these may be missing: then there is nothing to tell
        let optional = |name: &str| find(events, name).map_or("NULL".into(), |_| format!("e.{}", quote(name)));
        // a column that nothing fills tells nothing
        let xid = find(events, &names.xid)
            .filter(|column| column.kind == "xid8" && (!column.may_be_null || column.has_default));
        let seq = find(events, &names.seq).filter(|column| matches!(&*column.kind, "bigint" | "integer"));
        let has_unnumbered = seq.as_ref().is_some_and(|column| column.may_be_null);
        let own = |name: &str| format!("e.{}", quote(name));
        let (id_key, id_key_type) = match id.may_be_null {
            false => (own(&names.id), id.kind.clone()),
            true => (format!("coalesce({}::text, '')", own(&names.id)), "text".into()),
        };
        let time_key = match timestamp.may_be_null {
            false => own(&names.timestamp),
            true => format!("coalesce({}, '-infinity')", own(&names.timestamp)),
        };
        let jobs = match jobs {
            None => None,
            Some(columns) => {
                let names = &settings.job_columns;
                let need = |key: &'static str, name: &str| find(columns, name).ok_or((key, name.to_string()));
                let id = need("source.postgres.job_columns.id", &names.id)?;
                need("source.postgres.job_columns.status", &names.status)?;
                let own = |name: &str| format!("j.{}", quote(name));
                Some(Jobs {
                    table: quote_table(&settings.jobs_table),
                    id: Ids { column: own(&names.id), kind: id.kind },
                    status: own(&names.status),
                    names: [quote(&names.id), quote(&names.status)],
                })
            }
        };
        let best = View {
            age: if xid.is_some() { Age::Column } else { Age::System },
            order: if seq.is_some() { Order::Number } else { Order::Time },
        };
        Ok(Self {
            events: quote_table(&settings.events_table),
            columns: Quoted {
                id: own(&names.id),
                id_key,
                id_key_type,
                job_id: own(&names.job_id),
                step_id: optional(&names.step_id),
                kind: own(&names.kind),
                timestamp: own(&names.timestamp),
                time_key,
                actor: optional(&names.actor),
                payload: own(&names.payload),
                seq: own(&names.seq),
                xid: own(&names.xid),
            },
            job_id: Ids { column: own(&names.job_id), kind: job_id.kind },
            id: Ids { column: own(&names.id), kind: id.kind },
            best,
            view: best,
            has_unnumbered,
            jobs,
            tells_log,
        })
    }

    /// The same, for a position of another view; what the columns do not allow stays as it is.
    pub fn seen_by(&self, view: View) -> Cow<'_, Self> {
        let age = if self.best.age == Age::Column { view.age } else { Age::System };
        let order = if self.best.order == Order::Number { view.order } else { Order::Time };
        match (View { age, order }) {
            view if view == self.view => Cow::Borrowed(self),
            view => Cow::Owned(Self { view, ..self.clone() }),
        }
    }

    /// Whether there are columns for all that this view tells by.
    pub fn allows(&self, view: View) -> bool {
        self.seen_by(view).view == view
    }

    pub fn has_unnumbered(&self) -> bool {
        self.has_unnumbered
    }

    pub fn age(&self) -> Age {
        self.view.age
    }

    pub fn order(&self) -> Order {
        self.view.order
    }

    /// Where some rows have no number, and come before those that have: for the ones, and for the others.
    pub fn halves(&self) -> Option<(Cow<'_, Self>, Self)> {
        (self.has_unnumbered && self.order() == Order::Number).then(|| {
            let unnumbered = self.seen_by(View { order: Order::Time, ..self.view });
            (unnumbered, Self { has_unnumbered: false, ..self.clone() })
        })
    }

    /// The transaction that wrote row `e`, as a bigint. Rows from before the column was added are older than any that
    /// is open. Of the system column the age is asked: a row can be seen, so it is older than what comes next (`base`),
    /// or so old that 32 bits cannot tell.
    pub fn xid(&self) -> String {
        match self.age() {
            Age::Column => format!("coalesce({}::text::bigint, 0)", self.columns.xid),
            Age::System => "CASE WHEN age(e.xmin) > 0 THEN (SELECT base FROM s) - age(e.xmin) ELSE 0 END".into(),
        }
    }

    fn one(&self, xid: u64) -> String {
        match self.age() {
            Age::Column => format!("'{xid}'::xid8"),
            Age::System => xid.to_string(),
        }
    }

    fn some<'a>(&self, xids: impl IntoIterator<Item = &'a u64>) -> String {
        let list = xids.into_iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        format!("'{{{list}}}'::{}[]", if self.age() == Age::Column { "xid8" } else { "bigint" })
    }

    /// The column itself, which an index can serve.
    pub fn raw_xid(&self) -> String {
        match self.age() {
            Age::Column => self.columns.xid.clone(),
            Age::System => self.xid(),
        }
    }

    /// That row `e` was written by a transaction that had not ended by then.
    pub fn since(&self, then: &Mark) -> String {
        let xid = self.raw_xid();
        match then {
            Mark::At(ended) if ended.mark == 0 => "true".into(),
            Mark::At(ended) if ended.open.is_empty() => format!("{xid} >= {}", self.one(ended.mark)),
            Mark::At(ended) => {
                format!("({xid} >= {} OR {xid} = ANY ({}))", self.one(ended.mark), self.some(&ended.open))
            }
            Mark::Now => match self.age() {
                Age::Column => format!("{xid} >= (SELECT mark8 FROM m)"),
                Age::System => format!("{xid} >= (SELECT mark FROM m)"),
            },
        }
    }

    /// That row `e` was written by a transaction that had ended by then.
    pub fn before(&self, then: &Mark) -> String {
        let xid = self.raw_xid();
        let below = match then {
            Mark::At(ended) if ended.open.is_empty() => format!("{xid} < {}", self.one(ended.mark)),
            Mark::At(ended) => {
                format!("({xid} < {} AND {xid} <> ALL ({}))", self.one(ended.mark), self.some(&ended.open))
            }
            Mark::Now => match self.age() {
                Age::Column => format!("{xid} < (SELECT mark8 FROM m)"),
                Age::System => format!("{xid} < (SELECT mark FROM m)"),
            },
        };
        // rows from before the column was added
        if self.age() == Age::Column { format!("({xid} IS NULL OR {below})") } else { below }
    }

    /// That row `e` was written by just this transaction; none has 0 but those that no column tells of.
    pub fn of(&self, xid: u64) -> String {
        match self.age() {
            Age::Column if xid == 0 => format!("{} IS NULL", self.columns.xid),
            Age::Column => format!("{} = '{xid}'::xid8", self.columns.xid),
            Age::System => format!("{} = {xid}", self.xid()),
        }
    }

    /// That row `e` was not seen by a snapshot of a primary, of which all below `reached` stays true. By the column only,
    /// which has what a snapshot lists; two short ranges of its index.
    pub fn not_seen_by(&self, snapshot: &str, reached: u64) -> String {
        let mut parts = snapshot.splitn(3, ':');
        let xmax = parts.nth(1).and_then(|xmax| xmax.parse().ok()).unwrap_or(0);
        let (xid, open) = (&self.columns.xid, parts.next().unwrap_or_default());
        format!("({xid} >= {} OR {xid} = ANY ('{{{open}}}'::xid8[]))", self.one(reached.min(xmax)))
    }

    /// That row `e` is not older than a look back in seconds.
    pub fn lately(&self, seconds: f64) -> String {
        format!("{} > now() - interval '{seconds} seconds'", self.columns.timestamp)
    }

    pub fn kind(&self) -> &str {
        &self.columns.kind
    }

    pub fn timestamp(&self) -> &str {
        &self.columns.timestamp
    }

    /// What rows are ordered by.
    pub fn key(&self) -> String {
        let Quoted { seq, time_key, id_key, .. } = &self.columns;
        match self.order() {
            Order::Number if self.has_unnumbered => format!("{seq} NULLS FIRST, {time_key}, {id_key}"),
            Order::Number => seq.clone(),
            Order::Time => format!("{time_key}, {id_key}"),
        }
    }

    /// The same as a row that may be compared.
    pub fn comparable_key(&self) -> String {
        let Quoted { seq, time_key, id_key, .. } = &self.columns;
        match self.order() {
            Order::Number if self.has_unnumbered => {
                format!("coalesce({seq}, '{}'::bigint), {time_key}, {id_key}", i64::MIN)
            }
            _ => self.key(),
        }
    }

    /// That row `e` has no number.
    pub fn is_unnumbered(&self) -> String {
        format!("{} IS NULL", self.columns.seq)
    }

    /// That row `e` comes after a key of a job.
    pub fn after(&self, job: &str, key: &Key) -> String {
        let Quoted { seq, time_key, id_key, id_key_type, .. } = &self.columns;
        match (self.order(), key) {
            (Order::Number, Key::Number(number)) => format!("{seq} > {number}"),
            // of another order, which this table has no more: rather once more than never
            (Order::Time, Key::Number(_)) => "true".into(),
            (order, Key::Time { at, id }) => {
                let at = match *at {
                    i64::MIN => "'-infinity'".into(),
                    i64::MAX => "'infinity'".into(),
                    at => format!("'epoch'::timestamptz + {at} * interval '1 microsecond'"),
                };
                let later = match id {
                    KeyId::Whole(id) => format!("({time_key}, {id_key}) > ({at}, {}::{id_key_type})", literal(id)),
                    // where it is gone, all of the same time come once more
                    KeyId::Digest(digest) => format!(
                        "({time_key} >= {at} AND (({time_key}, {id_key}) > ({at}, (SELECT {id_key} FROM {} e
                         WHERE {} AND {time_key} = {at} AND substr(sha256(convert_to({id_key}::text, 'UTF8')), 1, 8)
                         = decode('{}', 'hex') LIMIT 1))) IS NOT FALSE)",
                        self.events,
                        self.job_id.is(job),
                        digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
                    ),
                };
                match order {
                    Order::Time => later,
                    Order::Number => format!("({seq} IS NOT NULL OR {later})"),
                }
            }
        }
    }

    /// `place, xid, key, at, id, step_id, type, actor, payload` of row `e`; `place` by key, `at` in microseconds since
    /// 1970, `key` only where it is a number.
    pub fn row(&self) -> String {
        let Quoted { id, step_id, kind, time_key, actor, payload, seq, .. } = &self.columns;
        let number = match self.order() {
            Order::Number => format!("{seq}::bigint"),
            Order::Time => "NULL::bigint".into(),
        };
        format!(
            "row_number() OVER (ORDER BY {}) AS place, {} AS xid, {number} AS key,
             CASE WHEN isfinite({time_key}) THEN (extract(epoch FROM {time_key}) * 1000000)::bigint
                  WHEN {time_key} < 'epoch' THEN '{}'::bigint ELSE '{}'::bigint END AS at,
             coalesce({id}::text, '') AS id, {step_id}::text AS step_id, coalesce({kind}::text, '') AS type,
             {actor}::text AS actor, {payload}::text AS payload",
            self.key(),
            self.xid(),
            i64::MIN,
            i64::MAX,
        )
    }

    /// Inserts events; those who know the columns' types are the columns.
    pub fn insert<'a>(&self, job: &str, events: impl Iterator<Item = &'a NewEvent>) -> String {
        let Quoted { id, job_id, step_id, kind, timestamp, actor, payload, .. } = &self.columns;
        let text = |text: Option<&str>| text.map_or_else(|| "NULL".into(), literal);
        let rows: Vec<String> = events
            .map(|event| {
                let mut row = vec![literal(&event.id), literal(job), literal(&event.kind)];
                row.push(literal(&Rfc3339(event.timestamp).to_string()));
                row.push(literal(event.payload.as_json()));
                row.extend((step_id != "NULL").then(|| text(event.step_id.as_deref())));
                row.extend((actor != "NULL").then(|| text(event.actor.as_deref())));
                format!("({})", row.join(", "))
            })
            .collect();
        let names = [id, job_id, kind, timestamp, payload, step_id, actor];
        let names: Vec<&str> = names.into_iter().filter_map(|name| name.strip_prefix("e.")).collect();
        format!("INSERT INTO {} ({}) VALUES {}", self.events, names.join(", "), rows.join(", "))
    }
}

/// An identifier, whatever stands in it.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `schema.table`, or a table in the search path.
pub fn quote_table(name: &str) -> String {
    name.split('.').map(quote).collect::<Vec<_>>().join(".")
}
