//! Opening for reading what a stranger names, who must not get out of one directory.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::{beneath, files, sub_path};

/// What was found.
#[derive(Debug)]
pub enum Below {
    File(File),
    Directory(Directory),
}

/// A directory that stays the one that was found, whatever happens to its name.
#[derive(Debug)]
pub struct Directory(OwnedFd);

impl Directory {
    /// A path to it, for as long as this is held.
    pub fn path(&self) -> PathBuf {
        beneath::magic_path(&self.0).into()
    }
}

/// Opens `below` in the directory `root`, which may itself be a symlink. Symlinks are followed as
/// long as they stay in it; what leads out of it is `PermissionDenied`, as is anything but files
/// and directories. May block.
pub fn open_below(root: &Path, below: &Path) -> io::Result<Below> {
    let denied = |why: &'static str| io::Error::new(io::ErrorKind::PermissionDenied, why);
    if below.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(denied("leads out of the directory"));
    }
    let at = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let found = sub_path::find(&at, root, below)?;
    let stat = fstat(&found)?;
    if beneath::is_kind(&stat, SFlag::S_IFDIR) {
        return Ok(Below::Directory(Directory(found)));
    }
    // Some devices act when they are but opened, and a fifo has its opener wait.
    if !beneath::is_kind(&stat, SFlag::S_IFREG) {
        return Err(denied("neither a file nor a directory"));
    }
    files::open_regular(Path::new(&beneath::magic_path(&found))).map(Below::File)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::host::testing::{Scratch, names};

    fn text(root: &Path, below: &str) -> Result<String, io::ErrorKind> {
        match open_below(root, Path::new(below)).map_err(|error| error.kind())? {
            Below::Directory(_) => Ok("a directory".to_owned()),
            Below::File(mut file) => {
                let mut text = String::new();
                file.read_to_string(&mut text).expect("the file can be read");
                Ok(text)
            }
        }
    }

    #[test]
    fn nothing_leads_out() {
        let scratch = Scratch::new();
        scratch.file("secret", "secret");
        scratch.file("log/pods/0.log", "inside");
        let root = scratch.path("log");
        symlink("../secret", root.join("relative")).unwrap();
        symlink(scratch.path("secret"), root.join("absolute")).unwrap();
        symlink("..", root.join("up")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        for below in ["../secret", "pods/../../secret", "/etc/passwd", "relative", "absolute", "up/secret", "up"] {
            assert_eq!(text(&root, below), Err(io::ErrorKind::PermissionDenied), "{below}");
        }
        assert!(text(&root, "magic/etc/passwd").is_err());
        assert_eq!(text(&root, "pods/0.log"), Ok("inside".to_owned()));
    }

    #[test]
    fn links_that_stay_inside_are_followed() {
        let scratch = Scratch::new();
        scratch.file("log/pods/0.log", "inside");
        let root = scratch.path("log");
        scratch.dir("log/containers");
        symlink("../pods/0.log", root.join("containers/relative")).unwrap();
        symlink(root.join("pods/0.log"), root.join("containers/absolute")).unwrap();
        symlink(&root, scratch.path("link")).unwrap();
        for below in ["containers/relative", "containers/absolute"] {
            assert_eq!(text(&root, below), Ok("inside".to_owned()), "{below}");
        }
        assert_eq!(text(&scratch.path("link"), "pods/0.log"), Ok("inside".to_owned()), "the root may be a link");
    }

    #[test]
    fn a_fifo_is_refused_at_once() {
        let scratch = Scratch::new();
        nix::unistd::mkfifo(&scratch.path("fifo"), Mode::S_IRWXU).unwrap();
        assert_eq!(text(scratch.root(), "fifo"), Err(io::ErrorKind::PermissionDenied));
    }

    #[test]
    fn a_directory_can_be_listed() {
        let scratch = Scratch::new();
        scratch.file("log/a", "");
        for (root, below) in [(scratch.path("log"), ""), (scratch.root().to_owned(), "log")] {
            let Ok(Below::Directory(found)) = open_below(&root, Path::new(below)) else {
                panic!("{below:?} is a directory");
            };
            assert_eq!(names(&found.path()).unwrap(), ["a"]);
        }
        assert_eq!(text(scratch.root(), "absent"), Err(io::ErrorKind::NotFound));
    }
}
