//! What cgroups are called, by either driver. Pure.

use super::{HostError, Result};
use crate::host::{CgroupDriver, CgroupPath};

const POD_PREFIX: &str = "pod";

/// The names of the directories on the way down; a path that could lead elsewhere is refused.
pub fn levels(driver: CgroupDriver, cgroup: &CgroupPath) -> Result<Vec<String>> {
    if parts(cgroup).any(|name| matches!(name, "." | "..")) {
        return Err(HostError::Refused(format!("invalid cgroup path {:?}", cgroup.0)));
    }
    Ok(match driver {
        CgroupDriver::Cgroupfs => parts(cgroup).map(str::to_owned).collect(),
        CgroupDriver::Systemd => slices(cgroup),
    })
}

fn parts(cgroup: &CgroupPath) -> impl Iterator<Item = &str> {
    cgroup.0.split('/').filter(|name| !name.is_empty())
}

/// A dash separates levels in a slice's name, so dashes within one become underscores.
fn slices(cgroup: &CgroupPath) -> Vec<String> {
    let mut name = String::new();
    let slice = |level: &str| {
        if !name.is_empty() {
            name.push('-');
        }
        name.push_str(&level.replace('-', "_"));
        format!("{name}.slice")
    };
    parts(cgroup).map(slice).collect()
}

/// The path as the systemd driver has it, for the runtime's `cgroup_parent`:
/// `/kubepods/burstable/poda-b` is
/// `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_b.slice`.
pub fn systemd_name(cgroup: &CgroupPath) -> String {
    match slices(cgroup) {
        slices if slices.is_empty() => "/-.slice".to_owned(),
        slices => slices.iter().map(|slice| format!("/{slice}")).collect(),
    }
}

/// A cgroup as a setting names it. With systemd that is a slice, by its path or its bare name, and
/// all that counts is the slice's name, as upstream has it.
pub fn configured_name(driver: CgroupDriver, name: &str) -> CgroupPath {
    if driver == CgroupDriver::Cgroupfs {
        return CgroupPath(name.to_owned());
    }
    let last = name.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let stem = last.strip_suffix(".slice").unwrap_or(last);
    let levels = stem.split('-').filter(|level| !level.is_empty());
    CgroupPath(levels.map(|level| format!("/{}", level.replace('_', "-"))).collect())
}

/// The UID of the pod whose cgroup has that name below `parent`.
pub fn pod_of(driver: CgroupDriver, parent: &CgroupPath, name: &str) -> Option<String> {
    let uid = match driver {
        CgroupDriver::Cgroupfs => name.strip_prefix(POD_PREFIX)?.to_owned(),
        CgroupDriver::Systemd => {
            let above = slices(parent).pop()?;
            let own = name.strip_prefix(above.strip_suffix(".slice")?)?.strip_prefix('-')?;
            own.strip_prefix(POD_PREFIX)?.strip_suffix(".slice")?.replace('_', "-")
        }
    };
    // Such a directory would be no pod's.
    (!matches!(uid.as_str(), "" | "." | "..")).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: &str) -> CgroupPath {
        CgroupPath(path.to_owned())
    }

    #[test]
    fn slices_are_named_as_systemd_nests_them() {
        for (cgroup, slice) in [
            ("/", "/-.slice"),
            ("/kubepods", "/kubepods.slice"),
            ("/kubepods/burstable", "/kubepods.slice/kubepods-burstable.slice"),
            (
                "/kubepods/burstable/pod0b1d-2f",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0b1d_2f.slice",
            ),
            ("/my-root/kubepods", "/my_root.slice/my_root-kubepods.slice"),
        ] {
            assert_eq!(systemd_name(&path(cgroup)), slice);
        }
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_refused() {
        for driver in [CgroupDriver::Cgroupfs, CgroupDriver::Systemd] {
            for bad in ["/kubepods/../x", "..", "/./a"] {
                assert!(matches!(levels(driver, &path(bad)), Err(HostError::Refused(_))), "{bad}");
            }
            assert!(levels(driver, &path("//")).expect("the root").is_empty());
        }
        assert_eq!(levels(CgroupDriver::Cgroupfs, &path("//kubepods//a/")).expect("fine"), ["kubepods", "a"]);
    }

    #[test]
    fn a_setting_names_a_slice_by_path_or_name() {
        for (name, slice) in [
            ("/system.slice", "/system.slice"),
            ("system.slice", "/system.slice"),
            ("/system", "/system.slice"),
            ("/podruntime.slice/podruntime-kube.slice", "/podruntime.slice/podruntime-kube.slice"),
            ("podruntime-kube", "/podruntime.slice/podruntime-kube.slice"),
            ("/my_own.slice/", "/my_own.slice"),
            ("/", "/-.slice"),
        ] {
            assert_eq!(systemd_name(&configured_name(CgroupDriver::Systemd, name)), slice, "{name}");
        }
        assert_eq!(configured_name(CgroupDriver::Cgroupfs, "/kube/agents.slice"), path("/kube/agents.slice"));
    }

    #[test]
    fn a_pods_uid_is_read_off_either_name() {
        let check = |driver, parent: &str, name: &str, expected: Option<&str>| {
            assert_eq!(pod_of(driver, &path(parent), name).as_deref(), expected, "{parent} {name}");
        };
        let plain = CgroupDriver::Cgroupfs;
        check(plain, "/kubepods", "poda-b", Some("a-b"));
        check(plain, "/kubepods", "pod", None);
        check(plain, "/kubepods", "pod..", None);
        check(plain, "/kubepods", "burstable", None);
        let slices = CgroupDriver::Systemd;
        check(slices, "/kubepods", "kubepods-poda_b.slice", Some("a-b"));
        check(slices, "/kubepods/burstable", "kubepods-burstable-poda_b.slice", Some("a-b"));
        check(slices, "/kubepods", "kubepods-burstable.slice", None);
        check(slices, "/kubepods", "kubepods-pod.slice", None);
        check(slices, "/kubepods", "poda_b", None);
        check(slices, "/my-root/kubepods", "my_root-kubepods-poda.slice", Some("a"));
    }
}
