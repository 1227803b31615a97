//! The configuration document under construction: a JSON tree in which every value knows who
//! put it there.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::document::Document;
use super::path::FieldPath;

/// Who gave a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    Default,
    /// The main file or a drop-in, with the line where known.
    File {
        file: Arc<PathBuf>,
        line: Option<u32>,
    },
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { file, line: Some(line) } => write!(f, "{}:{line}", file.display()),
            Origin::File { file, line: None } => write!(f, "{}", file.display()),
            Origin::Flag(name) if name.len() == 1 => write!(f, "-{name}"),
            Origin::Flag(name) => write!(f, "--{name}"),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Tree {
    root: Map<String, Value>,
    /// Of every value that is no object, and of empty objects. Absent means default.
    origins: BTreeMap<FieldPath, Origin>,
}

impl Tree {
    pub fn root(&self) -> &Map<String, Value> {
        &self.root
    }

    pub fn get(&self, path: &FieldPath) -> Option<&Value> {
        let (first, rest) = path.keys().split_first()?;
        rest.iter().try_fold(self.root.get(first)?, |value, key| value.get(key))
    }

    /// Who gave the value at `path`; of an object, who gave its first entry that is not a
    /// default.
    pub fn origin(&self, path: &FieldPath) -> Origin {
        let mut around = path.clone();
        while !around.is_root() {
            if let Some(origin) = self.origins.get(&around) {
                return origin.clone();
            }
            around = around.parent();
        }
        let below = self.origins.range(path.clone()..).take_while(|(p, _)| p.is_within(path));
        below.map(|(_, o)| o).find(|o| **o != Origin::Default).cloned().unwrap_or(Origin::Default)
    }

    /// Puts `value` at `path` in place of everything there.
    pub fn set(&mut self, path: &FieldPath, value: Value, origin: &Origin) {
        self.remove(path);
        self.own(path, &value, origin);
        let Some((last, parents)) = path.keys().split_last() else {
            return;
        };
        let mut object = &mut self.root;
        for key in parents {
            let inner = object.entry(key).or_insert_with(|| Value::Object(Map::new()));
            if !inner.is_object() {
                *inner = Value::Object(Map::new());
            }
            object = inner.as_object_mut().expect("made an object just above");
        }
        object.insert(last.clone(), value);
    }

    pub fn remove(&mut self, path: &FieldPath) {
        self.origins.retain(|p, _| !p.is_within(path));
        let Some((last, parents)) = path.keys().split_last() else {
            return;
        };
        let mut object = &mut self.root;
        for key in parents {
            match object.get_mut(key).and_then(Value::as_object_mut) {
                Some(inner) => object = inner,
                None => return,
            }
        }
        object.remove(last);
    }

    /// Applies `patch` as an RFC 7386 merge patch: objects merge key by key, null removes,
    /// everything else replaces. Origins are the lines of `document`.
    pub fn merge(&mut self, patch: &Value, document: &Document) {
        let file = Arc::new(document.file.clone());
        let origin = |path: &FieldPath| Origin::File { file: Arc::clone(&file), line: document.line(path) };
        self.merge_at(&FieldPath::default(), patch, &origin);
    }

    fn merge_at(&mut self, at: &FieldPath, patch: &Value, origin: &dyn Fn(&FieldPath) -> Origin) {
        match patch {
            Value::Null => self.remove(at),
            Value::Object(entries) if !entries.is_empty() => {
                for (key, value) in entries {
                    self.merge_at(&at.child(key), value, origin);
                }
            }
            Value::Object(_) if self.get(at).is_some_and(Value::is_object) => {}
            other => self.set(at, other.clone(), &origin(at)),
        }
    }

    fn own(&mut self, path: &FieldPath, value: &Value, origin: &Origin) {
        // A value put into an object makes the mark on the object itself obsolete.
        self.origins.remove(&path.parent());
        match value {
            Value::Object(entries) if !entries.is_empty() => {
                for (key, value) in entries {
                    self.own(&path.child(key), value, origin);
                }
            }
            _ => {
                self.origins.insert(path.clone(), origin.clone());
            }
        }
    }
}
