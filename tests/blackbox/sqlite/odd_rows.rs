//! Rows that other writers stored as nobody should: each hurts at most itself.

use crate::support::daemon::write_rows;
use crate::support::{Daemon, Message, numbers};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

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
