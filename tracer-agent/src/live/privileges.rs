//! What this process may do.

use std::fs;

/// A capability by its number (include/uapi/linux/capability.h) and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    pub number: u32,
    pub name: &'static str,
}

pub const KILL: Capability = Capability { number: 5, name: "CAP_KILL" };
pub const DAC_READ_SEARCH: Capability = Capability { number: 2, name: "CAP_DAC_READ_SEARCH" };
pub const SYS_PTRACE: Capability = Capability { number: 19, name: "CAP_SYS_PTRACE" };
pub const SYS_ADMIN: Capability = Capability { number: 21, name: "CAP_SYS_ADMIN" };
pub const PERFMON: Capability = Capability { number: 38, name: "CAP_PERFMON" };
pub const BPF: Capability = Capability { number: 39, name: "CAP_BPF" };

/// Whether this process has it, and it counts.
pub fn has(capability: Capability) -> bool {
    effective() >> capability.number & 1 == 1
}

/// Those that loading probes needs, and that are not there.
pub fn missing_to_load() -> Vec<&'static str> {
    if has(SYS_ADMIN) {
        return Vec::new();
    }
    [BPF, PERFMON].into_iter().filter(|needed| !has(*needed)).map(|needed| needed.name).collect()
}

fn effective() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
