//! Sets of jobs of which the caller may watch some.

use super::{ask, refusal};
use crate::support::http::request;
use crate::support::web::{Asked, Reply};
use crate::support::{Answer, Daemon, Message, Stream, Web};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Range;

const SET: &str = "?job=a&job=b&job=c";
const COOKIE: (&str, &str) = ("Cookie", "user=ann");

/// An API that lets everybody see these jobs, and no others.
fn only(jobs: &'static [&'static str]) -> impl Fn(&Asked) -> Reply {
    move |asked| Reply::status(if jobs.contains(&asked.header("x-job-id").expect("a job")) { 200 } else { 403 })
}

/// A daemon that asks this API, with the jobs a, b and c.
async fn asking(web: &Web) -> Daemon {
    let url = web.url("/may-watch");
    let settings = [
        ("auth.mode", "forward"),
        ("auth.forward.url", url.as_str()),
        ("auth.forward.cache", "0s"),
        ("auth.recheck", "2s"),
    ];
    let daemon = Daemon::with(&settings).await;
    write_each(&daemon, 0..2).await;
    daemon
}

async fn write_each(daemon: &Daemon, numbers: Range<u64>) {
    for job in ["a", "b", "c"] {
        let events: Vec<Value> = numbers.clone().map(|n| json!({ "type": "x", "payload": { "n": n } })).collect();
        let answer = daemon.send("POST", &format!("/runner-jobs/{job}/events"), &json!(events)).await;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
}

async fn open(daemon: &Daemon, last: Option<&str>) -> Stream {
    let last = last.map(|last| ("Last-Event-ID", last));
    let headers: Vec<_> = [COOKIE].into_iter().chain(last).collect();
    Stream::open(daemon.http, &format!("/runner-jobs/events/stream{SET}"), &headers).await
}

async fn poll(daemon: &Daemon, more: &str) -> Answer {
    request(daemon.http, "GET", &format!("/runner-jobs/events{SET}{more}"), &[COOKIE], b"").await
}

/// What a stream has said of each job.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    events: BTreeMap<String, Vec<u64>>,
    refused: Vec<String>,
    reset: Vec<String>,
}

impl Told {
    fn by(messages: &[Message]) -> Self {
        let mut told = Self::default();
        for message in messages {
            let said = message.json();
            let job = said["jobId"].as_str().unwrap_or_else(|| panic!("of no job: {message:?}")).to_string();
            match message.event.as_deref() {
                Some("stream.error") => {
                    assert_eq!((&said["code"], &said["retryable"]), (&"auth.forbidden".into(), &false.into()));
                    told.refused.push(job);
                }
                Some("stream.reset") => told.reset.push(job),
                _ => told.events.entry(job).or_default().push(message.number()),
            }
        }
        told
    }

    fn new(events: &[(&str, Range<u64>)], refused: &[&str], reset: &[&str]) -> Self {
        let texts = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        let events = events.iter().map(|(job, numbers)| (job.to_string(), numbers.clone().collect())).collect();
        Self { events, refused: texts(refused), reset: texts(reset) }
    }
}

#[tokio::test]
async fn a_job_of_a_set_that_may_not_be_watched_is_told_alone_and_the_others_go_on() {
    let web = Web::start(only(&["a", "c"])).await;
    let daemon = asking(&web).await;
    let mut stream = open(&daemon, None).await;
    assert_eq!(Told::by(&stream.take(5).await), Told::new(&[("a", 0..2), ("c", 0..2)], &["b"], &[]));
    write_each(&daemon, 2..3).await;
    assert_eq!(Told::by(&stream.take(2).await), Told::new(&[("a", 2..3), ("c", 2..3)], &[], &[]));

    let page = poll(&daemon, "").await.json();
    let error = &page["jobs"]["b"]["error"];
    assert_eq!((&error["code"], &error["retryable"]), (&"auth.forbidden".into(), &false.into()), "{page}");
    assert!(page["jobs"]["a"].get("error").is_none() && page["jobs"]["c"].get("error").is_none(), "{page}");
    let jobs = page["events"].as_array().expect("events").iter().map(|event| event["jobId"].as_str());
    assert_eq!(jobs.filter(|job| *job == Some("b")).count(), 0, "{page}");
    assert_eq!((page["events"].as_array().map(Vec::len), &page["complete"]), (Some(6), &false.into()), "{page}");

    // Where nobody can say of one, all of it is tried again; where all are refused, all of it is.
    let of_b = |reply: Reply| {
        move |asked: &Asked| if asked.header("x-job-id") == Some("b") { reply.clone() } else { Reply::status(200) }
    };
    web.set(of_b(Reply::status(500)));
    let told = open(&daemon, None).await.rest().await;
    assert!(told.len() == 1 && told[0].is("stream.error") && told[0].retry.is_some(), "{told:?}");
    assert!(told[0].json()["retryable"] == true && told[0].json().get("jobId").is_none(), "{told:?}");
    assert_eq!(refusal(&poll(&daemon, "").await), (503, "auth.unavailable".into()));
    web.set(only(&[]));
    for path in ["/runner-jobs/events", "/runner-jobs/events/stream"] {
        let answer = ask(&daemon, &format!("{path}{SET}"), &[COOKIE]).await;
        assert_eq!(refusal(&answer), (403, "auth.forbidden".into()), "{path}");
    }
}

#[tokio::test]
async fn a_right_withdrawn_from_one_job_of_an_open_set_costs_the_others_no_event_and_may_be_given_back() {
    let web = Web::start(only(&["a", "c"])).await;
    let daemon = asking(&web).await;
    let mut stream = open(&daemon, None).await;
    stream.take(5).await;
    write_each(&daemon, 2..3).await;
    let last = stream.take(2).await[1].cursor().to_string();

    web.set(only(&["c"]));
    let told = stream.rest().await;
    assert!(told.len() == 1 && told[0].is("stream.bye"), "{told:?}");
    assert_eq!((&told[0].json()["reason"], told[0].retry.is_some()), (&"revoked".into(), true));
    write_each(&daemon, 3..4).await;
    let mut back = open(&daemon, Some(&last)).await;
    assert_eq!(Told::by(&back.take(3).await), Told::new(&[("c", 3..4)], &["a", "b"], &[]));
    write_each(&daemon, 4..5).await;
    let of_c = back.take(1).await;
    assert_eq!(Told::by(&of_c), Told::new(&[("c", 4..5)], &[], &[]));
    drop(back);

    // A place that was given out for all of them is good again. One of the time between says nothing of the job that was
    // missing then, which begins anew, and says so.
    web.set(only(&["a", "c"]));
    let mut from_before = open(&daemon, Some(&last)).await;
    assert_eq!(Told::by(&from_before.take(5).await), Told::new(&[("a", 3..5), ("c", 3..5)], &["b"], &[]));
    let mut from_between = open(&daemon, Some(of_c[0].cursor())).await;
    assert_eq!(Told::by(&from_between.take(7).await), Told::new(&[("a", 0..5)], &["b"], &["a"]));
    write_each(&daemon, 5..6).await;
    for stream in [&mut from_before, &mut from_between] {
        assert_eq!(Told::by(&stream.take(2).await), Told::new(&[("a", 5..6), ("c", 5..6)], &[], &[]));
    }
}

#[tokio::test]
async fn a_poll_of_a_set_that_outlives_the_right_to_one_job_is_asked_again_and_then_told_of_that_job_alone() {
    let web = Web::start(only(&["a", "c"])).await;
    let daemon = asking(&web).await;
    let cursor = poll(&daemon, "").await.json()["cursor"].as_str().expect("a cursor").to_string();
    let held = format!("&wait=60&after={cursor}");
    let (answer, ()) = tokio::join!(poll(&daemon, &held), async {
        daemon.metric_is("jobcast_long_polls", 1.0).await;
        web.set(only(&["c"]));
    });
    assert_eq!(refusal(&answer), (503, "server.closed".into()));
    assert!(answer.header("Retry-After").is_some(), "{answer:?}");
    write_each(&daemon, 2..3).await;
    let page = poll(&daemon, &format!("&after={cursor}")).await.json();
    for job in ["a", "b"] {
        assert_eq!(page["jobs"][job]["error"]["code"], "auth.forbidden", "{page}");
    }
    let events: Vec<_> = page["events"].as_array().expect("events").iter().collect();
    assert!(events.len() == 1 && events[0]["jobId"] == "c" && events[0]["payload"]["n"] == 2, "{page}");
    // The last right that was left: there is nothing to come back for.
    let held = format!("&wait=60&after={}", page["cursor"].as_str().expect("a cursor"));
    let (answer, ()) = tokio::join!(poll(&daemon, &held), async {
        daemon.metric_is("jobcast_long_polls", 1.0).await;
        web.set(only(&[]));
    });
    assert_eq!(refusal(&answer), (403, "auth.forbidden".into()));
}
