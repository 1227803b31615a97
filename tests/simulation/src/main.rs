//! Runs the simulation over many seeds, or one seed with all that happens in it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, bail};
use simulation::regressions::REGRESSIONS;
use simulation::run::{Options, Outcome, run};
use simulation::world::LogMode;
use tokio::time::Instant;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "usage: simulation [--seeds N] [--from S] [--fresh M] [--seed S] [--minutes M]
  --seeds N    how many seeds to run (1000)
  --from S     the first of them (0)
  --fresh M    run so many besides that nobody knows yet (0)
  --seed S     run this one and print what happens
  --minutes M  length of each storm; drawn from the seed if not given";
const THREADS: usize = 2;
/// A run takes a fraction of a second. One that is not through after this never will be.
const STUCK_AFTER: Duration = Duration::from_secs(300);

struct Arguments {
    seeds: u64,
    from: u64,
    fresh: u64,
    seed: Option<u64>,
    storm: Option<Duration>,
}

fn main() -> anyhow::Result<()> {
    let arguments = parse(std::env::args().skip(1))?;
    let failed = match arguments.seed {
        Some(seed) => replay(seed, arguments.storm),
        None => run_many(&arguments)?,
    };
    if failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}

fn parse(mut words: impl Iterator<Item = String>) -> anyhow::Result<Arguments> {
    let mut arguments = Arguments { seeds: 1000, from: 0, fresh: 0, seed: None, storm: None };
    while let Some(word) = words.next() {
        let mut number = || -> anyhow::Result<u64> {
            let text = words.next().with_context(|| format!("{word} needs a number\n{USAGE}"))?;
            text.parse().with_context(|| format!("{word} {text}: not a number"))
        };
        match word.as_str() {
            "--seeds" => arguments.seeds = number()?,
            "--from" => arguments.from = number()?,
            "--fresh" => arguments.fresh = number()?,
            "--seed" => arguments.seed = Some(number()?),
            "--minutes" => arguments.storm = Some(Duration::from_secs(60 * number()?)),
            _ => bail!("unknown argument {word}\n{USAGE}"),
        }
    }
    Ok(arguments)
}

/// Prints the story of one seed: the world's lines between the agent's.
fn replay(seed: u64, storm: Option<Duration>) -> usize {
    struct VirtualTime(Instant);
    impl FormatTime for VirtualTime {
        fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
            write!(writer, "{:>12.6}", self.0.elapsed().as_secs_f64())
        }
    }
    // Before the run pauses its clock: a few real milliseconds are all that lies between.
    let started = Instant::now();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_timer(VirtualTime(started))
        .with_writer(std::io::stdout)
        .init();
    let outcome = run(seed, Options { storm, log: LogMode::Told });
    let failed = usize::from(!outcome.violations.is_empty());
    report(seed, None, &outcome);
    println!("{} passed, {failed} failed", 1 - failed);
    failed
}

fn run_many(arguments: &Arguments) -> anyhow::Result<usize> {
    let (seeds, told) = choose(arguments);
    println!("{told}");
    let seeds = Arc::new(seeds);
    let options = Options { storm: arguments.storm, log: LogMode::Silent };
    let started = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let (sender, outcomes) = mpsc::channel();
    for _ in 0..THREADS {
        let (seeds, next, sender) = (seeds.clone(), next.clone(), sender.clone());
        std::thread::spawn(move || {
            while let Some((seed, bug)) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                if sender.send((*seed, *bug, run(*seed, options))).is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    let mut failed = 0;
    let mut done = BTreeSet::new();
    while done.len() < seeds.len() {
        let Ok((seed, bug, outcome)) = outcomes.recv_timeout(STUCK_AFTER) else {
            let begun = seeds.iter().take(next.load(Ordering::Relaxed)).map(|(seed, _)| *seed);
            let stuck: Vec<u64> = begun.filter(|seed| !done.contains(seed)).collect();
            bail!("no end within {STUCK_AFTER:?} of the seeds {stuck:?}");
        };
        done.insert(seed);
        if !outcome.violations.is_empty() {
            failed += 1;
            report(seed, bug, &outcome);
            println!("seed {seed}: see it with: cargo run --profile sim -p simulation -- --seed {seed}");
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{} seeds in {seconds:.1} s, {:.1} seeds/s", seeds.len(), seeds.len() as f64 / seconds);
    println!("{} passed, {failed} failed", seeds.len() - failed);
    Ok(failed)
}

/// A seed, and the bug it once showed.
type Chosen = (u64, Option<&'static str>);

/// Seeds that failed once, then those that were asked for, and a line about them.
fn choose(arguments: &Arguments) -> (Vec<Chosen>, String) {
    let Arguments { seeds, from, fresh, .. } = *arguments;
    let base = fastrand::u64(1_000_000..1_000_000_000_000);
    let mut chosen: Vec<Chosen> = REGRESSIONS.map(|(seed, bug)| (seed, Some(bug))).into();
    let plain = (from..from + seeds).chain(base..base + fresh);
    chosen.extend(plain.filter(|seed| !REGRESSIONS.iter().any(|(known, _)| known == seed)).map(|seed| (seed, None)));
    let mut told = format!("{} seeds that failed once, {seeds} from {from} on", REGRESSIONS.len());
    if fresh > 0 {
        told += &format!(", {fresh} fresh ones from {base} on (--from {base} --seeds {fresh} repeats them)");
    }
    (chosen, told)
}

fn report(seed: u64, bug: Option<&str>, outcome: &Outcome) {
    for violation in &outcome.violations {
        println!("seed {seed}: {violation}");
    }
    if let Some(bug) = bug {
        println!("seed {seed}: this is an old acquaintance: {bug}");
    }
}
