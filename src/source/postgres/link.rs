//! Connections, kept for whoever needs one next, and statements on them.

use deadpool::managed::{Manager, Metrics, Object, Pool, PoolError, RecycleError, RecycleResult, TimeoutType};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use std::io;
use std::time::Duration;

/// A statement takes no longer, or the connection is given up.
const PATIENCE: Duration = Duration::from_secs(15);
/// To connect, or to wait for one of ours to be free.
const CONNECT: Duration = Duration::from_secs(5);
/// A connection that nobody has used for so long is looked at before it is used.
const FRESH: Duration = Duration::from_secs(1);
/// And for so long, closed.
const IDLE: Duration = Duration::from_secs(300);

/// One connection. After anything that failed, or was not waited for, it is not used again: whatever it left open (a
/// transaction, half an answer) ends with it.
pub struct Link {
    connection: PgConnection,
    is_clean: bool,
    is_in_transaction: bool,
}

impl Link {
    /// One statement, whole, by the simple protocol.
    pub async fn ask(&mut self, sql: String) -> Result<Vec<PgRow>, sqlx::Error> {
        self.is_clean = false;
        let asked = self.connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql)));
        let answer = tokio::time::timeout(PATIENCE, asked).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
        self.is_clean = !self.is_in_transaction;
        Ok(answer)
    }

    /// What follows, up to [`Link::commit`], is one transaction.
    pub async fn begin(&mut self, how: &str) -> Result<(), sqlx::Error> {
        self.is_in_transaction = true;
        self.ask(format!("BEGIN {how}")).await.map(drop)
    }

    pub async fn commit(&mut self) -> Result<(), sqlx::Error> {
        self.ask("COMMIT".into()).await?;
        (self.is_in_transaction, self.is_clean) = (false, true);
        Ok(())
    }
}

/// At most so many of them.
pub struct Links(Pool<Server>);

struct Server(PgConnectOptions);

impl Links {
    pub fn new(options: PgConnectOptions, most: u32) -> Self {
        let pool = Pool::builder(Server(options))
            .max_size(most.max(1) as usize)
            .runtime(deadpool::Runtime::Tokio1)
            .wait_timeout(Some(CONNECT))
            .create_timeout(Some(CONNECT))
            .recycle_timeout(Some(CONNECT));
        // fails only for timeouts without a runtime
        Self(pool.build().unwrap_or_else(|error| unreachable!("{error}")))
    }

    pub async fn get(&self) -> Result<impl std::ops::DerefMut<Target = Link> + Send + use<>, sqlx::Error> {
        let got: Result<Object<Server>, _> = self.0.get().await;
        got.map_err(|error| match error {
            PoolError::Backend(error) => error,
            PoolError::Timeout(TimeoutType::Wait) => sqlx::Error::PoolClosed,
            error => sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, error.to_string())),
        })
    }
}

impl Manager for Server {
    type Type = Link;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<Link, sqlx::Error> {
        Ok(Link { connection: self.0.connect().await?, is_clean: true, is_in_transaction: false })
    }

    async fn recycle(&self, link: &mut Link, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        let unused = metrics.last_used();
        if !link.is_clean || unused > IDLE {
            return Err(RecycleError::message("not to be used again"));
        }
        if unused > FRESH {
            link.connection.ping().await?;
        }
        Ok(())
    }
}
