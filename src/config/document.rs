//! One configuration file: its text, its values, and on which line each of them stands.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::Value;
use serde_saphyr::DuplicateKeyPolicy;
use serde_saphyr::granit_parser::{Event, Parser};

use super::path::FieldPath;
use crate::host::open_regular;

pub const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
pub const KIND: &str = "KubeletConfiguration";

/// No configuration comes near this; a device node given by mistake would not end.
const BYTES_MAX: u64 = 4 << 20;

/// A document as read, nothing checked but that it is one of ours.
#[derive(Debug)]
pub struct Document {
    pub file: PathBuf,
    pub root: Value,
    lines: BTreeMap<FieldPath, u32>,
    /// Keys that stand twice in one object, each with the line of the later one, which wins.
    pub duplicates: Vec<(FieldPath, u32)>,
    /// The line where a second document starts; only the first one counts.
    pub second: Option<u32>,
}

#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("cannot read {}", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("{} is empty: expected a {KIND}", file.display())]
    Empty { file: PathBuf },
    #[error("{} is larger than {BYTES_MAX} bytes", file.display())]
    TooLarge { file: PathBuf },
    #[error("{}:{line}: not valid YAML or JSON: {reason}", file.display())]
    Syntax { file: PathBuf, line: u64, reason: String },
    #[error("{}: expected an object with apiVersion and kind", file.display())]
    NotAnObject { file: PathBuf },
    #[error("{}: {field}: missing, expected {expected}", file.display())]
    Missing { file: PathBuf, field: &'static str, expected: &'static str },
    #[error("{}: {field}: expected {expected}, found {found}", file.display())]
    OtherType { file: PathBuf, field: &'static str, expected: &'static str, found: String },
}

impl Document {
    pub fn read(file: &Path) -> Result<Document, DocumentError> {
        let failed = |source| DocumentError::Read { file: file.to_owned(), source };
        let mut bytes = Vec::new();
        let opened = open_regular(file).map_err(failed)?;
        opened.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > BYTES_MAX {
            return Err(DocumentError::TooLarge { file: file.to_owned() });
        }
        let text =
            String::from_utf8(bytes).map_err(|e| failed(io::Error::new(io::ErrorKind::InvalidData, e.utf8_error())))?;
        Document::parse(file, &text)
    }

    pub fn parse(file: &Path, text: &str) -> Result<Document, DocumentError> {
        if text.trim().is_empty() {
            return Err(DocumentError::Empty { file: file.to_owned() });
        }
        let (text, second) = first_document(text);
        let root = values(file, text)?;
        is_ours(file, &root)?;
        let (lines, duplicates) = places(text);
        Ok(Document { file: file.to_owned(), root, lines, duplicates, second })
    }

    /// The line of the value at `path`, or of the nearest object around it.
    pub fn line(&self, path: &FieldPath) -> Option<u32> {
        let mut path = path.clone();
        while !path.is_root() {
            if let Some(line) = self.lines.get(&path) {
                return Some(*line);
            }
            path = path.parent();
        }
        None
    }
}

/// The files ending in `.conf` below `directory`, in the order they apply: the lexical order
/// of a walk that enters a subdirectory where it meets it.
pub fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, DocumentError> {
    let failed = |source| DocumentError::Read { file: directory.to_owned(), source };
    let mut entries =
        fs::read_dir(directory).and_then(|entries| entries.collect::<Result<Vec<_>, _>>()).map_err(failed)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut files = Vec::new();
    for entry in entries {
        if entry.file_type().map_err(failed)?.is_dir() {
            files.extend(drop_ins(&entry.path())?);
        } else if entry.file_name().as_encoded_bytes().ends_with(b".conf") {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// The text up to the separator after the first document, and the line of the next one if it
/// has anything to say.
fn first_document(text: &str) -> (&str, Option<u32>) {
    let is_separator =
        |line: &str| line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
    let says_something = |line: &str| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with(['#', '%']) && !is_separator(line)
    };
    let mut offset = 0;
    let mut started = false;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end();
        if started && is_separator(bare) {
            let rest = &text[offset + line.len()..];
            let second = u32::try_from(number + 1).unwrap_or(u32::MAX);
            return (&text[..offset], rest.lines().any(says_something).then_some(second));
        }
        started |= says_something(bare);
        offset += line.len();
    }
    (text, None)
}

fn values(file: &Path, text: &str) -> Result<Value, DocumentError> {
    let syntax = |line, reason: String| {
        let reason = reason.lines().next().unwrap_or_default().to_owned();
        DocumentError::Syntax { file: file.to_owned(), line, reason }
    };
    // JSON may be indented with tabs, which YAML refuses.
    if text.trim_start().starts_with('{')
        && let Ok(root) = serde_json::from_str(text)
    {
        return Ok(root);
    }
    let options = serde_saphyr::options! {
        // The later of two equal keys wins, as in upstream's lenient decoding; `places` finds
        // them, and each gets a warning.
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        // `0640` is octal to Go's YAML as well.
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(0, |l| l.line());
        syntax(line, error.to_string())
    })
}

fn is_ours(file: &Path, root: &Value) -> Result<(), DocumentError> {
    let Value::Object(object) = root else {
        return Err(DocumentError::NotAnObject { file: file.to_owned() });
    };
    for (field, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        let file = || file.to_owned();
        match object.get(field) {
            None | Some(Value::Null) => {
                return Err(DocumentError::Missing { file: file(), field, expected });
            }
            Some(Value::String(found)) if found == expected => {}
            Some(Value::String(found)) if found.is_empty() => {
                return Err(DocumentError::Missing { file: file(), field, expected });
            }
            Some(other) => {
                let found = other.as_str().map_or_else(|| other.to_string(), str::to_owned);
                return Err(DocumentError::OtherType { file: file(), field, expected, found });
            }
        }
    }
    Ok(())
}

/// Where the walk over the parser's events stands.
enum Open {
    /// In an object; `key` is set between a key and its value.
    Object { at: FieldPath, key: Option<String> },
    /// In a list, before the item of this index.
    List { at: FieldPath, index: usize },
    /// In something used as a key, which no field of ours has.
    Key,
}

type Places = (BTreeMap<FieldPath, u32>, Vec<(FieldPath, u32)>);

/// The line of every key and item, and the keys that stand twice.
///
/// A walk of its own over the parser's events, because values lose their lines on the way to
/// `serde_json`. What it cannot follow (aliases, merged maps) simply has no line.
fn places(text: &str) -> Places {
    let mut lines = BTreeMap::new();
    let mut duplicates = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    // A tab is white space to JSON and an error to YAML; this keeps every line in place.
    let text = match text.trim_start().starts_with('{') {
        true => text.replace('\t', " "),
        false => text.to_owned(),
    };
    for event in Parser::new_from_str(&text) {
        let Ok((event, span)) = event else { break };
        let line = u32::try_from(span.start.line()).unwrap_or(u32::MAX);
        match event {
            Event::MappingEnd | Event::SequenceEnd => {
                open.pop();
                continue;
            }
            Event::Scalar(ref key, ..) => {
                if let Some(Open::Object { at, key: pending @ None }) = open.last_mut() {
                    let path = at.child(key);
                    if lines.insert(path.clone(), line).is_some() {
                        duplicates.push((path, line));
                    }
                    *pending = Some(key.to_string());
                    continue;
                }
            }
            _ if !event.is_node() => continue,
            _ => {}
        }
        let at = match open.last_mut() {
            None => FieldPath::default(),
            Some(Open::Object { at, key }) => match key.take() {
                Some(key) => at.child(key),
                None => {
                    // A list or an object as a key, or an alias: not something of ours.
                    *key = Some(String::new());
                    match event {
                        Event::MappingStart(..) | Event::SequenceStart(..) => open.push(Open::Key),
                        _ => {}
                    }
                    continue;
                }
            },
            Some(Open::List { at, index }) => {
                *index += 1;
                let at = at.child(*index - 1);
                lines.insert(at.clone(), line);
                at
            }
            Some(Open::Key) => {
                if matches!(event, Event::MappingStart(..) | Event::SequenceStart(..)) {
                    open.push(Open::Key);
                }
                continue;
            }
        };
        match event {
            Event::MappingStart(..) => open.push(Open::Object { at, key: None }),
            Event::SequenceStart(..) => open.push(Open::List { at, index: 0 }),
            _ => {}
        }
    }
    (lines, duplicates)
}
