//! SQLite as a kind of store.

use super::check::check;
use super::position::Position;
use super::{SCHEMA, Sqlite};
use crate::config;
use crate::error::SourceError;
use crate::source::{Driver, Finding, Source};
use async_trait::async_trait;
use std::sync::Arc;

pub struct SqliteDriver;

#[async_trait]
impl Driver for SqliteDriver {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn cursor_letters(&self) -> Vec<char> {
        vec![Position::LETTER]
    }

    async fn open(&self, settings: &config::Source) -> Result<Arc<dyn Source>, SourceError> {
        Ok(Arc::new(Sqlite::open(settings).await?))
    }

    async fn check(&self, settings: &config::Source) -> Vec<Finding> {
        check(settings).await
    }

    fn schema(&self, _with_trigger: bool) -> Vec<&'static str> {
        vec![SCHEMA]
    }
}
