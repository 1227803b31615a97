//! What was accepted and may not be what the operator meant.

use std::fmt;

use serde_json::Value;

use super::defaults::{Era, preset};
use super::field::Status;
use super::fields::FIELDS;
use super::flags::GivenFlags;
use super::gates::FeatureGates;
use super::path::FieldPath;
use super::tls;
use super::tree::{Origin, Tree};

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Warning {
    UnknownField {
        origin: Origin,
        path: FieldPath,
        nearest: Option<String>,
    },
    /// A key that stands twice in one object; the later one holds.
    DuplicateField {
        origin: Origin,
        path: FieldPath,
    },
    /// A file holds more than one document; the first one counts.
    FurtherDocument {
        origin: Origin,
    },
    /// Fields of the files, set away from their default, that change nothing yet.
    IdleFields(Vec<(FieldPath, Origin)>),
    IdleFlags(Vec<&'static str>),
    IdleGates(Vec<String>),
    /// A value that is taken to mean something else here, or not taken at all.
    TakenOtherwise {
        origin: Origin,
        path: FieldPath,
        reason: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::UnknownField { origin, path, nearest } => {
                write!(f, "{origin}: {path}: unknown field, ignored")?;
                match nearest {
                    Some(nearest) => write!(f, "; the nearest known one is {nearest}"),
                    None => Ok(()),
                }
            }
            Warning::DuplicateField { origin, path } => {
                write!(f, "{origin}: {path}: stands here a second time, the last one holds")
            }
            Warning::FurtherDocument { origin } => {
                write!(f, "{origin}: another document starts here, ignored")
            }
            Warning::IdleFields(fields) => {
                f.write_str("fields that are set and do nothing yet: ")?;
                list(f, fields, |(path, origin)| format!("{path} ({origin})"))
            }
            Warning::IdleFlags(flags) => {
                f.write_str("flags that are given and do nothing yet: ")?;
                list(f, flags, |flag| format!("--{flag}"))
            }
            Warning::IdleGates(gates) => {
                f.write_str("feature gates that are set and change nothing here: ")?;
                list(f, gates, String::clone)
            }
            Warning::TakenOtherwise { origin, path, reason } => {
                write!(f, "{origin}: {path}: {reason}")
            }
        }
    }
}

fn list<T>(f: &mut fmt::Formatter<'_>, items: &[T], text: impl Fn(&T) -> String) -> fmt::Result {
    f.write_str(&items.iter().map(text).collect::<Vec<_>>().join(", "))
}

/// Names what was set and changes nothing, one warning for the files and one for the flags.
pub fn idle(tree: &Tree, era: Era, gates: &FeatureGates, given: &GivenFlags) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut fields = Vec::new();
    for field in FIELDS.iter().filter(|field| field.status != Status::Works) {
        let path = FieldPath::of_field(field.path);
        let default = preset(field.path, &field.default, era, gates);
        let origin = tree.origin(&path);
        if matches!(origin, Origin::File { .. }) && tree.get(&path) != default.as_ref() {
            fields.push((path, origin));
        }
    }
    if !fields.is_empty() {
        warnings.push(Warning::IdleFields(fields));
    }
    let mut flags: Vec<_> =
        given.uses.iter().filter(|(flag, _)| flag.status() != Status::Works).map(|(flag, _)| flag.name()).collect();
    flags.sort_unstable();
    flags.dedup();
    if !flags.is_empty() {
        warnings.push(Warning::IdleFlags(flags));
    }
    warnings
}

fn list_at<'t>(tree: &'t Tree, path: &FieldPath) -> impl Iterator<Item = (usize, &'t Value)> {
    tree.get(path).and_then(Value::as_array).into_iter().flatten().enumerate()
}

/// Values that mean something else here than they do upstream.
pub fn taken_otherwise(tree: &Tree) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warn = |path: FieldPath, reason: String| {
        let origin = tree.origin(&path);
        warnings.push(Warning::TakenOtherwise { origin, path, reason });
    };
    let text = |path: &FieldPath| tree.get(path).and_then(|v| v.as_str()).unwrap_or_default();

    let content_type = FieldPath::of_field("contentType");
    let json = text(&content_type) == "application/json";
    if tree.origin(&content_type) != Origin::Default && !json {
        warn(content_type, "requests to the API server are made in JSON all the same".to_owned());
    }
    let detection = FieldPath::of_field("configMapAndSecretChangeDetectionStrategy");
    if text(&detection) != "Watch" {
        warn(detection, "ConfigMaps and Secrets are watched all the same".to_owned());
    }
    // Where nothing of a list is left, the server says so and does not start.
    let suites = FieldPath::of_field("tlsCipherSuites");
    for (index, suite) in list_at(tree, &suites) {
        if let Some(suite) = suite.as_str().filter(|suite| !tls::is_cipher_suite_offered(suite)) {
            warn(suites.child(index), format!("not offered by Ferrolet's TLS library, left out: {suite}"));
        }
    }
    let curves = FieldPath::of_field("tlsCurvePreferences");
    for (index, curve) in list_at(tree, &curves) {
        if let Some(curve) = curve.as_i64().filter(|&curve| !i32::try_from(curve).is_ok_and(tls::is_curve_offered)) {
            warn(curves.child(index), format!("not offered by Ferrolet's TLS library, left out: {curve}"));
        }
    }
    let version = FieldPath::of_field("tlsMinVersion");
    if matches!(text(&version), "VersionTLS10" | "VersionTLS11") {
        warn(version, "versions below 1.2 are not offered by Ferrolet's TLS library".to_owned());
    }
    let dns = FieldPath::of_field("clusterDNS");
    let servers = tree.get(&dns).and_then(|v| v.as_array());
    for (index, server) in servers.into_iter().flatten().enumerate() {
        let server = server.as_str().unwrap_or_default();
        if server.parse::<std::net::IpAddr>().is_err() {
            warn(dns.child(index), format!("not an IP address, left out: {server:?}"));
        }
    }
    warnings
}
