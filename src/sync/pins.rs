//! Running containers follow their places: the pool that most of them share shrinks when a pod gets
//! CPUs of its own, and grows when it ends.

use std::collections::BTreeMap;

use futures::future::join_all;
use tokio::sync::Semaphore;
use tracing::debug;

use super::execute::{Done, Round, StartFailure};
use super::plan::Action;
use super::retries::Step;
use crate::config::CpuSet;
use crate::cri::{ContainerId, CriError, LinuxResources};
use crate::pleg::PodRuntime;
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

/// What running instances were given in this life of the worker, in the kernel's notation.
#[derive(Default)]
pub struct Pins(BTreeMap<ContainerId, String>);

impl Pins {
    /// The running containers that are not where they should be.
    pub fn decide(&mut self, places: &Places, runtime: &PodRuntime) -> Vec<Action> {
        self.0.retain(|id, _| runtime.containers.iter().any(|instance| instance.id == *id));
        let running = runtime.containers.iter().filter(|container| container.is_running());
        let pins = running.filter_map(|instance| {
            let cpus = places.of(&instance.name).cpus?;
            let wanted = cpus.to_string();
            // What was given counts, however the runtime reports it.
            let is_given = self.0.get(&instance.id).is_some_and(|given| *given == wanted);
            let reported = instance.resources.as_ref().filter(|_| !self.0.contains_key(&instance.id));
            let is_reported = reported.is_some_and(|has| CpuSet::parse(&has.cpuset_cpus).is_ok_and(|has| has == cpus));
            let pin = || Action::Pin { name: instance.name.clone(), id: instance.id.clone(), cpus: wanted };
            (!is_given && !is_reported).then(pin)
        });
        pins.collect()
    }

    pub fn carried_out(&mut self, id: &ContainerId, cpus: &str) {
        self.0.insert(id.clone(), cpus.to_owned());
    }

    /// It may have taken effect or not.
    pub fn failed(&mut self, id: &ContainerId) {
        self.0.insert(id.clone(), String::new());
    }
}

/// All together: none of them waits for another, nor for what else is done for the pod.
pub async fn carry_out(round: &Round<'_>, pins: &[Action]) -> Vec<Done> {
    let each = pins.iter().map(|action| async move {
        let Action::Pin { name, id, cpus } = action else { return None };
        Some(Done { step: Step::Pin(name.clone()), result: pin(round, name, id, cpus).await })
    });
    join_all(each).await.into_iter().flatten().collect()
}

async fn pin(round: &Round<'_>, name: &str, id: &ContainerId, cpus: &str) -> Result<(), StartFailure> {
    let context = round.context;
    let _turn = context.pin_turns.0.acquire().await.expect("nobody closes it");
    debug!(container = name, %id, cpus, "moving container to other CPUs");
    context.pleg.distrust(round.uid, id);
    let resources = LinuxResources { cpuset_cpus: cpus.to_owned(), ..LinuxResources::default() };
    match context.runtime.update_container(id, &resources).await {
        // What is gone runs nowhere.
        Ok(()) | Err(CriError::NotFound { .. }) => Ok(()),
        Err(error) => {
            Err(StartFailure::new("PinError", format!("cannot move container {name:?} to CPUs {cpus}: {error}")))
        }
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
        let told: Vec<_> = pins.decide(places, runtime).iter().map(Action::to_string).collect();
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
