//! What a worker tells the world about its pod: the status, and the events of waiting.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::Context;
use super::execute::StartFailure;
use super::mirror::Mirror;
use super::plan::Plan;
use super::wish::Desired;
use super::worker::Stage;
use crate::config::{Gate, GoDuration};
use crate::cri::CriError;
use crate::events::EventType;
use crate::host::CgroupSettings;
use crate::metrics;
use crate::pleg::PodRuntime;
use crate::pod::{self, PodRef};
use crate::probes::{Standings, Told};
use crate::status::{self, Phase, Probed, StatusInput, Verdict, WaitingReason};

pub struct Reporter {
    began: Timestamp,
    /// When the pod began to be handled, as far as this life of the agent can tell.
    handled_since: Timestamp,
    past: Past,
    last: Option<Arc<PodStatus>>,
    /// Somebody else than us may have heard of the pod.
    has_told: bool,
    /// The attempt whose back-off was reported, by container: one event for each wait.
    reported: BTreeMap<String, u32>,
    waits_for_network: bool,
}

/// What earlier lives of the agent told of the pod.
enum Past {
    Unread,
    /// It is a static pod, and the API has not spoken yet, in which its mirror is. Until then
    /// nobody is told anything.
    Awaited {
        /// The runtime had something of the pod when it was looked at first.
        is_found: bool,
    },
    /// What was told, if that is not in the pod itself.
    Known(Option<Box<PodStatus>>),
}

/// How far a worker is with its pod.
pub struct Progress<'a> {
    pub stage: Stage,
    /// Why containers could not be started at the last try.
    pub failures: &'a BTreeMap<String, StartFailure>,
    pub verdict: Option<&'a Verdict>,
    pub standings: &'a Standings,
    pub resize: &'a status::Resize,
    /// What the pod's cgroup was set to.
    pub cgroup: Option<&'a CgroupSettings>,
}

/// Where the pod's servers listen.
pub fn pod_ip(context: &Context, wish: &Desired, runtime: &PodRuntime) -> Option<IpAddr> {
    let node = context.node.borrow();
    let primary = node.as_ref().and_then(|node| node.host_ips.first().copied());
    if pod::spec(&wish.pod).host_network == Some(true) {
        let told = wish.pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()?.parse().ok());
        return told.or(primary);
    }
    let of_primary_family = |ip: &&IpAddr| primary.is_none_or(|primary| primary.is_ipv4() == ip.is_ipv4());
    let ips = runtime.ips();
    ips.iter().find(of_primary_family).or(ips.first()).copied()
}

/// What is told of a pod that the runtime does not tell of. The status of a sandbox is asked for
/// when it is new, and upstream has a reason of its own for that.
pub fn read_failure(error: &CriError) -> (&'static str, String) {
    match error.call() {
        "PodSandboxStatus" => ("FailedPodSandBoxStatus", format!("Unable to get pod sandbox status: {error}")),
        _ => ("FailedSync", format!("error determining status: {error}")),
    }
}

/// When the init containers that end ran.
fn init_spans(pod: &Pod, runtime: &PodRuntime) -> Vec<metrics::starts::Span> {
    let inits = pod::containers::init_containers(pod).iter().filter(|spec| !pod::containers::is_sidecar(spec));
    let instances = inits.flat_map(|spec| runtime.instances(&spec.name));
    instances.filter_map(|instance| instance.exit()?.started_at.zip(instance.exit()?.finished_at)).collect()
}

impl Reporter {
    pub fn new(context: &Context) -> Self {
        Reporter {
            began: context.clock.wall(),
            handled_since: context.clock.wall(),
            past: Past::Unread,
            last: None,
            has_told: false,
            reported: BTreeMap::new(),
            waits_for_network: false,
        }
    }

    /// Takes in what earlier lives of the agent told, once that can be known.
    pub fn recall(&mut self, context: &Context, wish: &Desired, runtime: &PodRuntime) {
        if matches!(self.past, Past::Unread) {
            if !wish.source.is_static() {
                self.past = Past::Known(None);
                return;
            }
            // Where there is no mirror, what was made first is what is known best.
            let sandboxes = runtime.sandboxes.iter().map(|sandbox| sandbox.created_at);
            let made = sandboxes.chain(runtime.containers.iter().map(|container| container.created_at));
            self.handled_since = made.chain([self.handled_since]).min().expect("there is one at least");
            self.past = Past::Awaited { is_found: !runtime.is_empty() };
        }
        let Past::Awaited { is_found } = self.past else { return };
        let memory = match context.mirrors.of(&wish.pod) {
            Mirror::Unknown => return,
            Mirror::Absent => None,
            Mirror::Present(mirror) => mirror.status.as_ref().and_then(|told| status::memory(told, is_found)),
        };
        self.past = Past::Known(memory.map(Box::new));
        // It was a guess, which nobody heard.
        self.last = None;
    }

    /// Whether it is known what earlier lives told.
    pub fn knows_the_past(&self) -> bool {
        matches!(self.past, Past::Known(_))
    }

    /// Whether it has told anything of the pod yet.
    pub fn has_told(&self) -> bool {
        self.has_told
    }

    fn memory(&self) -> Option<&PodStatus> {
        match &self.past {
            Past::Known(memory) => memory.as_deref(),
            Past::Unread | Past::Awaited { .. } => None,
        }
    }

    /// What probes go on from: the status told last; of a pod that is new to this worker, what
    /// the API has, unless such pods are to begin anew.
    pub fn told<'a>(&'a self, context: &Context, wish: &'a Desired) -> Told<'a> {
        let begins_anew = context.config.launch.gates.enabled(Gate::ChangeContainerStatusOnKubeletRestart);
        if !self.knows_the_past() && !begins_anew {
            return Told::Unknown { by: self.began };
        }
        let earlier = self.memory().or(wish.pod.status.as_ref()).filter(|_| !begins_anew);
        Told::Known(self.last.as_deref().or(earlier))
    }

    /// What was told of the pod, in this life of the agent or in an earlier one.
    pub fn earlier<'a>(&'a self, pod: &'a Pod) -> Option<&'a PodStatus> {
        self.last.as_deref().or(self.memory()).or(pod.status.as_ref())
    }

    /// When the pod began to be handled, in this life of the agent or in an earlier one.
    pub fn start_time(&self, pod: &Pod) -> Timestamp {
        let told = self.earlier(pod).and_then(|status| status.start_time.as_ref());
        told.map_or(self.handled_since, |time| time.0)
    }

    /// Tells how the pod is; the answer is its true phase. An end is told to nobody as long as
    /// something may still be started: who hears of it starts a replacement.
    pub fn publish(
        &mut self,
        context: &Context,
        wish: &Desired,
        runtime: &PodRuntime,
        plan: &Plan,
        progress: &Progress<'_>,
    ) -> Phase {
        let Progress { stage, failures, verdict, standings, resize, cgroup } = *progress;
        let mut start_errors: BTreeMap<String, WaitingReason> = failures
            .iter()
            .map(|(name, failure)| {
                (name.clone(), WaitingReason { reason: failure.reason.clone(), message: failure.message.clone() })
            })
            .collect();
        let reference = PodRef::of(&wish.pod);
        for held in &plan.held {
            let which = format!("failed container={} pod={}", held.name, reference.in_full());
            let message = format!("back-off {} restarting {which}", GoDuration::from(held.backoff));
            start_errors.insert(held.name.clone(), WaitingReason { reason: "CrashLoopBackOff".to_owned(), message });
        }
        self.report_waits(context, wish, plan, runtime, &reference);

        let probed = standings
            .iter()
            .map(|(id, standing)| (id.clone(), Probed { started: standing.started, ready: standing.ready }));
        let probed = probed.collect();
        let node = context.node.borrow().clone();
        let computed = status::compute(&StatusInput {
            pod: &wish.pod,
            source: wish.source,
            runtime,
            runtime_name: &context.config.runtime_name,
            stage: match stage {
                Stage::Syncing => status::Stage::Syncing,
                Stage::Stopping => status::Stage::Terminating,
                Stage::Cleaning | Stage::Ended => status::Stage::Terminated,
            },
            verdict,
            previous: self.last.as_deref().or(self.memory()),
            start_errors: &start_errors,
            resize,
            cgroup,
            gates: &context.config.launch.gates,
            probes: &probed,
            host_ips: node.as_ref().map_or(&[], |node| node.host_ips.as_slice()),
            handled_since: self.handled_since,
            now: context.clock.wall(),
        });
        if stage == Stage::Syncing && computed.phase.is_terminal() {
            return computed.phase;
        }
        let ran_before = self.earlier(&wish.pod).is_some_and(|told| told.phase.as_deref() == Some("Running"));
        if computed.phase == Phase::Running && !ran_before {
            let inits = init_spans(&wish.pod, runtime);
            metrics::starts::ran(reference.uid.as_str(), inits, context.clock.now());
        }
        if let Some(status) = context.status.as_ref().filter(|_| self.knows_the_past()) {
            self.has_told = true;
            status.set(&reference.uid, computed.status.clone());
        }
        let status = Arc::new(computed.status);
        context.roster.tell(&reference.uid, &status);
        self.last = Some(status);
        computed.phase
    }

    fn report_waits(
        &mut self,
        context: &Context,
        wish: &Desired,
        plan: &Plan,
        runtime: &PodRuntime,
        reference: &PodRef,
    ) {
        for held in &plan.held {
            let attempt = runtime.newest(&held.name).map_or(0, |newest| newest.attempt);
            if self.reported.insert(held.name.clone(), attempt) != Some(attempt) {
                let message =
                    format!("Back-off restarting failed container {} in pod {}", held.name, reference.in_full());
                let path = pod::field_path(&wish.pod, &held.name);
                context.recorder.pod(&wish.pod, path.as_deref(), EventType::Warning, "BackOff", message);
            }
        }
        if plan.waits_for_network && !self.waits_for_network {
            let why = context.pleg.health().borrow().network_problem();
            context.recorder.pod(
                &wish.pod,
                None,
                EventType::Warning,
                "NetworkNotReady",
                format!("network is not ready: {why}"),
            );
        }
        self.waits_for_network = plan.waits_for_network;
    }
}
