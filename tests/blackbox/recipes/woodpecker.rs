//! Woodpecker's log entries, written as it writes them: a few lines of one step in each transaction, and the state of the
//! step after its last lines.

use super::file_of;
use crate::support::daemon::run;
use crate::support::{Daemon, ForeignFile, Message};
use serde_json::{Value, json};

const TABLES: &str = "
    CREATE TABLE steps (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, uuid TEXT, pipeline_id INTEGER, name TEXT, state TEXT,
      exit_code INTEGER, started INTEGER, finished INTEGER);
    CREATE INDEX IDX_steps_pipeline_id ON steps (pipeline_id);
    CREATE TABLE log_entries (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, step_id INTEGER, time INTEGER, line INTEGER,
      data BLOB, created INTEGER, type INTEGER);
    CREATE UNIQUE INDEX UQE_log_entries_s ON log_entries (step_id, line);
    INSERT INTO steps (pipeline_id, name, state) VALUES (1, 'clone', 'running'), (1, 'build', 'running'), (1, 'deploy', 'pending');";

/// Inserts lines of a step, from a number on.
fn lines(step: u64, first: u64, data: &[(&str, u64)]) -> String {
    let rows = data.iter().zip(first..).map(|((data, kind), line)| {
        let created = 1_795_467_600 + line;
        format!("({step}, {line}, {line}, CAST('{data}' AS BLOB), {created}, {kind})")
    });
    let rows: Vec<String> = rows.collect();
    format!(
        "BEGIN; INSERT INTO log_entries (step_id, time, line, data, created, type) VALUES {}; COMMIT;",
        rows.join(",")
    )
}

fn shown(messages: &[Message]) -> Vec<(String, Value, Value)> {
    let show = |message: &Message| {
        let event = message.json();
        (event["type"].as_str().unwrap_or_default().into(), event["timestamp"].clone(), event["payload"].clone())
    };
    messages.iter().map(show).collect()
}

fn line(kind: &str, second: u64, data: &str) -> (String, Value, Value) {
    (kind.into(), json!(format!("2026-11-23T21:00:{second:02}.000Z")), json!(data))
}

#[tokio::test]
async fn the_lines_of_each_step_are_streamed_as_woodpecker_writes_them_to_the_end_of_the_step() {
    for journal in ["DELETE", "WAL"] {
        let file = ForeignFile::make(&format!("PRAGMA journal_mode = {journal}; {TABLES}")).await;
        file.execute(&lines(1, 0, &[("+ git init", 0), ("42", 1)])).await;
        file.execute(&lines(2, 0, &[("+ make", 0)])).await;
        let (config, path) = (file_of("woodpecker", "jobcast.toml"), file.path().display().to_string());
        let settings = [("config", config.as_str()), ("source.sqlite.path", path.as_str())];
        let shape = file.shape().await;
        let daemon = Daemon::with(&settings).await;
        let (mut clone, mut build) = (daemon.stream("1").await, daemon.stream("2").await);
        assert_eq!(shown(&clone.take(2).await), [line("stdout", 0, "+ git init"), line("stderr", 1, "42")]);
        assert_eq!(shown(&build.take(1).await), [line("stdout", 0, "+ make")]);
        daemon.metric_reaches("jobcast_channels", 2.0).await;

        file.execute(&lines(2, 1, &[("{\"a\": 1}", 3), ("50 %", 4)])).await;
        file.execute(&lines(1, 2, &[("0", 2)])).await;
        file.execute("UPDATE steps SET state = 'success', exit_code = 0 WHERE id = 1").await;
        file.execute("INSERT INTO log_entries (step_id, time, line, data, created, type) VALUES (2, 3, 3, X'c3a9ff', 1795467603, 0)")
            .await;
        assert_eq!(shown(&clone.take(1).await), [line("exit_code", 2, "0")]);
        let end = clone.event().await;
        assert_eq!((end.event.as_deref(), &end.json()["status"]), (Some("stream.complete"), &json!("COMPLETED")));
        let rest = build.take(3).await;
        let expected = [line("metadata", 1, "{\"a\": 1}"), line("progress", 2, "50 %"), line("stdout", 3, "é\u{fffd}")];
        assert_eq!(shown(&rest), expected);
        assert_eq!(rest[2].json()["unreadable"], json!(["payload"]));
        file.execute("UPDATE steps SET state = 'killed' WHERE id = 2").await;
        assert_eq!(build.event().await.json()["status"], "CANCELLED");

        // whoever comes late, resumes, or asks for a step that has no lines yet
        let late = daemon.stream("2").await.rest().await;
        assert_eq!((late.len(), late[4].event.as_deref()), (5, Some("stream.complete")));
        assert_eq!(daemon.stream_after("2", late[1].cursor()).await.take(2).await, late[2..4]);
        assert_eq!(daemon.get("/runner-jobs/3").await.json()["jobId"], "3");
        assert_eq!(daemon.get("/runner-jobs/4/events").await.status, 404);
        assert_eq!(file.shape().await, shape, "{journal}");
        let check = run(&["check"], &settings).await;
        let said = String::from_utf8_lossy(&check.stdout).into_owned();
        assert!(check.status.success() && said.contains("never gives out twice"), "{said}");
    }
}
