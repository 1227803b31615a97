//! Slots: the number from which every name a stack leaves on the host is derived, so that
//! whoever holds or inherits the number can find and remove all of it.
//!
//! A slot is a directory. Every process that stands for the stack from outside holds a shared
//! lock on it for as long as it lives; a directory that nobody holds belongs to a dead stack and may be swept. Taking,
//! sweeping and giving back happen under a lock on the directory above.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::{cgroups, network};

/// As many as the third byte of the addresses can tell apart, less a reserve.
const SLOTS: u8 = 200;

/// The name-giving part, which needs no lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotNumber(pub u8);

impl SlotNumber {
    /// On a real disk: an overlay's upper directory must not be on another overlay, and
    /// containers' files are too many for memory.
    pub fn directory(self) -> PathBuf {
        base().join(format!("ferrolet-stack-{}", self.0))
    }

    pub fn cgroup(self) -> String {
        format!("ferrolet-stack-{}", self.0)
    }

    /// The host's end of the cable.
    pub fn interface(self) -> String {
        format!("ferrolet{}", self.0)
    }

    // 198.18.0.0/15 is set aside for benchmarks on closed networks, so nothing a machine
    // talks to has an address there.

    pub fn host_address(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.0, 1)
    }

    pub fn node_address(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.0, 2)
    }

    /// The range of pod addresses, as a prefix.
    pub fn pod_range(self) -> String {
        format!("198.19.{}.0/24", self.0)
    }
}

fn base() -> PathBuf {
    std::env::var_os("FERROLET_STACKS").unwrap_or_else(|| "/var/tmp".into()).into()
}

/// A held slot: nobody else takes or sweeps it.
pub struct Slot {
    pub number: SlotNumber,
    /// Carries the lock.
    _held: File,
}

impl Slot {
    /// Sweeps what dead stacks left, then takes the first free number.
    pub async fn take() -> Result<Slot> {
        let _registry = lock_registry()?;
        sweep_locked().await?;
        for number in (0..SLOTS).map(SlotNumber) {
            match fs::create_dir(number.directory()) {
                Ok(()) => return Slot::hold(number),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => {
                    return Err(error).context(format!("create {}", number.directory().display()));
                }
            }
        }
        bail!("all {SLOTS} slots for stacks are taken; see {}/ferrolet-stack-*", base().display())
    }

    /// Joins those who hold the slot already.
    pub fn hold(number: SlotNumber) -> Result<Slot> {
        let path = number.directory();
        let held = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        held.lock_shared().with_context(|| format!("lock {}", path.display()))?;
        Ok(Slot { number, _held: held })
    }

    /// Removes the directory, the last thing of a stack to go.
    pub fn give_back(self) -> Result<()> {
        let _registry = lock_registry()?;
        let path = self.number.directory();
        fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))
    }
}

/// The slots that somebody holds.
pub fn held() -> Result<Vec<SlotNumber>> {
    let _registry = lock_registry()?;
    let mut held = Vec::new();
    for number in all() {
        if !is_dead(number)? {
            held.push(number);
        }
    }
    Ok(held)
}

/// Removes what dead stacks left behind and says which they were.
pub async fn sweep() -> Result<Vec<SlotNumber>> {
    let _registry = lock_registry()?;
    sweep_locked().await
}

async fn sweep_locked() -> Result<Vec<SlotNumber>> {
    let mut swept = Vec::new();
    for number in all() {
        if !is_dead(number)? {
            continue;
        }
        network::disconnect(number).await?;
        cgroups::remove(number).await?;
        let path = number.directory();
        fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        swept.push(number);
    }
    Ok(swept)
}

/// All numbers whose directory exists.
fn all() -> impl Iterator<Item = SlotNumber> {
    (0..SLOTS).map(SlotNumber).filter(|number| number.directory().exists())
}

fn is_dead(number: SlotNumber) -> Result<bool> {
    let path = number.directory();
    let directory = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    match directory.try_lock() {
        Ok(()) => Ok(true),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
        Err(fs::TryLockError::Error(error)) => Err(error).context(format!("lock {}", path.display())),
    }
}

fn lock_registry() -> Result<File> {
    let base = base();
    let directory = File::open(&base).with_context(|| format!("open {}", base.display()))?;
    directory.lock().with_context(|| format!("lock {}", base.display()))?;
    Ok(directory)
}
