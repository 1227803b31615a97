//! Whether a pod depends on AppArmor.

use k8s_openapi::api::core::v1::{AppArmorProfile, Pod};

use crate::pod::containers::all_containers;
use crate::pod::spec;

/// Where pods of old named their profile, followed by the container's name.
const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// The pod or a container of it names a profile that confines. That of the pod counts also where
/// all containers have others, as upstream has it.
pub(super) fn is_required(pod: &Pod) -> bool {
    let of_pod = spec(pod).security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    of_pod.is_some_and(confines)
        || all_containers(pod).any(|(_, container)| {
            let own = container.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
            let key = format!("{ANNOTATION}{}", container.name);
            let annotated = pod.metadata.annotations.as_ref().and_then(|all| all.get(&key));
            match (own, annotated) {
                (Some(own), _) => confines(own),
                (None, Some(annotated)) => !matches!(annotated.as_str(), "" | "unconfined"),
                (None, None) => false,
            }
        })
}

fn confines(profile: &AppArmorProfile) -> bool {
    profile.type_ != "Unconfined"
}
