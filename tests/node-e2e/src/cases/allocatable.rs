//! What of the machine pods and the node's own programs may have, and cgroups that somebody else touches.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::Api;
use serde_json::json;

use crate::harness::{Case, Lab, Node, PodCgroup, WITHIN, pod};
use crate::own;
use crate::poll::{self, Look};
use crate::stack::State;

pub const CASES: &[Case] = &[
    own!(reservations_are_enforced_on_pods_and_on_the_nodes_own_cgroup),
    own!(levels_that_somebody_changed_are_put_right).beyond_upstream("it writes some values only once"),
    own!(a_leftover_cgroup_goes_with_the_process_in_it),
];

const MIB: u64 = 1 << 20;

/// A cgroup of the node, below the root of each hierarchy.
struct Level {
    hierarchies: Vec<PathBuf>,
    path: String,
}

impl Level {
    fn of(node: &Node, path: &str) -> Result<Level> {
        let root = node.stack().on_node("/sys/fs/cgroup");
        let is_one = |directory: &PathBuf| directory.join("cgroup.procs").exists();
        let hierarchies = match is_one(&root) {
            true => vec![root],
            false => {
                let entries = fs::read_dir(&root)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
                entries.into_iter().filter(is_one).collect()
            }
        };
        Ok(Level { hierarchies, path: path.trim_start_matches('/').to_owned() })
    }

    /// By an operator, with what the parent has of CPUs.
    fn make(&self) -> Result<()> {
        for hierarchy in &self.hierarchies {
            let directory = hierarchy.join(&self.path);
            fs::create_dir_all(&directory)?;
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let above = directory.parent().context("it has a parent")?.join(file);
                if above.exists() && self.hierarchies.len() > 1 {
                    fs::write(directory.join(file), fs::read_to_string(above)?.trim())?;
                }
            }
        }
        Ok(())
    }

    /// The file of version 1 or that of version 2, whichever is there.
    fn file(&self, v1: &str, v2: &str) -> Result<PathBuf> {
        let places =
            self.hierarchies.iter().flat_map(|it| [it.join(&self.path).join(v1), it.join(&self.path).join(v2)]);
        places.into_iter().find(|file| file.exists()).with_context(|| format!("{} has no {v1} or {v2}", self.path))
    }

    fn number(&self, v1: &str, v2: &str) -> Result<u64> {
        let file = self.file(v1, v2)?;
        let text = fs::read_to_string(&file)?;
        text.trim().parse().with_context(|| format!("{} has {text:?}", file.display()))
    }

    fn memory_limit(&self) -> Result<u64> {
        self.number("memory.limit_in_bytes", "memory.max")
    }

    async fn expect(&self, (v1, v2): (&str, &str), value: u64) -> Result<()> {
        poll::until(format!("{value} in {v1} of {}", self.path), WITHIN, async || {
            let found = self.number(v1, v2)?;
            Ok(if found == value { Look::Done(()) } else { Look::NotYet(found.to_string()) })
        })
        .await
    }
}

async fn reservations_are_enforced_on_pods_and_on_the_nodes_own_cgroup(lab: Lab) -> Result<()> {
    let node = lab
        .node(|stack| {
            stack
                .without_agent()
                .config("systemReserved", json!({ "cpu": "100m", "memory": "256Mi", "pid": "1000" }))
                .config("kubeReserved", json!({ "cpu": "200m", "memory": "128Mi", "pid": "500" }))
                .config("kubeReservedCgroup", "/agents")
                .config("enforceNodeAllocatable", json!(["pods", "kube-reserved"]))
        })
        .await?;
    let agents = Level::of(&node, "/agents")?;
    agents.make()?;
    node.stack().agent().start().await?;
    node.expect_node_ready("True").await?;
    let nodes: Api<NodeObject> = Api::all(node.client());
    let capacity = nodes.get(node.name()).await?.status.and_then(|status| status.capacity).context("a capacity")?;
    let memory = capacity["memory"].0.trim_end_matches("Ki").parse::<u64>()? << 10;

    let kubepods = Level::of(&node, "/kubepods")?;
    let limit = kubepods.memory_limit()?;
    ensure!(limit == memory - 384 * MIB, "pods may have {limit} of {memory}");
    let pids = kubepods.number("pids.max", "pids.max")?;
    ensure!(pids > 0 && pids < 4_194_304, "{pids} processes");
    let limit = agents.memory_limit()?;
    ensure!(limit == 128 * MIB, "the node's own programs may have {limit}");
    let pids = agents.number("pids.max", "pids.max")?;
    ensure!(pids == 500, "{pids} processes");
    node.expect_own_event("NodeAllocatableEnforced").await?;
    Ok(())
}

async fn levels_that_somebody_changed_are_put_right(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let requests = json!({ "resources": { "requests": { "cpu": "250m" } } });
    let first = node.run(pod("first").container(requests)).await?;
    first.expect().ready().await?;
    let burstable = Level::of(&node, "/kubepods/burstable")?;
    let shares = ("cpu.shares", "cpu.weight");
    let before = burstable.number(shares.0, shares.1)?;
    fs::write(burstable.file(shares.0, shares.1)?, "5000")?;
    // The next pod that comes has it looked at.
    node.run(pod("second")).await?.expect().ready().await?;
    burstable.expect(shares, before).await
}

async fn a_leftover_cgroup_goes_with_the_process_in_it(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    // What a pod leaves whose runtime forgot it: a group, and a program that runs on.
    node.stack().agent().stop().await?;
    let leftover = Level::of(&node, "/kubepods/burstable/pod11111111-2222-3333-4444-555555555555")?;
    leftover.make()?;
    node.stack().start_program("stray", &["sleep", "3600"]).await?;
    let pid = node.stack().process_with("sleep", "3600")?;
    // By somebody inside, where that is its number.
    let path = &leftover.path;
    let script = format!(
        "for list in /sys/fs/cgroup/{path}/cgroup.procs /sys/fs/cgroup/*/{path}/cgroup.procs; do \
         [ ! -e $list ] || echo {pid} >$list || exit 1; done"
    );
    node.stack().run(&["sh", "-c", &script]).await?;
    node.stack().agent().start().await?;
    for hierarchy in &leftover.hierarchies {
        node.expect_absent(&hierarchy.join(&leftover.path)).await?;
    }
    let state = node.stack().program_state("stray").await?;
    ensure!(matches!(state, State::Killed { signal: 9 }), "it was to be killed, but {state:?}");
    // Of pods that are known nothing is taken.
    let alive = node.run(pod("alive")).await?;
    alive.expect().ready().await?;
    ensure!(PodCgroup::of(&alive, "BestEffort").exists());
    Ok(())
}
