//! What a pod was promised, the kernel enforces: CPUs and memory of its own, and limits that hold.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::json;

use crate::harness::{PodBuilder, PodHandle, pod};
use crate::poll::{self, Look};
use crate::stack::Agent as Kind;
use crate::vm::placement::{self, Cpus, Placed};
use crate::vm::settings::CPU_STATE;
use crate::vm::site::{Site, WITHIN};
use crate::vm::{Case, case};

pub const CASES: &[Case] = &[
    case!(a_guaranteed_pod_has_cpus_of_one_numa_node_to_itself_over_a_restart_and_a_reboot),
    case!(hogs_meet_their_limits_and_nobody_else_notices),
];

/// Most memory is reserved, so that little is to be filled.
const CPUS: &str = r#"
cpuManagerPolicy: static
reservedSystemCPUs: "0"
topologyManagerPolicy: single-numa-node
kubeReserved: { memory: 1400Mi }
evictionHard: { memory.available: 100Mi }
podPidsLimit: 64
"#;
/// Both NUMA nodes keep a part of what is reserved.
const MEMORY: &str = "
memoryManagerPolicy: Static
reservedMemory:
- { numaNode: 0, limits: { memory: 700Mi } }
- { numaNode: 1, limits: { memory: 800Mi } }
";
const RESERVED: u64 = 1400 << 20;
const EVICTION: u64 = 100 << 20;
const PIDS_MAX: u32 = 64;

/// Where the class has no part of the path, as those of the Guaranteed pods.
const GUARANTEED: &str = "";
const BEST_EFFORT: &str = "/besteffort";

fn settings() -> String {
    [CPUS, MEMORY].concat()
}

fn guaranteed(name: &str, cpus: u32, script: &str) -> PodBuilder {
    let limits = json!({ "cpu": cpus.to_string(), "memory": "48Mi" });
    pod(name).script(script).container(json!({ "resources": { "limits": limits } }))
}

async fn run(site: &Site, pod: PodBuilder) -> Result<PodHandle> {
    let pod = site.api.run(pod).await?;
    pod.expect().ready().within(WITHIN).await?;
    Ok(pod)
}

async fn a_guaranteed_pod_has_cpus_of_one_numa_node_to_itself_over_a_restart_and_a_reboot(site: Site) -> Result<()> {
    site.joined(site.agent).await?;
    site.set(&settings()).await?;
    allocatable(&site).await?;
    alone_on_its_cpus(&site).await?;
    // After each boot the kernel keeps some kilobytes more or less for itself. Upstream's memory manager
    // takes that for another machine, and the kubelet does not start any more.
    if site.agent == Kind::Kubelet {
        site.set(CPUS).await?;
    }
    cpus_are_kept(&site).await?;
    site.unset().await
}

/// Busy pods beside one that is pinned.
async fn alone_on_its_cpus(site: &Site) -> Result<()> {
    let machine = Machine::of(site).await?;

    let noisy = run(site, pod("noisy").script(&placement::loops(machine.cpus.len()))).await?;
    let restarts = noisy.instance().await?;
    let noise = Placed::new(site, &noisy, BEST_EFFORT).await?;
    noise.expect_cpus(&machine.cpus).await?;

    let pinned = run(site, guaranteed("pinned", 2, &placement::loops(2))).await?;
    let alone = Placed::new(site, &pinned, GUARANTEED).await?;
    let allowed = alone.allowed_to_all().await?;
    ensure!(machine.cores.contains(&allowed.cpus), "{allowed:?} is no whole core of {:?}", machine.cores);
    ensure!(!allowed.cpus.contains(&0), "CPU 0 is reserved, and is among {allowed:?}");
    let node = machine.nodes.iter().find(|(_, cpus)| allowed.cpus.is_subset(cpus));
    let (node, _) = node.with_context(|| format!("{allowed:?} is on none of {:?}", machine.nodes))?;
    ensure!(allowed.nodes == Cpus::from([*node]), "its memory is not all on NUMA node {node}: {allowed:?}");
    let shared: Cpus = machine.cpus.difference(&allowed.cpus).copied().collect();
    noise.expect_cpus(&shared).await?;

    let before = placement::watch(site, &[&alone]).await?;
    ensure!(before.share > 1.4, "two loops on two CPUs have {before:?}");
    let beside = placement::watch(site, &[&alone, &noise]).await?;
    ensure!(beside.ran_on[0].is_subset(&allowed.cpus), "it ran elsewhere than on {:?}: {beside:?}", allowed.cpus);
    ensure!(beside.ran_on[1].is_disjoint(&allowed.cpus), "the other ran on its {:?}: {beside:?}", allowed.cpus);
    ensure!(beside.share > 0.7 * before.share, "beside another it had {beside:?}, before {before:?}");

    pinned.delete().await?;
    noise.expect_cpus(&machine.cpus).await?;
    ensure!(noisy.instance().await? == restarts, "the other was restarted");
    // What follows shall not wait for its loops.
    noisy.delete().await?;
    noisy.expect_gone().await
}

/// Whatever happens to the agent and the machine.
async fn cpus_are_kept(site: &Site) -> Result<()> {
    let sleeps = "exec sleep 1000000";
    let first = run(site, guaranteed("first", 2, sleeps)).await?;
    let cpus = Placed::new(site, &first, GUARANTEED).await?.allowed_to_all().await?.cpus;
    let (tasks, state) = (site.running().await?, state(site).await?);
    ensure!(state.contains(&first.uid), "{CPU_STATE} is {state}");

    site.guest.run("systemctl restart kubelet").await?;
    // It knows what it gave away: the next gets other CPUs.
    let second = run(site, guaranteed("second", 1, sleeps)).await?;
    let others = Placed::new(site, &second, GUARANTEED).await?.allowed_to_all().await?.cpus;
    ensure!(others.len() == 1 && others.is_disjoint(&cpus) && !others.contains(&0), "{others:?} beside {cpus:?}");
    let now = site.running().await?;
    ensure!(tasks.iter().all(|task| now.contains(task)), "containers were {tasks:?}, are {now:?}");
    Placed::new(site, &first, GUARANTEED).await?.expect_cpus(&cpus).await?;

    site.reboot().await?;
    site.expect_ready().await?;
    for (pod, cpus) in [(&first, &cpus), (&second, &others)] {
        pod.expect().ready().restarts(1).within(WITHIN).await?;
        let allowed = Placed::new(site, pod, GUARANTEED).await?.allowed_to_all().await?;
        ensure!(allowed.cpus == *cpus, "after a reboot {} has {allowed:?}, had {cpus:?}", pod.name);
    }
    Ok(())
}

async fn state(site: &Site) -> Result<String> {
    site.guest.run(&format!("cat {CPU_STATE}")).await
}

async fn hogs_meet_their_limits_and_nobody_else_notices(site: Site) -> Result<()> {
    site.joined(site.agent).await?;
    site.set(&settings()).await?;
    let agent = Agent::of(&site).await?;
    ensure!(agent.oom_score == "-999", "the agent is {agent:?}");
    let neighbours = [run(&site, guaranteed("safe", 1, "exec sleep 1000000")).await?, run(&site, pod("modest")).await?];
    let before = site.running().await?;

    own_limit(&site).await?;
    pids(&site).await?;
    limit_of_all_pods(&site).await?;

    for pod in &neighbours {
        pod.expect().ready().status("no restart", |status| status.restart_count == 0).await?;
    }
    let now = site.running().await?;
    ensure!(before.iter().all(|task| now.contains(task)), "containers were {before:?}, are {now:?}");
    ensure!(Agent::of(&site).await? == agent, "the agent was {agent:?}, is {:?}", Agent::of(&site).await?);
    site.expect_ready().await?;
    site.unset().await
}

/// A container that wants more than its own limit.
async fn own_limit(site: &Site) -> Result<()> {
    let limits = json!({ "resources": { "limits": { "memory": "32Mi" } } });
    let greedy = pod("greedy").script("exec dd if=/dev/zero of=/dev/null bs=64M").restart("Never").container(limits);
    let greedy = site.api.run(greedy).await?;
    greedy.expect().phase("Failed").exit_code(137).terminated("OOMKilled").within(WITHIN).await.map(drop)
}

/// A fork bomb, which waits until it is known that something holds it.
async fn pids(site: &Site) -> Result<()> {
    let bomb = "until [ -e /tmp/go ]; do sleep 1; done; forks() { forks | forks & }; forks; exec sleep 1000000";
    let bomb = run(site, pod("bomb").script(bomb)).await?;
    let placed = Placed::new(site, &bomb, BEST_EFFORT).await?;
    let group = placed.pod_group();
    let limit = site.guest.run(&format!("cat {group}/pids.max")).await?;
    ensure!(limit.trim() == PIDS_MAX.to_string(), "pids.max of the pod is {limit}");
    let pid = format!("$(head -n 1 {}/cgroup.procs)", placed.group());
    site.guest.run(&format!("touch /proc/{pid}/root/tmp/go")).await?;
    // `max N` is how often a fork failed for the limit.
    let refused = |told: &str| told.split_whitespace().nth(1).is_some_and(|times| times != "0");
    site.guest.expect(&format!("cat {group}/pids.events"), "forks are refused", refused).await?;
    let current: u32 = site.guest.run(&format!("cat {group}/pids.current")).await?.trim().parse()?;
    ensure!(current <= PIDS_MAX, "{current} processes in a pod of at most {PIDS_MAX}");
    bomb.delete().await?;
    bomb.expect_gone().await
}

/// Pods without limits of their own meet that of all pods together.
async fn limit_of_all_pods(site: &Site) -> Result<()> {
    let (capacity, _) = memory(site).await?;
    let limit = site.guest.run("cat /sys/fs/cgroup/kubepods/memory.max").await?;
    ensure!(limit.trim() == (capacity - RESERVED).to_string(), "kubepods may use {limit} of {capacity}");
    let hog = format!("exec dd if=/dev/zero of=/dev/null bs={}M", (capacity - RESERVED) >> 20);
    let hog = site.api.run(pod("hog").script(&hog).restart("Never")).await?;
    hog.expect().phase("Failed").exit_code(137).within(WITHIN).await.map(drop)
}

/// What the Node says it has for pods is what is not reserved.
async fn allocatable(site: &Site) -> Result<()> {
    let goal = "the Node says what is reserved";
    poll::until(goal, WITHIN, async || {
        let (capacity, allocatable) = memory(site).await?;
        let told = quantities(site).await?.1;
        let is_so = told.get("cpu").is_some_and(|cpu| cpu.0 == "7") && allocatable == capacity - RESERVED - EVICTION;
        Ok(if is_so { Look::Done(()) } else { Look::NotYet(format!("{told:?} of {capacity}")) })
    })
    .await
}

type Quantities = BTreeMap<String, Quantity>;

/// Capacity and what is allocatable of it.
async fn quantities(site: &Site) -> Result<(Quantities, Quantities)> {
    let status = site.expect_ready().await?.status.unwrap_or_default();
    Ok((status.capacity.unwrap_or_default(), status.allocatable.unwrap_or_default()))
}

async fn memory(site: &Site) -> Result<(u64, u64)> {
    let (capacity, allocatable) = quantities(site).await?;
    let bytes = |quantities: &Quantities| {
        let memory = &quantities.get("memory").context("a node has memory")?.0;
        let kibibytes = memory.strip_suffix("Ki").with_context(|| format!("memory is {memory}"))?;
        anyhow::Ok(kibibytes.parse::<u64>()? << 10)
    };
    Ok((bytes(&capacity)?, bytes(&allocatable)?))
}

/// The agent's process; one that was replaced differs.
#[derive(Debug, PartialEq, Eq)]
struct Agent {
    pid: String,
    restarts: String,
    oom_score: String,
}

impl Agent {
    async fn of(site: &Site) -> Result<Agent> {
        let script = "systemctl show --property=MainPID,NRestarts --value kubelet
            cat /proc/$(systemctl show --property=MainPID --value kubelet)/oom_score_adj";
        let told = site.guest.run(script).await?;
        let mut words = told.split_whitespace().map(str::to_owned);
        let mut next = || words.next().with_context(|| format!("three lines, not {told}"));
        Ok(Agent { pid: next()?, restarts: next()?, oom_score: next()? })
    }
}

/// What the machine's kernel says of itself.
struct Machine {
    cpus: Cpus,
    nodes: Vec<(u32, Cpus)>,
    cores: Vec<Cpus>,
}

impl Machine {
    async fn of(site: &Site) -> Result<Machine> {
        let lines = async |script: &str| -> Result<Vec<Cpus>> {
            site.guest.run(script).await?.lines().map(placement::cpus).collect()
        };
        let nodes = (0..).zip(lines("cat /sys/devices/system/node/node*/cpulist").await?).collect();
        let cores = lines("cat /sys/devices/system/cpu/cpu*/topology/thread_siblings_list | sort -u").await?;
        let cpus = cores.iter().flatten().copied().collect();
        Ok(Machine { cpus, nodes, cores })
    }
}
