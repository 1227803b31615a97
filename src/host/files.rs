//! Single files and directories of the agent's own making.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Durability;

/// Makes a directory with its parents. What is there keeps its mode: an fsGroup or an
/// administrator may have changed it on purpose.
pub fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        // The umask took its share.
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if fs::metadata(path)?.is_dir() {
                return Ok(());
            }
            Err(error)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_dir(path.parent().ok_or(error)?, mode)?;
            make_dir(path, mode)
        }
        Err(error) => Err(error),
    }
}

/// Puts a new file in place of the old one by rename, so that a reader sees either whole.
///
/// That holds for `/etc/hosts` too, which is bind-mounted into containers: a running one
/// keeps the file it was started with, undisturbed, and one that starts gets the new file.
/// Writing in place, as upstream does, would show every running container a torn file to
/// bring it a change that only ever comes with a new sandbox.
pub fn write_file(path: &Path, data: &[u8], mode: u32, durability: Durability) -> io::Result<()> {
    if is_unchanged(path, data, mode)? {
        return Ok(());
    }
    let temporary = temporary_beside(path)?;
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(data)?;
    if durability == Durability::ThroughPowerCut {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    if durability == Durability::ThroughPowerCut
        && let Some(parent) = path.parent()
    {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

fn is_unchanged(path: &Path, data: &[u8], mode: u32) -> io::Result<bool> {
    let stat = match fs::symlink_metadata(path) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    Ok(stat.is_file() && stat.mode() & 0o7777 == mode && stat.len() == data.len() as u64 && fs::read(path)? == data)
}

/// So much of a file's name is in that of its temporary one; the whole may have 255 bytes.
const TEMPORARY_TAIL_BYTES: usize = 240;

/// One name for each file: what a crash leaves is taken away by the next write.
fn temporary_beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file name"))?;
    // Of a name as long as names can be, the beginning would not leave room for more.
    let tail = &name.as_bytes()[name.len().saturating_sub(TEMPORARY_TAIL_BYTES)..];
    let temporary = [b".", tail, b".new"].concat();
    Ok(path.with_file_name(OsString::from_vec(temporary)))
}

/// The whole file, or `None` if it is not there. A larger one is not read to its end.
pub fn read_file(path: &Path, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = if_there(open_regular(path))? else {
        return Ok(None);
    };
    let mut data = Vec::new();
    file.take(bytes_max as u64 + 1).read_to_end(&mut data)?;
    if data.len() > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {bytes_max} bytes")));
    }
    Ok(Some(data))
}

/// The end of a file: at most so many bytes, and of those at most so many lines.
pub fn read_tail(path: &Path, bytes_max: usize, lines_max: Option<usize>) -> io::Result<Option<Vec<u8>>> {
    let Some(mut file) = if_there(open_regular(path))? else {
        return Ok(None);
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes_max as u64)))?;
    let mut data = Vec::new();
    file.take(bytes_max as u64).read_to_end(&mut data)?;
    if let Some(lines_max) = lines_max {
        data.drain(..start_of_last_lines(&data, lines_max));
    }
    Ok(Some(data))
}

fn start_of_last_lines(data: &[u8], lines: usize) -> usize {
    if lines == 0 {
        return data.len();
    }
    // The last line's own end begins no further line.
    let body = data.strip_suffix(b"\n").unwrap_or(data);
    let ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    ends.map(|(at, _)| at + 1).nth(lines - 1).unwrap_or(0)
}

/// Opens a file to read it. A fifo or a device in its place must not hold the thread that
/// opens it, nor a file of /proc that waits for news the thread that reads it.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Names in a directory in order; none if it is not there. One that is not UTF-8 belongs
/// to nobody we know and is left out.
pub fn list_dir(path: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// Points `link` at `target`, whatever symlink was there.
pub fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    if fs::read_link(link).is_ok_and(|present| present == target) {
        return Ok(());
    }
    let temporary = temporary_beside(link)?;
    remove_file(&temporary)?;
    std::os::unix::fs::symlink(target, &temporary)?;
    fs::rename(&temporary, link)
}

/// Names of symlinks in `path` whose target is not there.
pub fn dangling_links(path: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut dangling = Vec::new();
    for entry in entries {
        let entry = entry?;
        let is_gone = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
        if entry.file_type()?.is_symlink() && fs::metadata(entry.path()).is_err_and(is_gone) {
            dangling.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(dangling)
}

/// Gives a file a name that nobody has. A crash half-way leaves it with both.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<bool> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        linked => linked.and_then(|()| remove_file(from)).map(|()| true),
    }
}

/// Puts `<path>.gz` in the place of a file, if it is there, by way of `<path>.tmp`.
pub fn gzip(path: &Path) -> io::Result<()> {
    let with = |ending: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let (temporary, compressed) = (with(".tmp"), with(".gz"));
    let Some(mut from) = if_there(File::open(path))? else {
        return Ok(());
    };
    let mode = from.metadata()?.mode();
    remove_file(&temporary)?;
    let to = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    let mut encoder = flate2::write::GzEncoder::new(BufWriter::new(to), flate2::Compression::fast());
    io::copy(&mut from, &mut encoder)?;
    encoder.finish()?.into_inner()?;
    fs::rename(&temporary, &compressed)?;
    remove_file(path)
}

pub fn file_size(path: &Path) -> io::Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(stat) => Ok(Some(stat.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
