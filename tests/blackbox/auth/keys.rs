//! Keys: sets at an address, and files and secrets that are none.

use super::{addresses, ask_with, refusal, with_tokens};
use crate::support::daemon::{run, stream_path};
use crate::support::http::request;
use crate::support::tls::{Authority, keep};
use crate::support::token::{bearer, claims_with};
use crate::support::web::{Asked, Reply};
use crate::support::{Daemon, Signer, Stream, Web, eventually};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const ISSUER: &str = "https://issuer.example";

fn set(keys: &[Value]) -> Reply {
    Reply::body(json!({ "keys": keys }))
}

/// Serves these keys, whatever is asked.
async fn key_server(keys: &[Value]) -> Web {
    let reply = set(keys);
    Web::start(move |_: &Asked| reply.clone()).await
}

async fn with_keys_of(web: &Web, settings: &[(&str, &str)]) -> Daemon {
    let url = web.url("/keys");
    let all = [&[("auth.jwt.jwks_url", url.as_str()), ("auth.jwt.issuer", ISSUER)], settings].concat();
    let daemon = with_tokens(&all).await;
    daemon.write("job", 0..1).await;
    daemon
}

/// A token of this issuer that names a key.
fn named(signer: &Signer, kid: &str) -> String {
    signer.token_with(json!({ "kid": kid }), &claims_with(&["*"], json!({ "iss": ISSUER })))
}

async fn status(daemon: &Daemon, token: &str) -> u16 {
    ask_with(daemon, "/runner-jobs/job", token).await.status
}

/// Asks every address that shows a job or an event, all at once.
async fn is_answered(daemon: &Daemon, token: &str, status: u16) {
    let paths = addresses(daemon, "job").await;
    let answers = join_all(paths.iter().map(|path| ask_with(daemon, path, token))).await;
    for (path, answer) in paths.iter().zip(answers) {
        assert_eq!(answer.status, status, "{path}");
    }
}

/// Asks every address that shows a job or an event. It lets nobody in, and says either that the token does not count or, where
/// the key set may not be read again so soon, that nobody can say now.
async fn is_kept_out(daemon: &Daemon, token: &str) {
    let authorization = bearer(token);
    let headers = [("Authorization", authorization.as_str()), ("Accept", "application/json")];
    for path in addresses(daemon, "job").await {
        let refused = refusal(&request(daemon.http, "GET", &path, &headers, b"").await);
        let is_known = matches!((refused.0, &*refused.1), (401, "auth.invalid") | (503, "auth.unavailable"));
        assert!(is_known, "{path}: {refused:?}");
    }
}

/// Waits for a token to count, which is never refused for good meanwhile.
async fn comes_to_count(daemon: &Daemon, token: &str) {
    eventually("the token to count", async || match status(daemon, token).await {
        200 => Some(()),
        other => {
            assert_eq!(other, 503);
            None
        }
    })
    .await;
}

#[tokio::test]
async fn a_key_set_vouches_for_its_own_issuer_and_nothing_else_is_ever_asked_for_a_key() {
    let (rsa, ec, ed) = (Signer::rsa(), Signer::ec(), Signer::ed());
    let shared = Signer::secret("a secret that somebody has put into a public set");
    let mut for_encryption = ec.jwk("encryption");
    for_encryption["use"] = "enc".into();
    let odd = json!({ "kty": "AKP", "kid": "odd", "pub": "x" });
    let web =
        key_server(&[odd, rsa.jwk("one"), ec.jwk("two"), ed.jwk("three"), shared.jwk("four"), for_encryption]).await;
    // another issuer, whose key has the same name
    let stranger = Signer::ec();
    let elsewhere = key_server(&[stranger.jwk("two")]).await;
    let daemon = with_keys_of(&web, &[]).await;
    let foreign = |claims: &Value, more: Value| {
        let mut header = json!({ "kid": "two" });
        header.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        stranger.token_with(header, claims)
    };
    let (ours, theirs) =
        (claims_with(&["*"], json!({ "iss": ISSUER })), claims_with(&["*"], json!({ "iss": elsewhere.url("") })));
    let hints = [
        json!({}),
        json!({ "jku": elsewhere.url("/keys"), "x5u": elsewhere.url("/keys") }),
        json!({ "jwk": stranger.jwk("two") }),
    ];
    let unknown_names = [
        json!({ "kid": elsewhere.url("/keys") }),
        json!({ "kid": "../../../dev/null" }),
        json!({ "kid": "two' OR '1'='1" }),
        json!({ "kid": "" }),
    ];
    let mut wrong: Vec<String> = hints.iter().map(|hint| foreign(&ours, hint.clone())).collect();
    wrong.extend([
        foreign(&theirs, json!({})),
        ec.token_with(json!({ "kid": "two" }), &theirs),
        ec.token_with(json!({ "kid": "one" }), &ours),
        Signer::Secret(rsa.pem()).token_with(json!({ "kid": "one" }), &ours),
    ]);
    let mut unknown: Vec<String> = unknown_names.iter().map(|hint| foreign(&ours, hint.clone())).collect();
    unknown.extend([
        ec.token_with(json!({ "kid": "encryption" }), &ours),
        shared.token_with(json!({ "kid": "four" }), &ours),
    ]);
    for path in addresses(&daemon, "job").await {
        for (signer, kid) in [(&rsa, "one"), (&ec, "two"), (&ed, "three")] {
            assert_eq!(ask_with(&daemon, &path, &named(signer, kid)).await.status, 200, "{kid} {path}");
        }
        for token in &wrong {
            assert_eq!(refusal(&ask_with(&daemon, &path, token).await), (401, "auth.invalid".into()), "{path} {token}");
        }
    }
    for token in &unknown {
        is_kept_out(&daemon, token).await;
    }
    // without a name, the only key of its kind is meant
    assert_eq!(status(&daemon, &ed.token(&ours)).await, 200);
    assert!(elsewhere.asked().is_empty(), "{:?}", elsewhere.asked());
}

#[tokio::test]
async fn a_new_key_counts_at_once_on_every_address_and_streams_of_one_that_is_gone_end() {
    let (old, new) = (Signer::ec(), Signer::ed());
    let web = key_server(&[old.jwk("old")]).await;
    let daemon = with_keys_of(&web, &[("auth.recheck", "4s")]).await;
    let open =
        async |token: &str| Stream::open(daemon.http, &stream_path("job"), &[("Authorization", &bearer(token))]).await;
    let mut first = open(&named(&old, "old")).await;
    assert_eq!(first.event().await.number(), 0);
    assert_eq!(status(&daemon, &named(&new, "new")).await, 401);
    let both = set(&[old.jwk("old"), new.jwk("new")]);
    web.set(move |_| both.clone());
    let mut second = open(&named(&new, "new")).await;
    assert_eq!(second.event().await.number(), 0);
    // both count, and a read that brings nothing new ends nothing
    is_answered(&daemon, &named(&old, "old"), 200).await;
    is_answered(&daemon, &named(&new, "new"), 200).await;
    daemon.write("job", 1..2).await;
    assert_eq!((first.event().await.number(), second.event().await.number()), (1, 1));
    let only = set(&[new.jwk("new")]);
    web.set(move |_| only.clone());
    let told = first.rest().await;
    assert!(told.len() == 1 && told[0].is("stream.bye"), "{told:?}");
    assert_eq!(told[0].json()["reason"], "revoked");
    is_kept_out(&daemon, &named(&old, "old")).await;
    is_answered(&daemon, &named(&new, "new"), 200).await;
    daemon.write("job", 2..3).await;
    assert_eq!(second.event().await.number(), 2);
}

#[tokio::test]
async fn invented_key_names_cause_a_handful_of_reads_whatever_address_they_come_to() {
    let signer = Signer::ec();
    let web = key_server(&[signer.jwk("one")]).await;
    let daemon = with_keys_of(&web, &[]).await;
    assert_eq!(status(&daemon, &named(&signer, "one")).await, 200);
    assert_eq!(status(&daemon, &named(&signer, "invented")).await, 401);
    let began = Instant::now();
    for round in 0..20 {
        is_kept_out(&daemon, &named(&signer, &format!("invented-{round}"))).await;
    }
    // Five at once, one more after each ten seconds, one at the start, and one each thirty seconds that nobody asks for.
    let most = 7 + began.elapsed().as_secs() / 10 + began.elapsed().as_secs() / 30;
    assert!(web.asked().len() as u64 <= most, "{} reads", web.asked().len());
    is_answered(&daemon, &named(&signer, "one"), 200).await;
}

#[tokio::test]
async fn a_new_key_is_never_refused_for_good_because_others_have_used_up_the_reads_by_invented_names() {
    let (old, new) = (Signer::ec(), Signer::ed());
    let web = key_server(&[old.jwk("old")]).await;
    let daemon = with_keys_of(&web, &[("auth.recheck", "10m")]).await;
    eventually("the reads to be used up", async || {
        let invented = named(&old, &format!("invented-{}", web.asked().len()));
        (status(&daemon, &invented).await == 503).then_some(())
    })
    .await;
    let both = set(&[old.jwk("old"), new.jwk("new")]);
    web.set(move |_| both.clone());
    comes_to_count(&daemon, &named(&new, "new")).await;
    is_answered(&daemon, &named(&old, "old"), 200).await;
}

#[tokio::test]
async fn a_key_that_comes_while_the_set_cannot_be_read_is_refused_for_now_and_that_is_said_once() {
    let (old, new) = (Signer::ec(), Signer::ed());
    let web = key_server(&[old.jwk("old")]).await;
    let daemon = with_keys_of(&web, &[("auth.recheck", "2s")]).await;
    assert_eq!(status(&daemon, &named(&old, "old")).await, 200);
    let (authorization, path) = (bearer(&named(&new, "new")), "/runner-jobs/job/events");
    let elsewhere = Reply::with_header(302, &format!("Location: {}", web.url("/elsewhere")));
    for reply in [Reply::status(500), Reply::body("<html>"), set(&[]), elsewhere] {
        let (before, shown) = (web.asked().len(), format!("{reply:?}"));
        web.set(move |_| reply.clone());
        // The one that is on its way may have asked before.
        eventually("another two reads", async || (web.asked().len() >= before + 2).then_some(())).await;
        let answer = request(daemon.http, "GET", path, &[("Authorization", &authorization)], b"").await;
        assert_eq!(refusal(&answer), (503, "auth.unavailable".into()), "{shown}");
        assert!(answer.header("Retry-After").is_some(), "{shown}");
        is_answered(&daemon, &named(&old, "old"), 200).await;
    }
    daemon.logs_times("the key set of auth.jwt.jwks_url cannot be read", 1).await;
    let only = set(&[new.jwk("new")]);
    web.set(move |_| only.clone());
    comes_to_count(&daemon, &named(&new, "new")).await;
    daemon.logs_times("the key set of auth.jwt.jwks_url can be read again", 1).await;
    daemon.logs_times("the key set of auth.jwt.jwks_url cannot be read", 1).await;
}

#[tokio::test]
async fn each_of_two_keys_of_one_name_vouches_for_its_own_tokens() {
    let (one, other, stranger) = (Signer::ec(), Signer::ec(), Signer::ec());
    let web = key_server(&[one.jwk("key"), other.jwk("key")]).await;
    let daemon = with_keys_of(&web, &[]).await;
    is_answered(&daemon, &named(&one, "key"), 200).await;
    is_answered(&daemon, &named(&other, "key"), 200).await;
    is_answered(&daemon, &named(&stranger, "key"), 401).await;
}

#[tokio::test]
async fn a_key_set_that_cannot_be_read_keeps_the_last_good_one_and_none_at_all_can_pass() {
    let signer = Signer::ec();
    let elsewhere = key_server(&[signer.jwk("one")]).await;
    let bad = [
        Reply::status(500),
        Reply::Silence,
        Reply::with_header(302, &format!("Location: {}", elsewhere.url("/keys"))),
        Reply::body("x".repeat(2 << 20)),
        Reply::body("no JSON"),
        set(&[]),
    ];
    let web = Web::start(|_: &Asked| Reply::status(503)).await;
    // a second to answer: a start does not wait for it
    let daemon = with_keys_of(&web, &[("auth.recheck", "2s")]).await;
    let token = named(&signer, "one");
    for path in addresses(&daemon, "job").await {
        let headers = [("Authorization", bearer(&token)), ("Accept", "application/json".into())];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        let answer = request(daemon.http, "GET", &path, &headers, b"").await;
        assert_eq!(refusal(&answer), (503, "auth.unavailable".into()), "{path}");
        assert!(answer.header("Retry-After").is_some(), "{path}");
        if path.contains("/stream") {
            let mut stream = Stream::open(daemon.http, &path, &headers[..1]).await;
            assert_eq!(stream.head.status, 200, "{path}");
            let told = stream.rest().await;
            assert!(told.len() == 1 && told[0].is("stream.error") && told[0].retry.is_some(), "{path}: {told:?}");
            let said = told[0].json();
            assert_eq!((&said["code"], &said["retryable"]), (&"auth.unavailable".into(), &true.into()), "{path}");
        }
    }

    let good = set(&[signer.jwk("one")]);
    web.set(move |_| good.clone());
    eventually("the keys", async || (status(&daemon, &token).await == 200).then_some(())).await;
    is_answered(&daemon, &token, 200).await;
    let mut stream = Stream::open(daemon.http, &stream_path("job"), &[("Authorization", &bearer(&token))]).await;
    assert_eq!(stream.event().await.number(), 0);
    for (number, reply) in (1..).zip(bad) {
        let before = web.asked().len();
        let shown = format!("{reply:?}").chars().take(80).collect::<String>();
        web.set(move |_| reply.clone());
        eventually(&format!("another read: {shown}"), async || (web.asked().len() > before).then_some(())).await;
        is_answered(&daemon, &token, 200).await;
        daemon.write("job", number..number + 1).await;
        assert_eq!(stream.event().await.number(), number, "{shown}");
    }
    assert!(elsewhere.asked().is_empty(), "a redirect was followed");
}

#[tokio::test]
async fn a_set_that_is_slow_to_come_delays_only_tokens_that_need_it() {
    let (known, new) = (Signer::ec(), Signer::ed());
    let web = key_server(&[known.jwk("known")]).await;
    let daemon = with_keys_of(&web, &[("auth.recheck", "10m")]).await;
    assert_eq!(status(&daemon, &named(&known, "known")).await, 200);
    let both = set(&[known.jwk("known"), new.jwk("new")]);
    let late = Reply::Late(Duration::from_secs(1), Box::new(both));
    web.set(move |_| late.clone());
    let before = web.asked().len();
    let token = named(&new, "new");
    tokio::join!(is_answered(&daemon, &token, 200), async {
        eventually("the read to begin", async || (web.asked().len() > before).then_some(())).await;
        for _ in 0..4 {
            is_answered(&daemon, &named(&known, "known"), 200).await;
        }
    });
    assert_eq!(web.asked().len(), before + 1);
}

#[tokio::test]
async fn a_public_key_as_a_secret_or_a_file_that_is_no_public_key_ends_the_start_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a directory");
    let key = Signer::ed();
    let private = include_str!("../../support/rsa-key.pem");
    let file = |name: &str, text: &str| keep(&folder, name, text);
    let (pem, secret_file) = (key.pem(), file("secret", &key.pem()));
    let jwk = key.jwk("one").to_string();
    let escaped = pem.replace('\n', "\\n");
    let (none, hidden, missing) = (file("none", "hunter2"), file("hidden", private), "/no/such/key.pem".to_string());
    let run_with = async |settings: &[(&str, &str)]| {
        let path = folder.path().join("jobs.db").display().to_string();
        let base = [
            ("http.listen", "127.0.0.1:0"),
            ("admin.listen", "127.0.0.1:0"),
            ("source.sqlite.path", path.as_str()),
            ("auth.mode", "jwt"),
        ];
        let all = [&base[..], settings];
        let output = run(&["serve"], &all.concat()).await;
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (setting, code, part) in [
        (("auth.jwt.secret", pem.as_str()), 2, "auth.jwt.key_file"),
        (("auth.jwt.secret", &escaped), 2, "auth.jwt.key_file"),
        (("auth.jwt.secret", &jwk), 2, "auth.jwt.key_file"),
        (("auth.jwt.secret_file", &secret_file), 2, "auth.jwt.key_file"),
        (("auth.jwt.key_file", &none), 1, "BEGIN PUBLIC KEY"),
        (("auth.jwt.key_file", &hidden), 1, "-pubout"),
        (("auth.jwt.key_file", &missing), 1, "/no/such/key.pem"),
        (("auth.jwt.jwks_url", "ldap://host/x"), 2, "https://"),
        (("auth.jwt.cookie", "a b"), 2, "auth.jwt.secret"),
    ] {
        let (status, said) = run_with(&[setting]).await;
        assert_eq!(status, Some(code), "{said}");
        assert!(said.contains(part) && said.contains(setting.0.trim_end_matches("_file")), "{part}: {said}");
        assert!(!said.contains(pem.lines().nth(1).expect("base64")) && !said.contains("ldap"), "{said}");
    }
    let (status, said) =
        run_with(&[("auth.jwt.secret", super::SECRET), ("auth.jwt.jwks_url", "https://x.example/")]).await;
    assert!(status == Some(2) && said.contains("exactly one"), "{said}");
    // a key that nobody uses would leave the door open
    let (status, said) = run_with(&[("auth.mode", "none"), ("auth.jwt.secret", super::SECRET)]).await;
    assert!(status == Some(2) && said.contains("auth.mode"), "{said}");
    let (status, said) = run_with(&[("auth.mode", "jtw")]).await;
    assert!(status == Some(2) && ["`none`", "`jwt`", "`forward`"].iter().all(|mode| said.contains(mode)), "{said}");
}

#[tokio::test]
async fn whatever_weakens_who_may_watch_is_said_at_every_start() {
    let mut daemon = with_tokens(&[("auth.jwt.secret", "sixteen bytes, no more")]).await;
    daemon.logs_times("auth.jwt.secret", 1).await;
    daemon.kill();
    daemon.restart().await;
    daemon.logs_times("auth.jwt.secret", 2).await;
    let strong = with_tokens(&[]).await;
    assert!(!strong.log().contains("less safe"), "{}", strong.log());
}

#[tokio::test]
async fn a_key_set_behind_an_authority_of_ones_own_counts_where_the_settings_name_that_authority() {
    let authority = Authority::new("An authority of the house");
    let folder = tempfile::tempdir().expect("a folder");
    let file = keep(&folder, "authority.pem", &authority.pem());
    let signer = Signer::ec();
    let reply = set(&[signer.jwk("one")]);
    let web = Web::start_tls(&authority, move |_| reply.clone()).await;
    let url = format!("https://{}/keys", web.address);
    let with = async |root_cert: &str| {
        let settings =
            [("auth.jwt.jwks_url", url.as_str()), ("auth.jwt.issuer", ISSUER), ("auth.root_cert", root_cert)];
        let daemon = with_tokens(&settings).await;
        daemon.write("job", 0..1).await;
        let status = status(&daemon, &named(&signer, "one")).await;
        (status, daemon)
    };
    assert_eq!(with(&file).await.0, 200);
    let (status, _) = with("").await;
    assert_eq!(status, 503, "nobody of the public authorities has signed it");
    assert_eq!(web.asked().len(), 1, "the key set goes to nobody else, and nothing to it");
}
