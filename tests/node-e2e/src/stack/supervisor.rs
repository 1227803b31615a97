//! How one talks to PID 1 of a stack: one JSON request per connection, one JSON answer.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::slot::SlotNumber;

/// A program to be started inside.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Program {
    /// What later requests call it.
    pub name: String,
    pub path: PathBuf,
    pub args: Vec<String>,
    /// All of its environment.
    pub env: BTreeMap<String, String>,
    /// Standard output is appended here, and standard error unless `errors` is set.
    pub output: PathBuf,
    pub errors: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    Start(Program),
    Signal {
        name: String,
        signal: i32,
    },
    /// For a process that a program of ours started.
    SignalPid {
        pid: i32,
        signal: i32,
    },
    Look {
        name: String,
    },
    /// Answered when the program has ended.
    Wait {
        name: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    State(State),
    Refused(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    NeverStarted,
    /// With its number inside the stack.
    Running {
        pid: i32,
    },
    Exited {
        code: i32,
    },
    Killed {
        signal: i32,
    },
}

/// Where PID 1 listens; below a directory that is the same inside and outside.
pub fn socket(slot: SlotNumber) -> PathBuf {
    slot.directory().join("init.sock")
}

/// The client side.
#[derive(Clone, Copy, Debug)]
pub struct Supervisor {
    pub slot: SlotNumber,
}

impl Supervisor {
    pub async fn start(self, program: Program) -> Result<State> {
        self.ask(Request::Start(program)).await
    }

    pub async fn signal(self, name: &str, signal: Signal) -> Result<State> {
        self.ask(Request::Signal { name: name.to_owned(), signal: signal as i32 }).await
    }

    pub async fn signal_pid(self, pid: i32, signal: Signal) -> Result<State> {
        self.ask(Request::SignalPid { pid, signal: signal as i32 }).await
    }

    pub async fn look(self, name: &str) -> Result<State> {
        self.ask(Request::Look { name: name.to_owned() }).await
    }

    pub async fn wait(self, name: &str) -> Result<State> {
        self.ask(Request::Wait { name: name.to_owned() }).await
    }

    async fn ask(self, request: Request) -> Result<State> {
        let socket = socket(self.slot);
        let mut connection = UnixStream::connect(&socket).await.context("reach the stack's PID 1")?;
        let mut line = serde_json::to_string(&request)?;
        line.push('\n');
        connection.write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        match serde_json::from_str(&answer).context("read the answer of the stack's PID 1")? {
            Answer::State(state) => Ok(state),
            Answer::Refused(reason) => bail!(reason),
        }
    }
}
