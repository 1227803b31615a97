//! The task that listens, relists and asks the runtime how it is.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{Listed, Named, Pleg};
use crate::clock::Clock;
use crate::cri::{self, CriError, SandboxState, Scope};
use crate::metrics;
use crate::pod::PodUid;

/// How often the task looks without being told to.
#[derive(Clone, Debug)]
pub struct PlegConfig {
    /// Relist period while the event stream works: only a safety net.
    pub relist_with_events: Duration,
    /// Relist period of a runtime that has no events. Two list calls each.
    pub relist_without_events: Duration,
    /// Status call period while all is well. A broken stream asks at once.
    pub status_when_healthy: Duration,
    /// Status call period, and wait before a new stream, while something is wrong.
    pub retry: Duration,
}

impl Default for PlegConfig {
    fn default() -> Self {
        PlegConfig {
            relist_with_events: Duration::from_secs(120),
            relist_without_events: Duration::from_secs(1),
            status_when_healthy: Duration::from_secs(10),
            retry: Duration::from_millis(500),
        }
    }
}

/// Upstream's threshold for a relist that does not come back.
const LIST_OVERDUE_WITHOUT_EVENTS: Duration = Duration::from_secs(180);
const LIST_OVERDUE_WITH_EVENTS: Duration = Duration::from_secs(600);

/// Three loops that must not wait for each other: a list call that hangs does not keep
/// events from being heard, nor does a status call.
pub async fn run(pleg: Pleg, config: PlegConfig, clock: Clock) {
    let nudge = Nudge { relist: Notify::new(), status: Notify::new(), listening: watch::Sender::new(false) };
    tokio::join!(
        listen(&pleg, &config, &nudge),
        relist_forever(&pleg, &config, &clock, &nudge),
        watch_status(&pleg, &config, &clock, &nudge),
    );
}

/// How the loops tell each other to look at once.
struct Nudge {
    relist: Notify,
    status: Notify,
    listening: watch::Sender<bool>,
}

/// Turns runtime events into hints, for as long as the runtime has any.
async fn listen(pleg: &Pleg, config: &PlegConfig, nudge: &Nudge) {
    loop {
        match pleg.shared.runtime.events().await {
            Ok(mut events) => {
                debug!("listening to runtime events");
                metrics::pleg::STREAMS.add([]);
                let began = Instant::now();
                nudge.listening.send_replace(true);
                // Whatever happened while nobody listened is found by a list taken now.
                nudge.relist.notify_one();
                loop {
                    match events.next().await {
                        // Some events of a removal no longer know their pod: look at them all.
                        Some(Ok(event)) if event.pod_uid.is_empty() => nudge.relist.notify_one(),
                        Some(Ok(event)) => pleg.hint(&PodUid::new(&event.pod_uid)),
                        Some(Err(error)) => {
                            warn!(%error, "runtime event stream broke, will reconnect");
                            break;
                        }
                        None => {
                            warn!("runtime closed the event stream, will reconnect");
                            break;
                        }
                    }
                }
                metrics::pleg::STREAM_ERRORS.add([]);
                metrics::pleg::STREAM_DURATION.took([], began.elapsed());
                nudge.listening.send_replace(false);
                nudge.status.notify_one();
                nudge.relist.notify_one();
            }
            Err(CriError::Unimplemented { .. }) => {
                info!(period = ?config.relist_without_events, "runtime has no event stream, relisting instead");
                return;
            }
            Err(error) => {
                metrics::pleg::STREAM_ERRORS.add([]);
                debug!(%error, "cannot open the runtime event stream, will retry");
            }
        }
        tokio::time::sleep(config.retry).await;
    }
}

async fn relist_forever(pleg: &Pleg, config: &PlegConfig, clock: &Clock, nudge: &Nudge) {
    loop {
        let listening = *nudge.listening.borrow();
        let pause = match relist(pleg, clock, listening).await {
            Err(error) => {
                debug!(%error, "relist failed, will retry");
                config.retry
            }
            Ok(()) if *nudge.listening.borrow() => clock.jitter(config.relist_with_events, 0.1),
            Ok(()) => config.relist_without_events,
        };
        tokio::select! {
            biased;
            // Cancel-safe: an unused permit stays with the Notify.
            () = nudge.relist.notified() => {}
            // Cancel-safe: a timer.
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn watch_status(pleg: &Pleg, config: &PlegConfig, clock: &Clock, nudge: &Nudge) {
    loop {
        let pause = if ask_status(pleg, clock).await { config.status_when_healthy } else { config.retry };
        tokio::select! {
            biased;
            // Cancel-safe: an unused permit stays with the Notify.
            () = nudge.status.notified() => {}
            // Cancel-safe: a timer.
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Publishes the runtime's condition; true if nothing is wrong with it.
async fn ask_status(pleg: &Pleg, clock: &Clock) -> bool {
    let answer = pleg.shared.runtime.status().await;
    let now = clock.now();
    let mut healthy = false;
    let is_news = pleg.shared.health.send_if_modified(|health| {
        let before = health.clone();
        match answer {
            Ok(status) => {
                healthy = status.runtime_ready.ok && status.network_ready.ok;
                if before.error.is_some() {
                    info!("runtime answers again");
                }
                health.status = Some((now, status));
                health.error = None;
            }
            Err(error) => {
                if before.error.is_none() {
                    warn!(%error, "runtime does not answer, will retry");
                }
                health.error = Some(error.to_string());
            }
        }
        // The time of a good answer alone is no news to anyone.
        before.error.is_some() != health.error.is_some()
            || before.status.as_ref().map(|(_, status)| status) != health.status.as_ref().map(|(_, status)| status)
    });
    if is_news {
        // Pods may wait for the network. One by one, for a watch wakes its listeners in an
        // order of its own making, and a seed would not tell the same story twice.
        pleg.wake_all();
    }
    healthy
}

/// Lists everything and hints at each pod whose lines differ from what was last seen.
async fn relist(pleg: &Pleg, clock: &Clock, listening: bool) -> cri::Result<()> {
    let runtime = &pleg.shared.runtime;
    let began = clock.now();
    let rumours = pleg.rumours();
    let (sandboxes, containers) =
        futures::try_join!(runtime.list_sandboxes(&Scope::All), runtime.list_containers(&Scope::All))?;
    let mut now_listed: BTreeMap<PodUid, Vec<(String, Listed)>> = BTreeMap::new();
    for sandbox in &sandboxes {
        let line = Listed::Sandbox { ready: sandbox.state == SandboxState::Ready };
        now_listed.entry(PodUid::new(&sandbox.pod_uid)).or_default().push((sandbox.id.to_string(), line));
    }
    for container in &containers {
        let line = Listed::Container(container.state);
        now_listed.entry(PodUid::new(&container.pod_uid)).or_default().push((container.id.to_string(), line));
    }

    let mut changed = Vec::new();
    {
        let mut entries = pleg.entries();
        for (uid, entry) in entries.iter_mut() {
            if !now_listed.contains_key(uid) && !entry.listed.is_empty() {
                entry.listed.clear();
                changed.push(uid.clone());
            }
        }
        for sandbox in &sandboxes {
            let entry = entries.entry(PodUid::new(&sandbox.pod_uid)).or_default();
            entry.named.get_or_insert_with(|| Named::of(sandbox));
        }
        for (uid, mut lines) in now_listed {
            lines.sort_by(|a, b| a.0.cmp(&b.0));
            let entry = entries.entry(uid.clone()).or_default();
            if entry.listed != lines {
                entry.listed = lines;
                changed.push(uid);
            }
        }
    }
    pleg.forget_rumours(rumours);
    for uid in &changed {
        pleg.hint(uid);
    }
    let now = clock.now();
    metrics::pleg::RELIST_DURATION.took([], now - began);
    pleg.shared.health.send_if_modified(|health| {
        let first = health.listed_at.is_none();
        if let Some(before) = health.listed_at.replace(now) {
            metrics::pleg::RELIST_INTERVAL.took([], now - before);
        }
        health.list_overdue = if listening { LIST_OVERDUE_WITH_EVENTS } else { LIST_OVERDUE_WITHOUT_EVENTS };
        first
    });
    if pleg.shared.listed.send_if_modified(|listed| !std::mem::replace(listed, true)) {
        pleg.shared.gate.add_permits(Semaphore::MAX_PERMITS);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::host::{LinuxHost, Roots};
    use crate::sync::testing::FakeRuntime;

    #[tokio::test]
    async fn a_pod_of_which_only_an_event_told_is_forgotten_with_the_next_list() {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let clock = Clock::system();
        let host = LinuxHost::new(Roots::machine(dir.path().to_owned()), Duration::from_secs(5), clock.clone());
        let pleg = Pleg::new(Arc::<FakeRuntime>::default(), Arc::new(host), Arc::new(|_| {}));
        let relist = async || relist(&pleg, &clock, true).await.expect("the runtime answers");
        let (gone, wanted) = (PodUid::new("gone"), PodUid::new("wanted"));
        relist().await;
        pleg.current(&wanted).await.expect("the runtime answers");
        pleg.forget(&gone);
        for uid in [&gone, &wanted] {
            pleg.hint(uid);
        }
        relist().await;
        assert_eq!((pleg.cached(&gone), pleg.cached(&wanted).is_some()), (None, true));

        // A list that began before the last hint proves nothing.
        pleg.hint(&gone);
        let rumours = pleg.rumours();
        pleg.hint(&gone);
        pleg.forget_rumours(rumours);
        assert!(pleg.cached(&gone).is_some());
    }
}
