//! Launch: what the runtime is told of a sandbox and of a container, and what the cgroups
//! around them are set to.
//!
//! Pure functions from a pod and a few inputs to CRI configurations and cgroup settings.
//! Names, labels, annotations, log paths and cgroup parents are upstream's, so that either
//! agent knows the other's pods.

mod annotations;
mod cgroups;
mod container;
mod resources;
mod sandbox;
mod security;
#[cfg(test)]
pub mod tests;

use std::path::PathBuf;

pub use cgroups::{
    CgroupConfig, LevelLimits, MemoryQos, ReservedCgroup, kubepods, level_settings, pod_cgroup, pod_cgroup_candidates,
    qos_cgroups, reserved_cgroup, root, unlimited,
};
pub use container::{ContainerInputs, container_config};
pub use resources::container_resources;
pub use sandbox::{SandboxInputs, sandbox_config};

use crate::config::FeatureGates;
use crate::pod::dns::ClusterDns;
use crate::pod::expansion::TextError;
use crate::pod::hosts::HostnameError;

/// What the configuration and the machine say about every launch; fixed at start.
#[derive(Clone, Debug)]
pub struct LaunchConfig {
    pub pod_logs_dir: PathBuf,
    /// `seccomp` under the root dir, where localhost profiles lie.
    pub seccomp_dir: PathBuf,
    /// Containers without a seccomp profile get the runtime's own.
    pub seccomp_default: bool,
    pub cluster_dns: ClusterDns,
    pub cgroups: CgroupConfig,
    /// The machine's memory, which OOM scores are shares of.
    pub memory_bytes: u64,
    /// The kernel kills single processes of a container that is out of memory, not all.
    pub single_process_oom_kill: bool,
    /// The kernel counts swap by cgroup, so it can be kept from containers.
    pub swap_controller: bool,
    /// Bytes of swap that Burstable containers share by what they ask for; 0 where nobody gets any.
    pub swap_bytes: u64,
    pub gates: FeatureGates,
    /// `thermal_throttle` directories of this machine's CPUs, hidden from containers.
    pub thermal_throttle_dirs: Vec<String>,
}

/// Why a pod cannot be launched as it is. The texts of the checks on users are upstream's:
/// they end up in the waiting message of the container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    #[error(transparent)]
    Hostname(#[from] HostnameError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error("unsupported supplementalGroupsPolicy: {0}")]
    SupplementalGroupsPolicy(String),
    #[error("localhostProfile must be set if seccompProfile type is Localhost")]
    NoLocalhostSeccomp,
    #[error("localhostProfile must be set if appArmorProfile type is Localhost")]
    NoLocalhostAppArmor,
    #[error("container's runAsUser breaks non-root policy (pod: {pod:?}, container: {container})")]
    RunAsRoot { pod: String, container: String },
    #[error("container has runAsNonRoot and image will run as root (pod: {pod:?}, container: {container})")]
    ImageRunsAsRoot { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root \
         (pod: {pod:?}, container: {container})"
    )]
    ImageUserUnknown { user: String, pod: String, container: String },
}
