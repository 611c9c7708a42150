//! Delivery of the rows of a page: the events, their cursors, and the position behind them.

use super::super::position::{DeliveryStep, Position, UndeliveredRows};
use super::super::tables::XidSource;
use super::PageRows;
use crate::cursor::Cursor;
use crate::event::{Event, JobId};
use crate::source::{Limit, PageBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

/// Events with their cursors, and true if nothing is left.
pub type Delivered = (Vec<(Event, Cursor)>, bool);

/// A cursor has no room for all that its position says.
pub struct NoRoom;

impl PageRows {
    /// Drops the rows of transactions that a cursor has no room to count. If that would drop all rows, and the reader cannot
    /// wait, it keeps all: rather twice than never.
    pub(super) fn truncated_to_cursor(mut self, position: &Position, can_wait: bool) -> Self {
        let mut position = position.clone();
        let is_counted = |xid| {
            let is_listed = self.listed.as_ref().is_some_and(|listed| listed.contains(xid));
            !self.end.contains(xid) && !is_listed
        };
        position.finish_all(&self.end, self.listed.as_ref());
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        for row in self.rows.iter().filter(|row| is_counted(row.xid)) {
            *counts.entry(row.xid).or_default() += 1;
        }
        let mut dropped = BTreeSet::new();
        for (xid, count) in counts {
            let before = position.clone();
            (0..count).for_each(|_| position.count(xid));
            if !position.fits_cursor() {
                position = before;
                dropped.insert(xid);
            }
        }
        if can_wait || self.rows.iter().any(|row| !dropped.contains(&row.xid)) {
            self.rows.retain(|row| !dropped.contains(&row.xid));
            self.has_more |= !dropped.is_empty();
        }
        self
    }

    /// Returns the events that `limit` allows, each with its cursor, and moves the position past them. The flag beside
    /// them is true if nothing is left.
    pub fn deliver(self, job: &JobId, position: &mut Position, limit: Limit) -> Delivered {
        let cursor = |position: &Position| Ok::<_, Infallible>(position.to_cursor(job));
        let Ok(delivered) = self.try_deliver(position, limit, cursor);
        delivered
    }

    /// The same, where each cursor has room for all that its position says, and later, when all rows are read, for counts or a
    /// range beside it.
    pub fn deliver_with_room(self, job: &JobId, position: &mut Position, limit: Limit) -> Result<Delivered, NoRoom> {
        self.try_deliver(position, limit, |position| {
            let is_within_range = position.floor_of_range().is_some();
            let has_room = position.fits_list() || is_within_range && position.encoded_length() <= Cursor::MAX_INSIDE;
            if has_room { Ok(position.to_cursor(job)) } else { Err(NoRoom) }
        })
    }

    /// Delivers the rows of all of the job, or of the part above a floor.
    fn try_deliver<E>(
        self,
        position: &mut Position,
        limit: Limit,
        cursor: impl Fn(&Position) -> Result<Cursor, E>,
    ) -> Result<Delivered, E> {
        let Some(floor) = self.floor else { return self.deliver_in_order(position, limit, cursor) };
        let (before, mut part) = (position.clone(), position.part_above());
        let after = |part: &Position| before.with_part_above(floor, part);
        let delivered = self.deliver_in_order(&mut part, limit, |part| cursor(&after(part)))?;
        *position = after(&part);
        Ok(delivered)
    }

    fn deliver_in_order<E>(
        self,
        position: &mut Position,
        limit: Limit,
        cursor: impl Fn(&Position) -> Result<Cursor, E>,
    ) -> Result<Delivered, E> {
        let counts_settled = self.fits_as_counts(position, limit);
        // Where repeats are left out, all of these may fit, and rows that the statement left out come next. So they do
        // where transactions were left out of a page that was cut.
        let stays_in_range = self.is_cut && self.has_newer() && position.scheme.xids == XidSource::System;
        let is_cut = self.rows.len() > limit.events || self.is_full || stays_in_range;
        let (is_whole, is_above_floor) = (!self.is_cut, self.floor.is_some());
        let Self { rows, end, listed, has_more, best, is_of_all, notes_moment, .. } = self;
        let mut page = PageBuilder::new(limit);
        let (end_of_range, list) = (end.clone(), listed.clone());
        let undelivered = UndeliveredRows { rows, end, listed, is_whole, is_above_floor, counts_settled };
        for step in undelivered.into_steps(position, Position::fits_cursor, |row| row.xid) {
            let DeliveryStep { finished, row, advance } = step;
            if page.is_full() {
                return Ok((page.into_events(), false));
            }
            if let Some(finished) = finished {
                position.finish(&finished);
            }
            position.advance(row.xid, row.key, &advance);
            if !row.is_repeat {
                page.push(row.event, cursor(position)?);
            }
        }
        if is_cut {
            return Ok((page.into_events(), false));
        }
        position.finish_all(&end_of_range, list.as_ref());
        if !has_more {
            if is_of_all {
                position.settle_above();
            }
            position.adopt(best);
        }
        let mut events = page.into_events();
        if notes_moment && !has_more {
            position.note_moment();
            // Behind the newest event come none but repeats, so whoever has it has all of this.
            if let Some((_, last)) = events.last_mut() {
                *last = cursor(position)?;
            }
        }
        Ok((events, !has_more))
    }

    fn has_newer(&self) -> bool {
        self.rows.iter().any(|row| !self.end.contains(row.xid))
    }

    /// Returns true if counting the rows of the settled part, too, takes less room than a range with its end and key.
    fn fits_as_counts(&self, position: &Position, limit: Limit) -> bool {
        if position.range().is_some() || self.rows.len() > limit.events || self.is_full || self.floor.is_some() {
            return false;
        }
        let mut counted = position.clone();
        let mut first_of = BTreeSet::new();
        for row in self.rows.iter().filter(|row| self.end.contains(row.xid)) {
            // An UPDATE takes a row away from those that are counted, and the next one seems to be delivered. So it seems of
            // a row where others were delivered by their number.
            let is_all_of_its_own = first_of.insert(row.xid) && !position.claims_above(row.xid);
            if !is_all_of_its_own && position.scheme.xids == XidSource::System {
                return false;
            }
            counted.count(row.xid);
        }
        counted.fits_cursor()
    }
}
