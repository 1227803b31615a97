//! Command-line flags: all of them, and how the value of one becomes a value of the document.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::field::{Field, Flag, Kind, Preset, Status, Syntax};
use super::fields::FIELDS;
use super::kind::Findings;
use super::options::{OPTION_FLAGS, OptionFlag, OptionKind};
use super::path::FieldPath;
use super::{quantity, taints};
use crate::net::without_userinfo;

/// A flag of the command line.
#[derive(Clone, Copy)]
pub enum Known {
    /// One that sets a field of the configuration.
    Field(&'static Field, &'static Flag),
    /// One that exists only as a flag.
    Option(&'static OptionFlag),
}

impl Known {
    pub fn name(self) -> &'static str {
        match self {
            Known::Field(_, flag) => flag.name,
            Known::Option(flag) => flag.name,
        }
    }

    /// Whether the flag may stand without a value, which then is `true`; such a flag takes a
    /// value only after an equals sign, as in Go.
    pub fn is_switch(self) -> bool {
        match self {
            Known::Field(field, _) => field.kind == Kind::Bool,
            Known::Option(flag) => flag.is_switch(),
        }
    }

    fn default_text(self) -> String {
        match self {
            Known::Option(flag) => flag.default.to_owned(),
            Known::Field(field, _) => match (&field.default, field.kind) {
                (Preset::Bool(on), _) => on.to_string(),
                (Preset::Integer(number), _) => number.to_string(),
                (Preset::Float(number), _) => number.to_string(),
                (Preset::Text(text), _) => (*text).to_owned(),
                (Preset::List(items), _) => items.join(","),
                (Preset::Map(pairs), _) => {
                    pairs.iter().map(|(key, value)| format!("{key}<{value}")).collect::<Vec<_>>().join(",")
                }
                // Go has no absence: these hold nothing, each in its own way.
                (Preset::Absent | Preset::Derived, Kind::Bool) => "false".to_owned(),
                (Preset::Absent | Preset::Derived, Kind::Integer { .. } | Kind::Float) => "0".to_owned(),
                (Preset::Absent | Preset::Derived, _) => String::new(),
            },
        }
    }

    /// Whether each use of the flag counts, and not only the last.
    fn adds_up(self) -> bool {
        match self {
            Known::Field(_, flag) => flag.syntax != Syntax::Scalar && flag.syntax != Syntax::Taints,
            Known::Option(flag) => flag.kind == OptionKind::Labels,
        }
    }

    /// Headers are what tokens are sent in; upstream shows them, and passwords.
    fn is_secret(self) -> bool {
        match self {
            Known::Field(_, flag) => flag.syntax == Syntax::Headers,
            Known::Option(flag) => flag.name.ends_with("-password"),
        }
    }

    pub fn status(self) -> Status {
        match self {
            Known::Field(field, _) => field.status,
            Known::Option(flag) => flag.status,
        }
    }
}

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}", self.name())
    }
}

/// Every flag, options first.
pub fn all() -> impl Iterator<Item = Known> {
    let fields = FIELDS.iter().filter_map(|f| Some(Known::Field(f, f.flag.as_ref()?)));
    OPTION_FLAGS.iter().map(Known::Option).chain(fields)
}

/// The flag of this name, in which `_` stands for `-` as well.
pub fn find(name: &str) -> Option<Known> {
    let name = name.replace('_', "-");
    all().find(|flag| flag.name() == name)
}

/// The flags of one command line, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GivenFlags {
    pub uses: Vec<(Known, String)>,
}

impl GivenFlags {
    /// The values given to a flag, in order.
    pub fn values<'g>(&'g self, name: &'g str) -> impl DoubleEndedIterator<Item = &'g str> {
        let uses = self.uses.iter().filter(move |(flag, _)| flag.name() == name);
        uses.map(|(_, value)| value.as_str())
    }

    /// The value that counts for a flag that holds one: the last.
    pub fn last<'g>(&'g self, name: &'g str) -> Option<&'g str> {
        self.values(name).next_back()
    }
}

/// What stands for a value that may hold a credential.
pub(super) const SECRET: &str = "CLASSIFIED";

/// Every flag with what was given to it, or with its default, for others to see. A URL, of whichever
/// flag, is told without the user and the password in it.
pub fn values(given: &GivenFlags) -> BTreeMap<String, String> {
    let shown = |flag: Known| {
        let uses: Vec<_> = given.values(flag.name()).collect();
        match uses.as_slice() {
            [] => flag.default_text(),
            _ if flag.is_secret() => SECRET.to_owned(),
            _ if flag.adds_up() => uses.join(","),
            [.., last] => without_userinfo(last),
        }
    };
    all().map(|flag| (flag.name().to_owned(), shown(flag))).collect()
}

/// What the uses of a flag come to as a value of its field.
pub fn value_of(field: &Field, syntax: Syntax, uses: &[&str]) -> Result<Value, String> {
    let last = uses.last().copied().unwrap_or_default();
    let value = match syntax {
        Syntax::Scalar => scalar(field.kind, last)?,
        Syntax::CommaList => {
            let items = uses.iter().flat_map(|list| split(list, ','));
            items.collect::<Vec<_>>().into()
        }
        Syntax::Pairs | Syntax::Gates => {
            let mut map = Map::new();
            for pair in uses.iter().flat_map(|list| split(list, ',')) {
                let (key, value) = pair_of(pair, '=')?;
                let value = match syntax {
                    Syntax::Gates => boolean(value).map_err(|e| format!("gate {key}: {e}"))?.into(),
                    _ => value.into(),
                };
                map.insert(key.to_owned(), value);
            }
            map.into()
        }
        Syntax::LessThan => {
            let mut map = Map::new();
            for pair in uses.iter().flat_map(|list| split(list, ',')) {
                let (key, value) = pair_of(pair, '<')?;
                map.insert(key.to_owned(), value.into());
            }
            map.into()
        }
        Syntax::OnePair => {
            let mut map = Map::new();
            for pair in uses.iter().filter(|pair| !pair.is_empty()) {
                let (key, value) = pair_of(pair, '=')?;
                map.insert(key.to_owned(), value.into());
            }
            map.into()
        }
        Syntax::Headers => {
            let mut map = Map::new();
            for pair in uses.iter().flat_map(|list| split(list, ',')) {
                // Not repeated in the error, which is logged: it may be all of a token.
                let (name, value) = pair_of(pair, ':').map_err(|_| "expected name:value".to_owned())?;
                let values = map.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                values.as_array_mut().expect("only lists are put here").push(value.into());
            }
            map.into()
        }
        Syntax::Taints => taints::parse_list(last).map_err(|e| e.to_string())?.into(),
        Syntax::ReservedMemory => {
            let nodes = uses.iter().flat_map(|list| split(list, ';')).map(numa_memory);
            nodes.collect::<Result<Vec<_>, _>>()?.into()
        }
        Syntax::VModule => {
            let patterns = uses.iter().flat_map(|list| split(list, ',')).map(vmodule);
            patterns.collect::<Result<Vec<_>, _>>()?.into()
        }
    };
    accept(field, &value)
}

/// Brings the value into canonical form, by the same check that files go through.
fn accept(field: &Field, value: &Value) -> Result<Value, String> {
    let mut findings = Findings::default();
    // A relative path on the command line is meant from the working directory, which needs no
    // joining.
    let directory = Path::new("");
    let accepted = field.kind.accept(value, &FieldPath::of_field(field.path), directory, &mut findings);
    match findings.wrong.pop() {
        Some((_, reason)) => Err(reason),
        None => Ok(accepted.unwrap_or(Value::Null)),
    }
}

/// The non-empty parts of a list.
fn split(list: &str, separator: char) -> impl Iterator<Item = &str> {
    list.split(separator).filter(|part| !part.is_empty())
}

fn pair_of(pair: &str, between: char) -> Result<(&str, &str), String> {
    let (key, value) =
        pair.split_once(between).ok_or_else(|| format!("expected name{between}value, found {pair:?}"))?;
    Ok((key.trim(), value.trim()))
}

/// One value of a scalar kind, in Go's notation.
pub fn scalar(kind: Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::Bool => boolean(text).map(Value::from),
        Kind::Integer { .. } => integer(text).map(Value::from),
        Kind::Float => match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number.into()),
            _ => Err(format!("expected a number, found {text:?}")),
        },
        _ => Ok(text.into()),
    }
}

/// The texts Go's `strconv.ParseBool` takes.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("expected true or false, found {other:?}")),
    }
}

/// A whole number with the prefixes and underscores Go's base 0 takes.
pub fn integer(text: &str) -> Result<i64, String> {
    let wrong = || format!("expected a whole number, found {text:?}");
    let (sign, digits) = match text.as_bytes().first() {
        Some(b'-') => ("-", &text[1..]),
        Some(b'+') => ("", &text[1..]),
        _ => ("", text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    // `from_str_radix` would take a second sign.
    if digits.starts_with(['+', '-']) {
        return Err(wrong());
    }
    i64::from_str_radix(&format!("{sign}{}", digits.replace('_', "")), radix).map_err(|_| wrong())
}

/// `0:memory=1Gi,hugepages-2Mi=512Mi`
fn numa_memory(text: &str) -> Result<Value, String> {
    let wrong = || format!("expected node:type=quantity,…, found {text:?}");
    let (node, limits) = text.split_once(':').ok_or_else(wrong)?;
    let mut map = Map::new();
    for limit in split(limits, ',') {
        let (name, amount) = limit.split_once('=').ok_or_else(wrong)?;
        let amount = quantity::parse(amount).map_err(|e| e.to_string())?;
        map.insert(name.to_owned(), amount.to_string().into());
    }
    match map.is_empty() {
        true => Err(wrong()),
        false => Ok(json!({ "numaNode": integer(node)?, "limits": map })),
    }
}

/// `pattern=N`
fn vmodule(text: &str) -> Result<Value, String> {
    let (pattern, verbosity) = pair_of(text, '=')?;
    Ok(json!({ "filePattern": pattern, "verbosity": integer(verbosity)? }))
}
