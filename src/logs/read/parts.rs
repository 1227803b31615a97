//! The files of one container instance, and which one goes on where another ends.
//!
//! Whoever rotates a log gives it a name with the time in it, so that names tell the order, and
//! perhaps compresses it later. A reader knows the file it has open by its inode; if that has gone
//! because the file was compressed, by how it begins: each record begins with its own nanosecond.
//! Everything here may block.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use super::source::{Place, Source};
use crate::host::open_regular;
use crate::logs::rotation::{self, GZIP};

/// Looks at a directory in which names change until two of them agree; after so many, what the
/// last one has must do.
const LISTINGS_MAX: usize = 5;

/// The log of one container instance.
#[derive(Clone, Debug)]
pub struct Log {
    pub dir: PathBuf,
    pub name: String,
}

/// One file, whatever it is called.
pub type FileId = (u64, u64);

/// A file that was the log before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name without the ending of compressed ones.
    pub stem: String,
    pub is_compressed: bool,
    pub id: FileId,
}

/// Where a file that was read to its end stands among the others.
#[derive(Debug, PartialEq, Eq)]
pub enum Stand {
    /// Nothing goes on where it ends. `name` is what it is called now.
    Last { name: String },
    /// `is_fresh`: it was the log up to now, and its writer may not have let go of it.
    Followed { name: String, by: Next, is_fresh: bool },
}

#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// The log as it is now. `after` is the last part before it.
    Log {
        id: FileId,
        after: Option<String>,
    },
    Part(Part),
}

impl Log {
    /// `None` for a path that has no directory or no name.
    pub fn at(path: &Path) -> Option<Log> {
        let name = path.file_name()?.to_str()?.to_owned();
        Some(Log { dir: path.parent()?.to_owned(), name })
    }

    pub fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    /// Opens the log; or, if it was renamed and there is no new one yet, what it was up to now.
    pub fn open(&self) -> io::Result<Source> {
        let missing = match open_regular(&self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => error,
            opened => {
                let file = opened?;
                let id = id_of(&file.metadata()?);
                let mut parts = self.parts()?;
                // It may have been renamed since, and others after it.
                if let Some(at) = parts.iter().position(|part| part.id == id) {
                    parts.truncate(at);
                }
                return Ok(Source::plain(file, id, Place::Log { after: parts.pop().map(|part| part.stem) }));
            }
        };
        match self.parts()?.pop().filter(|part| !part.is_compressed) {
            Some(part) => self.open_part(&part).map_err(|_| missing),
            None => Err(missing),
        }
    }

    /// Opens what comes next; `None` if it is not what it was when we looked.
    pub fn open_next(&self, next: &Next) -> io::Result<Option<Source>> {
        let opened = match next {
            Next::Part(part) => self.open_part(part),
            Next::Log { id, after } => open_regular(&self.path()).and_then(|file| {
                let is_same = id_of(&file.metadata()?) == *id;
                let source = Source::plain(file, *id, Place::Log { after: after.clone() });
                if is_same { Ok(source) } else { Err(io::ErrorKind::NotFound.into()) }
            }),
        };
        match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        }
    }

    fn open_part(&self, part: &Part) -> io::Result<Source> {
        let file = open_regular(&self.part_path(part))?;
        let place = Place::Part { stem: part.stem.clone() };
        Ok(if part.is_compressed { Source::gzip(file, place) } else { Source::plain(file, part.id, place) })
    }

    /// Where the file stands that has this place, inode and beginning.
    pub fn stand(&self, place: &Place, id: Option<FileId>, head: &[u8]) -> io::Result<Stand> {
        // Before the list: what is renamed meanwhile is then in it.
        let log = match fs::metadata(self.path()) {
            Ok(stat) => Some(id_of(&stat)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if log.is_some() && log == id {
            return Ok(Stand::Last { name: self.name.clone() });
        }
        let parts = self.parts()?;
        let (name, rest) = self.rest(place, id, head, &parts)?;
        let by = match (rest.first(), log) {
            (Some(part), _) => Next::Part(part.clone()),
            (None, Some(id)) => Next::Log { id, after: parts.last().map(|part| part.stem.clone()) },
            (None, None) => return Ok(Stand::Last { name }),
        };
        Ok(Stand::Followed { name, by, is_fresh: rest.is_empty() && id.is_some() })
    }

    /// What a file is called now, and the parts after it.
    fn rest<'a>(
        &self,
        place: &Place,
        id: Option<FileId>,
        head: &[u8],
        parts: &'a [Part],
    ) -> io::Result<(String, &'a [Part])> {
        let newer_than = |stem: &str| &parts[parts.partition_point(|part| part.stem.as_str() <= stem)..];
        let after = match place {
            Place::Part { stem } => return Ok((stem.clone(), newer_than(stem))),
            Place::Log { after } => after,
        };
        let newer = after.as_deref().map_or(parts, newer_than);
        if let Some(at) = newer.iter().position(|part| Some(part.id) == id) {
            return Ok((newer[at].stem.clone(), &newer[at + 1..]));
        }
        match newer.split_first() {
            Some((first, rest)) if first.is_compressed && self.begins_with(first, head)? => {
                Ok((first.stem.clone(), rest))
            }
            // Somebody removed it.
            _ => Ok((self.name.clone(), newer)),
        }
    }

    fn begins_with(&self, part: &Part, head: &[u8]) -> io::Result<bool> {
        let file = match open_regular(&self.part_path(part)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file?,
        };
        let mut begin = vec![0; head.len()];
        // One that cannot be read is not what we have read.
        Ok(GzDecoder::new(file).read_exact(&mut begin).is_ok() && begin == head)
    }

    fn part_path(&self, part: &Part) -> PathBuf {
        let ending = if part.is_compressed { GZIP } else { "" };
        self.dir.join(format!("{}{ending}", part.stem))
    }

    /// What was the log before, oldest first. A rename while the directory is read may hide a file.
    fn parts(&self) -> io::Result<Vec<Part>> {
        let mut parts = self.list()?;
        for _ in 1..LISTINGS_MAX {
            let again = self.list()?;
            let is_same = again.iter().map(|part| &part.stem).eq(parts.iter().map(|part| &part.stem));
            parts = again;
            if is_same {
                break;
            }
        }
        Ok(parts)
    }

    fn list(&self) -> io::Result<Vec<Part>> {
        let mut parts: Vec<Part> = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if rotation::stamp(&self.name, &name).is_none() {
                continue;
            }
            // One that was renamed since is found under its new name by the next look.
            let Ok(stat) = entry.metadata() else { continue };
            let (stem, is_compressed) = name.strip_suffix(GZIP).map_or((&*name, false), |stem| (stem, true));
            parts.push(Part { stem: stem.to_owned(), is_compressed, id: id_of(&stat) });
        }
        parts.sort_by(|one, other| (&one.stem, one.is_compressed).cmp(&(&other.stem, other.is_compressed)));
        // For a moment there are both, of which the one as it was written comes first.
        parts.dedup_by(|later, first| later.stem == first.stem);
        Ok(parts)
    }
}

pub fn id_of(stat: &fs::Metadata) -> FileId {
    (stat.dev(), stat.ino())
}
