//! What the processes of a container hold open. Reading it costs more than all else that is told of
//! a container.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use nix::fcntl::readlink;

use super::reader::Reader;
use super::text::{lines, number, words};

/// Each descriptor costs a call. A container that holds more open is not told of.
const DESCRIPTORS_MAX: u64 = 4096;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Open {
    pub descriptors: Option<u64>,
    pub sockets: Option<u64>,
    /// How many files its first process may have open.
    pub files_max: Option<u64>,
}

pub fn read(proc: &Path, pids: &[u32], reader: &mut Reader) -> Open {
    let files_max = pids.first().and_then(|pid| {
        let text = reader.read(&proc.join(pid.to_string()), "limits")?;
        files_max(text)
    });
    match count(proc, pids) {
        Some((descriptors, sockets)) => Open { descriptors: Some(descriptors), sockets: Some(sockets), files_max },
        None => Open { files_max, ..Open::default() },
    }
}

/// All of them and those that are sockets; `None` if they are too many.
fn count(proc: &Path, pids: &[u32]) -> Option<(u64, u64)> {
    let (mut descriptors, mut sockets) = (0, 0);
    for pid in pids {
        let directory = proc.join(pid.to_string()).join("fd");
        // A process may be gone by now.
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            descriptors += 1;
            if descriptors > DESCRIPTORS_MAX {
                return None;
            }
            sockets += u64::from(readlink(&entry.path()).is_ok_and(|target| is_socket(&target)));
        }
    }
    Some((descriptors, sockets))
}

fn is_socket(target: &OsStr) -> bool {
    target.as_encoded_bytes().starts_with(b"socket:")
}

/// Of `limits`: `Max open files   soft   hard   files`.
fn files_max(text: &[u8]) -> Option<u64> {
    let line = lines(text).find_map(|line| line.strip_prefix(b"Max open files"))?;
    number(words(line).next()?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_processes_hold_open_is_counted() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let fd = root.path().join("7/fd");
        fs::create_dir_all(&fd).expect("a directory");
        for (name, target) in [("0", "/dev/null"), ("1", "pipe:[3]"), ("2", "socket:[4]")] {
            symlink(target, fd.join(name)).expect("a link");
        }
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            20000                30000                files     \n";
        fs::write(root.path().join("7/limits"), limits).expect("a file");
        let found = read(root.path(), &[7, 8], &mut Reader::default());
        assert_eq!(found, Open { descriptors: Some(3), sockets: Some(1), files_max: Some(20_000) });
        // All of them gone is none open.
        let gone = read(root.path(), &[8], &mut Reader::default());
        assert_eq!(gone, Open { descriptors: Some(0), sockets: Some(0), files_max: None });
        assert_eq!(files_max(b"Max open files unlimited unlimited files"), None);
    }

    #[test]
    fn who_holds_too_much_is_not_counted() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let fd = root.path().join("7/fd");
        fs::create_dir_all(&fd).expect("a directory");
        for number in 0..=DESCRIPTORS_MAX {
            fs::write(fd.join(number.to_string()), "").expect("a file");
        }
        assert_eq!(read(root.path(), &[7], &mut Reader::default()), Open::default());
    }
}
