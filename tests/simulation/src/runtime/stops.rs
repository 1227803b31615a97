//! What a stop must heed: the graces that somebody gave, and the hooks of the container.

use std::time::Duration;

use ferrolet::cri::{ContainerId, Result, SandboxId};
use tokio::time::Instant;

use super::{DEBUGGER_PREFIX, SIDECAR_PREFIX, SimRuntime, State};
use crate::faults::Fate;
use crate::invariants::Invariant;
use crate::programs::Ask;

/// The least time a container has after SIGTERM.
const GRACE_MIN: Duration = Duration::from_secs(2);

/// One call of a hook.
#[derive(Clone, Copy, Debug)]
pub(super) struct HookRun {
    /// Of the agent.
    pub life: u64,
    pub begun: Instant,
    pub ended: Option<Instant>,
}

impl HookRun {
    fn lasted_until(&self, now: Instant) -> Duration {
        self.ended.unwrap_or(now) - self.begun
    }
}

/// A call to stop a container, when it was made.
pub(super) struct StopCall {
    grace: Duration,
    at: Instant,
    life: u64,
}

impl SimRuntime {
    /// Somebody gives a pod so long to end.
    pub fn allow_grace(&self, pod_uid: &str, seconds: i64) {
        let seconds = seconds.max(1).unsigned_abs();
        self.state().graces.entry(pod_uid.to_owned()).or_default().insert(seconds);
    }

    pub(super) fn call_to_stop(&self, grace: Duration) -> StopCall {
        StopCall { grace, at: Instant::now(), life: self.state().life }
    }

    /// Starts a container; who hears of it has its postStart hook to run.
    pub(super) async fn launch(&self, id: &ContainerId) -> Result<()> {
        let (wanted, life) = (id.clone(), self.state().life);
        let effect =
            move |runtime: &SimRuntime, fate, is_awaited| runtime.run_container(&wanted, life, fate, is_awaited);
        self.call_with_fate("StartContainer", effect).await?;
        self.state().launches.insert(id.clone(), (life, Instant::now()));
        Ok(())
    }

    /// Nothing starts in a pod while a postStart hook of it is due or runs.
    /// Whoever debugs a pod does not wait for the pod.
    pub(super) fn check_post_start(&self, state: &State, uid: &str, home: &SandboxId, starting: &ContainerId) {
        if state.owners.get(starting).is_some_and(|(_, name)| name.starts_with(DEBUGGER_PREFIX)) {
            return;
        }
        for (id, instance) in &state.containers {
            let is_neighbour = instance.pod_uid == uid && instance.container.sandbox_id == *home && id != starting;
            // With a container that has to stop its hook is given up.
            if !is_neighbour || !instance.container.is_running() || state.unwanted.contains(id) {
                continue;
            }
            let Some(hook) = state.manners.get(id).and_then(|manners| manners.hook(Ask::PostStart)) else { continue };
            let Some((_, launched)) = state.launches.get(id).filter(|(life, _)| *life == state.life) else { continue };
            let is_over = match hook.is_sleep {
                true => launched.elapsed() >= hook.lasts,
                false => state.hooks.get(&(id.clone(), Ask::PostStart)).is_some_and(|run| run.ended.is_some()),
            };
            if !is_over {
                let what = format!("{starting} of {uid} starts before that of {id} is over");
                self.world.violation(Invariant::PostStartFirst, what);
            }
        }
    }

    /// A running container is about to be sent SIGTERM.
    pub(super) fn check_stop(&self, state: &State, id: &ContainerId, call: &StopCall, fate: Fate) {
        let Some(instance) = state.containers.get(id) else { return };
        let uid = &instance.pod_uid;
        let name = &instance.container.name;
        if call.grace < GRACE_MIN {
            self.world.violation(Invariant::GracesAreKept, format!("{id} of {uid}/{name} has {:?}", call.grace));
        }
        // Of a pod without a spec nobody can tell what it was given.
        if state.nameless.contains(uid) {
            return;
        }
        // What is in the way of a restart of all has nothing to put in order.
        if call.grace == GRACE_MIN && state.is_renewing(uid) {
            return;
        }
        let Some(own) = state.graces.get(uid) else { return };
        let manners = state.manners.get(id).cloned().unwrap_or_default();
        let asks = state.given_up.get(id).into_iter().flatten();
        let of_probes = asks.filter_map(|ask| manners.exam(*ask)?.grace_seconds);
        let graces: Vec<Duration> = own.iter().copied().chain(of_probes).map(Duration::from_secs).collect();

        let run = state.hooks.get(&(id.clone(), Ask::PreStop)).filter(|run| run.life == call.life);
        let spent = match manners.hook(Ask::PreStop) {
            Some(hook) if hook.is_sleep => hook.lasts,
            Some(_) => run.map_or(Duration::ZERO, |run| run.lasted_until(call.at)),
            None => Duration::ZERO,
        };
        let left = |grace: &Duration, spent: Duration| grace.saturating_sub(spent).max(GRACE_MIN);
        let is_sidecar = name.starts_with(SIDECAR_PREFIX);
        // A sidecar waits for the others, and whoever is told a shorter grace begins anew.
        let is_simple = !is_sidecar && !state.touched.contains(uid);
        let is_kept = match is_simple {
            true => graces.iter().any(|grace| call.grace == left(grace, spent)),
            false => graces.iter().any(|grace| call.grace <= left(grace, Duration::ZERO)),
        };
        if !is_kept {
            let what = format!("{id} of {uid}/{name} has {:?} of {graces:?} after {spent:?}", call.grace);
            self.world.violation(Invariant::GracesAreKept, what);
        }
        // A call that hung was made for another time.
        let is_timely = call.life == state.life && !matches!(fate, Fate::Hangs { .. });
        let is_asked = manners.hook(Ask::PreStop).is_some_and(|hook| hook.is_exec);
        if !is_timely || !is_asked || is_sidecar || !state.launches.contains_key(id) {
            return;
        }
        let patience = graces.iter().min().copied().unwrap_or_default();
        let was_heeded = run.is_some_and(|run| run.ended.is_some() || call.at - run.begun >= patience);
        if !was_heeded {
            let what = format!("{id} of {uid}/{name} is stopped, and its hook is {run:?}");
            self.world.violation(Invariant::PreStopFirst, what);
        }
    }
}
