//! Jobcast tails a job-event store once and casts each event to every subscriber of its job.
//!
//! The modules, lowest first. None uses a later one, which `tests/architecture.rs` checks.
//!
//! - [`telemetry`], [`logging`]: metrics and logs; [`shutdown`], [`supervise`]: the phases of leaving, and the parts that
//!   must not die alone; [`systemd`]: the service manager; [`backoff`]: waits between attempts; [`single_flight`]: work that
//!   many share; [`outbound`]: HTTP to others.
//! - [`event`], [`cursor`], [`topic`], [`error`], [`sse`]: domain types, such as jobs, events, cursors, sets of jobs and
//!   errors. No I/O.
//! - [`config`]: settings, checked and typed; [`traces`]: spans for an OpenTelemetry collector.
//! - [`source`]: the stores of events, one folder for each kind.
//! - [`hub`]: the live jobs of this process, their rings and their subscribers. No SQL.
//! - [`tail`] reads the source once for all watched jobs; [`replay`] reads history for one subscriber.
//! - [`auth`]: the rights of those who watch.
//! - [`delivery`]: the sockets that actix has let go of, and the threads that write to them.
//! - [`http`]: the addresses, one module for each group of them.
//! - [`cli`]: the commands; puts the parts together.
//!
//! ARCHITECTURE.md has the whole on one page.

pub mod auth;
pub mod backoff;
pub mod cli;
pub mod config;
pub mod cursor;
pub mod delivery;
pub mod error;
pub mod event;
pub mod http;
pub mod hub;
pub mod logging;
pub mod outbound;
pub mod replay;
pub mod shutdown;
pub mod single_flight;
pub mod source;
pub mod sse;
pub mod supervise;
pub mod systemd;
pub mod tail;
pub mod telemetry;
pub mod topic;
pub mod traces;
