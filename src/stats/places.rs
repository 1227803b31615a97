//! Where cgroups lie, by flags, fields and where the agent itself runs.

use std::path::Path;

use super::StatsConfig;
use crate::host::{CgroupPath, Roots, systemd_name};

/// Where cgroups are looked for.
#[derive(Clone, Debug)]
pub struct Places {
    pub roots: Roots,
    /// Kubepods, as either driver would have it.
    pub kubepods: Vec<String>,
    /// Where the runtime puts what it was told no place for.
    pub unplaced: Vec<String>,
    /// Cgroups of the node's own parts, by upstream's name of the part.
    pub system: Vec<(&'static str, String)>,
}

/// The name of the agent's own part.
pub const KUBELET: &str = "kubelet";

impl Places {
    /// What lies where, by flags and fields.
    pub fn of(config: &StatsConfig) -> Self {
        let kubepods = CgroupPath(format!("{}/kubepods", config.cgroup_root.trim_end_matches('/')));
        let by_systemd = systemd_name(&kubepods);
        let unplaced: &[&str] = if config.cgroups_per_qos { &[] } else { &["/k8s.io", "/system.slice"] };
        let kubelet = match config.kubelet_cgroups.as_str() {
            "" => own_cgroup(&config.roots.proc).unwrap_or_default(),
            configured => configured.to_owned(),
        };
        let parts =
            [(KUBELET, kubelet), ("runtime", config.runtime_cgroups.clone()), ("misc", config.system_cgroups.clone())];
        Places {
            roots: config.roots.clone(),
            kubepods: vec![kubepods.0, by_systemd],
            unplaced: unplaced.iter().map(|place| (*place).to_owned()).collect(),
            // The root is no part of the node.
            system: parts.into_iter().filter(|(_, id)| id.len() > 1).collect(),
        }
    }
}

/// The cgroup of a process, by its `cgroup` file: of the memory hierarchy, or the only one.
fn cgroup_of_process(text: &str) -> Option<String> {
    let mut unified = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        if controllers.split(',').any(|controller| controller == "memory") {
            return Some(path.to_owned());
        }
        if controllers.is_empty() {
            unified = Some(path.to_owned());
        }
    }
    unified
}

/// Where the agent itself runs.
fn own_cgroup(proc: &Path) -> Option<String> {
    std::fs::read_to_string(proc.join("self/cgroup")).ok().as_deref().and_then(cgroup_of_process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_of_a_process_is_that_of_its_memory() {
        for (text, expected) in [
            (
                "4:memory:/system.slice/kubelet.service\n1:name=systemd:/x\n0::/y\n",
                Some("/system.slice/kubelet.service"),
            ),
            ("1:name=systemd:/x\n0::/y\n", Some("/y")),
            ("0::/\n", Some("/")),
            ("2:cpu,memory:/both:odd\n", Some("/both:odd")),
            ("nonsense\n", None),
            ("", None),
        ] {
            assert_eq!(cgroup_of_process(text).as_deref(), expected, "{text:?}");
        }
    }
}
