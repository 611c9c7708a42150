//! Cursors that come back are foreign input.

use crate::support::daemon::stream_path;
use crate::support::http::encode;
use crate::support::store::Store;
use crate::support::{Daemon, Message, Stream, numbers};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

pub const EVENTS: u64 = 20;

fn percent_encoded(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("%{byte:02X}")).collect()
}

/// `junk` and more, 200 in all, none of which is a cursor of this job: cut, grown, garbled, foreign, too long, with
/// control bytes.
fn filled_up(mut junk: Vec<Vec<u8>>, own: &[String], foreign: &[String]) -> Vec<Vec<u8>> {
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    junk.extend(foreign.iter().map(|cursor| cursor.clone().into_bytes()));
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

pub async fn junk_cursors_get_a_reset_or_a_400_and_never_a_wrong_answer<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    store.append("job", 0..EVENTS).await;
    store.append("other", 100..110).await;
    are_refused(&daemon, Vec::new()).await;
}

/// Asks for `job`, which has [`EVENTS`], from 200 cursors that mean nothing; `other` has ten. At least these are among them.
pub async fn are_refused(daemon: &Daemon, junk: Vec<Vec<u8>>) {
    let cursors = |messages: Vec<Message>| messages.iter().map(|m| m.cursor().to_string()).collect();
    let own: Vec<String> = cursors(daemon.stream("job").await.take(EVENTS as usize).await);
    let foreign: Vec<String> = cursors(daemon.stream("other").await.take(10).await);
    let junk = filled_up(junk, &own, &foreign);
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

pub async fn a_cursor_has_at_most_128_bytes_that_no_browser_asks_leave_for<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    let job = "j".repeat(200);
    store.append(&job, 0..3).await;
    for message in daemon.stream(&job).await.take(3).await {
        let cursor = message.cursor();
        assert!(cursor.len() <= 128, "{cursor}");
        assert!(cursor.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte)), "{cursor}");
    }
}
