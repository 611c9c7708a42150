//! Many jobs of one file: what a position of all of them tells of each, and tables of others that have one.

use super::super::contract::many::open;
use super::super::contract::many::promises::{Tried, keep_on_many_jobs};
use crate::support::ForeignFile;
use crate::support::store::{Sqlite, Store};
use jobcast::cursor::{Cursor, Level};
use jobcast::event::JobId;
use jobcast::source::{Limit, PageResult, Source};
use jobcast::sse::Reset;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions};
use std::ops::Range;
use std::path::PathBuf;

const LIMIT: Limit = Limit { events: 100, bytes: 1 << 20 };

fn job(name: &str) -> JobId {
    name.parse().expect("an id")
}

fn path(store: &Sqlite) -> PathBuf {
    PathBuf::from(&store.settings()[0].1)
}

async fn execute(path: &PathBuf, sql: &str) {
    let options = SqliteConnectOptions::new().filename(path);
    let mut rows: SqliteConnection = options.connect().await.expect("the file");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut rows).await.expect("rows");
    sqlx::Connection::close(rows).await.expect("closed");
}

/// Watches these jobs, and returns the position of all of them.
async fn level_of(source: &dyn Source, jobs: &[&str]) -> Level {
    let mut tail = source.tail();
    for name in jobs {
        tail.watch(job(name), source.beginning(&job(name)));
    }
    let news = tail.read(&[]).await.expect("news");
    assert_eq!(news.jobs.iter().map(|job| job.events.len()).sum::<usize>(), 5 * jobs.len());
    news.level.expect("a level")
}

/// Reads each job after its cursor, and returns the ids of its events, or its reset.
async fn read(source: &dyn Source, wanted: &[(JobId, Cursor)]) -> Vec<Result<Vec<String>, Reset>> {
    let results = source.pages(wanted, LIMIT).await.expect("pages");
    let ids = results.into_iter().map(|result| match result {
        PageResult::Page(page) => Ok(page.events.into_iter().map(|(event, _)| event.id).collect()),
        PageResult::Lost(reset) => Err(reset),
        PageResult::NoSuchJob | PageResult::Unreadable(_) => panic!("no such job"),
    });
    ids.collect()
}

#[tokio::test]
async fn of_all_jobs_at_one_position_only_the_one_whose_rows_are_gone_begins_anew() {
    let store = Sqlite::start().await;
    let source = open(&store.settings()).await;
    store.append("trimmed", 0..5).await;
    store.append("kept", 0..5).await;
    store.append("other", 0..5).await;
    store.set_status("pending", "PENDING").await;
    let level = level_of(&*source, &["trimmed", "kept", "other"]).await;
    for name in ["trimmed", "kept", "other", "pending"] {
        store.append(name, 5..8).await;
    }
    // The row of the position itself is the last one of `other`.
    let gone = "DELETE FROM job_events WHERE job_id = 'other'
        OR job_id = 'trimmed' AND id < 'e-6' OR job_id = 'kept' AND id < 'e-4'";
    execute(&path(&store), gone).await;
    let pending = (job("pending"), source.beginning(&job("pending")));
    let wanted = [(job("trimmed"), level.cursor(&job("trimmed"))), (job("kept"), level.cursor(&job("kept"))), pending];
    let new = || Ok(["e-5", "e-6", "e-7"].map(String::from).to_vec());
    assert_eq!(read(&*source, &wanted).await, [Err(Reset::Trimmed), new(), new()]);
}

#[tokio::test]
async fn a_position_of_all_jobs_in_a_restored_file_is_said_to_be_rewound_also_where_its_number_and_id_are_back() {
    let store = Sqlite::start().await;
    let file = path(&store);
    let backup = file.with_extension("backup");
    let source = open(&store.settings()).await;
    store.append("one", 0..3).await;
    store.append("two", 0..3).await;
    execute(&file, &format!("VACUUM INTO '{}'", backup.display())).await;
    store.append("one", 3..5).await;
    store.append("two", 3..5).await;
    let level = level_of(&*source, &["one", "two"]).await;
    let wanted = ["one", "two"].map(|name| (job(name), level.cursor(&job(name))));
    assert_eq!(read(&*source, &wanted).await, [Ok(Vec::new()), Ok(Vec::new())]);
    drop(source);
    for old in ["jobs.db-wal", "jobs.db-shm"] {
        let _ = std::fs::remove_file(file.with_file_name(old));
    }
    std::fs::copy(&backup, &file).expect("restored");
    let source = open(&store.settings()).await;
    let rewound = [Err(Reset::Rewound), Err(Reset::Rewound)];
    assert_eq!(read(&*source, &wanted).await, rewound, "the file is shorter");
    // The same ids, in another order: the number of the position now belongs to an event of the other job.
    store.append("two", 3..5).await;
    store.append("one", 3..5).await;
    store.append("two", 5..9).await;
    assert_eq!(read(&*source, &wanted).await, rewound, "its number was given out anew");
}

const COLUMNS: &[(&str, &str)] = &[
    ("events_table", "log"),
    ("jobs_table", ""),
    ("columns.id", "name"),
    ("columns.job_id", "run"),
    ("columns.seq", "n"),
    ("columns.type", "= line"),
    ("columns.timestamp", ""),
    ("columns.payload", ""),
];

/// Tries a table of another program with the columns `n`, `run` and `name`, whose numbers are of the table or of each job.
async fn try_table(columns: &str, has_levels: bool) {
    let index = if has_levels { "CREATE INDEX log_run ON log (run)" } else { "" };
    let file = ForeignFile::make(&format!("CREATE TABLE log {columns}; {index}")).await;
    let settings = file.settings(COLUMNS);
    let replicas = [open(&settings).await, open(&settings).await];
    let append = async |job: &JobId, numbers: Range<u64>| {
        let number = |number: u64| if has_levels { "NULL".into() } else { number.to_string() };
        let rows = numbers.map(|n| format!("({}, '{}', 'e-{n}')", number(n), job.as_str()));
        file.execute(&format!("INSERT INTO log (n, run, name) VALUES {}", Vec::from_iter(rows).join(","))).await;
    };
    for seed in 0..5 {
        let tried = Tried { replicas: &replicas, has_levels, many: 2500 };
        keep_on_many_jobs(seed, &tried, &append).await;
    }
}

#[tokio::test]
async fn positions_of_any_kind_lose_and_repeat_nothing_on_many_jobs_in_tables_of_others() {
    try_table("(n INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT, name TEXT)", true).await;
    try_table("(n INTEGER PRIMARY KEY, run TEXT, name TEXT)", true).await;
    try_table("(n INTEGER, run TEXT, name TEXT, PRIMARY KEY (run, n)) WITHOUT ROWID", false).await;
}
