//! What a static pod's mirror remembers of an earlier life of the agent.

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};

use super::phase::Phase;

/// The part of a mirror's status with which the pod goes on, as pods of the API go on with theirs.
/// `is_found` is whether the runtime had anything of the pod when the agent came.
pub fn memory(told: &PodStatus, is_found: bool) -> Option<PodStatus> {
    // Nobody has told it anything.
    told.start_time.as_ref()?;
    let has_ended = told.phase.as_deref().and_then(Phase::parse).is_some_and(Phase::is_terminal);
    if has_ended && !is_found {
        // Of a life that is over: its manifest was put back.
        return None;
    }
    let mut memory = told.clone();
    if has_ended {
        // Whether a static pod has ended is said by its containers and its deadline alone.
        (memory.phase, memory.reason, memory.message) = (None, None, None);
    }
    if !is_found {
        // Nobody knows whether they were lost or taken down; only the counts go on.
        let lists = [&mut memory.init_container_statuses, &mut memory.container_statuses];
        for status in lists.into_iter().flatten().flatten() {
            let (name, restart_count) = (std::mem::take(&mut status.name), status.restart_count);
            *status = ContainerStatus { name, restart_count, ..ContainerStatus::default() };
        }
    }
    Some(memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::yaml;

    fn told(phase: &str) -> PodStatus {
        yaml(&format!(
            "{{phase: {phase}, reason: r, message: m, startTime: 2026-01-01T12:00:00Z,
               conditions: [{{type: Ready, status: 'True', lastTransitionTime: 2026-01-01T12:00:07Z}}],
               containerStatuses: [{{name: c, image: i, imageID: x, ready: true, restartCount: 3, containerID: fake://c,
                                     state: {{running: {{startedAt: 2026-01-01T12:00:05Z}}}}}}]}}"
        ))
    }

    #[test]
    fn a_pod_goes_on_with_all_that_was_told_of_it() {
        assert_eq!(memory(&told("Running"), true), Some(told("Running")));
        let untold: PodStatus = yaml("{phase: Pending}");
        assert_eq!(memory(&untold, true), None);
    }

    #[test]
    fn what_the_runtime_has_nothing_of_is_not_said_to_have_been_lost() {
        let memory = memory(&told("Running"), false).expect("it goes on");
        let bare = ContainerStatus { name: "c".into(), restart_count: 3, ..ContainerStatus::default() };
        assert_eq!(memory.container_statuses, Some(vec![bare]));
        assert_eq!((memory.start_time, memory.conditions), (told("").start_time, told("").conditions));
    }

    #[test]
    fn how_a_pod_ended_is_for_its_containers_to_say() {
        for phase in ["Succeeded", "Failed"] {
            let open = PodStatus { phase: None, reason: None, message: None, ..told(phase) };
            assert_eq!(memory(&told(phase), true), Some(open));
            assert_eq!(memory(&told(phase), false), None, "that life is over");
        }
    }
}
