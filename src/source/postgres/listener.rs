//! Listens for the database's notifications, on a connection of its own.

use super::error::QueryError;
use super::pool::CONNECT_TIMEOUT;
use super::sql;
use super::store::Store;
use crate::telemetry;
use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::timeout;

/// Pause before the next attempt to listen, which new credentials end.
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// A connection that has brought nothing for so long is asked for an answer: a firewall may have forgotten it, and tells
/// nobody.
const SILENCE: Duration = Duration::from_secs(15);

/// Calls `notified` on every notification of `channel`. Runs until it is aborted. While the database cannot be listened
/// to, new events wait for the poll.
pub async fn listen(store: Arc<Store>, channel: String, notified: Arc<Notify>) {
    let mut is_logged = false;
    loop {
        let Err(error) = listen_until_error(&store, &channel, &notified).await;
        if !is_logged {
            is_logged = true;
            let error = store.error("listening for wake-ups", error);
            tracing::info!(code = error.code.as_str(), %error, "no wake-ups: new events wait for the poll");
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_DELAY) => {}
            () = store.renewed.notified() => {}
        }
    }
}

async fn listen_until_error(store: &Store, channel: &str, notified: &Notify) -> Result<Infallible, QueryError> {
    loop {
        let mut listener = within(CONNECT_TIMEOUT, start(store, channel)).await?;
        tracing::debug!(channel, "listening for wake-ups");
        // However this ends, also by a panic, nobody listens any more.
        let _is_listening = telemetry::SOURCE_LISTENING.hold();
        // Something may have come between two connections.
        notified.notify_one();
        while hears(&mut listener, channel).await? {
            notified.notify_one();
        }
    }
}

/// Listens on a new connection. Its pool is its own: sqlx's listener needs one, and gives a connection back to it only
/// after a last statement, for which the server's answer may never come.
async fn start(store: &Store, channel: &str) -> Result<PgListener, sqlx::Error> {
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(store.login.get());
    let mut listener = PgListener::connect_with(&pool).await?;
    // Only then the loss of a connection is told at once.
    listener.eager_reconnect(false);
    listener.listen(channel).await?;
    Ok(listener)
}

/// Waits for a notification. Returns false once the connection is lost, also where only its silence says so.
async fn hears(listener: &mut PgListener, channel: &str) -> Result<bool, QueryError> {
    loop {
        match within(SILENCE, listener.try_recv()).await {
            Ok(heard) => return Ok(heard.is_some()),
            Err(QueryError::Timeout) => {}
            Err(error) => return Err(error),
        }
        // Changes nothing for one that listens.
        let again = AssertSqlSafe(format!("LISTEN {}", sql::quote(channel)));
        match within(CONNECT_TIMEOUT, listener.execute(sqlx::raw_sql(again))).await {
            Err(QueryError::Timeout) => {
                tracing::info!("the connection for wake-ups does not answer any more; a new one is made");
                return Ok(false);
            }
            answer => answer?,
        };
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, QueryError> {
    Ok(timeout(limit, work).await.map_err(|_| QueryError::Timeout)??)
}
