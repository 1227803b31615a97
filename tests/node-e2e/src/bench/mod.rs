//! Figures: the same things done by Ferrolet, by upstream's kubelet and by bare CRI calls, on
//! stacks of the same make, one after another in one sitting.
//!
//! Pods are bound by `nodeName`, so the scheduler is in nobody's figures. Times of events at
//! the API are taken from a watch by this process; times inside the node from the runtime's
//! own timestamps. CPU and memory are those of the agent's process, from /proc.

mod agent;
mod bare;
mod load;
mod process;
mod report;

use anyhow::{Context, Result, ensure};

use crate::provision::Containerd;
use crate::stack::{Agent, Stack};
use report::Figures;

/// Pods started one after another.
pub(crate) const SINGLE_PODS: usize = 20;
/// Pods created at once.
pub(crate) const BURST_PODS: usize = 100;
/// Pods on the node while it is looked at, at rest.
pub(crate) const RESTING_PODS: usize = 110;
/// HTTP probes a second: pods, containers of each, and a liveness and a readiness probe of each
/// container every second.
pub(crate) const PROBED_PODS: usize = 25;
pub(crate) const PROBED_CONTAINERS: usize = 10;

/// What is measured together, and chosen together by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Single,
    Burst,
    Rest,
    Probes,
    Hang,
    Restart,
    Static,
}

const PARTS: [(&str, Part); 7] = [
    ("single", Part::Single),
    ("burst", Part::Burst),
    ("rest", Part::Rest),
    ("probes", Part::Probes),
    ("hang", Part::Hang),
    ("restart", Part::Restart),
    ("static", Part::Static),
];

/// Measures the parts whose name is one of `words`, or all.
pub async fn run(words: &[String]) -> Result<()> {
    for word in words {
        let names = PARTS.map(|(name, _)| name);
        ensure!(names.contains(&word.as_str()), "{word:?} is none of {}", names.join(", "));
    }
    let chosen = PARTS.into_iter().filter(|(name, _)| words.is_empty() || words.iter().any(|word| word == name));
    let parts: Vec<Part> = chosen.map(|(_, part)| part).collect();
    let seconds = std::env::var("BENCH_REST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    eprintln!("==> bare CRI calls ...");
    let bare = match parts.iter().any(|part| bare::PARTS.contains(part)) {
        true => bare::measure(&stack(None).await?, &parts).await.context("bare CRI calls")?,
        false => bare::Bare::default(),
    };
    eprintln!("==> Ferrolet ...");
    let ferrolet = agent::measure(stack(Some(Agent::Ferrolet)).await?, &parts, seconds).await.context("Ferrolet")?;
    eprintln!("==> upstream's kubelet ...");
    let kubelet = agent::measure(stack(Some(Agent::Kubelet)).await?, &parts, seconds).await.context("kubelet")?;
    print!("{}", report::table(&parts, &Figures { bare, ferrolet, kubelet }));
    Ok(())
}

async fn stack(agent: Option<Agent>) -> Result<Stack> {
    let builder =
        Stack::builder().containerd(Containerd::Current).config("maxPods", 250).config("serializeImagePulls", false);
    match agent {
        Some(agent) => builder.agent(agent).start().await,
        None => builder.standalone().without_agent().start().await,
    }
}

/// The value below which `percent` of them lie.
pub(crate) fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = ((sorted.len() as f64 - 1.0) * percent / 100.0).round();
    sorted.get(index as usize).copied().unwrap_or(f64::NAN)
}
