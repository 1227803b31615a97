//! Figures of the machine, read from /proc, /sys and /etc.
//!
//! Nothing here is fatal but the size of memory and the number of CPUs: a board without
//! DMI or without a machine id still becomes a node, with that field empty.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::statvfs::statvfs;

use super::linux::Roots;
use super::{CgroupVersion, HostError, Machine, MachineFacts, Result, machine};

/// `known` keeps what is read only once.
pub fn read(roots: &Roots, cgroup_version: CgroupVersion, known: &OnceLock<Arc<Machine>>) -> Result<MachineFacts> {
    let memory = needed(&roots.proc.join("meminfo"))?;
    let memory_bytes =
        kibibytes(&memory, "MemTotal:").ok_or_else(|| HostError::Refused("no MemTotal in /proc/meminfo".to_owned()))?;
    let machine_id = first_of(&[roots.etc.join("machine-id"), roots.var_lib.join("dbus/machine-id")]);
    let kernel = roots.proc.join("sys/kernel");
    Ok(MachineFacts {
        hostname: line(&kernel.join("hostname")),
        system_uuid: system_uuid(roots).unwrap_or_else(|| machine_id.clone()),
        machine_id,
        boot_id: line(&kernel.join("random/boot_id")),
        kernel_version: line(&kernel.join("osrelease")),
        os_image: pretty_name(&text(&roots.etc.join("os-release"))),
        architecture: architecture().to_owned(),
        cpus: cpus(roots)?,
        machine: makeup(&roots.sys, memory_bytes, known),
        memory_bytes,
        swap_bytes: kibibytes(&memory, "SwapTotal:").unwrap_or(0),
        swap_controller: swap_controller(roots, cgroup_version),
        pids_controller: pids_controller(roots, cgroup_version),
        hugepages: hugepages(&roots.sys.join("kernel/mm/hugepages")),
        root_fs_bytes: file_system_bytes(&roots.root_dir)?,
        max_pids: max_pids(&kernel),
        addresses: addresses(roots)?,
        cgroup_version,
        app_armor: line(&roots.sys.join("module/apparmor/parameters/enabled")).starts_with('Y'),
        thermal_throttle_dirs: thermal_throttle_dirs(&roots.sys.join("devices/system/cpu")),
    })
}

/// Whether swap can be limited. On version 2 the root itself has no limits, but the group that
/// the agent is in does.
fn swap_controller(roots: &Roots, version: CgroupVersion) -> bool {
    let file = match version {
        CgroupVersion::V1 => roots.cgroup.join("memory/memory.memsw.limit_in_bytes"),
        CgroupVersion::V2 => {
            let own = text(&roots.proc.join("self/cgroup"));
            let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
            roots.cgroup.join(own).join("memory.swap.max")
        }
    };
    file.exists()
}

fn pids_controller(roots: &Roots, version: CgroupVersion) -> bool {
    match version {
        CgroupVersion::V1 => roots.cgroup.join("pids/cgroup.procs").exists(),
        CgroupVersion::V2 => {
            text(&roots.cgroup.join("cgroup.controllers")).split_whitespace().any(|name| name == "pids")
        }
    }
}

fn needed(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| HostError::Io { what: "read", path: path.to_owned(), source })
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn line(path: &Path) -> String {
    text(path).trim_matches(|sign: char| sign.is_whitespace() || sign == '\0').to_owned()
}

fn first_of(paths: &[impl AsRef<Path>]) -> String {
    paths.iter().map(|path| line(path.as_ref())).find(|line| !line.is_empty()).unwrap_or_default()
}

/// DMI where there is one, else what hypervisors put in the device tree.
fn system_uuid(roots: &Roots) -> Option<String> {
    let uuid = first_of(&[
        roots.sys.join("class/dmi/id/product_uuid"),
        roots.proc.join("device-tree/system-id"),
        roots.proc.join("device-tree/vm,uuid"),
    ]);
    (!uuid.is_empty()).then_some(uuid)
}

fn kibibytes(meminfo: &str, key: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn pretty_name(os_release: &str) -> String {
    let value = os_release.lines().find_map(|line| line.trim().strip_prefix("PRETTY_NAME="));
    value.unwrap_or("Linux").trim_matches(['"', '\'']).to_owned()
}

/// Go's names, which the API and the labels use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        other => other,
    }
}

fn cpus(roots: &Roots) -> Result<u32> {
    let online = count_list(line(&roots.sys.join("devices/system/cpu/online")).as_str());
    if let Some(online) = online {
        return Ok(online);
    }
    let path = roots.proc.join("cpuinfo");
    let listed = needed(&path)?.lines().filter(|line| line.starts_with("processor")).count();
    match u32::try_from(listed) {
        Ok(cpus) if cpus > 0 => Ok(cpus),
        _ => Err(HostError::Refused(format!("no CPU listed in {}", path.display()))),
    }
}

/// As containers see them, whose /sys is at its usual place.
fn thermal_throttle_dirs(cpus: &Path) -> Vec<String> {
    let names = fs::read_dir(cpus).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let of_cpu = names.filter(|name| cpus.join(name).join("thermal_throttle").is_dir());
    let mut found: Vec<_> = of_cpu.map(|name| format!("/sys/devices/system/cpu/{name}/thermal_throttle")).collect();
    found.sort();
    found
}

/// How many a list such as `0-3,8` names.
fn count_list(list: &str) -> Option<u32> {
    let mut count = 0u32;
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

/// All sizes the kernel offers, smallest first, those without pages included.
fn hugepages(directory: &Path) -> Vec<(String, u64)> {
    let sizes = machine::hugepages(directory).into_iter();
    sizes.map(|(bytes, pages)| (quantity_name(bytes), bytes.saturating_mul(pages))).collect()
}

/// What the machine is made of. It is read once, for on a large machine that is thousands of
/// files, and what was placed on it was placed by what was known first. Empty while it cannot
/// be read: who places containers refuses to start then, others need not know.
fn makeup(sys: &Path, memory_bytes: u64, known: &OnceLock<Arc<Machine>>) -> Arc<Machine> {
    if let Some(known) = known.get() {
        return known.clone();
    }
    match machine::read(sys, memory_bytes) {
        Ok(read) => known.get_or_init(|| Arc::new(read)).clone(),
        Err(_) => Arc::default(),
    }
}

/// A size as a quantity, and so as the tail of a resource name: `64Ki`, `2Mi`, `1Gi`.
fn quantity_name(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["", "Ki", "Mi", "Gi"];
    let (mut size, mut unit) = (bytes, 0);
    while size >= 1024 && size.is_multiple_of(1024) && unit + 1 < UNITS.len() {
        size /= 1024;
        unit += 1;
    }
    format!("{size}{}", UNITS[unit])
}

/// Of the file system that holds `path`, or will once it is made.
fn file_system_bytes(path: &Path) -> Result<u64> {
    let error = |source: io::Error| HostError::Io {
        what: "read the size of the file system of",
        path: path.to_owned(),
        source,
    };
    let present = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = statvfs(present).map_err(|errno| error(errno.into()))?;
    Ok(stat.blocks() * stat.fragment_size())
}

fn max_pids(kernel: &Path) -> u64 {
    let limit = |name: &str| line(&kernel.join(name)).parse::<u64>().ok();
    [limit("pid_max"), limit("threads-max")].into_iter().flatten().min().unwrap_or(0)
}

fn addresses(roots: &Roots) -> Result<Vec<IpAddr>> {
    let interfaces = getifaddrs().map_err(|errno| HostError::Io {
        what: "list addresses of interfaces, see",
        path: roots.proc.join("net"),
        source: errno.into(),
    })?;
    let mut found = Vec::new();
    for interface in interfaces {
        let up = InterfaceFlags::IFF_UP;
        let Some(address) = interface.address.filter(|_| interface.flags.contains(up)) else {
            continue;
        };
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => continue,
        };
        if is_usable(&ip) {
            found.push((interface.interface_name, ip));
        }
    }
    let net = roots.proc.join("net");
    let default = default_interface_v4(&text(&net.join("route")))
        .or_else(|| default_interface_v6(&text(&net.join("ipv6_route"))));
    Ok(in_order(found, default.as_deref()))
}

fn is_usable(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !(v4.is_loopback() || v4.is_link_local() || *v4 == Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unicast_link_local() || *v6 == Ipv6Addr::UNSPECIFIED),
    }
}

/// The default route's interface first, then as the kernel lists them.
fn in_order(mut found: Vec<(String, IpAddr)>, default: Option<&str>) -> Vec<IpAddr> {
    found.sort_by_key(|(interface, _)| Some(interface.as_str()) != default);
    found.into_iter().map(|(_, ip)| ip).collect()
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask …`, a header above; the default
/// route of the lowest metric.
fn default_interface_v4(route: &str) -> Option<String> {
    let routes = route.lines().skip(1).filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_default = fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000");
        let metric: u32 = fields.get(6)?.parse().ok()?;
        is_default.then(|| (metric, fields[0].to_owned()))
    });
    routes.min().map(|(_, interface)| interface)
}

/// `destination length source length next-hop metric refcount use flags interface`, all
/// numbers hexadecimal. Unreachable routes are listed on the loopback interface.
fn default_interface_v6(route: &str) -> Option<String> {
    let routes = route.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_default = fields.first()?.bytes().all(|digit| digit == b'0') && fields.get(1) == Some(&"00");
        let metric = u32::from_str_radix(fields.get(5)?, 16).ok()?;
        let interface = *fields.get(9)?;
        (is_default && interface != "lo").then(|| (metric, interface.to_owned()))
    });
    routes.min().map(|(_, interface)| interface)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn lists_of_cpus_are_counted() {
        for (list, count) in [("0", Some(1)), ("0-3", Some(4)), ("0-3,8,10-11", Some(7)), ("", None), ("3-1", None)] {
            assert_eq!(count_list(list), count, "{list:?}");
        }
    }

    #[test]
    fn the_default_routes_interface_is_found_by_metric() {
        let header = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";
        let line = |interface: &str, destination: &str, metric: u32, mask: &str| {
            format!("{interface}\t{destination}\t010200C0\t0003\t0\t0\t{metric}\t{mask}\t0\t0\t0\n")
        };
        let routes = header.to_owned()
            + &line("wlan0", "00000000", 600, "00000000")
            + &line("eth0", "00000000", 100, "00000000")
            + &line("tun0", "00000000", 0, "00000080")
            + &line("eth1", "000200C0", 0, "00FFFFFF");
        assert_eq!(default_interface_v4(&routes).as_deref(), Some("eth0"));
        assert_eq!(default_interface_v4(header), None);

        let zero = "0".repeat(32);
        let routes = format!(
            "{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n\
             fd000000000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth1\n\
             {zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n"
        );
        assert_eq!(default_interface_v6(&routes).as_deref(), Some("eth0"));
    }

    #[test]
    fn the_default_routes_address_comes_first_and_useless_ones_not_at_all() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let found = vec![
            ("docker0".to_owned(), ip("172.17.0.1")),
            ("eth0".to_owned(), ip("192.0.2.2")),
            ("eth0".to_owned(), ip("fd00::2")),
        ];
        assert_eq!(in_order(found.clone(), Some("eth0")), [ip("192.0.2.2"), ip("fd00::2"), ip("172.17.0.1")]);
        assert_eq!(in_order(found, None)[0], ip("172.17.0.1"));
        for (text, usable) in [
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("fe80::1", false),
            ("::1", false),
            ("10.0.0.1", true),
            ("fd00::2", true),
        ] {
            assert_eq!(is_usable(&ip(text)), usable, "{text}");
        }
    }

    #[test]
    fn sizes_and_names_are_told_as_the_api_has_them() {
        for (bytes, name) in [(65_536, "64Ki"), (2 << 20, "2Mi"), (1 << 30, "1Gi"), (16 << 30, "16Gi")] {
            assert_eq!(quantity_name(bytes), name);
        }
        assert_eq!(
            pretty_name("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(pretty_name("ID=busybox\n"), "Linux");
    }

    #[test]
    fn a_machine_whose_makeup_is_not_told_is_asked_again() {
        let directory = tempfile::tempdir().unwrap();
        let known = OnceLock::new();
        assert_eq!(*makeup(directory.path(), 1024, &known), Machine::default());
        let cpus = directory.path().join("devices/system/cpu");
        fs::create_dir_all(&cpus).unwrap();
        fs::write(cpus.join("online"), "0\n").unwrap();
        assert_eq!(makeup(directory.path(), 1024, &known).cpus.len(), 1);
    }

    #[test]
    fn a_machine_is_read_off_its_roots() {
        let directory = tempfile::tempdir().unwrap();
        let root = |name: &str| directory.path().join(name);
        let write = |path: &str, text: &str| {
            let path = root(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/meminfo", "MemTotal:       2048 kB\nMemFree: 1 kB\nSwapTotal:      4 kB\n");
        write("proc/sys/kernel/hostname", "Board-1\n");
        write("proc/sys/kernel/osrelease", "6.1.0-rpi\n");
        write("proc/sys/kernel/random/boot_id", "b00t\n");
        write("proc/sys/kernel/pid_max", "32768\n");
        write("proc/sys/kernel/threads-max", "1000\n");
        write("proc/device-tree/vm,uuid", "dev-tree-uuid\0");
        write("sys/devices/system/cpu/online", "0-3\n");
        write("sys/devices/system/cpu/cpu0/cache", "\n");
        write("sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", "0\n");
        write("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "1\n");
        write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0\n");
        write("sys/module/apparmor/parameters/enabled", "Y\n");
        write("cgroup/memory/memory.memsw.limit_in_bytes", "1\n");
        write("cgroup/pids/cgroup.procs", "1\n");
        write("lib/dbus/machine-id", "0123\n");
        write("etc/os-release", "PRETTY_NAME=Board\n");

        let roots = Roots {
            proc: root("proc"),
            sys: root("sys"),
            cgroup: root("cgroup"),
            run: root("run"),
            etc: root("etc"),
            var_lib: root("lib"),
            root_dir: root("not/made/yet"),
        };
        let known = OnceLock::new();
        let mut facts = read(&roots, CgroupVersion::V1, &known).unwrap();
        assert!(facts.root_fs_bytes > 0);
        facts.root_fs_bytes = 7;
        facts.addresses.clear();
        assert_eq!(
            facts,
            MachineFacts {
                hostname: "Board-1".into(),
                machine_id: "0123".into(),
                system_uuid: "dev-tree-uuid".into(),
                boot_id: "b00t".into(),
                kernel_version: "6.1.0-rpi".into(),
                os_image: "Board".into(),
                architecture: architecture().into(),
                cpus: 4,
                machine: Arc::new(machine::read(&roots.sys, 2048 * 1024).unwrap()),
                memory_bytes: 2048 * 1024,
                swap_bytes: 4096,
                swap_controller: true,
                pids_controller: true,
                hugepages: vec![("2Mi".into(), 0), ("1Gi".into(), 1 << 30)],
                root_fs_bytes: 7,
                max_pids: 1000,
                addresses: vec![],
                cgroup_version: CgroupVersion::V1,
                app_armor: true,
                thermal_throttle_dirs: vec!["/sys/devices/system/cpu/cpu1/thermal_throttle".into()],
            }
        );

        assert_eq!(facts.machine.cpus.len(), 4);
        write("sys/devices/system/cpu/online", "0-1\n");
        let later = read(&roots, CgroupVersion::V1, &known).unwrap();
        assert_eq!((later.cpus, later.machine.cpus.len()), (2, 4), "what it is made of is read once");

        assert!(!read(&roots, CgroupVersion::V2, &known).unwrap().swap_controller);
        write("proc/self/cgroup", "0::/system/agent\n");
        write("cgroup/system/agent/memory.swap.max", "max\n");
        assert!(read(&roots, CgroupVersion::V2, &known).unwrap().swap_controller);

        fs::remove_file(root("proc/meminfo")).unwrap();
        let error = read(&roots, CgroupVersion::V1, &known).unwrap_err().to_string();
        assert!(error.contains(&PathBuf::from("proc/meminfo").display().to_string()), "{error}");
    }
}
