//! Slots: the number from which every name a stack leaves on the host is derived, so that
//! whoever holds or inherits the number can find and remove all of it.
//!
//! A slot is a directory. Every process that stands for the stack from outside holds a shared
//! lock on it for as long as it lives; a directory that nobody holds belongs to a dead stack and
//! may be swept. Its number is claimed on the machine, for stacks elsewhere on it. Taking,
//! sweeping and giving back happen under a lock on the machine's claims and on the directory above.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

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

/// Where the numbers are claimed: addresses, interfaces and cgroups of stacks are the machine's,
/// whatever base their directories have. A claim is a link to the directory of the stack.
const CLAIMS: &str = "/run/ferrolet-stacks";

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
            if is_claimed_elsewhere(number, Path::new(CLAIMS)) {
                continue;
            }
            match fs::create_dir(number.directory()) {
                Ok(()) => {
                    claim(number, Path::new(CLAIMS))?;
                    return Slot::hold(number);
                }
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
        fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        disclaim(self.number, Path::new(CLAIMS))
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
        disclaim(number, Path::new(CLAIMS))?;
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

/// Whether a stack with another base has the number. A claim whose directory is gone counts for
/// nothing: whoever had it is over.
fn is_claimed_elsewhere(number: SlotNumber, claims: &Path) -> bool {
    let target = fs::read_link(claims.join(number.0.to_string()));
    target.is_ok_and(|target| target != number.directory() && target.exists())
}

fn claim(number: SlotNumber, claims: &Path) -> Result<()> {
    let link = claims.join(number.0.to_string());
    match fs::remove_file(&link) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove the old claim {}", link.display()));
        }
        _ => {}
    }
    std::os::unix::fs::symlink(number.directory(), &link).with_context(|| format!("claim {}", link.display()))
}

fn disclaim(number: SlotNumber, claims: &Path) -> Result<()> {
    let link = claims.join(number.0.to_string());
    if fs::read_link(&link).is_ok_and(|target| target == number.directory()) {
        fs::remove_file(&link).with_context(|| format!("remove the claim {}", link.display()))?;
    }
    Ok(())
}

/// Held while slots are taken or swept: the machine's registry first, then that of the base.
struct Registry {
    _claims: File,
    _base: File,
}

fn lock_registry() -> Result<Registry> {
    fs::create_dir_all(CLAIMS).with_context(|| format!("create {CLAIMS}"))?;
    let lock = |directory: &Path| {
        let file = File::open(directory).with_context(|| format!("open {}", directory.display()))?;
        file.lock().with_context(|| format!("lock {}", directory.display()))?;
        anyhow::Ok(file)
    };
    Ok(Registry { _claims: lock(Path::new(CLAIMS))?, _base: lock(&base())? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_belongs_to_one_base_as_long_as_its_stack_lives() {
        let scratch = std::env::temp_dir().join(format!("ferrolet-claims-{}", std::process::id()));
        let (claims, other) = (scratch.join("claims"), scratch.join("other/ferrolet-stack-7"));
        fs::create_dir_all(&claims).unwrap();
        fs::create_dir_all(&other).unwrap();
        let number = SlotNumber(7);
        assert!(!is_claimed_elsewhere(number, &claims), "nobody has it");
        std::os::unix::fs::symlink(&other, claims.join("7")).unwrap();
        assert!(is_claimed_elsewhere(number, &claims));
        disclaim(number, &claims).unwrap();
        assert!(is_claimed_elsewhere(number, &claims), "it is not ours to give back");
        fs::remove_dir_all(&other).unwrap();
        assert!(!is_claimed_elsewhere(number, &claims), "its stack is over");
        claim(number, &claims).unwrap();
        assert_eq!(fs::read_link(claims.join("7")).unwrap(), number.directory());
        disclaim(number, &claims).unwrap();
        assert!(!claims.join("7").is_symlink());
        fs::remove_dir_all(&scratch).unwrap();
    }
}
