//! The resolver configuration of a pod.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use super::{PodRef, spec};

// Limits of the C library's resolver and of the API.
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_LINE_LENGTH_MAX: usize = 2048;
const SEARCH_LENGTH_MAX: usize = 253;
/// As many the cluster puts before those of the host.
const CLUSTER_SEARCHES: usize = 3;

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

/// Something about a pod's resolver that its owner should know: an event in the making, in
/// upstream's words, which is what alerts are matched by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsWarning {
    pub reason: &'static str,
    pub message: String,
    /// What is told of the node beside it.
    pub of_node: Option<&'static str>,
}

impl DnsWarning {
    fn missing_cluster_dns(pod: &Pod) -> Self {
        const OF_NODE: &str = "kubelet does not have ClusterDNS IP configured and cannot create Pod using \
                               \"ClusterFirst\" policy. Falling back to \"Default\" policy.";
        let message = format!("pod: {:?}. {OF_NODE}", PodRef::of(pod).in_full());
        DnsWarning { reason: "MissingClusterDNS", message, of_node: Some(OF_NODE) }
    }

    fn cut(limits: &str, what: &str, line: &str, kept: &[String]) -> Self {
        let message = format!(
            "{limits} limits were exceeded, some {what} have been omitted, the applied {line} line is: {}",
            kept.join(" ")
        );
        DnsWarning { reason: "DNSConfigForming", message, of_node: None }
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

/// What is too much in the node's own resolver file at `path`, for the pods that start from it.
pub fn excess(path: &str, host: &Resolver, cluster: &ClusterDns) -> Option<String> {
    let searches_max = SEARCHES_MAX - if cluster.domain.is_empty() { 0 } else { CLUSTER_SEARCHES };
    let problem = if host.searches.len() > searches_max {
        format!("'{path}' contains search line consisting of more than {searches_max} domains!")
    } else if host.searches.iter().any(|domain| domain.len() > SEARCH_LENGTH_MAX) {
        format!("{path:?} contains a search path which length is more than allowed {SEARCH_LENGTH_MAX} chars!")
    } else if host.searches.join(" ").len() > SEARCH_LINE_LENGTH_MAX {
        format!("'{path}' contains search line which length is more than allowed {SEARCH_LINE_LENGTH_MAX} chars!")
    } else {
        return None;
    };
    Some(format!("Resolv.conf file {problem}"))
}

/// The resolver of a pod on a node whose own resolver is `host`.
pub fn pod_resolver(pod: &Pod, cluster: &ClusterDns, host: &Resolver) -> (Resolver, Vec<DnsWarning>) {
    let mut warnings = Vec::new();
    let mut resolver = match base_of(pod) {
        Base::Nothing => Resolver::default(),
        Base::Cluster if !cluster.servers.is_empty() => cluster_resolver(pod, cluster, host),
        Base::Cluster => {
            warnings.push(DnsWarning::missing_cluster_dns(pod));
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
        warnings.push(DnsWarning::cut("Nameserver", "nameservers", "nameserver", &resolver.servers));
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
        warnings.push(DnsWarning::cut("Search Line", "search paths", "search", &resolver.searches));
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
        let pod = pod_yaml("{metadata: {name: a, namespace: n, uid: u}, spec: {containers: []}}");
        let host = parse_resolv_conf(OF_HOST);
        let (resolver, warnings) = pod_resolver(&pod, &ClusterDns::default(), &host);
        assert_eq!(text(&resolver), OF_HOST);
        let [DnsWarning { reason: "MissingClusterDNS", message, of_node: Some(of_node) }] = &warnings[..] else {
            panic!("{warnings:?}");
        };
        assert_eq!(*message, format!("pod: \"a_n(u)\". {of_node}"));
        assert_eq!(
            *of_node,
            "kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. \
             Falling back to \"Default\" policy."
        );
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
        assert_eq!(
            warnings[0].message,
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: a b c"
        );
        let (_, warnings) = resolver_of(&format!("dnsPolicy: None, dnsConfig: {{searches: [a, {}]}}", "b".repeat(254)));
        assert_eq!(
            warnings[0].message,
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: a"
        );

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
    fn too_much_in_the_nodes_own_file_is_told() {
        let told = |domain: &str, searches: Vec<String>| {
            let cluster = ClusterDns { servers: Vec::new(), domain: domain.into() };
            excess("/r", &Resolver { searches, ..Resolver::default() }, &cluster)
        };
        let of_length = |length: usize, count: usize| vec!["a".repeat(length); count];
        assert_eq!(told("c", of_length(1, 29)), None);
        let line =
            |limit: u32| format!("Resolv.conf file '/r' contains search line consisting of more than {limit} domains!");
        assert_eq!(told("c", of_length(1, 30)), Some(line(29)));
        assert_eq!(told("", of_length(1, 32)), None);
        assert_eq!(told("", of_length(1, 33)), Some(line(32)));
        assert_eq!(told("", of_length(253, 1)), None);
        let long = "Resolv.conf file \"/r\" contains a search path which length is more than allowed 253 chars!";
        assert_eq!(told("", of_length(254, 1)).as_deref(), Some(long));
        // 32 × 63 + 31 = 2047 characters with the blanks between them.
        let mut full = of_length(63, 32);
        full[0].push('a');
        assert_eq!(told("", full.clone()), None);
        full[0].push('a');
        let whole = "Resolv.conf file '/r' contains search line which length is more than allowed 2048 chars!";
        assert_eq!(told("", full).as_deref(), Some(whole));
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
