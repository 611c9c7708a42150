//! Topology: the servers of the deployment, and the slots that each of them has.
//!
//! A task of its own keeps the slot map. It asks all Sentinels every second for the primary, and one of the Cluster's
//! nodes every ten seconds for the slots, and at once when a reply shows that the map may be wrong. Readers use the map
//! as it is and follow MOVED and ASK, see [`super::connections`].
//!
//! redis-rs has `cluster-async` and `sentinel` of its own. They were read and tried in release 1.8.1, and do not
//! replace this module and [`super::connections`]. Latency is the same (two commands in one pipeline, median 0.04 ms
//! both ways), and while one node is stopped or killed the others answer on. These are the reasons:
//!
//! - While a slot moves, its ASKING counts for one command, and it sends one before a whole pipeline. The entries and
//!   the state of a stream are read in one pipeline, so the second command is refused: `ASK` came back as an error
//!   within 2 ms.
//! - A request to a dead node is retried inside until its time-out, 5 s in the trial, and then "timed out" stands for a
//!   server that was killed and refuses connections. Here the first failure is reported at once, by its cause, and for
//!   that node's jobs only.
//! - One pipeline goes to one slot. A read of 64 jobs is one pipeline for each node here; there it would be 64
//!   requests, because the slot map is private.
//! - A push arrives without its server's address, and there is no place where CLIENT TRACKING could be turned on for a
//!   new connection, short of a connection type of one's own.
//! - Its Sentinel client believes the first Sentinel that names a server whose ROLE says primary, so one Sentinel and
//!   an old primary that were cut off together are believed. Here all Sentinels are asked, and the highest epoch
//!   counts. It also needs the right to ROLE or INFO, and it does not notice a failover while the old primary stays
//!   connected.

use super::address::{Address, Deployment, Login};
use super::keys::SLOTS;
use super::reply::{check_reply, number, text, unexpected_reply};
use crate::supervise::restarted;
use futures_util::future::join_all;
use rand::seq::SliceRandom;
use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, PushInfo, RedisError, Value};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// Time between two questions to all Sentinels. Each gets one small command.
const SENTINEL_REFRESH: Duration = Duration::from_secs(1);
/// Time between two questions to a Cluster, where nothing calls for an earlier one.
const CLUSTER_REFRESH: Duration = Duration::from_secs(10);
/// Least time between two refreshes, however many are requested.
const MIN_REFRESH: Duration = Duration::from_millis(100);
/// Time for one Sentinel or node to name the servers, connecting included.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(2);

/// An error, and the server that it came from, or the whole deployment where no single server is to blame.
#[derive(Clone, Debug)]
pub struct NodeError {
    pub server: String,
    pub error: RedisError,
}

/// The servers of one deployment. Shared by all connections.
pub struct Topology {
    deployment: Deployment,
    login: RwLock<Arc<Login>>,
    state: Mutex<State>,
    /// Wakes the refresher before its time.
    refresh_requested: Notify,
}

struct State {
    /// The newest known map, or the reason why none is known yet.
    map: Result<SlotMap, RedisError>,
    /// Grows with every change of the map. The tail compares it to find jobs that have moved.
    version: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct SlotMap {
    /// The last slot of each range and the node that has it, in the order of slots. `None`: no node has the range.
    ranges: Vec<(u16, Option<Address>)>,
    /// Slots that MOVED named another node for since `ranges` was read.
    moved: HashMap<u16, Address>,
}

impl SlotMap {
    fn single(node: Address) -> Self {
        Self { ranges: vec![(SLOTS - 1, Some(node))], moved: HashMap::new() }
    }

    fn node_of(&self, slot: u16) -> Option<&Address> {
        let range = || self.ranges.get(self.ranges.partition_point(|(last, _)| *last < slot));
        self.moved.get(&slot).or_else(|| range()?.1.as_ref())
    }

    fn nodes(&self) -> Vec<Address> {
        let mut nodes: Vec<Address> = self.ranges.iter().filter_map(|(_, node)| node.clone()).collect();
        nodes.sort();
        nodes.dedup();
        nodes
    }
}

impl Topology {
    /// Reads the map once, and starts the task that keeps it. Where no server answers, the map is known later.
    pub async fn start(deployment: Deployment, login: Login) -> (Arc<Self>, AbortOnDropHandle<()>) {
        let state = State { map: Err(no_reply_yet()), version: 0 };
        let topology = Arc::new(Self {
            deployment,
            login: RwLock::new(Arc::new(login)),
            state: Mutex::new(state),
            refresh_requested: Notify::new(),
        });
        let mut refresher = TopologyRefresher { topology: topology.clone(), connections: HashMap::new() };
        refresher.refresh().await;
        let kept = topology.clone();
        let refresh = move || TopologyRefresher { topology: kept.clone(), connections: HashMap::new() }.run();
        (topology, AbortOnDropHandle::new(tokio::spawn(restarted("topology", refresh))))
    }

    /// The credentials for connections that are opened now.
    pub fn login(&self) -> Arc<Login> {
        self.login.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn renew_login(&self, login: Login) {
        *self.login.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(login);
        self.request_refresh();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    pub fn version(&self) -> u64 {
        self.state().version
    }

    /// Returns the node that has a slot. Requests a refresh where none is known.
    pub fn node_of(&self, slot: u16) -> Result<Address, NodeError> {
        let node = match &self.state().map {
            Ok(map) => map.node_of(slot).cloned().ok_or_else(|| {
                (ErrorKind::ClusterConnectionNotFound, "no server has the slot", slot.to_string()).into()
            }),
            Err(error) => Err(error.clone()),
        };
        node.map_err(|error| {
            self.request_refresh();
            self.node_error(error)
        })
    }

    /// Returns all nodes that have slots.
    pub fn nodes(&self) -> Result<Vec<Address>, NodeError> {
        let nodes = self.state().map.as_ref().map(SlotMap::nodes).map_err(Clone::clone);
        nodes.map_err(|error| {
            self.request_refresh();
            self.node_error(error)
        })
    }

    /// Makes an error of the deployment as a whole.
    pub fn node_error(&self, error: RedisError) -> NodeError {
        NodeError { server: self.deployment.to_string(), error }
    }

    /// Refuses a server that Sentinel names and that is not a primary (any more). Its entries lag behind the primary's,
    /// so valid cursors would be taken for lost ("Guidelines for Redis clients with support for Redis Sentinel", step
    /// 3). In a Cluster a replica sends us on by MOVED.
    pub(super) async fn check_role(
        &self,
        node: &Address,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), RedisError> {
        let Deployment::Sentinel { .. } = self.deployment else { return Ok(()) };
        // HELLO is sent, because every user may send it, unlike ROLE.
        let reply = check_reply(connection.send_packed_command(&redis::cmd("HELLO")).await?)?;
        let Value::Map(pairs) = reply else { return Err(unexpected_reply("who the server is")) };
        let role = pairs.iter().find(|(name, _)| text(name) == Some("role")).and_then(|(_, role)| text(role));
        if role == Some("master") {
            return Ok(());
        }
        let why = "Sentinel names a server that is not the primary";
        Err((ErrorKind::MasterNameNotFoundBySentinel, why, node.to_string()).into())
    }

    /// Asks for a refresh as soon as [`MIN_REFRESH`] allows, because the map may be wrong.
    pub(super) fn request_refresh(&self) {
        self.refresh_requested.notify_one();
    }

    /// Notes the node that MOVED names for a slot, and requests a refresh: other slots may have moved with it.
    pub(super) fn note_moved(&self, slot: u16, to: &Address) {
        let mut state = self.state();
        if let Ok(map) = &mut state.map
            && map.node_of(slot) != Some(to)
        {
            map.moved.insert(slot, to.clone());
            state.version += 1;
        }
        drop(state);
        self.request_refresh();
    }

    /// Takes over the result of a refresh. A known map stays where the refresh failed: an old map is better than none.
    fn update(&self, refreshed: Result<SlotMap, RedisError>) {
        let mut state = self.state();
        match (&state.map, refreshed) {
            (Ok(known), Ok(map)) if *known == map => {}
            (Ok(_), Err(_)) => {}
            (_, Ok(map)) => {
                let nodes: Vec<String> = map.nodes().iter().map(Address::to_string).collect();
                tracing::info!(nodes = nodes.join(","), "the servers are known");
                state.map = Ok(map);
                state.version += 1;
            }
            (Err(_), Err(error)) => state.map = Err(error),
        }
    }
}

/// Makes the error for a server that has not answered so far.
pub(super) fn no_reply_yet() -> RedisError {
    (ErrorKind::Io, "nobody has answered yet").into()
}

/// Reads the map, on connections of its own: those of the readers may be down or busy.
struct TopologyRefresher {
    topology: Arc<Topology>,
    connections: HashMap<Address, MultiplexedConnection>,
}

impl TopologyRefresher {
    async fn run(mut self) {
        let interval = match self.topology.deployment {
            Deployment::Single(_) => return std::future::pending().await,
            Deployment::Sentinel { .. } => SENTINEL_REFRESH,
            Deployment::Cluster { .. } => CLUSTER_REFRESH,
        };
        loop {
            // Either way it is time: the interval is over, or a refresh was requested.
            let _ = tokio::time::timeout(interval, self.topology.refresh_requested.notified()).await;
            self.refresh().await;
            tokio::time::sleep(MIN_REFRESH).await;
        }
    }

    async fn refresh(&mut self) {
        let topology = self.topology.clone();
        let refreshed = match &topology.deployment {
            Deployment::Single(address) => Ok(SlotMap::single(address.clone())),
            Deployment::Sentinel { sentinels, service } => self.query_sentinels(sentinels, service).await,
            Deployment::Cluster { seeds } => self.query_cluster(seeds).await,
        };
        topology.update(refreshed);
    }

    /// Asks all Sentinels, and takes the primary of the highest epoch. A Sentinel that was cut off from the others
    /// still names the old primary, at a lower epoch.
    async fn query_sentinels(&mut self, sentinels: &[Address], service: &str) -> Result<SlotMap, RedisError> {
        let login = &*self.topology.login();
        let requests = sentinels.iter().map(|sentinel| {
            let known = self.connections.get(sentinel).cloned();
            with_timeout(query_sentinel(login, sentinel, known, service))
        });
        let replies = join_all(requests).await;
        self.connections.clear();
        let mut newest = None;
        let mut last_error = no_reply_yet();
        for (sentinel, reply) in sentinels.iter().zip(replies) {
            match reply {
                Ok((connection, primary)) => {
                    self.connections.insert(sentinel.clone(), connection);
                    newest = newest.max(Some(primary));
                }
                Err(error) => last_error = error,
            }
        }
        newest.map(|primary| SlotMap::single(primary.address)).ok_or(last_error)
    }

    /// Asks known nodes in random order, then the configured ones, until one answers.
    async fn query_cluster(&mut self, seeds: &[Address]) -> Result<SlotMap, RedisError> {
        let mut nodes = self.topology.nodes().unwrap_or_default();
        nodes.shuffle(&mut rand::rng());
        let unknown: Vec<Address> = seeds.iter().filter(|seed| !nodes.contains(seed)).cloned().collect();
        let mut last_error = no_reply_yet();
        for node in nodes.into_iter().chain(unknown) {
            let known = self.connections.remove(&node);
            match with_timeout(query_node(&self.topology.login(), &node, known)).await {
                Ok((connection, map)) => {
                    self.connections.insert(node, connection);
                    return Ok(map);
                }
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }
}

/// A primary that Sentinel names. The order is that of epochs.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Primary {
    /// The epoch of the failover that made it the primary.
    epoch: u64,
    address: Address,
}

async fn query_sentinel(
    login: &Login,
    sentinel: &Address,
    known: Option<MultiplexedConnection>,
    service: &str,
) -> Result<(MultiplexedConnection, Primary), RedisError> {
    let mut connection = match known {
        Some(connection) => connection,
        None => login.connect_to_sentinel(sentinel, false).await?,
    };
    let mut primary = query_primary(&mut connection, service).await;
    if primary.as_ref().is_err_and(|error| error.code() == Some("NOAUTH")) {
        connection = login.connect_to_sentinel(sentinel, true).await?;
        primary = query_primary(&mut connection, service).await;
    }
    Ok((connection, primary?))
}

async fn query_node(
    login: &Login,
    node: &Address,
    known: Option<MultiplexedConnection>,
) -> Result<(MultiplexedConnection, SlotMap), RedisError> {
    let mut connection = match known {
        Some(connection) => connection,
        None => login.connect(node, None::<fn(PushInfo) -> Result<(), ()>>).await?,
    };
    let reply = connection.send_packed_command(redis::cmd("CLUSTER").arg("SLOTS")).await?;
    Ok((connection, parse_slots(reply, node)?))
}

async fn with_timeout<T>(request: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
    let timed_out = || std::io::Error::from(std::io::ErrorKind::TimedOut).into();
    tokio::time::timeout(REFRESH_TIMEOUT, request).await.unwrap_or_else(|_| Err(timed_out()))
}

async fn query_primary(connection: &mut MultiplexedConnection, service: &str) -> Result<Primary, RedisError> {
    let query = redis::cmd("SENTINEL").arg("MASTER").arg(service).clone();
    let reply = check_reply(connection.send_packed_command(&query).await?).map_err(|error| {
        if error.detail().is_some_and(|detail| detail.contains("No such master")) {
            let why = "Sentinel names no primary";
            (ErrorKind::MasterNameNotFoundBySentinel, why, service.to_string()).into()
        } else {
            error
        }
    })?;
    let fields: HashMap<&str, &Value> = match &reply {
        Value::Array(flat) => flat.chunks_exact(2).filter_map(|pair| Some((text(&pair[0])?, &pair[1]))).collect(),
        Value::Map(pairs) => pairs.iter().filter_map(|(name, value)| Some((text(name)?, value))).collect(),
        _ => return Err(unexpected_reply("a primary")),
    };
    let field = |name| fields.get(name).copied();
    let host = field("ip").and_then(text).filter(|host| !host.is_empty()).ok_or_else(|| unexpected_reply("ip"))?;
    let port = field("port").and_then(parse_port).ok_or_else(|| unexpected_reply("port"))?;
    let epoch = field("config-epoch").and_then(number).unwrap_or(0);
    Ok(Primary { epoch, address: Address { host: host.into(), port } })
}

/// Parses the reply to CLUSTER SLOTS: a list of `[first, last, [host, port, …], replicas…]`.
fn parse_slots(reply: Value, queried_node: &Address) -> Result<SlotMap, RedisError> {
    let Value::Array(items) = check_reply(reply)? else { return Err(unexpected_reply("slots")) };
    let mut owned = items.iter().map(|item| parse_slot_range(item, queried_node)).collect::<Result<Vec<_>, _>>()?;
    owned.sort();
    let mut ranges: Vec<(u16, Option<Address>)> = Vec::new();
    let mut next = 0;
    for (first, last, node) in owned {
        if first > next {
            ranges.push((first - 1, None));
        }
        next = last + 1;
        ranges.push((last, Some(node)));
    }
    if ranges.is_empty() {
        return Err((ErrorKind::ClusterConnectionNotFound, "the Cluster has no slots yet").into());
    }
    Ok(SlotMap { ranges, moved: HashMap::new() })
}

fn parse_slot_range(item: &Value, queried_node: &Address) -> Result<(u16, u16, Address), RedisError> {
    let malformed = || unexpected_reply("a range of slots");
    let Value::Array(parts) = item else { return Err(malformed()) };
    let [first, last, Value::Array(node), ..] = &parts[..] else { return Err(malformed()) };
    let [host, port, ..] = &node[..] else { return Err(unexpected_reply("a node")) };
    let bound = |value| number(value).and_then(|slot| u16::try_from(slot).ok()).filter(|slot| *slot < SLOTS);
    let (first, last) = bound(first).zip(bound(last)).ok_or_else(malformed)?;
    let port = parse_port(port).ok_or_else(malformed)?;
    Ok((first, last, Address { host: text(host).unwrap_or_default().into(), port }.or_host_of(queried_node)))
}

fn parse_port(value: &Value) -> Option<u16> {
    u16::try_from(number(value)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_without_a_node_and_slots_that_moved_are_found_in_the_map() {
        let node = |port: i64| Value::Array(vec![Value::BulkString(Vec::new()), Value::Int(port)]);
        let range = |first, last, port| Value::Array(vec![Value::Int(first), Value::Int(last), node(port)]);
        let asked = Address { host: "asked".into(), port: 1 };
        let reply = Value::Array(vec![range(200, 16383, 2), range(10, 99, 1)]);
        let mut map = parse_slots(reply, &asked).expect("a map");
        let port = |map: &SlotMap, slot| map.node_of(slot).map(|node| (node.host.to_string(), node.port));
        for (slot, expected) in
            [(9, None), (10, Some(1)), (99, Some(1)), (100, None), (199, None), (200, Some(2)), (16383, Some(2))]
        {
            assert_eq!(port(&map, slot), expected.map(|port| ("asked".into(), port)), "slot {slot}");
        }
        map.moved.insert(10, Address { host: "new".into(), port: 3 });
        assert_eq!(port(&map, 10), Some(("new".into(), 3)));
        assert_eq!(map.nodes().len(), 2);
        assert!(parse_slots(Value::Array(vec![range(0, 16384, 1)]), &asked).is_err());
        assert!(parse_slots(Value::Array(Vec::new()), &asked).is_err());
    }
}
