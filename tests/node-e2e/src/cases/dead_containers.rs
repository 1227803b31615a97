//! How many dead containers stay, by the flags.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::harness::{Case, Lab, pod};
use crate::own;
use crate::poll::{self, Look};

pub const CASES: &[Case] = &[
    own!(as_many_dead_instances_stay_as_a_container_may_keep),
    own!(the_containers_of_ended_pods_go_where_none_may_stay),
];

/// Upstream looks once a minute.
const WITHIN: Duration = Duration::from_secs(150);

async fn as_many_dead_instances_stay_as_a_container_may_keep(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack.flag("--maximum-dead-containers-per-container=2")).await?;
    let failing = node.run(pod("failing").script("exit 1")).await?;
    failing.expect().restarts(2).waiting("CrashLoopBackOff").await?;
    poll::until("two dead instances are left", WITHIN, async || {
        let dead = node.instances_of(&failing).await?.into_iter().filter(|one| one.exit().is_some());
        let attempts: BTreeSet<u32> = dead.map(|one| one.attempt).collect();
        Ok(match attempts == BTreeSet::from([1, 2]) {
            true => Look::Done(()),
            false => Look::NotYet(format!("dead attempts {attempts:?}")),
        })
    })
    .await
}

async fn the_containers_of_ended_pods_go_where_none_may_stay(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack.flag("--maximum-dead-containers=0")).await?;
    let running = node.run(pod("running")).await?;
    let done = node.run(pod("done").script("exit 0").restart("Never")).await?;
    running.expect().ready().await?;
    done.expect().phase("Succeeded").exit_code(0).await?;
    poll::until("the containers of the ended pod are gone", WITHIN, async || {
        Ok(match node.containers_of(&done).await?.len() {
            0 => Look::Done(()),
            left => Look::NotYet(format!("{left} left")),
        })
    })
    .await?;
    // What it was stays known, and what runs is nobody's to remove.
    done.expect().phase("Succeeded").exit_code(0).await?;
    ensure!(node.containers_of(&running).await?.len() == 1);
    running.expect().ready().restarts(0).await?;
    Ok(())
}
