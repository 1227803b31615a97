//! What few pods ask for: readiness gates, a restart of all containers, signals and resources of
//! their own, and containers to debug them with.

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    ConfigMapKeySelector, ConfigMapProjection, Container, ContainerRestartRule, ContainerRestartRuleOnExitCodes,
    EnvVar, EnvVarSource, EphemeralContainer, Pod, PodCondition, PodOS, PodReadinessGate, PodSpec,
    ProjectedVolumeSource, ResourceRequirements, SecretVolumeSource, ServiceAccountTokenProjection, Volume,
    VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{CONFIG_MAPS, Lot, PodLot, draw_program, inits, is_refused, lot, pod_lot, spec};
use crate::cluster::MAP_KEY;
use crate::programs::{Manners, Program, RESTART_ALL_CODE};
use crate::runtime::{DEBUGGER_PREFIX, SIDECAR_PREFIX};

/// Conditions that pods may wait for; they are for others to write.
const GATES: [&str; 2] = ["sim/gate-a", "sim/gate-b"];
/// A condition that nobody waits for.
const REMARK: &str = "sim/remark";
const SIGNALS: [&str; 3] = ["SIGTERM", "SIGUSR1", "SIGRTMIN+2"];
const DEBUGGERS_MAX: usize = 3;
pub const SECRET_VOLUME: &str = "secret";
/// One of a token and, often, something else.
pub const TOKEN_VOLUME: &str = "token";
pub const TOKEN_FILE: &str = "token";
/// A volume that the containers of its pod do not mount.
pub const SPARE_VOLUME: &str = "spare";
/// The least that the API server grants.
const TOKEN_SECONDS: i64 = 600;

/// Volumes of a Secret, and of a token. Each ConfigMap has a Secret of its name.
pub fn draw_volumes(random: &mut fastrand::Rng, volumes: &mut Vec<Volume>) {
    let mut name = || CONFIG_MAPS[random.usize(..CONFIG_MAPS.len())].to_owned();
    let (of_secret, beside_token) = (name(), name());
    if random.u32(0..8) == 0 {
        let secret = SecretVolumeSource { secret_name: Some(of_secret), ..SecretVolumeSource::default() };
        volumes.push(Volume { name: SECRET_VOLUME.into(), secret: Some(secret), ..Volume::default() });
    }
    if random.u32(0..8) == 0 {
        let token = ServiceAccountTokenProjection {
            path: TOKEN_FILE.into(),
            expiration_seconds: Some(TOKEN_SECONDS),
            ..ServiceAccountTokenProjection::default()
        };
        let mut sources = vec![VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() }];
        if random.bool() {
            let map = ConfigMapProjection { name: beside_token, ..ConfigMapProjection::default() };
            sources.push(VolumeProjection { config_map: Some(map), ..VolumeProjection::default() });
        }
        let projected = ProjectedVolumeSource { sources: Some(sources), ..ProjectedVolumeSource::default() };
        volumes.push(Volume { name: TOKEN_VOLUME.into(), projected: Some(projected), ..Volume::default() });
    }
}

pub fn give(random: &mut fastrand::Rng, pod: &mut Pod) {
    if random.u32(0..6) == 0 {
        let gates = GATES[random.usize(..GATES.len())..].iter();
        let gates = gates.map(|gate| PodReadinessGate { condition_type: (*gate).to_owned() });
        spec_mut(pod).readiness_gates = Some(gates.collect());
    }
    if random.u32(0..6) == 0 {
        give_restart_all(random, pod);
    }
    if random.u32(0..6) == 0 {
        spec_mut(pod).os = Some(PodOS { name: "linux".into() });
        for container in containers_mut(pod) {
            if random.bool() {
                let signal = SIGNALS[random.usize(..SIGNALS.len())];
                container.lifecycle.get_or_insert_default().stop_signal = Some(signal.into());
                let args = container.args.get_or_insert_default();
                args.push(Manners::of_signal(signal));
            }
        }
    }
    if random.u32(0..6) == 0 && !is_refused(pod) {
        let (cpu, limit) = (*random.choice(&["100m", "150m"]).expect("not empty"), random.bool());
        spec_mut(pod).resources = Some(as_a_whole(cpu, "0", limit.then_some("256Mi")));
    }
}

/// Resources of a pod as a whole, of which the largest are more than a pod can have.
pub fn draw_resize_of_whole(random: &mut fastrand::Rng) -> ResourceRequirements {
    let cpu = ["100m", "150m", "200m"][random.usize(..3)];
    let memory = [64, 512, 2048, 5000][random.usize(..4)];
    as_a_whole(cpu, &format!("{memory}Mi"), Some(&format!("{}Mi", memory * 2)))
}

fn as_a_whole(cpu: &str, memory: &str, memory_limit: Option<&str>) -> ResourceRequirements {
    let list = |cpu: &str, memory: &str| {
        [("cpu".to_owned(), Quantity(cpu.into())), ("memory".to_owned(), Quantity(memory.into()))].into()
    };
    ResourceRequirements {
        requests: Some(list(cpu, memory)),
        limits: memory_limit.map(|memory| list("400m", memory)),
        claims: None,
    }
}

/// One container ends, a few times or for ever, with the code for which all begin anew.
fn give_restart_all(random: &mut fastrand::Rng, pod: &mut Pod) {
    // How one ends that ends by itself is not for probes to say.
    let is_asked = |container: &Container| container.startup_probe.is_some() || container.liveness_probe.is_some();
    let is_sidecar = |container: &Container| container.name.starts_with(SIDECAR_PREFIX);
    let regular_from = inits(pod).len();
    let mut candidates: Vec<(usize, &mut Container)> = containers_mut(pod).enumerate().collect();
    candidates.retain(|(index, container)| !is_asked(container) && (*index >= regular_from || is_sidecar(container)));
    if candidates.is_empty() {
        return;
    }
    let (index, container) = candidates.swap_remove(random.usize(..candidates.len()));
    let after = Duration::from_millis(random.u64(0..60_000));
    // What a pod is for may never get done beside a sidecar that never stays.
    let times = if index < regular_from { random.u32(1..=3) } else { random.u32(0..=3) };
    container.command = Some(Program::RestartsAll { after, times }.to_command());
    if index >= regular_from {
        container.restart_policy = Some(if random.bool() { "Always" } else { "OnFailure" }.into());
    }
    let codes = ContainerRestartRuleOnExitCodes { operator: "In".into(), values: Some(vec![RESTART_ALL_CODE]) };
    let rule = ContainerRestartRule { action: "RestartAllContainers".into(), exit_codes: Some(codes) };
    container.restart_policy_rules = Some(vec![rule]);
}

/// Whether some container of the pod may end so that all begin anew.
pub fn may_restart_all(pod: &Pod) -> bool {
    inits(pod).iter().chain(&spec(pod).containers).any(|container| container.restart_policy_rules.is_some())
}

/// Whether all containers begin anew again and again, so that none of them stays.
pub fn restarts_for_ever(pod: &Pod) -> bool {
    let program = |container: &Container| Program::from_command(container.command.as_deref().unwrap_or_default());
    spec(pod).containers.iter().any(|container| matches!(program(container), Program::RestartsAll { times: 0, .. }))
}

/// A condition that others write on this pod: the type, and `None` to take it away.
pub fn draw_condition(random: &mut fastrand::Rng, pod: &Pod) -> (String, Option<&'static str>) {
    let gates = spec(pod).readiness_gates.as_deref().unwrap_or_default();
    let kind = match random.choice(gates) {
        Some(gate) if random.u32(0..5) > 0 => gate.condition_type.clone(),
        _ => REMARK.to_owned(),
    };
    let status = [Some("True"), Some("True"), Some("True"), Some("False"), Some("Unknown"), None];
    (kind, status[random.usize(..status.len())])
}

/// Whether others let the pod be ready.
pub fn gates_are_open(pod: &Pod, conditions: &[PodCondition]) -> bool {
    let mut gates = spec(pod).readiness_gates.iter().flatten();
    gates.all(|gate| conditions.iter().any(|told| told.type_ == gate.condition_type && told.status == "True"))
}

pub fn debuggers(pod: &Pod) -> &[EphemeralContainer] {
    spec(pod).ephemeral_containers.as_deref().unwrap_or_default()
}

pub fn draw_debugger(random: &mut fastrand::Rng, pod: &Pod) -> Option<EphemeralContainer> {
    let number = debuggers(pod).len();
    if number == DEBUGGERS_MAX {
        return None;
    }
    // Whose processes it looks at must be there.
    let runs = |container: &&Container| pod_lot(pod) == PodLot::Runs && lot(pod, container) == Lot::Runs;
    let targets: Vec<&str> =
        spec(pod).containers.iter().filter(runs).map(|container| container.name.as_str()).collect();
    let target = random.choice(targets).filter(|_| random.bool());
    // It may want what nobody else in the pod does.
    let mut volumes = spec(pod).volumes.iter().flatten();
    let spare = volumes.any(|volume| volume.name == SPARE_VOLUME) && random.bool();
    let mount = spare.then(|| VolumeMount {
        name: SPARE_VOLUME.into(),
        mount_path: format!("/{SPARE_VOLUME}"),
        ..VolumeMount::default()
    });
    let map = random.bool().then(|| CONFIG_MAPS[random.usize(..CONFIG_MAPS.len())].to_owned());
    let text = map.map(|name| {
        let key = ConfigMapKeySelector { name, key: MAP_KEY.into(), ..ConfigMapKeySelector::default() };
        let source = EnvVarSource { config_map_key_ref: Some(key), ..EnvVarSource::default() };
        EnvVar { name: "TEXT".into(), value_from: Some(source), ..EnvVar::default() }
    });
    Some(EphemeralContainer {
        name: format!("{DEBUGGER_PREFIX}{number}"),
        image: Some(format!("image-{}", random.u32(0..4))),
        image_pull_policy: Some("IfNotPresent".into()),
        command: Some(draw_program(random).to_command()),
        target_container_name: target.map(str::to_owned),
        volume_mounts: mount.map(|mount| vec![mount]),
        env: text.map(|text| vec![text]),
        termination_message_path: Some("/dev/termination-log".into()),
        termination_message_policy: Some("File".into()),
        ..EphemeralContainer::default()
    })
}

/// The signal that ends a container, if it wishes for one of its own.
pub fn stop_signal(container: &Container) -> Option<&str> {
    container.lifecycle.as_ref()?.stop_signal.as_deref()
}

fn spec_mut(pod: &mut Pod) -> &mut PodSpec {
    pod.spec.as_mut().expect("every drawn pod has a spec")
}

/// Init containers first.
fn containers_mut(pod: &mut Pod) -> impl Iterator<Item = &mut Container> {
    let spec = spec_mut(pod);
    spec.init_containers.iter_mut().flatten().chain(&mut spec.containers)
}
