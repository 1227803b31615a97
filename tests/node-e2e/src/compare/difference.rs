//! Where two JSON values differ, and which of the differences are meant to be.

use std::collections::BTreeSet;

use serde_json::Value;

/// One place in which the agents differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Field names with dots, `[n]` for what is in a list.
    pub path: String,
    /// As Ferrolet has it; None where it has nothing.
    pub ferrolet: Option<Value>,
    pub kubelet: Option<Value>,
}

/// A difference that is wanted, or that no agent can do anything about.
struct Known {
    /// What the path has in it.
    path: &'static str,
    holds: fn(&Difference, &Both) -> bool,
    /// Told at the end of a run.
    why: &'static str,
}

/// All that was seen of the pod.
struct Both<'a> {
    ferrolet: &'a Value,
    kubelet: &'a Value,
}

impl Both<'_> {
    /// Whether the pod waits for a volume that does not come.
    fn volumes_are_missing(&self) -> bool {
        let fails = |side: &Value| {
            side["events"].as_object().is_some_and(|events| events.keys().any(|event| event.contains(" FailedMount ")))
        };
        fails(self.ferrolet) && fails(self.kubelet)
    }
}

const KNOWN: &[Known] = &[
    Known {
        path: "annotations.ferrolet.dev/",
        holds: |one, _| one.kubelet.is_none(),
        why: "the crash back-off outlives the agent in an annotation of the container",
    },
    Known {
        path: "annotations",
        holds: |one, _| one.ferrolet.is_none() && one.kubelet.as_ref().is_some_and(|it| own_notes(&one.path, it)),
        why: "upstream notes on the pod when it has seen it, anew with each start, and shows the note to runtime and pod",
    },
    Known {
        path: "selinux_relabel",
        holds: |one, _| one.kubelet.is_none(),
        why: "whether the node has SELinux is for the runtime to know, which ignores the wish where there is none",
    },
    Known {
        path: "made.(sandbox)",
        holds: |one, both| one.kubelet.is_none() && both.volumes_are_missing(),
        why: WHILE_VOLUMES,
    },
    Known {
        path: "status.conditions.PodReadyToStartContainers.status",
        holds: |one, both| one.kubelet == Some("False".into()) && both.volumes_are_missing(),
        why: WHILE_VOLUMES,
    },
    Known {
        path: "status.podIP",
        holds: |one, both| one.kubelet.is_none() && both.volumes_are_missing(),
        why: WHILE_VOLUMES,
    },
    Known {
        path: "llocatedResources",
        holds: |one, _| one.path.contains("Statuses.") && one.kubelet.is_none(),
        why: BEFORE_CONTAINERS,
    },
    Known {
        path: ".resources",
        holds: |one, _| one.path.contains("Statuses.") && one.kubelet.is_none(),
        why: BEFORE_CONTAINERS,
    },
    Known {
        path: "status.resources",
        holds: |one, _| one.kubelet.as_ref().is_none_or(|it| it.to_string().contains(UNLIMITED)),
        why: "upstream reads a running pod's resources back from its cgroup, where little and unlimited are something else",
    },
    Known {
        path: "recursiveReadOnly",
        holds: |one, _| one.ferrolet == Some("Disabled".into()),
        why: "whether a mount that is recursively read-only if possible has become so is told once there is a container",
    },
    Known {
        path: "failed to connect service",
        holds: |one, _| one.path.starts_with("events.Warning Unhealthy"),
        why: "a refused connection of a gRPC probe is told at once and not tried again until the time is up",
    },
    Known {
        path: "events.Warning FailedMount",
        holds: |one, _| one.path.contains("no relationship found between node"),
        why: "the API server takes a moment to know that the pod is on the node; who asks for a token at once is told",
    },
];

const BEFORE_CONTAINERS: &str = "what is allocated is told before there is a container, and so outlives the agent";
/// How upstream tells of a cgroup of version 1 without a limit of memory.
const UNLIMITED: &str = "9007199254740988Ki";
const WHILE_VOLUMES: &str = "the sandbox is made while the volumes are";

/// What upstream's sources write among the annotations.
fn own_notes(path: &str, value: &Value) -> bool {
    let is_note =
        |name: &str| name.ends_with("kubernetes.io/config.seen") || name.ends_with("kubernetes.io/config.source");
    match value {
        Value::Object(fields) => fields.keys().all(|name| is_note(name)),
        _ => is_note(path),
    }
}

/// Where the two differ, with the reason if it is a known one.
pub fn all(ferrolet: &Value, kubelet: &Value) -> Vec<(Difference, Option<&'static str>)> {
    let mut found = Vec::new();
    compare("", Some(ferrolet), Some(kubelet), &mut found);
    let both = Both { ferrolet, kubelet };
    let why = |one: &Difference| {
        let known = KNOWN.iter().find(|known| one.path.contains(known.path) && (known.holds)(one, &both));
        known.map(|known| known.why)
    };
    found.into_iter().map(|one| (why(&one), one)).map(|(why, one)| (one, why)).collect()
}

fn compare(path: &str, ferrolet: Option<&Value>, kubelet: Option<&Value>, found: &mut Vec<Difference>) {
    match (ferrolet, kubelet) {
        (Some(Value::Object(left)), Some(Value::Object(right))) => {
            for name in left.keys().chain(right.keys()).collect::<BTreeSet<_>>() {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                compare(&path, left.get(name), right.get(name), found);
            }
        }
        (Some(Value::Array(left)), Some(Value::Array(right))) if left.len() == right.len() => {
            for (index, (left, right)) in left.iter().zip(right).enumerate() {
                compare(&format!("{path}[{index}]"), Some(left), Some(right), found);
            }
        }
        (left, right) if left == right => {}
        (Some(Value::Array(left)), Some(Value::Array(right))) => {
            // Of lists of different lengths only what the other has not is worth telling.
            let only = |these: &[Value], those: &[Value]| -> Value {
                these.iter().filter(|one| !those.contains(one)).cloned().collect()
            };
            let (ferrolet, kubelet) = (Some(only(left, right)), Some(only(right, left)));
            found.push(Difference { path: path.to_owned(), ferrolet, kubelet });
        }
        (left, right) => {
            found.push(Difference { path: path.to_owned(), ferrolet: left.cloned(), kubelet: right.cloned() });
        }
    }
}

impl Difference {
    /// The path without what tells one pod from another: numbers, and what follows an event's reason.
    pub fn kind(&self) -> String {
        let path = self.path.split_once(": ").map_or(self.path.as_str(), |(event, _)| event);
        path.chars().filter(|letter| !letter.is_ascii_digit()).collect()
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = |value: &Option<Value>| value.as_ref().map_or_else(|| "–".to_owned(), Value::to_string);
        write!(f, "{}\n    ferrolet {}\n    kubelet  {}", self.path, side(&self.ferrolet), side(&self.kubelet))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_are_told_by_their_path() {
        let (left, right) =
            (json!({ "a": [1, { "b": 2 }], "c": [1, 2] }), json!({ "a": [1, { "b": 3 }], "c": [2], "d": 1 }));
        let told: Vec<String> = all(&left, &right).into_iter().map(|(one, _)| one.path).collect();
        assert_eq!(told, ["a[1].b", "c", "d"]);
    }

    #[test]
    fn what_is_known_has_its_reason() {
        let seen = |annotations: Value| json!({ "made": { "(sandbox)": { "asked": { "annotations": annotations } } } });
        let why = |ferrolet: Value, kubelet: Value| all(&seen(ferrolet), &seen(kubelet))[0].1;
        assert!(why(json!({}), json!({ "kubernetes.io/config.seen": "now" })).is_some());
        assert_eq!(why(json!({}), json!({ "example.com/note": "a" })), None);
        assert_eq!(why(json!({ "kubernetes.io/config.seen": "now" }), json!({})), None);
    }
}
