//! Requests that nobody should send, in great number, and peers that never finish theirs.

use crate::support::daemon::stream_path;
use crate::support::http::{Answer, encode};
use crate::support::http2::{self, Secure, frame};
use crate::support::sse::Link;
use crate::support::{Daemon, PATIENCE, Stream, alone, numbers};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Requests in all.
const REQUESTS: usize = 100_000;
/// Connections at a time.
const AT_A_TIME: usize = 96;
/// Requests on one connection, at most.
const PIPELINED: usize = 24;
/// Memory that the daemon may gain from it, in bytes.
const MAX_GROWTH: u64 = 24 << 20;

/// One connection's requests. All are answered, and the last one is such that the connection ends.
struct Junk {
    rng: StdRng,
    /// A word that stands in these requests only, so that an answer that has another's is on the wrong connection.
    mark: String,
}

impl Junk {
    fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), mark: format!("mk{seed}x") }
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.random_range(0..from.len())]
    }

    /// An address with parts that are out of every range.
    fn path(&mut self) -> String {
        let job = match self.rng.random_range(0..7) {
            0 => self.mark.clone(),
            1 => "x".repeat(self.rng.random_range(201..600)),
            2 => "%00".into(),
            3 => "..%2f..%2fetc%2fpasswd".into(),
            4 => self.pick(&["%FF", "%", "%zz", "%C0%AF", "%ED%A0%80"]).into(),
            5 => "%F0%9F%A6%80".repeat(self.rng.random_range(1..40)),
            _ => "done".into(),
        };
        let value = match self.rng.random_range(0..8) {
            0 => "-1".into(),
            1 => "99999999999999999999999".into(),
            2 => "1e3".into(),
            3 => self.mark.clone(),
            4 => "%FF".into(),
            5 => "%".into(),
            6 => "a".repeat(self.rng.random_range(1..9000)),
            _ => String::new(),
        };
        let name = self.pick(&[
            "after",
            "limit",
            "wait",
            "from",
            "lastEventId",
            "status",
            "last",
            "types",
            "job",
            "ids",
            "a[]",
            "%FF",
        ]);
        let query = format!("{name}={value}&").repeat(self.pick(&[1, 1, 1, 2, 300]));
        // A set of which one job is never there would be a stream without an end.
        let set = match self.rng.random_range(0..3) {
            _ if name == "job" => query.clone(),
            0 => format!("job={job}&{query}"),
            1 => format!("job=done&{query}"),
            _ => format!("job=done&job=over&job=done&{query}"),
        };
        match self.rng.random_range(0..11) {
            0 => format!("/runner-jobs/{job}/events/stream?{query}&after={}", self.mark),
            1 | 2 => format!("/runner-jobs/{job}/events?{query}&limit={}", self.mark),
            3 => format!("/runner-jobs?{query}&limit={}", self.mark),
            4 => format!("/runner-jobs/{job}"),
            5 => self
                .pick(&["/", "//", "/./", "/%2e%2e/", "/page/../openapi.json", "/runner-jobs//events", "/metrics"])
                .into(),
            6 => format!("/{}", self.mark),
            7 => format!("/runner-jobs/events/stream?{set}lastEventId={}", self.mark),
            8 => format!("/runner-jobs/events/stream?{set}ids={}", self.pick(&["full", "short", "", "both"])),
            9 => format!("/runner-jobs/events?{set}after={}", self.mark),
            _ => self.pick(&["*", "/openapi.json", "/jobcast.js"]).into(),
        }
    }

    /// Headers that are odd, and allowed.
    fn headers(&mut self) -> Vec<u8> {
        let mut headers = Vec::new();
        for _ in 0..self.rng.random_range(0..4) {
            let mark = self.mark.clone();
            let line: Vec<u8> = match self.rng.random_range(0..11) {
                0 => format!("Last-Event-ID: {mark}").into(),
                1 => {
                    [&b"Last-Event-ID: "[..], &(0..20).map(|_| self.rng.random_range(0x80..=0xff)).collect::<Vec<u8>>()]
                        .concat()
                }
                2 => format!("Cookie: {}", "c".repeat(self.rng.random_range(0..40_000))).into(),
                3 => "Accept: text/event-stream;q=0, application/xml;q=1.5, */*;q=".into(),
                4 => b"X-Forwarded-For: 1.1.1.1, \xff, [::1".to_vec(),
                5 => "Forwarded: for=\"\\\"[::1]:99999\";;=,for".into(),
                6 => "Authorization: Bearer \u{fc}".into(),
                7 => "Origin: https://evil.example\r\nOrigin: null".into(),
                8 => "Content-Type: application/json\r\nContent-Type: text/plain".into(),
                9 => {
                    "Accept-Encoding: gzip, br, zstd\r\nRange: bytes=0-0, -1\r\nIf-None-Match: *\r\nTE: trailers".into()
                }
                _ => (0..self.rng.random_range(1..70))
                    .map(|n| format!("X-{n}: y"))
                    .collect::<Vec<_>>()
                    .join("\r\n")
                    .into(),
            };
            headers.extend_from_slice(&line);
            headers.extend_from_slice(b"\r\n");
        }
        headers
    }

    /// A request after which the connection goes on; returns its method as well.
    fn request(&mut self) -> (&'static str, Vec<u8>) {
        let method =
            self.pick(&["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW", "get"]);
        let body: &[u8] = match method {
            "POST" | "PUT" => self.pick(&[&b"{"[..], b"[]", b"null", b"\xff\xfe", b"{\"type\":\"x\"", b"[[[[[[[["]),
            "GET" => self.pick(&[&b""[..], b""]),
            _ => b"",
        };
        let mut bytes = format!("{method} {} HTTP/1.1\r\nHost: localhost\r\n", self.path()).into_bytes();
        bytes.extend(self.headers());
        if matches!(method, "POST" | "PUT") {
            bytes.extend_from_slice(b"Content-Type: application/json\r\n");
            bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        (method, bytes)
    }

    /// A last one: malformed, smuggling, of another protocol, or cut short.
    fn last(&mut self) -> Vec<u8> {
        let smuggled = format!("GET /runner-jobs?limit={} HTTP/1.1\r\nHost: localhost\r\n\r\n", self.mark);
        let post = "POST /runner-jobs/x/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
        let text = match self.rng.random_range(0..20) {
            0 => format!("{post}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
            1 => format!("{post}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello{smuggled}"),
            2 => format!("{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n{smuggled}"),
            3 => format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{smuggled}"),
            4 => format!("{post}Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n{smuggled}"),
            5 => format!("{post}Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nx\r\n{smuggled}"),
            6 => format!("{post}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{smuggled}"),
            7 => format!("{post}Content-Length: +5\r\n\r\nhello{smuggled}"),
            8 => format!("{post}Content-Length: 99999999999999999999\r\n\r\n{smuggled}"),
            9 => format!("{post}Expect: 100-continue\r\nContent-Length: 3\r\n\r\nx"),
            10 => format!(
                "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n{smuggled}"
            ),
            11 => format!("CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n{smuggled}"),
            12 => "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0".into(),
            13 => format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "h".repeat(150_000)),
            14 => "GET / HTTP/1.1\r\n\r\n".into(),
            15 => "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n".into(),
            16 => format!(
                "GET /runner-jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{smuggled}",
                smuggled.len() + 9
            ),
            17 => format!(
                "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n{smuggled}{smuggled}",
                stream_path("done")
            ),
            18 => "GET / HTTP/1.1\r\nHost: localhost\r\n folded: x\r\n\r\n".into(),
            _ => {
                let mut bytes: Vec<u8> = (0..self.rng.random_range(1..2000)).map(|_| self.rng.random()).collect();
                bytes.extend_from_slice(b"\r\n\r\n\r\n");
                return bytes;
            }
        };
        text.into_bytes()
    }
}

/// Sends one connection's junk, reads all that comes, and returns the number of requests.
async fn send(link: impl Link, seed: u64) -> Result<usize, String> {
    let mut junk = Junk::new(seed);
    let count = junk.rng.random_range(1..PIPELINED);
    let requests: Vec<_> = (0..count).map(|_| junk.request()).collect();
    let mut bytes: Vec<u8> = requests.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    bytes.extend(junk.last());
    let mut received = Vec::new();
    let talk = async {
        let (mut from, mut into) = split(link);
        // The other side may close before it has read everything.
        let _ = tokio::join!(into.write_all(&bytes), from.read_to_end(&mut received));
    };
    timeout(PATIENCE, talk).await.map_err(|_| format!("no end after {PATIENCE:?}"))?;
    check(&received, &junk.mark)?;
    Ok(count + 1)
}

/// Looks at everything that came back: whole answers, none with a 5xx, and no word of another connection's.
fn check(received: &[u8], mark: &str) -> Result<(), String> {
    let text = String::from_utf8_lossy(received);
    if let Some(at) = text.find("HTTP/1.1 5") {
        return Err(format!("a 5xx: {}", text[at..].chars().take(400).collect::<String>()));
    }
    for (at, _) in text.match_indices("mk") {
        let word: String = text[at..].chars().take_while(char::is_ascii_alphanumeric).collect();
        let is_mark =
            word.ends_with('x') && word[2..word.len() - 1].bytes().all(|b| b.is_ascii_digit()) && word.len() > 3;
        if is_mark && word != mark {
            return Err(format!("{word} of another connection"));
        }
    }
    if !received.is_empty() && !received.starts_with(b"HTTP/1.1 ") {
        return Err(format!("no HTTP: {}", text.chars().take(200).collect::<String>()));
    }
    Ok(())
}

/// Resident memory of the daemon, in bytes.
fn memory(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("the process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).expect("a number") * 1024
}

/// Sends one connection's junk of HTTP/2: requests, and frames of any kind on another connection. Returns the number of
/// requests that were sent.
async fn send_http2(secure: &Secure, seed: u64) -> Result<usize, String> {
    let mut junk = Junk::new(seed);
    let client = secure.client().await;
    let mut sent = 0;
    for _ in 0..junk.rng.random_range(1..PIPELINED) {
        let Some((head, body)) = junk.http2_request() else { continue };
        // A head that is too large for the server ends the connection.
        let Ok((answer, mut content)) = client.begin(head, body.is_empty()).await else { break };
        sent += 1;
        if !body.is_empty() {
            let _ = content.send_data(body.into(), true);
        }
        let answer = timeout(PATIENCE, answer).await.map_err(|_| format!("no answer after {PATIENCE:?}"))?;
        let Ok(answer) = answer else { continue };
        if answer.status().is_server_error() {
            return Err(format!("{}", answer.status()));
        }
        let mut content = answer.into_body();
        let mut received = b"HTTP/1.1 ".to_vec();
        while let Some(Ok(piece)) = timeout(PATIENCE, content.data()).await.map_err(|_| "no end of an answer")? {
            let _ = content.flow_control().release_capacity(piece.len());
            received.extend_from_slice(&piece);
        }
        check(&received, &junk.mark)?;
    }
    let mut raw = secure.raw().await;
    let frames: Vec<u8> = (0..junk.rng.random_range(1..20)).flat_map(|_| junk.frame()).collect();
    let _ = raw.try_send(&frames).await;
    raw.leave().await;
    Ok(sent + 1)
}

impl Junk {
    /// A request that is well formed for HTTP/2, and else as odd as one of HTTP/1.1. None where no part of it can be sent.
    fn http2_request(&mut self) -> Option<(http::Request<()>, Vec<u8>)> {
        let (method, bytes) = self.request();
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("the end of the head");
        let (head, body) = (&bytes[..end], bytes[end + 4..].to_vec());
        let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let first = String::from_utf8_lossy(lines.next()?).into_owned();
        let path = first.split(' ').nth(1)?;
        let mut request = http::Request::builder().method(method).uri(format!("https://localhost{path}"));
        for line in lines {
            let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':')?);
            let name = http::HeaderName::from_bytes(name).ok()?;
            let value = http::HeaderValue::from_bytes(value[1..].trim_ascii()).ok()?;
            if !["host", "content-length"].contains(&name.as_str()) {
                request = request.header(name, value);
            }
        }
        if self.rng.random_range(0..20) == 0 {
            request = request.header("expect", "100-continue");
        }
        Some((request.body(()).ok()?, body))
    }

    /// A frame of any kind, on any stream, with anything in it.
    fn frame(&mut self) -> Vec<u8> {
        let content: Vec<u8> = (0..self.rng.random_range(0..300)).map(|_| self.rng.random()).collect();
        frame(self.rng.random_range(0..12), self.rng.random(), self.rng.random_range(0..9), &content)
    }
}

/// Sends so many requests from so many connections at a time.
async fn send_many<F>(send: impl Fn(u64) -> F, seed: u64, requests: usize)
where
    F: Future<Output = Result<usize, String>> + Send + 'static,
{
    let (mut senders, mut next, mut sent) = (JoinSet::new(), seed, 0);
    while sent < requests {
        while senders.len() < AT_A_TIME {
            let send = send(next);
            senders.spawn(async move { (next, send.await) });
            next += 1;
        }
        let (seed, outcome) = senders.join_next().await.expect("a sender").expect("no panic");
        sent += outcome.unwrap_or_else(|why| panic!("the junk of seed {seed}: {why}"));
    }
    while let Some(sender) = senders.join_next().await {
        sender.expect("no panic").1.expect("good answers");
    }
}

/// Times after which requests that never end are ended, and those for jobs that are not there.
const SHORT: [(&str, &str); 3] =
    [("http.header_timeout", "500ms"), ("http.body_timeout", "500ms"), ("source.appear", "500ms")];

/// Sends a hundred thousand junk requests. None is answered with a 5xx, none leaves anything behind.
async fn withstands<F>(daemon: &Daemon, send: impl Fn(u64) -> F)
where
    F: Future<Output = Result<usize, String>> + Send + 'static,
{
    // Whatever allocates once has done so after a tenth.
    let seed = rand::random::<u32>() as u64;
    send_many(&send, seed, REQUESTS / 10).await;
    let before = memory(daemon);
    send_many(&send, seed + REQUESTS as u64, REQUESTS * 9 / 10).await;
    let grown = memory(daemon).saturating_sub(before);
    assert!(grown < MAX_GROWTH, "{grown} bytes more, seed {seed}");
    let unsaid = daemon.log().lines().filter(|line| line.contains("ERROR")).count();
    assert_eq!(unsaid, 0, "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_junk_requests_break_nothing_and_cost_nothing_that_stays() {
    let _alone = alone();
    let daemon = Daemon::with(&SHORT).await;
    for job in ["done", "over"] {
        daemon.write(job, 0..3).await;
        daemon.set_status(job, "COMPLETED").await;
    }
    daemon.write("live", 0..1).await;
    let mut watched = daemon.stream("live").await;
    watched.event().await;
    let to = daemon.http;
    withstands(&daemon, |seed| async move { send(TcpStream::connect(to).await.expect("connect"), seed).await }).await;
    daemon.write("live", 1..2).await;
    assert_eq!(watched.event().await.number(), 1, "whoever watches is not disturbed");
    assert_eq!(daemon.get("/runner-jobs/x/events").await.status, 404, "no junk was stored");
}

/// A daemon behind TLS with the jobs that junk asks for, and a stream of one of them.
async fn secure_and_watched() -> (Arc<Secure>, http2::Stream) {
    let secure = Secure::start(&SHORT).await;
    let runner = secure.client().await;
    for job in ["done", "over"] {
        runner.write(job, 0..3).await;
        let ended = runner.request("PUT", &format!("/runner-jobs/{job}"), b"{\"status\":\"COMPLETED\"}").await;
        assert_eq!(ended.expect("an answer").status(), 200);
    }
    runner.write("live", 0..1).await;
    let mut watched = runner.stream("live").await;
    watched.event().await;
    (Arc::new(secure), watched)
}

async fn is_undisturbed(secure: &Secure, mut watched: http2::Stream) {
    let runner = secure.client().await;
    runner.write("live", 1..2).await;
    assert_eq!(watched.event().await.number(), 1, "whoever watches is not disturbed");
    let stored = runner.request("GET", "/runner-jobs/x/events", b"").await;
    assert_eq!(stored.expect("an answer").status(), 404, "no junk was stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_junk_requests_over_tls_break_nothing_and_cost_nothing_that_stays() {
    let _alone = alone();
    let (secure, watched) = secure_and_watched().await;
    let of_junk = |seed| {
        let secure = secure.clone();
        async move {
            let link = secure.authority.connect(secure.daemon.http, "http/1.1").await.expect("a handshake");
            send(link, seed).await
        }
    };
    withstands(&secure.daemon, of_junk).await;
    is_undisturbed(&secure, watched).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_junk_requests_over_http_2_break_nothing_and_cost_nothing_that_stays() {
    let _alone = alone();
    let (secure, watched) = secure_and_watched().await;
    let of_junk = |seed| {
        let secure = secure.clone();
        async move { send_http2(&secure, seed).await }
    };
    withstands(&secure.daemon, of_junk).await;
    is_undisturbed(&secure, watched).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_slow_heads_and_five_hundred_slow_bodies_are_ended_while_a_thousand_streams_go_on() {
    let (streams_count, heads, bodies) = (1000, 5000, 500);
    let _alone = alone();
    rlimit::increase_nofile_limit(20_000).expect("files");
    let daemon = Daemon::with(&[("http.header_timeout", "3s"), ("http.body_timeout", "3s")]).await;
    daemon.write("job", 0..1).await;
    let mut streams = Vec::new();
    for _ in 0..streams_count {
        streams.push(daemon.stream("job").await);
    }
    let body = encode(
        "POST",
        "/runner-jobs/job/events",
        &[("Content-Type", "application/json"), ("Content-Length", "99")],
        b"",
    );
    let mut slow = JoinSet::new();
    for number in 0..heads + bodies {
        let (to, begin) = (daemon.http, if number < heads { b"GET / HTTP/1.1\r\nX: ".to_vec() } else { body.clone() });
        slow.spawn(async move {
            let mut socket = TcpStream::connect(to).await.expect("connect");
            let _ = socket.write_all(&begin).await;
            let mut answer = Vec::new();
            // Ended by the other side; nothing more is sent.
            let _ = timeout(PATIENCE * 2, socket.read_to_end(&mut answer)).await.expect("an end");
            answer.is_empty() || Answer::head(&mut answer).is_some_and(|head| head.status == 408)
        });
    }
    daemon.write("job", 1..11).await;
    let expected = Vec::from_iter(0..11);
    for stream in &mut streams {
        assert_eq!(numbers(&stream.take(11).await), expected);
    }
    while let Some(ended) = slow.join_next().await {
        assert!(ended.expect("no panic"), "another answer");
    }
    daemon.write("job", 11..12).await;
    for stream in &mut streams {
        assert_eq!(stream.event().await.number(), 11);
    }
    let refused: f64 = daemon.metric("jobcast_refused_requests_total").await;
    assert!(refused >= f64::from(bodies), "{refused}");
    drop::<Vec<Stream>>(streams);
}
