//! How much a tree takes on its disk.
//!
//! Pods fill these trees while we walk: no symlink is followed, no mount is entered, and a walk
//! ends when its time is up, however much there is.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, SFlag, fstat, fstatat};

use super::{beneath, tree};

/// Directories open at once. What is nested deeper is not counted.
const DEPTH_MAX: usize = 128;
const BYTES_A_BLOCK: u64 = 512;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Allocated, not as long as files claim to be.
    pub bytes: u64,
    pub inodes: u64,
}

impl DiskUsage {
    pub fn of(stat: &FileStat) -> Self {
        DiskUsage { bytes: u64::try_from(stat.st_blocks).unwrap_or(0) * BYTES_A_BLOCK, inodes: 1 }
    }
}

impl std::ops::AddAssign for DiskUsage {
    fn add_assign(&mut self, other: Self) {
        // Some of it is what a runtime says, which may be anything.
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.inodes = self.inodes.saturating_add(other.inodes);
    }
}

impl std::iter::Sum for DiskUsage {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(DiskUsage::default(), |mut sum, one| {
            sum += one;
            sum
        })
    }
}

/// The directory and all below it; `None` if `may_go_on` says that this takes too long.
pub fn of_tree(path: &Path, may_go_on: impl Fn() -> bool) -> io::Result<Option<DiskUsage>> {
    let directory = beneath::directory(path)?;
    let stat = fstat(&directory)?;
    let mut walk =
        Walk { device: stat.st_dev, sum: DiskUsage::of(&stat), linked: BTreeSet::new(), may_go_on: &may_go_on };
    let is_whole = walk.directory(&directory, 0)?;
    Ok(is_whole.then_some(walk.sum))
}

/// The regular files that lie directly in a directory; nothing where there is none.
pub fn of_files(path: &Path) -> io::Result<DiskUsage> {
    let directory = match beneath::directory(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(DiskUsage::default()),
        directory => directory?,
    };
    let mut sum = DiskUsage::default();
    for entry in tree::entries(&directory)? {
        match stat_of(&directory, &entry?.0)? {
            Some(stat) if beneath::is_kind(&stat, SFlag::S_IFREG) => sum += DiskUsage::of(&stat),
            _ => {}
        }
    }
    Ok(sum)
}

struct Walk<'a> {
    device: u64,
    sum: DiskUsage,
    /// Inodes of several names, which count once.
    linked: BTreeSet<u64>,
    may_go_on: &'a dyn Fn() -> bool,
}

impl Walk<'_> {
    /// Whether the time was enough.
    fn directory(&mut self, directory: &OwnedFd, depth: usize) -> io::Result<bool> {
        for entry in tree::entries(directory)? {
            if !(self.may_go_on)() {
                return Ok(false);
            }
            let (name, _) = entry?;
            let Some(stat) = stat_of(directory, &name)? else { continue };
            let is_counted = stat.st_dev == self.device && (stat.st_nlink < 2 || self.is_new(&stat));
            if is_counted {
                self.sum += DiskUsage::of(&stat);
            }
            if is_counted && beneath::is_kind(&stat, SFlag::S_IFDIR) && depth < DEPTH_MAX {
                match beneath::sub_directory(directory, &name) {
                    Ok(below) => {
                        if !self.directory(&below, depth + 1)? {
                            return Ok(false);
                        }
                    }
                    // A mount has an owner of its own; what vanished or changed is not there.
                    Err(error) if is_swapped(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(true)
    }

    /// A directory has a name in each directory below it, but is met once.
    fn is_new(&mut self, stat: &FileStat) -> bool {
        beneath::is_kind(stat, SFlag::S_IFDIR) || self.linked.insert(stat.st_ino)
    }
}

fn stat_of(directory: impl AsFd, name: &std::ffi::OsStr) -> io::Result<Option<FileStat>> {
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_NO_AUTOMOUNT) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_swapped(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::EXDEV | Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;
    use crate::host::testing::Scratch;

    fn blocks(path: &Path) -> u64 {
        fs::symlink_metadata(path).expect("it is there").blocks() * BYTES_A_BLOCK
    }

    #[test]
    fn a_tree_is_what_its_files_and_directories_take() {
        let scratch = Scratch::new();
        let top = scratch.dir("volume");
        let big = scratch.file("volume/a/big", &"x".repeat(100_000));
        fs::hard_link(&big, scratch.path("volume/again")).expect("a second name");
        // Neither what a link leads to, nor a length without content.
        symlink("/etc", scratch.path("volume/link")).expect("a symlink");
        fs::File::create(scratch.path("volume/hole")).and_then(|file| file.set_len(1 << 30)).expect("a hole");
        let all = ["volume", "volume/a", "volume/a/big", "volume/link", "volume/hole"];
        let bytes = all.iter().map(|name| blocks(&scratch.path(name))).sum();
        let found = of_tree(&top, || true).expect("it can be walked");
        assert_eq!(found, Some(DiskUsage { bytes, inodes: 5 }));
        assert!(of_tree(&scratch.path("none"), || true).is_err());
    }

    #[test]
    fn a_walk_ends_when_its_time_is_up() {
        let scratch = Scratch::new();
        (0..10).for_each(|number| {
            scratch.file(&format!("volume/{number}/file"), "x");
        });
        let left = Cell::new(5);
        let may_go_on = || left.replace(left.get() - 1) > 0;
        assert_eq!(of_tree(&scratch.path("volume"), may_go_on).expect("it can be walked"), None);
        assert_eq!(left.get(), -1, "it does not go on");
    }

    #[test]
    fn files_of_a_directory_are_without_those_below() {
        let scratch = Scratch::new();
        let (first, second) = (scratch.file("log/0.log", "one"), scratch.file("log/0.log.gz", "two"));
        scratch.file("log/below/1.log", "three");
        let found = of_files(&scratch.path("log")).expect("it can be read");
        assert_eq!(found, DiskUsage { bytes: blocks(&first) + blocks(&second), inodes: 2 });
        assert_eq!(of_files(&scratch.path("none")).expect("it is nothing"), DiskUsage::default());
    }
}
