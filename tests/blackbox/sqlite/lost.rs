//! History that is gone: said, with its reason, to those who lack it.

use crate::support::daemon::numbered;
use crate::support::{Daemon, numbers};

#[tokio::test]
async fn a_restored_backup_is_said_and_never_passed_over() {
    let mut daemon = Daemon::start().await;
    daemon.write("job", 0..10).await;
    let before = daemon.stream("job").await.take(10).await;
    let mut rows = daemon.rows().await;
    let backup = daemon.folder().join("backup.db");
    sqlx::query("VACUUM INTO ?1").bind(backup.display().to_string()).execute(&mut rows).await.expect("backup");
    drop(rows);
    daemon.write("job", 10..20).await;
    let lost = daemon.stream("job").await.take(20).await;

    daemon.kill();
    for old in ["jobs.db-wal", "jobs.db-shm"] {
        let _ = std::fs::remove_file(daemon.folder().join(old));
    }
    std::fs::copy(&backup, daemon.database()).expect("restore");
    daemon.restart().await;
    // the same numbers, other events
    let rows = (100..120).map(numbered).collect::<Vec<_>>();
    daemon.send("POST", "/runner-jobs/job/events", &rows.into()).await;

    let mut kept = daemon.stream_after("job", before[9].cursor()).await;
    assert_eq!(numbers(&kept.take(20).await), Vec::from_iter(100..120));
    for message in &lost[10..] {
        let mut stream = daemon.stream_after("job", message.cursor()).await;
        let reset = stream.event().await;
        assert!(reset.is("stream.reset"), "{reset:?}");
        assert_eq!(reset.json()["reason"], "rewound");
        assert_eq!(numbers(&stream.take(30).await), Vec::from_iter((0..10).chain(100..120)));
    }
}

#[tokio::test]
async fn deleted_history_and_a_file_made_anew_are_told_apart() {
    let mut daemon = Daemon::start().await;
    daemon.write("job", 0..10).await;
    let seen = daemon.stream("job").await.take(10).await;
    let mut rows = daemon.rows().await;
    sqlx::raw_sql("DELETE FROM job_events WHERE id IN ('e-4', 'e-5')").execute(&mut rows).await.expect("delete");
    drop(rows);
    // no stream is open: the ring may not remember
    daemon.kill();
    daemon.restart().await;
    let mut stream = daemon.stream_after("job", seen[4].cursor()).await;
    let reset = stream.event().await;
    assert_eq!((reset.event.as_deref(), &reset.json()["reason"]), (Some("stream.reset"), &"trimmed".into()));
    assert_eq!(numbers(&stream.take(8).await), [0, 1, 2, 3, 6, 7, 8, 9]);

    daemon.kill();
    for file in ["jobs.db", "jobs.db-wal", "jobs.db-shm"] {
        let _ = std::fs::remove_file(daemon.folder().join(file));
    }
    daemon.restart().await;
    daemon.write("job", 100..103).await;
    let mut stream = daemon.stream_after("job", seen[9].cursor()).await;
    assert_eq!(stream.event().await.json()["reason"], "rewound");
    assert_eq!(numbers(&stream.take(3).await), [100, 101, 102]);
}
