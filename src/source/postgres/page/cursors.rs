//! Cursors of positions, and what they have room for.

use super::super::position::Position;
use super::super::tables::CursorScheme;
use super::{MAX_CHEAP_COUNT, MAX_COUNT, MAX_COUNTED_BYTES, MAX_COUNTED_XIDS, MAX_COUNTS};
use crate::cursor::Cursor;
use crate::event::JobId;

impl Position {
    /// Makes the cursor for this position. Counts that do not fit are left out, and counted by a metric.
    pub fn to_cursor(&self, job: &JobId) -> Cursor {
        let most = self.with_oldest_counts(MAX_COUNTS);
        let (bytes, is_shortened) = most.as_ref().unwrap_or(self).to_bytes(Cursor::MAX_INSIDE);
        if is_shortened || most.is_some() {
            crate::telemetry::CURSORS_SHORTENED.counter(&[]).increment(1);
            // Logged once, the metric counts the rest.
            static LOG: std::sync::Once = std::sync::Once::new();
            LOG.call_once(|| {
                tracing::warn!(%job, counted = self.counted().len(), "a cursor has no room for all that was counted: whoever resumes with it gets events twice, with the same ids");
            });
        }
        Cursor::seal(self.scheme.letter(), job, &bytes)
    }

    /// Decodes foreign text; `None` if it is no cursor of this job in any scheme, or one such as is never given out.
    pub fn from_cursor(job: &JobId, text: &str) -> Option<Self> {
        let scheme = CursorScheme::ALL.into_iter().find(|scheme| text.starts_with(scheme.letter()))?;
        let position = Self::from_bytes(scheme, &Cursor::open(scheme.letter(), job, text)?)?;
        let is_bounded =
            position.counted().len() <= MAX_COUNTS && position.counted().values().all(|count| *count <= MAX_COUNT);
        Some(position).filter(|_| is_bounded)
    }

    /// Returns true for a position that may take the server long to read on from: each count is a subquery over the rows
    /// that it counts.
    pub fn is_dear(&self) -> bool {
        self.counted().len() > MAX_COUNTED_XIDS || self.counted().values().any(|count| *count > MAX_CHEAP_COUNT)
    }

    /// Returns true if a cursor holds all that the position counts, with room for what is counted next.
    pub fn fits_cursor(&self) -> bool {
        self.counted().len() <= MAX_COUNTS && self.encoded_length() <= MAX_COUNTED_BYTES
    }
}
