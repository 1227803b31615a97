//! PID 1 of a stack: reaps, and starts and signals the stack's programs on request.
//!
//! Being their parent and sharing their PID namespace, it hits exactly the process it means,
//! which a helper that enters the namespaces from outside would not. It ends when its standard
//! input does, that is when its keeper is gone, and with it the kernel ends everything inside.
//!
//! Threads: the main one waits for the end of input, one reaps, one accepts connections, and
//! each connection has its own, since a request to wait may take long.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use super::supervisor::{Answer, Program, Request, State};
use super::world::{self, World};

/// Sets the world up and serves it until standard input ends.
pub fn run(world: &World) -> Result<()> {
    world::furnish(world)?;

    let socket = super::supervisor::socket(world.slot);
    let listener = UnixListener::bind(&socket).with_context(|| format!("listen on {}", socket.display()))?;
    let children = Arc::new(Children::default());
    let reaper = children.clone();
    std::thread::spawn(move || reaper.reap_forever());
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let children = children.clone();
            std::thread::spawn(move || serve(&children, connection));
        }
    });

    println!("up");
    std::io::stdin().read_to_end(&mut Vec::new()).context("wait for the keeper's end")?;
    Ok(())
}

/// One request and its answer. A client that went away meanwhile needs none.
fn serve(children: &Children, connection: UnixStream) {
    let mut line = String::new();
    let answer = match BufReader::new(&connection).read_line(&mut line) {
        Ok(_) => match serde_json::from_str(&line) {
            Ok(request) => children.answer(request),
            Err(error) => Answer::Refused(format!("read the request: {error}")),
        },
        Err(error) => Answer::Refused(format!("read the request: {error}")),
    };
    let text = serde_json::to_string(&answer).expect("an answer has only string keys");
    let _ = (&connection).write_all(text.as_bytes());
}

/// The programs by the name under which they were started, with what became of them.
#[derive(Default)]
struct Children {
    states: Mutex<BTreeMap<String, State>>,
    /// Told after every change of a state: a start, an end.
    changed: Condvar,
}

impl Children {
    fn answer(&self, request: Request) -> Answer {
        let result = match request {
            Request::Start(program) => self.start(program),
            Request::Signal { name, signal } => self.signal(&name, signal),
            Request::SignalPid { pid, signal } => send(pid, signal),
            Request::Look { name } => Ok(self.look(&name)),
            Request::Wait { name } => Ok(self.wait(&name)),
        };
        match result {
            Ok(state) => Answer::State(state),
            Err(error) => Answer::Refused(format!("{error:#}")),
        }
    }

    fn start(&self, program: Program) -> Result<State> {
        let output = OpenOptions::new().create(true).append(true).open(&program.output);
        let output = output.with_context(|| format!("open {}", program.output.display()))?;
        let errors = match &program.errors {
            None => output.try_clone()?,
            Some(path) => OpenOptions::new().create(true).append(true).open(path)?,
        };
        // The reaper must not see the child before its name is known, nor take the exit of one
        // whose exec failed from under the standard library.
        let mut states = self.lock();
        if let Some(State::Running { pid }) = states.get(&program.name) {
            bail!("{} runs already, as process {pid}", program.name);
        }
        let child = Command::new(&program.path)
            .args(&program.args)
            .env_clear()
            .envs(&program.env)
            .current_dir(Path::new("/"))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", program.path.display()))?;
        let state = State::Running { pid: child.id() as i32 };
        states.insert(program.name, state);
        self.changed.notify_all();
        Ok(state)
    }

    fn signal(&self, name: &str, signal: i32) -> Result<State> {
        // Under the lock a process that ended is not reaped, so its number is still its own.
        let states = self.lock();
        match states.get(name) {
            Some(&State::Running { pid }) => send(pid, signal),
            _ => bail!("{name} does not run"),
        }
    }

    fn look(&self, name: &str) -> State {
        self.lock().get(name).copied().unwrap_or(State::NeverStarted)
    }

    fn wait(&self, name: &str) -> State {
        let runs = |states: &mut BTreeMap<_, _>| matches!(states.get(name), Some(State::Running { .. }));
        let states = self.changed.wait_while(self.lock(), runs).expect("no holder panics");
        states.get(name).copied().unwrap_or(State::NeverStarted)
    }

    fn reap_forever(&self) {
        // Not by SIGCHLD: blocking it for this thread would block it in every program started.
        let look_only = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        loop {
            if waitid(Id::All, look_only).is_err() {
                // No process is left inside, so none can appear before the next start.
                let states = self.lock();
                let none_runs = |states: &mut BTreeMap<_, _>| !any_runs(states);
                drop(self.changed.wait_while(states, none_runs).expect("no holder panics"));
            }
            self.reap();
            self.changed.notify_all();
        }
    }

    fn reap(&self) {
        let mut states = self.lock();
        // Also adopted ones, which nobody asks after.
        while let Ok(ended) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            match ended {
                WaitStatus::Exited(pid, code) => note_end(&mut states, pid, State::Exited { code }),
                WaitStatus::Signaled(pid, signal, _) => {
                    note_end(&mut states, pid, State::Killed { signal: signal as i32 });
                }
                _ => return,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, State>> {
        self.states.lock().expect("no holder panics")
    }
}

fn any_runs(states: &BTreeMap<String, State>) -> bool {
    states.values().any(|state| matches!(state, State::Running { .. }))
}

fn note_end(states: &mut BTreeMap<String, State>, pid: Pid, end: State) {
    let running = State::Running { pid: pid.as_raw() };
    if let Some(state) = states.values_mut().find(|state| **state == running) {
        *state = end;
    }
}

fn send(pid: i32, signal: i32) -> Result<State> {
    let signal = Signal::try_from(signal).context("send a signal")?;
    kill(Pid::from_raw(pid), signal).with_context(|| format!("send {signal} to process {pid}"))?;
    Ok(State::Running { pid })
}
