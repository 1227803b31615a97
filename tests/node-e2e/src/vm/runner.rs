//! Runs the cases on a few machines at once, one after another on each, and keeps what a failed one left.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures::future::join_all;
use tokio::time::Instant;

use super::guest::Guest;
use super::site::{self, Site};
use super::{Case, cases};
use crate::harness::{
    Node, Tally, case_ended, check_filters, is_named, keep_all_logs, namespace_of, run_bounded, skip_reason,
};
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

/// All CPUs of an emulated machine are one thread, and most of what a case does is to wait for it.
const MACHINES_MAX: usize = 2;

/// Whose cases, and where the logs of failed ones go.
pub async fn run(agent: Agent, filters: &[String], logs: PathBuf) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut cases = cases::all();
    let names: Vec<_> = cases.iter().map(Case::short_name).collect();
    check_filters(filters, &names)?;
    cases.retain(|case| is_named(filters, &case.short_name()));
    cases.retain(|case| {
        let reason = skip_reason(case.beyond_upstream, agent, needs());
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
    for of_lane in join_all(lanes).await {
        tally.passed += of_lane.passed;
        tally.failed += of_lane.failed;
    }
    for case in queue.take() {
        tally.failed += 1;
        case_ended(&case.short_name(), Instant::now(), &Err(anyhow!("no machine is left to run it on")));
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
    /// Ends with the queue, or with a machine that does not boot: the next would not either, after
    /// as long a wait. What is left is then for the other lanes.
    async fn run(self) -> Tally {
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
                        return tally;
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
                    tally.failed += self.end(stack).await;
                }
            }
        }
        if let Some((stack, _)) = machine {
            tally.failed += self.end(stack).await;
        }
        tally
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
                // It failed already, and its end is told beside that.
                self.end(stack).await;
                Err(error)
            }
        }
    }

    /// Ends a machine with its world, and tells how many failures that was: other cases go on.
    async fn end(&self, stack: Rc<Stack>) -> usize {
        let begin = Instant::now();
        let ended = match Rc::try_unwrap(stack) {
            Ok(stack) => stack.end().await,
            Err(_) => Err(anyhow!("the stack is still in use after its cases")),
        };
        if ended.is_err() {
            case_ended(&format!("the end of machine {}", self.number), begin, &ended);
        }
        usize::from(ended.is_err())
    }
}

/// Fails where something is missing that all cases need.
fn needs() -> Result<()> {
    provision::machine()?;
    provision::program("kubeadm").map(drop)
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
        // One command that fails is no reason not to hear the next.
        let written = match guest.told(&format!("set +e\n{script}"), b"").await {
            Ok(output) => [output.stdout, output.stderr].concat(),
            // Its console is all there is of a machine that hangs.
            Err(error) => return println!("       the machine tells nothing: {error:#}"),
        };
        if let Err(error) = std::fs::write(stack.log_directory().join(file), written) {
            println!("       {file} not kept: {error}");
        }
    }
}
