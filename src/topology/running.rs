//! Where containers run by now, as the runtime tells it: what counts when the state files do not say.

use std::time::Duration;

use futures::{StreamExt, stream};
use tracing::warn;

use super::NumaSet;
use crate::config::CpuSet;
use crate::cri::{ContainerStateKind, ContainerSummary, CriError, LinuxResources, Runtime, Scope};
use crate::pod::PodUid;

/// For all of them together: nothing starts before that.
const DEADLINE: Duration = Duration::from_secs(30);
const CALLS_AT_ONCE: usize = 8;
const SHARES_PER_CPU: i64 = 1024;

/// A running container that was told where to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    pub uid: PodUid,
    pub container: String,
    /// Empty where it may run anywhere, or the runtime does not say.
    pub cpus: CpuSet,
    pub nodes: NumaSet,
    /// As many whole CPUs as its weight says; none if it says no whole number.
    pub whole_cpus: usize,
}

/// What the runtime cannot tell in time is not counted; a container whose CPUs are given to another
/// is moved when its own worker looks at it. Beside it whether the runtime has told of all.
pub async fn ask(runtime: &dyn Runtime) -> (Vec<Running>, bool) {
    let asked = async {
        let containers = runtime.list_containers(&Scope::All).await?;
        let running = containers.into_iter().filter(|it| it.state == ContainerStateKind::Running);
        let each = running.map(|listed| async move { place(runtime, listed).await });
        Ok::<_, CriError>(stream::iter(each).buffer_unordered(CALLS_AT_ONCE))
    };
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let (mut found, mut is_all) = (Vec::new(), true);
    let all = async {
        let mut places = std::pin::pin!(asked.await?);
        while let Some(place) = places.next().await {
            is_all &= place.is_ok();
            found.extend(place.unwrap_or_default());
        }
        Ok::<_, CriError>(())
    };
    let has_ended = match tokio::time::timeout_at(deadline, all).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            warn!(%error, "the runtime does not say where containers run");
            false
        }
        Err(_) => {
            warn!("the runtime did not say of all containers where they run within {DEADLINE:?}");
            false
        }
    };
    (found, has_ended && is_all)
}

/// `None` for one that is gone, or of which nothing is told.
async fn place(runtime: &dyn Runtime, listed: ContainerSummary) -> Result<Option<Running>, CriError> {
    let resources = match runtime.container_status(&listed.id).await {
        Ok(status) => status.resources,
        Err(CriError::NotFound { .. }) => return Ok(None),
        Err(error) => {
            warn!(container = %listed.id, %error, "the runtime does not say where the container runs");
            return Err(error);
        }
    };
    let Some(resources) = resources else { return Ok(None) };
    let LinuxResources { cpuset_cpus, cpuset_mems, cpu_shares, .. } = resources;
    let cpus = CpuSet::parse(&cpuset_cpus).unwrap_or_default();
    let nodes = CpuSet::parse(&cpuset_mems).unwrap_or_default().iter().collect();
    let whole_cpus = if cpu_shares % SHARES_PER_CPU == 0 { cpu_shares / SHARES_PER_CPU } else { 0 };
    let whole_cpus = usize::try_from(whole_cpus).unwrap_or(0);
    Ok(Some(Running { uid: PodUid::new(listed.pod_uid), container: listed.name, cpus, nodes, whole_cpus }))
}
