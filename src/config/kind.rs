//! Checks one value of a document against the kind of its field.

use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::duration::GoDuration;
use super::field::Kind;
use super::fields::{FIELDS, find, is_parent};
use super::nearest::likely;
use super::path::FieldPath;
use super::quantity;

/// What was found while a document was checked.
#[derive(Default, Debug)]
pub struct Findings {
    /// Values that cannot be taken, with the reason.
    pub wrong: Vec<(FieldPath, String)>,
    /// Keys nobody knows, with the nearest known key of the same place.
    pub unknown: Vec<(FieldPath, Option<String>)>,
}

/// Checks a whole document and returns it in canonical form: durations and quantities as Go
/// prints them, relative paths resolved from `directory`, unknown keys left out. Nulls stay,
/// because in a drop-in they remove a value.
pub fn accept_document(root: &Value, directory: &Path, findings: &mut Findings) -> Value {
    let keep = ["apiVersion", "kind"];
    accept_object(root, "", &FieldPath::default(), directory, &keep, findings)
}

fn accept_object(
    value: &Value,
    prefix: &str,
    at: &FieldPath,
    directory: &Path,
    keep: &[&str],
    findings: &mut Findings,
) -> Value {
    let object = match value {
        Value::Object(object) => object,
        Value::Null => return Value::Null,
        other => {
            findings.wrong.push((at.clone(), expected("an object", other)));
            return Value::Null;
        }
    };
    let mut accepted = serde_json::Map::new();
    for (key, value) in object {
        let path = format!("{prefix}{key}");
        let at = at.child(key);
        // A dot inside a key would make it look like a nested field.
        let field = find(&path).filter(|_| !key.contains('.'));
        if let Some(field) = field {
            if let Some(value) = field.kind.accept(value, &at, directory, findings) {
                accepted.insert(key.clone(), value);
            }
        } else if is_parent(&path) && !key.contains('.') {
            let inner = accept_object(value, &format!("{path}."), &at, directory, &[], findings);
            accepted.insert(key.clone(), inner);
        } else if !keep.contains(&key.as_str()) {
            findings.unknown.push((at, likely(key, siblings(prefix)).map(str::to_owned)));
        }
    }
    Value::Object(accepted)
}

/// The keys known directly below `prefix`, which is empty or ends with a dot.
fn siblings(prefix: &str) -> impl Iterator<Item = &'static str> {
    FIELDS
        .iter()
        .filter_map(move |f| f.path.strip_prefix(prefix))
        .map(|rest| rest.split_once('.').map_or(rest, |(key, _)| key))
}

impl Kind {
    /// The canonical form of `value`, or nothing and a finding.
    pub fn accept(&self, value: &Value, at: &FieldPath, directory: &Path, findings: &mut Findings) -> Option<Value> {
        if value.is_null() {
            return Some(Value::Null);
        }
        match self {
            Kind::List(of) => {
                let Value::Array(items) = value else {
                    findings.wrong.push((at.clone(), expected("a list", value)));
                    return None;
                };
                let mut accepted = Vec::new();
                for (index, item) in items.iter().enumerate() {
                    let at = at.child(index);
                    match of.accept(item, &at, directory, findings)? {
                        Value::Null => {
                            findings.wrong.push((at, expected(of.article(), &Value::Null)));
                            return None;
                        }
                        item => accepted.push(item),
                    }
                }
                Some(Value::Array(accepted))
            }
            Kind::Map(of) => self.accept_entries(value, at, findings, |key, value, findings| {
                let at = at.child(key);
                Some(of.accept(value, &at, directory, findings))
            }),
            Kind::Struct(fields) => self.accept_entries(value, at, findings, |key, value, findings| {
                let at = at.child(key);
                let Some((_, kind)) = fields.iter().find(|(name, _)| *name == key) else {
                    let names = fields.iter().map(|(name, _)| *name);
                    findings.unknown.push((at, likely(key, names).map(str::to_owned)));
                    return None;
                };
                Some(kind.accept(value, &at, directory, findings))
            }),
            scalar => match scalar.accept_scalar(value, directory) {
                Ok(value) => Some(value),
                Err(reason) => {
                    findings.wrong.push((at.clone(), reason));
                    None
                }
            },
        }
    }

    /// Runs `accept` over the entries of an object; it says `None` to leave one out.
    fn accept_entries(
        &self,
        value: &Value,
        at: &FieldPath,
        findings: &mut Findings,
        accept: impl Fn(&str, &Value, &mut Findings) -> Option<Option<Value>>,
    ) -> Option<Value> {
        let Value::Object(entries) = value else {
            findings.wrong.push((at.clone(), expected(self.article(), value)));
            return None;
        };
        let mut accepted = serde_json::Map::new();
        for (key, value) in entries {
            if let Some(value) = accept(key, value, findings) {
                accepted.insert(key.clone(), value?);
            }
        }
        Some(Value::Object(accepted))
    }

    fn accept_scalar(&self, value: &Value, directory: &Path) -> Result<Value, String> {
        let wrong = || expected(self.article(), value);
        match self {
            Kind::Bool => value.is_boolean().then(|| value.clone()).ok_or_else(wrong),
            Kind::Float => value.is_number().then(|| value.clone()).ok_or_else(wrong),
            Kind::Text => value.is_string().then(|| value.clone()).ok_or_else(wrong),
            Kind::Integer { min, max } => {
                let number = value.as_number().ok_or_else(wrong)?;
                // `1e2` and `5.0` are whole numbers to upstream's YAML, and small enough floats
                // are exact.
                let float = number.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 1e15);
                match number.as_i64().or(float.map(|f| f as i64)) {
                    Some(whole) if (*min..=*max).contains(&whole) => Ok(whole.into()),
                    None if number.is_f64() => Err(wrong()),
                    _ => Err(format!("expected a whole number from {min} to {max}, found {number}")),
                }
            }
            Kind::Path => Ok(resolve(value.as_str().ok_or_else(wrong)?, directory).into()),
            Kind::Duration | Kind::SignedDuration => {
                let text = value.as_str().ok_or_else(wrong)?;
                let duration = GoDuration::parse(text).map_err(|e| e.to_string())?;
                match duration.is_negative() && *self == Kind::Duration {
                    true => Err(format!("must not be negative, found {duration}")),
                    false => Ok(duration.to_string().into()),
                }
            }
            Kind::DurationOrNanos => match value.as_i64() {
                Some(nanos) => Ok(GoDuration::from_nanos(nanos).to_string().into()),
                None => Kind::SignedDuration.accept_scalar(value, directory),
            },
            Kind::Quantity => {
                let text = match value {
                    Value::Number(number) => number.to_string(),
                    other => other.as_str().ok_or_else(wrong)?.to_owned(),
                };
                let quantity = quantity::parse(&text).map_err(|e| e.to_string())?;
                Ok(quantity.to_string().into())
            }
            Kind::List(_) | Kind::Map(_) | Kind::Struct(_) => Err(wrong()),
        }
    }

    /// What a user would call a value of this kind.
    pub fn article(&self) -> &'static str {
        match self {
            Kind::Bool => "true or false",
            Kind::Integer { .. } => "a whole number",
            Kind::Float => "a number",
            Kind::Text => "a text",
            Kind::Path => "a path",
            Kind::Duration | Kind::SignedDuration | Kind::DurationOrNanos => "a duration such as 1m30s",
            Kind::Quantity => "a quantity such as 100Mi",
            Kind::List(_) => "a list",
            Kind::Map(_) | Kind::Struct(_) => "an object",
        }
    }

    /// Whether the value is Go's zero of this kind.
    pub fn is_zero(&self, value: &Value) -> bool {
        match self {
            Kind::Integer { .. } => value.as_i64() == Some(0),
            Kind::Float => value.as_f64() == Some(0.0),
            Kind::Text | Kind::Path => value.as_str() == Some(""),
            // Values in the tree are canonical already.
            Kind::Duration | Kind::SignedDuration | Kind::DurationOrNanos => value.as_str() == Some("0s"),
            Kind::Quantity => value.as_str() == Some("0"),
            Kind::Bool | Kind::List(_) | Kind::Map(_) | Kind::Struct(_) => false,
        }
    }
}

fn expected(what: &str, found: &Value) -> String {
    let found = match found {
        Value::Null => "nothing".to_owned(),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => format!("the text {s:?}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    format!("expected {what}, found {found}")
}

/// A path as meant from `directory`; the empty path means "none" and stays.
fn resolve(text: &str, directory: &Path) -> String {
    if text.is_empty() || Path::new(text).is_absolute() {
        return text.to_owned();
    }
    lexically_clean(&directory.join(text)).to_string_lossy().into_owned()
}

/// The path without `.`, `..` and doubled or trailing slashes, by its text alone.
pub fn lexically_clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if clean.file_name().is_some() => {
                clean.pop();
            }
            Component::ParentDir if clean.has_root() => {}
            other => clean.push(other),
        }
    }
    clean
}
