//! Where the threads of a container may run, where they do, and how much of a CPU they get, as the
//! machine's kernel tells.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use ferrolet::config::CpuSet;

use super::site::Site;
use crate::harness::{PodHandle, without_scheme};
use crate::poll::{self, Look};

pub type Cpus = BTreeSet<u32>;

/// The running container `main` of a pod.
pub struct Placed<'a> {
    site: &'a Site,
    pod: &'a PodHandle,
    /// The pod's cgroup and its own, as directories.
    pod_group: String,
    group: String,
}

/// What one thread may use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allowed {
    pub cpus: Cpus,
    pub nodes: Cpus,
}

impl<'a> Placed<'a> {
    /// `class` is the part of the path that the pod's class of service has: empty, or `/besteffort`.
    pub async fn new(site: &'a Site, pod: &'a PodHandle, class: &str) -> Result<Self> {
        let (id, _) = pod.instance().await?;
        let pod_group = format!("/sys/fs/cgroup/kubepods{class}/pod{}", pod.uid);
        let group = format!("{pod_group}/{}", without_scheme(&id));
        Ok(Placed { site, pod, pod_group, group })
    }

    /// The cgroup of the pod, with the sandbox and all containers.
    pub fn pod_group(&self) -> &str {
        &self.pod_group
    }

    /// The container's own, below that.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// What its threads may use, of which there have to be some; those that end meanwhile are none.
    pub async fn allowed(&self) -> Result<BTreeSet<Allowed>> {
        let script = format!(
            "grep -h -E '^(Cpus|Mems)_allowed_list:' $(sed 's#.*#/proc/&/task/&/status#' {}/cgroup.threads) 2>/dev/null || true",
            self.group
        );
        let told = self.site.guest.run(&script).await?;
        let lists: Vec<Cpus> = told
            .lines()
            .map(|line| cpus(line.split_once(':').map_or("", |(_, list)| list.trim())))
            .collect::<Result<_>>()?;
        let threads = lists.chunks_exact(2).map(|pair| Allowed { cpus: pair[0].clone(), nodes: pair[1].clone() });
        let threads: BTreeSet<Allowed> = threads.collect();
        ensure!(!threads.is_empty(), "no thread in {}", self.group);
        Ok(threads)
    }

    /// The same where all threads agree.
    pub async fn allowed_to_all(&self) -> Result<Allowed> {
        let allowed = self.allowed().await?;
        ensure!(allowed.len() == 1, "threads of {} differ: {allowed:?}", self.pod.name);
        Ok(allowed.into_iter().next().expect("there is one"))
    }

    /// Waits until all its threads may use these CPUs and no others.
    pub async fn expect_cpus(&self, wanted: &Cpus) -> Result<()> {
        let goal = format!("all threads of {} on CPUs {wanted:?}", self.pod.name);
        poll::until(goal, super::site::WITHIN, async || {
            let allowed = self.allowed().await?;
            Ok(match allowed.iter().all(|it| it.cpus == *wanted) {
                true => Look::Done(()),
                false => Look::NotYet(format!("{allowed:?}")),
            })
        })
        .await
    }
}

/// Containers that compute only while they are told to, as an emulated machine does nothing else then.
/// Each of so many loops is a process.
pub fn loops(count: usize) -> String {
    format!(
        "while :; do
            until [ -e /tmp/go ]; do sleep 1; done
            for it in $(seq {count}); do while [ -e /tmp/go ]; do :; done & done
            wait
        done"
    )
}

/// What was seen of containers while they computed.
#[derive(Debug)]
pub struct Seen {
    /// CPUs that the first of them had a second.
    pub share: f64,
    /// Where each of them was seen to run, in their order.
    pub ran_on: Vec<Cpus>,
}

/// Has all of these compute for some seconds. All in one script, without a command that is not the
/// shell's own while it counts: on busy CPUs that take turns, each process takes its time.
pub async fn watch(site: &Site, computing: &[&Placed<'_>]) -> Result<Seen> {
    let groups: Vec<&str> = computing.iter().map(|it| it.group.as_str()).collect();
    let (first, all) = (groups.first().context("somebody computes")?, groups.join(" "));
    let script = format!(
        r#"
        all="{all}"
        each() {{ for group in $all; do read -r pid <$group/cgroup.procs; "$1" /proc/$pid/root/tmp/go; done; }}
        used() {{ read -r _ used <{first}/cpu.stat; read -r now _ </proc/uptime; echo used $used $now; }}
        seen() {{
            number=0
            for group in $all; do
                while read -r thread; do
                    # Of field 39, counted behind the name, which is in brackets.
                    read -r line 2>/dev/null </proc/$thread/stat || continue
                    set -- ${{line##*) }}
                    [ "$1" = R ] && echo ran $number ${{37}}
                done <$group/cgroup.threads
                number=$((number + 1))
            done
            true
        }}
        each touch
        sleep 2
        used
        for it in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do sleep 0.5; seen; done
        used
        each rm"#
    );
    parse(&site.guest.run(&script).await?, computing.len())
}

fn parse(told: &str, count: usize) -> Result<Seen> {
    let (mut used, mut ran_on) = (Vec::new(), vec![Cpus::new(); count]);
    for line in told.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["used", microseconds, now] => used.push((microseconds.parse::<f64>()? / 1e6, now.parse::<f64>()?)),
            ["ran", number, cpu] => {
                ran_on.get_mut(number.parse::<usize>()?).context("one of them")?.insert(cpu.parse()?);
            }
            _ => anyhow::bail!("{line:?} in {told}"),
        }
    }
    let [(used, begin), (used_then, end)] = used[..] else { anyhow::bail!("not two looks: {told}") };
    ensure!(ran_on.iter().all(|cpus| !cpus.is_empty()), "somebody was never seen to run: {told}");
    Ok(Seen { share: (used_then - used) / (end - begin), ran_on })
}

/// From the kernel's list notation.
pub fn cpus(list: &str) -> Result<Cpus> {
    let set = CpuSet::parse(list).with_context(|| format!("read the list {list:?}"))?;
    Ok(set.iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_places_are_read_off_the_scripts_answer() {
        let told = "used 1000000 10.00\nran 0 4\nran 1 2\nran 1 3\nused 17000000 18.00\n";
        let seen = parse(told, 2).unwrap();
        assert_eq!(seen.share, 2.0);
        assert_eq!(seen.ran_on, [Cpus::from([4]), Cpus::from([2, 3])]);
        assert!(parse(told, 3).is_err(), "the third never ran");
        assert!(parse("used 1 1.0\nran 0 1\n", 1).is_err(), "one look tells no share");
    }
}
