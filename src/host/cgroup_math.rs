//! How requests and limits become the numbers that cgroups take, and back.
//!
//! Pure arithmetic, shared by everyone who fills in `CgroupSettings` or the resources of a
//! CRI container. The numbers are upstream's: a pod's cgroup must not change when one agent
//! takes over from the other.

/// What a cgroup gets that asks for nothing; the kernel's own minimum on v1.
pub const SHARES_MIN: u64 = 2;
/// The kernel's maximum on v1.
pub const SHARES_MAX: u64 = 262_144;
const SHARES_PER_CPU: u64 = 1024;

const WEIGHT_MIN: u64 = 1;
const WEIGHT_MAX: u64 = 10_000;

/// Microseconds; the kernel's own default.
pub const CPU_PERIOD_DEFAULT: u64 = 100_000;
/// Microseconds; the kernel refuses less.
pub const CPU_QUOTA_MIN: i64 = 1_000;
/// "No quota" as v1 and CRI write it.
pub const CPU_QUOTA_UNLIMITED: i64 = -1;
/// Bytes of a memory limit that is none, as the kernel itself tells it on v1.
pub const MEMORY_UNLIMITED: u64 = (1 << 63) - 4096;

/// CPU shares of a request in thousandths of a CPU.
pub fn milli_cpu_to_shares(milli_cpu: u64) -> u64 {
    if milli_cpu == 0 {
        return SHARES_MIN;
    }
    (milli_cpu.saturating_mul(SHARES_PER_CPU) / 1000).clamp(SHARES_MIN, SHARES_MAX)
}

/// The request that shares stand for, rounded up; shares of no request give 0.
pub fn shares_to_milli_cpu(shares: u64) -> u64 {
    if shares < SHARES_MIN {
        return 0;
    }
    shares.saturating_mul(1000).div_ceil(SHARES_PER_CPU)
}

/// Microseconds of every `period` that a limit allows; 0, as CRI has it, where there is no
/// limit.
pub fn milli_cpu_to_quota(milli_cpu: u64, period: u64) -> i64 {
    if milli_cpu == 0 {
        return 0;
    }
    let quota = milli_cpu.saturating_mul(period) / 1000;
    i64::try_from(quota).unwrap_or(i64::MAX).max(CPU_QUOTA_MIN)
}

/// The limit that a quota stands for; 0 where there is none.
pub fn quota_to_milli_cpu(quota: i64, period: u64) -> u64 {
    match u64::try_from(quota) {
        Ok(quota) if period > 0 => quota.saturating_mul(1000) / period,
        _ => 0,
    }
}

/// `cpu.weight` of the levels the agent owns (kubepods, QoS, pod). This is the linear map;
/// runtimes use another curve for containers, which is harmless as only the ratios among
/// siblings count.
pub fn shares_to_weight(shares: u64) -> u64 {
    let shares = shares.clamp(SHARES_MIN, SHARES_MAX);
    WEIGHT_MIN + (shares - SHARES_MIN) * (WEIGHT_MAX - WEIGHT_MIN) / (SHARES_MAX - SHARES_MIN)
}

/// The way back from `cpu.weight`, with the loss that rounding brings.
pub fn weight_to_shares(weight: u64) -> u64 {
    let weight = weight.clamp(WEIGHT_MIN, WEIGHT_MAX);
    SHARES_MIN + (weight - WEIGHT_MIN) * (SHARES_MAX - SHARES_MIN) / (WEIGHT_MAX - WEIGHT_MIN)
}

/// A huge page size as cgroup files and CRI name it: `64KB`, `2MB`, `1GB`.
pub fn hugepage_size_name(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KB", "MB", "GB"];
    let (mut size, mut unit) = (bytes, 0);
    while size >= 1024 && size.is_multiple_of(1024) && unit + 1 < UNITS.len() {
        size /= 1024;
        unit += 1;
    }
    format!("{size}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_becomes_shares_within_the_kernels_bounds() {
        for (milli_cpu, shares) in [
            (0, 2),
            (1, 2),
            (2, 2),
            (3, 3),
            (10, 10),
            (100, 102),
            (250, 256),
            (1000, 1024),
            (256_000, 262_144),
            (u64::MAX, 262_144),
        ] {
            assert_eq!(milli_cpu_to_shares(milli_cpu), shares, "{milli_cpu}m");
        }
    }

    #[test]
    fn shares_become_a_request_rounded_up() {
        for (shares, milli_cpu) in [(0, 0), (1, 0), (2, 2), (102, 100), (256, 250), (1024, 1000), (262_144, 256_000)] {
            assert_eq!(shares_to_milli_cpu(shares), milli_cpu, "{shares} shares");
        }
    }

    #[test]
    fn a_limit_becomes_a_quota_of_at_least_a_millisecond() {
        for (milli_cpu, period, quota) in [
            (0, CPU_PERIOD_DEFAULT, 0),
            (1, CPU_PERIOD_DEFAULT, 1000),
            (10, CPU_PERIOD_DEFAULT, 1000),
            (11, CPU_PERIOD_DEFAULT, 1100),
            (500, CPU_PERIOD_DEFAULT, 50_000),
            (2500, CPU_PERIOD_DEFAULT, 250_000),
            (500, 5_000, 2500),
        ] {
            assert_eq!(milli_cpu_to_quota(milli_cpu, period), quota, "{milli_cpu}m of {period}");
        }
    }

    #[test]
    fn a_quota_becomes_a_limit_and_no_quota_none() {
        for (quota, period, milli_cpu) in [(-1, 100_000, 0), (50_000, 100_000, 500), (1100, 100_000, 11), (1000, 0, 0)]
        {
            assert_eq!(quota_to_milli_cpu(quota, period), milli_cpu, "{quota}/{period}");
        }
    }

    #[test]
    fn shares_become_a_weight_on_the_linear_map() {
        for (shares, weight) in [(0, 1), (2, 1), (102, 4), (1024, 39), (2048, 79), (262_144, 10_000), (500_000, 10_000)]
        {
            assert_eq!(shares_to_weight(shares), weight, "{shares} shares");
        }
    }

    #[test]
    fn a_weight_reads_back_as_shares() {
        for (weight, shares) in [(1, 2), (39, 998), (79, 2046), (10_000, 262_144)] {
            assert_eq!(weight_to_shares(weight), shares, "weight {weight}");
        }
    }

    #[test]
    fn huge_pages_are_named_as_the_kernel_names_them() {
        for (bytes, name) in
            [(65_536, "64KB"), (2 << 20, "2MB"), (32 << 20, "32MB"), (1 << 30, "1GB"), (16 << 30, "16GB")]
        {
            assert_eq!(hugepage_size_name(bytes), name);
        }
    }
}
