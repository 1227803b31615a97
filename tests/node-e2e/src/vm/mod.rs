//! Cases that need a machine of their own: systemd as PID 1, cgroup v2, pressure figures, kubeadm.
//!
//! ```text
//! world of a stack ─┬─ control plane, natively
//!                   └─ QEMU ── Debian, systemd, containerd, and an agent from a package
//! ```
//!
//! QEMU runs in a stack's world, beside a control plane that is as fast as in all other cases, and
//! so is gone with it, whatever happens. There are a few such worlds at once. A machine serves one case
//! after another; a failed case costs it, so that the next meets a fresh one.
//!
//! `machine` boots it and wires it to the world, `guest` runs commands on it, `payload` is the disk
//! with what the cases install, `cluster` does what an operator does on the control plane's side,
//! `site` is what a case gets, `agents` what it does with an agent there, `settings` what it sets of
//! its configuration, `placement` tells where a container runs, `witness` watches that nothing stops
//! being Ready, and `runner` runs the `cases`.

mod agents;
pub mod cases;
mod cluster;
mod guest;
mod machine;
mod payload;
mod placement;
mod runner;
mod settings;
mod site;
mod witness;

pub use runner::run;

use anyhow::Result;
use futures::future::LocalBoxFuture;

use site::Site;

/// A story on a virtual machine.
#[derive(Clone, Copy)]
pub struct Case {
    /// `theme::story`, from the function's path.
    name: &'static str,
    story: fn(Site) -> LocalBoxFuture<'static, Result<()>>,
    /// Why upstream's kubelet cannot pass it.
    beyond_upstream: Option<&'static str>,
}

impl Case {
    const fn beyond_upstream(mut self, why: &'static str) -> Case {
        self.beyond_upstream = Some(why);
        self
    }

    /// Such as `vm::joining::a_machine_joins`.
    pub fn short_name(&self) -> String {
        let theme = self.name.split_once("::cases::").map_or(self.name, |(_, name)| name);
        format!("vm::{theme}")
    }
}

/// A case from an `async fn(Site) -> Result<()>`.
macro_rules! case {
    ($story:ident) => {
        $crate::vm::Case {
            name: concat!(module_path!(), "::", stringify!($story)),
            story: |site| Box::pin($story(site)),
            beyond_upstream: None,
        }
    };
}
use case;
