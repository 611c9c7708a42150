//! The database file under a running daemon: removed, replaced, and written to by a slow disk.

use crate::support::daemon::{numbered, write_rows};
use crate::support::{Daemon, eventually, numbers};
use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions};
use std::path::Path;
use std::process::{Command, Stdio};

const PATH: &str = "/runner-jobs/job/events";

/// Makes a copy of the daemon's database, in one file.
async fn copy(daemon: &Daemon, name: &str) -> std::path::PathBuf {
    let copy = daemon.folder().join(name);
    let sql = format!("VACUUM INTO '{}'", copy.display());
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut daemon.rows().await).await.expect("a copy");
    copy
}

/// Removes the files beside the database. Its own connections keep theirs.
fn remove_log(daemon: &Daemon) {
    for end in ["-wal", "-shm"] {
        std::fs::remove_file(format!("{}{end}", daemon.database().display())).expect("removed");
    }
}

async fn ids_in(file: &Path) -> Vec<String> {
    let mut rows = SqliteConnectOptions::new().filename(file).connect().await.expect("the file");
    sqlx::query_scalar("SELECT id FROM job_events ORDER BY seq").fetch_all(&mut rows).await.expect("ids")
}

#[tokio::test]
async fn a_removed_file_is_said_and_nothing_is_taken_in_until_it_is_back() {
    let daemon = Daemon::with(&[("source.retry_max", "300ms"), ("source.ready_grace", "1ms")]).await;
    daemon.write("job", 0..3).await;
    let backup = copy(&daemon, "backup.db").await;
    let mut stream = daemon.stream("job").await;
    stream.take(3).await;
    remove_log(&daemon);
    std::fs::remove_file(daemon.database()).expect("removed");
    let told = stream.event().await;
    assert_eq!((told.event.as_deref(), &told.json()["code"]), (Some("stream.error"), &"source.unavailable".into()));
    let down = eventually("not to be ready", async || {
        Some(daemon.ask_admin("/readyz").await).filter(|answer| answer.status == 503)
    });
    assert_eq!(down.await.json()["code"], "source.unavailable");
    let refused = daemon.send("POST", PATH, &numbered(3)).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "source.unavailable"));
    assert!(!daemon.database().exists(), "no new one is made");
    daemon.logs(&["the database file is gone"]).await;
    std::fs::rename(&backup, daemon.database()).expect("it is back");
    eventually("to be ready", async || (daemon.ask_admin("/readyz").await.status == 200).then_some(())).await;
    daemon.write("job", 3..4).await;
    assert_eq!(ids_in(&daemon.database()).await, ["e-0", "e-1", "e-2", "e-3"]);
}

#[tokio::test]
async fn a_file_that_takes_the_place_of_the_database_is_said_and_gets_all_that_is_taken_in_from_then_on() {
    let daemon = Daemon::with(&[("source.retry_max", "300ms")]).await;
    daemon.write("job", 0..3).await;
    let other = copy(&daemon, "other.db").await;
    let mut rows = SqliteConnectOptions::new().filename(&other).connect().await.expect("the copy");
    sqlx::raw_sql("UPDATE job_events SET id = 'other-' || id").execute(&mut rows).await.expect("other events");
    drop(rows);
    let mut stream = daemon.stream("job").await;
    stream.take(3).await;
    remove_log(&daemon);
    std::fs::rename(&other, daemon.database()).expect("replaced");
    // Whatever is answered 201 from now on is in the new file.
    let mut stored = 0;
    for number in 10..40 {
        let answer = daemon.send("POST", PATH, &numbered(number)).await;
        assert!(matches!(answer.status, 201 | 503), "{answer:?}");
        if answer.status == 201 {
            stored += 1;
            assert!(ids_in(&daemon.database()).await.contains(&format!("e-{number}")), "{number}");
        }
    }
    eventually("the new file to be written to", async || {
        (stored > 0 || daemon.send("POST", PATH, &numbered(40)).await.status == 201).then_some(())
    })
    .await;
    let mut told = stream.event().await;
    while told.is("stream.error") {
        told = stream.event().await;
    }
    assert_eq!((told.event.as_deref(), &told.json()["reason"]), (Some("stream.reset"), &json!("rewound")));
    assert_eq!(stream.event().await.json()["id"], "other-e-0");
    daemon.logs(&["the database file was replaced"]).await;
}

/// Makes a writer wait for the disk after it has written, as a slow disk does: its commit can be seen only after that.
const SLOW_DISK: &str = "
    #include <unistd.h>
    int fdatasync(int file) { (void)file; usleep(3000000); return 0; }
    int fsync(int file) { return fdatasync(file); }";

#[tokio::test]
async fn a_commit_that_can_be_seen_long_after_its_file_changed_is_found_without_the_poll() {
    let daemon = Daemon::with(&[("source.poll_interval", "10m")]).await;
    write_rows(&mut daemon.rows().await, "job", 0..1).await;
    let mut stream = daemon.stream("job").await;
    stream.take(1).await;
    let (source, library) = (daemon.folder().join("slow.c"), daemon.folder().join("slow.so"));
    std::fs::write(&source, SLOW_DISK).expect("a source");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(compiled.expect("a C compiler").success());
    let insert = "PRAGMA busy_timeout = 20000; PRAGMA synchronous = FULL;
        INSERT INTO job_events (id, job_id, type, payload) VALUES ('e-1', 'job', 'x', '{\"n\":1}')";
    let mut writer = Command::new("sqlite3");
    writer.arg(daemon.database()).arg(insert).env("LD_PRELOAD", &library).stdout(Stdio::null());
    let mut writer = writer.spawn().expect("sqlite3");
    assert_eq!(numbers(&stream.take(1).await), [1]);
    assert!(writer.wait().expect("wait").success());
}
