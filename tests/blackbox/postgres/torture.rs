//! Writers of every kind against subscribers that come and go: what the table holds in the end is what each of them saw,
//! once.

use super::{LEGACY, LEGACY_IN_PARTITIONS, RECOMMENDED, daemon_on};
use crate::support::daemon::run;
use crate::support::flap::{Flap, Resume};
use crate::support::postgres::append;
use crate::support::{Daemon, Pooler, Postgres, alone};
use rand::RngExt;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::sleep;

const JOBS: usize = 4;

/// State that all writers share: their server, the next number, and whether to stop.
#[derive(Clone)]
pub struct Writers {
    url: String,
    jobs: usize,
    next: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Writers {
    /// Starts so many writers of so many jobs.
    pub fn start(server: &Postgres, writers: usize, jobs: usize) -> (Self, Vec<tokio::task::JoinHandle<()>>) {
        let all = Self { url: server.url("postgres"), jobs, next: Arc::default(), stop: Arc::default() };
        let running = (0..writers).map(|_| tokio::spawn(all.clone().run())).collect();
        (all, running)
    }

    /// Stops them, decides what is prepared, and returns the numbers of all committed events by job.
    pub async fn stop(
        self,
        server: &Postgres,
        running: Vec<tokio::task::JoinHandle<()>>,
    ) -> BTreeMap<String, Vec<u64>> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in running {
            writer.await.expect("a writer");
        }
        // those that a crash left behind are decided now
        let mut owner = server.connect().await;
        for row in owner.fetch_all("SELECT gid FROM pg_prepared_xacts").await.expect("prepared transactions") {
            let name: String = row.get(0);
            let how = if name.ends_with(['1', '3', '5', '7', '9']) { "COMMIT" } else { "ROLLBACK" };
            server.execute(&format!("{how} PREPARED '{name}'")).await;
        }
        let mut committed: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let rows = owner.fetch_all("SELECT job_id, (payload->>'n')::bigint FROM job_events ORDER BY 2").await;
        for row in rows.expect("all events") {
            committed.entry(row.get(0)).or_default().push(row.get::<i64, _>(1) as u64);
        }
        committed
    }

    /// Transactions of every kind until it is to stop. Where one fails because the server went away, nobody knows what
    /// became of it; the table does.
    async fn run(self) {
        let options: PgConnectOptions = self.url.parse().expect("an address");
        while !self.stop.load(Ordering::Relaxed) {
            if let Ok(mut connection) = options.connect().await {
                while !self.stop.load(Ordering::Relaxed) && self.transaction(&mut connection).await.is_ok() {}
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn row(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut rng = rand::rng();
        let job = rng.random_range(0..self.jobs);
        // minutes off, or equal for all of a second
        let at = match rng.random_range(0..10) {
            0..3 => format!("now() + interval '{} seconds'", rng.random_range(-200..5)),
            3 => "date_trunc('second', now())".into(),
            _ => "now()".into(),
        };
        format!(
            "INSERT INTO job_events (id, job_id, type, timestamp, payload)
             VALUES ('e-{number}', 'job-{job}', 'x', {at}, '{{\"n\":{number}}}')"
        )
    }

    async fn transaction(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let (kind, count, pause) = {
            let mut rng = rand::rng();
            (rng.random_range(0..10), rng.random_range(1..6), rng.random_range(0..120))
        };
        let mut say = async |sql: String| connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await;
        say("BEGIN".into()).await?;
        for _ in 0..count {
            match kind {
                // savepoints: kept, nested, rolled back
                0..3 => {
                    for sql in ["SAVEPOINT a".into(), self.row(), "SAVEPOINT b".into(), self.row()] {
                        say(sql).await?;
                    }
                    say(if kind == 0 { "ROLLBACK TO b" } else { "RELEASE b" }.into()).await?;
                    say("RELEASE a".into()).await?;
                }
                _ => {
                    say(self.row()).await?;
                }
            }
            sleep(Duration::from_millis(pause / 4)).await;
        }
        match kind {
            9 => {
                say("ROLLBACK".into()).await?;
            }
            8 => {
                let name = format!("p{}", self.next.fetch_add(1, Ordering::Relaxed));
                say(format!("PREPARE TRANSACTION '{name}'")).await?;
                sleep(Duration::from_millis(pause * 3)).await;
                say(format!("COMMIT PREPARED '{name}'")).await?;
            }
            _ => {
                say("COMMIT".into()).await?;
            }
        }
        sleep(Duration::from_millis(pause)).await;
        Ok(())
    }
}

const FLAP: Flap = Flap { stays: 1500, away: 200, resumes: &[Resume::Header], patience: Duration::from_secs(120) };

/// Two daemons, thirty subscribers, twelve writers; `trouble` decides how long they have and what happens meanwhile.
async fn torture(server: &Postgres, mut daemons: [Daemon; 2], trouble: impl AsyncFnOnce(&Postgres, &mut [Daemon; 2])) {
    for number in 0..JOBS {
        server.execute(&format!("INSERT INTO runner_jobs (id, status) VALUES ('job-{number}', 'RUNNING')")).await;
    }
    let (writers, running) = Writers::start(server, 12, JOBS);
    let addresses = [daemons[0].http, daemons[1].http];
    let watch = |number| async move { FLAP.watch(&addresses, &format!("job-{}", number % JOBS)).await };
    let watchers: Vec<_> = (0..30).map(|number| tokio::spawn(watch(number))).collect();
    trouble(server, &mut daemons).await;
    let committed = writers.stop(server, running).await;
    server.execute("UPDATE runner_jobs SET status = 'COMPLETED'").await;
    let total: usize = committed.values().map(Vec::len).sum();
    assert!(total > 1000, "only {total} events were written");
    for (number, watcher) in watchers.into_iter().enumerate() {
        let job = format!("job-{}", number % JOBS);
        let mut seen = watcher.await.expect("a watcher");
        seen.sort();
        let twice: Vec<u64> = seen.windows(2).filter(|two| two[0] == two[1]).map(|two| two[0]).collect();
        assert!(twice.is_empty(), "{job}: {twice:?} of {} came twice", seen.len());
        seen.dedup();
        let committed = &committed[&job];
        let lost: Vec<_> = committed.iter().filter(|number| seen.binary_search(number).is_err()).collect();
        let invented: Vec<_> = seen.iter().filter(|number| committed.binary_search(number).is_err()).collect();
        assert!(
            lost.is_empty() && invented.is_empty(),
            "{job} of {}: lost {lost:?}, never committed {invented:?}",
            seen.len()
        );
    }
    for daemon in &daemons {
        for told in ["panicked", "a cursor has no room"] {
            assert!(!daemon.log().contains(told), "{}", daemon.log());
        }
    }
}

/// A sweep that comes often, a ring that overtakes, a job that is forgotten soon. Without the trigger: a transaction
/// that has notified cannot be prepared.
const SETTINGS: [(&str, &str); 3] =
    [("source.postgres.sweep", "3s"), ("hub.ring_events", "64"), ("hub.linger", "500ms")];

async fn arena(schema: &str) -> (Postgres, [Daemon; 2]) {
    arena_with(schema, &[]).await
}

async fn arena_with(schema: &str, more: &[(&str, &str)]) -> (Postgres, [Daemon; 2]) {
    let server = Postgres::start().await;
    server.execute(schema).await;
    server.make_reader().await;
    let settings = [&SETTINGS, more].concat();
    let daemons = [daemon_on(&server, &settings).await, daemon_on(&server, &settings).await];
    (server, daemons)
}

/// A partitioned table, of which each partition holds [`PARTITION`] numbers.
const PARTITIONS: &str = "
    CREATE TABLE runner_jobs (id text PRIMARY KEY, status text NOT NULL DEFAULT 'RUNNING');
    CREATE TABLE job_events (no bigserial, id text NOT NULL, job_id text NOT NULL, type text NOT NULL,
      timestamp timestamptz NOT NULL DEFAULT now(), payload jsonb NOT NULL) PARTITION BY RANGE (no);
    CREATE TABLE job_events_0 PARTITION OF job_events FOR VALUES FROM (0) TO (300);
    CREATE UNIQUE INDEX ON job_events (job_id, no);";

const PARTITION: i64 = 300;
/// Numbers that there are partitions for before they are drawn: more than are drawn while one is made.
const AHEAD: i64 = 1_500;

/// A view with a join over them. Writers know the table, and readers the view.
const VIEW: &str = "
    CREATE VIEW seen AS SELECT e.xmin AS xmin, e.no AS seq, e.id, j.id AS job_id, e.type, e.timestamp, e.payload
      FROM job_events e JOIN runner_jobs j ON j.id = e.job_id;
    ALTER VIEW seen OWNER TO postgres; GRANT SELECT ON seen TO PUBLIC;";

/// A number, and neither transactions nor times for readers.
pub const NUMBERS_ALONE: &str = "
    CREATE TABLE runner_jobs (id text PRIMARY KEY, status text NOT NULL DEFAULT 'RUNNING');
    CREATE TABLE job_events (seq bigserial PRIMARY KEY, id text NOT NULL, job_id text NOT NULL, type text NOT NULL,
      timestamp timestamptz, payload jsonb NOT NULL);
    CREATE INDEX ON job_events (job_id, seq);";

/// Children that inherit from a table, which keeps no rows itself. An event's number is its id, and each job counts its
/// own; readers know no time.
const CHILDREN_WITHOUT_TIME: &str = "
    CREATE TABLE runner_jobs (id text PRIMARY KEY, status text NOT NULL DEFAULT 'RUNNING');
    CREATE SEQUENCE \"of_job-0\"; CREATE SEQUENCE \"of_job-1\"; CREATE SEQUENCE \"of_job-2\"; CREATE SEQUENCE \"of_job-3\";
    CREATE TABLE job_events (event_id int NOT NULL, id text NOT NULL, job_id text NOT NULL, type text NOT NULL,
      timestamp timestamptz, payload jsonb NOT NULL);
    CREATE TABLE odd_events () INHERITS (job_events); CREATE UNIQUE INDEX ON odd_events (job_id, event_id);
    CREATE TABLE even_events () INHERITS (job_events); CREATE UNIQUE INDEX ON even_events (job_id, event_id);
    CREATE FUNCTION to_child() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      NEW.event_id := nextval(format('%I', 'of_' || NEW.job_id));
      IF NEW.job_id IN ('job-1', 'job-3') THEN INSERT INTO odd_events VALUES (NEW.*);
      ELSE INSERT INTO even_events VALUES (NEW.*); END IF;
      RETURN NULL; END $$;
    CREATE TRIGGER to_child BEFORE INSERT ON job_events FOR EACH ROW EXECUTE FUNCTION to_child();";

/// A writer that is open from the beginning to the end, one with 50,000 rows, 1,000 with one row each between two polls,
/// and a daemon that is killed now and then.
async fn calm(server: &Postgres, daemons: &mut [Daemon; 2]) {
    let mut forgotten = server.connect().await;
    forgotten.execute("BEGIN").await.expect("begin");
    append(&mut forgotten, "job-0", [1_000_000]).await;
    for round in 0..5 {
        sleep(Duration::from_secs(6)).await;
        match round {
            1 => {
                let many = "INSERT INTO job_events (id, job_id, type, payload)
                    SELECT 'e-' || n, 'job-1', 'x', jsonb_build_object('n', n) FROM generate_series(2000001, 2050000) n";
                server.execute(many).await;
            }
            2 => append(&mut server.connect().await, "job-2", 3_000_000..3_001_000).await,
            _ => {
                daemons[round % 2].kill();
                sleep(Duration::from_millis(200)).await;
                daemons[round % 2].restart().await;
            }
        }
    }
    forgotten.execute("COMMIT").await.expect("commit");
}

/// Beside a transaction that stays open, eight writers commit single rows of one job without a pause, so that many commit
/// between any two statements of a reader.
async fn hasty(server: &Postgres, daemons: &mut [Daemon; 2]) {
    let mut forgotten = server.connect().await;
    forgotten.execute("BEGIN").await.expect("begin");
    append(&mut forgotten, "job-0", [1_000_000]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (2..10)
        .map(|writer| {
            let (stop, url) = (stop.clone(), server.url("postgres"));
            tokio::spawn(async move {
                let mut connection = PgConnection::connect(&url).await.expect("a connection");
                for number in writer * 1_000_000.. {
                    append(&mut connection, "job-2", [number]).await;
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            })
        })
        .collect();
    for daemon in daemons {
        sleep(Duration::from_secs(4)).await;
        daemon.kill();
        daemon.restart().await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("a writer");
    }
    forgotten.execute("COMMIT").await.expect("commit");
}

/// The server crashes and comes back, backends are killed, ours and the writers', and a daemon.
async fn rough(server: &Postgres, daemons: &mut [Daemon; 2]) {
    let kill = async |whose: &str| {
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' AND {whose}"
        );
        server.execute(&sql).await;
    };
    for round in 0..3 {
        sleep(Duration::from_secs(4)).await;
        kill("application_name = 'jobcast'").await;
        sleep(Duration::from_secs(3)).await;
        kill("application_name <> 'jobcast' AND random() < 0.5").await;
        sleep(Duration::from_secs(2)).await;
        daemons[round % 2].kill();
        server.down(if round == 1 { "fast" } else { "immediate" });
        sleep(Duration::from_millis(300)).await;
        server.up().await;
        daemons[round % 2].restart().await;
    }
    sleep(Duration::from_secs(3)).await;
}

/// Partitions are made ahead of the numbers, one by one. Others come with rows of a job that nobody watches, below or
/// above all numbers, and are detached or dropped a little later. A daemon is killed now and then.
async fn partitions_come_and_go(server: &Postgres, daemons: &mut [Daemon; 2]) {
    let mut owner = server.connect().await;
    let version = "SELECT current_setting('server_version_num')::int";
    let can_detach_beside_readers = owner.fetch_one(version).await.expect("a version").get::<i32, _>(0) >= 140_000;
    let mut made_to = PARTITION;
    server.execute("INSERT INTO runner_jobs (id) VALUES ('unwatched')").await;
    for round in 0..16 {
        let drawn = "SELECT last_value FROM job_events_no_seq";
        let drawn: i64 = owner.fetch_one(drawn).await.expect("a number").get(0);
        while made_to < drawn + AHEAD {
            let to = made_to + PARTITION;
            let values = format!("FOR VALUES FROM ({made_to}) TO ({to})");
            match made_to / PARTITION % 2 {
                0 => {
                    server.execute(&format!("CREATE TABLE job_events_{made_to} PARTITION OF job_events {values}")).await
                }
                _ => {
                    let like = "(LIKE job_events INCLUDING DEFAULTS)";
                    server.execute(&format!("CREATE TABLE job_events_{made_to} {like}")).await;
                    server
                        .execute(&format!("ALTER TABLE job_events ATTACH PARTITION job_events_{made_to} {values}"))
                        .await;
                }
            }
            made_to = to;
        }
        let from = if round % 2 == 0 { 1_000_000_000 + round * 1_000 } else { -1_000 * round };
        let (spare, to) = (format!("spare_{round}"), from + 500);
        let values = format!("FOR VALUES FROM ({from}) TO ({to})");
        server.execute(&format!("CREATE TABLE {spare} PARTITION OF job_events {values}")).await;
        let rows = format!(
            "INSERT INTO job_events (no, id, job_id, type, payload)
             SELECT n, 'spare-' || n, 'unwatched', 'x', '{{}}' FROM generate_series({from}, {to} - 1) n"
        );
        server.execute(&rows).await;
        sleep(Duration::from_millis(1500)).await;
        match round % 3 {
            0 => {}
            1 if can_detach_beside_readers => {
                server.execute(&format!("ALTER TABLE job_events DETACH PARTITION {spare} CONCURRENTLY")).await;
            }
            _ => server.execute(&format!("ALTER TABLE job_events DETACH PARTITION {spare}")).await,
        }
        let kept = owner.fetch_one(AssertSqlSafe(format!("SELECT count(*) FROM {spare}"))).await.expect("a count");
        assert_eq!(kept.get::<i64, _>(0), 500, "it had rows when it went");
        server.execute(&format!("DROP TABLE {spare}")).await;
        if round % 4 == 3 {
            let daemon = &mut daemons[round as usize / 4 % 2];
            daemon.kill();
            daemon.restart().await;
        }
    }
    let filled = "SELECT count(DISTINCT tableoid) FROM job_events";
    let filled: i64 = owner.fetch_one(filled).await.expect("a count").get(0);
    assert!(filled > 3, "only {filled} partitions were written to");
}

#[tokio::test]
async fn flapping_subscribers_beside_writers_of_every_kind_lose_and_repeat_nothing() {
    let _alone = alone();
    let (server, daemons) = arena(RECOMMENDED).await;
    torture(&server, daemons, calm).await;
}

#[tokio::test]
async fn a_table_without_numbers_or_transaction_ids_loses_and_repeats_nothing() {
    let _alone = alone();
    let (server, daemons) = arena(LEGACY).await;
    torture(&server, daemons, calm).await;
}

#[tokio::test]
async fn partitions_whose_rows_are_told_by_their_time_alone_lose_and_repeat_nothing() {
    let _alone = alone();
    let (server, daemons) = arena_with(LEGACY_IN_PARTITIONS, &[("source.postgres.look_back", "5s")]).await;
    torture(&server, daemons, calm).await;
}

#[tokio::test]
async fn a_job_that_is_written_without_a_pause_beside_a_forgotten_transaction_loses_and_repeats_nothing() {
    let _alone = alone();
    let (server, daemons) = arena(RECOMMENDED).await;
    torture(&server, daemons, hasty).await;
}

#[tokio::test]
async fn a_job_without_transaction_ids_that_is_written_without_a_pause_loses_and_repeats_nothing() {
    let _alone = alone();
    let (server, daemons) = arena(LEGACY).await;
    torture(&server, daemons, hasty).await;
}

#[tokio::test]
async fn a_view_over_partitions_that_come_and_go_loses_and_repeats_nothing() {
    let _alone = alone();
    let tables = [PARTITIONS, VIEW].concat();
    let (server, daemons) = arena_with(&tables, &[("source.postgres.events_table", "seen")]).await;
    torture(&server, daemons, partitions_come_and_go).await;
}

#[tokio::test]
async fn a_partitioned_table_whose_partitions_come_and_go_loses_and_repeats_nothing() {
    let _alone = alone();
    let (server, daemons) = arena_with(PARTITIONS, &[("source.postgres.columns.seq", "no")]).await;
    torture(&server, daemons, partitions_come_and_go).await;
}

#[tokio::test]
async fn children_of_a_table_without_time_or_transaction_ids_lose_and_repeat_nothing() {
    let _alone = alone();
    let settings = ["id", "seq"].map(|column| (format!("source.postgres.columns.{column}"), "event_id"));
    let settings = settings.iter().map(|(name, value)| (name.as_str(), *value));
    let settings = Vec::from_iter(settings.chain([("source.postgres.columns.timestamp", "")]));
    let (server, daemons) = arena_with(CHILDREN_WITHOUT_TIME, &settings).await;
    torture(&server, daemons, calm).await;
}

#[tokio::test]
async fn a_table_with_numbers_and_nothing_else_loses_and_repeats_nothing() {
    let _alone = alone();
    let (server, daemons) = arena_with(NUMBERS_ALONE, &[("source.postgres.columns.timestamp", "")]).await;
    torture(&server, daemons, calm).await;
}

#[tokio::test]
async fn a_job_with_numbers_that_is_written_without_a_pause_loses_and_repeats_nothing() {
    let _alone = alone();
    let (server, daemons) = arena_with(NUMBERS_ALONE, &[("source.postgres.columns.timestamp", "")]).await;
    torture(&server, daemons, hasty).await;
}

#[tokio::test]
async fn crashes_and_killed_connections_lose_and_repeat_nothing() {
    let _alone = alone();
    let (server, daemons) = arena(RECOMMENDED).await;
    torture(&server, daemons, rough).await;
}

#[tokio::test]
async fn crashes_beneath_a_table_without_numbers_lose_and_repeat_nothing() {
    let _alone = alone();
    let (server, daemons) = arena(LEGACY).await;
    torture(&server, daemons, rough).await;
}

#[tokio::test]
async fn a_standby_and_a_pooler_that_keeps_no_sessions_lose_and_repeat_nothing() {
    let _alone = alone();
    let server = Postgres::start().await;
    server.execute(RECOMMENDED).await;
    server.make_reader().await;
    let (standby, pooler) = (server.standby().await, Pooler::start(&server).await);
    let daemons =
        [daemon_on(&standby, &SETTINGS).await, Daemon::on("postgres", &pooler.url("reader"), &SETTINGS).await];
    torture(&server, daemons, async |_, daemons| {
        for round in 0..3 {
            sleep(Duration::from_secs(5)).await;
            daemons[round % 2].kill();
            daemons[round % 2].restart().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_table_that_is_given_its_missing_columns_loses_and_repeats_nothing() {
    let _alone = alone();
    let (server, daemons) = arena(LEGACY).await;
    torture(&server, daemons, async |server, daemons| {
        sleep(Duration::from_secs(5)).await;
        let sql = run(&["schema", "postgres", "--migrate", "--no-trigger"], &[]).await;
        for _ in 0..2 {
            server.psql(&String::from_utf8_lossy(&sql.stdout)).await;
        }
        for daemon in daemons {
            // until then one knows of them and the other does not
            sleep(Duration::from_secs(4)).await;
            daemon.kill();
            daemon.restart().await;
            daemon.logs(&["age=Column order=Number"]).await;
        }
        sleep(Duration::from_secs(4)).await;
    })
    .await;
    let rows = "SELECT count(*) FILTER (WHERE seq IS NULL AND xid IS NULL), count(seq), count(xid) FROM job_events";
    let row = server.connect().await.fetch_one(rows).await.expect("counts");
    let (before, numbered, told): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert!(before > 100 && numbered > 100 && numbered == told, "{before} {numbered} {told}");
}
