//! Sending events in: what is bad stores nothing, and says why.

use crate::limits::refusals;
use crate::support::Daemon;
use crate::support::http::request;
use serde_json::{Value, json};

const PATH: &str = "/runner-jobs/job/events";

#[tokio::test]
async fn bad_ingest_of_every_kind_gets_a_4xx_with_a_code_and_stores_nothing() {
    let daemon = Daemon::with(&[("http.max_body", "64KiB")]).await;
    let long = "x".repeat(201);
    let deep = format!("{{\"type\":\"x\",\"payload\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    let bodies: Vec<(u16, &str, Vec<u8>)> = vec![
        (400, "request.json", b"".to_vec()),
        (400, "request.json", b"{".to_vec()),
        (400, "request.json", b"{\"type\":\"x\"} {}".to_vec()),
        (400, "request.json", b"\xff\xfe".to_vec()),
        (400, "request.json", b"{\"type\":\"x\",\"payload\":{\"a\":NaN}}".to_vec()),
        (422, "ingest.event", b"null".to_vec()),
        (422, "ingest.event", b"7".to_vec()),
        (422, "ingest.event", b"{}".to_vec()),
        (422, "ingest.event", b"[]".to_vec()),
        (422, "ingest.event", json!({ "type": 7 }).to_string().into()),
        (422, "ingest.event", json!({ "type": "" }).to_string().into()),
        (422, "ingest.event", json!({ "type": long }).to_string().into()),
        (422, "ingest.event", json!({ "type": "a\nid: 7" }).to_string().into()),
        (422, "ingest.event", json!({ "type": "stream.complete" }).to_string().into()),
        (422, "ingest.event", json!({ "type": "x", "id": "" }).to_string().into()),
        (422, "ingest.event", json!({ "type": "x", "id": long }).to_string().into()),
        (422, "ingest.event", json!({ "type": "x", "id": 7 }).to_string().into()),
        (422, "ingest.event", json!({ "type": "x", "stepId": "\u{0}" }).to_string().into()),
        (422, "ingest.event", json!({ "type": "x", "actor": [] }).to_string().into()),
        (422, "ingest.event", json!({ "type": "x", "timestamp": "yesterday" }).to_string().into()),
        (422, "ingest.event", json!({ "type": "x", "jobId": "other" }).to_string().into()),
        (422, "ingest.event", json!([{ "type": "x" }, { "type": "x" }, { "type": "" }]).to_string().into()),
        (422, "ingest.event", json!([{ "type": "x" }, 7]).to_string().into()),
        (422, "ingest.event", json!(["x", 1, null, null, null, null]).to_string().into()),
        (422, "ingest.event", json!([["x", 1, null, null, null, null]]).to_string().into()),
        (413, "request.too_large", json!({ "type": "x", "payload": "x".repeat(70_000) }).to_string().into()),
    ];
    for (status, code, body) in &bodies {
        let headers = [("Content-Type", "application/json")];
        let answer = request(daemon.http, "POST", PATH, &headers, body).await;
        let shown = String::from_utf8_lossy(&body[..body.len().min(100)]).into_owned();
        assert_eq!((answer.status, answer.code().as_str()), (*status, *code), "{shown}: {}", answer.text());
    }
    daemon.metric_is(&refusals("body"), 1.0).await;
    // nested beyond what any reader takes: refused, one way or the other
    let answer = request(daemon.http, "POST", PATH, &[("Content-Type", "application/json")], deep.as_bytes()).await;
    assert!(matches!(answer.status, 400 | 422), "{answer:?}");
    for kind in ["text/plain", "application/x-www-form-urlencoded", ""] {
        let answer = request(daemon.http, "POST", PATH, &[("Content-Type", kind)], b"{\"type\":\"x\"}").await;
        assert_eq!((answer.status, answer.code().as_str()), (415, "request.media_type"), "{kind:?}");
    }
    let answer = daemon.send("POST", &format!("/runner-jobs/{long}/events"), &json!({ "type": "x" })).await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "request.job_id"));

    assert_eq!(daemon.get(PATH).await.code(), "job.not_found");
    let stored: i64 =
        sqlx::query_scalar("SELECT count(*) FROM job_events").fetch_one(&mut daemon.rows().await).await.expect("count");
    assert_eq!(stored, 0);
    // The case of a media type means nothing (RFC 9110, section 8.3.1).
    for kind in ["APPLICATION/JSON", "Application/Json; charset=UTF-8"] {
        let answer = request(daemon.http, "POST", PATH, &[("Content-Type", kind)], b"{\"type\":\"x\"}").await;
        assert_eq!(answer.status, 201, "{kind:?}");
    }
}

#[tokio::test]
async fn a_bad_status_gets_a_4xx_with_a_code_and_changes_nothing() {
    let daemon = Daemon::start().await;
    daemon.set_status("job", "QUEUED").await;
    let bad = [
        json!({}),
        json!({ "status": "DONE" }),
        json!({ "status": 1 }),
        json!({ "status": "RUNNING", "x": 1 }),
        json!([]),
    ];
    for body in bad {
        let answer = daemon.send("PUT", "/runner-jobs/job", &body).await;
        assert_eq!((answer.status, answer.code().as_str()), (422, "ingest.status"), "{body}");
    }
    assert_eq!(daemon.get("/runner-jobs").await.json()["jobs"][0]["status"], "QUEUED");
}

#[tokio::test]
async fn any_json_is_a_payload_and_comes_back_as_it_was_spelt() {
    let daemon = Daemon::start().await;
    let payloads =
        ["1.50", "\"a\\u0000b\"", "null", "[1, [2]]", "{\"a\" : 1e400}", "123456789012345678901234567890", "true"];
    let mut accepted = Vec::new();
    for payload in payloads {
        let body = format!("{{\"type\":\"x\",\"payload\":{payload}}}");
        let answer = request(daemon.http, "POST", PATH, &[("Content-Type", "application/json")], body.as_bytes()).await;
        assert!(matches!(answer.status, 201 | 422), "{payload}: {answer:?}");
        if answer.status == 201 {
            accepted.push(payload);
        }
    }
    assert!(accepted.len() >= 6, "{accepted:?}");
    for (message, payload) in daemon.stream("job").await.take(accepted.len()).await.iter().zip(accepted) {
        let data = message.data.as_deref().expect("data");
        assert!(data.ends_with(&format!("\"payload\":{payload}}}")), "{data}");
    }
}

#[tokio::test]
async fn who_has_no_token_may_not_write_and_nobody_may_where_ingest_is_off() {
    let daemon = Daemon::with(&[("ingest.token", "hunter2-secret")]).await;
    let event = b"{\"type\":\"x\"}";
    for wrong in ["", "Bearer hunter2-secre", "Bearer hunter2-secreT", "Basic hunter2-secret"] {
        let headers = [("Content-Type", "application/json"), ("Authorization", wrong)];
        let answer = request(daemon.http, "POST", PATH, &headers, event).await;
        assert_eq!((answer.status, answer.code().as_str()), (401, "ingest.token"), "{wrong:?}");
        assert_eq!(
            request(daemon.http, "PUT", "/runner-jobs/job", &headers, b"{\"status\":\"FAILED\"}").await.status,
            401
        );
    }
    let headers = [("Content-Type", "application/json"), ("Authorization", "Bearer hunter2-secret")];
    assert_eq!(request(daemon.http, "POST", PATH, &headers, event).await.status, 201);
    assert!(!daemon.log().contains("hunter2"));

    let reader = Daemon::with(&[("ingest.enabled", "false")]).await;
    let answer = reader.send("POST", PATH, &Value::Null).await;
    assert_eq!((answer.status, answer.code().as_str()), (403, "ingest.disabled"));
}

#[tokio::test]
async fn requests_that_send_something_in_are_counted_by_their_outcome() {
    let daemon = Daemon::start().await;
    let event = json!({ "type": "x", "id": "e-1" });
    for (method, path, body, status) in [
        ("POST", PATH, &event, 201),
        ("POST", PATH, &event, 200),
        ("POST", PATH, &json!({ "type": "" }), 422),
        ("POST", "/runner-jobs/a%0Ab/events", &event, 400),
        ("PUT", "/runner-jobs/job", &json!({ "status": "RUNNING" }), 200),
        ("PUT", "/runner-jobs/job", &json!({ "status": "DONE" }), 422),
    ] {
        assert_eq!(daemon.send(method, path, body).await.status, status, "{method} {path} {body}");
    }
    for (outcome, count) in [("appended", 1.0), ("repeated", 1.0), ("status", 1.0), ("refused", 3.0)] {
        let name = format!("jobcast_ingest_total{{outcome=\"{outcome}\"}}");
        daemon.metric_is(&name, count).await;
    }
}
