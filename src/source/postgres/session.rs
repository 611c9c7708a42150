//! One connection on loan, with all that is needed to use it. The methods that read and write are beside what they are
//! about: pages in `page.rs`, history in `history.rs`, ingest in `writer.rs`.

use super::first_versions::FirstVersions;
use super::pool::PooledConnection;
use super::store::Store;
use super::tables::Tables;
use std::sync::Arc;

/// A connection, and the tables as they were known when it was taken.
pub struct Session<'a> {
    pub store: &'a Store,
    pub connection: PooledConnection,
    pub tables: Arc<Tables>,
}

impl Session<'_> {
    /// The durable mark that the store knows of, for the next statement.
    pub fn durable_xid(&self) -> u64 {
        self.store.durable_mark().xid()
    }

    /// The versions that `source.dedupe` goes by; `None` without it, and where events of a job may have the same id.
    pub fn first_versions(&self) -> Option<&FirstVersions> {
        self.store.first_versions.as_ref().filter(|_| self.tables.tells_versions())
    }
}
