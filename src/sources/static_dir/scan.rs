//! What is in the static-pod directory right now.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::host::open_regular;
use crate::sources::manifests::{Found, MANIFEST_BYTES_MAX};

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
