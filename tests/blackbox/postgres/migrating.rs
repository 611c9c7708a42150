//! The script of `jobcast schema postgres --migrate`, run on a table that is in use.

use super::{LEGACY, daemon_on};
use crate::support::daemon::run;
use crate::support::{Postgres, eventually, numbers};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

async fn script(more: &[(&str, &str)]) -> String {
    let printed = run(&["schema", "postgres", "--migrate"], more).await;
    assert!(printed.status.success(), "{printed:?}");
    String::from_utf8_lossy(&printed.stdout).into_owned()
}

/// A runner that may do no more than INSERT, and writes one event after the other.
struct Writer {
    written: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
    stop: Arc<tokio::sync::Notify>,
}

impl Writer {
    async fn start(server: &Postgres) -> Self {
        let options: PgConnectOptions = server.url("runner").parse().expect("an address");
        let mut connection = options.connect().await.expect("a connection");
        let (written, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(tokio::sync::Notify::new()));
        let (count, stopped) = (written.clone(), stop.clone());
        let task = tokio::spawn(async move {
            loop {
                let number = count.load(Ordering::Relaxed);
                let sql = format!(
                    "INSERT INTO job_events (id, job_id, type, payload) VALUES ('e{number}', 'job', 'x', '{{\"n\":{number}}}')"
                );
                connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.expect("an insert, as before");
                count.fetch_add(1, Ordering::Relaxed);
                tokio::select! {
                    () = stopped.notified() => return,
                    () = tokio::time::sleep(Duration::from_millis(2)) => {}
                }
            }
        });
        Self { written, task, stop }
    }

    async fn more(&self, count: u64) {
        let until = self.written.load(Ordering::Relaxed) + count;
        eventually("more events", async || (self.written.load(Ordering::Relaxed) >= until).then_some(())).await;
    }

    /// Returns the number of events.
    async fn stop(self) -> u64 {
        self.stop.notify_one();
        self.task.await.expect("a writer that never failed");
        self.written.load(Ordering::Relaxed)
    }
}

async fn arena(tables: &str) -> Postgres {
    let server = Postgres::start().await;
    server.execute(tables).await;
    server.make_reader().await;
    server.execute("CREATE ROLE runner LOGIN; GRANT INSERT ON job_events TO runner").await;
    server
}

#[tokio::test]
async fn a_role_that_may_only_insert_goes_on_while_a_long_reader_holds_the_migration_up() {
    let server = arena(LEGACY).await;
    let daemon = daemon_on(&server, &[("source.poll_interval", "50ms")]).await;
    let writer = Writer::start(&server).await;
    writer.more(10).await;
    let mut stream = daemon.stream("job").await;
    let mut reader = server.connect().await;
    reader.execute("BEGIN; SELECT count(*) FROM job_events").await.expect("a long reader");
    let sql = script(&[]).await;
    let migration = server.psql(&sql);
    tokio::pin!(migration);
    let has_tried = async {
        let mut owner = server.connect().await;
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%patiently%'";
        eventually("a try in vain", async || {
            (owner.fetch_one(sql).await.expect("a count").get::<i64, _>(0) > 0).then_some(())
        })
        .await;
        // Far more than one try, with writers in between: one that waited for the migration would wait for the reader, too.
        writer.more(300).await;
        let columns =
            "SELECT count(*) FROM pg_attribute WHERE attrelid = 'job_events'::regclass AND attname IN ('xid', 'seq')";
        assert_eq!(owner.fetch_one(columns).await.expect("a count").get::<i64, _>(0), 0, "nothing has changed yet");
        reader.execute("COMMIT").await.expect("the end of the reader");
    };
    tokio::select! {
        () = &mut migration => panic!("it went past the reader"),
        () = has_tried => {}
    }
    migration.await;
    server.psql(&sql).await;
    writer.more(50).await;
    let written = writer.stop().await;
    let seen = numbers(&stream.take(written as usize).await);
    assert_eq!(seen, Vec::from_iter(0..written), "all of them, once");
    let check =
        run(&["check", "--quiet"], &[("source.kind", "postgres"), ("source.postgres.url", &server.url("reader"))])
            .await;
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success() && !said.contains("no index"), "{said}");
}

#[tokio::test]
async fn a_migration_that_was_interrupted_is_completed_by_the_next_and_keeps_what_is_right_while_writers_go_on() {
    let server = arena(LEGACY).await;
    let mut owner = server.connect().await;
    server
        .execute("INSERT INTO job_events (id, job_id, type) SELECT n, 'old', 'x' FROM generate_series(1, 100) n")
        .await;
    let daemon = daemon_on(&server, &[("source.poll_interval", "50ms")]).await;
    let writer = Writer::start(&server).await;
    writer.more(10).await;
    let mut stream = daemon.stream("job").await;
    let sql = script(&[]).await;
    // Interrupted while an index was built: another transaction is waited for.
    let mut stays = server.connect().await;
    stays.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM runner_jobs").await.expect("a snapshot");
    let building = async {
        let sql = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%' AND wait_event_type = 'Lock'";
        let row =
            eventually("an index that is being built", async || owner.fetch_optional(sql).await.expect("a process"))
                .await;
        let pid: i32 = row.get(0);
        owner
            .execute(sqlx::raw_sql(AssertSqlSafe(format!("SELECT pg_terminate_backend({pid})"))))
            .await
            .expect("an interruption");
    };
    let (is_done, ()) = tokio::join!(server.try_psql(&sql), building);
    assert!(!is_done, "it was interrupted");
    writer.more(50).await;
    stays.execute("COMMIT").await.expect("the end of a snapshot");
    let invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid";
    let mut owner = server.connect().await;
    assert_eq!(owner.fetch_one(invalid).await.expect("a count").get::<i64, _>(0), 1);
    // The operator's own index does as well as ours.
    server.execute("CREATE INDEX mine ON job_events (job_id, seq, type)").await;
    let mut known_triggers = None;
    for _ in 0..2 {
        server.psql(&sql).await;
        writer.more(50).await;
        assert_eq!(owner.fetch_one(invalid).await.expect("a count").get::<i64, _>(0), 0);
        let known = "SELECT count(*) FROM pg_index WHERE indrelid = 'job_events'::regclass";
        assert_eq!(owner.fetch_one(known).await.expect("a count").get::<i64, _>(0), 3, "one for each need");
        let triggers = "SELECT array_agg(oid::text ORDER BY tgname) FROM pg_trigger WHERE tgname LIKE '%_wake'";
        let triggers: Vec<String> = owner.fetch_one(triggers).await.expect("triggers").get(0);
        assert_eq!(triggers.len(), 2);
        assert_eq!(known_triggers.get_or_insert(triggers.clone()), &triggers, "they stay the ones that they were");
    }
    let written = writer.stop().await;
    assert_eq!(numbers(&stream.take(written as usize).await), Vec::from_iter(0..written), "all of them, once");
    assert_eq!(daemon.stream("old").await.take(100).await.len(), 100);
}

#[tokio::test]
async fn partitions_and_heirs_are_migrated_with_their_own_indexes() {
    for (tables, leaf) in [
        (
            "CREATE TABLE \"Logs\" (id text, job_id text, type text, at timestamptz, part int) PARTITION BY LIST (part);
             CREATE TABLE \"Part 1\" PARTITION OF \"Logs\" FOR VALUES IN (1); CREATE TABLE part_2 PARTITION OF \"Logs\" FOR VALUES IN (2)",
            "INSERT INTO \"Logs\" VALUES ('1', 'job', 'x', now(), 1)",
        ),
        (
            "CREATE TABLE \"Logs\" (id text, job_id text, type text, at timestamptz);
             CREATE TABLE \"Part 1\" () INHERITS (\"Logs\"); CREATE TABLE part_2 () INHERITS (\"Logs\")",
            "INSERT INTO \"Part 1\" VALUES ('1', 'job', 'x', now())",
        ),
    ] {
        let server = Postgres::start().await;
        server.execute(&format!("CREATE TABLE runner_jobs (id text PRIMARY KEY, status text); {tables}")).await;
        let url = server.url("postgres");
        let settings = [
            ("source.kind", "postgres"),
            ("source.postgres.url", &*url),
            ("source.postgres.events_table", "Logs"),
            ("source.postgres.columns.timestamp", "at"),
            ("source.postgres.columns.payload", ""),
        ];
        let sql = script(&settings).await;
        for _ in 0..2 {
            server.psql(&sql).await;
        }
        server.execute(leaf).await;
        let row = server.connect().await.fetch_one("SELECT xid IS NOT NULL AND seq IS NOT NULL FROM \"Logs\"").await;
        assert!(row.expect("a row").get::<bool, _>(0), "rows of the tables below are numbered, too");
        let check = run(&["check", "--quiet"], &settings).await;
        let said = String::from_utf8_lossy(&check.stdout).into_owned();
        assert!(check.status.success() && !said.contains("no index"), "{said}");
    }
}
