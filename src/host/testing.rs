//! What tests of this room share: a scratch directory that leaves no mount behind, and the
//! question whether the test may do what it needs.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::mounts;

pub use super::machine::testing::machines;

/// A directory for one test. Mounts below it are taken down with it.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> Self {
        Scratch(tempfile::tempdir().expect("a temporary directory can be made"))
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    pub fn root(&self) -> &Path {
        self.0.path()
    }

    pub fn dir(&self, below: &str) -> PathBuf {
        let path = self.path(below);
        fs::create_dir_all(&path).expect("a directory can be made in the scratch directory");
        path
    }

    pub fn file(&self, below: &str, text: &str) -> PathBuf {
        let path = self.path(below);
        fs::create_dir_all(path.parent().expect("it is below the scratch directory")).expect("its parent can be made");
        fs::write(&path, text).expect("a file can be written in the scratch directory");
        path
    }

    pub fn make_read_only(&self) {
        let none: Option<&str> = None;
        let bind = MsFlags::MS_BIND;
        for flags in [bind, bind | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY] {
            mount(Some(self.root()), self.root(), none, flags, none).expect("root may mount");
        }
    }

    pub fn mounts(&self) -> Vec<PathBuf> {
        let table = mounts::table(Path::new("/proc")).expect("the mount table can be read");
        table.into_iter().map(|mount| mount.point).filter(|point| point.starts_with(self.root())).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = mounts::unmount_below(Path::new("/proc"), self.root()) {
            eprintln!("{}: {error}", self.root().display());
        }
    }
}

/// True for root; says so and answers false for others, whose test ends there.
pub fn may_mount(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: {test} needs root");
    }
    root
}

pub fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("the path is there").mode() & 0o7777
}

pub fn group(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("the path is there").gid()
}

/// The names in a directory, sorted.
pub fn names(path: &Path) -> io::Result<Vec<String>> {
    super::files::list_dir(path)
}
