//! Rights by question: another service, most often the API in front of the jobs, says who may watch what.
//!
//! An answer counts for the same credentials and job only ([`ForwardedHeaders::fingerprint`]), and all who need the same
//! one at the same time share one question. The answers that let somebody watch are asked for anew while streams hold them,
//! by one task for all.

use super::caller::{Fingerprint, ForwardedHeaders};
use super::client::{cause, http_client};
use super::{Caller, Grant, Refusal, SetupError, Wanted, Withdrawal};
use crate::config;
use crate::event::JobId;
use futures_util::future::BoxFuture;
use reqwest::header::{AUTHORIZATION, COOKIE, HeaderName, HeaderValue};
use reqwest::{Response, StatusCode};
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OnceCell, Semaphore};
use url::Url;

const JOB: HeaderName = HeaderName::from_static("x-job-id");
const ORIGINAL_URI: HeaderName = HeaderName::from_static("x-original-uri");
/// Header in which an answer may name the caller, for the list of connections and for the log.
const SUBJECT: HeaderName = HeaderName::from_static("x-subject");
/// Characters of a caller's name, at most.
const MAX_SUBJECT_CHARS: usize = 200;
/// Questions of new callers that are open at a time; others wait within the time-out.
const MAX_QUESTIONS: usize = 64;
/// Those of them that may be of one address, so that nobody can fill the line alone.
const MAX_OF_ADDRESS: usize = MAX_QUESTIONS / 2;
/// Questions of open streams that are open at a time, whoever asks them. They do not stand in line behind new callers.
const MAX_RECHECKS: usize = 16;
/// Questions and answers that are kept, at most, but for those that streams hold.
const MAX_ANSWERS: usize = 10_000;

/// Asks another service.
pub struct Forward {
    client: reqwest::Client,
    url: Url,
    timeout: Duration,
    cache: Duration,
    recheck: Duration,
    answers: Mutex<HashMap<Fingerprint, Entry>>,
    questions: Semaphore,
    /// The share of each address in them, while it is needed.
    shares: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
    rechecks: Semaphore,
    /// The service did not answer the last question.
    is_down: AtomicBool,
}

/// A question, and what is known of its answer.
struct Entry {
    question: Arc<Question>,
    last: Option<Answered>,
    /// Set while the question is being asked.
    flight: Option<Flight>,
}

struct Question {
    headers: ForwardedHeaders,
    wanted: Wanted,
}

/// The place where a question waits for its turn.
struct Line<'a> {
    turns: &'a Semaphore,
    /// The part of the address that asks, which comes first.
    share: Option<Arc<Semaphore>>,
}

/// One question on its way, for all who wait for its answer.
type Flight = Arc<OnceCell<Result<Arc<Grant>, Refusal>>>;

/// The last answer.
struct Answered {
    answer: Result<Arc<Grant>, Refusal>,
    at: Instant,
    /// An operator wants it to be asked for anew.
    is_stale: bool,
}

impl Answered {
    fn new(answer: Result<Arc<Grant>, Refusal>) -> Self {
        Self { answer, at: Instant::now(), is_stale: false }
    }

    /// The grant, if streams hold it.
    fn held(&self) -> Option<&Arc<Grant>> {
        self.answer.as_ref().ok().filter(|grant| Arc::strong_count(grant) > 1)
    }
}

impl Entry {
    fn is_needed(&self, cache: Duration) -> bool {
        let is_used = |last: &Answered| last.held().is_some() || !last.is_stale && last.at.elapsed() < cache;
        self.flight.is_some() || self.last.as_ref().is_some_and(is_used)
    }
}

impl Forward {
    pub fn new(settings: &config::Forward, root_cert: &Path, recheck: Duration) -> Result<Self, SetupError> {
        let mut url = settings.url.get().ok_or(SetupError::NothingToCheckWith)?;
        // They would arrive as Authorization, and look like credentials of the caller's.
        let _ = (url.set_username(""), url.set_password(None));
        Ok(Self {
            client: http_client(root_cert, settings.timeout)?,
            url,
            timeout: settings.timeout,
            // A right that is due for a recheck opens no further stream.
            cache: settings.cache.min(recheck / 2),
            recheck,
            answers: Mutex::default(),
            questions: Semaphore::new(MAX_QUESTIONS),
            shares: Mutex::default(),
            rechecks: Semaphore::new(MAX_RECHECKS),
            is_down: AtomicBool::new(false),
        })
    }

    pub async fn ask(self: &Arc<Self>, caller: Caller, wanted: &Wanted) -> Result<Arc<Grant>, Refusal> {
        let address = caller.address();
        let headers = caller.into_headers();
        if !headers.can_be_sent() {
            return Err(Refusal::Invalid);
        }
        let fingerprint = headers.fingerprint(wanted);
        let (question, flight, is_held) = {
            let mut answers = self.answers();
            if answers.len() >= MAX_ANSWERS {
                self.make_room(&mut answers);
            }
            if answers.len() >= MAX_ANSWERS && !answers.contains_key(&fingerprint) {
                return Err(Refusal::Unavailable);
            }
            let entry = answers.entry(fingerprint).or_insert_with(|| Entry {
                question: Arc::new(Question { headers, wanted: wanted.clone() }),
                last: None,
                flight: None,
            });
            if let Some(last) = entry.last.as_ref().filter(|last| !last.is_stale && last.at.elapsed() < self.cache) {
                return last.answer.clone();
            }
            let is_held = entry.last.as_ref().is_some_and(|last| last.held().is_some());
            (entry.question.clone(), entry.flight.get_or_insert_default().clone(), is_held)
        };
        // In a task of its own, so that the question comes to its end whoever leaves meanwhile.
        let forward = self.clone();
        let flight = tokio::spawn(async move {
            let line = match is_held {
                true => Line { turns: &forward.rechecks, share: None },
                false => Line { turns: &forward.questions, share: address.map(|address| forward.share_of(address)) },
            };
            forward.fly(fingerprint, question, flight, line, forward.timeout).await
        });
        flight.await.unwrap_or(Err(Refusal::Unavailable))
    }

    /// Returns the share of an address in the line of new callers. Those that nobody needs any more are forgotten.
    fn share_of(&self, address: IpAddr) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(&address) {
            return share.clone();
        }
        shares.retain(|_, share| Arc::strong_count(share) > 1);
        shares.entry(address).or_insert_with(|| Arc::new(Semaphore::new(MAX_OF_ADDRESS))).clone()
    }

    fn answers(&self) -> MutexGuard<'_, HashMap<Fingerprint, Entry>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what is not needed; if that is not enough, all that no stream holds.
    fn make_room(&self, answers: &mut HashMap<Fingerprint, Entry>) {
        answers.retain(|_, entry| entry.is_needed(self.cache));
        if answers.len() >= MAX_ANSWERS {
            answers.retain(|_, entry| entry.is_needed(Duration::ZERO));
        }
    }

    /// Asks, or waits for the answer to the same question.
    async fn fly(
        &self,
        fingerprint: Fingerprint,
        question: Arc<Question>,
        flight: Flight,
        line: Line<'_>,
        timeout: Duration,
    ) -> Result<Arc<Grant>, Refusal> {
        let asked = async {
            let answer = tokio::time::timeout(timeout, async {
                let _of_address = match &line.share {
                    Some(share) => Some(share.acquire().await.map_err(|error| error.to_string())?),
                    None => None,
                };
                let _turn = line.turns.acquire().await.map_err(|error| error.to_string())?;
                self.send(&question).await
            });
            let answer = answer.await.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")));
            let answer = self.understand(answer);
            self.settle(fingerprint, &flight, answer)
        };
        flight.get_or_init(|| asked).await.clone()
    }

    async fn send(&self, question: &Question) -> Result<Response, String> {
        let Question { headers, wanted } = question;
        let value = |bytes: &[u8]| HeaderValue::from_bytes(bytes).map_err(|error| error.to_string());
        let mut request = self
            .client
            .get(self.url.clone())
            .header(JOB, value(wanted.header().as_bytes())?)
            .header(ORIGINAL_URI, value(headers.uri.as_bytes())?);
        let credentials = [
            (COOKIE, Some(&headers.cookies[..]).filter(|cookies| !cookies.is_empty())),
            (AUTHORIZATION, headers.authorization.as_deref().map(str::as_bytes)),
        ];
        for (name, credential) in credentials {
            if let Some(credential) = credential {
                let mut value = value(credential)?;
                value.set_sensitive(true);
                request = request.header(name, value);
            }
        }
        request.send().await.map_err(cause)
    }

    /// Takes 2xx as yes, 401 and 403 as no, and anything else as no answer. Logs when answers stop, and when they come again.
    fn understand(&self, answer: Result<Response, String>) -> Result<Option<String>, Refusal> {
        let understood = match answer {
            Ok(answer) if answer.status().is_success() => {
                let subject = answer.headers().get(SUBJECT).and_then(|value| value.to_str().ok());
                Ok(Ok(subject.map(|name| name.chars().take(MAX_SUBJECT_CHARS).collect())))
            }
            Ok(answer) => match answer.status() {
                StatusCode::UNAUTHORIZED => Ok(Err(Refusal::Invalid)),
                StatusCode::FORBIDDEN => Ok(Err(Refusal::Forbidden)),
                other => Err(format!("it answers {other}")),
            },
            Err(problem) => Err(problem),
        };
        match understood {
            Ok(answer) => {
                if self.is_down.swap(false, Ordering::Relaxed) {
                    tracing::info!("auth.forward.url answers again");
                }
                answer
            }
            Err(problem) => {
                if !self.is_down.swap(true, Ordering::Relaxed) {
                    tracing::warn!(host = self.url.host_str(), problem, "auth.forward.url gives no answer that counts");
                }
                Err(Refusal::Unavailable)
            }
        }
    }

    /// Keeps an answer. A grant stays the same as long as it is confirmed, and ends with the first refusal; without an
    /// answer the last one stands until it is too old.
    fn settle(
        &self,
        fingerprint: Fingerprint,
        flight: &Flight,
        answer: Result<Option<String>, Refusal>,
    ) -> Result<Arc<Grant>, Refusal> {
        let mut answers = self.answers();
        let Some(entry) = answers.get_mut(&fingerprint) else { return Err(Refusal::Unavailable) };
        if entry.flight.as_ref().is_some_and(|current| Arc::ptr_eq(current, flight)) {
            entry.flight = None;
        }
        let held = entry.last.as_ref().and_then(|last| last.answer.as_ref().ok()).cloned();
        let result = match answer {
            Err(Refusal::Unavailable) => return Err(Refusal::Unavailable),
            Err(refusal) => {
                if let Some(grant) = held {
                    grant.withdraw(Withdrawal::Revoked);
                }
                Err(refusal)
            }
            Ok(subject) => {
                let is_same =
                    |grant: &Arc<Grant>| grant.ended(Instant::now()).is_none() && grant.subject() == subject.as_deref();
                Ok(held.filter(is_same).unwrap_or_else(|| Arc::new(Grant::new(subject, None))))
            }
        };
        entry.last = Some(Answered::new(result.clone()));
        result
    }

    /// Returns the questions of open streams that are to be asked again, ends the rights that could not be confirmed for
    /// too long, and forgets what nobody needs.
    pub fn due(self: &Arc<Self>) -> Vec<BoxFuture<'static, ()>> {
        let mut answers = self.answers();
        let mut due = Vec::new();
        answers.retain(|fingerprint, entry| {
            let Some((grant, age, is_stale)) =
                entry.last.as_ref().and_then(|last| Some((last.held()?, last.at.elapsed(), last.is_stale)))
            else {
                return entry.is_needed(self.cache);
            };
            if age >= self.recheck {
                grant.withdraw(Withdrawal::Expired);
                entry.last = None;
                return entry.flight.is_some();
            }
            if (is_stale || age >= self.recheck / 2) && entry.flight.is_none() {
                let (question, flight) = (entry.question.clone(), Flight::default());
                entry.flight = Some(flight.clone());
                let (forward, fingerprint) = (self.clone(), *fingerprint);
                // Twice, so that one answer may be lost.
                let timeout = self.timeout.min(self.recheck / 4);
                due.push(Box::pin(async move {
                    let line = Line { turns: &forward.rechecks, share: None };
                    let _ = forward.fly(fingerprint, question, flight, line, timeout).await;
                }) as BoxFuture<'static, ()>);
            }
            true
        });
        due
    }

    /// Makes the answers on this job, or of this caller, be asked for anew.
    pub fn forget(&self, job: Option<&JobId>, subject: Option<&str>) {
        for entry in self.answers().values_mut() {
            let Entry { question, last: Some(last), .. } = entry else { continue };
            let is_job = job.is_none_or(|job| matches!(&question.wanted, Wanted::Job(of) if of == job));
            let name = last.answer.as_ref().ok().and_then(|grant| grant.subject());
            if is_job && subject.is_none_or(|subject| name == Some(subject)) {
                last.is_stale = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_in_use_is_asked_for_anew_when_an_operator_wants_it_and_its_grant_lives_until_a_no() {
        let url = serde_json::from_value("http://127.0.0.1:9/".into()).expect("an address");
        let settings = config::Forward { url, ..config::Forward::default() };
        let forward = Arc::new(Forward::new(&settings, Path::new(""), Duration::from_secs(60)).expect("a client"));
        let (job, other) = ("job".parse::<JobId>().expect("an id"), "other".parse().expect("an id"));
        let wanted = Wanted::Job(job.clone());
        let headers = ForwardedHeaders { authorization: None, cookies: b"user=ann".to_vec(), uri: "/".into() };
        let fingerprint = headers.fingerprint(&wanted);
        let (question, flight) = (Arc::new(Question { headers, wanted }), Flight::default());
        forward.answers().insert(fingerprint, Entry { question, last: None, flight: Some(flight.clone()) });
        let yes = || Ok(Some("ann".to_string()));
        let grant = forward.settle(fingerprint, &flight, yes()).expect("a grant");
        let is_same = |answer: &Arc<Grant>| Arc::ptr_eq(answer, &grant);
        for (job, subject) in [(None, Some("ben")), (Some(&other), None), (Some(&other), Some("ann"))] {
            forward.forget(job, subject);
            assert!(forward.due().is_empty(), "{job:?} {subject:?}");
        }
        forward.forget(Some(&job), Some("ann"));
        assert_eq!(forward.due().len(), 1);
        assert!(forward.settle(fingerprint, &flight, yes()).is_ok_and(|grant| is_same(&grant)));
        // no answer is no answer, and neither ends the right nor confirms it
        assert_eq!(forward.settle(fingerprint, &flight, Err(Refusal::Unavailable)).err(), Some(Refusal::Unavailable));
        assert_eq!(grant.ended(Instant::now()), None);
        assert_eq!(forward.settle(fingerprint, &flight, Err(Refusal::Forbidden)).err(), Some(Refusal::Forbidden));
        assert_eq!(grant.ended(Instant::now()), Some(Withdrawal::Revoked));
        assert!(forward.settle(fingerprint, &flight, yes()).is_ok_and(|other| !is_same(&other)));
    }

    #[test]
    fn answers_that_nobody_holds_are_bounded() {
        let settings = config::Forward {
            url: serde_json::from_value("http://127.0.0.1:9/".into()).expect("an address"),
            ..config::Forward::default()
        };
        let forward = Forward::new(&settings, Path::new(""), Duration::from_secs(60)).expect("a client");
        let mut answers = HashMap::new();
        let mut held = Vec::new();
        for number in 0..MAX_ANSWERS + 10 {
            let headers = ForwardedHeaders { authorization: None, cookies: Vec::new(), uri: String::new() };
            let question = Arc::new(Question { headers, wanted: Wanted::AllJobs });
            let grant = Arc::new(Grant::new(None, None));
            if number < 3 {
                held.push(grant.clone());
            }
            let entry = Entry { question, last: Some(Answered::new(Ok(grant))), flight: None };
            answers.insert(Fingerprint::of([&number.to_be_bytes()[..]]), entry);
        }
        forward.make_room(&mut answers);
        assert_eq!(answers.len(), held.len());
    }
}
