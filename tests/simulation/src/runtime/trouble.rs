//! What goes wrong by itself: the runtime goes away, and the kernel kills something.

use std::time::Duration;

use ferrolet::cri::{RuntimeEventKind, SandboxState};
use tokio::time::Instant;

use super::{Deaf, SimRuntime};

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
}
