//! One agent at a time for one root directory.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

/// A lock on a directory itself, held until dropped; the kernel drops it with the process.
#[must_use]
pub struct DirLock {
    _lock: Flock<File>,
}

impl DirLock {
    /// Takes the lock, or fails at once when another process holds it.
    pub fn take(directory: &Path) -> io::Result<Self> {
        let locked = Flock::lock(File::open(directory)?, FlockArg::LockExclusiveNonblock);
        locked.map(|lock| DirLock { _lock: lock }).map_err(|(_, errno)| errno.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_holder_at_a_time() {
        let directory = tempfile::tempdir().expect("a directory to lock");
        let held = DirLock::take(directory.path()).expect("nobody holds it");
        assert!(DirLock::take(directory.path()).is_err());
        drop(held);
        assert!(DirLock::take(directory.path()).is_ok());
    }
}
