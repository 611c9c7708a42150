//! A job's end: after its last event, and once.

use crate::support::numbers;
use crate::support::store::Store;
use futures_util::future::join_all;
use tokio::sync::watch;

pub async fn a_jobs_last_event_comes_before_stream_complete_and_its_end_gets_a_204<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    let jobs: Vec<String> = (0..40).map(|number| format!("job-{number}")).collect();
    let events = 30;
    for job in &jobs {
        store.append(job, 0..1).await;
    }
    let watch = async |job: &String| daemon.stream(job).await.rest().await;
    let (has_begun, mut begun) = watch::channel(false);
    let write = async {
        for (number, job) in jobs.iter().enumerate() {
            match number % 3 {
                0 => store.append_and_end(job, 1..events, 0, "COMPLETED").await,
                // the status right after the last one
                1 => {
                    store.append(job, 1..events).await;
                    store.set_status(job, "COMPLETED").await;
                }
                _ => {
                    daemon.write(job, 1..events).await;
                    daemon.set_status(job, "COMPLETED").await;
                }
            }
            has_begun.send_replace(true);
        }
    };
    // three each: two from the start, one that comes just then
    let early = join_all(jobs.iter().chain(&jobs).map(watch));
    let late = async {
        begun.wait_for(|begun| *begun).await.expect("a writer");
        join_all(jobs.iter().map(watch)).await
    };
    let ((), early, late) = tokio::join!(write, early, late);
    for seen in early.into_iter().chain(late) {
        let (complete, events_seen) = seen.split_last().expect("something");
        assert!(complete.is("stream.complete"), "{complete:?}");
        assert_eq!(complete.json()["status"], "COMPLETED");
        assert_eq!(numbers(events_seen), Vec::from_iter(0..events));
        let job = complete.json()["jobId"].as_str().expect("jobId").to_string();
        for end in [complete.cursor(), events_seen[events_seen.len() - 1].cursor(), "e-29"] {
            assert_eq!(daemon.stream_after(&job, end).await.head.status, 204, "{job} after {end}");
        }
        let before = events_seen[events_seen.len() - 2].cursor();
        let rest = daemon.stream_after(&job, before).await.rest().await;
        assert_eq!((rest.len(), rest[0].number()), (2, 29));
    }
}

pub async fn a_job_that_ended_without_an_event_is_complete<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    store.set_status("job", "CANCELLED").await;
    let rest = daemon.stream("job").await.rest().await;
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].json()["status"], "CANCELLED");
    assert_eq!(daemon.stream_after("job", rest[0].cursor()).await.head.status, 204);
}

pub async fn a_job_that_is_run_again_goes_on_where_it_ended<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    store.append("job", 0..3).await;
    store.set_status("job", "FAILED").await;
    let first = daemon.stream("job").await.rest().await;
    store.set_status("job", "RUNNING").await;
    let mut again = daemon.stream_after("job", first[3].cursor()).await;
    store.append("job", 3..5).await;
    store.set_status("job", "COMPLETED").await;
    let rest = again.rest().await;
    assert_eq!(numbers(&rest[..2]), [3, 4]);
    assert_eq!(rest[2].json()["status"], "COMPLETED");
}

pub async fn a_job_that_ends_with_more_than_one_read_holds_gives_all_of_it_first<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    store.append("job", 0..1).await;
    let mut streams = join_all((0..3).map(|_| daemon.stream("job"))).await;
    for stream in &mut streams {
        stream.take(1).await;
    }
    store.append_and_end("job", 1..5001, 600, "COMPLETED").await;
    for stream in &mut streams {
        let rest = stream.rest().await;
        let (complete, seen) = rest.split_last().expect("something");
        assert!(complete.is("stream.complete"), "{complete:?}");
        assert_eq!(numbers(seen), Vec::from_iter(1..5001));
    }
}
