//! What the node task is made of, and the way to it while it runs.

use std::sync::Arc;

use tokio::sync::{Notify, watch};

use super::NodeView;
use super::conditions::Pressures;
use super::config::NodeConfig;
use super::survey::Survey;
use crate::clock::Clock;
use crate::events::Recorder;
use crate::kube::Cluster;
use crate::pleg::RuntimeHealth;

/// What the task is made of.
pub struct NodeParts {
    /// `None` where there is no API server.
    pub cluster: Option<Arc<dyn Cluster>>,
    pub clock: Clock,
    pub recorder: Recorder,
    pub survey: Arc<dyn Survey>,
    pub health: watch::Receiver<RuntimeHealth>,
    pub config: NodeConfig,
}

/// The way to a running task.
#[derive(Clone)]
pub struct NodeHandle {
    pub(super) view: watch::Sender<Option<Arc<NodeView>>>,
    pub(super) pressures: watch::Sender<Pressures>,
    pub(super) look: Arc<Notify>,
}

impl NodeHandle {
    pub fn new() -> Self {
        NodeHandle { view: watch::Sender::new(None), pressures: watch::Sender::default(), look: Arc::default() }
    }

    /// What is known of the node; nothing until the machine was read.
    pub fn view(&self) -> watch::Receiver<Option<Arc<NodeView>>> {
        self.view.subscribe()
    }

    /// Something on the node changed, such as its images: look now, not at the next round.
    pub fn look_again(&self) {
        self.look.notify_one();
    }

    pub fn set_pressures(&self, pressures: Pressures) {
        self.pressures.send_if_modified(|old| std::mem::replace(old, pressures) != pressures);
    }
}

impl Default for NodeHandle {
    fn default() -> Self {
        NodeHandle::new()
    }
}
