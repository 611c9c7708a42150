//! PostgreSQL as a kind of store.

use super::Postgres;
use super::check::check;
use super::schema::{SCHEMA, TRIGGER, migration};
use super::tables::CursorScheme;
use crate::config;
use crate::error::SourceError;
use crate::source::{Driver, Finding, Source};
use async_trait::async_trait;
use std::sync::Arc;

/// Opens, describes and checks PostgreSQL stores.
pub struct PostgresDriver;

#[async_trait]
impl Driver for PostgresDriver {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn cursor_letters(&self) -> Vec<char> {
        CursorScheme::ALL.into_iter().map(CursorScheme::letter).collect()
    }

    async fn open(&self, settings: &config::Source) -> Result<Arc<dyn Source>, SourceError> {
        Ok(Arc::new(Postgres::open(settings).await?))
    }

    async fn check(&self, settings: &config::Source) -> Vec<Finding> {
        check(settings).await
    }

    fn schema(&self, with_trigger: bool) -> Vec<&'static str> {
        if with_trigger { vec![SCHEMA, TRIGGER] } else { vec![SCHEMA] }
    }

    fn migration(&self, settings: &config::Source, with_trigger: bool) -> Option<String> {
        Some(migration(&settings.postgres, with_trigger))
    }
}
