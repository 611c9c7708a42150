//! Jobcast tails a job-event store once and casts each event to every subscriber of its job.
//!
//! The map of the house, bottom to top. Nothing points back up, which `tests/architecture.rs` holds:
//!
//! - [`event`], [`cursor`], [`error`], [`sse`]: the things that the domain talks about. No I/O.
//! - [`source`]: the stores of events, one folder for each kind.
//! - [`hub`]: the live jobs of this process, their rings and their subscribers. No SQL.
//! - [`tail`] reads the source once for all watched jobs; [`replay`] reads history for one subscriber.
//! - [`delivery`]: the sockets that actix has let go of, and the threads that write to them.
//! - [`http`]: the addresses, one module for each group of them.
//! - [`cli`]: the commands; puts the parts together.
//!
//! [`telemetry`], [`logging`], [`shutdown`], [`supervise`] and [`backoff`] use none of these; [`config`] uses only the words
//! of [`event`], [`sse`] and [`logging`]. ARCHITECTURE.md has the whole on one page.

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
pub mod replay;
pub mod shutdown;
pub mod source;
pub mod sse;
pub mod supervise;
pub mod tail;
pub mod telemetry;
