//! Settings of the kernel that a node counts on: how it deals with memory that was promised twice,
//! and whether it starts anew after it has failed.

use std::fs;
use std::path::Path;

use super::{HostError, Result};

/// Below `/proc/sys`, with what they are to be.
const WANTED: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// What came of a setting that was another.
#[derive(Debug)]
pub struct Tuned {
    /// With dots, as `sysctl` has it.
    pub name: String,
    pub was: String,
    pub wanted: &'static str,
    /// Why it still is.
    pub failure: Option<HostError>,
}

/// Puts right what differs, or only looks. A kernel without a setting has nothing to be put right.
pub fn tune(proc: &Path, may_change: bool) -> Result<Vec<Tuned>> {
    let mut tuned = Vec::new();
    for (name, wanted) in WANTED {
        let path = proc.join("sys").join(name);
        let was = match fs::read_to_string(&path) {
            Ok(text) => text.trim().to_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(HostError::Io { what: "read", path, source }),
        };
        if was == wanted {
            continue;
        }
        let written = if may_change { fs::write(&path, wanted) } else { Ok(()) };
        let failure = written.err().map(|source| HostError::Io { what: "set", path, source });
        tuned.push(Tuned { name: name.replace('/', "."), was, wanted, failure });
    }
    Ok(tuned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testing::Scratch;

    #[test]
    fn what_differs_is_put_right_and_what_is_missing_left() {
        let scratch = Scratch::new();
        scratch.file("sys/vm/overcommit_memory", "0\n");
        scratch.file("sys/kernel/panic", "10\n");
        let names = |tuned: Vec<Tuned>| tuned.into_iter().map(|it| (it.name, it.was)).collect::<Vec<_>>();
        let expected = [("vm.overcommit_memory".to_owned(), "0".to_owned())];
        assert_eq!(names(tune(scratch.root(), false).expect("it can be read")), expected);
        assert_eq!(fs::read_to_string(scratch.path("sys/vm/overcommit_memory")).expect("it is there"), "0\n");
        assert_eq!(names(tune(scratch.root(), true).expect("it can be read")), expected);
        assert_eq!(names(tune(scratch.root(), true).expect("it can be read")), []);
    }

    #[test]
    fn what_cannot_be_changed_is_told() {
        let scratch = Scratch::new();
        scratch.dir("sys/vm/overcommit_memory");
        assert!(tune(scratch.root(), true).is_err(), "a directory cannot be read");
    }
}
