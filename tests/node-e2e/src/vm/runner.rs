//! Runs the cases one after another on a machine, and keeps what a failed one left.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
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

/// Whose cases, and where the logs of failed ones go.
pub async fn run(agent: Agent, filters: &[String], logs: PathBuf) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut machine: Option<(Rc<Stack>, Guest)> = None;
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
    for case in cases::all().into_iter().filter(|case| wanted(&case.short_name())) {
        let name = case.short_name();
        if let Some(reason) = skip_reason(&case, agent) {
            println!("skip            {name}  {reason}");
            tally.skipped += 1;
            continue;
        }
        let logs = logs.join(name.replace("::", "."));
        let begin = Instant::now();
        let (stack, guest) = match machine.take() {
            Some(running) => running,
            None => match boot(agent, &logs).await {
                Ok(booted) => booted,
                Err(error) => {
                    tally.failed += 1;
                    case_ended(&name, begin, &Err(error));
                    continue;
                }
            },
        };
        let begin = Instant::now();
        let result = run_bounded(tell(&case, agent, &stack, &guest), CASE_WITHIN).await;
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
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped);
    Ok(tally)
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

async fn boot(agent: Agent, logs: &Path) -> Result<(Rc<Stack>, Guest)> {
    let begin = Instant::now();
    let stack = Rc::new(site::world(agent).await.context("make a world for a virtual machine")?);
    match site::machine(&stack).await.context("make a virtual machine") {
        Ok(guest) => {
            println!("the machine is up after {:.1} s", begin.elapsed().as_secs_f32());
            Ok((stack, guest))
        }
        Err(error) => {
            keep_all_logs(vec![stack.clone()], logs);
            end(stack).await?;
            Err(error)
        }
    }
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
