//! Subscribers that come and go over a file of others, while 16 of its writers write and the daemon dies.

use crate::support::flap::{Flap, Resume};
use crate::support::{ForeignFile, alone};
use futures_util::future::join_all;
use sqlx::AssertSqlSafe;
use std::time::Duration;
use tokio::time::sleep;

const SUBSCRIBERS: usize = 18;
const WRITERS: u64 = 16;
const JOBS: [&str; 3] = ["alpha", "beta", "gamma"];
/// Each writer's, for each job.
const BATCHES: u64 = 10;
const BATCH: u64 = 3;

const FLAP: Flap = Flap {
    stays: 400,
    away: 100,
    resumes: &[Resume::Query, Resume::Header, Resume::EventId],
    patience: Duration::from_secs(120),
};

const MAPPED: &[(&str, &str)] = &[
    ("events_table", "log"),
    ("jobs_table", "runs"),
    ("columns.id", "key"),
    ("columns.job_id", "run"),
    ("columns.type", "= line"),
    ("columns.timestamp", ""),
    ("columns.payload", "body"),
    ("columns.seq", "n"),
    ("payload_kind", "json"),
    ("job_columns.id", "name"),
    ("job_columns.status", "state"),
    ("statuses.failed", "broken"),
];

/// The journal mode, and the table of the events.
const FILES: [(&str, &str); 3] = [
    ("DELETE", "log (n INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT, run TEXT, body TEXT)"),
    ("WAL", "log (n INTEGER PRIMARY KEY, key TEXT, run TEXT, body TEXT)"),
    ("WAL", "log (n INTEGER, key TEXT, run TEXT, body TEXT, PRIMARY KEY (run, n)) WITHOUT ROWID"),
];

/// One transaction: the next numbers of the job, in the order in which SQLite lets its writers write.
fn batch(job: &str) -> String {
    let row = format!(
        "INSERT INTO log SELECT (SELECT coalesce(max(n), 0) + 1 FROM log), 'e-' || c, '{job}', json_object('n', c)
           FROM (SELECT count(*) AS c FROM log WHERE run = '{job}');"
    );
    format!("BEGIN IMMEDIATE; {} COMMIT;", row.repeat(BATCH as usize))
}

async fn write(file: &ForeignFile, number: u64) {
    let mut rows = file.connect().await;
    sqlx::raw_sql("PRAGMA synchronous = OFF").execute(&mut rows).await.expect("a pragma");
    for round in 0..BATCHES {
        for job in JOBS {
            sqlx::raw_sql(AssertSqlSafe(batch(job))).execute(&mut rows).await.expect("rows");
        }
        sleep(Duration::from_millis(100 + (number * 13 + round * 7) % 100)).await;
    }
}

#[tokio::test]
async fn sixteen_writers_of_a_foreign_file_and_kill_9_lose_and_repeat_nothing_and_leave_it_as_it_is() {
    let _alone = alone();
    for (journal, table) in FILES {
        let file = ForeignFile::make(&format!(
            "PRAGMA journal_mode = {journal}; CREATE TABLE runs (name TEXT PRIMARY KEY, state TEXT);
             INSERT INTO runs VALUES ('alpha', 'going'), ('beta', 'going'), ('gamma', 'going');
             CREATE TABLE {table}; CREATE INDEX log_run ON log (run, n);
             CREATE UNIQUE INDEX log_key ON log (run, key);"
        ))
        .await;
        let shape = file.shape().await;
        let mut daemon = file.serve(MAPPED).await;
        let to = [daemon.http];
        let flaps = join_all((0..SUBSCRIBERS).map(|number| FLAP.watch(&to, JOBS[number % JOBS.len()])));
        let writes = async {
            join_all((0..WRITERS).map(|number| write(&file, number))).await;
            file.execute("UPDATE runs SET state = 'broken'").await;
        };
        let kills = async {
            for _ in 0..3 {
                sleep(Duration::from_millis(1200)).await;
                daemon.kill();
                sleep(Duration::from_millis(150)).await;
                daemon.restart().await;
            }
        };
        let ((), (), seen) = tokio::join!(writes, kills, flaps);
        for (number, seen) in seen.into_iter().enumerate() {
            let first_wrong = seen.iter().zip(0..).find(|(seen, expected)| **seen != *expected);
            assert!(
                first_wrong.is_none(),
                "{journal} {table}: subscriber {number} saw {first_wrong:?} (seen, expected)"
            );
            assert_eq!(seen.len() as u64, WRITERS * BATCHES * BATCH, "{journal} {table}: subscriber {number}");
        }
        assert_eq!(file.shape().await, shape, "{journal} {table}");
    }
}
