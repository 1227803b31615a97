//! Cgroup version 2 below systemd, where the machine has no other, by both drivers.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use crate::harness::{PodHandle, Transport, exposition, pod};
use crate::poll::{self, Look};
use crate::stack::Agent;
use crate::vm::placement::Placed;
use crate::vm::site::{NODE, Site, WITHIN};
use crate::vm::{Case, case};

pub const CASES: &[Case] = &[
    case!(pods_of_each_class_have_their_groups_and_limits),
    case!(with_systemds_driver_pods_are_slices_that_systemd_knows),
];

/// One pod of each class, Ready.
struct Pods {
    guaranteed: PodHandle,
    burstable: PodHandle,
    modest: PodHandle,
}

async fn pods_of_each_class(site: &Site) -> Result<Pods> {
    let same = json!({ "cpu": "250m", "memory": "64Mi" });
    let guaranteed = pod("guaranteed").container(json!({ "resources": { "limits": same, "requests": same } }));
    let requests = json!({ "requests": { "cpu": "100m", "memory": "32Mi" }, "limits": { "memory": "128Mi" } });
    let burstable = pod("burstable").container(json!({ "resources": requests }));
    let [guaranteed, burstable] = [site.api.run(guaranteed).await?, site.api.run(burstable).await?];
    let modest = site.api.run(pod("modest")).await?;
    for pod in [&guaranteed, &burstable, &modest] {
        pod.expect().ready().within(WITHIN).await?;
    }
    Ok(Pods { guaranteed, burstable, modest })
}

/// What only version 2 has, and what is off unless somebody asks for it.
const PROMISES: &str = "
failSwapOn: false
memorySwap: { swapBehavior: LimitedSwap }
memoryReservationPolicy: TieredReservation
qosReserved: { memory: 50% }
featureGates: { MemoryQoS: true, QOSReserved: true }
";

async fn pods_of_each_class_have_their_groups_and_limits(site: Site) -> Result<()> {
    site.joined(site.agent).await?;
    // In memory, through a device: the machine's own disk may be of layers, which swap cannot be on.
    let swap =
        "truncate --size=64M /run/swap; device=$(losetup --find --show /run/swap); mkswap $device; swapon $device";
    site.guest.run(swap).await?;
    site.guest.run("echo 8 >/proc/sys/vm/nr_hugepages; grep 'HugePages_Total: *8' /proc/meminfo").await?;
    site.set(PROMISES).await?;
    let Pods { guaranteed, burstable, modest } = pods_of_each_class(&site).await?;
    let group = format!("kubepods/pod{}", guaranteed.uid);
    let files = ["cpu.max", "cpu.weight", "memory.max"];
    check(&site, &guaranteed, &group, &files, &["25000 100000", &weight(256), "67108864"]).await?;
    let group = format!("kubepods/besteffort/pod{}", modest.uid);
    check(&site, &modest, &group, &files, &["max 100000", "1", "max"]).await?;
    let group = format!("kubepods/burstable/pod{}", burstable.uid);
    check(&site, &burstable, &group, &files, &["max 100000", &weight(102), "134217728"]).await?;

    // Figures of pressure are what eviction will go by.
    let pressure = site.guest.run(&format!("cat /sys/fs/cgroup/{group}/memory.pressure")).await?;
    ensure!(pressure.starts_with("some avg10="), "{pressure}");

    summary(&site, &burstable).await?;
    pages(&site, &burstable).await?;
    promised_memory(&site, &guaranteed, &burstable, &modest).await?;
    huge_pages(&site).await?;
    site.guest.run("echo 0 >/proc/sys/vm/nr_hugepages").await?;
    // Without what allows it the agent would not start beside swap.
    site.guest.run("swapoff --all; losetup --detach-all; rm /run/swap").await?;
    site.unset().await
}

/// The node tells of them, a pod has as many as it asked for, and a directory made of them.
async fn huge_pages(site: &Site) -> Result<()> {
    let status = site.expect_ready().await?.status.unwrap_or_default();
    let told = |amounts: Option<&BTreeMap<String, Quantity>>| amounts.and_then(|it| it.get("hugepages-2Mi").cloned());
    let sixteen = Some(Quantity("16Mi".into()));
    ensure!(told(status.capacity.as_ref()) == sixteen, "{:?}", status.capacity);
    ensure!(told(status.allocatable.as_ref()) == sixteen, "{:?}", status.allocatable);
    let limits = json!({ "cpu": "100m", "memory": "32Mi", "hugepages-2Mi": "4Mi" });
    let medium = json!({ "emptyDir": { "medium": "HugePages" } });
    let huge = pod("huge").container(json!({ "resources": { "limits": limits } })).volume("pages", "/pages", medium);
    let huge = site.api.run(huge).await?;
    huge.expect().ready().within(WITHIN).await?;
    let placed = Placed::new(site, &huge, "").await?;
    // Containers are told theirs too, which containerd keeps to itself unless it is configured otherwise.
    let limit = site.guest.run(&format!("cat {}/hugetlb.2MB.max", placed.pod_group())).await?;
    ensure!(limit.trim() == (4 * MIB).to_string(), "the pod may have {limit}");
    let mount = site.guest.run(&format!("grep {}/volumes /proc/mounts | grep hugetlbfs", huge.uid)).await?;
    ensure!(mount.contains("pagesize=2M"), "{mount}");
    huge.delete().await?;
    huge.expect_gone().await
}

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Memory that is kept for who asked for it, throttling before the limit, and a part of the swap.
async fn promised_memory(site: &Site, guaranteed: &PodHandle, burstable: &PodHandle, modest: &PodHandle) -> Result<()> {
    let number = async |path: &str| -> Result<u64> {
        let text = site.guest.run(&format!("cat {path}")).await?;
        text.trim().parse().with_context(|| format!("{path} is {text:?}"))
    };
    let [of_guaranteed, of_burstable, of_modest] = [
        Placed::new(site, guaranteed, "").await?,
        Placed::new(site, burstable, "/burstable").await?,
        Placed::new(site, modest, "/besteffort").await?,
    ];
    let (all, middle, least) =
        ("/sys/fs/cgroup/kubepods", "/sys/fs/cgroup/kubepods/burstable", "/sys/fs/cgroup/kubepods/besteffort");
    let whole = number(&format!("{all}/memory.max")).await?;
    let (node, swap) = (meminfo(site, "MemTotal").await?, meminfo(site, "SwapTotal").await?);
    ensure!(swap > 60 * MIB, "{swap} bytes of swap");
    let part = 32 * MIB * swap / node / PAGE * PAGE;
    // 32Mi and nine tenths of what is between that and 128Mi.
    let throttled = (32 * MIB + 96 * MIB * 9 / 10) / PAGE * PAGE;
    for (group, file, expected) in [
        (all, "memory.min", 96 * MIB),
        (middle, "memory.low", 32 * MIB),
        (middle, "memory.max", whole - 32 * MIB),
        (least, "memory.max", whole - 48 * MIB),
        (of_guaranteed.pod_group(), "memory.min", 64 * MIB),
        (of_guaranteed.group(), "memory.min", 64 * MIB),
        (of_guaranteed.group(), "memory.swap.max", 0),
        (of_burstable.pod_group(), "memory.low", 32 * MIB),
        (of_burstable.group(), "memory.low", 32 * MIB),
        (of_burstable.group(), "memory.high", throttled),
        (of_burstable.group(), "memory.swap.max", part),
        (of_modest.group(), "memory.low", 0),
        (of_modest.group(), "memory.swap.max", 0),
    ] {
        let goal = format!("{file} of {group} is {expected}");
        let is_so = |told: &str| told.trim() == expected.to_string();
        site.guest.expect(&format!("cat {group}/{file}"), &goal, is_so).await?;
    }
    // Between what they ask for and their limit is nothing, or neither is there: upstream's comparison.
    for placed in [&of_guaranteed, &of_modest] {
        let high = site.guest.run(&format!("cat {}/memory.high", placed.group())).await?;
        ensure!(high.trim() == "max", "{} is held back at {high}", placed.group());
    }
    Ok(())
}

async fn meminfo(site: &Site, line: &str) -> Result<u64> {
    let told = site.guest.run(&format!("grep ^{line}: /proc/meminfo")).await?;
    let kibibytes = told.split_whitespace().nth(1).with_context(|| format!("{line} is {told:?}"))?;
    Ok(kibibytes.parse::<u64>()? << 10)
}

const CONTAINERD: &str = "/etc/containerd/config.toml";
const KUBELET: &str = "/var/lib/kubelet/config.yaml";

/// Has the runtime use that driver from now on, and the agent ask it again.
async fn use_systemd(site: &Site, on: bool) -> Result<()> {
    let change = format!("sed -i 's/^SystemdCgroup = .*/SystemdCgroup = {on}/' {CONTAINERD}");
    site.guest
        .run(&format!("{change}; grep -q 'SystemdCgroup = {on}' {CONTAINERD}; systemctl restart containerd"))
        .await?;
    restart_agent(site).await
}

async fn restart_agent(site: &Site) -> Result<()> {
    site.guest.run("systemctl restart kubelet").await?;
    site.guest
        .expect("systemctl is-active kubelet", "the agent is up", |state| state.trim() == "active")
        .await
        .map(drop)
}

/// Below `parent`, without its suffix.
fn slice_of(parent: &str, pod: &PodHandle) -> String {
    format!("{parent}-pod{}.slice", pod.uid.replace('-', "_"))
}

async fn with_systemds_driver_pods_are_slices_that_systemd_knows(site: Site) -> Result<()> {
    site.joined(site.agent).await?;
    use_systemd(&site, true).await?;
    let Pods { guaranteed, burstable, modest } = pods_of_each_class(&site).await?;
    let (of_guaranteed, of_burstable) = (slice_of("kubepods", &guaranteed), slice_of("kubepods-burstable", &burstable));
    let burstable_group = format!("kubepods.slice/kubepods-burstable.slice/{of_burstable}");
    let modest_group = format!("kubepods.slice/kubepods-besteffort.slice/{}", slice_of("kubepods-besteffort", &modest));
    let files = ["cpu.max", "cpu.weight", "memory.max"];
    // A daemon that reads all its units anew writes what it was told, and no other.
    for doing in ["true", "systemctl daemon-reload", "systemctl daemon-reexec"] {
        site.guest.run(doing).await?;
        let group = format!("kubepods.slice/{of_guaranteed}");
        // Containers are moved among CPUs below it, whether or not systemd was asked for any itself.
        let controllers = site.guest.run(&format!("cat /sys/fs/cgroup/{group}/cgroup.controllers")).await?;
        ensure!(controllers.contains("cpuset"), "after {doing} the slice has {controllers}");
        check(&site, &guaranteed, &group, &files, &["25000 100000", &weight(256), "67108864"]).await?;
        check(&site, &modest, &modest_group, &files, &["max 100000", "1", "max"]).await?;
        check(&site, &burstable, &burstable_group, &files, &["max 100000", &weight(102), "134217728"]).await?;
    }
    let told = |slice: &str, property: &str| format!("systemctl show --property={property} --value {slice}");
    for (slice, property, expected) in [
        (of_guaranteed.as_str(), "MemoryMax", "67108864"),
        (of_guaranteed.as_str(), "CPUQuotaPerSecUSec", "250ms"),
        (of_burstable.as_str(), "MemoryMax", "134217728"),
        (of_burstable.as_str(), "ActiveState", "active"),
        ("kubepods.slice", "DefaultDependencies", "no"),
    ] {
        let value = site.guest.run(&told(slice, property)).await?;
        ensure!(value.trim() == expected, "systemd has {property} {value:?} of {slice}, not {expected:?}");
    }
    let limit = site.guest.run("cat /sys/fs/cgroup/kubepods.slice/memory.max").await?;
    ensure!(limit.trim().parse::<u64>().is_ok(), "all pods may have {limit}");
    summary(&site, &burstable).await?;
    pages(&site, &burstable).await?;
    let mut left = vec![guaranteed, modest];
    if site.agent == Agent::Ferrolet {
        let level = "/sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/cpu.weight";
        let before = site.guest.run(&format!("cat {level}; echo 77 >{level}")).await?;
        let later = site.api.run(pod("later")).await?;
        later.expect().ready().within(WITHIN).await?;
        left.push(later);
        site.guest.expect(&format!("cat {level}"), "the level is put right", |now| now == before).await?;
    }

    burstable.delete().await?;
    burstable.expect_gone().await?;
    site.guest.expect(&told(&of_burstable, "ActiveState"), "its slice ends", |it| it.trim() == "inactive").await?;
    let gone = format!("test ! -e /sys/fs/cgroup/{burstable_group}");
    site.guest.expect(&gone, "and its group with it", |_| true).await?;
    reserve_for_the_system(&site).await?;
    // None may live through the change of drivers: its group would be nobody's.
    for pod in &left {
        pod.delete().await?;
        pod.expect_gone().await?;
    }
    use_systemd(&site, false).await?;
    site.expect_ready().await.map(drop)
}

/// A slice of systemd's own is held to what is reserved for it, and let go again.
async fn reserve_for_the_system(site: &Site) -> Result<()> {
    let weight_now = "cat /sys/fs/cgroup/system.slice/cpu.weight";
    let more = "systemReserved: {cpu: 100m}\nsystemReservedCgroup: /system.slice\n\
                enforceNodeAllocatable: [pods, system-reserved-compressible]";
    site.guest.run(&format!("cp {KUBELET} /tmp/before.yaml; printf '{more}\\n' >>{KUBELET}")).await?;
    restart_agent(site).await?;
    site.guest.expect(weight_now, "the system has its part", |it| it.trim() == weight(102)).await?;
    site.guest
        .run(&format!("cp /tmp/before.yaml {KUBELET}; systemctl set-property --runtime system.slice CPUWeight=100"))
        .await?;
    restart_agent(site).await
}

/// The limit of the burstable pod.
const LIMIT: f64 = (128 << 20) as f64;

/// What the agent makes of the groups, through the API server's proxy.
async fn told(site: &Site, path: &str) -> Result<String> {
    let path = format!("/api/v1/nodes/{NODE}/proxy{path}");
    Ok(String::from_utf8(site.api.kubectl_well(Transport::Spdy, &["get", "--raw", &path], b"").await?)?)
}

/// Upstream learns of a pod with its next look at all groups, which is some ten seconds away.
async fn summary(site: &Site, pod: &PodHandle) -> Result<()> {
    poll::until(format!("pod {} in the summary", pod.name), WITHIN, async || {
        let summary: Value = serde_json::from_str(&told(site, "/stats/summary").await?)?;
        let Some(found) = pod.in_summary(&summary) else {
            return Ok(Look::NotYet(format!("not among {}", summary["pods"])));
        };
        let parts = [("node", &summary["node"]), ("pod", found), ("container", &found["containers"][0])];
        Ok(match parts.into_iter().try_for_each(|(name, part)| figures(part).context(name)) {
            Ok(()) => Look::Done(()),
            Err(error) => Look::NotYet(format!("{error:#}")),
        })
    })
    .await
}

fn figures(part: &Value) -> Result<()> {
    for resource in ["cpu", "memory", "io"] {
        for kind in ["some", "full"] {
            let stalled = &part[resource]["psi"][kind];
            for figure in ["total", "avg10", "avg60", "avg300"] {
                let value = stalled[figure].as_f64();
                let is_plausible = value.is_some_and(|it| it >= 0.0 && (figure == "total" || it <= 100.0));
                ensure!(is_plausible, "{resource} {kind} {figure} is {:?} in {part}", stalled[figure]);
            }
        }
    }
    let is_seen = |path: &str| part.pointer(path).and_then(Value::as_f64).is_some_and(|it| it > 0.0);
    ensure!(is_seen("/cpu/usageCoreNanoSeconds") && is_seen("/memory/workingSetBytes"), "{part}");
    Ok(())
}

/// The same by the pages for scrapers, of the pod's one container.
async fn pages(site: &Site, pod: &PodHandle) -> Result<()> {
    let labels = [("pod", pod.name.as_str()), ("container", "main")];
    let families = exposition::parse(&told(site, "/metrics/cadvisor").await?)?;
    for resource in ["cpu", "memory", "io"] {
        for kind in ["stalled", "waiting"] {
            let name = format!("container_pressure_{resource}_{kind}_seconds_total");
            let value = exposition::value(&families, &name, &labels);
            ensure!(value.is_some_and(|it| it >= 0.0), "{name} is {value:?}");
        }
    }
    let families = exposition::parse(&told(site, "/metrics/resource").await?)?;
    for labels in [&labels[..1], &labels[..]] {
        let kind = if labels.len() == 1 { "pod" } else { "container" };
        let of = |figure: &str| exposition::value(&families, &format!("{kind}_{figure}"), labels).unwrap_or_default();
        let (memory, cpu) = (of("memory_working_set_bytes"), of("cpu_usage_seconds_total"));
        ensure!(memory > 0.0 && memory < LIMIT && cpu > 0.0, "{kind}: {memory} bytes, {cpu} s of CPU");
    }
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
