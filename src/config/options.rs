//! The flags that have no field in the configuration file.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::duration::GoDuration;
use super::field::Status;
use super::flags::{self, GivenFlags};
use super::labels::{check_node_label, is_dns_subdomain};

/// One such flag.
pub struct OptionFlag {
    pub name: &'static str,
    pub kind: OptionKind,
    pub default: &'static str,
    pub status: Status,
    pub group: Group,
    pub about: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OptionKind {
    Bool,
    Integer,
    Duration,
    Text,
    /// `key=value,…`; repeated uses add up.
    Labels,
    /// Nothing, `true`, `false`, `raw`, or a version to report.
    Version,
}

/// The heading of the help page a flag stands under.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Group {
    Files,
    Node,
    Process,
    Deprecated,
}

impl OptionFlag {
    pub fn is_switch(&self) -> bool {
        matches!(self.kind, OptionKind::Bool | OptionKind::Version)
    }
}

const fn option(
    group: Group,
    name: &'static str,
    kind: OptionKind,
    default: &'static str,
    about: &'static str,
) -> OptionFlag {
    OptionFlag { name, kind, default, status: Status::NotYet, group, about }
}

impl OptionFlag {
    const fn works(mut self) -> Self {
        self.status = Status::Works;
        self
    }

    /// A name that upstream's cAdvisor leaks into the command line.
    const fn leak(name: &'static str, kind: OptionKind, default: &'static str) -> Self {
        let mut flag = option(Group::Deprecated, name, kind, default, "no effect");
        flag.status = Status::NoEffect;
        flag
    }
}

use Group::{Deprecated, Files, Node, Process};
use OptionKind::{Bool, Integer, Labels, Text, Version};

/// Every flag without a field.
pub const OPTION_FLAGS: &[OptionFlag] = &[
    option(Files, "config", Text, "", "main configuration file, YAML or JSON").works(),
    option(Files, "config-dir", Text, "", "directory of *.conf drop-ins, merged over --config").works(),
    option(Files, "kubeconfig", Text, "", "how to reach the API server; without it only static pods run").works(),
    option(
        Files,
        "bootstrap-kubeconfig",
        Text,
        "",
        "used to obtain the first client certificate when --kubeconfig is missing",
    )
    .works(),
    option(Files, "cert-dir", Text, "/var/lib/kubelet/pki", "directory of certificates").works(),
    option(Files, "root-dir", Text, "/var/lib/kubelet", "directory of the agent's own files").works(),
    option(
        Files,
        "image-credential-provider-config",
        Text,
        "",
        "configuration of credential providers, a file or a directory",
    )
    .works(),
    option(Files, "image-credential-provider-bin-dir", Text, "", "directory of credential provider programs").works(),
    option(Node, "hostname-override", Text, "", "name of the node instead of the host's").works(),
    option(
        Node,
        "node-ip",
        Text,
        "",
        "address of the node, or one IPv4 and one IPv6 address; 0.0.0.0 or :: prefers a family",
    )
    .works(),
    option(Node, "node-labels", Labels, "", "labels the node is registered with").works(),
    option(Node, "cloud-provider", Text, "", "empty or external").works(),
    option(Node, "seccomp-default", Bool, "false", "the same as seccompDefault: true").works(),
    option(Process, "help", Bool, "false", "print this page and exit").works(),
    option(
        Process,
        "version",
        Version,
        "false",
        "print the version and exit; =raw for details, =vX.Y.Z to report that one",
    )
    .works(),
    option(Process, "lock-file", Text, "", "file to hold locked while running").works(),
    option(Process, "exit-on-lock-contention", Bool, "false", "exit when another process opens --lock-file").works(),
    option(Process, "runtime-cgroups", Text, "", "cgroup of the container runtime"),
    option(Process, "housekeeping-interval", OptionKind::Duration, "10s", "how often container statistics are taken"),
    option(Process, "max-housekeeping-interval", OptionKind::Duration, "15s", "longest pause between two such rounds"),
    option(
        Deprecated,
        "minimum-container-ttl-duration",
        OptionKind::Duration,
        "0s",
        "youngest dead container that may be removed",
    )
    .works(),
    option(Deprecated, "maximum-dead-containers-per-container", Integer, "1", "dead instances kept of a container")
        .works(),
    option(
        Deprecated,
        "maximum-dead-containers",
        Integer,
        "-1",
        "dead containers kept in all, negative for any number",
    )
    .works(),
    option(Deprecated, "experimental-mounter-path", Text, "", "mount program to use"),
    option(
        Deprecated,
        "experimental-allocatable-ignore-eviction",
        Bool,
        "false",
        "leave the hard eviction limits out of allocatable",
    )
    .works(),
    OptionFlag::leak("application-metrics-count-limit", Integer, "100"),
    OptionFlag::leak("boot-id-file", Text, "/proc/sys/kernel/random/boot_id"),
    OptionFlag::leak("container-hints", Text, "/etc/cadvisor/container_hints.json"),
    OptionFlag::leak("containerd", Text, "/run/containerd/containerd.sock"),
    OptionFlag::leak("containerd-namespace", Text, "k8s.io"),
    OptionFlag::leak("enable-load-reader", Bool, "false"),
    OptionFlag::leak("event-storage-age-limit", Text, "default=0"),
    OptionFlag::leak("event-storage-event-limit", Text, "default=0"),
    OptionFlag::leak("global-housekeeping-interval", OptionKind::Duration, "1m0s"),
    OptionFlag::leak("log-cadvisor-usage", Bool, "false"),
    OptionFlag::leak("machine-id-file", Text, "/etc/machine-id,/var/lib/dbus/machine-id"),
    OptionFlag::leak("storage-driver-user", Text, "root"),
    OptionFlag::leak("storage-driver-password", Text, "root"),
    OptionFlag::leak("storage-driver-host", Text, "localhost:8086"),
    OptionFlag::leak("storage-driver-db", Text, "cadvisor"),
    OptionFlag::leak("storage-driver-table", Text, "stats"),
    OptionFlag::leak("storage-driver-secure", Bool, "false"),
    OptionFlag::leak("storage-driver-buffer-duration", OptionKind::Duration, "1m0s"),
];

/// The effective flags without a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub config: Option<PathBuf>,
    pub config_dir: Option<PathBuf>,
    /// `None` means standalone: static pods only, no API server.
    pub kubeconfig: Option<PathBuf>,
    pub bootstrap_kubeconfig: Option<PathBuf>,
    pub cert_dir: PathBuf,
    pub root_dir: PathBuf,
    /// Configuration, a file or a directory, and the directory of the programs.
    pub credential_providers: Option<(PathBuf, PathBuf)>,
    /// Trimmed and lower-cased.
    pub hostname_override: Option<String>,
    pub node_ip: NodeIp,
    pub node_labels: BTreeMap<String, String>,
    /// Whether `--cloud-provider=external` was given.
    pub cloud_provider_external: bool,
    pub seccomp_default: bool,
    pub lock_file: Option<PathBuf>,
    pub exit_on_lock_contention: bool,
    pub runtime_cgroups: String,
    pub housekeeping_interval: Duration,
    pub minimum_container_ttl: Duration,
    pub dead_containers_per_container_max: i64,
    /// `None` for any number.
    pub dead_containers_max: Option<usize>,
    pub allocatable_ignores_eviction: bool,
    /// The version the node reports, such as `v1.36.2+ferrolet.0.1.0`.
    pub version: String,
}

/// What `--node-ip` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeIp {
    /// Nothing; the node finds its address and prefers IPv4.
    Unset,
    /// `0.0.0.0`: as unset.
    PreferV4,
    /// `::`
    PreferV6,
    Single(IpAddr),
    /// One of each family, the preferred one first.
    Dual(IpAddr, IpAddr),
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("--{flag}: {reason}")]
pub struct OptionError {
    pub flag: &'static str,
    pub reason: String,
}

impl Options {
    /// Takes the options out of the flags, and everything that is wrong with them.
    pub fn of(given: &GivenFlags) -> (Options, Vec<OptionError>) {
        let mut reader = OptionReader { given, errors: Vec::new() };
        reader.check_leaks();
        let options = reader.read();
        (options, reader.errors)
    }
}

struct OptionReader<'g> {
    given: &'g GivenFlags,
    errors: Vec<OptionError>,
}

impl OptionReader<'_> {
    fn read(&mut self) -> Options {
        let options = Options {
            config: self.file("config"),
            config_dir: self.file("config-dir"),
            kubeconfig: self.file("kubeconfig"),
            bootstrap_kubeconfig: self.file("bootstrap-kubeconfig"),
            cert_dir: self.file("cert-dir").unwrap_or_default(),
            root_dir: self.file("root-dir").unwrap_or_default(),
            credential_providers: self.credential_providers(),
            hostname_override: self.hostname_override(),
            node_ip: self.parsed("node-ip", node_ip).unwrap_or(NodeIp::Unset),
            node_labels: self.node_labels(),
            cloud_provider_external: match self.text("cloud-provider") {
                "" => false,
                "external" => true,
                other => {
                    let reason = format!("expected nothing or external, found {other:?}");
                    self.wrong("cloud-provider", reason);
                    false
                }
            },
            seccomp_default: self.boolean("seccomp-default"),
            lock_file: self.file("lock-file"),
            exit_on_lock_contention: self.boolean("exit-on-lock-contention"),
            runtime_cgroups: self.text("runtime-cgroups").to_owned(),
            housekeeping_interval: self.duration("housekeeping-interval"),
            minimum_container_ttl: self.duration("minimum-container-ttl-duration"),
            dead_containers_per_container_max: self.integer("maximum-dead-containers-per-container"),
            dead_containers_max: usize::try_from(self.integer("maximum-dead-containers")).ok(),
            allocatable_ignores_eviction: self.boolean("experimental-allocatable-ignore-eviction"),
            version: self.parsed("version", reported_version).unwrap_or_default(),
        };
        if options.exit_on_lock_contention && options.lock_file.is_none() {
            self.wrong("exit-on-lock-contention", "needs --lock-file".to_owned());
        }
        if options.root_dir.as_os_str().is_empty() {
            self.wrong("root-dir", "must not be empty".to_owned());
        }
        options
    }

    fn credential_providers(&mut self) -> Option<(PathBuf, PathBuf)> {
        const FLAGS: [&str; 2] = ["image-credential-provider-config", "image-credential-provider-bin-dir"];
        match FLAGS.map(|flag| self.file(flag)) {
            [Some(config), Some(programs)] => Some((config, programs)),
            [None, None] => None,
            [config, _] => {
                let [missing, given] = if config.is_none() { FLAGS } else { [FLAGS[1], FLAGS[0]] };
                self.wrong(missing, format!("is missing, while --{given} is there"));
                None
            }
        }
    }

    fn wrong(&mut self, flag: &'static str, reason: String) {
        self.errors.push(OptionError { flag, reason });
    }

    /// The value of a flag, its default where it was not given.
    fn text(&self, name: &'static str) -> &str {
        let default = || OPTION_FLAGS.iter().find(|f| f.name == name).map_or("", |f| f.default);
        self.given.last(name).unwrap_or_else(default)
    }

    fn parsed<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        match parse(self.text(name)) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.wrong(name, reason);
                None
            }
        }
    }

    fn file(&self, name: &'static str) -> Option<PathBuf> {
        Some(self.text(name)).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    fn boolean(&mut self, name: &'static str) -> bool {
        self.parsed(name, flags::boolean).unwrap_or_default()
    }

    fn integer(&mut self, name: &'static str) -> i64 {
        self.parsed(name, int32).unwrap_or_default()
    }

    fn duration(&mut self, name: &'static str) -> Duration {
        self.parsed(name, duration).unwrap_or_default()
    }

    /// Flags that set nothing still have a type, and Go's parser insists on it.
    fn check_leaks(&mut self) {
        for flag in OPTION_FLAGS.iter().filter(|flag| flag.status != Status::Works) {
            let check = |text: &str| match flag.kind {
                OptionKind::Bool => flags::boolean(text).map(|_| ()),
                OptionKind::Integer => int32(text).map(|_| ()),
                OptionKind::Duration => duration(text).map(|_| ()),
                OptionKind::Text | OptionKind::Labels | OptionKind::Version => Ok(()),
            };
            self.parsed(flag.name, check);
        }
        // Those that `read` parses again would be reported twice.
        self.errors.retain(|error| {
            OPTION_FLAGS.iter().any(|f| f.name == error.flag && f.status == Status::NoEffect)
                || error.flag == "max-housekeeping-interval"
        });
    }

    fn hostname_override(&mut self) -> Option<String> {
        let given = self.text("hostname-override");
        let name = given.trim().to_lowercase();
        match (given.is_empty(), is_dns_subdomain(&name)) {
            (true, _) => None,
            (false, true) => Some(name),
            (false, false) => {
                let reason = format!("expected a lower-case DNS name, found {given:?}");
                self.wrong("hostname-override", reason);
                None
            }
        }
    }

    fn node_labels(&mut self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        let given: Vec<_> = self.given.values("node-labels").collect();
        for pair in given.iter().flat_map(|list| list.split(',')).filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (key.trim(), value.trim());
            match check_node_label(key, value) {
                Ok(()) => drop(labels.insert(key.to_owned(), value.to_owned())),
                Err(error) => self.wrong("node-labels", error.to_string()),
            }
        }
        labels
    }
}

fn int32(text: &str) -> Result<i64, String> {
    let number = flags::integer(text)?;
    match i32::try_from(number) {
        Ok(_) => Ok(number),
        Err(_) => Err(format!("expected a whole number of 32 bits, found {text}")),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = GoDuration::parse(text).map_err(|e| e.to_string())?;
    duration.to_std().ok_or_else(|| format!("must not be negative, found {text}"))
}

fn node_ip(text: &str) -> Result<NodeIp, String> {
    if text.is_empty() {
        return Ok(NodeIp::Unset);
    }
    let parse = |ip: &str| ip.trim().parse::<IpAddr>().map_err(|_| not_an_ip(ip));
    match text.split(',').map(parse).collect::<Result<Vec<_>, _>>()?.as_slice() {
        [ip] if ip.is_unspecified() => Ok(if ip.is_ipv4() { NodeIp::PreferV4 } else { NodeIp::PreferV6 }),
        [ip] => usable(*ip).map(NodeIp::Single),
        [first, second] if first.is_ipv4() != second.is_ipv4() => Ok(NodeIp::Dual(usable(*first)?, usable(*second)?)),
        _ => Err(format!("expected one address, or one IPv4 and one IPv6, found {text}")),
    }
}

fn not_an_ip(text: &str) -> String {
    format!("expected an IP address, found {text:?}")
}

/// Upstream finds these out when it first reports the node's status, and then for ever.
fn usable(ip: IpAddr) -> Result<IpAddr, String> {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let what = match () {
        () if ip.is_loopback() => "a loopback",
        () if ip.is_multicast() => "a multicast",
        () if ip.is_unspecified() => "an unspecified",
        () if link_local => "a link-local",
        () => return Ok(ip),
    };
    Err(format!("{ip} is {what} address, which no other node could reach"))
}

/// The version to report: our own, or the one `--version=vX.Y.Z` puts in its place, which has
/// to be of the same release.
fn reported_version(text: &str) -> Result<String, String> {
    if !text.starts_with('v') {
        return Ok(super::VERSION.to_owned());
    }
    let release = |version: &str| version.split(['-', '+']).next().unwrap_or_default().to_owned();
    match release(text) == release(super::VERSION) {
        true => Ok(text.to_owned()),
        false => Err(format!("expected a version of the release {}", release(super::VERSION))),
    }
}
