//! `/connections` of the admin listener: the open streams, for operators who list or close them.

use super::extract::{ConnectionsQuery, Query};
use super::problem::Problem;
use crate::delivery::connections::{Connection, Filter, Listed, Registry};
use crate::delivery::threads::{NoAnswer, Threads};
use crate::event::JobId;
use crate::hub::Hub;
use actix_web::{HttpResponse, web};
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;

/// Everybody who holds open streams.
#[derive(Clone)]
pub struct Connections {
    pub hub: Hub,
    /// The streams that actix serves.
    pub registry: Registry,
    /// All others.
    pub threads: Threads,
    /// Makes whoever caches the rights of callers forget those for a job, of a subject, or, where both are given, of that
    /// subject for that job, so that they are asked for anew.
    pub forget_rights: ForgetRights,
}

pub type ForgetRights = Arc<dyn Fn(Option<&JobId>, Option<&str>) + Send + Sync>;

impl Connections {
    /// Lists the streams that `filter` allows, the oldest first and at most `limit`.
    async fn list(&self, filter: &Arc<Filter>, limit: usize) -> Result<Listed, NoAnswer> {
        // First those in actix. One that leaves it meanwhile is then found at its thread, and is shown once.
        let mut all = vec![self.registry.list(filter, limit, &self.hub)];
        all.extend(self.threads.list(filter, limit).await?);
        let total = all.iter().map(|listed| listed.total).sum();
        let found = all.into_iter().flat_map(|listed| listed.connections);
        let by_id: HashMap<String, Connection> = found.map(|one| (one.id.clone(), one)).collect();
        let mut connections: Vec<Connection> = by_id.into_values().collect();
        connections.sort_by_key(|one| one.since);
        connections.truncate(limit);
        Ok(Listed { total, connections })
    }

    /// Closes the streams that `filter` allows, and returns their number.
    async fn close(&self, filter: &Arc<Filter>) -> Result<usize, NoAnswer> {
        // Rights go first, so that nobody who comes back at once is let in by what is cached.
        if filter.id.is_some() {
            for Connection { job, subject, .. } in self.list(filter, 1).await?.connections {
                (self.forget_rights)(Some(&job), subject.as_deref());
            }
        } else {
            (self.forget_rights)(filter.job.as_ref(), filter.subject.as_deref());
        }
        let in_actix = self.registry.revoke(filter).len();
        Ok(in_actix + self.threads.revoke(filter).await?)
    }
}

/// Answers with the streams that the query allows: `{"total","connections":[…]}`.
pub async fn list(
    Query(query): Query<ConnectionsQuery>,
    connections: web::Data<Connections>,
) -> Result<HttpResponse, Problem> {
    let Listed { total, connections } = connections.list(&Arc::new(query.filter), query.limit).await?;
    Ok(HttpResponse::Ok().json(json!({ "total": total, "connections": connections })))
}

/// Closes the streams that the query allows, and answers with their number: `{"closed"}`.
pub async fn close(
    Query(query): Query<ConnectionsQuery>,
    connections: web::Data<Connections>,
) -> Result<HttpResponse, Problem> {
    let filter = Arc::new(query.filter);
    if filter.is_empty() {
        return Err(Problem::bad_query("say which connections to close, by id, job or subject"));
    }
    let closed = connections.close(&filter).await?;
    let Filter { id, job, subject } = &*filter;
    let job = job.as_ref().map(|job| job.as_str());
    tracing::info!(closed, id, job, subject, "an operator closed connections");
    Ok(HttpResponse::Ok().json(json!({ "closed": closed })))
}

impl From<NoAnswer> for Problem {
    fn from(error: NoAnswer) -> Self {
        Self::busy(error.to_string()).retry_after(1)
    }
}
