//! Sandboxes: made, stopped, removed.
//!
//! Checked here, at the moment it would happen: nothing is removed while a container runs in
//! it.

use std::path::PathBuf;

use ferrolet::cri::{CriError, Result, RuntimeEventKind, Sandbox, SandboxConfig, SandboxId, SandboxState};

use super::{SimRuntime, State};
use crate::invariants::Invariant;

impl SimRuntime {
    pub(super) fn make_sandbox(&self, config: &SandboxConfig) -> Result<SandboxId> {
        let mut state = self.state();
        state.changes.push((config.pod_uid.clone(), "RunPodSandbox"));
        let taken = state
            .sandboxes
            .values()
            .any(|sandbox| sandbox.pod_uid == config.pod_uid && sandbox.attempt == config.attempt);
        if taken {
            let message = format!("name of pod {} attempt {} is reserved", config.pod_name, config.attempt);
            return Err(CriError::Failed { call: "RunPodSandbox", message });
        }
        state.made += 1;
        let made = state.made;
        let id = SandboxId::new(format!("sandbox-{made:04}"));
        let ip = std::net::Ipv4Addr::from(0x0a58_0000 + u32::try_from(made % 60_000).expect("less than 60,000"));
        let sandbox = Sandbox {
            id: id.clone(),
            pod_name: config.pod_name.clone(),
            pod_namespace: config.pod_namespace.clone(),
            pod_uid: config.pod_uid.clone(),
            attempt: config.attempt,
            state: SandboxState::Ready,
            created_at: self.world.clock.wall(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            ips: vec![ip.into()],
            network_mode: Some(config.security.namespaces.network),
            users: config.security.namespaces.users,
            runtime_handler: String::new(),
        };
        state.users.extend(config.security.namespaces.users.map(|users| (id.clone(), users)));
        state.sandboxes.insert(id.clone(), sandbox);
        state.log_directories.insert(id.clone(), PathBuf::from(&config.log_directory));
        state.cgroups.insert(id.clone(), config.cgroup_parent.clone());
        self.ground.need_cgroup(&config.cgroup_parent);
        self.world.log(|| format!("sandbox {id} made for {} attempt {}", config.pod_name, config.attempt));
        self.emit(&mut state, &config.pod_uid, id.as_str(), RuntimeEventKind::Started);
        Ok(id)
    }

    pub(super) fn end_sandbox(&self, id: &SandboxId) -> Result<()> {
        let inside: Vec<_> = {
            let mut state = self.state();
            let State { sandboxes, changes, .. } = &mut *state;
            let Some(sandbox) = sandboxes.get_mut(id) else { return Ok(()) };
            changes.push((sandbox.pod_uid.clone(), "StopPodSandbox"));
            sandbox.ips.clear();
            if sandbox.state == SandboxState::Ready {
                sandbox.state = SandboxState::NotReady;
                let uid = sandbox.pod_uid.clone();
                self.emit(&mut state, &uid, id.as_str(), RuntimeEventKind::Stopped);
            }
            let of_it = state.containers.values().filter(|instance| instance.container.sandbox_id == *id);
            of_it.map(|instance| instance.container.id.clone()).collect()
        };
        for container in inside {
            self.end(&container, 137);
        }
        self.world.log(|| format!("sandbox {id} stopped"));
        Ok(())
    }

    pub(super) fn drop_sandbox(&self, id: &SandboxId) -> Result<()> {
        let mut state = self.state();
        let Some(sandbox) = state.sandboxes.remove(id) else { return Ok(()) };
        state.changes.push((sandbox.pod_uid.clone(), "RemovePodSandbox"));
        let alive = state
            .containers
            .values()
            .any(|instance| instance.container.sandbox_id == *id && instance.container.is_running());
        if alive {
            self.world.violation(Invariant::StoppedBeforeRemoved, format!("sandbox {id} of {}", sandbox.pod_uid));
        }
        state.containers.retain(|_, instance| instance.container.sandbox_id != *id);
        state.users.remove(id);
        state.cgroups.remove(id);
        self.emit(&mut state, &sandbox.pod_uid, id.as_str(), RuntimeEventKind::Deleted);
        Ok(())
    }
}
