//! Statistics: what node, pods and containers use, for `/stats/summary`, `/metrics/resource` and
//! `/metrics/cadvisor`.
//!
//! Nothing is read before somebody asks, and what was read is kept for a moment, so that all who
//! ask at once share one reading. `places.rs` says where cgroups lie; `survey.rs` reads all of them
//! in one job on the blocking pool, those at rest at a glance, once `map.rs` has found them. `cgroup/` knows the files of both
//! versions, `machine.rs`, `network.rs` and `processes.rs` those of `/proc`, `text.rs` how they are
//! written, `remembered.rs` what is kept of each and `rates.rs` how fast it grows; `kept.rs` keeps
//! whole answers. `disks/` tells what pods take on disks, and
//! `outside.rs` what else is asked of the machine and the runtime. `summary.rs`, `resource.rs` and
//! `cadvisor/` make answers of it, all pure.
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
mod map;
mod names;
mod network;
mod outside;
mod places;
mod processes;
mod rates;
mod reader;
mod remembered;
mod resource;
mod shape;
mod summary;
mod survey;
#[cfg(test)]
mod tests;
mod text;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::debug;

pub use errors::StatsError;

use crate::clock::Clock;
use crate::cri::Runtime;
use crate::host::{Host, HostError, Lanes, Roots};
use crate::pleg::Pleg;
use crate::pod::PodRef;
use cgroup::Detail;
use disks::Disks;
use kept::Kept;
use outside::Outside;
use places::Places;
use remembered::Moment;
use survey::{Order, PodView, Survey, Surveyor};

/// How long one reading may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// For those who ask together, or one after the other for several pages.
const SURVEY_KEPT_FOR: Duration = Duration::from_secs(1);

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
    fn take(&mut self, piece: String);
}

pub struct Stats {
    node_name: String,
    began_unix_seconds: i64,
    clock: Clock,
    pleg: Pleg,
    lanes: Lanes,
    places: Places,
    surveyor: Arc<Mutex<Surveyor>>,
    surveys: Kept<(Detail, Arc<Survey>), Arc<HostError>>,
    outside: Outside,
}

impl Stats {
    pub fn new(config: StatsConfig, runtime: Arc<dyn Runtime>, pleg: Pleg, host: Arc<dyn Host>, clock: Clock) -> Self {
        let places = Places::of(&config);
        let lanes = Lanes::new(DEADLINE);
        let root_dir = config.roots.root_dir.clone();
        let disks = Disks::new(root_dir, config.pod_logs_dir, config.volume_period, lanes.clone());
        Stats {
            node_name: config.node_name,
            began_unix_seconds: clock.wall().as_second(),
            clock,
            pleg,
            surveyor: Arc::new(Mutex::new(Surveyor::new(places.clone()))),
            places,
            surveys: Kept::new(SURVEY_KEPT_FOR),
            outside: Outside::new(runtime, host, lanes.clone(), &config.roots, disks),
            lanes,
        }
    }

    /// `/stats/summary` as JSON, the short form or all of it.
    pub async fn summary(&self, is_short: bool) -> Result<Vec<u8>, StatsError> {
        let (survey, disks) = match is_short {
            true => (self.survey(Detail::Usage).await?, None),
            false => {
                let (survey, disks) = tokio::join!(self.survey(Detail::Pods), self.outside.of_disks(self.references()));
                (survey?, Some(disks))
            }
        };
        let sources = summary::Sources {
            node_name: &self.node_name,
            survey: &survey,
            disks: disks.as_ref(),
            unix_seconds: self.clock.wall().as_second(),
            began_unix_seconds: self.began_unix_seconds,
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
        let (survey, facts, topology, file_systems) = tokio::join!(
            self.survey(Detail::All),
            self.outside.facts(),
            self.outside.topology(),
            self.outside.file_systems()
        );
        let survey = survey.inspect_err(|error| debug!(%error, "no cgroups for /metrics/cadvisor")).ok();
        let unix_millis = self.clock.wall().as_millisecond();
        // Megabytes of text are work, though nothing is waited for.
        let work = tokio::task::spawn_blocking(move || {
            let (survey, facts) = (survey.as_deref(), facts.as_deref());
            let context = cadvisor::Context { survey, facts, topology, file_systems, unix_millis };
            cadvisor::write(&context, |piece| sink.take(piece));
            sink
        });
        work.await.map_err(StatsError::Render)
    }

    /// Bytes of all logs of each container, rotated ones included.
    pub async fn log_bytes(&self) -> Vec<(PodRef, String, u64)> {
        let pods = self.references();
        let logs = self.outside.disks.logs(pods.clone()).await;
        let of_pod = |pod: PodRef| {
            let containers = logs.get(&pod.uid).map(|logs| logs.containers.clone()).unwrap_or_default();
            containers.into_iter().map(move |(name, usage)| (pod.clone(), name, usage.bytes))
        };
        pods.into_iter().flat_map(of_pod).collect()
    }

    async fn survey(&self, detail: Detail) -> Result<Arc<Survey>, StatsError> {
        let mut pods = self.views();
        let is_enough = |(had, _): &(Detail, _)| *had >= detail;
        let read = self.surveys.get(self.clock.now(), is_enough, async {
            if detail == Detail::All {
                self.outside.learn_images(&mut pods).await;
            }
            let (surveyor, clock) = (self.surveyor.clone(), self.clock.clone());
            let work = move || {
                let moment = Box::new(move || Moment { wall: clock.wall(), now: clock.now() });
                Ok(lock(&surveyor).read(Order { pods, detail, moment }))
            };
            let cgroups = &self.places.roots.cgroup;
            let survey = self.lanes.run(cgroups, "read cgroups below", cgroups, work).await.map_err(Arc::new)?;
            Ok((detail, Arc::new(survey)))
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
}

/// A reading that panicked leaves nothing behind that the next could not go on with.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
