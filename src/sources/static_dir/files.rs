//! The files of the static-pod directory, and the pods they describe.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, ErrorKind, Read};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::host::open_regular;
use crate::pod::static_pod::{Manifest, Origin, SEEN_ANNOTATION, decode};
use crate::pod::{PodRef, Source};

/// A larger file is no manifest.
const MANIFEST_BYTES_MAX: u64 = 10 << 20;

/// What was found of one file: its content, or why there is none.
pub(super) type Found = BTreeMap<PathBuf, Result<Vec<u8>, String>>;

/// Something that a look at the directory brought to light. Each is told once.
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
    /// Another file came first with the same name or UID.
    Taken {
        path: PathBuf,
        what: String,
        by: PathBuf,
    },
    Gone {
        path: PathBuf,
    },
}

/// All files of the directory as last seen.
pub(super) struct Files {
    node_name: String,
    known: BTreeMap<PathBuf, Known>,
}

struct Known {
    /// Of the content, or of why it could not be read.
    fingerprint: u64,
    /// The last pod that the file described. It outlives a broken edit of the file.
    pod: Option<Arc<Pod>>,
    /// The file that describes a pod of the same name or UID and comes before this one.
    taken_by: Option<PathBuf>,
}

impl Files {
    pub(super) fn new(node_name: &str) -> Self {
        Files { node_name: node_name.to_owned(), known: BTreeMap::new() }
    }

    /// Takes up what a look found.
    pub(super) fn update(&mut self, found: Found, seen: Timestamp) -> Vec<Note> {
        let mut notes = Vec::new();
        self.known.retain(|path, _| {
            let stays = found.contains_key(path);
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
            self.known.insert(path, Known { fingerprint, pod, taken_by: None });
        }
        self.settle_conflicts(&mut notes);
        notes
    }

    /// The pods of all files, in the order of their paths.
    pub(super) fn pods(&self) -> Vec<Arc<Pod>> {
        let speaking = self.known.values().filter(|known| known.taken_by.is_none());
        speaking.filter_map(|known| known.pod.clone()).collect()
    }

    fn read(
        &self,
        path: &Path,
        content: Result<Vec<u8>, String>,
        seen: Timestamp,
        before: Option<Arc<Pod>>,
        notes: &mut Vec<Note>,
    ) -> Option<Arc<Pod>> {
        let place = path.to_string_lossy();
        let origin = Origin { source: Source::File, place: &place, node_name: &self.node_name, seen };
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

    /// The first file in the order of paths speaks for a name and for a UID.
    fn settle_conflicts(&mut self, notes: &mut Vec<Note>) {
        let mut taken: BTreeMap<String, PathBuf> = BTreeMap::new();
        for (path, known) in &mut self.known {
            let Some(pod) = &known.pod else { continue };
            let reference = PodRef::of(pod);
            let claims = [format!("pod {reference}"), format!("uid {}", reference.uid)];
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

/// Reads all manifests below `path`, or the one that it is. What is not there is empty;
/// an error means that nothing can be said. Blocks.
pub(super) fn scan(path: &Path) -> io::Result<Found> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::new()),
        Err(error) => return Err(error),
    };
    let paths = match metadata.is_dir() {
        true => manifests_in(path)?,
        false => BTreeSet::from([path.to_owned()]),
    };
    let read = |path: PathBuf| read(&path).transpose().map(|content| (path, content));
    Ok(paths.into_iter().filter_map(read).collect())
}

fn manifests_in(dir: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut paths = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden {
            paths.insert(entry.path());
        }
    }
    Ok(paths)
}

/// The content of a manifest; `None` for a directory, or if it is gone meanwhile.
fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let unreadable = |error: io::Error| format!("failed to read it: {error}");
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
            return Ok(None);
        }
        Err(error) => return Err(unreadable(error)),
    };
    if metadata.is_dir() {
        return Ok(None);
    }
    let mut content = Vec::new();
    let file = open_regular(path).map_err(unreadable)?;
    file.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(format!("it is larger than {} MiB", MANIFEST_BYTES_MAX >> 20));
    }
    Ok(Some(content))
}
