//! Tables that others have made, each mapped by settings alone, and read by a role that may only SELECT.

use crate::support::daemon::run;
use crate::support::{Daemon, Postgres, Stream, numbers};
use serde_json::{Value, json};

/// A set of tables in a schema of its own, and what comes out of them.
struct Case {
    name: &'static str,
    tables: &'static str,
    settings: &'static [(&'static str, &'static str)],
    job: &'static str,
    /// Each writes one event; the last comes while somebody watches.
    rows: &'static [&'static str],
    /// Type, time and payload of each event.
    events: fn() -> Vec<(&'static str, Value, Value)>,
    /// Sets the final status, with the status that is told.
    end: (&'static str, &'static str),
}

const RUN: &str = "0199aaaa-bbbb-7ccc-8ddd-eeeeffff0001";

const CASES: &[Case] = &[
    Case {
        name: "enums, and lines of plain text",
        tables: "CREATE TYPE log_level AS ENUM ('info', 'error'); CREATE TYPE run_status AS ENUM ('running', 'succeeded');
            CREATE TABLE jobs (id uuid PRIMARY KEY, job_status run_status DEFAULT 'running');
            CREATE TABLE logs (id bigserial PRIMARY KEY, job_id uuid NOT NULL, created_at timestamptz NOT NULL,
              level log_level NOT NULL, stage varchar(128), output varchar(1024) NOT NULL);
            CREATE INDEX ON logs (job_id, id); INSERT INTO jobs VALUES ('0199aaaa-bbbb-7ccc-8ddd-eeeeffff0001');",
        settings: &[
            ("columns.seq", "id"),
            ("columns.timestamp", "created_at"),
            ("columns.type", "level"),
            ("columns.step_id", "stage"),
            ("columns.payload", "output"),
            ("job_columns.status", "job_status"),
            ("statuses.completed", "succeeded"),
        ],
        job: RUN,
        rows: &[
            "INSERT INTO logs VALUES (DEFAULT, '0199aaaa-bbbb-7ccc-8ddd-eeeeffff0001', '2026-01-02 03:04:05Z', 'info', 's', '42')",
            "INSERT INTO logs VALUES (DEFAULT, '0199aaaa-bbbb-7ccc-8ddd-eeeeffff0001', '2026-01-02 03:04:06Z', 'error', 's', '{\"a\": 1}')",
        ],
        events: || {
            vec![
                ("info", json!("2026-01-02T03:04:05.000Z"), json!("42")),
                ("error", json!("2026-01-02T03:04:06.000Z"), json!("{\"a\": 1}")),
            ]
        },
        end: ("UPDATE jobs SET job_status = 'succeeded'", "COMPLETED"),
    },
    Case {
        name: "levels that are numbers, and ids that are random",
        tables: "CREATE TABLE jobs (id text PRIMARY KEY, state text DEFAULT 'RUNNING'); INSERT INTO jobs VALUES ('flow');
            CREATE TABLE logs (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), run text NOT NULL, level smallint NOT NULL,
              message text NOT NULL, \"timestamp\" timestamptz NOT NULL, task_id text);
            CREATE INDEX ON logs (run, \"timestamp\");",
        settings: &[
            ("columns.job_id", "run"),
            ("columns.type", "level"),
            ("columns.payload", "message"),
            ("columns.step_id", "task_id"),
            ("types", "20=info, 40=error"),
            ("job_columns.status", "state"),
            ("statuses.failed", "CRASHED"),
        ],
        job: "flow",
        rows: &[
            "INSERT INTO logs (run, level, message, \"timestamp\") VALUES ('flow', 20, 'true', '2026-01-01Z')",
            "INSERT INTO logs (run, level, message, \"timestamp\") VALUES ('flow', 30, '', '2026-01-01 00:00:01Z')",
            "INSERT INTO logs (run, level, message, \"timestamp\") VALUES ('flow', 40, 'late', '2026-01-02Z')",
        ],
        events: || {
            vec![
                ("info", json!("2026-01-01T00:00:00.000Z"), json!("true")),
                ("30", json!("2026-01-01T00:00:01.000Z"), json!("")),
                ("error", json!("2026-01-02T00:00:00.000Z"), json!("late")),
            ]
        },
        end: ("UPDATE jobs SET state = 'CRASHED'", "FAILED"),
    },
    Case {
        name: "partitions that come, and a payload of several columns",
        tables: "CREATE TABLE jobs (id int PRIMARY KEY, status text DEFAULT 'running'); INSERT INTO jobs VALUES (7);
            CREATE TABLE logs (id bigserial, job_id int NOT NULL, counter int NOT NULL, event varchar(100) NOT NULL,
              created timestamptz, event_data text NOT NULL, stdout text NOT NULL, job_created timestamptz NOT NULL,
              PRIMARY KEY (id, job_created)) PARTITION BY RANGE (job_created);
            CREATE INDEX ON logs (job_id, job_created, counter);
            CREATE TABLE logs_1 PARTITION OF logs FOR VALUES FROM ('2026-01-01') TO ('2026-01-02');",
        settings: &[
            ("columns.seq", "counter"),
            ("columns.type", "event"),
            ("columns.timestamp", "created"),
            ("columns.payload", "stdout,counter,event_data"),
            ("statuses.cancelled", "canceled"),
        ],
        job: "7",
        rows: &[
            "INSERT INTO logs VALUES (DEFAULT, 7, 1, 'start', NULL, '{}', 'a', '2026-01-01 01:00Z')",
            "CREATE TABLE logs_2 PARTITION OF logs FOR VALUES FROM ('2026-01-02') TO ('2026-01-03');
             INSERT INTO logs VALUES (DEFAULT, 7, 2, 'line', '2026-01-02Z', '{}', 'b\"\n', '2026-01-02 01:00Z')",
        ],
        events: || {
            vec![
                ("start", Value::Null, json!({ "stdout": "a", "counter": 1, "event_data": "{}" })),
                ("line", json!("2026-01-02T00:00:00.000Z"), json!({ "stdout": "b\"\n", "counter": 2, "event_data": "{}" })),
            ]
        },
        end: ("UPDATE jobs SET status = 'canceled'", "CANCELLED"),
    },
    Case {
        name: "arrays as payload, as type and as step",
        tables: "CREATE TABLE jobs (id text PRIMARY KEY, status text DEFAULT 'RUNNING'); INSERT INTO jobs VALUES ('a');
            CREATE TABLE logs (id bigserial PRIMARY KEY, job_id text NOT NULL, kinds text[] NOT NULL, steps int[], lines text[],
              at timestamptz); CREATE INDEX ON logs (job_id, id);",
        settings: &[
            ("columns.seq", "id"),
            ("columns.timestamp", "at"),
            ("columns.type", "kinds"),
            ("columns.step_id", "steps"),
            ("columns.payload", "lines"),
        ],
        job: "a",
        rows: &[
            "INSERT INTO logs (job_id, kinds, steps, lines) VALUES ('a', '{x,y}', '{1,2}', ARRAY['one', NULL, 'th\"ree'])",
            "INSERT INTO logs (job_id, kinds, lines) VALUES ('a', '{}', '{}')",
        ],
        events: || {
            vec![
                ("{x,y}", Value::Null, json!(["one", null, "th\"ree"])),
                ("{}", Value::Null, json!([])),
            ]
        },
        end: ("UPDATE jobs SET status = 'COMPLETED'", "COMPLETED"),
    },
    Case {
        name: "an object of arrays, of numbers and of rows",
        tables: "CREATE TABLE jobs (id text PRIMARY KEY, status text DEFAULT 'RUNNING'); INSERT INTO jobs VALUES ('a');
            CREATE TYPE point_2d AS (x int, y int);
            CREATE TABLE logs (id bigserial PRIMARY KEY, job_id text NOT NULL, kind text NOT NULL, marks numeric[][],
              path point_2d[], at timestamptz); CREATE INDEX ON logs (job_id, id);",
        settings: &[
            ("columns.seq", "id"),
            ("columns.timestamp", "at"),
            ("columns.type", "kind"),
            ("columns.payload", "marks,path"),
        ],
        job: "a",
        rows: &[
            "INSERT INTO logs (job_id, kind, marks) VALUES ('a', 'x', '{{1,2.5},{3,4}}')",
            "INSERT INTO logs (job_id, kind, path) VALUES ('a', 'y', ARRAY[ROW(1, 2)::point_2d])",
        ],
        events: || {
            vec![
                ("x", Value::Null, json!({ "marks": [[1, 2.5], [3, 4]], "path": null })),
                ("y", Value::Null, json!({ "marks": null, "path": [{ "x": 1, "y": 2 }] })),
            ]
        },
        end: ("UPDATE jobs SET status = 'COMPLETED'", "COMPLETED"),
    },
    Case {
        name: "tables that inherit, without a time",
        tables: "CREATE TYPE build_status AS ENUM ('started', 'errored');
            CREATE TABLE builds (id bigint PRIMARY KEY, status build_status DEFAULT 'started'); INSERT INTO builds VALUES (12);
            CREATE TABLE logs (build_id bigint, type varchar(32), payload text, event_id int, version text);
            CREATE TABLE logs_a () INHERITS (logs); CREATE UNIQUE INDEX ON logs_a (build_id, event_id);
            CREATE TABLE logs_b () INHERITS (logs); CREATE UNIQUE INDEX ON logs_b (build_id, event_id);",
        settings: &[
            ("jobs_table", "builds"),
            ("columns.job_id", "build_id"),
            ("columns.id", "event_id"),
            ("columns.seq", "event_id"),
            ("columns.timestamp", ""),
            ("payload_kind", "json"),
            ("statuses.failed", "errored,failed"),
        ],
        job: "12",
        rows: &[
            "INSERT INTO logs_a VALUES (12, 'log', '{\"time\":1,\"payload\":\"a\"}', 0, '5.1')",
            "INSERT INTO logs_b VALUES (12, 'log', 'no JSON', 1, '5.1')",
        ],
        events: || {
            vec![
                ("log", Value::Null, json!({ "time": 1, "payload": "a" })),
                ("log", Value::Null, json!("no JSON")),
            ]
        },
        end: ("UPDATE builds SET status = 'errored'", "FAILED"),
    },
    Case {
        name: "bytes, and times that are seconds",
        tables: "CREATE TABLE steps (id bigint PRIMARY KEY, state text DEFAULT 'running'); INSERT INTO steps VALUES (5);
            CREATE TABLE logs (id bigserial PRIMARY KEY, step_id bigint, \"time\" bigint, line int, data bytea, created bigint,
              type int); CREATE UNIQUE INDEX ON logs (step_id, line);",
        settings: &[
            ("jobs_table", "steps"),
            ("columns.job_id", "step_id"),
            ("columns.step_id", ""),
            ("columns.seq", "line"),
            ("columns.timestamp", "created"),
            ("columns.payload", "data"),
            ("types", "0=stdout,1=stderr"),
            ("job_columns.status", "state"),
            ("statuses.completed", "success"),
        ],
        job: "5",
        rows: &[
            "INSERT INTO logs VALUES (DEFAULT, 5, 3, 0, 'caf\\303\\251', 1767323045, 0)",
            "INSERT INTO logs VALUES (DEFAULT, 5, 3, 1, '\\xff41', 1767323046, 1)",
        ],
        events: || {
            vec![
                ("stdout", json!("2026-01-02T03:04:05.000Z"), json!("café")),
                ("stderr", json!("2026-01-02T03:04:06.000Z"), json!("\u{fffd}A")),
            ]
        },
        end: ("UPDATE steps SET state = 'success'", "COMPLETED"),
    },
    Case {
        name: "a view with a join, which hands on xmin",
        tables: "CREATE TABLE tasks (id bigint PRIMARY KEY, external_id uuid UNIQUE, status text DEFAULT 'QUEUED');
            INSERT INTO tasks VALUES (1, '0199aaaa-bbbb-7ccc-8ddd-eeeeffff0001');
            CREATE TABLE raw (id bigserial PRIMARY KEY, task_id bigint NOT NULL, kind text, output jsonb, error text,
              at timestamp NOT NULL);
            CREATE VIEW logs AS SELECT e.xmin AS xmin, e.id, t.external_id AS job_id, e.kind AS type, e.at AS timestamp,
              e.output, e.error FROM raw e JOIN tasks t ON t.id = e.task_id;
            CREATE VIEW jobs AS SELECT external_id AS id, status FROM tasks;",
        settings: &[
            ("columns.seq", "id"),
            ("columns.payload", "*"),
            ("columns.actor", "= engine"),
            ("timestamp_zone", "America/New_York"),
        ],
        job: RUN,
        rows: &[
            "INSERT INTO raw VALUES (DEFAULT, 1, 'done', '{\"n\": 1}', NULL, '2026-07-01 00:00:00')",
            "INSERT INTO raw VALUES (DEFAULT, 1, 'error', NULL, 'boom', '2026-01-01 00:00:00')",
        ],
        events: || {
            let row = |id: u64, kind: &str, output: Value, error: Value, at: &str| {
                json!({ "id": id, "job_id": RUN, "type": kind, "timestamp": at, "output": output, "error": error })
            };
            vec![
                (
                    "done",
                    json!("2026-07-01T04:00:00.000Z"),
                    row(1, "done", json!({ "n": 1 }), Value::Null, "2026-07-01T00:00:00"),
                ),
                (
                    "error",
                    json!("2026-01-01T05:00:00.000Z"),
                    row(2, "error", Value::Null, json!("boom"), "2026-01-01T00:00:00"),
                ),
            ]
        },
        end: ("UPDATE tasks SET status = 'COMPLETED'", "COMPLETED"),
    },
    Case {
        name: "keys of fixed length and of any case, under a domain",
        tables: "CREATE DOMAIN key AS char(26);
            CREATE TABLE jobs (id key PRIMARY KEY, status varchar(9) DEFAULT 'RUNNING'); INSERT INTO jobs VALUES ('01JABC');
            CREATE TABLE logs (id char(8) PRIMARY KEY, job_id key NOT NULL, type text, payload boolean,
              timestamp double precision); CREATE INDEX ON logs (job_id, timestamp);",
        settings: &[("timestamp_unit", "s")],
        job: "01JABC",
        rows: &[
            "INSERT INTO logs VALUES ('a', '01JABC', 'x', true, 1767323045.5)",
            "INSERT INTO logs VALUES ('b', '01JABC', 'x', NULL, 'NaN')",
        ],
        events: || {
            vec![
                ("x", json!("2026-01-02T03:04:05.500Z"), json!(true)),
                ("x", Value::Null, Value::Null),
            ]
        },
        end: ("UPDATE jobs SET status = 'COMPLETED'", "COMPLETED"),
    },
    Case {
        name: "nothing but the job and a note",
        tables: "CREATE TABLE jobs (id numeric(20) PRIMARY KEY, status text DEFAULT 'RUNNING'); INSERT INTO jobs VALUES (3);
            CREATE TABLE logs (run numeric(20) NOT NULL, note text);",
        settings: &[
            ("columns.job_id", "run"),
            ("columns.id", ""),
            ("columns.timestamp", ""),
            ("columns.payload", "note"),
            ("columns.type", "= note"),
        ],
        job: "3",
        rows: &["INSERT INTO logs VALUES (3, 'same')", "INSERT INTO logs VALUES (3, 'same')"],
        events: || vec![("note", Value::Null, json!("same")), ("note", Value::Null, json!("same"))],
        end: ("UPDATE jobs SET status = 'COMPLETED'", "COMPLETED"),
    },
];

impl Case {
    fn settings(&self, url: &str) -> Vec<(String, String)> {
        let own = |(key, value): &(&str, &str)| (format!("source.postgres.{key}"), value.to_string());
        let defaults = [("events_table", "logs"), ("jobs_table", "jobs")];
        // Rows whose time is long ago, or in no clock, are found by the sweep.
        let usual = [
            ("source.kind", "postgres"),
            ("source.postgres.url", url),
            ("source.poll_interval", "50ms"),
            ("source.postgres.sweep", "100ms"),
        ];
        let usual = usual.map(|(key, value)| (key.to_string(), value.to_string()));
        let names = defaults.iter().filter(|(key, _)| self.settings.iter().all(|(own, _)| own != key));
        usual.into_iter().chain(names.chain(self.settings).map(own)).collect()
    }
}

#[tokio::test]
async fn tables_of_other_products_are_streamed_as_they_are() {
    let server = Postgres::start().await;
    server.execute("CREATE ROLE reader LOGIN").await;
    for (number, case) in CASES.iter().enumerate() {
        let name = case.name;
        println!("{name}");
        let schema = format!("case_{number}");
        let within = async |sql: &str| server.execute(&format!("SET search_path = {schema}; {sql}")).await;
        server.execute(&format!("CREATE SCHEMA {schema}; GRANT USAGE ON SCHEMA {schema} TO reader")).await;
        within(case.tables).await;
        within(&format!("GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO reader")).await;
        let (live, before) = case.rows.split_last().expect("rows");
        for row in before {
            within(row).await;
        }
        let url = format!("{}?options[search_path]={schema}", server.url("reader"));
        let settings = case.settings(&url);
        let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (&**key, &**value)).collect();
        let daemon = Daemon::with(&settings).await;
        let mut stream = daemon.stream(case.job).await;
        let mut seen = stream.take(before.len()).await;
        within(live).await;
        // A new partition is made by its owner.
        within(&format!("GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO reader")).await;
        seen.push(stream.event().await);
        let seen: Vec<Value> = seen.iter().map(|message| message.json()).collect();
        let got: Vec<(&str, Value, Value)> = seen
            .iter()
            .map(|event| {
                (event["type"].as_str().expect("a type"), event["timestamp"].clone(), event["payload"].clone())
            })
            .collect();
        assert_eq!(got, (case.events)(), "{name}");
        let ids: std::collections::BTreeSet<String> = seen.iter().map(|event| event["id"].to_string()).collect();
        assert_eq!(ids.len(), case.rows.len(), "{name}: events are told apart by their ids");
        let resumed = daemon.stream_after(case.job, seen[0]["id"].as_str().expect("an id")).await.take(1).await;
        assert_eq!(resumed[0].json()["id"], seen[1]["id"], "{name}: goes on after an event's id");
        within(case.end.0).await;
        let end = stream.event().await;
        assert!(end.is("stream.complete"), "{name}: {end:?}");
        assert_eq!(end.json()["status"], case.end.1, "{name}");
        // Some payloads are no JSON or no UTF-8 on purpose, which is said.
        let is_wrong = |line: &&str| line.contains("WARN") && !line.contains("a part that cannot be read");
        let log = daemon.log();
        assert_eq!(log.lines().find(|line| is_wrong(line) || line.contains("ERROR")), None, "{name}");
        let check = run(&["check"], &settings).await;
        let said = String::from_utf8_lossy(&[check.stdout, check.stderr].concat()).into_owned();
        assert!(!said.contains("there is no column") && said.contains("may read the tables"), "{name}: {said}");
    }
}

#[tokio::test]
async fn a_relation_that_cannot_be_tailed_is_refused_with_what_mends_it() {
    let server = Postgres::start().await;
    server
        .execute(
            "CREATE TABLE runner_jobs (id text PRIMARY KEY, status text);
             CREATE TABLE raw (id text, job_id text, type text, timestamp timestamptz, payload jsonb, at text);
             CREATE VIEW plain AS SELECT * FROM raw; CREATE MATERIALIZED VIEW kept AS SELECT * FROM raw;
             CREATE TABLE parted (job_id text, note text) PARTITION BY LIST (note);",
        )
        .await;
    let url = server.url("postgres");
    for (more, parts) in [
        (&[("events_table", "plain")][..], &["does not hand on", "raw.xmin AS xmin"][..]),
        (&[("events_table", "kept")], &["materialized view"]),
        (
            &[("events_table", "parted"), ("columns.id", "")],
            &["nothing tells the events of parted apart", "columns.seq"],
        ),
        (&[("events_table", "parted")], &["parted has no column id"]),
        (&[("events_table", "absent")], &["no table or view absent"]),
        (&[("events_table", "raw"), ("columns.actor", "acto")], &["raw has no column acto", "columns"]),
        (&[("events_table", "raw"), ("columns.seq", "sek")], &["raw has no column sek"]),
        (&[("events_table", "raw"), ("columns.seq", "at")], &["at of type text is no number"]),
        (&[("events_table", "raw"), ("columns.payload", "id,line")], &["raw has no column line"]),
        (&[("events_table", "raw"), ("columns.timestamp", "at")], &["at of type text is no time"]),
        (&[("events_table", "raw"), ("timestamp_zone", "Mars/Base")], &["no time zone Mars/Base"]),
        (
            &[("events_table", "raw"), ("job_columns.status", "state")],
            &["runner_jobs has no column state", "job_columns"],
        ),
    ] {
        let own = more.iter().map(|(key, value)| (format!("source.postgres.{key}"), *value));
        let own: Vec<(String, &str)> = own.collect();
        let mut settings = vec![("source.kind", "postgres"), ("source.postgres.url", &*url)];
        settings.extend(own.iter().map(|(key, value)| (&**key, *value)));
        let check = run(&["check"], &settings).await;
        let said = String::from_utf8_lossy(&[check.stdout, check.stderr].concat()).into_owned();
        assert_eq!(check.status.code(), Some(1), "{more:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{more:?}: {part:?} is missing in: {said}");
        }
    }
}

/// Checks that every stream gets the event 1, and its job's end.
async fn get_one_event_and_the_end(server: &Postgres, streams: &mut [Stream]) {
    for stream in &mut *streams {
        assert_eq!(stream.event().await.number(), 1);
    }
    server.execute("UPDATE runner_jobs SET status = 'COMPLETED'").await;
    for stream in streams {
        assert!(stream.event().await.is("stream.complete"));
    }
}

#[tokio::test]
async fn a_key_of_any_case_is_watched_live_in_whichever_case_it_is_asked_for() {
    let server = Postgres::start().await;
    let has_citext = "SELECT count(*) FROM pg_available_extensions WHERE name = 'citext'";
    use sqlx::{Executor, Row};
    if server.connect().await.fetch_one(has_citext).await.expect("a count").get::<i64, _>(0) == 0 {
        return;
    }
    server
        .execute(
            "CREATE EXTENSION citext; CREATE TABLE runner_jobs (id citext PRIMARY KEY, status text);
             INSERT INTO runner_jobs VALUES ('Job-A', 'RUNNING');
             CREATE TABLE job_events (id text, job_id citext, type text, timestamp timestamptz, payload jsonb);
             CREATE ROLE reader LOGIN; GRANT SELECT ON job_events, runner_jobs TO reader;",
        )
        .await;
    let daemon = Daemon::on("postgres", &server.url("reader"), &[("source.poll_interval", "50ms")]).await;
    let mut streams = vec![daemon.stream("job-a").await, daemon.stream("JOB-A").await];
    daemon.metric_reaches("jobcast_channels", 2.0).await;
    server.execute("INSERT INTO job_events VALUES ('1', 'jOB-a', 'x', now(), '{\"n\":1}')").await;
    get_one_event_and_the_end(&server, &mut streams).await;
}

#[tokio::test]
async fn ids_that_no_index_makes_unique_within_a_job_are_not_what_repeats_are_known_by() {
    let server = Postgres::start().await;
    let cases = [
        ("id uuid", "id"),
        ("id int UNIQUE", "id"),
        ("id int, UNIQUE (job_id, step_id, id)", "cursor"),
        ("id text", "cursor"),
    ];
    for (number, (id, unique)) in cases.into_iter().enumerate() {
        let (table, role) = (format!("events_{number}"), format!("reader_{number}"));
        server
            .execute(&format!(
                "CREATE TABLE {table} (job_id text, step_id text, type text DEFAULT 'x', timestamp timestamptz DEFAULT now(),
                   payload jsonb, seq bigint GENERATED ALWAYS AS IDENTITY, {id});
                 CREATE ROLE {role} LOGIN; GRANT SELECT ON {table} TO {role};"
            ))
            .await;
        let value = if id == "id uuid" { "gen_random_uuid()" } else { "1" };
        server.execute(&format!("INSERT INTO {table} (job_id, step_id, id) VALUES ('job', 'a', {value})")).await;
        let settings = [("source.postgres.events_table", table.as_str()), ("source.postgres.jobs_table", "")];
        let daemon = Daemon::on("postgres", &server.url(&role), &settings).await;
        assert_eq!(daemon.stream("job").await.head.header("X-Jobcast-Unique"), Some(unique), "{id}");
        assert_eq!(daemon.get("/runner-jobs/job/events").await.json()["unique"], unique, "{id}");
    }
}

#[tokio::test]
async fn a_key_with_zeros_behind_its_point_is_watched_live_however_it_is_spelled() {
    let server = Postgres::start().await;
    server
        .execute(
            "CREATE TABLE runner_jobs (id numeric(10,2) PRIMARY KEY, status text); INSERT INTO runner_jobs VALUES (7, 'RUNNING');
             CREATE TABLE job_events (id text, job_id numeric(10,2), type text, timestamp timestamptz, payload jsonb,
               xid xid8 NOT NULL DEFAULT pg_current_xact_id());
             CREATE ROLE reader LOGIN; GRANT SELECT ON job_events, runner_jobs TO reader;",
        )
        .await;
    let daemon = Daemon::on("postgres", &server.url("reader"), &[("source.poll_interval", "50ms")]).await;
    let mut streams = vec![daemon.stream("7").await, daemon.stream("7.00").await];
    server.execute("INSERT INTO job_events VALUES ('1', 7, 'x', now(), '{\"n\":1}')").await;
    get_one_event_and_the_end(&server, &mut streams).await;
}

#[tokio::test]
async fn a_status_that_a_view_cannot_cast_holds_up_its_own_job_and_no_other() {
    let server = Postgres::start().await;
    server
        .execute(
            "CREATE TABLE raw_jobs (id text PRIMARY KEY, state text); INSERT INTO raw_jobs VALUES ('good', '1'), ('bad', '1');
             CREATE VIEW runner_jobs AS SELECT id, (state::int)::text AS status FROM raw_jobs;
             CREATE TABLE job_events (id text, job_id text, type text, timestamp timestamptz DEFAULT now(), payload jsonb);
             CREATE ROLE reader LOGIN; GRANT SELECT ON job_events, runner_jobs TO reader;
             INSERT INTO job_events SELECT '0', job, 'x', now(), '{\"n\":0}' FROM unnest(ARRAY['good', 'bad']) job",
        )
        .await;
    let daemon = Daemon::on("postgres", &server.url("reader"), &[("source.poll_interval", "50ms")]).await;
    let (mut good, mut bad) = (daemon.stream("good").await, daemon.stream("bad").await);
    assert_eq!((good.event().await.number(), bad.event().await.number()), (0, 0));
    server.execute("UPDATE raw_jobs SET state = 'none' WHERE id = 'bad'").await;
    server.execute("INSERT INTO job_events VALUES ('1', 'good', 'x', now(), '{\"n\":1}')").await;
    let told = bad.event().await;
    assert!(told.is("stream.error"), "{told:?}");
    assert_eq!(good.event().await.number(), 1);
    assert_eq!(numbers(&daemon.stream("good").await.take(2).await), [0, 1], "whoever comes now");
    server.execute("UPDATE raw_jobs SET state = '2'").await;
    server.execute("INSERT INTO job_events VALUES ('2', 'bad', 'x', now(), '{\"n\":2}')").await;
    assert_eq!(bad.event().await.number(), 2, "goes on once it is mended");
}
