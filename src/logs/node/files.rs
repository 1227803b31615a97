//! Files and directories below the directory of logs, as they are shown.
//!
//! Whatever a file is called, it is sent as text or as bytes: what somebody wrote into a log must
//! not run in the browser of who reads it through the API server.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use hyper::body::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::host::{Below, open_below};
use crate::logs::disk::{Disk, read_at};

const PIECE_BYTES: usize = 32 * 1024;
/// By so much of its beginning a file is known as text.
const SNIFFED_BYTES: usize = 512;
/// Names in a listing. There are directories with a file for each second of a year.
const NAMES_MAX: usize = 10_000;

const TEXT: &str = "text/plain; charset=utf-8";
pub const HTML: &str = "text/html; charset=utf-8";
const GZIP: &str = "application/gzip";
const OCTETS: &str = "application/octet-stream";

/// Left as they are in the links of a listing.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

pub type Body = BoxStream<'static, io::Result<Bytes>>;

/// What is at a path.
pub enum Found {
    File {
        content_type: &'static str,
        file: File,
        bytes: u64,
    },
    Listing(String),
    /// It is what it is by the other form of its path, from the one asked for.
    Elsewhere(String),
}

/// Looks for what a path means. One that ends in a slash means a directory. May block.
pub fn find(root: &Path, path: &str) -> io::Result<Found> {
    let below = path.trim_matches('/');
    let name = || below.rsplit('/').next().unwrap_or_default();
    let means_directory = below.is_empty() || path.ends_with('/');
    match open_below(root, Path::new(below))? {
        Below::Directory(_) if !means_directory => Ok(Found::Elsewhere(format!("{}/", escaped(name())))),
        Below::Directory(found) => listing(&found.path()).map(Found::Listing),
        Below::File(_) if means_directory => Ok(Found::Elsewhere(format!("../{}", escaped(name())))),
        Below::File(file) => {
            let bytes = file.metadata()?.len();
            let begin = read_at(&file, 0, SNIFFED_BYTES)?;
            let content_type = match begin.contains(&0) {
                _ if name().ends_with(".gz") => GZIP,
                true => OCTETS,
                false => TEXT,
            };
            Ok(Found::File { content_type, file, bytes })
        }
    }
}

/// The first `bytes` of a file, piece by piece: one that grows would have no end.
pub fn content(disk: Disk, path: PathBuf, file: File, bytes: u64) -> Body {
    let state = (disk, path, Arc::new(file), 0);
    stream::try_unfold(state, move |(disk, path, file, offset)| async move {
        let piece = usize::try_from(bytes - offset).unwrap_or(usize::MAX).min(PIECE_BYTES);
        let opened = file.clone();
        let read = disk.run("read", &path, move || read_at(&opened, offset, piece)).await?;
        let next = offset + read.len() as u64;
        Ok((!read.is_empty()).then(|| (Bytes::from(read), (disk, path, file, next))))
    })
    .boxed()
}

fn listing(path: &Path) -> io::Result<String> {
    let mut names = Vec::new();
    let mut entries = fs::read_dir(path)?;
    for entry in entries.by_ref().take(NAMES_MAX) {
        let entry = entry?;
        let slash = if entry.file_type()?.is_dir() { "/" } else { "" };
        names.push(entry.file_name().to_string_lossy().into_owned() + slash);
    }
    names.sort_unstable();
    let mut page = "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n".to_owned();
    for name in names {
        page += &format!("<a href=\"{}\">{}</a>\n", escaped(&name), in_html(&name));
    }
    if entries.next().is_some() {
        page += &format!("and others: no more than {NAMES_MAX} are shown\n");
    }
    Ok(page + "</pre>\n")
}

fn escaped(name: &str) -> String {
    utf8_percent_encode(name, KEPT).to_string()
}

fn in_html(name: &str) -> String {
    name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;").replace('\'', "&#39;")
}
