//! Into the stack's private world: namespaces first, then what PID 1 finds in them.
//!
//! `enter` runs outside of the new PID namespace and lives until its PID 1 is gone, which the
//! kernel reports only after every process of the namespace. `furnish` runs as PID 1 and puts
//! private directories over those that node agents use, so that all of them run with their
//! default paths and nothing of the host is touched.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::sethostname;
use serde::{Deserialize, Serialize};

use super::cgroups::Layout;
use super::slot::{Slot, SlotNumber};

/// What a world is made from; travels as a command line argument.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct World {
    pub slot: SlotNumber,
    /// The name of the node, which is the host name inside.
    pub node: String,
    pub cgroups: Layout,
}

/// Kernel settings that the kubelet writes and that belong to the machine, not to a namespace.
const MACHINE_SYSCTLS: [&str; 6] = [
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
    "/proc/sys/kernel/keys/root_maxbytes",
];

/// Places where a stack has directories of its own on disk. A program or a file that a stack
/// is to use from the host must not be below them.
const PRIVATE: [&str; 2] = ["/var/lib", "/var/log"];

/// Whether `path` of the host can be seen from inside.
pub fn is_visible(path: &Path) -> bool {
    let hidden = PRIVATE.into_iter().chain(["/run", "/var/run", "/sys", "/proc"]);
    !hidden.into_iter().any(|place| path.starts_with(place))
}

/// Enters fresh namespaces, starts their PID 1 and lasts as long as it does.
pub fn enter(world: &World, mut init: Command) -> Result<ExitCode> {
    // Held until PID 1 is gone, so that nobody sweeps while processes are still dying.
    let _slot = Slot::hold(world.slot)?;
    world.cgroups.join(world.slot)?;
    unshare(
        CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWCGROUP
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )
    .context("enter namespaces of its own")?;
    world.cgroups.join_leaf(world.slot)?;
    let mut init = init.spawn().context("start PID 1")?;
    println!("pid {}", init.id());
    let status = init.wait()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Everything PID 1 does before it serves.
pub fn furnish(world: &World) -> Result<()> {
    sethostname(&world.node).context("set the host name")?;
    remount("/", MsFlags::MS_PRIVATE)?;

    // Instead of the host's, not on top of them: whoever looks for the cgroup mounts in the
    // mount table takes the first it finds.
    detach("/proc")?;
    mount_new("proc", "/proc", None)?;
    detach("/sys")?;
    mount_new("sysfs", "/sys", None)?;
    world.cgroups.mount()?;
    mount_new("tmpfs", "/run", Some("mode=755"))?;

    // Whoever makes users of its own may mount these two only where the mount namespace shows a
    // whole one already, with nothing hidden as in the other.
    for (kind, place) in [("proc", "/run/stack/whole/proc"), ("sysfs", "/run/stack/whole/sys")] {
        fs::create_dir_all(place)?;
        mount_new(kind, place, None)?;
    }
    shadow_machine_sysctls()?;
    for place in PRIVATE {
        let own = world.slot.directory().join("node").join(&place[1..]);
        fs::create_dir_all(&own)?;
        bind(&own, Path::new(place))?;
    }
    furnish_etc(world)?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("enable forwarding")?;

    // Volumes with mount propagation need a shared root, as systemd makes it on a real node.
    remount("/", MsFlags::MS_SHARED)
}

/// /etc is the host's with changes on top, because programs look up users, certificates and
/// services there.
fn furnish_etc(world: &World) -> Result<()> {
    let scratch = Path::new("/run/stack/etc");
    let (upper, work) = (scratch.join("upper"), scratch.join("work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let options = format!("lowerdir=/etc,upperdir={},workdir={}", upper.display(), work.display());
    mount_new("overlay", "/etc", Some(&options))?;

    for directory in ["/etc/cni", "/etc/kubernetes", "/etc/containerd"] {
        absent_is_fine(fs::remove_dir_all(directory)).with_context(|| format!("clear {directory}"))?;
        fs::create_dir(directory)?;
    }
    // Often a link to where a resolver daemon of the host writes it.
    absent_is_fine(fs::remove_file("/etc/resolv.conf"))?;
    fs::write("/etc/resolv.conf", format!("nameserver {}\nsearch ferrolet.test\n", world.slot.host_address()))?;
    fs::write("/etc/hosts", format!("127.0.0.1 localhost\n{} {}\n", world.slot.node_address(), world.node))?;
    Ok(())
}

/// Puts plain files with the present values over the settings.
fn shadow_machine_sysctls() -> Result<()> {
    let shadows = Path::new("/run/stack/sysctl");
    for setting in MACHINE_SYSCTLS {
        let value = match fs::read(setting) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            value => value.with_context(|| format!("read {setting}"))?,
        };
        let shadow = shadows.join(setting.trim_start_matches('/'));
        fs::create_dir_all(shadow.parent().expect("it was joined to a directory"))?;
        fs::write(&shadow, value)?;
        bind(&shadow, Path::new(setting))?;
    }
    Ok(())
}

fn absent_is_fine(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn mount_new(kind: &str, target: &str, options: Option<&str>) -> Result<()> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("mount {kind} on {target}"))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&PathBuf>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&PathBuf>)
        .with_context(|| format!("bind {} to {}", from.display(), to.display()))
}

/// Takes all that is mounted on `target` out of this namespace.
fn detach(target: &str) -> Result<()> {
    loop {
        match umount2(target, MntFlags::MNT_DETACH) {
            Ok(()) => continue,
            Err(Errno::EINVAL) => return Ok(()), // nothing is mounted there any more
            Err(error) => return Err(error).with_context(|| format!("unmount {target}")),
        }
    }
}

fn remount(target: &str, propagation: MsFlags) -> Result<()> {
    let none = None::<&PathBuf>;
    mount(none, target, none, propagation | MsFlags::MS_REC, none)
        .with_context(|| format!("change the propagation of {target}"))
}
