//! Redis as a kind of store.

use super::Redis;
use super::check::check;
use super::position::Position;
use crate::config;
use crate::error::SourceError;
use crate::source::{Driver, Finding, Source};
use async_trait::async_trait;
use std::sync::Arc;

pub struct RedisDriver;

#[async_trait]
impl Driver for RedisDriver {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn cursor_letters(&self) -> Vec<char> {
        vec![Position::VERSION]
    }

    async fn open(&self, settings: &config::Source) -> Result<Arc<dyn Source>, SourceError> {
        Ok(Arc::new(Redis::open(settings).await?))
    }

    async fn check(&self, settings: &config::Source) -> Vec<Finding> {
        check(settings).await
    }
}
