//! Rows that other writers stored as nobody should: each hurts at most itself.

use crate::support::daemon::{run, write_rows};
use crate::support::http::request;
use crate::support::{Daemon, ForeignFile, Message, numbers};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The columns and values of a row, and its event as the stream shows it. `None` where no job can have the row.
struct OddRow {
    columns: &'static str,
    values: &'static str,
    shown: Option<(&'static str, Value)>,
}

fn odd_rows() -> Vec<OddRow> {
    let row = |columns, values, shown| OddRow { columns, values, shown };
    let unreadable = |part: &str| Some(("/unreadable", json!([part])));
    vec![
        row("id, job_id, type, payload", "'a', 'odd', 'x', X'7b226e223a317d'", Some(("/payload/n", json!(1)))),
        row("id, job_id, type", "X'62', 'odd', 'x'", Some(("/id", json!("b")))),
        row("id, job_id, type", "'c', 'odd', X'782e79'", Some(("/type", json!("x.y")))),
        row("id, job_id, type", "'d', X'6f6464', 'x'", Some(("/jobId", json!("odd")))),
        row("id, job_id, type, actor", "'e', 'odd', 'x', X'ff'", unreadable("actor")),
        row("id, job_id, type, step_id", "'f', 'odd', 'x', CAST(X'61ff' AS TEXT)", unreadable("stepId")),
        row("id, job_id, type, payload", "'g', 'odd', 'x', CAST(X'7b2261223a22e9227d' AS TEXT)", unreadable("payload")),
        row("id, job_id, type, timestamp", "'h', 'odd', 'x', 1764000000", unreadable("timestamp")),
        row("id, job_id, type", "CAST(X'ff' AS TEXT), 'odd', 'x'", unreadable("id")),
        row("id, job_id, type", "'j', CAST(X'ff' AS TEXT), 'x'", None),
    ]
}

fn assert_shown(message: &Message, (pointer, expected): &(&str, Value)) {
    let event = message.json();
    assert_eq!(event.pointer(pointer), Some(expected), "{event}");
}

#[tokio::test]
async fn a_row_of_odd_storage_classes_reaches_its_job_readable_or_said_and_no_other_job() {
    let daemon = Daemon::start().await;
    let mut rows = daemon.rows().await;
    for job in ["odd", "other"] {
        daemon.write(job, 0..1).await;
    }
    let (mut odd, mut other) = (daemon.stream("odd").await, daemon.stream("other").await);
    odd.take(1).await;
    other.take(1).await;
    let mut shown = Vec::new();
    for (number, row) in (1..).zip(odd_rows()) {
        let sql = format!("INSERT INTO job_events ({}) VALUES ({})", row.columns, row.values);
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut rows).await.expect("a row");
        write_rows(&mut rows, "other", number..number + 1).await;
        assert_eq!(other.event().await.number(), number, "{}", row.values);
        if let Some(part) = row.shown {
            assert_shown(&odd.event().await, &part);
            shown.push(part);
        }
    }
    // history, from a position in the middle of it, and by a stream that comes back
    let mut again = daemon.stream("odd").await;
    let history = again.take(1 + shown.len()).await;
    for (message, part) in history[1..].iter().zip(&shown) {
        assert_shown(message, part);
    }
    for (at, message) in history.iter().enumerate() {
        let left = history.len() - at - 1;
        assert_eq!(daemon.stream_after("odd", message.cursor()).await.take(left).await, history[at + 1..]);
    }
    assert_eq!(daemon.ask_admin("/readyz").await.status, 200);
    assert_eq!(daemon.metric("jobcast_source_errors_total").await, 0.0);
    assert_eq!(numbers(&daemon.stream("other").await.take(11).await), Vec::from_iter(0..11));
}

/// Tables without types, so that any column keeps any storage class.
const UNTYPED: &str = "
    CREATE TABLE runner_jobs (id PRIMARY KEY, status DEFAULT 'PENDING', updated_at DEFAULT '', changed INTEGER DEFAULT 0);
    CREATE TABLE job_events (seq INTEGER PRIMARY KEY AUTOINCREMENT, id, job_id, step_id, type, timestamp, actor, payload);";

/// An SQL expression of any storage class.
fn value(random: &mut StdRng) -> String {
    let length = [0, 1, 7, 40, 20_000][random.random_range(0..5_usize)];
    let hex: String = (0..length).map(|_| format!("{:02x}", random.random::<u8>())).collect();
    match random.random_range(0..9) {
        0 => "NULL".into(),
        1 => format!("CAST('{}' AS INTEGER)", random.random::<i64>()),
        2 => format!("CAST('{:e}' AS REAL)", f64::from_bits(random.random())),
        3 => "9e999".into(),
        4 => format!("X'{hex}'"),
        5 => format!("CAST(X'{hex}' AS TEXT)"),
        6 => "X'7b226e223a317d'".into(),
        7 => "'2026-11-23 21:00:00'".into(),
        _ => "99999999999999999".into(),
    }
}

/// A statement that writes an event of the job `odd`, whose id may be bytes, or of any other job, or a job's status.
fn odd_row(random: &mut StdRng) -> String {
    let job = match random.random_range(0..8) {
        0 => value(random),
        number if number % 2 == 0 => "'odd'".into(),
        _ => "X'6f6464'".into(),
    };
    if random.random_bool(0.2) {
        return format!("INSERT OR REPLACE INTO runner_jobs (id, status) VALUES ({job}, {});", value(random));
    }
    let [id, step, kind, time, actor, payload] = std::array::from_fn(|_| value(random));
    format!(
        "INSERT OR IGNORE INTO job_events (id, job_id, step_id, type, timestamp, actor, payload)
         VALUES ({id}, {job}, {step}, {kind}, {time}, {actor}, {payload});"
    )
}

/// Asks over and over whether the daemon is ready, until it is told to end; returns how often it was asked.
async fn stays_ready(admin: SocketAddr, end: Arc<AtomicBool>) -> usize {
    let mut asked = 0;
    while !end.load(Ordering::Relaxed) {
        let answer = request(admin, "GET", "/readyz", &[], b"").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        asked += 1;
    }
    asked
}

#[tokio::test]
async fn rows_of_any_storage_class_and_encoding_never_make_the_daemon_unready_and_cost_ten_other_jobs_nothing() {
    for (seed, encoding) in (15..).zip(["UTF-8", "UTF-16le"]) {
        let file = ForeignFile::not_yet();
        file.execute(&format!("PRAGMA encoding = '{encoding}'; {UNTYPED}")).await;
        let path = file.path().display().to_string();
        let settings = [
            ("source.sqlite.path", &*path),
            ("source.sqlite.create", "always"),
            ("source.poll_interval", "20ms"),
            ("source.ready_grace", "1ms"),
        ];
        let daemon = Daemon::with(&settings).await;
        let end = Arc::new(AtomicBool::new(false));
        let ready = tokio::spawn(stays_ready(daemon.admin, end.clone()));
        let mut rows = file.connect().await;
        let others: Vec<String> = (0..10).map(|number| format!("other-{number}")).collect();
        let mut streams = Vec::new();
        for (number, job) in (0..).zip(&others) {
            write_rows(&mut rows, job, [number]).await;
            streams.push(daemon.stream(job).await);
        }
        write_rows(&mut rows, "odd", [0]).await;
        let mut odd = daemon.stream("odd").await;
        let mut random = StdRng::seed_from_u64(seed);
        for number in 10..150 {
            let written = (0..random.random_range(1..4)).map(|_| odd_row(&mut random)).collect::<String>();
            sqlx::raw_sql(AssertSqlSafe(format!("BEGIN IMMEDIATE; {written} COMMIT;")))
                .execute(&mut rows)
                .await
                .expect("rows");
            write_rows(&mut rows, &others[number as usize % 10], [number]).await;
        }
        let count = "SELECT count(*) FROM job_events WHERE job_id IN ('odd', X'6f6464')";
        let events: i64 = sqlx::query_scalar(count).fetch_one(&mut rows).await.expect("a count");
        assert!(events > 100, "{events} events of the odd job");
        let live: Vec<_> = odd.take(events as usize).await.into_iter().map(|event| event.data).collect();
        for (job, stream) in streams.iter_mut().enumerate() {
            assert_eq!(numbers(&stream.take(15).await), Vec::from_iter((job as u64..150).step_by(10)));
        }
        let history = daemon.stream("odd").await.take(events as usize).await;
        assert_eq!(live, history.into_iter().map(|event| event.data).collect::<Vec<_>>());
        assert_eq!(daemon.get("/runner-jobs").await.status, 200);
        end.store(true, Ordering::Relaxed);
        assert!(ready.await.expect("it was ready all the while") > 0);
        assert_eq!(daemon.metric("jobcast_source_errors_total").await, 0.0, "{}", daemon.log());
    }
}

/// Settings for rows that are ordered by a column of others.
const ORDERED: &[(&str, &str)] = &[
    ("events_table", "entries"),
    ("jobs_table", "runs"),
    ("job_columns.id", "name"),
    ("columns.id", "key"),
    ("columns.job_id", "run"),
    ("columns.seq", "n"),
    ("columns.type", "= line"),
    ("columns.timestamp", ""),
    ("columns.payload", "body"),
    ("payload_kind", "json"),
];
const RUNS: &str = "CREATE TABLE runs (name TEXT PRIMARY KEY, status TEXT);
    INSERT INTO runs VALUES ('odd', 'RUNNING'), ('other', 'RUNNING');";
/// Events whose `n` may be anything.
const ENTRIES: [&str; 2] = [
    "CREATE TABLE entries (key TEXT, run TEXT, n, body TEXT, PRIMARY KEY (run, n)) WITHOUT ROWID;
     CREATE VIEW log AS SELECT * FROM entries; CREATE TRIGGER log_insert INSTEAD OF INSERT ON log BEGIN
       INSERT INTO entries VALUES (NEW.key, NEW.run, NEW.n, NEW.body); END;",
    "CREATE TABLE log (key TEXT, run TEXT, n, body TEXT); CREATE INDEX log_run ON log (run, n);
     CREATE VIEW entries AS SELECT key, run, n, body FROM log;",
];

/// A statement that writes an event, by a number or what is none.
fn ordered(job: &str, n: &str, number: u64) -> String {
    format!("INSERT INTO log (key, run, n, body) VALUES ('{job}-{number}', '{job}', {n}, '{{\"n\":{number}}}');")
}

#[tokio::test]
async fn a_row_whose_number_is_no_integer_stops_its_own_job_which_is_told_and_never_complete_without_it() {
    for tables in ENTRIES {
        let is_view = tables.contains("CREATE TABLE log");
        let mut values = vec!["'eleven'", "1.5", "-9223372036854775808"];
        if is_view {
            values.extend(["X'00'", "1e300", "-1e300", "9e999", "NULL"]);
        }
        for value in values {
            let file =
                ForeignFile::make(&format!("{RUNS}{tables}{}{}", ordered("odd", "1", 0), ordered("other", "1", 0)))
                    .await;
            let daemon = file.serve(ORDERED).await;
            let (mut odd, mut other) = (daemon.stream("odd").await, daemon.stream("other").await);
            assert_eq!((odd.event().await.number(), other.event().await.number()), (0, 0));
            let rows = [ordered("odd", value, 1), ordered("odd", "2", 2), ordered("other", "2", 1)].concat();
            file.execute(&format!("BEGIN; {rows} UPDATE runs SET status = 'COMPLETED' WHERE name = 'odd'; COMMIT;"))
                .await;
            assert_eq!(other.event().await.number(), 1, "{value}");
            let mut told = odd.event().await;
            if told.event.as_deref() == Some("stream.status") {
                told = odd.event().await;
            }
            let error = told.json();
            assert_eq!(
                (&error["code"], &error["retryable"]),
                (&json!("source.refused"), &json!(true)),
                "{value}: {told:?}"
            );
            // Whoever asks for history is told, too, however small the pages are.
            let (mut cursor, mut seen) = (String::new(), Vec::new());
            let refused = loop {
                let page = daemon.get(&format!("/runner-jobs/odd/events?limit=1{cursor}")).await;
                if page.status != 200 {
                    break page;
                }
                let page = page.json();
                assert_eq!(page["complete"], false, "{value}: {page}");
                seen.extend(
                    page["events"].as_array().expect("events").iter().map(|event| event["payload"]["n"].clone()),
                );
                assert!(seen.len() <= 2, "{value}: {seen:?}");
                cursor = format!("&after={}", page["cursor"].as_str().expect("a cursor"));
            };
            assert_eq!((refused.status, refused.code().as_str()), (503, "source.refused"), "{value}");
            daemon.logs(&["orders the rows of a job, and holds no integer"]).await;
            assert_eq!(daemon.ask_admin("/readyz").await.status, 200);
            file.execute(match is_view {
                true => "UPDATE log SET n = 3 WHERE key = 'odd-1'",
                false => "UPDATE entries SET n = 3 WHERE key = 'odd-1'",
            })
            .await;
            let rest = odd.rest().await;
            let events: Vec<Message> =
                rest.iter().filter(|message| message.event.as_deref() == Some("line")).cloned().collect();
            assert_eq!(numbers(&events), [2, 1], "{value}: {rest:?}");
            assert_eq!(
                rest.last().and_then(|last| last.event.as_deref()),
                Some("stream.complete"),
                "{value}: {rest:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_column_that_holds_no_integers_is_refused_by_check_and_the_start_as_the_number_of_a_jobs_rows() {
    let tables = |kind: &str| {
        let log = format!("(key TEXT, run TEXT, n {kind}, body TEXT, PRIMARY KEY (run, n)) WITHOUT ROWID;");
        let view = "CREATE VIEW entries AS SELECT * FROM log;";
        [format!("{RUNS}CREATE TABLE entries {log}"), format!("{RUNS}CREATE TABLE log {log} {view}")]
    };
    // the declared type, the number of a row, and the class that is named; `None`: it will do
    let cases = [
        ("REAL", "1764261000.25", Some("real")),
        ("TEXT", "'01J00000000000000000000001'", Some("text")),
        ("TEXT", "12", Some("text")),
        ("", "'01J00000000000000000000001'", Some("text")),
        ("BLOB", "X'01'", Some("blob")),
        ("REAL", "", Some("REAL")),
        ("VARCHAR(26)", "", Some("VARCHAR(26)")),
        ("", "", None),
        ("", "1", None),
        ("BIGINT", "1", None),
        ("DECIMAL", "1", None),
    ];
    for (kind, value, refused) in cases {
        for sql in tables(kind) {
            let table = if sql.contains("TABLE log") { "log" } else { "entries" };
            let row = format!("INSERT INTO {table} VALUES ('a', 'odd', {value}, '{{}}');");
            let file = ForeignFile::make(&format!("{sql}{}", if value.is_empty() { "" } else { &row })).await;
            let settings = file.settings(ORDERED);
            let mut settings: Vec<_> = settings.iter().map(|(key, value)| (&**key, &**value)).collect();
            let check = run(&["check"], &settings).await;
            let said = String::from_utf8_lossy(&check.stdout).into_owned();
            let Some(class) = refused else {
                assert!(check.status.success(), "{kind} {value}: {said}");
                file.serve(ORDERED).await;
                continue;
            };
            let expected = format!("entries.n is to order the rows of each job, and holds no integers ({class})");
            assert!(!check.status.success() && said.contains(&expected), "{kind} {value}: {said}");
            settings.extend([("http.listen", "127.0.0.1:0"), ("admin.listen", "127.0.0.1:0")]);
            let start = run(&["serve"], &settings).await;
            let said = String::from_utf8_lossy(&start.stderr).into_owned();
            assert!(start.status.code() == Some(1) && said.contains(&expected), "{kind} {value}: {said}");
        }
    }
}
