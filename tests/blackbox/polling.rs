//! The same events as JSON.

use crate::support::Daemon;
use crate::support::http::request;
use serde_json::Value;
use std::time::{Duration, Instant};

const PATH: &str = "/runner-jobs/job/events";

fn numbers(page: &Value) -> Vec<u64> {
    page["events"].as_array().expect("events").iter().map(|event| event["payload"]["n"].as_u64().expect("n")).collect()
}

#[tokio::test]
async fn pages_of_json_give_the_events_and_cursors_of_the_stream() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..25).await;
    let (mut after, mut seen, mut cursors) = (String::new(), Vec::new(), Vec::new());
    loop {
        let page = daemon.get(&format!("{PATH}?limit=10&after={after}")).await.json();
        assert_eq!((&page["complete"], &page["status"]), (&Value::Bool(false), &"RUNNING".into()));
        assert_eq!(page["retryMs"], 3000);
        if numbers(&page).is_empty() {
            assert_eq!(page["cursor"], after);
            break;
        }
        seen.extend(numbers(&page));
        cursors.extend(page["events"].as_array().expect("events").iter().map(|event| event["cursor"].clone()));
        after = page["cursor"].as_str().expect("cursor").into();
    }
    assert_eq!(seen, Vec::from_iter(0..25));
    let streamed: Vec<Value> = daemon.stream("job").await.take(25).await.iter().map(|m| m.cursor().into()).collect();
    assert_eq!(cursors, streamed);

    daemon.set_status("job", "FAILED").await;
    let end = daemon.get(&format!("{PATH}?after={after}&wait=30")).await.json();
    assert_eq!((&end["complete"], &end["status"]), (&Value::Bool(true), &"FAILED".into()));
    let cut = daemon.get(&format!("{PATH}?limit=24")).await.json();
    assert_eq!(cut["complete"], false, "not before its last event");
}

#[tokio::test]
async fn a_poll_from_now_gives_only_what_comes() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..3).await;
    let now = daemon.get(&format!("{PATH}?from=now")).await.json();
    assert_eq!(numbers(&now), [0; 0]);
    daemon.write("job", 3..5).await;
    let after = now["cursor"].as_str().expect("cursor");
    assert_eq!(numbers(&daemon.get(&format!("{PATH}?after={after}&from=now")).await.json()), [3, 4]);
    assert_eq!(daemon.get("/runner-jobs/of-nobody/events?from=now").await.status, 404);
    assert_eq!(daemon.get(&format!("{PATH}?from=yesterday")).await.status, 400);
    assert_eq!(
        daemon.get(&format!("{PATH}?last=1&from=yesterday")).await.status,
        400,
        "it is wrong where last counts, too"
    );
}

#[tokio::test]
async fn a_long_poll_is_answered_by_the_next_event_the_end_or_its_time() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..1).await;
    let after = daemon.get(PATH).await.json()["cursor"].as_str().expect("cursor").to_string();
    let path = format!("{PATH}?after={after}&wait=60");
    let began = Instant::now();
    let write = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        daemon.write("job", 1..2).await;
    };
    let (answers, ()) = tokio::join!(futures_util::future::join_all((0..20).map(|_| daemon.get(&path))), write);
    for answer in answers {
        assert_eq!(numbers(&answer.json()), [1]);
    }
    let path = format!("{PATH}?after=e-1&wait=60");
    let (answer, ()) = tokio::join!(daemon.get(&path), daemon.set_status("job", "COMPLETED"));
    assert_eq!(answer.json()["complete"], true);
    assert!(began.elapsed() < Duration::from_secs(45));

    daemon.write("quiet", 0..1).await;
    let began = Instant::now();
    let answer = daemon.get("/runner-jobs/quiet/events?after=e-0&wait=1").await;
    assert!(numbers(&answer.json()).is_empty());
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn bad_questions_get_a_400_with_a_code() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..1).await;
    for query in ["limit=0", "limit=1001", "limit=x", "limit=-1", "wait=61", "wait=1.5", "wait=%FF"] {
        let answer = daemon.get(&format!("{PATH}?{query}")).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "request.query"), "{query}");
    }
    for path in ["/runner-jobs?status=DONE", "/runner-jobs?limit=0", "/runner-jobs/job/events/stream?from=yesterday"] {
        let answer = daemon.get(path).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "request.query"), "{path}");
    }
    let answer = daemon.get(&PATH.replace("job/", "nosuchjob/")).await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "job.not_found"));
}

#[tokio::test]
async fn jobs_are_listed_by_their_newest_activity() {
    let daemon = Daemon::start().await;
    for job in ["a", "b", "c"] {
        daemon.write(job, 0..1).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    daemon.set_status("b", "COMPLETED").await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    daemon.write("a", 1..2).await;
    let ids = async |path: &str| -> Vec<String> {
        let jobs = daemon.get(path).await.json()["jobs"].as_array().expect("jobs").clone();
        jobs.iter().map(|job| job["jobId"].as_str().expect("jobId").to_string()).collect()
    };
    assert_eq!(ids("/runner-jobs").await, ["a", "b", "c"]);
    assert_eq!(ids("/runner-jobs?limit=1").await, ["a"]);
    assert_eq!(ids("/runner-jobs?status=COMPLETED").await, ["b"]);
}

#[tokio::test]
async fn pages_of_named_origins_may_watch_and_reconnect_without_asking_leave() {
    let daemon =
        Daemon::with(&[("http.cors.origins", "https://app.example.org"), ("http.cors.credentials", "true")]).await;
    daemon.write("job", 0..1).await;
    for path in [PATH, "/runner-jobs/job/events/stream"] {
        let ask = async |origin: &str| {
            let headers = [("Origin", origin), ("Accept", "text/event-stream")];
            // ends by itself: the job has ended
            request(daemon.http, "GET", path, &headers, b"").await
        };
        daemon.set_status("job", "COMPLETED").await;
        let named = ask("https://app.example.org").await;
        assert_eq!(named.header("Access-Control-Allow-Origin"), Some("https://app.example.org"), "{path}");
        assert_eq!(named.header("Access-Control-Allow-Credentials"), Some("true"));
        let other = ask("https://evil.example").await;
        assert_eq!(other.header("Access-Control-Allow-Origin"), None, "{path}: {other:?}");
    }
    let preflight = [
        ("Origin", "https://app.example.org"),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "authorization,last-event-id"),
    ];
    let answer = request(daemon.http, "OPTIONS", PATH, &preflight, b"").await;
    assert!(matches!(answer.status, 200 | 204), "{answer:?}");
    assert_eq!(answer.header("Access-Control-Allow-Origin"), Some("https://app.example.org"));
}
