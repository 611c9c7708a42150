//! The command line.

use crate::support::Daemon;
use crate::support::daemon::{BINARY, finish, jobcast, run};
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `jobcast tail` beside what is done meanwhile.
async fn tail(daemon: &Daemon, more: &[&str]) -> Output {
    let url = format!("http://{}", daemon.http);
    let arguments = [&["tail", "job", "--url", &url], more].concat();
    finish(jobcast(&arguments, &[]).stdout(Stdio::piped()).stderr(Stdio::piped())).await
}

#[tokio::test]
async fn every_command_explains_itself_with_an_example() {
    let help = run(&["--help"], &[]).await;
    assert!(help.status.success());
    for command in ["serve", "demo", "check", "schema", "emit", "tail", "bench", "healthcheck", "doctor"] {
        assert!(
            text(&help.stdout).contains(&format!("  {command} ")),
            "{command} is missing in {}",
            text(&help.stdout)
        );
        let own = run(&[command, "--help"], &[]).await;
        assert!(own.status.success());
        assert!(text(&own.stdout).contains("Example:\n  "), "{command}: {}", text(&own.stdout));
    }
    assert_eq!(run(&["no-such-command"], &[]).await.status.code(), Some(2));
}

#[tokio::test]
async fn the_manual_and_the_completions_of_every_shell_know_every_command() {
    for arguments in [&["man"][..], &["completions", "bash"], &["completions", "zsh"], &["completions", "fish"]] {
        let output = run(arguments, &[]).await;
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        let said = text(&output.stdout).to_lowercase();
        for command in ["serve", "demo", "check", "schema", "emit", "tail", "bench", "healthcheck", "doctor"] {
            assert!(said.contains(command), "{arguments:?} does not know {command}");
        }
    }
}

#[tokio::test]
async fn the_schema_may_be_run_twice_and_is_what_check_wants() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("jobs.db");
    let schema = run(&["schema", "sqlite"], &[]).await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let mut connection = sqlx::ConnectOptions::connect(&options).await.expect("a database");
    for _ in 0..2 {
        let schema = sqlx::AssertSqlSafe(text(&schema.stdout));
        sqlx::raw_sql(schema).execute(&mut connection).await.expect("the schema");
    }
    let settings = [("source.sqlite.path", path.to_str().expect("a path")), ("ingest.token", "hunter2")];
    let check = run(&["check"], &settings).await;
    assert!(check.status.success(), "{}", text(&check.stdout));
    assert!(text(&check.stdout).contains("[hub]\n") && !text(&check.stdout).contains("hunter2"));

    sqlx::raw_sql(
        "ALTER TABLE job_events DROP COLUMN actor; DROP INDEX job_events_job_seq; DROP TABLE jobcast_changes",
    )
    .execute(&mut connection)
    .await
    .expect("damage");
    let check = run(&["check"], &settings).await;
    assert_eq!(check.status.code(), Some(1));
    let said = text(&check.stdout);
    for part in ["job_events_job_seq", "jobcast_changes", "actor", "mend: "] {
        assert!(said.contains(part), "{part} is missing in {said}");
    }
    let wrong = run(&["check"], &[("hub.ring_events", "0"), ("stream.retry", "0s")]).await;
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("hub.ring_events") && text(&wrong.stderr).contains("stream.retry"));
}

#[tokio::test]
async fn what_emit_appends_beside_a_running_daemon_reaches_its_subscribers() {
    let daemon = Daemon::start().await;
    let database = daemon.database().display().to_string();
    let settings = [("source.sqlite.path", database.as_str())];
    let emit = async |arguments: &[&str]| run(&[&["emit", "job"], arguments].concat(), &settings).await;
    let first = emit(&["step.output", "--step", "s", "--payload", "{\"n\":0}"]).await;
    assert!(first.status.success(), "{}", text(&first.stderr));
    let mut stream = daemon.stream("job").await;
    assert_eq!(stream.event().await.json()["id"], text(&first.stdout).trim());
    let second = emit(&["x"]).await;
    let event = stream.event().await;
    assert_eq!(event.json()["id"], text(&second.stdout).trim());
    assert_eq!(event.json()["payload"], serde_json::json!({}));
    for wrong in [&["stream.complete"][..], &["x", "--payload", "{"], &[""]] {
        let output = emit(wrong).await;
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(!text(&output.stderr).is_empty());
    }
}

#[tokio::test]
async fn healthcheck_succeeds_only_while_the_daemon_is_ready() {
    let mut daemon = Daemon::with(&[("shutdown.grace", "10m")]).await;
    let url = format!("http://{}", daemon.admin);
    assert!(run(&["healthcheck", "--url", &url], &[]).await.status.success());
    daemon.signal("TERM");
    crate::support::eventually("not ready", async || {
        (run(&["healthcheck", "--url", &url], &[]).await.status.code() == Some(1)).then_some(())
    })
    .await;
    daemon.kill();
    let dead = run(&["healthcheck", "--url", &url], &[]).await;
    assert_eq!(dead.status.code(), Some(1));
    assert!(text(&dead.stderr).contains(&url));
}

/// As in a container, whose variables stand for both, while the flag is the daemon's alone.
#[tokio::test]
async fn healthcheck_finds_a_daemon_that_flags_have_started() {
    let daemon = Daemon::start().await;
    let (admin, everywhere) = (daemon.admin.to_string(), "0.0.0.0:8080");
    let settings = [("admin.listen", &*admin), ("http.listen", everywhere)];
    let healthy = run(&["healthcheck"], &settings).await;
    assert!(healthy.status.success(), "{}", text(&healthy.stderr));
    let misspelt = run(&["healthcheck"], &[("admin.listen", "nowhere")]).await;
    assert_eq!(misspelt.status.code(), Some(2));
    assert!(text(&misspelt.stderr).contains("admin.listen"), "{}", text(&misspelt.stderr));
}

#[tokio::test]
async fn tail_follows_a_job_through_kill_9_and_exits_as_the_job_ends() {
    for (status, code) in [("COMPLETED", 0), ("FAILED", 3), ("CANCELLED", 4)] {
        let mut daemon = Daemon::start().await;
        daemon.write("job", 0..50).await;
        let url = format!("http://{}", daemon.http);
        let follow = async {
            let mut command = jobcast(&["tail", "job", "--url", &url, "--json"], &[]);
            finish(command.stdout(Stdio::piped()).stderr(Stdio::piped())).await
        };
        let run_on = async {
            daemon.has_subscribers(1).await;
            daemon.kill();
            daemon.restart().await;
            daemon.write("job", 50..60).await;
            daemon.has_subscribers(1).await;
            daemon.write("job", 60..70).await;
            daemon.set_status("job", status).await;
            daemon
        };
        let (output, daemon) = tokio::join!(follow, run_on);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
        let numbers: Vec<u64> = text(&output.stdout)
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).expect("JSON")["payload"]["n"].as_u64().expect("n")
            })
            .collect();
        assert_eq!(numbers, Vec::from_iter(0..70));
        // from the end of a job that has ended there is nothing but how it ended
        let after = tail(&daemon, &["--from", "e-69"]).await;
        assert_eq!((after.status.code(), text(&after.stdout).as_str()), (Some(code), ""));
    }
}

#[tokio::test]
async fn tail_shows_lines_and_lets_no_job_drive_the_terminal() {
    let daemon = Daemon::start().await;
    let event = serde_json::json!({
        "type": "step.output", "stepId": "compile", "payload": { "line": "red \u{1b}[31m and \u{7} bell\u{1b}]0;title\u{7}" },
    });
    daemon.send("POST", "/runner-jobs/job/events", &event).await;
    daemon.set_status("job", "COMPLETED").await;
    let output = tail(&daemon, &[]).await;
    let shown = text(&output.stdout);
    assert!(shown.contains("compile") && shown.contains("red ") && shown.contains(" bell"), "{shown:?}");
    assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
}

#[tokio::test]
async fn tail_passes_the_colours_of_a_job_to_a_terminal_and_to_nothing_else() {
    let daemon = Daemon::start().await;
    let line = "\u{1b}[31mred\u{1b}[0m \u{1b}[2J\u{1b}]0;title\u{7} end";
    let event = serde_json::json!({ "type": "step.output", "payload": { "line": line } });
    daemon.send("POST", "/runner-jobs/job/events", &event).await;
    daemon.set_status("job", "COMPLETED").await;
    let piped = text(&tail(&daemon, &[]).await.stdout);
    assert!(piped.contains("red \\u{1b}[2J") && !piped.contains('\u{1b}'), "{piped:?}");
    let command = format!("{BINARY} tail job --url http://{}", daemon.http);
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &command, "/dev/null"]).env_remove("NO_COLOR").env("TERM", "xterm").stdin(Stdio::null());
    let shown = text(&finish(terminal.stdout(Stdio::piped()).stderr(Stdio::piped())).await.stdout);
    assert!(shown.contains("\u{1b}[31mred\u{1b}[0m"), "{shown:?}");
    for driving in ["\u{1b}[2J", "\u{1b}]0;", "\u{7}"] {
        assert!(!shown.contains(driving), "{driving:?} in {shown:?}");
    }
}

#[tokio::test]
async fn tail_follows_a_stream_at_any_path_and_knows_how_a_job_ended_there() {
    let paths = [("http.stream_path", "/live/{job_id}/now"), ("http.events_path", "/live/{job_id}/past")];
    let daemon = Daemon::with(&paths).await;
    let event = serde_json::json!([{ "id": "first", "type": "step.output", "payload": { "line": "here" } }]);
    daemon.send("POST", "/live/job/past", &event).await;
    daemon.set_status("job", "FAILED").await;
    let base = format!("http://{}", daemon.http);
    let follow =
        async |arguments: &[&str]| finish(jobcast(arguments, &[]).stdout(Stdio::piped()).stderr(Stdio::piped())).await;
    let (whole, template) = (format!("{base}/live/job/now?a=b"), format!("{base}/live/{{job_id}}/now"));
    for arguments in [
        &["tail", "job", "--url", &base, "--path", "/live/{job_id}/now"][..],
        &["tail", "job", "--url", &whole],
        &["tail", "job", "--url", &template],
    ] {
        let all = follow(arguments).await;
        assert_eq!(all.status.code(), Some(3), "{arguments:?}: {}", text(&all.stderr));
        assert!(text(&all.stdout).contains("here"), "{arguments:?}");
        let none = follow(&[arguments, &["--from", "first"]].concat()).await;
        assert_eq!((none.status.code(), text(&none.stdout).as_str()), (Some(3), ""), "{}", text(&none.stderr));
    }
    let wrong = follow(&["tail", "job", "--url", &base, "--path", "/live/now"]).await;
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("{job_id}"), "{}", text(&wrong.stderr));
}

#[tokio::test]
async fn tail_shows_events_of_any_shape_and_is_not_disturbed_by_statuses() {
    let events = ["null", "7", "[1]", "\"text\"", "{\"id\":\"1\",\"type\":null,\"payload\":null}", "no JSON"];
    let mut body = String::from("event: stream.status\ndata: {\"jobId\":\"job\",\"status\":\"RUNNING\"}\n\n");
    for event in events {
        body += &format!("id: 1\nevent: odd\ndata: {event}\n\nevent: stream.status\ndata: {{}}\n\n");
    }
    body += "event: stream.complete\ndata: {\"jobId\":\"job\",\"status\":\"COMPLETED\"}\n\n";
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let server = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut connection, _) = listener.accept().expect("a connection");
            let mut head = [0; 4096];
            let _ = connection.read(&mut head).expect("a request");
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n{body}");
            connection.write_all(answer.as_bytes()).expect("an answer");
        }
    });
    for more in [&["--json"][..], &[]] {
        let arguments = [&["tail", "job", "--url", &url], more].concat();
        let output = finish(jobcast(&arguments, &[]).stdout(Stdio::piped()).stderr(Stdio::piped())).await;
        let shown = text(&output.stdout);
        let notice = "jobcast: the job is RUNNING\n";
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), notice), "{shown}");
        assert_eq!(shown.lines().count(), events.len(), "{shown}");
        if !more.is_empty() {
            assert_eq!(Vec::from_iter(shown.lines()), events);
        }
    }
    server.join().expect("the server");
}

#[tokio::test]
async fn tail_says_what_is_wrong_and_fails() {
    let daemon = Daemon::start().await;
    let missing = tail(&daemon, &[]).await;
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("job.not_found"), "{}", text(&missing.stderr));
    let admin = format!("http://{}", daemon.admin);
    let wrong = run(&["tail", "job", "--url", &admin], &[]).await;
    assert_eq!(wrong.status.code(), Some(1), "{}", text(&wrong.stderr));
    drop(daemon);
    let nobody = run(&["tail", "job", "--url", &admin], &[]).await;
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains(&admin), "{}", text(&nobody.stderr));
}

#[tokio::test]
async fn bench_counts_every_delivery_and_finds_none_lost_or_repeated() {
    let daemon = Daemon::start().await;
    let url = format!("http://{}", daemon.http);
    let arguments =
        ["bench", "--url", &url, "--subscribers", "50", "--jobs", "2", "--events", "40", "--rate", "200", "--json"];
    let output = run(&arguments, &[]).await;
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&report["delivered"], &report["lost"], &report["repeated"]), (&2000.into(), &0.into(), &0.into()));
    daemon.has_subscribers(0).await;
}

#[tokio::test]
async fn bench_counts_the_events_of_each_of_the_jobs_that_a_stream_watches() {
    let daemon = Daemon::start().await;
    let url = format!("http://{}", daemon.http);
    let load =
        ["bench", "--url", &url, "--subscribers", "20", "--jobs", "10", "--events", "10", "--rate", "200", "--json"];
    for watched in ["5", "10"] {
        let output = run(&[&load[..], &["--watch", watched]].concat(), &[]).await;
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let expected = 20 * 10 * watched.parse::<u64>().expect("a number");
        assert_eq!((&report["delivered"], &report["lost"]), (&expected.into(), &0.into()));
    }
    let refused = run(&[&load[..], &["--watch", "11"]].concat(), &[]).await;
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
}
