//! The pods of a run: how they are drawn. `pods/lots.rs` says what has to become of each;
//! `pods/manners.rs` draws their probes and hooks, `pods/rare.rs` what few pods ask for.

mod lots;
pub mod manners;
pub mod rare;

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, ContainerResizePolicy, EmptyDirVolumeSource, Pod, PodSpec, ResourceRequirements,
    Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use self::lots::{Lot, PodLot, init_passes, is_noisy, is_refused, lot, pod_lot, ready_in_the_end};
use crate::pins;
use crate::programs::Program;
use crate::runtime::{INIT_ANNOTATION, SIDECAR_PREFIX, SIDECAR_SLOT};

pub const NAMESPACE: &str = "sim";
pub const MAP_VOLUME: &str = "map";
pub const CONFIG_MAPS: [&str; 3] = ["map-a", "map-b", "map-c"];
const POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];

/// A pod as a user might write it.
pub fn draw(random: &mut fastrand::Rng, name: &str, uid: &str) -> Pod {
    let policy = if random.u32(0..3) == 0 { POLICIES[random.usize(..POLICIES.len())] } else { "Always" };
    let mut volumes = Vec::new();
    if random.u32(0..4) == 0 {
        volumes.push(Volume {
            name: "empty".into(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        });
    }
    if random.u32(0..4) == 0 {
        let map = CONFIG_MAPS[random.usize(..CONFIG_MAPS.len())];
        let source = ConfigMapVolumeSource { name: map.into(), ..ConfigMapVolumeSource::default() };
        volumes.push(Volume { name: MAP_VOLUME.into(), config_map: Some(source), ..Volume::default() });
    }
    rare::draw_volumes(random, &mut volumes);
    let mounts: Vec<_> = volumes
        .iter()
        .map(|volume| VolumeMount {
            name: volume.name.clone(),
            mount_path: format!("/{}", volume.name),
            ..VolumeMount::default()
        })
        .collect();
    if random.u32(0..3) == 0 {
        // For whoever debugs the pod.
        let empty_dir = Some(EmptyDirVolumeSource::default());
        volumes.push(Volume { name: rare::SPARE_VOLUME.into(), empty_dir, ..Volume::default() });
    }
    let volumes = (!volumes.is_empty()).then_some(volumes);
    let container = |name: String, program: Program, random: &mut fastrand::Rng| Container {
        name,
        image: Some(format!("image-{}", random.u32(0..4))),
        image_pull_policy: Some(if random.bool() { "Always" } else { "IfNotPresent" }.into()),
        command: Some(program.to_command()),
        volume_mounts: Some(mounts.clone()),
        resources: random.bool().then(|| requests("10m")),
        termination_message_path: Some("/dev/termination-log".into()),
        termination_message_policy: Some("File".into()),
        ..Container::default()
    };
    // Whether anyone wants to know how it is.
    let is_asked = random.u32(0..3) == 0;
    let containers = (0..random.u16(1..=3)).map(|index| {
        let program = draw_program(random);
        let mut drawn = container(format!("c{index}"), program.clone(), random);
        if is_asked {
            manners::give(random, &mut drawn, index, &program);
        }
        drawn
    });
    let mut containers: Vec<_> = containers.collect();
    if policy != "Never" && random.u32(0..3) == 0 {
        let policy =
            ContainerResizePolicy { resource_name: "memory".into(), restart_policy: "RestartContainer".into() };
        containers[0].resize_policy = Some(vec![policy]);
    }
    let inits = if random.u32(0..4) == 0 { random.usize(1..=2) } else { 0 };
    let inits: Vec<_> = (0..inits)
        .map(|index| {
            let code = i32::from(random.u32(0..8) == 0);
            let after = Duration::from_millis(random.u64(0..5000));
            container(format!("i{index}"), Program::Exits { code, after }, random)
        })
        .collect();
    if random.u32(0..20) == 0 {
        // More than any machine has.
        containers[0].resources = Some(requests("1000"));
    }
    let mut inits = inits;
    let init_names: Vec<_> = inits.iter().map(|container| container.name.clone()).collect();
    // Sidecars stand among the init containers, wherever they like.
    if random.u32(0..6) == 0 {
        for index in 0..random.u16(1..=2) {
            let mut sidecar = container(format!("{SIDECAR_PREFIX}{index}"), Program::Forever, random);
            if is_asked {
                manners::give(random, &mut sidecar, SIDECAR_SLOT + index, &Program::Forever);
            }
            let at = random.usize(..=inits.len());
            inits.insert(at, Container { restart_policy: Some("Always".into()), ..sidecar });
        }
    }
    let mut pod = Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some(NAMESPACE.into()),
            uid: Some(uid.into()),
            generation: Some(1),
            annotations: (!init_names.is_empty()).then(|| [(INIT_ANNOTATION.to_owned(), init_names.join(","))].into()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers,
            init_containers: (!inits.is_empty()).then_some(inits),
            restart_policy: Some(policy.into()),
            termination_grace_period_seconds: Some(random.i64(1..40)),
            volumes,
            enable_service_links: Some(random.bool()),
            host_users: (random.u32(0..4) == 0).then_some(false),
            ..PodSpec::default()
        }),
        status: None,
    };
    rare::give(random, &mut pod);
    // One that ends by itself may do so at the same moment, and who can tell then how it ended.
    if random.u32(0..8) == 0 && !matches!(pod_lot(&pod), PodLot::Ends { .. }) {
        let seconds = random.i64(1..200);
        pod.spec.as_mut().expect("drawn with a spec").active_deadline_seconds = Some(seconds);
    }
    pod
}

fn requests(cpu: &str) -> ResourceRequirements {
    ResourceRequirements {
        requests: Some([("cpu".to_owned(), Quantity(cpu.into()))].into()),
        ..ResourceRequirements::default()
    }
}

/// More than all pods that are resized may have together, in the largest of these amounts.
const RESIZED_MEMORY_MI: [u32; 4] = [16, 512, 2048, 5000];

/// Other resources for a container, after which its pod is neither of the best-effort class
/// nor guaranteed. New pods ask for CPU and find some: there is always enough of it.
pub fn draw_resize(random: &mut fastrand::Rng) -> ResourceRequirements {
    let mut amounts = requests(["10m", "20m", "40m"][random.usize(..3)]);
    let memory = RESIZED_MEMORY_MI[random.usize(..RESIZED_MEMORY_MI.len())];
    amounts.requests.get_or_insert_default().insert("memory".into(), Quantity(format!("{memory}Mi")));
    let limit = Quantity(format!("{}Mi", memory * 2));
    amounts.limits = Some([("memory".to_owned(), limit)].into());
    amounts
}

/// The API server lets a pod be resized that has not ended, and stays in its class by that. Here
/// the node has taken it besides: what it wishes for before is what it has to find room for.
pub fn may_be_resized(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let is_taken = pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
    if !is_taken || pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed")) {
        return false;
    }
    let mut containers = inits(pod).iter().chain(&spec(pod).containers);
    let is_burstable = spec(pod).resources.is_some() || containers.any(|container| container.resources.is_some());
    let is_burstable = is_burstable && !pins::is_guaranteed(pod);
    is_burstable && !is_refused(pod) && pod.metadata.uid.as_deref().is_some_and(|uid| uid.starts_with("uid-"))
}

/// The spec, about to be changed.
pub fn next_generation(pod: &mut Pod) -> &mut PodSpec {
    pod.metadata.generation = pod.metadata.generation.map(|generation| generation + 1);
    pod.spec.as_mut().expect("every drawn pod has a spec")
}

/// Init containers first.
pub fn container_mut(pod: &mut Pod, index: usize) -> &mut Container {
    let spec = pod.spec.as_mut().expect("every drawn pod has a spec");
    let mut all = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
    all.nth(index).expect("an index below their number")
}

pub fn restarts_for_memory(pod: &Pod, index: usize) -> bool {
    inits(pod).iter().chain(&spec(pod).containers).nth(index).is_some_and(|container| container.resize_policy.is_some())
}

fn draw_program(random: &mut fastrand::Rng) -> Program {
    match random.u32(0..11) {
        0 => Program::Stubborn,
        1 => Program::Broken,
        2 | 3 => Program::Exits { code: random.i32(0..3), after: Duration::from_millis(random.u64(0..3000)) },
        4 => Program::Exits { code: random.i32(0..2), after: Duration::from_secs(random.u64(0..120)) },
        5 => Program::Chatty { every: Duration::from_millis(random.u64(500..5000)) },
        _ => Program::Forever,
    }
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn spec(pod: &Pod) -> &PodSpec {
    pod.spec.as_ref().expect("every drawn pod has a spec")
}

pub fn own_grace(pod: &Pod) -> i64 {
    spec(pod).termination_grace_period_seconds.unwrap_or(30)
}

pub fn policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}

/// The most CPU that a pod as written can count for, in thousandths.
pub fn milli_cpus(pod: &Pod) -> u64 {
    let cpu = |resources: Option<&ResourceRequirements>| {
        let cpu = resources.and_then(|resources| resources.requests.as_ref()?.get("cpu").cloned());
        let Some(Quantity(text)) = cpu else { return 0 };
        match text.strip_suffix('m') {
            Some(thousandths) => thousandths.parse().unwrap_or(0),
            None => text.parse::<u64>().unwrap_or(0) * 1000,
        }
    };
    let containers = inits(pod).iter().chain(&spec(pod).containers);
    containers.map(|container| cpu(container.resources.as_ref())).sum::<u64>().max(cpu(spec(pod).resources.as_ref()))
}

/// Names of the containers that nothing starts again, whatever becomes of them.
pub fn never_restarted(pod: &Pod) -> impl Iterator<Item = String> {
    let is_so = policy(pod) == "Never" && !rare::may_restart_all(pod);
    spec(pod).containers.iter().filter(move |_| is_so).map(|container| container.name.clone())
}

pub fn inits(pod: &Pod) -> &[Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}
