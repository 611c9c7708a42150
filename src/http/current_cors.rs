//! CORS whose settings may change while the process runs. `actix-cors` decides; this only makes it anew when the settings
//! have changed.

use super::cors;
use crate::config;
use actix_cors::{Cors, CorsMiddleware};
use actix_web::Error;
use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{Service, ServiceRequest, ServiceResponse, Transform};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use std::cell::RefCell;
use std::future::{Ready, ready};
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::sync::watch;

/// Wraps all addresses with the CORS that the settings of the moment ask for.
pub struct CurrentCors(watch::Receiver<config::Cors>);

impl CurrentCors {
    pub fn new(settings: watch::Receiver<config::Cors>) -> Self {
        Self(settings)
    }
}

impl<S, B> Transform<S, ServiceRequest> for CurrentCors
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = Error;
    type Transform = CurrentCorsService<S>;
    type InitError = ();
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, service: S) -> Self::Future {
        let mut settings = self.0.clone();
        settings.mark_changed();
        ready(Ok(CurrentCorsService { service: Rc::new(service), state: RefCell::new(State { settings, cors: None }) }))
    }
}

/// The addresses with their CORS, on one worker.
pub struct CurrentCorsService<S: Service<ServiceRequest>> {
    service: Rc<S>,
    state: RefCell<State<S>>,
}

struct State<S: Service<ServiceRequest>> {
    settings: watch::Receiver<config::Cors>,
    /// None where no other origin is allowed.
    cors: Option<Wrapped<S>>,
}

type Wrapped<S> = Rc<CorsMiddleware<Rc<S>>>;

impl<S, B> Service<ServiceRequest> for CurrentCorsService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Error>>;

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&self, request: ServiceRequest) -> Self::Future {
        match self.cors() {
            Some(cors) => cors.call(request).boxed_local(),
            None => {
                let answer = self.service.call(request);
                async move { answer.await.map(ServiceResponse::map_into_left_body) }.boxed_local()
            }
        }
    }
}

impl<S, B> CurrentCorsService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    fn cors(&self) -> Option<Wrapped<S>> {
        let state = &mut *self.state.borrow_mut();
        // An error means that the settings cannot change any more.
        if state.settings.has_changed().unwrap_or(false) {
            let settings = state.settings.borrow_and_update();
            let cors = (!settings.origins.is_empty()).then(|| cors::allow(&settings));
            // actix-cors is ready at once. It refuses only settings that ours do not allow.
            let wrap = |cors: Cors| cors.new_transform(self.service.clone()).now_or_never()?.ok().map(Rc::new);
            state.cors = cors.and_then(wrap);
        }
        state.cors.clone()
    }
}
