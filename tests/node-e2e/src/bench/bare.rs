//! What the runtime needs by itself: the CRI calls of a pod's start and nothing else.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use ferrolet::cri::{
    ContainerConfig, GrpcRuntime, ImageSpec, LinuxResources, Runtime, SandboxConfig, SandboxId, SecurityContext,
};
use futures::future::try_join_all;
use tokio::time::Instant;

use super::{BURST_PODS, Part, SINGLE_PODS};
use crate::provision::BUSYBOX;
use crate::stack::{RUNTIME_SOCKET, Stack};

const CALL_DEADLINE: Duration = Duration::from_secs(120);

/// What makes sense without an agent.
pub(super) const PARTS: [Part; 3] = [Part::Single, Part::Burst, Part::Restart];

#[derive(Default)]
pub struct Bare {
    pub singles: Vec<f64>,
    pub burst: Vec<f64>,
    /// One more container in a sandbox that is there: the least a restart can take.
    pub containers: Vec<f64>,
}

pub async fn measure(stack: &Stack, parts: &[Part], bare: &mut Bare) -> Result<()> {
    // A hundred at once make each wait for the others.
    let socket = stack.made().on_node(RUNTIME_SOCKET);
    let runtime = GrpcRuntime::connect(&socket.to_string_lossy(), "", CALL_DEADLINE)?;
    // The first start warms the snapshotter, for everybody.
    let (warm, warm_config) = start(&runtime, "warm-up").await?;
    for attempt in 1..6 {
        let begun = Instant::now();
        run_container(&runtime, &warm, &warm_config, attempt).await?;
        bare.containers.push(begun.elapsed().as_secs_f64());
    }
    if parts.contains(&Part::Single) {
        for number in 0..SINGLE_PODS {
            let begun = Instant::now();
            start(&runtime, &format!("single-{number}")).await?;
            bare.singles.push(begun.elapsed().as_secs_f64());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    if parts.contains(&Part::Burst) {
        let begun = Instant::now();
        let names: Vec<_> = (0..BURST_PODS).map(|number| format!("burst-{number}")).collect();
        try_join_all(names.iter().map(|name| start(&runtime, name))).await?;
        bare.burst.push(begun.elapsed().as_secs_f64());
    }
    Ok(())
}

async fn start(runtime: &impl Runtime, name: &str) -> Result<(SandboxId, SandboxConfig)> {
    let config = SandboxConfig {
        pod_name: name.into(),
        pod_namespace: "bench".into(),
        pod_uid: format!("uid-{name}"),
        log_directory: format!("/var/log/pods/bench_{name}_uid-{name}"),
        labels: BTreeMap::from([("io.kubernetes.pod.uid".into(), format!("uid-{name}"))]),
        ..SandboxConfig::default()
    };
    let sandbox = runtime.run_sandbox(&config).await?;
    run_container(runtime, &sandbox, &config, 0).await?;
    Ok((sandbox, config))
}

async fn run_container(
    runtime: &impl Runtime,
    sandbox: &SandboxId,
    sandbox_config: &SandboxConfig,
    attempt: u32,
) -> Result<()> {
    let config = ContainerConfig {
        name: "main".into(),
        attempt,
        image: ImageSpec { image: BUSYBOX.into(), ..ImageSpec::default() },
        command: vec!["sleep".into(), "1000000".into()],
        log_path: format!("main/{attempt}.log"),
        resources: LinuxResources { cpu_shares: 2, ..LinuxResources::default() },
        security: SecurityContext::default(),
        ..ContainerConfig::default()
    };
    let container = runtime.create_container(sandbox, &config, sandbox_config).await?;
    runtime.start_container(&container).await?;
    Ok(())
}
