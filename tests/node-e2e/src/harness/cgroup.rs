//! A pod's cgroup as it is on the node, in the units of version 1.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use ferrolet::cri::ContainerId;

use super::PodHandle;

pub struct PodCgroup {
    root: PathBuf,
    /// Below the root of a hierarchy.
    path: String,
}

impl PodCgroup {
    /// By the cgroupfs driver. `qos` is the pod's class as the API has it.
    pub fn of(pod: &PodHandle, qos: &str) -> PodCgroup {
        let class = match qos {
            "Guaranteed" => String::new(),
            class => format!("{}/", class.to_lowercase()),
        };
        let root = pod.node.stack().on_node("/sys/fs/cgroup");
        PodCgroup { root, path: format!("kubepods/{class}pod{}", pod.uid) }
    }

    /// That of one container of the pod.
    pub fn of_container(&self, id: &ContainerId) -> PodCgroup {
        PodCgroup { root: self.root.clone(), path: format!("{}/{id}", self.path) }
    }

    /// The processes right in it.
    pub fn processes(&self) -> Result<Vec<u32>> {
        self.text("memory", "cgroup.procs")?.lines().map(|pid| Ok(pid.trim().parse()?)).collect()
    }

    pub fn exists(&self) -> bool {
        self.file("memory", "cgroup.procs").exists()
    }

    pub fn cpu_shares(&self) -> Result<u64> {
        if !self.is_v2() {
            return self.number("cpu", "cpu.shares");
        }
        // The way back of the formula by which shares become a weight.
        let weight = self.number("cpu", "cpu.weight")?;
        Ok((weight - 1) * 262142 / 9999 + 2)
    }

    /// In microseconds of a period of 100 ms; None without a limit.
    pub fn cpu_quota(&self) -> Result<Option<u64>> {
        let text = match self.is_v2() {
            true => self.text("cpu", "cpu.max")?.split(' ').next().unwrap_or_default().to_owned(),
            false => self.text("cpu", "cpu.cfs_quota_us")?,
        };
        match text.as_str() {
            "-1" | "max" => Ok(None),
            quota => Ok(Some(quota.parse()?)),
        }
    }

    /// None without a limit.
    pub fn memory_limit(&self) -> Result<Option<u64>> {
        if self.is_v2() {
            return match self.text("memory", "memory.max")?.as_str() {
                "max" => Ok(None),
                limit => Ok(Some(limit.parse()?)),
            };
        }
        // Without a limit, version 1 tells the largest number of whole pages.
        let limit = self.number("memory", "memory.limit_in_bytes")?;
        Ok((limit < 1 << 62).then_some(limit))
    }

    pub fn is_v2(&self) -> bool {
        self.root.join("cgroup.controllers").exists()
    }

    fn file(&self, controller: &str, file: &str) -> PathBuf {
        match self.is_v2() {
            true => self.root.join(&self.path).join(file),
            false => self.root.join(controller).join(&self.path).join(file),
        }
    }

    fn number(&self, controller: &str, file: &str) -> Result<u64> {
        let text = self.text(controller, file)?;
        text.parse().with_context(|| format!("read the number {text:?} in {file}"))
    }

    fn text(&self, controller: &str, file: &str) -> Result<String> {
        let path = self.file(controller, file);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }
}
