//! The file of another program: opened as it is, or not at all.

use crate::support::daemon::{BINARY, run};
use crate::support::{Daemon, ForeignFile, Message, eventually};
use serde_json::Value;
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
    let check = async |settings: &[(String, String)]| check(&file, settings).await;
    let wrong = [
        ("events_table", "log_entries"),
        ("jobs_table", "step"),
        ("columns.job_id", "stepid"),
        ("columns.timestamp", "creatd"),
        ("columns.type", "kind"),
        ("columns.payload", "dta,nothing"),
        ("columns.actor", "autor"),
        ("job_columns.status", "stat"),
    ];
    let mut settings: Vec<(String, String)> =
        wrong.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let (code, findings) = check(&settings).await;
    assert_eq!(code, Some(1), "{findings:#?}");
    let summaries = said(&findings);
    for part in
        ["no table or view step", "no column stepid", "no column creatd", "no column nothing", "no column autor"]
    {
        assert!(summaries.contains(part), "{part}: {summaries}");
    }
    let mut applied = 0;
    // Each mend as it is printed, until nothing is left that has one.
    while let (_, findings) = check(&settings).await
        && let Some(finding) = findings.iter().find(|finding| finding["grade"] != "fine")
    {
        let (mend, summary) = (finding["mend"].as_str().expect("a text"), finding["summary"].as_str().expect("a text"));
        match mend.strip_prefix("source.sqlite.") {
            Some(line) => {
                let (key, _) = line.split_once(" = ").expect("a setting");
                let value = &toml::from_str::<toml::Table>(&line.replacen(key, "value", 1)).expect(line)["value"];
                settings.retain(|(known, _)| known != key);
                settings.push((key.to_string(), value.as_str().expect("a text").to_string()));
            }
            None => file.execute(mend).await,
        }
        let (_, after) = check(&settings).await;
        assert!(after.iter().all(|finding| finding["summary"] != summary), "after {mend}: {after:#?}");
        applied += 1;
    }
    assert!(applied >= 6, "only {applied} mends");
    let (code, findings) = check(&settings).await;
    let summaries = said(&findings);
    assert!(code == Some(0) && summaries.contains("history is read by an index"), "{summaries}");
    assert!(summaries.contains("never gives out twice"), "{summaries}");
    assert!(settings.contains(&("columns.payload".into(), "data".into())), "{settings:?}");
    settings.retain(|(key, _)| key != "events_table");
    let bare = [("events_table", "bare"), ("timestamp_zone", "Mars/Base")];
    settings.extend(bare.map(|(key, value)| (key.to_string(), value.to_string())));
    let (code, findings) = check(&settings).await;
    assert_eq!(code, Some(1), "{findings:#?}");
    let summaries = said(&findings);
    for part in ["nothing numbers its rows", "e.rowid AS seq", "no time zone Mars/Base", "bare has no column created"] {
        assert!(summaries.contains(part), "{part}: {summaries}");
    }
}

#[tokio::test]
async fn check_says_what_is_lost_by_numbers_that_come_back_and_which_zone_it_assumes() {
    for (key, numbers) in
        [("id INTEGER PRIMARY KEY", "which is not AUTOINCREMENT"), ("id TEXT", "which SQLite keeps by itself")]
    {
        let file = ForeignFile::make(&format!(
            "CREATE TABLE log ({key}, run TEXT, at TEXT, body TEXT); CREATE INDEX log_run ON log (run);"
        ))
        .await;
        let settings = [
            ("events_table", "log"),
            ("jobs_table", ""),
            ("columns.job_id", "run"),
            ("columns.timestamp", "at"),
            ("columns.type", "= line"),
            ("columns.payload", "body"),
            ("final_types.completed", "over"),
            ("timestamp_zone", "+02:00"),
        ];
        let settings: Vec<(String, String)> =
            settings.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let (code, findings) = check(&file, &settings).await;
        let summaries = said(&findings);
        assert_eq!(code, Some(0), "{summaries}");
        let found =
            findings.iter().find(|finding| finding["summary"].as_str().is_some_and(|text| text.contains(numbers)));
        let found = found.unwrap_or_else(|| panic!("{numbers}: {summaries}"));
        assert_eq!(found["grade"], "improvable");
        assert!(found["summary"].as_str().is_some_and(|text| text.contains("stream.reset")), "{found}");
        assert!(
            found["mend"].as_str().is_some_and(|text| text.contains("INTEGER PRIMARY KEY AUTOINCREMENT")),
            "{found}"
        );
        assert!(summaries.contains("without a zone are taken for those of +02:00"), "{summaries}");
    }
}

/// The exit code and the findings of `jobcast check`.
async fn check(file: &ForeignFile, settings: &[(String, String)]) -> (Option<i32>, Vec<Value>) {
    let settings: Vec<_> = settings.iter().map(|(key, value)| (&**key, &**value)).collect();
    let settings = file.settings(&settings);
    let settings: Vec<_> = settings.iter().map(|(key, value)| (&**key, &**value)).collect();
    let output = run(&["check", "--json"], &settings).await;
    let findings = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), findings)
}

/// The summaries and mends of findings, as one text.
fn said(findings: &[Value]) -> String {
    findings.iter().map(|finding| format!("{}: {}\n", finding["summary"], finding["mend"])).collect()
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
