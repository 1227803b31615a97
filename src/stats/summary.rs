//! `/stats/summary` from what was read. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use super::cgroup::{Figures, Spec, Stall, Waiting};
use super::disks::{FileSystem, PodDisk, PodLogs};
use super::network::Interface;
use super::places;
use super::shape::{
    Container, Cpu, Fs, Io, Memory, Network, Node, Pod, PodReference, Processes, Psi, PsiShare, Rlimit, Runtime,
    Seconds, Summary, Swap, Usage, Volume,
};
use super::survey::{Cgroup, Instance, PodSurvey, ROOT, Survey};
use super::text::NANOSECONDS_A_MICROSECOND;
use crate::cri::{ContainerId, FilesystemUsage};
use crate::host::disk_usage::DiskUsage;
use crate::pod::PodUid;

const DEFAULT_INTERFACE: &str = "eth0";

/// What of it disks tell. Each part may be missing.
#[derive(Default)]
pub struct OfDisks {
    pub node: Option<FileSystem>,
    /// What the runtime says of its images, and the file system they are on.
    pub images: Option<(FilesystemUsage, Option<FileSystem>)>,
    pub layers: Arc<HashMap<ContainerId, FilesystemUsage>>,
    pub volumes: HashMap<PodUid, Arc<PodDisk>>,
    pub logs: Arc<HashMap<PodUid, PodLogs>>,
}

/// What the summary is made of.
pub struct Sources<'a> {
    pub node_name: &'a str,
    pub survey: &'a Survey,
    /// `None` for the short form.
    pub disks: Option<&'a OfDisks>,
    pub unix_seconds: i64,
    /// When this agent began.
    pub began_unix_seconds: i64,
    /// The cgroups of the node's own parts, by upstream's names of them.
    pub system: &'a [(&'static str, String)],
}

pub fn build(sources: &Sources<'_>) -> Summary {
    let pods = sources.survey.pods.iter().map(|pod| of_pod(pod, sources)).collect();
    Summary { node: of_node(sources), pods }
}

fn of_node(sources: &Sources<'_>) -> Node {
    let Sources { survey, disks, .. } = sources;
    let (root, machine) = (survey.level(ROOT), &survey.machine);
    let time = Seconds(sources.unix_seconds);
    let is_whole = disks.is_some();
    let started = match is_whole {
        true => machine.boot_unix_seconds,
        false => root.and_then(|root| root.created_unix_seconds),
    };
    let parts = sources.system.iter().filter_map(|(name, id)| Some((*name, survey.level(id)?)));
    let system = parts.chain(survey.kubepods().map(|kubepods| ("pods", kubepods))).map(|(name, cgroup)| Container {
        name: name.to_owned(),
        start_time: match name {
            // Its cgroup may be that of an agent before.
            places::KUBELET => Some(Seconds(sources.began_unix_seconds)),
            _ => cgroup.created_unix_seconds.map(Seconds),
        },
        usage: usage(Some(cgroup), is_whole),
        rootfs: None,
        logs: None,
    });
    let node_fs = disks.and_then(|disks| disks.node);
    Node {
        node_name: sources.node_name.to_owned(),
        system_containers: system.collect(),
        start_time: started.map(Seconds),
        usage: usage(root, is_whole),
        network: is_whole.then(|| network(&machine.interfaces, time)).flatten(),
        fs: node_fs.map(|fs| of_file_system(fs, time)),
        runtime: disks.and_then(|disks| runtime(disks.images.as_ref()?, time)),
        rlimit: is_whole.then_some(Rlimit { time, maxpid: machine.processes_max, curproc: machine.tasks }),
    }
}

fn of_pod(pod: &PodSurvey, sources: &Sources<'_>) -> Pod {
    let time = Seconds(sources.unix_seconds);
    let disks = sources.disks;
    let containers = pod.containers.iter().map(|container| of_container(container, pod, sources));
    let containers: Vec<Container> = containers.collect();
    let counts: Vec<u64> = pod.containers.iter().filter_map(|container| container.cgroup.as_ref()?.processes).collect();
    let processes = disks.is_some() && !counts.is_empty();
    Pod {
        pod_ref: PodReference {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            uid: pod.uid.as_str().to_owned(),
        },
        start_time: Seconds(pod.created_at.as_second()),
        usage: usage(pod.whole().as_deref(), disks.is_some()),
        network: disks.and_then(|_| network(&pod.network, time)),
        volume: disks.map(|disks| volumes(&pod.uid, disks, time)).unwrap_or_default(),
        ephemeral_storage: disks.and_then(|disks| ephemeral_storage(pod, &containers, disks, time)),
        process_stats: processes.then(|| Processes { process_count: counts.iter().sum() }),
        containers,
    }
}

fn of_container(container: &Instance, pod: &PodSurvey, sources: &Sources<'_>) -> Container {
    let time = Seconds(sources.unix_seconds);
    let rootfs = sources.disks.and_then(|disks| {
        let layer = disks.layers.get(&ContainerId::new(&container.id))?;
        let on = disks.images.as_ref().filter(|(images, _)| images.mountpoint == layer.mountpoint);
        Some(of_usage(layer.used_bytes, layer.inodes_used, on.and_then(|(_, fs)| *fs), time))
    });
    let logs = sources.disks.and_then(|disks| {
        let logs = disks.logs.get(&pod.uid)?.containers.get(&container.name)?;
        Some(of_usage(logs.bytes, logs.inodes, disks.node, time))
    });
    Container {
        name: container.name.clone(),
        start_time: Some(Seconds(container.created_at.as_second())),
        usage: usage(container.cgroup.as_ref(), sources.disks.is_some()),
        rootfs,
        logs,
    }
}

/// What the pod may use of the node's disk, and has used.
fn ephemeral_storage(pod: &PodSurvey, containers: &[Container], disks: &OfDisks, time: Seconds) -> Option<Fs> {
    let node = disks.node?;
    let of_containers = containers.iter().flat_map(|container| [container.rootfs, container.logs]).flatten();
    let mut sum: DiskUsage = of_containers.map(|fs| DiskUsage { bytes: fs.used_bytes, inodes: fs.inodes_used }).sum();
    if let Some(disk) = disks.volumes.get(&pod.uid) {
        sum += disk.volumes.iter().filter(|volume| volume.is_ephemeral).map(|volume| volume.usage).sum();
        sum += disk.etc_hosts;
    }
    if let Some(own) = disks.logs.get(&pod.uid).and_then(|logs| logs.own) {
        sum += own;
    }
    Some(of_usage(sum.bytes, sum.inodes, Some(node), time))
}

fn volumes(uid: &PodUid, disks: &OfDisks, time: Seconds) -> Vec<Volume> {
    let volumes = disks.volumes.get(uid).map(|disk| disk.volumes.as_slice()).unwrap_or_default();
    let all = volumes.iter().map(|volume| Volume {
        name: volume.name.clone(),
        fs: of_usage(volume.usage.bytes, volume.usage.inodes, Some(volume.file_system), time),
    });
    all.collect()
}

fn runtime((images, fs): &(FilesystemUsage, Option<FileSystem>), time: Seconds) -> Option<Runtime> {
    let image_fs = of_usage(images.used_bytes, images.inodes_used, *fs, time);
    Some(Runtime { image_fs, container_fs: image_fs })
}

fn of_file_system(fs: FileSystem, time: Seconds) -> Fs {
    of_usage(fs.used, fs.inodes.saturating_sub(fs.inodes_free), Some(fs), time)
}

fn of_usage(used_bytes: u64, inodes_used: u64, fs: Option<FileSystem>, time: Seconds) -> Fs {
    Fs {
        time,
        available_bytes: fs.map(|fs| fs.available),
        capacity_bytes: fs.map(|fs| fs.capacity),
        used_bytes,
        inodes_free: fs.map(|fs| fs.inodes_free),
        inodes: fs.map(|fs| fs.inodes),
        inodes_used,
    }
}

fn network(interfaces: &[Interface], time: Seconds) -> Option<Network> {
    let interfaces = interfaces.iter().map(|interface| super::shape::Interface {
        name: interface.name.clone(),
        rx_bytes: interface.received.bytes,
        rx_errors: interface.received.errors,
        tx_bytes: interface.sent.bytes,
        tx_errors: interface.sent.errors,
    });
    let interfaces: Vec<_> = interfaces.collect();
    let default = interfaces.iter().find(|interface| interface.name == DEFAULT_INTERFACE).cloned();
    (!interfaces.is_empty()).then_some(Network { time, default, interfaces })
}

fn usage(cgroup: Option<&Cgroup>, is_whole: bool) -> Usage {
    let Some(cgroup) = cgroup else { return Usage::default() };
    let (figures, spec) = (&cgroup.figures, &*cgroup.spec);
    let time = Seconds(figures.unix_millis.div_euclid(1000));
    let pressure = figures.pressure.as_ref();
    Usage {
        cpu: Some(Cpu {
            time,
            usage_nano_cores: cgroup.cpu_rate,
            usage_core_nano_seconds: figures.cpu.usage_ns,
            psi: pressure.map(|pressure| psi(pressure.cpu)),
        }),
        memory: Some(memory(figures, spec, time)),
        io: pressure.filter(|_| is_whole).map(|pressure| Io { time, psi: psi(pressure.io) }),
        swap: figures.memory.swap.map(|_| swap(figures, spec, time)),
    }
}

fn memory(figures: &Figures, spec: &Spec, time: Seconds) -> Memory {
    let found = &figures.memory;
    let available = spec.memory_limit.zip(found.working_set);
    Memory {
        time,
        available_bytes: available.map(|(limit, used)| limit.saturating_sub(used)),
        usage_bytes: found.usage,
        working_set_bytes: found.working_set,
        rss_bytes: found.rss,
        page_faults: found.faults.all,
        major_page_faults: found.faults.major,
        psi: figures.pressure.as_ref().map(|pressure| psi(pressure.memory)),
    }
}

fn swap(figures: &Figures, spec: &Spec, time: Seconds) -> Swap {
    let used = figures.memory.swap;
    let available = spec.swap_limit.zip(used).map(|(limit, used)| limit.saturating_sub(used));
    Swap { time, swap_available_bytes: available, swap_usage_bytes: used }
}

fn psi(stall: Stall) -> Psi {
    let share = |waiting: Waiting| PsiShare {
        total: waiting.total_us.saturating_mul(NANOSECONDS_A_MICROSECOND),
        avg10: waiting.avg10,
        avg60: waiting.avg60,
        avg300: waiting.avg300,
    };
    Psi { full: share(stall.full), some: share(stall.some) }
}
