//! Which server has a key, and one connection to each server that is asked.
//!
//! The map is kept by a task of its own: Sentinels are asked every second who the primary is, a Cluster's nodes now and
//! then who has which slots, and at once when an answer makes the map doubtful. Whoever asks goes by the map as it is and
//! follows MOVED and ASK; a server that does not answer fails only what was asked of it.

use super::address::{Address, Deployment, Login};
use super::entry::{number, odd, text};
use super::error::{is_broken, is_of_topology};
use super::hearing::Hearing;
use super::keys::{SLOTS, slot};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, join_all};
use rand::seq::SliceRandom;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, Value};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// How often Sentinels are asked: each of them, one small question.
const ASK_SENTINELS: Duration = Duration::from_secs(1);
const ASK_CLUSTER: Duration = Duration::from_secs(10);
/// However doubtful the map is, it is not asked for more often.
const CALM: Duration = Duration::from_millis(100);
/// A Sentinel or node that does not say by then is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// A server that has failed is given so long to let us in before its last error is the answer.
const GRACE: Duration = Duration::from_millis(100);
/// While slots move, an answer may send us on several times.
const REDIRECTS: usize = 8;

/// What went wrong, and where.
#[derive(Clone, Debug)]
pub struct Fault {
    pub at: String,
    pub error: RedisError,
}

/// The servers and what each of them has.
pub struct Topology {
    deployment: Deployment,
    login: Login,
    state: Mutex<State>,
    doubted: Notify,
}

struct State {
    map: Result<Map, RedisError>,
    /// Grows with every change of the map.
    version: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Map {
    /// The last slot of each range, and who has it; in order.
    ranges: Vec<(u16, Option<Address>)>,
    /// What MOVED said since.
    moved: HashMap<u16, Address>,
}

impl Map {
    fn one(address: Address) -> Self {
        Self { ranges: vec![(SLOTS - 1, Some(address))], moved: HashMap::new() }
    }

    fn node_of(&self, slot: u16) -> Option<&Address> {
        let range = || self.ranges.get(self.ranges.partition_point(|(last, _)| *last < slot));
        self.moved.get(&slot).or_else(|| range()?.1.as_ref())
    }

    fn nodes(&self) -> Vec<Address> {
        let mut all: Vec<Address> = self.ranges.iter().filter_map(|(_, node)| node.clone()).collect();
        all.sort();
        all.dedup();
        all
    }
}

/// The task that keeps the map; it ends with this.
pub struct Keeper(JoinHandle<()>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Topology {
    /// Knows the map, if anybody answers.
    pub async fn start(deployment: Deployment, login: Login) -> (Arc<Self>, Keeper) {
        let state = State { map: Err(nobody()), version: 0 };
        let topology = Arc::new(Self { deployment, login, state: Mutex::new(state), doubted: Notify::new() });
        let mut surveyor = Surveyor { topology: topology.clone(), links: HashMap::new() };
        surveyor.look().await;
        let pace = match topology.deployment {
            Deployment::One(_) => None,
            Deployment::Sentinel { .. } => Some(ASK_SENTINELS),
            Deployment::Cluster { .. } => Some(ASK_CLUSTER),
        };
        let task = async move {
            let Some(pace) = pace else { return };
            loop {
                let _ = tokio::time::timeout(pace, surveyor.topology.doubted.notified()).await;
                surveyor.look().await;
                tokio::time::sleep(CALM).await;
            }
        };
        (topology, Keeper(tokio::spawn(task)))
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

    pub fn node_of(&self, slot: u16) -> Result<Address, Fault> {
        let found = match &self.state().map {
            Ok(map) => map.node_of(slot).cloned().ok_or_else(|| {
                let no_one = "no server has the slot";
                (ErrorKind::ClusterConnectionNotFound, no_one, slot.to_string()).into()
            }),
            Err(error) => Err(error.clone()),
        };
        found.map_err(|error| {
            self.doubt();
            self.fault(error)
        })
    }

    /// All servers that have any slot.
    pub fn nodes(&self) -> Result<Vec<Address>, Fault> {
        let nodes = self.state().map.as_ref().map(Map::nodes).map_err(Clone::clone);
        nodes.map_err(|error| {
            self.doubt();
            self.fault(error)
        })
    }

    pub fn fault(&self, error: RedisError) -> Fault {
        Fault { at: self.deployment.to_string(), error }
    }

    /// A Sentinel may name a server that is the primary no more. Cursors would be ahead of what it has, and be taken for
    /// lost ("Guidelines for Redis clients with support for Redis Sentinel", step 3). A Cluster's nodes send on by MOVED.
    async fn check_role(&self, node: &Address, link: &mut MultiplexedConnection) -> Result<(), RedisError> {
        let Deployment::Sentinel { .. } = self.deployment else { return Ok(()) };
        // unlike ROLE, everybody may say it
        let Value::Map(pairs) = said(link.send_packed_command(&redis::cmd("HELLO")).await?)? else {
            return Err(odd("who the server is"));
        };
        let role = pairs.iter().find(|(name, _)| text(name) == Some("role")).and_then(|(_, role)| text(role));
        if role == Some("master") {
            return Ok(());
        }
        let why = "Sentinel names a server that is not the primary";
        Err((ErrorKind::MasterNameNotFoundBySentinel, why, node.to_string()).into())
    }

    /// The map may be wrong: it is looked at anew.
    fn doubt(&self) {
        self.doubted.notify_one();
    }

    fn moved(&self, slot: u16, to: &Address) {
        let mut state = self.state();
        if let Ok(map) = &mut state.map
            && map.node_of(slot) != Some(to)
        {
            map.moved.insert(slot, to.clone());
            state.version += 1;
        }
        drop(state);
        self.doubt();
    }

    fn learn(&self, looked: Result<Map, RedisError>) {
        let mut state = self.state();
        match (&state.map, looked) {
            (Ok(known), Ok(map)) if *known == map => {}
            // an old map is better than none
            (Ok(_), Err(_)) => {}
            (_, Ok(map)) => {
                tracing::info!(nodes = %shown(&map.nodes()), "the servers are known");
                state.map = Ok(map);
                state.version += 1;
            }
            (Err(_), Err(error)) => state.map = Err(error),
        }
    }
}

fn shown(nodes: &[Address]) -> String {
    nodes.iter().map(Address::to_string).collect::<Vec<_>>().join(",")
}

fn nobody() -> RedisError {
    (ErrorKind::Io, "nobody has answered yet").into()
}

/// Asks for the map, on connections of its own.
struct Surveyor {
    topology: Arc<Topology>,
    links: HashMap<Address, MultiplexedConnection>,
}

impl Surveyor {
    async fn look(&mut self) {
        let topology = self.topology.clone();
        let looked = match &topology.deployment {
            Deployment::One(address) => Ok(Map::one(address.clone())),
            Deployment::Sentinel { sentinels, service } => self.ask_sentinels(sentinels, service).await,
            Deployment::Cluster { seeds } => self.ask_cluster(seeds).await,
        };
        topology.learn(looked);
    }

    /// All of them: one that was cut off from the others still names the old primary, at a lower epoch.
    async fn ask_sentinels(&mut self, sentinels: &[Address], service: &str) -> Result<Map, RedisError> {
        let login = &self.topology.login;
        let links = &self.links;
        let ask = |sentinel: Address| async move {
            let mut link = match links.get(&sentinel) {
                Some(link) => link.clone(),
                None => login.connect_to_sentinel(&sentinel, false).await?,
            };
            let mut named = name_primary(&mut link, service).await;
            if named.as_ref().is_err_and(|error| error.code() == Some("NOAUTH")) {
                link = login.connect_to_sentinel(&sentinel, true).await?;
                named = name_primary(&mut link, service).await;
            }
            named.map(|named| (sentinel, link, named))
        };
        let asked = join_all(sentinels.iter().map(|sentinel| within(ask(sentinel.clone())))).await;
        self.links.clear();
        let (mut newest, mut why) = (None, nobody());
        for answer in asked {
            match answer {
                Ok((sentinel, link, (epoch, address))) => {
                    self.links.insert(sentinel, link);
                    newest = newest.max(Some((epoch, address)));
                }
                Err(error) => why = error,
            }
        }
        newest.map(|(_, address)| Map::one(address)).ok_or(why)
    }

    /// The first that answers.
    async fn ask_cluster(&mut self, seeds: &[Address]) -> Result<Map, RedisError> {
        let mut nodes = self.topology.nodes().unwrap_or_default();
        nodes.shuffle(&mut rand::rng());
        nodes.extend(seeds.iter().filter(|seed| !nodes.contains(seed)).cloned().collect::<Vec<_>>());
        let mut why = nobody();
        for node in nodes {
            let link = self.links.remove(&node);
            let asked = async {
                let mut link = match link {
                    Some(link) => link,
                    None => self.topology.login.connect(&node, None::<fn(redis::PushInfo) -> Result<(), ()>>).await?,
                };
                let answer = link.send_packed_command(redis::cmd("CLUSTER").arg("SLOTS")).await?;
                Ok((link, read_slots(answer, &node)?))
            };
            match within(asked).await {
                Ok((link, map)) => {
                    self.links.insert(node, link);
                    return Ok(map);
                }
                Err(error) => why = error,
            }
        }
        Err(why)
    }
}

async fn within<T>(asked: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
    let late = || std::io::Error::from(std::io::ErrorKind::TimedOut).into();
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(late()))
}

/// The primary, and the epoch of the failover that made it one.
async fn name_primary(link: &mut MultiplexedConnection, service: &str) -> Result<(u64, Address), RedisError> {
    let answer = said(link.send_packed_command(redis::cmd("SENTINEL").arg("MASTER").arg(service)).await?);
    let unknown =
        |why: &str| (ErrorKind::MasterNameNotFoundBySentinel, "Sentinel names no primary", why.to_string()).into();
    let answer = answer.map_err(|error| match error.detail() {
        Some(why) if why.contains("No such master") => unknown(service),
        _ => error,
    })?;
    let fields: HashMap<&str, &Value> = match &answer {
        Value::Array(flat) => flat.chunks_exact(2).filter_map(|pair| Some((text(&pair[0])?, &pair[1]))).collect(),
        Value::Map(pairs) => pairs.iter().filter_map(|(name, value)| Some((text(name)?, value))).collect(),
        _ => return Err(odd("a primary")),
    };
    let field = |name| fields.get(name).copied();
    let host = field("ip").and_then(text).filter(|host| !host.is_empty()).ok_or_else(|| odd("ip"))?;
    let port = field("port").and_then(number).and_then(|port| u16::try_from(port).ok()).ok_or_else(|| odd("port"))?;
    let epoch = field("config-epoch").and_then(number).unwrap_or(0);
    Ok((epoch, Address { host: host.into(), port }))
}

/// CLUSTER SLOTS: `[first, last, [host, port, …], replicas…]…`
fn read_slots(answer: Value, asked: &Address) -> Result<Map, RedisError> {
    let Value::Array(items) = said(answer)? else { return Err(odd("slots")) };
    let mut found = Vec::with_capacity(items.len());
    for item in &items {
        let Value::Array(parts) = item else { return Err(odd("a range of slots")) };
        let [first, last, Value::Array(node), ..] = &parts[..] else { return Err(odd("a range of slots")) };
        let [host, port, ..] = &node[..] else { return Err(odd("a node")) };
        let bound = |value| number(value).and_then(|slot| u16::try_from(slot).ok()).filter(|slot| *slot < SLOTS);
        // a node that does not know its own name was called by one that works
        let host =
            text(host).filter(|host| !host.is_empty() && *host != "?").map_or_else(|| asked.host.clone(), Into::into);
        let port = number(port).and_then(|port| u16::try_from(port).ok());
        let range = bound(first).zip(bound(last)).zip(port).ok_or_else(|| odd("a range of slots"))?;
        let ((first, last), port) = range;
        found.push((first, last, Address { host, port }));
    }
    found.sort();
    let mut ranges: Vec<(u16, Option<Address>)> = Vec::new();
    let mut next = 0;
    for (first, last, node) in found {
        if first > next {
            ranges.push((first - 1, None));
        }
        next = last + 1;
        ranges.push((last, Some(node)));
    }
    if ranges.is_empty() {
        return Err((ErrorKind::ClusterConnectionNotFound, "the Cluster has no slots yet").into());
    }
    Ok(Map { ranges, moved: HashMap::new() })
}

/// A server's answer; an error is one.
pub fn said(answer: Value) -> Result<Value, RedisError> {
    match answer {
        Value::ServerError(error) => Err(error.into()),
        answer => Ok(answer),
    }
}

/// What is asked of one key, in one piece.
pub struct Request {
    slot: u16,
    commands: Vec<Cmd>,
}

impl Request {
    pub fn of(key: &str, commands: Vec<Cmd>) -> Self {
        Self { slot: slot(key), commands }
    }
}

/// The answers to the commands of a request; each may be an error that the server said.
pub type Answers = Result<Vec<Value>, Fault>;

/// One connection to each server that is asked. Requests share it; nobody blocks on it.
pub struct Links {
    topology: Arc<Topology>,
    hearing: Option<Arc<Hearing>>,
    links: Mutex<HashMap<Address, Link>>,
}

#[derive(Default)]
struct Link {
    open: Option<MultiplexedConnection>,
    /// Under way, for all who want it.
    connecting: Option<Connecting>,
    /// Why the last attempt failed.
    failed: Option<RedisError>,
    /// Tells one attempt, and its connection, from the next.
    number: u64,
}

type Connecting = Shared<BoxFuture<'static, Result<MultiplexedConnection, RedisError>>>;

impl Links {
    pub fn new(topology: Arc<Topology>, hearing: Option<Arc<Hearing>>) -> Self {
        Self { topology, hearing, links: Mutex::default() }
    }

    fn links(&self) -> MutexGuard<'_, HashMap<Address, Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With its number, and whether it was opened just now.
    async fn link(&self, node: &Address) -> Result<(u64, MultiplexedConnection, bool), RedisError> {
        let (number, connecting, failed) = {
            let mut links = self.links();
            let link = links.entry(node.clone()).or_default();
            if let Some(open) = &link.open {
                return Ok((link.number, open.clone(), false));
            }
            if link.connecting.is_none() {
                link.number += 1;
                link.connecting = Some(self.connect(node));
            }
            (link.number, link.connecting.clone(), link.failed.clone())
        };
        let Some(connecting) = connecting else { return Err(nobody()) };
        let connected = match failed {
            None => connecting.await,
            // it may be long in coming: what is asked of other servers does not wait for it
            Some(error) => tokio::time::timeout(GRACE, connecting).await.unwrap_or(Err(error)),
        };
        let mut links = self.links();
        let link = links.entry(node.clone()).or_default();
        if link.number == number && link.connecting.as_ref().is_some_and(|connecting| connecting.peek().is_some()) {
            link.connecting = None;
            link.failed = connected.as_ref().err().cloned();
            link.open = connected.as_ref().ok().cloned();
        }
        connected.map(|open| (number, open, true))
    }

    fn connect(&self, node: &Address) -> Connecting {
        let (topology, hearing, node) = (self.topology.clone(), self.hearing.clone(), node.clone());
        let connect = async move {
            let ear = hearing.clone().map(Hearing::ear);
            let mut open = topology.login.connect(&node, ear).await?;
            topology.check_role(&node, &mut open).await?;
            if let Some(hearing) = hearing {
                hearing.listen(&node, &mut open).await?;
            }
            Ok(open)
        };
        // goes on while nobody waits; no longer than a connection may take
        let task = tokio::spawn(connect);
        task.map(|done| done.unwrap_or_else(|_| Err(nobody()))).boxed().shared()
    }

    /// After a failure: whoever comes next opens another.
    fn forget(&self, node: &Address, number: u64, error: &RedisError) {
        let mut links = self.links();
        let Some(link) = links.get_mut(node) else { return };
        if link.number == number && link.open.take().is_some() {
            link.failed = Some(error.clone());
            if let Some(hearing) = &self.hearing {
                hearing.lost();
            }
        }
    }

    /// One answer for each request, in their order. What one server does not answer fails alone.
    pub async fn ask(&self, requests: &[Request]) -> Vec<Answers> {
        let mut answers: Vec<Option<Answers>> = requests.iter().map(|_| None).collect();
        let mut to_ask: HashMap<(Address, bool), Vec<usize>> = HashMap::new();
        for (index, request) in requests.iter().enumerate() {
            match self.topology.node_of(request.slot) {
                Ok(node) => to_ask.entry((node, false)).or_default().push(index),
                Err(fault) => answers[index] = Some(Err(fault)),
            }
        }
        for round in 0..=REDIRECTS {
            let asked = to_ask.drain().map(|((node, is_asking), indexes)| async move {
                let answer = self.ask_node(&node, is_asking, indexes.iter().map(|index| &requests[*index])).await;
                (node, indexes, answer)
            });
            for (node, indexes, answer) in join_all(asked).await {
                let answer = match answer {
                    Ok(answer) => answer,
                    Err(error) => {
                        let fault = Fault { at: node.to_string(), error };
                        for index in indexes {
                            answers[index] = Some(Err(fault.clone()));
                        }
                        continue;
                    }
                };
                for (index, answer) in indexes.into_iter().zip(answer) {
                    match self.redirect(requests[index].slot, &node, &answer) {
                        Some(next) if round < REDIRECTS => to_ask.entry(next).or_default().push(index),
                        Some((to, _)) => {
                            let why = "the Cluster's nodes send on to each other";
                            let error = (ErrorKind::ClusterConnectionNotFound, why, to.to_string()).into();
                            answers[index] = Some(Err(Fault { at: node.to_string(), error }));
                        }
                        None => answers[index] = Some(Ok(answer)),
                    }
                }
            }
            if to_ask.is_empty() {
                break;
            }
        }
        answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(self.topology.fault(nobody())))).collect()
    }

    async fn ask_node(
        &self,
        node: &Address,
        is_asking: bool,
        requests: impl Iterator<Item = &Request> + Clone,
    ) -> Result<Vec<Vec<Value>>, RedisError> {
        let mut pipeline = Pipeline::new();
        for command in requests.clone().flat_map(|request| &request.commands) {
            if is_asking {
                // counts for the one command that follows
                pipeline.cmd("ASKING");
            }
            pipeline.add_command(command.clone());
        }
        let answered = async {
            loop {
                let (number, mut link, is_new) = self.link(node).await?;
                let answered = link.send_packed_commands(&pipeline, 0, pipeline.len()).await;
                let Err(error) = answered else { return answered };
                if is_broken(&error) {
                    self.forget(node, number, &error);
                }
                // a server closes what is idle, or is there again: once more, on a connection of today
                if is_new || !error.is_connection_dropped() {
                    return Err(error);
                }
            }
        };
        let answers = answered.await.inspect_err(|error| {
            if is_of_topology(error) {
                self.topology.doubt();
            }
        })?;
        if answers.len() != pipeline.len() {
            return Err(odd("as many answers as commands"));
        }
        let mut answers = answers.into_iter().skip(usize::from(is_asking)).step_by(if is_asking { 2 } else { 1 });
        Ok(requests.map(|request| answers.by_ref().take(request.commands.len()).collect()).collect())
    }

    /// Where to ask again, and whether ASKING goes first.
    fn redirect(&self, slot: u16, node: &Address, answers: &[Value]) -> Option<(Address, bool)> {
        for answer in answers {
            let Value::ServerError(error) = answer else { continue };
            let error = RedisError::from(error.clone());
            if let Some((to, _)) =
                error.redirect_node().filter(|_| matches!(self.topology.deployment, Deployment::Cluster { .. }))
            {
                let mut to = Address::parse(to)?;
                if to.host.is_empty() || &*to.host == "?" {
                    to.host = node.host.clone();
                }
                let is_asking = error.kind() == ErrorKind::Server(redis::ServerErrorKind::Ask);
                if !is_asking {
                    self.topology.moved(slot, &to);
                }
                return Some((to, is_asking));
            }
            if is_of_topology(&error) {
                self.topology.doubt();
            }
        }
        None
    }

    /// A command of one server.
    pub async fn ask_one(&self, node: &Address, command: Cmd) -> Result<Value, Fault> {
        let request = Request { slot: 0, commands: vec![command] };
        let fault = |error| Fault { at: node.to_string(), error };
        let answers = self.ask_node(node, false, [&request].into_iter()).await.map_err(fault)?;
        let answer = answers.into_iter().flatten().next().ok_or_else(|| fault(odd("an answer")))?;
        said(answer).map_err(fault)
    }
}
