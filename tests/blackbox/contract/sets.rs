//! Many jobs on one connection.

use crate::support::daemon::stream_path;
use crate::support::store::Store;
use crate::support::{Daemon, Message, Stream};
use std::collections::{BTreeMap, BTreeSet};

pub fn set_path(jobs: &[&str], more: &str) -> String {
    let named: Vec<String> = jobs.iter().map(|job| format!("job={job}")).collect();
    format!("/runner-jobs/events/stream?{}{more}", named.join("&"))
}

async fn open(daemon: &Daemon, jobs: &[&str], more: &str) -> Stream {
    Stream::open(daemon.http, &set_path(jobs, more), &[]).await
}

/// The next event that is a job's own.
pub async fn event(stream: &mut Stream) -> Message {
    loop {
        let message = stream.next().await.expect("the stream is open");
        if message.data.is_some() && !message.event.as_deref().is_some_and(|event| event.starts_with("stream.")) {
            return message;
        }
    }
}

pub async fn events(stream: &mut Stream, count: usize) -> Vec<Message> {
    let mut events = Vec::new();
    while events.len() < count {
        events.push(event(stream).await);
    }
    events
}

/// The numbers of each job's events, in the order in which they came.
pub fn by_job<'a>(messages: impl IntoIterator<Item = &'a Message>) -> BTreeMap<String, Vec<u64>> {
    let mut by_job: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for message in messages {
        by_job.entry(job_of(message)).or_default().push(message.number());
    }
    by_job
}

fn job_of(message: &Message) -> String {
    message.json()["jobId"].as_str().expect("a job").to_string()
}

pub fn expect(jobs: &[(&str, std::ops::Range<u64>)]) -> BTreeMap<String, Vec<u64>> {
    jobs.iter().map(|(job, numbers)| (job.to_string(), numbers.clone().collect())).collect()
}

pub async fn a_set_gives_the_events_of_each_job_once_and_in_order_and_closes_when_all_have_ended<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    let jobs = ["a", "b", "c"];
    for job in jobs {
        store.set_status(job, "RUNNING").await;
        store.append(job, 0..20).await;
    }
    let mut stream = open(&daemon, &jobs, "").await.with_statuses();
    let mut reverse = open(&daemon, &["c", "b", "a", "a"], "").await;
    assert_eq!(stream.head.status, 200);
    assert_eq!(by_job(&events(&mut stream, 60).await), expect(&[("a", 0..20), ("b", 0..20), ("c", 0..20)]));
    for number in 20..30 {
        for job in jobs {
            store.append(job, number..number + 1).await;
        }
    }
    let live = events(&mut stream, 30).await;
    assert_eq!(by_job(&live), expect(&[("a", 20..30), ("b", 20..30), ("c", 20..30)]));
    store.append_and_end("b", 30..31, 0, "FAILED").await;
    let (mut completed, mut last) = (Vec::new(), String::new());
    let mut rest = Vec::new();
    while let Some(message) = stream.next().await {
        if message.is("stream.complete") {
            completed.push((job_of(&message), message.json()["status"].as_str().expect("a status").to_string()));
            last = message.cursor().to_string();
            match completed.len() {
                1 => store.append_and_end("a", 30..32, 0, "COMPLETED").await,
                2 => store.set_status("c", "CANCELLED").await,
                _ => {}
            }
        } else if message.id.is_some() && message.data.is_some() {
            rest.push(message);
        }
    }
    let ended = [("b", "FAILED"), ("a", "COMPLETED"), ("c", "CANCELLED")];
    assert_eq!(completed, ended.map(|(job, status)| (job.to_string(), status.to_string())));
    assert_eq!(by_job(&rest), expect(&[("a", 30..32), ("b", 30..31)]));
    let all = by_job(&events(&mut reverse, 93).await);
    assert_eq!(all, expect(&[("a", 0..32), ("b", 0..31), ("c", 0..30)]));
    let path = set_path(&jobs, "");
    assert_eq!(Stream::open(daemon.http, &path, &[("Last-Event-ID", &last)]).await.head.status, 204);
    // Who comes anew is given all of it, and the end of each.
    let mut again = open(&daemon, &jobs, "").await;
    let (mut numbers, mut ends) = (Vec::new(), BTreeSet::new());
    while let Some(message) = again.next().await {
        match message.is("stream.complete") {
            true => assert!(ends.insert(job_of(&message))),
            false if message.data.is_some() => numbers.push(message),
            false => {}
        }
    }
    assert_eq!((by_job(&numbers), ends.len()), (all, 3));
}

pub async fn resuming_a_set_at_every_event_on_another_replica_gives_exactly_the_rest<S: Store>() {
    let store = S::start().await;
    let (daemon, other) = (store.daemon(&[]).await, store.daemon(&[]).await);
    let jobs = ["a", "b", "c", "d"];
    for job in jobs {
        store.append(job, 0..8).await;
    }
    let mut stream = open(&daemon, &jobs, "").await;
    let mut all = events(&mut stream, 32).await;
    for number in 8..12 {
        for job in ["b", "d", "a"] {
            store.append(job, number..number + 1).await;
            if number % 2 == 0 {
                all.push(event(&mut stream).await);
            }
        }
        if number % 2 == 1 {
            all.extend(events(&mut stream, 3).await);
        }
    }
    let whole = expect(&[("a", 0..12), ("b", 0..12), ("c", 0..8), ("d", 0..12)]);
    assert_eq!(by_job(&all), whole);
    let path = set_path(&["d", "c", "b", "a"], "");
    for given in 0..all.len() {
        let to = if given % 2 == 0 { other.http } else { daemon.http };
        let mut back = Stream::open(to, &path, &[("Last-Event-ID", all[given].cursor())]).await;
        let rest = events(&mut back, all.len() - given - 1).await;
        assert_eq!(by_job(all[..=given].iter().chain(&rest)), whole, "after {:?}", all[given]);
    }
    // Nothing came twice, and what is new comes to all.
    let mut back = Stream::open(other.http, &path, &[("Last-Event-ID", all[all.len() - 1].cursor())]).await;
    store.append("c", 8..9).await;
    assert_eq!(by_job([&event(&mut back).await]), expect(&[("c", 8..9)]));
    // The same by JSON.
    let cursor = all[5].cursor();
    let page =
        daemon.get(&format!("/runner-jobs/events?job=a&job=b&job=c&job=d&limit=1000&after={cursor}")).await.json();
    assert_eq!(page["events"].as_array().expect("events").len(), all.len() - 6 + 1, "{page}");
    assert_eq!(page["complete"], false);
}

pub async fn a_cursor_of_another_set_goes_on_for_the_jobs_that_it_knows<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    for job in ["a", "b", "c", "d"] {
        store.append(job, 0..5).await;
    }
    for ids in ["", "&ids=full"] {
        let mut stream = open(&daemon, &["a", "b", "c"], ids).await;
        let cursor = events(&mut stream, 15).await.pop().expect("an event").cursor().to_string();
        drop(stream);
        let path = set_path(&["b", "c", "d"], ids);
        let mut back = Stream::open(daemon.http, &path, &[("Last-Event-ID", &cursor)]).await;
        let reset = loop {
            let message = back.next().await.expect("open");
            if message.data.is_some() {
                break message;
            }
        };
        assert!(reset.is("stream.reset"), "{reset:?}");
        assert_eq!((&reset.json()["jobId"], &reset.json()["reason"]), (&"d".into(), &"unknown".into()));
        assert_eq!(by_job(&events(&mut back, 5).await), expect(&[("d", 0..5)]));
    }
    // A cursor of one job alone, and one that means nothing.
    let mut single = daemon.stream("a").await;
    let cursor = single.take(3).await.pop().expect("an event").cursor().to_string();
    let path = set_path(&["a", "b"], "");
    let mut back = Stream::open(daemon.http, &path, &[("Last-Event-ID", &cursor)]).await;
    assert_eq!(by_job(&events(&mut back, 7).await), expect(&[("a", 3..5), ("b", 0..5)]));
    let mut unknown = Stream::open(daemon.http, &path, &[("Last-Event-ID", "mAAAA")]).await;
    let reset = loop {
        let message = unknown.next().await.expect("open");
        if message.data.is_some() {
            break message;
        }
    };
    assert!(reset.is("stream.reset") && reset.json().get("jobId").is_none(), "{reset:?}");
    assert_eq!(by_job(&events(&mut unknown, 10).await), expect(&[("a", 0..5), ("b", 0..5)]));
}

pub async fn a_job_of_a_set_that_is_not_there_yet_comes_when_it_appears<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    assert_eq!(daemon.get("/runner-jobs/events?job=x&job=y").await.code(), "job.not_found");
    let waiting = tokio::spawn({
        let (to, path) = (daemon.http, set_path(&["new", "old"], ""));
        async move { Stream::open(to, &path, &[]).await }
    });
    store.append("old", 0..3).await;
    let mut stream = waiting.await.expect("an answer");
    if stream.head.status == 404 {
        stream = open(&daemon, &["new", "old"], "").await;
    }
    assert_eq!(by_job(&events(&mut stream, 3).await), expect(&[("old", 0..3)]));
    store.append("new", 0..4).await;
    let came = events(&mut stream, 4).await;
    assert_eq!(by_job(&came), expect(&[("new", 0..4)]));
    let path = set_path(&["new", "old"], "");
    let mut back = Stream::open(daemon.http, &path, &[("Last-Event-ID", came[1].cursor())]).await;
    assert_eq!(by_job(&events(&mut back, 2).await), expect(&[("new", 2..4)]));
}

pub async fn streams_of_a_job_and_of_sets_with_it_begin_at_any_time_beside_each_other<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    let mut streams: Vec<(Vec<&str>, Stream)> = Vec::new();
    let rounds: [&[&str]; 6] = [&["a"], &["a", "b"], &["b"], &["a", "b", "c"], &["c"], &["b", "c"]];
    for job in ["a", "b", "c"] {
        store.append(job, 0..1).await;
    }
    let mut written = 1;
    for jobs in rounds {
        let stream = match jobs {
            [job] => daemon.stream(job).await,
            jobs => open(&daemon, jobs, "").await,
        };
        streams.push((jobs.to_vec(), stream));
        for job in ["a", "b", "c"] {
            store.append(job, written..written + 3).await;
        }
        written += 3;
    }
    for (jobs, mut stream) in streams {
        let expected: Vec<_> = jobs.iter().map(|job| (*job, 0..written)).collect();
        let came = events(&mut stream, written as usize * jobs.len()).await;
        assert_eq!(by_job(&came), expect(&expected), "{jobs:?}");
    }
    let watched = daemon.get("/runner-jobs/a").await.json();
    assert_eq!(watched["jobId"], "a");
}

pub async fn types_and_last_give_what_a_filter_of_the_whole_history_gives<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    for job in ["a", "b"] {
        store.append(job, 0..30).await;
    }
    let kind = event(&mut daemon.stream("a").await).await.json()["type"].as_str().expect("a type").to_string();
    let (of_kind, others) = (format!("&types={kind},x.*"), "&types=nothing.*");
    for last in [1, 7, 30, 31, 1000] {
        let first = 30_u64.saturating_sub(last);
        let mut single = Stream::open(daemon.http, &format!("{}?last={last}", stream_path("a")), &[]).await;
        let count = (30 - first) as usize;
        assert_eq!(by_job(&events(&mut single, count).await), expect(&[("a", first..30)]));
        let mut set = open(&daemon, &["a", "b"], &format!("&last={last}{of_kind}")).await;
        assert_eq!(by_job(&events(&mut set, 2 * count).await), expect(&[("a", first..30), ("b", first..30)]));
        let page = daemon.get(&format!("/runner-jobs/a/events?last={last}&limit=1000")).await.json();
        assert_eq!(page["events"].as_array().expect("events").len(), count);
    }
    // Nothing but the position comes of events that are not wanted, and a reconnect at it reads nothing again.
    let path = format!("{}?{}", stream_path("a"), &others[1..]);
    let mut nothing = Stream::open(daemon.http, &path, &[]).await;
    let position = loop {
        let message = nothing.next().await.expect("open");
        assert_eq!(message.data, None);
        if let Some(id) = message.id {
            break id;
        }
    };
    let mut rest = daemon.stream_after("a", &position).await;
    let mut filtered = Stream::open(daemon.http, &format!("{}?{}", stream_path("a"), &of_kind[1..]), &[]).await;
    assert_eq!(events(&mut filtered, 30).await.len(), 30);
    store.append("a", 30..32).await;
    for stream in [&mut rest, &mut filtered] {
        assert_eq!(by_job(&events(stream, 2).await), expect(&[("a", 30..32)]));
    }
    for bad in ["types=", "types=*x", "last=1001", "last=x"] {
        assert_eq!(daemon.get(&format!("{}?{bad}", stream_path("a"))).await.code(), "request.query", "{bad}");
    }
    let many: Vec<String> = (0..201).map(|job| format!("job=j{job}")).collect();
    let path = format!("/runner-jobs/events/stream?{}", many.join("&"));
    assert_eq!(daemon.get(&path).await.code(), "request.query");
    assert_eq!(daemon.get("/runner-jobs/events/stream").await.code(), "request.query");
}

pub async fn a_job_of_a_set_that_goes_on_after_its_end_is_told_to_all_and_ends_once_more<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    for job in ["a", "b"] {
        store.set_status(job, "RUNNING").await;
        store.append(job, 0..2).await;
    }
    let jobs = ["a", "b"];
    let mut stream = open(&daemon, &jobs, "").await.with_statuses();
    events(&mut stream, 4).await;
    let completed = async |stream: &mut Stream| loop {
        let message = stream.next().await.expect("the stream is open");
        if message.is("stream.complete") {
            return (job_of(&message), message.json()["status"].as_str().expect("a status").to_string());
        }
    };
    store.append_and_end("a", 2..3, 0, "FAILED").await;
    assert_eq!(completed(&mut stream).await, ("a".to_string(), "FAILED".to_string()));
    // It runs again, with new lines: whoever stayed, and whoever comes now, hears of it.
    store.set_status("a", "RUNNING").await;
    store.append("a", 3..5).await;
    assert_eq!(by_job(&events(&mut stream, 2).await), expect(&[("a", 3..5)]));
    for (more, number) in ["", "&ids=full", "&from=now"].into_iter().zip(2..) {
        let mut late = open(&daemon, &jobs, more).await.with_statuses();
        store.append("b", number..number + 1).await;
        let (mut received, mut status) = (Vec::new(), None);
        while !received.iter().any(|message| job_of(message) == "b" && message.number() == number) {
            let message = late.next().await.expect("the stream is open");
            match message.event.as_deref() {
                Some("stream.status") if job_of(&message) == "a" => status = Some(message.json()["status"].clone()),
                Some(event) if !event.starts_with("stream.") => received.push(message),
                other => assert_ne!(other, Some("stream.complete"), "{more}: {message:?}"),
            }
        }
        assert_eq!(status, Some("RUNNING".into()), "{more}");
        let of_a = by_job(&received).remove("a").unwrap_or_default();
        assert_eq!(of_a, if more == "&from=now" { vec![] } else { vec![0, 1, 2, 3, 4] }, "{more}");
    }
    store.append_and_end("a", 5..6, 0, "COMPLETED").await;
    assert_eq!(completed(&mut stream).await, ("a".to_string(), "COMPLETED".to_string()));
    store.set_status("b", "CANCELLED").await;
    assert_eq!(completed(&mut stream).await, ("b".to_string(), "CANCELLED".to_string()));
    assert_eq!(stream.next().await.map(|message| message.event), None, "it closes when all have ended");
}
