//! The promises, each tried against the built binary. A test's name is the sentence that it proves.

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod contract;
mod delivery;
mod demo;
mod edges;
mod http;
mod ingest;
mod junk;
mod leaving;
mod limits;
mod polling;
mod postgres;
mod process;
mod redis;
mod settings;
mod sqlite;
