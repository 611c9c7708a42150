//! The promises, each tried against the built binary. A test's name is the sentence that it proves.

#[path = "../support/mod.rs"]
mod support;

mod auth;
mod commands;
mod contract;
mod delivery;
mod demo;
mod http;
mod ingest;
mod leaving;
mod polling;
mod postgres;
mod process;
mod redis;
mod settings;
mod sqlite;
