//! Delivery of rows that a statement has read.

use super::super::position::{Above, Advance, Floor, Life, Range};
use super::super::tables::XidSource;
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const LIMIT: Limit = Limit { events: 100, bytes: 1 << 20 };

fn job() -> JobId {
    "job".parse().expect("a job id")
}

fn row(xid: u64, number: i64) -> StoredRow {
    StoredRow { xid, key: Key::Number(number), event: Event::sample(job(), number.to_string()), is_repeat: false }
}

/// A page with rows of these transactions, whose settled part ends at `mark`.
fn page(mark: u64, xids: impl IntoIterator<Item = u64>) -> PageRows {
    let answer = PageEnd { snapshot: Snapshot::of(mark, mark + 1_000_000_000), status: None, has_job: true };
    let rows = xids.into_iter().zip(1..).map(|(xid, number)| row(xid, number)).collect();
    PageRows { rows, ..PageRows::new(answer, EndedXids::below(mark), CursorScheme::default()) }
}

fn settled(mark: u64) -> Position {
    Position::new_settled(CursorScheme::default(), EndedXids::below(mark), BTreeMap::new())
}

fn ids(events: &[(Event, Cursor)]) -> Vec<&str> {
    events.iter().map(|(event, _)| &*event.id).collect()
}

#[test]
fn a_cut_page_ends_in_a_range_and_a_whole_one_at_the_mark() {
    let mut position = settled(700);
    let page_of_five = || page(740, [701, 701, 702, 703, 703]);
    let (events, is_last) = page_of_five().deliver(&job(), &mut position, Limit { events: 3, ..LIMIT });
    assert_eq!((ids(&events), is_last), (vec!["1", "2", "3"], false));
    assert_eq!(position.range(), Some(&Range { end: EndedXids::below(740), key: Key::Number(3) }));

    let mut position = settled(700);
    let (events, is_last) = page_of_five().deliver(&job(), &mut position, LIMIT);
    assert_eq!((events.len(), is_last), (5, true));
    assert_eq!(position, settled(740));
}

#[test]
fn newer_rows_come_after_the_settled_ones_and_are_counted() {
    let mut position = settled(700);
    let (events, _) = page(740, [745, 701, 745]).deliver(&job(), &mut position, LIMIT);
    assert_eq!(ids(&events), ["2", "1", "3"]);
    assert_eq!((position.settled().mark, position.counted()), (740, &BTreeMap::from([(745, 2)])));
}

#[test]
fn a_range_that_another_process_left_is_finished_before_newer_rows() {
    let start = settled(700).at_range_start(&EndedXids::below(740));
    let mut position = start.clone();
    let rest = page(740, [720, 745]).finish_foreign_range(&mut position).expect("rows of the range");
    assert!(rest.has_more && rest.rows.len() == 1 && position == start);
    assert!(page(740, [745, 746]).finish_foreign_range(&mut position).is_none());
    assert_eq!(position, settled(740));
}

#[test]
fn rows_of_transactions_that_a_cursor_cannot_count_wait_for_the_next_read() {
    let xids = (0..40).map(|number| 1_000_000 + number * 100_000);
    let page = page(740, xids).truncated_to_cursor(&settled(740), true);
    assert!(page.has_more && (3..20).contains(&page.rows.len()), "{} rows", page.rows.len());
    let mut position = settled(740);
    let (events, is_last) = page.deliver(&job(), &mut position, LIMIT);
    assert!(!is_last && position.encoded_length() <= MAX_COUNTED_BYTES);
    for (_, cursor) in &events {
        let decoded = Position::from_cursor(&job(), cursor.as_str()).expect("a position");
        assert_eq!(decoded.to_cursor(&job()), *cursor);
    }
}

#[test]
fn a_page_that_fits_into_no_cursor_waits_and_is_delivered_whole_to_who_cannot() {
    // The counts alone fill a cursor, so no transaction has room beside them.
    let counted: BTreeMap<u64, u64> = (0..20).map(|number| (1_000_000 + number * 100_000, 3)).collect();
    let position = Position::new_settled(CursorScheme::default(), EndedXids::below(740), counted);
    let page = || page(740, [9_000_000, 9_100_000]);
    assert!(page().truncated_to_cursor(&position, true).is_cramped());
    let page = page().truncated_to_cursor(&position, false);
    assert!(page.rows.len() == 2 && !page.has_more);
}

#[test]
fn a_cut_page_of_repeats_is_not_the_last() {
    let mut repeats = page(740, [701, 702, 703, 704]);
    repeats.rows[1..].iter_mut().for_each(|row| row.is_repeat = true);
    let mut position = settled(700);
    let (events, is_last) = repeats.deliver(&job(), &mut position, Limit { events: 3, ..LIMIT });
    assert_eq!((ids(&events), is_last), (vec!["1"], false));
    assert_eq!(position.range(), Some(&Range { end: EndedXids::below(740), key: Key::Number(4) }));
}

#[test]
fn without_a_column_of_transactions_only_whole_ones_are_counted() {
    let scheme = CursorScheme { xids: XidSource::System, ..CursorScheme::default() };
    let after = |ended, counted| Position::new_settled(scheme, ended, counted);
    let start = after(EndedXids::below(740), BTreeMap::new());
    let both = EndedXids::below(740).and([745, 746]);
    let range = |key| Some(Range { end: both.clone(), key: Key::Number(key) });

    let mut position = start.clone();
    let (events, is_last) = page(740, [745, 746, 745]).deliver(&job(), &mut position, Limit { events: 2, ..LIMIT });
    assert_eq!((ids(&events), is_last, position.range().cloned()), (vec!["1", "2"], false, range(2)));

    let mut position = start.clone();
    let (events, is_last) = page(740, [745, 746, 745]).deliver(&job(), &mut position, LIMIT);
    assert_eq!((events.len(), is_last, &position), (3, true, &after(both.clone(), BTreeMap::new())));
    assert_eq!(events[2].1, position.to_cursor(&job()), "who has the last row has all");

    let mut position = start.clone();
    page(740, [745, 746]).deliver(&job(), &mut position, LIMIT);
    assert_eq!(position, after(EndedXids::below(740), BTreeMap::from([(745, 1), (746, 1)])));

    // Rows of transactions that have no room were left out of a page that was cut: there may be more of these.
    let mut position = start.clone();
    let cut = PageRows { is_cut: true, has_more: true, ..page(740, [745, 746]) };
    let (events, is_last) = cut.deliver(&job(), &mut position, LIMIT);
    assert_eq!((events.len(), is_last, position.range().cloned()), (2, false, range(2)));
}

#[test]
fn a_cursor_without_room_for_all_ended_transactions_repeats_the_newest() {
    let xids: Vec<u64> = (0..60).map(|number| 1_000_000 + number * 100_000).collect();
    let end = EndedXids::below(740).and(xids.iter().copied());
    let position = Position::new_settled(CursorScheme::default(), end, BTreeMap::new());
    for position in [position.clone().up_to_key(Key::Number(58)), position] {
        let decoded = Position::from_cursor(&job(), position.to_cursor(&job()).as_str()).expect("a position");
        let also = decoded.range().map_or(decoded.settled(), |range| &range.end).also.clone();
        assert!((15..60).contains(&also.len()), "{} of them", also.len());
        assert!(also.iter().eq(&xids[..also.len()]));
    }
}

/// The position of a tail that has read the rows above a floor, after reads of all rows below 740.
fn above_floor(ended: EndedXids) -> Position {
    let scheme = CursorScheme { xids: XidSource::System, ..CursorScheme::default() };
    let whole = Position::new_settled(scheme, EndedXids::below(740), BTreeMap::new());
    whole.with_part_above(Floor::Number(50), &Position::new_settled(scheme, ended, BTreeMap::new()))
}

/// A page of the rows above the floor, with one row of each of these transactions.
fn page_above_floor(mark: u64, xids: impl IntoIterator<Item = u64>) -> PageRows {
    PageRows { floor: Some(Floor::Number(50)), ..page(mark, xids) }
}

#[test]
fn a_page_of_the_rows_above_a_floor_moves_on_in_what_is_said_of_these_alone_and_counts_none() {
    let mut position = above_floor(EndedXids::below(740));
    let (events, is_last) = page_above_floor(750, [741, 751, 752]).deliver(&job(), &mut position, LIMIT);
    assert_eq!((events.len(), is_last), (3, true));
    assert_eq!(position, above_floor(EndedXids::below(750).and([751, 752])));
    let places = events.iter().map(|(_, cursor)| Position::from_cursor(&job(), cursor.as_str()).expect("a position"));
    let range = |end: EndedXids, key| Some(Range { end, key: Key::Number(key) });
    let within = |ended, range| Some(Above { floor: Floor::Number(50), ended: EndedXids::below(ended), range });
    let wanted = [
        within(740, range(EndedXids::below(750), 1)),
        within(750, range(EndedXids::below(750).and([751, 752]), 2)),
        position.above().cloned(),
    ];
    assert_eq!(places.map(|place| place.above().cloned()).collect::<Vec<_>>(), wanted);
}

#[test]
fn a_page_of_all_rows_takes_over_what_was_said_of_a_floor_behind_its_last_row() {
    let start = above_floor(EndedXids::below(745).and([748]));
    let of_all = |xids: &[u64]| PageRows { is_of_all: true, ..page(746, xids.iter().copied()) };
    let settled = EndedXids::below(746).and([748]);
    let after = |counted| Position::new_settled(start.scheme, settled.clone(), counted);

    let mut position = start.clone();
    let (events, is_last) = of_all(&[742, 749]).deliver(&job(), &mut position, Limit { events: 1, ..LIMIT });
    assert_eq!((events.len(), is_last, position.above()), (1, false, start.above()));

    let mut position = start.clone();
    assert!(of_all(&[742, 749]).deliver(&job(), &mut position, LIMIT).1);
    assert_eq!(position, after(BTreeMap::from([(749, 1)])));

    // Of 748 others were delivered by their number, so this row is not all of it, and its count would be of another.
    let mut position = start.clone();
    assert!(!of_all(&[748, 749]).deliver(&job(), &mut position, Limit { events: 1, ..LIMIT }).1);
    assert_eq!((position.counted().len(), position.range().map(|range| &range.key)), (0, Some(&Key::Number(1))));
}

#[test]
fn a_page_above_a_floor_is_not_delivered_where_a_cursor_has_no_room_for_its_end() {
    let mut position = above_floor(EndedXids::below(740));
    let xids = |count| (0..count).map(|number| 1_000_000 + number * 100_000);
    let few = page_above_floor(745, xids(5)).deliver_with_room(&job(), &mut position, LIMIT);
    assert!(few.is_ok_and(|(events, is_last)| events.len() == 5 && is_last));
    let before = position.clone();
    assert!(page_above_floor(745, xids(40)).deliver_with_room(&job(), &mut position, LIMIT).is_err());
    assert_eq!(position, before);
}

/// Transactions at these distances below one another.
fn below(mark: u64, distances: &[u64]) -> impl Iterator<Item = u64> {
    distances.iter().scan(mark, |xid, distance| {
        *xid = xid.saturating_sub(*distance);
        (*xid > 0).then_some(*xid)
    })
}

proptest! {
    #[test]
    fn a_cursor_has_room_for_a_range_up_to_any_mark_beside_all_that_it_lists_and_counts(
        mark in 1_u64..1 << 40,
        distances in prop::collection::vec(prop_oneof![6 => 1..3_u64, 3 => 1..400_u64, 1 => 1..1_000_000_u64], 0..260),
        counts in prop::collection::vec((1..9_000_u64, 1..200_u64), 0..20),
        further in prop_oneof![Just(None), Just(Some(0)), (0..1_u64 << 24).prop_map(Some)],
        number in any::<i64>(),
        is_uuid in any::<bool>(),
    ) {
        let open = |most| below(mark, &distances).take(most).collect();
        let level = |most| Position::at_level(CursorScheme::default(), EndedXids::listed(mark, open(most)), Some(Life(7)));
        let mut position = (0..=distances.len()).map(level).rfind(Position::fits_list).expect("a level");
        let mut xid = position.settled().lowest_open();
        for (distance, count) in counts {
            xid += distance;
            let before = position.clone();
            (0..count).for_each(|_| position.count(xid));
            if !position.fits_cursor() {
                position = before;
            }
        }
        let end = position.next_end(further.map_or(mark / 2, |further| mark + further));
        let id = if is_uuid { uuid::Uuid::from_u128(u128::MAX).to_string() } else { "0123456789abcdef".into() };
        position.advance(0, Key::Time { at: number, id: KeyId::of(&id) }, &Advance::Range(Arc::new(end)));
        prop_assert!(position.encoded_length() <= Cursor::MAX_INSIDE, "{} bytes: {position:?}", position.encoded_length());
        let cursor = position.to_cursor(&job());
        prop_assert_eq!(Position::from_cursor(&job(), cursor.as_str()), Some(position));
    }
}
