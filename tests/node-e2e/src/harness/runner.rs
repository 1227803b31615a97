//! Runs cases: shared ones several at once on one node, then those with stacks of their own.

use std::any::Any;
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures::{FutureExt, StreamExt, stream};
use tokio::time::Instant;

use super::{Case, Lab, Node, Story};
use crate::provision::{self, Containerd};
use crate::stack::{Agent, Stack};

/// More would only make each slower on the two cores that the figures are for.
const SHARED_AT_ONCE: usize = 4;
/// Each starts a control plane.
const OWN_AT_ONCE: usize = 2;
/// A case that is stuck in something other than a bounded wait.
const CASE_WITHIN: Duration = Duration::from_secs(300);

/// Which cases to run, and on what.
pub struct Choice {
    pub agent: Agent,
    pub containerd: Containerd,
    /// Only cases whose name contains one of these; all if empty.
    pub filters: Vec<String>,
    /// Only the chosen few.
    pub subset: bool,
    /// Where the logs of failed cases go.
    pub logs: PathBuf,
}

impl Choice {
    fn wants(&self, case: &Case) -> bool {
        (!self.subset || case.in_subset) && is_named(&self.filters, case.short_name())
    }

    /// Fails where something is missing that the case needs.
    fn needs(&self, case: &Case) -> Result<()> {
        if !case.standalone {
            provision::program("control-plane")?;
        }
        if case.maps_users {
            ensure!(self.containerd == Containerd::Current, "this containerd cannot map users");
            provision::mapping_runc()?;
        }
        Ok(())
    }
}

/// Whether a case of this name is asked for.
pub(crate) fn is_named(filters: &[String], name: &str) -> bool {
    filters.is_empty() || filters.iter().any(|filter| name.contains(filter))
}

/// Refuses a filter that nothing is called by: a misspelt word would pass for cases that passed.
pub(crate) fn check_filters<N: AsRef<str>>(filters: &[String], names: &[N]) -> Result<()> {
    let is_idle = |filter: &&String| !names.iter().any(|name| name.as_ref().contains(filter.as_str()));
    match filters.iter().find(is_idle) {
        Some(filter) => bail!("no case is called anything like {filter:?}"),
        None => Ok(()),
    }
}

/// Why a wanted case is not run, given whether all is there that it needs.
pub(crate) fn skip_reason(beyond_upstream: Option<&str>, agent: Agent, needs: Result<()>) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    if let Err(missing) = needs {
        return Some(missing.to_string());
    }
    let why = beyond_upstream.filter(|_| agent == Agent::Kubelet)?;
    Some(format!("beyond upstream: {why}"))
}

#[derive(Clone, Copy, Default)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

/// Runs the chosen cases and tells of each as it ends.
pub async fn run(cases: &[Case], choice: &Choice) -> Result<Tally> {
    let names: Vec<_> = cases.iter().map(Case::short_name).collect();
    check_filters(&choice.filters, &names)?;
    let mut tally = Tally::default();
    let (mut shared, mut own) = (Vec::new(), Vec::new());
    for case in cases.iter().filter(|case| choice.wants(case)) {
        if let Some(reason) = skip_reason(case.beyond_upstream, choice.agent, choice.needs(case)) {
            println!("skip            {}  {reason}", case.short_name());
            tally.skipped += 1;
            continue;
        }
        match case.story {
            Story::Shared(_) => shared.push(*case),
            Story::Own(_) => own.push(*case),
        }
    }
    let ended = [run_shared(&shared, choice).await, run_own(&own, choice).await];
    for passed in ended.into_iter().flatten() {
        match passed {
            true => tally.passed += 1,
            false => tally.failed += 1,
        }
    }
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped);
    Ok(tally)
}

/// Whether each of the cases passed. None does where their node does not come up.
async fn run_shared(cases: &[Case], choice: &Choice) -> Vec<bool> {
    if cases.is_empty() {
        return Vec::new();
    }
    let begin = Instant::now();
    let lab = Lab::new(choice.agent, choice.containerd);
    let ended = match lab.node(|stack| stack.name("shared")).await {
        Ok(node) => {
            let seconds = begin.elapsed().as_secs_f32();
            println!("the shared node is Ready after {seconds:.1} s");
            let stack = node.shared_stack();
            drop(node);
            run_on_stack(cases, choice, stack).await
        }
        Err(error) => {
            tell_failure("the shared node", begin, &error);
            keep_all_logs(lab.stacks(), &choice.logs.join("shared"));
            vec![false; cases.len()]
        }
    };
    if let Err(error) = lab.clear().await {
        tell_failure("the shared node's end", begin, &error);
        return vec![false; cases.len()];
    }
    ended
}

async fn run_on_stack(cases: &[Case], choice: &Choice, stack: Rc<Stack>) -> Vec<bool> {
    stream::iter(cases)
        .map(|case| {
            let story = run_on_shared(case, stack.clone());
            run_case(case, choice, story, || vec![stack.clone()])
        })
        .buffer_unordered(SHARED_AT_ONCE)
        .collect()
        .await
}

async fn run_on_shared(case: &Case, stack: Rc<Stack>) -> Result<()> {
    let Story::Shared(story) = case.story else { unreachable!("sorted out by `run`") };
    let node = Node::on(stack, &namespace_of(case.short_name())).await?;
    let result = story(node.clone()).await;
    // The story's own error is the one to tell.
    result.and(node.clean_up().await)
}

async fn run_own(cases: &[Case], choice: &Choice) -> Vec<bool> {
    stream::iter(cases)
        .map(async |case| {
            let Story::Own(story) = case.story else { unreachable!("sorted out by `run`") };
            let begin = Instant::now();
            let lab = Lab::new(choice.agent, choice.containerd);
            let passed = run_case(case, choice, story(lab.clone()), || lab.stacks()).await;
            match lab.clear().await {
                Ok(()) => passed,
                Err(error) => {
                    let error = error.context("take down its nodes");
                    tell_failure(case.short_name(), begin, &error);
                    false
                }
            }
        })
        .buffer_unordered(OWN_AT_ONCE)
        .collect()
        .await
}

/// Awaits the story, tells how it ended, and keeps the logs of a failure.
async fn run_case(
    case: &Case,
    choice: &Choice,
    story: impl Future<Output = Result<()>>,
    stacks: impl FnOnce() -> Vec<Rc<Stack>>,
) -> bool {
    let begin = Instant::now();
    let result = run_bounded(story, CASE_WITHIN).await;
    let name = case.short_name();
    case_ended(name, begin, &result);
    if result.is_err() {
        keep_all_logs(stacks(), &choice.logs.join(name.replace("::", ".")));
    }
    result.is_ok()
}

/// Awaits a story, which may neither panic nor take for ever.
pub(crate) async fn run_bounded(story: impl Future<Output = Result<()>>, within: Duration) -> Result<()> {
    let guarded = AssertUnwindSafe(story).catch_unwind();
    match tokio::time::timeout(within, guarded).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(anyhow!("panicked: {}", panic_text(&*panic))),
        Err(_) => Err(anyhow!("not at its end after {within:?}")),
    }
}

/// The line that tells of a case.
pub(crate) fn case_ended(name: &str, begin: Instant, result: &Result<()>) {
    match result {
        Ok(()) => println!("ok     {:6.1} s  {name}", begin.elapsed().as_secs_f32()),
        Err(error) => tell_failure(name, begin, error),
    }
}

fn tell_failure(what: &str, begin: Instant, error: &anyhow::Error) {
    let seconds = begin.elapsed().as_secs_f32();
    println!("FAILED {seconds:6.1} s  {what}");
    for line in format!("{error:#}").lines() {
        println!("       {line}");
    }
}

pub(crate) fn keep_all_logs(stacks: Vec<Rc<Stack>>, into: &Path) {
    let is_one = stacks.len() == 1;
    for (number, stack) in stacks.into_iter().enumerate() {
        // All nodes call their logs the same.
        let into = if is_one { into.to_owned() } else { into.join(format!("node-{number}")) };
        match keep_logs(&stack, &into) {
            Ok(()) => println!("       logs: {}", into.display()),
            Err(error) => println!("       logs not kept: {error:#}"),
        }
    }
}

fn keep_logs(stack: &Stack, into: &Path) -> Result<()> {
    for log in stack.logs() {
        let name = log.strip_prefix(stack.log_directory()).unwrap_or(&log);
        let copy = into.join(name);
        fs::create_dir_all(copy.parent().context("a log is in a directory")?)?;
        fs::copy(&log, &copy).with_context(|| format!("copy {}", log.display()))?;
    }
    Ok(())
}

/// A case's name as the name of a namespace.
pub(crate) fn namespace_of(case: &str) -> String {
    let name: String = case.replace("::", "-").replace('_', "-");
    name.chars().take(63).collect::<String>().trim_end_matches('-').to_owned()
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_no_case_is_called_by_is_refused() {
        let names = ["pods::a_pod_runs", "logs::a_log_is_read"];
        let check = |filters: &[&str]| {
            let filters: Vec<String> = filters.iter().map(|&filter| filter.to_owned()).collect();
            check_filters(&filters, &names).map_err(|error| error.to_string())
        };
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&["pod", "logs::"]), Ok(()));
        assert!(check(&["pod", "lgos"]).is_err_and(|error| error.contains("\"lgos\"")));
    }
}
