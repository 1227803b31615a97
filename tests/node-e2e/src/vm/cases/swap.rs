//! One agent takes the place of the other, by their packages, under running pods.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::harness::pod;
use crate::stack::Agent;
use crate::vm::site::Site;
use crate::vm::witness::Witness;
use crate::vm::{Case, case};

pub const CASES: &[Case] = &[case!(agents_take_each_others_place_and_nothing_restarts)];

async fn agents_take_each_others_place_and_nothing_restarts(site: Site) -> Result<()> {
    // From the beginning, so that upstream's kubelet made what it hands over.
    site.bare().await?;
    site.joined(Agent::Kubelet).await?;
    // No command: an emulated runc is busy for seconds with each.
    let probe = json!({ "tcpSocket": { "port": 8080 }, "periodSeconds": 5, "timeoutSeconds": 20 });
    let probed = pod("probed").script("exec httpd -f -p 8080 -h /tmp");
    let probed = probed.container(json!({ "readinessProbe": probe, "livenessProbe": probe }));
    site.deploy("probed", 1, probed).await?;
    let limits = json!({ "resources": { "limits": { "cpu": "200m", "memory": "64Mi" } } });
    let volume = json!({ "emptyDir": {} });
    site.deploy("limited", 1, pod("limited").container(limits).volume("data", "/data", volume)).await?;
    let before = site.running().await?;
    ensure!(before.len() >= 4, "two pods have four containers, not {before:?}");

    for agent in [Agent::Ferrolet, Agent::Kubelet] {
        // Upstream's kubelet says NotReady by itself while it has not listed its containers yet, if
        // that takes a moment, and the controllers may take its pods out of service for it.
        let witness = (agent == Agent::Ferrolet).then(|| Witness::new(&site.api.client()));
        let said = site.install(agent).await?;
        ensure!(site.installed().await? == Some(agent), "{said}");
        proves_itself(&site, agent).await?;
        if let Some(witness) = witness {
            witness.testify(3)?;
        }
        site.expect_ready().await?;
        for name in ["probed", "limited"] {
            site.expect_replicas(name, 1).await?;
        }
        let now = site.running().await?;
        ensure!(before.iter().all(|it| now.contains(it)), "with {agent:?}, containers were {before:?}, are {now:?}");
    }
    Ok(())
}

/// Work that only the new agent can do: it runs a pod, and renews the lease.
async fn proves_itself(site: &Site, agent: Agent) -> Result<()> {
    let name = format!("{agent:?}").to_lowercase();
    let program = site.guest.run("readlink /proc/$(systemctl show --property=MainPID --value kubelet)/exe").await?;
    ensure!(program.trim() == format!("/usr/bin/{name}"), "the agent that runs is {program}");
    let pod = site.api.run(pod(&name).script("exit 0").restart("Never")).await?;
    pod.expect().phase("Succeeded").within(crate::vm::site::WITHIN).await?;
    pod.delete().await?;
    pod.expect_gone().await?;
    site.api.expect_lease_renewal().await.map(drop)
}
