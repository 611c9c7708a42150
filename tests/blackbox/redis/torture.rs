//! Subscribers that come and go on two daemons while 1,000 entries a second are written to 50 streams and servers die.

use super::daemon_on;
use crate::support::address::host;
use crate::support::flap::{Flap, Resume};
use crate::support::redis::{append, stream_key, try_ask};
use crate::support::{Cluster, Daemon, Redis, Sentinel, alone, eventually, numbers};
use futures_util::future::{join_all, try_join_all};
use redis::RedisError;
use redis::aio::MultiplexedConnection;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, interval, sleep, timeout};

const JOBS: usize = 50;
/// The number of events in each job.
const EVENTS: u64 = 100;
const PACE: Duration = Duration::from_millis(50);

fn job(number: usize) -> String {
    format!("job-{number}")
}

/// The shape of the entries, and of the streams.
#[derive(Clone, Copy)]
enum Shape {
    Own,
    /// One field, whose JSON is the event.
    Envelope,
    /// One stream for all jobs.
    Shared,
}

const SHAPES: [Shape; 3] = [Shape::Own, Shape::Envelope, Shape::Shared];

impl Shape {
    /// The key of the stream that has the entries of a job.
    fn stream_key(self, job: &str) -> String {
        match self {
            Self::Own | Self::Envelope => stream_key(job),
            Self::Shared => "queue".into(),
        }
    }

    fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Own => &[],
            Self::Envelope => &[
                ("source.redis.envelope", "data"),
                ("source.redis.job_key", ""),
                ("source.redis.final_types.completed", "last"),
            ],
            Self::Shared => &[
                ("source.redis.events_key", "queue"),
                ("source.redis.job_id_field", "job"),
                ("source.redis.job_key", ""),
                ("source.redis.final_types.completed", "last"),
            ],
        }
    }
}

/// Writes to whichever server has a key now, again and again until that is answered. Entries carry ids of the writer's
/// own, so that one which was there already is not written twice.
struct Writer {
    /// The port of the server that answered for a key last.
    ports: Mutex<HashMap<String, u16>>,
    links: Mutex<HashMap<u16, MultiplexedConnection>>,
    any: Vec<u16>,
    /// Held while a round is written: who takes it finds nothing under way.
    round: Mutex<()>,
}

impl Writer {
    fn new(any: Vec<u16>) -> Arc<Self> {
        Arc::new(Self { ports: Mutex::default(), links: Mutex::default(), any, round: Mutex::default() })
    }

    async fn link(&self, port: u16) -> Result<MultiplexedConnection, RedisError> {
        if let Some(link) = self.links.lock().await.get(&port) {
            return Ok(link.clone());
        }
        let client = redis::Client::open(format!("redis://{}:{port}", host()))?;
        let link = timeout(Duration::from_secs(1), client.get_multiplexed_async_connection()).await;
        let link = link.map_err(|_| RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut)))??;
        self.links.lock().await.insert(port, link.clone());
        Ok(link)
    }

    async fn write(&self, words: &[&str]) {
        let began = Instant::now();
        let key = words[1];
        for attempt in 0.. {
            let guess = self.any[attempt % self.any.len()];
            let port = self.ports.lock().await.get(key).copied().unwrap_or(guess);
            let _ = match self.try_write(port, words, false).await {
                Ok(port) => {
                    self.ports.lock().await.insert(key.into(), port);
                    return;
                }
                Err(_) => self.ports.lock().await.remove(key),
            };
            assert!(began.elapsed() < Duration::from_secs(40), "{words:?} is never answered");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns where it was written, to be tried first next time.
    async fn try_write(&self, port: u16, words: &[&str], is_asking: bool) -> Result<u16, RedisError> {
        let mut link = self.link(port).await?;
        let written = async {
            let mut pipe = redis::pipe();
            if is_asking {
                pipe.cmd("ASKING").ignore();
            }
            let command = pipe.cmd(words[0]);
            for word in &words[1..] {
                command.arg(word);
            }
            pipe.query_async::<(redis::Value,)>(&mut link).await
        };
        let error = match timeout(Duration::from_secs(1), written).await {
            Ok(Ok(_)) => return Ok(port),
            Ok(Err(error)) => error,
            Err(_) => std::io::Error::from(std::io::ErrorKind::TimedOut).into(),
        };
        let said = error.to_string();
        if said.contains("equal or smaller") {
            return Ok(port);
        }
        for kind in ["Moved", "Ask"] {
            let to = said.split_once(&format!("{kind}: ")).and_then(|(_, rest)| rest.split(':').nth(1));
            let to = to.and_then(|to| to.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok());
            if let Some(to) = to {
                return Box::pin(self.try_write(to, words, kind == "Ask")).await;
            }
        }
        self.links.lock().await.remove(&port);
        Err(error)
    }

    async fn write_entry(&self, shape: Shape, index: usize, number: u64) {
        let (id, event, payload) =
            (format!("{}-0", 1_700_000_000_000 + number), format!("e-{number}"), format!("{{\"n\":{number}}}"));
        let (job, kind) = (job(index), if number + 1 < EVENTS { "x" } else { "last" });
        match shape {
            Shape::Own => {
                let key = stream_key(&job);
                self.write(&["XADD", &key, &id, "id", &event, "type", kind, "payload", &payload]).await;
            }
            Shape::Envelope => {
                let data = format!("{{\"id\":\"{event}\",\"type\":\"{kind}\",\"payload\":{payload}}}");
                self.write(&["XADD", &stream_key(&job), &id, "data", &data]).await;
            }
            Shape::Shared => {
                let id = format!("{}-{index}", 1_700_000_000_000 + number);
                let words = ["XADD", "queue", &id, "job", &job, "id", &event, "type", kind, "payload", &payload];
                self.write(&words).await;
            }
        }
    }

    async fn write_all(&self, shape: Shape) {
        let mut pace = interval(PACE);
        for number in 0..EVENTS {
            pace.tick().await;
            let _round = self.round.lock().await;
            match shape {
                Shape::Own | Shape::Envelope => {
                    join_all((0..JOBS).map(|index| self.write_entry(shape, index, number))).await;
                }
                // Their ids ascend.
                Shape::Shared => {
                    for index in 0..JOBS {
                        self.write_entry(shape, index, number).await;
                    }
                }
            }
        }
        // In the other shapes the last entry itself ends its job.
        for index in (0..JOBS).filter(|_| matches!(shape, Shape::Own)) {
            self.write(&["HSET", &format!("runner-jobs:{}", job(index)), "status", "COMPLETED"]).await;
        }
    }
}

const FLAP: Flap = Flap {
    stays: 600,
    away: 200,
    resumes: &[Resume::Query, Resume::EventId, Resume::Header, Resume::Header],
    patience: Duration::from_secs(120),
};

async fn all_see_each_event_once(daemons: &[Daemon; 2]) {
    let to = [daemons[0].http, daemons[1].http];
    let flaps = (0..2 * JOBS).map(|number| {
        tokio::spawn(async move {
            let seen = FLAP.watch(&to, &job(number % JOBS)).await;
            assert_eq!(seen, Vec::from_iter(0..EVENTS), "subscriber {number}");
        })
    });
    try_join_all(flaps).await.expect("each event once, in order");
}

/// Writes, watches, and does something evil meanwhile.
async fn withstand(shape: Shape, url: &str, writer: Arc<Writer>, evil: impl Future<Output = ()>) -> [Daemon; 2] {
    let more = [&[("hub.linger", "200ms"), ("source.retry_initial", "50ms")], shape.settings()].concat();
    let daemons = [daemon_on(url, &more).await, daemon_on(url, &more).await];
    let write = tokio::spawn(async move { writer.write_all(shape).await });
    let ((), written, ()) = tokio::join!(all_see_each_event_once(&daemons), write, evil);
    written.expect("all written");
    for daemon in &daemons {
        daemon.has_subscribers(0).await;
        assert_eq!(daemon.metric("jobcast_resets_total").await, 0.0, "{}", daemon.log());
    }
    daemons
}

#[tokio::test]
async fn flapping_subscribers_on_two_daemons_see_each_entry_once_in_order() {
    let _alone = alone();
    for shape in SHAPES {
        let server = Redis::start().await;
        let daemons = withstand(shape, &server.url(), Writer::new(vec![server.port]), async {}).await;
        for daemon in &daemons {
            assert_eq!(daemon.metric("jobcast_source_errors_total").await, 0.0);
            daemon.metric_reaches("jobcast_source_wakeups_total{by=\"notify\"}", 1.0).await;
        }
    }
}

async fn is_killed_again_and_again(shape: Shape) {
    let mut server = Redis::start().await;
    let (url, writer) = (server.url(), Writer::new(vec![server.port]));
    let kill = async {
        for _ in 0..3 {
            sleep(Duration::from_millis(1200)).await;
            server.kill();
            sleep(Duration::from_millis(300)).await;
            server.restart().await;
        }
    };
    withstand(shape, &url, writer, kill).await;
}

#[tokio::test]
async fn a_server_that_is_killed_again_and_again_loses_and_repeats_nothing() {
    let _alone = alone();
    is_killed_again_and_again(Shape::Own).await;
}

#[tokio::test]
async fn envelopes_on_a_server_that_is_killed_again_and_again_lose_and_repeat_nothing() {
    let _alone = alone();
    is_killed_again_and_again(Shape::Envelope).await;
}

#[tokio::test]
async fn a_shared_stream_on_a_server_that_is_killed_again_and_again_loses_and_repeats_nothing() {
    let _alone = alone();
    is_killed_again_and_again(Shape::Shared).await;
}

async fn dies_while_sentinel_names_another(shape: Shape) {
    let mut sentinel = Sentinel::start().await;
    let ports = sentinel.servers.iter().map(|server| server.port).collect();
    let (url, writer) = (sentinel.url(), Writer::new(ports));
    let kill = async {
        sleep(Duration::from_millis(1500)).await;
        // what has not reached the replica would be lost, and said (another test)
        let round = writer.round.lock().await;
        reaches_a_replica(&sentinel.servers[0]).await;
        sentinel.servers[0].kill();
        drop(round);
        sentinel.takes_over().await;
        let now = sentinel.servers[1].port;
        // the old one comes back as a replica: no writer takes it for what it was
        sentinel.servers[0].restart_with(&["--replicaof", &host().to_string(), &now.to_string()]).await;
    };
    withstand(shape, &url, writer.clone(), kill).await;
}

#[tokio::test]
async fn a_primary_that_dies_while_sentinel_names_another_loses_nothing() {
    let _alone = alone();
    dies_while_sentinel_names_another(Shape::Own).await;
}

#[tokio::test]
async fn a_primary_with_envelopes_that_dies_while_sentinel_names_another_loses_nothing() {
    let _alone = alone();
    dies_while_sentinel_names_another(Shape::Envelope).await;
}

#[tokio::test]
async fn a_primary_with_a_shared_stream_that_dies_while_sentinel_names_another_loses_nothing() {
    let _alone = alone();
    dies_while_sentinel_names_another(Shape::Shared).await;
}

async fn reaches_a_replica(primary: &Redis) {
    // by a write of the same connection, so that there is something to wait for
    let mut link = primary.connect().await;
    let _: Result<(), _> = try_ask(&mut link, &["PUBLISH", "nobody", "hears"]).await;
    eventually("a replica to have everything", async || {
        let told = primary.says(&["INFO", "replication"]).await;
        let own = told.split_once("master_repl_offset:")?.1.split("\\r").next()?.to_string();
        told.contains(&format!("offset={own},")).then_some(())
    })
    .await;
}

async fn has_slots_that_move_and_a_primary_that_dies(shape: Shape) {
    let mut cluster = Cluster::start().await;
    let ports = cluster.nodes.iter().map(|node| node.port).collect();
    let (url, writer) = (cluster.url(), Writer::new(ports));
    let evil = async {
        sleep(Duration::from_millis(700)).await;
        for index in [0, 1] {
            let key = shape.stream_key(&job(index));
            let (slot, from) = (cluster.slot(&key).await, cluster.owner(&key).await);
            let slots = cluster.primaries().await;
            let to = slots.into_iter().find(|node| *node != from).expect("another primary");
            cluster.move_slot(slot, from, to).await;
        }
        let dies = cluster.owner(&shape.stream_key(&job(2))).await;
        let round = writer.round.lock().await;
        reaches_a_replica(&cluster.nodes[dies]).await;
        cluster.nodes[dies].kill();
        drop(round);
        cluster.takes_over(dies).await;
        cluster.nodes[dies].restart().await;
    };
    withstand(shape, &url, writer.clone(), evil).await;
}

#[tokio::test]
async fn a_cluster_whose_slots_move_and_whose_primary_dies_loses_nothing() {
    let _alone = alone();
    has_slots_that_move_and_a_primary_that_dies(Shape::Own).await;
}

#[tokio::test]
async fn envelopes_in_a_cluster_whose_slots_move_and_whose_primary_dies_lose_nothing() {
    let _alone = alone();
    has_slots_that_move_and_a_primary_that_dies(Shape::Envelope).await;
}

#[tokio::test]
async fn a_shared_stream_in_a_cluster_whose_slots_move_and_whose_primary_dies_loses_nothing() {
    let _alone = alone();
    has_slots_that_move_and_a_primary_that_dies(Shape::Shared).await;
}

#[tokio::test]
async fn a_part_of_a_cluster_that_nobody_takes_over_holds_up_only_its_own_jobs() {
    let _alone = alone();
    let mut cluster = Cluster::start().await;
    for node in &cluster.nodes {
        node.ask::<()>(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]).await;
    }
    let dies = cluster.owner(&stream_key("job-0")).await;
    let mut others = (1..).map(job);
    let other = loop {
        let other = others.next().expect("a job");
        if cluster.owner(&stream_key(&other)).await != dies
            && cluster.owner(&format!("runner-jobs:{other}")).await != dies
        {
            break other;
        }
    };
    let writer = Writer::new(cluster.nodes.iter().map(|node| node.port).collect());
    let write = async |job: &str, number: u64| {
        let (key, payload) = (stream_key(job), format!("{{\"n\":{number}}}"));
        writer.write(&["XADD", &key, &format!("{}-0", number + 1), "type", "x", "payload", &payload]).await;
    };
    write("job-0", 0).await;
    write(&other, 0).await;
    let daemon = daemon_on(&cluster.url(), &[]).await;
    let (mut held, mut goes_on) = (daemon.stream("job-0").await, daemon.stream(&other).await);
    assert_eq!((held.event().await.number(), goes_on.event().await.number()), (0, 0));
    // its replica, too
    let replicas = cluster.nodes[dies].says(&["INFO", "replication"]).await;
    let dead: Vec<usize> = (0..cluster.nodes.len())
        .filter(|index| *index == dies || replicas.contains(&format!("port={},", cluster.nodes[*index].port)))
        .collect();
    assert_eq!(dead.len(), 2, "{replicas}");
    // one stands still, which is worse than to be gone: what is asked of it is waited for
    cluster.nodes[dead[1]].kill();
    cluster.nodes[dead[0]].signal("STOP");
    let error = held.event().await;
    assert!(error.is("stream.error") && error.json()["retryable"] == true, "{error:?}");
    let began = Instant::now();
    let mut told = 0;
    for number in 1..=40 {
        write(&other, number).await;
        let mut message = goes_on.event().await;
        if message.is("stream.error") {
            told += 1;
            message = goes_on.event().await;
        }
        assert_eq!(message.number(), number);
        sleep(Duration::from_millis(50)).await;
    }
    assert!(told <= 1, "the outage is told once, not {told} times");
    // 40 waits for a server that stands still would take minutes
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    cluster.nodes[dead[0]].signal("CONT");
    cluster.nodes[dead[1]].restart().await;
    write("job-0", 1).await;
    assert_eq!(held.event().await.number(), 1);
}

#[tokio::test]
async fn a_watch_that_was_over_before_it_began_is_forgotten() {
    let _alone = alone();
    let mut server = Redis::start().await;
    let more = [("hub.linger", "0s"), ("source.retry_initial", "3s"), ("source.retry_max", "3s")];
    let daemon = daemon_on(&server.url(), &more).await;
    let mut rows = server.connect().await;
    append(&mut rows, "job", 0..3).await;
    append(&mut rows, "other", [0]).await;
    server.kill();
    daemon.metric_is("jobcast_source_up", 0.0).await;
    server.restart().await;
    // the tail sleeps; somebody comes and goes meanwhile
    let mut early = eventually("a reader to be served", async || {
        let mut stream = daemon.stream("job").await;
        let first = stream.event().await;
        (!first.is("stream.error")).then_some(stream)
    })
    .await;
    assert_eq!(numbers(&early.take(2).await), [1, 2]);
    drop(early);
    daemon.has_subscribers(0).await;
    daemon.metric_is("jobcast_source_up", 1.0).await;
    let mut other = daemon.stream("other").await;
    assert_eq!(other.event().await.number(), 0);
    let read = daemon.metric("jobcast_events_total").await;
    let mut rows = server.connect().await;
    append(&mut rows, "job", 3..6).await;
    for number in [1, 2] {
        append(&mut rows, "other", [number]).await;
        assert_eq!(other.event().await.number(), number);
    }
    // counted after they are told: the second may not be yet, but whatever came with the first is
    let read = eventually("both to be counted", async || {
        Some(daemon.metric("jobcast_events_total").await - read).filter(|read| *read >= 2.0)
    })
    .await;
    assert_eq!(read, 2.0, "what nobody watches is not read");
}
