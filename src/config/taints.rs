//! Taints as flags and files write them.

use k8s_openapi::api::core::v1::Taint;
use serde_json::{Value, json};

use super::labels::{LabelError, check_key, check_value};

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TaintError {
    #[error("expected key=value:Effect or key:Effect, found {0:?}")]
    NotATaint(String),
    #[error("taint effect must be one of {effects}, found {0:?}", effects = EFFECTS.join(", "))]
    Effect(String),
    #[error("taint {0} must not carry timeAdded")]
    TimeAdded(String),
    #[error("taint {key}:{effect} is given twice")]
    Twice { key: String, effect: String },
    #[error(transparent)]
    Label(#[from] LabelError),
}

/// Reads `key=value:Effect` or `key:Effect` into the shape the document has.
fn parse(text: &str) -> Result<Value, TaintError> {
    let not_a_taint = || TaintError::NotATaint(text.to_owned());
    let (label, effect) = text.split_once(':').ok_or_else(not_a_taint)?;
    let (key, value) = label.split_once('=').unwrap_or((label, ""));
    if effect.contains(':') || value.contains('=') {
        return Err(not_a_taint());
    }
    let mut taint = json!({ "key": key, "effect": effect });
    if !value.is_empty() {
        taint["value"] = value.into();
    }
    of_value(&taint)?;
    Ok(taint)
}

/// Reads the taints of a flag, separated by commas.
pub fn parse_list(text: &str) -> Result<Vec<Value>, TaintError> {
    let mut taints: Vec<Value> = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let taint = parse(part.trim())?;
        let same = |other: &Value| other["key"] == taint["key"] && other["effect"] == taint["effect"];
        if taints.iter().any(same) {
            let text = |field: &str| taint[field].as_str().unwrap_or_default().to_owned();
            return Err(TaintError::Twice { key: text("key"), effect: text("effect") });
        }
        taints.push(taint);
    }
    Ok(taints)
}

/// Takes a taint out of the document.
pub fn of_value(value: &Value) -> Result<Taint, TaintError> {
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    let (key, effect) = (text("key"), text("effect"));
    check_key(key)?;
    check_value(text("value"))?;
    if !EFFECTS.contains(&effect) {
        return Err(TaintError::Effect(effect.to_owned()));
    }
    if !value["timeAdded"].is_null() {
        return Err(TaintError::TimeAdded(key.to_owned()));
    }
    Ok(Taint {
        key: key.to_owned(),
        value: Some(text("value").to_owned()).filter(|value| !value.is_empty()),
        effect: effect.to_owned(),
        time_added: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_read() {
        let check = |text: &str, key: &str, value: Option<&str>, effect: &str| {
            let taint = of_value(&parse(text).expect(text)).expect(text);
            assert_eq!((taint.key.as_str(), taint.value.as_deref()), (key, value));
            assert_eq!(taint.effect, effect);
        };
        check("dedicated=edge:NoSchedule", "dedicated", Some("edge"), "NoSchedule");
        let control_plane = "node-role.kubernetes.io/control-plane";
        check(&format!("{control_plane}:NoSchedule"), control_plane, None, "NoSchedule");
        check("a=:NoExecute", "a", None, "NoExecute");
    }

    #[test]
    fn what_is_no_taint_is_refused() {
        let check = |text: &str, expected: &str| {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("a", "expected key=value:Effect");
        check("a=b", "expected key=value:Effect");
        check("a=b:c:NoExecute", "expected key=value:Effect");
        let twice = parse_list("a=b:NoExecute,a:NoExecute").expect_err("the same taint twice");
        assert_eq!(twice.to_string(), "taint a:NoExecute is given twice");
        check("a:noschedule", "taint effect must be one of");
        check("=b:NoExecute", "label key");
        check("a=b c:NoExecute", "label value");
    }
}
