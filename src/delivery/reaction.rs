//! The decisions that both ways of delivery share: what a stream is sent, and whether it ends, after a step of its replay,
//! the end of its job, an outage of the source, or its deadline. Streaming bodies and delivery threads only carry them
//! out. No I/O.

use super::admission::{Reason, StreamPermit};
use super::context::Deadline;
use crate::auth::Withdrawal;
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::hub::{Ended, Fault, Outage, Place, Subscription};
use crate::replay::Step;
use crate::sse::{Bye, ControlEvent, JobEnd, Segment};
use crate::telemetry;
use crate::topic::Topic;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An instruction to whoever delivers a stream.
pub enum Reaction {
    /// Send these events of the past, then go on with the replay.
    SendReplayed(Vec<Arc<Segment>>),
    /// Send `missing`, and the notices, then the ring's events from `place` on. `cursor` is the position at
    /// `place`.
    GoLive {
        missing: Vec<Arc<Segment>>,
        notices: Vec<ControlEvent>,
        subscription: Subscription,
        place: Place,
        cursor: Cursor,
    },
    /// Replay everything after this cursor from the source.
    Replay(Cursor),
    /// Send an event of Jobcast's own.
    Notify(Notice),
}

/// An event of Jobcast's own for one stream or all.
#[derive(Debug, PartialEq, Eq)]
pub struct Notice {
    pub event: ControlEvent,
    /// The stream is closed after the event, for this reason. None if it goes on as before.
    pub closes: Option<Reason>,
}

impl Notice {
    fn goes_on(event: ControlEvent) -> Self {
        Self { event, closes: None }
    }

    fn last(event: ControlEvent, reason: Reason) -> Self {
        Self { event, closes: Some(reason) }
    }
}

/// Decides on the next step of a stream's replay. `reconnect_in` is the client's wait in case that the stream is closed.
pub fn on_replay_step(step: Step, reconnect_in: impl FnOnce() -> Duration) -> Reaction {
    match step {
        Step::Events(segments) => Reaction::SendReplayed(segments),
        Step::Live { missing, notices, subscription, place, cursor } => {
            Reaction::GoLive { missing, notices, subscription, place, cursor }
        }
        Step::Complete { job, status, cursor } => on_end(&Ended { job, end: JobEnd::Complete(status) }, cursor),
        Step::Reset(job, reason, cursor) => {
            telemetry::RESUMES.increment(&[("from", "reset")], 1);
            telemetry::RESETS.increment(&[("reason", reason.as_str())], 1);
            Reaction::Notify(Notice::goes_on(match job {
                Some(job) => ControlEvent::ResetOf { job, reason, cursor },
                None => ControlEvent::Reset { reason, cursor },
            }))
        }
        // The job existed when the stream began, and was deleted since. The client's next request gets the 404.
        Step::NoSuchJob => {
            let bye = ControlEvent::Bye { reason: Bye::Age, retry_in: reconnect_in() };
            Reaction::Notify(Notice::last(bye, Reason::Failed))
        }
        Step::Outage(error, retry_in) => Reaction::Notify(on_source_error(&error, retry_in)),
    }
}

/// Decides on the end of a channel for a stream that got all events up to `cursor`.
pub fn on_end(ended: &Ended, cursor: Cursor) -> Reaction {
    match ended.end {
        JobEnd::Complete(status) => {
            let complete = ControlEvent::Complete { job: ended.job.clone(), status, cursor };
            Reaction::Notify(Notice::last(complete, Reason::Complete))
        }
        // The replay finds out what is lost, and then sends all there is.
        JobEnd::Lost(_) => Reaction::Replay(cursor),
    }
}

/// Decides on an outage that the hub announced to all streams.
pub fn on_outage(outage: &Outage) -> Notice {
    on_source_error(&outage.error, outage.retry_in)
}

/// Decides on a time in which the rows of one job cannot be read. In a set the others go on whatever the reason.
pub fn on_fault(topic: &Topic, fault: &Fault) -> Notice {
    let Outage { error, retry_in, .. } = &*fault.outage;
    if topic.jobs().len() == 1 {
        return on_outage(&fault.outage);
    }
    Notice::goes_on(ControlEvent::ErrorOf {
        job: fault.job.clone(),
        code: error.code.as_str(),
        message: error.told().to_string(),
        retry_in: error.is_retryable().then_some(*retry_in),
    })
}

/// Returns the reason of Jobcast's own for closing a stream now, if there is one. A right that has ended comes first, since
/// nothing may be sent after it.
pub fn due_bye(permit: &StreamPermit, deadline: Deadline, now: Instant) -> Option<Bye> {
    let withdrawn = permit.withdrawal(now).map(|withdrawal| match withdrawal {
        Withdrawal::Expired => Bye::Expired,
        Withdrawal::Revoked => Bye::Revoked,
    });
    withdrawn.or_else(|| deadline.reached(now))
}

/// Decides on a stream that Jobcast closes for this reason.
pub fn on_bye(reason: Bye, reconnect_in: Duration) -> Notice {
    let counted_as = match reason {
        Bye::Drain => Reason::Drain,
        Bye::Age => Reason::Age,
        Bye::Expired => Reason::Expired,
        Bye::Revoked => Reason::Revoked,
    };
    Notice::last(ControlEvent::Bye { reason, retry_in: reconnect_in }, counted_as)
}

fn on_source_error(error: &SourceError, retry_in: Duration) -> Notice {
    let event = source_error(error, retry_in);
    if error.is_retryable() { Notice::goes_on(event) } else { Notice::last(event, Reason::Failed) }
}

/// Returns the event that tells a client of the source's failure.
pub fn source_error(error: &SourceError, retry_in: Duration) -> ControlEvent {
    ControlEvent::Error {
        code: error.code.as_str(),
        message: error.told().to_string(),
        retry_in: error.is_retryable().then_some(retry_in),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::SourceCode;
    use crate::event::{JobId, JobStatus};
    use crate::sse::Reset;

    fn error(code: SourceCode) -> SourceError {
        SourceError::new(code, "reading", "gone", "wait")
    }

    /// The bytes of a notice, and the reason for which it closes the stream.
    fn sent(notice: Notice) -> (String, Option<Reason>) {
        (String::from_utf8(notice.event.encode().to_vec()).expect("UTF-8"), notice.closes)
    }

    #[test]
    fn a_stream_ends_only_where_going_on_cannot_help() {
        let (job, cursor) = ("job".parse::<JobId>().expect("id"), Cursor::trusted("c7"));
        let complete = |status| Step::Complete { job: job.clone(), status, cursor: cursor.clone() };
        let wait = Duration::from_millis(1500);
        let step = |step| match on_replay_step(step, || wait) {
            Reaction::Notify(notice) => sent(notice),
            _ => panic!("sends no event of Jobcast's own"),
        };
        assert_eq!(
            step(Step::Outage(error(SourceCode::Busy), wait)),
            (
                "retry: 1500\nevent: stream.error\ndata: {\"code\":\"source.busy\",\"message\":\"the event store is \
                 busy\",\"retryInMs\":1500,\"retryable\":true}\n\n"
                    .into(),
                None
            )
        );
        assert_eq!(
            step(Step::Outage(error(SourceCode::Rights), wait)),
            (
                "event: stream.error\ndata: {\"code\":\"source.rights\",\"message\":\"the event store does not \
                 let Jobcast in\",\"retryable\":false}\n\n"
                    .into(),
                Some(Reason::Failed)
            )
        );
        assert_eq!(
            step(Step::Reset(None, Reset::Trimmed, cursor.clone())),
            ("id: c7\nevent: stream.reset\ndata: {\"cursor\":\"c7\",\"reason\":\"trimmed\"}\n\n".into(), None)
        );
        assert_eq!(
            step(complete(JobStatus::Failed)),
            (
                "id: c7\nevent: stream.complete\ndata: {\"jobId\":\"job\",\"status\":\"FAILED\"}\n\n".into(),
                Some(Reason::Complete)
            )
        );
        let bye = |reason| {
            format!("retry: 1500\nevent: stream.bye\ndata: {{\"reason\":\"{reason}\",\"retryInMs\":1500}}\n\n")
        };
        assert_eq!(step(Step::NoSuchJob), (bye("age"), Some(Reason::Failed)));
        for (reason, name, counted_as) in [
            (Bye::Drain, "drain", Reason::Drain),
            (Bye::Age, "age", Reason::Age),
            (Bye::Expired, "expired", Reason::Expired),
            (Bye::Revoked, "revoked", Reason::Revoked),
        ] {
            assert_eq!(sent(on_bye(reason, wait)), (bye(name), Some(counted_as)));
        }
        let lost = Ended { job: job.clone(), end: JobEnd::Lost(Reset::Rewound) };
        assert!(matches!(on_end(&lost, cursor.clone()), Reaction::Replay(_)));
    }
}
