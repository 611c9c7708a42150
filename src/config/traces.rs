//! The section `traces`.

use super::validate::Problems;
use super::values::SecretUrl;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Traces {
    /// Address of a collector that takes OTLP over HTTP as JSON, such as http://127.0.0.1:4318/v1/traces; "": no traces.
    pub endpoint: SecretUrl,
    /// Share of requests and reads that are traced, 0 to 1. A request whose traceparent has decided already follows that.
    pub sample: f64,
}

impl Default for Traces {
    fn default() -> Self {
        Self { endpoint: SecretUrl::default(), sample: 1.0 }
    }
}

impl Traces {
    pub(super) fn validate(&self, problems: &mut Problems) {
        problems.require(self.endpoint.is_valid(), "traces.endpoint", SecretUrl::WANTED);
        problems.require((0.0..=1.0).contains(&self.sample), "traces.sample", "must be from 0 to 1");
    }
}
