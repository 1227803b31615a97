//! The whole agent against simulated edges, on virtual time, from one seed.
//!
//! `world.rs` holds chance, weather and log; `runtime.rs`, `cluster.rs`, `host.rs` and
//! `net.rs` are the edges, `programs.rs` what containers do; `agent.rs` starts and kills the agent between them; `users.rs` has things happen;
//! `judge.rs` says what must hold in the end, and `invariants.rs` has a sentence for all that
//! is watched. `run.rs` makes a run of it.
//!
//! Always true: a run depends on its seed and on nothing else, so that what failed once
//! fails again under the eyes of whoever looks for the cause.

pub mod agent;
pub mod cluster;
pub mod faults;
pub mod host;
pub mod invariants;
pub mod judge;
pub mod net;
pub mod pins;
pub mod pods;
pub mod programs;
pub mod regressions;
pub mod run;
pub mod runtime;
pub mod users;
pub mod world;

#[cfg(test)]
mod tests;
