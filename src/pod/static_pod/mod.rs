//! Static pods: from the text of a manifest to the pod that shall run.
//!
//! A manifest does not pass the API server, so what that would do is done here: defaults
//! (`defaults.rs`), and the checks without which a pod would fail later and less clearly
//! (`validate.rs`). On top come the marks of a static pod: its UID made from its content,
//! the node's name behind its own, annotations, and a toleration that keeps it where it is.

mod defaults;
mod list;
mod locate;
#[cfg(test)]
mod tests;
mod validate;

use std::fmt;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus, Toleration};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use serde_saphyr::DuplicateKeyPolicy;

pub use list::{Item, items};

use super::{Source, static_pod_uid};

pub const HASH_ANNOTATION: &str = "kubernetes.io/config.hash";
pub const SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
pub const SEEN_ANNOTATION: &str = "kubernetes.io/config.seen";

/// Where a manifest comes from; all of it goes into the pod's identity.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    pub source: Source,
    /// Path or URL.
    pub place: &'a str,
    pub node_name: &'a str,
    /// Whether its pods may mention what only the API server has.
    pub may_need_api: bool,
    pub seen: Timestamp,
}

/// A manifest as it was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    pub pod: Pod,
    /// What was passed over, for the person who wrote it.
    pub warnings: Vec<String>,
}

/// Why a manifest gives no pod. The reader adds which file it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("manifest is empty")]
    Empty,
    #[error("manifest is not UTF-8 text")]
    NotText,
    #[error("manifest is neither YAML nor JSON: {0}")]
    Syntax(String),
    #[error("expected a Pod of apiVersion v1, found kind {kind:?} of apiVersion {api_version:?}")]
    OtherKind { kind: String, api_version: String },
    #[error("expected a Pod or a PodList of apiVersion v1, found kind {kind:?} of apiVersion {api_version:?}")]
    NeitherPodNorList { kind: String, api_version: String },
    #[error("{field}: {message}")]
    Field { field: String, message: String },
    #[error("invalid pod: {}", joined(.0))]
    Invalid(Vec<Problem>),
}

/// One thing that is wrong with a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Empty where the pod as a whole is meant.
    pub field: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => f.write_str(&self.message),
            field => write!(f, "{field}: {}", self.message),
        }
    }
}

fn joined(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ")
}

/// The static pod that a manifest describes.
pub fn decode(manifest: &[u8], origin: &Origin<'_>) -> Result<Manifest, ManifestError> {
    let text = std::str::from_utf8(manifest).map_err(|_| ManifestError::NotText)?;
    let (written, warnings) = parse(text)?;
    let pod = complete(written, origin);
    match validate::problems(&pod, origin.node_name, origin.may_need_api) {
        problems if problems.is_empty() => Ok(Manifest { pod, warnings }),
        problems => Err(ManifestError::Invalid(problems)),
    }
}

/// The pod as it was written, and what the parser passed over.
fn parse(text: &str) -> Result<(Pod, Vec<String>), ManifestError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        #[serde(default)]
        api_version: String,
        #[serde(default)]
        kind: String,
    }
    let kind: Kind = first_document(text)?;
    if (kind.api_version.as_str(), kind.kind.as_str()) != ("v1", "Pod") {
        return Err(ManifestError::OtherKind { kind: kind.kind, api_version: kind.api_version });
    }
    let pod: Pod = first_document(text)?;

    let mut warnings = Vec::new();
    let mut unknown = Vec::new();
    let understood = serde_json::to_value(&pod).expect("a pod always serializes: its keys are strings");
    unknown_fields(&first_document(text)?, &understood, "", &mut unknown);
    warnings.extend(unknown.iter().map(|field| format!("unknown field {field} is ignored")));
    let mut bytes = text.as_bytes();
    let documents = serde_saphyr::read_with_options::<_, IgnoredAny>(&mut bytes, reading()).take_while(Result::is_ok);
    let documents = documents.count();
    if documents > 1 {
        warnings.push(format!("only the first of {documents} documents is read, a manifest holds one pod"));
    }
    Ok((pod, warnings))
}

/// As upstream reads manifests: the later of two equal keys wins, `0644` is octal.
fn reading() -> serde_saphyr::Options {
    serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        legacy_octal_numbers: true,
        with_snippet: false,
    }
}

/// The first document that is not empty. JSON is YAML, so this reads both.
fn first_document<T: DeserializeOwned>(text: &str) -> Result<T, ManifestError> {
    let mut bytes = text.as_bytes();
    let document = serde_saphyr::read_with_options(&mut bytes, reading()).next().ok_or(ManifestError::Empty)?;
    document.map_err(|error| {
        let at = error.location().map(|location| (location.line(), location.column()));
        let message = error.to_string();
        match at.and_then(|(line, column)| locate::path_at(text, line, column)) {
            Some(field) => ManifestError::Field { field, message },
            None => ManifestError::Syntax(message),
        }
    })
}

/// Paths of what was written and is not in `understood`. A null says nothing.
fn unknown_fields(written: &Value, understood: &Value, path: &str, unknown: &mut Vec<String>) {
    match (written, understood) {
        (Value::Object(written), Value::Object(understood)) => {
            for (key, value) in written.iter().filter(|(_, value)| !value.is_null()) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match understood.get(key) {
                    Some(understood) => unknown_fields(value, understood, &path, unknown),
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(written), Value::Array(understood)) => {
            for (index, (written, understood)) in written.iter().zip(understood).enumerate() {
                unknown_fields(written, understood, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

/// Makes a static pod of what was written.
fn complete(mut pod: Pod, origin: &Origin<'_>) -> Pod {
    let uid = match pod.metadata.uid.take().filter(|uid| !uid.is_empty()) {
        Some(uid) => uid,
        None => static_pod_uid(&pod, &identity_of_place(origin)),
    };
    defaults::fill_in(&mut pod);

    let metadata = &mut pod.metadata;
    metadata.uid = Some(uid.clone());
    if let Some(name) = metadata.name.as_mut().filter(|name| !name.is_empty()) {
        *name = format!("{name}-{}", origin.node_name.to_lowercase());
    }
    if metadata.namespace.as_deref().unwrap_or_default().is_empty() {
        metadata.namespace = Some("default".into());
    }
    metadata.annotations.get_or_insert_default().extend([
        (HASH_ANNOTATION.to_owned(), uid),
        (SOURCE_ANNOTATION.to_owned(), origin.source.as_str().to_owned()),
        (SEEN_ANNOTATION.to_owned(), origin.seen.to_string()),
    ]);
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = Some(origin.node_name.to_owned());
    if origin.source == Source::File {
        // Node problems evict pods by NoExecute taints; who put a file here wants it here.
        let everything =
            Toleration { operator: Some("Exists".into()), effect: Some("NoExecute".into()), ..Toleration::default() };
        let tolerations = spec.tolerations.get_or_insert_default();
        if !tolerations.contains(&everything) {
            tolerations.push(everything);
        }
    }
    pod.status = Some(PodStatus { phase: Some("Pending".into()), ..PodStatus::default() });
    pod
}

fn identity_of_place(origin: &Origin<'_>) -> String {
    match origin.source {
        Source::Http => format!("url:{}", origin.place),
        _ => format!("host:{}file:{}", origin.node_name, origin.place),
    }
}
