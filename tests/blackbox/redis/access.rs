//! Rights, passwords and TLS: each trouble has its code, and no message holds a password.

use super::shared::SHARED;
use super::{HEARS, READER, daemon_on};
use crate::support::daemon::{run, stream_path};
use crate::support::redis::{append, ask, set_status, stream_key};
use crate::support::tls::{Authority, keep};
use crate::support::{Cluster, Daemon, Redis, Stream, address, eventually, numbers};

type Commands = &'static [&'static [&'static str]];

/// Each trouble: what brings it, its code, whether trying again may help, and what mends it.
const TROUBLES: [(Commands, &str, bool, Commands); 3] = [
    (&[&["ACL", "SETUSER", "reader", "-xrange"]], "source.rights", false, &[&["ACL", "SETUSER", "reader", "+xrange"]]),
    (
        &[&["ACL", "SETUSER", "reader", "resetpass", ">another"], &["CLIENT", "KILL", "USER", "reader"]],
        "source.credentials",
        false,
        &[&["ACL", "SETUSER", "reader", "resetpass", ">hunter2"]],
    ),
    (
        &[&["CONFIG", "SET", "maxclients", "1"], &["CLIENT", "KILL", "USER", "reader"]],
        "source.exhausted",
        true,
        &[&["CONFIG", "SET", "maxclients", "1000"]],
    ),
];

#[tokio::test]
async fn every_trouble_is_told_by_its_code_once_and_is_over_when_it_is_mended() {
    let server = Redis::start().await;
    for command in [&READER[..], &HEARS] {
        server.ask::<()>(command).await;
    }
    let url = server.url().replace("//", "//reader:hunter2@");
    let daemon = daemon_on(&url, &[("source.retry_initial", "100ms"), ("source.forgive", "0s")]).await;
    // one that is there already: in some troubles nobody gets in any more
    let mut owner = server.connect().await;
    append(&mut owner, "job", [0]).await;
    let mut stream = daemon.stream("job").await;
    let mut last = stream.take(1).await.remove(0);
    for (number, (brings, code, is_retryable, mends)) in (1..).zip(TROUBLES) {
        for command in brings {
            ask::<()>(&mut owner, command).await;
        }
        let mut error = stream.event().await;
        assert!(error.is("stream.error"), "{brings:?}: {error:?}");
        if error.json()["code"] == "source.unreachable" && !is_retryable {
            // the connection was closed first: that might have got better
            error = stream.event().await;
        }
        assert_eq!(error.json()["retryable"], is_retryable, "{brings:?}: {error:?}");
        if is_retryable {
            let mut other = Stream::open(daemon.http, &stream_path("another"), &[]).await;
            assert_eq!(other.head.status, 200);
            assert!(other.event().await.is("stream.error"));
            let name = format!("jobcast_source_errors_total{{code=\"{code}\",retryable=\"true\"}}");
            daemon.metric_reaches(&name, 1.0).await;
        } else {
            assert_eq!(error.json()["code"], code, "{brings:?}");
            eventually("new streams to be refused", async || {
                (daemon.get(&stream_path("another")).await.status == 502).then_some(())
            })
            .await;
            assert!(stream.next().await.is_none(), "what cannot get better is closed");
        }
        for command in mends {
            ask::<()>(&mut owner, command).await;
        }
        append(&mut owner, "job", [number]).await;
        if !is_retryable {
            stream = daemon.stream_when_back("job", last.cursor()).await;
        }
        // the error is not told again, and nothing is missing
        last = stream.event().await;
        assert_eq!((last.event.as_deref(), last.number()), (Some("x"), number), "{brings:?}");
    }
    assert!(!daemon.log().contains("hunter2"), "{}", daemon.log());
}

#[tokio::test]
async fn the_rights_that_the_guide_names_are_enough_on_another_database() {
    let server = Redis::start().await;
    for rights in [&READER[..], &HEARS, &["ACL", "SETUSER", "reader", "+select"]] {
        server.ask::<()>(rights).await;
    }
    let url = server.url().replace("//", "//reader:hunter2@");
    let daemon = daemon_on(&format!("{url}/2"), &[]).await;
    let mut rows = server.connect().await;
    ask::<()>(&mut rows, &["SELECT", "2"]).await;
    append(&mut rows, "job", 0..3).await;
    let mut stream = daemon.stream("job").await;
    assert_eq!(numbers(&stream.take(3).await), [0, 1, 2]);
    append(&mut rows, "job", [3]).await;
    assert_eq!(stream.event().await.number(), 3);
    has_met_no_error(&daemon).await;
}

pub async fn has_met_no_error(daemon: &Daemon) {
    assert_eq!(daemon.metric("jobcast_source_errors_total").await, 0.0, "{}", daemon.log());
    assert!(!daemon.log().contains("NOPERM") && !daemon.log().contains("hunter2"), "{}", daemon.log());
}

#[tokio::test]
async fn the_rights_that_the_guide_names_are_enough_for_check_and_the_list_of_jobs_of_either_shape() {
    let server = Redis::start().await;
    for rights in [&READER[..], &HEARS, &["ACL", "SETUSER", "reader", "~queue", "+scan", "+pttl", "+xlen"]] {
        server.ask::<()>(rights).await;
    }
    let url = server.url().replace("//", "//reader:hunter2@");
    let mut rows = server.connect().await;
    append(&mut rows, "job", 0..3).await;
    set_status(&mut rows, "job", "RUNNING").await;
    ask::<()>(&mut rows, &["XADD", "queue", "*", "job", "job", "type", "x"]).await;
    for more in [&[][..], &SHARED] {
        let daemon = daemon_on(&url, more).await;
        let jobs = daemon.get("/runner-jobs").await;
        assert_eq!((jobs.status, &jobs.json()["jobs"][0]["jobId"]), (200, &"job".into()));
        has_met_no_error(&daemon).await;
        let checked = run(&["check"], &[&[("source.kind", "redis"), ("source.redis.url", &url)], more].concat()).await;
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.success() && !said.contains("NOPERM"), "{said}");
    }
}

#[tokio::test]
async fn the_keys_of_some_jobs_are_enough_for_the_start_and_check_and_the_list_which_leave_out_the_others() {
    let server = Redis::start().await;
    let some = ["ACL", "SETUSER", "reader", "resetkeys", "~runner-jobs:team-a-*", "+scan", "+pttl"];
    for rights in [&READER[..], &HEARS, &some] {
        server.ask::<()>(rights).await;
    }
    let url = server.url().replace("//", "//reader:hunter2@");
    let mut rows = server.connect().await;
    for job in ["team-a-1", "team-b-1"] {
        append(&mut rows, job, [0]).await;
        set_status(&mut rows, job, "RUNNING").await;
    }
    let daemon = daemon_on(&url, &[]).await;
    daemon.logs(&["the user may not read the keys of all jobs", ": HGET runner-jobs:jobcast"]).await;
    let mut stream = daemon.stream("team-a-1").await;
    assert_eq!(stream.event().await.number(), 0);
    append(&mut rows, "team-a-1", [1]).await;
    assert_eq!(stream.event().await.number(), 1);
    let refused = daemon.get("/runner-jobs/team-b-1/events").await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "source.rights"), "{refused:?}");
    let listed = daemon.get("/runner-jobs").await.json();
    assert_eq!((listed["jobs"].as_array().map(Vec::len), &listed["jobs"][0]["jobId"]), (Some(1), &"team-a-1".into()));
    assert_eq!(daemon.ask_admin("/readyz").await.status, 200);
    let checked = run(&["check"], &[("source.kind", "redis"), ("source.redis.url", &url)]).await;
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success() && said.contains("its user may not read the keys of all jobs"), "{said}");
}

#[tokio::test]
async fn the_rights_that_the_guide_names_are_enough_on_a_cluster_whose_slots_move() {
    let cluster = Cluster::start().await;
    for node in &cluster.nodes {
        for rights in [&READER[..], &HEARS, &["ACL", "SETUSER", "reader", "+cluster|slots", "+asking"]] {
            node.ask::<()>(rights).await;
        }
    }
    let of_cluster = daemon_on(&cluster.url().replacen("//", "//reader:hunter2@", 1), &[]).await;
    // somewhere on each of three servers
    for job in ["job", "job-1", "job-2", "job-3"] {
        let from = cluster.owner(&stream_key(job)).await;
        append(&mut cluster.nodes[from].connect().await, job, 0..3).await;
        let mut stream = of_cluster.stream(job).await;
        assert_eq!(numbers(&stream.take(3).await), [0, 1, 2]);
        let to = cluster.primaries().await.into_iter().find(|node| *node != from).expect("another primary");
        cluster.move_slot(cluster.slot(&stream_key(job)).await, from, to).await;
        append(&mut cluster.nodes[to].connect().await, job, [3]).await;
        assert_eq!(stream.event().await.number(), 3);
    }
    has_met_no_error(&of_cluster).await;
}

#[tokio::test]
async fn a_wrong_password_stops_the_start_and_stands_nowhere() {
    let mut server = Redis::start().await;
    server.require("right").await;
    let at = server.address();
    for url in [format!("redis://:hunter2@{at}"), format!("redis://nobody:hunter2@{at}/1"), format!("redis://{at}")] {
        for (command, code) in [("serve", 1), ("check", 1), ("emit", 1)] {
            let words = if command == "emit" { vec!["emit", "job", "x"] } else { vec![command] };
            let output =
                run(&words, &[("source.kind", "redis"), ("source.redis.url", &url), ("log.level", "trace")]).await;
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert_eq!(output.status.code(), Some(code), "{url} {command}: {said}");
            assert!(said.contains("source.redis.url") && !said.contains("hunter2"), "{url} {command}: {said}");
        }
    }
    for url in ["redis://reader:hunter2@nowhere:port/x", "hunter2", "redis+sentinel://:hunter2@a,b"] {
        let output = run(&["serve"], &[("source.kind", "redis"), ("source.redis.url", url)]).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("source.redis.url") && !said.contains("hunter2"), "{said}");
    }
    let output = run(&["serve"], &[("source.kind", "redis")]).await;
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn a_password_may_stand_in_a_file() {
    let mut server = Redis::start().await;
    server.require("right").await;
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("url");
    std::fs::write(&file, format!("redis://:right@{}\n", server.address())).expect("a file");
    let daemon =
        Daemon::with(&[("source.kind", "redis"), ("source.redis.url_file", &file.display().to_string())]).await;
    let mut rows = server.connect().await;
    append(&mut rows, "job", [0]).await;
    assert_eq!(daemon.stream("job").await.event().await.number(), 0);
}

#[tokio::test]
async fn a_connection_that_is_silently_dead_is_noticed() {
    let server = Redis::start().await;
    let daemon = daemon_on(&server.url(), &[]).await;
    append(&mut server.connect().await, "job", 0..3).await;
    let mut stream = daemon.stream("job").await;
    assert_eq!(numbers(&stream.take(3).await), [0, 1, 2]);
    // a server that stands still, and is waited for in vain
    server.signal("STOP");
    assert_eq!(stream.event().await.json()["code"], "source.timed_out");
    server.signal("CONT");
    let mut rows = server.connect().await;
    append(&mut rows, "job", [3]).await;
    assert_eq!(stream.event().await.number(), 3);
    // one that lets nobody write is still read; one that loads is waited for
    set_status(&mut rows, "job", "FAILED").await;
    assert_eq!(stream.event().await.json()["status"], "FAILED");
}

#[tokio::test]
async fn connections_that_the_server_closes_are_no_outage_and_wake_ups_come_again() {
    let server = Redis::start().await;
    // The poll would come too late for the test.
    let daemon = daemon_on(&server.url(), &[("source.poll_interval", "10m")]).await;
    let mut rows = server.connect().await;
    append(&mut rows, "job", [0]).await;
    let mut stream = daemon.stream("job").await;
    assert_eq!(stream.event().await.number(), 0);
    // by the tail, so that it is connected
    append(&mut rows, "job", [1]).await;
    assert_eq!(stream.event().await.number(), 1);
    for number in 2..20 {
        ask::<()>(&mut rows, &["CLIENT", "KILL", "TYPE", "normal"]).await;
        assert_eq!(daemon.stream("job").await.event().await.number(), 0);
        let page = daemon.get("/runner-jobs/job/events").await;
        assert_eq!(page.json()["events"].as_array().map(Vec::len), Some(number));
        append(&mut rows, "job", [number as u64]).await;
        assert_eq!(stream.event().await.number(), number as u64);
    }
    assert_eq!(daemon.metric("jobcast_source_errors_total").await, 0.0, "{}", daemon.log());
}

#[tokio::test]
async fn one_cluster_node_named_alone_says_what_to_do() {
    let cluster = Cluster::start().await;
    let url = cluster.nodes[0].url();
    // some key of another node
    let mut told = String::new();
    for job in 0..20 {
        let output =
            run(&["emit", &format!("job-{job}"), "x"], &[("source.kind", "redis"), ("source.redis.url", &url)]).await;
        told.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    assert!(told.contains("name several of its nodes in source.redis.url"), "{told}");
}

#[tokio::test]
async fn tls_is_spoken_and_certificates_are_checked() {
    let (ours, another) = (Authority::new("ours"), Authority::new("another"));
    let (certificate, key) = ours.certify("localhost");
    let folder = tempfile::tempdir().expect("a directory");
    let (trusted, foreign) = (keep(&folder, "ours.pem", &ours.pem()), keep(&folder, "another.pem", &another.pem()));
    let cert = keep(&folder, "server.crt", &certificate.pem());
    let key = keep(&folder, "server.key", &key.serialize_pem());
    let server = Redis::with(&format!("tls-cert-file {cert}\ntls-key-file {key}\ntls-auth-clients no")).await;
    let at = address::free();
    server.ask::<()>(&["CONFIG", "SET", "tls-port", &at.port().to_string()]).await;
    let by_name = format!("rediss://localhost:{}", address::localhost_to(at).await);
    let mut rows = server.connect().await;
    append(&mut rows, "job", 0..3).await;
    for (url, root, is_let_in) in [
        (by_name.clone(), &*trusted, true),
        (format!("rediss://{at}"), &*trusted, false),
        (by_name.clone(), &*foreign, false),
        (by_name.clone(), "", false),
        (by_name.clone(), "/no/such/file", false),
    ] {
        if is_let_in {
            let daemon = daemon_on(&url, &[("source.redis.root_cert", root)]).await;
            let mut stream = daemon.stream("job").await;
            assert_eq!(numbers(&stream.take(3).await), [0, 1, 2]);
            ask::<()>(&mut rows, &["XADD", &stream_key("job"), "*", "type", "x", "payload", "{\"n\":3}"]).await;
            assert_eq!(stream.event().await.number(), 3);
            continue;
        }
        let settings = [("source.kind", "redis"), ("source.redis.url", &*url), ("source.redis.root_cert", root)];
        let output = run(&["serve"], &settings).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains("root_cert"), "{url} {root}: {said}");
    }
}
