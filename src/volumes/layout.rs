//! Where a pod's volumes lie under the root dir. Names are upstream's, so that either agent
//! finds what the other has mounted.

use std::path::{Component, Path, PathBuf};

use crate::pod::PodUid;
use crate::pod::plugins::Plugin;

/// The directory of one pod.
#[derive(Clone, Debug)]
pub struct PodDir(PathBuf);

impl PodDir {
    /// `None` if the UID is no plain name and would lead elsewhere.
    pub fn of(root_dir: &Path, uid: &PodUid) -> Option<Self> {
        is_plain_name(uid.as_str()).then(|| PodDir(root_dir.join("pods").join(uid.as_str())))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn volume(&self, plugin: Plugin, name: &str) -> PathBuf {
        self.0.join("volumes").join(plugin.directory()).join(name)
    }

    /// Present once an emptyDir is fully set up.
    pub fn ready_marker(&self, name: &str) -> PathBuf {
        self.0.join("plugins").join(Plugin::EmptyDir.directory()).join(name).join("ready")
    }

    /// Where the `index`th mount of a container is bound if it has a subPath.
    pub fn sub_path(&self, volume: &str, container: &str, index: usize) -> PathBuf {
        self.0.join("volume-subpaths").join(volume).join(container).join(index.to_string())
    }
}

/// A single path element that names something below. The API server sees to that for its
/// own pods; static pods come as they are.
pub fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(components.next(), Some(Component::Normal(only)) if only == name) && components.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_the_ones_upstream_uses() {
        let pod = PodDir::of(Path::new("/var/lib/kubelet"), &PodUid::new("u-1")).unwrap();
        let pod_dir = "/var/lib/kubelet/pods/u-1";
        assert_eq!(pod.path(), Path::new(pod_dir));
        for plugin in Plugin::ALL {
            assert_eq!(plugin.name().replace('/', "~"), plugin.directory());
        }
        assert_eq!(pod.volume(Plugin::Secret, "s"), Path::new(pod_dir).join("volumes/kubernetes.io~secret/s"));
        assert_eq!(pod.ready_marker("e"), Path::new(pod_dir).join("plugins/kubernetes.io~empty-dir/e/ready"));
        assert_eq!(pod.sub_path("v", "c", 3), Path::new(pod_dir).join("volume-subpaths/v/c/3"));
    }

    #[test]
    fn names_that_lead_elsewhere_are_told() {
        for (name, plain) in [
            ("data", true),
            ("a.b", true),
            ("", false),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("/a", false),
            ("a/", false),
        ] {
            assert_eq!(is_plain_name(name), plain, "{name:?}");
        }
    }
}
