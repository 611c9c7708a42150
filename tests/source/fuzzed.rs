//! The fuzz targets' checks over their corpus and over changed copies of it, without a fuzzer: a crash that one has found
//! stays in the corpus, and is tried here for good.

#[path = "../../fuzz/checks.rs"]
mod checks;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::path::Path;

/// Bytes that mean something to one of the readers.
const MARKS: &[u8] = b"\0\n\r \",;:=[]{}%\\\xff/.0";
/// Changed copies of each input.
const COPIES: u64 = 200;

/// Changes some bytes: others, repeated, cut out, or joined with another input's.
fn changed(rng: &mut StdRng, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..rng.random_range(1..5) {
        let at = rng.random_range(0..=bytes.len());
        let end = rng.random_range(at..=bytes.len());
        match rng.random_range(0..5) {
            0 => bytes.insert(at, rng.random()),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.extend_from_within(at..end),
            3 => bytes.extend_from_slice(&other[..rng.random_range(0..=other.len())]),
            _ if at < bytes.len() => bytes[at] = MARKS[rng.random_range(0..MARKS.len())],
            _ => {}
        }
    }
    bytes
}

fn run(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = std::fs::read_dir(folder).expect("a corpus").map(|entry| entry.expect("an entry").path());
    let corpus: Vec<Vec<u8>> = entries.map(|path| std::fs::read(path).expect("an input")).collect();
    for seed in 0..COPIES * corpus.len() as u64 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (one, other) = (&corpus[seed as usize % corpus.len()], &corpus[rng.random_range(0..corpus.len())]);
        let input = if seed < corpus.len() as u64 { one.clone() } else { changed(&mut rng, one, other) };
        if let Err(panic) = std::panic::catch_unwind(|| check(&input)) {
            eprintln!("{target} fails for {:?} (seed {seed})", String::from_utf8_lossy(&input));
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn no_foreign_bytes_of_the_corpus_or_near_it_break_what_reads_them() {
    run("cursor", checks::cursor);
    run("set", checks::set);
    run("settings", checks::settings);
    run("ingest", checks::ingest);
    run("address", checks::address);
    run("host", checks::host);
    run("token", checks::token);
}
