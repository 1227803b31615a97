//! Slices by systemd: what it is told of a cgroup, and when it has done it.
//!
//! Every word goes over a connection of its own: over one that stays open systemd sends all that
//! happens on the machine, and would keep what nobody reads. It has a runtime of its own too, on the
//! thread that waits for it: with that ends all that the library has to serve a connection, at once.

mod bus;

use std::path::PathBuf;

use tokio::runtime::Builder;
use zbus::Variant;

use self::bus::{Bus, BusError, BusResult, within};
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

type Properties = Vec<(&'static str, Variant<'static>)>;
/// Units to be started along: none.
type Others = Vec<(&'static str, Properties)>;

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
            ("Description", Variant::from(format!("pods of this node, {slice}"))),
            ("DefaultDependencies", Variant::from(false)),
        ];
        if let Some(parent) = parent {
            properties.push(("Wants", Variant::from(vec![parent.to_owned()])));
        }
        properties.extend(accounting(version));
        properties.extend(limits(settings, version));
        let body = (slice, MODE, properties, Others::new());
        let is_new =
            self.speak("start", slice, async |bus| match bus.run_job("StartTransientUnit", slice, &body).await {
                Err(error) if error.is("org.freedesktop.systemd1.UnitExists") => Ok(false),
                ended => ended.map(|()| true),
            })?;
        if is_new { Ok(()) } else { self.set(slice, settings, version) }
    }

    /// Tells systemd the values of a slice, and waits until it has written them.
    pub fn set(&self, slice: &str, settings: &CgroupSettings, version: CgroupVersion) -> Result<()> {
        let properties = limits(settings, version);
        if properties.is_empty() {
            return Ok(());
        }
        // Until it restarts: what is to hold then is found out then.
        let body = (slice, true, properties);
        self.speak("set", slice, async |bus| {
            bus.call("SetUnitProperties", &body).await?;
            // Values are written between two words to it, so that the answer to a second one tells
            // that those of the first are there.
            bus.ping().await
        })
    }

    /// Ends a slice, and waits until it has ended: one that is started meanwhile would be ended as well. One
    /// that is not known is none.
    pub fn stop(&self, slice: &str) -> Result<()> {
        self.speak("stop", slice, async |bus| match bus.run_job("StopUnit", slice, &(slice, MODE)).await {
            Err(error) if error.is("org.freedesktop.systemd1.NoSuchUnit") => Ok(()),
            ended => ended,
        })
    }

    /// Says one word. Not for a thread that runs tasks.
    fn speak<T>(&self, what: &'static str, slice: &str, word: impl AsyncFnOnce(&Bus) -> BusResult<T>) -> Result<T> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(BusError::Runtime).map_err(refused("reach", slice))?;
        runtime.block_on(self.converse(what, slice, word))
    }

    async fn converse<T>(
        &self,
        what: &'static str,
        slice: &str,
        word: impl AsyncFnOnce(&Bus) -> BusResult<T>,
    ) -> Result<T> {
        let bus = within(Bus::connect(&self.run)).await.map_err(refused("reach", slice))?;
        within(word(&bus)).await.map_err(refused(what, slice))
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
    ["CPUAccounting", "MemoryAccounting", "TasksAccounting", io].map(|name| (name, Variant::from(true))).into()
}

fn limits(settings: &CgroupSettings, version: CgroupVersion) -> Properties {
    let (weight, memory) = match version {
        CgroupVersion::V1 => ("CPUShares", "MemoryLimit"),
        CgroupVersion::V2 => ("CPUWeight", "MemoryMax"),
    };
    let mut found = Vec::new();
    let mut put =
        |name: &'static str, value: Option<u64>| found.extend(value.map(|value| (name, Variant::from(value))));
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
