//! Figures: the same things done by Ferrolet, by upstream's kubelet and by bare CRI calls, on
//! stacks of the same make, one after another in one sitting.
//!
//! Pods are bound by `nodeName`, so the scheduler is in nobody's figures. Times of events at
//! the API are taken from a watch by this process; times inside the node from the runtime's
//! own timestamps. CPU and memory are those of the agent's process, from /proc.

mod agent;
mod bare;
mod cgroups;
mod crowd;
mod load;
mod pool;
mod report;
mod scrape;
mod trace;

use anyhow::{Context, Result, ensure};

use crate::provision::Containerd;
use crate::stack::{Agent, Builder, Stack};
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

/// What depends most on the minute it is measured in is measured this often, by turns.
const ROUNDS: usize = 3;
const IN_ROUNDS: [Part; 2] = [Part::Single, Part::Burst];

/// What is measured together, and chosen together by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Single,
    Burst,
    Rest,
    Scrape,
    Crowd,
    Probes,
    Hang,
    Restart,
    Cgroups,
    Static,
    Pool,
}

const PARTS: [(&str, Part); 11] = [
    ("single", Part::Single),
    ("burst", Part::Burst),
    ("rest", Part::Rest),
    ("scrape", Part::Scrape),
    ("crowd", Part::Crowd),
    ("probes", Part::Probes),
    ("hang", Part::Hang),
    ("restart", Part::Restart),
    ("cgroups", Part::Cgroups),
    ("static", Part::Static),
    ("pool", Part::Pool),
];

/// Measures the parts whose name is one of `words`, or all; with `AGENT` set that agent alone.
pub async fn run(words: &[String]) -> Result<()> {
    let only = std::env::var_os("AGENT").map(|_| Agent::from_env()).transpose()?;
    for word in words {
        let names = PARTS.map(|(name, _)| name);
        ensure!(names.contains(&word.as_str()), "{word:?} is none of {}", names.join(", "));
    }
    let chosen = PARTS.into_iter().filter(|(name, _)| words.is_empty() || words.iter().any(|word| word == name));
    let parts: Vec<Part> = chosen.map(|(_, part)| part).collect();
    let mut figures = Figures::default();
    let mut due = parts.clone();
    for round in 1..=ROUNDS {
        measure(&due, only, &mut figures).await.with_context(|| format!("round {round}"))?;
        due.retain(|part| IN_ROUNDS.contains(part));
        if due.is_empty() {
            break;
        }
    }
    print!("{}", report::table(&parts, &figures));
    Ok(())
}

/// One round: everyone in turn, each on a stack of its own.
async fn measure(parts: &[Part], only: Option<Agent>, figures: &mut Figures) -> Result<()> {
    let seconds = std::env::var("BENCH_REST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    if parts.iter().any(|part| bare::PARTS.contains(part)) && only.is_none() {
        eprintln!("==> bare CRI calls ...");
        let stack = builder().standalone().without_agent().start().await?;
        bare::measure(&stack, parts, &mut figures.bare).await.context("bare CRI calls")?;
    }
    for (which, what, found) in [
        (Agent::Ferrolet, "Ferrolet", &mut figures.ferrolet),
        (Agent::Kubelet, "upstream's kubelet", &mut figures.kubelet),
    ] {
        if only.is_none_or(|only| only == which) {
            eprintln!("==> {what} ...");
            let (pool, others): (Vec<Part>, Vec<Part>) = parts.iter().partition(|part| **part == Part::Pool);
            if !others.is_empty() {
                let stack = builder().agent(which).start().await?;
                agent::measure(stack, &others, seconds, found).await.context(what)?;
            }
            if !pool.is_empty() {
                let builder = pool::config().into_iter().fold(builder(), |it, (field, value)| it.config(field, value));
                let stack = builder.agent(which).start().await?;
                agent::measure(stack, &pool, seconds, found).await.context(what)?;
            }
        }
    }
    Ok(())
}

fn builder() -> Builder {
    Stack::builder().containerd(Containerd::Current).config("maxPods", 250).config("serializeImagePulls", false)
}

/// The value below which `percent` of them lie.
pub(crate) fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = ((sorted.len() as f64 - 1.0) * percent / 100.0).round();
    sorted.get(index as usize).copied().unwrap_or(f64::NAN)
}
