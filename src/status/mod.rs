//! Pod status: what the API is told about a pod, and the only writer of it.
//!
//! [`compute`] is pure: spec, runtime state, start errors, probe results and the last
//! status in, the new status out. The writer keeps the newest status of each pod and
//! patches what differs from what the API has, the most urgent first.
//!
//! Always true: a terminal phase is published only once nothing of the pod can run any
//! more, and is never left; conditions of other owners are not touched.

mod compute;
mod conditions;
mod containers;
mod memory;
mod outbox;
mod patch;
mod phase;
mod resources;
mod restart;
mod writer;

#[cfg(test)]
mod tests;

pub use compute::{
    Cause, Computed, PendingResize, Probed, Resize, ResizeInProgress, Stage, StatusInput, Verdict, WaitingReason,
    compute, deadline,
};
pub use conditions::readiness_gates;
pub use memory::memory;
pub use outbox::Flush;
pub use phase::Phase;
pub use resources::granted;
pub use restart::Restarts;
pub use writer::StatusWriter;
