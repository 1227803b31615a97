//! Of CPUs, once faults have stopped: who has some of its own has them alone, and all others share the rest.

use ferrolet::config::CpuSet;
use k8s_openapi::api::core::v1::Pod;

use super::Judge;
use crate::invariants::Invariant;
use crate::pins::{self, RESERVED, THREADS};
use crate::pods::{self, name};

impl Judge<'_> {
    /// `pods` are all that there are by now.
    pub(super) fn pins(&mut self, pods: &[&Pod]) {
        let Some(settings) = self.machine.pins.clone() else { return };
        let reserved = CpuSet::from_iter(RESERVED);
        let (mut given, mut shared) = (CpuSet::default(), Vec::new());
        let mut asked = 0;
        for pod in pods {
            for container in pods::inits(pod).iter().chain(&pods::spec(pod).containers) {
                let count = pins::own_cpus(container);
                asked += count;
                for id in self.machine.runtime.running(pods::uid(pod), &container.name) {
                    let has = self.machine.runtime.resources(&id).unwrap_or_default().cpuset_cpus;
                    let who = format!("{}/{}", name(pod), container.name);
                    let Ok(has) = CpuSet::parse(&has) else {
                        self.complain(Invariant::CpusOfTheirOwn, format!("{who} runs on {has:?}"));
                        continue;
                    };
                    if count == 0 {
                        shared.push((who, has));
                        continue;
                    }
                    if has.len() != count || !has.intersection(&reserved).is_empty() {
                        self.complain(Invariant::CpusOfTheirOwn, format!("{who} has {has} and asked for {count}"));
                    }
                    if !has.intersection(&given).is_empty() {
                        self.complain(Invariant::CpusOfTheirOwn, format!("{who} has {has}, and others have of that"));
                    }
                    given = given.union(&has);
                }
            }
        }
        let all: CpuSet = (0..THREADS).collect();
        let all = if settings.options.strict_reservation { all.difference(&reserved) } else { all };
        // What belongs to a container that waits to be started again is kept for it.
        let (most, least) = (all.difference(&given), all.len() - asked.min(all.len()));
        let pool = shared.first().map(|(_, pool)| pool.clone());
        for (who, has) in shared {
            if !has.is_subset(&most) || has.len() < least || Some(&has) != pool.as_ref() {
                let what = format!("{who} runs on {has}, of {most} that belong to nobody, {asked} are asked for");
                self.complain(Invariant::OthersShareTheRest, what);
            }
        }
    }
}
