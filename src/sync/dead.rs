//! Dead containers: which of them are removed while their pod is still there.
//!
//! Each worker tells what has ended in its pod and hears what has to go; nobody else removes
//! anything. Where a limit over all pods makes others give something up, they are woken.
//!
//! Always true: the newest instance of a container stays unless the API has told how its pod
//! ended. It is what a restart count, a back-off and a status are read from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;

use super::Wakes;
use crate::cri::ContainerId;
use crate::pleg::PodRuntime;
use crate::pod::PodUid;

/// How many dead containers may stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLimits {
    /// Instances of one container; `None` is any number.
    pub per_container: Option<usize>,
    /// Of all pods together; `None` is any number.
    pub in_all: Option<usize>,
    /// Younger ones stay, but for those beyond the newest of a container.
    pub min_age: Duration,
}

impl Default for DeadLimits {
    fn default() -> Self {
        DeadLimits { per_container: Some(1), in_all: None, min_age: Duration::ZERO }
    }
}

/// A container that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Dead {
    name: String,
    id: ContainerId,
    created_at: Timestamp,
    /// Something is still read from it.
    is_needed: bool,
}

/// What has to go from one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condemned {
    pub containers: BTreeSet<ContainerId>,
    /// When more may have to: something is too young now.
    pub look_again_in: Option<Duration>,
}

/// The dead of all pods.
#[derive(Default)]
pub struct DeadContainers {
    limits: DeadLimits,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Those old enough to be removed.
    pods: BTreeMap<PodUid, Vec<Dead>>,
    /// Whose pods were woken for them. What cannot be removed now would otherwise have its
    /// pods wake each other for ever.
    announced: BTreeSet<ContainerId>,
}

impl DeadContainers {
    pub fn new(limits: DeadLimits) -> Self {
        DeadContainers { limits, table: Mutex::default() }
    }

    /// Tells what has ended in a pod, and hears what has to go. `is_told` is whether the API
    /// has told how the pod ended.
    pub fn look(&self, uid: &PodUid, runtime: &PodRuntime, is_told: bool, wall: Timestamp, wakes: &Wakes) -> Condemned {
        let dead = dead(runtime, is_told);
        let mut condemned = beyond_newest(&dead, &self.limits);
        let age = |one: &Dead| Duration::try_from(wall.duration_since(one.created_at)).unwrap_or_default();
        let (old, young): (Vec<Dead>, Vec<Dead>) = dead.into_iter().partition(|one| age(one) >= self.limits.min_age);
        let removable = |all: &[Dead]| all.iter().any(|one| !one.is_needed);
        let ages = young.iter().map(|one| self.limits.min_age.saturating_sub(age(one)));
        let look_again_in = ages.min().filter(|_| self.is_strict() && removable(&young));
        if self.limits.per_container == Some(0) {
            condemned.extend(old.iter().filter(|one| !one.is_needed).map(|one| one.id.clone()));
        }
        if let Some(max) = self.limits.in_all {
            let mut table = self.table.lock().expect("nothing that holds the dead can panic");
            table.pods.insert(uid.clone(), old);
            let all = beyond_all(&table.pods, max);
            condemned.extend(all.get(uid).into_iter().flatten().cloned());
            let news = |ids: &BTreeSet<ContainerId>| !ids.is_subset(&table.announced);
            all.iter().filter(|(other, ids)| *other != uid && news(ids)).for_each(|(other, _)| wakes.wake(other));
            table.announced = all.into_values().flatten().collect();
        }
        Condemned { containers: condemned, look_again_in }
    }

    /// The pod is gone.
    pub fn forget(&self, uid: &PodUid) {
        self.table.lock().expect("nothing that holds the dead can panic").pods.remove(uid);
    }

    /// Whether more may have to go than what is beyond the newest.
    fn is_strict(&self) -> bool {
        self.limits.per_container == Some(0) || self.limits.in_all.is_some()
    }
}

/// What has ended in a pod, newest first.
fn dead(runtime: &PodRuntime, is_told: bool) -> Vec<Dead> {
    let mut seen = BTreeSet::new();
    let mut dead = Vec::new();
    for container in &runtime.containers {
        let is_newest = seen.insert(container.name.as_str());
        if container.exit().is_some() {
            dead.push(Dead {
                name: container.name.clone(),
                id: container.id.clone(),
                created_at: container.created_at,
                is_needed: is_newest && !is_told,
            });
        }
    }
    dead
}

/// Each container keeps one, whatever the limit: so upstream has it when a container ends.
fn beyond_newest(dead: &[Dead], limits: &DeadLimits) -> BTreeSet<ContainerId> {
    let Some(max) = limits.per_container else { return BTreeSet::new() };
    let mut kept: BTreeMap<&str, usize> = BTreeMap::new();
    let beyond = dead.iter().filter(|one| {
        let kept = kept.entry(&one.name).or_default();
        *kept += 1;
        *kept > max.max(1) && !one.is_needed
    });
    beyond.map(|one| one.id.clone()).collect()
}

/// Each container keeps its share, at least one; if that is still too many, the oldest go.
fn beyond_all(pods: &BTreeMap<PodUid, Vec<Dead>>, max: usize) -> BTreeMap<PodUid, BTreeSet<ContainerId>> {
    let mut gone: BTreeMap<PodUid, BTreeSet<ContainerId>> = BTreeMap::new();
    let mut left = pods.values().map(Vec::len).sum::<usize>();
    let units: BTreeSet<_> = pods.iter().flat_map(|(uid, dead)| dead.iter().map(move |one| (uid, &one.name))).collect();
    if left <= max {
        return gone;
    }
    let share = DeadLimits { per_container: Some(max / units.len()), ..DeadLimits::default() };
    for (uid, dead) in pods {
        let beyond = beyond_newest(dead, &share);
        left -= beyond.len();
        gone.insert(uid.clone(), beyond);
    }
    let mut rest: Vec<_> = pods
        .iter()
        .flat_map(|(uid, dead)| dead.iter().map(move |one| (uid, one)))
        .filter(|(uid, one)| !one.is_needed && !gone[*uid].contains(&one.id))
        .collect();
    rest.sort_by_key(|(_, one)| (one.created_at, &one.id));
    for (uid, one) in rest.into_iter().take(left.saturating_sub(max)) {
        gone.get_mut(uid).expect("every pod has an entry").insert(one.id.clone());
    }
    gone.retain(|_, ids| !ids.is_empty());
    gone
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::cri::Container;
    use crate::cri::testing::{container, exited, noon};

    /// Instances `name-attempt` that were created so many minutes ago; none of them runs.
    fn ended(instances: &[(&str, u32, i64)]) -> PodRuntime {
        let containers = instances.iter().map(|(name, attempt, minutes)| Container {
            created_at: noon() - SignedDuration::from_mins(*minutes),
            ..container(name, *attempt, exited(0))
        });
        PodRuntime { containers: containers.collect(), ..PodRuntime::default() }.sorted()
    }

    fn dead(per_container: Option<usize>, in_all: Option<usize>, minutes: u64) -> DeadContainers {
        DeadContainers::new(DeadLimits { per_container, in_all, min_age: Duration::from_secs(60 * minutes) })
    }

    #[track_caller]
    fn check(dead: &DeadContainers, pod: &str, runtime: &PodRuntime, is_told: bool, expected: &[&str]) {
        let condemned = dead.look(&PodUid::new(pod), runtime, is_told, noon(), &Wakes::default());
        let ids: Vec<_> = condemned.containers.iter().map(ToString::to_string).collect();
        assert_eq!(ids, expected);
    }

    #[test]
    fn a_container_keeps_its_newest_dead_instances() {
        let runtime = ended(&[("a", 0, 9), ("a", 1, 8), ("a", 2, 7), ("b", 0, 9)]);
        check(&dead(Some(1), None, 0), "p", &runtime, false, &["a-0", "a-1"]);
        check(&dead(Some(2), None, 0), "p", &runtime, false, &["a-0"]);
        check(&dead(None, None, 0), "p", &runtime, false, &[]);
        // However young they are: one takes another's place.
        check(&dead(Some(1), None, 60), "p", &runtime, false, &["a-0", "a-1"]);
    }

    #[test]
    fn an_ended_pod_that_the_api_knows_of_may_lose_all_once_they_are_old() {
        let runtime = ended(&[("a", 0, 9), ("b", 0, 3)]);
        check(&dead(Some(0), None, 0), "p", &runtime, false, &[]);
        check(&dead(Some(0), None, 0), "p", &runtime, true, &["a-0", "b-0"]);
        check(&dead(Some(0), None, 5), "p", &runtime, true, &["a-0"]);
        let later = dead(Some(0), None, 5).look(&PodUid::new("p"), &runtime, true, noon(), &Wakes::default());
        assert_eq!(later.look_again_in, Some(Duration::from_secs(120)));
        let never = dead(Some(1), None, 5).look(&PodUid::new("p"), &runtime, true, noon(), &Wakes::default());
        assert_eq!(never, Condemned::default());
    }

    #[test]
    fn too_many_in_all_cost_the_oldest_that_nobody_needs() {
        let dead = dead(None, Some(2), 0);
        check(&dead, "running", &ended(&[("a", 0, 99)]), false, &[]);
        check(&dead, "done", &ended(&[("a", 0, 50), ("a", 1, 40)]), true, &["a-0"]);
        check(&dead, "done", &ended(&[("a", 1, 40)]), true, &[]);
        // One more, and the oldest of those that may go goes.
        check(&dead, "young", &ended(&[("a", 0, 1)]), true, &[]);
        check(&dead, "done", &ended(&[("a", 1, 40)]), true, &["a-1"]);
        dead.forget(&PodUid::new("young"));
        check(&dead, "done", &ended(&[("a", 1, 40)]), true, &[]);
    }
}
