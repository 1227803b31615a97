//! Mirror pods: what the API server is shown of a static pod.
//!
//! Pure functions; `sync/mirror.rs` brings mirrors into being and takes them away.

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::pod::PodRef;
use crate::pod::static_pod::HASH_ANNOTATION;

/// Marks a pod of the API as the mirror of a static pod; its value is the static pod's hash.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

pub fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(MIRROR_ANNOTATION))
}

/// The mirror of a static pod, owned by the node it runs on so that it goes with it.
pub fn mirror_of(pod: &Pod, node: &Node) -> Pod {
    let mut mirror = pod.clone();
    let metadata = &mut mirror.metadata;
    // Both are the API server's to give.
    metadata.uid = None;
    mirror.status = None;
    let annotations = metadata.annotations.get_or_insert_default();
    let hash = annotations.get(HASH_ANNOTATION).cloned().unwrap_or_default();
    annotations.insert(MIRROR_ANNOTATION.into(), hash);
    metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    mirror
}

/// Whether this mirror stands for this static pod as it is now.
pub fn mirror_matches(mirror: &Pod, pod: &Pod) -> bool {
    let annotation = |pod: &Pod, key: &str| pod.metadata.annotations.as_ref()?.get(key).cloned();
    let hash = annotation(pod, HASH_ANNOTATION);
    hash.is_some()
        && annotation(mirror, MIRROR_ANNOTATION) == hash
        && PodRef::of(mirror).full_name() == PodRef::of(pod).full_name()
        && mirror.metadata.deletion_timestamp.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::{pod_yaml, yaml};

    fn static_pod() -> Pod {
        pod_yaml(
            "{metadata: {annotations: {kubernetes.io/config.hash: abc, mine: x}},
              spec: {containers: [{name: c, image: i}]}, status: {phase: Pending}}",
        )
    }

    #[test]
    fn a_mirror_is_the_pod_with_the_marks_of_a_mirror() {
        let node: Node = yaml("{metadata: {name: n1, uid: u1}}");
        let mirror = mirror_of(&static_pod(), &node);
        let expected: Pod = yaml(
            "
            metadata:
              name: web-0
              namespace: shop
              annotations: {kubernetes.io/config.hash: abc, kubernetes.io/config.mirror: abc, mine: x}
              ownerReferences: [{apiVersion: v1, kind: Node, name: n1, uid: u1, controller: true}]
            spec: {containers: [{name: c, image: i}]}
            ",
        );
        assert_eq!(mirror, expected);
        assert!(mirror_matches(&mirror, &static_pod()));
    }

    #[test]
    fn a_mirror_of_something_else_does_not_match() {
        let node: Node = yaml("{metadata: {name: n1, uid: u1}}");
        let mirror = mirror_of(&static_pod(), &node);
        let check = |change: &dyn Fn(&mut Pod)| {
            let mut changed = mirror.clone();
            change(&mut changed);
            assert!(!mirror_matches(&changed, &static_pod()));
        };
        check(&|mirror| mirror.metadata.name = Some("other".into()));
        check(&|mirror| mirror.metadata.annotations = None);
        check(&|mirror| {
            mirror.metadata.annotations.get_or_insert_default().insert(MIRROR_ANNOTATION.into(), "old".into());
        });
        check(&|mirror| mirror.metadata.deletion_timestamp = Some(yaml("2026-01-01T00:00:00Z")));
        let not_static = pod_yaml("spec: {containers: []}");
        assert!(!mirror_matches(&not_static, &not_static));
    }
}
