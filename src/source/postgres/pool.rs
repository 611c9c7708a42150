//! Connections to the server, pooled, and statements on them.
//!
//! The pool is deadpool's and not sqlx's, because sqlx pings a connection each time it is given back: that is one round
//! trip more per statement. Here a connection is pinged only after it has been idle for a while.

use super::error::QueryError;
use super::position::Life;
use super::sql;
use super::turns::{Kind, Turn, Turns};
use crate::telemetry::{self, Held};
use deadpool::managed::{Manager, Metrics, Object, Pool, PoolError, RecycleError, RecycleResult, TimeoutType};
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgRow, PgSeverity};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, Executor, Row};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::timeout;
use uuid::Uuid;

/// Time after `source.read_timeout` in which a server must say that it has stopped a statement. Then the connection is given
/// up.
const STOPPING: Duration = Duration::from_secs(1);
/// Goes before every statement, for a database without an encoding, which else refuses to send what is no UTF-8.
const BARE_ENCODING: &str = "SET LOCAL client_encoding = 'SQL_ASCII'; ";
/// Longest time to connect, to ping, or to wait until one of our connections is free.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that was idle for longer is pinged before it is used.
const PING_AFTER_IDLE: Duration = Duration::from_secs(1);
/// A connection that was idle for longer is closed instead of used.
const CLOSE_AFTER_IDLE: Duration = Duration::from_secs(300);
/// Time for a statement that nobody waits for any more to end by itself, before it is cancelled.
const ENDING: Duration = Duration::from_millis(50);
/// Longest time to cancel it, and the same for its end after that.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

/// One connection to the server.
///
/// Only an idle one returns to the pool, so that whatever it left open (a transaction, half a result) ends with it.
pub struct Connection {
    connection: PgConnection,
    state: State,
    /// Goes before every statement outside of a transaction, in the same message, so that it costs no round trip and passes a
    /// pooler in transaction mode. It has the server stop a statement that takes too long, so that none works on for nobody.
    prefix: String,
    /// Text in the prefix by which the server's other connections find what this one runs.
    tag: String,
    /// Longest time that a statement may take; after it the connection is given up.
    patience: Duration,
    /// `None` where the server does not tell.
    life: Option<Life>,
}

enum State {
    /// Nothing is open; the connection may serve the next borrower.
    Idle,
    /// Between [`Connection::begin`] and [`Connection::commit`].
    InTransaction,
    /// A statement is running. Where its future was dropped, the server works on it for nobody.
    Running,
    /// A statement has broken off, or failed within a transaction.
    Broken,
}

impl Connection {
    /// Runs one statement by the simple protocol and returns all of its rows.
    pub async fn query(&mut self, sql: String) -> Result<Vec<PgRow>, QueryError> {
        let sql = if matches!(self.state, State::Idle) { format!("{}{sql}", self.prefix) } else { sql };
        self.run(sql).await
    }

    async fn run(&mut self, sql: String) -> Result<Vec<PgRow>, QueryError> {
        let state = std::mem::replace(&mut self.state, State::Running);
        let rows = self.connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql)));
        let rows = timeout(self.patience, rows).await;
        // A statement that the server has refused leaves nothing open, but for a transaction.
        let is_refused = matches!(&rows, Ok(Err(sqlx::Error::Database(error))) if !is_fatal(&**error));
        let is_refused = is_refused && matches!(state, State::Idle);
        self.state = if matches!(rows, Ok(Ok(_))) || is_refused { state } else { State::Broken };
        Ok(rows.map_err(|_| QueryError::Timeout)??)
    }

    /// Runs a statement that returns at least one row, and returns the first.
    pub async fn query_one(&mut self, sql: String) -> Result<PgRow, QueryError> {
        self.query(sql).await?.into_iter().next().ok_or(QueryError::NoRow)
    }

    /// Begins a transaction that lasts until [`Connection::commit`].
    pub async fn begin(&mut self) -> Result<(), QueryError> {
        self.run("BEGIN".into()).await?;
        self.state = State::InTransaction;
        Ok(())
    }

    pub async fn commit(&mut self) -> Result<(), QueryError> {
        self.run("COMMIT".into()).await?;
        self.state = State::Idle;
        Ok(())
    }
}

/// The server's address and the credentials for it, which may be renewed while connections are open; cheap to clone.
#[derive(Clone)]
pub struct Login(Arc<RwLock<PgConnectOptions>>);

impl Login {
    pub fn new(options: PgConnectOptions) -> Self {
        Self(Arc::new(RwLock::new(options)))
    }

    pub fn get(&self) -> PgConnectOptions {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn renew(&self, options: PgConnectOptions) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = options;
    }
}

/// The life of the database that the newest connection has found, or the newest statement on one that a pooler leads elsewhere;
/// cheap to clone. A server that takes the place of another is noticed by it, whatever its rows and transaction ids look like.
#[derive(Clone, Default)]
pub struct CurrentLife(Arc<RwLock<Option<Life>>>);

impl CurrentLife {
    /// Returns true for another life than that of the newest connection, as far as both are known.
    pub fn is_not(&self, life: Option<Life>) -> bool {
        let current = *self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.zip(life).is_some_and(|(current, life)| current != life)
    }

    /// Takes the life that a new connection or a statement has found. Returns true if it is another than before.
    pub fn learn(&self, life: Option<Life>) -> bool {
        let is_another = self.is_not(life);
        if life.is_some() {
            *self.0.write().unwrap_or_else(PoisonError::into_inner) = life;
        }
        is_another
    }
}

/// Asks which life the server is of; `None` where it does not tell.
async fn life_of(connection: &mut PgConnection) -> Result<Option<Life>, sqlx::Error> {
    match connection.fetch_one(sqlx::raw_sql(sql::LIFE)).await {
        Ok(row) => Ok(Some(Life::of(row.try_get("life")?))),
        Err(sqlx::Error::Database(error)) if !is_fatal(&*error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Tells if the server closes the connection after this error.
fn is_fatal(error: &dyn DatabaseError) -> bool {
    let error = error.try_downcast_ref::<PgDatabaseError>();
    error.is_some_and(|error| matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

/// A bounded number of connections, made when they are needed.
pub struct ConnectionPool {
    pool: Pool<Connector>,
    turns: Arc<Turns>,
    canceller: Arc<Canceller>,
}

impl ConnectionPool {
    pub fn new(login: Login, life: CurrentLife, max_connections: u32, read_timeout: Duration) -> Self {
        let max_connections = max_connections.max(1) as usize;
        let pool = Pool::builder(Connector { login: login.clone(), life, read_timeout })
            .max_size(max_connections)
            .runtime(deadpool::Runtime::Tokio1)
            .wait_timeout(Some(CONNECT_TIMEOUT))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .recycle_timeout(Some(CONNECT_TIMEOUT));
        // Building fails only for time-outs without a runtime.
        let pool = pool.build().unwrap_or_else(|error| unreachable!("{error}"));
        Self {
            pool,
            turns: Turns::new(max_connections),
            canceller: Arc::new(Canceller { login, turn: Mutex::default() }),
        }
    }

    pub async fn get(&self) -> Result<PooledConnection, QueryError> {
        let _waiting = telemetry::POOL_WAITING.hold();
        self.lend(None).await
    }

    /// Lends a connection to a reader when it is its turn.
    pub async fn get_for(&self, kind: Kind) -> Result<PooledConnection, QueryError> {
        let _waiting = telemetry::POOL_WAITING.hold();
        let turn = timeout(CONNECT_TIMEOUT, self.turns.take(kind)).await;
        self.lend(Some(turn.ok().flatten().ok_or(QueryError::PoolExhausted)?)).await
    }

    async fn lend(&self, turn: Option<Turn>) -> Result<PooledConnection, QueryError> {
        let connection = self.pool.get().await.map_err(|error| match error {
            PoolError::Backend(error) => error,
            PoolError::Timeout(TimeoutType::Wait) => QueryError::PoolExhausted,
            error => QueryError::NotConnected(error.to_string()),
        })?;
        let loan = Loan { connection, _turn: turn, _counted: telemetry::POOL_IN_USE.hold() };
        Ok(PooledConnection { loan: Some(loan), canceller: self.canceller.clone() })
    }
}

/// A connection on loan from the pool; it returns when this is dropped.
pub struct PooledConnection {
    /// `None` only while it is dropped.
    loan: Option<Loan>,
    canceller: Arc<Canceller>,
}

struct Loan {
    connection: Object<Connector>,
    _turn: Option<Turn>,
    _counted: Held,
}

impl Deref for PooledConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.loan.as_ref().map_or_else(|| unreachable!("it was dropped"), |loan| &loan.connection)
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut Connection {
        self.loan.as_mut().map_or_else(|| unreachable!("it was dropped"), |loan| &mut loan.connection)
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        let Some(loan) = self.loan.take() else { return };
        match (&loan.connection.state, tokio::runtime::Handle::try_current()) {
            (State::Idle, _) => {}
            (State::Running, Ok(runtime)) => drop(runtime.spawn(loan.end(self.canceller.clone()))),
            _ => drop(Object::take(loan.connection)),
        }
    }
}

impl Loan {
    /// Waits for the end of a statement that nobody waits for any more, and cancels it if that is not soon. The
    /// connection counts as taken until then, so that who leaves and comes back gets no more of the server than who
    /// stays.
    async fn end(mut self, canceller: Arc<Canceller>) {
        if timeout(ENDING, self.connection.connection.ping()).await.is_err() {
            canceller.cancel(&self.connection.tag).await;
            let _ = timeout(CANCEL_TIMEOUT, self.connection.connection.ping()).await;
        }
        drop(Object::take(self.connection));
    }
}

/// Cancels statements, on a connection of its own that is closed afterwards: the pool's may all be taken.
struct Canceller {
    login: Login,
    /// Held by whoever cancels, so that one connection is enough.
    turn: Mutex<()>,
}

impl Canceller {
    /// Cancels the statement that has this tag. The driver does not tell the key for a request to cancel, and a pooler
    /// would not tell the process; the server's list of activity has both the text and the process.
    async fn cancel(&self, tag: &str) {
        let _turn = self.turn.lock().await;
        let cancelled = timeout(CANCEL_TIMEOUT, async {
            let mut connection = self.login.get().connect().await?;
            connection.execute(sqlx::raw_sql(AssertSqlSafe(sql::cancel_statement(tag)))).await?;
            connection.close().await
        });
        if !matches!(cancelled.await, Ok(Ok(()))) {
            tracing::debug!("a statement that nobody waits for could not be cancelled");
        }
    }
}

/// Opens connections for the pool, and decides whether a used one is used again.
pub struct Connector {
    login: Login,
    life: CurrentLife,
    read_timeout: Duration,
}

impl Manager for Connector {
    type Type = Connection;
    type Error = QueryError;

    async fn create(&self) -> Result<Connection, QueryError> {
        let mut connection = self.login.get().connect().await?;
        let life = life_of(&mut connection).await?;
        if self.life.learn(life) {
            // Whoever asks for it holds the tables of the other server.
            return Err(QueryError::OtherServer);
        }
        let encoding = connection.fetch_one(sqlx::raw_sql("SHOW server_encoding")).await?;
        let is_bare = encoding.try_get::<String, _>(0)? == "SQL_ASCII";
        let tag = Uuid::now_v7().simple().to_string();
        // Not before the first statement: servers up to version 15 gather statistics of `SET` by its text.
        let (limit, encoding) = (self.read_timeout.as_millis(), if is_bare { BARE_ENCODING } else { "" });
        let prefix = format!("SET LOCAL statement_timeout = '{limit}ms'; {encoding}/* {tag} */ ");
        let patience = self.read_timeout + STOPPING;
        Ok(Connection { connection, state: State::Idle, prefix, tag, patience, life })
    }

    async fn recycle(&self, connection: &mut Connection, metrics: &Metrics) -> RecycleResult<QueryError> {
        let idle = metrics.last_used();
        let is_elsewhere = self.life.is_not(connection.life);
        if !matches!(connection.state, State::Idle) || idle > CLOSE_AFTER_IDLE || is_elsewhere {
            return Err(RecycleError::message("not to be used again"));
        }
        if idle > PING_AFTER_IDLE {
            connection.connection.ping().await.map_err(QueryError::from)?;
        }
        Ok(())
    }
}
