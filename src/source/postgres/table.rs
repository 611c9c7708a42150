//! What the operator's tables are like, and the SQL that speaks of them. Names come from settings and are quoted; what
//! the columns are is learnt from the catalogue.

use super::literal;
use super::position::{Ended, Key};
use crate::config;
use crate::event::Rfc3339;
use crate::source::NewEvent;
use std::fmt::Write;

/// The event table, and the job table where there is one.
#[derive(Clone, Debug)]
pub struct Tables {
    pub events: String,
    columns: Quoted,
    /// The type of `job_id`, to compare it with.
    pub job_type: String,
    pub id_type: String,
    pub age: Age,
    pub order: Order,
    pub jobs: Option<Jobs>,
}

#[derive(Clone, Debug)]
struct Quoted {
    id: String,
    job_id: String,
    step_id: String,
    kind: String,
    timestamp: String,
    actor: String,
    payload: String,
    seq: String,
    xid: String,
}

#[derive(Clone, Debug)]
pub struct Jobs {
    pub table: String,
    pub id: String,
    pub id_type: String,
    pub status: String,
}

/// Where a row's transaction is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// A column of type `xid8`, with an index.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Number,
    Time,
}

/// A column as the catalogue tells it.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub kind: String,
}

impl Tables {
    /// `None` for a column that must be there and is not: its setting and name.
    pub fn new(
        settings: &config::Postgres,
        events: &[Column],
        jobs: Option<&[Column]>,
    ) -> Result<Self, (&'static str, String)> {
        let names = &settings.columns;
        let find = |columns: &[Column], name: &str| columns.iter().find(|one| one.name == *name).cloned();
        let need = |key: &'static str, name: &str| find(events, name).ok_or((key, name.to_string()));
        let id = need("source.postgres.columns.id", &names.id)?;
        let job_id = need("source.postgres.columns.job_id", &names.job_id)?;
        need("source.postgres.columns.type", &names.kind)?;
        need("source.postgres.columns.timestamp", &names.timestamp)?;
        need("source.postgres.columns.payload", &names.payload)?;
        // these may be missing: then there is nothing to tell
        let optional = |name: &str| find(events, name).map_or("NULL".into(), |_| format!("e.{}", quote(name)));
        let xid = find(events, &names.xid).filter(|column| column.kind == "xid8");
        let seq = find(events, &names.seq).filter(|column| matches!(&*column.kind, "bigint" | "integer"));
        let own = |name: &str| format!("e.{}", quote(name));
        let jobs = match jobs {
            None => None,
            Some(columns) => {
                let names = &settings.job_columns;
                let need = |key: &'static str, name: &str| find(columns, name).ok_or((key, name.to_string()));
                let id = need("source.postgres.job_columns.id", &names.id)?;
                need("source.postgres.job_columns.status", &names.status)?;
                Some(Jobs {
                    table: quote_table(&settings.jobs_table),
                    id: quote(&names.id),
                    id_type: id.kind,
                    status: quote(&names.status),
                })
            }
        };
        Ok(Self {
            events: quote_table(&settings.events_table),
            columns: Quoted {
                id: own(&names.id),
                job_id: own(&names.job_id),
                step_id: optional(&names.step_id),
                kind: own(&names.kind),
                timestamp: own(&names.timestamp),
                actor: optional(&names.actor),
                payload: own(&names.payload),
                seq: own(&names.seq),
                xid: own(&names.xid),
            },
            job_type: job_id.kind,
            id_type: id.kind,
            age: if xid.is_some() { Age::Column } else { Age::System },
            order: if seq.is_some() { Order::Number } else { Order::Time },
            jobs,
        })
    }

    /// The transaction that wrote row `e`, as a bigint. Rows from before the column was added are older than any that
    /// is open.
    fn xid(&self) -> String {
        match self.age {
            Age::Column => format!("coalesce({}::text::bigint, 0)", self.columns.xid),
            Age::System => "CASE WHEN e.xmin::text::bigint < 3 THEN 0 ELSE greatest(0, (SELECT xmax FROM s) - \
                            (((SELECT xmax FROM s) - e.xmin::text::bigint) & 4294967295)) END"
                .into(),
        }
    }

    fn one(&self, xid: u64) -> String {
        match self.age {
            Age::Column => format!("'{xid}'::xid8"),
            Age::System => xid.to_string(),
        }
    }

    fn some<'a>(&self, xids: impl IntoIterator<Item = &'a u64>) -> String {
        let list = xids.into_iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        format!("'{{{list}}}'::{}[]", if self.age == Age::Column { "xid8" } else { "bigint" })
    }

    /// The column itself, which an index can serve.
    fn raw_xid(&self) -> String {
        match self.age {
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
            Mark::Now => match self.age {
                Age::Column => format!("{xid} >= (SELECT mark8 FROM s)"),
                Age::System => format!("{xid} >= (SELECT mark FROM s)"),
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
            Mark::Now => match self.age {
                Age::Column => format!("{xid} < (SELECT mark8 FROM s)"),
                Age::System => format!("{xid} < (SELECT mark FROM s)"),
            },
        };
        // rows from before the column was added
        if self.age == Age::Column { format!("({xid} IS NULL OR {below})") } else { below }
    }

    /// That row `e` was written by just this transaction.
    pub fn of(&self, xid: u64) -> String {
        match self.age {
            Age::Column => format!("{} = '{xid}'::xid8", self.columns.xid),
            Age::System => format!("{} = {xid}", self.xid()),
        }
    }

    /// That row `e` cannot have been seen by a snapshot; only where that is certain.
    pub fn not_seen_by(&self, snapshot: &str) -> String {
        format!("NOT pg_visible_in_snapshot({}, '{snapshot}'::pg_snapshot)", self.columns.xid)
    }

    /// That row `e` is not older than a look back in seconds.
    pub fn lately(&self, seconds: f64) -> String {
        format!("{} > now() - interval '{seconds} seconds'", self.columns.timestamp)
    }

    pub fn has_jobs(&self) -> bool {
        self.jobs.is_some()
    }

    pub fn job_id(&self) -> &str {
        &self.columns.job_id
    }

    pub fn timestamp(&self) -> &str {
        &self.columns.timestamp
    }

    pub fn id(&self) -> &str {
        &self.columns.id
    }

    /// What rows are ordered by.
    pub fn key(&self) -> String {
        match self.order {
            Order::Number => self.columns.seq.clone(),
            Order::Time => format!("{}, {}", self.columns.timestamp, self.columns.id),
        }
    }

    /// That row `e` comes after a key.
    pub fn after(&self, key: &Key) -> String {
        match (self.order, key) {
            (Order::Number, Key::Number(number)) => format!("{} > {number}", self.columns.seq),
            (_, key) => {
                let (at, id) = match key {
                    Key::Time { at, id } => (*at, literal(id)),
                    Key::Number(number) => (*number, literal("")),
                };
                format!(
                    "({}, {}) > ('epoch'::timestamptz + {at} * interval '1 microsecond', {id}::{})",
                    self.columns.timestamp, self.columns.id, self.id_type
                )
            }
        }
    }

    pub fn of_job(&self, job: &str) -> String {
        format!("{} = {}::{}", self.columns.job_id, literal(job), self.job_type)
    }

    pub fn of_jobs<'a>(&self, jobs: impl Iterator<Item = &'a str>) -> String {
        let mut list = String::new();
        for job in jobs {
            let _ = write!(list, "{}{}", if list.is_empty() { "" } else { "," }, literal(job));
        }
        format!("{} = ANY (ARRAY[{list}]::{}[])", self.columns.job_id, self.job_type)
    }

    /// `place, xid, key, at, id, job_id, step_id, type, actor, payload` of row `e`; `place` by key, `at` in microseconds
    /// since 1970, `key` only where it is a number.
    pub fn row(&self) -> String {
        let Quoted { id, job_id, step_id, kind, timestamp, actor, payload, seq, .. } = &self.columns;
        let number = match self.order {
            Order::Number => format!("{seq}::bigint"),
            Order::Time => "NULL::bigint".into(),
        };
        format!(
            "row_number() OVER (ORDER BY {}) AS place, {} AS xid, {number} AS key, (extract(epoch FROM {timestamp}) * 1000000)::bigint AS at, {id}::text AS id, \
             {job_id}::text AS job_id, {step_id}::text AS step_id, {kind}::text AS type, {actor}::text AS actor, \
             {payload}::text AS payload",
            self.key(),
            self.xid()
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

    /// Whether a text can be a job's id here at all; other text would make the database complain.
    pub fn is_job_id(&self, text: &str) -> bool {
        is_value(&self.job_type, text)
    }

    pub fn is_event_id(&self, text: &str) -> bool {
        is_value(&self.id_type, text)
    }
}

/// Whether a text is a value of a type; other text would make the database complain.
pub fn is_value(kind: &str, text: &str) -> bool {
    match kind {
        "uuid" => uuid::Uuid::try_parse(text).is_ok(),
        "bigint" => text.parse::<i64>().is_ok(),
        "integer" => text.parse::<i32>().is_ok(),
        _ => !text.contains('\0'),
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
