//! Whether a container that exited is started again, by policy and rules alone.

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, Pod};

use crate::pod::spec;

/// Whether `container` is started again after it exited with `exit_code`. The container's
/// own rules come first, then its policy, then the pod's; a deleted pod restarts nothing.
///
/// For an init container a zero exit code means done, whatever this says.
pub fn restartable(pod: &Pod, container: &Container, exit_code: i32) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let policy = match &container.restart_policy {
        Some(own) => {
            let rules = container.restart_policy_rules.as_deref().unwrap_or_default();
            if rules.iter().any(|rule| demands_restart(rule, exit_code)) {
                return true;
            }
            own.as_str()
        }
        None => spec(pod).restart_policy.as_deref().unwrap_or("Always"),
    };
    match policy {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

/// Both actions that exist restart the container; one of them its neighbours as well.
fn demands_restart(rule: &ContainerRestartRule, exit_code: i32) -> bool {
    let Some(codes) = &rule.exit_codes else {
        return false;
    };
    let listed = codes.values.as_deref().unwrap_or_default().contains(&exit_code);
    match codes.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    }
}
