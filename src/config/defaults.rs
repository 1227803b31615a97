//! Fills the document with what nobody has said.

use serde_json::{Map, Value, json};

use super::field::Preset;
use super::fields::{EVICTION_HARD, FIELDS};
use super::gates::{FeatureGates, Gate};
use super::path::FieldPath;
use super::tree::{Origin, Tree};

/// Which defaults hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Era {
    /// Those of KubeletConfiguration v1beta1.
    V1beta1,
    /// Upstream's flags are older than the file and kept their own defaults for some fields;
    /// they hold as long as neither --config nor --config-dir is used.
    Legacy,
}

/// The default of a field nobody mentions; `None` where absence is the default.
pub fn preset(path: &str, preset: &Preset, era: Era, gates: &FeatureGates) -> Option<Value> {
    if era == Era::Legacy {
        match path {
            "authentication.anonymous.enabled" => return Some(true.into()),
            "authentication.webhook.enabled" => return Some(false.into()),
            "authorization.mode" => return Some("AlwaysAllow".into()),
            "readOnlyPort" => return Some(10_255.into()),
            _ => {}
        }
    }
    let value = match preset {
        Preset::Absent => return None,
        Preset::Bool(on) => (*on).into(),
        Preset::Integer(number) => (*number).into(),
        Preset::Float(number) => (*number).into(),
        Preset::Text(text) => (*text).into(),
        Preset::List(items) => json!(items),
        Preset::Map(entries) => object(entries),
        Preset::Derived => match path {
            "nodeStatusReportFrequency" => "5m0s".into(),
            "serializeImagePulls" => true.into(),
            "imagePullCredentialsVerificationPolicy" => match gates.enabled(Gate::KubeletEnsureSecretPulledImages) {
                true => "NeverVerifyPreloadedImages".into(),
                false => "".into(),
            },
            "crashLoopBackOff.maxContainerRestartPeriod" => {
                return gates.enabled(Gate::KubeletCrashLoopBackOffMax).then(|| "5m0s".into());
            }
            _ => return None,
        },
    };
    Some(value)
}

fn object(entries: &[(&str, &str)]) -> Value {
    let entries = entries.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value)));
    Value::Object(entries.collect::<Map<_, _>>())
}

/// Gives every absent field its default. Runs on the main file and again after the drop-ins,
/// as upstream does, so a field that follows another one follows what the main file says.
pub fn fill(tree: &mut Tree, era: Era, gates: &FeatureGates) {
    let get = |tree: &Tree, path: &str| tree.get(&FieldPath::of_field(path)).cloned();
    // Before the defaults are in, what is there was said by someone.
    let update_frequency = get(tree, "nodeStatusUpdateFrequency").filter(|v| v != "0s");
    let parallel_pulls = get(tree, "maxParallelImagePulls").and_then(|v| v.as_i64());
    for field in FIELDS {
        let path = FieldPath::of_field(field.path);
        let zero = |value: &Value| !field.zero_counts && field.kind.is_zero(value);
        if tree.get(&path).is_some_and(|value| !value.is_null() && !zero(value)) {
            continue;
        }
        let value = match field.path {
            "nodeStatusReportFrequency" if update_frequency.is_some() => update_frequency.clone(),
            "serializeImagePulls" if parallel_pulls.is_some_and(|n| n >= 2) => Some(false.into()),
            _ => preset(field.path, &field.default, era, gates),
        };
        // A zero that is the default as well keeps its origin: somebody did write it.
        match value {
            Some(value) if tree.get(&path) != Some(&value) => {
                tree.set(&path, value, &Origin::Default);
            }
            Some(_) | None => {}
        }
    }
    if get(tree, "mergeDefaultEvictionSettings") == Some(true.into()) {
        let hard = FieldPath::of_field("evictionHard");
        for (signal, value) in EVICTION_HARD {
            if tree.get(&hard.child(signal)).is_none() {
                tree.set(&hard.child(signal), (*value).into(), &Origin::Default);
            }
        }
    }
}
