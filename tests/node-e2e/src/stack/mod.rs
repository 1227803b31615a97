//! Stacks: real nodes, each in a private world of its own on this machine.
//!
//! A stack is containerd, a control plane (unless it is standalone) and the agent under test,
//! in network, mount, PID, cgroup, IPC and host name namespaces of their own, with private
//! directories where node agents have theirs. Two run side by side, and the host's own runtime
//! or kubelet is not touched. Processes:
//!
//! ```text
//! owner (a test, `make run`) ── keeper ── waiter ─┤ PID 1 ── containerd, control plane, agent
//!                                                 └ inside the namespaces
//! ```
//!
//! All to the right of the owner are this same program in another role (`role`). Each ends when
//! the one to its left does, and the keeper then leaves the host as it found it.
//!
//! `builder` says what it is to be, `slot` derives every name on the host, `cgroups`, `network` and `world` make the world,
//! `init` and `supervisor` are the two ends of the talk with PID 1; `containerd`,
//! `control_plane`, `agent` and `registry` know how to run one part each.

mod agent;
mod builder;
mod cgroups;
mod containerd;
mod control_plane;
mod init;
mod keeper;
mod network;
mod part;
mod registry;
mod role;
mod slot;
mod supervisor;
mod world;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::poll::{self, Look};

pub use agent::{Agent, BOOTSTRAP_KUBECONFIG, KUBECONFIG, STATIC_PODS};
pub use builder::Builder;
pub use containerd::MAPPING_HANDLER;
pub use containerd::SOCKET as RUNTIME_SOCKET;
pub use keeper::Made;
pub use part::Part;
pub use registry::{IMAGE as PRIVATE_IMAGE, PASSWORD as REGISTRY_PASSWORD, SERVER as REGISTRY, USER as REGISTRY_USER};
pub use role::play_role;
pub use slot::SlotNumber;
pub use supervisor::State;

use keeper::Order;
use supervisor::{Program, Supervisor};

/// A running stack. Dropping it ends it, unless it is detached.
pub struct Stack {
    spec: Builder,
    made: Made,
    supervisor: Supervisor,
    hold: keeper::Hold,
}

impl Stack {
    pub fn builder() -> Builder {
        Builder::new()
    }

    pub fn made(&self) -> &Made {
        &self.made
    }

    pub fn node_name(&self) -> &str {
        &self.spec.node
    }

    pub fn node_address(&self) -> std::net::Ipv4Addr {
        self.made.slot.node_address()
    }

    pub fn pod_range(&self) -> String {
        self.made.slot.pod_range()
    }

    /// PID 1 inside, as the host numbers it: what nsenter(1) wants.
    pub fn init_pid(&self) -> i32 {
        self.made.init
    }

    /// The stack's directory on the host. Inside, it has the same path.
    pub fn directory(&self) -> PathBuf {
        self.made.slot.directory()
    }

    pub fn log_directory(&self) -> PathBuf {
        self.directory().join("log")
    }

    /// How to reach, from the host, what has `path` on the node.
    pub fn on_node(&self, path: &str) -> PathBuf {
        self.made.on_node(path)
    }

    /// Writes a file on the node, with the directories above it.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let on_node = self.on_node(path);
        let parent = on_node.parent().context("a file has a directory")?;
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        fs::write(&on_node, content).with_context(|| format!("write {path} on the node"))
    }

    pub fn read(&self, path: &str) -> Result<String> {
        let on_node = self.on_node(path);
        fs::read_to_string(&on_node).with_context(|| format!("read {path} on the node"))
    }

    /// For clients on the host; None if standalone.
    pub fn admin_kubeconfig(&self) -> Option<PathBuf> {
        (!self.spec.standalone).then(|| self.made.admin_kubeconfig())
    }

    /// Certificate and key that the API server shows to the agent.
    pub fn kubelet_client(&self) -> [PathBuf; 2] {
        control_plane::kubelet_client(self.made.slot)
    }

    pub fn agent(&self) -> Part<'_> {
        Part { stack: self, name: part::Name::Agent }
    }

    pub fn containerd(&self) -> Part<'_> {
        Part { stack: self, name: part::Name::Containerd }
    }

    pub fn control_plane(&self) -> Part<'_> {
        Part { stack: self, name: part::Name::ControlPlane }
    }

    /// Runs only where a case starts it.
    pub fn registry(&self) -> Part<'_> {
        Part { stack: self, name: part::Name::Registry }
    }

    /// Runs a program inside to its end and returns what it wrote to standard output.
    pub async fn run(&self, command: &[&str]) -> Result<String> {
        let (path, args) = command.split_first().context("an empty command")?;
        let scratch = self.directory().join("run");
        fs::create_dir_all(&scratch)?;
        let name = format!("run-{}", unique());
        let (output, errors) = (scratch.join(&name), scratch.join(format!("{name}.err")));
        let program = Program {
            name: name.clone(),
            path: path.into(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            env: part::environment(self)?,
            output: output.clone(),
            errors: Some(errors.clone()),
        };
        self.supervisor.start(program).await?;
        let state = self.supervisor.wait(&name).await?;
        let (output, errors) = (fs::read(&output)?, fs::read(&errors)?);
        ensure!(
            state == State::Exited { code: 0 },
            "{} ended with {state:?}: {}",
            command.join(" "),
            String::from_utf8_lossy(&errors).trim()
        );
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// Starts a program of the test's own inside, which ends with the stack. What it writes is
    /// among the logs.
    pub async fn start_program(&self, name: &str, command: &[&str]) -> Result<()> {
        let (path, args) = command.split_first().context("an empty command")?;
        let program = Program {
            name: name.to_owned(),
            path: path.into(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            env: part::environment(self)?,
            output: self.log_directory().join(format!("{name}.log")),
            errors: None,
        };
        self.supervisor.start(program).await.map(drop)
    }

    pub async fn program_state(&self, name: &str) -> Result<State> {
        self.supervisor.look(name).await
    }

    /// Kills such a program, if it runs, and waits until it is gone.
    pub async fn kill_program(&self, name: &str) -> Result<()> {
        if let Err(error) = self.supervisor.signal(name, Signal::SIGKILL).await {
            // One that ended by itself cannot be signalled any more, and that is as good.
            let state = self.program_state(name).await?;
            ensure!(!matches!(state, State::Running { .. }), error);
        }
        self.supervisor.wait(name).await.map(drop)
    }

    /// The numbers, inside, of the processes whose argv[0] has this file name.
    pub fn processes(&self, name: &str) -> Result<Vec<i32>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.on_node("/proc"))? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // A process may end while we look.
            let Ok(command_line) = fs::read(entry.path().join("cmdline")) else {
                continue;
            };
            let first = command_line.split(|&byte| byte == 0).next().unwrap_or_default();
            if Path::new(&*String::from_utf8_lossy(first)).file_name() == Some(name.as_ref()) {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// The process of this name that was given this argument.
    pub fn process_with(&self, name: &str, argument: &str) -> Result<i32> {
        let has = |pid: &i32| {
            let command_line = fs::read(self.on_node(&format!("/proc/{pid}/cmdline"))).unwrap_or_default();
            command_line.split(|&byte| byte == 0).any(|word| word == argument.as_bytes())
        };
        self.processes(name)?.into_iter().find(has).with_context(|| format!("no {name} with {argument}"))
    }

    /// SIGSTOP to a process by its number inside: it hangs, and so does who asks it something.
    pub async fn freeze_process(&self, pid: i32) -> Result<()> {
        self.supervisor.signal_pid(pid, Signal::SIGSTOP).await.map(drop)
    }

    pub async fn thaw_process(&self, pid: i32) -> Result<()> {
        self.supervisor.signal_pid(pid, Signal::SIGCONT).await.map(drop)
    }

    /// All log files, below the log directory.
    pub fn logs(&self) -> Vec<PathBuf> {
        logs_below(&self.log_directory())
    }

    /// The last lines of what each part logged, for a person who looks at a failure.
    pub fn log_tails(&self) -> String {
        let mut tails = String::new();
        for (part, lines) in [(self.containerd(), 5), (self.control_plane(), 5), (self.agent(), 20)] {
            let log = part.log().unwrap_or_default();
            let all: Vec<&str> = log.lines().collect();
            let tail = &all[all.len().saturating_sub(lines)..];
            tails += &format!("--- {}\n{}\n", part.log_path().display(), tail.join("\n"));
        }
        tails
    }

    /// Ends the stack and waits until nothing of it is left. Dropping does the same, but blocks.
    pub async fn end(self) -> Result<()> {
        self.hold.end(&self.made).await
    }

    async fn make_world(spec: Builder) -> Result<Stack> {
        ensure!(nix::unistd::geteuid().is_root(), "a stack needs root");
        // Known before anything is started.
        spec.containerd.directory()?;
        spec.agent.binary()?;
        let order = Order { name: spec.name.clone(), node: spec.node.clone(), detached: spec.detached };
        let (hold, made) = keeper::Hold::start(order).await?;
        let supervisor = Supervisor { slot: made.slot };
        Ok(Stack { spec, made, supervisor, hold })
    }

    async fn start_parts(&self) -> Result<()> {
        for (file, content) in &self.spec.static_pods {
            self.write(&format!("{}/{file}", agent::STATIC_PODS), content)?;
        }
        let wanted = |name| !self.spec.held_back.contains(&name);
        let containerd = async {
            match wanted(part::Name::Containerd) {
                true => self.containerd().start().await,
                false => Ok(()),
            }
        };
        let control_plane = async {
            match !self.spec.standalone && wanted(part::Name::ControlPlane) {
                true => self.control_plane().start().await,
                false => Ok(()),
            }
        };
        futures::future::try_join(containerd, control_plane).await?;
        if wanted(part::Name::Agent) {
            self.agent().start().await?;
        }
        Ok(())
    }
}

/// Ends the detached stack of this name, if there is one, and waits until it is gone. Also
/// sweeps what dead stacks left.
pub async fn down(name: &str) -> Result<bool> {
    let found = find(name)?;
    if let Some(made) = &found {
        keeper::terminate(made)?;
        poll::until(format!("end of stack {name}"), keeper::WITHIN, async || {
            Ok(match slot::held()?.contains(&made.slot) {
                true => Look::NotYet("its keeper still works on it".to_owned()),
                false => Look::Done(()),
            })
        })
        .await?;
    }
    let swept = slot::sweep().await?;
    Ok(found.is_some() || !swept.is_empty())
}

/// The living stack of this name.
pub fn find(name: &str) -> Result<Option<Made>> {
    Ok(living()?.into_iter().find(|made| made.name == name))
}

/// All living stacks.
pub fn living() -> Result<Vec<Made>> {
    let mut living = Vec::new();
    for slot in slot::held()? {
        // One that is just being made has no file yet.
        if let Ok(file) = fs::read(slot.directory().join("stack.json")) {
            living.push(serde_json::from_slice(&file).context("read stack.json")?);
        }
    }
    Ok(living)
}

fn logs_below(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let each = |path: PathBuf| match path.is_dir() {
        true => logs_below(&path),
        false => vec![path],
    };
    paths.into_iter().flat_map(each).collect()
}

/// A number that this process has not given out before.
pub(crate) fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
