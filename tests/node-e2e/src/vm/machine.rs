//! The virtual machine: QEMU and its cable, both inside the world of a stack.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use super::guest::Guest;
use crate::poll::{self, Look};
use crate::provision::MachineFiles;
use crate::stack::{Stack, State};

/// Its addresses, which `vm/build-image` writes into it: no stack has a slot of that number.
pub const ADDRESS: &str = "198.18.255.2";
const GATEWAY: &str = "198.18.255.1";
pub const PODS: &str = "198.19.255.0/24";

const CABLE: &str = "vm0";
const PROGRAM: &str = "qemu";

/// Half a minute where it is alone, and more than four where it shares two CPUs with ten others.
const BOOTS_WITHIN: Duration = Duration::from_secs(480);

/// What the kernel is told, each word to save time but for the first three.
const KERNEL_WORDS: &str = "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off apparmor=0 selinux=0 audit=0 \
     modprobe.blacklist=kvm_amd,kvm_intel,powernow_k8,vmw_vmci quiet";

/// KVM where it works. Emulated CPUs take turns in one thread: with two that run at once, one of them
/// is shown code as it was before the other patched it, and the kernel panics over a breakpoint of its
/// own, such as those by which it switches the accounting of CPU quotas on when the first pod with a
/// limit comes. Nor would more threads help: there are as many machines as the host has CPUs for them.
const ACCELERATORS: &str = "-accel kvm -accel tcg,thread=single,tb-size=512";

/// Two sockets, each a NUMA node with half of the memory and two cores of two threads. An idle CPU
/// costs the host nothing.
const TOPOLOGY: &str = "-smp 8,sockets=2,cores=2,threads=2 -m 2048 \
     -object memory-backend-ram,id=near,size=1G -object memory-backend-ram,id=far,size=1G \
     -numa node,nodeid=0,cpus=0-3,memdev=near -numa node,nodeid=1,cpus=4-7,memdev=far -numa dist,src=0,dst=1,val=21";

pub async fn boot(stack: &Stack, files: &MachineFiles, payload: &Path) -> Result<Guest> {
    for line in [
        format!("tuntap add dev {CABLE} mode tap"),
        format!("address add {GATEWAY}/30 dev {CABLE}"),
        format!("link set {CABLE} up"),
        format!("route add {PODS} via {ADDRESS}"),
    ] {
        let words: Vec<&str> = std::iter::once("ip").chain(line.split(' ')).collect();
        stack.run(&words).await?;
    }
    let console = stack.log_directory().join("console.log");
    let arguments = arguments(files, payload, &console);
    let words: Vec<&str> = std::iter::once("qemu-system-x86_64").chain(arguments.iter().map(String::as_str)).collect();
    stack.start_program(PROGRAM, &words).await?;
    let guest = Guest::new(stack, &files.key);
    await_up(stack, &guest, "").await?;
    Ok(guest)
}

/// Waits until it answers, in another boot than the one given.
pub async fn await_up(stack: &Stack, guest: &Guest, boot: &str) -> Result<()> {
    poll::until("the virtual machine is up", BOOTS_WITHIN, async || {
        match stack.program_state(PROGRAM).await? {
            State::Running { .. } => {}
            ended => bail!("QEMU ended with {ended:?}; see qemu.log"),
        }
        guest.connect(stack).await?;
        Ok(match guest.boot_id().await {
            Ok(now) if now != boot => Look::Done(()),
            Ok(_) => Look::NotYet("it has not gone down yet".to_owned()),
            Err(error) => Look::NotYet(format!("{error:#}")),
        })
    })
    .await
}

fn arguments(files: &MachineFiles, payload: &Path, console: &Path) -> Vec<String> {
    // Written to nowhere: the disk is the cache's, and the next machine wants it as it is.
    let disk = |path: &Path| format!("file={},if=virtio,format=raw,snapshot=on,cache=unsafe", path.display());
    let mut arguments = [
        "-nodefaults -no-user-config -display none -machine q35".to_owned(),
        ACCELERATORS.to_owned(),
        // QEMU 7.2 leaves wrong flags behind a CMPXCHG16B, and the kernel panics over flags that nobody
        // set; it does without where there is none. Without ERMS the kernel and libc copy and clear by
        // words: emulated, string instructions go byte by byte.
        "-cpu max,-cx16,-erms".to_owned(),
        TOPOLOGY.to_owned(),
        format!("-netdev tap,id=cable,ifname={CABLE},script=no,downscript=no"),
        "-device virtio-net-pci,netdev=cable,romfile= -device virtio-rng-pci".to_owned(),
    ]
    .iter()
    .flat_map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    .collect::<Vec<_>>();
    arguments.extend(["-serial".to_owned(), format!("file:{}", console.display())]);
    arguments.extend(["-kernel".to_owned(), files.kernel.display().to_string()]);
    arguments.extend(["-initrd".to_owned(), files.initrd.display().to_string()]);
    arguments.extend(["-append".to_owned(), KERNEL_WORDS.to_owned()]);
    for path in [&*files.disk, payload] {
        arguments.extend(["-drive".to_owned(), disk(path)]);
    }
    arguments
}
