//! Events so large that few of them make a page.

use super::{LEGACY, daemon_on};
use crate::support::{Daemon, Postgres, Stream, eventually, numbers};
use sqlx::Row;

/// Blocks that were read of the values which are stored apart from their rows, by all connections that are closed.
async fn blocks_read(server: &Postgres) -> i64 {
    // A connection brings its counts with its end.
    eventually("all other connections closed", async || {
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        let open: i64 = sqlx::query_scalar(sql).fetch_one(&mut server.connect().await).await.expect("a count");
        (open == 0).then_some(())
    })
    .await;
    let sql = "SELECT sum(toast_blks_hit + toast_blks_read)::bigint AS blocks FROM pg_statio_user_tables";
    sqlx::query(sql).fetch_one(&mut server.connect().await).await.expect("counts").get("blocks")
}

fn most_memory(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("a process");
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    most.expect("VmHWM")
}

#[tokio::test]
async fn a_history_of_large_events_costs_what_it_delivers_also_where_they_are_stored_compressed() {
    let server = Postgres::start().await;
    server.execute(LEGACY).await;
    server.make_reader().await;
    let random = "(SELECT string_agg(md5(random()::text || n || m), '') FROM generate_series(1, 4000) m)";
    for (job, count, text) in [("random", 300, random), ("repeating", 300, "repeat(md5(n::text), 8000)")] {
        server
            .execute(&format!(
                "INSERT INTO runner_jobs (id) VALUES ('{job}');
                 INSERT INTO job_events (id, job_id, type, timestamp, payload)
                   SELECT n, '{job}', 'x', clock_timestamp(), jsonb_build_object('n', n, 'text', {text}) FROM generate_series(1, {count}) n"
            ))
            .await;
    }
    let before = blocks_read(&server).await;
    server.execute("SELECT sum(length(payload::text)) FROM job_events").await;
    let once = blocks_read(&server).await - before;
    let daemon = daemon_on(&server, &[]).await;
    let at_first = most_memory(&daemon);
    for job in ["random", "repeating"] {
        let all = daemon.stream(job).await.take(300).await;
        assert_eq!(numbers(&all), (1..=300).collect::<Vec<_>>());
    }
    let more = most_memory(&daemon) - at_first;
    assert!(more < 48 << 10, "{more} KiB for pages of 64 KiB");
    drop(daemon);
    let read = blocks_read(&server).await - before - once;
    assert!(read < 3 * once, "{read} blocks were read of {once}");
}

#[tokio::test]
async fn large_events_that_are_written_while_a_job_is_watched_come_once_and_in_order() {
    let server = Postgres::start().await;
    server.execute(LEGACY).await;
    server.make_reader().await;
    let daemons = [daemon_on(&server, &[]).await, daemon_on(&server, &[]).await];
    server.execute("INSERT INTO runner_jobs (id) VALUES ('job'), ('other')").await;
    let insert = |job: &str, first: u64, last: u64, bytes: u64| {
        format!(
            "INSERT INTO job_events (id, job_id, type, timestamp, payload)
               SELECT n, '{job}', 'x', clock_timestamp(), jsonb_build_object('n', n, 'text', repeat('x', {bytes}))
               FROM generate_series({first}, {last}) n"
        )
    };
    let set = "/runner-jobs/events/stream?job=job&job=other";
    let mut streams = [daemons[0].stream("job").await, daemons[1].stream("job").await];
    let mut both = Stream::open(daemons[0].http, set, &[]).await;
    // One transaction with more than a read of the tail has room for, and small ones beside them.
    server.execute(&insert("job", 0, 99, 100_000)).await;
    for number in 100..110 {
        server.execute(&insert("job", number, number, 10)).await;
    }
    server.execute(&insert("other", 0, 39, 100_000)).await;
    let expected: Vec<u64> = (0..110).collect();
    // All are read at once: who does not read is cut off.
    let [first, second] = &mut streams;
    let (first, second, of_both) = tokio::join!(first.take(110), second.take(110), both.take(150));
    assert_eq!((numbers(&first), numbers(&second)), (expected.clone(), expected.clone()));
    let cursors: Vec<String> = second.iter().map(|event| event.cursor().to_string()).collect();
    for (place, cursor) in cursors.iter().enumerate().step_by(9).filter(|(place, _)| *place < 109) {
        let rest = daemons[0].stream_after("job", cursor).await.take(109 - place).await;
        assert_eq!(numbers(&rest), expected[place + 1..], "after event {place}");
    }
    for (job, count) in [("job", 110), ("other", 40)] {
        let of_job = of_both.iter().filter(|event| event.json()["jobId"] == job);
        assert_eq!(of_job.map(|event| event.number()).collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
    }
}
