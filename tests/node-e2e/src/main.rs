//! The command line: stories by `test` and `vm`, drawn pods by `compare`, and what `make run` shows.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use node_e2e::harness::{self, Choice};
use node_e2e::provision::Containerd;
use node_e2e::stack::{self, Agent};
use node_e2e::{cases, compare, showcase, vm};

const USAGE: &str = "\
node-e2e test [--subset] [NAME...]   runs the cases whose name contains one of NAME, or all
node-e2e vm [NAME...]                runs the cases that need a virtual machine of their own
node-e2e list                        names all cases
node-e2e compare SEED PODS           runs drawn pods on both agents and tells where they differ
node-e2e compare --quick             the few of them that CI runs
node-e2e draw SEED                   prints the drawn pod of that seed
node-e2e up [--standalone]           starts the node that `make run` shows; it stays
node-e2e status                      shows it
node-e2e down                        ends it and clears what dead stacks left

AGENT=kubelet takes upstream's kubelet, RUNTIME=containerd-1.6 the old containerd,
FERROLET_BIN another binary of the agent.";

fn main() -> ExitCode {
    if let Some(code) = stack::play_role() {
        return code;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("start tokio").and_then(|runtime| runtime.block_on(run(&args)));
    result.unwrap_or_else(|error| {
        eprintln!("node-e2e: {error:#}");
        ExitCode::FAILURE
    })
}

async fn run(args: &[String]) -> Result<ExitCode> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["test", ref rest @ ..] => return test(rest).await,
        ["vm", ref names @ ..] => return run_vm(names).await,
        ["list"] => {
            cases::all().iter().for_each(|case| println!("{}", case.short_name()));
            vm::cases::all().iter().for_each(|case| println!("{}", case.short_name()));
        }
        ["compare", "--quick"] => return as_code(compare::quick().await?),
        ["compare", seed, pods] => return compare(seed, pods).await,
        ["draw", seed] => println!("{:#}", compare::draw(number(seed)?)),
        ["up"] => showcase::up(false).await?,
        ["up", "--standalone"] => showcase::up(true).await?,
        ["status"] => showcase::status().await?,
        ["down"] => showcase::down().await?,
        ["help" | "--help" | "-h"] => println!("{USAGE}"),
        _ => bail!("unknown arguments {args:?}\n{USAGE}"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn test(args: &[&str]) -> Result<ExitCode> {
    let mut choice = Choice {
        agent: Agent::from_env()?,
        containerd: Containerd::from_env()?,
        filters: Vec::new(),
        subset: false,
        logs: logs_directory()?,
    };
    for &arg in args {
        match arg {
            "--subset" => choice.subset = true,
            flag if flag.starts_with('-') => bail!("unknown flag {flag}\n{USAGE}"),
            name => choice.filters.push(name.to_owned()),
        }
    }
    let tally = harness::run(&cases::all(), &choice).await?;
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run_vm(names: &[&str]) -> Result<ExitCode> {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let tally = vm::run(Agent::from_env()?, &names, logs_directory()?).await?;
    as_code(tally.failed == 0)
}

fn number(text: &str) -> Result<u64> {
    text.parse().with_context(|| format!("{text:?} is not a number\n{USAGE}"))
}

async fn compare(seed: &str, pods: &str) -> Result<ExitCode> {
    let first = number(seed)?;
    let same = compare::run(first..first + number(pods)?).await?;
    as_code(same)
}

fn as_code(good: bool) -> Result<ExitCode> {
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Beside the build, where `make clean` gets rid of it.
fn logs_directory() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(2).context("the program is in a directory of target")?;
    Ok(target.join("node-e2e-logs"))
}
