//! Pods for tests, written as the YAML a reader would put in a manifest.

use k8s_openapi::api::core::v1::Pod;
use serde::de::DeserializeOwned;

/// Any API object from indented YAML.
pub fn yaml<T: DeserializeOwned>(text: &str) -> T {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("test YAML does not parse: {error}\n{text}"))
}

/// A pod from indented YAML, with the name, namespace and UID that tests expect unless the
/// text says otherwise.
pub fn pod_yaml(text: &str) -> Pod {
    let mut pod: Pod = yaml(text);
    pod.metadata.name.get_or_insert_with(|| "web-0".into());
    pod.metadata.namespace.get_or_insert_with(|| "shop".into());
    pod.metadata.uid.get_or_insert_with(|| "0b1d2f6c-1111-2222-3333-444455556666".into());
    pod
}
