//! What goes wrong by itself: the runtime goes away, the kernel kills something, and the runtime
//! forgets something.

use std::collections::BTreeSet;
use std::time::Duration;

use ferrolet::cri::{ContainerId, RuntimeEventKind, SandboxId, SandboxState};
use tokio::time::Instant;

use super::{Deaf, SimRuntime, State};

impl SimRuntime {
    /// The runtime goes away and comes back: calls fail, streams end, containers go on.
    pub async fn outage(&self, length: Duration) {
        self.world.log(|| format!("runtime goes away for {length:?}"));
        {
            let mut state = self.state();
            let end = Instant::now() + length;
            state.down_until = state.down_until.max(Some(end));
            state.listeners.clear();
        }
        tokio::time::sleep(length).await;
        let mut state = self.state();
        if state.down_until.is_some_and(|until| until <= Instant::now()) {
            state.down_until = None;
            self.world.log(|| "runtime is back".into());
        }
    }

    /// Whatever was to go on being away is back.
    pub fn calm(&self) {
        self.state().down_until = None;
    }

    /// The kernel kills something: a container ends, or a sandbox with all that is in it.
    /// The answer is the pod it happened to.
    pub fn break_something(&self) -> Option<String> {
        let victim = {
            let state = self.state();
            let ready: Vec<_> = state
                .sandboxes
                .values()
                .filter(|sandbox| sandbox.state == SandboxState::Ready)
                .map(|sandbox| sandbox.id.clone())
                .collect();
            let running: Vec<_> = state
                .containers
                .values()
                .filter(|instance| instance.container.is_running())
                .map(|instance| instance.container.id.clone())
                .collect();
            self.world.random(|random| match random.u32(0..4) {
                0 if !ready.is_empty() => Some(Err(ready[random.usize(..ready.len())].clone())),
                _ if !running.is_empty() => Some(Ok(running[random.usize(..running.len())].clone())),
                _ => None,
            })
        };
        match victim? {
            Ok(id) => {
                let uid = self.state().containers.get(&id)?.pod_uid.clone();
                self.end(&id, 137);
                Some(uid)
            }
            Err(id) => {
                let (uid, inside): (String, Vec<_>) = {
                    let mut state = self.state();
                    let sandbox = state.sandboxes.get_mut(&id)?;
                    sandbox.state = SandboxState::NotReady;
                    let uid = sandbox.pod_uid.clone();
                    // What still runs in a dead sandbox has to be stopped.
                    state.touched.insert(uid.clone());
                    self.emit(&mut state, &uid, id.as_str(), RuntimeEventKind::Stopped);
                    let of_it = state.containers.values().filter(|instance| instance.container.sandbox_id == id);
                    let inside = of_it.map(|instance| instance.container.id.clone()).collect();
                    (uid, inside)
                };
                self.world.log(|| format!("sandbox {id} dies"));
                for container in inside {
                    if self.world.random(|random| random.bool()) {
                        self.end(&container, 137);
                    } else if self.world.random(|random| random.bool()) {
                        let deaf_for = self.world.random(|random| Duration::from_secs(random.u64(1..20)));
                        let now = Instant::now();
                        let deaf = Deaf { until: now + deaf_for, second: now, stops: 0 };
                        self.world.log(|| format!("container {container} is deaf for {deaf_for:?}"));
                        self.state().deaf.insert(container, deaf);
                    }
                }
                Some(uid)
            }
        }
    }

    /// Somebody takes a container or a sandbox away behind the agent's back, or the machine lost
    /// power and with it all that the runtime knew. The answer is the pods it happened to.
    pub fn forget_something(&self) -> BTreeSet<String> {
        let (sandboxes, containers): (Vec<_>, Vec<_>) = {
            let state = self.state();
            (state.sandboxes.keys().cloned().collect(), state.containers.keys().cloned().collect())
        };
        let roll = self.world.random(|random| random.u32(0..10));
        let mut state = self.state();
        if roll == 0 {
            self.world.log(|| "the runtime forgets everything".into());
            // It was away for that, and has nothing to say of it.
            state.listeners.clear();
            return sandboxes.iter().filter_map(|id| self.forget_sandbox(&mut state, id, false)).collect();
        }
        if roll < 4 && !sandboxes.is_empty() {
            let id = &sandboxes[self.world.random(|random| random.usize(..sandboxes.len()))];
            return self.forget_sandbox(&mut state, id, true).into_iter().collect();
        }
        if containers.is_empty() {
            return BTreeSet::new();
        }
        let id = &containers[self.world.random(|random| random.usize(..containers.len()))];
        self.forget_container(&mut state, id, true).into_iter().collect()
    }

    fn forget_sandbox(&self, state: &mut State, id: &SandboxId, is_told: bool) -> Option<String> {
        let sandbox = state.sandboxes.remove(id)?;
        self.world.log(|| format!("sandbox {id} is forgotten"));
        let inside = state.containers.values().filter(|instance| instance.container.sandbox_id == *id);
        for container in inside.map(|instance| instance.container.id.clone()).collect::<Vec<_>>() {
            self.forget_container(state, &container, is_told);
        }
        state.users.remove(id);
        state.cgroups.remove(id);
        // What stands beside it, in another one, has to be stopped.
        state.touched.insert(sandbox.pod_uid.clone());
        if is_told {
            self.emit(state, &sandbox.pod_uid, id.as_str(), RuntimeEventKind::Deleted);
        }
        Some(sandbox.pod_uid)
    }

    fn forget_container(&self, state: &mut State, id: &ContainerId, is_told: bool) -> Option<String> {
        let instance = state.containers.remove(id)?;
        let uid = instance.pod_uid.clone();
        self.world.log(|| format!("container {id} is forgotten: {uid}/{}", instance.container.name));
        // What demanded that all begin anew may be gone with it, and what goes on was demanded before.
        if state.renewals.contains_key(&uid) {
            state.replaced.insert(uid.clone());
            state.touched.insert(uid.clone());
        }
        state.forgotten.insert(id.clone(), instance);
        if is_told {
            self.emit(state, &uid, id.as_str(), RuntimeEventKind::Deleted);
        }
        Some(uid)
    }
}
