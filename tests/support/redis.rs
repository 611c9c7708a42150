//! Redis servers of the tests' own, on throw-away directories: one alone, a primary with a replica and Sentinels, a
//! Cluster. Each is gone with its handle.

use super::address::{self, host};
use super::{PATIENCE, eventually};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue, Pipeline, RedisResult, Value};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// One `redis-server` process, whatever it is used as.
pub struct Redis {
    child: Child,
    folder: TempDir,
    pub port: u16,
    password: Option<String>,
}

impl Redis {
    /// Starts one with an append-only file, so that it knows after a crash what it had acknowledged.
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// Starts one with more lines in its configuration.
    pub async fn with(settings: &str) -> Self {
        let port = address::port();
        let server = Self::spawn(port, &format!("appendonly yes\nappendfsync always\n{settings}"), &[]);
        server.is_up().await;
        server
    }

    fn spawn(port: u16, settings: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join("redis.conf");
        let settings = format!(
            "bind {host}\nport {port}\ndir {}\nlogfile log\nsave \"\"\nrepl-diskless-sync-delay 0\n{settings}\n",
            folder.path().display(),
            host = host()
        );
        std::fs::write(&file, settings).expect("settings");
        let child = run(&file, arguments);
        Self { child, folder, port, password: None }
    }

    async fn is_up(&self) {
        eventually("Redis to answer", async || {
            let mut link = self.try_connect().await?;
            link.send_packed_command(&redis::cmd("PING"))
                .await
                .ok()
                .filter(|pong| !matches!(pong, Value::ServerError(_)))
        })
        .await;
    }

    /// `kill -9`
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// SIGTERM, and waits until it has gone.
    pub fn stop(&mut self) {
        self.signal("TERM");
        self.child.wait().expect("wait");
    }

    pub fn signal(&self, name: &str) {
        let done = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.child.id())]).status();
        assert!(done.expect("sh").success());
    }

    /// Once more, on the same directory.
    pub async fn restart(&mut self) {
        self.restart_with(&[]).await;
    }

    pub async fn restart_with(&mut self, arguments: &[&str]) {
        self.child = run(&self.folder.path().join("redis.conf"), arguments);
        self.is_up().await;
    }

    /// Sets the password that clients must send from now on.
    pub async fn require(&mut self, password: &str) {
        self.ask::<()>(&["CONFIG", "SET", "requirepass", password]).await;
        self.password = Some(password.into());
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    pub fn address(&self) -> SocketAddr {
        (host(), self.port).into()
    }

    async fn try_connect(&self) -> Option<MultiplexedConnection> {
        let login = self.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default();
        let client = Client::open(format!("redis://{login}{}", self.address())).expect("an address");
        // As long as it takes, on a machine that has much else to do.
        let patient = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        let patient = patient.set_connection_timeout(Some(PATIENCE));
        client.get_multiplexed_async_connection_with_config(&patient).await.ok()
    }

    pub async fn connect(&self) -> MultiplexedConnection {
        self.try_connect().await.expect("Redis")
    }

    /// A command, as its owner.
    pub async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        ask(&mut self.connect().await, words).await
    }

    pub async fn says(&self, words: &[&str]) -> String {
        format!("{:?}", self.ask::<Value>(words).await)
    }

    /// CPU time that it has used, in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        cpu_seconds(self.child.id())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            eprintln!(
                "---- redis on {} said last:\n{}",
                self.port,
                tail.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
    }
}

pub async fn ask<T: FromRedisValue>(link: &mut MultiplexedConnection, words: &[&str]) -> T {
    try_ask(link, words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

pub async fn try_ask<T: FromRedisValue>(link: &mut MultiplexedConnection, words: &[&str]) -> RedisResult<T> {
    let mut command = redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(word);
    }
    command.query_async(link).await
}

pub fn stream_key(job: &str) -> String {
    format!("runner-jobs:{job}:events")
}

pub fn job_key(job: &str) -> String {
    format!("runner-jobs:{job}")
}

pub fn xadd(to: &mut Pipeline, job: &str, number: u64, payload: &str) {
    let add = to.cmd("XADD").arg(stream_key(job)).arg("*").arg("id").arg(format!("e-{number}"));
    add.arg("type").arg("x").arg("payload").arg(payload);
}

/// Writes numbered events as a runner does; returns their entries' ids.
pub async fn append(to: &mut MultiplexedConnection, job: &str, numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    let mut all = Pipeline::new();
    numbers.into_iter().for_each(|number| xadd(&mut all, job, number, &payload(number)));
    all.query_async(to).await.expect("XADD")
}

pub fn payload(number: u64) -> String {
    format!("{{\"n\":{number}}}")
}

pub async fn set_status(to: &mut MultiplexedConnection, job: &str, status: &str) {
    ask::<()>(to, &["HSET", &job_key(job), "status", status]).await;
}

/// User and system time of a process.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<f64>().expect("ticks");
    (ticks(11) + ticks(12)) / 100.0
}

/// Milliseconds that a server may be silent in which no test kills one: a busy machine is no reason for a failover.
const CALM: &str = "60000";

/// A primary, a replica of it, and three Sentinels that watch over both.
pub struct Sentinel {
    pub servers: Vec<Redis>,
    sentinels: Vec<Redis>,
}

impl Sentinel {
    pub async fn start() -> Self {
        let primary = Redis::with(&format!("replica-announce-ip {}", host())).await;
        let replica = Redis::with(&format!("replica-announce-ip {0}\nreplicaof {0} {1}", host(), primary.port)).await;
        let watch = format!(
            "sentinel announce-ip {0}\nsentinel monitor main {0} {1} 2\nsentinel down-after-milliseconds main {CALM}\n\
             sentinel failover-timeout main 3000",
            host(),
            primary.port
        );
        let sentinels: Vec<Redis> = (0..3).map(|_| Redis::spawn(address::port(), &watch, &["--sentinel"])).collect();
        let all = Self { servers: vec![primary, replica], sentinels };
        eventually("the Sentinels to know each other", async || {
            for sentinel in &all.sentinels {
                let mut link = sentinel.try_connect().await?;
                let known: HashMap<String, String> = try_ask(&mut link, &["SENTINEL", "MASTER", "main"]).await.ok()?;
                let knows = |name: &str, count: &str| known.get(name).is_some_and(|value| value == count);
                if !(knows("num-other-sentinels", "2") && knows("num-slaves", "1")) {
                    return None;
                }
            }
            all.servers[1].says(&["INFO", "replication"]).await.contains("master_link_status:up").then_some(())
        })
        .await;
        all
    }

    pub fn url(&self) -> String {
        let sentinels: Vec<String> = self.sentinels.iter().map(|one| one.address().to_string()).collect();
        format!("redis+sentinel://{}/main", sentinels.join(","))
    }

    /// The first server is dead; waits for the second to take over.
    pub async fn takes_over(&self) {
        self.notice_within("500").await;
        let now = self.servers[1].port;
        eventually("a failover", async || {
            (self.primary().await == Some(now) && self.servers[1].says(&["ROLE"]).await.contains("master"))
                .then_some(())
        })
        .await;
        self.notice_within(CALM).await;
    }

    /// Sets how many milliseconds a server may be silent.
    async fn notice_within(&self, ms: &str) {
        for sentinel in &self.sentinels {
            sentinel.ask::<()>(&["SENTINEL", "SET", "main", "down-after-milliseconds", ms]).await;
        }
    }

    /// Nobody names a primary any more.
    pub fn kill_sentinels(&mut self) {
        self.sentinels.iter_mut().for_each(Redis::kill);
    }

    /// The port of the server that is the primary, as a majority says.
    pub async fn primary(&self) -> Option<u16> {
        let mut link = self.sentinels[0].try_connect().await?;
        let said: Vec<String> = try_ask(&mut link, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"]).await.ok()?;
        said.get(1)?.parse().ok()
    }
}

/// Three primaries with a replica each.
pub struct Cluster {
    pub nodes: Vec<Redis>,
}

impl Cluster {
    pub async fn start() -> Self {
        let settings = format!(
            "cluster-enabled yes\ncluster-announce-ip {}\ncluster-replica-validity-factor 0\n\
             appendonly yes\nappendfsync always",
            host()
        );
        let nodes: Vec<Redis> = (0..6).map(|_| Redis::spawn(address::port(), &settings, &[])).collect();
        for node in &nodes {
            node.is_up().await;
        }
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]).args(nodes.iter().map(|node| node.address().to_string()));
        create.args(["--cluster-replicas", "1", "--cluster-yes"]).stdout(Stdio::null()).stderr(Stdio::null());
        let made = tokio::task::spawn_blocking(move || create.status()).await.expect("a task");
        assert!(made.expect("redis-cli").success(), "redis-cli --cluster create");
        let cluster = Self { nodes };
        eventually("the Cluster to be whole", async || {
            for node in &cluster.nodes {
                let whole = node.says(&["CLUSTER", "INFO"]).await;
                let replicates = node.says(&["INFO", "replication"]).await;
                let is_ready = replicates.contains("role:master") || replicates.contains("master_link_status:up");
                let knows = replicates.contains("role:slave") || replicates.contains("connected_slaves:1");
                if !(whole.contains("cluster_state:ok") && is_ready && knows) {
                    return None;
                }
            }
            Some(())
        })
        .await;
        cluster.notice_within(CALM).await;
        cluster
    }

    /// A node is dead; waits for its replica to take over.
    pub async fn takes_over(&self, dead: usize) {
        self.notice_within("2000").await;
        eventually("a replica to take over", async || {
            let port = self.nodes[dead].port;
            (!self.slots().await.iter().any(|(.., owner)| *owner == port)).then_some(())
        })
        .await;
        self.notice_within(CALM).await;
    }

    /// Sets how many milliseconds a node may be silent.
    async fn notice_within(&self, ms: &str) {
        for node in &self.nodes {
            if let Some(mut link) = node.try_connect().await {
                ask::<()>(&mut link, &["CONFIG", "SET", "cluster-node-timeout", ms]).await;
            }
        }
    }

    pub fn url(&self) -> String {
        let all: Vec<String> = self.nodes[..3].iter().map(Redis::url).collect();
        all.join(",")
    }

    /// A node that answers, and what it says of who has which slots: first, last, port.
    pub async fn slots(&self) -> Vec<(u16, u16, u16)> {
        for node in &self.nodes {
            let Some(mut link) = node.try_connect().await else { continue };
            let Ok(Value::Array(ranges)) = try_ask::<Value>(&mut link, &["CLUSTER", "SLOTS"]).await else { continue };
            let number = |value: &Value| u16::from_redis_value_ref(value).expect("a number");
            let range = |range: &Value| match range {
                Value::Array(parts) => match &parts[..] {
                    [first, last, Value::Array(node), ..] => (number(first), number(last), number(&node[1])),
                    _ => panic!("{parts:?}"),
                },
                other => panic!("{other:?}"),
            };
            return ranges.iter().map(range).collect();
        }
        Vec::new()
    }

    /// The nodes that have slots.
    pub async fn primaries(&self) -> Vec<usize> {
        let slots = self.slots().await;
        let has_slots = |node: &Redis| slots.iter().any(|(.., port)| *port == node.port);
        (0..self.nodes.len()).filter(|index| has_slots(&self.nodes[*index])).collect()
    }

    pub async fn slot(&self, key: &str) -> u16 {
        for node in &self.nodes {
            if let Some(mut link) = node.try_connect().await {
                return ask(&mut link, &["CLUSTER", "KEYSLOT", key]).await;
            }
        }
        panic!("no node answers");
    }

    /// The node that has this key's slot.
    pub async fn owner(&self, key: &str) -> usize {
        let slot = self.slot(key).await;
        eventually("an owner of the slot", async || {
            let slots = self.slots().await;
            let (_, _, port) = slots.iter().find(|(first, last, _)| (*first..=*last).contains(&slot))?;
            self.nodes.iter().position(|node| node.port == *port)
        })
        .await
    }

    /// Moves one slot with its keys to another primary, one key at a time, as operators do.
    pub async fn move_slot(&self, slot: u16, from: usize, to: usize) {
        let id = async |index: usize| self.nodes[index].ask::<String>(&["CLUSTER", "MYID"]).await;
        let (source, target) = (id(from).await, id(to).await);
        let slot_text = slot.to_string();
        self.nodes[to].ask::<()>(&["CLUSTER", "SETSLOT", &slot_text, "IMPORTING", &source]).await;
        self.nodes[from].ask::<()>(&["CLUSTER", "SETSLOT", &slot_text, "MIGRATING", &target]).await;
        loop {
            let keys: Vec<String> = self.nodes[from].ask(&["CLUSTER", "GETKEYSINSLOT", &slot_text, "1"]).await;
            let Some(key) = keys.first() else { break };
            let port = self.nodes[to].port.to_string();
            self.nodes[from].ask::<()>(&["MIGRATE", &host().to_string(), &port, key, "0", "5000"]).await;
            // long enough for others to be sent on by ASK
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        for index in [to, from] {
            self.nodes[index].ask::<()>(&["CLUSTER", "SETSLOT", &slot_text, "NODE", &target]).await;
        }
    }
}

fn run(settings: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new("redis-server");
    command.arg(settings).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("redis-server")
}
