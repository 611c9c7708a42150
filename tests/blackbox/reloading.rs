//! SIGHUP and changed files: the settings that are taken at once, and those that wait for a restart.

use crate::support::Daemon;
use crate::support::http::request;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A settings file, and the folder that it is in.
fn file(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("jobcast.toml");
    fs::write(&path, text).expect("a file");
    (folder, path)
}

async fn daemon_with(path: &Path) -> Daemon {
    Daemon::with(&[("config", &path.display().to_string())]).await
}

/// The origin that an answer allows, if it is asked from this one.
async fn allowed_origin(daemon: &Daemon, origin: &str) -> Option<String> {
    let answer = request(daemon.http, "GET", "/runner-jobs", &[("Origin", origin)], b"").await;
    answer.header("Access-Control-Allow-Origin").map(str::to_string)
}

#[tokio::test]
async fn a_reload_changes_log_cors_and_limits_without_closing_a_stream_and_names_what_needs_a_restart() {
    let (_folder, path) = file("[http]\nmax_connections = 1\n");
    let daemon = daemon_with(&path).await;
    daemon.write("job", 0..1).await;
    let mut open = daemon.stream("job").await;
    assert_eq!(open.event().await.number(), 0);
    assert!(daemon.stream("job").await.event().await.is("stream.error"), "the limit holds");
    let page = "https://app.example";
    assert_eq!(allowed_origin(&daemon, page).await, None);

    let new = "[http]\nmax_connections = 2\ncors.origins = [\"https://app.example\"]\n[log]\nlevel = \"debug\"\n\
               [stream]\nheartbeat = \"7s\"\n";
    fs::write(&path, new).expect("a file");
    daemon.signal("HUP");
    let line = daemon.logs(&["settings reloaded", "SIGHUP"]).await;
    let (reloaded, waiting) = line.split_once("need_restart").expect("what needs a restart");
    for key in ["http.max_connections", "http.cors.origins", "log.level"] {
        assert!(reloaded.contains(key) && !waiting.contains(key), "{line}");
    }
    assert!(waiting.contains("stream.heartbeat") && !reloaded.contains("stream.heartbeat"), "{line}");
    let shown: toml::Table = daemon.ask_admin("/settings").await.text().parse().expect("the settings");
    let (limit, origins) = (&shown["http"]["max_connections"], &shown["http"]["cors"]["origins"]);
    assert_eq!((limit.as_integer(), origins[0].as_str()), (Some(2), Some(page)));
    assert_ne!(shown["stream"]["heartbeat"].as_str(), Some("7s"), "it is not in effect");
    assert_eq!(daemon.stream("job").await.event().await.number(), 0);
    assert_eq!(allowed_origin(&daemon, page).await.as_deref(), Some(page));
    daemon.logs(&["INFO", "stream begins"]).await;
    daemon.write("job", 1..2).await;
    assert_eq!(open.event().await.number(), 1);

    // Without a signal: the file is looked at.
    fs::write(&path, new.replace("cors.origins", "cors.credentials = false\n#")).expect("a file");
    daemon.logs(&["settings reloaded", "a changed file", "http.cors.origins"]).await;
    assert_eq!(allowed_origin(&daemon, page).await, None);
}

#[tokio::test]
async fn a_file_that_cannot_be_used_changes_nothing_and_the_next_one_counts() {
    let (_folder, path) = file("[http.cors]\norigins = [\"https://a.example\"]\n");
    let daemon = daemon_with(&path).await;
    fs::write(&path, "[http]\nmax_connections = 0\n[http.cors]\norigins = [\"https://b.example\"]\n").expect("a file");
    daemon.signal("HUP");
    daemon.logs(&["ERROR", "not reloaded", "http.max_connections", "at least 1"]).await;
    assert_eq!(allowed_origin(&daemon, "https://a.example").await.as_deref(), Some("https://a.example"));
    assert_eq!(allowed_origin(&daemon, "https://b.example").await, None);
    fs::write(&path, "[http.cors]\norigins = [\"https://b.example\"]\n").expect("a file");
    daemon.signal("HUP");
    daemon.logs(&["settings reloaded", "http.cors.origins"]).await;
    assert_eq!(allowed_origin(&daemon, "https://b.example").await.as_deref(), Some("https://b.example"));
}

#[tokio::test]
async fn a_secret_in_a_file_is_read_again_and_never_told() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("token");
    fs::write(&path, "first-token").expect("a file");
    let daemon = Daemon::with(&[("ingest.token_file", &path.display().to_string())]).await;
    fs::write(&path, "second-token-of-another-length").expect("a file");
    daemon.logs(&["a changed file", "need_restart", "ingest.token"]).await;
    assert!(!daemon.log().contains("-token"), "{}", daemon.log());
}
