//! `--lock-file`: one agent at a time, and `--exit-on-lock-contention`: make room for the next.
//!
//! A temporary agent that brings up a control plane holds the lock; when the lasting one opens
//! the file to wait for it, the temporary one leaves.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use inotify::{Inotify, WatchMask};
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::oneshot;

/// The lock, held until dropped; the kernel drops it with the process.
pub struct LockFile {
    path: PathBuf,
    _lock: Flock<File>,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot lock {}", path.display())]
pub struct LockError {
    path: PathBuf,
    source: io::Error,
}

impl LockFile {
    /// Takes the lock, and waits for as long as another process holds it.
    pub fn acquire(path: &Path) -> Result<LockFile, LockError> {
        let failed = |source: io::Error| LockError { path: path.to_owned(), source };
        let options = OpenOptions::new().read(true).write(true).create(true).mode(0o600).clone();
        let file = options.open(path).map_err(failed)?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                return Ok(LockFile { path: path.to_owned(), _lock: lock });
            }
            Err((file, _)) => file,
        };
        tracing::info!(file = %path.display(), "waiting for another process to leave the lock file");
        match Flock::lock(file, FlockArg::LockExclusive) {
            Ok(lock) => Ok(LockFile { path: path.to_owned(), _lock: lock }),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }

    /// Returns when another process opens the lock file, or removes it.
    pub async fn contended(&self) -> Result<(), LockError> {
        let failed = |source| LockError { path: self.path.clone(), source };
        let mut inotify = Inotify::init().map_err(failed)?;
        let mask = WatchMask::OPEN | WatchMask::DELETE_SELF;
        inotify.watches().add(&self.path, mask).map_err(failed)?;
        let (fired, contention) = oneshot::channel();
        // A thread of its own, not one of the runtime's, because it waits until the process
        // ends, and nobody must wait for it. The first event is all there is to know.
        std::thread::spawn(move || {
            let read = inotify.read_events_blocking(&mut [0; 512]).map(|_| ());
            let _ = fired.send(read);
        });
        contention.await.expect("the thread sends before it ends").map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("ferrolet-lock-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_second_holder_is_kept_out() {
        let path = path("held");
        let first = LockFile::acquire(&path).expect("nobody holds it");
        let file = File::open(&path).expect("the lock file is there");
        assert!(Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err());
        drop(first);
        let second = LockFile::acquire(&path);
        assert!(second.is_ok());
        std::fs::remove_file(&path).expect("the lock file is there");
    }

    #[tokio::test]
    async fn opening_the_file_is_contention() {
        let path = path("contended");
        let lock = LockFile::acquire(&path).expect("nobody holds it");
        let opened = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            File::open(&path).expect("the lock file is there")
        };
        let both = async { tokio::join!(lock.contended(), opened) };
        let (contended, _) =
            tokio::time::timeout(Duration::from_secs(5), both).await.expect("contention is noticed at once");
        assert!(contended.is_ok());
        std::fs::remove_file(&path).expect("the lock file is there");
    }

    #[test]
    fn a_path_that_cannot_be_opened_is_named() {
        let error = LockFile::acquire(Path::new("/nonexistent/lock")).err().expect("no such place");
        assert_eq!(error.to_string(), "cannot lock /nonexistent/lock");
    }
}
