//! Sync: makes the machine match the pods that should be on it.
//!
//! The dispatcher (`dispatcher.rs`) keeps one worker (`worker.rs`) for each pod and tells it
//! what is wished for the pod (`wish.rs`). A worker reads a snapshot, asks `plan/`, a pure
//! function, what to do, and has `execute.rs` do it; `resize/` is the part of both that is
//! about resources, and `upkeep.rs` keeps volumes and log links of running pods as they should
//! be. Beside each worker `pins.rs` moves running containers to the CPUs that they should be on.
//! `cgroups.rs`, `mirror.rs`, `dead.rs` and `user_namespaces.rs` keep what
//! belongs to all pods together. For the dispatcher `victims.rs` owns the times by which pods
//! that give way to others should have ended, and `orphans.rs` finds what only this machine
//! still knows. `resolver.rs` reads what the node itself asks for names, anew for each sandbox.
//! `roster.rs` holds which pods there are, how they are and how far their workers are with them, for
//! those who only show or count it.
//!
//! Tasks: the dispatcher, one per pod, one for mirror pods.
//! In: source events (channel), wake-ups (`Wakes`). Out: CRI calls, volumes, cgroups,
//! statuses to `status/`, events, the roster.
//!
//! Always true: one worker per pod UID, and no worker waits for another; a worker's place is
//! kept until everything its pod owned is gone.

mod admit;
pub mod cgroups;
mod dead;
mod dispatcher;
mod execute;
mod hooks;
pub mod launch;
pub mod mirror;
mod orphans;
mod pins;
pub mod plan;
mod report;
mod resize;
mod resolver;
mod retries;
mod roster;
mod start;
mod upkeep;
pub mod user_namespaces;
mod victims;
mod wakes;
mod wish;
mod worker;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

pub use dead::{DeadContainers, DeadLimits};
pub use dispatcher::Dispatcher;
pub use hooks::Hooks;
pub use pins::PinTurns;
pub use plan::BackoffLimits;
pub use resolver::HostResolver;
pub use roster::{Known, KnownBy, Lifecycle, Roster, Work};
pub use user_namespaces::IdPool;
pub use wakes::Wakes;

use crate::admission::{Admission, AdmissionConfig};
use crate::clock::Clock;
use crate::cri::Runtime;
use crate::events::Recorder;
use crate::host::Host;
use crate::images::Images;
use crate::kube::Cluster;
use crate::logs::Logs;
use crate::node::NodeView;
use crate::objects::Objects;
use crate::pleg::Pleg;
use crate::probes::Probes;
use crate::status::StatusWriter;
use crate::topology::Topology;
use crate::volumes::Volumes;
use user_namespaces::UserNamespaces;

/// All that a worker may use. One for the whole room.
pub struct Context {
    pub config: SyncConfig,
    pub clock: Clock,
    pub runtime: Arc<dyn Runtime>,
    pub host: Arc<dyn Host>,
    pub pleg: Pleg,
    pub wakes: Wakes,
    pub volumes: Volumes,
    pub images: Images,
    pub logs: Logs,
    pub user_namespaces: UserNamespaces,
    pub dead: DeadContainers,
    pub objects: Objects,
    pub recorder: Recorder,
    pub probes: Probes,
    pub hooks: Hooks,
    /// Absent in standalone mode: there is no one to tell.
    pub status: Option<StatusWriter>,
    pub admission: Admission,
    /// For the Node as the API has it this moment; absent in standalone mode.
    pub cluster: Option<Arc<dyn Cluster>>,
    pub cgroups: cgroups::Cgroups,
    pub topology: Topology,
    pub pin_turns: PinTurns,
    pub mirrors: mirror::Mirrors,
    /// For those who show which pods there are.
    pub roster: Roster,
    pub node: watch::Receiver<Option<Arc<NodeView>>>,
    /// Called in each turn of the dispatcher, so that somebody can notice when none comes.
    pub turned: Box<dyn Fn() + Send + Sync>,
}

#[derive(Clone, Debug)]
pub struct SyncConfig {
    pub root_dir: PathBuf,
    pub pod_logs_dir: PathBuf,
    /// `/var/log/containers`: links that log collectors follow.
    pub container_logs_dir: PathBuf,
    /// The scheme of container ids, as the runtime names itself: `containerd`.
    pub runtime_name: String,
    pub backoff: BackoffLimits,
    pub dead: DeadLimits,
    pub launch: launch::LaunchConfig,
    pub admission: AdmissionConfig,
    /// What the node itself asks for names.
    pub resolver: HostResolver,
    /// User ids for pods that have their own.
    pub ids: IdPool,
}
