//! The providers of this machine behind one handle, and what is kept of them on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use k8s_openapi::api::core::v1::Pod;
use tracing::warn;

use super::affinity::{Aligner, Placed};
use super::{Failure, Place, Places, Provider, cpus, memory};
use crate::changes::{Changes, Listener};
use crate::clock::Clock;
use crate::config::CpuSet;
use crate::metrics::topology as metrics;
use crate::pod::PodUid;
use crate::pod::containers::workload_containers;

/// Who has which place; clones share it.
#[derive(Clone)]
pub struct Topology {
    state: Arc<Mutex<State>>,
    /// Of what pods have.
    changes: Changes,
    /// As many of them are on disk, or could not be put there.
    kept: Changes,
    /// Of the CPUs that are shared.
    moves: Changes,
    clock: Clock,
}

/// What gives places here. `None` in place of a manager is its policy none.
#[derive(Default)]
pub(super) struct State {
    pub aligner: Option<Aligner>,
    pub cpus: Option<cpus::Static>,
    pub memory: Option<memory::Static>,
    /// Containers with CPUs of their own have no quota.
    pub lift_quotas: bool,
    /// Where containers run that an earlier life had put on CPUs, under a policy that is no more.
    pub all_cpus: Option<CpuSet>,
    places: BTreeMap<PodUid, Arc<Places>>,
    /// What was shown of the pinnings so far.
    counted: (cpus::Pinning, memory::Pinning),
    /// Those of a pod that was given nothing.
    shared: Arc<Places>,
}

impl Topology {
    /// Containers run anywhere.
    pub fn none() -> Self {
        Topology::new(State::default(), Clock::system())
    }

    pub(super) fn new(mut state: State, clock: Clock) -> Self {
        state.share();
        state.count();
        let state = Arc::new(Mutex::new(state));
        Topology { state, changes: Changes::default(), kept: Changes::default(), moves: Changes::default(), clock }
    }

    /// Gives the containers of a pod that is taken their places; refused, it has none.
    pub fn take(&self, uid: &PodUid, pod: &Pod) -> Result<(), Failure> {
        let began = self.clock.now();
        self.place(uid, pod, |aligner, providers| {
            let Placed { result, tally } = aligner.place(providers, uid, pod);
            if let Some(scope) = aligner.scope_label() {
                metrics::admitted(self.clock.now() - began);
                metrics::ADMISSION_ERRORS.add_all([], tally.errors.into());
                metrics::ALIGNED.add_all([scope, "numa_node"], tally.aligned.into());
                metrics::NOT_ALIGNED.add_all([scope, "numa_node"], tally.not_aligned.into());
            }
            result
        })
    }

    /// The same for a pod that was taken in an earlier life: it cannot be refused, and keeps what it has.
    pub fn take_over(&self, uid: &PodUid, pod: &Pod) {
        let placed = self.place(uid, pod, |aligner, providers| aligner.place_running(providers, uid, pod));
        if let Err(failure) = placed {
            warn!(%uid, error = failure.message, "no place for a pod that runs already: it shares what others share");
        }
    }

    fn place(
        &self,
        uid: &PodUid,
        pod: &Pod,
        place: impl FnOnce(&Aligner, &mut [&mut dyn Provider]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut result = Ok(());
        self.change(|state| {
            let Some(aligner) = &state.aligner else { return };
            let mut providers: Vec<&mut dyn Provider> = Vec::new();
            providers.extend(state.cpus.as_mut().map(|cpus| cpus as &mut dyn Provider));
            providers.extend(state.memory.as_mut().map(|memory| memory as &mut dyn Provider));
            result = place(aligner, &mut providers);
            state.settle(uid, pod);
        });
        result
    }

    pub fn release(&self, uid: &PodUid) {
        self.retain(|other| other != uid);
    }

    /// Releases all pods but these.
    pub fn retain(&self, holds: impl Fn(&PodUid) -> bool) {
        self.change(|state| {
            let gone: Vec<_> = state.holders().into_iter().filter(|uid| !holds(uid)).collect();
            gone.iter().for_each(|uid| state.release(uid));
        });
    }

    /// Where the containers of a pod run now.
    pub fn places(&self, uid: &PodUid) -> Arc<Places> {
        let state = self.state();
        state.places.get(uid).unwrap_or(&state.shared).clone()
    }

    /// Returns once what was given until now will outlive the agent.
    pub async fn kept(&self) {
        self.kept.reach(self.changes.count()).await;
    }

    /// Whether containers have CPUs to run on, or run anywhere.
    pub fn has_pool(&self) -> bool {
        self.state().pool().is_some()
    }

    /// Changes whenever running containers have to move.
    pub fn moves(&self) -> Listener {
        self.moves.listen()
    }

    pub(super) fn changes(&self) -> &Changes {
        &self.changes
    }

    /// What was given by then is on disk, or as good as it gets.
    pub(super) fn keeps(&self, changes: u64) {
        self.kept.tell_all(changes);
    }

    /// The texts of the state files.
    pub(super) fn texts(&self) -> (Option<String>, Option<String>) {
        let state = self.state();
        (state.cpus.as_ref().map(cpus::write), state.memory.as_ref().map(memory::write))
    }

    /// What changes of what pods have is counted, and whether the pool is another one is told.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let (has_changed, moves) = {
            let mut state = self.state();
            let (before, pool) = (state.snapshot(), state.pool());
            change(&mut state);
            state.count();
            let moves = state.pool() != pool;
            if moves {
                state.share();
            }
            (state.snapshot() != before, moves)
        };
        if has_changed {
            self.changes.tell();
        }
        if moves {
            self.moves.tell();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing that holds it can panic")
    }
}

impl State {
    fn pool(&self) -> Option<CpuSet> {
        self.cpus.as_ref().map(cpus::Static::of_all_others).or_else(|| self.all_cpus.clone())
    }

    /// The pool is another one.
    fn share(&mut self) {
        let pool = self.pool();
        self.shared = Arc::new(Places { pool: pool.clone(), ..Places::default() });
        for places in self.places.values_mut() {
            *places = Arc::new(Places { pool: pool.clone(), ..(**places).clone() });
        }
    }

    /// Keeps at hand what the pod has by now.
    fn settle(&mut self, uid: &PodUid, pod: &Pod) {
        let mut given = BTreeMap::new();
        for (_, container) in workload_containers(pod) {
            let cpus = self.cpus.as_ref().and_then(|cpus| cpus.assigned(uid, &container.name)).cloned();
            let memory_nodes = self.memory.as_ref().and_then(|memory| memory.nodes_of(uid, &container.name));
            if cpus.is_some() || memory_nodes.is_some() {
                let is_exclusive = cpus.is_some();
                given.insert(container.name.clone(), Place { cpus, memory_nodes, is_exclusive });
            }
        }
        if given.is_empty() {
            self.places.remove(uid);
            return;
        }
        let places = Places { given, pool: self.pool(), lift_quotas: self.lift_quotas };
        self.places.insert(uid.clone(), Arc::new(places));
    }

    fn holders(&self) -> BTreeSet<PodUid> {
        let cpus = self.cpus.iter().flat_map(|cpus| cpus.entries().keys());
        let memory = self.memory.iter().flat_map(|memory| memory.entries().keys());
        cpus.chain(memory).cloned().collect()
    }

    fn release(&mut self, uid: &PodUid) {
        self.cpus.iter_mut().for_each(|cpus| cpus.release(uid));
        self.memory.iter_mut().for_each(|memory| memory.release(uid));
        self.places.remove(uid);
    }

    fn snapshot(&self) -> (Option<cpus::Entries>, Option<memory::Entries>) {
        (self.cpus.as_ref().map(|cpus| cpus.entries().clone()), self.memory.as_ref().map(|m| m.entries().clone()))
    }

    /// Shows in the metrics what changed.
    fn count(&mut self) {
        if let Some(cpus) = &self.cpus {
            let (before, now) = (&mut self.counted.0, cpus.pinning());
            metrics::CPU_REQUESTS.add_all([], now.requests - before.requests);
            metrics::CPU_ERRORS.add_all([], now.errors - before.errors);
            *before = now;
            let exclusive = cpus.exclusive();
            metrics::SHARED_POOL.set([], cpus.shared().len() as f64 * 1000.0);
            metrics::EXCLUSIVE_CPUS.set([], exclusive.values().sum::<usize>() as f64);
            for (node, count) in exclusive {
                metrics::EXCLUSIVE_PER_NODE.set([&node.to_string()], count as f64);
            }
        }
        if let Some(memory) = &self.memory {
            let (before, now) = (&mut self.counted.1, memory.pinning());
            metrics::MEMORY_REQUESTS.add_all([], now.requests - before.requests);
            metrics::MEMORY_ERRORS.add_all([], now.errors - before.errors);
            *before = now;
        }
    }
}
