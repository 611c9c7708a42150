//! The file of another program: opened as it is, or not at all.

use crate::support::daemon::{BINARY, run};
use crate::support::{Daemon, ForeignFile, Message, eventually};
use std::path::Path;

const LOG: &str = "CREATE TABLE log (n INTEGER PRIMARY KEY, run TEXT, line TEXT); CREATE INDEX log_run ON log (run);";
const MAPPED: &[(&str, &str)] = &[
    ("events_table", "log"),
    ("jobs_table", ""),
    ("columns.id", ""),
    ("columns.job_id", "run"),
    ("columns.type", "= line"),
    ("columns.timestamp", ""),
    ("columns.payload", "line"),
    ("final_types.completed", "never"),
];

fn lines(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|message| message.json()["payload"].as_str().expect("a line").to_string()).collect()
}

fn insert(lines: impl IntoIterator<Item = u32>) -> String {
    let rows: Vec<String> = lines.into_iter().map(|line| format!("('job', 'line {line}')")).collect();
    format!("INSERT INTO log (run, line) VALUES {};", rows.join(","))
}

fn named(lines: impl IntoIterator<Item = u32>) -> Vec<String> {
    lines.into_iter().map(|line| format!("line {line}")).collect()
}

async fn serve_to_its_end(file: &ForeignFile, settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let settings = file.settings(settings);
    let mut settings: Vec<_> = settings.iter().map(|(key, value)| (&**key, &**value)).collect();
    settings.extend([("http.listen", "127.0.0.1:0"), ("admin.listen", "127.0.0.1:0")]);
    let output = run(&["serve"], &settings).await;
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn a_file_with_other_tables_is_left_alone_unless_the_settings_say_otherwise() {
    let file = ForeignFile::make("CREATE TABLE job_eventz (id); CREATE TABLE users (id)").await;
    let before = std::fs::read(file.path()).expect("bytes");
    let (code, said) = serve_to_its_end(&file, &[]).await;
    assert_eq!(code, Some(1), "{said}");
    for part in ["there is no table or view job_events", "there is no table or view runner_jobs", "jobcast check"] {
        assert!(said.contains(part), "{said}");
    }
    let check = run(&["check"], &[("source.sqlite.path", &file.path().display().to_string())]).await;
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(!check.status.success() && said.contains("source.sqlite.events_table = \"job_eventz\""), "{said}");
    assert!(said.contains("(job_eventz, users)"), "{said}");
    let (code, said) = serve_to_its_end(&file, &[("create", "always"), ("events_table", "users")]).await;
    assert!(code == Some(2) && said.contains("source.sqlite.create"), "{code:?} {said}");
    assert!(std::fs::read(file.path()).expect("bytes") == before, "not a byte was changed");

    let daemon = file.serve(&[("create", "always")]).await;
    daemon.write("job", 0..3).await;
    daemon.stream("job").await.take(3).await;
}

#[tokio::test]
async fn serving_a_file_that_nobody_writes_to_changes_no_byte_of_it() {
    for journal in ["DELETE", "WAL"] {
        let file = ForeignFile::make(&format!("PRAGMA journal_mode = {journal}; {LOG} {}", insert(0..50))).await;
        let before = std::fs::read(file.path()).expect("bytes");
        let mut daemon = file.serve(MAPPED).await;
        assert_eq!(lines(&daemon.stream("job").await.take(50).await), named(0..50));
        daemon.get("/runner-jobs").await;
        daemon.signal("TERM");
        daemon.exit().await;
        assert!(std::fs::read(file.path()).expect("bytes") == before, "{journal}");
    }
}

#[tokio::test]
async fn a_file_that_its_program_has_not_made_yet_is_waited_for() {
    let file = ForeignFile::not_yet();
    let daemon = file.serve(MAPPED).await;
    daemon.logs(&["not there yet"]).await;
    assert_eq!(daemon.get("/runner-jobs/job/events").await.status, 503);
    assert!(!file.path().exists());
    file.execute(&format!("{LOG} {}", insert(0..3))).await;
    eventually("the file to be served", async || {
        (daemon.get("/runner-jobs/job/events").await.status == 200).then_some(())
    })
    .await;
    let mut stream = daemon.stream("job").await;
    assert_eq!(lines(&stream.take(3).await), named(0..3));
    file.execute(&insert(3..4)).await;
    assert_eq!(lines(&stream.take(1).await), ["line 3"]);
    let never = ForeignFile::not_yet();
    let daemon = never.serve(&[("create", "never")]).await;
    daemon.logs(&["not there yet"]).await;
    assert!(!never.path().exists());
}

#[tokio::test]
async fn numbers_that_come_back_are_noticed_by_who_watches_and_by_who_resumes() {
    let file = ForeignFile::make(&format!("{LOG} {}", insert(0..10))).await;
    let daemon = file.serve(MAPPED).await;
    let mut stream = daemon.stream("job").await;
    let seen = stream.take(10).await;
    daemon.metric_reaches("jobcast_channels", 1.0).await;
    // the highest number is the same as before
    file.execute(&format!("BEGIN; DELETE FROM log WHERE n > 5; {} COMMIT;", insert(20..25))).await;
    let reset = stream.event().await;
    assert_eq!((reset.event.as_deref(), &reset.json()["reason"]), (Some("stream.reset"), &"rewound".into()));
    assert_eq!(lines(&stream.take(10).await), [named(0..5), named(20..25)].concat());
    assert_eq!(daemon.stream_after("job", seen[7].cursor()).await.event().await.json()["reason"], "rewound");
    let kept = daemon.stream_after("job", seen[3].cursor()).await.take(6).await;
    assert_eq!(lines(&kept), [named(4..5), named(20..25)].concat());
}

#[tokio::test]
async fn rows_that_vacuum_numbers_anew_are_noticed_by_who_watches_and_by_who_resumes() {
    // VACUUM keeps the numbers of a table that has an index.
    let tables = "CREATE TABLE log (run TEXT, line TEXT);";
    let file = ForeignFile::make(&format!("{tables} {}", insert(0..10))).await;
    let daemon = file.serve(MAPPED).await;
    let mut stream = daemon.stream("job").await;
    let seen = stream.take(10).await;
    daemon.metric_reaches("jobcast_channels", 1.0).await;
    file.execute(&format!("DELETE FROM log WHERE rowid <= 5; VACUUM; {}", insert(20..25))).await;
    assert_eq!(stream.event().await.json()["reason"], "rewound");
    let shown = lines(&stream.take(10).await);
    assert_eq!(shown, [named(5..10), named(20..25)].concat());
    assert_eq!(daemon.stream_after("job", seen[8].cursor()).await.event().await.json()["reason"], "rewound");
}

#[tokio::test]
async fn a_program_that_changes_its_tables_while_they_are_watched_is_followed() {
    let file = ForeignFile::make(&format!("{LOG} {}", insert(0..2))).await;
    let daemon = file.serve(MAPPED).await;
    let mut stream = daemon.stream("job").await;
    stream.take(2).await;
    file.execute(&format!("ALTER TABLE log ADD COLUMN who TEXT; DROP INDEX log_run; {}", insert(2..3))).await;
    assert_eq!(lines(&stream.take(1).await), ["line 2"]);
}

#[tokio::test]
async fn check_says_everything_at_once_and_each_mend_makes_its_finding_go_away() {
    let file = ForeignFile::make(
        "CREATE TABLE log_entries (id INTEGER PRIMARY KEY AUTOINCREMENT, step_id INTEGER, created INTEGER, data BLOB, kind TEXT);
         CREATE TABLE steps (id INTEGER PRIMARY KEY, state TEXT);
         CREATE VIEW bare AS SELECT step_id FROM log_entries;",
    )
    .await;
    let check = async |settings: &[(&str, &str)]| {
        let settings = file.settings(settings);
        let settings: Vec<_> = settings.iter().map(|(key, value)| (&**key, &**value)).collect();
        let output = run(&["check"], &settings).await;
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let wrong = [
        ("events_table", "log_entries"),
        ("jobs_table", "step"),
        ("columns.job_id", "stepid"),
        ("columns.timestamp", "creatd"),
        ("columns.type", "kind"),
        ("columns.payload", "dta,nothing"),
        ("columns.actor", "autor"),
    ];
    let (code, said) = check(&wrong).await;
    assert_eq!(code, Some(1), "{said}");
    for mend in [
        "source.sqlite.jobs_table = \"steps\"",
        "source.sqlite.columns.job_id = \"step_id\"",
        "source.sqlite.columns.timestamp = \"created\"",
        "source.sqlite.columns.payload = \"data\"",
        "has no column nothing",
        "has no column autor",
    ] {
        assert!(said.contains(mend), "{mend}: {said}");
    }
    let mut right = [
        ("events_table", "log_entries"),
        ("jobs_table", "steps"),
        ("columns.job_id", "step_id"),
        ("columns.timestamp", "created"),
        ("columns.type", "kind"),
        ("columns.payload", "data"),
        ("job_columns.status", "state"),
    ];
    let (code, said) = check(&right).await;
    assert!(code == Some(0) && said.contains("no index leads to the events of one job"), "{said}");
    file.execute("CREATE INDEX \"log_entries_jobcast\" ON \"log_entries\" (\"step_id\");").await;
    let (code, said) = check(&right).await;
    assert!(code == Some(0) && said.contains("history is read by an index") && !said.contains("no index"), "{said}");
    assert!(said.contains("never gives out twice"), "{said}");
    right[0].1 = "bare";
    let (code, said) = check(&[&right[..], &[("timestamp_zone", "Mars/Base")]].concat()).await;
    assert_eq!(code, Some(1), "{said}");
    for part in ["nothing numbers its rows", "e.rowid AS seq", "no time zone Mars/Base", "bare has no column created"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// Rights do not bind root: it is done as nobody.
async fn serve_as_nobody(file: &ForeignFile) -> Daemon {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let folder = file.path().parent().map(Path::to_path_buf).expect("a folder");
    let (binary, bin) = (folder.join("bin/jobcast"), folder.join("bin"));
    std::fs::create_dir(&bin).expect("a folder");
    std::fs::copy(BINARY, &binary).expect("a copy that nobody may run");
    for (path, mode) in [(&folder, 0o755), (&bin, 0o755), (&file.path(), 0o644)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("rights");
    }
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    let user = if is_root { "setpriv --reuid=65534 --regid=65534 --clear-groups" } else { "" };
    let settings = file.settings(MAPPED);
    let mut settings: Vec<_> = settings.iter().map(|(key, value)| (&**key, &**value)).collect();
    settings.push(("source.retry_max", "200ms"));
    Daemon::after(&format!("shift; exec {user} '{}' \"$@\"", binary.display()), &settings).await
}

#[tokio::test]
async fn a_user_who_may_only_read_the_file_and_its_folder_serves_it_or_waits_for_its_writer() {
    let file = ForeignFile::make(&format!("{LOG} {}", insert(0..2))).await;
    let daemon = serve_as_nobody(&file).await;
    let mut stream = daemon.stream("job").await;
    assert_eq!(lines(&stream.take(2).await), named(0..2));
    file.execute(&insert(2..3)).await;
    assert_eq!(lines(&stream.take(1).await), ["line 2"], "with a rollback journal");

    let file = ForeignFile::make(&format!("PRAGMA journal_mode = WAL; {LOG} {}", insert(0..2))).await;
    let daemon = serve_as_nobody(&file).await;
    daemon.logs(&["keep a connection of a writer open"]).await;
    assert_eq!(daemon.get("/runner-jobs/job/events").await.status, 503);
    let mut writer = file.connect().await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(insert(2..3))).execute(&mut writer).await.expect("a row");
    eventually("the file to be served", async || {
        (daemon.get("/runner-jobs/job/events").await.status == 200).then_some(())
    })
    .await;
    let mut stream = daemon.stream("job").await;
    assert_eq!(lines(&stream.take(3).await), named(0..3));
    sqlx::raw_sql(sqlx::AssertSqlSafe(insert(3..4))).execute(&mut writer).await.expect("a row");
    assert_eq!(lines(&stream.take(1).await), ["line 3"], "in WAL mode, while a writer has it open");
}
