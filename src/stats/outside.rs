//! What pages tell beside cgroups: what the machine is, what file systems have left, and what the
//! runtime says of disks and images. Nobody is waited for longer than scrapers bear, and what did not
//! come costs its own figures only.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::disks::{Disks, FileSystem};
use super::kept::Kept;
use super::machine::{self, Topology};
use super::reader::Reader;
use super::summary::OfDisks;
use super::{PodView, lock};
use crate::cri::{ContainerId, CriError, FilesystemUsage, Runtime, SandboxId};
use crate::host::{Host, HostError, Lanes, MachineFacts, Roots};
use crate::pod::{PodRef, PodUid};

/// The runtime itself looks at disks no more often.
const RUNTIME_KEPT_FOR: Duration = Duration::from_secs(10);
const MACHINE_KEPT_FOR: Duration = Duration::from_secs(300);
/// For a runtime or a disk that does not answer, of which scrapers are to notice little.
const PATIENCE: Duration = Duration::from_secs(2);
/// For a runtime that told nothing of images, before it is asked again.
const IMAGES_AGAIN_AFTER: Duration = Duration::from_secs(10);
const IMAGES_AT_ONCE: usize = 4;

pub struct Outside {
    runtime: Arc<dyn Runtime>,
    host: Arc<dyn Host>,
    lanes: Lanes,
    root_dir: PathBuf,
    sys: PathBuf,
    pub disks: Disks,
    layers: Kept<Arc<HashMap<ContainerId, FilesystemUsage>>, CriError>,
    images: Kept<FilesystemUsage, CriError>,
    facts: Kept<Arc<MachineFacts>, Arc<HostError>>,
    topology: Kept<Topology, Arc<HostError>>,
    sandbox_images: Mutex<SandboxImages>,
}

#[derive(Default)]
struct SandboxImages {
    /// `None` for a runtime that does not tell.
    known: HashMap<SandboxId, Option<String>>,
    /// When the runtime let us wait in vain.
    failed_at: Option<Instant>,
}

impl Outside {
    pub fn new(runtime: Arc<dyn Runtime>, host: Arc<dyn Host>, lanes: Lanes, roots: &Roots, disks: Disks) -> Self {
        Outside {
            runtime,
            host,
            lanes,
            root_dir: roots.root_dir.clone(),
            sys: roots.sys.clone(),
            disks,
            layers: Kept::new(RUNTIME_KEPT_FOR),
            images: Kept::new(RUNTIME_KEPT_FOR),
            facts: Kept::new(MACHINE_KEPT_FOR),
            topology: Kept::new(MACHINE_KEPT_FOR),
            sandbox_images: Mutex::default(),
        }
    }

    pub async fn facts(&self) -> Option<Arc<MachineFacts>> {
        let read = async {
            let facts = in_time("read the facts of the machine with root dir", &self.root_dir, self.host.facts()).await;
            facts.map(Arc::new).map_err(Arc::new)
        };
        known("facts of the machine", self.facts.get(Instant::now(), |_| true, read).await)
    }

    pub async fn topology(&self) -> Option<Topology> {
        const WHAT: &str = "read CPUs in";
        let read = async {
            let sys = self.sys.clone();
            let work = move || Ok(machine::topology(&sys, &mut Reader::default()));
            in_time(WHAT, &self.sys, self.lanes.run(&self.sys, WHAT, &self.sys, work)).await.map_err(Arc::new)
        };
        known("CPUs of the machine", self.topology.get(Instant::now(), |_| true, read).await)
    }

    /// The node's own file system, and that of images if it is another.
    pub async fn file_systems(&self) -> Vec<FileSystem> {
        let (node, images) = tokio::join!(self.node_fs(), self.image_fs());
        let images = images.and_then(|(_, fs)| fs).filter(|fs| node.is_none_or(|node| node.device != fs.device));
        node.into_iter().chain(images).collect()
    }

    async fn node_fs(&self) -> Option<FileSystem> {
        self.file_system("file system of the node", &self.root_dir).await
    }

    async fn file_system(&self, what: &'static str, path: &Path) -> Option<FileSystem> {
        known(what, in_time("read the size of the file system of", path, self.disks.file_system(path)).await)
    }

    async fn image_fs(&self) -> Option<(FilesystemUsage, Option<FileSystem>)> {
        const CALL: &str = "ImageFsInfo";
        let ask = async {
            let usage = answered(CALL, self.runtime.image_filesystem()).await?;
            usage.ok_or(CriError::Unimplemented { call: CALL })
        };
        let usage = known("disk of images", self.images.get(Instant::now(), |_| true, ask).await)?;
        let on = self.file_system("file system of images", usage.mountpoint.as_ref()).await;
        Some((usage, on))
    }

    async fn layers(&self) -> Arc<HashMap<ContainerId, FilesystemUsage>> {
        let ask = async {
            let layers = answered("ListContainerStats", self.runtime.written_layers()).await?;
            Ok(Arc::new(layers.into_iter().collect()))
        };
        known("disk of containers", self.layers.get(Instant::now(), |_| true, ask).await).unwrap_or_default()
    }

    pub async fn of_disks(&self, pods: Vec<PodRef>) -> OfDisks {
        let uids: Vec<PodUid> = pods.iter().map(|pod| pod.uid.clone()).collect();
        let (node, images, layers, volumes, logs) = tokio::join!(
            self.node_fs(),
            self.image_fs(),
            self.layers(),
            self.disks.volumes(&uids),
            self.disks.logs(pods)
        );
        OfDisks { node, images, layers, volumes, logs }
    }

    /// Asks the runtime for images of sandboxes it was not asked about yet, and fills in those known.
    pub async fn learn_images(&self, pods: &mut [PodView]) {
        let unknown = self.unknown_images(pods);
        let learn = stream::iter(unknown).for_each_concurrent(IMAGES_AT_ONCE, async |id| {
            match self.runtime.sandbox_image(&id).await {
                Ok(image) => drop(lock(&self.sandbox_images).known.insert(id, image)),
                Err(CriError::Unimplemented { .. }) => drop(lock(&self.sandbox_images).known.insert(id, None)),
                Err(error) => debug!(%error, "image of a sandbox not known"),
            }
        });
        let is_late = timeout(PATIENCE, learn).await.is_err();
        let mut images = lock(&self.sandbox_images);
        if is_late {
            images.failed_at = Some(Instant::now());
        }
        for view in pods {
            let sandbox = view.runtime.ready_sandbox();
            view.sandbox_image = sandbox.and_then(|sandbox| images.known.get(&sandbox.id).cloned().flatten());
        }
    }

    /// Forgets those of sandboxes that have gone. None while the runtime lets us wait.
    fn unknown_images(&self, pods: &[PodView]) -> Vec<SandboxId> {
        let present: Vec<&SandboxId> = pods.iter().filter_map(|view| Some(&view.runtime.ready_sandbox()?.id)).collect();
        let mut images = lock(&self.sandbox_images);
        images.known.retain(|id, _| present.contains(&id));
        if images.failed_at.is_some_and(|at| at.elapsed() < IMAGES_AGAIN_AFTER) {
            return Vec::new();
        }
        present.into_iter().filter(|id| !images.known.contains_key(id)).cloned().collect()
    }
}

/// What could not be learnt is left out of the answer.
fn known<T>(what: &'static str, answer: Result<T, impl std::fmt::Display>) -> Option<T> {
    answer.inspect_err(|error| debug!(%error, what, "left out of the statistics")).ok()
}

/// What is under way goes on without us.
async fn in_time<T>(
    what: &'static str,
    path: &Path,
    read: impl Future<Output = Result<T, HostError>>,
) -> Result<T, HostError> {
    let late = |_| HostError::Timeout { what, path: path.to_owned(), after: PATIENCE };
    timeout(PATIENCE, read).await.map_err(late)?
}

async fn answered<T>(call: &'static str, ask: impl Future<Output = Result<T, CriError>>) -> Result<T, CriError> {
    timeout(PATIENCE, ask).await.map_err(|_| CriError::Timeout { call, after: PATIENCE })?
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nobody_is_waited_for_longer_than_scrapers_bear() {
        let begun = Instant::now();
        let of_disk = in_time::<()>("read", Path::new("/dead"), pending()).await.expect_err("it hangs");
        assert_eq!(of_disk.to_string(), "could not read /dead within 2s");
        let of_runtime = answered::<()>("ImageFsInfo", pending()).await.expect_err("it hangs");
        assert_eq!(of_runtime.to_string(), "ImageFsInfo: no answer within 2s");
        assert_eq!(begun.elapsed(), 2 * PATIENCE);
        let other = in_time("read", Path::new("/well"), async { Ok(7) }).await;
        assert_eq!(other.expect("it answers"), 7);
    }
}
