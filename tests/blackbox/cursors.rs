//! What comes back as a cursor is foreign input.

use crate::support::daemon::stream_path;
use crate::support::http::{encode, raw};
use crate::support::{Answer, Daemon, Stream, numbers};
use jobcast::cursor::Cursor;
use jobcast::event::JobId;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

const EVENTS: u64 = 20;

fn percent_encoded(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("%{byte:02X}")).collect()
}

/// 200 of them, none of which is a cursor of this job: cut, grown, garbled, foreign, forged, too long, control bytes.
fn junk(own: &[String], foreign: &[String]) -> Vec<Vec<u8>> {
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    let mut junk: Vec<Vec<u8>> = foreign.iter().map(|cursor| cursor.clone().into_bytes()).collect();
    let job: JobId = "job".parse().expect("id");
    // sealed as ours are, with things inside that never were
    for length in 1..40 {
        let inside: Vec<u8> = (0..length).map(|_| rng.random()).collect();
        junk.push(Cursor::seal('s', &job, &inside).as_str().into());
    }
    for version in ['p', 'r', 'S', '0'] {
        junk.push(Cursor::seal(version, &job, &[0, 0, 0, 0, 5]).as_str().into());
    }
    junk.extend([vec![b'a'; 400], vec![b's'; 129], own[3].repeat(30).into_bytes(), b"0".to_vec(), b"-1".to_vec()]);
    junk.extend([b"' OR 1=1 --".to_vec(), b"../../etc/passwd".to_vec(), "\u{1F980}".into(), vec![0xff, 0xfe]]);
    junk.extend((1..32).map(|control| vec![b'e', control, b'1']));
    junk.push(b"e-1\0".to_vec());
    while junk.len() < 200 {
        let mut cursor = own.choose(&mut rng).expect("a cursor").clone().into_bytes();
        let at = rng.random_range(0..cursor.len());
        match rng.random_range(0..4) {
            0 => cursor.truncate(at),
            1 => cursor.insert(at, b'A'),
            2 => cursor[at] = if cursor[at] == b'x' { b'y' } else { b'x' },
            _ => cursor.extend_from_slice(b"=="),
        }
        if !cursor.is_empty() && !own.iter().any(|own| own.as_bytes() == cursor) {
            junk.push(cursor);
        }
    }
    junk
}

#[tokio::test]
async fn two_hundred_junk_cursors_get_a_reset_or_a_400_and_never_a_wrong_answer() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..EVENTS).await;
    daemon.write("other", 100..110).await;
    let cursors = |messages: Vec<crate::support::Message>| messages.iter().map(|m| m.cursor().to_string()).collect();
    let own: Vec<String> = cursors(daemon.stream("job").await.take(EVENTS as usize).await);
    let foreign: Vec<String> = cursors(daemon.stream("other").await.take(10).await);
    let junk = junk(&own, &foreign);
    assert!(junk.len() >= 200);

    let mut refused = 0;
    for cursor in &junk {
        let shown = String::from_utf8_lossy(cursor).into_owned();
        // by the header, as it is
        let mut request = encode("GET", &stream_path("job"), &[], b"");
        request.truncate(request.len() - 2);
        request.extend([b"Last-Event-ID: ", &cursor[..], b"\r\n\r\n"].concat());
        let mut socket = tokio::net::TcpStream::connect(daemon.http).await.expect("connect");
        tokio::io::AsyncWriteExt::write_all(&mut socket, &request).await.expect("ask");
        let stream = Stream::on(socket).await.expect("an answer");
        // in the address, where every byte can be written
        let path = format!("{}?lastEventId={}", stream_path("job"), percent_encoded(cursor));
        for mut stream in [stream, Stream::open(daemon.http, &path, &[]).await] {
            if stream.head.status == 400 {
                refused += 1;
                continue;
            }
            assert_eq!(stream.head.status, 200, "{shown:?}");
            let reset = stream.event().await;
            assert!(reset.is("stream.reset"), "{shown:?} was answered with {reset:?}");
            assert_eq!(numbers(&stream.take(EVENTS as usize).await), Vec::from_iter(0..EVENTS), "{shown:?}");
        }
        let polled = daemon.get(&format!("/runner-jobs/job/events?after={}", percent_encoded(cursor))).await;
        if polled.status != 400 {
            assert_eq!(polled.json()["events"].as_array().map(Vec::len), Some(EVENTS as usize), "{shown:?}");
            assert!(polled.json()["reset"]["reason"].is_string(), "{shown:?}: {polled:?}");
        }
    }
    assert!(refused < 60, "only what HTTP itself does not allow is refused, not {refused}");
    // none of them has done any harm
    assert_eq!(daemon.stream_after("job", &own[10]).await.event().await.number(), 11);
}

#[tokio::test]
async fn a_cursor_has_at_most_128_bytes_that_no_browser_asks_leave_for() {
    let daemon = Daemon::start().await;
    let job = "j".repeat(200);
    daemon.write(&job, 0..3).await;
    for message in daemon.stream(&job).await.take(3).await {
        let cursor = message.cursor();
        assert!(cursor.len() <= 128, "{cursor}");
        assert!(cursor.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte)), "{cursor}");
    }
}

#[tokio::test]
async fn requests_that_are_no_http_get_a_400_or_nothing_and_the_daemon_lives() {
    let daemon = Daemon::start().await;
    let mut rng = rand::rngs::StdRng::seed_from_u64(11);
    for number in 0..200 {
        let mut bytes = encode("GET", &stream_path("job"), &[("Last-Event-ID", "x")], b"");
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..bytes.len() - 4);
            bytes[at] = rng.random();
        }
        bytes.extend_from_slice(b"\r\n\r\n");
        let mut socket = tokio::net::TcpStream::connect(daemon.http).await.expect("connect");
        let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, &bytes).await;
        if number % 20 == 0 {
            let answer = raw(daemon.http, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").await;
            let mut answer = answer;
            assert!(answer.is_empty() || Answer::head(&mut answer).is_some_and(|head| head.status == 400));
        }
    }
    assert_eq!(daemon.get("/runner-jobs").await.status, 200);
}
