//! Checks of everything that reads foreign bytes: none panics, and whatever they take means one thing. libFuzzer runs
//! them (`fuzz_targets/`), and so do the ordinary tests, over the corpus and over changed copies of it.

use actix_web::test::TestRequest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jobcast::auth::{Auth, Caller, Wanted};
use jobcast::config::Settings;
use jobcast::cursor::set::{self, Members, Size};
use jobcast::cursor::{Cursor, Level, fingerprint};
use jobcast::event::JobId;
use jobcast::http::{Hosts, Sent, forwarded, x_forwarded_for};
use std::pin::pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};
use url::form_urlencoded;

/// Tokens of positions: a job's own are opened as they were sealed, and none opens for another job.
pub fn cursor(input: &[u8]) {
    let (Ok(job), Ok(other)) = ("job-7".parse::<JobId>(), "job-8".parse::<JobId>()) else { return };
    let text = String::from_utf8_lossy(input);
    for version in ['p', 's', 'r'] {
        if let Some(inside) = Cursor::open(version, &job, &text) {
            assert_eq!(Cursor::seal(version, &job, &inside).as_str(), text, "one position, one token");
        }
    }
    let inside = &input[..input.len().min(Cursor::MAX_INSIDE)];
    let token = Cursor::seal('s', &job, inside);
    assert!(token.as_str().len() <= Cursor::MAX_BYTES);
    assert_eq!(Cursor::open('s', &job, token.as_str()).as_deref(), Some(inside));
    assert_eq!(Cursor::open('s', &other, token.as_str()), None);
}

/// Tokens of sets, whose checksum everybody can make: what one says of each job is said again by tokens of our own.
pub fn set(input: &[u8]) {
    let members = Members::new((0..20).filter_map(|number| format!("job-{number}").parse().ok()));
    let token = URL_SAFE_NO_PAD.encode([&fingerprint(input), input].concat());
    let Some(positions) = set::open(&members, &format!("{}{token}", set::LETTER)) else { return };
    assert_eq!(positions.len(), members.jobs().len());
    let levels: Option<Vec<Level>> = positions.iter().map(|position| position.as_ref().map(Cursor::level)).collect();
    let Some(levels) = levels else { return };
    for size in [Size::Short, Size::Full] {
        let again = set::seal(&members, &levels, size);
        assert!(again.as_str().len() <= set::MAX_TEXT);
        assert_eq!(set::open(&members, again.as_str()).as_ref(), Some(&positions), "{size:?}");
    }
}

/// Settings: whatever is taken is printed, and read again as the same.
pub fn settings(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match Settings::from_toml(text) {
        Ok(settings) => {
            let printed = settings.to_toml();
            // A secret is masked, and the mask may not be one.
            if let Ok(again) = Settings::from_toml(&printed) {
                assert_eq!(again.to_toml(), printed);
            }
        }
        Err(errors) => assert!(!errors.to_string().is_empty()),
    }
}

/// Bodies of ingest: each event that is taken has a type of its own, without a line's end.
pub fn ingest(input: &[u8]) {
    let events = match Sent::read(input, 100) {
        Ok(Sent::One(event)) => vec![event],
        Ok(Sent::All(events)) => events,
        Err(_) => return,
    };
    assert!((1..=100).contains(&events.len()));
    for event in &events {
        assert!(!event.kind.is_empty() && !event.kind.starts_with("stream."));
        assert!(!event.kind.chars().chain(event.id.chars()).any(char::is_control));
        assert!(!event.payload.as_json().contains(['\n', '\r']), "a payload is one line");
    }
}

/// Forwarding headers: as many hops as a line can have, and one that a proxy adds at the end is understood or ends the walk.
pub fn address(input: &[u8]) {
    let Ok(line) = std::str::from_utf8(input) else { return };
    for hops in [x_forwarded_for(line), forwarded(line)] {
        assert!(hops.len() <= line.len() + 1);
    }
    let proxy = "192.0.2.1".parse().ok();
    assert_eq!(x_forwarded_for(&format!("{line}, 192.0.2.1")).last(), Some(&proxy));
    let last = forwarded(&format!("{line}, for=192.0.2.1")).last().copied();
    assert!(last == Some(proxy) || last == Some(None), "{last:?}");
}

/// Hosts: a listener on loopback answers to nothing but its own names.
pub fn host(input: &[u8]) {
    let Ok(value) = actix_web::http::header::HeaderValue::from_bytes(input) else { return };
    let hosts = Hosts::new(std::net::SocketAddr::from(([127, 0, 0, 1], 8080)), &[], false);
    let request = TestRequest::get().insert_header(("Host", value)).to_http_request();
    if hosts.are_named_by(&request) {
        let host = String::from_utf8_lossy(input).to_ascii_lowercase();
        let is_own =
            host.starts_with("localhost") || host.starts_with("127.") || host.starts_with('[') || host.contains("::1");
        assert!(is_own, "{host}");
    }
}

/// The secret of [`TOKEN`].
const SECRET: &str = "a secret of the fuzzer: 32 bytes.";
/// The one token of this secret in the corpus that has not expired: for the job `job-7` alone.
const TOKEN: &str = "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjQxMDI0NDQ4MDAsInN1YiI6ImFubiIsImpvYmNhc3Quam9icyI6WyJqb2ItNyJdfQ.ml1ahEaViWnYMVHIihhsoGR6omICfiuu-bQBh8k6y4k";

/// Made once, since settings take a hundred times as long as a token.
static AUTH: LazyLock<Auth> = LazyLock::new(|| {
    let settings = format!("[auth]\nmode = \"jwt\"\njwt.secret = \"{SECRET}\"\njwt.cookie = \"session\"\n");
    let settings = Settings::from_toml(&settings).expect("settings");
    Auth::new(&settings.auth).expect("a secret")
});

/// Credentials: a header, cookies and a query, a line each. Nobody gets a right without the one token that was signed, and with
/// it to its own job only.
pub fn token(input: &[u8]) {
    let mut lines = input.splitn(3, |byte| *byte == b'\n');
    let (header, cookies) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let query = String::from_utf8_lossy(lines.next().unwrap_or_default());
    for (job, may_be_seen) in [("job-7", true), ("job-8", false)] {
        let header = Some(header).filter(|header| !header.is_empty());
        let Ok(caller) = Caller::new(header, [cookies], ("/", &query), |_| true) else { return };
        let wanted = Wanted::Job(job.parse().expect("an id"));
        let asked = pin!(AUTH.ask(caller, &wanted)).poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(answer) = asked else { panic!("a secret is at hand") };
        if answer.is_ok() {
            assert!(may_be_seen, "another job");
            let sent = String::from_utf8_lossy(input);
            let query: String = form_urlencoded::parse(query.as_bytes()).map(|(_, value)| value).collect();
            assert!(sent.contains(TOKEN) || query.contains(TOKEN), "no token was signed");
        }
    }
}
