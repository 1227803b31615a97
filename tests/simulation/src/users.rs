//! What happens to the world: users, the kernel, the network, and whoever kills agents.
//!
//! Each seed has its own mix: some kinds of events never happen in it, some all the time.

use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Pod, Volume};
use tokio::time::Instant;

use crate::agent::Machine;
use crate::cluster::is_mirror;
use crate::pins::Pins;
use crate::pods::{self, CONFIG_MAPS, NAMESPACE, rare};

/// Pods of the API at any time, at most.
const PODS_MAX: usize = 7;
const STATIC_PODS_MAX: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Event {
    CreatePod,
    DeletePod,
    EditImage,
    Resize,
    BreakSomething,
    RuntimeOutage,
    ApiOutage,
    Relist,
    KillAgent,
    StepClock,
    DeleteNode,
    WriteStaticPod,
    RemoveStaticPod,
    DeleteMirror,
    WriteConfigMap,
    SetCondition,
    Debug,
}

const EVENTS: [Event; 17] = [
    Event::CreatePod,
    Event::DeletePod,
    Event::EditImage,
    Event::Resize,
    Event::BreakSomething,
    Event::RuntimeOutage,
    Event::ApiOutage,
    Event::Relist,
    Event::KillAgent,
    Event::StepClock,
    Event::DeleteNode,
    Event::WriteStaticPod,
    Event::RemoveStaticPod,
    Event::DeleteMirror,
    Event::WriteConfigMap,
    Event::SetCondition,
    Event::Debug,
];

pub struct Users {
    machine: Machine,
    random: fastrand::Rng,
    weights: [u32; EVENTS.len()],
    /// The longest pause between two events.
    pause_max: Duration,
    made: u32,
    edits: u32,
    /// Whether the runtime forgets in place of breaking. A chance of its own: it came late, and those
    /// seeds in which nothing is forgotten keep their stories.
    forgets: Option<fastrand::Rng>,
    /// Where pods may have CPUs of their own.
    pins: Option<fastrand::Rng>,
}

impl Users {
    pub fn new(
        machine: Machine,
        mut random: fastrand::Rng,
        forgets: Option<fastrand::Rng>,
        pins: Option<fastrand::Rng>,
    ) -> Self {
        let mut weights = EVENTS.map(|_| if random.u32(0..3) == 0 { 0 } else { random.u32(1..10) });
        weights[0] = weights[0].max(4);
        let pause_max = Duration::from_millis(random.u64(200..40_000));
        Users { machine, random, weights, pause_max, made: 0, edits: 0, forgets, pins }
    }

    /// The storm: events until its end, then the agent is there again and stays.
    pub async fn storm(&mut self, length: Duration) {
        let end = Instant::now() + length;
        for map in CONFIG_MAPS {
            if self.random.bool() {
                self.write_config_map(map);
            }
        }
        self.start_agent();
        while Instant::now() < end && !self.machine.world.is_violated() {
            let pause = self.duration(self.pause_max);
            tokio::time::sleep(pause).await;
            self.happen().await;
        }
        // What pods wait for comes in the end.
        for map in CONFIG_MAPS {
            if self.machine.cluster.config_map(map).is_none() {
                self.write_config_map(map);
            }
        }
        if !self.machine.is_agent_alive() {
            self.start_agent();
        }
    }

    async fn happen(&mut self) {
        let mut roll = self.random.u32(0..self.weights.iter().sum());
        let mut drawn = Event::CreatePod;
        for (event, weight) in EVENTS.into_iter().zip(self.weights) {
            if roll < weight {
                drawn = event;
                break;
            }
            roll -= weight;
        }
        match drawn {
            Event::CreatePod => self.create_pod(),
            Event::DeletePod => self.delete_pod(),
            Event::EditImage => self.edit_image(),
            Event::Resize => (0..self.random.u32(1..5)).for_each(|_| self.resize()),
            Event::BreakSomething if self.forgets.as_mut().is_some_and(|random| random.bool()) => {
                self.machine.runtime.forget_something().iter().for_each(|uid| self.machine.disturb(uid));
            }
            Event::BreakSomething => {
                if let Some(uid) = self.machine.runtime.break_something() {
                    self.machine.disturb(&uid);
                }
            }
            Event::RuntimeOutage => {
                let (runtime, length) = (self.machine.runtime.clone(), self.duration(Duration::from_secs(120)));
                tokio::spawn(async move { runtime.outage(length).await });
            }
            Event::ApiOutage => {
                let (cluster, length) = (self.machine.cluster.clone(), self.duration(Duration::from_secs(180)));
                tokio::spawn(async move { cluster.outage(length).await });
            }
            Event::Relist => self.machine.cluster.relist(),
            Event::KillAgent => self.kill_agent().await,
            Event::StepClock => {
                let by = SignedDuration::from_secs(self.random.i64(-7200..7200));
                self.machine.world.step_wall(by);
            }
            Event::DeleteNode => self.machine.cluster.user_deletes_node(),
            Event::WriteStaticPod => self.write_static_pod(),
            Event::RemoveStaticPod => self.remove_static_pod(),
            Event::DeleteMirror => self.delete_mirror(),
            Event::WriteConfigMap => {
                let map = CONFIG_MAPS[self.random.usize(..CONFIG_MAPS.len())];
                if self.random.u32(0..4) == 0 {
                    self.machine.cluster.user_sets_config_map(map, None);
                } else {
                    self.write_config_map(map);
                }
            }
            Event::SetCondition => self.set_condition(),
            Event::Debug => self.debug(),
        }
    }

    fn create_pod(&mut self) {
        let existing = self.machine.cluster.pods();
        if existing.iter().filter(|pod| !is_mirror(pod)).count() >= PODS_MAX {
            return self.delete_pod();
        }
        let uid = self.next_uid();
        // A name that was used before comes again, as that of a StatefulSet's pod does.
        let name = format!("web-{}", self.random.u32(0..PODS_MAX as u32 + 3));
        if existing.iter().any(|pod| pods::name(pod) == name) {
            return;
        }
        let pod = self.draw(&name, &uid);
        self.promise(&pod);
        self.machine.cluster.user_creates(pod);
    }

    fn delete_pod(&mut self) {
        let all: Vec<_> = self.machine.cluster.pods().into_iter().filter(|pod| !is_mirror(pod)).collect();
        let Some(pod) = self.random.choice(&all) else { return };
        self.machine.runtime.touch(pods::uid(pod));
        let own = pods::own_grace(pod);
        let grace = match self.random.u32(0..6) {
            0 => 0,
            1 | 2 => self.random.i64(1..40),
            _ => own,
        };
        if grace == 0 {
            self.machine.runtime.lose_spec(pods::uid(pod));
        }
        self.machine.runtime.allow_grace(pods::uid(pod), grace);
        self.machine.cluster.user_deletes(NAMESPACE, pods::name(pod), grace);
    }

    fn edit_image(&mut self) {
        let all: Vec<_> = self.machine.cluster.pods().into_iter().filter(|pod| !is_mirror(pod)).collect();
        let Some(pod) = self.random.choice(&all) else { return };
        self.edits += 1;
        let image = format!("edited-{}", self.edits);
        let which = self.random.usize(..pods::spec(pod).containers.len());
        self.machine.runtime.touch(pods::uid(pod));
        self.machine.runtime.may_replace(pods::uid(pod));
        self.machine.disturb(pods::uid(pod));
        let name = pods::name(pod);
        self.machine.world.log(|| format!("user gives {name}/c{which} the image {image}"));
        self.machine.cluster.user_edits(NAMESPACE, name, |pod| {
            pods::next_generation(pod).containers[which].image = Some(image);
        });
    }

    /// Somebody gives a container other resources, which leave the pod in its class.
    fn resize(&mut self) {
        let all: Vec<_> = self.machine.cluster.pods().into_iter().filter(pods::may_be_resized).collect();
        let Some(pod) = self.random.choice(&all) else { return };
        let (uid, name) = (pods::uid(pod), pods::name(pod));
        let count = pods::inits(pod).len() + pods::spec(pod).containers.len();
        if pods::spec(pod).resources.is_some() {
            let resources = rare::draw_resize_of_whole(&mut self.random);
            self.machine.world.log(|| format!("user gives {name} as a whole {resources:?}"));
            if (0..count).any(|which| pods::restarts_for_memory(pod, which)) {
                self.machine.runtime.touch(uid);
                self.machine.runtime.may_replace(uid);
                self.machine.disturb(uid);
            }
            return self.machine.cluster.user_edits(NAMESPACE, name, |pod| {
                pods::next_generation(pod).resources = Some(resources);
            });
        }
        let which = self.random.usize(..count);
        let resources = pods::draw_resize(&mut self.random);
        self.machine.world.log(|| format!("user gives container {which} of {name} {resources:?}"));
        if pods::restarts_for_memory(pod, which) {
            self.machine.runtime.touch(uid);
            self.machine.runtime.may_replace(uid);
            self.machine.disturb(uid);
        }
        self.machine.cluster.user_edits(NAMESPACE, name, |pod| {
            pods::next_generation(pod);
            pods::container_mut(pod, which).resources = Some(resources);
        });
    }

    /// Somebody else than the agent writes a condition.
    fn set_condition(&mut self) {
        let all = self.machine.cluster.pods();
        let gated: Vec<_> = all.iter().filter(|pod| pods::spec(pod).readiness_gates.is_some()).collect();
        let all = if gated.is_empty() || self.random.u32(0..4) == 0 { all.iter().collect() } else { gated };
        let Some(pod) = self.random.choice(&all) else { return };
        let (kind, status) = rare::draw_condition(&mut self.random, pod);
        self.machine.cluster.user_sets_condition(NAMESPACE, pods::name(pod), &kind, status);
    }

    /// Somebody adds a container to a pod, whatever becomes of that.
    fn debug(&mut self) {
        let all: Vec<_> = self.machine.cluster.pods().into_iter().filter(|pod| !is_mirror(pod)).collect();
        let Some(pod) = self.random.choice(&all) else { return };
        let Some(debugger) = rare::draw_debugger(&mut self.random, pod) else { return };
        let name = pods::name(pod);
        self.machine.world.log(|| format!("user debugs {name} by {} {:?}", debugger.name, debugger.command));
        self.machine.cluster.user_edits(NAMESPACE, name, |pod| {
            pods::next_generation(pod).ephemeral_containers.get_or_insert_default().push(debugger);
        });
    }

    async fn kill_agent(&mut self) {
        // At whichever await it happens to be after so long.
        let after = self.duration(Duration::from_millis(500));
        tokio::time::sleep(after).await;
        self.machine.kill_agent().await;
        let away = match self.random.u32(0..4) {
            0 => self.duration(Duration::from_secs(120)),
            1 => Duration::ZERO,
            _ => self.duration(Duration::from_secs(10)),
        };
        let (machine, directory_delay) = (self.machine.clone(), self.directory_delay());
        tokio::spawn(async move {
            tokio::time::sleep(away).await;
            machine.start_agent(directory_delay);
        });
    }

    fn start_agent(&mut self) {
        let directory_delay = self.directory_delay();
        self.machine.start_agent(directory_delay);
    }

    fn directory_delay(&mut self) -> Duration {
        if self.random.bool() { Duration::ZERO } else { self.duration(Duration::from_secs(20)) }
    }

    fn write_static_pod(&mut self) {
        let name = format!("static-{}", self.random.usize(..STATIC_PODS_MAX));
        if let Some(before) = self.machine.static_pods().get(&name) {
            self.machine.runtime.touch(pods::uid(before));
            self.machine.runtime.lose_spec(pods::uid(before));
        }
        let uid = self.next_uid();
        let mut pod = self.draw(&name, &uid);
        self.promise(&pod);
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert("kubernetes.io/config.hash".into(), uid.clone());
        annotations.insert("kubernetes.io/config.source".into(), "file".into());
        let spec = pod.spec.as_mut().expect("every drawn pod has a spec");
        // Nobody opens a gate in a manifest, and those must not mention objects of the API.
        spec.readiness_gates = None;
        spec.volumes.iter_mut().flatten().for_each(|volume| {
            let Volume { config_map, secret, projected, empty_dir, .. } = volume;
            if config_map.take().is_some() | secret.take().is_some() | projected.take().is_some() {
                *empty_dir = Some(Default::default());
            }
        });
        let as_list = self.random.u32(0..3) > 0;
        self.machine.write_static_pod(&name, pod, as_list);
    }

    fn draw(&mut self, name: &str, uid: &str) -> Pod {
        let mut pod = pods::draw(&mut self.random, name, uid);
        if let Some(random) = &mut self.pins {
            Pins::give(random, &mut pod);
        }
        pod
    }

    /// Whoever writes a pod gives it a grace; with a deadline, it is to be stopped one day.
    fn promise(&self, pod: &Pod) {
        self.machine.runtime.allow_grace(pods::uid(pod), pods::own_grace(pod));
        self.machine.runtime.starts_once(pods::uid(pod), pods::never_restarted(pod));
        if pods::spec(pod).active_deadline_seconds.is_some() {
            self.machine.runtime.touch(pods::uid(pod));
        }
    }

    fn remove_static_pod(&mut self) {
        let all: Vec<_> = self.machine.static_pods().into_iter().collect();
        let Some((name, pod)) = self.random.choice(&all) else { return };
        self.machine.runtime.touch(pods::uid(pod));
        self.machine.runtime.lose_spec(pods::uid(pod));
        let as_list = self.random.u32(0..3) > 0;
        self.machine.remove_static_pod(name, as_list);
        // Sometimes it was a slip: the very same manifest is put back.
        if self.random.u32(0..3) == 0 {
            let (machine, name, pod) = (self.machine.clone(), name.clone(), pod.clone());
            let after = self.duration(Duration::from_secs(20));
            self.machine.disturb(pods::uid(&pod));
            self.machine.runtime.lives_again(pods::uid(&pod));
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                if !machine.static_pods().contains_key(&name) {
                    machine.cluster.user_puts_back(&name);
                    machine.write_static_pod(&name, (*pod).clone(), as_list);
                }
            });
        }
    }

    fn delete_mirror(&mut self) {
        let all: Vec<_> = self.machine.cluster.pods().into_iter().filter(is_mirror).collect();
        let Some(mirror) = self.random.choice(&all) else { return };
        let grace = if self.random.bool() { 0 } else { 30 };
        self.machine.lose_mirror(pods::name(mirror));
        self.machine.cluster.user_deletes(NAMESPACE, pods::name(mirror), grace);
    }

    fn write_config_map(&mut self, name: &str) {
        self.edits += 1;
        self.machine.cluster.user_sets_config_map(name, Some(format!("version {}", self.edits)));
    }

    fn next_uid(&mut self) -> String {
        self.made += 1;
        format!("uid-{:04}", self.made)
    }

    fn duration(&mut self, max: Duration) -> Duration {
        Duration::from_micros(self.random.u64(0..=u64::try_from(max.as_micros()).unwrap_or(u64::MAX)))
    }
}
