//! `jobcast doctor`, through an nginx that is set up wrongly in one place.

use crate::support::daemon::run;
use crate::support::http2::Secure;
use crate::support::proxy::{Kind, Proxy};
use crate::support::tls::{Authority, keep};
use crate::support::{Daemon, address};
use std::net::SocketAddr;

/// Report of the doctor and its exit code.
async fn examine(url: &str, more: &[&str]) -> (String, Option<i32>) {
    let output = run(&[&["doctor", url], more].concat(), &[]).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (said + &String::from_utf8_lossy(&output.stderr), output.status.code())
}

/// A daemon with a job that is running, whose settings these are.
async fn daemon(settings: &[(&str, &str)]) -> Daemon {
    let daemon = Daemon::with(settings).await;
    daemon.write("job", 0..3).await;
    daemon.set_status("job", "RUNNING").await;
    daemon
}

/// Examines through nginx with these changes to its file.
async fn examine_through(daemon: &Daemon, changes: &[(&str, &str)], more: &[&str]) -> (String, Option<i32>) {
    let proxy = Proxy::start_changed(Kind::Nginx, [daemon, daemon], changes).await;
    examine(&proxy.url(), more).await
}

#[tokio::test]
async fn the_doctor_finds_nothing_wrong_with_the_proxy_that_we_recommend() {
    let daemon = daemon(&[("stream.heartbeat", "1s")]).await;
    let (said, code) = examine_through(&daemon, &[], &[]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("ok       answer: Jobcast answers for the job job"), "{said}");
    assert!(said.contains("ok       idle: the stream begins at once"), "{said}");
    // over plain HTTP there is one thing to say, and it is no failure
    assert!(said.contains("warning  connections: browsers speak HTTP/1.1"), "{said}");
    assert!(said.contains("nginx       listen 443 ssl http2;"), "{said}");
}

#[tokio::test]
async fn the_doctor_names_buffering() {
    let daemon = daemon(&[("stream.heartbeat", "1s")]).await;
    // nginx holds back what it asked for over HTTP/1.0; chunks it passes on
    let wrong = [
        ("proxy_http_version 1.1;", "proxy_http_version 1.0;"),
        ("proxy_buffering off;", "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"),
    ];
    let (said, code) = examine_through(&daemon, &wrong, &["--watch", "6"]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("problem  buffering: nothing of the stream came"), "{said}");
    for mend in ["proxy_buffering off;", "flush_interval -1", "option http-no-delay", "flushInterval", "Cloudflare"] {
        assert!(said.contains(mend), "{mend} is missing in {said}");
    }
}

#[tokio::test]
async fn the_doctor_names_compression() {
    let daemon = daemon(&[("stream.heartbeat", "1s")]).await;
    let wrong = [("gzip off;", "gzip on; gzip_types text/event-stream; gzip_min_length 0;")];
    let (said, code) = examine_through(&daemon, &wrong, &["--watch", "4"]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("problem  compression: the stream is compressed by a proxy (gzip)"), "{said}");
    assert!(said.contains("nginx       gzip off;"), "{said}");
}

#[tokio::test]
async fn the_doctor_names_a_proxy_that_cuts_idle_streams() {
    let daemon = daemon(&[]).await;
    let wrong = [("proxy_read_timeout 90s;", "proxy_read_timeout 5s;")];
    let (said, code) = examine_through(&daemon, &wrong, &[]).await;
    assert_eq!(code, Some(1), "{said}");
    let line = said.lines().find(|line| line.starts_with("problem  idle: ")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains("cut after 5.") || line.contains("cut after 4."), "{line}");
    assert!(said.contains("proxy_read_timeout 90s;") && said.contains("stream.heartbeat = "), "{said}");
}

#[tokio::test]
async fn the_doctor_names_a_page_of_another_origin_that_may_not_watch() {
    let origin = ["--origin", "https://app.example.org", "--watch", "4"];
    let closed = daemon(&[("stream.heartbeat", "1s")]).await;
    let (said, code) = examine_through(&closed, &[], &origin).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("problem  cors: pages of https://app.example.org may not watch"), "{said}");
    assert!(said.contains("http.cors.origins = [\"https://app.example.org\"]"), "{said}");

    let open = daemon(&[("stream.heartbeat", "1s"), ("http.cors.origins", "https://app.example.org")]).await;
    let (said, code) = examine_through(&open, &[], &origin).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("ok       cors: "), "{said}");
    let twice = [("gzip off;", "gzip off; add_header Access-Control-Allow-Origin https://app.example.org;")];
    let (said, code) = examine_through(&open, &twice, &origin).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("comes twice"), "{said}");
}

#[tokio::test]
async fn the_doctor_names_a_head_that_a_proxy_has_changed() {
    let daemon = daemon(&[("stream.heartbeat", "1s")]).await;
    let wrong = [("gzip off;", "gzip off; proxy_hide_header Cache-Control;")];
    let (said, code) = examine_through(&daemon, &wrong, &[]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("problem  head: Cache-Control is \"\""), "{said}");
}

#[tokio::test]
async fn the_doctor_tells_no_answer_from_a_wrong_one_and_from_a_certificate_that_nobody_trusts() {
    let daemon = daemon(&[]).await;
    let proxy = Proxy::start(Kind::Nginx, [&daemon, &daemon]).await;
    let nobody = format!("http://{}", address::free());
    let (said, code) = examine(&nobody, &[]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("problem  answer: ") && said.contains("does not answer"), "{said}");

    let (said, code) = examine(&format!("http://{}", daemon.admin), &[]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("problem  refused: ") && said.contains("404"), "{said}");

    let (said, code) = examine(&format!("https://{}/live", proxy.https), &[]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("problem  tls: ") && said.contains("certificate"), "{said}");

    let (said, code) = examine("app.example.org", &[]).await;
    assert_eq!(code, Some(2), "{said}");
}

/// Examines a server whose certificate is for `localhost`, below `path`, with its authority.
async fn examine_tls(server: SocketAddr, authority: &Authority, path: &str) -> (String, Option<i32>) {
    let folder = tempfile::tempdir().expect("a directory");
    let ca = keep(&folder, "ca.pem", &authority.pem());
    let url = format!("https://localhost:{}{path}", address::localhost_to(server).await);
    examine(&url, &["--ca", &ca]).await
}

#[tokio::test]
async fn the_doctor_is_content_with_http_2_over_tls_whoever_speaks_it() {
    let daemon = daemon(&[("stream.heartbeat", "1s")]).await;
    let proxy = Proxy::start(Kind::Nginx, [&daemon, &daemon]).await;
    let secure = Secure::start(&[("stream.heartbeat", "1s")]).await;
    let client = secure.client().await;
    client.write("job", 0..3).await;
    let running = client.request("PUT", "/runner-jobs/job", br#"{"status":"RUNNING"}"#).await.expect("an answer");
    assert_eq!(running.status(), 200);
    for (server, authority, path) in
        [(proxy.https, &proxy.authority, "/live"), (secure.daemon.http, &secure.authority, "")]
    {
        let (said, code) = examine_tls(server, authority, path).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("ok       connections: browsers speak HTTP/2"), "{said}");
        assert!(said.contains("ok       answer: ") && said.contains("ok       idle: "), "{said}");
        assert!(said.lines().all(|line| line.starts_with("ok ")), "{said}");
    }
}

#[tokio::test]
async fn the_doctor_names_the_six_connections_of_tls_without_http_2() {
    let daemon = daemon(&[("stream.heartbeat", "1s")]).await;
    let wrong = [("8443 ssl http2;", "8443 ssl;")];
    let proxy = Proxy::start_changed(Kind::Nginx, [&daemon, &daemon], &wrong).await;
    let (said, code) = examine_tls(proxy.https, &proxy.authority, "/live").await;
    assert_eq!(code, Some(0), "{said}");
    let warned = "warning  connections: browsers speak HTTP/1.1 here (the TLS handshake did not choose HTTP/2 (h2)): six \
                  connections to a host";
    assert!(said.contains(warned), "{said}");
    assert!(said.contains("nginx       listen 443 ssl http2;") && said.contains("ok       idle: "), "{said}");
}
