//! The unit: what systemd does with the agent, and the agent with systemd.

use anyhow::{Result, ensure};

use crate::harness::pod;
use crate::vm::site::{Site, WITHIN};
use crate::vm::witness::Witness;
use crate::vm::{Case, case};

pub const CASES: &[Case] = &[
    case!(a_stopped_agent_is_replaced_by_the_watchdog_and_no_container_notices)
        .beyond_upstream("its unit has no watchdog"),
    case!(containerd_restarts_below_the_agent_and_no_container_notices),
    case!(pods_and_static_pods_come_back_after_a_reboot),
];

const MAIN_PID: &str = "systemctl show --property=MainPID --value kubelet";

async fn a_stopped_agent_is_replaced_by_the_watchdog_and_no_container_notices(site: Site) -> Result<()> {
    site.joined(site.agent).await?;
    site.deploy("steady", 1, pod("steady")).await?;
    let (before, pid) = (site.running().await?, site.guest.run(MAIN_PID).await?);

    let witness = Witness::new(&site.api.client());
    site.guest.run(&format!("kill -STOP {pid}")).await?;
    let another = |now: &str| now != pid && now.trim() != "0";
    site.guest.expect(MAIN_PID, "another agent runs", another).await?;
    site.guest.expect("systemctl is-active kubelet", "and is up", |state| state.trim() == "active").await?;
    let result = site.guest.run("journalctl --no-pager --boot --unit=ferrolet | grep -i watchdog || true").await?;
    ensure!(result.contains("Watchdog timeout"), "it was not the watchdog: {result}");
    site.expect_replicas("steady", 1).await?;
    witness.testify(2)?;
    ensure!(site.running().await? == before, "containers were {before:?}, are {:?}", site.running().await?);
    Ok(())
}

async fn containerd_restarts_below_the_agent_and_no_container_notices(site: Site) -> Result<()> {
    site.joined(site.agent).await?;
    site.deploy("steady", 1, pod("steady")).await?;
    let (before, pid) = (site.running().await?, site.guest.run(MAIN_PID).await?);
    site.guest.run("systemctl restart containerd").await?;
    // The agent finds its way back: a new pod runs.
    site.deploy("later", 1, pod("later")).await?;
    let now = site.running().await?;
    ensure!(before.iter().all(|it| now.contains(it)), "containers were {before:?}, are {now:?}");
    let still = site.guest.run(MAIN_PID).await?;
    ensure!(still == pid && pid.trim() != "0", "the agent was process {pid}, is {still}");
    site.expect_ready().await.map(drop)
}

async fn pods_and_static_pods_come_back_after_a_reboot(site: Site) -> Result<()> {
    site.joined(site.agent).await?;
    let steady = site.deploy("steady", 1, pod("steady")).await?;
    let namespace = serde_json::json!({ "namespace": site.api.namespace() });
    let fixed = pod("fixed").metadata(namespace).manifest();
    site.guest.write("/etc/kubernetes/manifests/fixed.json", &fixed).await?;
    let mirror = site.api.mirror_pod("fixed").await?;
    mirror.expect().ready().within(WITHIN).await?;

    site.reboot().await?;
    site.expect_ready().await?;
    for pod in [&steady[0], &mirror] {
        pod.expect().ready().restarts(1).within(WITHIN).await?;
    }
    site.guest.run("rm /etc/kubernetes/manifests/fixed.json").await?;
    mirror.expect_gone().await
}
