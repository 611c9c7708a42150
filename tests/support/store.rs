//! The stores that the contract is tried on, as one trait.

use super::daemon::{run, write_rows};
use super::{Daemon, Postgres, Redis, postgres, redis};
use ::redis::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor};
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// An event store of the test's own, empty, with the recommended tables. Its methods do what runners do, each on a
/// connection of its own and after the first daemon has started.
pub trait Store: Sized {
    /// False where two cursors may mean the same set of events.
    const ONE_CURSOR_PER_PLACE: bool = true;
    /// It has one place for all jobs.
    const HAS_LEVELS: bool;
    /// The longest id of a set of 50 jobs, in bytes.
    const LONGEST_SET_ID: usize;
    /// The share of such ids that may have more than 128 bytes.
    const LONG_SET_IDS: f64;
    /// False where nothing in the store tells that there were events which are deleted.
    const TELLS_TRIMS: bool = true;

    async fn start() -> Self;

    /// Settings of a daemon that reads from it and takes events in for it.
    fn settings(&self) -> Vec<(&'static str, String)>;

    /// Appends numbered events in their order.
    async fn append(&self, job: &str, numbers: Range<u64>);

    /// Appends numbered events whose timestamps are so old.
    async fn append_at(&self, job: &str, numbers: Range<u64>, age: Duration);

    /// Appends numbered events in one transaction that stays open for so long, where the store has such; else after that.
    async fn append_within(&self, job: &str, numbers: Range<u64>, open_for: Duration) {
        tokio::time::sleep(open_for).await;
        self.append(job, numbers).await;
    }

    /// Appends numbered events with so many bytes of ballast each and sets the job's status, all in one transaction.
    async fn append_and_end(&self, job: &str, numbers: Range<u64>, ballast: usize, status: &str);

    async fn set_status(&self, job: &str, status: &str);

    /// Deletes all events of a job but the newest ones.
    async fn trim(&self, job: &str, left: u64);

    async fn daemon(&self, more: &[(&str, &str)]) -> Daemon {
        let own = self.settings();
        let mut settings: Vec<(&str, &str)> = own.iter().map(|(key, value)| (*key, value.as_str())).collect();
        settings.extend_from_slice(more);
        Daemon::with(&settings).await
    }
}

/// A store that is a process of its own.
pub trait Server: Store {
    /// Kills it.
    async fn crash(&mut self);
    /// Stops it as an operator does.
    async fn shut_down(&mut self);
    /// Starts it again on what it had stored.
    async fn come_back(&mut self);
}

/// A database file, which the first daemon makes.
pub struct Sqlite {
    folder: TempDir,
}

impl Sqlite {
    async fn connect(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(self.folder.path().join("jobs.db"));
        options.busy_timeout(Duration::from_secs(20)).connect().await.expect("the database file")
    }
}

impl Store for Sqlite {
    const HAS_LEVELS: bool = true;
    const LONGEST_SET_ID: usize = 800;
    const LONG_SET_IDS: f64 = 0.01;

    async fn start() -> Self {
        Self { folder: tempfile::tempdir().expect("a directory") }
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![("source.sqlite.path", self.folder.path().join("jobs.db").display().to_string())]
    }

    async fn append(&self, job: &str, numbers: Range<u64>) {
        write_rows(&mut self.connect().await, job, numbers).await;
    }

    async fn append_at(&self, job: &str, numbers: Range<u64>, age: Duration) {
        let at = format!("strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-{} seconds')", age.as_secs());
        let rows = numbers.map(|n| format!("('e-{n}', '{job}', 'x', {at}, '{}')", payload(n, 0)));
        let rows = Vec::from_iter(rows).join(",");
        let sql = format!("INSERT INTO job_events (id, job_id, type, timestamp, payload) VALUES {rows}");
        self.connect().await.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.expect("rows");
    }

    async fn append_and_end(&self, job: &str, numbers: Range<u64>, ballast: usize, status: &str) {
        let rows = numbers.map(|n| format!("('e-{n}', '{job}', 'x', '{}')", payload(n, ballast)));
        let sql = format!(
            "BEGIN IMMEDIATE; INSERT INTO job_events (id, job_id, type, payload) VALUES {}; {} COMMIT;",
            Vec::from_iter(rows).join(","),
            status_sql(job, status)
        );
        self.connect().await.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.expect("rows and a status");
    }

    async fn set_status(&self, job: &str, status: &str) {
        let sql = AssertSqlSafe(status_sql(job, status));
        self.connect().await.execute(sqlx::raw_sql(sql)).await.expect("a status");
    }

    async fn trim(&self, job: &str, left: u64) {
        let sql = AssertSqlSafe(trim_sql(job, left));
        self.connect().await.execute(sqlx::raw_sql(sql)).await.expect("a trim");
    }
}

impl Store for Postgres {
    /// The mark of a later snapshot is a later one.
    const ONE_CURSOR_PER_PLACE: bool = false;
    const HAS_LEVELS: bool = false;
    const LONGEST_SET_ID: usize = 1500;
    const LONG_SET_IDS: f64 = 0.1;
    const TELLS_TRIMS: bool = false;

    async fn start() -> Self {
        let server = Postgres::start().await;
        let schema = run(&["schema", "postgres"], &[]).await;
        server.execute(&String::from_utf8_lossy(&schema.stdout)).await;
        server
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        served("postgres", "source.postgres.url", self.url("postgres"))
    }

    async fn append(&self, job: &str, numbers: Range<u64>) {
        postgres::append(&mut self.connect().await, job, numbers).await;
    }

    async fn append_at(&self, job: &str, numbers: Range<u64>, age: Duration) {
        let at = format!("now() - interval '{} seconds'", age.as_secs());
        let rows = numbers.map(|n| format!("('e-{n}', '{job}', 'x', {at}, '{}')", payload(n, 0)));
        let rows = Vec::from_iter(rows).join(",");
        self.execute(&format!("INSERT INTO job_events (id, job_id, type, timestamp, payload) VALUES {rows}")).await;
    }

    async fn append_within(&self, job: &str, numbers: Range<u64>, open_for: Duration) {
        let rows = Vec::from_iter(numbers.map(|n| format!("('e-{n}', '{job}', 'x', '{}')", payload(n, 0)))).join(",");
        let insert = format!("INSERT INTO job_events (id, job_id, type, payload) VALUES {rows};");
        self.execute(&format!("BEGIN; {insert} SELECT pg_sleep({}); COMMIT;", open_for.as_secs_f64())).await;
    }

    async fn append_and_end(&self, job: &str, numbers: Range<u64>, ballast: usize, status: &str) {
        let rows = numbers.map(|n| format!("('e-{n}', '{job}', 'x', '{}')", payload(n, ballast)));
        let rows = Vec::from_iter(rows).join(",");
        let insert = format!("INSERT INTO job_events (id, job_id, type, payload) VALUES {rows};");
        self.execute(&format!("BEGIN; {insert} {} COMMIT;", status_sql(job, status))).await;
    }

    async fn set_status(&self, job: &str, status: &str) {
        self.execute(&status_sql(job, status)).await;
    }

    async fn trim(&self, job: &str, left: u64) {
        self.execute(&trim_sql(job, left)).await;
    }
}

impl Server for Postgres {
    async fn crash(&mut self) {
        self.down("immediate");
    }

    async fn shut_down(&mut self) {
        self.down("fast");
    }

    async fn come_back(&mut self) {
        self.up().await;
    }
}

impl Store for Redis {
    const HAS_LEVELS: bool = false;
    const LONGEST_SET_ID: usize = 1500;
    const LONG_SET_IDS: f64 = 1.0;

    async fn start() -> Self {
        Redis::start().await
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        served("redis", "source.redis.url", self.url())
    }

    async fn append(&self, job: &str, numbers: Range<u64>) {
        redis::append(&mut self.connect().await, job, numbers).await;
    }

    async fn append_at(&self, job: &str, numbers: Range<u64>, age: Duration) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time");
        let mut all = ::redis::pipe();
        for number in numbers {
            let id = format!("{}-{number}", (now - age).as_millis());
            let add = all.cmd("XADD").arg(redis::stream_key(job)).arg(id).arg("id").arg(format!("e-{number}"));
            add.arg("type").arg("x").arg("payload").arg(payload(number, 0));
        }
        all.query_async::<Value>(&mut self.connect().await).await.expect("entries");
    }

    async fn append_and_end(&self, job: &str, numbers: Range<u64>, ballast: usize, status: &str) {
        let mut all = ::redis::pipe();
        all.atomic();
        numbers.for_each(|number| redis::xadd(&mut all, job, number, &payload(number, ballast)));
        all.cmd("HSET").arg(redis::job_key(job)).arg("status").arg(status);
        all.query_async::<Value>(&mut self.connect().await).await.expect("entries and a status");
    }

    async fn set_status(&self, job: &str, status: &str) {
        redis::set_status(&mut self.connect().await, job, status).await;
    }

    async fn trim(&self, job: &str, left: u64) {
        self.ask::<()>(&["XTRIM", &redis::stream_key(job), "MAXLEN", &left.to_string()]).await;
    }
}

impl Server for Redis {
    async fn crash(&mut self) {
        self.kill();
    }

    async fn shut_down(&mut self) {
        self.stop();
    }

    async fn come_back(&mut self) {
        self.restart().await;
    }
}

/// Settings of a daemon on a server; what fails is tried again soon, and a cursor of the future is not waited for long.
fn served(kind: &str, address: &'static str, url: String) -> Vec<(&'static str, String)> {
    let common = [("source.retry_initial", "100ms"), ("source.retry_max", "300ms"), ("source.settle", "300ms")];
    let common = common.map(|(key, value)| (key, value.to_string()));
    let own = [("source.kind", kind.to_string()), (address, url), ("ingest.enabled", "true".into())];
    own.into_iter().chain(common).collect()
}

fn payload(number: u64, ballast: usize) -> String {
    format!("{{\"n\":{number},\"ballast\":\"{}\"}}", "x".repeat(ballast))
}

fn trim_sql(job: &str, left: u64) -> String {
    format!(
        "DELETE FROM job_events WHERE job_id = '{job}'
           AND seq NOT IN (SELECT seq FROM job_events WHERE job_id = '{job}' ORDER BY seq DESC LIMIT {left})"
    )
}

fn status_sql(job: &str, status: &str) -> String {
    format!(
        "INSERT INTO runner_jobs (id, status) VALUES ('{job}', '{status}')
         ON CONFLICT (id) DO UPDATE SET status = excluded.status;"
    )
}
