//! The tasks that the house stands on. They end with it, and it with the first that panics.
//!
//! Nobody would notice one that is missing: a certificate is renewed no more, a port answers
//! nobody. What looks after the agent starts it again, which disturbs no pod.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{Instrument, error, info_span};

/// A task of the agent has a bug.
#[derive(Debug, thiserror::Error)]
#[error("task {0} of the agent has panicked; the agent ends, its pods go on")]
pub struct Panicked(&'static str);

pub struct Tasks {
    running: JoinSet<()>,
    panics: mpsc::UnboundedSender<Panicked>,
}

/// Tells of the first panic.
pub struct Panics(mpsc::UnboundedReceiver<Panicked>);

impl Tasks {
    pub fn new() -> (Self, Panics) {
        let (panics, receiver) = mpsc::unbounded_channel();
        (Tasks { running: JoinSet::new(), panics }, Panics(receiver))
    }

    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let panics = self.panics.clone();
        // Nothing is looked at afterwards that the panic may have left half done.
        let watched = AssertUnwindSafe(task).catch_unwind().map(move |ended| {
            if ended.is_err() {
                error!("task has panicked, the agent cannot go on without it");
                // Whoever would hear of it may have gone already.
                let _ = panics.send(Panicked(name));
            }
        });
        self.running.spawn(watched.instrument(info_span!("task", name)));
    }
}

impl Panics {
    pub async fn wait(&mut self) -> Panicked {
        match self.0.recv().await {
            Some(panicked) => panicked,
            // The tasks are gone, and whoever waits with them.
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_told_by_the_name_of_its_task_and_an_end_is_none() {
        let (mut tasks, mut panics) = Tasks::new();
        tasks.spawn("ends", async {});
        tasks.spawn("goes-on", std::future::pending());
        let hour = Duration::from_secs(3600);
        assert!(timeout(hour, panics.wait()).await.is_err(), "nothing has panicked yet");
        tasks.spawn("breaks", async { panic!("on purpose") });
        let panicked = timeout(hour, panics.wait()).await.expect("it is told");
        assert_eq!(panicked.to_string(), "task breaks of the agent has panicked; the agent ends, its pods go on");
    }
}
