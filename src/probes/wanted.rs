//! Which probes should run, and how instances stand before any of them said something.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodStatus};

use super::settings::Settings;
use super::{Look, ProbeKind, Stage, Standing, Standings, Told};
use crate::cri::{self, ContainerId, ContainerState};
use crate::pleg::PodRuntime;
use crate::pod::containers::{Role, workload_containers};

/// One probe of one instance.
pub type Key = (ContainerId, ProbeKind);

/// What a probe's task has to know.
pub struct Target {
    pub id: ContainerId,
    pub kind: ProbeKind,
    pub container: Arc<Container>,
    pub settings: Settings,
    pub started_at: Timestamp,
}

const KINDS: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

/// The newest instance of each container that can have probes: ordinary init containers have
/// none, nor have ephemeral ones.
fn probed<'a>(pod: &'a Pod, runtime: &'a PodRuntime) -> impl Iterator<Item = (&'a Container, &'a cri::Container)> {
    workload_containers(pod).filter_map(|(role, container)| {
        let has_probes = role != Role::Init && KINDS.iter().any(|kind| kind.of(container).is_some());
        Some((container, runtime.newest(&container.name).filter(|_| has_probes)?))
    })
}

/// How the newest instances stand: as known, or as they begin. That of an instance which has
/// ended stays while it is the newest, because what it was killed for decides what follows.
pub fn standings(look: &Look<'_>, known: &Standings) -> Standings {
    let of = |(container, newest): (&Container, &cri::Container)| {
        let mut standing = known.get(&newest.id).copied().unwrap_or_else(|| match look.told {
            Told::Known(status) => first(container, told(status, &newest.id)),
            Told::Unknown { by } => by_age(container, newest, by, is_waited_for(look, container)),
        });
        if look.stage != Stage::Syncing {
            // As upstream: what is being stopped is not waited for any more.
            standing.started = standing.started.map(|_| true);
        }
        (newest.id.clone(), standing)
    };
    probed(look.pod, look.runtime).map(of).collect()
}

/// A new instance is neither started nor ready before its probes say so; one that was told
/// to be by an earlier life of the agent still is.
fn first(container: &Container, told: Option<&ContainerStatus>) -> Standing {
    let started = told.is_some_and(|told| told.started == Some(true));
    let ready = told.is_some_and(|told| told.ready);
    Standing {
        started: container.startup_probe.is_some().then_some(started),
        ready: container.readiness_probe.is_some().then_some(ready),
        failed: None,
    }
}

/// What had run for so long when the agent came is not taken for new: so upstream has it.
const SURELY_NOT_NEW: Duration = Duration::from_secs(10);

/// Nothing of what a sidecar has to start for is there.
fn is_waited_for(look: &Look<'_>, container: &Container) -> bool {
    let mut from_it = workload_containers(look.pod).skip_while(|(_, it)| it.name != container.name);
    let is_sidecar = from_it.next().is_some_and(|(role, _)| role == Role::Sidecar);
    is_sidecar && from_it.all(|(_, later)| look.runtime.newest(&later.name).is_none())
}

/// Whoever outlived the time that its startup probe gives it has started, or it would have been
/// killed, had there been an agent to do it. A shorter life proves nothing, and a liveness probe that
/// comes too early kills; so does one that others wait for, who start too early then.
fn by_age(container: &Container, newest: &cri::Container, by: Timestamp, is_waited_for: bool) -> Standing {
    let age = match newest.state {
        ContainerState::Running { started_at } => Duration::try_from(by.duration_since(started_at)).unwrap_or_default(),
        _ => Duration::ZERO,
    };
    let patience = container.startup_probe.as_ref().map(|probe| {
        let Settings { initial_delay, period, failure_threshold, .. } = Settings::of(probe);
        initial_delay + period.saturating_mul(failure_threshold)
    });
    let started = patience.map(|patience| !is_waited_for && age > patience.max(SURELY_NOT_NEW));
    let ready = age > SURELY_NOT_NEW && started != Some(false);
    Standing { started, ready: container.readiness_probe.is_some().then_some(ready), failed: None }
}

/// What was told of this very instance.
fn told<'a>(status: Option<&'a PodStatus>, id: &ContainerId) -> Option<&'a ContainerStatus> {
    let status = status?;
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    all.into_iter().find(|told| {
        let told = told.container_id.as_deref().and_then(|told| told.split_once("://"));
        told.is_some_and(|(_, told)| told == id.as_str())
    })
}

/// The probes that have something to find out.
pub fn wanted(look: &Look<'_>, standings: &Standings) -> BTreeMap<Key, Target> {
    let mut wanted = BTreeMap::new();
    for (container, newest) in probed(look.pod, look.runtime) {
        let ContainerState::Running { started_at } = newest.state else { continue };
        let standing = standings.get(&newest.id).copied().unwrap_or_default();
        let mut shared = None;
        for kind in KINDS {
            let Some(probe) = kind.of(container).filter(|_| is_wanted(kind, &standing, look.stage)) else {
                continue;
            };
            let container = shared.get_or_insert_with(|| Arc::new(container.clone())).clone();
            let settings = Settings::of(probe);
            let target = Target { id: newest.id.clone(), kind, container, settings, started_at };
            wanted.insert((newest.id.clone(), kind), target);
        }
    }
    wanted
}

fn is_wanted(kind: ProbeKind, standing: &Standing, stage: Stage) -> bool {
    // Once it is to be killed, nothing more can be learnt of it but whether it is ready.
    let lives = stage == Stage::Syncing && standing.failed.is_none();
    match kind {
        ProbeKind::Startup => lives && !standing.is_started(),
        ProbeKind::Liveness => lives && standing.is_started(),
        ProbeKind::Readiness => stage != Stage::Over && standing.is_started(),
    }
}
