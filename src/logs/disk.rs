//! The way to the disk for everything that reads logs: on the blocking pool, in lanes, bounded.
//!
//! A lane is a directory, that is, one container's logs. However many read, and however long
//! the disk does not answer, they hold up no more than `AT_ONCE_MAX` threads together.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::host::{HostError, Lanes};

/// Threads that read logs at the same time, out of the 512 of the pool.
const AT_ONCE_MAX: usize = 32;

/// Clones share the bounds.
#[derive(Clone)]
pub struct Disk {
    lanes: Lanes,
}

impl Disk {
    /// `deadline` is for each single piece of work.
    pub fn new(deadline: Duration) -> Self {
        Disk { lanes: Lanes::sharing(deadline, AT_ONCE_MAX) }
    }

    /// Runs `work`, which is about `path`. It keeps its place until it ends, whoever still waits for it.
    pub async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        path: &Path,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let late = |error: HostError| io::Error::new(io::ErrorKind::TimedOut, error);
        let lane = path.parent().unwrap_or(path);
        self.lanes.run(lane, what, path, move || Ok(work())).await.map_err(late)?
    }
}

/// Reads what a file has at an offset; less if there is less.
pub fn read_at(file: &File, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut data = vec![0; bytes];
    let mut read = 0;
    while read < bytes {
        match file.read_at(&mut data[read..], offset + read as u64)? {
            0 => break,
            more => read += more,
        }
    }
    data.truncate(read);
    Ok(data)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_directory_that_hangs_holds_up_no_other() {
        let disk = Disk::new(Duration::from_secs(1));
        let (release, wait) = mpsc::channel::<()>();
        let hung = disk.run("read", Path::new("/dead/0.log"), move || {
            let _ = wait.recv();
            Ok(())
        });
        assert_eq!(hung.await.expect_err("it hangs").kind(), io::ErrorKind::TimedOut);
        let refused = disk.run("read", Path::new("/dead/1.log"), || Ok(()));
        assert_eq!(refused.await.expect_err("no second thread is spent").kind(), io::ErrorKind::TimedOut);
        assert_eq!(disk.run("read", Path::new("/alive/0.log"), || Ok(7)).await.expect("it answers"), 7);
        drop(release);
    }

    #[tokio::test]
    async fn errors_of_the_disk_keep_their_kind() {
        let disk = Disk::new(Duration::from_secs(10));
        let missing = disk.run("open", Path::new("/x/0.log"), || Err::<(), _>(io::ErrorKind::NotFound.into()));
        assert_eq!(missing.await.expect_err("it is missing").kind(), io::ErrorKind::NotFound);
    }
}
