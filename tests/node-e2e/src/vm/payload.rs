//! The second disk of the machine: the package of the agent under test, as `make deb` builds it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::stack::Agent;

/// Where it is mounted in the machine.
pub const DIRECTORY: &str = "/payload";

/// Makes the disk below `scratch`.
pub async fn build(scratch: &Path) -> Result<PathBuf> {
    let (content, disk) = (scratch.join("payload"), scratch.join("payload.disk"));
    fs::create_dir_all(&content)?;
    build_package(scratch, &content).await?;
    let of = |path: &Path| path.display().to_string();
    run("mke2fs", &["-q", "-t", "ext4", "-O", "^has_journal", "-d", &of(&content), &of(&disk), "256M"]).await?;
    fs::remove_dir_all(&content)?;
    Ok(disk)
}

async fn build_package(scratch: &Path, content: &Path) -> Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let of = |path: PathBuf| path.display().to_string();
    // A debug build is ten times what it has to be for the emulated disk.
    let lean = of(scratch.join("ferrolet"));
    run("strip", &["-o", &lean, &of(Agent::Ferrolet.binary()?)]).await?;
    run(&of(here.join("../../packaging/deb/build")), &[&lean, &of(content.to_owned())]).await
}

async fn run(program: &str, args: &[&str]) -> Result<()> {
    // Unpacked by an emulated CPU.
    let output = Command::new(program).args(args).env("COMPRESSION", "none").kill_on_drop(true).output().await;
    let output = output.with_context(|| format!("run {program}"))?;
    ensure!(output.status.success(), "{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(())
}
