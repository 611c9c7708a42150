//! The bytes of a position: numbers as LEB128, sets and the map by differences.
//!
//! ```text
//! settled    mark, open transactions
//! range      0, or: kind of key 1 to 4, key, end as it differs from settled; the kind is 8 more where the life of the
//!            database comes first, in 2 bytes, 16 more where the claims are of a moment, and 32 more where ended
//!            transactions are named beside those below a mark: behind the key those of settled, their number and
//!            differences; then the end, as 1 + the number of transactions that it has more, and differences; or 0, the
//!            end as it differs, and those above its mark
//! above      where the kind of key is 64 more, 192 more for a floor that is a time: the floor, and the transactions of which
//!            all above it was delivered, coded as the end of a range beside settled; then, where there is a range, 1 if it is
//!            one above the floor, else 0, and its end, as it differs from these transactions, or from settled
//! counted    xid as a difference to the one before, number of rows; and so on to the end
//! ```

use super::super::tables::CursorScheme;
use super::{Above, Claims, EndedXids, Floor, Key, KeyId, Life, Position, Range};
use crate::cursor::varint;
use std::collections::{BTreeMap, BTreeSet};

/// A transaction id that no server reaches; it keeps sums from overflowing.
const MAX_XID: u64 = 1 << 62;

/// Most bytes of the bitmap that lists open transactions close below a mark. Older ones are listed by their distances.
const MAX_BITMAP_BYTES: u64 = 32;

/// Highest kind of a range's key; 0 where there is no range.
const MAX_KIND: u8 = 4;
/// Added to the kind where a life stands behind it.
const HAS_LIFE: u8 = 8;
/// Added to the kind where the claims are of a moment.
const IS_OF_MOMENT: u8 = 16;
/// Added to the kind where ended transactions are named beside those below a mark.
const HAS_ALSO: u8 = 32;
/// Added to the kind where something is said of rows above a floor.
const HAS_ABOVE: u8 = 64;
/// Added to that where the floor is a time.
const IS_FLOOR_OF_TIME: u8 = 128;

impl Position {
    /// Encodes the position in at most `max_bytes`; returns true beside the bytes where that left something out. The
    /// newest counts go first: the rows that they counted are repeated rather than lost.
    pub fn to_bytes(&self, max_bytes: usize) -> (Vec<u8>, bool) {
        let mut bytes = Vec::with_capacity(16);
        put_ended(&mut bytes, &self.settled);
        self.put_kind(&mut bytes);
        self.coded_range().into_iter().for_each(|range| put_key(&mut bytes, &range.key));
        if self.has_also() {
            put_also(&mut bytes, &self.settled);
        }
        match &self.range {
            range if self.above.is_some() => self.put_above(&mut bytes, range.as_ref()),
            Some(range) if self.has_also() => put_end_and_also(&mut bytes, &range.end, &self.settled),
            Some(range) => put_end(&mut bytes, &range.end, &self.settled),
            None => {}
        }
        if bytes.len() > max_bytes {
            return (self.shortened().to_bytes(max_bytes).0, true);
        }
        let mut previous = self.settled.lowest_open();
        for (xid, count) in &self.counted {
            let length = bytes.len();
            // The first may be below the lowest open one, so the difference has a sign.
            varint::write_signed(&mut bytes, *xid as i64 - previous as i64);
            varint::write(&mut bytes, *count);
            if bytes.len() > max_bytes {
                bytes.truncate(length);
                return (bytes, true);
            }
            previous = *xid;
        }
        (bytes, false)
    }

    /// Length in bytes of the whole position.
    pub fn encoded_length(&self) -> usize {
        self.to_bytes(usize::MAX).0.len()
    }

    /// Returns true where single transactions are named that have ended beside those below a mark.
    fn has_also(&self) -> bool {
        let is_beside = |Range { end, .. }: &Range| !end.also.is_empty() || end.mark == self.settled.mark;
        !self.settled.also.is_empty() || self.range.as_ref().is_some_and(is_beside)
    }

    /// The range whose key is encoded: a whole read does not begin before one above a floor is finished, nor a partial read
    /// before one of all rows is.
    fn coded_range(&self) -> Option<&Range> {
        self.above.as_ref().and_then(|above| above.range.as_ref()).or(self.range.as_ref())
    }

    fn put_above(&self, to: &mut Vec<u8>, of_all_rows: Option<&Range>) {
        let Some(Above { floor, ended, range }) = &self.above else { return };
        varint::write_signed(to, floor.number());
        put_end_and_also(to, ended, &self.settled);
        match (range, of_all_rows) {
            (Some(range), _) => {
                to.push(1);
                put_end_and_also(to, &range.end, ended);
            }
            (None, Some(range)) => {
                to.push(0);
                put_end_and_also(to, &range.end, &self.settled);
            }
            (None, None) => {}
        }
    }

    /// A position that repeats rows: of the newest transaction above the marks, else of a floor, else of the whole range, else
    /// everything from the lowest open transaction on.
    fn shortened(&self) -> Self {
        let mut shorter = Self { counted: BTreeMap::new(), ..self.clone() };
        let above = shorter.above.iter_mut().flat_map(|Above { ended, range, .. }| {
            range.iter_mut().map(|range| &mut range.end).chain(std::iter::once(ended))
        });
        let ranges = shorter.range.iter_mut().map(|range| &mut range.end);
        let mut named = above.chain(ranges).chain(std::iter::once(&mut shorter.settled));
        if named.any(|ended| ended.also.pop_last().is_some()) {
            return shorter;
        }
        if let Some(above) = &mut shorter.above {
            if above.range.take().is_none() {
                shorter.above = None;
            }
            return shorter;
        }
        let settled = match self.range {
            Some(_) => self.settled.clone(),
            None => EndedXids::below(self.settled.lowest_open()),
        };
        Self { scheme: self.scheme, life: self.life, settled, ..Self::default() }
    }

    fn put_kind(&self, to: &mut Vec<u8>) {
        let bit = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        let of_key = self.coded_range().map_or(0, |range| kind_of(&range.key));
        let is_of_moment = self.claims == Claims::Moment;
        let facts = bit(is_of_moment, IS_OF_MOMENT) | bit(self.has_also(), HAS_ALSO);
        let facts = facts | bit(self.above.is_some(), HAS_ABOVE);
        let is_of_time = self.above.as_ref().is_some_and(|above| matches!(above.floor, Floor::Time(_)));
        let facts = facts | bit(is_of_time, IS_FLOOR_OF_TIME);
        to.push(of_key | bit(self.life.is_some(), HAS_LIFE) | facts);
        to.extend(self.life.iter().flat_map(|Life(life)| life.to_be_bytes()));
    }

    /// Decodes foreign bytes; `None` for those that [`Position::to_bytes`] never writes. No position has two encodings.
    pub fn from_bytes(scheme: CursorScheme, bytes: &[u8]) -> Option<Self> {
        let from = &mut &*bytes;
        let mut settled = get_ended(from)?;
        let Kind { of_key, life, claims, has_also, floor } = Kind::get(from)?;
        let key = if of_key == 0 { None } else { Some(get_key(from, of_key)?) };
        if has_also {
            settled.also = get_also(from, settled.mark)?;
        }
        let (above, range) = match (floor, key) {
            (Some(floor), key) => get_above(from, floor, &settled, key)?,
            (None, None) => (None, None),
            (None, Some(key)) if has_also => (None, Some(Range { end: get_end_and_also(from, &settled)?, key })),
            (None, Some(key)) => (None, Some(Range { end: get_end(from, &settled)?, key })),
        };
        let mut counted = BTreeMap::new();
        let mut previous = settled.lowest_open();
        while !from.is_empty() {
            let xid = u64::try_from((previous as i64).checked_add(varint::read_signed(from)?)?).ok()?;
            if xid > MAX_XID {
                return None;
            }
            counted.insert(xid, varint::read(from).filter(|count| *count > 0)?);
            previous = xid;
        }
        Some(Self { scheme, life, settled, range, counted, above, claims })
            .filter(|position| position.to_bytes(usize::MAX).0 == bytes)
    }
}

fn put_ended(to: &mut Vec<u8>, ended: &EndedXids) {
    varint::write(to, ended.mark);
    put_open(to, ended.mark, ended.open.iter().rev().copied());
}

fn get_ended(from: &mut &[u8]) -> Option<EndedXids> {
    let mark = varint::read(from).filter(|mark| *mark <= MAX_XID)?;
    Some(EndedXids::listed(mark, get_open(from, mark)?))
}

/// Encodes the end of a range as it differs from `settled`: 1 + how much higher its mark is; a bit for each transaction
/// open there, which is set if it is open here; the open ones between the marks. Where it does not follow from `settled`,
/// or that is shorter: 0, then the whole of it.
fn put_end(to: &mut Vec<u8>, end: &EndedXids, settled: &EndedXids) {
    let mut whole = vec![0];
    put_ended(&mut whole, end);
    let difference = end.covers_below_mark(settled).then(|| {
        let mut bytes = Vec::new();
        varint::write(&mut bytes, 1 + end.mark - settled.mark);
        let mut bits = vec![0; settled.open.len().div_ceil(8)];
        for (index, _) in settled.open.iter().enumerate().filter(|(_, xid)| end.open.contains(xid)) {
            bits[index / 8] |= 1 << (index % 8);
        }
        bytes.extend_from_slice(&bits);
        put_open(&mut bytes, end.mark, end.open.range(settled.mark..).rev().copied());
        bytes
    });
    to.extend(shorter(difference, whole));
}

/// The form that is used of two: the shorter one, and of equals the first.
fn shorter(first: Option<Vec<u8>>, second: Vec<u8>) -> Vec<u8> {
    first.filter(|first| first.len() <= second.len()).unwrap_or(second)
}

fn get_end(from: &mut &[u8], settled: &EndedXids) -> Option<EndedXids> {
    let difference = match varint::read(from)? {
        0 => return get_ended(from),
        more => more - 1,
    };
    let mark = settled.mark.checked_add(difference).filter(|mark| *mark <= MAX_XID)?;
    let bits = take(from, settled.open.len().div_ceil(8))?;
    let still_open = settled.open.iter().enumerate().filter(|(index, _)| bits[index / 8] & (1 << (index % 8)) != 0);
    let mut open: BTreeSet<u64> = still_open.map(|(_, xid)| *xid).collect();
    open.extend(get_open(from, mark)?);
    Some(EndedXids::listed(mark, open))
}

/// Encodes the ended transactions above a mark: their number, and the difference of each to the one before.
fn put_also(to: &mut Vec<u8>, ended: &EndedXids) {
    varint::write(to, ended.also.len() as u64);
    let mut previous = ended.mark;
    for xid in &ended.also {
        varint::write(to, xid - previous);
        previous = *xid;
    }
}

fn get_also(from: &mut &[u8], mark: u64) -> Option<BTreeSet<u64>> {
    let (mut also, mut previous) = (BTreeSet::new(), mark);
    for _ in 0..varint::read(from)? {
        previous = previous.checked_add(varint::read(from)?).filter(|xid| *xid <= MAX_XID)?;
        also.insert(previous);
    }
    Some(also)
}

/// Encodes the end of a range where transactions above a mark may be named: 1 + the number of transactions that it has more
/// than `settled`, and the difference of each to the one before. Where it has not only more, or that is shorter: 0, the end
/// as it differs, and those above its mark.
fn put_end_and_also(to: &mut Vec<u8>, end: &EndedXids, settled: &EndedXids) {
    let mut whole = vec![0];
    put_end(&mut whole, end, settled);
    put_also(&mut whole, end);
    let has_only_more = end.mark == settled.mark && end.open.is_subset(&settled.open);
    let named = has_only_more.then(|| {
        let more: BTreeSet<u64> = settled.open.difference(&end.open).chain(&end.also).copied().collect();
        let mut bytes = Vec::new();
        varint::write(&mut bytes, 1 + more.len() as u64);
        let mut previous = settled.lowest_open();
        for xid in more {
            varint::write_signed(&mut bytes, xid as i64 - previous as i64);
            previous = xid;
        }
        bytes
    });
    to.extend(shorter(named, whole));
}

fn get_end_and_also(from: &mut &[u8], settled: &EndedXids) -> Option<EndedXids> {
    let count = match varint::read(from)? {
        0 => {
            let end = get_end(from, settled)?;
            let also = get_also(from, end.mark)?;
            return Some(EndedXids { also, ..end });
        }
        more => more - 1,
    };
    let (mut end, mut previous) = (settled.without_also(), settled.lowest_open());
    for _ in 0..count {
        previous = u64::try_from((previous as i64).checked_add(varint::read_signed(from)?)?).ok()?;
        end.add(Some(previous).filter(|xid| *xid <= MAX_XID)?);
    }
    Some(end)
}

/// Decodes what is said of a floor, and the range with this key, which is one above it or one of all rows.
fn get_above(
    from: &mut &[u8],
    floor: fn(i64) -> Floor,
    settled: &EndedXids,
    key: Option<Key>,
) -> Option<(Option<Above>, Option<Range>)> {
    let floor = floor(varint::read_signed(from)?);
    let ended = get_end_and_also(from, settled)?;
    let (mut above, mut of_all_rows) = (Above { floor, ended, range: None }, None);
    if let Some(key) = key {
        match take(from, 1)?[0] {
            0 => of_all_rows = Some(Range { end: get_end_and_also(from, settled)?, key }),
            1 => above.range = Some(Range { end: get_end_and_also(from, &above.ended)?, key }),
            _ => return None,
        }
    }
    Some((Some(above), of_all_rows))
}

/// Encodes open transactions below a mark, given the newest first: a bitmap of those close to it, then the distances of
/// the others. Most of them began lately, so the bitmap has the length that makes the whole shortest.
fn put_open(to: &mut Vec<u8>, mark: u64, open: impl Iterator<Item = u64> + Clone) {
    let distances = |bitmap_bytes: u64| {
        let (mut bytes, mut count, mut above) = (Vec::new(), 0, mark);
        for xid in open.clone().filter(|xid| mark - 1 - xid >= bitmap_bytes * 8) {
            varint::write(&mut bytes, above - xid);
            (count, above) = (count + 1, xid);
        }
        (bytes, count)
    };
    let lengths = open.clone().map(|xid| (mark - 1 - xid) / 8 + 1).filter(|length| *length <= MAX_BITMAP_BYTES);
    let total = |length: &u64| length + distances(*length).0.len() as u64;
    let length = std::iter::once(0).chain(lengths).min_by_key(total).unwrap_or_default();
    let mut bitmap = vec![0; length as usize];
    for below in open.clone().map(|xid| mark - 1 - xid).filter(|below| *below < length * 8) {
        bitmap[below as usize / 8] |= 1 << (below % 8);
    }
    let (distances, count) = distances(length);
    varint::write(to, length);
    to.extend_from_slice(&bitmap);
    varint::write(to, count);
    to.extend_from_slice(&distances);
}

fn get_open(from: &mut &[u8], mark: u64) -> Option<BTreeSet<u64>> {
    let mut open = BTreeSet::new();
    let length = varint::read(from).filter(|length| *length <= MAX_BITMAP_BYTES)?;
    let bitmap = take(from, length as usize)?;
    for below in (0..length * 8).filter(|below| bitmap[*below as usize / 8] & (1 << (below % 8)) != 0) {
        open.insert(mark.checked_sub(1 + below)?);
    }
    let mut above = mark;
    for _ in 0..varint::read(from)? {
        above = above.checked_sub(varint::read(from).filter(|distance| *distance > 0)?)?;
        open.insert(above);
    }
    Some(open)
}

/// The byte before a range, and what stands in it beside the kind of the key.
struct Kind {
    of_key: u8,
    life: Option<Life>,
    claims: Claims,
    has_also: bool,
    /// Makes the floor of its number; `None` where nothing is said of one.
    floor: Option<fn(i64) -> Floor>,
}

impl Kind {
    /// `None` for bits that have no meaning.
    fn get(from: &mut &[u8]) -> Option<Self> {
        let byte = take(from, 1)?[0];
        let has = |bit: u8| byte & bit != 0;
        let life = match has(HAS_LIFE) {
            true => Some(Life(u16::from_be_bytes(take(from, 2)?.try_into().ok()?))),
            false => None,
        };
        let claims = if has(IS_OF_MOMENT) { Claims::Moment } else { Claims::Rows };
        let of_key = byte & !(HAS_LIFE | IS_OF_MOMENT | HAS_ALSO | HAS_ABOVE | IS_FLOOR_OF_TIME);
        let floor: Option<fn(i64) -> Floor> = match (has(HAS_ABOVE), has(IS_FLOOR_OF_TIME)) {
            (true, true) => Some(Floor::Time),
            (true, false) => Some(Floor::Number),
            (false, true) => return None,
            (false, false) => None,
        };
        Some(Self { of_key, life, claims, has_also: has(HAS_ALSO), floor }).filter(|_| of_key <= MAX_KIND)
    }
}

fn kind_of(key: &Key) -> u8 {
    match key {
        Key::Number(_) => 1,
        Key::Time { id: KeyId::Whole(id), .. } => {
            if uuid_bytes(id).is_some() {
                2
            } else {
                3
            }
        }
        Key::Time { id: KeyId::Digest(_), .. } => 4,
    }
}

fn put_key(to: &mut Vec<u8>, key: &Key) {
    let (Key::Number(number) | Key::Time { at: number, .. }) = key;
    varint::write_signed(to, *number);
    match key {
        Key::Number(_) => {}
        Key::Time { id: KeyId::Digest(digest), .. } => to.extend_from_slice(digest),
        Key::Time { id: KeyId::Whole(id), .. } => match uuid_bytes(id) {
            Some(uuid) => to.extend_from_slice(&uuid),
            None => {
                varint::write(to, id.len() as u64);
                to.extend_from_slice(id.as_bytes());
            }
        },
    }
}

fn get_key(from: &mut &[u8], kind: u8) -> Option<Key> {
    let number = varint::read_signed(from)?;
    let id = match kind {
        1 => return Some(Key::Number(number)),
        2 => KeyId::Whole(uuid::Uuid::from_slice(take(from, 16)?).ok()?.to_string()),
        3 => {
            let length = usize::try_from(varint::read(from)?).ok().filter(|length| *length <= KeyId::MAX_BYTES)?;
            KeyId::Whole(std::str::from_utf8(take(from, length)?).ok()?.to_string())
        }
        4 => KeyId::Digest(take(from, 8)?.try_into().ok()?),
        _ => return None,
    };
    Some(Key::Time { at: number, id })
}

/// The 16 bytes of a UUID in its usual spelling, which has 36.
pub(super) fn uuid_bytes(id: &str) -> Option<[u8; 16]> {
    let uuid = uuid::Uuid::try_parse(id).ok()?;
    (uuid.to_string() == id).then(|| *uuid.as_bytes())
}

fn take<'a>(from: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(taken)
}
