//! Transactions that stay open: those of a table without `xid` can only be listed by asking the server of each.

use super::{LEGACY, daemon_on};
use crate::support::postgres::append;
use crate::support::{Daemon, Postgres, numbers};
use sqlx::postgres::PgConnection;
use sqlx::{Executor, Row};

/// Begins and ends so many transactions that have ids and write nothing.
async fn pass(server: &Postgres, transactions: u32) {
    let sql =
        format!("DO $$ BEGIN FOR n IN 1..{transactions} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$");
    server.execute(&sql).await;
}

/// Begins a transaction that has written one event.
async fn begin(server: &Postgres, number: u64) -> PgConnection {
    let mut open = server.connect().await;
    open.execute("BEGIN").await.expect("begin");
    append(&mut open, "job", [number]).await;
    open
}

async fn shortened(daemon: &Daemon) -> f64 {
    daemon.metric("jobcast_cursors_shortened_total").await
}

#[tokio::test]
async fn beside_a_transaction_that_was_forgotten_250_000_others_ago_each_event_comes_once() {
    let server = Postgres::start().await;
    server.execute(LEGACY).await;
    server.make_reader().await;
    let mut forgotten = begin(&server, 1_000).await;
    pass(&server, 250_000).await;
    let settings = [("source.poll_interval", "20ms"), ("source.settle", "60s")];
    let daemons = [daemon_on(&server, &settings).await, daemon_on(&server, &settings).await];
    let mut rows = server.connect().await;
    append(&mut rows, "job", 0..50).await;
    let mut watching = daemons[0].stream("job").await;
    let mut seen = numbers(&watching.take(50).await);
    let mut last = String::new();
    for number in 50..100 {
        append(&mut rows, "job", [number]).await;
        let event = watching.event().await;
        seen.push(event.number());
        last = event.cursor().into();
    }
    forgotten.execute("COMMIT").await.expect("commit");
    seen.push(watching.event().await.number());
    assert_eq!(seen, (0..100).chain([1_000]).collect::<Vec<_>>());
    for daemon in &daemons {
        assert_eq!(daemon.stream_after("job", &last).await.event().await.number(), 1_000);
        assert_eq!(shortened(daemon).await, 0.0, "{}", daemon.log());
    }
}

#[tokio::test]
async fn events_for_which_a_cursor_has_no_room_wait_for_open_transactions_and_come_once_or_after_the_settle_time() {
    let server = Postgres::start().await;
    server.execute(LEGACY).await;
    server.make_reader().await;
    // Their distances alone take more bytes than a cursor has.
    let mut open = Vec::new();
    for number in 0..60 {
        open.push(begin(&server, number).await);
        pass(&server, 300).await;
    }
    let settings = |settle| [("source.poll_interval", "20ms"), ("source.settle", settle)];
    let daemons = [daemon_on(&server, &settings("60s")).await, daemon_on(&server, &settings("60s")).await];
    let hasty = daemon_on(&server, &settings("200ms")).await;
    let mut rows = server.connect().await;
    append(&mut rows, "job", 100..160).await;
    let mut soon = numbers(&hasty.stream("job").await.take(60).await);
    soon.sort();
    assert_eq!(soon, (100..160).collect::<Vec<_>>());
    let mut watching = daemons[0].stream("job").await;
    let mut events = watching.take(1).await;
    for mut one in open {
        one.execute("COMMIT").await.expect("commit");
    }
    events.extend(watching.take(119).await);
    let mut seen = numbers(&events);
    for (place, event) in events.iter().enumerate().step_by(7) {
        let rest = daemons[1].stream_after("job", event.cursor()).await.take(119 - place).await;
        let mut all = [numbers(&events[..=place]), numbers(&rest)].concat();
        all.sort();
        assert_eq!(all, (0..60).chain(100..160).collect::<Vec<_>>(), "after event {place}");
    }
    seen.sort();
    assert_eq!(seen, (0..60).chain(100..160).collect::<Vec<_>>());
    for daemon in &daemons {
        assert_eq!(shortened(daemon).await, 0.0, "{}", daemon.log());
    }
    let at = server.connect().await.fetch_one("SELECT count(*) FROM job_events").await.expect("a count");
    assert_eq!(at.get::<i64, _>(0), 120);
}
