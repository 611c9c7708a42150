//! The promises, each tried against the built binary. A test's name is the sentence that it proves.

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod completion;
mod cursors;
mod delivery;
mod demo;
mod flapping;
mod http;
mod ingest;
mod leaving;
mod outage;
mod polling;
mod postgres;
mod redis;
mod resume;
mod settings;
