//! Connections to the server, pooled, and statements on them.
//!
//! The pool is deadpool's and not sqlx's, because sqlx pings a connection each time it is given back: that is one round
//! trip more per statement. Here a connection is pinged only after it has been idle for a while.

use super::error::QueryError;
use deadpool::managed::{Manager, Metrics, Object, Pool, PoolError, RecycleError, RecycleResult, TimeoutType};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, Executor, Row};
use std::time::Duration;

/// Longest time that a statement may take; after it the connection is given up.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(15);
/// Goes before every statement outside of a transaction, in the same message, so that it costs no round trip and passes
/// a pooler in transaction mode. The server stops a statement before we give it up, so none works on for nobody.
const SERVER_TIMEOUT: &str = "SET LOCAL statement_timeout = '10s'; ";
/// The same for a database without an encoding, which else refuses to send what is no UTF-8.
const BARE_ENCODING: &str = "SET LOCAL client_encoding = 'SQL_ASCII'; ";
/// Longest time to connect, to ping, or to wait until one of our connections is free.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that was idle for longer is pinged before it is used.
const PING_AFTER_IDLE: Duration = Duration::from_secs(1);
/// A connection that was idle for longer is closed instead of used.
const CLOSE_AFTER_IDLE: Duration = Duration::from_secs(300);

/// One connection to the server.
///
/// After a statement that broke off or was not awaited, or failed within a transaction, it never returns to the pool, so that whatever it left open (a
/// transaction, half a result) ends with it.
pub struct Connection {
    connection: PgConnection,
    state: State,
    /// Goes before every statement outside of a transaction.
    prefix: String,
}

enum State {
    /// Nothing is open; the connection may serve the next borrower.
    Idle,
    /// Between [`Connection::begin`] and [`Connection::commit`].
    InTransaction,
    /// A statement is running, or one has broken off or was dropped.
    Unfinished,
}

impl Connection {
    /// Runs one statement by the simple protocol and returns all of its rows.
    pub async fn query(&mut self, sql: String) -> Result<Vec<PgRow>, QueryError> {
        let sql = if matches!(self.state, State::Idle) { format!("{}{sql}", self.prefix) } else { sql };
        self.run(sql).await
    }

    async fn run(&mut self, sql: String) -> Result<Vec<PgRow>, QueryError> {
        let state = std::mem::replace(&mut self.state, State::Unfinished);
        let rows = self.connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql)));
        let rows = tokio::time::timeout(STATEMENT_TIMEOUT, rows).await.map_err(|_| QueryError::Timeout)?;
        // A statement that the server has refused leaves nothing open, but for a transaction.
        let is_refused = matches!(rows, Err(sqlx::Error::Database(_))) && matches!(state, State::Idle);
        if rows.is_ok() || is_refused {
            self.state = state;
        }
        Ok(rows?)
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

/// A bounded number of connections, made when they are needed.
pub struct ConnectionPool(Pool<Connector>);

/// A connection on loan from the pool; it returns when this is dropped.
pub type PooledConnection = Object<Connector>;

impl ConnectionPool {
    pub fn new(options: PgConnectOptions, max_connections: u32) -> Self {
        let pool = Pool::builder(Connector(options))
            .max_size(max_connections.max(1) as usize)
            .runtime(deadpool::Runtime::Tokio1)
            .wait_timeout(Some(CONNECT_TIMEOUT))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .recycle_timeout(Some(CONNECT_TIMEOUT));
        // Building fails only for time-outs without a runtime.
        Self(pool.build().unwrap_or_else(|error| unreachable!("{error}")))
    }

    pub async fn get(&self) -> Result<PooledConnection, QueryError> {
        self.0.get().await.map_err(|error| match error {
            PoolError::Backend(error) => error.into(),
            PoolError::Timeout(TimeoutType::Wait) => QueryError::PoolExhausted,
            error => QueryError::NotConnected(error.to_string()),
        })
    }
}

/// Opens connections for the pool, and decides whether a used one is used again.
pub struct Connector(PgConnectOptions);

impl Manager for Connector {
    type Type = Connection;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<Connection, sqlx::Error> {
        let mut connection = self.0.connect().await?;
        let encoding = connection.fetch_one(sqlx::raw_sql("SHOW server_encoding")).await?;
        let is_bare = encoding.try_get::<String, _>(0)? == "SQL_ASCII";
        let prefix = format!("{SERVER_TIMEOUT}{}", if is_bare { BARE_ENCODING } else { "" });
        Ok(Connection { connection, state: State::Idle, prefix })
    }

    async fn recycle(&self, connection: &mut Connection, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        let idle = metrics.last_used();
        if !matches!(connection.state, State::Idle) || idle > CLOSE_AFTER_IDLE {
            return Err(RecycleError::message("not to be used again"));
        }
        if idle > PING_AFTER_IDLE {
            connection.connection.ping().await?;
        }
        Ok(())
    }
}
