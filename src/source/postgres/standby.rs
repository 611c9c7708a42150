//! The lag of a standby behind its primary, for operators.

use super::error::QueryError;
use super::session::Session;
use super::sql;
use crate::telemetry;
use sqlx::Row;
use std::time::{Duration, Instant};

/// Least time between two questions, about as often as metrics are read.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// The moment at which a standby was asked last; `None` while the server is a primary.
#[derive(Default)]
pub struct StandbyLag(Option<Instant>);

impl StandbyLag {
    /// Has the gauge say how far the server lags, if it is a standby. A server that refuses to tell lags by nothing that
    /// anybody knows.
    pub async fn measure(&mut self, session: &mut Session<'_>, is_standby: bool) -> Result<(), QueryError> {
        let gauge = telemetry::STANDBY_LAG.gauge(&[]);
        if !is_standby {
            if self.0.take().is_some() {
                gauge.set(0.0);
            }
            return Ok(());
        }
        if self.0.is_some_and(|asked| asked.elapsed() < ASK_INTERVAL) {
            return Ok(());
        }
        self.0 = Some(Instant::now());
        let seconds = match session.connection.query_one(sql::STANDBY_LAG.into()).await {
            Ok(row) => row.try_get::<Option<f64>, _>("seconds")?,
            Err(QueryError::Sqlx(sqlx::Error::Database(_))) => None,
            Err(error) => return Err(error),
        };
        gauge.set(seconds.unwrap_or(0.0));
        Ok(())
    }
}
