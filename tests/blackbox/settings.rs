//! Settings that cannot work end the start, which says what is wrong, where, and what to do.

use crate::support::Daemon;
use crate::support::daemon::{finish, jobcast, run};
use std::process::{Output, Stdio};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn serve_with(settings: &[(&str, &str)]) -> Output {
    let mut all = vec![("http.listen", "127.0.0.1:0"), ("admin.listen", "127.0.0.1:0")];
    all.extend_from_slice(settings);
    run(&["serve"], &all).await
}

#[tokio::test]
async fn wrong_settings_end_the_start_with_exit_2_the_key_and_where_it_stood() {
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("jobcast.toml");
    std::fs::write(&file, "[http]\nlisten = \"nowhere\"\n\n[hub]\nring_event = 5\n").expect("a file");
    let output = run(&["serve", "--config", &file.display().to_string()], &[("stream.retry", "0s")]).await;
    assert_eq!(output.status.code(), Some(2));
    let said = said(&output);
    for part in ["http.listen", "jobcast.toml:2", "hub.ring_event,", "jobcast.toml:5", "JOBCAST_STREAM__RETRY"] {
        assert!(said.contains(part), "{part} is missing in {said}");
    }
    for (key, value) in [
        ("hub.ring_events", "0"),
        ("hub.ring_bytes", "lots"),
        ("stream.heartbeat", "-1s"),
        ("http.workers", "many"),
        ("http.stream_path", "/no-job"),
        ("source.kind", "oracle"),
        ("auth.mode", "jwt"),
        ("log.level", "loud?"),
        ("no.such_key", "1"),
    ] {
        let output = serve_with(&[(key, value)]).await;
        assert_eq!(output.status.code(), Some(2), "{key}={value}");
        let said = self::said(&output);
        assert!(said.contains(key) && said.contains("JOBCAST_"), "{said}");
    }
    let missing = run(&["serve", "--config", "/no/such/file.toml"], &[]).await;
    assert_eq!(missing.status.code(), Some(2));
    assert!(self::said(&missing).contains("/no/such/file.toml"));
    assert_eq!(run(&["serve", "--port", "7"], &[]).await.status.code(), Some(2));
}

#[tokio::test]
async fn nobody_is_let_in_from_outside_unless_that_is_written_out() {
    let output = serve_with(&[("http.listen", "0.0.0.0:0")]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("auth.allow_anonymous"));
    let open = Daemon::with(&[("http.listen", "0.0.0.0:0"), ("auth.allow_anonymous", "true")]).await;
    // and even then nobody writes
    let to = std::net::SocketAddr::from(([127, 0, 0, 1], open.http.port()));
    let headers = [("Content-Type", "application/json")];
    let path = "/runner-jobs/job/events";
    let answer = crate::support::http::request(to, "POST", path, &headers, b"{\"type\":\"x\"}").await;
    assert_eq!(answer.code(), "ingest.disabled");
}

#[tokio::test]
async fn a_port_in_use_is_said_with_what_to_do() {
    let daemon = Daemon::start().await;
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("jobs.db").display().to_string();
    for (key, address) in [("http.listen", daemon.http), ("admin.listen", daemon.admin)] {
        let output = serve_with(&[("source.sqlite.path", &path), (key, &address.to_string())]).await;
        assert_eq!(output.status.code(), Some(1));
        let said = said(&output);
        assert!(said.contains(&address.to_string()) && said.contains(key) && said.contains("in use"), "{said}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_said_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a directory");
    let corrupt = folder.path().join("corrupt.db");
    std::fs::write(&corrupt, vec![b'x'; 8192]).expect("a file");
    let torn = folder.path().join("torn.db");
    {
        let made = run(&["emit", "job", "x"], &[("source.sqlite.path", &torn.display().to_string())]).await;
        assert!(made.status.success(), "{}", said(&made));
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&torn);
        let mut connection = sqlx::ConnectOptions::connect(&options).await.expect("a database");
        // all of it out of the log into the file itself
        sqlx::raw_sql("PRAGMA journal_mode = DELETE").execute(&mut connection).await.expect("one file");
        sqlx::Connection::close(connection).await.expect("closed");
        let mut bytes = std::fs::read(&torn).expect("a database");
        let half = bytes.len() / 2;
        bytes[100..half].fill(0x5a);
        std::fs::write(&torn, bytes).expect("a file");
    }
    let foreign = folder.path().join("foreign.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&foreign).create_if_missing(true);
    let mut connection = sqlx::ConnectOptions::connect(&options).await.expect("a database");
    sqlx::raw_sql("CREATE TABLE job_events (number INTEGER)").execute(&mut connection).await.expect("a table");
    drop(connection);
    for (path, part) in [
        (corrupt, "restore a backup"),
        (torn, "restore a backup"),
        (foreign, "jobcast schema sqlite"),
        (folder.path().join("no/such/directory/jobs.db"), "directory"),
        (folder.path().to_path_buf(), "source.sqlite.path"),
    ] {
        let output = serve_with(&[("source.sqlite.path", &path.display().to_string())]).await;
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&path.display().to_string()) && said.contains(part), "{part:?} is missing in: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_to_is_said_with_what_to_do() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a directory");
    let closed = folder.path().join("closed");
    std::fs::create_dir(&closed).expect("a directory");
    for (path, mode) in [(folder.path(), 0o755), (&*closed, 0o555)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("rights");
    }
    // rights do not bind root: it is done as nobody
    let path = closed.join("jobs.db").display().to_string();
    let settings = [("http.listen", "127.0.0.1:0"), ("admin.listen", "127.0.0.1:0"), ("source.sqlite.path", &path)];
    let settings: Vec<_> = settings.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    let direct = jobcast(&["serve"], &settings);
    let mut command = std::process::Command::new("setpriv");
    let binary = folder.path().join("jobcast");
    std::fs::copy(direct.get_program(), &binary).expect("a copy that nobody may run");
    if is_root {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    }
    command.arg(&binary).arg("serve");
    for (name, value) in direct.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = finish(command.stdout(Stdio::null()).stderr(Stdio::piped())).await;
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&path) && said.contains("may write"), "{said}");
}
