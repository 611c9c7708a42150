//! HTTP/2: hundreds of streams on one connection, those who read slowly, and those who flood it.

use crate::support::daemon::{numbered, stream_path};
use crate::support::http2::{Client, Secure, Stream, frame, get, header_block, kind, settings};
use crate::support::tls::{Authority, keep};
use crate::support::{Message, PATIENCE, eventually, numbers};
use futures_util::future::join_all;
use h2::Reason;
use rand::RngExt;
use std::future::poll_fn;
use tokio::time::timeout;

/// Numbers of the settings that games are played with (RFC 9113, section 6.5.2).
const HEADER_TABLE_SIZE: u16 = 1;
const INITIAL_WINDOW_SIZE: u16 = 4;

fn big(number: u64) -> serde_json::Value {
    let mut event = numbered(number);
    event["payload"]["line"] = "x".repeat(2000).into();
    event
}

#[tokio::test]
async fn three_hundred_streams_share_one_connection_through_a_new_certificate_and_a_drain() {
    let times = [("stream.heartbeat", "300ms"), ("shutdown.grace", "0s"), ("shutdown.drain", "2s")];
    let mut secure = Secure::start(&times).await;
    let (client, runner) = (secure.client().await, secure.client().await);
    let jobs = ["a", "b", "c"];
    for job in jobs {
        runner.write(job, 0..5).await;
    }
    let mut streams = join_all((0..300).map(|number| client.stream(jobs[number % 3]))).await;
    secure.daemon.has_subscribers(300).await;
    for stream in &mut streams {
        assert_eq!(stream.status, 200);
        assert_eq!(stream.headers["content-type"], "text/event-stream; charset=utf-8");
        assert!(!stream.headers.contains_key("connection") && !stream.headers.contains_key("transfer-encoding"));
        assert_eq!(numbers(&stream.take(5).await), Vec::from_iter(0..5));
    }
    join_all(streams.iter_mut().map(Stream::heartbeat)).await;

    let next = Authority::new("The next authority");
    let (certificate, key) = next.certify("localhost");
    for (name, content) in [("cert.pem", certificate.pem()), ("key.pem", key.serialize_pem())] {
        let new = keep(&secure.folder, "new.pem", &content);
        std::fs::rename(new, secure.folder.path().join(name)).expect("a rename");
    }
    let http = secure.daemon.http;
    eventually("the next certificate", async || next.connect(http, "h2").await.ok().map(drop)).await;
    let runner = Client::connect(http, &next).await;
    for job in jobs {
        runner.write(job, 5..105).await;
    }
    for seen in join_all(streams.iter_mut().map(|stream| stream.take(100))).await {
        assert_eq!(numbers(&seen), Vec::from_iter(5..105));
    }
    secure.daemon.signal("TERM");
    let farewells: Vec<Vec<Message>> = join_all(streams.iter_mut().map(Stream::rest)).await;
    for rest in farewells {
        assert!(rest.len() == 1 && rest[0].is("stream.bye"), "{rest:?}");
        assert_eq!(rest[0].json()["reason"], "drain");
    }
    assert!(secure.daemon.exit().await.success());
}

#[tokio::test]
async fn a_client_that_waits_for_a_word_before_it_sends_its_content_gets_it_and_one_that_never_sends_is_answered() {
    let secure = Secure::start(&[("http.body_timeout", "500ms")]).await;
    let client = secure.client().await;
    let begin = async || {
        let head = http::Request::post("https://localhost/runner-jobs/job/events")
            .header("content-type", "application/json")
            .header("expect", "100-continue");
        let (mut answer, content) = client.begin(head.body(()).expect("a head"), false).await.expect("a request");
        let word = timeout(PATIENCE, poll_fn(|cx| answer.poll_informational(cx))).await.expect("a word in time");
        assert_eq!(word.expect("a word before the answer").expect("a head").status(), 100);
        (answer, content)
    };
    let (answer, mut content) = begin().await;
    content.send_data(numbered(0).to_string().into(), true).expect("content");
    assert_eq!(timeout(PATIENCE, answer).await.expect("in time").expect("an answer").status(), 201);
    let (answer, _content) = begin().await;
    assert_eq!(timeout(PATIENCE, answer).await.expect("in time").expect("an answer").status(), 408);
    assert_eq!(client.stream("job").await.event().await.number(), 0, "the connection goes on");
}

#[tokio::test]
async fn the_limit_on_streams_counts_those_of_one_connection() {
    let secure = Secure::start(&[("http.max_connections", "5")]).await;
    let client = secure.client().await;
    client.write("job", 0..1).await;
    let mut open = join_all((0..5).map(|_| client.stream("job"))).await;
    for stream in &mut open {
        assert_eq!(stream.event().await.number(), 0);
    }
    let mut sixth = client.stream("job").await;
    let rest = sixth.rest().await;
    assert!(rest.len() == 1 && rest[0].is("stream.error"), "{rest:?}");
    drop(open.pop());
    secure.daemon.has_subscribers(4).await;
    assert_eq!(client.stream("job").await.event().await.number(), 0);
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_closed_as_slow_and_its_neighbours_get_everything() {
    let secure = Secure::start(&[("stream.write_timeout", "2s")]).await;
    let runner = secure.client().await;
    runner.write("job", 0..1).await;
    let client = Client::with(secure.daemon.http, &secure.authority, 64 << 10).await;
    let mut stalled = client.stream("job").await;
    let mut reader = client.stream("job").await;
    secure.daemon.has_subscribers(2).await;
    let write = async {
        for first in (1..1001).step_by(50) {
            runner.append("job", (first..first + 50).map(big).collect()).await;
        }
    };
    let ((), seen) = tokio::join!(write, reader.take(1001));
    assert_eq!(numbers(&seen), Vec::from_iter(0..1001));
    secure.daemon.has_subscribers(1).await;
    secure.daemon.metric_is("jobcast_disconnects_total{reason=\"slow\"}", 1.0).await;
    let end = loop {
        match stalled.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream that was cut has no proper end"),
            Err(error) => break error,
        }
    };
    assert_eq!(end.reason(), Some(Reason::CANCEL));
}

#[tokio::test]
async fn connections_that_nobody_reads_cost_bounded_memory_and_are_closed() {
    let settings_of_it = [("stream.write_timeout", "5s"), ("hub.ring_bytes", "256KiB")];
    let secure = Secure::start(&settings_of_it).await;
    let runner = secure.client().await;
    runner.write("job", 0..1).await;
    let mut stalled = Vec::new();
    for _ in 0..10 {
        let mut raw = secure.raw().await;
        raw.send(&settings(&[(INITIAL_WINDOW_SIZE, 0x7fff_ffff)])).await;
        raw.send(&frame(kind::WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes())).await;
        for number in 0..20 {
            raw.send(&get(number * 2 + 1, &stream_path("job"))).await;
        }
        stalled.push(raw);
    }
    secure.daemon.has_subscribers(200).await;
    let before = secure.daemon.metric("process_resident_memory_bytes").await;
    for first in (1..5001).step_by(50) {
        runner.append("job", (first..first + 50).map(big).collect()).await;
    }
    let after = secure.daemon.metric("process_resident_memory_bytes").await;
    assert!(after - before < 40e6, "{} MB more after 10 MB for each of 200 streams", (after - before) / 1e6);
    secure.daemon.has_subscribers(0).await;
    secure.daemon.metric_is("jobcast_disconnects_total{reason=\"slow\"}", 200.0).await;
}

#[tokio::test]
async fn a_head_that_never_ends_and_a_connection_without_requests_are_closed() {
    let secure = Secure::start(&[("http.header_timeout", "1s")]).await;
    secure.client().await.write("job", 0..1).await;
    let silent = secure.raw().await;
    // An open stream does not make the next head's time longer.
    let (mut slow, mut half) = (secure.raw().await, secure.raw().await);
    for raw in [&mut slow, &mut half] {
        raw.send(&get(1, &stream_path("job"))).await;
    }
    secure.daemon.has_subscribers(2).await;
    slow.send(&frame(kind::HEADERS, kind::END_STREAM, 3, &header_block("GET", "/"))).await;
    half.send(&get(3, "/")[..12]).await;
    for connection in [silent, slow, half] {
        assert_eq!(connection.end().await, Some(Reason::NO_ERROR));
    }
}

#[tokio::test]
async fn a_page_that_opens_streams_and_closes_them_at_once_keeps_its_connection() {
    let secure = Secure::start(&[]).await;
    secure.client().await.write("job", 0..1).await;
    let mut page = secure.raw().await;
    for round in 0..5_u32 {
        let of = |number| {
            let stream = (round * 100 + number) * 2 + 1;
            [get(stream, &stream_path("job")), frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
        };
        page.send(&(0..100).flat_map(of).collect::<Vec<u8>>()).await;
    }
    page.send(&get(1_001, "/runner-jobs")).await;
    page.is_answered(1_001).await;
    secure.daemon.has_subscribers(0).await;
}

#[tokio::test]
async fn a_request_that_names_two_hosts_is_refused_and_another_is_answered() {
    let secure = Secure::start(&[]).await;
    let client = secure.client().await;
    let mut raw = secure.raw().await;
    let mut block = header_block("GET", "/runner-jobs");
    block.extend(b"\x00\x04host\x05other");
    raw.send(&frame(kind::HEADERS, kind::END_HEADERS | kind::END_STREAM, 1, &block)).await;
    raw.send(&frame(kind::GOAWAY, 0, 0, &[0; 8])).await;
    let received = raw.received().await;
    assert!(received.contains(&(kind::RST_STREAM, 1_u32.to_be_bytes().to_vec())), "{received:?}");
    assert_eq!(client.request("GET", "/runner-jobs", b"").await.expect("an answer").status(), 200);
    assert_eq!(
        client.request("HEAD", "/", b"").await.map(|answer| answer.status().is_server_error()).ok(),
        Some(false)
    );
    let wrong = client.request("PUT", "/runner-jobs/job", b"{").await.expect("an answer");
    assert_eq!(wrong.status(), 400);
}

// ---- floods

/// Honest streams beside a flood.
struct Neighbours {
    runner: Client,
    streams: Vec<Stream>,
    written: u64,
}

impl Neighbours {
    async fn of(secure: &Secure) -> Self {
        let (runner, client) = (secure.client().await, secure.client().await);
        runner.write("job", 0..1).await;
        let mut streams = join_all((0..20).map(|_| client.stream("job"))).await;
        for stream in &mut streams {
            assert_eq!(stream.event().await.number(), 0);
        }
        Self { runner, streams, written: 1 }
    }

    /// Writes events that all of them must get.
    async fn are_undisturbed(&mut self) {
        let next = self.written..self.written + 10;
        self.written = next.end;
        self.runner.write("job", next.clone()).await;
        for seen in join_all(self.streams.iter_mut().map(|stream| stream.take(10))).await {
            assert_eq!(numbers(&seen), Vec::from_iter(next.clone()));
        }
    }
}

type Flood = (&'static str, fn() -> Vec<u8>, fn(u32) -> Vec<u8>);

/// Frames that cost their sender nothing: before the flood, and the batches of it.
const FLOODS: [Flood; 12] = [
    ("empty DATA", post, |_| frame(kind::DATA, 0, 1, b"").repeat(100)),
    ("small DATA", post, |_| frame(kind::DATA, 0, 1, b"[").repeat(100)),
    ("rapid reset", Vec::new, |batch| {
        let of = |number| {
            let stream = (batch * 100 + number) * 2 + 1;
            let cancel = frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes());
            [get(stream, "/runner-jobs/job/events/stream"), cancel].concat()
        };
        (0..100).flat_map(of).collect()
    }),
    ("resets of the server's own making", Vec::new, |batch| {
        // A window that overflows is an error of the stream, which the server resets.
        let of = |number| {
            let stream = (batch * 100 + number) * 2 + 1;
            let update = frame(kind::WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes());
            [get(stream, "/runner-jobs/job/events/stream"), update].concat()
        };
        (0..100).flat_map(of).collect()
    }),
    ("more requests than may be open", Vec::new, |batch| {
        (0..100).flat_map(|number| get((batch * 100 + number) * 2 + 1, "/runner-jobs/job/events/stream")).collect()
    }),
    (
        "CONTINUATION",
        || frame(kind::HEADERS, 0, 1, &header_block("GET", "/")),
        |_| frame(kind::CONTINUATION, 0, 1, b"\x00\x01a\x01b").repeat(100),
    ),
    (
        "empty CONTINUATION",
        || frame(kind::HEADERS, 0, 1, &header_block("GET", "/")),
        |_| frame(kind::CONTINUATION, 0, 1, b"").repeat(100),
    ),
    ("SETTINGS", Vec::new, |number| settings(&[(HEADER_TABLE_SIZE, number % 4096)]).repeat(100)),
    ("PING", Vec::new, |_| frame(kind::PING, 0, 0, b"pingpong").repeat(100)),
    ("PRIORITY", Vec::new, |number| frame(kind::PRIORITY, 0, number * 2 + 1, &[0, 0, 0, 0, 7]).repeat(100)),
    ("an unknown kind", Vec::new, |_| frame(0x77, 0, 0, b"").repeat(100)),
    ("windows that open by single bytes", shut_streams, |_| {
        let open = |stream: u32| frame(kind::WINDOW_UPDATE, 0, stream * 2 + 1, &1_u32.to_be_bytes());
        (0..100).flat_map(open).collect()
    }),
];

fn post() -> Vec<u8> {
    frame(kind::HEADERS, kind::END_HEADERS, 1, &header_block("POST", "/runner-jobs/job/events"))
}

/// A hundred streams with no window at all.
fn shut_streams() -> Vec<u8> {
    let streams = (0..100).flat_map(|number| get(number * 2 + 1, "/runner-jobs/job/events/stream"));
    settings(&[(INITIAL_WINDOW_SIZE, 0)]).into_iter().chain(streams).collect()
}

#[tokio::test]
async fn floods_of_frames_are_ended_with_bounded_work_and_memory_and_disturb_nobody() {
    let secure = Secure::start(&[]).await;
    let mut neighbours = Neighbours::of(&secure).await;
    let memory = async || secure.daemon.metric("process_resident_memory_bytes").await;
    let floods = async || secure.daemon.metric("jobcast_http2_floods_total").await;
    let before = memory().await;
    for (name, begin, flood) in FLOODS {
        let (worked, counted) = (cpu_seconds(&secure), floods().await);
        let mut raw = secure.raw().await;
        raw.send(&begin()).await;
        let reason = raw.flood(flood).await;
        let worked = cpu_seconds(&secure) - worked;
        let by = if floods().await > counted { "the allowance" } else { "h2 itself" };
        println!("{name}: ended by {by} with {reason:?} after {worked:.2} s of CPU");
        assert!(
            matches!(reason, None | Some(Reason::ENHANCE_YOUR_CALM | Reason::PROTOCOL_ERROR)),
            "{name}: {reason:?}"
        );
        assert!(worked < 3.0, "{name}: {worked} s");
        neighbours.are_undisturbed().await;
    }
    let more = memory().await - before;
    assert!(more < 30e6, "{} MB more", more / 1e6);
    assert!(floods().await >= 4.0, "{} of them", floods().await);
    secure.daemon.has_subscribers(20).await;
}

/// The processor time that the daemon has had (proc(5): fields 14 and 15, in hundredths).
fn cpu_seconds(secure: &Secure) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", secure.daemon.pid())).expect("its statistics");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
    let ticks = fields.split(' ').skip(11).take(2).map(|field| field.parse::<f64>().expect("a number"));
    ticks.sum::<f64>() / 100.0
}

#[tokio::test]
async fn a_flood_whose_answers_nobody_reads_is_ended() {
    let secure = Secure::start(&[("stream.write_timeout", "1s")]).await;
    let mut neighbours = Neighbours::of(&secure).await;
    let raw = secure.raw().await;
    // its answers are never read: the socket fills, and takes nothing any more
    raw.flood_unread(|_| frame(kind::PING, 0, 0, b"pingpong").repeat(10)).await;
    neighbours.are_undisturbed().await;
}

#[tokio::test]
async fn junk_after_the_handshake_is_answered_by_the_end_of_its_connection_and_by_nothing_else() {
    let secure = Secure::start(&[("http.header_timeout", "1s")]).await;
    let mut neighbours = Neighbours::of(&secure).await;
    join_all((0..200).map(async |_| {
        let mut raw = secure.raw().await;
        let junk: Vec<u8> = (0..rand::rng().random_range(1..2000)).map(|_| rand::random()).collect();
        raw.send(&junk).await;
        raw.end().await;
    }))
    .await;
    neighbours.are_undisturbed().await;
    assert_eq!(secure.daemon.ask_admin("/healthz").await.status, 200);
}

#[tokio::test]
async fn answers_that_nobody_reads_hold_a_bounded_memory_together_and_each_says_where_to_go_on() {
    let secure = Secure::start(&[("stream.write_timeout", "60s")]).await;
    let runner = secure.client().await;
    let heavy = |number: u64| {
        let mut event = numbered(number);
        event["payload"]["line"] = "x".repeat(20_000).into();
        event
    };
    for first in (0..100).step_by(10) {
        runner.append("job", (first..first + 10).map(heavy).collect()).await;
    }
    let memory = async || secure.daemon.metric("process_resident_memory_bytes").await;
    let client = Client::with(secure.daemon.http, &secure.authority, 1000).await;
    let before = memory().await;
    let poll = || client.request("GET", "/runner-jobs/job/events?limit=1000", b"");
    let unread = join_all((0..400).map(|_| poll())).await;
    assert!(unread.iter().all(|answer| answer.as_ref().is_ok_and(|answer| answer.status() == 200)));
    let more = memory().await - before;
    assert!(more < 200e6, "{} MB more", more / 1e6);
    // Whoever reads is served meanwhile, in smaller pieces.
    let mut cursor = String::new();
    let mut seen = Vec::new();
    while seen.len() < 100 {
        let path = format!("/runner-jobs/job/events?limit=1000&after={cursor}");
        let answer = runner.json(&path).await;
        cursor = answer["cursor"].as_str().expect("a cursor").into();
        let events = answer["events"].as_array().expect("events");
        assert!(!events.is_empty() && events.len() < 100, "{}", events.len());
        seen.extend(events.iter().map(|event| event["payload"]["n"].as_u64().expect("a number")));
    }
    assert_eq!(seen, Vec::from_iter(0..100));
}
