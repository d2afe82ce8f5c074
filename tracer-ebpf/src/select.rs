//! Who is chosen: a hash from process to what it meets of the selection's rules, written at fork, exec, exit,
//! listen and change of cgroup, and by the agent. What only the agent can tell (patterns, a path) is
//! asked of it, and what moves until it answers is counted.

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, generated::bpf_loop};
use tracer_common::{
    config::{
        CGROUP_LEVELS, Choice, Counter, File, Met, NAME_SIZE, Rules, Selected, condition, surviving_exec,
    },
    connection::Direction,
};

use crate::{
    maps::{CGROUPS, EXECUTABLES, NAMES, PORTS, SELECTED, UNDECIDED, count, rules},
    memory::{DECIDED_BY_AGENT, OWN_PROCESS, Object, constant, read_kernel, read_kernel_text},
    offset,
};

/// What a process meets of the selection.
#[inline(always)]
fn known(process: u32) -> Selected {
    // SAFETY: the value is copied at once, and a stale one is as good as a fresh one.
    unsafe { SELECTED.get(&process) }.copied().unwrap_or_default()
}

/// The agent itself never is.
#[inline(always)]
pub(crate) fn is_chosen(process: u32) -> bool {
    // SAFETY: one number of it is read, whatever it is at that moment.
    unsafe { SELECTED.get(&process) }.is_some_and(|known| known.chosen != 0)
        && process != constant(&OWN_PROCESS) as u32
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

/// Called while the child cannot run yet.
#[inline(always)]
pub(crate) fn fork<O: Object>(parent: u32, child: u32, task: O) -> Choice {
    let Some(rules) = rules() else { return Choice::No };
    let before = known(parent);
    let mut after = before;
    if rules.uses(condition::CGROUP) {
        after.met[condition::CGROUP] = of_cgroup(task);
    }
    // SAFETY: only looked at for whether it is there.
    let asked = constant(&DECIDED_BY_AGENT) != 0 && unsafe { UNDECIDED.get(&parent) }.is_some();
    let choice = if asked {
        ask(child)
    } else if after.met[condition::CGROUP] != before.met[condition::CGROUP] {
        choose(rules, child, &mut after)
    } else if before.chosen != 0 {
        Choice::Chosen(before.chosen)
    } else {
        Choice::No
    };
    // Else there may be a number used again whose exit was missed.
    keep(child, &after);
    choice
}

#[inline(always)]
pub(crate) fn execute(process: u32, binary: u64) -> Choice {
    let Some(rules) = rules() else { return Choice::No };
    let before = known(process);
    let mut met = surviving_exec(&before.met);
    let file: u64 = read_kernel(binary, offset!(BINPRM_FILE));
    if rules.uses(condition::COMMAND) {
        met[condition::COMMAND] = of_name() | of_file_name(file);
    }
    if rules.uses(condition::EXECUTABLE) {
        met[condition::EXECUTABLE] = of_executable(file);
    }
    // What it was is over.
    settle(rules, process, &before, met, 0)
}

/// A process listens on a port.
#[inline(always)]
pub(crate) fn listen(process: u32, port: u16) -> Choice {
    let Some(rules) = rules() else { return Choice::No };
    if !rules.uses(condition::PORT) {
        return Choice::No;
    }
    // SAFETY: the value is copied at once.
    let wanted = unsafe { PORTS.get(&port) }.copied().unwrap_or(0);
    let before = known(process);
    if wanted & !before.met[condition::PORT] == 0 {
        return Choice::No;
    }
    let mut met = before.met;
    met[condition::PORT] |= wanted;
    settle(rules, process, &before, met, before.chosen)
}

/// A process has come into another cgroup.
#[inline(always)]
pub(crate) fn attach<O: Object>(process: u32, task: O) -> Choice {
    let Some(rules) = rules() else { return Choice::No };
    let before = known(process);
    let mut met = before.met;
    met[condition::CGROUP] = of_cgroup(task);
    if met[condition::CGROUP] == before.met[condition::CGROUP] {
        return Choice::No;
    }
    settle(rules, process, &before, met, before.chosen)
}

/// What comes of what a process meets now. `meanwhile`: what it is until the agent has looked at it. The agent
/// may be about to choose it: what has not changed is not written.
#[inline(always)]
fn settle(rules: &Rules, process: u32, before: &Selected, met: Met, meanwhile: u32) -> Choice {
    let mut after = Selected { met, chosen: 0 };
    let choice = choose(rules, process, &mut after);
    if choice == Choice::Undecided {
        after.chosen = meanwhile;
    }
    if after != *before {
        keep(process, &after);
    }
    choice
}

#[inline(always)]
fn choose(rules: &Rules, process: u32, after: &mut Selected) -> Choice {
    let choice = rules.choose(&after.met);
    after.chosen = 0;
    match choice {
        Choice::Chosen(by) => after.chosen = by,
        Choice::Undecided => return ask(process),
        Choice::No => {}
    }
    choice
}

#[inline(always)]
pub(crate) fn exit(process: u32) {
    let _ = SELECTED.remove(&process);
    if constant(&DECIDED_BY_AGENT) != 0 {
        let _ = UNDECIDED.remove(&process);
    }
}

#[inline(always)]
fn keep(process: u32, known: &Selected) {
    if process == constant(&OWN_PROCESS) as u32 {
        return;
    }
    if known.met == [0; condition::COUNT] && known.chosen == 0 {
        let _ = SELECTED.remove(&process);
    } else if SELECTED.insert(&process, known, 0).is_err() {
        count(Counter::SelectionFull, 1);
    }
}

#[inline(always)]
fn ask(process: u32) -> Choice {
    let _ = UNDECIDED.insert(&process, &[0; 2], 0);
    Choice::Undecided
}

/// Rules that ask for the name of the current process, which an exec takes from what the caller typed.
#[inline(always)]
fn of_name() -> u32 {
    let mut name = [0; NAME_SIZE];
    let Ok(command) = bpf_get_current_comm() else { return 0 };
    name[..16].copy_from_slice(&command);
    // SAFETY: the value is copied at once.
    unsafe { NAMES.get(&name) }.copied().unwrap_or(0)
}

#[inline(always)]
fn of_file_name(file: u64) -> u32 {
    let entry: u64 = read_kernel(file, offset!(FILE_DENTRY));
    let text: u64 = read_kernel(entry, offset!(DENTRY_NAME));
    let mut name = [0; NAME_SIZE];
    read_kernel_text(text, &mut name);
    // SAFETY: the value is copied at once.
    unsafe { NAMES.get(&name) }.copied().unwrap_or(0)
}

#[inline(always)]
fn of_executable(file: u64) -> u32 {
    let inode: u64 = read_kernel(file, offset!(FILE_INODE));
    let super_block: u64 = read_kernel(inode, offset!(INODE_SUPER));
    let device: u32 = read_kernel(super_block, offset!(SUPER_DEVICE));
    let file: File = [device as u64, read_kernel(inode, offset!(INODE_NUMBER))];
    // SAFETY: the value is copied at once.
    unsafe { EXECUTABLES.get(&file) }.copied().unwrap_or(0)
}

/// Rules that ask for the cgroup of the task, or for one above it.
#[inline(always)]
fn of_cgroup<O: Object>(task: O) -> u32 {
    let set: u64 = task.copy(offset!(TASK_CGROUPS));
    let cgroup: u64 = read_kernel(set, offset!(CSS_SET_CGROUP));
    let level: u32 = read_kernel(cgroup, offset!(CGROUP_LEVEL));
    let mut climb = Climb { cgroup, level, found: 0 };
    // SAFETY: the callback takes (index, argument) as the helper asks. A loop of our own is too much for the
    // verifier of Linux 6.1.
    unsafe {
        bpf_loop(CGROUP_LEVELS, look_at as *const () as *mut _, (&raw mut climb).cast(), 0);
    }
    climb.found
}

#[repr(C)]
struct Climb {
    cgroup: u64,
    level: u32,
    /// Rules.
    found: u32,
}

/// Returns 1 to end the loop.
unsafe extern "C" fn look_at(level: u32, argument: *mut Climb) -> i64 {
    // SAFETY: the argument that `of_cgroup` gave to the loop.
    let climb = unsafe { &mut *argument };
    if level > climb.level {
        return 1;
    }
    let ancestor: u64 = read_kernel(climb.cgroup, offset!(CGROUP_ANCESTORS) + level as usize * 8);
    let node: u64 = read_kernel(ancestor, offset!(CGROUP_NODE));
    let id: u64 = read_kernel(node, offset!(NODE_ID));
    // SAFETY: the value is copied at once.
    climb.found |= unsafe { CGROUPS.get(&id) }.copied().unwrap_or(0);
    0
}
