//! One file that is read from front to back, and how to tell that it is not the same any more.

use std::fs::File;
use std::io::{self, Read};

use flate2::read::GzDecoder;
use tracing::warn;

use super::parts::{FileId, Log, Stand};
use crate::logs::disk::read_at;

/// What is read at once.
pub const PIECE_BYTES: usize = 32 * 1024;
/// By so much of its beginning a file is known again: that has the time of the first record in it.
const HEAD_BYTES: usize = 64;

/// Where a file was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Under the log's own name, when `after` was the last part. It may be one itself by now.
    Log {
        after: Option<String>,
    },
    Part {
        stem: String,
    },
}

/// A file that is read. Everything about it may block.
pub struct Source {
    place: Place,
    content: Content,
}

enum Content {
    Plain {
        file: File,
        id: FileId,
        offset: u64,
        /// Nothing is read from here on.
        end: Option<u64>,
        /// How it begins, as far as that was written when we last looked.
        head: Vec<u8>,
    },
    Gzip(Box<GzDecoder<File>>),
}

/// What one look at a file gives.
pub enum Pass {
    Bytes(Vec<u8>),
    /// It begins anew: somebody made it shorter.
    Anew,
    /// All was read. Those who follow are told where it stands.
    End(Option<Stand>),
}

impl Source {
    pub fn plain(file: File, id: FileId, place: Place) -> Self {
        Source { place, content: Content::Plain { file, id, offset: 0, end: None, head: Vec::new() } }
    }

    pub fn gzip(file: File, place: Place) -> Self {
        Source { place, content: Content::Gzip(Box::new(GzDecoder::new(file))) }
    }

    /// The file, for those who look for a place to begin; compressed ones have none.
    pub fn file(&self) -> io::Result<Option<(File, u64)>> {
        match &self.content {
            Content::Plain { file, .. } => Ok(Some((file.try_clone()?, file.metadata()?.len()))),
            Content::Gzip(_) => Ok(None),
        }
    }

    /// Reads only what is between these two.
    pub fn between(&mut self, start: u64, stop: Option<u64>) {
        if let Content::Plain { offset, end, .. } = &mut self.content {
            (*offset, *end) = (start, stop);
        }
    }

    /// The next piece. Where there is none and the reader follows, where the file stands, and
    /// what was written to it before we looked for that.
    pub fn pass(&mut self, log: &Log, follows: bool) -> io::Result<Pass> {
        match self.read(log)? {
            Pass::End(_) if follows => {}
            pass => return Ok(pass),
        }
        let stand = match &self.content {
            Content::Plain { id, head, .. } => log.stand(&self.place, Some(*id), head)?,
            Content::Gzip(_) => log.stand(&self.place, None, &[])?,
        };
        match self.read(log)? {
            Pass::End(_) => Ok(Pass::End(Some(stand))),
            pass => Ok(pass),
        }
    }

    fn read(&mut self, log: &Log) -> io::Result<Pass> {
        let bytes = match &mut self.content {
            Content::Plain { file, offset, end, head, .. } => {
                let begin = read_at(file, 0, HEAD_BYTES)?;
                if *offset > file.metadata()?.len() || !begin.starts_with(head) {
                    // Who reads what was there when it began has lost the rest of that.
                    if end.is_some() {
                        return Ok(Pass::End(None));
                    }
                    (*offset, *head) = (0, begin);
                    return Ok(Pass::Anew);
                }
                *head = begin;
                let left = end.map_or(u64::MAX, |end| end.saturating_sub(*offset)).min(PIECE_BYTES as u64);
                let bytes = read_at(file, *offset, left as usize)?;
                *offset += bytes.len() as u64;
                bytes
            }
            Content::Gzip(decoder) => {
                let mut bytes = vec![0; PIECE_BYTES];
                let read = decoder.read(&mut bytes).unwrap_or_else(|error| {
                    warn!(directory = %log.dir.display(), place = ?self.place, %error, "rotated log is broken, the rest of it is left out");
                    0
                });
                bytes.truncate(read);
                bytes
            }
        };
        Ok(if bytes.is_empty() { Pass::End(None) } else { Pass::Bytes(bytes) })
    }
}
