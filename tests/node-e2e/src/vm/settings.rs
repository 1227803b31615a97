//! What an operator sets in the agent's configuration after a join, and takes back.

use anyhow::Result;

use super::site::Site;

/// One of `DIRECTORY`, which the agent is pointed at.
const DROP_IN: &str = "/etc/kubernetes/kubelet.conf.d/10-case.conf";
const ARGUMENTS: &str = "/etc/default/kubelet";

/// What the managers of CPUs and memory remember. The documentation has operators delete it when they
/// choose another policy.
pub const CPU_STATE: &str = "/var/lib/kubelet/cpu_manager_state";
const MEMORY_STATE: &str = "/var/lib/kubelet/memory_manager_state";

impl Site {
    /// Has the agent start anew with these fields, in YAML, over what `kubeadm join` wrote. A good case
    /// ends in `unset`; a failed one takes the machine with it.
    pub async fn set(&self, fields: &str) -> Result<()> {
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        self.guest.write(DROP_IN, &format!("{head}{fields}")).await?;
        let (directory, _) = DROP_IN.rsplit_once('/').expect("it is a path");
        self.guest.write(ARGUMENTS, &format!("KUBELET_EXTRA_ARGS=--config-dir={directory}\n")).await?;
        self.start_agent_anew().await
    }

    pub async fn unset(&self) -> Result<()> {
        self.guest.run(&format!("rm {DROP_IN}")).await?;
        self.guest.write(ARGUMENTS, "KUBELET_EXTRA_ARGS=\n").await?;
        self.start_agent_anew().await
    }

    async fn start_agent_anew(&self) -> Result<()> {
        let script = format!("systemctl stop kubelet; rm -f {CPU_STATE} {MEMORY_STATE}; systemctl start kubelet");
        self.guest.run(&script).await?;
        self.guest.expect("systemctl is-active kubelet", "the agent is up", |it| it.trim() == "active").await?;
        self.expect_ready().await.map(drop)
    }
}
