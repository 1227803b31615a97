//! Who makes a pod's volumes, as directories and metrics name it.

/// The plugin that owns a volume, as directories name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugin {
    EmptyDir,
    Secret,
    ConfigMap,
    DownwardApi,
    Projected,
}

impl Plugin {
    pub const ALL: [Plugin; 5] =
        [Plugin::EmptyDir, Plugin::ConfigMap, Plugin::Secret, Plugin::Projected, Plugin::DownwardApi];

    pub fn directory(self) -> &'static str {
        match self {
            Plugin::EmptyDir => "kubernetes.io~empty-dir",
            Plugin::Secret => "kubernetes.io~secret",
            Plugin::ConfigMap => "kubernetes.io~configmap",
            Plugin::DownwardApi => "kubernetes.io~downward-api",
            Plugin::Projected => "kubernetes.io~projected",
        }
    }

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Plugin::EmptyDir => "kubernetes.io/empty-dir",
            Plugin::Secret => "kubernetes.io/secret",
            Plugin::ConfigMap => "kubernetes.io/configmap",
            Plugin::DownwardApi => "kubernetes.io/downward-api",
            Plugin::Projected => "kubernetes.io/projected",
        }
    }
}
