//! What an agent makes of many probes, and of a runtime that hangs for one pod.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferrolet::cri::{Runtime, Scope};
use ferrolet::pod::PodUid;
use futures::future::try_join_all;
use kube::api::DeleteParams;
use serde_json::json;

use super::agent::{Bench, Measured, container, pod_of, run_one};
use super::{PROBED_CONTAINERS, PROBED_PODS};
use crate::harness::runtime_of;

/// Pods that are started at once, so as not to start all at once.
const STARTED_AT_ONCE: usize = 5;
/// How often a call hangs, so that both kinds of starts have the same minutes.
const HANGS: usize = 3;
/// Before every probe has found its rhythm.
const SETTLES_WITHIN: Duration = Duration::from_secs(15);

/// The agent's share of one CPU while it asks each container twice a second by HTTP.
pub async fn probes(bench: &Bench, seconds: u64) -> Result<f64> {
    let names: Vec<String> = (0..PROBED_PODS).map(|number| format!("probed-{number}")).collect();
    for batch in names.chunks(STARTED_AT_ONCE) {
        try_join_all(batch.iter().map(async |name| {
            // One server a pod is asked on behalf of all its containers.
            let server = container("server", &["httpd", "-f", "-p", "8080", "-h", "/etc"]);
            let others = (1..PROBED_CONTAINERS).map(|number| container(&format!("c-{number}"), &["sleep", "1000000"]));
            let probe = json!({ "periodSeconds": 1, "httpGet": { "path": "/passwd", "port": 8080 } });
            let containers = [server].into_iter().chain(others).map(|mut container| {
                container["readinessProbe"] = probe.clone();
                container["livenessProbe"] = probe.clone();
                container
            });
            run_one(&bench.pods, &pod_of(&bench.node, name, containers.collect())?).await
        }))
        .await?;
    }
    tokio::time::sleep(SETTLES_WITHIN).await;
    bench.cpu_percent(seconds).await
}

/// The starts of other pods, before a call about one pod hangs and while it does, by turns. A
/// pod's shim answers for its containers, so whoever asks the runtime to stop one waits for it.
pub async fn beside_a_hanging_call(bench: &Bench, found: &mut Measured) -> Result<()> {
    for round in 0..HANGS {
        let name = format!("stuck-{round}");
        let stuck = pod_of(&bench.node, &name, json!([container("main", &["sleep", "1000000"])]))?;
        run_one(&bench.pods, &stuck).await?;
        let uid = bench.pods.get(&name).await?.metadata.uid.context("a pod has a UID")?;
        found.usual.extend(bench.one_after_another(&format!("usual-{round}")).await?);

        let runtime = runtime_of(bench.stack.made())?;
        let sandboxes = runtime.list_sandboxes(&Scope::Pod(PodUid::new(uid))).await?;
        let sandbox = sandboxes.first().context("the pod has a sandbox")?;
        let shim = bench.stack.process_with("containerd-shim-runc-v2", sandbox.id.as_str())?;
        bench.stack.freeze_process(shim).await?;
        // Without a grace the API would forget it at once.
        bench.pods.delete(&name, &DeleteParams::default().grace_period(2)).await?;
        let beside = bench.one_after_another(&format!("beside-{round}")).await;
        let is_stuck = bench.pods.get_opt(&name).await.map(|pod| pod.is_some());
        bench.stack.thaw_process(shim).await?;
        ensure!(is_stuck?, "the pod that was to hang has ended");
        found.beside_hang.extend(beside?);
        bench.clear().await?;
    }
    Ok(())
}
