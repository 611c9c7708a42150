//! Listens for the database's notifications, on a connection of its own.

use super::store::Store;
use crate::telemetry;
use sqlx::postgres::PgListener;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Pause before the next attempt to listen, which new credentials end.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Calls `notified` on every notification of `channel`. Runs until it is aborted. While the database cannot be listened
/// to, new events wait for the poll.
pub async fn listen(store: Arc<Store>, channel: String, notified: Arc<Notify>) {
    let is_listening = telemetry::SOURCE_LISTENING.gauge(&[]);
    let mut is_logged = false;
    loop {
        let Err(error) = listen_until_error(&store, &channel, &notified).await;
        is_listening.set(0.0);
        if !is_logged {
            is_logged = true;
            let error = store.error("listening for wake-ups", error.into());
            tracing::info!(code = error.code.as_str(), %error, "no wake-ups: new events wait for the poll");
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_DELAY) => {}
            () = store.renewed.notified() => {}
        }
    }
}

async fn listen_until_error(store: &Store, channel: &str, notified: &Notify) -> Result<Infallible, sqlx::Error> {
    let is_listening = telemetry::SOURCE_LISTENING.gauge(&[]);
    loop {
        let mut listener = PgListener::connect_with(&store.listener_pool).await?;
        // Only then the loss of a connection is told at once.
        listener.eager_reconnect(false);
        listener.listen(channel).await?;
        tracing::debug!(channel, "listening for wake-ups");
        is_listening.set(1.0);
        // Something may have come between two connections.
        notified.notify_one();
        while listener.try_recv().await?.is_some() {
            notified.notify_one();
        }
        is_listening.set(0.0);
    }
}
