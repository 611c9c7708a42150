//! Lives of a database: restored from a dump, copied, promoted, moved on, upgraded, replicated, recovered to a moment.
//! Cursors of another life are noticed; they hide nothing, and are told so once.

use super::{LEGACY, RECOMMENDED, daemon_on};
use crate::support::daemon::run;
use crate::support::postgres::append;
use crate::support::{Daemon, Message, Pooler, Postgres, Stream, address, eventually, numbers};
use sqlx::{Executor, Row};
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const QUICK: [(&str, &str); 2] = [("source.poll_interval", "50ms"), ("source.settle", "300ms")];

/// Spends transaction ids.
async fn spend(server: &Postgres, count: u32) {
    server
        .execute(&format!(
            "DO $$ BEGIN FOR n IN 1..{count} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
        ))
        .await;
}

/// A server with a job of 300 events, each of a transaction of its own, and another that has ended.
async fn first_life(schema: &str, spent: u32) -> Postgres {
    let server = Postgres::start().await;
    begin_life(&server, schema, spent, 300).await;
    server
}

/// The same on a server that there is, with so many of the events.
async fn begin_life(server: &Postgres, schema: &str, spent: u32, events: u64) {
    server.execute(schema).await;
    server.make_reader().await;
    spend(server, spent).await;
    let mut rows = server.connect().await;
    rows.execute("INSERT INTO runner_jobs VALUES ('job', 'RUNNING'), ('over', 'RUNNING')").await.expect("jobs");
    append(&mut rows, "job", 0..events).await;
    append(&mut rows, "over", 1000..1050).await;
    rows.execute("UPDATE runner_jobs SET status = 'COMPLETED' WHERE id = 'over'").await.expect("an end");
}

/// Restores a dump of the whole database into a new server, which has spent so many transaction ids before.
async fn restored(from: &Postgres, spent: u32) -> Postgres {
    let server = Postgres::start().await;
    server.execute("CREATE ROLE reader LOGIN").await;
    spend(&server, spent).await;
    server.psql(&from.dump().await).await;
    server
}

/// The rest of a stream up to the end of the job, and the resets in it.
async fn rest(stream: &mut Stream, count: usize) -> (Vec<u64>, usize) {
    let (mut seen, mut resets) = (Vec::new(), 0);
    while seen.len() < count {
        let message = stream.event().await;
        match message.event.as_deref() {
            Some("x") => seen.push(message.number()),
            Some("stream.reset") => {
                seen.clear();
                resets += 1;
            }
            Some("stream.error") => {}
            other => panic!("{other:?} after {}", seen.len()),
        }
    }
    (seen, resets)
}

/// Everything that the readers of a new life are promised, with cursors from the old one.
async fn lives_on(server: &Postgres, daemon: &Daemon, old: &[Message], may_go_on: bool) {
    let all = Vec::from_iter(0..300);
    // Whoever comes anew has all of it.
    let mut fresh = daemon.stream("job").await;
    assert_eq!(rest(&mut fresh, 300).await, (all.clone(), 0), "a new reader");
    let mut over = daemon.stream("over").await;
    assert_eq!(rest(&mut over, 50).await.0, Vec::from_iter(1000..1050));
    assert!(over.event().await.is("stream.complete"), "a job that has ended ends");
    let mut streams = vec![fresh];
    for message in [&old[0], &old[100], &old[298]] {
        let mut stream = daemon.stream_after("job", message.cursor()).await;
        let left = 299 - message.number();
        let expected = if may_go_on { left as usize } else { 300 };
        let (seen, resets) = rest(&mut stream, expected).await;
        assert_eq!(seen, Vec::from_iter(300 - expected as u64..300), "after the event {}", message.number());
        assert_eq!(resets, usize::from(!may_go_on), "said once");
        streams.push(stream);
    }
    // The cursors of now are honoured, and what comes is given once, also while the server's own transactions come to the
    // numbers of the old ones.
    let mut rows = server.connect().await;
    append(&mut rows, "job", [300]).await;
    for stream in &mut streams {
        assert_eq!(stream.event().await.number(), 300);
    }
    for round in 0..5 {
        spend(server, 900).await;
        append(&mut rows, "job", [301 + round]).await;
        for stream in &mut streams {
            assert_eq!(stream.event().await.number(), 301 + round);
        }
    }
    let mut late = daemon.stream("job").await;
    let last = late.take(306).await;
    assert_eq!(numbers(&last), Vec::from_iter(0..306));
    let mut resumed = daemon.stream_after("job", last[200].cursor()).await;
    assert_eq!(rest(&mut resumed, 105).await, (Vec::from_iter(201..306), 0));
    rows.execute("UPDATE runner_jobs SET status = 'COMPLETED' WHERE id = 'job'").await.expect("an end");
    for stream in &mut streams {
        assert!(stream.event().await.is("stream.complete"));
    }
}

#[tokio::test]
async fn a_dump_that_is_restored_elsewhere_gives_all_of_it_and_resets_old_cursors_once() {
    for schema in [RECOMMENDED, LEGACY] {
        // The ids of the first life are above those of the second, and below.
        for (first, second) in [(3000, 0), (0, 9000)] {
            let old = first_life(schema, first).await;
            let daemon = daemon_on(&old, &QUICK).await;
            let seen = daemon.stream("job").await.take(300).await;
            let new = restored(&old, second).await;
            drop(daemon);
            let daemon = daemon_on(&new, &QUICK).await;
            lives_on(&new, &daemon, &seen, false).await;
        }
    }
}

/// An address that leads to one server, and later to another.
struct Door {
    address: SocketAddr,
    server: watch::Sender<SocketAddr>,
}

impl Door {
    async fn to(server: &Postgres) -> Self {
        let address = address::free();
        let listener = TcpListener::bind(address).await.expect("a port");
        let (sender, server) = watch::channel(server.address());
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let mut server = server.clone();
                tokio::spawn(async move {
                    let to = *server.borrow_and_update();
                    let Ok(mut to) = TcpStream::connect(to).await else { return };
                    // Who has come through is put out when it leads elsewhere.
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
                        _ = server.changed() => {}
                    }
                });
            }
        });
        Self { address, server: sender }
    }

    fn lead_to(&self, server: &Postgres) {
        self.server.send_replace(server.address());
    }
}

#[tokio::test]
async fn a_server_that_takes_anothers_place_under_a_running_jobcast_hides_nothing_however_far_its_transactions_are() {
    let old = first_life(RECOMMENDED, 500).await;
    let door = Door::to(&old).await;
    let daemon = Daemon::on("postgres", &format!("postgres://reader@{}/postgres", door.address), &QUICK).await;
    let mut stream = daemon.stream("job").await;
    let seen = stream.take(300).await;
    // Its newest events have ids that the old server had given out before it, and it has come past all of those.
    let new = restored(&old, 0).await;
    append(&mut new.connect().await, "job", 300..310).await;
    spend(&new, 3000).await;
    door.lead_to(&new);
    assert_eq!(rest(&mut stream, 310).await, (Vec::from_iter(0..310), 1));
    let mut resumed = daemon.stream_after("job", seen[299].cursor()).await;
    assert_eq!(rest(&mut resumed, 310).await, (Vec::from_iter(0..310), 1));
}

#[tokio::test]
async fn a_server_that_takes_anothers_place_behind_a_pooler_is_noticed_on_connections_that_stay() {
    for schema in [RECOMMENDED, LEGACY] {
        let old = first_life(schema, 500).await;
        let pooler = Pooler::start(&old).await;
        let daemon = Daemon::on("postgres", &pooler.url("reader"), &QUICK).await;
        let mut stream = daemon.stream("job").await;
        let seen = stream.take(300).await;
        let new = restored(&old, 0).await;
        append(&mut new.connect().await, "job", 300..310).await;
        spend(&new, 3000).await;
        pooler.lead_to(&new).await;
        assert_eq!(rest(&mut stream, 310).await, (Vec::from_iter(0..310), 1));
        let mut resumed = daemon.stream_after("job", seen[299].cursor()).await;
        assert_eq!(rest(&mut resumed, 310).await, (Vec::from_iter(0..310), 1));
    }
}

#[tokio::test]
async fn check_names_rows_of_another_life_and_its_mend_makes_the_column_good_again() {
    let old = first_life(RECOMMENDED, 3000).await;
    let new = restored(&old, 0).await;
    let url = new.url("reader");
    let settings = [("source.kind", "postgres"), ("source.postgres.url", &*url)];
    let check = run(&["check", "--json"], &settings).await;
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&check.stdout).expect("JSON");
    let found = findings.iter().find(|finding| finding["grade"] == "wrong").expect("a problem");
    assert!(found["summary"].as_str().expect("a text").contains("another life of the database"), "{found}");
    new.psql(found["mend"].as_str().expect("a text")).await;
    let check = run(&["check", "--quiet"], &settings).await;
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    let daemon = daemon_on(&new, &QUICK).await;
    daemon.logs(&["age=Column"]).await;
    assert_eq!(numbers(&daemon.stream("job").await.take(300).await), Vec::from_iter(0..300));
}

#[tokio::test]
async fn a_server_that_is_replaced_under_a_running_daemon_is_noticed() {
    let old = first_life(RECOMMENDED, 3000).await;
    let mut new = restored(&old, 0).await;
    let settings = [&QUICK[..], &[("source.retry_max", "300ms"), ("source.retry_initial", "100ms")]].concat();
    let daemon = daemon_on(&old, &settings).await;
    let seen = daemon.stream("job").await.take(300).await;
    let mut watching = daemon.stream_after("job", seen[299].cursor()).await;
    old.down("fast");
    new.down("fast");
    new.port = old.port;
    new.set(&format!("port = {}\n", new.port));
    new.up().await;
    let (again, resets) = rest(&mut watching, 300).await;
    assert_eq!((again, resets), (Vec::from_iter(0..300), 1));
    append(&mut new.connect().await, "job", [300]).await;
    assert_eq!(watching.event().await.number(), 300);
}

#[tokio::test]
async fn a_standby_that_is_promoted_honours_all_cursors() {
    let primary = first_life(RECOMMENDED, 100).await;
    let standby = primary.standby().await;
    let daemon = daemon_on(&primary, &QUICK).await;
    let seen = daemon.stream("job").await.take(300).await;
    standby.caught_up_with(&primary).await;
    primary.down("immediate");
    standby.promote().await;
    let daemon = daemon_on(&standby, &QUICK).await;
    lives_on(&standby, &daemon, &seen, true).await;
}

#[tokio::test]
async fn operators_see_how_far_a_standby_is_behind_its_primary() {
    let lag = "jobcast_source_standby_lag_seconds";
    let primary = first_life(RECOMMENDED, 100).await;
    let standby = primary.standby().await;
    append(&mut primary.connect().await, "job", [300]).await;
    standby.caught_up_with(&primary).await;
    let daemon = daemon_on(&standby, &QUICK).await;
    let mut stream = daemon.stream("job").await;
    stream.take(301).await;
    daemon.metric_is(lag, 0.0).await;
    standby.execute("SELECT pg_wal_replay_pause()").await;
    append(&mut primary.connect().await, "job", [301]).await;
    daemon.metric_reaches(lag, 1.0).await;
    standby.execute("SELECT pg_wal_replay_resume()").await;
    assert_eq!(stream.event().await.number(), 301);
    daemon.metric_is(lag, 0.0).await;
    primary.down("immediate");
    daemon.metric_reaches(lag, 1.0).await;
    standby.promote().await;
    daemon.metric_is(lag, 0.0).await;
}

#[tokio::test]
async fn a_copy_whose_transaction_ids_were_moved_on_honours_all_cursors() {
    let server = first_life(LEGACY, 100).await;
    let daemon = daemon_on(&server, &QUICK).await;
    let seen = daemon.stream("job").await.take(300).await;
    drop(daemon);
    server.down("fast");
    server.move_xids(2_000_000);
    server.up().await;
    let daemon = daemon_on(&server, &QUICK).await;
    lives_on(&server, &daemon, &seen, true).await;
}

#[tokio::test]
async fn a_cluster_that_was_upgraded_gives_all_of_it_and_resets_old_cursors_once() {
    for schema in [RECOMMENDED, LEGACY] {
        let old = first_life(schema, 3000).await;
        let daemon = daemon_on(&old, &QUICK).await;
        let seen = daemon.stream("job").await.take(300).await;
        drop(daemon);
        old.down("fast");
        let new = old.upgrade().await;
        let daemon = daemon_on(&new, &QUICK).await;
        lives_on(&new, &daemon, &seen, false).await;
    }
}

/// A server that gets the rows of both tables by logical replication, and has spent so many transaction ids before.
async fn subscriber(publisher: &Postgres, schema: &str, spent: u32) -> Postgres {
    publisher.execute("CREATE PUBLICATION jobs FOR TABLE job_events, runner_jobs").await;
    let server = Postgres::start().await;
    server.execute(schema).await;
    server.make_reader().await;
    spend(&server, spent).await;
    let from = publisher.connection_string();
    server.execute(&format!("CREATE SUBSCRIPTION jobs CONNECTION '{from}' PUBLICATION jobs")).await;
    let mut owner = server.connect().await;
    eventually("the first copy", async || {
        let copied = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate IN ('r', 's')";
        (owner.fetch_one(copied).await.expect("a count").get::<i64, _>(0) == 2).then_some(())
    })
    .await;
    server
}

#[tokio::test]
async fn what_logical_replication_brings_is_told_live_and_whole_whosever_transactions_the_rows_name() {
    for schema in [RECOMMENDED, LEGACY] {
        // The publisher's transactions are above those of the subscriber, and long past there.
        for (published, subscribed) in [(3000, 0), (0, 20_000)] {
            let publisher = Postgres::start_with("wal_level = logical\n").await;
            begin_life(&publisher, schema, published, 300).await;
            let old = daemon_on(&publisher, &QUICK).await;
            let seen = old.stream("job").await.take(300).await;
            drop(old);
            let server = subscriber(&publisher, schema, subscribed).await;
            let daemon = daemon_on(&server, &QUICK).await;
            lives_on(&publisher, &daemon, &seen, false).await;
        }
    }
}

#[tokio::test]
async fn check_says_that_a_subscription_fills_the_table_also_below_a_view() {
    let publisher = Postgres::start_with("wal_level = logical\n").await;
    begin_life(&publisher, RECOMMENDED, 0, 10).await;
    let server = subscriber(&publisher, RECOMMENDED, 9000).await;
    server
        .execute("CREATE VIEW seen AS SELECT e.xmin AS xmin, e.* FROM job_events e; GRANT SELECT ON seen TO reader")
        .await;
    let url = server.url("reader");
    for table in ["job_events", "seen"] {
        let settings =
            [("source.kind", "postgres"), ("source.postgres.url", &*url), ("source.postgres.events_table", table)];
        let check = run(&["check"], &settings).await;
        let said = String::from_utf8_lossy(&check.stdout).into_owned();
        assert!(check.status.success() && said.contains("is filled by a subscription"), "{table}: {said}");
        assert!(said.contains("no column of type xid8"), "{table}: {said}");
    }
}

#[tokio::test]
async fn a_database_recovered_to_a_moment_honours_cursors_given_before_it_and_resets_those_given_after_it_once() {
    for schema in [RECOMMENDED, LEGACY] {
        let old = Postgres::start_archiving().await;
        begin_life(&old, schema, 100, 200).await;
        let backup = old.base_backup();
        let mut rows = old.connect().await;
        append(&mut rows, "job", 200..299).await;
        let daemon = daemon_on(&old, &QUICK).await;
        let before = daemon.stream("job").await.take(299).await;
        rows.execute("BEGIN").await.expect("begin");
        append(&mut rows, "job", [299]).await;
        let last = rows.fetch_one("SELECT pg_current_xact_id()::text").await.expect("a transaction");
        let last: String = last.get(0);
        rows.execute("COMMIT").await.expect("commit");
        // More than the recovered server spends on itself before those cursors come.
        spend(&old, 2000).await;
        append(&mut rows, "job", 1000..1020).await;
        let after = daemon.stream("job").await.take(320).await;
        drop(daemon);
        backup.recover(&old, &last).await;
        old.down("immediate");
        let daemon = daemon_on(&backup, &QUICK).await;
        for message in [&after[300], &after[319]] {
            let mut stream = daemon.stream_after("job", message.cursor()).await;
            let expected = (Vec::from_iter(0..300), 1);
            assert_eq!(rest(&mut stream, 300).await, expected, "after the event {}", message.number());
        }
        lives_on(&backup, &daemon, &before, true).await;
    }
}
