//! Cgroup version 2 below systemd, where the machine has no other.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::harness::{PodHandle, pod};
use crate::vm::site::{Site, WITHIN};
use crate::vm::{Case, case};

pub const CASES: &[Case] = &[case!(pods_of_each_class_have_their_groups_and_limits)];

async fn pods_of_each_class_have_their_groups_and_limits(site: Site) -> Result<()> {
    site.joined(site.agent).await?;
    let same = json!({ "cpu": "250m", "memory": "64Mi" });
    let guaranteed = pod("guaranteed").container(json!({ "resources": { "limits": same, "requests": same } }));
    let requests = json!({ "requests": { "cpu": "100m", "memory": "32Mi" }, "limits": { "memory": "128Mi" } });
    let burstable = pod("burstable").container(json!({ "resources": requests }));
    let [guaranteed, burstable] = [site.api.run(guaranteed).await?, site.api.run(burstable).await?];
    for pod in [&guaranteed, &burstable] {
        pod.expect().ready().within(WITHIN).await?;
    }

    let group = format!("kubepods/pod{}", guaranteed.uid);
    let files = ["cpu.max", "cpu.weight", "memory.max"];
    check(&site, &guaranteed, &group, &files, &["25000 100000", &weight(256), "67108864"]).await?;
    let group = format!("kubepods/burstable/pod{}", burstable.uid);
    check(&site, &burstable, &group, &files, &["max 100000", &weight(102), "134217728"]).await?;

    // Figures of pressure are what eviction will go by.
    let pressure = site.guest.run(&format!("cat /sys/fs/cgroup/{group}/memory.pressure")).await?;
    ensure!(pressure.starts_with("some avg10="), "{pressure}");
    Ok(())
}

/// What the kubelet makes of shares on version 2.
fn weight(shares: u64) -> String {
    (1 + (shares - 2) * 9999 / 262_142).to_string()
}

async fn check(site: &Site, pod: &PodHandle, group: &str, files: &[&str], expected: &[&str]) -> Result<()> {
    for (file, expected) in files.iter().zip(expected) {
        let value = site.guest.run(&format!("cat /sys/fs/cgroup/{group}/{file}")).await?;
        ensure!(value.trim() == *expected, "{} has {file} {value:?}, not {expected:?}", pod.name);
    }
    let inside = site.guest.run(&format!("cat /sys/fs/cgroup/{group}/*/cgroup.procs | wc -l")).await?;
    ensure!(inside.trim().parse::<u32>()? >= 2, "sandbox and container are below {group}, not {inside}");
    Ok(())
}
