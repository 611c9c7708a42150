//! Connections to the nodes, and requests that find the node of their key.
//!
//! Each set of connections has one to each node, and all requests share it; no command on it blocks. A node that does
//! not answer fails only the requests that were sent to it. The reason why redis-rs's own Cluster client is not used
//! stands in [`super::topology`].

use super::address::{Address, Deployment, Login};
use super::error::{is_broken, may_be_stale_topology};
use super::invalidation::Invalidations;
use super::keys::slot;
use super::reply::{check_reply, name_denied_key, unexpected_reply};
use super::topology::{NodeError, Topology, no_reply_yet};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, join_all};
use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, ServerErrorKind, Value};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Time that a request waits for a node which has failed before. It bounds the delay that one dead node causes for the
/// jobs of the others.
const RECONNECT_GRACE: Duration = Duration::from_millis(100);
/// Redirects followed for one request. While slots move there may be several.
const MAX_REDIRECTS: usize = 8;

/// Commands on one key, sent together in one pipeline.
pub struct Request {
    slot: u16,
    commands: Vec<Cmd>,
}

impl Request {
    pub fn new(key: &str, commands: Vec<Cmd>) -> Self {
        Self { slot: slot(key), commands }
    }
}

/// The replies to the commands of one request. Each may be an error that the server replied with.
pub type Replies = Result<Vec<Value>, NodeError>;

/// Connections to the nodes, at most one to each.
pub struct Nodes {
    topology: Arc<Topology>,
    /// Receives the changes of keys that were read here; only the tail has it.
    invalidations: Option<Arc<Invalidations>>,
    connections: Mutex<HashMap<Address, NodeConnection>>,
}

/// The connection to one node.
#[derive(Default)]
struct NodeConnection {
    state: ConnectionState,
    /// The reason why the last attempt failed, or why the last connection broke.
    last_error: Option<RedisError>,
    /// The credentials that these attempts were made with.
    login: Option<Arc<Login>>,
    /// The number of the attempt, and of the connection that came of it.
    attempt: u64,
}

#[derive(Default)]
enum ConnectionState {
    #[default]
    Closed,
    /// One attempt, for all requests that wait for it.
    Connecting(Connecting),
    Open(MultiplexedConnection),
}

impl NodeConnection {
    /// Forgets what was tried with other credentials, which says nothing of these. An open connection stays.
    fn renew_login(&mut self, login: Arc<Login>) {
        if self.login.as_ref().is_some_and(|used| Arc::ptr_eq(used, &login)) {
            return;
        }
        (self.login, self.last_error) = (Some(login), None);
        if let ConnectionState::Connecting(_) = self.state {
            self.state = ConnectionState::Closed;
        }
    }
}

type Connecting = Shared<BoxFuture<'static, Result<MultiplexedConnection, RedisError>>>;

/// A connection, as one request uses it.
struct Lease {
    connection: MultiplexedConnection,
    attempt: u64,
    /// It was opened for this request.
    is_new: bool,
}

/// The addressee of a pipeline.
#[derive(PartialEq, Eq, Hash)]
struct Target {
    node: Address,
    /// The node is importing the slot, and answers only after ASKING.
    is_asking: bool,
}

impl Nodes {
    pub fn new(topology: Arc<Topology>, invalidations: Option<Arc<Invalidations>>) -> Self {
        Self { topology, invalidations, connections: Mutex::default() }
    }

    /// Sends requests to the nodes that have their keys. Returns one result for each, in their order.
    pub async fn send(&self, requests: &[Request]) -> Vec<Replies> {
        let mut replies: Vec<Option<Replies>> = requests.iter().map(|_| None).collect();
        let mut pending: HashMap<Target, Vec<usize>> = HashMap::new();
        for (index, request) in requests.iter().enumerate() {
            match self.topology.node_of(request.slot) {
                Ok(node) => pending.entry(Target { node, is_asking: false }).or_default().push(index),
                Err(error) => replies[index] = Some(Err(error)),
            }
        }
        for redirects in 0..=MAX_REDIRECTS {
            let sent = pending.drain().map(|(target, indexes)| async move {
                let commands: Vec<&[Cmd]> = indexes.iter().map(|index| &requests[*index].commands[..]).collect();
                let result = self.send_to_target(&target, &commands).await;
                (target, indexes, result)
            });
            for (target, indexes, result) in join_all(sent).await {
                let error_here = |error| NodeError { server: target.node.to_string(), error };
                let values = match result {
                    Ok(values) => values,
                    Err(error) => {
                        indexes.into_iter().for_each(|index| replies[index] = Some(Err(error_here(error.clone()))));
                        continue;
                    }
                };
                for (index, values) in indexes.into_iter().zip(values) {
                    match self.redirect(requests[index].slot, &target.node, &values) {
                        None => replies[index] = Some(Ok(values)),
                        Some(next) if redirects < MAX_REDIRECTS => pending.entry(next).or_default().push(index),
                        Some(next) => {
                            let why = "the Cluster's nodes send on to each other";
                            let error = (ErrorKind::ClusterConnectionNotFound, why, next.node.to_string()).into();
                            replies[index] = Some(Err(error_here(error)));
                        }
                    }
                }
            }
            if pending.is_empty() {
                break;
            }
        }
        replies
            .into_iter()
            .map(|reply| reply.unwrap_or_else(|| Err(self.topology.node_error(no_reply_yet()))))
            .collect()
    }

    /// Sends a command to one node, whatever its keys.
    pub async fn send_to(&self, node: &Address, command: Cmd) -> Result<Value, NodeError> {
        let target = Target { node: node.clone(), is_asking: false };
        let node_error = |error| NodeError { server: node.to_string(), error };
        let values = self.send_to_target(&target, &[&[command]]).await.map_err(node_error)?;
        let value = values.into_iter().flatten().next().ok_or_else(|| node_error(unexpected_reply("an answer")))?;
        check_reply(value).map_err(node_error)
    }

    /// Sends the commands of several requests in one pipeline, and returns the replies for each request.
    async fn send_to_target(&self, target: &Target, requests: &[&[Cmd]]) -> Result<Vec<Vec<Value>>, RedisError> {
        let mut pipeline = Pipeline::new();
        for command in requests.iter().copied().flatten() {
            if target.is_asking {
                // ASKING counts for the one command that follows
                pipeline.cmd("ASKING");
            }
            pipeline.add_command(command.clone());
        }
        let values = self.send_pipeline(&target.node, &pipeline).await.inspect_err(|error| {
            if may_be_stale_topology(error) {
                self.topology.request_refresh();
            }
        })?;
        if values.len() != pipeline.len() {
            return Err(unexpected_reply("as many answers as commands"));
        }
        let (skipped, step) = if target.is_asking { (1, 2) } else { (0, 1) };
        let mut values = values.into_iter().skip(skipped).step_by(step);
        let replies_to = |commands: &&[Cmd]| {
            commands.iter().zip(values.by_ref()).map(|(command, value)| name_denied_key(value, command)).collect()
        };
        Ok(requests.iter().map(replies_to).collect())
    }

    /// Sends a pipeline to a node. A server may have closed an idle connection, or have been restarted: then the
    /// pipeline is sent once more, on a new connection.
    async fn send_pipeline(&self, node: &Address, pipeline: &Pipeline) -> Result<Vec<Value>, RedisError> {
        loop {
            let mut lease = self.connection(node).await?;
            let sent = lease.connection.send_packed_commands(pipeline, 0, pipeline.len()).await;
            let Err(error) = sent else { return sent };
            if is_broken(&error) {
                self.discard(node, &lease, &error);
            }
            if lease.is_new || !error.is_connection_dropped() {
                return Err(error);
            }
        }
    }

    /// Returns the target to ask next where a reply is a redirect.
    fn redirect(&self, slot: u16, node: &Address, replies: &[Value]) -> Option<Target> {
        for reply in replies {
            let Value::ServerError(error) = reply else { continue };
            let error = RedisError::from(error.clone());
            if matches!(self.topology.deployment(), Deployment::Cluster { .. })
                && let Some((to, _)) = error.redirect_node()
            {
                let to = Address::parse(to)?.or_host_of(node);
                let is_asking = error.kind() == ErrorKind::Server(ServerErrorKind::Ask);
                if !is_asking {
                    self.topology.note_moved(slot, &to);
                }
                return Some(Target { node: to, is_asking });
            }
            if may_be_stale_topology(&error) {
                self.topology.request_refresh();
            }
        }
        None
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<Address, NodeConnection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the open connection to a node, or waits for the one attempt to open it.
    async fn connection(&self, node: &Address) -> Result<Lease, RedisError> {
        let (attempt, connecting, last_error) = {
            let mut connections = self.connections();
            let entry = connections.entry(node.clone()).or_default();
            entry.renew_login(self.topology.login());
            let connecting = match &entry.state {
                ConnectionState::Open(connection) => {
                    return Ok(Lease { connection: connection.clone(), attempt: entry.attempt, is_new: false });
                }
                ConnectionState::Connecting(connecting) => connecting.clone(),
                ConnectionState::Closed => {
                    let connecting = self.connect(node);
                    entry.attempt += 1;
                    entry.state = ConnectionState::Connecting(connecting.clone());
                    connecting
                }
            };
            (entry.attempt, connecting, entry.last_error.clone())
        };
        let connected = match last_error {
            None => connecting.clone().await,
            // The attempt goes on; requests to other nodes must not wait for it.
            Some(error) => {
                tokio::time::timeout(RECONNECT_GRACE, connecting.clone()).await.unwrap_or_else(|_| Err(error))
            }
        };
        let mut connections = self.connections();
        let entry = connections.entry(node.clone()).or_default();
        if entry.attempt == attempt
            && matches!(entry.state, ConnectionState::Connecting(_))
            && let Some(finished) = connecting.peek()
        {
            (entry.state, entry.last_error) = match finished {
                Ok(connection) => (ConnectionState::Open(connection.clone()), None),
                Err(error) => (ConnectionState::Closed, Some(error.clone())),
            };
        }
        connected.map(|connection| Lease { connection, attempt, is_new: true })
    }

    /// Starts an attempt to connect. Its task goes on while nobody waits, for no longer than a connection may take.
    fn connect(&self, node: &Address) -> Connecting {
        let connecting = tokio::spawn(connect(self.topology.clone(), self.invalidations.clone(), node.clone()));
        connecting.map(|finished| finished.unwrap_or_else(|_| Err(no_reply_yet()))).boxed().shared()
    }

    /// Closes a connection that failed, unless another has taken its place; the next request opens a new one.
    fn discard(&self, node: &Address, lease: &Lease, error: &RedisError) {
        let mut connections = self.connections();
        let Some(entry) = connections.get_mut(node) else { return };
        if entry.attempt == lease.attempt && matches!(entry.state, ConnectionState::Open(_)) {
            entry.state = ConnectionState::Closed;
            entry.last_error = Some(error.clone());
            if let Some(invalidations) = &self.invalidations {
                invalidations.mark_incomplete();
            }
        }
    }
}

async fn connect(
    topology: Arc<Topology>,
    invalidations: Option<Arc<Invalidations>>,
    node: Address,
) -> Result<MultiplexedConnection, RedisError> {
    let push_handler = invalidations.clone().map(Invalidations::push_handler);
    let mut connection = topology.login().connect(&node, push_handler).await?;
    topology.check_role(&node, &mut connection).await?;
    if let Some(invalidations) = invalidations {
        invalidations.track(&node, &mut connection).await?;
    }
    Ok(connection)
}
