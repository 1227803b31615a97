//! The node: its object in the API, its lease, and what other rooms may know of it.
//!
//! [`task`] surveys the machine and the runtime, makes the [`desired`] Node from that, and
//! brings it to the API: registers, reconciles, patches the status when something but a
//! heartbeat differs or the report period is over, and registers again when somebody
//! deleted the Node. [`lease`] renews the lease on its own task and, in the `Cluster`
//! behind it, on its own connection: a status that takes long never costs a heartbeat.
//! `startup.rs` times how the node comes up, for the metrics.
//!
//! In: `RuntimeHealth` (watch), [`Survey`] (facts, images, runtime version), the watch of
//! this node. Out: Node and Lease writes, node events, [`NodeView`] (watch).
//!
//! Always true: nobody else in this agent writes Node or Lease; the view is there as soon as
//! the machine was read, with or without an API server; what others put into the Node stays.

mod addresses;
mod capacity;
mod conditions;
mod config;
mod desired;
mod handle;
mod lease;
mod patch;
mod register;
mod startup;
mod stock;
mod survey;
mod task;
#[cfg(test)]
mod tests;
mod write;

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

pub use capacity::{Amounts, ReservationError, check_reservations};
pub use conditions::Pressures;
pub use config::{NodeConfig, Reserved};
pub use handle::{NodeHandle, NodeParts};
pub use lease::run as run_lease;
pub use survey::{MachineSurvey, Survey};
pub use task::run;

/// What the rest of the agent may know of the node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    /// The addresses pods are told as their host's, primary first.
    pub host_ips: Vec<IpAddr>,
    pub allocatable: Amounts,
    /// As the API has it; before it does, as it shall be registered.
    pub node: Arc<Node>,
    /// Whether `node` comes from the API.
    pub is_registered: bool,
    /// From the Node, else from the configuration.
    pub pod_cidrs: Vec<String>,
}
