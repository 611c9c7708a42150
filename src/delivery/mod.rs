//! Delivery of events to sockets. actix answers a stream's request and serves its replay ([`body`]). Then the socket
//! leaves actix ([`handoff`]) for a delivery thread ([`threads`], `worker`), where a stream costs a few hundred bytes
//! and no task. A connection that cannot leave (HTTP/1.0, TLS, HTTP/2) keeps its stream as a streaming body over the same
//! channel.
//!
//! Both ways of delivery take their decisions in `reaction`. Each module below may use those before it in this list, and
//! none after it: [`admission`] ← [`connections`] ← `context` ← `reaction` ← `worker` ← [`threads`] ← [`socket`] ←
//! [`handoff`] ← [`body`].

pub mod admission;
pub mod body;
pub mod connections;
mod context;
pub mod handoff;
mod reaction;
pub mod socket;
pub mod threads;
mod worker;

pub use context::{StreamContext, StreamRules};
pub use reaction::source_error;
