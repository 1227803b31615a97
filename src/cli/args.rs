//! Reads a command line in the syntax of Go's flag packages.
//!
//! `--flag=value`, `--flag value`, the same with one dash, `--switch`, `--switch=false`, `-v4`,
//! and `_` for `-` in names. A switch takes a value only after an equals sign, so in
//! `--switch false` the second word is a word of its own, as it is upstream.

use std::ffi::OsString;

use crate::config::flags::{self, GivenFlags, Known};
use crate::config::nearest::nearest;

/// A command line, taken apart but not yet understood.
#[derive(Debug, Default, PartialEq)]
pub struct Args {
    pub given: GivenFlags,
    /// Words that belong to no flag.
    pub words: Vec<String>,
    /// Switches of the `config` subcommand, which are no flags of the agent.
    pub check: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ArgsError {
    #[error("unknown flag {flag}; the nearest known flag is --{nearest}")]
    UnknownFlag { flag: String, nearest: &'static str },
    #[error("flag {0} needs a value")]
    MissingValue(String),
    #[error("bad flag syntax: {0}")]
    BadSyntax(String),
    #[error("argument {0:?} is not valid UTF-8")]
    NotText(OsString),
    #[error("unknown command {0}")]
    UnknownCommand(String),
    #[error("--{flag}: {reason}")]
    BadValue { flag: &'static str, reason: String },
}

pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Args, ArgsError> {
    let mut parsed = Args::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let arg = arg.into_string().map_err(ArgsError::NotText)?;
        if arg == "--" {
            for word in args.by_ref() {
                parsed.words.push(word.into_string().map_err(ArgsError::NotText)?);
            }
            break;
        }
        // A lone dash is a word to Go, too.
        let Some(flag) = arg.strip_prefix('-').filter(|flag| !flag.is_empty()) else {
            parsed.words.push(arg);
            continue;
        };
        let name_and_value = flag.strip_prefix('-').unwrap_or(flag);
        let (name, value) = match name_and_value.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name_and_value, None),
        };
        if name.is_empty() || name.starts_with('-') {
            return Err(ArgsError::BadSyntax(arg));
        }
        if name == "check" && value.is_none() {
            parsed.check = true;
            continue;
        }
        let (known, value) = resolve(&arg, name, value)?;
        let value = match value {
            Some(value) => value,
            None if known.is_switch() => "true".to_owned(),
            None => match args.next() {
                Some(value) => value.into_string().map_err(ArgsError::NotText)?,
                None => return Err(ArgsError::MissingValue(arg)),
            },
        };
        parsed.given.uses.push((known, value));
    }
    Ok(parsed)
}

/// The flag a name stands for, and the value where the name carries it.
fn resolve(arg: &str, name: &str, value: Option<String>) -> Result<(Known, Option<String>), ArgsError> {
    let name = if name == "h" { "help" } else { name };
    if let Some(known) = flags::find(name) {
        return Ok((known, value));
    }
    // `-v4` is the only short flag that takes a value.
    let glued = name.strip_prefix('v').filter(|level| level.bytes().all(|b| b.is_ascii_digit()));
    if let (Some(level), Some(known), None) = (glued, flags::find("v"), &value)
        && !arg.starts_with("--")
    {
        return Ok((known, Some(level.to_owned())));
    }
    let known = flags::all().map(Known::name);
    Err(ArgsError::UnknownFlag {
        flag: arg.split('=').next().unwrap_or(arg).to_owned(),
        nearest: nearest(&name.replace('_', "-"), known).unwrap_or("help"),
    })
}
