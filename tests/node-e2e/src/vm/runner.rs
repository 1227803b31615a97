//! Runs the cases on a few machines at once, one after another on each, and keeps what a failed one left.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures::future::try_join_all;
use tokio::time::Instant;

use super::guest::Guest;
use super::site::{self, Site};
use super::{Case, cases};
use crate::harness::{Node, Tally, case_ended, keep_all_logs, namespace_of, run_bounded};
use crate::provision;
use crate::stack::{Agent, Stack};

/// A case that is stuck in something other than a bounded wait.
const CASE_WITHIN: Duration = Duration::from_secs(900);

/// What is asked of a machine on which a case failed, by the name of the file it goes to.
const EVIDENCE: [(&str, &str); 5] = [
    ("journal.log", "journalctl --no-pager --output=short-precise --lines=50000"),
    ("agent.log", "journalctl --no-pager --output=cat --unit=ferrolet --unit=kubelet --lines=50000"),
    ("pods.log", "cd /var/log/pods && tail --verbose --lines=200 */*/*.log"),
    ("units.log", "systemctl status --no-pager --full kubelet containerd; systemctl list-units --no-pager --failed"),
    (
        "files.log",
        "mount; ip address; nft list ruleset; find /etc/kubernetes /var/lib/kubelet -xdev; cat /var/lib/kubelet/*.y*ml /var/lib/kubelet/*.env",
    ),
];

/// A machine is one emulated CPU, and most of what a case does is to wait for it.
const MACHINES_MAX: usize = 2;

/// Whose cases, and where the logs of failed ones go.
pub async fn run(agent: Agent, filters: &[String], logs: PathBuf) -> Result<Tally> {
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
    let mut tally = Tally::default();
    let mut cases = cases::all();
    cases.retain(|case| wanted(&case.short_name()));
    cases.retain(|case| {
        let reason = skip_reason(case, agent);
        if let Some(reason) = &reason {
            println!("skip            {}  {reason}", case.short_name());
            tally.skipped += 1;
        }
        reason.is_none()
    });
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let machines = MACHINES_MAX.min(cpus).min(cases.len());
    let queue = RefCell::new(VecDeque::from(cases));
    let lanes = (0..machines).map(|number| Lane { number, agent, logs: &logs, queue: &queue }.run());
    for of_lane in try_join_all(lanes).await? {
        tally.passed += of_lane.passed;
        tally.failed += of_lane.failed;
    }
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped);
    Ok(tally)
}

/// Takes cases from the queue, onto one machine as long as none fails there.
struct Lane<'a> {
    number: usize,
    agent: Agent,
    logs: &'a Path,
    queue: &'a RefCell<VecDeque<Case>>,
}

impl Lane<'_> {
    async fn run(self) -> Result<Tally> {
        let mut tally = Tally::default();
        let mut machine: Option<(Rc<Stack>, Guest)> = None;
        loop {
            let Some(case) = self.queue.borrow_mut().pop_front() else { break };
            let name = case.short_name();
            let logs = self.logs.join(name.replace("::", "."));
            let begin = Instant::now();
            let (stack, guest) = match machine.take() {
                Some(running) => running,
                None => match self.boot(&logs).await {
                    Ok(booted) => booted,
                    Err(error) => {
                        tally.failed += 1;
                        case_ended(&name, begin, &Err(error));
                        continue;
                    }
                },
            };
            let begin = Instant::now();
            let result = run_bounded(tell(&case, self.agent, &stack, &guest), CASE_WITHIN).await;
            case_ended(&name, begin, &result);
            match result {
                Ok(()) => {
                    tally.passed += 1;
                    machine = Some((stack, guest));
                }
                Err(_) => {
                    tally.failed += 1;
                    collect(&stack, &guest).await;
                    keep_all_logs(vec![stack.clone()], &logs);
                    // What it left may not be what the next one counts on.
                    end(stack).await?;
                }
            }
        }
        if let Some((stack, _)) = machine {
            end(stack).await?;
        }
        Ok(tally)
    }

    async fn boot(&self, logs: &Path) -> Result<(Rc<Stack>, Guest)> {
        let begin = Instant::now();
        let world = site::world(self.agent, self.number).await;
        let stack = Rc::new(world.context("make a world for a virtual machine")?);
        match site::machine(&stack).await.context("make a virtual machine") {
            Ok(guest) => {
                println!("machine {} is up after {:.1} s", self.number, begin.elapsed().as_secs_f32());
                Ok((stack, guest))
            }
            Err(error) => {
                keep_all_logs(vec![stack.clone()], logs);
                end(stack).await?;
                Err(error)
            }
        }
    }
}

fn skip_reason(case: &Case, agent: Agent) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    let needed = provision::machine().map(drop);
    if let Err(missing) = needed.and(provision::program("kubeadm").map(drop)) {
        return Some(missing.to_string());
    }
    let why = case.beyond_upstream.filter(|_| agent == Agent::Kubelet)?;
    Some(format!("beyond upstream: {why}"))
}

async fn tell(case: &Case, agent: Agent, stack: &Rc<Stack>, guest: &Guest) -> Result<()> {
    let api = Node::on(stack.clone(), &namespace_of(&case.short_name())).await?;
    let site = Site { agent, stack: stack.clone(), guest: guest.clone(), api: api.clone() };
    let result = (case.story)(site).await;
    // The story's own error is the one to tell.
    result.and(api.clean_up().await)
}

/// Brings what the machine can tell to the logs of the stack.
async fn collect(stack: &Stack, guest: &Guest) {
    for (file, script) in EVIDENCE {
        let written = match guest.told(script, b"").await {
            Ok(output) => [output.stdout, output.stderr].concat(),
            // Its console is all there is of a machine that hangs.
            Err(error) => return println!("       the machine tells nothing: {error:#}"),
        };
        if let Err(error) = std::fs::write(stack.log_directory().join(file), written) {
            println!("       {file} not kept: {error}");
        }
    }
}

async fn end(stack: Rc<Stack>) -> Result<()> {
    let stack = Rc::try_unwrap(stack).map_err(|_| anyhow!("the stack is still in use after its cases"))?;
    stack.end().await
}
