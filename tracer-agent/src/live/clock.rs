//! The clocks of records and of spans.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// CLOCK_MONOTONIC in nanoseconds, the clock of the records.
pub fn monotonic() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic)) as u64
}

/// What makes a record's time one since 1970: read between two looks at the other clock, several
/// times, and the closest pair of looks counts.
pub fn offset() -> i64 {
    let sample = || {
        let before = nanoseconds(clock_gettime(ClockId::Monotonic));
        let wall = nanoseconds(clock_gettime(ClockId::Realtime));
        let after = nanoseconds(clock_gettime(ClockId::Monotonic));
        (after - before, wall - (before + after) / 2)
    };
    (0..8).map(|_| sample()).min().map_or(0, |(_, offset)| offset)
}

fn nanoseconds(time: Timespec) -> i64 {
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// A time of records as nanoseconds since 1970, by the clocks as they are.
pub fn wall(time: u64) -> u64 {
    time.saturating_add_signed(offset())
}
