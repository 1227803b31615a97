//! The text of the file `cpu_manager_state`, as upstream writes and reads it, so that either agent
//! goes on with what the other gave.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Entries, Ground, Static};
use crate::config::CpuSet;
use crate::pod::PodUid;

pub const FILE: &str = "cpu_manager_state";
const POLICY: &str = "static";

pub type Recorded = super::super::Recorded<Entries, Wrong>;

/// Things for which upstream does not start until somebody drains the node and deletes the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    #[error("the file is no state of a CPU manager: {0}")]
    Garbage(String),
    #[error("the file is of the CPU manager policy {found:?}, not {POLICY}")]
    Policy { found: String },
    #[error("the file is of other CPUs or another reservation: pool and entries have {recorded}, the machine {there}")]
    Machine { recorded: CpuSet, there: CpuSet },
    #[error("CPUs {cpus} are in more than one place in the file")]
    Overlap { cpus: CpuSet },
    #[error("the file places pod {uid} as a whole, which this agent does not do")]
    PodLevel { uid: PodUid },
    #[error("the CPUs {text:?} of container {container} of pod {uid} are none of this machine")]
    Entry { uid: PodUid, container: String, text: String },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    policy_name: String,
    #[serde(default)]
    default_cpu_set: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entries: Option<BTreeMap<String, BTreeMap<String, String>>>,
    /// Of the version that upstream writes with the gate PodLevelResourceManagers.
    #[serde(default, skip_serializing)]
    pod_entries: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    #[serde(default)]
    checksum: u64,
}

/// The checksum 0 says that there is none: upstream's is over a dump of Go's types. A strict reservation with all
/// else given leaves an empty pool, which upstream writes as well and then does not start with: no form would do.
pub fn write(state: &Static) -> String {
    let of_pod = |containers: &BTreeMap<String, CpuSet>| {
        containers.iter().map(|(name, cpus)| (name.clone(), cpus.to_string())).collect()
    };
    let entries: BTreeMap<_, _> = state.entries().iter().map(|(uid, of)| (uid.to_string(), of_pod(of))).collect();
    text(&File {
        policy_name: POLICY.to_owned(),
        default_cpu_set: state.shared().to_string(),
        entries: Some(entries).filter(|entries| !entries.is_empty()),
        pod_entries: None,
        checksum: 0,
    })
}

/// What the policy none writes.
pub fn write_none() -> String {
    text(&File {
        policy_name: "none".to_owned(),
        default_cpu_set: String::new(),
        entries: None,
        pod_entries: None,
        checksum: 0,
    })
}

/// Whether this is the file of a policy that pinned containers.
pub fn is_static(text: &str) -> bool {
    serde_json::from_str::<File>(text).is_ok_and(|file| file.policy_name == POLICY)
}

fn text(file: &File) -> String {
    serde_json::to_string(file).expect("keys are strings")
}

pub fn read(text: &str, ground: &Ground) -> Recorded {
    let mut recorded = Recorded::default();
    let file: File = match serde_json::from_str(text) {
        Ok(file) => file,
        Err(error) => {
            recorded.wrong.push(Wrong::Garbage(error.to_string()));
            return recorded;
        }
    };
    if file.policy_name != POLICY {
        recorded.wrong.push(Wrong::Policy { found: file.policy_name });
        return recorded;
    }
    for uid in file.pod_entries.into_iter().flatten().map(|(uid, _)| PodUid::new(uid)) {
        recorded.wrong.push(Wrong::PodLevel { uid });
    }
    let highest = ground.machine.cpus.iter().map(|cpu| cpu.id).max().unwrap_or(0);
    for (uid, containers) in file.entries.into_iter().flatten() {
        let uid = PodUid::new(uid);
        for (container, text) in containers {
            match CpuSet::parse_up_to(&text, highest) {
                Ok(cpus) if !cpus.is_empty() => {
                    recorded.entries.entry(uid.clone()).or_default().insert(container, cpus);
                }
                _ => recorded.wrong.push(Wrong::Entry { uid: uid.clone(), container, text }),
            }
        }
    }
    let Ok(shared) = CpuSet::parse(&file.default_cpu_set) else {
        recorded.wrong.push(Wrong::Garbage(format!("defaultCpuSet {:?}", file.default_cpu_set)));
        return recorded;
    };
    check_sums(&mut recorded, &shared, ground);
    recorded
}

/// Pool and entries together are what this machine can give, each CPU in one place. Containers of one
/// pod may share: that is how init containers lend.
fn check_sums(recorded: &mut Recorded, shared: &CpuSet, ground: &Ground) {
    // As upstream: a state that nobody has begun yet.
    if shared.is_empty() && recorded.entries.is_empty() {
        return;
    }
    let (mut all, mut twice) = (shared.clone(), CpuSet::default());
    for containers in recorded.entries.values() {
        let of_pod = containers.values().fold(CpuSet::default(), |all, cpus| all.union(cpus));
        twice = twice.union(&all.intersection(&of_pod));
        all = all.union(&of_pod);
    }
    if !twice.is_empty() {
        recorded.wrong.push(Wrong::Overlap { cpus: twice });
    }
    let there = ground.pool();
    let keeps_reserved = ground.reserved.intersection(&there).is_subset(shared);
    if all != there || !keeps_reserved {
        recorded.wrong.push(Wrong::Machine { recorded: all, there });
    }
}
