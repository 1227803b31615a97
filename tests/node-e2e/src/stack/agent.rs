//! The agent under test: Ferrolet, or upstream's kubelet as the reference.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::part::Part;
use super::{Stack, containerd, control_plane};
use crate::provision;

/// The static-pod directory, where kubeadm has it.
pub const STATIC_PODS: &str = "/etc/kubernetes/manifests";

const CONFIG: &str = "/var/lib/kubelet/config.yaml";
pub const KUBECONFIG: &str = "/etc/kubernetes/kubelet.conf";
pub const BOOTSTRAP_KUBECONFIG: &str = "/etc/kubernetes/bootstrap-kubelet.conf";
const CLIENT_CA: &str = "/etc/kubernetes/pki/ca.crt";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    Ferrolet,
    Kubelet,
}

impl Agent {
    /// The choice of `AGENT` in the environment; Ferrolet without it.
    pub fn from_env() -> Result<Agent> {
        match std::env::var("AGENT").as_deref() {
            Err(_) | Ok("" | "ferrolet") => Ok(Agent::Ferrolet),
            Ok("kubelet") => Ok(Agent::Kubelet),
            Ok(other) => bail!("AGENT={other}: known are ferrolet and kubelet"),
        }
    }

    /// Its binary: for Ferrolet `FERROLET_BIN`, or the one built beside this program.
    pub fn binary(self) -> Result<PathBuf> {
        match self {
            Agent::Kubelet => provision::program("kubelet"),
            Agent::Ferrolet => match std::env::var_os("FERROLET_BIN") {
                Some(path) => fs::canonicalize(&path).with_context(|| format!("FERROLET_BIN={}", path.display())),
                None => {
                    let path = std::env::current_exe()?.with_file_name("ferrolet");
                    if !path.exists() {
                        bail!("{} is missing; `cargo build` makes it", path.display());
                    }
                    Ok(path)
                }
            },
        }
    }
}

/// Writes its files and starts it. A kubeconfig that a test put there is left alone.
pub async fn start(part: Part<'_>) -> Result<()> {
    let stack = part.stack;
    let mut args = vec![format!("--config={CONFIG}"), format!("--node-ip={}", stack.node_address()), "-v=2".to_owned()];
    if !stack.spec.standalone {
        let slot = stack.made.slot;
        if stack.spec.joins {
            stack.write(CLIENT_CA, fs::read(control_plane::certificate_authority(slot))?)?;
            args.push(format!("--bootstrap-kubeconfig={BOOTSTRAP_KUBECONFIG}"));
        } else if !stack.on_node(KUBECONFIG).exists() {
            let own = control_plane::kubeconfig(slot, &format!("node-{}", stack.node_name()));
            stack.write(KUBECONFIG, fs::read(own).context("read the node's kubeconfig")?)?;
            stack.write(CLIENT_CA, fs::read(control_plane::certificate_authority(slot))?)?;
        }
        args.push(format!("--kubeconfig={KUBECONFIG}"));
    }
    args.extend(stack.spec.flags.iter().cloned());
    fs::create_dir_all(stack.on_node(STATIC_PODS))?;
    stack.write(CONFIG, configuration(stack).to_string())?;
    part.start_program(stack.spec.agent.binary()?, args).await
}

/// A KubeletConfiguration as kubeadm would write it, but for what the machine dictates. JSON is
/// YAML too.
fn configuration(stack: &Stack) -> Value {
    let mut config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": "cgroupfs",
        "clusterDNS": ["10.96.0.10"],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": format!("unix://{}", containerd::SOCKET),
        "staticPodPath": STATIC_PODS,
        // Upstream makes this directory, and its default is not one of the private ones.
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        // A machine that is short of disk is not what these tests are about.
        "evictionHard": { "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
        "failSwapOn": false,
        "failCgroupV1": false,
    });
    let authentication = match stack.spec.standalone {
        true => json!({
            "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
            "authorization": { "mode": "AlwaysAllow" },
        }),
        false => json!({
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": CLIENT_CA },
            },
            "authorization": { "mode": "Webhook" },
        }),
    };
    for fields in [fields(authentication), stack.spec.config.clone()] {
        config.as_object_mut().expect("it is written as one above").extend(fields);
    }
    config
}

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        other => unreachable!("{other} is written as an object"),
    }
}
