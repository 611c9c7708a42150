//! The fuzz targets' checks without a fuzzer: over their corpus, over the same changed copies of it each time, and then over
//! fresh ones for `FUZZ_SECONDS`. A crash that was found stays in the corpus, and is tried here for good.

#[path = "../../fuzz/checks.rs"]
mod checks;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

/// Changed copies of each input that are the same each time.
const COPIES: u64 = 200;
/// Seconds of fresh ones for each target, where `FUZZ_SECONDS` does not say how many.
const SECONDS: u64 = 1;
/// Bytes of an input, at most, as libFuzzer has it.
const MAX_INPUT: usize = 4096;

/// Words that mean something to one of the readers, or that readers are known to stumble over.
const WORDS: &[&[u8]] = &[
    b"\0",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\t",
    b" ",
    b"\"",
    b"'",
    b"\"\"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b",",
    b";",
    b":",
    b"=",
    b"[",
    b"]",
    b"[[",
    b"{",
    b"}",
    b"%",
    b"%00",
    b"%ff",
    b"/",
    b"../",
    b".",
    b"..",
    b"*",
    b"#",
    b"&",
    b"@",
    b"-",
    b"_",
    b"~",
    b"0",
    b"-1",
    b"1e999",
    b"0x7f",
    b"255",
    b"256",
    b"65535",
    b"65536",
    b"4294967296",
    b"9223372036854775807",
    b"18446744073709551616",
    b"0.1",
    b"NaN",
    b"null",
    b"true",
    b"\xff",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"\x7f",
    b"\x80",
    b"127.0.0.1",
    b"::1",
    b"[::1]:80",
    b"::ffff:10.0.0.1",
    b"localhost",
    b"for=",
    b"Bearer ",
    b"access_token=",
    b"stream.",
    b"0s",
    b"1h",
    b"KiB",
    b"1979-05-27T07:32:00Z",
];

/// Makes changed copies of a corpus.
struct Mutator {
    corpus: Vec<Vec<u8>>,
    /// [`WORDS`], and those of the corpus.
    words: Vec<Vec<u8>>,
}

impl Mutator {
    fn of(target: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut files: Vec<_> =
            std::fs::read_dir(folder).expect("a corpus").map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        let corpus: Vec<Vec<u8>> = files.iter().map(|path| std::fs::read(path).expect("an input")).collect();
        let of_corpus = corpus.iter().flat_map(|input| input.split(is_between_words));
        let mut words: Vec<Vec<u8>> = of_corpus.filter(|word| word.len() > 1).map(<[u8]>::to_vec).collect();
        words.sort();
        words.dedup();
        words.extend(WORDS.iter().map(|word| word.to_vec()));
        Self { corpus, words }
    }

    /// The copy that this seed makes.
    fn input(&self, seed: u64) -> Vec<u8> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes = self.corpus.choose(&mut rng).expect("an input").clone();
        // One change mostly, many at times.
        for _ in 0..1 << rng.random_range(0..6) {
            self.change(&mut bytes, &mut rng);
            bytes.truncate(MAX_INPUT);
        }
        bytes
    }

    fn change(&self, bytes: &mut Vec<u8>, rng: &mut StdRng) {
        let part = some_part(rng, bytes.len());
        let at = part.start;
        match rng.random_range(0..13) {
            0 if at < bytes.len() => bytes[at] ^= 1u8 << rng.random_range(0..8u32),
            1 if at < bytes.len() => bytes[at] = rng.random(),
            2 if at < bytes.len() => bytes[at] = bytes[at].wrapping_add(rng.random_range(0..32)).wrapping_sub(16),
            3 => bytes.insert(at, rng.random()),
            4 => drop(bytes.drain(part)),
            5 => bytes.truncate(at),
            6 => {
                let again = bytes[part].repeat(rng.random_range(1..8));
                drop(bytes.splice(at..at, again));
            }
            7 => bytes[part].reverse(),
            8 => drop(bytes.splice(at..at, self.word(rng))),
            9 => drop(bytes.splice(part, self.word(rng))),
            // The beginning of this one, and the end of another.
            10 => {
                let other = self.corpus.choose(rng).expect("an input");
                bytes.truncate(at);
                bytes.extend_from_slice(&other[some_part(rng, other.len()).start..]);
            }
            // A part of another within this one, or in place of a part of it.
            11 | 12 => {
                let other = self.corpus.choose(rng).expect("an input");
                let replaced = if rng.random() { part } else { at..at };
                drop(bytes.splice(replaced, other[some_part(rng, other.len())].to_vec()));
            }
            _ => {}
        }
    }

    fn word(&self, rng: &mut StdRng) -> Vec<u8> {
        self.words.choose(rng).expect("a word").clone()
    }
}

fn is_between_words(byte: &u8) -> bool {
    !byte.is_ascii_alphanumeric() && !matches!(byte, b'_' | b'-' | b'.')
}

/// A part of so many bytes, which may be empty, and is short as often as it is long.
fn some_part(rng: &mut StdRng, bytes: usize) -> Range<usize> {
    let at = rng.random_range(0..=bytes);
    let most = if rng.random() { bytes - at } else { (bytes - at).min(8) };
    at..at + rng.random_range(0..=most)
}

/// A number from the environment.
fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no whole number")))
}

/// Says something at once, and not only when a test has failed: a crash of the whole process would take it along.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn run(target: &str, check: fn(&[u8])) {
    let mutator = Mutator::of(target);
    let attempt = |input: &[u8], seed: Option<u64>| {
        let Err(panic) = std::panic::catch_unwind(|| check(input)) else { return };
        let again = seed.map_or_else(String::new, |seed| format!(" (FUZZ_SEED={seed} makes it again, as the first)"));
        say(&format!("{target} fails for \"{}\"{again}", input.escape_ascii()));
        std::panic::resume_unwind(panic);
    };
    for input in &mutator.corpus {
        attempt(input, None);
    }
    for seed in 0..COPIES * mutator.corpus.len() as u64 {
        attempt(&mutator.input(seed), Some(seed));
    }
    let first = variable("FUZZ_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()) << 20);
    let time = Duration::from_secs(variable("FUZZ_SECONDS").unwrap_or(SECONDS));
    say(&format!("fuzzing {target} for {time:?}, from FUZZ_SEED={first}"));
    let (began, mut inputs, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    while began.elapsed() < time {
        let seed = first.wrapping_add(inputs);
        let (input, began) = (mutator.input(seed), Instant::now());
        attempt(&input, Some(seed));
        slowest = slowest.max(began.elapsed());
        inputs += 1;
    }
    println!("{target}: {inputs} inputs, {slowest:?} for the slowest");
}

#[test]
fn no_bytes_near_a_cursor_break_what_reads_it() {
    run("cursor", checks::cursor);
}

#[test]
fn no_bytes_near_a_cursor_of_a_set_break_what_reads_it() {
    run("set", checks::set);
}

#[test]
fn no_bytes_near_a_settings_file_break_what_reads_it() {
    run("settings", checks::settings);
}

#[test]
fn no_bytes_near_a_body_of_ingest_break_what_reads_it() {
    run("ingest", checks::ingest);
}

#[test]
fn no_bytes_near_a_forwarding_header_break_what_reads_it() {
    run("address", checks::address);
}

#[test]
fn no_bytes_near_a_host_break_what_reads_it() {
    run("host", checks::host);
}

#[test]
fn no_bytes_near_credentials_break_what_reads_them() {
    run("token", checks::token);
}
