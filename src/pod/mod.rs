//! Facts about a pod that follow from its spec alone: names, identity, QoS, sums, texts.
//!
//! Everything here is a pure function of API objects. Nothing reads a file, a clock or the
//! network, so that the loops above can be tested with values.

pub mod allocation;
pub mod containers;
pub mod dns;
pub mod env;
pub mod env_file;
pub mod expansion;
pub mod features;
pub mod fields;
mod hash;
pub mod hosts;
pub mod names;
pub mod plugins;
pub mod qos;
pub mod references;
pub mod resources;
pub mod services;
pub mod static_pod;
pub mod sysctls;
#[cfg(test)]
pub mod testing;

pub use containers::field_path;
pub use hash::{container_hash, go_json, static_pod_uid};

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// Name of the directory below `podLogsDir` that holds the logs of a pod.
pub fn log_directory_name(pod: &PodRef) -> String {
    format!("{}_{}_{}", pod.namespace, pod.name, pod.uid)
}

/// The UID at the end of such a name. Neither names nor namespaces have underscores in them.
pub fn uid_of_log_directory(name: &str) -> Option<&str> {
    name.rsplit('_').next().filter(|uid| uid.len() < name.len() && !uid.is_empty())
}

/// The pod's spec. One that is missing, which the API server never lets through, reads as
/// empty.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: LazyLock<PodSpec> = LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

/// The identity of a pod on this node. For a static pod it is made from its content.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid(Arc<str>);

impl PodUid {
    pub fn new(uid: impl AsRef<str>) -> Self {
        PodUid(uid.as_ref().into())
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Namespace, name and UID: all that a log line or a CRI label says about a pod.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    pub uid: PodUid,
}

impl PodRef {
    pub fn of(pod: &Pod) -> Self {
        PodRef {
            namespace: pod.metadata.namespace.clone().unwrap_or_else(|| "default".into()),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default()),
        }
    }

    /// `name_namespace`, the identity that two sources may not both claim.
    pub fn full_name(&self) -> String {
        format!("{}_{}", self.name, self.namespace)
    }

    /// `name_namespace(uid)`, as upstream's texts have it.
    pub fn in_full(&self) -> String {
        format!("{}({})", self.full_name(), self.uid)
    }
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Where a pod's spec came from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Source {
    /// The static-pod directory.
    File,
    /// The static-pod URL.
    Http,
    /// The API server.
    Api,
}

impl Source {
    /// Static pods live and die with their manifest; the API only mirrors them.
    pub fn is_static(self) -> bool {
        !matches!(self, Source::Api)
    }
    /// Where a pod with these annotations came from. Those of the API may lack the one that says so.
    pub fn of_annotations(annotations: &BTreeMap<String, String>) -> Self {
        match annotations.get(static_pod::SOURCE_ANNOTATION).map(String::as_str) {
            Some("file") => Source::File,
            Some("http") => Source::Http,
            _ => Source::Api,
        }
    }

    /// The value of the `kubernetes.io/config.source` annotation.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::File => "file",
            Source::Http => "http",
            Source::Api => "api",
        }
    }
}
