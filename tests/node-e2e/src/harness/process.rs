//! CPU time, memory and open files of a process of a stack.

use std::fs;

use anyhow::{Context, Result};

use crate::stack::Stack;

/// CPU times in /proc are in hundredths of a second, on every Linux there is.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process of a stack, by its number inside.
pub struct Process {
    proc_dir: String,
}

impl Process {
    pub fn inside(stack: &Stack, pid: i32) -> Result<Process> {
        let proc_dir = format!("/proc/{}/root/proc/{pid}", stack.init_pid());
        fs::metadata(&proc_dir).with_context(|| format!("look at {proc_dir}"))?;
        Ok(Process { proc_dir })
    }

    pub fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("{}/stat", self.proc_dir))?;
        // Fields are counted behind the name, which is in brackets and may hold blanks.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: f64 = [11, 12].iter().filter_map(|&index| fields.get(index)?.parse::<f64>().ok()).sum();
        Ok(ticks / TICKS_PER_SECOND)
    }

    pub fn open_files(&self) -> Result<usize> {
        Ok(self.descriptors()?.count())
    }

    /// What each of them is.
    pub fn open_file_targets(&self) -> Result<Vec<String>> {
        // One may be closed while we look.
        let targets = self.descriptors()?.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        Ok(targets.map(|target| target.display().to_string()).collect())
    }

    fn descriptors(&self) -> Result<fs::ReadDir> {
        let path = format!("{}/fd", self.proc_dir);
        fs::read_dir(&path).with_context(|| format!("list {path}"))
    }

    /// From now on `VmHWM` is the most memory it had since now.
    pub fn forget_peak(&self) -> Result<()> {
        let path = format!("{}/clear_refs", self.proc_dir);
        fs::write(&path, "5").with_context(|| format!("write {path}"))
    }

    pub fn memory_mb(&self, which: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("{}/status", self.proc_dir))?;
        let line = status.lines().find(|line| line.starts_with(which)).with_context(|| format!("{which} in status"))?;
        let kib: f64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
        Ok(kib * 1024.0 / 1e6)
    }
}
