//! What `tests/node-e2e/provision` built and where it is: the cache directory.

use std::path::PathBuf;

use anyhow::{Result, ensure};

/// Which containerd a stack runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Containerd {
    /// The current one, with the CRI event stream.
    Current,
    /// Debian 12's 1.6: no event stream, no RuntimeConfig.
    Debian16,
}

/// The image of the pod sandbox.
pub const PAUSE: &str = "ferrolet.test/pause:1";
/// A static busybox with all its applets.
pub const BUSYBOX: &str = "ferrolet.test/busybox:1";
/// The same with a user other than root in its configuration.
pub const NONROOT: &str = "ferrolet.test/nonroot:1";

pub fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()));
    match std::env::var_os("FERROLET_CACHE") {
        Some(dir) => dir.into(),
        None => home().join(".cache/ferrolet"),
    }
}

/// A program from the cache, such as `kubectl`.
pub fn program(name: &str) -> Result<PathBuf> {
    present(cache().join("bin").join(name))
}

/// A runc that can map users, which the machine's own may not.
pub fn mapping_runc() -> Result<PathBuf> {
    present(cache().join("runc-current/bin/runc"))
}

/// The archives of the images that every stack has.
pub fn images() -> Result<Vec<PathBuf>> {
    let directory = present(cache().join("images"))?;
    let mut archives = Vec::new();
    for entry in std::fs::read_dir(&directory)? {
        archives.push(entry?.path());
    }
    archives.retain(|path| path.extension().is_some_and(|extension| extension == "tar"));
    archives.sort();
    ensure!(!archives.is_empty(), "{} holds no archive", directory.display());
    Ok(archives)
}

/// One of them, by the name of its image.
pub fn image_archive(name: &str) -> Result<PathBuf> {
    present(cache().join("images").join(format!("{name}.tar")))
}

/// Debian's docker-registry.
pub fn registry() -> Result<PathBuf> {
    present(cache().join("registry/bin/docker-registry"))
}

/// A virtual machine that `provision vm` made: what to boot, and how to get in.
pub struct MachineFiles {
    pub disk: PathBuf,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub key: PathBuf,
}

pub fn machine() -> Result<MachineFiles> {
    let file = |name: &str| present(cache().join("machine").join(name));
    Ok(MachineFiles { disk: file("disk")?, kernel: file("kernel")?, initrd: file("initrd")?, key: file("key")? })
}

impl Containerd {
    /// Where `containerd`, its shim and `ctr` are.
    pub fn directory(self) -> Result<PathBuf> {
        let dir = match self {
            Containerd::Current => cache().join("bin"),
            Containerd::Debian16 => cache().join("containerd-1.6/bin"),
        };
        for program in ["containerd", "containerd-shim-runc-v2", "ctr"] {
            present(dir.join(program))?;
        }
        Ok(dir)
    }

    /// The choice of `RUNTIME` in the environment; the current one without it.
    pub fn from_env() -> Result<Containerd> {
        match std::env::var("RUNTIME").as_deref() {
            Err(_) | Ok("" | "containerd") => Ok(Containerd::Current),
            Ok("containerd-1.6") => Ok(Containerd::Debian16),
            Ok(other) => anyhow::bail!("RUNTIME={other}: known are containerd and containerd-1.6"),
        }
    }
}

fn present(path: PathBuf) -> Result<PathBuf> {
    ensure!(path.exists(), "{} is missing; tests/node-e2e/provision makes it", path.display());
    Ok(path)
}
