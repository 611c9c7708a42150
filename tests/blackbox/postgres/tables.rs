//! Tables as operators have them.

use super::LEGACY;
use crate::support::daemon::run;
use crate::support::{Daemon, Pooler, Postgres, numbers};
use sqlx::Executor;

#[tokio::test]
async fn names_and_types_are_the_operators_own() {
    let server = Postgres::start().await;
    server
        .execute(
            r#"CREATE SCHEMA "My App";
            CREATE TABLE "My App"."runs; DROP" ("Key" uuid PRIMARY KEY, state varchar(20) NOT NULL DEFAULT 'busy');
            CREATE TABLE "My App"."events'" ("no" bigserial PRIMARY KEY, run uuid NOT NULL, "select" text,
              "at""t" timestamp DEFAULT now(), body text);
            CREATE ROLE reader LOGIN; GRANT USAGE ON SCHEMA "My App" TO reader;
            GRANT SELECT ON ALL TABLES IN SCHEMA "My App" TO reader;"#,
        )
        .await;
    let url = server.url("reader");
    let settings = [
        ("source.kind", "postgres"),
        ("source.postgres.url", &*url),
        ("source.postgres.events_table", "My App.events'"),
        ("source.postgres.jobs_table", "My App.runs; DROP"),
        ("source.postgres.columns.id", "no"),
        ("source.postgres.columns.seq", "no"),
        ("source.postgres.columns.job_id", "run"),
        ("source.postgres.columns.type", "select"),
        ("source.postgres.columns.timestamp", "at\"t"),
        ("source.postgres.columns.payload", "body"),
        ("source.postgres.payload_kind", "json"),
        ("source.postgres.job_columns.id", "Key"),
        ("source.postgres.job_columns.status", "state"),
        ("source.postgres.statuses.completed", "done,fine"),
    ];
    let daemon = Daemon::with(&settings).await;
    let run_id = "0199aaaa-bbbb-7ccc-8ddd-eeeeffff0001";
    let mut rows = server.connect().await;
    let say = |values: &str| {
        let sql = format!(r#"INSERT INTO "My App"."events'" (run, "select", "at""t", body) VALUES {values}"#);
        sqlx::AssertSqlSafe(sql)
    };
    rows.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        r#"INSERT INTO "My App"."runs; DROP" VALUES ('{run_id}')"#
    ))))
    .await
    .expect("a run");
    // a time that no clock shows, none at all, no type, no payload
    let odd = format!(
        "('{run_id}', 'x', 'infinity', '{{\"n\":1}}'), ('{run_id}', 'x', '-infinity', '{{\"n\":2}}'),
         ('{run_id}', 'x', NULL, '{{\"n\":3}}'), ('{run_id}', NULL, now(), '{{\"n\":4}}'), ('{run_id}', 'x', now(), NULL)"
    );
    rows.execute(sqlx::raw_sql(say(&odd))).await.expect("events");
    // who asks for it in another spelling gets the same, also live
    for spelled in [run_id.to_string(), run_id.to_uppercase(), run_id.replace('-', "")] {
        let mut stream = daemon.stream(&spelled).await;
        let seen = stream.take(5).await;
        assert_eq!(numbers(&seen[..4]), [1, 2, 3, 4]);
        assert_eq!(seen[4].json()["payload"], serde_json::Value::Null);
        assert_eq!(seen[3].json()["id"], "4");
        assert_eq!(numbers(&daemon.stream_after(&spelled, "3").await.take(1).await), [4]);
    }
    let upper = run_id.to_uppercase();
    let mut stream = daemon.stream(&upper).await;
    stream.take(5).await;
    rows.execute(sqlx::raw_sql(say(&format!("('{run_id}', 'x', now(), '{{\"n\":6}}')")))).await.expect("an event");
    let live = stream.event().await;
    assert_eq!((live.number(), &live.json()["jobId"]), (6, &upper.into()));
    rows.execute(r#"UPDATE "My App"."runs; DROP" SET state = 'fine'"#).await.expect("an end");
    assert!(stream.event().await.is("stream.complete"));
    for nobody in ["0199aaaa-bbbb-7ccc-8ddd-eeeeffff0002", "no-uuid", "'; DROP TABLE x; --"] {
        let path = format!("/runner-jobs/{}/events", nobody.replace(' ', "%20").replace('\'', "%27"));
        assert_eq!(daemon.get(&path).await.status, 404, "{nobody}");
    }
    daemon.logs(&["age=System order=Number"]).await;
}

#[tokio::test]
async fn without_a_job_table_a_final_event_ends_the_job() {
    let server = Postgres::start().await;
    server
        .execute(
            "CREATE TABLE job_events (id text, job_id bigint, type text, timestamp timestamptz, payload jsonb);
             CREATE ROLE reader LOGIN; GRANT SELECT ON job_events TO reader;",
        )
        .await;
    let url = server.url("reader");
    let settings = [
        ("source.kind", "postgres"),
        ("source.postgres.url", &*url),
        ("source.postgres.jobs_table", ""),
        ("source.postgres.final_types.failed", "run.crashed,run.failed"),
    ];
    let daemon = Daemon::with(&settings).await;
    let mut rows = server.connect().await;
    // nothing orders these but their place among the equals: not even the time, nor the id
    rows.execute(
        "INSERT INTO job_events SELECT CASE WHEN n % 3 > 0 THEN 'e' || n END, 7, 'x', CASE WHEN n % 2 > 0 THEN now() END,
           jsonb_build_object('n', n) FROM generate_series(1, 40) n",
    )
    .await
    .expect("events");
    let mut stream = daemon.stream("7").await;
    let mut seen = numbers(&stream.take(40).await);
    seen.sort();
    assert_eq!(seen, Vec::from_iter(1..=40));
    rows.execute("INSERT INTO job_events VALUES ('last', 7, 'run.failed', now(), '{}')").await.expect("an end");
    assert!(stream.event().await.is("run.failed"));
    let end = stream.event().await;
    assert_eq!((end.event.as_deref(), &end.json()["status"]), (Some("stream.complete"), &"FAILED".into()));
    assert_eq!(daemon.stream_after("7", end.cursor()).await.head.status, 204);
    assert_eq!(daemon.get("/runner-jobs/8/events").await.status, 404);
    assert_eq!(daemon.get("/runner-jobs/seven/events").await.status, 404);
}

#[tokio::test]
async fn check_says_what_the_database_lacks_and_what_stands_before_it() {
    let server = Postgres::start().await;
    let check_at = async |url: &str| {
        let output = run(&["check"], &[("source.kind", "postgres"), ("source.postgres.url", url)]).await;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!said.contains("hunter2"), "{said}");
        (output.status.code(), said)
    };
    let url = server.url("postgres:hunter2");
    let check = async || check_at(&url).await;
    let (code, said) = check().await;
    assert!(code == Some(1) && said.contains("job_events") && said.contains("mend: "), "{said}");
    server.execute(LEGACY).await;
    let (code, said) = check().await;
    assert!(code == Some(0) && said.contains("no column of type xid8") && said.contains("no trigger"), "{said}");
    server.execute("ALTER TABLE job_events ADD COLUMN xid xid8, ALTER COLUMN timestamp DROP NOT NULL").await;
    let (code, said) = check().await;
    assert!(code == Some(1) && said.contains("nothing fills it") && !said.contains("may be null"), "{said}");
    server.execute("CREATE ROLE nobody LOGIN; GRANT SELECT (id, job_id) ON job_events TO nobody; GRANT SELECT ON runner_jobs TO nobody").await;
    let (code, said) = check_at(&server.url("nobody")).await;
    assert!(
        code == Some(1) && said.contains("permission denied") && said.contains("GRANT SELECT ON job_events TO nobody;"),
        "{said}"
    );
    server.execute("DROP TABLE job_events, runner_jobs").await;
    for _ in 0..2 {
        let schema = run(&["schema", "postgres"], &[]).await;
        server.execute(&String::from_utf8_lossy(&schema.stdout)).await;
    }
    let (code, said) = check().await;
    assert!(code == Some(0) && said.contains("found by index") && said.contains("a trigger notifies"), "{said}");
    server.make_reader().await;
    let (pooler, standby) = (Pooler::start(&server).await, server.standby().await);
    let (code, said) = check_at(&pooler.url("reader")).await;
    assert!(code == Some(0) && said.contains("a pooler or proxy") && said.contains("not write"), "{said}");
    let (code, said) = check_at(&standby.url("reader")).await;
    assert!(code == Some(0) && said.contains("a standby"), "{said}");
    server.execute("DROP INDEX job_events_xid, job_events_job_seq").await;
    let (code, said) = check().await;
    assert!(code == Some(0) && said.matches("CREATE INDEX CONCURRENTLY").count() == 2, "{said}");
}

#[tokio::test]
async fn rows_that_come_with_an_attached_table_count_as_delivered_until_they_are_updated() {
    for (fill, update) in [("xid xid8 DEFAULT pg_current_xact_id(),", "xid = DEFAULT"), ("", "type = type")] {
        let server = Postgres::start().await;
        let columns =
            format!("id text, job_id text, type text, timestamp timestamptz DEFAULT now(), {fill} payload jsonb");
        // Nobody waits for the log to reach the disk until a transaction is settled.
        server
            .execute(&format!(
                "REVOKE EXECUTE ON FUNCTION pg_current_wal_insert_lsn() FROM PUBLIC;
                 CREATE TABLE runner_jobs (id text PRIMARY KEY, status text); INSERT INTO runner_jobs VALUES ('job', 'RUNNING');
                 CREATE TABLE job_events ({columns}) PARTITION BY LIST (type);
                 CREATE TABLE part_x PARTITION OF job_events FOR VALUES IN ('x'); CREATE TABLE part_y ({columns});
                 INSERT INTO part_y (id, job_id, type, payload) VALUES ('old', 'job', 'y', '{{\"n\":0}}');
                 INSERT INTO job_events (id, job_id, type, payload) VALUES ('1', 'job', 'x', '{{\"n\":1}}')"
            ))
            .await;
        server.make_reader().await;
        let daemon =
            super::daemon_on(&server, &[("source.poll_interval", "50ms"), ("source.postgres.sweep", "100ms")]).await;
        let mut stream = daemon.stream("job").await;
        assert_eq!(stream.event().await.number(), 1);
        server.execute("ALTER TABLE job_events ATTACH PARTITION part_y FOR VALUES IN ('y')").await;
        server
            .execute("INSERT INTO job_events (id, job_id, type, payload) VALUES ('2', 'job', 'x', '{\"n\":2}')")
            .await;
        assert_eq!(stream.event().await.number(), 2, "what is attached counts as delivered");
        let another = super::daemon_on(&server, &[]).await;
        let mut all = numbers(&another.stream("job").await.take(3).await);
        all.sort();
        assert_eq!(all, [0, 1, 2], "and is in the history");
        server.execute(&format!("UPDATE part_y SET {update}")).await;
        assert_eq!(stream.event().await.number(), 0);
    }
}
