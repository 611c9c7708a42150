//! Wake-ups by notifications, and what breaks them.

use super::{RECOMMENDED, TRIGGER, serve};
use crate::support::address::Firewall;
use crate::support::postgres::append;
use crate::support::{Daemon, Postgres, eventually};
use sqlx::{Executor, Row};

#[tokio::test]
async fn a_listener_that_is_killed_listens_again_and_what_came_in_between_is_not_left_to_the_poll() {
    let server = Postgres::start().await;
    let daemon = serve(&server, &[RECOMMENDED, TRIGGER].concat(), &[("source.poll_interval", "10m")]).await;
    let mut rows = server.connect().await;
    let listens = "SELECT pid FROM pg_stat_activity WHERE usename = 'reader' AND query ILIKE 'LISTEN%'";
    append(&mut rows, "job", [0]).await;
    let mut stream = daemon.stream("job").await;
    stream.take(1).await;
    let mut killed = Vec::new();
    for number in 1..6 {
        let pid = eventually("a connection to listen", async || {
            let pid = rows.fetch_optional(listens).await.expect("the activity")?.get::<i32, _>(0);
            Some(pid).filter(|pid| !killed.contains(pid))
        })
        .await;
        killed.push(pid);
        let kill = format!("SELECT pg_terminate_backend({pid})");
        rows.execute(sqlx::AssertSqlSafe(kill)).await.expect("killed");
        append(&mut rows, "job", [number]).await;
        assert_eq!(stream.event().await.number(), number);
    }
}

#[tokio::test]
async fn a_listener_that_a_firewall_has_forgotten_is_missed_and_listens_anew() {
    let server = Postgres::start().await;
    server.execute(&[RECOMMENDED, TRIGGER].concat()).await;
    server.make_reader().await;
    let firewall = Firewall::before(server.address(), "LISTEN").await;
    let url = format!("postgres://reader@{}/postgres", firewall.address);
    // Far longer than anything that is waited for here.
    let daemon = Daemon::on("postgres", &url, &[("source.poll_interval", "10m")]).await;
    let listening = "jobcast_source_listening";
    let mut rows = server.connect().await;
    append(&mut rows, "job", [0]).await;
    let mut stream = daemon.stream("job").await;
    stream.take(1).await;
    daemon.metric_is(listening, 1.0).await;
    for round in 0..2 {
        firewall.forget();
        let number = 1 + 2 * round;
        append(&mut rows, "job", [number]).await;
        assert_eq!(stream.event().await.number(), number, "the one that nobody was told of");
        daemon.metric_is(listening, 1.0).await;
        append(&mut rows, "job", [number + 1]).await;
        assert_eq!(stream.event().await.number(), number + 1);
    }
    daemon.logs(&["does not answer any more"]).await;
}
