//! TLS: who is let in, half-open handshakes, certificates that change and that cannot be used, and streams of HTTP/1.1.

use crate::support::daemon::{finish, jobcast, numbered, run, stream_path};
use crate::support::http::{encode, raw};
use crate::support::http2::Secure;
use crate::support::tls::{Authority, keep};
use crate::support::{Daemon, PATIENCE, Stream, address, eventually, numbers};
use futures_util::future::join_all;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::json;
use std::io;
use std::process::Stdio;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// A stream over HTTP/1.1 and TLS.
async fn stream(secure: &Secure, job: &str) -> io::Result<Stream> {
    let mut link = secure.authority.connect(secure.daemon.http, "http/1.1").await?;
    let accept = [("Accept", "text/event-stream")];
    link.write_all(&encode("GET", &stream_path(job), &accept, b"")).await?;
    Stream::on(link).await
}

#[tokio::test]
async fn streams_of_http_1_1_live_under_tls_as_in_the_clear() {
    let settings = [("stream.heartbeat", "100ms"), ("shutdown.grace", "0s"), ("shutdown.drain", "2s")];
    let mut secure = Secure::start(&settings).await;
    let client = secure.client().await;
    client.write("job", 0..3).await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(stream(&secure, "job").await.expect("a stream"));
    }
    secure.daemon.has_subscribers(20).await;
    for stream in &mut streams {
        assert_eq!(stream.head.status, 200);
        assert_eq!(numbers(&stream.take(3).await), [0, 1, 2]);
        assert!(stream.next().await.expect("a heartbeat").data.is_none());
    }
    client.write("job", 3..200).await;
    for stream in &mut streams {
        assert_eq!(numbers(&stream.take(197).await), Vec::from_iter(3..200));
    }
    secure.daemon.signal("TERM");
    for rest in join_all(streams.iter_mut().map(Stream::rest)).await {
        assert_eq!(rest.last().expect("a farewell").json()["reason"], "drain");
    }
    assert!(secure.daemon.exit().await.success());
}

#[tokio::test]
async fn a_reader_that_stops_under_tls_is_closed_as_slow_and_costs_the_others_nothing() {
    let secure = Secure::start(&[("stream.write_timeout", "2s")]).await;
    let client = secure.client().await;
    client.write("job", 0..1).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let socket = socket.connect(secure.daemon.http).await.expect("connect");
    let mut stalled = secure.authority.connect_on(socket, "http/1.1").await.expect("a handshake");
    stalled.write_all(&encode("GET", &stream_path("job"), &[], b"")).await.expect("ask");
    let mut reader = stream(&secure, "job").await.expect("a stream");
    secure.daemon.has_subscribers(2).await;
    let write = async {
        for first in (1..1500).step_by(50) {
            let big = |number| {
                let mut event = numbered(number);
                event["payload"]["line"] = "x".repeat(2000).into();
                event
            };
            client.append("job", (first..first + 50).map(big).collect()).await;
        }
    };
    let ((), seen) = tokio::join!(write, reader.take(1501));
    assert_eq!(numbers(&seen), Vec::from_iter(0..1501));
    secure.daemon.has_subscribers(1).await;
    secure.daemon.metric_is("jobcast_disconnects_total{reason=\"slow\"}", 1.0).await;
}

#[tokio::test]
async fn handshakes_that_stop_halfway_are_ended_and_keep_nobody_out() {
    let secure = Secure::start(&[("http.header_timeout", "2s")]).await;
    let to = secure.daemon.http;
    // The beginning of a ClientHello, whose record would have 512 bytes.
    let beginnings: [&[u8]; 3] = [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"];
    let half_open = join_all((0..300).map(async |number| {
        let mut socket = TcpStream::connect(to).await.expect("connect");
        socket.write_all(beginnings[number % 3]).await.expect("a beginning");
        socket
    }))
    .await;
    secure.client().await.write("job", 0..1).await;
    for mut socket in half_open {
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, socket.read_to_end(&mut rest)).await.expect("the end in time");
        assert!(rest.len() < 100, "{rest:?}");
    }
    secure.client().await.write("job", 1..2).await;
    secure.daemon.metric_is("jobcast_tls_handshakes_total{outcome=\"timed_out\"}", 300.0).await;
}

#[tokio::test]
async fn who_speaks_the_wrong_protocol_gets_a_plain_answer() {
    let secure = Secure::start(&[]).await;
    let answer = raw(secure.daemon.http, &encode("GET", "/", &[], b"")).await;
    let answer = String::from_utf8(answer).expect("text");
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n") && answer.contains("HTTPS"), "{answer}");
    let plain = Daemon::start().await;
    let answer = raw(plain.http, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));
    // a protocol that is not offered
    assert!(secure.authority.connect(secure.daemon.http, "smtp").await.is_err());
}

#[tokio::test]
async fn a_bad_pair_of_files_stops_the_start_with_its_mend() {
    let (authority, folder) = (Authority::new("An authority"), tempfile::tempdir().expect("a directory"));
    let (certificate, key) = authority.certify("localhost");
    let cert = keep(&folder, "cert.pem", &certificate.pem());
    let key = keep(&folder, "key.pem", &key.serialize_pem());
    let other = keep(&folder, "other.pem", &authority.certify("localhost").1.serialize_pem());
    let junk = keep(&folder, "junk.pem", "-----BEGIN CERTIFICATE-----\nnot so\n-----END CERTIFICATE-----\n");
    let away = folder.path().join("away.pem").display().to_string();
    let database = folder.path().join("jobs.db").display().to_string();
    for (cert, key, said) in [
        (&*cert, "", ["http.tls.key", "must name a file"]),
        ("", &*key, ["http.tls.cert", "must name a file"]),
        (&*away, &*key, ["http.tls.cert", "cannot be read"]),
        (&*cert, &*away, ["http.tls.key", "cannot be read"]),
        (&*key, &*key, ["http.tls.cert", "holds no certificate"]),
        (&*junk, &*key, ["http.tls.cert", "holds no certificate"]),
        (&*cert, &*cert, ["http.tls.key", "holds no private key"]),
        (&*cert, &*other, ["http.tls.key", "is not the key of the first certificate"]),
    ] {
        let settings = [
            ("http.tls.cert", cert),
            ("http.tls.key", key),
            ("http.listen", "127.0.0.1:0"),
            ("admin.listen", "127.0.0.1:0"),
            ("source.sqlite.path", &database),
        ];
        let output = run(&["serve"], &settings).await;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{cert} and {key}: {stderr}");
        for part in said {
            assert!(stderr.contains(part), "{part} is missing in {stderr}");
        }
        assert!(!stderr.contains("PRIVATE"), "{stderr}");
    }
}

#[tokio::test]
async fn a_certificate_that_has_run_out_is_served_with_a_warning() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut params = CertificateParams::new(vec!["localhost".into()]).expect("parameters");
    params.not_after = date_time_ymd(2020, 1, 1);
    let key = KeyPair::generate().expect("a key");
    let cert = keep(&folder, "cert.pem", &params.self_signed(&key).expect("a certificate").pem());
    let key = keep(&folder, "key.pem", &key.serialize_pem());
    let daemon = Daemon::with(&[("http.tls.cert", &cert), ("http.tls.key", &key)]).await;
    daemon.logs(&["has run out"]).await;
    daemon.metric_is("jobcast_tls_certificate_expiry_timestamp_seconds", 1_577_836_800.0).await;
}

#[tokio::test]
async fn a_new_pair_is_used_without_a_restart_and_a_bad_one_is_not() {
    let secure = Secure::start(&[]).await;
    let replace = |name: &str, content: &str| {
        let new = keep(&secure.folder, "new.pem", content);
        std::fs::rename(new, secure.folder.path().join(name)).expect("a rename");
    };
    let connects = async |authority: &Authority| authority.connect(secure.daemon.http, "http/1.1").await.is_ok();
    assert!(connects(&secure.authority).await);
    let mut stream = stream_after_write(&secure).await;

    let (next, unrelated) = (Authority::new("The next authority"), Authority::new("Another"));
    let (certificate, key) = next.certify("localhost");
    replace("cert.pem", &certificate.pem());
    replace("key.pem", &key.serialize_pem());
    eventually("the next certificate", async || connects(&next).await.then_some(())).await;
    assert!(!connects(&secure.authority).await);

    replace("cert.pem", &unrelated.certify("localhost").0.pem());
    secure.daemon.logs(&["is not the key of the first certificate"]).await;
    assert!(connects(&next).await);
    let client = crate::support::http2::Client::connect(secure.daemon.http, &next).await;
    client.write("job", 1..2).await;
    assert_eq!(stream.event().await.number(), 1);
}

async fn stream_after_write(secure: &Secure) -> Stream {
    secure.client().await.write("job", 0..1).await;
    let mut stream = stream(secure, "job").await.expect("a stream");
    assert_eq!(stream.event().await.number(), 0);
    stream
}

#[tokio::test]
async fn the_commands_speak_https_with_an_authority_of_ones_own() {
    let secure = Secure::start(&[]).await;
    let client = secure.client().await;
    client.write("job", 0..2).await;
    let done = client.request("PUT", "/runner-jobs/job", json!({ "status": "COMPLETED" }).to_string().as_bytes()).await;
    assert_eq!(done.expect("an answer").status(), 200);
    let ca = keep(&secure.folder, "ca.pem", &secure.authority.pem());
    let url = format!("https://localhost:{}", address::localhost_to(secure.daemon.http).await);
    let tail = ["tail", "job", "--json", "--url", &url];
    let given = run(&[&tail[..], &["--ca", &ca]].concat(), &[]).await;
    assert!(given.status.success(), "{given:?}");
    assert_eq!(String::from_utf8_lossy(&given.stdout).matches("step.output").count(), 2, "{given:?}");
    let mut command = jobcast(&tail, &[]);
    command.env("SSL_CERT_FILE", &ca).stdout(Stdio::piped()).stderr(Stdio::piped());
    assert!(finish(&mut command).await.status.success());
    // any answer at all says that TLS works: /readyz is not served there
    let probe = run(&["healthcheck", "--url", &url, "--ca", &ca], &[]).await;
    assert!(String::from_utf8_lossy(&probe.stderr).contains("404"), "{probe:?}");
    let untrusted = run(&["healthcheck", "--url", &url], &[]).await;
    assert!(String::from_utf8_lossy(&untrusted.stderr).contains("UnknownIssuer"), "{untrusted:?}");
    let away = run(&["healthcheck", "--url", &url, "--ca", "/nowhere.pem"], &[]).await;
    assert!(String::from_utf8_lossy(&away.stderr).contains("/nowhere.pem"), "{away:?}");
}
