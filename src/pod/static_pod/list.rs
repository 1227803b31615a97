//! Documents that hold one manifest or a list of them.

use serde_json::{Map, Value};

use super::{ManifestError, first_document};

/// One manifest of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// `namespace/name` as written, by which an item is known again when the list has changed.
    /// Absent where it cannot be told.
    pub name: Option<String>,
    /// To be decoded.
    pub text: Vec<u8>,
}

/// The manifests of a document that is a Pod or a PodList. What one of them holds is not
/// looked at, so that a broken one does not cost the others.
pub fn items(document: &[u8]) -> Result<Vec<Item>, ManifestError> {
    let text = std::str::from_utf8(document).map_err(|_| ManifestError::NotText)?;
    let value: Value = first_document(text)?;
    let of = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    match (of("apiVersion"), of("kind")) {
        // As it was written, so that errors tell its own lines.
        ("v1", "Pod") => Ok(vec![Item { name: name(&value), text: document.to_vec() }]),
        ("v1", "PodList") => match value.get("items") {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(list)) => Ok(list.iter().map(item).collect()),
            Some(_) => Err(ManifestError::Field { field: "items".into(), message: "expected a list".into() }),
        },
        (api_version, kind) => {
            Err(ManifestError::NeitherPodNorList { kind: kind.to_owned(), api_version: api_version.to_owned() })
        }
    }
}

/// Of what kind an item is need not be said: the list has.
fn item(written: &Value) -> Item {
    let mut pod = Map::from_iter([("apiVersion".to_owned(), "v1".into()), ("kind".to_owned(), "Pod".into())]);
    if let Value::Object(written) = written {
        pod.extend(written.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    Item { name: name(written), text: Value::Object(pod).to_string().into_bytes() }
}

fn name(pod: &Value) -> Option<String> {
    let metadata = pod.get("metadata")?;
    let name = metadata.get("name")?.as_str().filter(|name| !name.is_empty())?;
    let namespace = match metadata.get("namespace") {
        None | Some(Value::Null) => "",
        Some(namespace) => namespace.as_str()?,
    };
    Some(format!("{}/{name}", if namespace.is_empty() { "default" } else { namespace }))
}
