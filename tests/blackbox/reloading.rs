//! SIGHUP and changed files: the settings that are taken at once, and those that wait for a restart.

use crate::auth::{SECRET, with_tokens};
use crate::support::daemon::stream_path;
use crate::support::http::request;
use crate::support::tls::keep;
use crate::support::token::{bearer, claims};
use crate::support::{Daemon, Signer, Stream, eventually};
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

/// A stream by a token of this signer, which must be let in and get the job's first event.
async fn watched_by(daemon: &Daemon, signer: &Signer) -> Stream {
    let token = bearer(&signer.token(&claims(&["job"])));
    let mut stream = Stream::open(daemon.http, &stream_path("job"), &[("Authorization", &token)]).await;
    assert_eq!(stream.head.status, 200, "{}", stream.head.text());
    assert_eq!(stream.event().await.number(), 0);
    stream
}

/// The stream of the old key ends; from then on its tokens are refused, and those of the new key let in.
async fn has_changed_keys(daemon: &Daemon, mut open: Stream, old: &Signer, new: &Signer) -> Stream {
    let told = open.rest().await;
    assert!(told.len() == 1 && told[0].is("stream.bye"), "{told:?}");
    assert_eq!(told[0].json()["reason"], "revoked");
    let token = bearer(&old.token(&claims(&["job"])));
    for path in [stream_path("job"), "/runner-jobs/job/events".into()] {
        let answer = request(daemon.http, "GET", &path, &[("Authorization", &token)], b"").await;
        assert_eq!(answer.code(), "auth.invalid", "{path}");
    }
    watched_by(daemon, new).await
}

#[tokio::test]
async fn a_key_whose_file_is_replaced_counts_without_a_restart_and_streams_of_the_old_one_end() {
    let folder = tempfile::tempdir().expect("a directory");
    let signers = [Signer::ec(), Signer::ed(), Signer::rsa()];
    let path = keep(&folder, "key.pem", &signers[0].pem());
    let daemon = with_tokens(&[("auth.jwt.key_file", &path), ("auth.recheck", "2s")]).await;
    daemon.write("job", 0..1).await;
    let open = watched_by(&daemon, &signers[0]).await;
    // A file that holds no key changes nothing.
    fs::write(&path, "hunter2").expect("a file");
    daemon.signal("HUP");
    daemon.logs(&["ERROR", "not reloaded", "auth.jwt.key_file"]).await;
    assert!(!daemon.log().contains("hunter2"), "{}", daemon.log());
    let also_open = watched_by(&daemon, &signers[0]).await;
    // By a signal, and then without one.
    fs::write(&path, signers[1].pem()).expect("a file");
    daemon.signal("HUP");
    let second = has_changed_keys(&daemon, open, &signers[0], &signers[1]).await;
    drop(also_open);
    fs::write(&path, signers[2].pem()).expect("a file");
    let mut third = has_changed_keys(&daemon, second, &signers[1], &signers[2]).await;
    // The same key once more ends nothing.
    daemon.signal("HUP");
    eventually("the last reload", async || {
        let log = daemon.log();
        let by_signal = log.lines().filter(|line| line.contains("settings reloaded") && line.contains("SIGHUP"));
        (by_signal.count() == 2).then_some(())
    })
    .await;
    daemon.write("job", 1..2).await;
    assert_eq!(third.event().await.number(), 1);
}

#[tokio::test]
async fn a_secret_whose_file_is_replaced_counts_without_a_restart_and_streams_of_the_old_one_end() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = keep(&folder, "secret", SECRET);
    let daemon = with_tokens(&[("auth.jwt.secret_file", &path), ("auth.recheck", "2s")]).await;
    daemon.write("job", 0..1).await;
    let (old, new) = (Signer::secret(SECRET), Signer::secret("another secret of the tests, 32 bytes long"));
    let open = watched_by(&daemon, &old).await;
    fs::write(&path, "another secret of the tests, 32 bytes long\n").expect("a file");
    let mut open = has_changed_keys(&daemon, open, &old, &new).await;
    daemon.logs(&["settings reloaded", "a changed file", "auth.jwt.secret"]).await;
    assert!(!daemon.log().contains("of the tests"), "{}", daemon.log());
    daemon.write("job", 1..2).await;
    assert_eq!(open.event().await.number(), 1);
}

#[tokio::test]
async fn a_key_in_the_settings_file_may_move_to_another_file_but_not_to_a_key_set() {
    let folder = tempfile::tempdir().expect("a directory");
    let (old, new) = (Signer::ec(), Signer::ed());
    let [first, second] = [("old.pem", &old), ("new.pem", &new)].map(|(name, key)| keep(&folder, name, &key.pem()));
    let of_key = |file: &str| format!("[auth]\nmode = \"jwt\"\nrecheck = \"2s\"\njwt.key_file = \"{file}\"\n");
    let (_settings, path) = file(&of_key(&first));
    let daemon = daemon_with(&path).await;
    daemon.write("job", 0..1).await;
    let open = watched_by(&daemon, &old).await;
    fs::write(&path, of_key(&second)).expect("a file");
    let mut open = has_changed_keys(&daemon, open, &old, &new).await;
    let line = daemon.logs(&["settings reloaded", "auth.jwt.key_file"]).await;
    assert!(!line.contains("need_restart"), "{line}");
    let key_set =
        "[auth]\nmode = \"jwt\"\nrecheck = \"2s\"\njwt.jwks_url = \"http://127.0.0.1:9/\"\njwt.issuer = \"x\"\n";
    fs::write(&path, key_set).expect("a file");
    daemon.logs(&["ERROR", "not reloaded", "auth.jwt", "restart"]).await;
    daemon.write("job", 1..2).await;
    assert_eq!(open.event().await.number(), 1);
}
