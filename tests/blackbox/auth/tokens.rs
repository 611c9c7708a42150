//! Tokens: each way in which one can be wrong, on every address.

use super::{SECRET, addresses, ask, ask_with, head, refusal, with_tokens};
use crate::support::daemon::stream_path;
use crate::support::http::request;
use crate::support::tls::keep;
use crate::support::token::{bearer, claims, claims_with, seconds_from_now, unsigned};
use crate::support::{Daemon, Signer, Stream, numbers};
use serde_json::{Value, json};

const INVALID: (u16, &str) = (401, "auth.invalid");

#[tokio::test]
async fn every_address_that_shows_a_job_or_an_event_asks_who_is_there_and_tells_nothing_of_a_job() {
    let daemon = with_tokens(&[("source.appear", "0s")]).await;
    daemon.write("job", 0..1).await;
    let signer = Signer::secret(SECRET);
    let [all, other] = [&["*"][..], &["else", "job/*", "jo"]].map(|jobs| signer.token(&claims(jobs)));
    let mut told = Vec::new();
    for job in ["job", "none"] {
        for path in addresses(&daemon, job).await {
            let answer = ask(&daemon, &path, &[]).await;
            assert_eq!(refusal(&answer), (401, "auth.missing".into()), "{path}");
            assert_eq!(answer.header("WWW-Authenticate"), Some("Bearer"));
            let answer = ask_with(&daemon, &path, &other).await;
            assert_eq!(refusal(&answer), (403, "auth.forbidden".into()), "{path}");
            told.push(answer.text());
            let exists = !path.contains("none");
            assert_eq!(ask_with(&daemon, &path, &all).await.status, if exists { 200 } else { 404 }, "{path}");
            let of_head = head(&daemon, &path, &other).await.status;
            assert!(matches!(of_head, 403 | 405), "{path}: {of_head}");
        }
    }
    assert!(told.iter().all(|text| *text == told[0] && !text.contains("none")), "{told:?}");
    for (outcome, least) in [("allowed", 6.0), ("denied", 8.0), ("unauthenticated", 8.0), ("unavailable", 0.0)] {
        let series = format!("jobcast_auth_total{{outcome=\"{outcome}\"}}");
        daemon.metric_reaches(&series, least).await;
        assert!(daemon.ask_admin("/metrics").await.text().contains(&series), "also where it is 0");
    }
}

#[tokio::test]
async fn a_token_counts_only_with_the_key_and_the_algorithm_of_the_settings() {
    let folder = tempfile::tempdir().expect("a directory");
    let signers = [Signer::secret(SECRET), Signer::rsa(), Signer::ec(), Signer::ed()];
    for signer in &signers {
        let file = if let Signer::Secret(_) = signer {
            String::new()
        } else {
            keep(&folder, &format!("{}.pem", signer.algorithm()), &signer.pem())
        };
        let given = if file.is_empty() { ("auth.jwt.secret", SECRET) } else { ("auth.jwt.key_file", file.as_str()) };
        let daemon = with_tokens(&[given]).await;
        daemon.write("job", 0..1).await;
        let rights = claims(&["*"]);
        let mut wrong: Vec<String> =
            signers.iter().filter(|other| !std::ptr::eq(*other, signer)).map(|other| other.token(&rights)).collect();
        for algorithm in ["none", "None", "HS256", "HS512", "RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA", ""] {
            if algorithm != signer.algorithm() {
                // the right key says that it is for something else
                wrong.push(signer.token_with(json!({ "alg": algorithm }), &rights));
                let header = json!({ "alg": algorithm, "typ": "JWT" }).to_string();
                wrong.push(unsigned(&header, &rights.to_string()) + ".");
            }
        }
        if !file.is_empty() {
            // a public key taken as the secret of HS256, in each form that somebody may hash
            for secret in [signer.pem(), signer.pem().trim_end().to_string(), signer.pem().replace('\n', "")] {
                wrong.push(Signer::Secret(secret).token(&rights));
            }
        }
        for path in addresses(&daemon, "job").await {
            assert_eq!(ask_with(&daemon, &path, &signer.token(&rights)).await.status, 200, "{path}");
            for token in &wrong {
                let answer = ask_with(&daemon, &path, token).await;
                assert_eq!(refusal(&answer), (INVALID.0, INVALID.1.into()), "{} {path} {token}", signer.algorithm());
            }
        }
    }
}

#[tokio::test]
async fn a_token_with_any_claim_wrong_is_refused_on_every_address() {
    let daemon = with_tokens(&[
        ("auth.jwt.audience", "jobcast, other-name"),
        ("auth.jwt.issuer", "https://issuer.example"),
        ("auth.jwt.leeway", "0s"),
    ])
    .await;
    daemon.write("job", 0..1).await;
    let signer = Signer::secret(SECRET);
    let good = json!({ "aud": "jobcast", "iss": "https://issuer.example" });
    let with = |more: Value| {
        let mut all = good.clone();
        all.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        claims_with(&["*"], all)
    };
    let token = |more: Value| signer.token(&with(more));
    let mut invalid = vec![
        signer.token(&json!({})),
        signer.token(&json!([])),
        "a.b.c".into(),
        "...".into(),
        "x".repeat(20_000),
        token(json!({})).trim_end_matches(|c| c != '.').to_string(),
        format!("{}x", token(json!({}))),
        Signer::secret("another secret of the tests, 32 bytes long").token(&with(json!({}))),
        signer.token_with(json!({ "crit": ["exp"] }), &with(json!({}))),
        signer.token_with(json!({ "crit": ["b64"], "b64": false }), &with(json!({}))),
        // twice the same claim: whoever reads the first one sees another token than whoever reads the last
        signer.sign_text(r#"{"alg":"HS256"}"#, &with(json!({})).to_string().replacen('{', r#"{"exp":1,"#, 1)),
    ];
    for more in [
        json!({ "exp": null }),
        json!({ "exp": seconds_from_now(-1) }),
        json!({ "exp": seconds_from_now(3600).to_string() }),
        json!({ "exp": -1 }),
        json!({ "exp": {} }),
        json!({ "nbf": seconds_from_now(60) }),
        json!({ "nbf": "soon" }),
        json!({ "aud": null }),
        json!({ "aud": "jobcast2" }),
        json!({ "aud": [] }),
        json!({ "aud": ["x", "y"] }),
        json!({ "aud": 7 }),
        json!({ "iss": null }),
        json!({ "iss": "https://issuer.example/" }),
        json!({ "iss": "https://other.example" }),
        json!({ "iss": ["https://issuer.example", "https://other.example"] }),
        json!({ "sub": 7 }),
        json!({ "jobcast.jobs": "*" }),
        json!({ "jobcast.jobs": { "*": true } }),
    ] {
        invalid.push(token(more));
    }
    let forbidden = [
        json!({ "jobcast.jobs": null }),
        json!({ "jobcast.jobs": [] }),
        json!({ "jobcast.jobs": ["jo", "job2", "job/*", "JOB", "j?b", ""] }),
        json!({ "jobcast": { "jobs": ["*"] } }),
    ];
    let good = [
        json!({}),
        json!({ "aud": ["x", "other-name"] }),
        json!({ "exp": seconds_from_now(3600) as f64 + 0.5, "nbf": seconds_from_now(-1) }),
        json!({ "jobcast.jobs": null, "jobcast": { "jobs": ["x", "*"] } }),
    ];
    for path in addresses(&daemon, "job").await {
        for token in &invalid {
            assert_eq!(
                refusal(&ask_with(&daemon, &path, token).await),
                (INVALID.0, INVALID.1.into()),
                "{path} {token}"
            );
        }
        for claims in &forbidden {
            let answer = ask_with(&daemon, &path, &token(claims.clone())).await;
            assert_eq!(refusal(&answer), (403, "auth.forbidden".into()), "{path} {claims}");
        }
        for claims in &good {
            assert_eq!(ask_with(&daemon, &path, &token(claims.clone())).await.status, 200, "{path} {claims}");
        }
    }
}

#[tokio::test]
async fn a_token_comes_by_header_cookie_or_address_and_never_twice() {
    let daemon = with_tokens(&[("auth.jwt.cookie", "session")]).await;
    daemon.write("team-1%2Fjob", 0..1).await;
    let signer = Signer::secret(SECRET);
    let (good, bad) = (signer.token(&claims(&["team-1/*"])), signer.token(&claims(&["x"])));
    let path = stream_path("team-1%2Fjob");
    let cookie = |token: &str| format!("theme=dark; session={token}");
    let (good_header, bad_header) = (bearer(&good), bearer(&bad));
    let (good_cookie, bad_cookie) = (cookie(&good), cookie(&bad));
    let query = format!("{path}?access_token={good}");
    for (path, headers, status) in [
        (&path, &[("Authorization", good_header.as_str())][..], 200),
        (&path, &[("Cookie", &good_cookie)], 200),
        (&query, &[], 200),
        // a header or an address was chosen for this request, a cookie was not
        (&path, &[("Authorization", &good_header), ("Cookie", &bad_cookie)], 200),
        (&query, &[("Cookie", &bad_cookie)], 200),
        (&query, &[("Authorization", &bad_header)], 403),
        (&path, &[("Authorization", "Basic dTpw"), ("Cookie", &good_cookie)], 200),
        (&path, &[("Authorization", &good_header), ("Authorization", &bad_header)], 401),
        (&format!("{query}&access_token={good}"), &[], 401),
        (&path, &[("Cookie", &format!("xsession={good}"))], 401),
    ] {
        assert_eq!(ask(&daemon, path, headers).await.status, status, "{headers:?} {path}");
    }
}

#[tokio::test]
async fn a_prefix_counts_on_every_address_for_the_jobs_that_begin_with_it_and_ends_where_it_says() {
    let daemon = with_tokens(&[("source.appear", "0s")]).await;
    let token = Signer::secret(SECRET).token(&claims(&["team-1/*"]));
    for job in ["team-1%2Fjob", "team-1", "team-10%2Fjob", "x%2Fteam-1%2Fjob"] {
        daemon.write(job, 0..1).await;
    }
    for (job, status) in [
        ("team-1%2Fjob", 200),
        ("team-1%2Fx%2Fy", 404),
        ("team-1%2F", 404),
        ("team-1", 403),
        ("team-10%2Fjob", 403),
        ("TEAM-1%2Fjob", 403),
        ("x%2Fteam-1%2Fjob", 403),
        ("team-1%2F..%2F..%2Fx", 404),
    ] {
        for path in addresses(&daemon, job).await {
            // the list of all jobs is no job's
            let expected = if path.contains(job) { status } else { 403 };
            assert_eq!(ask_with(&daemon, &path, &token).await.status, expected, "{path}");
        }
    }
}

#[tokio::test]
async fn neither_a_cookie_nor_a_right_to_watch_lets_anybody_write() {
    let daemon = with_tokens(&[("auth.jwt.cookie", "session"), ("ingest.token", "hunter2-of-ingest")]).await;
    let token = Signer::secret(SECRET).token(&claims(&["*"]));
    let cookies = format!("session={token}; token=hunter2-of-ingest; ingest.token=hunter2-of-ingest");
    let query = format!("?access_token={token}");
    for (method, path, body) in [
        ("POST", "/runner-jobs/job/events", &b"{\"type\":\"x\"}"[..]),
        ("PUT", "/runner-jobs/job", b"{\"status\":\"FAILED\"}"),
    ] {
        for headers in [&[("Cookie", cookies.as_str())][..], &[("Authorization", &bearer(&token))]] {
            let headers = [&[("Content-Type", "application/json")], headers].concat();
            let answer = request(daemon.http, method, &format!("{path}{query}"), &headers, body).await;
            assert_eq!(refusal(&answer), (401, "ingest.token".into()), "{method} {headers:?}");
        }
    }
}

#[tokio::test]
async fn a_cursor_of_one_job_shows_nothing_of_it_on_another_nor_in_a_set() {
    let daemon = with_tokens(&[]).await;
    daemon.write("secret", 0..5).await;
    daemon.write("mine", 100..102).await;
    daemon.write("mine-too", 200..201).await;
    let signer = Signer::secret(SECRET);
    let (all, mine) = (signer.token(&claims(&["*"])), bearer(&signer.token(&claims(&["mine", "mine-too"]))));
    let page =
        request(daemon.http, "GET", "/runner-jobs/secret/events", &[("Authorization", &bearer(&all))], b"").await;
    let page = page.json();
    let cursors = page["events"].as_array().expect("events").iter().map(|event| event["cursor"].clone());
    let mut foreign: Vec<String> = cursors.map(|cursor| cursor.as_str().expect("a cursor").to_string()).collect();
    foreign.extend([
        page["cursor"].as_str().expect("a cursor").to_string(),
        "e-3".into(),
        "e-4".into(),
        "unheard".into(),
    ]);
    for last in foreign {
        let headers = [("Authorization", mine.as_str()), ("Last-Event-ID", &last)];
        // there it is not even looked up
        assert_eq!(ask(&daemon, &stream_path("secret"), &headers).await.status, 403, "{last}");
        let mut stream = Stream::open(daemon.http, &stream_path("mine"), &headers).await;
        let reset = stream.event().await;
        assert!(reset.is("stream.reset"), "{last}: {reset:?}");
        assert_eq!(reset.json()["reason"], "unknown");
        // the position is the beginning of the job that was asked for, and everything of it follows
        let all: Vec<u64> = stream.take(2).await.iter().map(|message| message.number()).collect();
        assert_eq!(all, [100, 101]);
        let path = format!("/runner-jobs/mine/events?after={last}");
        let polled = request(daemon.http, "GET", &path, &[headers[0]], b"").await.text();
        assert!(polled.contains("\"reset\"") && !polled.contains("secret"), "{polled}");
        // the same by the addresses of sets, of one job and of several
        for set in ["?job=mine", "?job=mine&job=mine-too"] {
            let seen = resumed(&daemon, set, &headers).await;
            let expected = if set.contains("too") { vec![100, 101, 200] } else { vec![100, 101] };
            assert_eq!(seen, (true, expected), "{set} {last}");
        }
    }
}

/// Resumes a set as a stream and as JSON, and returns whether it was told to begin anew, and the numbers that it got. Neither
/// may show anything of the job "secret".
async fn resumed(daemon: &Daemon, set: &str, headers: &[(&str, &str); 2]) -> (bool, Vec<u64>) {
    let [token, (_, last)] = headers;
    let polled = request(daemon.http, "GET", &format!("/runner-jobs/events{set}&after={last}"), &[*token], b"").await;
    assert!(polled.status == 200 && !polled.text().contains("secret"), "{set} {last}: {polled:?}");
    let page = polled.json();
    let is_reset = page["resets"].as_array().is_some_and(|resets| !resets.is_empty());
    let number = |event: &Value| event["payload"]["n"].as_u64().expect("a number");
    let mut numbers: Vec<u64> = page["events"].as_array().expect("events").iter().map(number).collect();
    let mut stream = Stream::open(daemon.http, &format!("/runner-jobs/events/stream{set}"), headers).await;
    let mut told = stream.take(numbers.len() + usize::from(is_reset)).await;
    assert!(told.iter().all(|message| !format!("{message:?}").contains("secret")), "{set} {last}: {told:?}");
    assert_eq!(told.first().is_some_and(|message| message.is("stream.reset")), is_reset, "{set} {last}: {told:?}");
    told.retain(|message| !message.is("stream.reset"));
    let mut streamed: Vec<u64> = told.iter().map(|message| message.number()).collect();
    numbers.sort_unstable();
    streamed.sort_unstable();
    assert_eq!(streamed, numbers, "{set} {last}");
    (is_reset, numbers)
}

#[tokio::test]
async fn a_cursor_of_a_set_shows_nothing_of_those_of_its_jobs_that_its_bearer_may_not_watch() {
    let daemon = with_tokens(&[]).await;
    daemon.write("secret", 0..3).await;
    daemon.write("mine", 100..103).await;
    let signer = Signer::secret(SECRET);
    let (all, mine) = (bearer(&signer.token(&claims(&["*"]))), bearer(&signer.token(&claims(&["mine"]))));
    for ids in ["short", "full"] {
        let path = format!("/runner-jobs/events?job=secret&job=mine&ids={ids}");
        let page = request(daemon.http, "GET", &path, &[("Authorization", &all)], b"").await.json();
        let events = page["events"].as_array().expect("events");
        assert_eq!(events.len(), 6, "{page}");
        for (given, event) in events.iter().enumerate() {
            let before = events[..=given].iter().filter(|event| event["jobId"] == "mine").count() as u64;
            let rest = Vec::from_iter(100 + before..103);
            let headers = [("Authorization", mine.as_str()), ("Last-Event-ID", event["cursor"].as_str().expect("one"))];
            assert_eq!(resumed(&daemon, &format!("?job=mine&ids={ids}"), &headers).await, (false, rest.clone()));
            let mut alone = Stream::open(daemon.http, &stream_path("mine"), &headers).await;
            assert_eq!(numbers(&alone.take(rest.len()).await), rest);
            assert_eq!(ask(&daemon, &stream_path("secret"), &headers).await.status, 403);
            // whoever names it is told that it may not be watched, and gets the rest
            let path = format!("/runner-jobs/events/stream?job=secret&job=mine&ids={ids}");
            let mut both = Stream::open(daemon.http, &path, &headers).await;
            let told = both.take(1 + rest.len()).await;
            assert!(told[0].is("stream.error") && told[0].json()["jobId"] == "secret", "{told:?}");
            assert_eq!(numbers(&told[1..]), rest);
        }
    }
    // One that names none of its bearer's jobs begins anew.
    daemon.write("hidden", 0..1).await;
    let path = "/runner-jobs/events?job=secret&job=hidden";
    let page = request(daemon.http, "GET", path, &[("Authorization", &all)], b"").await.json();
    let headers = [("Authorization", mine.as_str()), ("Last-Event-ID", page["cursor"].as_str().expect("a cursor"))];
    assert_eq!(resumed(&daemon, "?job=mine", &headers).await, (true, vec![100, 101, 102]));
}
