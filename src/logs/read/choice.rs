//! Which instance of a container a reader means: upstream's rules, and its texts where there is none.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

use crate::cri::ContainerId;
use crate::pod;

/// A container instance by the status of its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub id: ContainerId,
    /// As the status has it, with the runtime's name before it.
    pub full_id: String,
}

/// Why there is no log to be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoLog {
    /// For the caller, who knows which pods there are.
    #[error("pod {pod:?} does not exist")]
    NoPod { pod: String },
    #[error("container {container:?} not found in pod {pod:?}")]
    NoContainer { container: String, pod: String },
    #[error("container {container:?} in pod {pod:?} {why}")]
    NotYet { container: String, pod: String, why: String },
    #[error("previous terminated container {container:?} in pod {pod:?} not found")]
    NoPrevious { container: String, pod: String },
}

impl NoLog {
    /// The HTTP status that tells of it.
    pub fn status(&self) -> u16 {
        match self {
            NoLog::NoPod { .. } | NoLog::NoContainer { .. } => 404,
            NoLog::NotYet { .. } | NoLog::NoPrevious { .. } => 400,
        }
    }
}

/// The instance whose log is meant by `container`, or by the one before it.
pub fn choose(pod: &Pod, status: &PodStatus, container: &str, previous: bool) -> Result<Instance, NoLog> {
    let names = || (container.to_owned(), pod.metadata.name.clone().unwrap_or_default());
    let not_yet = |why: &str| {
        let (container, pod) = names();
        Err(NoLog::NotYet { container, pod, why: why.to_owned() })
    };
    if !is_in_spec(pod, container) {
        let (container, pod) = names();
        return Err(NoLog::NoContainer { container, pod });
    }
    let Some(status) = status_of(status, container) else {
        return not_yet("is not available");
    };
    let state = status.state.clone().unwrap_or_default();
    let last = status.last_state.as_ref().and_then(|last| last.terminated.as_ref());
    let last_id = last.and_then(|last| instance(last.container_id.as_deref()));

    if previous {
        let (container, pod) = names();
        return last_id.ok_or(NoLog::NoPrevious { container, pod });
    }
    if state.running.is_some() {
        // A status without an id is none of ours; upstream would look for a container without a name.
        return instance(status.container_id.as_deref()).map_or_else(|| not_yet("is not available"), Ok);
    }
    if let Some(terminated) = &state.terminated {
        // Its id is missing where the next instance could not be started.
        let id = instance(terminated.container_id.as_deref()).or(last_id);
        return id.map_or_else(|| not_yet("is terminated"), Ok);
    }
    if last.is_some() {
        return last_id.map_or_else(|| not_yet("is terminated"), Ok);
    }
    match state.waiting.map(|waiting| waiting.reason.unwrap_or_default()) {
        Some(reason) => not_yet(&format!("is waiting to start: {}", in_words(&reason))),
        None => not_yet("is waiting to start - no logs yet"),
    }
}

fn in_words(reason: &str) -> &str {
    match reason {
        "ErrImagePull" => "image can't be pulled",
        "ImagePullBackOff" => "trying and failing to pull image",
        reason => reason,
    }
}

fn is_in_spec(pod: &Pod, name: &str) -> bool {
    let spec = pod::spec(pod);
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|container| container.name == name)
        || spec.ephemeral_containers.iter().flatten().any(|container| container.name == name)
}

fn status_of<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
        .into_iter()
        .flat_map(|statuses| statuses.iter().flatten())
        .find(|status| status.name == name)
}

fn instance(full_id: Option<&str>) -> Option<Instance> {
    let full_id = full_id.filter(|id| !id.is_empty())?;
    let id = full_id.split_once("://").map_or(full_id, |(_, id)| id);
    Some(Instance { id: ContainerId::new(id), full_id: full_id.to_owned() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod() -> Pod {
        let spec = json!({
            "containers": [{"name": "c"}],
            "initContainers": [{"name": "i"}],
            "ephemeralContainers": [{"name": "e"}],
        });
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("a pod")
    }

    /// What is chosen when `c` has this status, by id or by the text of the refusal.
    fn check(status: Value, previous: bool, expected: Result<&str, &str>) {
        let mut status = status;
        for (key, value) in [("name", json!("c")), ("image", json!("")), ("imageID", json!(""))] {
            status[key] = value;
        }
        status["ready"] = json!(false);
        status["restartCount"] = json!(0);
        let status = serde_json::from_value(json!({"containerStatuses": [status]})).expect("a status");
        let chosen = choose(&pod(), &status, "c", previous);
        let chosen = chosen.map(|instance| instance.id.as_str().to_owned()).map_err(|error| error.to_string());
        assert_eq!(chosen.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn the_one_that_runs_then_the_one_that_ended_then_the_one_before() {
        let last = json!({"terminated": {"containerID": "containerd://old", "exitCode": 1}});
        let state = json!({"running": {}});
        check(json!({"containerID": "containerd://new", "state": state, "lastState": last}), false, Ok("new"));
        let state = json!({"terminated": {"containerID": "containerd://new", "exitCode": 1}});
        check(json!({"state": state, "lastState": last}), false, Ok("new"));
        let state = json!({"terminated": {"exitCode": 1}});
        check(json!({"state": state, "lastState": last}), false, Ok("old"));
        check(json!({"state": state}), false, Err(r#"container "c" in pod "p" is terminated"#));
        let state = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        check(json!({"state": state, "lastState": last}), false, Ok("old"));
        let last = json!({"terminated": {"exitCode": 1}});
        check(json!({"state": state, "lastState": last}), false, Err(r#"container "c" in pod "p" is terminated"#));
    }

    #[test]
    fn the_previous_one_is_the_last_that_ended() {
        let (state, last) = (json!({"running": {}}), json!({"terminated": {"containerID": "x://old", "exitCode": 1}}));
        check(json!({"containerID": "x://new", "state": state, "lastState": last}), true, Ok("old"));
        let none = Err(r#"previous terminated container "c" in pod "p" not found"#);
        check(json!({"containerID": "x://new", "state": state}), true, none);
        check(json!({"state": state, "lastState": {"terminated": {"exitCode": 1}}}), true, none);
    }

    #[test]
    fn what_waits_says_why() {
        for (reason, words) in [
            ("ContainerCreating", "ContainerCreating"),
            ("ErrImagePull", "image can't be pulled"),
            ("ImagePullBackOff", "trying and failing to pull image"),
        ] {
            let expected = format!(r#"container "c" in pod "p" is waiting to start: {words}"#);
            check(json!({"state": {"waiting": {"reason": reason}}}), false, Err(&expected));
        }
        check(json!({}), false, Err(r#"container "c" in pod "p" is waiting to start - no logs yet"#));
    }

    #[test]
    fn a_container_of_the_pod_without_a_status_is_not_available_and_another_is_not_found() {
        let of = |name| choose(&pod(), &PodStatus::default(), name, false).expect_err("there is none");
        for name in ["c", "i", "e"] {
            assert_eq!(of(name).to_string(), format!("container {name:?} in pod \"p\" is not available"));
            assert_eq!(of(name).status(), 400);
        }
        assert_eq!(of("x").to_string(), r#"container "x" not found in pod "p""#);
        assert_eq!(of("x").status(), 404);
    }
}
