//! Running containers follow their places: the pool that most of them share shrinks when a pod gets
//! CPUs of its own, and grows when it ends. Whatever the pod's worker waits for, a pull or the grace of
//! what stops, that goes on beside it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::retries::{Retries, Step};
use super::{Context, worker};
use crate::config::CpuSet;
use crate::cri::{self, ContainerId, CriError, LinuxResources};
use crate::pleg::PodRuntime;
use crate::pod::PodUid;
use crate::topology::Places;

/// A change of the pool concerns every pod of the node, and each update costs the runtime a
/// process: pods that start meanwhile need the machine too.
const AT_ONCE: usize = 4;

/// One for the whole node.
pub struct PinTurns(Semaphore);

impl Default for PinTurns {
    fn default() -> Self {
        PinTurns(Semaphore::new(AT_ONCE))
    }
}

/// A running container that is to run on other CPUs.
#[derive(Clone, Debug)]
struct Move {
    name: String,
    id: ContainerId,
    cpus: String,
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "move {} to CPUs {}", self.name, self.cpus)
    }
}

/// What running instances were given in this life of the worker, in the kernel's notation.
#[derive(Default)]
struct Pins(BTreeMap<ContainerId, String>);

impl Pins {
    /// The running containers that are not where they should be.
    fn decide(&mut self, places: &Places, runtime: &PodRuntime) -> Vec<Move> {
        self.0.retain(|id, _| runtime.containers.iter().any(|instance| instance.id == *id));
        let running = runtime.containers.iter().filter(|container| container.is_running());
        let moves = running.filter_map(|instance| {
            let cpus = places.of(&instance.name).cpus?;
            let wanted = cpus.to_string();
            // What was given counts, however the runtime reports it.
            let is_given = self.0.get(&instance.id).is_some_and(|given| *given == wanted);
            let reported = instance.resources.as_ref().filter(|_| !self.0.contains_key(&instance.id));
            let is_reported = reported.is_some_and(|has| CpuSet::parse(&has.cpuset_cpus).is_ok_and(|has| has == cpus));
            let it = || Move { name: instance.name.clone(), id: instance.id.clone(), cpus: wanted };
            (!is_given && !is_reported).then(it)
        });
        moves.collect()
    }

    fn carried_out(&mut self, id: &ContainerId, cpus: &str) {
        self.0.insert(id.clone(), cpus.to_owned());
    }

    /// It may have taken effect or not.
    fn failed(&mut self, id: &ContainerId) {
        self.0.insert(id.clone(), String::new());
    }
}

/// Keeps a pod's running containers in their places, from when it was first looked at: before the node
/// has taken a pod nobody knows what is its own. Nothing where containers run anywhere.
pub fn follow<'a>(context: &'a Arc<Context>, uid: &'a PodUid, looked: Arc<Notify>) -> BoxFuture<'a, Infallible> {
    if !context.topology.has_pool() {
        return std::future::pending().boxed();
    }
    let mut follower = Follower { context, uid, pins: Pins::default(), retries: Retries::new(context.clock.clone()) };
    let mut moves = context.topology.moves();
    async move {
        looked.notified().await;
        loop {
            moves.mark_seen();
            let until = follower.look().await;
            tokio::select! {
                biased;
                // Cancel-safe: what changes stays news until the next look.
                () = moves.changed() => {}
                // Cancel-safe: an unused permit stays.
                () = looked.notified() => {}
                // Cancel-safe: a timer.
                () = worker::sleep_until(until) => {}
            }
        }
    }
    .boxed()
}

struct Follower<'a> {
    context: &'a Context,
    uid: &'a PodUid,
    pins: Pins,
    retries: Retries,
}

impl Follower<'_> {
    /// Moves what is elsewhere. When to look again, if nothing happens before.
    async fn look(&mut self) -> Option<Instant> {
        let runtime = match self.context.pleg.current(self.uid).await {
            Ok(runtime) => runtime,
            Err(error) => {
                debug!(%error, "cannot read where the pod's containers run");
                return Some(self.retries.failed(Step::Read, None));
            }
        };
        self.retries.succeeded(&Step::Read);
        let mut due = self.pins.decide(&self.context.topology.places(self.uid), &runtime);
        due.retain(|it| self.retries.waits_for(&Step::Pin(it.name.clone())).is_none());
        // All together: none of them waits for another.
        let results = join_all(due.iter().map(|it| carry_out(self.context, it))).await;
        for (Move { name, id, cpus }, result) in due.iter().zip(results) {
            let step = Step::Pin(name.clone());
            match result {
                Ok(()) => {
                    self.pins.carried_out(id, cpus);
                    self.retries.succeeded(&step);
                }
                Err(error) => {
                    warn!(%error, container = name, cpus, "container stays on its CPUs for now, will retry");
                    self.pins.failed(id);
                    self.retries.failed(step, None);
                }
            }
        }
        self.retries.next()
    }
}

async fn carry_out(context: &Context, it: &Move) -> cri::Result<()> {
    let _turn = context.pin_turns.0.acquire().await.expect("nobody closes it");
    debug!(container = it.name, id = %it.id, cpus = it.cpus, "moving container to other CPUs");
    // No read of the PLEG's is made stale by this: nobody but `Pins` asks which CPUs are reported, and
    // it knows what it gave. A read here would keep news from the worker, whom a list then does not wake.
    let resources = LinuxResources { cpuset_cpus: it.cpus.clone(), ..LinuxResources::default() };
    match context.runtime.update_container(&it.id, &resources).await {
        // What is gone runs nowhere.
        Err(CriError::NotFound { .. }) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::Container;
    use crate::cri::testing::{container, exited, running};
    use crate::topology::Place;

    fn cpus(list: &str) -> Option<CpuSet> {
        Some(CpuSet::parse(list).expect("a list"))
    }

    /// `a` has CPU 1 of its own, all others share 0 and 2.
    fn places() -> Places {
        let own = Place { cpus: cpus("1"), is_exclusive: true, ..Place::default() };
        Places { given: BTreeMap::from([("a".to_owned(), own)]), pool: cpus("0,2"), ..Places::default() }
    }

    fn reporting(name: &str, cpuset: &str) -> Container {
        let resources = LinuxResources { cpuset_cpus: cpuset.to_owned(), ..LinuxResources::default() };
        Container { resources: Some(resources), ..container(name, 0, running()) }
    }

    fn of(containers: Vec<Container>) -> PodRuntime {
        PodRuntime { containers, ..PodRuntime::default() }
    }

    #[track_caller]
    fn check(pins: &mut Pins, places: &Places, runtime: &PodRuntime, expected: &[&str]) {
        let told: Vec<_> = pins.decide(places, runtime).iter().map(Move::to_string).collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn what_runs_elsewhere_moves_and_what_is_in_its_place_stays() {
        let runtime = of(vec![reporting("a", "1"), reporting("b", "0-2"), reporting("c", "2,0")]);
        check(&mut Pins::default(), &places(), &runtime, &["move b to CPUs 0,2"]);
    }

    #[test]
    fn only_what_runs_is_moved() {
        let runtime = of(vec![Container { state: exited(0), ..reporting("b", "0-2") }]);
        check(&mut Pins::default(), &places(), &runtime, &[]);
    }

    #[test]
    fn without_places_nothing_is_moved() {
        check(&mut Pins::default(), &Places::default(), &of(vec![reporting("b", "0-2")]), &[]);
    }

    #[test]
    fn a_runtime_that_reports_nothing_or_otherwise_is_told_once() {
        let silent = Container { resources: None, ..container("a", 0, running()) };
        let (mut pins, runtime) = (Pins::default(), of(vec![silent, reporting("b", "")]));
        let both = ["move a to CPUs 1", "move b to CPUs 0,2"];
        check(&mut pins, &places(), &runtime, &both);
        pins.carried_out(&runtime.containers[0].id, "1");
        pins.carried_out(&runtime.containers[1].id, "0,2");
        check(&mut pins, &places(), &runtime, &[]);
    }

    #[test]
    fn a_move_that_failed_is_due_whatever_is_reported() {
        let (mut pins, runtime) = (Pins::default(), of(vec![reporting("b", "0,2")]));
        pins.failed(&runtime.containers[0].id);
        check(&mut pins, &places(), &runtime, &["move b to CPUs 0,2"]);
    }

    #[test]
    fn a_pool_that_changes_back_is_followed_back() {
        let (mut pins, runtime) = (Pins::default(), of(vec![reporting("b", "0-2")]));
        check(&mut pins, &places(), &runtime, &["move b to CPUs 0,2"]);
        pins.carried_out(&runtime.containers[0].id, "0,2");
        let wide = Places { pool: cpus("0-2"), ..Places::default() };
        check(&mut pins, &wide, &runtime, &["move b to CPUs 0-2"]);
    }
}
