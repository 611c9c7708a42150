//! The promises, each tried against the built binary. A test's name is the sentence that it proves.

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod contract;
mod delivery;
mod demo;
mod deploy;
mod docs;
mod doctor;
mod http;
mod ingest;
mod leaving;
mod polling;
mod postgres;
mod process;
mod proxies;
mod redis;
mod settings;
mod sqlite;
