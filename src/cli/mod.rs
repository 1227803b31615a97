//! The command line: what was asked for, and starting it.
//!
//! Called as `kubelet`, the binary is a drop-in: flags only, and a word that is no flag is an
//! error, as it is upstream. Under its own name it also has the subcommand `config`.
//!
//! In: the arguments of the process. Out: an exit code, and on the way a page on stdout or a
//! running agent. No task of its own but the watch on a lock file.
//!
//! Always true: an error is on stderr before the exit with 1; nothing is logged before logging
//! is configured, which needs the configuration.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::config::flags::GivenFlags;
use crate::config::{Settings, VERSION, flags, render};

use self::args::{Args, ArgsError};
use self::lock_file::LockFile;

mod args;
mod help;
mod lock_file;
mod logging;
mod memory;

#[cfg(test)]
mod tests;

/// What the command line asks for.
#[derive(Debug, PartialEq)]
enum Command {
    Help,
    /// Print the version, in detail if `raw`.
    Version {
        raw: bool,
    },
    /// Print the effective configuration, or only what is wrong with it.
    Config {
        given: GivenFlags,
        check: bool,
    },
    Run {
        given: GivenFlags,
    },
}

/// The name the binary was called by.
struct Name {
    program: String,
    has_subcommands: bool,
}

impl Name {
    fn of(argv0: Option<&OsString>) -> Name {
        let file = argv0.and_then(|argv0| Path::new(argv0).file_name());
        let program = file.map_or_else(|| "ferrolet".into(), |name| name.to_string_lossy().into());
        Name { has_subcommands: program != "kubelet", program }
    }
}

/// Does what the arguments say, the first of them being the name of the binary.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    memory::keep_in_one_place();
    let mut args = args.into_iter();
    let name = Name::of(args.next().as_ref());
    match command(&name, args).map_err(anyhow::Error::from).and_then(|command| obey(command, &name)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error:#}", name.program);
            ExitCode::FAILURE
        }
    }
}

fn obey(command: Command, name: &Name) -> anyhow::Result<()> {
    match command {
        Command::Help => show(&help::page(name)),
        Command::Version { raw } => show(&version(raw, name)),
        Command::Config { given, check } => config(&given, check),
        Command::Run { given } => run(&given),
    }
}

/// Writes a page to stdout; a reader that has seen enough is no error.
fn show(page: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(page.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn command(name: &Name, args: impl Iterator<Item = OsString>) -> Result<Command, ArgsError> {
    let Args { given, words, check } = args::parse(args)?;
    // These two answer whatever else is there, as upstream's do.
    let help = given.last("help").unwrap_or("false");
    let bad = |flag| move |reason| ArgsError::BadValue { flag, reason };
    if flags::boolean(help).map_err(bad("help"))? {
        return Ok(Command::Help);
    }
    let mut words = words.into_iter();
    let subcommand = match words.next() {
        Some(word) if word == "config" && name.has_subcommands => true,
        Some(word) => return Err(ArgsError::UnknownCommand(word)),
        None => false,
    };
    if let Some(word) = words.next() {
        return Err(ArgsError::UnknownCommand(word));
    }
    match given.last("version").unwrap_or("false") {
        "raw" => return Ok(Command::Version { raw: true }),
        // A version to report instead of our own does not stop the agent.
        version if version.starts_with('v') => {}
        other => {
            if flags::boolean(other).map_err(bad("version"))? {
                return Ok(Command::Version { raw: false });
            }
        }
    }
    match (subcommand, check) {
        (true, check) => Ok(Command::Config { given, check }),
        (false, false) => Ok(Command::Run { given }),
        (false, true) => {
            let reason = "belongs to the config subcommand".to_owned();
            Err(ArgsError::BadValue { flag: "check", reason })
        }
    }
}

/// The version as kubeadm reads it, which must be one line of exactly this form; or in detail.
/// Who asks for the kubelet's is not told whose it is.
fn version(raw: bool, name: &Name) -> String {
    let release = VERSION.split('+').next().unwrap_or(VERSION);
    match raw {
        false if !name.has_subcommands => format!("Kubernetes {release}\n"),
        false => format!("Kubernetes {VERSION}\n"),
        true => format!(
            "kubernetes={VERSION} ferrolet={} os={} arch={}\n",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::OS,
            std::env::consts::ARCH,
        ),
    }
}

fn config(given: &GivenFlags, check: bool) -> anyhow::Result<()> {
    let settings = Settings::load(given)?;
    for warning in &settings.warnings {
        eprintln!("warning: {warning}");
    }
    match (check, settings.warnings.len()) {
        (false, _) => show(&render::effective(&settings, given)),
        (true, 0) => show("the configuration is fine\n"),
        (true, 1) => anyhow::bail!("the configuration works, with the warning above"),
        (true, n) => anyhow::bail!("the configuration works, with the {n} warnings above"),
    }
}

fn run(given: &GivenFlags) -> anyhow::Result<()> {
    let settings = Settings::load(given)?;
    let verbosity = logging::init(&settings.kubelet.logging);
    for warning in &settings.warnings {
        tracing::warn!(reason = warning.to_string(), "doubtful configuration");
    }
    let lock = settings.flags.lock_file.as_deref().map(LockFile::acquire).transpose()?;
    let yields = lock.as_ref().filter(|_| settings.flags.exit_on_lock_contention);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // Two workers keep one busy pod from holding up the rest; blocking work has threads of
        // its own.
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let result = runtime.block_on(async {
        tokio::select! {
            biased;
            // Cancel-safe: the agent's end drops the watch, which holds nothing else.
            result = crate::agent::run(settings, verbosity) => result,
            // Cancel-safe: pods outlive the agent, so it may be dropped at any await.
            left = contention(yields) => left,
        }
    });
    // Blocking work on a hung file system must not keep the process from ending.
    runtime.shutdown_background();
    result
}

/// Ends when the lock is wanted by another process; never without a lock to give up.
async fn contention(lock: Option<&LockFile>) -> anyhow::Result<()> {
    let Some(lock) = lock else {
        return std::future::pending().await;
    };
    lock.contended().await?;
    tracing::info!("another process opened the lock file, leaving");
    Ok(())
}
