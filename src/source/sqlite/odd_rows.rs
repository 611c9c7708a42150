//! Rows of every storage class, encoding and size in one job, and ten others beside it.

use crate::config::{self, Create};
use crate::cursor::Cursor;
use crate::event::{Event, JobId};
use crate::source::{Limit, PageResult, Source, Tail, open};
use proptest::prelude::*;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions};
use std::collections::HashMap;

/// Tables of another's making: without types, any column keeps any storage class.
struct Layout {
    tables: &'static str,
    /// Event table and its columns, for an insert.
    events: &'static str,
    /// The number of a new row, where the table does not number its rows.
    number: &'static str,
    /// Job table and its columns.
    jobs: &'static str,
    settings: fn(&mut config::Sqlite),
}

const JOBS: &str = "CREATE TABLE runs (name PRIMARY KEY, state DEFAULT 'PENDING');";

const LAYOUTS: &[Layout] = &[
    Layout {
        tables: "CREATE TABLE runner_jobs (id PRIMARY KEY, status DEFAULT 'PENDING', updated_at DEFAULT '', changed INTEGER DEFAULT 0);
            CREATE TABLE job_events (seq INTEGER PRIMARY KEY AUTOINCREMENT, id, job_id, step_id, type, timestamp, actor, payload);",
        events: "job_events (id, job_id, step_id, type, timestamp, actor, payload)",
        number: "",
        jobs: "runner_jobs (id, status)",
        settings: |settings| settings.create = Create::Always,
    },
    Layout {
        tables: "CREATE TABLE log (n INTEGER PRIMARY KEY AUTOINCREMENT, key, run, step, kind, at, who, body);",
        events: "log (key, run, step, kind, at, who, body)",
        number: "",
        jobs: "runs (name, state)",
        settings: |settings| map(settings),
    },
    Layout {
        tables: "CREATE TABLE log (n INTEGER PRIMARY KEY, key, run, step, kind, at, who, body); CREATE INDEX log_run ON log (run);",
        events: "log (key, run, step, kind, at, who, body)",
        number: "",
        jobs: "runs (name, state)",
        settings: |settings| {
            map(settings);
            settings.columns.id = String::new();
        },
    },
    Layout {
        tables: "CREATE TABLE log (key, run, step, kind, at, who, body);",
        events: "log (key, run, step, kind, at, who, body)",
        number: "",
        jobs: "runs (name, state)",
        settings: |settings| map(settings),
    },
    Layout {
        tables: "CREATE TABLE log (n, key, run, step, kind, at, who, body, PRIMARY KEY (run, n)) WITHOUT ROWID;",
        events: "log (n, key, run, step, kind, at, who, body)",
        number: "(SELECT coalesce(max(n), -4) + 1 FROM log), ",
        jobs: "runs (name, state)",
        settings: |settings| {
            map(settings);
            settings.columns.seq = "n".into();
        },
    },
    Layout {
        tables: "CREATE TABLE log (n INTEGER PRIMARY KEY, key, run, step, kind, at, who, body);
            CREATE VIEW shown AS SELECT n AS number, key, run, step, kind, at, who, body FROM log;",
        events: "log (key, run, step, kind, at, who, body)",
        number: "",
        jobs: "runs (name, state)",
        settings: |settings| {
            map(settings);
            settings.events_table = "shown".into();
            settings.columns.seq = "number".into();
        },
    },
];

/// Names the tables and columns that are not Jobcast's.
fn map(settings: &mut config::Sqlite) {
    settings.events_table = "log".into();
    settings.jobs_table = "runs".into();
    settings.payload_kind = config::PayloadKind::Json;
    settings.job_columns = config::JobColumns { id: "name".into(), status: "state".into() };
    settings.columns = config::Columns {
        id: "key".into(),
        job_id: "run".into(),
        step_id: "step".into(),
        kind: "kind".into(),
        timestamp: "at".into(),
        actor: "who".into(),
        payload: "body".into(),
        ..config::Columns::default()
    };
}

const OTHERS: usize = 10;
const ODD: &str = "odd";

#[derive(Clone, Debug)]
enum Row {
    /// `id, job_id, step_id, type, timestamp, actor, payload`, each an SQL expression.
    Odd([String; 7]),
    OddStatus(String, String),
    /// The next event of one of the other jobs.
    Other(usize),
}

impl Row {
    /// The statement that writes the row; `next` has the number of each other job's next event.
    fn sql(&self, layout: &Layout, next: &mut [u64; OTHERS]) -> String {
        let Layout { events, number, jobs, .. } = layout;
        match self {
            Self::Odd(values) => {
                format!("INSERT OR IGNORE INTO {events} VALUES ({number}{});", values.join(","))
            }
            Self::OddStatus(job, status) => {
                format!("INSERT OR REPLACE INTO {jobs} VALUES ({job}, {status});")
            }
            Self::Other(job) => {
                next[*job] += 1;
                let n = next[*job];
                format!("INSERT INTO {events} VALUES ({number}'e-{n}', 'job-{job}', NULL, 'x', NULL, NULL, '{n}');")
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An SQL expression of any storage class.
fn value() -> impl Strategy<Value = String> {
    let size = prop_oneof![9 => 0..40_usize, 1 => 0..20_000_usize];
    let bytes = size.prop_flat_map(|size| proptest::collection::vec(any::<u8>(), size));
    prop_oneof![
        Just("NULL".to_string()),
        any::<i64>().prop_map(|number| format!("CAST('{number}' AS INTEGER)")),
        any::<f64>().prop_map(|number| format!("CAST('{number:e}' AS REAL)")),
        Just("9e999".to_string()),
        bytes.clone().prop_map(|bytes| format!("X'{}'", hex(&bytes))),
        bytes.prop_map(|bytes| format!("CAST(X'{}' AS TEXT)", hex(&bytes))),
        "[a-z{}\":0-9 ]{0,20}".prop_map(|text| format!("'{text}'")),
        Just("X'7b226e223a317d'".to_string()),
        Just("'2026-11-23 21:00:00'".to_string()),
        Just("99999999999999999".to_string()),
    ]
}

fn row() -> impl Strategy<Value = Row> {
    let text = format!("'{ODD}'");
    let blob = format!("X'{}'", hex(ODD.as_bytes()));
    let job = prop_oneof![4 => Just(text), 3 => Just(blob), 1 => value()];
    let odd = (value(), job.clone(), proptest::array::uniform5(value()))
        .prop_map(|(id, job, [a, b, c, d, e])| Row::Odd([id, job, a, b, c, d, e]));
    // No final status: a job that has ended is no longer read by the tail.
    let status = prop_oneof![value(), Just("'RUNNING'".to_string()), Just("X'52554e4e494e47'".to_string())];
    prop_oneof![
        4 => odd,
        1 => (job, status).prop_map(|(job, status)| Row::OddStatus(job, status)),
        5 => (0..OTHERS).prop_map(Row::Other),
    ]
}

async fn write(to: &mut SqliteConnection, layout: &Layout, rows: &[Row], next: &mut [u64; OTHERS]) {
    let statements: String = rows.iter().map(|row| row.sql(layout, next)).collect();
    let sql = AssertSqlSafe(format!("BEGIN IMMEDIATE; {statements} COMMIT;"));
    sqlx::raw_sql(sql).execute(to).await.expect("rows");
}

fn shown(events: &[(Event, Cursor)]) -> Vec<String> {
    let show = |(event, cursor): &(Event, Cursor)| format!("{cursor} {}", serde_json::to_string(event).expect("JSON"));
    events.iter().map(show).collect()
}

async fn read_history(source: &dyn Source, job: &JobId) -> Vec<String> {
    let (mut all, mut cursor) = (Vec::new(), source.beginning(job));
    loop {
        match source.page(job, &cursor, Limit { events: 3, bytes: 1 << 20 }).await.expect("a page") {
            PageResult::Page(page) => {
                all.extend(shown(&page.events));
                cursor = page.end;
                if page.is_last {
                    let newest = source.newest(job).await.expect("an answer").expect("the job");
                    assert_eq!(newest.cursor, cursor, "the end of the last page is the newest position");
                    return all;
                }
            }
            PageResult::NoSuchJob | PageResult::Unreadable(_) => return all,
            PageResult::Lost(reset) => panic!("{job}: {reset:?}"),
        }
    }
}

async fn read_news(tail: &mut dyn Tail, seen: &mut HashMap<JobId, Vec<String>>) {
    loop {
        let news = tail.read(&[]).await.expect("news");
        assert!(news.faults.is_empty() && news.outage.is_none());
        for job in news.jobs {
            assert!(job.end.is_none(), "{} ended: {:?}", job.job, job.end);
            seen.entry(job.job).or_default().extend(shown(&job.events));
        }
        if !news.more {
            return;
        }
    }
}

async fn try_rows(layout: &Layout, encoding: &str, batches: &[Vec<Row>]) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut settings = config::Source::default();
    settings.sqlite.path = folder.path().join("jobs.db");
    (layout.settings)(&mut settings.sqlite);
    let options = SqliteConnectOptions::new().filename(&settings.sqlite.path).create_if_missing(true);
    let mut rows = options.connect().await.expect("a file");
    let tables = format!("PRAGMA encoding = '{encoding}'; {JOBS} {}", layout.tables);
    sqlx::raw_sql(AssertSqlSafe(tables)).execute(&mut rows).await.expect("tables");
    let source = open(&settings).await.expect("the source");

    let others: Vec<JobId> = (0..OTHERS).map(|job| format!("job-{job}").parse().expect("an id")).collect();
    let odd: JobId = ODD.parse().expect("an id");
    let (mut tail, mut seen, mut next) = (source.tail(), HashMap::new(), [0; OTHERS]);
    for job in others.iter().chain([&odd]) {
        tail.watch(job.clone(), source.beginning(job));
    }
    for batch in batches {
        write(&mut rows, layout, batch, &mut next).await;
        read_news(&mut *tail, &mut seen).await;
    }
    for (job, last) in others.iter().zip(next) {
        let history = read_history(&*source, job).await;
        let numbers: Vec<String> = (1..=last).map(|number| format!("\"payload\":{number}}}")).collect();
        assert!(
            history.len() == numbers.len() && history.iter().zip(&numbers).all(|(event, end)| event.ends_with(end))
        );
        assert_eq!(seen.remove(job).unwrap_or_default(), history, "{job}");
    }
    let history = read_history(&*source, &odd).await;
    assert_eq!(seen.remove(&odd).unwrap_or_default(), history);
    assert_eq!(read_history(&*source, &odd).await, history, "the same rows have the same cursors");
    source.jobs(None, 50).await.expect("jobs");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_of_any_storage_class_encoding_and_size_in_one_job_cost_ten_others_nothing(
        encoding in prop_oneof![3 => Just("UTF-8"), 1 => Just("UTF-16le")],
        batches in proptest::collection::vec(proptest::collection::vec(row(), 1..12), 1..5),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        for layout in LAYOUTS {
            runtime.block_on(try_rows(layout, encoding, &batches));
        }
    }
}
