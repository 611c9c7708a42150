//! Many jobs on one server: the place before the last events, and the shared stream, whose jobs have one place.

use super::super::contract::many::open;
use super::super::contract::many::promises::{Tried, keep_on_many_jobs};
use super::super::contract::sets::{events, set_path};
use super::shared::SHARED;
use crate::support::redis::{self as writer, stream_key};
use crate::support::store::Store;
use crate::support::{Redis, Stream};
use jobcast::cursor::Cursor;
use jobcast::event::JobId;
use jobcast::source::{Limit, PageResult, Source};
use jobcast::sse::Reset;
use redis::{Pipeline, Value};
use std::ops::Range;

const LIMIT: Limit = Limit { events: 100, bytes: 1 << 20 };

async fn read(source: &dyn Source, job: &JobId, after: &Cursor) -> Result<Vec<String>, Reset> {
    match source.page(job, after, LIMIT).await.expect("a page") {
        PageResult::Page(page) => Ok(page.events.into_iter().map(|(event, _)| event.id).collect()),
        PageResult::Lost(reset) => Err(reset),
        PageResult::NoSuchJob | PageResult::Unreadable(_) => panic!("no such job"),
    }
}

#[tokio::test]
async fn the_last_events_are_those_that_are_left_and_none_that_was_deleted_before_is_missed() {
    let server = <Redis as Store>::start().await;
    let job: JobId = "job".parse().expect("an id");
    let source = open(&Store::settings(&server)).await;
    let ids = writer::append(&mut server.connect().await, "job", 0..10).await;
    server.ask::<()>(&["XDEL", &stream_key("job"), &ids[7]]).await;
    let at = source.before_last(&job, 5).await.expect("an answer").expect("the job");
    let last = || Ok(["e-4", "e-5", "e-6", "e-8", "e-9"].map(String::from).to_vec());
    assert_eq!(read(&*source, &job, &at).await, last());
    let newest = source.before_last(&job, 0).await.expect("an answer").expect("the job");
    writer::append(&mut server.connect().await, "job", 10..11).await;
    assert_eq!(read(&*source, &job, &newest).await, Ok(vec!["e-10".to_string()]));
    server.ask::<()>(&["XDEL", &stream_key("job"), &ids[8]]).await;
    assert_eq!(read(&*source, &job, &at).await, Err(Reset::Trimmed), "it was there when the place was told");
}

#[tokio::test]
async fn ids_of_a_set_that_are_longer_than_128_bytes_are_counted_unless_they_were_asked_for() {
    let server = <Redis as Store>::start().await;
    let jobs: Vec<String> = (0..20).map(|number| format!("job-{number}")).collect();
    for job in &jobs {
        writer::append(&mut server.connect().await, job, 0..1).await;
    }
    let few: Vec<&str> = jobs[..2].iter().map(String::as_str).collect();
    let many: Vec<&str> = jobs.iter().map(String::as_str).collect();
    for (jobs, ids, is_counted) in [(few, "", false), (many.clone(), "&ids=full", false), (many, "", true)] {
        let daemon = server.daemon(&[]).await;
        let mut stream = Stream::open(daemon.http, &set_path(&jobs, ids), &[]).await;
        let longest = events(&mut stream, jobs.len()).await.iter().map(|event| event.cursor().len()).max();
        assert_eq!(longest > Some(128), jobs.len() > 2, "{longest:?}");
        assert_eq!(daemon.metric("jobcast_long_set_ids_total").await > 0.0, is_counted, "{} jobs{ids}", jobs.len());
    }
}

#[tokio::test]
async fn positions_of_any_kind_lose_and_repeat_nothing_on_many_jobs_in_a_shared_stream() {
    let server = Redis::start().await;
    let own = SHARED.map(|(key, value)| (key, value.to_string()));
    let settings = [Store::settings(&server), own.to_vec()].concat();
    let replicas = [open(&settings).await, open(&settings).await];
    let append = async |job: &JobId, numbers: Range<u64>| {
        let mut all = Pipeline::new();
        for number in numbers {
            all.cmd("XADD").arg("queue").arg(&["*", "job", job.as_str(), "type", "x", "id", &format!("e-{number}")]);
        }
        all.query_async::<Value>(&mut server.connect().await).await.expect("XADD");
    };
    for seed in 0..6 {
        let tried = Tried { replicas: &replicas, has_levels: true, many: 300 };
        keep_on_many_jobs(seed, &tried, &append).await;
    }
}
