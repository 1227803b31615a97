//! The state files: what is made of them at start, and who writes them.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::affinity::Aligner;
use super::manager::{State, Topology};
use super::{Recorded, cpus, memory, running};
use crate::causes::chain;
use crate::clock::Clock;
use crate::config::CpuSet;
use crate::cri::Runtime;
use crate::host::{Durability, Host};

const MEMORY_FILE: &str = "memory_manager_state";
/// More than the pods of any node need.
const FILE_BYTES_MAX: usize = 1 << 20;
const FILE_MODE: u32 = 0o600;
/// Until a file is written again that could not be.
const RETRY: Duration = Duration::from_secs(10);
/// How often it is looked whether containers have left the CPUs of an earlier policy. Who is still there
/// after that was put there by somebody else.
const LOOKS_MAX: u32 = 30;

/// What gives pods their places, as configured for this machine. `None` is a policy none.
#[derive(Clone, Debug, Default)]
pub struct TopologyConfig {
    /// Where the state files are: the root directory.
    pub dir: PathBuf,
    pub aligner: Option<Aligner>,
    pub cpus: Option<cpus::Ground>,
    pub memory: Option<memory::Layout>,
    /// Containers with CPUs of their own have no quota.
    pub lift_quotas: bool,
    /// All that are online.
    pub all_cpus: CpuSet,
}

/// Takes up what an earlier life left, and mends it. The files are right again once
/// [`Keeper::run`] runs.
pub async fn begin(
    config: TopologyConfig,
    host: Arc<dyn Host>,
    runtime: Arc<dyn Runtime>,
    clock: Clock,
) -> (Topology, Keeper) {
    let TopologyConfig { dir, aligner, cpus, memory, lift_quotas, all_cpus } = config;
    let mut state = State::default();
    (state.aligner, state.lift_quotas) = (aligner, lift_quotas);
    let cpus_file = read(&*host, &dir.join(cpus::FILE)).await;
    if cpus.is_none() && cpus_file.as_deref().is_some_and(cpus::is_static) {
        warn!("cpuManagerPolicy is none and was static before: all running containers go back to all CPUs");
        state.all_cpus = Some(all_cpus);
    }
    let recorded_cpus =
        cpus.as_ref().map(|ground| taken_up(cpus::FILE, cpus_file.as_deref(), |text| cpus::read(text, ground)));
    let memory_file = if memory.is_some() { read(&*host, &dir.join(MEMORY_FILE)).await } else { None };
    let recorded_memory =
        memory.as_ref().map(|layout| taken_up(MEMORY_FILE, memory_file.as_deref(), |text| memory::read(text, layout)));
    let is_whole =
        recorded_cpus.as_ref().is_none_or(|it| it.is_whole) && recorded_memory.as_ref().is_none_or(|it| it.is_whole);
    let running = if is_whole { Vec::new() } else { running::ask(&*runtime).await.0 };
    if let (Some(ground), Some(TakenUp { entries, .. })) = (cpus, recorded_cpus) {
        let (healed, warnings) = cpus::heal(ground, entries, &running);
        warnings.iter().for_each(|warning| warn!(%warning, "CPU manager"));
        info!(shared = %healed.shared(), pods = healed.entries().len(), "CPU manager, policy static");
        state.cpus = Some(healed);
    }
    if let (Some(layout), Some(TakenUp { entries, .. })) = (memory, recorded_memory) {
        let pinned = running.iter().filter(|one| !one.nodes.is_empty());
        let pinned: Vec<_> = pinned.map(memory_of).collect();
        let (healed, warnings) = memory::heal(layout, entries, &pinned);
        warnings.iter().for_each(|warning| warn!(%warning, "memory manager"));
        info!(pods = healed.entries().len(), "memory manager, policy Static");
        state.memory = Some(healed);
    }
    // A file of the policy none is only of use in place of another one.
    let writes_none = state.cpus.is_none() && cpus_file.is_some();
    let leaving = state.all_cpus.clone();
    let topology = Topology::new(state, clock);
    let keeper = Keeper { topology: topology.clone(), host, runtime, dir, writes_none, leaving };
    (topology, keeper)
}

/// What an earlier life left in a file, and whether that is all.
struct TakenUp<E> {
    entries: E,
    is_whole: bool,
}

/// Without a file nothing is known either, as after a change of the policy.
fn taken_up<E: Default, W: Error + 'static>(
    file: &str,
    text: Option<&str>,
    read: impl FnOnce(&str) -> Recorded<E, W>,
) -> TakenUp<E> {
    let Some(Recorded { entries, wrong }) = text.map(read) else {
        return TakenUp { entries: E::default(), is_whole: false };
    };
    wrong.iter().for_each(|wrong| warn!(file, problem = chain(wrong), "healing it from what runs"));
    TakenUp { entries, is_whole: wrong.is_empty() }
}

fn memory_of(running: &running::Running) -> memory::Running {
    memory::Running { uid: running.uid.clone(), container: running.container.clone(), nodes: running.nodes }
}

async fn read(host: &dyn Host, path: &Path) -> Option<String> {
    match host.read_file(path, FILE_BYTES_MAX).await {
        Ok(content) => content.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => {
            warn!(error = chain(&error), "cannot read a state file: what runs counts");
            // Not one that says nothing: that would be healed in silence.
            Some(String::new())
        }
    }
}

/// Writes the state files whenever somebody was given something.
pub struct Keeper {
    topology: Topology,
    host: Arc<dyn Host>,
    runtime: Arc<dyn Runtime>,
    dir: PathBuf,
    writes_none: bool,
    /// Where containers go that an earlier policy had put elsewhere: until they have, its file tells the
    /// next life that they have to.
    leaving: Option<CpuSet>,
}

impl Keeper {
    pub async fn run(mut self) {
        let mut looks = 0;
        let changes = self.topology.changes().clone();
        loop {
            let now = changes.count();
            let is_written = self.write().await;
            // A disk that takes nothing keeps no pod from starting: what runs can be read again.
            self.topology.keeps(now);
            tokio::select! {
                biased;
                // Cancel-safe: it is looked again whether there were more.
                () = changes.reach(now + 1) => {}
                // Cancel-safe: a timer.
                () = tokio::time::sleep(RETRY), if !is_written || self.leaving.is_some() => {
                    looks += 1;
                    if looks > LOOKS_MAX || self.has_everybody_left().await {
                        self.leaving = None;
                    }
                }
            }
        }
    }

    async fn has_everybody_left(&self) -> bool {
        let Some(all) = &self.leaving else { return true };
        let (running, is_all) = running::ask(&*self.runtime).await;
        is_all && running.iter().all(|one| one.cpus.is_empty() || one.cpus == *all)
    }

    async fn write(&self) -> bool {
        let (cpus, memory) = self.topology.texts();
        let cpus = cpus.or_else(|| (self.writes_none && self.leaving.is_none()).then(cpus::write_none));
        let mut is_written = true;
        for (name, text) in [(cpus::FILE, cpus), (MEMORY_FILE, memory)] {
            let Some(text) = text else { continue };
            let path = self.dir.join(name);
            let written = self.host.write_file(&path, text.as_bytes(), FILE_MODE, Durability::ThroughPowerCut).await;
            if let Err(error) = written {
                warn!(error = chain(&error), "cannot write a state file, will retry");
                is_written = false;
            }
        }
        is_written
    }
}
