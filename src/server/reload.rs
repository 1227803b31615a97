//! Files that are read again when they have changed.
//!
//! Nothing watches them: whoever needs them asks, and a look that is older than a second is
//! repeated first. So a change counts for the next connection, whatever replaced the file and
//! however, and a node that nobody calls reads nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::host::{Host, HostError};

/// Between two looks at the same files.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long somebody who needs the files waits for a look; then what was read last serves.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// The largest bundles of authorities have some hundred KiB.
pub const FILE_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("{} is missing", .0.display())]
    Missing(PathBuf),
    #[error("cannot use {}: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },
}

impl LoadError {
    pub fn unusable(path: &Path, reason: impl ToString) -> Self {
        LoadError::Unusable { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// Makes of the files' contents, in their order, what is needed.
type Parse<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, LoadError> + Send + Sync>;

pub struct Reloading<T> {
    host: Arc<dyn Host>,
    paths: Vec<PathBuf>,
    parse: Parse<T>,
    current: watch::Sender<Arc<T>>,
    last: Mutex<Look>,
}

struct Look {
    at: Instant,
    contents: Vec<Vec<u8>>,
    complained: bool,
}

impl<T: Send + Sync> Reloading<T> {
    /// Reads them for the first time, when failing is told.
    pub async fn load(host: Arc<dyn Host>, paths: Vec<PathBuf>, parse: Parse<T>) -> Result<Self, LoadError> {
        let contents = read(&*host, &paths).await?;
        let current = watch::Sender::new(Arc::new(parse(&contents)?));
        let last = Mutex::new(Look { at: Instant::now(), contents, complained: false });
        Ok(Reloading { host, paths, parse, current, last })
    }

    /// Where what is read can be followed.
    pub fn follow(&self) -> watch::Receiver<Arc<T>> {
        self.current.subscribe()
    }

    /// What the files hold now, or held when they could last be used.
    pub async fn current(&self) -> Arc<T> {
        // A look that hangs in a foreign file system keeps nobody: the host bounds it, and who
        // comes meanwhile finds the lock taken.
        if let Ok(mut last) = self.last.try_lock()
            && last.at.elapsed() >= LOOK_EVERY
        {
            self.look(&mut last).await;
        }
        self.current.borrow().clone()
    }

    /// For whoever has changed the files: they are looked at again, however soon.
    pub async fn look_now(&self) {
        // Who holds it has not seen the change, and is bounded.
        let mut last = self.last.lock().await;
        self.look(&mut last).await;
    }

    async fn look(&self, last: &mut Look) {
        last.at = Instant::now();
        if let Ok(looked) = timeout(LOOK_LIMIT, read(&*self.host, &self.paths)).await {
            self.take(last, looked);
        }
    }

    fn take(&self, last: &mut Look, looked: Result<Vec<Vec<u8>>, LoadError>) {
        let looked = looked.and_then(|contents| match contents == last.contents {
            true => Ok(None),
            false => Ok(Some(((self.parse)(&contents)?, contents))),
        });
        match looked {
            Ok(None) => last.complained = false,
            Ok(Some((parsed, contents))) => {
                info!(files = ?self.paths, "files have changed and are taken up");
                *last = Look { contents, complained: false, at: last.at };
                self.current.send_replace(Arc::new(parsed));
            }
            // Half of a pair may be written yet.
            Err(error) if !std::mem::replace(&mut last.complained, true) => {
                warn!(%error, "changed files not taken up, what they held before serves on");
            }
            Err(_) => {}
        }
    }
}

async fn read(host: &dyn Host, paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, LoadError> {
    let mut contents = Vec::with_capacity(paths.len());
    for path in paths {
        let content = host.read_file(path, FILE_BYTES_MAX).await?;
        contents.push(content.ok_or_else(|| LoadError::Missing(path.clone()))?);
    }
    Ok(contents)
}
