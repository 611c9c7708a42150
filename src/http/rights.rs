//! Extractors for what a caller may see. A handler that shows an event or a job takes its job from here and nowhere else,
//! so that it cannot forget to ask.

use super::extract::{JobPath, is_own_parameter};
use super::problem::Problem;
use super::{App, access};
use crate::auth::{Caller, Grant, Refusal, Wanted, Withdrawal};
use crate::event::JobId;
use actix_web::dev::Payload;
use actix_web::http::header::{AUTHORIZATION, COOKIE, HeaderName, HeaderValue};
use actix_web::{FromRequest, HttpRequest, web};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

/// A right that was granted; None where nobody is asked for one.
#[derive(Clone)]
pub struct Right(Option<Arc<Grant>>);

impl Right {
    /// Fails if the right has ended since it was granted.
    pub fn check(&self) -> Result<(), Problem> {
        let Some(grant) = &self.0 else { return Ok(()) };
        match grant.ended(Instant::now()) {
            None => Ok(()),
            // Credentials that have no end of their own could not be confirmed in time.
            Some(Withdrawal::Expired) if grant.expires().is_none() => Err(Refusal::Unavailable.into()),
            Some(Withdrawal::Expired) => Err(Refusal::Invalid.into()),
            Some(Withdrawal::Revoked) => Err(Refusal::Forbidden.into()),
        }
    }

    pub fn into_grant(self) -> Option<Arc<Grant>> {
        self.0
    }
}

/// The job in `{job_id}` of the path, which the caller may watch.
pub struct WatchedJob {
    pub job: JobId,
    pub right: Right,
}

impl FromRequest for WatchedJob {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let job = JobPath::from_request(request, payload).into_inner();
        let asked = job.and_then(|JobPath(job)| Ok((asking(request)?, job)));
        Box::pin(async move {
            let ((app, caller), job) = asked?;
            access::note_job(&job);
            let wanted = Wanted::Job(job.clone());
            let right = Right(app.auth.ask(caller, &wanted).await?);
            access::note_caller(right.0.as_deref());
            Ok(Self { job, right })
        })
    }
}

/// The right to see every job.
pub struct EveryJob(());

impl FromRequest for EveryJob {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let asked = asking(request);
        Box::pin(async move {
            let (app, caller) = asked?;
            access::note_caller(app.auth.ask(caller, &Wanted::AllJobs).await?.as_deref());
            Ok(Self(()))
        })
    }
}

/// Takes the credentials out of a request.
fn asking(request: &HttpRequest) -> Result<(web::Data<App>, Caller), Problem> {
    let app = App::of(request)?.clone();
    let values = |name: HeaderName| request.headers().get_all(name).map(HeaderValue::as_bytes).collect::<Vec<_>>();
    let address = (request.path(), request.query_string());
    let caller = Caller::new(values(AUTHORIZATION), values(COOKIE), address, is_own_parameter)?;
    Ok((app, caller))
}
