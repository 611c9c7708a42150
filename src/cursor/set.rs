//! The cursor of a set of jobs: the position in each of them, as one token.
//!
//! ```text
//! token   = "m" base64url(check[4] body)            at most 128 bytes where the body has room for that
//! body    = form members values places
//! members = count, then the jobs' hashes (form 2), or `n` sums of a sketch of them (form 3; sketch.rs)
//! values  = count, then each: length and signs of the inside; its version, if it is not that of the value before; the bytes
//!           that it has in common with that at their beginnings, if they are several; the rest of it
//! places  = for each job, in the order of the hashes, the number of its value: in runs; in bits; or in one bit for the value
//!           whose jobs are strewn among the others, and those in runs
//! ```
//!
//! Jobs that stand at the same place of their source share one value, so a cursor is short where the source has levels: in the
//! midst of a round those that had their turn stand at one, the others at the one before, one in between, and those without
//! events at the beginning. Others may be left from rounds of another set. The members are there because a cursor may come back for another set: jobs that it knows go on where they stood. A short cursor
//! has a sketch, which tells them where the two sets differ by a few jobs; a long one has their hashes, and tells them always.
//!
//! As the cursor of one job it is foreign input when it comes back: the check is no signature. Each position is resolved by
//! the source for its job, as any other foreign one.

use super::{CHECK_BYTES, Cursor, Level, fingerprint, sketch};
use crate::event::JobId;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::hash::{Hash, Hasher};

/// The letter of these tokens.
pub const LETTER: char = 'm';
/// The longest token that is read: 200 jobs, each at a place of its own.
pub const MAX_TEXT: usize = 32 * 1024;
/// The most bytes of a body whose token has [`Cursor::MAX_BYTES`].
const SHORT_BODY: usize = (Cursor::MAX_BYTES - 1) * 3 / 4 - CHECK_BYTES;
/// The forms of the members. Earlier ones had other values.
const OF_HASHES: u8 = 2;
const OF_A_SKETCH: u8 = 3;
/// The signs of a value, beside its length.
const HAS_VERSION: usize = 1;
const HAS_SHARED: usize = 2;
const SIGNS: usize = 4;
/// The fewest bytes in common with the value before that are worth to be said.
const MIN_SHARED: usize = 2;
/// The fewest sums of a sketch: one job that goes and one that comes.
const MIN_SUMS: usize = 3;
/// The most sums of a sketch: two jobs that go and two that come. Each event has an id, so more would cost every reader.
const MAX_SUMS: usize = 5;
/// The most jobs that a foreign cursor may name.
const MAX_MEMBERS: usize = 4096;

/// The jobs of a set, each once, in the order in which its cursors have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    jobs: Vec<JobId>,
    hashes: Vec<u32>,
    /// The sketch of the hashes: [`MAX_SUMS`] sums, of which a cursor has the first. They are made once, not for each cursor.
    sums: Vec<u32>,
}

/// Equal sets have equal sums, and others mostly not.
impl Hash for Members {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.sums.hash(state);
    }
}

/// The size of a set's cursors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Size {
    /// At most 128 bytes where that is possible.
    Short,
    /// Every job is named, so that a cursor is good for any other set.
    Full,
}

impl Members {
    pub fn new(jobs: impl IntoIterator<Item = JobId>) -> Self {
        let mut jobs: Vec<(u32, JobId)> = jobs.into_iter().map(|job| (hash(&job), job)).collect();
        jobs.sort_unstable();
        jobs.dedup();
        let (hashes, jobs): (Vec<u32>, _) = jobs.into_iter().unzip();
        let sums = sketch::sums(hashes.iter().copied(), MAX_SUMS);
        Self { jobs, hashes, sums }
    }

    pub fn jobs(&self) -> &[JobId] {
        &self.jobs
    }

    pub fn index(&self, job: &JobId) -> Option<usize> {
        let hash = hash(job);
        let first = self.hashes.partition_point(|other| *other < hash);
        let same = self.jobs[first..].iter().zip(&self.hashes[first..]).take_while(|(_, other)| **other == hash);
        Some(first + same.into_iter().position(|(other, _)| other == job)?)
    }

    /// True where two jobs have one hash, which a sketch cannot tell apart.
    fn has_twins(&self) -> bool {
        self.hashes.windows(2).any(|pair| pair[0] == pair[1])
    }
}

/// Zero is no element of a sketch.
fn hash(job: &JobId) -> u32 {
    u32::from_be_bytes(fingerprint(job.as_str().as_bytes())).max(1)
}

/// Makes the token of these positions, one for each job of the set.
pub fn seal(members: &Members, positions: &[Level], size: Size) -> Cursor {
    debug_assert_eq!(members.jobs.len(), positions.len());
    let places = encode_places(positions);
    let body = match size {
        Size::Short if !members.has_twins() => short_body(members, &places),
        Size::Short | Size::Full => full_body(members, &places),
    };
    let mut bytes = fingerprint(&body).to_vec();
    bytes.extend_from_slice(&body);
    let mut token = String::from(LETTER);
    URL_SAFE_NO_PAD.encode_string(&bytes, &mut token);
    Cursor(token.into())
}

/// Reads foreign text: the position of each job of `members`, where the cursor knows it. `None` unless it is a whole token of
/// a set that differs from this one by no more than its form can tell.
pub fn open(members: &Members, text: &str) -> Option<Vec<Option<Cursor>>> {
    if text.len() > MAX_TEXT {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(LETTER)?).ok()?;
    let (check, body) = bytes.split_first_chunk::<CHECK_BYTES>()?;
    if *check != fingerprint(body) {
        return None;
    }
    let mut rest = Reader(body);
    let known = read_members(&mut rest, members)?;
    let values = read_values(&mut rest)?;
    let places = read_places(&mut rest, known.len(), values.len())?;
    rest.0.is_empty().then_some(())?;
    let position = |job: &JobId, hash: u32| {
        let first = known.partition_point(|other| *other < hash);
        let mut same = known[first..].iter().take_while(|other| **other == hash);
        // Of two jobs with one hash nobody can say which is meant.
        let is_one = same.next().is_some() && same.next().is_none();
        (is_one && members.hashes.iter().filter(|other| **other == hash).count() == 1)
            .then(|| values[places[first]].cursor(job))
    };
    Some(members.jobs.iter().zip(&members.hashes).map(|(job, hash)| position(job, *hash)).collect())
}

fn full_body(members: &Members, places: &[u8]) -> Vec<u8> {
    let mut body = vec![OF_HASHES];
    write_number(&mut body, members.hashes.len());
    members.hashes.iter().for_each(|hash| body.extend_from_slice(&hash.to_be_bytes()));
    body.extend_from_slice(places);
    body
}

/// A body with as large a sketch as there is room for, if that is of use; else with all members.
fn short_body(members: &Members, places: &[u8]) -> Vec<u8> {
    let count = members.hashes.len();
    let mut head = vec![OF_A_SKETCH];
    write_number(&mut head, count);
    let room = SHORT_BODY.saturating_sub(head.len() + 1 + places.len()) / sketch::SUM_BYTES;
    // A list of so few hashes is no longer than the sketch that finds them.
    let sums = room.min(MAX_SUMS);
    if count <= sums || sums < MIN_SUMS {
        return full_body(members, places);
    }
    head.push(sums as u8);
    for sum in &members.sums[..sums] {
        head.extend_from_slice(&sum.to_be_bytes());
    }
    head.extend_from_slice(places);
    head
}

/// Encodes the values and their places.
fn encode_places(positions: &[Level]) -> Vec<u8> {
    let mut values: Vec<&Level> = Vec::new();
    let mut places: Vec<usize> = Vec::with_capacity(positions.len());
    for position in positions {
        let known = match places.last() {
            Some(last) if values[*last] == position => Some(*last),
            _ => values.iter().position(|value| *value == position),
        };
        places.push(known.unwrap_or_else(|| {
            values.push(position);
            values.len() - 1
        }));
    }
    let mut to = Vec::new();
    write_number(&mut to, values.len());
    let mut before: Option<&Level> = None;
    for value in &values {
        write_value(&mut to, value, before.replace(value));
    }
    if values.len() > 1 {
        let written = [in_runs(&places), in_bits(&places, values.len()), in_runs_but_one(&places, values.len())];
        let shortest = (0..written.len()).min_by_key(|kind| written[*kind].len()).unwrap_or_default();
        to.push(shortest as u8);
        to.extend_from_slice(&written[shortest]);
    }
    to
}

fn write_value(to: &mut Vec<u8>, value: &Level, before: Option<&Level>) {
    let has_version = before.is_none_or(|before| before.version != value.version);
    let pairs = before.into_iter().flat_map(|before| value.inside.iter().zip(&*before.inside));
    let shared = pairs.take_while(|(one, other)| one == other).count();
    let has_shared = shared >= MIN_SHARED;
    let signs = usize::from(has_version) * HAS_VERSION + usize::from(has_shared) * HAS_SHARED;
    write_number(to, value.inside.len() * SIGNS + signs);
    if has_version {
        to.push(u8::try_from(value.version).unwrap_or_default());
    }
    if has_shared {
        write_number(to, shared);
    }
    to.extend_from_slice(&value.inside[if has_shared { shared } else { 0 }..]);
}

fn in_runs(places: &[usize]) -> Vec<u8> {
    let mut to = Vec::new();
    write_runs(&mut to, places);
    to
}

fn write_runs(to: &mut Vec<u8>, places: &[usize]) {
    for run in places.chunk_by(|one, next| one == next) {
        write_number(to, run[0]);
        write_number(to, run.len());
    }
}

/// The places of the value with the most runs as one bit for each job, and the others without them in runs.
fn in_runs_but_one(places: &[usize], values: usize) -> Vec<u8> {
    let mut runs = vec![0; values];
    places.chunk_by(|one, next| one == next).for_each(|run| runs[run[0]] += 1);
    let strewn = (0..values).rev().max_by_key(|value| runs[*value]).unwrap_or_default();
    let (mut to, others): (_, Vec<usize>) =
        (Vec::new(), places.iter().copied().filter(|place| *place != strewn).collect());
    write_number(&mut to, strewn);
    let is_strewn: Vec<usize> = places.iter().map(|place| usize::from(*place == strewn)).collect();
    to.extend(in_bits(&is_strewn, 2));
    write_runs(&mut to, &others);
    to
}

/// The bits of a number below `values`.
fn width(values: usize) -> usize {
    (usize::BITS - (values - 1).leading_zeros()) as usize
}

fn in_bits(places: &[usize], values: usize) -> Vec<u8> {
    let width = width(values);
    let mut to = vec![0_u8; (places.len() * width).div_ceil(8)];
    for (index, place) in places.iter().enumerate() {
        for bit in (0..width).filter(|bit| place >> bit & 1 == 1) {
            let at = index * width + bit;
            to[at / 8] |= 1 << (at % 8);
        }
    }
    to
}

/// Returns the hashes of the cursor's own set, in their order.
fn read_members(rest: &mut Reader<'_>, members: &Members) -> Option<Vec<u32>> {
    let form = rest.take(1)?[0];
    let count = rest.number().filter(|count| (1..=MAX_MEMBERS).contains(count))?;
    let word = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap_or_default());
    if form == OF_HASHES {
        let known: Vec<u32> = rest.take(4 * count)?.chunks_exact(4).map(word).collect();
        return known.is_sorted().then_some(known);
    }
    let sums = usize::from(rest.take(1)?[0]);
    if form != OF_A_SKETCH || !(MIN_SUMS..=MAX_SUMS).contains(&sums) || members.has_twins() {
        return None;
    }
    let theirs = rest.take(sketch::SUM_BYTES * sums)?.chunks_exact(sketch::SUM_BYTES).map(word);
    let both: Vec<u32> = theirs.zip(&members.sums).map(|(their, our)| their ^ our).collect();
    let different = sketch::difference(&both)?;
    let kept = members.hashes.iter().filter(|hash| !different.contains(hash));
    let gone = different.iter().filter(|hash| members.hashes.binary_search(hash).is_err());
    let mut known: Vec<u32> = kept.chain(gone).copied().collect();
    known.sort_unstable();
    (known.len() == count).then_some(known)
}

fn read_values(rest: &mut Reader<'_>) -> Option<Vec<Level>> {
    let count = rest.number().filter(|count| (1..=MAX_MEMBERS).contains(count))?;
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        let value = read_value(rest, values.last())?;
        values.push(value);
    }
    Some(values)
}

fn read_value(rest: &mut Reader<'_>, before: Option<&Level>) -> Option<Level> {
    let head = rest.number()?;
    let length = Some(head / SIGNS).filter(|length| *length <= Cursor::MAX_INSIDE)?;
    let version = match head & HAS_VERSION {
        0 => before?.version,
        _ => char::from(rest.take(1)?[0]),
    };
    let mut inside = Vec::with_capacity(length);
    if head & HAS_SHARED != 0 {
        let shared = rest.number().filter(|shared| *shared <= length)?;
        inside.extend_from_slice(before?.inside.get(..shared)?);
    }
    inside.extend_from_slice(rest.take(length - inside.len())?);
    Some(Level { version, inside: inside.into() })
}

fn read_places(rest: &mut Reader<'_>, jobs: usize, values: usize) -> Option<Vec<usize>> {
    if values == 1 {
        return Some(vec![0; jobs]);
    }
    let places: Vec<usize> = match rest.take(1)?[0] {
        0 => read_runs(rest, jobs)?,
        1 => read_bits(rest, jobs, values)?,
        2 => {
            let strewn = rest.number()?;
            let is_strewn = read_bits(rest, jobs, 2)?;
            let others = is_strewn.iter().filter(|is_strewn| **is_strewn == 0).count();
            let mut others = read_runs(rest, others)?.into_iter();
            let place = |is_strewn: usize| if is_strewn == 1 { Some(strewn) } else { others.next() };
            is_strewn.into_iter().map(place).collect::<Option<Vec<usize>>>()?
        }
        _ => return None,
    };
    places.iter().all(|place| *place < values).then_some(places)
}

fn read_runs(rest: &mut Reader<'_>, jobs: usize) -> Option<Vec<usize>> {
    let mut places = Vec::with_capacity(jobs);
    while places.len() < jobs {
        let (place, length) = (rest.number()?, rest.number()?);
        (1..=jobs - places.len()).contains(&length).then_some(())?;
        places.extend(std::iter::repeat_n(place, length));
    }
    Some(places)
}

fn read_bits(rest: &mut Reader<'_>, jobs: usize, values: usize) -> Option<Vec<usize>> {
    let width = width(values);
    let bytes = rest.take((jobs * width).div_ceil(8))?;
    let bit = |at: usize| usize::from(bytes[at / 8] >> (at % 8) & 1);
    Some((0..jobs).map(|job| (0..width).map(|digit| bit(job * width + digit) << digit).sum()).collect())
}

fn write_number(to: &mut Vec<u8>, number: usize) {
    super::varint::write(to, number as u64);
}

/// The bytes that are not read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<usize> {
        usize::try_from(super::varint::read(&mut self.0)?).ok()
    }
}

#[cfg(test)]
mod tests;
