//! A source that has worked fails in a way that only a person can mend, and is mended soon; and one that takes too long.

use crate::support::daemon::{stream_path, write_rows};
use crate::support::store::Store;
use crate::support::{Daemon, Postgres, Redis, Stream, eventually};

const QUICK: [(&str, &str); 2] = [("source.retry_initial", "100ms"), ("source.retry_max", "300ms")];

/// Waits until a stream is told of a failure, and checks that all others are told alike, and operators this code.
async fn is_told(daemon: &Daemon, stream: &mut Stream, code: &str) {
    // The code may be another, since the connection was closed first.
    let error = stream.event().await;
    assert!(error.is("stream.error") && error.json()["retryable"] == true, "{error:?}");
    eventually("operators to be told", async || {
        (daemon.ask_admin("/readyz").await.json()["code"] == code).then_some(())
    })
    .await;
    let counted = format!("jobcast_source_errors_total{{code=\"{code}\",retryable=\"false\"}}");
    daemon.metric_reaches(&counted, 1.0).await;
    let mut other = Stream::open(daemon.http, &stream_path("job"), &[]).await;
    assert_eq!(other.head.status, 200, "no browser gives up");
    loop {
        let told = other.event().await;
        if told.is("stream.error") {
            assert_eq!(told.json()["retryable"], true, "{told:?}");
            break;
        }
        // The ring has what came before.
    }
    let polled = daemon.get("/runner-jobs/job/events").await;
    assert_eq!((polled.status, polled.header("Retry-After").is_some()), (503, true), "{polled:?}");
}

/// Makes the reader's password `old`, and writes its URL to a file, whose path is returned with the folder.
async fn let_reader_in_by_password(server: &Postgres) -> (tempfile::TempDir, String) {
    server.make_reader().await;
    server.execute("ALTER ROLE reader PASSWORD 'old'").await;
    server.let_in("host all reader 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n");
    file_of(&server.url("reader:old"))
}

/// Writes a URL to a file, whose path is returned with the folder.
fn file_of(url: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("url").to_str().expect("UTF-8").to_string();
    std::fs::write(&file, url).expect("a file");
    (folder, file)
}

#[tokio::test]
async fn a_database_whose_password_rights_or_tables_change_for_a_while_loses_no_stream_and_no_event() {
    let server = <Postgres as Store>::start().await;
    let (_folder, file) = let_reader_in_by_password(&server).await;
    let file = file.as_str();
    let settings = [("source.kind", "postgres"), ("source.postgres.url_file", file)];
    let daemon = Daemon::with(&[&QUICK[..], &settings].concat()).await;
    server.append("job", 0..1).await;
    let mut stream = daemon.stream("job").await;
    assert_eq!(stream.event().await.number(), 0);
    let closes = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'reader'";
    let renames = "ALTER TABLE job_events RENAME TO elsewhere";
    for (number, (brings, code, mends)) in (0..).step_by(2).zip([
        ("REVOKE SELECT ON job_events FROM reader", "source.rights", "GRANT SELECT ON job_events TO reader"),
        (renames, "source.schema", "ALTER TABLE elsewhere RENAME TO job_events"),
        ("ALTER ROLE reader PASSWORD 'new'", "source.credentials", ""),
    ]) {
        server.execute(brings).await;
        if mends.is_empty() {
            server.execute(closes).await;
        }
        if brings == renames {
            server.execute("NOTIFY jobcast").await;
        } else {
            server.append("job", number + 1..number + 2).await;
        }
        is_told(&daemon, &mut stream, code).await;
        if mends.is_empty() {
            std::fs::write(file, server.url("reader:new")).expect("a file");
            daemon.signal("HUP");
        } else {
            server.execute(mends).await;
        }
        if brings == renames {
            server.append("job", number + 1..number + 2).await;
        }
        server.append("job", number + 2..number + 3).await;
        for next in [number + 1, number + 2] {
            assert_eq!(stream.event().await.number(), next, "{brings}");
        }
        eventually("to be ready", async || {
            (daemon.ask_admin("/readyz").await.json()["status"] == "ready").then_some(())
        })
        .await;
    }
    assert!(!daemon.log().contains("reader:"), "{}", daemon.log());
}

#[tokio::test]
async fn a_redis_whose_rights_and_password_change_for_a_while_loses_no_stream_and_no_event() {
    let server = Redis::start().await;
    server.ask::<()>(&["ACL", "SETUSER", "reader", "on", ">old", "~*", "+@all"]).await;
    let (_folder, file) = file_of(&server.url().replace("//", "//reader:old@"));
    let file = file.as_str();
    let settings = [("source.kind", "redis"), ("source.redis.url_file", file)];
    let daemon = Daemon::with(&[&QUICK[..], &settings].concat()).await;
    server.append("job", 0..1).await;
    let mut stream = daemon.stream("job").await;
    assert_eq!(stream.event().await.number(), 0);

    server.ask::<()>(&["ACL", "SETUSER", "reader", "-xrange"]).await;
    server.append("job", 1..2).await;
    is_told(&daemon, &mut stream, "source.rights").await;
    server.ask::<()>(&["ACL", "SETUSER", "reader", "+xrange"]).await;
    assert_eq!(stream.event().await.number(), 1);

    server.ask::<()>(&["ACL", "SETUSER", "reader", "resetpass", ">new"]).await;
    server.ask::<()>(&["CLIENT", "KILL", "USER", "reader"]).await;
    server.append("job", 2..3).await;
    is_told(&daemon, &mut stream, "source.credentials").await;
    std::fs::write(file, server.url().replace("//", "//reader:new@")).expect("a file");
    daemon.signal("HUP");
    server.append("job", 3..4).await;
    for next in [2, 3] {
        assert_eq!(stream.event().await.number(), next);
    }
}

/// Waits after failures that no test sees the end of.
const ENDLESS: [(&str, &str); 3] =
    [("source.retry_initial", "10m"), ("source.retry_max", "10m"), ("source.poll_interval", "200ms")];

/// A live stream is told that the source is away, and waits for it.
async fn waits(live: &mut Stream) {
    let error = live.event().await;
    assert!(error.is("stream.error") && error.json()["retryable"] == true, "{error:?}");
}

#[tokio::test]
async fn a_new_password_of_a_database_ends_every_wait_for_it_at_once() {
    let server = <Postgres as Store>::start().await;
    let (_folder, file) = let_reader_in_by_password(&server).await;
    let file = file.as_str();
    let settings = [("source.kind", "postgres"), ("source.postgres.url_file", file)];
    let daemon = Daemon::with(&[&ENDLESS[..], &settings].concat()).await;
    server.append("job", 0..1).await;
    let mut live = daemon.stream("job").await;
    assert_eq!(live.event().await.number(), 0);
    daemon.metric_is("jobcast_source_listening", 1.0).await;
    server.execute("ALTER ROLE reader PASSWORD 'new'").await;
    server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'reader'").await;
    waits(&mut live).await;
    daemon.metric_is("jobcast_source_listening", 0.0).await;
    server.append("job", 1..2).await;
    std::fs::write(file, server.url("reader:new")).expect("a file");
    daemon.signal("HUP");
    assert_eq!(live.event().await.number(), 1);
    daemon.metric_is("jobcast_source_listening", 1.0).await;
}

#[tokio::test]
async fn a_new_password_of_a_redis_ends_every_wait_for_it_at_once() {
    let server = Redis::start().await;
    server.ask::<()>(&["ACL", "SETUSER", "reader", "on", ">old", "~*", "+@all"]).await;
    let (_folder, file) = file_of(&server.url().replace("//", "//reader:old@"));
    let file = file.as_str();
    let settings = [("source.kind", "redis"), ("source.redis.url_file", file)];
    let daemon = Daemon::with(&[&ENDLESS[..], &settings].concat()).await;
    server.append("job", 0..1).await;
    let mut live = daemon.stream("job").await;
    assert_eq!(live.event().await.number(), 0);
    server.ask::<()>(&["ACL", "SETUSER", "reader", "resetpass", ">new"]).await;
    server.ask::<()>(&["CLIENT", "KILL", "USER", "reader"]).await;
    waits(&mut live).await;
    server.append("job", 1..2).await;
    std::fs::write(file, server.url().replace("//", "//reader:new@")).expect("a file");
    daemon.signal("HUP");
    assert_eq!(live.event().await.number(), 1);
}

#[tokio::test]
async fn a_file_whose_table_is_away_for_a_while_loses_no_stream_and_after_the_time_it_has_failed() {
    let daemon = Daemon::with(&[QUICK[0], QUICK[1], ("source.forgive", "3s")]).await;
    daemon.write("job", 0..1).await;
    let mut stream = daemon.stream("job").await;
    assert_eq!(stream.event().await.number(), 0);
    let mut rows = daemon.rows().await;
    let mut rename = async |sql: &'static str| {
        sqlx::raw_sql(sql).execute(&mut rows).await.expect("rename");
    };
    rename("ALTER TABLE job_events RENAME TO elsewhere").await;
    let error = stream.event().await;
    assert_eq!((&error.json()["code"], &error.json()["retryable"]), (&"source.schema".into(), &true.into()));
    rename("ALTER TABLE elsewhere RENAME TO job_events").await;
    write_rows(&mut daemon.rows().await, "job", 1..2).await;
    assert_eq!(stream.event().await.number(), 1);

    rename("ALTER TABLE job_events RENAME TO elsewhere").await;
    for is_retryable in [true, false] {
        let error = stream.event().await;
        assert_eq!(
            (&error.json()["code"], &error.json()["retryable"]),
            (&"source.schema".into(), &is_retryable.into())
        );
    }
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_stopped_at_the_server_and_tried_again() {
    let server = <Postgres as Store>::start().await;
    let settings = [&QUICK[..], &[("source.read_timeout", "300ms")]].concat();
    let daemon = Daemon::on("postgres", &server.url("postgres"), &settings).await;
    server.append("job", 0..1).await;
    let mut stream = daemon.stream("job").await;
    assert_eq!(stream.event().await.number(), 0);
    let mut owner = server.connect().await;
    let lock = "BEGIN; LOCK TABLE job_events IN ACCESS EXCLUSIVE MODE; NOTIFY jobcast";
    sqlx::raw_sql(lock).execute(&mut owner).await.expect("a lock");
    server.execute("NOTIFY jobcast; INSERT INTO runner_jobs (id) VALUES ('another')").await;
    let polled = daemon.get("/runner-jobs/job/events").await;
    assert_eq!((polled.status, polled.code().as_str()), (503, "source.timed_out"));
    let error = stream.event().await;
    assert_eq!((&error.json()["code"], &error.json()["retryable"]), (&"source.timed_out".into(), &true.into()));
    server.logs_times("canceling statement due to statement timeout", 1).await;
    sqlx::raw_sql("ROLLBACK").execute(&mut owner).await.expect("no lock");
    server.append("job", 1..2).await;
    assert_eq!(stream.event().await.number(), 1);
}

#[tokio::test]
async fn a_redis_that_does_not_reply_in_time_is_an_outage_until_it_does() {
    let server = Redis::start().await;
    let settings = [&QUICK[..], &[("source.read_timeout", "300ms")]].concat();
    let daemon = Daemon::on("redis", &server.url(), &settings).await;
    server.append("job", 0..1).await;
    let mut stream = daemon.stream("job").await;
    assert_eq!(stream.event().await.number(), 0);
    server.signal("STOP");
    let error = stream.event().await;
    assert_eq!((&error.json()["code"], &error.json()["retryable"]), (&"source.timed_out".into(), &true.into()));
    server.signal("CONT");
    server.append("job", 1..2).await;
    assert_eq!(stream.event().await.number(), 1);
}
