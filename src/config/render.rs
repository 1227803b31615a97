//! The effective configuration as text: what `ferrolet config` prints.

use std::fmt::{self, Write};

use serde_json::{Map, Value};

use super::document::{API_VERSION, KIND};
use super::options::OPTION_FLAGS;
use super::path::FieldPath;
use super::tree::Origin;
use super::{GivenFlags, Settings};

/// Where the comments start, unless a line is longer.
const COMMENT_COLUMN: usize = 56;

/// YAML that the agent, or upstream's, would read back to the same configuration, with a
/// comment on every line that says who gave the value. Flags without a field come first, as
/// comments only.
pub fn effective(settings: &Settings, given: &GivenFlags) -> String {
    let mut page = String::new();
    write_page(&mut page, settings, given).expect("writing to a string cannot fail");
    page
}

fn write_page(page: &mut String, settings: &Settings, given: &GivenFlags) -> fmt::Result {
    let given_options = OPTION_FLAGS.iter().filter_map(|f| Some((f.name, given.last(f.name)?)));
    for (name, _) in given_options {
        for value in given.values(name) {
            writeln!(page, "# --{name}={value}")?;
        }
    }
    writeln!(page, "apiVersion: {API_VERSION}")?;
    writeln!(page, "kind: {KIND}")?;
    let lines = Lines { settings };
    lines.object(page, &FieldPath::default(), settings.tree.root(), 0)
}

struct Lines<'s> {
    settings: &'s Settings,
}

impl Lines<'_> {
    fn object(&self, page: &mut String, at: &FieldPath, object: &Map<String, Value>, depth: usize) -> fmt::Result {
        for (key, value) in object {
            let path = at.child(key);
            let indent = "  ".repeat(depth);
            let key = scalar(&Value::from(key.as_str()));
            match value {
                Value::Object(inner) if !inner.is_empty() => {
                    writeln!(page, "{indent}{key}:")?;
                    self.object(page, &path, inner, depth + 1)?;
                }
                value => {
                    let line = format!("{indent}{key}: {}", flow(value));
                    let origin = comment(&self.settings.tree.origin(&path));
                    writeln!(page, "{line:<COMMENT_COLUMN$}  # {origin}")?;
                }
            }
        }
        Ok(())
    }
}

fn comment(origin: &Origin) -> String {
    // A file name may hold anything, a comment only what fits on its line.
    origin.to_string().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A value on one line. JSON is YAML, so lists and what they hold are written as JSON.
fn flow(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(flow).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(entries) => {
            let entries = entries.iter().map(|(k, v)| format!("{}: {}", quoted(k), flow(v)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        scalar_value => scalar(scalar_value),
    }
}

/// A scalar, in quotes wherever YAML could read something else into it.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        Value::String(text) => quoted(text),
        other => other.to_string(),
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn is_plain(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b"/._-".contains(&b);
    // Words that YAML 1.1 takes for a boolean or null, in any case.
    let other = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    text.as_bytes().first().is_some_and(|b| b.is_ascii_alphabetic() || *b == b'/')
        && text.bytes().all(word)
        && !other.contains(&text.to_ascii_lowercase().as_str())
}
