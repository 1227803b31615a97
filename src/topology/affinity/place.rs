//! Has the providers serve a pod, container after container, all or nothing.

use k8s_openapi::api::core::v1::Pod;

use crate::config::{TopologyManagerPolicy as Policy, TopologyManagerScope as Scope};
use crate::pod::PodUid;
use crate::pod::containers::workload_containers;

use super::super::{Affinity, Ask, Failure, Hint, Provider};
use super::Aligner;

/// What became of a pod, and what it adds to the metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Placed {
    pub result: Result<(), Failure>,
    pub tally: Tally,
}

/// What one pod adds to counters. Each call is one admission request beside that, and its
/// duration is for the caller to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// For `kubelet_topology_manager_admission_errors_total`.
    pub errors: u32,
    /// For `kubelet_container_aligned_compute_resources_count`, boundary `numa_node` and the
    /// scope of the aligner. Counted by the one policy that promises a single node.
    pub aligned: u32,
    /// For `kubelet_container_aligned_compute_resources_failure_count`, likewise.
    pub not_aligned: u32,
}

impl Aligner {
    /// The label `scope` of the metrics; `None` where nothing is counted by it.
    pub fn scope_label(&self) -> Option<&'static str> {
        (self.policy != Policy::None).then_some(self.scope.as_str())
    }

    /// Has all `providers`, in their order, allocate for all containers of a pod. If one of
    /// them cannot, or the policy refuses, all that any of them gave the pod is taken back;
    /// upstream leaves it with the dead pod until it happens to look for leftovers.
    pub fn place(&self, providers: &mut [&mut dyn Provider], uid: &PodUid, pod: &Pod) -> Placed {
        let mut tally = Tally::default();
        let result = match (self.policy, self.scope) {
            (Policy::None, _) | (_, Scope::Container) => self.place_containers(providers, uid, pod, &mut tally),
            (_, Scope::Pod) => self.place_pod(providers, uid, pod, &mut tally),
        };
        if result.is_err() {
            // As upstream, which counts errors of its policies only.
            tally.errors = u32::from(self.policy != Policy::None);
            providers.iter_mut().for_each(|provider| provider.release(uid));
        }
        Placed { result, tally }
    }

    /// The same for a pod that runs already, as after a restart of the agent under another
    /// policy: nobody refuses it, and nothing that it has is taken back, since it would go on
    /// using it. The first failure of a provider is told; the others have given what they can.
    pub fn place_running(&self, providers: &mut [&mut dyn Provider], uid: &PodUid, pod: &Pod) -> Result<(), Failure> {
        let mut result = Ok(());
        let of_pod = (self.scope == Scope::Pod).then(|| self.best(providers, &Ask { uid, pod, container: None }).0);
        for container in workload_containers(pod) {
            let ask = Ask { uid, pod, container: Some(container) };
            let affinity = of_pod.unwrap_or_else(|| self.best(providers, &ask).0);
            for provider in providers.iter_mut() {
                // A place that is merely the best there is binds nobody to be content with it.
                result = result.and(provider.allocate(&ask, Hint { preferred: false, ..affinity }));
            }
        }
        result
    }

    fn place_containers(
        &self,
        providers: &mut [&mut dyn Provider],
        uid: &PodUid,
        pod: &Pod,
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        for container in workload_containers(pod) {
            let ask = Ask { uid, pod, container: Some(container) };
            let affinity = self.affinity(providers, &ask, tally)?;
            allocate(providers, &ask, affinity)?;
            tally.aligned += u32::from(self.promises_one_node());
        }
        Ok(())
    }

    /// One decision for the pod, by which each of its containers is served.
    fn place_pod(
        &self,
        providers: &mut [&mut dyn Provider],
        uid: &PodUid,
        pod: &Pod,
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        let affinity = self.affinity(providers, &Ask { uid, pod, container: None }, tally)?;
        for container in workload_containers(pod) {
            allocate(providers, &Ask { uid, pod, container: Some(container) }, affinity)?;
        }
        tally.aligned += u32::from(self.promises_one_node());
        Ok(())
    }

    fn affinity(&self, providers: &[&mut dyn Provider], ask: &Ask<'_>, tally: &mut Tally) -> Result<Affinity, Failure> {
        let (affinity, admit) = self.best(providers, ask);
        if !admit {
            tally.not_aligned += u32::from(self.promises_one_node());
            return Err(Failure {
                reason: "TopologyAffinityError",
                message: "Resources cannot be allocated with Topology locality".to_owned(),
            });
        }
        Ok(affinity)
    }

    fn best(&self, providers: &[&mut dyn Provider], ask: &Ask<'_>) -> (Affinity, bool) {
        // Hints are not asked for where nobody reads them.
        let hints: Vec<_> = match self.policy {
            Policy::None => Vec::new(),
            _ => providers.iter().flat_map(|provider| provider.hints(ask)).collect(),
        };
        self.decide(&hints)
    }

    fn promises_one_node(&self) -> bool {
        self.policy == Policy::SingleNumaNode
    }
}

fn allocate(providers: &mut [&mut dyn Provider], ask: &Ask<'_>, affinity: Affinity) -> Result<(), Failure> {
    providers.iter_mut().try_for_each(|provider| provider.allocate(ask, affinity))
}
