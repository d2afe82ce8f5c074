//! What the tracer itself takes of the machine.

use std::{fs, time::Duration};

use rustix::time::{ClockId, clock_gettime};

#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Of all threads.
    pub cpu: Duration,
    /// Bytes; the ring is in it twice.
    pub resident: u64,
}

pub fn own() -> Cost {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Cost {
        cpu: Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32),
        resident: resident().unwrap_or(0),
    }
}

/// proc(5), /proc/pid/statm: pages, the second number those in memory.
fn resident() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
