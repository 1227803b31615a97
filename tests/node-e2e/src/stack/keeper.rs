//! The keeper: the process on the host that makes a stack's world and takes it down again,
//! whatever becomes of the program that asked for it.
//!
//! It tells its owner about the world in one line on standard output. It ends the world when
//! its owner's end of standard input closes (by intent or by death) or, detached, on SIGTERM.
//! If it is killed itself, PID 1 sees the end of *its* input and everything inside ends; what
//! remains on the host is swept by the next stack.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::{Pid, setsid};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, ChildStdin, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::cgroups::{self, Layout};
use super::role::Role;
use super::slot::{Slot, SlotNumber};
use super::world::World;
use super::{control_plane, network};

/// How long the kernel may take to end all processes of a world.
const END_WITHIN: Duration = Duration::from_secs(30);

/// How long a keeper may take to make a world or to take one down.
pub const WITHIN: Duration = Duration::from_secs(60);

/// What a keeper is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// What `make down` finds it by.
    pub name: String,
    pub node: String,
    /// Whether the world outlives the program that ordered it.
    pub detached: bool,
}

/// What the owner learns of a world; also in the slot's directory, for who comes later.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Made {
    pub name: String,
    pub node: String,
    pub slot: SlotNumber,
    /// PID 1 as the host numbers it.
    pub init: i32,
    pub keeper: u32,
}

impl Made {
    /// How to reach, from the host, what has `path` on the node.
    pub fn on_node(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// Where the kubeconfig for clients on the host is, if there is a control plane.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        control_plane::kubeconfig(self.slot, "admin")
    }
}

/// The one line on standard output.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    Made(Made),
    Failed(String),
}

/// The life of a keeper. The owner hears of a failure while it still listens.
pub async fn run(order: Order) -> Result<()> {
    let result = keep(order).await;
    if let Err(error) = &result {
        // An owner that is gone has no use for the reply.
        let _ = tell_owner(&Reply::Failed(format!("{error:#}")));
    }
    result
}

async fn keep(order: Order) -> Result<()> {
    // A Ctrl-C at the terminal is for the owner; the keeper learns of it by the closing input.
    setsid().context("leave the owner's session")?;
    let mut terminated = signal(SignalKind::terminate())?;
    let lifeline = match order.detached {
        true => None,
        false => Some(Receiver::from_owned_fd(std::io::stdin().as_fd().try_clone_to_owned()?)?),
    };
    let slot = Slot::take().await?;
    let running = match make(&order, slot.number).await {
        Ok((running, made)) => tell_owner(&Reply::Made(made)).map(|()| running),
        Err(error) => Err(error),
    };
    let running = match running {
        Ok(running) => running,
        Err(error) => {
            take_down(slot).await?;
            return Err(error);
        }
    };
    tokio::select! {
        biased;
        // Whichever comes first ends the world, so neither loses anything by being dropped.
        _ = terminated.recv() => {}
        () = owner_gone(lifeline) => {}
    }
    running.end().await?;
    take_down(slot).await
}

/// The owner never writes; its end of the pipe closes when it lets go or dies.
async fn owner_gone(lifeline: Option<Receiver>) {
    match lifeline {
        // An error would mean that the pipe is of no use any more, which ends the stack too.
        Some(mut lifeline) => drop(lifeline.read_to_end(&mut Vec::new()).await),
        None => std::future::pending().await,
    }
}

fn tell_owner(reply: &Reply) -> Result<()> {
    let line = serde_json::to_string(reply)?;
    writeln!(std::io::stdout(), "{line}").context("tell the owner")
}

/// Removes what is on the host. The world's processes are gone.
async fn take_down(slot: Slot) -> Result<()> {
    network::disconnect(slot.number).await?;
    cgroups::remove(slot.number).await?;
    slot.give_back()
}

/// The processes of a world, as its keeper holds them.
struct Running {
    /// The process outside of the PID namespace that waits for its PID 1.
    waiter: Child,
    /// PID 1 ends when this closes.
    lifeline: ChildStdin,
}

impl Running {
    async fn end(mut self) -> Result<()> {
        drop(self.lifeline);
        match tokio::time::timeout(END_WITHIN, self.waiter.wait()).await {
            Ok(status) => status.map(drop).context("wait for the end of the world"),
            Err(_) => bail!("processes of the stack did not end within {END_WITHIN:?}"),
        }
    }
}

async fn make(order: &Order, slot: SlotNumber) -> Result<(Running, Made)> {
    let cgroups = Layout::of_host()?;
    cgroups.create(slot)?;
    let logs = slot.directory().join("log");
    fs::create_dir(&logs)?;
    let log = logs.join("world.log");

    let world = World { slot, node: order.node.clone(), cgroups };
    let mut waiter = Command::from(Role::Enter(world).command()?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(&log)?)
        .kill_on_drop(true)
        .spawn()
        .context("start the world")?;
    let lifeline = waiter.stdin.take().expect("stdin is piped");
    let mut lines = BufReader::new(waiter.stdout.take().expect("stdout is piped")).lines();

    let (mut init, mut up) = (None, false);
    while init.is_none() || !up {
        match lines.next_line().await? {
            None => bail!("the world did not come up: {}", fs::read_to_string(&log)?.trim()),
            Some(line) if line == "up" => up = true,
            Some(line) => {
                let pid = line.strip_prefix("pid ").and_then(|pid| pid.parse().ok());
                ensure!(pid.is_some(), "unexpected from the world: {line}");
                init = pid;
            }
        }
    }
    let init = init.expect("the loop ends with one");
    network::connect(slot, Pid::from_raw(init)).await?;

    let (name, node) = (order.name.clone(), order.node.clone());
    let made = Made { name, node, slot, init, keeper: std::process::id() };
    fs::write(slot.directory().join("stack.json"), serde_json::to_string(&made)?)?;
    Ok((Running { waiter, lifeline }, made))
}

/// The owner's hold on a keeper.
pub struct Hold {
    process: Child,
    /// Closing it ends a stack that is not detached.
    lifeline: Option<ChildStdin>,
}

impl Hold {
    pub async fn start(order: Order) -> Result<(Hold, Made)> {
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
        let reply = tokio::time::timeout(WITHIN, lines.next_line())
            .await
            .context("the keeper of the stack does not answer")??
            .context("the keeper of the stack ended without an answer")?;
        match serde_json::from_str(&reply).context("read the keeper's answer")? {
            Reply::Made(made) => Ok((Hold { process, lifeline }, made)),
            Reply::Failed(reason) => bail!("make a world for the stack: {reason}"),
        }
    }

    pub async fn end(mut self, made: &Made) -> Result<()> {
        match self.lifeline.take() {
            Some(lifeline) => drop(lifeline),
            None => terminate(made)?,
        }
        let status = tokio::time::timeout(WITHIN, self.process.wait()).await;
        let status = status.context("the keeper of the stack does not end")??;
        ensure!(status.success(), "the keeper could not clear {}", made.slot.directory().display());
        Ok(())
    }
}

/// Asks a detached stack's keeper to end it.
pub fn terminate(made: &Made) -> Result<()> {
    use nix::sys::signal::{Signal, kill};
    let keeper = nix::unistd::Pid::from_raw(made.keeper as i32);
    kill(keeper, Signal::SIGTERM).context("signal the keeper of the stack")
}
