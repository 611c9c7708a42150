//! A job's end: after its last event, and once.

use crate::support::daemon::write_rows;
use crate::support::{Daemon, numbers};
use futures_util::future::join_all;

#[tokio::test]
async fn a_jobs_last_event_always_comes_before_stream_complete_and_the_cursor_of_its_end_gets_a_204() {
    let daemon = Daemon::start().await;
    let mut rows = daemon.rows().await;
    let jobs: Vec<String> = (0..40).map(|number| format!("job-{number}")).collect();
    let events = 30;
    for job in &jobs {
        write_rows(&mut rows, job, 0..1).await;
    }
    let watch = async |job: &String| {
        let mut stream = daemon.stream(job).await;
        stream.rest().await
    };
    let write = async {
        for (number, job) in jobs.iter().enumerate() {
            match number % 3 {
                // all in one transaction
                0 => {
                    let mut statements = String::from("BEGIN IMMEDIATE;");
                    for n in 1..events {
                        statements += &format!(
                            "INSERT INTO job_events (id, job_id, type, payload) VALUES ('e-{n}', '{job}', 'x', '{{\"n\":{n}}}');"
                        );
                    }
                    statements += &format!("UPDATE runner_jobs SET status = 'COMPLETED' WHERE id = '{job}'; COMMIT;");
                    sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&mut rows).await.expect("rows");
                }
                // the status right after the last one
                1 => {
                    write_rows(&mut rows, job, 1..events).await;
                    let end = "UPDATE runner_jobs SET status = 'COMPLETED' WHERE id = ?1";
                    sqlx::query(end).bind(job).execute(&mut rows).await.expect("end");
                }
                _ => {
                    daemon.write(job, 1..events).await;
                    daemon.set_status(job, "COMPLETED").await;
                }
            }
        }
    };
    // three each: two from the start, one that comes just then
    let early = join_all(jobs.iter().chain(&jobs).map(watch));
    let late = async {
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
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

#[tokio::test]
async fn a_job_that_has_ended_and_never_had_an_event_is_complete_at_once() {
    let daemon = Daemon::start().await;
    daemon.set_status("job", "CANCELLED").await;
    let rest = daemon.stream("job").await.rest().await;
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].json()["status"], "CANCELLED");
    assert_eq!(daemon.stream_after("job", rest[0].cursor()).await.head.status, 204);
}

#[tokio::test]
async fn a_job_that_is_run_again_goes_on_where_it_ended() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..3).await;
    daemon.set_status("job", "FAILED").await;
    let first = daemon.stream("job").await.rest().await;
    daemon.set_status("job", "RUNNING").await;
    let mut again = daemon.stream_after("job", first[3].cursor()).await;
    daemon.write("job", 3..5).await;
    daemon.set_status("job", "COMPLETED").await;
    let rest = again.rest().await;
    assert_eq!(numbers(&rest[..2]), [3, 4]);
    assert_eq!(rest[2].json()["status"], "COMPLETED");
}

#[tokio::test]
async fn a_job_that_ends_with_more_than_one_read_can_hold_gives_all_of_it_before_its_end() {
    let daemon = Daemon::start().await;
    let mut rows = daemon.rows().await;
    write_rows(&mut rows, "job", 0..1).await;
    let mut streams = join_all((0..3).map(|_| daemon.stream("job"))).await;
    for stream in &mut streams {
        stream.take(1).await;
    }
    let events = 5000;
    let burst = format!(
        "BEGIN IMMEDIATE;
         WITH RECURSIVE one(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM one WHERE n < {events})
         INSERT INTO job_events (id, job_id, type, payload)
         SELECT 'e-' || n, 'job', 'x', json_object('n', n, 'pad', hex(zeroblob(300))) FROM one;
         UPDATE runner_jobs SET status = 'COMPLETED' WHERE id = 'job';
         COMMIT;"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(burst)).execute(&mut rows).await.expect("a burst");
    for stream in &mut streams {
        let rest = stream.rest().await;
        let (complete, seen) = rest.split_last().expect("something");
        assert!(complete.is("stream.complete"), "{complete:?}");
        assert_eq!(numbers(seen), Vec::from_iter(1..=events));
    }
}
