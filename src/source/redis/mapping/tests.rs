//! Entries of other people's products, and entries of anything at all.

use super::super::entry::EntryId;
use super::*;
use crate::config::TimestampUnit;
use proptest::prelude::*;
use serde_json::{Value, json};

type Fields<'a> = &'a [(&'a str, &'a [u8])];

const AT: EntryId = EntryId { ms: 1500, seq: 2 };

fn mapping(change: impl FnOnce(&mut config::Redis)) -> Mapping {
    let mut settings = config::Redis::default();
    change(&mut settings);
    Mapping::new(&settings).expect("settings")
}

fn mapped(mapping: &Mapping, fields: Fields) -> Mapped {
    let fields = fields.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()));
    mapping.read(&Entry::of(AT, fields.collect()), &"job".parse().expect("an id"))
}

fn payload(mapping: &Mapping, fields: Fields) -> (Value, Vec<Part>) {
    let event = mapped(mapping, fields).event;
    (serde_json::from_str(event.payload.as_json()).expect("JSON"), event.unreadable)
}

#[test]
fn a_part_that_cannot_be_read_is_named_and_hurts_no_other() {
    let own = mapping(|_| {});
    for (field, part) in [
        ("id", Part::Id),
        ("stepId", Part::StepId),
        ("actor", Part::Actor),
        ("payload", Part::Payload),
        ("timestamp", Part::Timestamp),
    ] {
        assert_eq!(mapped(&own, &[("type", b"x"), (field, b"\xff7")]).event.unreadable, [part], "{field}");
    }
    let odd = mapped(&own, &[("type", b"\xffx"), ("payload", b"{\"n\":\"\xe9\"}"), ("actor", "é".as_bytes())]).event;
    assert_eq!((&*odd.kind, &odd.unreadable[..]), ("\u{fffd}x", &[Part::Type, Part::Payload][..]));
    assert_eq!((odd.payload.as_json(), odd.actor.as_deref()), ("{\"n\":\"\u{fffd}\"}", Some("é")));
    for time in ["soon", "999999999999999999999", "12026-11-26T14:00:00Z"] {
        let event = mapped(&own, &[("type", b"x"), ("timestamp", time.as_bytes())]).event;
        assert_eq!((event.timestamp, &event.unreadable[..]), (None, &[Part::Timestamp][..]), "{time}");
    }
    let beyond = Entry::of(EntryId { ms: u64::MAX, seq: 7 }, vec![]);
    let beyond = own.read(&beyond, &"job".parse().expect("an id")).event;
    assert_eq!((beyond.timestamp, &beyond.unreadable[..]), (None, &[Part::Timestamp][..]));
}

#[test]
fn an_entry_of_any_shape_is_an_event_and_nothing_in_it_is_left_out() {
    let own = mapping(|_| {});
    let event = mapped(&own, &[("note", b"42"), ("who", b"me")]).event;
    assert_eq!((&*event.id, &*event.kind), ("1500-2", "event"));
    assert_eq!(event.payload.as_json(), r#"{"note":"42","who":"me"}"#);
    assert_eq!(payload(&own, &[("type", b"x")]), (json!({}), vec![]));
    assert_eq!(payload(&own, &[("type", b"x"), ("payload", b"")]), (json!({}), vec![]));
    assert_eq!(payload(&own, &[("payload", b"[1, 2.50]")]).0, json!([1, 2.50]));
    assert_eq!(payload(&own, &[("payload", b"hello")]), (json!("hello"), vec![Part::Payload]));
}

#[test]
fn a_text_stays_a_text_whatever_it_looks_like() {
    let chunks = mapping(|to| to.fields.payload = "chunk".into());
    let named = mapping(|to| to.payload_kind = PayloadKind::Text);
    for text in ["Hel", "42", "true", "null", "", " ", "{\"a\":1}", "[DONE]", "\u{1f600}"] {
        assert_eq!(payload(&chunks, &[("chunk", text.as_bytes())]), (json!(text), vec![]));
        assert_eq!(payload(&named, &[("payload", text.as_bytes())]), (json!(text), vec![]));
    }
    assert_eq!(payload(&chunks, &[("chunk", b"\xffa")]), (json!("\u{fffd}a"), vec![Part::Payload]));
    assert_eq!(payload(&chunks, &[("other", b"1")]), (Value::Null, vec![]));
}

#[test]
fn fields_are_constants_lists_or_all_others() {
    let constant = mapping(|to| {
        to.fields.kind = "= token".into();
        to.fields.actor = "= model".into();
        to.fields.payload = PayloadColumns::Object(vec!["a".into(), "b".into(), "missing".into()]);
    });
    let event = mapped(&constant, &[("a", b"1"), ("b", b"x"), ("c", b"y")]).event;
    assert_eq!((&*event.kind, event.actor.as_deref()), ("token", Some("model")));
    assert_eq!(event.payload.as_json(), r#"{"a":"1","b":"x"}"#);
    let queue = mapping(|to| {
        to.fields.kind = "event".into();
        to.fields.payload = PayloadColumns::Row;
        to.types = [("completed".to_string(), "job.done".to_string())].into();
        to.final_types.completed = vec!["completed".into()];
    });
    let last = mapped(&queue, &[("event", b"completed"), ("jobId", b"7"), ("returnvalue", b"{}")]);
    assert_eq!((&*last.event.kind, last.end), ("job.done", Some(JobStatus::Completed)));
    assert_eq!(last.event.payload.as_json(), r#"{"jobId":"7","returnvalue":"{}"}"#);
}

#[test]
fn an_envelope_holds_the_event_and_the_fields_are_places_in_it() {
    let chat = mapping(|to| {
        to.envelope = "data".into();
        to.fields.id = "".into();
        to.fields.step_id = "/step/number".into();
    });
    let json = br#"{"type":"text-delta", "delta":"42","n":1.50,"big":12345678901234567890123,"step":{"number":3}}"#;
    let event = mapped(&chat, &[("data", json)]).event;
    assert_eq!((&*event.kind, event.step_id.as_deref(), &*event.id), ("text-delta", Some("3"), "1500-2"));
    assert_eq!(event.payload.as_json().as_bytes(), json, "as it is written");
    let part = mapping(|to| {
        to.envelope = "data".into();
        to.fields.payload = "/delta".into();
    });
    assert_eq!(payload(&part, &[("data", json)]), (json!("42"), vec![]));
    assert_eq!(payload(&part, &[("data", b"[DONE]")]), (json!("[DONE]"), vec![Part::Payload]));
    assert_eq!(mapped(&part, &[("data", b"7"), ("type", b"x")]).event.kind, "x", "an entry's own field");
    let outside = mapping(|to| to.envelope = "data".into());
    assert_eq!(payload(&outside, &[("other", b"x")]).0, json!({"other": "x"}));
}

#[test]
fn bytes_in_an_envelope_that_are_no_text_make_those_parts_unreadable_that_have_them_and_no_other() {
    let chat = |payload: &str| {
        let payload = payload.into();
        mapping(|to| {
            to.envelope = "data".into();
            to.fields.payload = payload;
        })
    };
    let data: &[u8] = b"{\"type\":\"t\",\"text\":\"caf\xe9\",\"n\":1,\"good\":\"caf\xc3\xa9\"}";
    let lossy = json!({ "type": "t", "text": "caf\u{fffd}", "n": 1, "good": "café" });
    assert_eq!(payload(&chat("*"), &[("data", data)]), (lossy, vec![Part::Payload]));
    assert_eq!(payload(&chat("text"), &[("data", data)]), (json!("caf\u{fffd}"), vec![Part::Payload]));
    assert_eq!(payload(&chat("good"), &[("data", data)]), (json!("café"), vec![]));
    let event = mapped(&chat("n"), &[("data", b"{\"type\":\"\xff\",\"id\":\"\xff\",\"n\":1}")]).event;
    assert_eq!(event.unreadable, [Part::Id, Part::Type]);
    // A writer may mean the sign itself.
    let meant = "{\"type\":\"t\",\"text\":\"\u{fffd}\"}".as_bytes();
    assert_eq!(payload(&chat("*"), &[("data", meant)]).1, vec![]);
}

#[test]
fn an_end_is_a_type_or_a_mark_and_a_value_inside_says_how() {
    let agent = mapping(|to| {
        to.final_types.completed = vec!["agent_runtime_end".into()];
        to.outcome = "/data/reason".into();
        to.statuses.failed = vec!["error".into()];
        to.statuses.cancelled = vec!["interrupted".into()];
    });
    for (reason, end) in
        [("error", JobStatus::Failed), ("interrupted", JobStatus::Cancelled), ("odd", JobStatus::Completed)]
    {
        let data = json!({ "reason": reason }).to_string();
        let entry = mapped(&agent, &[("type", b"agent_runtime_end"), ("data", data.as_bytes())]);
        assert_eq!(entry.end, Some(end));
    }
    assert_eq!(mapped(&agent, &[("type", b"step"), ("data", b"{\"reason\":\"error\"}")]).end, None);
    let done = mapping(|to| to.end_marker = "done".into());
    for (value, ends) in [("1", true), ("true", true), ("x", true), ("0", false), ("False", false), ("", false)] {
        assert_eq!(mapped(&done, &[("chunk", b"x"), ("done", value.as_bytes())]).end.is_some(), ends, "{value}");
    }
    let marked = mapping(|to| {
        to.envelope = "data".into();
        to.end_marker = "data = [DONE]".into();
    });
    let last = mapped(&marked, &[("data", b"[DONE]")]);
    assert_eq!((last.end, last.event.unreadable), (Some(JobStatus::Completed), vec![]));
    assert_eq!(mapped(&marked, &[("data", b"{}")]).end, None);
}

/// Names of settings and of fields, so that they meet.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-c/=*~]{0,4}".boxed(),
        Just("data".to_string()).boxed(),
        Just("/data/a".to_string()).boxed(),
        Just("type".to_string()).boxed(),
        Just("payload".to_string()).boxed(),
    ]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    let text = |text: &'static str| Just(text.as_bytes().to_vec()).boxed();
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..24).boxed(),
        any::<String>().prop_map(String::into_bytes).boxed(),
        "[{}\\[\\]\":,a0-9.e\\\\u-]{0,24}".prop_map(String::into_bytes).boxed(),
        text("{\"a\":{\"b\":[1,{\"c\":\"\\ud800\"}]},\"type\":null}"),
        text("{\"type\":\"x\",\"data\":{\"a\":1e999},\"payload\":\"{}\"}"),
        Just(b"[".repeat(5000)).boxed(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_entry_makes_its_job_fail_whatever_the_settings(
        names in prop::collection::vec(name(), 9),
        kind in prop::sample::select(vec![PayloadKind::Auto, PayloadKind::Json, PayloadKind::Text, PayloadKind::Bytes]),
        fields in prop::collection::vec((name().prop_map(String::into_bytes), value()), 0..6),
        ms in any::<u64>(),
    ) {
        let mapping = mapping(|to| {
            to.envelope = names[0].clone();
            to.fields.id = names[1].as_str().into();
            to.fields.kind = names[2].as_str().into();
            to.fields.timestamp = names[3].as_str().into();
            to.fields.payload = names[4].as_str().into();
            to.fields.step_id = names[5].as_str().into();
            to.end_marker = names[6].clone();
            to.outcome = names[7].clone();
            to.job_id_field = names[8].clone();
            to.payload_kind = kind;
            to.timestamp_unit = TimestampUnit::Auto;
        });
        let entry = Entry::of(EntryId { ms, seq: 0 }, fields);
        let event = mapping.read(&entry, &"job".parse().expect("an id")).event;
        prop_assert!(!event.id.is_empty());
        let json = serde_json::to_string(&event).expect("an envelope");
        let raw: Result<&serde_json::value::RawValue, _> = serde_json::from_str(&json);
        prop_assert!(raw.is_ok() && !json.contains('\n'), "{json}");
        let _ = (mapping.event_id(&entry), mapping.job_of(&entry));
    }
}
