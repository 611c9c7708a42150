//! Secrets, in whatever form they come, which nothing that Jobcast writes may hold.

use super::{SECRET, ask, with_tokens};
use crate::support::daemon::run;
use crate::support::http::request;
use crate::support::tls::keep;
use crate::support::token::claims;
use crate::support::web::{Asked, Reply};
use crate::support::{Daemon, Signer, Web};

/// Everything that an operator or an outsider gets to read of a daemon.
async fn written(daemon: &Daemon) -> String {
    let mut all = daemon.log();
    for path in ["/metrics", "/settings", "/debug/channels", "/readyz"] {
        all += &daemon.ask_admin(path).await.text();
    }
    all
}

#[tokio::test]
async fn no_token_cookie_or_secret_is_ever_written_down() {
    let daemon = with_tokens(&[("log.level", "trace"), ("auth.jwt.cookie", "session")]).await;
    daemon.write("job", 0..1).await;
    let good = Signer::secret(SECRET).token(&claims(&["*"]));
    let bad = Signer::secret("hunter2-hunter2-hunter2-hunter2-32").token(&claims(&["*"]));
    let signature = |token: &str| token.rsplit('.').next().expect("a signature").to_string();
    let mut told = String::new();
    for token in [good.as_str(), &bad, "hunter2-is-no-token"] {
        for path in ["/runner-jobs/job/events", "/runner-jobs/job/events/stream", "/runner-jobs", "/nothing"] {
            let query = format!("{path}?access_token={token}");
            told += &ask(&daemon, &query, &[]).await.text();
            told += &ask(&daemon, path, &[("Authorization", &format!("Bearer {token}"))]).await.text();
            told += &ask(&daemon, path, &[("Cookie", &format!("session={token}"))]).await.text();
            told += &request(daemon.http, "POST", &query, &[], b"{}").await.text();
        }
    }
    let written = written(&daemon).await + &told;
    for secret in [SECRET, "hunter2", &signature(&good), &signature(&bad), &good, &bad] {
        assert!(!written.contains(secret), "{secret} was written down");
    }
}

#[tokio::test]
async fn what_an_api_is_asked_with_and_a_password_in_its_address_are_never_written_down() {
    let web =
        Web::start(
            |asked: &Asked| {
                if asked.header("x-job-id") == Some("down") { Reply::status(500) } else { Reply::status(200) }
            },
        )
        .await;
    let folder = tempfile::tempdir().expect("a directory");
    let url = format!("http://user:hunter2-in-url@{}/hunter2-in-path?key=hunter2-in-query", web.address);
    let file = keep(&folder, "url", &format!("{url}\n"));
    for given in [("auth.forward.url", url.as_str()), ("auth.forward.url_file", file.as_str())] {
        let daemon = Daemon::with(&[("auth.mode", "forward"), given, ("log.level", "trace")]).await;
        daemon.write("job", 0..1).await;
        let headers = [("Cookie", "user=hunter2-cookie"), ("Authorization", "Bearer hunter2-header")];
        for (job, status) in [("job", 200), ("down", 503)] {
            let path = format!("/runner-jobs/{job}/events?access_token=hunter2-address");
            assert_eq!(request(daemon.http, "GET", &path, &headers, b"").await.status, status);
        }
        let written = written(&daemon).await;
        assert!(!written.contains("hunter2"), "{written}");
        assert!(written.contains(&web.address.ip().to_string()), "an operator has to know which host it is");
        let database = folder.path().join("check.db").display().to_string();
        let settings = [("auth.mode", "forward"), given, ("source.sqlite.path", &database)];
        let checked = run(&["check"], &settings).await;
        let said = format!("{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
        assert!(!said.contains("hunter2") && said.contains(&web.address.to_string()), "{said}");
    }
    let secret = keep(&folder, "secret", "hunter2-and-some-more-to-be-long-enough\n");
    let settings = [("auth.mode", "jwt"), ("auth.jwt.secret_file", secret.as_str()), ("auth.recheck", "never")];
    let wrong = run(&["check"], &settings).await;
    let said = format!("{}{}", String::from_utf8_lossy(&wrong.stdout), String::from_utf8_lossy(&wrong.stderr));
    assert!(said.contains("auth.recheck") && !said.contains("hunter2"), "{said}");
}
