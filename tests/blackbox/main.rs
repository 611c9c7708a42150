//! The promises, each tried against the built binary. A test's name is the sentence that it proves.

#[path = "../support/mod.rs"]
mod support;

mod admin;
mod appearing;
mod auth;
mod commands;
mod contract;
mod delivery;
mod demo;
mod deploy;
mod docs;
mod doctor;
mod edges;
mod forgiving;
mod http;
mod http2;
mod ingest;
mod junk;
mod leaving;
mod limits;
mod polling;
mod postgres;
mod process;
mod proxies;
mod recipes;
mod redis;
mod reloading;
mod service_manager;
mod settings;
mod sqlite;
mod telling;
mod tls;
