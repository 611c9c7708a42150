//! The kinds of stores, and what can be done with each of them before it is open.

use super::{Finding, Source, postgres, redis, sqlite};
use crate::config::{self, SourceKind};
use crate::error::SourceError;
use async_trait::async_trait;
use std::sync::Arc;

/// One kind of store: it opens the source, describes the tables that it recommends, and checks those that are there.
#[async_trait]
pub trait Driver: Sync {
    /// The value of `source.kind`; the name in metrics, logs and `jobcast schema`.
    fn name(&self) -> &'static str;

    /// The first letters of all cursors that this kind of store ever gave out, one for each version of their inside.
    /// A letter belongs to one kind for ever.
    fn cursor_letters(&self) -> Vec<char>;

    /// Opens the configured store. Fails only where trying again cannot help; a server that is away may come.
    async fn open(&self, settings: &config::Source) -> Result<Arc<dyn Source>, SourceError>;

    /// Everything that is wrong with the configured store, or worth knowing. Changes nothing.
    async fn check(&self, settings: &config::Source) -> Vec<Finding>;

    /// SQL for the recommended tables and indexes, with or without the triggers that wake Jobcast up. It may be run
    /// twice. Empty for a store without tables.
    fn schema(&self, _with_trigger: bool) -> Vec<&'static str> {
        Vec::new()
    }

    /// SQL that adds to the configured tables what they lack of the recommended ones. It may be run twice. `None` where
    /// tables of this kind lack nothing.
    fn migration(&self, _settings: &config::Source, _with_trigger: bool) -> Option<String> {
        None
    }
}

macro_rules! registry {
    ($($kind:ident => $driver:expr,)*) => {
        /// Every kind of store.
        pub const DRIVERS: &[&dyn Driver] = &[$(&$driver),*];

        /// Returns the driver of a kind of store.
        pub fn driver(kind: SourceKind) -> &'static dyn Driver {
            match kind {
                $(SourceKind::$kind => &$driver,)*
            }
        }
    };
}

/// Opens the configured source.
pub async fn open(settings: &config::Source) -> Result<Arc<dyn Source>, SourceError> {
    driver(settings.kind).open(settings).await
}

// One line for each kind of store.
registry! {
    Sqlite => sqlite::SqliteDriver,
    Postgres => postgres::PostgresDriver,
    Redis => redis::RedisDriver,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_kinds_of_store_share_a_cursor_letter() {
        let letters: Vec<char> = DRIVERS.iter().flat_map(|driver| driver.cursor_letters()).collect();
        assert!(letters.iter().all(char::is_ascii_alphabetic), "{letters:?}");
        assert_eq!(letters.iter().collect::<BTreeSet<_>>().len(), letters.len(), "{letters:?}");
    }

    #[test]
    fn a_driver_is_named_as_the_settings_name_its_kind() {
        for name in DRIVERS.iter().map(|driver| driver.name()) {
            let kind: SourceKind = serde_json::from_value(name.into()).expect("a kind of the settings");
            assert_eq!(driver(kind).name(), name);
        }
    }
}
