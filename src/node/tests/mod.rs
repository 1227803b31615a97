//! What the tests of this room share: a machine, a configuration, a survey to order.

mod desired;
mod lease;
mod patch;
mod task;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use super::config::{NodeConfig, Reserved};
use crate::config::quantity::parse;
use crate::config::{FeatureGates, NodeIp};
use crate::host::{CgroupVersion, MachineFacts};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).expect("within range")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Two CPUs, 4 GiB, 100 GB.
fn machine() -> MachineFacts {
    MachineFacts {
        hostname: "board-1".into(),
        machine_id: "m1d".into(),
        system_uuid: "uu1d".into(),
        boot_id: "boot-1".into(),
        kernel_version: "6.1.0".into(),
        os_image: "Debian GNU/Linux 12 (bookworm)".into(),
        architecture: "arm64".into(),
        cpus: 2,
        machine: std::sync::Arc::default(),
        memory_bytes: 4 << 30,
        swap_bytes: 0,
        swap_controller: false,
        pids_controller: true,
        hugepages: Vec::new(),
        root_fs_bytes: 100_000_000_000,
        max_pids: 32768,
        addresses: vec![ip("192.0.2.7"), ip("fd00::7")],
        cgroup_version: CgroupVersion::V1,
        app_armor: false,
        thermal_throttle_dirs: Vec::new(),
    }
}

fn config() -> NodeConfig {
    NodeConfig {
        name: "board-1".into(),
        register: true,
        node_ip: NodeIp::Unset,
        external_cloud_provider: false,
        labels: BTreeMap::new(),
        taints: Vec::new(),
        provider_id: String::new(),
        controller_attach_detach: true,
        local_storage_isolation: true,
        max_pods: 110,
        pods_per_core: 0,
        reserved: Reserved::default(),
        status_update_frequency: Duration::from_secs(10),
        status_report_frequency: Duration::from_secs(300),
        lease_duration_seconds: 40,
        port: 10250,
        version: "v1.36.2+ferrolet.0.1.0".into(),
        pod_cidr: String::new(),
        gates: FeatureGates::default(),
    }
}

fn amounts(list: &[(&str, &str)]) -> BTreeMap<String, crate::config::Quantity> {
    list.iter().map(|(name, amount)| ((*name).to_owned(), parse(amount).expect("a quantity"))).collect()
}
