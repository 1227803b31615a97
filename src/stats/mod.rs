//! Statistics: what node, pods and containers use, for `/stats/summary`, `/metrics/resource` and
//! `/metrics/cadvisor`.
//!
//! Nothing is read before somebody asks, and what was read is kept for a moment, so that all who
//! ask at once share one reading. `places.rs` says where cgroups lie; `survey.rs` reads all of them
//! in one job on the blocking pool, those at rest at a glance. `cgroup/` knows the files of both
//! versions, `machine.rs`, `network.rs` and `processes.rs` those of `/proc`, `text.rs` how they are
//! written. `disks.rs` tells what pods take on disks. `summary.rs`, `resource.rs` and `cadvisor/`
//! make answers of it, all pure.
//!
//! No task. In: what the runtime holds (pleg), what it tells of disks, files of the kernel.
//! Out: pages.
//!
//! Always true: each outside call has a deadline, and what hangs or is missing costs its own
//! figures only, unless it is the cgroups themselves; a figure that is not known is left out.

mod cadvisor;
mod cgroup;
mod disks;
mod errors;
mod kept;
mod machine;
mod names;
mod network;
mod places;
mod processes;
mod rates;
mod reader;
mod resource;
mod shape;
mod summary;
mod survey;
#[cfg(test)]
mod tests;
mod text;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::time::timeout;
use tracing::debug;

pub use errors::StatsError;

use crate::clock::Clock;
use crate::cri::{ContainerId, CriError, FilesystemUsage, Runtime, SandboxId};
use crate::host::{Host, Lanes, MachineFacts, Roots};
use crate::pleg::Pleg;
use crate::pod::{PodRef, PodUid};
use cgroup::Detail;
use disks::{Disks, FileSystem};
use kept::Kept;
use machine::Topology;
use places::Places;
use summary::OfDisks;
use survey::{Order, PodView, Survey, Surveyor};

/// How long one reading may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// For those who ask together, or one after the other for several pages.
const SURVEY_KEPT_FOR: Duration = Duration::from_secs(1);
/// The runtime itself looks at disks no more often.
const RUNTIME_KEPT_FOR: Duration = Duration::from_secs(10);
const MACHINE_KEPT_FOR: Duration = Duration::from_secs(300);
/// For a runtime that does not answer, of which scrapers are to notice little.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(2);
const IMAGES_AT_ONCE: usize = 4;

/// The part of the configuration that is about statistics.
#[derive(Clone, Debug)]
pub struct StatsConfig {
    pub node_name: String,
    pub roots: Roots,
    pub pod_logs_dir: PathBuf,
    pub cgroup_root: String,
    /// Pods have cgroups of ours; without, containers lie where the runtime likes.
    pub cgroups_per_qos: bool,
    /// The next three are cgroups of the node's own parts; empty for none.
    pub kubelet_cgroups: String,
    pub runtime_cgroups: String,
    pub system_cgroups: String,
    /// How often a pod's volumes are measured at most; `None` turns it off.
    pub volume_period: Option<Duration>,
}

/// Takes a page, piece by piece.
pub trait Sink: Send + 'static {
    fn take(&mut self, piece: &str);
}

pub struct Stats {
    node_name: String,
    clock: Clock,
    runtime: Arc<dyn Runtime>,
    pleg: Pleg,
    host: Arc<dyn Host>,
    lanes: Lanes,
    places: Places,
    surveyor: Arc<Mutex<Surveyor>>,
    surveys: Kept<(Detail, Arc<Survey>)>,
    sandbox_images: Mutex<HashMap<SandboxId, Option<String>>>,
    disks: Disks,
    layers: Kept<Arc<HashMap<ContainerId, FilesystemUsage>>>,
    images: Kept<FilesystemUsage>,
    machine: Kept<(Arc<MachineFacts>, Topology)>,
}

impl Stats {
    pub fn new(config: StatsConfig, runtime: Arc<dyn Runtime>, pleg: Pleg, host: Arc<dyn Host>, clock: Clock) -> Self {
        let places = Places::of(&config);
        let lanes = Lanes::new(DEADLINE);
        let (root_dir, logs_dir) = (config.roots.root_dir, config.pod_logs_dir);
        Stats {
            node_name: config.node_name,
            clock,
            runtime,
            pleg,
            host,
            lanes: lanes.clone(),
            surveyor: Arc::new(Mutex::new(Surveyor::new(places.clone()))),
            places,
            surveys: Kept::new(SURVEY_KEPT_FOR),
            sandbox_images: Mutex::default(),
            disks: Disks::new(root_dir, logs_dir, config.volume_period, lanes),
            layers: Kept::new(RUNTIME_KEPT_FOR),
            images: Kept::new(RUNTIME_KEPT_FOR),
            machine: Kept::new(MACHINE_KEPT_FOR),
        }
    }

    /// `/stats/summary` as JSON, the short form or all of it.
    pub async fn summary(&self, is_short: bool) -> Result<Vec<u8>, StatsError> {
        let (survey, disks) = match is_short {
            true => (self.survey(Detail::Usage).await?, None),
            false => {
                let (survey, disks) = tokio::join!(self.survey(Detail::Pods), self.of_disks());
                (survey?, Some(disks))
            }
        };
        let sources = summary::Sources {
            node_name: &self.node_name,
            survey: &survey,
            disks: disks.as_ref(),
            unix_seconds: self.clock.wall().as_second(),
            system: &self.places.system,
        };
        serde_json::to_vec(&summary::build(&sources)).map_err(StatsError::Json)
    }

    /// `/metrics/resource`, which tells by itself when it could not be read.
    pub async fn resource(&self) -> String {
        let survey = self.survey(Detail::Usage).await;
        if let Err(error) = &survey {
            debug!(%error, "no figures for /metrics/resource");
        }
        resource::page(survey.ok().as_deref())
    }

    /// `/metrics/cadvisor`, into `sink`. It tells by itself when it could not be read.
    pub async fn cadvisor<S: Sink>(&self, mut sink: S) -> Result<S, StatsError> {
        let (survey, machine, file_systems) =
            tokio::join!(self.survey(Detail::All), self.machine(), self.file_systems());
        let (survey, (facts, topology)) = match (survey, machine) {
            (Ok(survey), Ok(machine)) => (survey, machine),
            (Err(error), _) | (_, Err(error)) => {
                debug!(%error, "no figures for /metrics/cadvisor");
                sink.take(&cadvisor::failed());
                return Ok(sink);
            }
        };
        let unix_millis = self.clock.wall().as_millisecond();
        // Megabytes of text are work, though nothing is waited for.
        let work = tokio::task::spawn_blocking(move || {
            let context = cadvisor::Context { survey: &survey, facts: &facts, topology, file_systems, unix_millis };
            cadvisor::write(&context, |piece| sink.take(&piece));
            sink
        });
        work.await.map_err(StatsError::Render)
    }

    /// Bytes of all logs of each container, rotated ones included.
    pub async fn log_bytes(&self) -> Vec<(PodRef, String, u64)> {
        let pods = self.references();
        let logs = self.disks.logs(pods.clone()).await.unwrap_or_default();
        let of_pod = |pod: PodRef| {
            let containers = logs.get(&pod.uid).map(|logs| logs.containers.clone()).unwrap_or_default();
            containers.into_iter().map(move |(name, usage)| (pod.clone(), name, usage.bytes))
        };
        pods.into_iter().flat_map(of_pod).collect()
    }

    async fn survey(&self, detail: Detail) -> Result<Arc<Survey>, StatsError> {
        let pods = self.views();
        let is_enough = |(had, _): &(Detail, _)| *had >= detail;
        let read = self.surveys.get(self.clock.now(), is_enough, async {
            if detail == Detail::All {
                self.learn_images(&pods).await;
            }
            let order = Order { pods: self.with_images(pods), detail, wall: self.clock.wall(), now: self.clock.now() };
            let surveyor = self.surveyor.clone();
            let work = move || Ok(lock(&surveyor).read(order));
            let cgroups = &self.places.roots.cgroup;
            let survey = self.lanes.run(cgroups, "read cgroups below", cgroups, work).await?;
            Ok::<_, StatsError>((detail, Arc::new(survey)))
        });
        Ok(read.await?.1)
    }

    /// Pods of which the runtime has something.
    fn views(&self) -> Vec<PodView> {
        let pods = self.pleg.known().into_iter();
        let views = pods.filter_map(|uid| {
            let runtime = self.pleg.cached(&uid)?;
            runtime.ready_sandbox()?;
            Some(PodView { uid, runtime, sandbox_image: None })
        });
        views.collect()
    }

    fn references(&self) -> Vec<PodRef> {
        let of_view = |view: PodView| {
            let sandbox = view.runtime.ready_sandbox()?;
            let (name, namespace) = (sandbox.pod_name.clone(), sandbox.pod_namespace.clone());
            Some(PodRef { uid: view.uid, name, namespace })
        };
        self.views().into_iter().filter_map(of_view).collect()
    }

    /// Asks the runtime for images of sandboxes it was not asked about yet.
    async fn learn_images(&self, pods: &[PodView]) {
        let present: Vec<&SandboxId> = pods.iter().filter_map(|view| Some(&view.runtime.ready_sandbox()?.id)).collect();
        let unknown: Vec<SandboxId> = {
            let mut known = lock(&self.sandbox_images);
            known.retain(|id, _| present.contains(&id));
            present.into_iter().filter(|id| !known.contains_key(id)).cloned().collect()
        };
        let learn = stream::iter(unknown).for_each_concurrent(IMAGES_AT_ONCE, async |id| {
            match self.runtime.sandbox_image(&id).await {
                Ok(image) => drop(lock(&self.sandbox_images).insert(id, image)),
                Err(CriError::Unimplemented { .. }) => drop(lock(&self.sandbox_images).insert(id, None)),
                Err(error) => debug!(%error, "image of a sandbox not known"),
            }
        });
        let _ = timeout(RUNTIME_PATIENCE, learn).await;
    }

    fn with_images(&self, mut pods: Vec<PodView>) -> Vec<PodView> {
        let known = lock(&self.sandbox_images);
        for view in &mut pods {
            let sandbox = view.runtime.ready_sandbox();
            view.sandbox_image = sandbox.and_then(|sandbox| known.get(&sandbox.id).cloned().flatten());
        }
        pods
    }

    async fn machine(&self) -> Result<(Arc<MachineFacts>, Topology), StatsError> {
        let read = self.machine.get(self.clock.now(), |_| true, async {
            let facts = self.host.facts().await?;
            let sys = self.places.roots.sys.clone();
            let work = move || Ok(machine::topology(&sys, &mut reader::Reader::default()));
            let topology = self.lanes.run(&self.places.roots.sys, "read CPUs in", &self.places.roots.sys, work).await?;
            Ok::<_, StatsError>((Arc::new(facts), topology))
        });
        read.await
    }

    /// The node's own file system, and that of images if it is another.
    async fn file_systems(&self) -> Vec<FileSystem> {
        let (node, images) = tokio::join!(self.node_fs(), self.image_fs());
        let images = images.and_then(|(_, fs)| fs).filter(|fs| node.is_none_or(|node| node.device != fs.device));
        node.into_iter().chain(images).collect()
    }

    async fn node_fs(&self) -> Option<FileSystem> {
        known("file system of the node", self.disks.file_system(&self.places.roots.root_dir).await)
    }

    async fn image_fs(&self) -> Option<(FilesystemUsage, Option<FileSystem>)> {
        let ask = async {
            let usage = self.runtime.image_filesystem().await?;
            usage.ok_or(CriError::Unimplemented { call: "ImageFsInfo" })
        };
        let usage = timeout(RUNTIME_PATIENCE, self.images.get(self.clock.now(), |_| true, ask)).await.ok()?;
        let usage = known("disk of images", usage)?;
        let on = self.disks.file_system(usage.mountpoint.as_ref()).await;
        Some((usage, known("file system of images", on)))
    }

    async fn layers(&self) -> Arc<HashMap<ContainerId, FilesystemUsage>> {
        let ask = async { Ok::<_, CriError>(Arc::new(self.runtime.written_layers().await?.into_iter().collect())) };
        let layers = timeout(RUNTIME_PATIENCE, self.layers.get(self.clock.now(), |_| true, ask)).await;
        layers.ok().and_then(|layers| known("disk of containers", layers)).unwrap_or_default()
    }

    async fn of_disks(&self) -> OfDisks {
        let pods = self.references();
        let uids: Vec<PodUid> = pods.iter().map(|pod| pod.uid.clone()).collect();
        let (node, images, layers, volumes, logs) = tokio::join!(
            self.node_fs(),
            self.image_fs(),
            self.layers(),
            self.disks.volumes(&uids),
            self.disks.logs(pods)
        );
        OfDisks { node, images, layers, volumes, logs: known("logs", logs).unwrap_or_default() }
    }
}

/// What could not be learnt is left out of the answer.
fn known<T>(what: &'static str, answer: Result<T, impl std::fmt::Display>) -> Option<T> {
    answer.inspect_err(|error| debug!(%error, what, "left out of the statistics")).ok()
}

/// A reading that panicked leaves nothing behind that the next could not go on with.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
