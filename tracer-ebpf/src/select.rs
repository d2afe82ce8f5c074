//! Who is chosen: a hash from process to flags, written at fork, exec and exit, and by the agent.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_common::config::{Counter, selected};

use crate::maps::{SELECTED, count};

/// Flags of a process; 0 if it is not chosen.
#[inline(always)]
pub(crate) fn flags(process: u32) -> u32 {
    // SAFETY: the value is copied at once, and a stale one is as good as a fresh one.
    unsafe { SELECTED.get(&process) }.copied().unwrap_or(0)
}

#[inline(always)]
pub(crate) fn current() -> bool {
    flags((bpf_get_current_pid_tgid() >> 32) as u32) != 0
}

/// Called while the child cannot run yet. Returns the child's flags.
#[inline(always)]
pub(crate) fn fork(parent: u32, child: u32) -> u32 {
    if flags(parent) == 0 {
        // A number used again whose exit was missed.
        let _ = SELECTED.remove(&child);
        return 0;
    }
    if SELECTED.insert(&child, &selected::BY_FORK, 0).is_err() {
        count(Counter::SelectionFull, 1);
        return 0;
    }
    selected::BY_FORK
}

/// Returns the flags that the process keeps.
#[inline(always)]
pub(crate) fn execute(process: u32) -> u32 {
    let before = flags(process);
    let after = before & selected::SURVIVES_EXEC;
    if after == before {
        return after;
    }
    if after == 0 {
        let _ = SELECTED.remove(&process);
    } else {
        let _ = SELECTED.insert(&process, &after, 0);
    }
    after
}

#[inline(always)]
pub(crate) fn exit(process: u32) {
    let _ = SELECTED.remove(&process);
}
