//! Rights by a question to another service.

use super::{addresses, ask, refusal};
use crate::support::daemon::stream_path;
use crate::support::http::request;
use crate::support::web::{Asked, Reply};
use crate::support::{Daemon, Stream, Web, eventually};
use std::time::{Duration, Instant};

/// An API that lets ann see everything, ben the job "job", and nobody else anything.
fn api(asked: &Asked) -> Reply {
    let job = asked.header("x-job-id").expect("a job");
    match asked.header("cookie") {
        Some("user=ann") => Reply::with_header(204, "X-Subject: ann"),
        Some("user=ben") if job == "job" => Reply::status(200),
        Some(_) => Reply::status(403),
        None if asked.header("authorization") == Some("Bearer key") => Reply::status(200),
        None => Reply::status(401),
    }
}

async fn asking(web: &Web, settings: &[(&str, &str)]) -> Daemon {
    let url = web.url("/may-watch?from=jobcast");
    let daemon =
        Daemon::with(&[&[("auth.mode", "forward"), ("auth.forward.url", url.as_str())], settings].concat()).await;
    daemon.write("job", 0..1).await;
    daemon
}

async fn stream(daemon: &Daemon, cookie: &str) -> Stream {
    Stream::open(daemon.http, &stream_path("job"), &[("Cookie", cookie)]).await
}

#[tokio::test]
async fn the_api_is_asked_with_cookies_and_authorization_and_nothing_else_and_its_no_is_passed_on() {
    let web = Web::start(api).await;
    let daemon = asking(&web, &[("auth.forward.cache", "0s"), ("source.appear", "0s")]).await;
    daemon.write("%C3%BC%20%25%2A", 0..1).await;
    for job in ["job", "none"] {
        for path in addresses(&daemon, job).await {
            let status = async |headers: &[(&str, &str)]| refusal(&ask(&daemon, &path, headers).await);
            let found = if path.contains("none") { 404 } else { 200 };
            assert_eq!(status(&[("Cookie", "user=ann")]).await.0, found, "{path}");
            let may = path.contains("/job") || path.ends_with("=job");
            assert_eq!(status(&[("Cookie", "user=ben")]).await.0, if may { 200 } else { 403 }, "{path}");
            assert_eq!(status(&[("Cookie", "user=eve")]).await, (403, "auth.forbidden".into()), "{path}");
            assert_eq!(status(&[]).await, (401, "auth.invalid".into()), "{path}");
        }
    }
    let before = web.asked().len();
    let path = "/runner-jobs/%C3%BC%20%25%2A/events?limit=1&access_token=key&other=x&after=y";
    let headers = [
        ("X-Job-Id", "forged"),
        ("X-Original-URI", "/forged"),
        ("X-Forwarded-For", "192.0.2.1"),
        ("Referer", "https://x.example/secret"),
        ("User-Agent", "forged"),
        ("Accept-Language", "de"),
        ("X-Forwarded-Host", "forged"),
    ];
    assert_eq!(ask(&daemon, path, &headers).await.status, 200);
    let [asked] = &web.asked()[before..] else { panic!("asked more than once") };
    assert_eq!(asked.path, "/may-watch?from=jobcast");
    let mut headers: Vec<_> = asked.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    headers.sort();
    let host = web.address.to_string();
    assert_eq!(
        headers,
        [
            ("accept", "*/*"),
            ("authorization", "Bearer key"),
            ("host", &host),
            ("x-job-id", "%C3%BC%20%25%2A"),
            ("x-original-uri", "/runner-jobs/%C3%BC%20%25%2A/events?limit=1&after=y"),
        ]
    );
    // all jobs are a right of their own, which no job's name can be taken for
    let before = web.asked().len();
    ask(&daemon, "/runner-jobs", &[("Cookie", "user=eve")]).await;
    ask(&daemon, "/runner-jobs/*/events", &[("Cookie", "user=eve")]).await;
    let jobs: Vec<_> = web.asked()[before..].iter().map(|asked| asked.header("x-job-id").map(str::to_string)).collect();
    assert_eq!(jobs, [Some("*".into()), Some("%2A".into())]);
}

#[tokio::test]
async fn one_address_cannot_fill_the_line_of_questions_and_open_streams_do_not_stand_in_it() {
    let is_silent = |asked: &Asked| asked.header("cookie").is_some_and(|cookie| cookie.starts_with("silent="));
    let web = Web::start(move |asked: &Asked| if is_silent(asked) { Reply::Silence } else { api(asked) }).await;
    let settings = [
        ("auth.forward.cache", "0s"),
        ("auth.forward.timeout", "10m"),
        ("auth.recheck", "1h"),
        ("http.trusted_proxies", "127.0.0.0/8"),
    ];
    let daemon = asking(&web, &settings).await;
    let http = daemon.http;
    let poll = async move |address: &str, cookie: &str| {
        let headers = [("X-Forwarded-For", address), ("Cookie", cookie)];
        request(http, "GET", "/runner-jobs/job/events", &headers, b"").await.status
    };
    let (mine, others) = ("203.0.113.1", "203.0.113.2");
    let mut stream = stream(&daemon, "user=ben").await;
    assert_eq!(stream.event().await.number(), 0);
    let silent: Vec<_> =
        (0..100).map(|number| tokio::spawn(async move { poll(mine, &format!("silent={number}")).await })).collect();
    let asked_in_vain = || web.asked().iter().filter(|asked| is_silent(asked)).count();
    eventually("half of the line", async || (asked_in_vain() == 32).then_some(())).await;
    daemon.metric_reaches("jobcast_open_connections", 100.0).await;
    for _ in 0..3 {
        assert_eq!(poll(others, "user=ann").await, 200, "an address that has asked nothing yet");
        assert_eq!(poll(mine, "user=ben").await, 200, "a caller with an open stream");
    }
    assert_eq!(asked_in_vain(), 32);
    silent.iter().for_each(|silent| silent.abort());
}

#[tokio::test]
async fn two_thousand_streams_of_one_user_are_a_handful_of_questions() {
    let web = Web::start(api).await;
    let daemon = asking(&web, &[]).await;
    let _ = rlimit::increase_nofile_limit(4000);
    let mut streams = Vec::new();
    for _ in 0..20 {
        let opened = (0..100).map(|_| stream(&daemon, "user=ben"));
        streams.extend(futures_util::future::join_all(opened).await);
    }
    assert!(streams.iter().all(|stream| stream.head.status == 200));
    daemon.has_subscribers(2000).await;
    assert!(web.asked().len() <= 20, "{} questions", web.asked().len());
    // the answer to one is no answer to another
    assert_eq!(stream(&daemon, "user=eve").await.head.status, 403);
}

#[tokio::test]
async fn a_stream_ends_within_the_recheck_after_its_right_is_withdrawn_and_is_asked_for_once() {
    let web = Web::start(api).await;
    let daemon = asking(&web, &[("auth.recheck", "3s")]).await;
    let mut of_ann = stream(&daemon, "user=ann").await;
    let mut of_ben = Vec::new();
    for _ in 0..50 {
        let mut stream = stream(&daemon, "user=ben").await;
        assert_eq!(stream.event().await.number(), 0);
        of_ben.push(stream);
    }
    assert_eq!(of_ann.event().await.number(), 0);
    let before = web.asked().len();
    // rights that are confirmed go on
    eventually("a recheck of both", async || (web.asked().len() >= before + 2).then_some(())).await;
    daemon.write("job", 1..2).await;
    for stream in of_ben.iter_mut().chain([&mut of_ann]) {
        assert_eq!(stream.event().await.number(), 1);
    }
    let withdrawn = Instant::now();
    web.set(|asked| if asked.header("cookie") == Some("user=ben") { Reply::status(403) } else { api(asked) });
    for stream in &mut of_ben {
        let told = stream.rest().await;
        assert!(told.len() == 1 && told[0].is("stream.bye"), "{told:?}");
        assert_eq!(told[0].json()["reason"], "revoked");
    }
    let took = withdrawn.elapsed();
    assert!(took <= Duration::from_secs(3), "{took:?}");
    assert!(web.asked().len() - before <= 20, "{} questions", web.asked().len() - before);
    assert_eq!(stream(&daemon, "user=ben").await.head.status, 403);
    daemon.write("job", 2..3).await;
    assert_eq!(of_ann.event().await.number(), 2);
}

#[tokio::test]
async fn an_api_that_gives_no_answer_is_worth_another_try_and_open_streams_outlive_it_for_a_while() {
    let web = Web::start(api).await;
    let elsewhere = Web::start(|_: &Asked| Reply::status(200)).await;
    let settings = [("auth.recheck", "4s"), ("auth.forward.timeout", "500ms"), ("auth.forward.cache", "0s")];
    let daemon = asking(&web, &settings).await;
    let mut open = stream(&daemon, "user=ben").await;
    assert_eq!(open.event().await.number(), 0);
    let location = format!("Location: {}", elsewhere.url("/"));
    let no_answers = [
        Reply::status(500),
        Reply::status(404),
        Reply::status(429),
        Reply::with_header(307, &location),
        Reply::Silence,
    ];
    for reply in no_answers {
        let shown = format!("{reply:?}");
        web.set(move |_| reply.clone());
        let mut refused = stream(&daemon, "user=ann").await;
        assert_eq!(refused.head.status, 200, "{shown}");
        let told = refused.rest().await;
        assert!(told.len() == 1 && told[0].is("stream.error"), "{shown}: {told:?}");
        let said = told[0].json();
        assert_eq!((&said["code"], &said["retryable"]), (&"auth.unavailable".into(), &true.into()), "{shown}");
        assert!(told[0].retry.is_some_and(|wait| wait >= 3000), "{shown}: {told:?}");
        let path = "/runner-jobs/job/events";
        let polled = request(daemon.http, "GET", path, &[("Cookie", "user=ann")], b"").await;
        assert_eq!(refusal(&polled), (503, "auth.unavailable".into()), "{shown}");
        assert!(polled.header("Retry-After").is_some());
    }
    assert!(elsewhere.asked().is_empty(), "a redirect was followed with the caller's cookies");
    // a right that nobody confirms ends as well, as late as the settings allow
    let told = open.rest().await;
    assert!(told.len() == 1 && told[0].is("stream.bye"), "{told:?}");
    assert_eq!(told[0].json()["reason"], "expired");
    web.set(api);
    let answer = async || Some(stream(&daemon, "user=ben").await.event().await).filter(|event| event.is("step.output"));
    assert_eq!(eventually("an answer", answer).await.number(), 0);
    daemon.logs_times("gives no answer", 1).await;
    daemon.metric_reaches("jobcast_auth_total{outcome=\"unavailable\"}", 10.0).await;
}

#[tokio::test]
async fn a_hundred_who_ask_alike_at_once_share_one_question_and_answers_are_kept_apart_by_all_credentials() {
    let web = Web::start(|asked: &Asked| Reply::Late(Duration::from_millis(300), Box::new(api(asked)))).await;
    let daemon = asking(&web, &[]).await;
    let path = "/runner-jobs/job";
    let asked = (0..100).map(|_| ask(&daemon, path, &[("Cookie", "user=ben")]));
    let answers = futures_util::future::join_all(asked).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(web.asked().len(), 1);
    for (headers, status) in [
        (&[("Cookie", "user=ben; x=1")][..], 403),
        (&[("Cookie", "user=ben"), ("Authorization", "Bearer x")], 200),
        (&[("Authorization", "user=ben")], 401),
        (&[], 401),
    ] {
        assert_eq!(ask(&daemon, path, headers).await.status, status, "{headers:?}");
    }
    assert_eq!(web.asked().len(), 5);
    assert_eq!(ask(&daemon, "/runner-jobs/job2", &[("Cookie", "user=ben")]).await.status, 403);
}

#[tokio::test]
async fn callers_who_leave_while_the_api_is_asked_take_the_right_from_nobody() {
    let web = Web::start(api).await;
    let daemon = asking(&web, &[("auth.forward.cache", "0s"), ("auth.recheck", "2s")]).await;
    let mut held = stream(&daemon, "user=ann").await;
    held.event().await;
    web.set(|asked: &Asked| Reply::Late(Duration::from_millis(200), Box::new(api(asked))));
    for _ in 0..3 {
        let before = web.asked().len();
        let leaving = ask(&daemon, "/runner-jobs/job/events", &[("Cookie", "user=ann")]);
        // It leaves as soon as the API has been asked.
        let is_asked = eventually("a question", async || (web.asked().len() > before).then_some(()));
        tokio::select! {
            _ = leaving => {}
            () = is_asked => {}
        }
    }
    let before = web.asked().len();
    eventually("the right to be checked again", async || (web.asked().len() >= before + 4).then_some(())).await;
    daemon.write("job", 1..2).await;
    assert_eq!(held.event().await.number(), 1, "the stream goes on");
}
