//! Fork, exec and exit of chosen processes.

use aya_ebpf::{
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use tracer_common::record::{Header, Process, kind};

use crate::{emit, memory::Typed, offset, select};

/// (parent, child): before the child can run.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn sched_process_fork(context: BtfTracePointContext) -> i32 {
    let (parent, child) = (Typed(context.arg(0)), Typed(context.arg(1)));
    let parent_id: u32 = parent.load(offset!(TASK_TGID));
    let child_id: u32 = child.load(offset!(TASK_TGID));
    if parent_id == child_id {
        return 0; // a thread
    }
    let flags = select::fork(parent_id, child_id);
    if flags != 0 {
        report(kind::FORKED, child_id, parent_id, flags, child.copy(offset!(TASK_COMM)));
    }
    0
}

/// (task, old pid, binary): before the first instruction of the new program.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(context: BtfTracePointContext) -> i32 {
    let process: u32 = Typed(context.arg(0)).load(offset!(TASK_TGID));
    if select::flags(process) == 0 {
        return 0;
    }
    let flags = select::execute(process);
    report(kind::EXECUTED, process, 0, flags, bpf_get_current_comm().unwrap_or_default());
    0
}

/// (task): each thread; the process has ended when no thread is left.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn sched_process_exit(context: BtfTracePointContext) -> i32 {
    let task = Typed(context.arg(0));
    let process: u32 = task.load(offset!(TASK_TGID));
    let flags = select::flags(process);
    if flags == 0 {
        return 0;
    }
    let alive: i32 = task.follow(offset!(TASK_SIGNAL)).load(offset!(SIGNAL_LIVE));
    if alive == 0 {
        select::exit(process);
        report(kind::EXITED, process, 0, flags, [0; 16]);
    }
    0
}

#[inline(always)]
fn report(kind: u16, process: u32, parent: u32, selected: u32, command: [u8; 16]) {
    emit::fixed(|record: &mut Process| {
        *record = Process { header: Header::default(), parent, selected, command };
        record.header = emit::header::<Process>(kind);
        record.header.pid = process;
        record.header.thread = bpf_get_current_pid_tgid() as u32;
    });
}
