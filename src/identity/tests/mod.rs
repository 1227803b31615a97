//! The decisions, and the tasks that follow them: a signer and a clock of the test's, real files.

mod bootstrap;
mod clocks;
mod plan;
mod renewal;
mod requests;
pub(super) mod world;
