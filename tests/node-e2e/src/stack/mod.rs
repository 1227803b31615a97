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
//! All of the right-hand side are this same program in another role (`Role`). Each ends when
//! the one to its left does, and the keeper then leaves the host as it found it.
//!
//! `slot` derives every name on the host, `cgroups`, `network` and `world` make the world,
//! `init` and `supervisor` are the two ends of the talk with PID 1; `containerd`,
//! `control_plane` and `agent` know how to run one part each.

mod agent;
mod cgroups;
mod containerd;
mod control_plane;
mod init;
mod keeper;
mod network;
mod part;
mod slot;
mod supervisor;
mod world;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use crate::poll::{self, Look};
use crate::provision::Containerd;

pub use agent::{Agent, KUBECONFIG, STATIC_PODS};
pub use containerd::SOCKET as RUNTIME_SOCKET;
pub use keeper::Made;
pub use part::Part;
pub use slot::SlotNumber;
pub use supervisor::State;

use keeper::{Order, Reply};
use supervisor::{Program, Supervisor};
use world::World;

/// How long a keeper may take to make a world or to take one down.
const KEEPER_WITHIN: Duration = Duration::from_secs(60);

/// What the stack is to be; `start` makes it so.
pub struct Builder {
    name: String,
    node: String,
    detached: bool,
    standalone: bool,
    containerd: Containerd,
    agent: Agent,
    /// Set over the defaults of `agent::configuration`.
    config: serde_json::Map<String, serde_json::Value>,
    flags: Vec<String>,
    static_pods: BTreeMap<String, String>,
    held_back: Vec<part::Name>,
}

impl Builder {
    /// The name that `make down` and `status` know it by.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    pub fn node(mut self, node: &str) -> Self {
        self.node = node.to_owned();
        self
    }

    /// It goes on when this program ends, until `stack::down`.
    pub fn detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// Without a control plane: static pods only.
    pub fn standalone(mut self) -> Self {
        self.standalone = true;
        self
    }

    pub fn containerd(mut self, containerd: Containerd) -> Self {
        self.containerd = containerd;
        self
    }

    pub fn agent(mut self, agent: Agent) -> Self {
        self.agent = agent;
        self
    }

    /// Sets a top-level field of the KubeletConfiguration.
    pub fn config(mut self, field: &str, value: impl Into<serde_json::Value>) -> Self {
        self.config.insert(field.to_owned(), value.into());
        self
    }

    /// Adds a command line flag of the agent.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// A file in the static-pod directory from the start.
    pub fn static_pod(mut self, file: &str, content: &str) -> Self {
        self.static_pods.insert(file.to_owned(), content.to_owned());
        self
    }

    /// The agent is not started yet; `stack.agent().start()` does.
    pub fn without_agent(mut self) -> Self {
        self.held_back.push(part::Name::Agent);
        self
    }

    pub fn without_containerd(mut self) -> Self {
        self.held_back.push(part::Name::Containerd);
        self
    }

    /// Unlike `standalone`, the agent is meant to have one. Only once it has been started are
    /// there kubeconfigs, so the agent has to be held back too.
    pub fn without_control_plane(mut self) -> Self {
        self.held_back.push(part::Name::ControlPlane);
        self
    }

    /// Whether it is to have all parts, and so a node that becomes Ready.
    pub fn is_complete(&self) -> bool {
        !self.standalone && self.held_back.is_empty()
    }

    /// Starts all parts that are not held back and waits until containerd and the control
    /// plane serve; the agent is only started.
    pub async fn start(self) -> Result<Stack> {
        let stack = Stack::make_world(self).await?;
        match stack.start_parts().await {
            Ok(()) => Ok(stack),
            Err(error) => {
                let logs = stack.log_tails();
                // A detached one would stay half made.
                stack.end().await?;
                Err(error.context(format!("bring up the stack; its logs end with\n{logs}")))
            }
        }
    }
}

/// A running stack. Dropping it ends it, unless it is detached.
pub struct Stack {
    spec: Builder,
    made: Made,
    supervisor: Supervisor,
    keeper: Keeper,
}

impl Stack {
    pub fn builder() -> Builder {
        Builder {
            name: format!("pid-{}", std::process::id()),
            node: "ferrolet-0".to_owned(),
            detached: false,
            standalone: false,
            containerd: Containerd::Current,
            agent: Agent::Ferrolet,
            config: serde_json::Map::new(),
            flags: Vec::new(),
            static_pods: BTreeMap::new(),
            held_back: Vec::new(),
        }
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

    pub fn agent(&self) -> Part<'_> {
        Part { stack: self, name: part::Name::Agent }
    }

    pub fn containerd(&self) -> Part<'_> {
        Part { stack: self, name: part::Name::Containerd }
    }

    pub fn control_plane(&self) -> Part<'_> {
        Part { stack: self, name: part::Name::ControlPlane }
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
    pub async fn end(mut self) -> Result<()> {
        self.keeper.end(&self.made).await
    }

    async fn make_world(spec: Builder) -> Result<Stack> {
        ensure!(nix::unistd::geteuid().is_root(), "a stack needs root");
        let order = Order { name: spec.name.clone(), node: spec.node.clone(), detached: spec.detached };
        let (keeper, made) = Keeper::start(order).await?;
        let supervisor = Supervisor { slot: made.slot };
        Ok(Stack { spec, made, supervisor, keeper })
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

/// The owner's hold on a keeper.
struct Keeper {
    process: Child,
    /// Closing it ends a stack that is not detached.
    lifeline: Option<ChildStdin>,
}

impl Keeper {
    async fn start(order: Order) -> Result<(Keeper, Made)> {
        let detached = order.detached;
        let mut process = Command::from(Role::Keep(order).command()?)
            .stdin(if detached { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start the keeper of the stack")?;
        let lifeline = process.stdin.take();
        let stdout = process.stdout.take().expect("stdout is piped");
        let mut lines = BufReader::new(stdout).lines();
        let reply = tokio::time::timeout(KEEPER_WITHIN, lines.next_line())
            .await
            .context("the keeper of the stack does not answer")??
            .context("the keeper of the stack ended without an answer")?;
        match serde_json::from_str(&reply).context("read the keeper's answer")? {
            Reply::Made(made) => Ok((Keeper { process, lifeline }, made)),
            Reply::Failed(reason) => bail!("make a world for the stack: {reason}"),
        }
    }

    async fn end(&mut self, made: &Made) -> Result<()> {
        match self.lifeline.take() {
            Some(lifeline) => drop(lifeline),
            None => terminate(made)?,
        }
        let status = tokio::time::timeout(KEEPER_WITHIN, self.process.wait()).await;
        let status = status.context("the keeper of the stack does not end")??;
        ensure!(status.success(), "the keeper could not clear {}", made.slot.directory().display());
        Ok(())
    }
}

/// Ends the detached stack of this name, if there is one, and waits until it is gone. Also
/// sweeps what dead stacks left.
pub async fn down(name: &str) -> Result<bool> {
    let found = find(name)?;
    if let Some(made) = &found {
        terminate(made)?;
        poll::until(format!("end of stack {name}"), KEEPER_WITHIN, async || {
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

fn terminate(made: &Made) -> Result<()> {
    use nix::sys::signal::{Signal, kill};
    let keeper = nix::unistd::Pid::from_raw(made.keeper as i32);
    kill(keeper, Signal::SIGTERM).context("signal the keeper of the stack")
}

/// The parts this program plays for itself, apart from what it is called for.
#[derive(Serialize, Deserialize)]
enum Role {
    Keep(Order),
    Enter(World),
    Init(World),
}

const ROLE_ARGUMENT: &str = "--in-role";

impl Role {
    fn command(&self) -> Result<std::process::Command> {
        // Not current_exe: that path may hold a newer build by now, or none.
        let mut command = std::process::Command::new("/proc/self/exe");
        command.arg0(match self {
            Role::Keep(_) => "stack-keeper",
            Role::Enter(_) => "stack-waiter",
            Role::Init(_) => "stack-init",
        });
        command.arg(ROLE_ARGUMENT).arg(serde_json::to_string(self)?);
        Ok(command)
    }

    fn play(self) -> Result<ExitCode> {
        match self {
            Role::Keep(order) => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(keeper::run(order)).map(|()| ExitCode::SUCCESS)
            }
            Role::Enter(world) => world::enter(&world, Role::Init(world.clone()).command()?),
            Role::Init(world) => init::run(&world).map(|()| ExitCode::SUCCESS),
        }
    }
}

/// To be called first in `main` of every program that makes stacks: plays the role this
/// process was started for, if it was started for one.
pub fn play_role() -> Option<ExitCode> {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() != Some(ROLE_ARGUMENT) {
        return None;
    }
    let role = serde_json::from_str::<Role>(&args.next().unwrap_or_default());
    Some(role.map_err(Into::into).and_then(Role::play).unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    }))
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
