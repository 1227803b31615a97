//! The harness: what a case needs to read like a story.
//!
//! ```text
//! async fn a_failed_pod_says_so(node: Node) -> Result<()> {
//!     let pod = node.run(pod("failing").script("exit 3").restart("Never")).await?;
//!     pod.expect().phase("Failed").exit_code(3).await?;
//!     Ok(())
//! }
//! ```
//!
//! `case` is the registry's entry, `runner` runs cases, `node` and `lab` are what a case gets,
//! `calls` asks the node's own API, `kubectl` runs the client that people have, `pods` makes pods,
//! `expect` waits for what should become of them, `cgroup` and `process` look below and `exposition` reads metrics.

mod calls;
mod case;
mod cgroup;
mod expect;
pub mod exposition;
mod kubectl;
mod lab;
mod node;
mod pods;
mod process;
mod runner;

pub use calls::{Caller, node_client, node_config};
pub use case::{Case, Story};
pub use cgroup::PodCgroup;
pub use expect::{Expect, WITHIN, is_ready};
pub use kubectl::Transport;
pub use lab::Lab;
pub(crate) use node::ready;
pub use node::{Node, client, runtime_of};
pub(crate) use pods::merge;
pub use pods::{PodBuilder, PodHandle, expect_lines, pod, without_scheme};
pub use process::Process;
pub use runner::{Choice, Tally, run};
pub(crate) use runner::{case_ended, check_filters, is_named, keep_all_logs, namespace_of, run_bounded, skip_reason};
