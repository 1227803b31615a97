//! The manifests of one static source as last seen, and the pods they describe. Pure: the
//! source reads, this remembers.
//!
//! Always true: one broken manifest never keeps another from being read, and a manifest that
//! became unreadable keeps the pod it last described; only its absence removes the pod.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tracing::{debug, error, info, warn};

use crate::pod::static_pod::{Manifest, Origin, SEEN_ANNOTATION, decode};
use crate::pod::{PodRef, Source};

/// What is larger is no manifest.
pub(super) const MANIFEST_BYTES_MAX: u64 = 10 << 20;

/// By path what was found there: a manifest, or why there is none. One of many in a document
/// has a path of its own too.
pub(super) type Found = BTreeMap<PathBuf, Result<Vec<u8>, String>>;

/// Something that a look at the source brought to light. Each is told once.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Note {
    Read {
        path: PathBuf,
        pod: String,
    },
    Warning {
        path: PathBuf,
        warning: String,
    },
    Broken {
        path: PathBuf,
        error: String,
        keeps: Option<String>,
    },
    /// Another manifest came first with the same name or UID.
    Taken {
        path: PathBuf,
        what: String,
        by: PathBuf,
    },
    Gone {
        path: PathBuf,
    },
}

/// Where manifests come from.
pub(super) enum Place {
    /// Each has a file of its own.
    Files,
    Url(String),
}

/// What is to be thought of manifests that a look did not find.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    AreGone,
    /// Something was there that may be any of them.
    MayBeThere,
}

/// All manifests of a source as last seen.
pub(super) struct Manifests {
    place: Place,
    node_name: String,
    may_need_api: bool,
    known: BTreeMap<PathBuf, Known>,
}

struct Known {
    /// Of the content, or of why it could not be read.
    fingerprint: u64,
    /// The last pod that the manifest described. It outlives a broken edit.
    pod: Option<Arc<Pod>>,
    /// The manifest that describes a pod of the same name or UID and comes before this one.
    taken_by: Option<PathBuf>,
    /// What is taken is its name.
    name_is_taken: bool,
}

impl Manifests {
    pub(super) fn new(place: Place, node_name: &str, may_need_api: bool) -> Self {
        Manifests { place, node_name: node_name.to_owned(), may_need_api, known: BTreeMap::new() }
    }

    /// Takes up what a look found.
    pub(super) fn update(&mut self, found: Found, missing: Missing, seen: Timestamp) -> Vec<Note> {
        let mut notes = Vec::new();
        self.known.retain(|path, _| {
            let stays = found.contains_key(path) || missing == Missing::MayBeThere;
            if !stays {
                notes.push(Note::Gone { path: path.clone() });
            }
            stays
        });
        for (path, content) in found {
            let fingerprint = fingerprint(&content);
            let before = self.known.get(&path);
            if before.is_some_and(|before| before.fingerprint == fingerprint) {
                continue;
            }
            let pod_before = before.and_then(|before| before.pod.clone());
            let pod = self.read(&path, content, seen, pod_before, &mut notes);
            self.known.insert(path, Known { fingerprint, pod, taken_by: None, name_is_taken: false });
        }
        self.settle_conflicts(&mut notes);
        notes
    }

    /// The pods of all manifests, in the order of their paths. A pod whose name is taken is among
    /// them, after the one that has it: whoever takes pods in tells its owner of that.
    pub(super) fn pods(&self) -> Vec<Arc<Pod>> {
        let told = self.known.values().filter(|known| known.taken_by.is_none() || known.name_is_taken);
        told.filter_map(|known| known.pod.clone()).collect()
    }

    fn read(
        &self,
        path: &Path,
        content: Result<Vec<u8>, String>,
        seen: Timestamp,
        before: Option<Arc<Pod>>,
        notes: &mut Vec<Note>,
    ) -> Option<Arc<Pod>> {
        let (source, place) = match &self.place {
            Place::Files => (Source::File, path.to_string_lossy()),
            Place::Url(url) => (Source::Http, url.into()),
        };
        let may_need_api = self.may_need_api;
        let origin = Origin { source, place: &place, node_name: &self.node_name, may_need_api, seen };
        let path = path.to_owned();
        // A bug of the parser that one manifest meets must not stop the others.
        let decode = |bytes: Vec<u8>| match catch_unwind(|| decode(&bytes, &origin)) {
            Ok(decoded) => decoded.map_err(|error| error.to_string()),
            Err(_) => Err("the parser failed on it".to_owned()),
        };
        let decoded = content.and_then(decode);
        match decoded {
            Ok(Manifest { pod, warnings }) => {
                notes.push(Note::Read { path: path.clone(), pod: PodRef::of(&pod).to_string() });
                notes.extend(warnings.into_iter().map(|warning| Note::Warning { path: path.clone(), warning }));
                // An edit that says the same keeps the pod as it is.
                match before {
                    Some(before) if same_but_for_seen(&before, &pod) => Some(before),
                    _ => Some(Arc::new(pod)),
                }
            }
            Err(error) => {
                let keeps = before.as_ref().map(|pod| PodRef::of(pod).to_string());
                notes.push(Note::Broken { path, error, keeps });
                before
            }
        }
    }

    /// The first in the order of paths speaks for a name and for a UID.
    fn settle_conflicts(&mut self, notes: &mut Vec<Note>) {
        let mut taken: BTreeMap<String, PathBuf> = BTreeMap::new();
        for (path, known) in &mut self.known {
            let Some(pod) = &known.pod else { continue };
            let reference = PodRef::of(pod);
            let name = format!("pod {reference}");
            known.name_is_taken = taken.contains_key(&name);
            let claims = [name, format!("uid {}", reference.uid)];
            let lost = claims.iter().find_map(|claim| Some((claim, taken.get(claim)?.clone())));
            match lost {
                Some((what, by)) => {
                    if known.taken_by.as_ref() != Some(&by) {
                        notes.push(Note::Taken { path: path.clone(), what: what.clone(), by: by.clone() });
                        known.taken_by = Some(by);
                    }
                }
                None => {
                    known.taken_by = None;
                    taken.extend(claims.into_iter().map(|claim| (claim, path.clone())));
                }
            }
        }
    }
}

/// Writes a note into the log.
pub(super) fn tell(note: &Note) {
    match note {
        Note::Read { path, pod } => debug!(manifest = %path.display(), pod, "manifest read"),
        Note::Warning { path, warning } => {
            warn!(manifest = %path.display(), warning, "manifest read, but not all of it")
        }
        Note::Broken { path, error, keeps: Some(pod) } => {
            error!(manifest = %path.display(), error, pod, "manifest is broken, the pod it described before stays");
        }
        Note::Broken { path, error, keeps: None } => {
            error!(manifest = %path.display(), error, "manifest is broken, it describes no pod");
        }
        Note::Taken { path, what, by } => {
            error!(manifest = %path.display(), what, by = %by.display(), "manifest is ignored, another one describes this pod");
        }
        Note::Gone { path } => info!(manifest = %path.display(), "manifest is gone"),
    }
}

fn fingerprint(content: &Result<Vec<u8>, String>) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

fn same_but_for_seen(before: &Pod, now: &Pod) -> bool {
    let seen = before.metadata.annotations.as_ref().and_then(|annotations| annotations.get(SEEN_ANNOTATION));
    let mut now = now.clone();
    if let (Some(annotations), Some(seen)) = (&mut now.metadata.annotations, seen) {
        annotations.insert(SEEN_ANNOTATION.into(), seen.clone());
    }
    *before == now
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::testing::manifest;

    /// Files in memory, as a scan would find them.
    struct Directory {
        manifests: Manifests,
        found: Found,
    }

    impl Directory {
        fn new() -> Self {
            Directory { manifests: Manifests::new(Place::Files, "n1", false), found: Found::new() }
        }

        fn write(&mut self, file: &str, content: &str) -> Vec<String> {
            self.found.insert(file.into(), Ok(content.as_bytes().to_vec()));
            self.look()
        }

        fn look(&mut self) -> Vec<String> {
            let found = self.found.clone();
            let notes = self.manifests.update(
                found,
                Missing::AreGone,
                "2026-01-01T00:00:00Z".parse().expect("a test time parses"),
            );
            notes.iter().map(text).collect()
        }

        /// Name and image of each pod.
        fn pods(&self) -> String {
            let pods = self.manifests.pods();
            let image = |pod: &Pod| pod.spec.clone().expect("a static pod has a spec").containers[0].image.clone();
            let one = |pod: &Arc<Pod>| format!("{}={}", PodRef::of(pod).name, image(pod).unwrap_or_default());
            pods.iter().map(one).collect::<Vec<_>>().join(" ")
        }
    }

    fn text(note: &Note) -> String {
        match note {
            Note::Read { path, pod } => format!("{}: {pod}", path.display()),
            Note::Warning { path, warning } => format!("{}: {warning}", path.display()),
            Note::Broken { path, error, keeps: Some(pod) } => format!("{} keeps {pod}: {error}", path.display()),
            Note::Broken { path, error, keeps: None } => format!("{}: {error}", path.display()),
            Note::Taken { path, what, by } => {
                format!("{}: {what} is of {}", path.display(), by.display())
            }
            Note::Gone { path } => format!("{} is gone", path.display()),
        }
    }

    #[test]
    fn each_file_is_a_pod_for_as_long_as_it_is_there() {
        let mut dir = Directory::new();
        assert_eq!(dir.write("a", &manifest("web", "i:1")), ["a: default/web-n1"]);
        assert_eq!(dir.write("b", &manifest("db", "i:2")), ["b: default/db-n1"]);
        assert_eq!(dir.pods(), "web-n1=i:1 db-n1=i:2");
        assert_eq!(dir.look(), [""; 0]);
        assert_eq!(dir.write("a", &manifest("web", "i:3")), ["a: default/web-n1"]);
        assert_eq!(dir.pods(), "web-n1=i:3 db-n1=i:2");
        dir.found.remove(Path::new("a"));
        assert_eq!(dir.look(), ["a is gone"]);
        assert_eq!(dir.pods(), "db-n1=i:2");
    }

    #[test]
    fn a_broken_manifest_keeps_its_pod_and_hurts_no_other() {
        let mut dir = Directory::new();
        dir.write("a", &manifest("web", "i:1"));
        assert_eq!(
            dir.write("a", "kind: Po"),
            ["a keeps default/web-n1: expected a Pod of apiVersion v1, found kind \"Po\" of apiVersion \"\"",]
        );
        assert_eq!(dir.write("b", ""), ["b: manifest is empty"]);
        assert_eq!(dir.write("c", &manifest("db", "i:2")), ["c: default/db-n1"]);
        assert_eq!(dir.pods(), "web-n1=i:1 db-n1=i:2");
        assert_eq!(dir.look(), [""; 0], "a broken manifest is told of once");
        dir.found.insert("a".into(), Err("failed to read it: input/output error".into()));
        assert_eq!(dir.look(), ["a keeps default/web-n1: failed to read it: input/output error"]);
        assert_eq!(dir.pods(), "web-n1=i:1 db-n1=i:2");
        assert_eq!(dir.write("b", &manifest("late", "i:3")), ["b: default/late-n1"]);
        assert_eq!(dir.pods(), "web-n1=i:1 late-n1=i:3 db-n1=i:2");
    }

    #[test]
    fn an_edit_that_says_the_same_leaves_the_pod_alone() {
        let mut dir = Directory::new();
        dir.write("a", &manifest("web", "i:1"));
        let before = dir.manifests.pods();
        dir.found.insert("a".into(), Ok(format!("# a comment\n{}", manifest("web", "i:1")).into_bytes()));
        dir.manifests.update(
            dir.found.clone(),
            Missing::AreGone,
            "2027-01-01T00:00:00Z".parse().expect("a test time parses"),
        );
        assert!(Arc::ptr_eq(&before[0], &dir.manifests.pods()[0]));
    }

    #[test]
    fn the_first_of_two_files_speaks_for_a_name_or_a_uid() {
        let mut dir = Directory::new();
        dir.write("b", &manifest("web", "i:1"));
        assert_eq!(dir.write("c", &manifest("web", "i:2")), ["c: default/web-n1", "c: pod default/web-n1 is of b"]);
        assert_eq!(dir.pods(), "web-n1=i:1 web-n1=i:2", "whoever takes the first tells of the second");
        assert_eq!(dir.look(), [""; 0], "a conflict is told of once");
        assert_eq!(
            dir.write("a", &manifest("web", "i:3")),
            ["a: default/web-n1", "b: pod default/web-n1 is of a", "c: pod default/web-n1 is of a",]
        );
        assert_eq!(dir.pods(), "web-n1=i:3 web-n1=i:1 web-n1=i:2");
        dir.found.remove(Path::new("a"));
        dir.found.remove(Path::new("b"));
        dir.look();
        assert_eq!(dir.pods(), "web-n1=i:2");

        let with_uid = |name: &str| manifest(name, "i:1").replace("name: web", "uid: u1, name: web");
        let mut dir = Directory::new();
        dir.write("a", &with_uid("web-a"));
        assert_eq!(dir.write("b", &with_uid("web-b")), ["b: default/web-b-n1", "b: uid u1 is of a"]);
        assert_eq!(dir.pods(), "web-a-n1=i:1");
    }
}
