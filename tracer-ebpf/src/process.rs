//! Fork, exec and exit of processes, and what makes one chosen that runs already. Each in two forms: with
//! types that the verifier knows, and without (`raw_`).

use aya_ebpf::{
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, generated::bpf_get_current_cgroup_id},
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use tracer_common::{
    config::Choice,
    record::{Header, Process, kind},
};

use crate::{
    emit,
    memory::{Object, Typed, Untyped},
    offset, select, syscall,
};

/// (parent, child): before the child can run.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn sched_process_fork(context: BtfTracePointContext) -> i32 {
    forked(Typed(context.arg(0)), Typed(context.arg(1)))
}

#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn raw_sched_process_fork(context: RawTracePointContext) -> i32 {
    forked(Untyped(context.arg(0)), Untyped(context.arg(1)))
}

/// (task, old pid, binary): before the first instruction of the new program.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(context: BtfTracePointContext) -> i32 {
    executed(Typed(context.arg(0)), context.arg(2))
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn raw_sched_process_exec(context: RawTracePointContext) -> i32 {
    executed(Untyped(context.arg(0)), context.arg(2))
}

/// (task): each thread; the process has ended when no thread is left.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn sched_process_exit(context: BtfTracePointContext) -> i32 {
    exited(Typed(context.arg(0)))
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn raw_sched_process_exit(context: RawTracePointContext) -> i32 {
    exited(Untyped(context.arg(0)))
}

/// (cgroup, path, task, whether all threads): after the move, in each hierarchy.
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn cgroup_attach_task(context: BtfTracePointContext) -> i32 {
    attached(Typed(context.arg(2)))
}

#[raw_tracepoint(tracepoint = "cgroup_attach_task")]
pub fn raw_cgroup_attach_task(context: RawTracePointContext) -> i32 {
    attached(Untyped(context.arg(2)))
}

#[inline(always)]
fn forked<O: Object>(parent: O, child: O) -> i32 {
    let parent_id: u32 = parent.load(offset!(TASK_TGID));
    let child_id: u32 = child.load(offset!(TASK_TGID));
    if parent_id == child_id {
        return 0; // a thread
    }
    let choice = select::fork(parent_id, child_id, child);
    let command = child.copy(offset!(TASK_COMM));
    report(choice, kind::FORKED, child_id, parent_id, command);
    0
}

#[inline(always)]
fn executed<O: Object>(task: O, binary: u64) -> i32 {
    let process: u32 = task.load(offset!(TASK_TGID));
    let before = select::is_chosen(process);
    let choice = select::execute(process, binary);
    let command = bpf_get_current_comm().unwrap_or_default();
    if before && !matches!(choice, Choice::Chosen(_)) {
        // What it was is over.
        tell(kind::EXECUTED, process, 0, 0, command);
    }
    report(choice, kind::EXECUTED, process, 0, command);
    0
}

#[inline(always)]
fn exited<O: Object>(task: O) -> i32 {
    let process: u32 = task.load(offset!(TASK_TGID));
    let chosen = select::is_chosen(process);
    if chosen {
        // It may have been killed inside a call.
        syscall::forget_messages();
    }
    let alive: i32 = task.follow(offset!(TASK_SIGNAL)).load(offset!(SIGNAL_LIVE));
    if alive == 0 {
        select::exit(process);
        if chosen {
            tell(kind::EXITED, process, 0, 0, [0; 16]);
        }
    }
    0
}

#[inline(always)]
fn attached<O: Object>(task: O) -> i32 {
    let process: u32 = task.load(offset!(TASK_TGID));
    let choice = select::attach(process, task);
    report(choice, kind::CHOSEN, process, 0, task.copy(offset!(TASK_COMM)));
    0
}

/// The current process listens on a port.
#[inline(always)]
pub(crate) fn listens(port: u16) {
    let process = select::current();
    let choice = select::listen(process, port);
    report(choice, kind::CHOSEN, process, 0, bpf_get_current_comm().unwrap_or_default());
}

#[inline(always)]
fn report(choice: Choice, kind: u16, process: u32, parent: u32, command: [u8; 16]) {
    match choice {
        Choice::Chosen(rules) => tell(kind, process, parent, rules, command),
        Choice::Undecided => {
            tell(kind::UNDECIDED, process, parent, 0, command);
            emit::wake_agent();
        }
        Choice::No => {}
    }
}

#[inline(always)]
fn tell(kind: u16, process: u32, parent: u32, selected: u32, command: [u8; 16]) {
    // Who executes a program is the current process; of others what is known of their parent holds.
    let executed = kind == kind::EXECUTED || kind == kind::UNDECIDED && parent == 0;
    // SAFETY: a helper without arguments.
    let cgroup = if executed { unsafe { bpf_get_current_cgroup_id() } } else { 0 };
    emit::fixed(|record: &mut Process| {
        *record = Process { header: Header::default(), parent, selected, command, cgroup };
        record.header = emit::header::<Process>(kind);
        record.header.pid = process;
        record.header.thread = bpf_get_current_pid_tgid() as u32;
    });
}
