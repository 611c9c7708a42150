//! Who may watch, on every address that shows a job or an event.

mod documented;
mod forward;
mod keys;
mod secrets;
mod sets;
mod streams;
mod tokens;

use crate::support::http::request;
use crate::support::token::bearer;
use crate::support::{Answer, Daemon, Stream};

/// Long enough for HS256.
pub const SECRET: &str = "a secret of the tests, with 32 bytes and more";
/// Addresses that everybody may see, since they show nothing of any job.
const PUBLIC: [&str; 4] = ["/", "/jobcast.js", "/jobcast-log.js", "/openapi.json"];

/// A daemon that takes tokens, signed by a secret unless the settings say otherwise.
pub async fn with_tokens(settings: &[(&str, &str)]) -> Daemon {
    let given = ["auth.jwt.key_file", "auth.jwt.jwks_url", "auth.jwt.secret", "auth.jwt.secret_file"];
    let mut all = vec![("auth.mode", "jwt")];
    if !settings.iter().any(|(key, _)| given.contains(key)) {
        all.push(("auth.jwt.secret", SECRET));
    }
    all.extend_from_slice(settings);
    Daemon::with(&all).await
}

/// Every address that shows a job or an event, as the daemon itself describes them, with this job in it.
async fn addresses(daemon: &Daemon, job: &str) -> Vec<String> {
    let described = daemon.get("/openapi.json").await.json();
    let paths = described["paths"].as_object().expect("paths").iter();
    let shown = paths.filter(|(path, methods)| methods.get("get").is_some() && !PUBLIC.contains(&path.as_str()));
    let all = shown.map(|(path, _)| {
        let is_of_set = path.contains("/events") && !path.contains("{job_id}");
        let query = if is_of_set { format!("?job={job}") } else { String::new() };
        path.replace("{job_id}", job) + &query
    });
    let all: Vec<String> = all.collect();
    assert!(all.len() >= 4, "{all:?}");
    all
}

/// Asks for an address, and reads the body only of a refusal.
async fn ask(daemon: &Daemon, path: &str, headers: &[(&str, &str)]) -> Answer {
    Stream::open(daemon.http, path, headers).await.head
}

/// Asks for an address with a token in `Authorization`.
async fn ask_with(daemon: &Daemon, path: &str, token: &str) -> Answer {
    ask(daemon, path, &[("Authorization", &bearer(token))]).await
}

/// The status of a refusal, and its code.
fn refusal(answer: &Answer) -> (u16, String) {
    if answer.status < 400 { (answer.status, String::new()) } else { (answer.status, answer.code()) }
}

/// A HEAD, which tells as much as a GET.
async fn head(daemon: &Daemon, path: &str, token: &str) -> Answer {
    request(daemon.http, "HEAD", path, &[("Authorization", &bearer(token))], b"").await
}
