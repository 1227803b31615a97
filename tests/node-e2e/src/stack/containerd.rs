//! containerd of a stack: its configuration, its CNI network and the images in it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::UnixStream;
use tokio::process::Command;

use super::part::Part;
use super::supervisor::State;
use crate::poll::{self, Look};
use crate::provision::{self, PAUSE};

pub const SOCKET: &str = "/run/containerd/containerd.sock";

/// Whom it trusts, by server.
pub(super) const CERTIFICATES: &str = "/etc/containerd/certs.d";
/// Where pods can have users of their own, if `provision` could build a runc for it.
pub const MAPPING_HANDLER: &str = "mapping";

const CONFIG: &str = "/etc/containerd/config.toml";
const SERVES_WITHIN: Duration = Duration::from_secs(30);

/// Written by the first start that has brought the images in.
const IMAGES_IMPORTED: &str = "/var/lib/containerd/images-imported";

pub async fn start(part: Part<'_>) -> Result<()> {
    let stack = part.stack;
    let program = stack.spec.containerd.directory()?.join("containerd");
    let version = major_version(&program).await?;
    stack.write(CONFIG, config(version) + &mapping_handler(version))?;
    stack.write("/etc/cni/net.d/10-stack.conflist", network(&stack.pod_range()))?;
    // A socket left by a killed one would refuse connections, which is what we wait over anyway.
    part.start_program(program, vec![format!("--config={CONFIG}")]).await?;

    let socket = stack.on_node(SOCKET);
    poll::until("containerd serves", SERVES_WITHIN, async || {
        let error = match UnixStream::connect(&socket).await {
            Ok(_) => return Ok(Look::Done(())),
            Err(error) => error,
        };
        match part.state().await? {
            State::Running { .. } => Ok(Look::NotYet(format!("connect to {SOCKET}: {error}"))),
            ended => anyhow::bail!("containerd ended with {ended:?}"),
        }
    })
    .await?;

    if !stack.on_node(IMAGES_IMPORTED).exists() {
        for archive in provision::images()? {
            let archive = archive.to_string_lossy();
            stack.run(&["ctr", "--namespace=k8s.io", "images", "import", &archive]).await?;
        }
        stack.write(IMAGES_IMPORTED, "")?;
    }
    Ok(())
}

/// From the program itself: where there is no Go, the old one has to stand in for the current.
async fn major_version(program: &Path) -> Result<u32> {
    let output = Command::new(program).arg("--version").output().await;
    let output = output.with_context(|| format!("run {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3
    let version = text.split_whitespace().nth(2).unwrap_or_default().trim_start_matches('v');
    let major = version.split('.').next().unwrap_or_default();
    major.parse().with_context(|| format!("read the version of containerd off {text:?}"))
}

/// What differs from containerd's defaults, and why, in the words of its major version.
fn config(major_version: u32) -> String {
    // Not every machine lets us lower an OOM score, and no test wants to wait for the probing
    // of snapshotters nobody uses. No registry is near but the one that a case may start.
    let common = r#"
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing",
]
"#;
    match major_version {
        2.. => format!(
            r#"version = 3
{common}
[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "{CERTIFICATES}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = false
"#
        ),
        _ => format!(
            r#"version = 2
{common}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{CERTIFICATES}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#
        ),
    }
}

fn mapping_handler(major_version: u32) -> String {
    let Ok(runc) = provision::mapping_runc() else { return String::new() };
    if major_version < 2 {
        return String::new();
    }
    let runtime = format!("[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.{MAPPING_HANDLER}");
    let runc = runc.display();
    format!("{runtime}]\nruntime_type = \"io.containerd.runc.v2\"\n{runtime}.options]\nBinaryName = \"{runc}\"\n")
}

/// A CNI chain as small nodes have it.
fn network(pods: &str) -> String {
    let network = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "stack",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": pods }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    network.to_string()
}
