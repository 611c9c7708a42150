//! Every statement that goes to PostgreSQL. One function builds one whole statement, and `snapshots/` shows what comes
//! out of it.
//!
//! Statements go by the simple protocol, each in one piece, because a pooler in transaction mode may give each of them
//! to another connection, which knows nothing that was prepared. So values stand in the text: every value is a number, a
//! quoted name ([`quote`], [`quote_table`]) or a [`literal`].
//!
//! In all statements `e` is a row of the event table and `j` one of the job table. Columns are read by their names.

mod catalog;
mod changes;
pub mod check;
mod events;
mod ids;
mod jobs;
mod many;
mod page;
mod rows;
mod snapshot;
#[cfg(test)]
mod tests;

pub use catalog::{
    COMPRESSION, LIFE, NOT_BEGUN, SERVER, STANDBY_LAG, WAL_POSITION, cancel_statement, has_end, has_notify_trigger,
    is_subscribed, local_time, may_insert, table_columns, xid_of_another_life, zone,
};
pub use changes::{ChangesQuery, NewRows, changes};
pub use events::{count_by_place, count_by_xid, final_event, find_event, insert_events, newest_event, stored_events};
pub use ids::IdColumn;
pub use jobs::{insert_job, job_summary, last_writes, list_jobs, upsert_status};
pub use many::{ManyQuery, has_rows_beyond, key_from_end, last_xid, pages};
pub use page::{PageQuery, Scope, page};
pub use rows::{EventRows, XidBound};
pub use snapshot::{MAX_XID_SCAN, has_ended, is_unchanged, open_xids, read_snapshot};

/// A text as it may stand in a statement, whatever the server's settings are (PostgreSQL, "String Constants with C-Style
/// Escapes").
pub fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'").replace('\0', ""))
}

/// An identifier, whatever characters are in it.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The identifier of `schema.table`, or of a table in the search path.
pub fn quote_table(name: &str) -> String {
    name.split('.').map(quote).collect::<Vec<_>>().join(".")
}

/// An array of texts.
fn text_array<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let literals: Vec<String> = texts.into_iter().map(literal).collect();
    format!("ARRAY[{}]::text[]", literals.join(","))
}

/// An array of texts as one literal, so that statements differ in no more than their values.
fn array_literal<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    literal(&format!("{{{}}}", texts.into_iter().map(quoted).collect::<Vec<_>>().join(",")))
}

/// Numbers as the elements of an array literal: `{1,2,3}`.
fn number_list<'a>(numbers: impl IntoIterator<Item = &'a u64>) -> String {
    format!("{{{}}}", numbers.into_iter().map(u64::to_string).collect::<Vec<_>>().join(","))
}
