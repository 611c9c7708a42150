//! Rights, passwords and TLS: each trouble has its code, and no message holds a password.

use super::{RECOMMENDED, serve};
use crate::support::address::localhost_to;
use crate::support::daemon::{run, stream_path};
use crate::support::postgres::append;
use crate::support::tls::{Authority, keep};
use crate::support::{Daemon, Postgres, Stream, eventually};
use sqlx::{Executor, Row};

const QUICK: [(&str, &str); 3] =
    [("source.retry_initial", "100ms"), ("source.retry_max", "300ms"), ("source.forgive", "0s")];

/// Each trouble: what brings it, its code, whether trying again may help, and what mends it.
const TROUBLES: [(&str, &str, bool, &str); 5] = [
    (
        "ALTER ROLE reader CONNECTION LIMIT 0; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'reader'",
        "source.exhausted",
        true,
        "ALTER ROLE reader CONNECTION LIMIT -1",
    ),
    ("REVOKE SELECT ON job_events FROM reader", "source.rights", false, "GRANT SELECT ON job_events TO reader"),
    (
        "ALTER TABLE job_events RENAME payload TO body;
         INSERT INTO job_events (id, job_id, type) VALUES ('unread', 'job', 'y')",
        "source.schema",
        false,
        "DELETE FROM job_events WHERE id = 'unread'; ALTER TABLE job_events RENAME body TO payload",
    ),
    (
        "ALTER TABLE job_events RENAME TO elsewhere",
        "source.schema",
        false,
        "ALTER TABLE elsewhere RENAME TO job_events",
    ),
    (
        "ALTER ROLE reader PASSWORD 'another'; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'reader'",
        "source.credentials",
        false,
        "ALTER ROLE reader PASSWORD 'hunter2'",
    ),
];

#[tokio::test]
async fn every_trouble_is_told_by_its_code_once_and_is_over_when_it_is_mended() {
    let server = Postgres::start().await;
    server.execute(RECOMMENDED).await;
    server.make_reader().await;
    server.execute("ALTER ROLE reader PASSWORD 'hunter2'").await;
    server.let_in("host all reader 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n");
    let url = server.url("reader:hunter2");
    let daemon = Daemon::on("postgres", &url, &QUICK).await;
    // one that is there already: in some troubles nobody gets in any more
    let mut owner = server.connect().await;
    append(&mut owner, "job", [0]).await;
    let mut stream = daemon.stream("job").await;
    let mut last = stream.take(1).await.remove(0);
    for (number, (brings, code, is_retryable, mends)) in (1..).zip(TROUBLES) {
        // One after the other: whoever is thrown out must not get in before the first has been committed.
        for statement in brings.split_inclusive("LIMIT 0; ").flat_map(|part| part.split_inclusive("'another'; ")) {
            owner.execute(statement).await.expect(brings);
        }
        let mut error = stream.event().await;
        assert!(error.is("stream.error"), "{brings}: {error:?}");
        if error.json()["code"] == "source.unavailable" && !is_retryable {
            // the connection was closed first: that might have got better
            error = stream.event().await;
        }
        assert_eq!(error.json()["retryable"], is_retryable, "{brings}: {error:?}");
        if is_retryable {
            assert!(daemon.stream("another").await.event().await.is("stream.error"));
            // one that begins just now
            let late = Daemon::on("postgres", &url, &QUICK).await;
            let mut stream = Stream::open(late.http, &stream_path("job"), &[]).await;
            assert_eq!(stream.event().await.json()["code"], code);
        } else {
            assert_eq!(error.json()["code"], code);
            // as soon as no old connection is left
            let refused = eventually("new readers to be refused", async || {
                let other = Stream::open(daemon.http, &stream_path("another"), &[]).await;
                Some(other.head).filter(|head| head.status == 502)
            });
            assert_eq!(refused.await.code(), code);
            assert!(stream.next().await.is_none(), "what cannot get better is closed");
        }
        owner.execute(mends).await.expect(mends);
        append(&mut owner, "job", [number]).await;
        if !is_retryable {
            stream = daemon.stream_when_back("job", last.cursor()).await;
        }
        // the error is not told again, and nothing is missing
        last = stream.event().await;
        assert_eq!((last.event.as_deref(), last.number()), (Some("x"), number), "{brings}");
    }
    assert!(!daemon.log().contains("hunter2"), "{}", daemon.log());
}

#[tokio::test]
async fn a_wrong_password_stops_the_start_and_stands_nowhere() {
    let server = Postgres::start().await;
    server.execute(RECOMMENDED).await;
    server.execute("CREATE ROLE reader LOGIN PASSWORD 'right'").await;
    server.let_in("host all reader 127.0.0.1/32 scram-sha-256\n");
    for (command, code) in [("serve", 1), ("check", 1)] {
        let url = server.url("reader:hunter2");
        let output = run(&[command], &[("source.kind", "postgres"), ("source.postgres.url", &url)]).await;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains("password authentication failed") && said.contains("source.postgres.url"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
    for url in ["postgres://reader:hunter2@nowhere:port/x", "hunter2"] {
        let output = run(&["serve"], &[("source.kind", "postgres"), ("source.postgres.url", url)]).await;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success() && !said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn an_address_that_is_none_is_said_to_be_none_for_its_own_reason_and_no_part_of_its_password_is_shown() {
    let server = Postgres::start().await;
    let (host, port) = (server.address().ip(), server.port);
    for (url, said_of_it) in [
        (format!("postgres://reader:zq7@kv8#wj9/xm4@{host}:{port}/postgres"), "write / as %2F"),
        (format!("postgres://reader:zq7@kv8/wj9@{host}:{port}/postgres"), "write / as %2F"),
        (format!("jdbc:postgresql://reader:zq7kv8@{host}:{port}/postgres"), "jdbc:"),
        (format!("jdbc:postgresql://{host}:{port}/postgres?user=reader&password=zq7kv8"), "jdbc:"),
        (format!("postgres://reader:zq7kv8@{host}:{port},{host}:1/postgres"), "several hosts"),
        (format!("postgres://reader:zq7kv8@/postgres?host={host},{host}&target_session_attrs=any"), "several hosts"),
    ] {
        for command in ["serve", "check"] {
            let output = run(&[command], &[("source.kind", "postgres"), ("source.postgres.url", &url)]).await;
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert_eq!(output.status.code(), Some(1), "{url}: {said}");
            assert!(said.contains(said_of_it) && said.contains("source.postgres.url"), "{url}: {said}");
            for part in ["zq7", "kv8", "wj9", "xm4"] {
                assert!(!said.contains(part), "{url}: {said}");
            }
        }
    }
}

#[tokio::test]
async fn a_server_is_reached_by_its_unix_socket_with_its_password() {
    let server = Postgres::start().await;
    server.execute(RECOMMENDED).await;
    server.make_reader().await;
    server.execute("ALTER ROLE reader PASSWORD 'p@ss#w/rd'").await;
    let folder = server.listen_on_socket().await;
    server.let_in("local all reader scram-sha-256\nhost all postgres 127.0.0.0/8 trust\n");
    let mut rows = server.connect().await;
    append(&mut rows, "job", [0]).await;
    let port = server.port;
    for url in [
        format!("postgres://reader:p%40ss%23w%2Frd@/postgres?host={folder}&port={port}"),
        format!("postgres://reader:p%40ss%23w%2Frd@:{port}/postgres?host={folder}"),
        format!("postgres://reader:p%40ss%23w%2Frd@{}:{port}/postgres", folder.replace('/', "%2F")),
    ] {
        let settings = [("source.kind", "postgres"), ("source.postgres.url", &*url)];
        let check = run(&["check"], &settings).await;
        let said = String::from_utf8_lossy(&check.stdout).into_owned();
        assert!(check.status.success() && said.contains(&format!("{folder}:{port}/postgres")), "{url}: {said}");
        assert!(!said.contains("p@ss"), "{said}");
        let daemon = Daemon::on("postgres", &url, &QUICK).await;
        let mut stream = daemon.stream("job").await;
        assert_eq!(stream.event().await.number(), 0, "{url}");
    }
}

#[tokio::test]
async fn tls_goes_as_far_as_the_address_asks_for() {
    let (ours, another) = (Authority::new("ours"), Authority::new("another"));
    let (certificate, key) = ours.certify("localhost");

    let server = Postgres::start().await;
    server.execute(RECOMMENDED).await;
    server.make_reader().await;
    let plain = server.url("reader");
    let required = format!("{plain}?sslmode=require");
    let required = run(&["check"], &[("source.kind", "postgres"), ("source.postgres.url", &required)]).await;
    let said = String::from_utf8_lossy(&required.stdout).into_owned();
    assert!(said.contains("PROBLEM") && said.contains("sslmode"), "a server without TLS: {said}");

    server.keep("server.crt", &certificate.pem());
    server.keep("server.key", &key.serialize_pem());
    server.set("ssl = on\n");
    server.down("fast");
    server.up().await;
    let folder = tempfile::tempdir().expect("a directory");
    let (trusted, foreign) = (keep(&folder, "ours.pem", &ours.pem()), keep(&folder, "another.pem", &another.pem()));
    let by_name = format!("postgres://reader@localhost:{}/postgres", localhost_to(server.address()).await);
    let mut owner = server.connect().await;
    for (url, mode, root, is_let_in) in [
        (&plain, "disable", "", true),
        (&plain, "require", "", true),
        (&plain, "verify-ca", &*trusted, true),
        (&plain, "verify-ca", &*foreign, false),
        (&by_name, "verify-full", &*trusted, true),
        (&plain, "verify-full", &*trusted, false),
        (&by_name, "verify-full", &*foreign, false),
        (&by_name, "verify-full", "", false),
        (&by_name, "verify-full", "/no/such/file", false),
    ] {
        let url = format!("{url}?sslmode={mode}");
        let settings =
            [("source.kind", "postgres"), ("source.postgres.url", &*url), ("source.postgres.root_cert", root)];
        if !is_let_in {
            let output = run(&["serve"], &settings).await;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code() == Some(1) && said.contains("root_cert"), "{url} {root}: {said}");
            continue;
        }
        let _daemon = Daemon::with(&settings).await;
        let sql =
            "SELECT bool_and(s.ssl) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.usename = 'reader'";
        let is_encrypted: bool = owner.fetch_one(sql).await.expect("pg_stat_ssl").get(0);
        assert_eq!(is_encrypted, mode != "disable", "{url}");
        drop(_daemon);
        eventually("its connections to be gone", async || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'reader'";
            (owner.fetch_one(sql).await.expect("a count").get::<i64, _>(0) == 0).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_thousand_watched_jobs_where_nothing_happens_cost_one_transaction_a_poll() {
    let server = Postgres::start().await;
    let daemon = serve(&server, RECOMMENDED, &[("source.poll_interval", "50ms")]).await;
    let mut owner = server.connect().await;
    owner
        .execute(
            "INSERT INTO job_events (id, job_id, type) SELECT 'e', 'job-' || n, 'x' FROM generate_series(1, 1000) n",
        )
        .await
        .expect("events");
    let mut streams = Vec::new();
    for number in 1..=1000 {
        let mut stream = daemon.stream(&format!("job-{number}")).await;
        stream.event().await;
        streams.push(stream);
    }
    let polls = async || daemon.metric("jobcast_source_wakeups_total{by=\"poll\"}").await;
    // the statistics come some time after
    let mut transactions = async || {
        owner.execute("SELECT pg_stat_clear_snapshot()").await.expect("statistics");
        let sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'postgres'";
        owner.fetch_one(sql).await.expect("statistics").get::<i64, _>(0) as f64
    };
    let until = async |count: f64| eventually("polls", async || (polls().await >= count).then_some(())).await;
    // connections that have become idle report within ten seconds
    until(polls().await + 220.0).await;
    let (first_poll, before) = (polls().await, transactions().await);
    until(first_poll + 400.0).await;
    let (last_poll, after) = (polls().await, transactions().await);
    // Ours, and those of the watching itself and of the server's own workers. One more a poll would be twice as many.
    assert!(after - before <= (last_poll - first_poll) * 1.5, "{} for {}", after - before, last_poll - first_poll);
}
