//! PostgreSQL: every committed event once, whatever its writers do.

use crate::support::daemon::stream_path;
use crate::support::{Daemon, Postgres, Stream, numbers};
use rand::RngExt;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

const RECOMMENDED: &str = include_str!("../../src/source/postgres/schema.sql");
const TRIGGER: &str = include_str!("../../src/source/postgres/trigger.sql");
/// What many have already: no number, no transaction id.
const LEGACY: &str = "
    CREATE TABLE runner_jobs (id text PRIMARY KEY, status text NOT NULL DEFAULT 'RUNNING');
    CREATE TABLE job_events (id text NOT NULL, job_id text NOT NULL, step_id text, type text NOT NULL,
      timestamp timestamptz NOT NULL DEFAULT now(), actor text, payload jsonb NOT NULL DEFAULT '{}');
    CREATE INDEX ON job_events (job_id, timestamp);";

async fn serve(server: &Postgres, schema: &str, more: &[(&str, &str)]) -> Daemon {
    server.execute(schema).await;
    server.make_reader().await;
    daemon_on(server, more).await
}

async fn daemon_on(server: &Postgres, more: &[(&str, &str)]) -> Daemon {
    let url = server.url("reader");
    let mut settings = vec![("source.kind", "postgres"), ("source.postgres.url", &url)];
    settings.extend_from_slice(more);
    Daemon::with(&settings).await
}

async fn insert(to: &mut PgConnection, job: &str, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        let sql = format!(
            "INSERT INTO job_events (id, job_id, type, payload) VALUES ('e-{number}', '{job}', 'x', '{{\"n\":{number}}}')"
        );
        to.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.expect("insert");
    }
}

#[tokio::test]
async fn a_table_is_tailed_with_no_more_than_the_right_to_read_it() {
    let triggered = [RECOMMENDED, TRIGGER].concat();
    for schema in [&triggered, RECOMMENDED, LEGACY] {
        let server = Postgres::start().await;
        let daemon = serve(&server, schema, &[]).await;
        let mut rows = server.connect().await;
        rows.execute("INSERT INTO runner_jobs (id, status) VALUES ('job', 'RUNNING')").await.expect("a job");
        insert(&mut rows, "job", 0..10).await;
        let mut stream = daemon.stream("job").await;
        assert_eq!(numbers(&stream.take(10).await), Vec::from_iter(0..10));
        insert(&mut rows, "job", 10..30).await;
        let live = stream.take(20).await;
        assert_eq!(numbers(&live), Vec::from_iter(10..30));
        for (index, message) in live.iter().enumerate() {
            let mut again = daemon.stream_after("job", message.cursor()).await;
            let rest = again.take(19 - index).await;
            assert_eq!(numbers(&rest), Vec::from_iter(11 + index as u64..30));
        }
        let mut by_id = daemon.stream_after("job", "e-25").await;
        assert_eq!(numbers(&by_id.take(4).await), [26, 27, 28, 29]);
        rows.execute("UPDATE runner_jobs SET status = 'FAILED' WHERE id = 'job'").await.expect("an end");
        let end = stream.event().await;
        assert!(end.is("stream.complete"), "{end:?}");
        assert_eq!(daemon.stream_after("job", end.cursor()).await.head.status, 204);
    }
}

/// What was committed of each job, and what was rolled back.
#[derive(Default)]
struct Truth {
    committed: HashMap<String, Vec<u64>>,
}

/// One writer: transactions of every kind until it is to stop.
async fn write(server_url: String, truth: Arc<Mutex<Truth>>, next: Arc<AtomicU64>, stop: Arc<AtomicBool>, jobs: usize) {
    use sqlx::ConnectOptions;
    let options: sqlx::postgres::PgConnectOptions = server_url.parse().expect("an address");
    let mut connection = options.connect().await.expect("PostgreSQL");
    while !stop.load(Ordering::Relaxed) {
        let (kind, count, pause) = {
            let mut rng = rand::rng();
            (rng.random_range(0..10), rng.random_range(1..6), rng.random_range(0..120))
        };
        let mut wrote: Vec<(String, u64)> = Vec::new();
        let row = |wrote: &mut Vec<(String, u64)>| {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let mut rng = rand::rng();
            let job = format!("job-{}", rng.random_range(0..jobs));
            let skew = rng.random_range(-200..5);
            let at = if rng.random_bool(0.3) { format!("now() + interval '{skew} seconds'") } else { "now()".into() };
            let sql = format!(
                "INSERT INTO job_events (id, job_id, type, timestamp, payload)
                 VALUES ('e-{number}', '{job}', 'x', {at}, '{{\"n\":{number}}}')"
            );
            wrote.push((job, number));
            sql
        };
        let mut say = async |sql: String| {
            connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.expect("a statement");
        };
        say("BEGIN".into()).await;
        for _ in 0..count {
            match kind {
                // savepoints: kept, nested, rolled back
                0..3 => {
                    say("SAVEPOINT a".into()).await;
                    say(row(&mut wrote)).await;
                    say("SAVEPOINT b".into()).await;
                    let kept = wrote.len();
                    say(row(&mut wrote)).await;
                    if kind == 0 {
                        say("ROLLBACK TO b".into()).await;
                        wrote.truncate(kept);
                    } else {
                        say("RELEASE b".into()).await;
                    }
                    say("RELEASE a".into()).await;
                }
                _ => say(row(&mut wrote)).await,
            }
            sleep(Duration::from_millis(pause / 4)).await;
        }
        let commits = match kind {
            9 => {
                say("ROLLBACK".into()).await;
                false
            }
            8 => {
                let name = format!("p{}", wrote[0].1);
                say(format!("PREPARE TRANSACTION '{name}'")).await;
                sleep(Duration::from_millis(pause * 3)).await;
                say(format!("COMMIT PREPARED '{name}'")).await;
                true
            }
            _ => {
                say("COMMIT".into()).await;
                true
            }
        };
        if commits {
            let mut truth = truth.lock().expect("truth");
            for (job, number) in wrote {
                truth.committed.entry(job).or_default().push(number);
            }
        }
        sleep(Duration::from_millis(pause)).await;
    }
}

/// Watches a job to its end on either daemon, leaving at random.
async fn flap(to: [SocketAddr; 2], job: String) -> Vec<u64> {
    let mut seen = Vec::new();
    let mut last: Option<String> = None;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(150) {
        let (stays, pause, which) = {
            let mut rng = rand::rng();
            (rng.random_range(0..1500), rng.random_range(0..200), rng.random_range(0..2))
        };
        let until = Instant::now() + Duration::from_millis(stays);
        let headers: Vec<(&str, &str)> = last.iter().map(|last| ("Last-Event-ID", last.as_str())).collect();
        let path = stream_path(&job);
        if let Ok(Ok(mut stream)) = timeout_at(until, Stream::try_open(to[which], &path, &headers)).await {
            if stream.head.status == 204 {
                return seen;
            }
            while let Ok(Ok(Some(message))) = timeout_at(until, stream.try_next()).await {
                if message.is("stream.complete") {
                    return seen;
                }
                assert!(!message.is("stream.reset"), "{job}: {message:?} after {last:?}");
                if let (Some(id), Some(_)) = (&message.id, &message.data) {
                    seen.push(message.number());
                    last = Some(id.clone());
                }
            }
        }
        sleep(Duration::from_millis(pause)).await;
    }
    panic!("{job} did not end; {} seen", seen.len());
}

/// Without the trigger: a transaction that has notified cannot be prepared.
async fn torture(schema: &str) {
    const JOBS: usize = 4;
    let server = Postgres::start().await;
    let settings = [("source.postgres.sweep", "3s"), ("hub.ring_events", "64"), ("hub.linger", "500ms")];
    let one = serve(&server, schema, &settings).await;
    let mut two = daemon_on(&server, &settings).await;
    for number in 0..JOBS {
        server.execute(&format!("INSERT INTO runner_jobs (id, status) VALUES ('job-{number}', 'RUNNING')")).await;
    }
    let (truth, next, stop) =
        (Arc::new(Mutex::new(Truth::default())), Arc::default(), Arc::new(AtomicBool::new(false)));
    let writers: Vec<_> = (0..12)
        .map(|_| tokio::spawn(write(server.url("postgres"), truth.clone(), Arc::clone(&next), stop.clone(), JOBS)))
        .collect();
    let addresses = [one.http, two.http];
    let watchers: Vec<_> =
        (0..30).map(|number| tokio::spawn(flap(addresses, format!("job-{}", number % JOBS)))).collect();

    // open from the beginning to the end
    let mut forgotten = server.connect().await;
    forgotten.execute("BEGIN").await.expect("begin");
    insert(&mut forgotten, "job-0", [1_000_000]).await;
    for _ in 0..3 {
        sleep(Duration::from_secs(6)).await;
        two.kill();
        sleep(Duration::from_millis(200)).await;
        two.restart().await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("a writer");
    }
    forgotten.execute("COMMIT").await.expect("commit");
    truth.lock().expect("truth").committed.entry("job-0".into()).or_default().push(1_000_000);
    server.execute("UPDATE runner_jobs SET status = 'COMPLETED'").await;

    let truth = std::mem::take(&mut *truth.lock().expect("truth"));
    let total: usize = truth.committed.values().map(Vec::len).sum();
    assert!(total > 1000, "only {total} events were written");
    for (number, watcher) in watchers.into_iter().enumerate() {
        let job = format!("job-{}", number % JOBS);
        let mut seen = watcher.await.expect("a watcher");
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count, "{job}: some came twice");
        let mut committed = truth.committed[&job].clone();
        committed.sort();
        let lost: Vec<_> = committed.iter().filter(|number| seen.binary_search(number).is_err()).collect();
        let invented: Vec<_> = seen.iter().filter(|number| committed.binary_search(number).is_err()).collect();
        assert!(
            lost.is_empty() && invented.is_empty(),
            "{job} of {count}: lost {lost:?}, never committed {invented:?}"
        );
    }
}

#[tokio::test]
async fn twelve_writers_of_every_kind_and_thirty_flapping_subscribers_lose_and_repeat_nothing() {
    torture(RECOMMENDED).await;
}

#[tokio::test]
async fn the_same_on_a_table_without_numbers_or_transaction_ids() {
    torture(LEGACY).await;
}

#[tokio::test]
async fn events_may_be_sent_in_where_that_is_enabled_and_reach_subscribers() {
    let server = Postgres::start().await;
    server.execute(RECOMMENDED).await;
    let url = server.url("postgres");
    let settings = [("source.kind", "postgres"), ("source.postgres.url", &*url), ("ingest.enabled", "true")];
    let daemon = Daemon::with(&settings).await;
    daemon.write("job", 0..20).await;
    let mut stream = daemon.stream("job").await;
    let seen = stream.take(20).await;
    assert_eq!(numbers(&seen), Vec::from_iter(0..20));
    let again = daemon.send("POST", "/runner-jobs/job/events", &crate::support::daemon::numbered(7)).await;
    assert_eq!((again.status, &again.json()["payload"]["n"]), (200, &7.into()));
    let after = again.json()["cursor"].as_str().expect("a cursor").to_string();
    assert_eq!(daemon.stream_after("job", &after).await.event().await.number(), 8);
    daemon.write("job", 20..25).await;
    assert_eq!(numbers(&stream.take(5).await), [20, 21, 22, 23, 24]);
    let jobs = daemon.get("/runner-jobs").await.json();
    assert_eq!((&jobs["jobs"][0]["jobId"], &jobs["jobs"][0]["status"]), (&"job".into(), &"RUNNING".into()));
    daemon.set_status("job", "CANCELLED").await;
    assert_eq!(stream.event().await.json()["status"], "CANCELLED");
    for (path, status) in [("/runner-jobs/nosuch/events", 404), ("/runner-jobs/nosuch/events/stream", 404)] {
        assert_eq!(daemon.get(path).await.status, status);
    }
    let long = serde_json::json!({ "type": "x", "payload": "\u{0}" });
    let refused = daemon.send("POST", "/runner-jobs/job/events", &long).await;
    assert_eq!((refused.status, refused.code().as_str()), (422, "source.refused"), "jsonb takes no NUL");
}

#[tokio::test]
async fn a_server_that_crashes_and_comes_back_is_told_once_and_loses_nothing() {
    let server = Postgres::start().await;
    let daemon = serve(&server, RECOMMENDED, &[("source.retry_max", "500ms")]).await;
    let mut rows = server.connect().await;
    insert(&mut rows, "job", 0..10).await;
    let mut stream = daemon.stream("job").await;
    let seen = stream.take(10).await;
    for round in 0..2 {
        server.down(["immediate", "fast"][round]);
        let error = stream.event().await;
        assert!(error.is("stream.error"), "{error:?}");
        assert_eq!(error.json()["retryable"], true, "{error:?}");
        // a new stream is answered, told, and closed or kept
        let mut other = Stream::open(daemon.http, &stream_path("another"), &[]).await;
        assert_eq!(other.head.status, 200);
        assert!(other.event().await.is("stream.error"));
        server.up().await;
        let mut rows = server.connect().await;
        let first = 10 + 5 * round as u64;
        insert(&mut rows, "job", first..first + 5).await;
        let rest = stream.take(5).await;
        assert_eq!(numbers(&rest), Vec::from_iter(first..first + 5));
    }
    let mut back = daemon.stream_after("job", seen[4].cursor()).await;
    assert_eq!(numbers(&back.take(15).await), Vec::from_iter(5..20));
    assert!(!daemon.log().contains("panicked"));
}

#[tokio::test]
async fn check_says_what_the_database_lacks_and_never_a_password() {
    use crate::support::daemon::run;
    let server = Postgres::start().await;
    let url = server.url("postgres:hunter2");
    let check = async || {
        let output = run(&["check"], &[("source.kind", "postgres"), ("source.postgres.url", &url)]).await;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!said.contains("hunter2"), "{said}");
        (output.status.code(), said)
    };
    let (code, said) = check().await;
    assert!(code == Some(1) && said.contains("job_events") && said.contains("mend: "), "{said}");
    server.execute(LEGACY).await;
    let (code, said) = check().await;
    assert!(code == Some(0) && said.contains("no column of type xid8"), "{said}");
    server.execute("DROP TABLE job_events, runner_jobs").await;
    for _ in 0..2 {
        let schema = run(&["schema", "postgres"], &[]).await;
        server.execute(&String::from_utf8_lossy(&schema.stdout)).await;
    }
    let (code, said) = check().await;
    assert!(code == Some(0) && said.contains("found by index"), "{said}");
    server.execute("DROP INDEX job_events_xid, job_events_job_seq").await;
    let (code, said) = check().await;
    assert!(code == Some(1) && said.matches("CREATE INDEX").count() == 2, "{said}");
}
