//! The runtime is absent, goes away, or hangs.

use anyhow::{Result, ensure};

use crate::harness::{Case, Lab, WITHIN, pod};
use crate::own;
use crate::stack::State;

pub const CASES: &[Case] = &[
    own!(a_runtime_absent_at_start_is_waited_for).beyond_upstream("it exits"),
    own!(a_runtime_that_goes_away_takes_no_pod_along).in_subset(),
    own!(a_hanging_runtime_is_survived),
];

async fn a_runtime_absent_at_start_is_waited_for(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack.without_containerd()).await?;
    node.expect_node_ready("False").await?;
    node.expect_agent_log("/run/containerd/containerd.sock").await?;
    let early = node.run(pod("early")).await?;
    node.stack().containerd().start().await?;
    node.expect_node_ready("True").await?;
    early.expect().ready().await?;
    ensure!(matches!(node.stack().agent().state().await?, State::Running { .. }));
    Ok(())
}

async fn a_runtime_that_goes_away_takes_no_pod_along(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let running = node.run(pod("running")).await?;
    running.expect().ready().await?;
    let before = running.instance().await?;

    node.stack().containerd().stop().await?;
    node.expect_node_ready("False").await?;
    node.stack().containerd().start().await?;
    node.expect_node_ready("True").await?;

    let after = node.run(pod("after")).await?;
    after.expect().ready().await?;
    running.expect().ready().await?;
    let now = running.instance().await?;
    ensure!(now == before, "{before:?} became {now:?}");
    Ok(())
}

async fn a_hanging_runtime_is_survived(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let running = node.run(pod("running")).await?;
    running.expect().ready().await?;
    let before = running.instance().await?;

    node.stack().containerd().freeze().await?;
    let meanwhile = node.run(pod("meanwhile")).await?;
    // What has nothing to do with the runtime goes on.
    for _ in 0..2 {
        node.expect_lease_renewal().await?;
    }
    // Half a minute without an answer, and not only when the call that hangs is given up.
    node.expect_node_ready("False").await?;
    node.stack().containerd().thaw().await?;

    meanwhile.expect().ready().within(WITHIN * 3).await?;
    node.expect_node_ready("True").await?;
    let now = running.instance().await?;
    ensure!(now == before, "{before:?} became {now:?}");
    Ok(())
}
