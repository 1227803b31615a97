//! The downward API: fields of a pod and figures of its containers, as text.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use super::containers;
use super::resources::{Amounts, Resources, amounts, is_hugepages};
use super::spec;
use crate::config::quantity::{self, Quantity};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    #[error("unsupported fieldPath: {0}")]
    UnsupportedPath(String),
    #[error("fieldPath {0:?} does not support subscript")]
    NoSubscript(String),
    #[error("invalid key subscript in {path}: {reason}")]
    InvalidSubscript { path: String, reason: &'static str },
    // The blank before the colon is upstream's.
    #[error("unsupported container resource : {0}")]
    UnsupportedResource(String),
    #[error("container {0} not found")]
    NoContainer(String),
    #[error("divisor {0:?} of a resourceFieldRef is not a quantity")]
    InvalidDivisor(String),
}

/// What the fields need that is not in the pod's spec.
#[derive(Clone, Copy, Debug)]
pub struct FieldContext<'a> {
    /// The node's addresses, the one of the node's own family first.
    pub host_ips: &'a [IpAddr],
    /// The pod's addresses, in the order of its status.
    pub pod_ips: &'a [IpAddr],
}

/// The value of a `fieldRef`. A label, annotation or address that is not there reads as "".
pub fn field_ref(pod: &Pod, path: &str, context: &FieldContext<'_>) -> Result<String, FieldError> {
    if let Some((map, key)) = split_subscript(path) {
        return subscript(pod, path, map, key);
    }
    let metadata = &pod.metadata;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    Ok(match path {
        "metadata.name" => text(&metadata.name),
        "metadata.namespace" => text(&metadata.namespace),
        "metadata.uid" => text(&metadata.uid),
        "metadata.labels" => map_text(metadata.labels.iter().flatten()),
        "metadata.annotations" => map_text(metadata.annotations.iter().flatten()),
        "spec.nodeName" => text(&spec(pod).node_name),
        "spec.serviceAccountName" => text(&spec(pod).service_account_name),
        "status.hostIP" => first(context.host_ips),
        "status.hostIPs" => joined(context.host_ips),
        "status.podIP" => first(context.pod_ips),
        "status.podIPs" => joined(context.pod_ips),
        _ => return Err(FieldError::UnsupportedPath(path.to_owned())),
    })
}

/// The value of a `resourceFieldRef`, in units of its divisor and rounded up. `container` is
/// the one that asks (none for a volume); the selector may name another one. A missing limit
/// reads as the pod's, else as all that the node has to give.
pub fn resource_ref(
    pod: &Pod,
    container: Option<&Container>,
    selector: &ResourceFieldSelector,
    node_allocatable: &Amounts,
) -> Result<String, FieldError> {
    let named = selector.container_name.as_deref().filter(|name| !name.is_empty());
    let found = named.map(|name| {
        containers::find(pod, name).map(|(_, container)| container).ok_or(FieldError::NoContainer(name.to_owned()))
    });
    let found = found.transpose()?;
    let container = found.as_deref().or(container).ok_or_else(|| FieldError::NoContainer(String::new()))?;

    let resource = selector.resource.as_str();
    let unsupported = || FieldError::UnsupportedResource(resource.to_owned());
    let (kind, name) = resource.split_once('.').ok_or_else(unsupported)?;
    if !(matches!(name, "cpu" | "memory" | "ephemeral-storage") || is_hugepages(name)) {
        return Err(unsupported());
    }
    let own = Resources::of_container(container);
    let amount = match kind {
        "requests" => own.requests.get(name).copied(),
        "limits" => limit(pod, &own.limits, name, node_allocatable),
        _ => return Err(unsupported()),
    };
    let divisor = match &selector.divisor {
        Some(divisor) => quantity::parse(&divisor.0).map_err(|_| FieldError::InvalidDivisor(divisor.0.clone()))?,
        None => Quantity::ZERO,
    };
    Ok(in_units(name, amount.unwrap_or(Quantity::ZERO), divisor).to_string())
}

fn limit(pod: &Pod, own: &Amounts, name: &str, node_allocatable: &Amounts) -> Option<Quantity> {
    let set = |amounts: &Amounts| amounts.get(name).copied().filter(|amount| !amount.is_zero());
    if is_hugepages(name) {
        // Huge pages are never overcommitted, so no limit means none of them.
        return set(own);
    }
    let pod_level = || set(&amounts(spec(pod).resources.as_ref()?.limits.as_ref()));
    set(own).or_else(pod_level).or_else(|| set(node_allocatable))
}

/// CPU is divided in thousandths, all else in whole units. No divisor means one.
fn in_units(name: &str, amount: Quantity, divisor: Quantity) -> i64 {
    let (amount, divisor) = match name {
        "cpu" => (amount.milli_value(), if divisor.is_zero() { 1000 } else { divisor.milli_value() }),
        _ => (amount.value(), if divisor.is_zero() { 1 } else { divisor.value() }),
    };
    // Neither is ever negative, so one more than the floor is the ceiling of a fraction.
    amount / divisor + i64::from(amount % divisor > 0)
}

/// `metadata.labels['key']` as map and key.
fn split_subscript(path: &str) -> Option<(&str, &str)> {
    let (map, key) = path.strip_suffix("']")?.split_once("['")?;
    (!map.is_empty()).then_some((map, key))
}

fn subscript(pod: &Pod, path: &str, map: &str, key: &str) -> Result<String, FieldError> {
    let (entries, checked) = match map {
        "metadata.labels" => (&pod.metadata.labels, key.to_owned()),
        // Annotation keys may have capitals in their prefix.
        "metadata.annotations" => (&pod.metadata.annotations, key.to_ascii_lowercase()),
        _ => return Err(FieldError::NoSubscript(path.to_owned())),
    };
    super::names::qualified_name(&checked)
        .map_err(|reason| FieldError::InvalidSubscript { path: path.to_owned(), reason })?;
    Ok(entries.as_ref().and_then(|entries| entries.get(key)).cloned().unwrap_or_default())
}

fn first(ips: &[IpAddr]) -> String {
    ips.first().map(IpAddr::to_string).unwrap_or_default()
}

fn joined(ips: &[IpAddr]) -> String {
    ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

/// A whole map, one `key="value"` a line in the order of the keys.
fn map_text<'a>(entries: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    entries.map(|(key, value)| format!("{key}={}", quoted(value))).collect::<Vec<_>>().join("\n")
}

/// A string literal as Go's `%q` writes it; programs in pods parse these files.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\x07' => quoted.push_str("\\a"),
            '\x08' => quoted.push_str("\\b"),
            '\x0c' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\x0b' => quoted.push_str("\\v"),
            c if is_printable(c) => quoted.push(c),
            c if c.is_ascii() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if u32::from(c) <= 0xffff => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    quoted.push('"');
    quoted
}

/// Whether the standard library would show the character as it is. Behind another
/// character, combining marks do count as printable, as they do in Go.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return c == ' ' || c.is_ascii_graphic();
    }
    let mut text = [0; 5];
    text[0] = b'.';
    let length = 1 + c.encode_utf8(&mut text[1..]).len();
    let text = str::from_utf8(&text[..length]).expect("a dot and an encoded character are UTF-8");
    text.escape_debug().nth(1) == Some(c)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::pod::testing::{pod_yaml, yaml};

    fn check_field(path: &str, expected: Result<&str, &str>) {
        let pod = pod_yaml(
            r#"
            metadata:
              labels: {app: web, tier: "front"}
              annotations: {example.com/Note: "a \"b\"\nc", empty: ""}
            spec: {nodeName: n1, serviceAccountName: robot, containers: []}
            "#,
        );
        let ip = |text: &str| text.parse().expect("a test address parses");
        let context =
            FieldContext { host_ips: &[ip("10.0.0.1"), ip("fd00::1")], pod_ips: &[ip("10.1.0.7"), ip("fd01::7")] };
        let got = field_ref(&pod, path, &context);
        let got = got.as_deref().map_err(|error| error.to_string());
        assert_eq!(got, expected.map_err(str::to_owned), "{path}");
    }

    #[test]
    fn fields_read_as_text() {
        check_field("metadata.name", Ok("web-0"));
        check_field("metadata.namespace", Ok("shop"));
        check_field("metadata.uid", Ok("0b1d2f6c-1111-2222-3333-444455556666"));
        check_field("metadata.labels['app']", Ok("web"));
        check_field("metadata.labels['none']", Ok(""));
        check_field("metadata.labels", Ok("app=\"web\"\ntier=\"front\""));
        check_field("metadata.annotations", Ok("empty=\"\"\nexample.com/Note=\"a \\\"b\\\"\\nc\""));
        check_field("metadata.annotations['example.com/Note']", Ok("a \"b\"\nc"));
        check_field("spec.nodeName", Ok("n1"));
        check_field("spec.serviceAccountName", Ok("robot"));
        check_field("status.hostIP", Ok("10.0.0.1"));
        check_field("status.hostIPs", Ok("10.0.0.1,fd00::1"));
        check_field("status.podIP", Ok("10.1.0.7"));
        check_field("status.podIPs", Ok("10.1.0.7,fd01::7"));
    }

    #[test]
    fn other_fields_are_refused() {
        check_field("spec.hostname", Err("unsupported fieldPath: spec.hostname"));
        check_field("spec.x['k']", Err("fieldPath \"spec.x['k']\" does not support subscript"));
        check_field(
            "metadata.labels['a b']",
            Err("invalid key subscript in metadata.labels['a b']: name part must consist of alphanumeric characters, \
                 '-', '_' or '.', and must start and end with an alphanumeric character"),
        );
    }

    #[test]
    fn values_are_quoted_as_go_does() {
        let check = |text: &str, expected: &str| assert_eq!(quoted(text), expected);
        check("plain é ü 日本", "\"plain é ü 日本\"");
        check("e\u{301}", "\"e\u{301}\"");
        check("\u{301}", "\"\u{301}\"");
        check("tab\tnul\0bell\x07del\x7f", "\"tab\\tnul\\x00bell\\adel\\x7f\"");
        check("'single'", "\"'single'\"");
        check("no-break\u{a0}zero\u{200b}", "\"no-break\\u00a0zero\\u200b\"");
        check("\u{e0001}", "\"\\U000e0001\"");
        check("👍", "\"👍\"");
    }

    fn check_resource(selector: &str, expected: Result<&str, &str>) {
        let pod = pod_yaml(
            "
            spec:
              resources: {limits: {memory: 3Gi}}
              containers:
              - name: web
                image: a
                resources: {requests: {cpu: 250m, memory: 100M}, limits: {cpu: 1500m, hugepages-2Mi: 4Mi}}
              - {name: bare, image: a}
            ",
        );
        let allocatable = BTreeMap::from(
            [("cpu", "4"), ("memory", "8Gi"), ("ephemeral-storage", "10Gi"), ("hugepages-2Mi", "64Mi")]
                .map(|(name, amount)| (name.to_owned(), quantity::parse(amount).expect("a test amount parses"))),
        );
        let selector: ResourceFieldSelector = yaml(selector);
        let asking = &containers::regular_containers(&pod)[0];
        let got = resource_ref(&pod, Some(asking), &selector, &allocatable);
        let got = got.as_deref().map_err(|error| error.to_string());
        assert_eq!(got, expected.map_err(str::to_owned), "{selector:?}");
    }

    #[test]
    fn figures_are_rounded_up_in_units_of_the_divisor() {
        check_resource("{resource: requests.cpu}", Ok("1"));
        check_resource("{resource: requests.cpu, divisor: 1m}", Ok("250"));
        check_resource("{resource: limits.cpu}", Ok("2"));
        check_resource("{resource: limits.cpu, divisor: '0'}", Ok("2"));
        check_resource("{resource: requests.memory, divisor: 1Mi}", Ok("96"));
        check_resource("{resource: requests.memory}", Ok("100000000"));
        check_resource("{resource: limits.hugepages-2Mi, divisor: 1Mi}", Ok("4"));
        check_resource("{resource: requests.ephemeral-storage}", Ok("0"));
        check_resource("{resource: requests.cpu, containerName: bare}", Ok("0"));
    }

    #[test]
    fn a_missing_limit_is_the_pods_or_the_nodes() {
        check_resource("{resource: limits.memory, divisor: 1Gi}", Ok("3"));
        check_resource("{resource: limits.ephemeral-storage, divisor: 1Gi}", Ok("10"));
        check_resource("{resource: limits.cpu, containerName: bare}", Ok("4"));
        check_resource("{resource: limits.hugepages-2Mi, containerName: bare}", Ok("0"));
    }

    #[test]
    fn other_resources_are_refused() {
        check_resource("{resource: limits.gpu}", Err("unsupported container resource : limits.gpu"));
        check_resource("{resource: cpu}", Err("unsupported container resource : cpu"));
        check_resource("{resource: limits.cpu, containerName: gone}", Err("container gone not found"));
        check_resource(
            "{resource: limits.cpu, divisor: x}",
            Err("divisor \"x\" of a resourceFieldRef is not a quantity"),
        );
    }
}
