//! The recipes: each is served from its own settings, and tried with rows or entries as the product writes them.

mod autogpt;
mod awx;
mod bullmq;
mod cluster;
mod coder;
mod concourse;
mod dify;
mod expiry;
mod hatchet;
mod kestra;
mod llm_answer;
mod lobehub;
mod posthog;
mod prefect;
mod product;
mod woodpecker;

use crate::support::daemon::{run, stream_path};
use crate::support::{Cluster, Daemon, Redis, Stream};
use redis::aio::MultiplexedConnection;
use serde_json::Value;
use std::path::Path;

/// The path of a file of a recipe, the very one that an operator takes.
fn file_of(recipe: &str, name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes").join(recipe).join(name);
    assert!(path.exists(), "{}", path.display());
    path.display().to_string()
}

fn settings(recipe: &str) -> String {
    file_of(recipe, "jobcast.toml")
}

/// Servers that hold the keys of a recipe, as its writer finds them.
trait Servers {
    fn url(&self) -> String;

    /// Connects to the server that has this key.
    async fn link(&self, key: &str) -> MultiplexedConnection;
}

impl Servers for Redis {
    fn url(&self) -> String {
        self.url()
    }

    async fn link(&self, _: &str) -> MultiplexedConnection {
        self.connect().await
    }
}

impl Servers for Cluster {
    fn url(&self) -> String {
        self.url()
    }

    async fn link(&self, key: &str) -> MultiplexedConnection {
        self.nodes[self.owner(key).await].connect().await
    }
}

/// Serves a recipe from these servers.
async fn serve(recipe: &str, servers: &impl Servers) -> Daemon {
    Daemon::with(&[("config", &settings(recipe)), ("source.redis.url", &servers.url())]).await
}

/// Adds an entry of names and values.
async fn add(to: &mut MultiplexedConnection, key: &str, fields: &[&str]) {
    let mut add = redis::cmd("XADD");
    add.arg(key).arg("*").arg(fields);
    add.exec_async(to).await.expect("XADD");
}

/// The rest of a stream: type and payload of each event, and the status at the end.
async fn rest(stream: &mut Stream) -> (Vec<(String, Value)>, String) {
    let mut messages = stream.rest().await;
    let end = messages.pop().expect("an end");
    assert!(end.is("stream.complete"), "{end:?} after {messages:?}");
    let read = |data: Value| (data["type"].as_str().expect("a type").to_string(), data["payload"].clone());
    let events = messages.iter().map(|message| read(message.json())).collect();
    (events, end.json()["status"].as_str().expect("a status").to_string())
}

/// Asserts that who watched and who comes later are told the same, that the end is one for who comes back with it, and
/// that `jobcast check` finds nothing to mend.
async fn is_told(
    recipe: &str,
    servers: &impl Servers,
    daemon: &Daemon,
    job: &str,
    live: (Vec<(String, Value)>, String),
    expected: (&[(&str, Value)], &str),
) {
    let (events, status) = expected;
    let events: Vec<(String, Value)> =
        events.iter().map(|(kind, payload)| (kind.to_string(), payload.clone())).collect();
    assert_eq!(live, (events.clone(), status.to_string()));
    assert_eq!(rest(&mut daemon.stream(job).await).await, live, "who comes later");
    let all = daemon.stream(job).await.rest().await;
    let last = all.last().expect("an end").cursor().to_string();
    let back = Stream::open(daemon.http, &stream_path(job), &[("Last-Event-ID", &last)]).await;
    assert_eq!(back.head.status, 204);
    let checked = run(&["check"], &[("config", &settings(recipe)), ("source.redis.url", &servers.url())]).await;
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success(), "{said}");
}
