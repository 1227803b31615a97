//! Wishes of running pods for more or less CPU and memory.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::fit::{Figures, requests, shortages, sum};
use super::judge::allocatable;
use super::ledger::Entry;
use super::{Admission, NodeFacts, Refusal};
use crate::config::Gate;
use crate::pod::allocation::{RESIZABLE, is_allocated, resizable, with_allocation};
use crate::pod::containers::workload_containers;
use crate::pod::qos::{self, QosClass};
use crate::pod::resources::Resources;
use crate::pod::{PodUid, spec};

/// The reason of a refusal that stays whatever others free.
pub const INFEASIBLE: &str = "Infeasible";

/// Other resources than the pod has.
pub(super) struct Wish {
    pod: Arc<Pod>,
    /// Grows from wish to wish: who waits longest comes first.
    since: u64,
}

/// What a pod has, and why that is not what it wishes.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// The pod as it is wished for, with the resources that it has.
    pub pod: Arc<Pod>,
    /// There is no room now.
    pub pending: Option<Refusal>,
}

impl Admission {
    /// What the pod has. A pod nobody enlisted has what it wishes.
    pub fn allocated(&self, uid: &PodUid, pod: &Arc<Pod>) -> Arc<Pod> {
        self.pods().by_uid.get(uid).map_or_else(|| pod.clone(), |entry| with_allocation(pod, &entry.pod))
    }

    /// Gives a pod the resources it wishes for if there is room, to each in turn: those that
    /// wait and come before it are looked at first, and learn of it when they ask again.
    /// `holds_something` says of a UID whether the runtime has anything of it.
    pub fn resize(
        &self,
        uid: &PodUid,
        pod: &Arc<Pod>,
        facts: &NodeFacts<'_>,
        holds_something: impl Fn(&PodUid) -> bool,
    ) -> Allocation {
        let mut ledger = self.pods();
        ledger.count += 1;
        let count = ledger.count;
        let pods = &mut ledger.by_uid;
        self.take_over_all(pods, holds_something);
        let Some(asking) = pods.get_mut(uid).filter(|entry| entry.holds() && !entry.source.is_static()) else {
            drop(ledger);
            return Allocation { pod: self.allocated(uid, pod), pending: None };
        };
        if is_allocated(pod, &asking.pod) {
            asking.wish = None;
            return Allocation { pod: pod.clone(), pending: None };
        }
        // A wish that changes keeps its place.
        let since = asking.wish.as_ref().map_or(count, |wish| wish.since);
        asking.wish = Some(Wish { pod: pod.clone(), since });

        let mut queue: Vec<(Turn, PodUid)> =
            pods.iter().filter_map(|(uid, entry)| Some((turn(entry)?, uid.clone()))).collect();
        queue.sort();
        let own = queue.iter().position(|(_, next)| next == uid).unwrap_or(queue.len());
        let mut pending = None;
        let mut freed = false;
        for (_, next) in &queue[..=own.min(queue.len() - 1)] {
            let refused = refusal(pods, facts, next);
            if refused.is_none()
                && let Some(entry) = pods.get_mut(next)
                && let Some(wish) = entry.wish.take()
            {
                freed |= lowers(&wish.pod, &entry.pod);
                entry.pod = wish.pod;
            }
            pending = refused.filter(|_| next == uid);
        }
        let allocated = with_allocation(pod, &pods[uid].pod);
        drop(ledger);
        if freed {
            self.told_free();
        }
        Allocation { pod: allocated, pending }
    }
}

/// Who asks for no more than it has comes first, then who matters more, then who waits longer.
type Turn = (bool, Reverse<i32>, Reverse<QosClass>, u64);

fn turn(entry: &Entry) -> Option<Turn> {
    let wish = entry.wish.as_ref()?;
    let priority = spec(&wish.pod).priority.unwrap_or(0);
    let asks_more = !raised(&wish.pod, &entry.pod).is_empty();
    Some((asks_more, Reverse(priority), Reverse(qos::class(&wish.pod)), wish.since))
}

/// Why a pod cannot have what it wishes. One that asks for no more of a resource is not asked
/// whether the node has it: that is decided.
fn refusal(pods: &BTreeMap<PodUid, Entry>, facts: &NodeFacts<'_>, uid: &PodUid) -> Option<Refusal> {
    let entry = &pods[uid];
    let wish = entry.wish.as_ref()?;
    let whole = |pod: &Pod| resizable(spec(pod).resources.as_ref());
    let gate = Gate::InPlacePodLevelResourcesVerticalScaling;
    if !facts.config.gates.enabled(gate) && whole(&wish.pod) != whole(&entry.pod) {
        return Some(Refusal::new(INFEASIBLE, "InPlacePodLevelResourcesVerticalScaling is disabled"));
    }
    // A place on the machine was chosen for what the pod has.
    let is_static = [("cpu", "CPU", "static"), ("memory", "Memory", "Static")].into_iter().zip(facts.config.statics);
    for ((resource, manager, policy), is_static) in is_static {
        if is_static && qos::class(&wish.pod) == QosClass::Guaranteed && differs(&wish.pod, &entry.pod, resource) {
            let text =
                format!("Resize is infeasible for Guaranteed Pods alongside {manager} Manager policy {policy:?}");
            return Some(Refusal::new(INFEASIBLE, text));
        }
    }
    let raised = raised(&wish.pod, &entry.pod);
    let others = pods.iter().filter(|(other, entry)| *other != uid && entry.holds());
    let used = sum(others.map(|(_, entry)| &*entry.pod));
    let short = shortages(&wish.pod, &used, &allocatable(facts));
    let short = short.into_iter().find(|short| raised.contains_key(&short.resource))?;
    Some(short.refusal())
}

/// Whether some container is to have another amount.
fn differs(wish: &Pod, has: &Pod, name: &str) -> bool {
    let of = |pod: &Pod| -> Vec<_> {
        let of_container = |container| {
            let Resources { requests, limits } = Resources::of_container(container);
            (requests.get(name).copied(), limits.get(name).copied())
        };
        workload_containers(pod).map(|(_, container)| of_container(container)).collect()
    };
    of(wish) != of(has)
}

/// The requests that grow.
fn raised(wish: &Pod, has: &Pod) -> Figures {
    let now = requests(has);
    let mut wanted = requests(wish);
    wanted.retain(|name, figure| {
        RESIZABLE.contains(&name.as_str()) && *figure > now.get(name.as_str()).copied().unwrap_or(0)
    });
    wanted
}

fn lowers(wish: &Pod, has: &Pod) -> bool {
    !raised(has, wish).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::AdmissionConfig;
    use crate::config::FeatureGates;
    use crate::pod::resources::{Amounts, amounts};
    use crate::pod::testing::{pod_yaml, yaml};
    use crate::pod::{PodRef, Source};
    use crate::topology::Topology;

    /// A node of four CPUs and 4 GiB, and those who live on it.
    struct Bed {
        admission: Admission,
        config: AdmissionConfig,
        allocatable: Amounts,
    }

    impl Bed {
        fn with(pods: &[&Arc<Pod>]) -> Self {
            let list = yaml("{cpu: '4', memory: 4Gi, pods: '10'}");
            let allocatable = amounts(Some(&list));
            let bed =
                Bed { admission: Admission::new(Topology::none()), config: AdmissionConfig::default(), allocatable };
            for pod in pods {
                bed.admission.enlist(pod, Source::Api);
                bed.admission.take_over(&PodRef::of(pod).uid);
            }
            bed
        }

        /// What becomes of a wish: what the pod has then, and why no more.
        fn resize(&self, pod: &Arc<Pod>) -> String {
            let node = Default::default();
            let allocatable = &self.allocatable;
            let facts = NodeFacts { config: &self.config, node: &node, allocatable, supplemental_groups_policy: None };
            let Allocation { pod, pending } = self.admission.resize(&PodRef::of(pod).uid, pod, &facts, |_| false);
            let cpu = requests(&pod).get("cpu").copied().unwrap_or(0);
            match pending {
                None => format!("{cpu}m"),
                Some(why) => format!("{cpu}m, {}: {}", why.reason, why.message),
            }
        }

        fn has(&self, pod: &Arc<Pod>) -> i64 {
            requests(&self.admission.allocated(&PodRef::of(pod).uid, pod))["cpu"]
        }
    }

    fn asking(name: &str, cpu: u32) -> Arc<Pod> {
        with(name, &format!("containers: [{{name: c, image: a, resources: {{requests: {{cpu: {cpu}m}}}}}}]"))
    }

    fn with(name: &str, fields: &str) -> Arc<Pod> {
        Arc::new(pod_yaml(&format!("{{metadata: {{name: {name}, uid: {name}}}, spec: {{{fields}}}}}")))
    }

    fn of_priority(name: &str, cpu: u32, priority: i32) -> Arc<Pod> {
        let container = format!("{{name: c, image: a, resources: {{requests: {{cpu: {cpu}m}}}}}}");
        with(name, &format!("priority: {priority}, containers: [{container}]"))
    }

    #[test]
    fn what_there_is_room_for_is_given() {
        let bed = Bed::with(&[&asking("a", 1000), &asking("b", 2000)]);
        assert_eq!(bed.resize(&asking("a", 2000)), "2000m");
        assert_eq!(
            bed.resize(&asking("a", 2500)),
            "2000m, OutOfcpu: Node didn't have enough resource: cpu, requested: 2500, used: 2000, capacity: 4000"
        );
        assert_eq!(bed.has(&asking("a", 2500)), 2000);
        assert_eq!(bed.resize(&asking("a", 500)), "500m");
        assert_eq!(bed.resize(&asking("b", 3500)), "3500m", "what is given back is free");
    }

    #[test]
    fn what_an_earlier_life_gave_counts_before_its_owner_says_so() {
        let bed = Bed::with(&[&asking("a", 1000)]);
        let mut other = (*asking("b", 3000)).clone();
        let started = "{startTime: '2026-01-01T00:00:00Z'}";
        other.status = Some(yaml(started));
        bed.admission.enlist(&Arc::new(other), Source::Api);
        assert!(bed.resize(&asking("a", 2000)).contains("used: 3000"));
    }

    #[test]
    fn more_than_the_whole_node_is_deferred_too() {
        let bed = Bed::with(&[&asking("a", 1000)]);
        assert!(bed.resize(&asking("a", 9000)).starts_with("1000m, OutOfcpu: "));
    }

    #[test]
    fn what_asks_for_no_more_needs_no_room() {
        // Taken in an earlier life, when the node was larger.
        let bed = Bed::with(&[&asking("a", 3000), &asking("b", 3000)]);
        assert_eq!(bed.resize(&asking("a", 2000)), "2000m");
    }

    #[test]
    fn room_that_comes_goes_to_those_that_wait_in_turn() {
        let bed = Bed::with(&[&asking("a", 1000), &asking("b", 1000), &of_priority("c", 500, 7), &asking("d", 1500)]);
        let wishes = [asking("a", 2000), asking("b", 2000), of_priority("c", 1500, 7)];
        for wish in &wishes {
            assert!(bed.resize(wish).contains("OutOfcpu"));
        }
        let mut freed = bed.admission.freed();
        freed.mark_seen();
        bed.admission.forget(&PodUid::new("d"));
        assert!(freed.has_news());
        // There is room for one of them, and b is not the one, though it asks first now.
        assert!(bed.resize(&wishes[1]).contains("OutOfcpu"));
        assert_eq!(bed.has(&wishes[2]), 1500, "of a higher priority");
        bed.admission.forget(&PodUid::new("c"));
        assert!(bed.resize(&wishes[1]).contains("2000m"));
        assert_eq!(bed.has(&wishes[0]), 2000, "it waited longer");
    }

    #[test]
    fn a_wish_that_is_taken_back_waits_no_more() {
        let bed = Bed::with(&[&asking("a", 1000), &asking("b", 3000)]);
        assert!(bed.resize(&asking("a", 2000)).contains("OutOfcpu"));
        assert_eq!(bed.resize(&asking("a", 1000)), "1000m");
        bed.admission.forget(&PodUid::new("b"));
        assert_eq!(bed.resize(&asking("a", 1000)), "1000m");
    }

    #[test]
    fn what_lowers_its_requests_tells_those_that_wait() {
        let bed = Bed::with(&[&asking("a", 1000), &asking("b", 3000)]);
        assert!(bed.resize(&asking("a", 2000)).contains("OutOfcpu"));
        let mut freed = bed.admission.freed();
        freed.mark_seen();
        assert_eq!(bed.resize(&asking("b", 1000)), "1000m");
        assert!(freed.has_news());
        assert_eq!(bed.resize(&asking("a", 2000)), "2000m");
    }

    #[test]
    fn what_a_pod_has_counts_when_others_come() {
        let bed = Bed::with(&[&asking("a", 1000), &asking("b", 1000)]);
        assert_eq!(bed.resize(&asking("a", 3000)), "3000m");
        assert!(bed.resize(&asking("b", 1500)).contains("used: 3000"));
    }

    #[test]
    fn resources_of_the_pod_as_a_whole_are_given_like_those_of_containers() {
        let pod = |cpu: u32| {
            with("a", &format!("resources: {{requests: {{cpu: {cpu}m}}}}, containers: [{{name: c, image: a}}]"))
        };
        let bed = Bed::with(&[&pod(1000)]);
        assert_eq!(bed.resize(&pod(2000)), "2000m");
        assert!(bed.resize(&pod(5000)).starts_with("2000m, OutOfcpu: "));
        assert_eq!(bed.resize(&pod(500)), "500m");
    }

    #[test]
    fn without_the_gate_no_pod_as_a_whole_gets_other_resources() {
        let pod = |cpu: u32, of_container: u32| {
            let container = format!("{{name: c, image: a, resources: {{requests: {{cpu: {of_container}m}}}}}}");
            with("a", &format!("resources: {{requests: {{cpu: {cpu}m}}}}, containers: [{container}]"))
        };
        let mut bed = Bed::with(&[&pod(1000, 100)]);
        bed.config.gates = FeatureGates::with(&[(Gate::InPlacePodLevelResourcesVerticalScaling, false)]);
        let refused = "1000m, Infeasible: InPlacePodLevelResourcesVerticalScaling is disabled";
        assert_eq!(bed.resize(&pod(500, 100)), refused);
        assert_eq!(bed.resize(&pod(1000, 200)), "1000m");
    }

    #[test]
    fn what_has_a_place_of_its_own_keeps_what_that_was_chosen_for() {
        let pod = |cpu: u32, memory: u32| {
            let amounts = format!("{{cpu: {cpu}m, memory: {memory}Mi}}");
            with(
                "a",
                &format!("containers: [{{name: c, image: a, resources: {{requests: {amounts}, limits: {amounts}}}}}]"),
            )
        };
        let mut bed = Bed::with(&[&pod(1000, 64)]);
        bed.config.statics = [true, false];
        let refused =
            "1000m, Infeasible: Resize is infeasible for Guaranteed Pods alongside CPU Manager policy \"static\"";
        assert_eq!(bed.resize(&pod(500, 64)), refused);
        assert_eq!(bed.resize(&pod(1000, 32)), "1000m");
        bed.config.statics = [false, true];
        assert!(bed.resize(&pod(1000, 64)).ends_with("alongside Memory Manager policy \"Static\""));
        assert_eq!(bed.resize(&pod(2000, 32)), "2000m");
        bed.config.statics = [true, true];
        let burstable = asking("b", 100);
        bed.admission.enlist(&burstable, Source::Api);
        bed.admission.take_over(&PodRef::of(&burstable).uid);
        assert_eq!(bed.resize(&asking("b", 200)), "200m");
    }

    #[test]
    fn what_has_ended_or_is_static_is_not_resized() {
        let bed = Bed::with(&[&asking("a", 1000)]);
        bed.admission.release(&PodUid::new("a"));
        assert_eq!(bed.resize(&asking("a", 2000)), "1000m");
        bed.admission.enlist(&asking("s", 1000), Source::File);
        bed.admission.take_over(&PodUid::new("s"));
        assert_eq!(bed.resize(&asking("s", 2000)), "1000m");
    }
}
