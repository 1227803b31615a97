//! Strategic merge patches, as far as a node agent sends them.

use ferrolet::kube::{ApiError, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Merges as the API server does for the lists a node agent patches: by their merge key.
fn strategic_merge(into: &mut Value, patch: &Value) {
    let (Value::Object(into), Value::Object(patch)) = (&mut *into, patch) else {
        *into = patch.clone();
        return;
    };
    for (field, value) in patch {
        if field.starts_with('$') {
            continue;
        }
        match value {
            Value::Null => {
                into.remove(field);
            }
            Value::Object(_) => {
                strategic_merge(into.entry(field).or_insert_with(|| Value::Object(Default::default())), value)
            }
            Value::Array(items) if field == "conditions" => {
                let list = into.entry(field).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(list) = list else { continue };
                for item in items {
                    let same = |other: &Value| other["type"] == item["type"];
                    if item["$patch"] == "delete" {
                        list.retain(|other| !same(other));
                    } else if let Some(existing) = list.iter_mut().find(|other| same(other)) {
                        strategic_merge(existing, item);
                    } else {
                        list.push(item.clone());
                    }
                }
            }
            Value::Array(items) => {
                let items = items.iter().filter(|item| item.get("$patch").is_none());
                into.insert(field.clone(), items.cloned().collect());
            }
            other => {
                into.insert(field.clone(), other.clone());
            }
        }
    }
}

pub(super) fn merged<T: Serialize + DeserializeOwned>(what: &str, object: &T, patch: &Value) -> Result<T> {
    let mut value = serde_json::to_value(object).expect("API objects are JSON");
    strategic_merge(&mut value, patch);
    serde_json::from_value(value)
        .map_err(|error| ApiError::Invalid { what: what.to_owned(), message: error.to_string() })
}
