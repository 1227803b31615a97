//! The resolver configuration of a pod.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use super::{PodRef, spec};

// Limits of the C library's resolver and of the API.
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_LINE_LENGTH_MAX: usize = 2048;
const SEARCH_LENGTH_MAX: usize = 253;

/// What goes into a `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// What the configuration says about names in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterDns {
    pub servers: Vec<IpAddr>,
    pub domain: String,
}

/// Something about a pod's resolver that its owner should know: an event in the making. The
/// messages begin as upstream's do, which is what alerts are matched by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsWarning {
    pub reason: &'static str,
    pub message: String,
}

impl DnsWarning {
    fn missing_cluster_dns() -> Self {
        let message = "no clusterDNS is configured on this node, policy \"ClusterFirst\" falls back to \"Default\"";
        DnsWarning { reason: "MissingClusterDNS", message: message.into() }
    }

    fn cut(limits: &str, kept: &[String]) -> Self {
        let message = format!("{limits} limits were exceeded, kept: {}", kept.join(" "));
        DnsWarning { reason: "DNSConfigForming", message }
    }
}

/// Reads a `resolv.conf`: name servers add up, the last search list wins, and so does the
/// last setting of an option. Lines that say nothing we know are passed over.
pub fn parse_resolv_conf(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => resolver.servers.extend(words.next().map(str::to_owned)),
            Some("search") => {
                let domains = words.filter(|domain| *domain != ".");
                resolver.searches =
                    domains.map(|domain| domain.strip_suffix('.').unwrap_or(domain).to_owned()).collect();
            }
            Some("options") => words.for_each(|option| set_option(&mut resolver.options, option.to_owned())),
            _ => {}
        }
    }
    resolver
}

/// What a node says that has no `resolvConf` on purpose: name servers left out mean the
/// local machine. That is said aloud, because an empty configuration would make the runtime
/// use the host's file; a search list of the root alone keeps out the host's domains.
pub fn loopback_resolver(node_ips: &[IpAddr]) -> Resolver {
    let loopback = |ip: &IpAddr| if ip.is_ipv6() { "::1" } else { "127.0.0.1" };
    let mut servers: Vec<String> = node_ips.iter().map(|ip| loopback(ip).to_owned()).collect();
    if servers.is_empty() {
        servers.push("127.0.0.1".into());
    }
    Resolver { servers, searches: vec![".".into()], options: Vec::new() }
}

/// The resolver of a pod on a node whose own resolver is `host`.
pub fn pod_resolver(pod: &Pod, cluster: &ClusterDns, host: &Resolver) -> (Resolver, Vec<DnsWarning>) {
    let mut warnings = Vec::new();
    let mut resolver = match base_of(pod) {
        Base::Nothing => Resolver::default(),
        Base::Cluster if !cluster.servers.is_empty() => cluster_resolver(pod, cluster, host),
        Base::Cluster => {
            warnings.push(DnsWarning::missing_cluster_dns());
            host.clone()
        }
        Base::Host => host.clone(),
    };
    if let Some(own) = &spec(pod).dns_config {
        resolver.servers.extend(own.nameservers.iter().flatten().cloned());
        resolver.searches.extend(own.searches.iter().flatten().cloned());
        drop_repeated(&mut resolver.servers);
        drop_repeated(&mut resolver.searches);
        for option in own.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            let text = match option.value.as_deref().filter(|value| !value.is_empty()) {
                Some(value) => format!("{name}:{value}"),
                None => name.to_owned(),
            };
            set_option(&mut resolver.options, text);
        }
    }
    cut_to_limits(&mut resolver, &mut warnings);
    (resolver, warnings)
}

enum Base {
    Cluster,
    Host,
    Nothing,
}

fn base_of(pod: &Pod) -> Base {
    let host_network = spec(pod).host_network == Some(true);
    match spec(pod).dns_policy.as_deref() {
        Some("None") => Base::Nothing,
        Some("Default") => Base::Host,
        Some("ClusterFirstWithHostNet") => Base::Cluster,
        Some("ClusterFirst") | None if host_network => Base::Host,
        // An unknown policy comes from an API server newer than we are.
        _ => Base::Cluster,
    }
}

fn cluster_resolver(pod: &Pod, cluster: &ClusterDns, host: &Resolver) -> Resolver {
    let domain = &cluster.domain;
    let mut searches = match domain.is_empty() {
        true => Vec::new(),
        false => {
            let namespace = PodRef::of(pod).namespace;
            vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()]
        }
    };
    searches.extend(host.searches.iter().filter(|domain| *domain != ".").cloned());
    drop_repeated(&mut searches);
    let servers = cluster.servers.iter().map(IpAddr::to_string).collect();
    Resolver { servers, searches, options: vec!["ndots:5".into()] }
}

/// Sets an option, in the place where it was set before if it was.
fn set_option(options: &mut Vec<String>, option: String) {
    fn name(option: &str) -> &str {
        option.split_once(':').map_or(option, |(name, _)| name)
    }
    match options.iter_mut().find(|other| name(other) == name(&option)) {
        Some(other) => *other = option,
        None => options.push(option),
    }
}

fn drop_repeated(words: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    words.retain(|word| seen.insert(word.clone()));
}

fn cut_to_limits(resolver: &mut Resolver, warnings: &mut Vec<DnsWarning>) {
    if resolver.servers.len() > NAMESERVERS_MAX {
        resolver.servers.truncate(NAMESERVERS_MAX);
        warnings.push(DnsWarning::cut("Nameserver", &resolver.servers));
    }
    let asked = resolver.searches.len();
    resolver.searches.truncate(SEARCHES_MAX);
    // Some C libraries abort on a longer one.
    resolver.searches.retain(|domain| domain.len() <= SEARCH_LENGTH_MAX);
    let mut line_length = 0;
    let fits = |domain: &&String| {
        line_length += domain.len() + usize::from(line_length > 0);
        line_length <= SEARCH_LINE_LENGTH_MAX
    };
    let kept = resolver.searches.iter().take_while(fits).count();
    resolver.searches.truncate(kept);
    if resolver.searches.len() < asked {
        warnings.push(DnsWarning::cut("Search Line", &resolver.searches));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::pod_yaml;

    /// A resolver as a resolv.conf would say it.
    fn text(resolver: &Resolver) -> String {
        let line = |key: &str, words: &[String]| match words.is_empty() {
            true => String::new(),
            false => format!("{key} {}\n", words.join(" ")),
        };
        line("nameserver", &resolver.servers)
            + &line("search", &resolver.searches)
            + &line("options", &resolver.options)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("a test address parses")
    }

    fn resolver_of(spec: &str) -> (Resolver, Vec<DnsWarning>) {
        let cluster = ClusterDns { servers: vec![ip("10.96.0.10")], domain: "cluster.local".into() };
        let host = parse_resolv_conf("nameserver 192.0.2.1\nsearch example.com svc.cluster.local\noptions rotate\n");
        pod_resolver(&pod_yaml(&format!("spec: {{containers: [], {spec}}}")), &cluster, &host)
    }

    fn check(spec: &str, expected: &str) {
        let (resolver, warnings) = resolver_of(spec);
        assert_eq!(text(&resolver), expected, "{spec}");
        assert_eq!(warnings, [], "{spec}");
    }

    const OF_HOST: &str = "nameserver 192.0.2.1\nsearch example.com svc.cluster.local\noptions rotate\n";
    const OF_CLUSTER: &str = "nameserver 10.96.0.10\n\
                              search shop.svc.cluster.local svc.cluster.local cluster.local example.com\n\
                              options ndots:5\n";

    #[test]
    fn the_policy_chooses_what_to_start_from() {
        check("", OF_CLUSTER);
        check("dnsPolicy: ClusterFirst", OF_CLUSTER);
        check("dnsPolicy: ClusterFirst, hostNetwork: true", OF_HOST);
        check("dnsPolicy: ClusterFirstWithHostNet, hostNetwork: true", OF_CLUSTER);
        check("dnsPolicy: Default", OF_HOST);
        check("dnsPolicy: None", "");
    }

    #[test]
    fn the_pods_own_settings_are_added() {
        check(
            "dnsPolicy: None, dnsConfig: {nameservers: [1.1.1.1, 1.1.1.1], searches: [a, b, a], options: [{name: ndots, value: '2'}, {name: edns0}]}",
            "nameserver 1.1.1.1\nsearch a b\noptions ndots:2 edns0\n",
        );
        check(
            "dnsConfig: {searches: [mine, cluster.local], options: [{name: timeout, value: '1'}, {name: ndots, value: '1'}]}",
            "nameserver 10.96.0.10\n\
             search shop.svc.cluster.local svc.cluster.local cluster.local example.com mine\n\
             options ndots:1 timeout:1\n",
        );
        check(
            "dnsPolicy: Default, dnsConfig: {nameservers: [192.0.2.1, 192.0.2.2]}",
            &OF_HOST.replace("2.1", "2.1 192.0.2.2"),
        );
    }

    #[test]
    fn without_cluster_dns_the_pod_gets_the_hosts_and_its_owner_a_warning() {
        let pod = pod_yaml("spec: {containers: []}");
        let host = parse_resolv_conf(OF_HOST);
        let (resolver, warnings) = pod_resolver(&pod, &ClusterDns::default(), &host);
        assert_eq!(text(&resolver), OF_HOST);
        assert_eq!(warnings, [DnsWarning::missing_cluster_dns()]);
    }

    #[test]
    fn a_node_without_resolver_asks_itself() {
        let pod = pod_yaml("spec: {containers: [], dnsPolicy: Default}");
        let check = |node_ips: &[IpAddr], servers: &str| {
            let (resolver, _) = pod_resolver(&pod, &ClusterDns::default(), &loopback_resolver(node_ips));
            assert_eq!(text(&resolver), format!("nameserver {servers}\nsearch .\n"));
        };
        check(&[], "127.0.0.1");
        check(&[ip("10.0.0.1"), ip("fd00::1")], "127.0.0.1 ::1");
    }

    #[test]
    fn what_exceeds_the_limits_is_cut_and_told() {
        let (resolver, warnings) = resolver_of("dnsPolicy: None, dnsConfig: {nameservers: [a, b, c, d]}");
        assert_eq!(text(&resolver), "nameserver a b c\n");
        assert_eq!(warnings[0].message, "Nameserver limits were exceeded, kept: a b c");

        let searches = |domains: &[String]| {
            let (resolver, warnings) =
                resolver_of(&format!("dnsPolicy: None, dnsConfig: {{searches: [{}]}}", domains.join(", ")));
            assert_eq!(warnings.is_empty(), resolver.searches.len() == domains.len());
            resolver.searches.len()
        };
        let numbered =
            |count: usize, length: usize| -> Vec<String> { (0..count).map(|n| format!("{n:0>length$}")).collect() };
        assert_eq!(searches(&numbered(32, 3)), 32);
        assert_eq!(searches(&numbered(33, 3)), 32);
        assert_eq!(searches(&["a".into(), "b".repeat(254), "c".into()]), 2);
        // 31 × 66 + 2 = 2048 characters with the blanks between them.
        let mut full = numbered(31, 65);
        full.push("zz".into());
        assert_eq!(searches(&full), 32);
        full[31].push('z');
        assert_eq!(searches(&full), 31);
    }

    #[test]
    fn a_resolv_conf_is_read_as_the_c_library_would() {
        let check = |file: &str, expected: &str| assert_eq!(text(&parse_resolv_conf(file)), expected, "{file:?}");
        check("", "");
        check(
            "# nameserver 1.1.1.1\n; x\nnameserver 2.2.2.2\n\tnameserver   3.3.3.3  # x\nnameserver\n",
            "nameserver 2.2.2.2 3.3.3.3\n",
        );
        check("search a.b. .\nsearch c.d. e .", "search c.d e\n");
        check("search a\nsearch\n", "");
        check("options ndots:1 rotate\noptions ndots:3 edns0", "options ndots:3 rotate edns0\n");
        check("domain x\nsortlist y\nnameserver 1.1.1.1", "nameserver 1.1.1.1\n");
    }
}
