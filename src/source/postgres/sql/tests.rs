//! Snapshots of all statements. After a wanted change, review the difference and write them anew with
//! `INSTA_UPDATE=always cargo test --release sql::tests`.

use super::super::position::{Advance, EndedXids, Floor, Key, KeyId, Position};
use super::super::tables::{Column, CursorScheme, Relation, RelationKind, RowOrder, Tables, XidSource};
use super::*;
use crate::config;
use crate::event::{JobId, JobStatus, Payload};
use crate::source::{Limit, NewEvent};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;

const DURABLE_XID: u64 = 690;
const LIMIT: Limit = Limit { events: 200, bytes: 65_536 };

fn job() -> JobId {
    "o'job".parse().expect("a job id")
}

fn column(name: &str, kind: &str, may_be_null: bool) -> Column {
    let (name, kind) = (name.into(), kind.into());
    Column { name, kind, may_be_null, has_default: may_be_null, is_unique: true, is_enum: false }
}

fn columns(more: &[Column]) -> Vec<Column> {
    let texts = ["id", "job_id", "step_id", "type", "actor"].map(|name| column(name, "text", false));
    let others = [column("timestamp", "timestamp with time zone", false), column("payload", "jsonb", false)];
    [&texts[..], &others, more].concat()
}

fn relation(name: &str, columns: Vec<Column>) -> Relation {
    Relation {
        name: name.into(),
        kind: RelationKind::Table,
        columns,
        has_other_life: false,
        counts_rows: false,
        has_end: false,
        tells_compression: true,
    }
}

fn tables(more: &[Column]) -> Tables {
    let jobs = relation("runner_jobs", vec![column("id", "text", false), column("status", "text", false)]);
    let events = relation("job_events", columns(more));
    Tables::resolve(&config::Postgres::default(), &events, Some(&jobs), true).expect("all columns")
}

/// Tables of each cursor scheme, and one that was migrated: rows from before have neither number nor transaction.
fn schemes() -> [(&'static str, Tables); 5] {
    let (xid, seq) = (column("xid", "xid8", false), column("seq", "bigint", false));
    let (late_xid, late_seq) = (column("xid", "xid8", true), column("seq", "bigint", true));
    [
        ("column_number", tables(&[xid.clone(), seq.clone()])),
        ("column_time", tables(&[xid])),
        ("system_number", tables(&[seq])),
        ("system_time", tables(&[])),
        ("migrated", tables(&[late_xid, late_seq])),
    ]
}

fn assert_statement(name: &str, sql: &str) {
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, sql);
    });
}

fn assert_in_each_scheme(name: &str, sql: impl Fn(&EventRows) -> String) {
    for (scheme, tables) in schemes() {
        assert_statement(&format!("{name}.{scheme}"), &sql(&tables.rows(tables.best)));
    }
}

fn key(scheme: CursorScheme) -> Key {
    match scheme.order {
        RowOrder::Number => Key::Number(58),
        RowOrder::Time => Key::Time { at: 1_764_000_000_000_000, id: KeyId::of("e-58") },
    }
}

fn ended(mark: u64, open: &[u64]) -> EndedXids {
    EndedXids::listed(mark, open.iter().copied().collect())
}

fn page_sql(rows: &EventRows, position: &Position, end: XidBound, published_by: Option<&Position>) -> String {
    page(rows.tables, DURABLE_XID, 4, &PageQuery { scope: Scope::of(&job(), LIMIT), position, end, published_by })
}

/// The position in the midst of a range.
fn within(mut before: Position, end: &EndedXids) -> Position {
    let key = key(before.scheme);
    before.advance(739, key, &Advance::Range(Arc::new(end.clone())));
    before
}

#[test]
fn the_page_statement_is_the_reviewed_one_at_every_kind_of_position() {
    assert_in_each_scheme("page_from_the_beginning", |rows| {
        let mut position = Position::beginning();
        position.adopt(rows.tables.best);
        page_sql(rows, &position, XidBound::OwnMark, None)
    });
    assert_in_each_scheme("page_within_a_range", |rows| {
        let (best, end) = (rows.tables.best, ended(740, &[]));
        let before = Position::new_settled(best, EndedXids::default(), BTreeMap::from([(741, 2)]));
        page_sql(rows, &within(before, &end), XidBound::Fixed(end), None)
    });
    for (scheme, tables) in [&schemes()[0], &schemes()[2]] {
        let (best, end) = (tables.best, ended(740, &[]).and([744, 746]));
        let before = Position::new_settled(best, ended(740, &[]).and([741]), BTreeMap::new());
        let sql = page_sql(&tables.rows(best), &within(before, &end), XidBound::Fixed(end), None);
        assert_statement(&format!("page_among_newer_rows.{scheme}"), &sql);
    }
    assert_in_each_scheme("page_of_published_rows", |rows| {
        let best = rows.tables.best;
        let position = Position::new_settled(best, ended(700, &[]), BTreeMap::new());
        let published = Position::new_settled(best, ended(745, &[740, 743]), BTreeMap::from([(746, 1)]));
        page_sql(rows, &position, XidBound::below(740), Some(&published))
    });
}

/// The tables in which the time may be null.
fn with_nullable_times(has_end: bool) -> Tables {
    let mut events = Relation { has_end, ..relation("job_events", columns(&[])) };
    events.columns.iter_mut().filter(|column| column.name == "timestamp").for_each(|time| time.may_be_null = true);
    Tables::resolve(&config::Postgres::default(), &events, None, true).expect("all columns")
}

#[test]
fn the_page_statement_above_a_floor_is_the_reviewed_one() {
    let before = |best, floor| {
        let ended = Position::new_settled(best, ended(740, &[735]).and([742]), BTreeMap::new());
        Position::new_settled(best, EndedXids::below(700), BTreeMap::new()).with_part_above(floor, &ended)
    };
    let (unnumbered, nullable) = (tables(&[column("seq", "bigint", true)]), with_nullable_times(false));
    let ([_, _, numbered, timed, _], job) = (&schemes(), job());
    let (number, time) = (Floor::Number(58), Floor::Time(1_764_000_000_000_000));
    for (scheme, tables, floor) in [
        ("system_number", &numbered.1, number),
        ("unnumbered", &unnumbered, number),
        ("system_time", &timed.1, time),
        ("nullable_time", &nullable, time),
    ] {
        let position = before(tables.best, floor);
        let scope = Scope { floor: Some(floor), reach_before: Some(60.0), ..Scope::of(&job, LIMIT) };
        let part = position.part_above();
        let query = PageQuery { scope, position: &part, end: XidBound::OwnMark, published_by: None };
        assert_statement(&format!("page_above_a_floor.{scheme}"), &page(tables, DURABLE_XID, 4, &query));
        let whole = page_sql(&tables.rows(tables.best), &position, XidBound::OwnMark, Some(&position));
        assert_statement(&format!("page_of_all_after_a_floor.{scheme}"), &whole);
    }
}

#[test]
fn a_floor_means_nothing_where_a_column_tells_the_transactions_and_where_there_is_nothing_that_it_is_of() {
    let schemes = schemes();
    let is_known = |scheme: usize, floor| schemes[scheme].1.rows(schemes[scheme].1.best).above(floor).is_some();
    let (number, time) = (Floor::Number(58), Floor::Time(58));
    assert_eq!([0, 1, 2, 3, 4].map(|scheme| is_known(scheme, number)), [false, false, true, false, false]);
    // A table that got numbers still knows those of times, which cursors from before speak of.
    assert_eq!([0, 1, 2, 3, 4].map(|scheme| is_known(scheme, time)), [false, false, true, true, false]);
    let old = CursorScheme { xids: XidSource::System, order: RowOrder::Time };
    assert!(schemes[4].1.rows(old).above(time).is_some(), "by a cursor from before the migration");
    let mut events = relation("job_events", columns(&[]));
    events.columns.iter_mut().filter(|column| column.name == "timestamp").for_each(|time| time.kind = "numeric".into());
    let fractions = Tables::resolve(&config::Postgres::default(), &events, None, true).expect("all columns");
    assert!(fractions.rows(fractions.best).look_column().is_none(), "no index serves them");
    let view = Relation { kind: RelationKind::View, ..relation("seen", columns(&[column("xmin", "xid", false)])) };
    let view = Tables::resolve(&config::Postgres::default(), &view, None, true).expect("all columns");
    assert!(view.events.keeps(number) && !view.events.keeps(time), "a view may make its times of anything");
}

#[test]
fn the_look_by_number_or_time_is_the_reviewed_one() {
    let by_status = BTreeMap::from([(None, vec!["o'job"])]);
    let query = |new_rows| ChangesQuery {
        jobs: vec!["o'job"],
        new_rows,
        by_status: by_status.clone(),
        ..ChangesQuery::default()
    };
    let of = |tables: &Tables, floors, block| {
        let query = query(NewRows::SinceAndAbove(700, floors, block));
        changes(&tables.rows(tables.best), DURABLE_XID, &query)
    };
    let numbers = vec![("o'job", Some(Floor::Number(58))), ("job\\\"2", None)];
    assert_statement("changes_by_number", &of(&schemes()[2].1, numbers, None));
    let times = |at| vec![("o'job", Some(Floor::Time(at))), ("job-2", Some(Floor::Number(58))), ("job-3", None)];
    assert_statement("changes_by_time", &of(&schemes()[3].1, times(1_764_000_000_000_000), None));
    assert_statement("changes_at_the_end", &of(&with_nullable_times(true), times(-1), Some(936)));
}

#[test]
fn where_the_time_may_be_null_both_parts_of_a_job_are_read_by_an_index() {
    let tables = with_nullable_times(false);
    let (job, rows, best) = (&job(), &tables.rows(tables.best), tables.best);
    let end = ended(740, &[]);
    let position = Position::new_settled(best, end.clone(), BTreeMap::new()).up_to_key(key(best));
    assert_statement("page_by_parts", &page_sql(rows, &position, XidBound::Fixed(end.clone()), None));
    assert_statement("key_from_end_by_parts", &key_from_end(rows, DURABLE_XID, job, Some(&end), 20));
}

#[test]
fn a_key_with_the_digest_of_a_long_id_is_looked_up_in_the_table() {
    let (_, tables) = &schemes()[3];
    let key = Key::Time { at: i64::MAX, id: KeyId::of("an id of more than sixteen bytes") };
    assert_statement("after_key_with_digest", &tables.rows(tables.best).after_key("job", &key));
}

#[test]
fn statements_on_many_jobs_are_the_reviewed_ones_in_every_scheme() {
    let (job, other) = (&job(), &"job-2".parse().expect("a job id"));
    let end = ended(745, &[740, 743]);
    for (name, settled) in [("pages_from_the_beginning", ended(0, &[])), ("pages_of_new_rows", ended(700, &[690]))] {
        assert_in_each_scheme(name, |rows| {
            let position = Position::new_settled(rows.tables.best, settled.clone(), BTreeMap::new());
            let query = ManyQuery {
                jobs: vec![job, other],
                position: &position,
                end: &end,
                limit: Limit { events: 32, ..LIMIT },
            };
            pages(rows.tables, DURABLE_XID, 4, &query)
        });
    }
    assert_in_each_scheme("has_rows_beyond", |rows| has_rows_beyond(rows, DURABLE_XID, job, &end));
    assert_in_each_scheme("key_from_end", |rows| key_from_end(rows, DURABLE_XID, job, Some(&end), 20));
    let (_, tables) = &schemes()[2];
    assert_statement("last_xid", &last_xid(&tables.rows(tables.best), DURABLE_XID, [job, other].into_iter()));
}

#[test]
fn statements_on_events_are_the_reviewed_ones_in_every_scheme() {
    let job = &job();
    assert_in_each_scheme("read_snapshot", |rows| read_snapshot(rows, DURABLE_XID, &Scope::of(job, LIMIT)));
    assert_in_each_scheme("open_xids", |rows| {
        open_xids(rows, DURABLE_XID, 1_764_000_000_000_000, &ended(745, &[740, 743]))
    });
    assert_in_each_scheme("find_event", |rows| find_event(rows, DURABLE_XID, job, "e-58"));
    assert_in_each_scheme("newest_event", |rows| newest_event(rows, DURABLE_XID, job));
    assert_in_each_scheme("count_by_xid", |rows| {
        count_by_xid(rows, DURABLE_XID, job, &XidBound::Fixed(ended(745, &[740, 743])), Some(&key(rows.tables.best)))
    });
    assert_in_each_scheme("count_by_place", |rows| {
        count_by_place(rows, DURABLE_XID, job, &XidBound::Fixed(ended(745, &[740, 743])), ["e-58", "e-59"])
    });
    assert_in_each_scheme("stored_events", |rows| stored_events(rows, DURABLE_XID, job, &new_events()));
}

#[test]
fn the_statement_that_finds_changes_is_the_reviewed_one() {
    let by_status = BTreeMap::from([(None, vec!["job-2"]), (Some("it's open"), vec!["o'job"])]);
    let query = |new_rows| ChangesQuery {
        jobs: vec!["o'job", "job-2"],
        new_rows,
        by_status: by_status.clone(),
        awaited: vec!["o'new"],
        awaited_events: vec!["o'new"],
    };
    assert_in_each_scheme("first_changes", |rows| {
        let new_rows = match rows.xid_source() {
            XidSource::Column => NewRows::Since(700),
            XidSource::System => NewRows::SinceAndYounger(700, 60.0),
        };
        changes(rows, DURABLE_XID, &query(new_rows))
    });
    let (_, tables) = &schemes()[0];
    let new_rows = NewRows::NotVisibleIn { snapshot: "740:745:740,743", durable_xid: 742 };
    assert_statement("next_changes", &changes(&tables.rows(tables.best), DURABLE_XID, &query(new_rows)));
}

#[test]
fn statements_on_jobs_and_the_catalogue_are_the_reviewed_ones() {
    let (job, tables) = (&job(), &schemes()[0].1);
    let jobs = tables.jobs.as_ref().expect("a job table");
    assert_statement("list_jobs", &list_jobs(tables, jobs, Some(JobStatus::Running), 50));
    for (name, tables) in &schemes() {
        assert_statement(&format!("last_writes.{name}"), &last_writes(tables, job, true));
    }
    assert_statement("has_end", &has_end("\"job_events\""));
    assert_statement("insert_job", &insert_job(jobs, job));
    assert_statement("upsert_status", &upsert_status(jobs, job, "COMPLETED"));
    assert_statement(
        "insert_events",
        &insert_events(tables, &config::Columns::default(), job, &new_events()).expect("columns"),
    );
    assert_statement("final_event", &final_event(tables, job, ["job.done", "job.failed"]));
    assert_statement("is_unchanged", &is_unchanged(true, "740:745:740,743", 23_456));
    assert_statement("has_ended", &has_ended(740, 745, &[743], &[746]));
    assert_statement("table_columns", &table_columns("app.job_events", "job_id"));
    assert_statement("has_index", &check::has_index("\"job_events\"", ["job_id", "seq"]));
    assert_statement("may_insert", &may_insert("\"job_events\""));
    assert_statement("cancel_statement", &cancel_statement("0199aaaa"));
    assert_statement("has_notify_trigger", &has_notify_trigger("\"job_events\""));
}

fn new_events() -> Vec<NewEvent> {
    let event = |id: &str, step_id: Option<&str>| NewEvent {
        id: id.into(),
        step_id: step_id.map(str::to_string),
        kind: "step.log".into(),
        timestamp: Timestamp::UNIX_EPOCH,
        actor: None,
        payload: Payload::from_text(r#"{"line":"it's \\ done"}"#.into()),
    };
    vec![event("e-58", None), event("e-59", Some("step-1"))]
}

#[test]
fn a_literal_and_a_name_hold_whatever_text_they_are_given() {
    assert_eq!(literal("it's a \\ \0 text"), r"E'it\'s a \\  text'");
    assert_eq!(quote_table(r#"my app.ev"ents"#), r#""my app"."ev""ents""#);
}
