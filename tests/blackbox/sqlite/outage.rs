//! The source fails, and comes back.

use crate::support::daemon::{numbered, stream_path, write_rows};
use crate::support::http::request;
use crate::support::{Daemon, eventually, numbers};
use serde_json::json;
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;

#[tokio::test]
async fn a_source_that_lost_its_table_is_said_and_watched_again_once_it_is_mended() {
    let daemon = Daemon::with(&[("source.retry_max", "300ms"), ("source.forgive", "0s")]).await;
    daemon.write("job", 0..3).await;
    let mut stream = daemon.stream("job").await;
    let seen = stream.take(3).await;
    let mut rows = daemon.rows().await;
    sqlx::raw_sql("ALTER TABLE job_events RENAME TO elsewhere").execute(&mut rows).await.expect("rename");

    let error = stream.event().await;
    assert!(error.is("stream.error"), "{error:?}");
    assert_eq!((&error.json()["code"], &error.json()["retryable"]), (&json!("source.schema"), &json!(false)));
    assert!(!error.data.as_deref().unwrap_or_default().contains("job_events"), "that is for the log: {error:?}");
    daemon.logs(&["no such table: job_events"]).await;
    assert_eq!(stream.next().await, None, "it is closed");
    let answer = request(daemon.http, "GET", &stream_path("job"), &[("Last-Event-ID", seen[1].cursor())], b"").await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "source.schema"));
    let down = daemon.ask_admin("/readyz").await;
    assert_eq!((down.status, down.json()["code"].clone()), (200, json!("source.schema")));
    assert!(!down.text().contains("job_events"), "the words are for everybody: {down:?}");
    daemon.metric_is("jobcast_source_up", 0.0).await;

    sqlx::raw_sql("ALTER TABLE elsewhere RENAME TO job_events").execute(&mut rows).await.expect("rename");
    eventually("readiness", async || (daemon.ask_admin("/readyz").await.json()["status"] == "ready").then_some(()))
        .await;
    let mut back = daemon.stream_after("job", seen[1].cursor()).await;
    write_rows(&mut rows, "job", 3..5).await;
    assert_eq!(numbers(&back.take(3).await), [2, 3, 4]);
    // Not at every try.
    daemon.logs_times("source went away", 1).await;
}

#[tokio::test]
async fn a_writer_that_keeps_the_lock_gets_others_a_503_and_readers_go_on() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..3).await;
    let mut stream = daemon.stream("job").await;
    stream.take(3).await;
    let mut rows = daemon.rows().await;
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut rows).await.expect("lock");
    let answer = daemon.send("POST", "/runner-jobs/job/events", &json!({ "type": "x" })).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "source.busy"));
    assert!(answer.header("Retry-After").is_some());
    assert_eq!(numbers(&daemon.stream("job").await.take(3).await), [0, 1, 2]);
    sqlx::raw_sql("ROLLBACK").execute(&mut rows).await.expect("unlock");
    daemon.write("job", 3..4).await;
    assert_eq!(stream.event().await.number(), 3);
}

#[tokio::test]
async fn a_daemon_starts_while_another_process_holds_the_lock_and_serves_what_is_there() {
    for has_tables in [true, false] {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("jobs.db");
        let settings = [("source.sqlite.path", path.to_str().expect("a path")), ("source.retry_max", "300ms")];
        if has_tables {
            Daemon::with(&settings).await.write("job", 0..3).await;
        }
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut other = options.connect().await.expect("the file");
        sqlx::raw_sql("BEGIN IMMEDIATE; CREATE TABLE theirs (n)").execute(&mut other).await.expect("lock");
        let mut daemon = Daemon::with(&settings).await;
        if has_tables {
            assert_eq!(numbers(&daemon.stream("job").await.take(3).await), [0, 1, 2]);
        } else {
            daemon.logs(&["waiting for it"]).await;
            let answer = daemon.get("/runner-jobs/job/events").await;
            assert_eq!((answer.status, answer.code().as_str()), (503, "source.busy"), "{answer:?}");
        }
        sqlx::raw_sql("ROLLBACK").execute(&mut other).await.expect("unlock");
        // The first to come may still find it busy; a repeat of one that was taken in is answered 200.
        eventually("an event to be taken in", async || {
            let answer = daemon.send("POST", "/runner-jobs/job/events", &numbered(3)).await;
            matches!(answer.status, 200 | 201).then_some(())
        })
        .await;
        let all = Vec::from_iter(if has_tables { 0..4 } else { 3..4 });
        assert_eq!(numbers(&daemon.stream("job").await.take(all.len()).await), all);
        daemon.signal("INT");
        daemon.signal("TERM");
        assert!(daemon.exit().await.success());
    }
}

/// A file system of 1 MB, in a namespace of the daemon's own; Linux only, as root or with user namespaces.
#[tokio::test]
async fn a_full_disk_is_answered_and_nothing_that_was_answered_201_is_lost() {
    use crate::support::daemon::{BINARY, finish, jobcast};
    let folder = tempfile::tempdir().expect("a directory");
    let script = "mount -t tmpfs -o size=1m tmpfs \"$1\" && exec bash \"$0\" \"$1\" \"$2\"";
    let inner = folder.path().join("inner.sh");
    // runs beside the daemon, where the small file system can be seen
    let talk = r#"
        cd "$1"; "$2" serve 2> log & daemon=$!
        for _ in $(seq 300); do grep -q 'serving ' log && break; sleep 0.1; done
        to=$(sed -n 's/.*serving .*http=\([^ ]*\).*/\1/p' log)
        line=$(head -c 60000 /dev/zero | tr '\0' x)
        stored=0
        for n in $(seq 40); do
            status=$(printf '{"type":"x","payload":{"line":"%s"}}' "$line" |
                curl -s -o answer -w '%{http_code}' -H 'Content-Type: application/json' -d @- "http://$to/runner-jobs/job/events")
            [ "$status" = 201 ] && stored=$((stored + 1)) && continue
            echo "refused $status $(cat answer)"; break
        done
        kill -9 $daemon; rm -f answer
        echo "stored $stored"
        echo "kept $(sqlite3 jobs.db 'SELECT count(*) FROM job_events')"
        cat log
    "#;
    std::fs::write(&inner, talk).expect("a script");
    let mount = folder.path().join("small");
    std::fs::create_dir(&mount).expect("a directory");
    let settings: Vec<(String, String)> =
        [("http.listen", "127.0.0.1:0"), ("admin.listen", "127.0.0.1:0"), ("source.sqlite.path", "jobs.db")]
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .into();
    let variables = jobcast(&[], &settings);
    let mut unshare = std::process::Command::new("unshare");
    for (name, value) in variables.get_envs() {
        match value {
            Some(value) => unshare.env(name, value),
            None => unshare.env_remove(name),
        };
    }
    unshare.args(["--user", "--map-root-user", "--mount", "bash", "-c", script]);
    unshare.arg(&inner).arg(&mount).arg(BINARY);
    let output = finish(unshare.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped())).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let shown = format!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("refused 507 "), "{shown}");
    assert!(said.contains("\"code\":\"source.disk_full\"") && said.contains("make room"), "{shown}");
    let number = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    assert!(number("stored").is_some_and(|stored| stored > 0), "{shown}");
    assert_eq!(number("stored"), number("kept"), "{shown}");
    assert!(!shown.contains("panicked"), "{shown}");
}
