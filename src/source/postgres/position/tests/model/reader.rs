//! The reader of the model: whole reads, partial ones, and those of who joins.

use super::*;

/// A list of the open transactions, read before the rows are.
#[derive(Clone, Copy)]
pub(super) struct List {
    /// The settled part ends with it.
    pub(super) is_end: bool,
    /// Transactions between the last one and the list's mark.
    pub(super) lacks: u64,
}

/// A way to read one answer of the database.
#[derive(Clone, Copy)]
pub struct Poll {
    /// Rows after which the reader is gone. Whoever takes over the token goes on from there.
    pub(super) stops_after: Option<usize>,
    pub(super) list: Option<List>,
    pub(super) counts: bool,
    pub(super) is_fresh: bool,
    /// The answer has no more rows than that.
    pub(super) is_limited: bool,
    pub(super) floor: Option<Floor>,
}

pub const WHOLE: Poll =
    Poll { stops_after: None, list: None, counts: false, is_fresh: true, is_limited: false, floor: None };

impl Model {
    /// Delivers one answer of the database, whole or in part. A range that a partial read has left is finished first.
    ///
    /// Returns the mark of the server, and true if the position that the answer begins at leaves no trace.
    pub fn poll(&mut self, how: Poll) -> (u64, bool) {
        let (old, new) = (OLD, CursorScheme::default());
        let is_in_columns = self.position.scheme == new && !self.position.is_beginning();
        let best = if self.has_columns && (how.is_fresh || is_in_columns) { new } else { old };
        if self.position.is_beginning() {
            self.position.adopt(best);
        }
        if self.position.scheme.xids == XidSource::Column {
            self.position.above = None;
        }
        let is_partial =
            self.position.scheme == best && best == old && self.position.range().is_none() && !self.dedupes;
        let floor = how.floor.filter(|_| is_partial);
        let result = match (floor, self.position.floor_of_range()) {
            (Some(floor), _) => self.poll_part(how, self.position.above().map_or(floor, |above| above.floor), best),
            (None, Some(floor)) => {
                self.rest_of_range(how, floor);
                if self.position.floor_of_range().is_some() {
                    return (0, false);
                }
                self.poll_whole(how, best)
            }
            (None, None) => self.poll_whole(how, best),
        };
        let (token, left_out) = self.position.to_bytes(usize::MAX);
        assert!(!left_out);
        assert_eq!(Position::from_bytes(self.position.scheme, &token).as_ref(), Some(&self.position));
        result
    }

    fn poll_whole(&mut self, how: Poll, best: CursorScheme) -> (u64, bool) {
        let (mark, end) = self.mark_and_end(&self.position, how);
        let is_superseded = self.position.is_superseded_by(&end, mark);
        let mut position = std::mem::take(&mut self.position);
        let listed = self.list_beside_end(position.scheme, how);
        let listed = listed.map(|listed| match position.above() {
            Some(above) => listed.union(&above.ended),
            None => listed,
        });
        if self.deliver(&mut position, how, None, &end, listed) {
            position.settle_above();
            position.adopt(best);
            if self.dedupes {
                position.note_moment();
            }
        }
        self.position = position;
        (mark, is_superseded)
    }

    fn poll_part(&mut self, how: Poll, floor: Floor, best: CursorScheme) -> (u64, bool) {
        let mut part = self.position.part_above();
        let (mark, end) = self.mark_and_end(&part, how);
        let listed = self.list_beside_end(part.scheme, how);
        if self.deliver(&mut part, how, Some(floor), &end, listed) {
            part.adopt(best);
        }
        self.position = self.position.with_part_above(floor, &part);
        (mark, false)
    }

    fn rest_of_range(&mut self, how: Poll, floor: Floor) {
        let mut part = self.position.part_above();
        if let Some(Range { end, .. }) = part.range().cloned() {
            self.deliver_range(&mut part, how, Some(floor), &end);
        }
        self.position = self.position.with_part_above(floor, &part);
    }

    /// Everything that had ended, as a list of the open transactions says it, below the mark that the list has.
    fn listed(&self, scheme: CursorScheme, lacks: u64) -> EndedXids {
        let next = self.next_xid + 100;
        let subs = |open: &Open| if scheme.xids == XidSource::System { open.subs.clone() } else { Vec::new() };
        let open = self.open.iter().flat_map(|open| subs(open).into_iter().chain([open.xid]));
        EndedXids::listed(next, open.collect()).truncated(self.reached(scheme).saturating_sub(lacks))
    }

    fn list_beside_end(&self, scheme: CursorScheme, how: Poll) -> Option<EndedXids> {
        how.list.filter(|list| !list.is_end).map(|list| self.listed(scheme, list.lacks))
    }

    /// Below it everything that is visible is durable.
    fn reached(&self, scheme: CursorScheme) -> u64 {
        let last = self.committed.iter().map(|row| row.xid(scheme)).max();
        self.durable.max(last.map_or(0, |last| last + 1)).min(self.next_xid + 100)
    }

    /// The server's mark, and the end of the settled part of an answer.
    fn mark_and_end(&self, position: &Position, how: Poll) -> (u64, EndedXids) {
        let mark = self.mark().min(self.reached(position.scheme));
        let next_end = position.next_end(mark);
        let listed = how.list.filter(|list| list.is_end).map(|list| self.listed(position.scheme, list.lacks));
        let end = match (position.range(), listed) {
            (Some(range), _) => range.end.clone(),
            (None, Some(listed)) if listed.mark > next_end.mark => listed,
            (None, _) => next_end,
        };
        (mark, end)
    }

    /// Delivers the rows that a position lacks, of those above a floor if there is one, and moves it past them. Returns true
    /// if none was left out.
    fn deliver(
        &mut self,
        position: &mut Position,
        how: Poll,
        floor: Option<Floor>,
        end: &EndedXids,
        listed: Option<EndedXids>,
    ) -> bool {
        let lacking = self.lacking(position, floor);
        self.deliver_rows(lacking, position, how, floor, end, listed)
    }

    /// The same, of a range alone.
    fn deliver_range(&mut self, position: &mut Position, how: Poll, floor: Option<Floor>, end: &EndedXids) -> bool {
        let mut lacking = self.lacking(position, floor);
        lacking.retain(|row| end.contains(row.xid(position.scheme)));
        self.deliver_rows(lacking, position, how, floor, end, None)
    }

    /// The rows that a position lacks, by key.
    fn lacking(&mut self, position: &Position, floor: Option<Floor>) -> Vec<Row> {
        let scheme = position.scheme;
        let rank = |row: &Row| (matches!(row.key(scheme), Key::Number(_)), row.key(scheme));
        self.committed.sort_by_key(rank);
        let (mut nth, mut nth_published) = (BTreeMap::<u64, u64>::new(), BTreeMap::<u64, u64>::new());
        let mut rows = Vec::new();
        for row in &self.committed {
            let nth = nth.entry(row.xid(scheme)).or_default();
            *nth += 1;
            let is_published = self.published.as_ref().is_none_or(|published| {
                let nth = nth_published.entry(row.xid(published.scheme)).or_default();
                *nth += 1;
                row.is_delivered(published, *nth)
            });
            let is_in_scope = is_published && floor.is_none_or(|floor| row.is_above(floor));
            if is_in_scope && !row.is_delivered(position, *nth) {
                rows.push(row.clone());
            }
        }
        rows
    }

    fn deliver_rows(
        &mut self,
        mut rows: Vec<Row>,
        position: &mut Position,
        how: Poll,
        floor: Option<Floor>,
        end: &EndedXids,
        listed: Option<EndedXids>,
    ) -> bool {
        let Poll { stops_after, list, counts, is_limited, .. } = how;
        let scheme = position.scheme;
        let ends_with_list = list.is_some_and(|list| list.is_end);
        rows.sort_by_key(|row| !end.contains(row.xid(scheme)));
        // Who joins is not given the position behind the last row, but that of the channel.
        let is_last_missing = |most| self.published.is_some() && most == rows.len();
        let is_cut = stops_after.is_some_and(|most| most < rows.len() || is_last_missing(most));
        let is_whole = !(is_cut && is_limited);
        if let Some(most) = stops_after.filter(|_| !is_whole) {
            rows.truncate(most);
        }
        let mut one_each = BTreeSet::new();
        let mut settled = rows.iter().map(|row| row.xid(scheme)).filter(|xid| end.contains(*xid));
        let can_count =
            scheme.xids == XidSource::Column || settled.all(|xid| one_each.insert(xid) && !position.claims_above(xid));
        let is_in_order = position.range().is_none() && floor.is_none() && !ends_with_list;
        let counts_settled = counts && can_count && is_whole && is_in_order;
        let listed = listed.filter(|_| is_whole);
        let is_repeat = |row: &Row| self.dedupes && position.has_delivered_all_of(self.first_xid(row, scheme));
        let repeats: BTreeSet<i64> = rows.iter().filter(|row| is_repeat(row)).map(|row| row.at).collect();
        let (end, is_above_floor) = (end.clone(), floor.is_some());
        let answer = UndeliveredRows {
            rows,
            end: end.clone(),
            listed: listed.clone(),
            is_whole,
            is_above_floor,
            counts_settled,
        };
        let steps = answer.into_steps(position, |position| position.counted.len() <= 1, |row| row.xid(scheme));
        for DeliveryStep { finished, row, advance } in steps.into_iter().take(stops_after.unwrap_or(usize::MAX)) {
            if let Some(ended) = finished {
                position.finish(&ended);
            }
            position.advance(row.xid(scheme), row.key(scheme), &advance);
            if repeats.contains(&row.at) {
                let is_known = self.delivered.iter().any(|delivered| delivered.at == row.at);
                assert!(is_known, "left out: {row:?}");
            } else {
                self.delivered.push(row);
            }
        }
        if !is_cut {
            position.finish_all(&end, listed.as_ref());
        }
        !is_cut
    }

    /// Brings one who joins level with what was published, as `read_missing` does it, and lets it leave after so many
    /// events. Who stays goes on from there.
    pub fn join(&mut self, published: &Position, stops_after: Option<usize>) {
        let before = self.delivered.len();
        self.published = Some(published.clone());
        if self.position.is_beginning() {
            self.position.adopt(published.scheme);
        }
        loop {
            let left = stops_after.map(|most| most - (self.delivered.len() - before));
            let how = Poll { stops_after: left, ..WHOLE };
            if let Some(floor) = self.position.floor_of_range() {
                self.rest_of_range(how, floor);
                if self.position.floor_of_range().is_some() {
                    break;
                }
                continue;
            }
            let range = self.position.range().map(|range| range.end.clone());
            let end = range.clone().unwrap_or_else(|| self.position.next_end(published.settled().lowest_open()));
            let mut position = std::mem::take(&mut self.position);
            let listed = Some(published.settled().clone()).filter(|_| position.scheme == published.scheme);
            let has_all = match &range {
                Some(end) => self.deliver_range(&mut position, how, None, end),
                None => self.deliver(&mut position, how, None, &end, listed),
            };
            self.position = position;
            if has_all && range.is_none() {
                self.position = published.clone();
            }
            if !has_all || range.is_none() {
                break;
            }
        }
        self.published = None;
    }

    /// Begins a channel where the last page of a reader ends, as `build_page` does it, whatever position the reader came
    /// with. From here on `delivered` is what honest readers beside it have.
    pub fn begin_channel(&mut self, foreign: Position, lists: bool) {
        let best = if self.has_columns { CursorScheme::default() } else { OLD };
        self.delivered.clear();
        self.position = foreign.clone();
        let (mark, is_superseded) =
            self.poll(Poll { list: lists.then_some(List { is_end: false, lacks: 0 }), ..WHOLE });
        if self.delivered.is_empty() && foreign.is_reached_mark(mark, best) {
            self.position = foreign;
        } else if !is_superseded || self.position.scheme != best {
            let mut counted = BTreeMap::new();
            for row in self.committed.iter().filter(|row| row.xid(best) >= mark) {
                *counted.entry(row.xid(best)).or_default() += 1;
            }
            self.position = Position::new_settled(best, EndedXids::below(mark), counted);
            if best == OLD {
                self.position = std::mem::take(&mut self.position).with_whole_transactions();
            }
        }
        self.delivered = self.committed.clone();
    }
}
