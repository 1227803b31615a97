//! Slices by systemd: what it is told of a cgroup, and when it has done it.
//!
//! Every word goes over a connection of its own: over one that stays open systemd sends all that
//! happens on the machine, and would keep what nobody reads.

mod bus;
mod wire;

use std::path::PathBuf;

use self::bus::{Bus, BusError};
use self::wire::{Body, Value};
use super::{HostError, Result};
use crate::host::cgroup_math::{CPU_PERIOD_DEFAULT, MEMORY_UNLIMITED, shares_to_weight};
use crate::host::{CgroupSettings, CgroupVersion};

/// Microseconds for each second that systemd takes for no quota, and bytes for no limit.
const UNLIMITED: u64 = u64::MAX;
/// systemd keeps quotas in whole percents when it is reloaded. What is cut off there must not be
/// less than what containers get, so it is told more.
const QUOTA_STEP: u64 = 10_000;
/// Done once nothing older waits, and refused never.
const MODE: &str = "replace";

#[derive(Debug)]
pub struct Systemd {
    /// `/run`, where it and the bus have their sockets.
    run: PathBuf,
}

type Properties = Vec<(&'static str, Value)>;

impl Systemd {
    pub fn new(run: PathBuf) -> Self {
        Systemd { run }
    }

    pub fn check_runs(&self) -> Result<()> {
        let sign = self.run.join("systemd/system");
        match sign.is_dir() {
            true => Ok(()),
            false => {
                Err(HostError::Refused(format!("systemd does not run on this machine: there is no {}", sign.display())))
            }
        }
    }

    /// Starts a slice and waits until it has its cgroup. One that systemd takes for started although
    /// its directory is gone is told its values again, and keeps what is in it.
    pub fn start(
        &self,
        slice: &str,
        parent: Option<&str>,
        settings: &CgroupSettings,
        version: CgroupVersion,
    ) -> Result<()> {
        let mut properties = vec![
            ("Description", Value::Text(format!("pods of this node, {slice}"))),
            ("DefaultDependencies", Value::Bool(false)),
        ];
        if let Some(parent) = parent {
            properties.push(("Wants", Value::Texts(vec![parent.to_owned()])));
        }
        properties.extend(accounting(version));
        properties.extend(limits(settings, version));
        let mut bus = Bus::connect(&self.run).map_err(refused("reach", slice))?;
        let body = Body::new().text(slice).text(MODE).properties(&properties).no_units();
        match bus.run_job("StartTransientUnit", body) {
            Err(error) if error.is("org.freedesktop.systemd1.UnitExists") => self.set(slice, settings, version),
            ended => ended.map_err(refused("start", slice)),
        }
    }

    /// Tells systemd the values of a slice, and waits until it has written them.
    pub fn set(&self, slice: &str, settings: &CgroupSettings, version: CgroupVersion) -> Result<()> {
        let properties = limits(settings, version);
        if properties.is_empty() {
            return Ok(());
        }
        let mut bus = Bus::connect(&self.run).map_err(refused("reach", slice))?;
        // Until it restarts: what is to hold then is found out then.
        let body = Body::new().text(slice).bool(true).properties(&properties);
        bus.call("SetUnitProperties", body).map_err(refused("set", slice))?;
        // Values are written between two words to it, so that the answer to a second one tells that
        // those of the first are there.
        bus.ping().map_err(refused("set", slice))
    }

    /// Ends a slice. One that is not known is none.
    pub fn stop(&self, slice: &str) -> Result<()> {
        let mut bus = Bus::connect(&self.run).map_err(refused("reach", slice))?;
        match bus.call("StopUnit", Body::new().text(slice).text(MODE)) {
            Err(error) if error.is("org.freedesktop.systemd1.NoSuchUnit") => Ok(()),
            ended => ended.map(drop).map_err(refused("stop", slice)),
        }
    }
}

fn refused(what: &'static str, slice: &str) -> impl FnOnce(BusError) -> HostError {
    move |error| HostError::Refused(format!("cannot {what} {slice} by systemd: {}", crate::causes::chain(&error)))
}

/// What the kernel is to count, and so the controllers that the slice has.
fn accounting(version: CgroupVersion) -> Properties {
    let io = match version {
        CgroupVersion::V1 => "BlockIOAccounting",
        CgroupVersion::V2 => "IOAccounting",
    };
    ["CPUAccounting", "MemoryAccounting", "TasksAccounting", io].map(|name| (name, Value::Bool(true))).into()
}

fn limits(settings: &CgroupSettings, version: CgroupVersion) -> Properties {
    let (weight, memory) = match version {
        CgroupVersion::V1 => ("CPUShares", "MemoryLimit"),
        CgroupVersion::V2 => ("CPUWeight", "MemoryMax"),
    };
    let mut found = Vec::new();
    let mut put = |name: &'static str, value: Option<u64>| found.extend(value.map(|value| (name, Value::U64(value))));
    put(
        weight,
        settings.cpu_shares.map(|shares| match version {
            CgroupVersion::V1 => shares,
            CgroupVersion::V2 => shares_to_weight(shares),
        }),
    );
    // Before 242 systemd has the usual one, and refuses to hear of any.
    put("CPUQuotaPeriodUSec", settings.cpu_period.filter(|period| *period != CPU_PERIOD_DEFAULT));
    put("CPUQuotaPerSecUSec", settings.cpu_quota.map(|quota| quota_per_second(quota, settings.cpu_period)));
    // A limit that yields is for the file alone: systemd would not know of it.
    let limit = settings.memory_limit_bytes.filter(|_| !settings.memory_limit_yields);
    put(memory, limit.map(|bytes| if bytes >= MEMORY_UNLIMITED { UNLIMITED } else { bytes }));
    if version == CgroupVersion::V2 {
        put("MemoryMin", settings.memory_min_bytes);
        put("MemoryLow", settings.memory_low_bytes);
    }
    put("TasksMax", settings.pids_max);
    found
}

fn quota_per_second(quota: i64, period: Option<u64>) -> u64 {
    match u64::try_from(quota) {
        Ok(quota) if quota > 0 => {
            let period = period.filter(|period| *period > 0).unwrap_or(CPU_PERIOD_DEFAULT);
            (quota.saturating_mul(1_000_000) / period).div_ceil(QUOTA_STEP).saturating_mul(QUOTA_STEP)
        }
        _ => UNLIMITED,
    }
}

#[cfg(test)]
mod tests;
