//! The requests that are being answered. A process that leaves answers them first.

use super::App;
use crate::shutdown::Phase;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::ConnectionType;
use actix_web::middleware::Next;
use actix_web::{Error, web};
use std::sync::Arc;
use tokio::sync::watch;

/// The number of requests between their head and the head of their answer; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Arc<watch::Sender<usize>>);

/// One request; its drop is the end.
struct Counted(InFlight);

impl InFlight {
    fn begin(&self) -> Counted {
        self.0.send_modify(|count| *count += 1);
        Counted(self.clone())
    }

    /// Returns when every request is answered.
    pub async fn empty(&self) {
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

/// Counts a request while it is answered. In a drain, the answer says that it is the connection's last.
pub async fn count(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let app = request.app_data::<web::Data<App>>().cloned();
    let _counted = app.as_ref().map(|app| app.in_flight.begin());
    let mut response = next.call(request).await?;
    if app.is_some_and(|app| app.streams.shutdown.phase() >= Phase::Draining) {
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    Ok(response)
}
