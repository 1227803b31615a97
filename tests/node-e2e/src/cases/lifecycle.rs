//! From creation to the end: phases, restarts, deletion.

use anyhow::{Result, ensure};

use crate::harness::{Case, Node, pod};
use crate::shared;

pub const CASES: &[Case] = &[
    shared!(a_pod_becomes_ready).in_subset(),
    shared!(a_failed_pod_says_so).in_subset(),
];

async fn a_pod_becomes_ready(node: Node) -> Result<()> {
    let web = node
        .run(pod("web").script("echo hello; exec httpd -f -p 8080"))
        .await?;
    let status = web
        .expect()
        .ready()
        .running()
        .await?
        .status
        .unwrap_or_default();
    ensure!(status.pod_ip.is_some(), "no address: {status:?}");
    ensure!(web.log()? == "hello\n", "log: {:?}", web.log()?);
    Ok(())
}

async fn a_failed_pod_says_so(node: Node) -> Result<()> {
    let pod = node
        .run(pod("failing").script("exit 3").restart("Never"))
        .await?;
    pod.expect()
        .phase("Failed")
        .exit_code(3)
        .terminated("Error")
        .await?;
    Ok(())
}
