//! Jobcast tails a job-event store once and casts each event to every subscriber of its job.
//!
//! The map of the house, bottom to top; nothing points back up (`tests/architecture.rs` holds it to that):
//!
//! - [`event`], [`cursor`], [`error`], [`sse`]: what the domain talks about. No I/O.
//! - [`source`]: where events come from; one module per kind of store.
//! - [`hub`]: the live jobs of this process, their rings and their subscribers. No SQL.
//! - [`tail`] reads the source once for all watched jobs; [`replay`] reads history for one subscriber.
//! - [`delivery`]: sockets that actix has let go of, and the threads that write to them.
//! - [`http`]: the addresses, one module each.
//! - [`cli`]: the commands; puts the parts together.
//!
//! [`config`], [`shutdown`] and [`telemetry`] know nobody.

pub mod backoff;
pub mod cli;
pub mod config;
pub mod cursor;
pub mod delivery;
pub mod error;
pub mod event;
pub mod http;
pub mod hub;
pub mod replay;
pub mod shutdown;
pub mod source;
pub mod sse;
pub mod tail;
pub mod telemetry;
