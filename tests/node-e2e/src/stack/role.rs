//! The parts this program plays for itself, apart from what it is called for.
//!
//! A keeper, a waiter and a PID 1 are this same program, started anew with an argument that
//! says which: whoever can make a stack has all that a stack needs.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::init;
use super::keeper::{self, Order};
use super::world::{self, World};

#[derive(Serialize, Deserialize)]
pub enum Role {
    Keep(Order),
    Enter(World),
    Init(World),
}

const ROLE_ARGUMENT: &str = "--in-role";

impl Role {
    pub fn command(&self) -> Result<Command> {
        // Not current_exe: that path may hold a newer build by now, or none.
        let mut command = Command::new("/proc/self/exe");
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
