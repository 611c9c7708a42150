//! Tables that others have made, each mapped by settings alone, in a file that stays as it is.

use crate::support::ForeignFile;
use crate::support::daemon::run;
use serde_json::{Value, json};

/// The tables of a program, and what comes out of them.
struct Case {
    name: &'static str,
    tables: &'static str,
    settings: &'static [(&'static str, &'static str)],
    job: &'static str,
    /// Each writes one event; the last comes while somebody watches.
    rows: [&'static str; 2],
    /// Type, time and payload of each event.
    events: fn() -> [(&'static str, Value, Value); 2],
    /// Ends the job, with the status that is told.
    end: (&'static str, &'static str),
}

const CASES: &[Case] = &[
    Case {
        name: "numbers within each job, ids that are bytes, Julian days, booleans, binary JSON, UTF-16",
        tables: "PRAGMA encoding = 'UTF-16'; CREATE TABLE jobs (id BLOB PRIMARY KEY, state TEXT);
            INSERT INTO jobs VALUES (X'0199aaaabbbb7ccc8dddeeeeffff0001', 'running');
            CREATE TABLE log (job BLOB, line INTEGER, at REAL, level INTEGER, ok BOOLEAN, doc JSONB, \"it's\" TEXT,
              PRIMARY KEY (job, line)) WITHOUT ROWID;",
        settings: &[
            ("events_table", "log"),
            ("jobs_table", "jobs"),
            ("columns.job_id", "job"),
            ("columns.seq", "line"),
            ("columns.id", ""),
            ("columns.type", "level"),
            ("types", "10=info"),
            ("columns.timestamp", "at"),
            ("columns.payload", "ok,doc,line,it's"),
            ("job_columns.status", "state"),
            ("statuses.completed", "done"),
        ],
        job: "0199aaaa-bbbb-7ccc-8ddd-eeeeffff0001",
        rows: [
            "INSERT INTO log VALUES (X'0199aaaabbbb7ccc8dddeeeeffff0001', 0, 2461368.375, 10, 1, jsonb('{\"a\":[1]}'), 'é\"')",
            "INSERT INTO log VALUES (X'0199aaaabbbb7ccc8dddeeeeffff0001', 1, NULL, 20, 0, '[]', NULL)",
        ],
        events: || {
            [
                ("info", json!("2026-11-23T21:00:00.000Z"), json!({ "ok": true, "doc": { "a": [1] }, "line": 0, "it's": "é\"" })),
                ("20", Value::Null, json!({ "ok": false, "doc": [], "line": 1, "it's": null })),
            ]
        },
        end: ("UPDATE jobs SET state = 'done'", "COMPLETED"),
    },
    Case {
        name: "views with a join, JSON in a text, times without a zone",
        tables: "CREATE TABLE tasks (id INTEGER PRIMARY KEY, name TEXT UNIQUE, state TEXT); INSERT INTO tasks VALUES (3, 'build-7', 'RUNNING');
            CREATE TABLE raw (id INTEGER PRIMARY KEY AUTOINCREMENT, task INTEGER, kind TEXT, body TEXT, at TEXT);
            CREATE INDEX raw_task ON raw (task, id);
            CREATE VIEW shown AS SELECT r.id AS seq, 'e-' || r.id AS id, t.name AS job_id, r.kind AS type, r.at AS timestamp, r.body AS payload
              FROM raw r JOIN tasks t ON t.id = r.task;
            CREATE VIEW runs AS SELECT name AS id, state AS status FROM tasks;",
        settings: &[
            ("events_table", "shown"),
            ("jobs_table", "runs"),
            ("timestamp_zone", "+02:00"),
            ("payload_kind", "json"),
        ],
        job: "build-7",
        rows: [
            "INSERT INTO raw (task, kind, body, at) VALUES (3, 'a', '{\"n\": 1}', '2026-11-23 21:00:00')",
            "INSERT INTO raw (task, kind, body, at) VALUES (3, 'b', '42', '2026-11-23 21:00:00Z')",
        ],
        events: || {
            [
                ("a", json!("2026-11-23T19:00:00.000Z"), json!({ "n": 1 })),
                ("b", json!("2026-11-23T21:00:00.000Z"), json!(42)),
            ]
        },
        end: ("UPDATE tasks SET state = 'CANCELLED'", "CANCELLED"),
    },
    Case {
        name: "no key, no table of jobs, milliseconds",
        tables: "CREATE TABLE lines (run INTEGER, text TEXT, stream TEXT, t INTEGER); CREATE INDEX lines_run ON lines (run);
            PRAGMA journal_mode = WAL;",
        settings: &[
            ("events_table", "lines"),
            ("jobs_table", ""),
            ("columns.id", ""),
            ("columns.job_id", "run"),
            ("columns.type", "stream"),
            ("columns.timestamp", "t"),
            ("timestamp_unit", "ms"),
            ("columns.payload", "text"),
            ("final_types.failed", "died"),
        ],
        job: "7",
        rows: [
            "INSERT INTO lines VALUES (7, '42', 'out', 1795467600123), (70, 'no', 'died', 0)",
            "INSERT INTO lines VALUES (7, '{}', 'err', 1)",
        ],
        events: || {
            [
                ("out", json!("2026-11-23T21:00:00.123Z"), json!("42")),
                ("err", json!("1970-01-01T00:00:00.001Z"), json!("{}")),
            ]
        },
        end: ("INSERT INTO lines VALUES (7, 'bye', 'died', 2)", "FAILED"),
    },
    Case {
        name: "the usual names in a table of others, with texts and numbers as payload, and a constant",
        tables: "CREATE TABLE runner_jobs (id TEXT PRIMARY KEY COLLATE NOCASE, status TEXT); INSERT INTO runner_jobs VALUES ('Job', 'QUEUED');
            CREATE TABLE job_events (id TEXT PRIMARY KEY, job_id TEXT COLLATE NOCASE, type TEXT, timestamp DATETIME, payload);
            CREATE INDEX e ON job_events (job_id);",
        settings: &[("columns.type", "= log"), ("columns.actor", "= app")],
        job: "Job",
        rows: [
            "INSERT INTO job_events VALUES ('a', 'Job', NULL, 1795467600, '{\"n\":1}'), ('x', 'JOB', NULL, 0, 0)",
            "INSERT INTO job_events VALUES ('b', X'4a6f62', NULL, '2026-11-23T21:00:00Z', 1.5)",
        ],
        events: || {
            [
                ("log", json!("2026-11-23T21:00:00.000Z"), json!("{\"n\":1}")),
                ("log", json!("2026-11-23T21:00:00.000Z"), json!(1.5)),
            ]
        },
        end: ("UPDATE runner_jobs SET status = 'COMPLETED'", "COMPLETED"),
    },
    Case {
        name: "an INTEGER PRIMARY KEY that is the id, and the whole row",
        tables: "CREATE TABLE run (no INT PRIMARY KEY, outcome TEXT); INSERT INTO run VALUES (12, 'going');
            CREATE TABLE event (no INTEGER PRIMARY KEY, run_no INT, what TEXT, size REAL, data BLOB);
            CREATE INDEX event_run ON event (run_no);",
        settings: &[
            ("events_table", "EVENT"),
            ("jobs_table", "run"),
            ("job_columns.id", "no"),
            ("job_columns.status", "outcome"),
            ("columns.id", "no"),
            ("columns.job_id", "run_no"),
            ("columns.type", "what"),
            ("columns.timestamp", ""),
            ("columns.payload", "*"),
            ("statuses.failed", "bad"),
        ],
        job: "12",
        rows: [
            "INSERT INTO event (run_no, what, size, data) VALUES (12, 'a', 0.5, X'68e9')",
            "INSERT INTO event (run_no, what, size, data) VALUES (12, 'b', -0.5, X'c3a9')",
        ],
        events: || {
            [
                ("a", Value::Null, json!({ "no": 1, "run_no": 12, "what": "a", "size": 0.5, "data": "h\u{fffd}" })),
                ("b", Value::Null, json!({ "no": 2, "run_no": 12, "what": "b", "size": -0.5, "data": "é" })),
            ]
        },
        end: ("UPDATE run SET outcome = 'bad'", "FAILED"),
    },
];

#[tokio::test]
async fn tables_that_others_have_made_are_mapped_by_settings_alone_and_stay_as_they_are() {
    for case in CASES {
        let name = case.name;
        let file = ForeignFile::make(case.tables).await;
        file.execute(case.rows[0]).await;
        let shape = file.shape().await;
        let daemon = file.serve(case.settings).await;
        let mut stream = daemon.stream(case.job).await;
        let mut seen = stream.take(1).await;
        daemon.metric_reaches("jobcast_channels", 1.0).await;
        file.execute(case.rows[1]).await;
        seen.extend(stream.take(1).await);
        let history = daemon.stream(case.job).await.take(2).await;
        assert_eq!(seen, history, "{name}: live as in history");
        for (message, (kind, time, payload)) in seen.iter().zip((case.events)()) {
            let event = message.json();
            assert_eq!((event["type"].as_str(), &event["timestamp"]), (Some(kind), &time), "{name}: {event}");
            assert_eq!(event["payload"], payload, "{name}");
        }
        assert_ne!(seen[0].json()["id"], seen[1].json()["id"], "{name}: told apart by their ids");
        let id = seen[0].json()["id"].as_str().expect("an id").to_string();
        assert_eq!(daemon.stream_after(case.job, &id).await.take(1).await, seen[1..], "{name}: after an event's id");
        let listed = daemon.get("/runner-jobs").await.json().to_string();
        assert!(listed.contains(case.job), "{name}: {listed}");
        file.execute(case.end.0).await;
        let mut end = stream.event().await;
        if end.is("died") {
            end = stream.event().await;
        }
        assert!(end.is("stream.complete"), "{name}: {end:?}");
        assert_eq!(end.json()["status"], case.end.1, "{name}");
        assert_eq!(daemon.stream_after(case.job, end.cursor()).await.head.status, 204, "{name}");
        let refused = daemon.send("POST", &format!("/runner-jobs/{}/events", case.job), &json!({ "type": "x" })).await;
        assert_eq!((refused.status, refused.code().as_str()), (403, "source.read_only"), "{name}: {refused:?}");
        assert!(refused.text().contains("only read"), "{name}: {refused:?}");
        assert_eq!(file.shape().await, shape, "{name}: schema, journal mode and encoding");
        let settings = file.settings(case.settings);
        let settings: Vec<_> = settings.iter().map(|(key, value)| (&**key, &**value)).collect();
        let check = run(&["check"], &settings).await;
        let said = String::from_utf8_lossy(&check.stdout).into_owned();
        assert!(check.status.success() && said.contains("can be read") && said.contains("read-only"), "{name}: {said}");
    }
}
