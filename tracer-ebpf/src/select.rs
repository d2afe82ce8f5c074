//! Who is chosen: a hash from process to what it meets of the selection, written at fork, exec, exit,
//! listen and change of cgroup, and by the agent. What only the agent can tell (patterns, a path) is
//! asked of it, and what moves until it answers is counted.

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, generated::bpf_loop};
use tracer_common::{
    config::{CGROUP_LEVELS, Counter, File, NAME_SIZE, selected},
    connection::Direction,
};

use crate::{
    maps::{CGROUPS, EXECUTABLES, NAMES, PORTS, SELECTED, UNDECIDED, count},
    memory::{DECIDED_BY_AGENT, OWN_PROCESS, Object, REQUIRED, constant, read_kernel, read_kernel_text},
    offset,
};

/// What became of a process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    Chosen,
    /// The agent has to look at it.
    Undecided,
    No,
}

/// What a process meets of the selection.
#[inline(always)]
pub(crate) fn met(process: u32) -> u32 {
    // SAFETY: the value is copied at once, and a stale one is as good as a fresh one.
    unsafe { SELECTED.get(&process) }.copied().unwrap_or(0)
}

#[inline(always)]
fn required() -> u32 {
    constant(&REQUIRED) as u32
}

#[inline(always)]
fn is_enough(met: u32) -> bool {
    met & required() == required()
}

/// The agent itself never is.
#[inline(always)]
pub(crate) fn is_chosen(process: u32) -> bool {
    is_enough(met(process)) && process != constant(&OWN_PROCESS) as u32
}

#[inline(always)]
pub(crate) fn current() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Whether the agent is about to look at the process.
#[inline(always)]
pub(crate) fn is_undecided(process: u32) -> bool {
    // SAFETY: only looked at for whether it is there.
    constant(&DECIDED_BY_AGENT) != 0 && unsafe { UNDECIDED.get(&process) }.is_some()
}

/// Bytes of a process that may be chosen are counted.
#[inline(always)]
pub(crate) fn count_undecided(process: u32, direction: Direction, bytes: u64) {
    if constant(&DECIDED_BY_AGENT) == 0 {
        return;
    }
    if let Some(before) = UNDECIDED.get_ptr_mut(&process) {
        // SAFETY: a value of the map; threads that write at the same time lose a count at worst.
        unsafe {
            let before = &mut *before;
            if matches!(direction, Direction::Sent) {
                before[0] += bytes;
            } else {
                before[1] += bytes;
            }
        }
    }
}

/// Called while the child cannot run yet. Returns what the child meets.
#[inline(always)]
pub(crate) fn fork<O: Object>(parent: u32, child: u32, task: O) -> (Choice, u32) {
    let before = met(parent);
    let mut after = before;
    if required() & selected::CGROUP != 0 {
        after &= !selected::CGROUP;
        if in_cgroup(task) {
            after |= selected::CGROUP;
        }
    }
    // Else there may be a number used again whose exit was missed.
    keep(child, after);
    if is_enough(after) {
        return (Choice::Chosen, after);
    }
    let agent = constant(&DECIDED_BY_AGENT) as u32;
    // SAFETY: only looked at for whether it is there.
    let asked = agent != 0 && unsafe { UNDECIDED.get(&parent) }.is_some();
    let joined = agent != 0 && after & !before != 0 && is_enough(after | agent);
    (if asked || joined { ask(child) } else { Choice::No }, after)
}

/// Returns what the process meets with its new program.
#[inline(always)]
pub(crate) fn execute(process: u32, binary: u64) -> (Choice, u32) {
    let before = met(process);
    let mut after = before & selected::SURVIVES_EXEC;
    let file: u64 = read_kernel(binary, offset!(BINPRM_FILE));
    if required() & selected::COMMAND != 0 && (has_name() || file_has_name(file)) {
        after |= selected::COMMAND;
    }
    if required() & selected::EXECUTABLE != 0 && is_executable(file) {
        after |= selected::EXECUTABLE;
    }
    (settle(process, before, after), after)
}

/// A process listens on a port. Returns what it meets, if that is news.
#[inline(always)]
pub(crate) fn listen(process: u32, port: u16) -> (Choice, u32) {
    let before = met(process);
    // SAFETY: only looked at for whether it is there.
    if required() & selected::PORT == 0
        || before & selected::PORT != 0
        || unsafe { PORTS.get(&port) }.is_none()
    {
        return (Choice::No, before);
    }
    let after = before | selected::PORT;
    (settle(process, before, after), after)
}

/// A process has come into another cgroup.
#[inline(always)]
pub(crate) fn attach<O: Object>(process: u32, task: O) -> (Choice, u32) {
    let before = met(process);
    let after = if in_cgroup(task) { before | selected::CGROUP } else { before & !selected::CGROUP };
    if after == before {
        return (Choice::No, before);
    }
    (settle(process, before, after), after)
}

/// What comes of what a process meets now. The agent may be about to choose it: what has not changed is not
/// written.
#[inline(always)]
fn settle(process: u32, before: u32, after: u32) -> Choice {
    if after != before {
        keep(process, after);
    }
    let agent = constant(&DECIDED_BY_AGENT) as u32;
    if is_enough(after) {
        Choice::Chosen
    } else if agent != 0 && is_enough(after | agent) {
        ask(process)
    } else {
        Choice::No
    }
}

#[inline(always)]
pub(crate) fn exit(process: u32) {
    let _ = SELECTED.remove(&process);
    if constant(&DECIDED_BY_AGENT) != 0 {
        let _ = UNDECIDED.remove(&process);
    }
}

#[inline(always)]
fn keep(process: u32, met: u32) {
    if process == constant(&OWN_PROCESS) as u32 {
        return;
    }
    if met == 0 {
        let _ = SELECTED.remove(&process);
    } else if SELECTED.insert(&process, &met, 0).is_err() {
        count(Counter::SelectionFull, 1);
    }
}

#[inline(always)]
fn ask(process: u32) -> Choice {
    let _ = UNDECIDED.insert(&process, &[0; 2], 0);
    Choice::Undecided
}

/// The name of the current process, which an exec takes from what the caller typed.
#[inline(always)]
fn has_name() -> bool {
    let mut name = [0; NAME_SIZE];
    let Ok(command) = bpf_get_current_comm() else { return false };
    name[..16].copy_from_slice(&command);
    // SAFETY: only looked at for whether it is there.
    unsafe { NAMES.get(&name) }.is_some()
}

#[inline(always)]
fn file_has_name(file: u64) -> bool {
    let entry: u64 = read_kernel(file, offset!(FILE_DENTRY));
    let text: u64 = read_kernel(entry, offset!(DENTRY_NAME));
    let mut name = [0; NAME_SIZE];
    read_kernel_text(text, &mut name);
    // SAFETY: only looked at for whether it is there.
    unsafe { NAMES.get(&name) }.is_some()
}

#[inline(always)]
fn is_executable(file: u64) -> bool {
    let inode: u64 = read_kernel(file, offset!(FILE_INODE));
    let super_block: u64 = read_kernel(inode, offset!(INODE_SUPER));
    let device: u32 = read_kernel(super_block, offset!(SUPER_DEVICE));
    let file: File = [device as u64, read_kernel(inode, offset!(INODE_NUMBER))];
    // SAFETY: only looked at for whether it is there.
    unsafe { EXECUTABLES.get(&file) }.is_some()
}

/// Whether the task is in a chosen cgroup, or below one.
#[inline(always)]
fn in_cgroup<O: Object>(task: O) -> bool {
    let set: u64 = task.copy(offset!(TASK_CGROUPS));
    let cgroup: u64 = read_kernel(set, offset!(CSS_SET_CGROUP));
    let level: u32 = read_kernel(cgroup, offset!(CGROUP_LEVEL));
    let mut climb = Climb { cgroup, level, found: 0 };
    // SAFETY: the callback takes (index, argument) as the helper asks. A loop of our own is too much for the
    // verifier of Linux 6.1.
    unsafe {
        bpf_loop(CGROUP_LEVELS, is_chosen_at as *const () as *mut _, (&raw mut climb).cast(), 0);
    }
    climb.found != 0
}

#[repr(C)]
struct Climb {
    cgroup: u64,
    level: u32,
    found: u32,
}

/// Returns 1 to end the loop.
unsafe extern "C" fn is_chosen_at(level: u32, argument: *mut Climb) -> i64 {
    // SAFETY: the argument that `in_cgroup` gave to the loop.
    let climb = unsafe { &mut *argument };
    if level > climb.level {
        return 1;
    }
    let ancestor: u64 = read_kernel(climb.cgroup, offset!(CGROUP_ANCESTORS) + level as usize * 8);
    let node: u64 = read_kernel(ancestor, offset!(CGROUP_NODE));
    let id: u64 = read_kernel(node, offset!(NODE_ID));
    // SAFETY: only looked at for whether it is there.
    climb.found = unsafe { CGROUPS.get(&id) }.is_some() as u32;
    climb.found as i64
}
