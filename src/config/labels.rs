//! Label syntax, and which labels a node may give itself.

/// Keys with the prefix kubernetes.io or k8s.io that a node may set at registration.
const ALLOWED: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// Prefixes under which everything may be set, subdomains included.
const ALLOWED_PREFIXES: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LabelError {
    #[error("label key {0:?} is not [prefix/]name with a name of at most 63 letters, digits, -, _ and .")]
    Key(String),
    #[error("label value {0:?} is not empty or at most 63 letters, digits, -, _ and .")]
    Value(String),
    #[error(
        "a node may not give itself the label {0}: of the kubernetes.io and k8s.io labels it may \
         set those under kubelet.kubernetes.io and node.kubernetes.io, and {allowed}",
        allowed = ALLOWED.join(", ")
    )]
    NotAllowed(String),
}

/// Checks one label of `--node-labels`.
pub fn check_node_label(key: &str, value: &str) -> Result<(), LabelError> {
    check_key(key)?;
    check_value(value)?;
    let Some((prefix, _)) = key.split_once('/') else {
        return Ok(());
    };
    let within =
        |domain: &str| prefix.strip_suffix(domain).is_some_and(|front| front.is_empty() || front.ends_with('.'));
    let reserved = within("kubernetes.io") || within("k8s.io");
    if reserved && !ALLOWED.contains(&key) && !ALLOWED_PREFIXES.iter().any(|p| within(p)) {
        return Err(LabelError::NotAllowed(key.to_owned()));
    }
    Ok(())
}

/// A qualified name: an optional DNS subdomain and a slash, then a name.
pub fn check_key(key: &str) -> Result<(), LabelError> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    match is_name(name) && prefix.is_none_or(is_dns_subdomain) {
        true => Ok(()),
        false => Err(LabelError::Key(key.to_owned())),
    }
}

pub fn check_value(value: &str) -> Result<(), LabelError> {
    match value.is_empty() || is_name(value) {
        true => Ok(()),
        false => Err(LabelError::Value(value.to_owned())),
    }
}

fn is_name(name: &str) -> bool {
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

/// Lower-case RFC 1123 labels joined by dots, as a node name must be as well.
pub fn is_dns_subdomain(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.len() <= 253
        && text.split('.').all(|label| {
            let ends = |b: Option<&u8>| b.is_some_and(|b| plain(*b));
            let bytes = label.as_bytes();
            ends(bytes.first()) && ends(bytes.last()) && bytes.iter().all(|b| plain(*b) || *b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_and_foreign_labels_pass() {
        for (key, value) in [
            ("pool", "edge"),
            ("example.com/pool", ""),
            ("kubernetes.io/hostname", "a"),
            ("topology.kubernetes.io/zone", "z-1"),
            ("node.kubernetes.io/anything", "1"),
            ("sub.node.kubernetes.io/anything", "1"),
            ("kubelet.kubernetes.io/x", "1"),
            ("notkubernetes.io/x", "1"),
        ] {
            assert_eq!(check_node_label(key, value), Ok(()), "{key}={value}");
        }
    }

    #[test]
    fn labels_of_others_are_refused() {
        for key in [
            "kubernetes.io/role",
            "node-role.kubernetes.io/master",
            "node-restriction.kubernetes.io/x",
            "k8s.io/x",
            "sub.k8s.io/x",
            "notnode.kubernetes.io/x",
        ] {
            let refused = Err(LabelError::NotAllowed(key.to_owned()));
            assert_eq!(check_node_label(key, ""), refused, "{key}");
        }
    }

    #[test]
    fn bad_syntax_is_refused() {
        for key in ["", "-a", "a-", "a/b/c", "/a", "a/", "Ä", "EXAMPLE.com/a", "a..b/c"] {
            assert_eq!(check_key(key), Err(LabelError::Key(key.to_owned())), "{key}");
        }
        let long = "x".repeat(64);
        for value in ["-a", "a b", "a/b", long.as_str()] {
            assert_eq!(check_value(value), Err(LabelError::Value(value.to_owned())), "{value}");
        }
    }
}
