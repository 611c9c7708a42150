//! Extractors for what a caller may see. A handler that shows an event or a job takes its job from here and nowhere else,
//! so that it cannot forget to ask.

use super::client_address::ClientAddress;
use super::extract::{JobPath, SetQuery, is_own_parameter};
use super::problem::Problem;
use super::{App, access};
use crate::auth::{Caller, Grant, Refusal, Wanted, Withdrawal};
use crate::event::JobId;
use actix_web::dev::Payload;
use actix_web::http::header::{AUTHORIZATION, COOKIE, HeaderName, HeaderValue};
use actix_web::{FromRequest, HttpRequest, web};
use futures_util::{StreamExt, stream};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

/// Rights that are asked for at the same time, of one set.
const QUESTIONS_AT_A_TIME: usize = 8;

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
            let wanted = Wanted::Job(job.clone());
            let right = Right(app.auth.ask(caller, &wanted).await?);
            access::note_caller(right.0.as_deref());
            Ok(Self { job, right })
        })
    }
}

/// The jobs that the query names, as far as the caller may watch them.
pub struct WatchedSet {
    pub query: SetQuery,
    /// Those of `query.jobs` that the caller may watch, with the rights; at least one.
    pub allowed: Vec<(JobId, Right)>,
    /// The others, each with the reason.
    pub refused: Vec<(JobId, Problem)>,
}

impl FromRequest for WatchedSet {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        // The number of jobs is looked at before anybody is asked about one.
        let most = App::of(request).map(|app| app.max_set);
        let asked = most.and_then(|most| Ok((asking(request)?, SetQuery::of(request, most)?)));
        Box::pin(async move {
            let ((app, caller), mut query) = asked?;
            query.jobs.sort_unstable();
            query.jobs.dedup();
            let questions = query.jobs.iter().map(|job| {
                let (app, caller, wanted) = (app.clone(), caller.clone(), Wanted::Job(job.clone()));
                async move { app.auth.ask(caller, &wanted).await }
            });
            let answers: Vec<_> = stream::iter(questions).buffered(QUESTIONS_AT_A_TIME).collect().await;
            let (mut allowed, mut refused) = (Vec::new(), Vec::new());
            for (job, answer) in query.jobs.iter().cloned().zip(answers) {
                match answer {
                    Ok(grant) => {
                        access::note_caller(grant.as_deref());
                        allowed.push((job, Right(grant)));
                    }
                    Err(refusal) => refused.push((job, Problem::from(refusal))),
                }
            }
            // Where nobody can say now, all of it is tried again.
            let is_final = |(_, problem): &(JobId, Problem)| !problem.is_retryable();
            if allowed.is_empty() || !refused.iter().all(is_final) {
                let first = refused.iter().position(|one| !is_final(one)).unwrap_or_default();
                return Err(refused.swap_remove(first).1);
            }
            // Of a set the log names the first.
            if let Some((job, _)) = allowed.first() {
                access::note_job(job);
            }
            Ok(Self { query, allowed, refused })
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
    let address = ClientAddress::of(request, &app).counted();
    Ok((app, caller.at(address)))
}
