//! The rule of settled and counted positions against a model of what PostgreSQL lets a snapshot see.

mod model;

use super::*;
use model::{Act, Model, OLD, WHOLE, act, floor, update};
use proptest::prelude::*;

/// A position with every field drawn at random, around the transactions of the model.
fn foreign_position() -> impl Strategy<Value = Position> {
    let xid = || 90..130_u64;
    let ended = move || {
        (xid(), prop::collection::btree_set(xid(), 0..3))
            .prop_map(|(mark, open)| EndedXids::listed(mark, open).truncated(mark))
    };
    let ended = move || (ended(), prop::collection::btree_set(xid(), 0..3)).prop_map(|(ended, also)| ended.and(also));
    let key = prop_oneof![
        (0..300_i64).prop_map(Key::Number),
        (0..600_i64).prop_map(|high| Key::Time { at: high << 20, id: KeyId::of("") }),
    ];
    let range = move || prop::option::of((ended(), key.clone()).prop_map(|(end, key)| Range { end, key }));
    let above = (floor(), ended(), range()).prop_map(|(floor, ended, range)| Above { floor, ended, range });
    let above = prop::option::of(above);
    let counted = prop::collection::btree_map(xid(), 1..5_u64, 0..4);
    (any::<bool>(), ended(), range(), counted, above).prop_map(|(is_old, settled, range, counted, above)| {
        let scheme = if is_old { OLD } else { CursorScheme::default() };
        let life = counted.keys().next().map(|xid| Life(*xid as u16));
        let claims = if life.is_some_and(|Life(life)| life % 2 == 0) { Claims::Moment } else { Claims::Rows };
        // A position has one range at most.
        let range = range.filter(|_| above.as_ref().is_none_or(|above| above.range.is_none()));
        Position { scheme, life, settled, range, counted, above, claims }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100_000, ..ProptestConfig::default() })]

    #[test]
    fn every_committed_row_is_delivered_once_whoever_reads_and_however_writers_interleave(
        acts in prop::collection::vec(act(), 1..60)
    ) {
        let mut model = Model::default();
        for one in &acts {
            model.act(one);
        }
        model.finish();
        prop_assert_eq!(model.delivered, model.committed);
    }

    #[test]
    fn readers_beside_one_who_lies_lose_nothing_and_repeat_nothing(
        before in prop::collection::vec(act(), 1..30),
        lie in prop::option::of(foreign_position()),
        lists in any::<bool>(),
        after in prop::collection::vec(act(), 1..30),
    ) {
        let mut model = Model::default();
        for one in &before {
            model.act(one);
        }
        let mut first = lie.unwrap_or_else(|| model.position.clone());
        if !model.has_columns {
            first.scheme = OLD;
        }
        model.begin_channel(first, lists);
        for one in &after {
            model.act(one);
        }
        model.finish();
        prop_assert_eq!(model.delivered, model.committed);
    }

    #[test]
    fn with_dedupe_no_row_is_left_out_that_was_not_delivered_in_some_version(
        acts in prop::collection::vec(prop_oneof![6 => act(), 1 => update()], 1..60)
    ) {
        let mut model = Model::with_dedupe();
        for one in &acts {
            model.act(one);
        }
        model.finish();
        prop_assert_eq!(Model::without_versions(&model.delivered), Model::without_versions(&model.committed));
    }

    #[test]
    fn an_update_of_a_row_hides_no_other_wherever_a_reader_stands(
        acts in prop::collection::vec(prop_oneof![6 => act(), 1 => update()], 1..60)
    ) {
        let mut model = Model::default();
        for one in &acts {
            model.act(one);
        }
        model.finish();
        prop_assert_eq!(Model::without_versions(&model.delivered), Model::without_versions(&model.committed));
    }

    #[test]
    fn who_joins_is_given_what_it_lacks_of_the_published_rows_wherever_it_stands_and_leaves(
        before in prop::collection::vec(prop_oneof![6 => act(), 1 => update()], 1..40),
        after in prop::collection::vec(prop_oneof![6 => act(), 1 => update()], 0..20),
        leaves_after in prop::option::of(0..4_usize),
        rest in prop::collection::vec(act(), 0..20),
    ) {
        let mut model = Model::default();
        for one in &before {
            model.act(one);
        }
        let mut joiner = model.clone();
        for one in &after {
            model.act(one);
            joiner.act_of_writers(one);
        }
        // A job is published to its end, by a read of all its rows, before anybody joins.
        model.poll(WHOLE);
        joiner.join(&model.position, leaves_after);
        for one in &rest {
            joiner.act(one);
        }
        joiner.finish();
        prop_assert_eq!(Model::without_versions(&joiner.delivered), Model::without_versions(&joiner.committed));
        if !before.iter().chain(&after).any(|act| matches!(act, Act::Update { .. })) {
            prop_assert_eq!(joiner.delivered, joiner.committed, "and nothing twice");
        }
    }

    #[test]
    fn a_position_is_read_back_from_its_bytes_and_claims_no_more_where_they_are_fewer(
        position in foreign_position(),
        most in 12..60_usize,
    ) {
        let read = |most| Position::from_bytes(position.scheme, &position.to_bytes(most).0).expect("a position");
        prop_assert_eq!(&read(usize::MAX), &position);
        let shorter = read(most);
        for (xid, number) in (90..132).flat_map(|xid| [0, 60, 140, 299].map(|number| (xid, number))) {
            for (key, nth) in [(Key::Number(number), 1), (Key::Time { at: number << 20, id: KeyId::of("") }, 3)] {
                let floors = [Floor::Number(number), Floor::Time(number)];
                let is_claimed = |position: &Position| position.has_delivered(xid, &key, &floors, nth);
                prop_assert!(is_claimed(&position) || !is_claimed(&shorter), "{xid} {key:?} by {shorter:?}");
            }
        }
    }

    #[test]
    fn foreign_bytes_are_no_position_or_one_that_spells_the_same(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        if let Some(position) = Position::from_bytes(CursorScheme::default(), &bytes) {
            prop_assert_eq!(position.to_bytes(usize::MAX).0, bytes);
        }
    }
}

#[test]
fn counts_that_do_not_fit_are_left_out_from_the_newest_on() {
    let counted: BTreeMap<u64, u64> = (1..100).map(|number| (1_000_000 + number * 1000, 3)).collect();
    let key = Key::Time { at: 1_764_000_000_000_000, id: KeyId::of("01a20d92-66b8-751f-b452-de6e87991467") };
    let range = Some(Range { end: EndedXids::below(1_000_000), key });
    let position = Position { settled: EndedXids::below(1_000_000), range, counted, ..Position::default() };
    let (bytes, left_out) = position.to_bytes(90);
    assert!(left_out && bytes.len() <= 90);
    let back = Position::from_bytes(CursorScheme::default(), &bytes).expect("a position");
    assert!(back.counted.len() > 15 && back.counted.iter().all(|(xid, count)| position.counted[xid] == *count));
    assert_eq!(back.range, position.range);
}
