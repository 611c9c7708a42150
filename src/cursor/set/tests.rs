//! Cursors of sets come back for the same set, for others, and forged.

use super::*;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeSet;

fn job(number: u32) -> JobId {
    format!("job-{number}").parse().expect("an id")
}

fn members(numbers: impl IntoIterator<Item = u32>) -> Members {
    Members::new(numbers.into_iter().map(job))
}

fn level(inside: &[u8]) -> Level {
    Level { version: 'p', inside: inside.into() }
}

/// Positions of a set of which each job stands at one of `values` places.
fn positions(members: &Members, values: u8, bytes: usize, random: &mut StdRng) -> Vec<Level> {
    members.jobs().iter().map(|_| level(&vec![random.random_range(0..values); bytes])).collect()
}

#[test]
fn a_cursor_of_the_same_set_gives_every_position_whatever_the_order_of_the_jobs() {
    let mut random = StdRng::seed_from_u64(1);
    for round in 0..300 {
        let members = members(0..random.random_range(1..=200));
        let (values, bytes) = (random.random_range(1..=9), random.random_range(0..30));
        let positions = positions(&members, values, bytes, &mut random);
        for size in [Size::Short, Size::Full] {
            let token = seal(&members, &positions, size);
            let again = Members::new(members.jobs().iter().rev().cloned());
            let found = open(&again, token.as_str()).expect("a cursor of this set");
            let expected: Vec<_> =
                members.jobs().iter().zip(&positions).map(|(job, level)| Some(level.cursor(job))).collect();
            assert_eq!(found, expected, "round {round}");
        }
    }
}

#[test]
fn fifty_jobs_at_three_places_fit_into_128_bytes_and_tell_a_job_that_was_swapped() {
    let mut random = StdRng::seed_from_u64(2);
    for _ in 0..100 {
        let first = random.random_range(0..1_000_000);
        let before = members(first..first + 50);
        let mut levels = vec![level(&[1; 12]); 50];
        let at = random.random_range(1..49);
        levels[at] = level(&[2; 14]);
        levels[at + 1..].fill(level(&[3; 12]));
        let token = seal(&before, &levels, Size::Short);
        assert!(token.as_str().len() <= Cursor::MAX_BYTES, "{}", token.as_str().len());
        let after = members(first + 1..first + 51);
        let found = open(&after, token.as_str()).expect("a set that differs by two jobs");
        for (job, position) in after.jobs().iter().zip(found) {
            let expected = before.index(job).map(|index| levels[index].cursor(job));
            assert_eq!(position, expected, "{job}");
        }
    }
}

/// Positions in the midst of a round: those that had their turn, one in between, the others, and jobs without events among them.
/// One more is left from a round of another set.
fn in_a_round(members: &Members, insides: [&[u8]; 4], random: &mut StdRng) -> Vec<Level> {
    let [now, between, before, left] = insides;
    let turn = random.random_range(1..members.jobs().len() - 1);
    let mut levels = vec![level(now); turn];
    levels.push(level(between));
    levels.resize(members.jobs().len(), level(before));
    for place in &mut levels {
        if random.random_range(0..5) == 0 {
            *place = level(&[]);
        }
    }
    let last = levels.len() - 1;
    levels[last] = level(left);
    levels
}

/// Bytes that nothing else begins with.
fn random_bytes(length: usize, random: &mut StdRng) -> Vec<u8> {
    (0..length).map(|_| random.random()).collect()
}

#[test]
fn the_jobs_of_a_set_in_the_midst_of_a_round_fit_into_128_bytes_wherever_those_without_events_are() {
    let mut random = StdRng::seed_from_u64(4);
    for round in 0..500 {
        let first = random.random_range(0..1_000_000);
        let small = members(first..first + 50);
        let large = members(first..first + 200);
        // As on SQLite: a fingerprint, a mark, and numbers up to 2^32.
        let [now, before] = [9, 9].map(|length| random_bytes(length, &mut random));
        let [between, left] = [8, 8].map(|length| random_bytes(length, &mut random));
        // As on PostgreSQL: a mark, six open transactions and a life; a place in between repeats those before, and names the end.
        let of_round = random_bytes(14, &mut random);
        let base = random_bytes(14, &mut random);
        let within = [&base[..11], &random_bytes(14, &mut random)].concat();
        for (members, insides) in [
            (&small, [&now[..], &between, &before, &left]),
            (&large, [&now, &between, &before, &before]),
            (&small, [&of_round, &within, &base, &base]),
        ] {
            let levels = in_a_round(members, insides, &mut random);
            let token = seal(members, &levels, Size::Short);
            assert!(token.as_str().len() <= Cursor::MAX_BYTES, "{} in round {round}", token.as_str().len());
            let found = open(members, token.as_str()).expect("a cursor of this set");
            let expected: Vec<_> = members.jobs().iter().zip(&levels).map(|(job, at)| Some(at.cursor(job))).collect();
            assert_eq!(found, expected, "round {round}");
        }
    }
}

#[test]
fn a_cursor_with_all_jobs_is_good_for_any_set_and_a_short_one_for_any_that_it_does_not_mistake() {
    let mut random = StdRng::seed_from_u64(3);
    for _ in 0..300 {
        let mut some = |most: u32| -> BTreeSet<u32> {
            (0..random.random_range(1..most)).map(|_| random.random_range(0..90)).collect()
        };
        let (before, after) = (some(80), some(80));
        let (before, after) = (members(before), members(after));
        let levels = positions(&before, 3, 8, &mut random);
        for size in [Size::Short, Size::Full] {
            let Some(found) = open(&after, seal(&before, &levels, size).as_str()) else {
                assert_eq!(size, Size::Short);
                continue;
            };
            for (job, position) in after.jobs().iter().zip(found) {
                assert_eq!(position, before.index(job).map(|index| levels[index].cursor(job)), "{job}");
            }
        }
    }
}

proptest! {
    #[test]
    fn foreign_text_never_does_harm(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = fingerprint(&body).to_vec();
        bytes.extend_from_slice(&body);
        let text = format!("{LETTER}{}", URL_SAFE_NO_PAD.encode(&bytes));
        let _ = open(&members(0..7), &text);
        let _ = open(&members(0..7), &String::from_utf8_lossy(&body));
    }
}
