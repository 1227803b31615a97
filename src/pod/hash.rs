//! Hashes that outlive the agent: in annotations of containers, as UIDs of static pods.

use k8s_openapi::api::core::v1::{Container, Pod};
use serde::Serialize;

/// The hash in a container's `io.kubernetes.container.hash` annotation. A running container
/// whose hash is not that of its spec is replaced, so the value is upstream's to the bit:
/// FNV-1a over Go's debug print of the bytes of a JSON object with image and name.
pub fn container_hash(container: &Container) -> String {
    #[derive(Serialize)]
    struct Hashed<'a> {
        image: &'a str,
        name: &'a str,
    }
    let hashed = Hashed { image: container.image.as_deref().unwrap_or_default(), name: &container.name };
    let json = serde_json::to_string(&hashed).expect("two strings always serialize");
    let numbers: Vec<String> = go_json(&json).bytes().map(|byte| byte.to_string()).collect();
    let printed = format!("([]uint8)[{}]", numbers.join(" "));
    format!("{:x}", fnv1a_32(printed.as_bytes()))
}

/// Go's JSON writer also escapes what could end a script element, and the two characters
/// that JavaScript takes for line ends. For hashes that must be upstream's.
pub fn go_json(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text
}

/// The UID of a static pod whose manifest names none: the same as long as the manifest, its
/// path and the node are, so that a restart of the agent finds its pods again.
///
/// `pod` is as it was written, before any default is filled in: a new default in a new
/// version of the agent must not restart the pods of a node.
pub fn static_pod_uid(pod: &Pod, place: &str) -> String {
    let json = serde_json::to_string(pod).expect("a pod always serializes: its keys are strings");
    format!("{:032x}", fnv1a_128([json.as_bytes(), place.as_bytes()].concat().as_slice()))
}

fn fnv1a_32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn fnv1a_128(bytes: &[u8]) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = (1 << 88) + (1 << 8) + 0x3b;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::yaml;

    /// The expected values were printed by the kubelet's own code, version 1.36.3.
    #[test]
    fn container_hashes_are_the_kubelets() {
        let check = |name: &str, image: &str, expected: &str| {
            let container = Container {
                name: name.into(),
                image: Some(image.into()),
                command: Some(vec!["not hashed".into()]),
                ..Container::default()
            };
            assert_eq!(container_hash(&container), expected, "{name} {image}");
        };
        check("web", "busybox", "470421b4");
        check("a", "", "33f2e30");
        check("web", "registry.k8s.io/pause:3.10", "4f3b3ba7");
        check(
            "web",
            "registry.example.com:5000/a/b@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "fddb3a27",
        );
        check("w", "a<b>&\"é\u{2028}", "3c2db86c");
    }

    #[test]
    fn a_static_pod_uid_depends_on_content_and_place() {
        let pod: Pod = yaml("{metadata: {name: a}, spec: {containers: [{name: c, image: i}]}}");
        let other: Pod = yaml("{metadata: {name: a}, spec: {containers: [{name: c, image: j}]}}");
        let uid = static_pod_uid(&pod, "host:n1file:/m/a.yaml");
        // Pinned: another value would restart every static pod at the upgrade to it.
        assert_eq!(uid, "3a6c6a213dfa1c3bcbfd61722a51da45");
        assert_ne!(uid, static_pod_uid(&other, "host:n1file:/m/a.yaml"));
        assert_ne!(uid, static_pod_uid(&pod, "host:n1file:/m/b.yaml"));
    }
}
