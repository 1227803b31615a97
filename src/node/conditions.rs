//! The node's conditions, and the events that tell of their changes.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::NodeCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What the node runs short of.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Pressures {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

/// Everything the conditions follow from.
pub(super) struct ConditionInputs<'a> {
    pub pressures: Pressures,
    /// What keeps the node from being Ready.
    pub problems: &'a [String],
    pub earlier: &'a [NodeCondition],
    pub now: Timestamp,
}

/// A condition with the words for both its states.
struct Words {
    kind: &'static str,
    clear: (&'static str, &'static str),
    pressed: (&'static str, &'static str),
    events: [&'static str; 2],
}

const PRESSURES: [Words; 3] = [
    Words {
        kind: "MemoryPressure",
        clear: ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        pressed: ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
        events: ["NodeHasSufficientMemory", "NodeHasInsufficientMemory"],
    },
    Words {
        kind: "DiskPressure",
        clear: ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        pressed: ("KubeletHasDiskPressure", "kubelet has disk pressure"),
        events: ["NodeHasNoDiskPressure", "NodeHasDiskPressure"],
    },
    Words {
        kind: "PIDPressure",
        clear: ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        pressed: ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
        events: ["NodeHasSufficientPID", "NodeHasInsufficientPID"],
    },
];

/// The four conditions of ours, in upstream's order.
pub(super) fn conditions(inputs: &ConditionInputs<'_>) -> Vec<NodeCondition> {
    let pressed = [inputs.pressures.memory, inputs.pressures.disk, inputs.pressures.pids];
    let mut list: Vec<NodeCondition> = PRESSURES
        .iter()
        .zip(pressed)
        .map(|(words, pressed)| {
            let (reason, message) = if pressed { words.pressed } else { words.clear };
            stamped(inputs, words.kind, pressed, reason, message.to_owned())
        })
        .collect();
    let (reason, message) = match inputs.problems {
        [] => ("KubeletReady", "kubelet is posting ready status".to_owned()),
        [problem] => ("KubeletNotReady", problem.clone()),
        problems => ("KubeletNotReady", format!("[{}]", problems.join(", "))),
    };
    list.push(stamped(inputs, "Ready", inputs.problems.is_empty(), reason, message));
    list
}

fn stamped(inputs: &ConditionInputs<'_>, kind: &str, holds: bool, reason: &str, message: String) -> NodeCondition {
    let status = if holds { "True" } else { "False" };
    let now = Time(Timestamp::from_second(inputs.now.as_second()).unwrap_or(inputs.now));
    let same = inputs.earlier.iter().find(|earlier| earlier.type_ == kind && earlier.status == status);
    NodeCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_heartbeat_time: Some(now.clone()),
        last_transition_time: same.and_then(|earlier| earlier.last_transition_time.clone()).or(Some(now)),
    }
}

pub(super) fn is_ready(conditions: &[NodeCondition]) -> bool {
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Reasons of the events that the step from `before` to `after` gives rise to. A Ready
/// condition that appears for the first time is no event; the others are.
pub(super) fn transitions(before: &[NodeCondition], after: &[NodeCondition]) -> Vec<&'static str> {
    after
        .iter()
        .filter_map(|condition| {
            let earlier = before.iter().find(|earlier| earlier.type_ == condition.type_);
            let holds = condition.status == "True";
            if earlier.is_some_and(|earlier| earlier.status == condition.status) {
                return None;
            }
            if condition.type_ == "Ready" {
                return earlier.map(|_| if holds { "NodeReady" } else { "NodeNotReady" });
            }
            let words = PRESSURES.iter().find(|words| words.kind == condition.type_)?;
            Some(words.events[usize::from(holds)])
        })
        .collect()
}
