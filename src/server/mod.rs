//! The agent's own HTTP servers. So far one: `/healthz` in plain text on the loopback.
//!
//! `healthz.rs` serves it on one task and one more for each connection. It asks a [`Health`]
//! registry of named checks, which the composition root fills with closures that look at
//! what the loops publish; nothing here knows the loops.
//!
//! Always true: an answer never waits for another part of the agent; a client that says
//! nothing costs a socket and goes after five seconds; a port that is taken is tried again
//! and is never fatal.

mod health;
mod healthz;
#[cfg(test)]
mod tests;

pub use health::{Check, Health, Progress};
pub use healthz::{respond, run};
