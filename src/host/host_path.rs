//! hostPath volumes: is there what the pod says, and may it be made.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path};

use super::{HostError, HostPathKind, Result, files};

const DIRECTORY_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;

/// Looks at `path` as the pod's author would, symlinks followed. The texts of refusals are
/// upstream's; users search for them.
pub fn check(path: &Path, kind: HostPathKind) -> Result<()> {
    if path.components().any(|component| component == Component::ParentDir) {
        return Err(HostError::Refused(format!("invalid HostPath `{}`: must not contain '..'", path.display())));
    }
    if kind == HostPathKind::Any {
        return Ok(());
    }
    let found = match fs::metadata(path) {
        Ok(stat) => Some(stat.file_type()),
        // A file on the way is no directory either; both read as "not there".
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
        Err(source) => {
            return Err(HostError::Io { what: "look at", path: path.to_owned(), source });
        }
    };
    let fits = |is: fn(&fs::FileType) -> bool| found.as_ref().is_some_and(is);
    let (fits, name) = match kind {
        HostPathKind::Any => return Ok(()),
        HostPathKind::DirectoryOrCreate if found.is_none() => return make_directory(path),
        HostPathKind::FileOrCreate if found.is_none() => return make_file(path),
        HostPathKind::DirectoryOrCreate | HostPathKind::Directory => (fits(fs::FileType::is_dir), "a directory"),
        HostPathKind::FileOrCreate | HostPathKind::File => (fits(fs::FileType::is_file), "a file"),
        HostPathKind::Socket => (fits(FileTypeExt::is_socket), "a socket file"),
        HostPathKind::CharDevice => (fits(FileTypeExt::is_char_device), "a character device"),
        HostPathKind::BlockDevice => (fits(FileTypeExt::is_block_device), "a block device"),
    };
    if fits {
        Ok(())
    } else {
        Err(HostError::Refused(format!("hostPath type check failed: {} is not {name}", path.display())))
    }
}

fn make_directory(path: &Path) -> Result<()> {
    files::make_dir(path, DIRECTORY_MODE).map_err(|source| HostError::Io {
        what: "make directory",
        path: path.to_owned(),
        source,
    })
}

fn make_file(path: &Path) -> Result<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path);
    match made.and_then(|file| file.set_permissions(fs::Permissions::from_mode(FILE_MODE))) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(HostError::Io { what: "make file", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn what_is_there_must_be_what_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("dir")).unwrap();
        fs::write(path("file"), "x").unwrap();
        let _socket = UnixListener::bind(path("socket")).unwrap();
        std::os::unix::fs::symlink("dir", path("link")).unwrap();

        use HostPathKind::*;
        for (name, kind, refusal) in [
            ("dir", Directory, None),
            ("link", Directory, None),
            ("file", Directory, Some("is not a directory")),
            ("absent", Directory, Some("is not a directory")),
            ("file/below", Directory, Some("is not a directory")),
            ("file", DirectoryOrCreate, Some("is not a directory")),
            ("file", File, None),
            ("dir", File, Some("is not a file")),
            ("dir", FileOrCreate, Some("is not a file")),
            ("absent", File, Some("is not a file")),
            ("socket", Socket, None),
            ("file", Socket, Some("is not a socket file")),
            ("file", CharDevice, Some("is not a character device")),
            ("file", BlockDevice, Some("is not a block device")),
            ("absent", Any, None),
            ("dir/../file", Any, Some("must not contain '..'")),
        ] {
            let path = path(name);
            let text = check(&path, kind).err().map(|error| error.to_string());
            let expected = match refusal {
                Some(text) if text.contains("..") => Some(format!("invalid HostPath `{}`: {text}", path.display())),
                Some(text) => Some(format!("hostPath type check failed: {} {text}", path.display())),
                None => None,
            };
            assert_eq!(text, expected, "{name} as {kind:?}");
        }
        assert!(check(Path::new("/dev/null"), CharDevice).is_ok());
    }

    #[test]
    fn or_create_makes_directories_with_parents_but_files_without() {
        let directory = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;

        let made = directory.path().join("a/b");
        check(&made, HostPathKind::DirectoryOrCreate).unwrap();
        assert_eq!((mode(&made), mode(made.parent().unwrap())), (0o755, 0o755));

        let file = directory.path().join("a/file");
        check(&file, HostPathKind::FileOrCreate).unwrap();
        assert_eq!(mode(&file), 0o644);

        let orphan = directory.path().join("none/file");
        assert!(matches!(check(&orphan, HostPathKind::FileOrCreate), Err(HostError::Io { .. })));
    }
}
