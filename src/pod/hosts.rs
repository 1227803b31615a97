//! Host names and the `/etc/hosts` file of a pod.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use super::names;
use super::{PodRef, spec};

/// What the kernel takes as a host name.
const HOSTNAME_LENGTH_MAX: usize = 64;
/// What fits a DNS label.
const LABEL_LENGTH_MAX: usize = 63;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostnameError {
    #[error("pod {field} {name:?} is not a valid DNS {form}: {reason}")]
    Invalid { field: &'static str, form: &'static str, name: String, reason: &'static str },
    #[error(
        "pod asks for its FQDN as hostname, but {0:?} is longer than the {HOSTNAME_LENGTH_MAX} bytes the kernel takes"
    )]
    FqdnTooLong(String),
}

/// The names a pod goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodHostname {
    /// The first label.
    pub short: String,
    /// Only pods with a subdomain have one.
    pub domain: Option<String>,
}

impl PodHostname {
    pub fn of(pod: &Pod, cluster_domain: &str) -> Result<Self, HostnameError> {
        let spec = spec(pod);
        let invalid = |field, form, name: &str| {
            let name = name.to_owned();
            move |reason| HostnameError::Invalid { field, form, name, reason }
        };
        if let Some(name) = &spec.hostname_override {
            names::dns_subdomain(name).map_err(invalid("HostnameOverride", "subdomain", name))?;
            return Ok(PodHostname { short: truncated(name), domain: None });
        }
        let pod_ref = PodRef::of(pod);
        let short = match spec.hostname.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => {
                names::dns_label(name).map_err(invalid("Hostname", "label", name))?;
                name
            }
            None => &pod_ref.name,
        };
        let domain = match spec.subdomain.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => {
                names::dns_label(name).map_err(invalid("Subdomain", "label", name))?;
                Some(format!("{name}.{}.svc.{cluster_domain}", pod_ref.namespace))
            }
            None => None,
        };
        Ok(PodHostname { short: truncated(short), domain })
    }

    /// What the kernel in the pod is told: the short name, or the full one if the pod asks
    /// for it.
    pub fn for_kernel(&self, pod: &Pod) -> Result<String, HostnameError> {
        let (Some(domain), Some(true)) = (&self.domain, spec(pod).set_hostname_as_fqdn) else {
            return Ok(self.short.clone());
        };
        let fqdn = format!("{}.{domain}", self.short);
        if fqdn.len() > HOSTNAME_LENGTH_MAX {
            return Err(HostnameError::FqdnTooLong(fqdn));
        }
        Ok(fqdn)
    }
}

/// Pod names may be longer than a label; what is cut off must not leave a `-` or `.` behind.
fn truncated(name: &str) -> String {
    let Some(cut) = name.get(..LABEL_LENGTH_MAX) else {
        return name.to_owned();
    };
    match name.len() > LABEL_LENGTH_MAX {
        true => cut.trim_end_matches(['-', '.']).to_owned(),
        false => name.to_owned(),
    }
}

/// The hosts file of a pod with an address of its own.
pub fn hosts_file(pod: &Pod, hostname: &PodHostname, pod_ips: &[IpAddr]) -> String {
    let mut text = "\
# Kubernetes-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
"
    .to_owned();
    let short = &hostname.short;
    for ip in pod_ips {
        match &hostname.domain {
            Some(domain) => text.push_str(&format!("{ip}\t{short}.{domain}\t{short}\n")),
            None => text.push_str(&format!("{ip}\t{short}\n")),
        }
    }
    text + &aliases(pod)
}

/// The hosts file of a pod on the host's network: the node's own, and the pod's aliases.
pub fn hosts_file_of_host_network(pod: &Pod, node_hosts: &str) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{node_hosts}{}", aliases(pod))
}

fn aliases(pod: &Pod) -> String {
    let aliases = spec(pod).host_aliases.as_deref().unwrap_or_default();
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = "\n# Entries added by HostAliases.\n".to_owned();
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::pod_yaml;

    fn check_hostname(metadata_name: &str, spec: &str, expected: Result<&str, &str>) {
        let pod = pod_yaml(&format!("{{metadata: {{name: {metadata_name}}}, spec: {{containers: [], {spec}}}}}"));
        let got = PodHostname::of(&pod, "cluster.local").and_then(|hostname| hostname.for_kernel(&pod));
        let got = got.map_err(|error| error.to_string());
        assert_eq!(got.as_deref().map_err(String::as_str), expected, "{metadata_name} {spec}");
    }

    #[test]
    fn a_pod_is_called_by_its_name_unless_it_says_otherwise() {
        let a62 = "a".repeat(62);
        check_hostname("web-0", "", Ok("web-0"));
        check_hostname("web.0", "", Ok("web.0"));
        check_hostname("web-0", "hostname: db", Ok("db"));
        check_hostname("web-0", "hostname: db, subdomain: sub", Ok("db"));
        check_hostname("web-0", "subdomain: sub, setHostnameAsFQDN: true", Ok("web-0.sub.shop.svc.cluster.local"));
        check_hostname("web-0", "setHostnameAsFQDN: true", Ok("web-0"));
        check_hostname("web-0", "hostname: db, hostnameOverride: other.example", Ok("other.example"));
        check_hostname(&"a".repeat(80), "", Ok(&"a".repeat(63)));
        check_hostname(&format!("{a62}-b"), "", Ok(&a62));
        check_hostname(&format!("{a62}.b"), "", Ok(&a62));
    }

    #[test]
    fn bad_names_are_refused() {
        let label = "must consist of lower case letters, digits or '-', and start and end with a letter or digit";
        check_hostname("web-0", "hostname: A", Err(&format!("pod Hostname \"A\" is not a valid DNS label: {label}")));
        check_hostname(
            "web-0",
            "subdomain: a.b",
            Err(&format!("pod Subdomain \"a.b\" is not a valid DNS label: {label}")),
        );
        let name = "a".repeat(40);
        check_hostname(
            &name,
            "subdomain: sub, setHostnameAsFQDN: true",
            Err(&format!(
                "pod asks for its FQDN as hostname, but \"{name}.sub.shop.svc.cluster.local\" is longer than the 64 \
                 bytes the kernel takes"
            )),
        );
    }

    #[test]
    fn the_hosts_file_names_every_address_and_alias() {
        let pod = pod_yaml(
            "spec: {containers: [], subdomain: sub, hostAliases: [{ip: 1.2.3.4, hostnames: [a, b.c]}, {ip: 5.6.7.8, hostnames: [d]}]}",
        );
        let hostname = PodHostname::of(&pod, "cluster.local").expect("the names are valid");
        let ips = ["10.1.0.7", "fd01::7"].map(|ip| ip.parse().expect("a test address parses"));
        let expected = "\
# Kubernetes-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
10.1.0.7\tweb-0.sub.shop.svc.cluster.local\tweb-0
fd01::7\tweb-0.sub.shop.svc.cluster.local\tweb-0

# Entries added by HostAliases.
1.2.3.4\ta\tb.c
5.6.7.8\td
";
        assert_eq!(hosts_file(&pod, &hostname, &ips), expected);
    }

    #[test]
    fn without_subdomain_and_aliases_the_hosts_file_ends_with_the_short_name() {
        let pod = pod_yaml("spec: {containers: []}");
        let hostname = PodHostname::of(&pod, "cluster.local").expect("the names are valid");
        let text = hosts_file(&pod, &hostname, &["10.1.0.7".parse().expect("a test address parses")]);
        assert!(text.ends_with("fe00::2\tip6-allrouters\n10.1.0.7\tweb-0\n"), "{text}");
    }

    #[test]
    fn a_pod_on_the_hosts_network_sees_the_nodes_file() {
        let pod = pod_yaml("spec: {containers: [], hostNetwork: true, hostAliases: [{ip: 1.2.3.4, hostnames: [a]}]}");
        let expected = "\
# Kubernetes-managed hosts file (host network).
127.0.0.1 localhost n1

# Entries added by HostAliases.
1.2.3.4\ta
";
        assert_eq!(hosts_file_of_host_network(&pod, "127.0.0.1 localhost n1\n"), expected);
    }
}
