//! Where two JSON values differ, and which of the differences are meant to be.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Stage;

/// One place in which the agents differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// When in the life of the pod.
    pub stage: Stage,
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
    holds: fn(&Difference, &Both<'_>) -> bool,
    /// Told at the end of a run.
    why: &'static str,
}

/// All that was seen of the pod.
struct Both<'a> {
    stage: Stage,
    ferrolet: &'a Value,
    kubelet: &'a Value,
}

impl Both<'_> {
    /// Whether upstream has told any container of an image that it mounts.
    fn images_are_mounted(&self) -> bool {
        let made = self.kubelet["made"].as_object().into_iter().flat_map(|made| made.values());
        let mounts = made.filter_map(|one| one["asked"]["mounts"].as_object());
        mounts.flat_map(|mounts| mounts.values()).any(|mount| mount["image"].is_object())
    }

    fn is_made(&self) -> bool {
        self.ferrolet["made"].as_object().is_some_and(|made| !made.is_empty())
    }

    /// Whether upstream says of a container that it was restarted with all.
    fn restarts_all(&self) -> bool {
        self.kubelet["status"].to_string().contains("RestartingAllContainers")
    }

    fn has_ended(&self) -> bool {
        [self.ferrolet, self.kubelet].iter().all(|side| side["status"]["phase"].as_str().is_some_and(is_over))
    }

    /// Whether upstream has lost the end of the container that a path leads to, and Ferrolet has not.
    fn end_is_lost(&self, path: &str) -> bool {
        let Some((container, _)) = path.split_once(".state.terminated.") else { return false };
        let place = format!("/{}/state/terminated/reason", container.replace('.', "/"));
        let [ferrolet, kubelet] =
            [self.ferrolet, self.kubelet].map(|side| side.pointer(&place).and_then(Value::as_str));
        kubelet == Some(LOST) && ferrolet.is_some_and(|reason| reason != LOST)
    }

    /// Whether the container that an event is about has ended at least once.
    fn comes_and_goes(&self, path: &str) -> bool {
        let name = path.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(name, _)| name);
        let status = |list: &str| self.ferrolet["status"][list][name?].as_object();
        let has_ended = |status: &serde_json::Map<String, Value>| {
            status.get("state").is_some_and(|state| state["running"].is_null())
                || status.get("lastState").is_some_and(|last| last["terminated"].is_object())
        };
        ["initContainerStatuses", "containerStatuses"].into_iter().filter_map(status).any(has_ended)
    }

    fn is_running(&self) -> bool {
        [self.ferrolet, self.kubelet].iter().all(|side| side["status"]["phase"] == "Running")
    }

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
        holds: |one, _| one.kubelet.as_ref().is_some_and(|it| it.to_string().contains(UNLIMITED)),
        why: "upstream reads a running pod's resources back from its cgroup, and does not know no limit of version 1",
    },
    Known {
        path: "status.resources",
        holds: |_, both| both.has_ended(),
        why: "what a pod took that has ended is told by its spec; upstream tells it or not, by when it looked last",
    },
    Known {
        path: "bservedGeneration",
        holds: |_, both| both.has_ended(),
        why: "whether an agent looks once more at a pod that has ended is chance",
    },
    Known {
        path: "status.",
        holds: |_, both| both.stage == Stage::Changed && both.volumes_are_missing(),
        why: "upstream looks at changes only after the volumes have come",
    },
    Known {
        path: "status.conditions.",
        holds: |one, both| {
            both.stage == Stage::Deleted
                && match &one.ferrolet {
                    Some(it) => it == "PodFailed" && one.kubelet.as_ref().is_none_or(|it| it == "ContainersNotReady"),
                    None => one.path.ends_with(".message"),
                }
        },
        why: "a deleted pod's conditions say that it failed; upstream settles that only after them",
    },
    Known {
        path: "status.podIP",
        holds: |one, both| both.stage == Stage::Deleted && one.kubelet.is_none(),
        why: "addresses stay told; upstream forgets them if the sandbox is gone when it looks last",
    },
    Known {
        path: ".lastState.terminated",
        holds: |one, both| both.has_ended() && one.ferrolet.is_none(),
        why: "how a container ended that waited for its restart upstream tells twice, also as what was before",
    },
    Known {
        path: ".state.terminated.",
        holds: |one, both| both.has_ended() && both.end_is_lost(&one.path),
        why: "a container that waited for its restart when its pod ended shows how it ended; upstream may have lost that",
    },
    Known {
        path: ".state.waiting",
        holds: |_, both| both.stage == Stage::Deleted,
        why: "upstream forgets why a container could not be started once its pod ends",
    },
    Known {
        path: " not registered",
        holds: |one, both| both.stage == Stage::Deleted && one.ferrolet.is_none(),
        why: "upstream's volumes may look for what a pod mentions after it has gone",
    },
    Known {
        path: "AllContainersRestarting.observedGeneration",
        holds: |one, _| one.kubelet.is_none(),
        why: "every condition tells the generation it is of, but upstream leaves it out here",
    },
    Known {
        path: ".lastState.",
        holds: |_, both| both.restarts_all(),
        why: "who restarted all containers shows its exit code; upstream makes one up and hides that",
    },
    Known {
        path: "status.resources",
        holds: |one, both| one.ferrolet.is_none() && both.is_running(),
        why: "upstream tells what the spec says until it looks at the running pod again, a minute later",
    },
    Known {
        path: "",
        holds: |_, both| {
            let reason = [both.ferrolet, both.kubelet].map(|side| side["status"]["reason"].as_str());
            reason == [Some("DeadlineExceeded"), None] && both.volumes_are_missing()
        },
        why: "a pod that waits for its volumes ends at its deadline; upstream looks at that only after they have come",
    },
    Known {
        path: "status.",
        holds: |one, both| {
            let reason = [both.ferrolet, both.kubelet].map(|side| side["status"]["reason"].as_str());
            let is_refused = both.ferrolet["status"]["conditions"].is_null() && !both.is_made();
            is_refused && reason[0] == reason[1] && one.ferrolet.as_ref().is_none_or(Value::is_null)
        },
        why: "of a pod that was refused there is nothing to tell; upstream tells of its containers once it looks again",
    },
    Known {
        path: "recursiveReadOnly",
        holds: |one, _| one.ferrolet == Some("Disabled".into()),
        why: "whether a mount that is recursively read-only if possible has become so is told once there is a container",
    },
    Known {
        path: "",
        holds: |one, both| {
            let is_of_pod = one.path.starts_with("events.Normal Pulled : ")
                || one.path.starts_with("events.Warning ErrImageNeverPull : ");
            is_of_pod && one.ferrolet.is_none() && !both.images_are_mounted()
        },
        why: "upstream also pulls images as volumes that no container mounts",
    },
    Known {
        path: ".image_sub_path",
        holds: |one, _| one.ferrolet.is_none(),
        why: "beside a volume that is an image upstream tells parts of the others as if they were images too",
    },
    Known {
        path: ".writing",
        holds: |one, _| one.kubelet.as_ref().is_some_and(|it| it.to_string().contains("nonexistent directory")),
        why: "with its note on the pod upstream rewrites a file of annotations, and a part of that volume is gone",
    },
    Known {
        path: "errored and resulted in unknown state: ",
        holds: |one, _| THERE_NO_MORE.iter().any(|words| one.path.contains(words)),
        why: "whether a probe meets the end of its container is chance",
    },
    Known {
        path: "errored and resulted in unknown state: ",
        holds: |one, _| one.path.contains("couldn't find port") || one.path.contains("strconv.Atoi"),
        why: "a port that nobody named is told as such; upstream tells that it is no number",
    },
    Known {
        path: "events.Warning Unhealthy",
        holds: |one, both| one.kubelet.is_none() && both.comes_and_goes(&one.path),
        why: "upstream probes by a beat that the pod began with, and may not ask at all who lives for less than a period",
    },
    Known {
        path: "failed to connect service",
        holds: |one, _| one.path.starts_with("events.Warning Unhealthy"),
        why: "a refused connection of a gRPC probe is told at once and not tried again until the time is up",
    },
    Known {
        path: "events.Warning FailedMount",
        holds: |one, _| {
            one.path.contains("no relationship found between node")
                || one.path.contains("request token of service account")
        },
        why: "the API server takes a moment to know that the pod is on the node; who asks for a token at once is told",
    },
];

/// Upstream's reason for an end that it makes up.
const LOST: &str = "ContainerStatusUnknown";
const BEFORE_CONTAINERS: &str = "what is allocated is told before there is a container, and so outlives the agent";
/// What the runtime says of a command in a container that has just ended.
const THERE_NO_MORE: &[&str] = &[
    "CONTAINER_EXITED",
    "task <id> not found",
    "no running task found",
    "ttrpc: closed",
    "in a deleted state",
    "in a stopped state",
];
/// How upstream tells of a cgroup of version 1 without a limit of memory.
const UNLIMITED: &str = "9007199254740988Ki";
const WHILE_VOLUMES: &str = "the sandbox is made while the volumes are";

fn is_over(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

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
pub fn all(stage: Stage, ferrolet: &Value, kubelet: &Value) -> Vec<(Difference, Option<&'static str>)> {
    let mut found = Vec::new();
    compare("", Some(ferrolet), Some(kubelet), &mut found);
    found.iter_mut().for_each(|one| one.stage = stage);
    let both = Both { stage, ferrolet, kubelet };
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
            found.push(Difference { stage: Stage::Made, path: path.to_owned(), ferrolet, kubelet });
        }
        (left, right) => {
            found.push(Difference {
                stage: Stage::Made,
                path: path.to_owned(),
                ferrolet: left.cloned(),
                kubelet: right.cloned(),
            });
        }
    }
}

impl Difference {
    fn stage(&self) -> &'static str {
        match self.stage {
            Stage::Made => "",
            Stage::Changed => "(changed) ",
            Stage::Deleted => "(deleted) ",
        }
    }

    /// The path without what tells one pod from another: numbers, and what follows an event's reason.
    pub fn kind(&self) -> String {
        let path = self.path.split_once(": ").map_or(self.path.as_str(), |(event, _)| event);
        let path: String = path.chars().filter(|letter| !letter.is_ascii_digit()).collect();
        format!("{}{path}", self.stage())
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = |value: &Option<Value>| value.as_ref().map_or_else(|| "–".to_owned(), Value::to_string);
        let stage = self.stage();
        write!(f, "{stage}{}\n    ferrolet {}\n    kubelet  {}", self.path, side(&self.ferrolet), side(&self.kubelet))
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
        let told: Vec<String> = all(Stage::Made, &left, &right).into_iter().map(|(one, _)| one.path).collect();
        assert_eq!(told, ["a[1].b", "c", "d"]);
    }

    #[test]
    fn resources_of_a_running_pod_may_be_told_late_but_not_never() {
        let why = |ferrolet: Value, kubelet: Value| {
            let seen = |it: Value| json!({ "status": { "phase": "Running", "resources": it } });
            all(Stage::Made, &seen(ferrolet), &seen(kubelet))[0].1
        };
        assert!(why(json!({}), json!({ "cpu": "1m" })).is_some());
        assert!(why(json!({}), json!({ "memory": UNLIMITED })).is_some());
        assert_eq!(why(json!({ "cpu": "1m" }), json!({})), None);
        assert_eq!(why(json!({ "cpu": "1m" }), json!({ "cpu": "2m" })), None);
    }

    #[test]
    fn an_end_may_be_lost_by_upstream_and_by_nobody_else() {
        let why = |phase: &str, ferrolet: Value, kubelet: Value| {
            let seen = |end: Value| json!({ "status": { "phase": phase, "containerStatuses": { "c-0": { "state": { "terminated": end } } } } });
            let all = all(Stage::Changed, &seen(ferrolet), &seen(kubelet));
            all.into_iter().all(|(_, why)| why.is_some())
        };
        let (own, lost) = (json!({ "exitCode": 5, "reason": "Error" }), json!({ "exitCode": 137, "reason": LOST }));
        assert!(why("Failed", own.clone(), lost.clone()));
        assert!(!why("Running", own.clone(), lost.clone()));
        assert!(!why("Failed", lost, own.clone()));
        assert!(!why("Failed", own, json!({ "exitCode": 137, "reason": "Error" })));
    }

    #[test]
    fn a_probe_may_miss_what_comes_and_goes_and_nothing_else() {
        let why = |list: &str, container: Value, who_tells: &str| {
            let told = json!({ "Warning Unhealthy spec.containers{c-0}: Liveness probe failed: refused": "told" });
            let side = |who: &str| {
                let events = if who == who_tells { told.clone() } else { json!({}) };
                json!({ "status": { list: { "c-0": container } }, "events": events })
            };
            let all = all(Stage::Made, &side("ferrolet"), &side("kubelet"));
            all.iter().all(|(_, why)| why.is_some())
        };
        let is = |state: &str| json!({ "state": { state: {} } });
        for list in ["initContainerStatuses", "containerStatuses"] {
            assert!(why(list, is("terminated"), "ferrolet") && why(list, is("waiting"), "ferrolet"));
            assert!(!why(list, is("running"), "ferrolet"));
            let again = json!({ "state": { "running": {} }, "lastState": { "terminated": {} } });
            assert!(why(list, again, "ferrolet"));
            assert!(!why(list, is("terminated"), "kubelet"));
        }
    }

    #[test]
    fn what_is_known_has_its_reason() {
        let seen = |annotations: Value| json!({ "made": { "(sandbox)": { "asked": { "annotations": annotations } } } });
        let why = |ferrolet: Value, kubelet: Value| all(Stage::Made, &seen(ferrolet), &seen(kubelet))[0].1;
        assert!(why(json!({}), json!({ "kubernetes.io/config.seen": "now" })).is_some());
        assert_eq!(why(json!({}), json!({ "example.com/note": "a" })), None);
        assert_eq!(why(json!({ "kubernetes.io/config.seen": "now" }), json!({})), None);
    }
}
