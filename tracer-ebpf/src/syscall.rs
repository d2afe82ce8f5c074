//! The system call that moved the bytes. All that depends on the processor is in this file.

use aya_ebpf::{
    bindings::pt_regs,
    helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
};
use tracer_common::record::omitted;

use crate::memory::{Typed, read_user};

/// Call numbers of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).
mod number {
    pub(super) const READ: u64 = 0;
    pub(super) const WRITE: u64 = 1;
    pub(super) const READV: u64 = 19;
    pub(super) const WRITEV: u64 = 20;
    pub(super) const SENDFILE: u64 = 40;
    pub(super) const SENDTO: u64 = 44;
    pub(super) const RECVFROM: u64 = 45;
    pub(super) const SENDMSG: u64 = 46;
    pub(super) const RECVMSG: u64 = 47;
    pub(super) const SPLICE: u64 = 275;
}

/// Code segment of a 32-bit task (`__USER32_CS`): its call numbers mean other calls.
const USER32_CS: u64 = 0x23;

/// What is in the place of the result while a call is under way (-ENOSYS, arch/x86/entry/entry_64.S).
/// Work that runs at the end of another call (io_uring) finds that call's result there.
const UNDER_WAY: i64 = -38;

/// Offsets in `struct user_msghdr` (include/linux/socket.h).
const MSGHDR_IOV: u64 = 16;
const MSGHDR_IOVLEN: u64 = 24;

pub(crate) struct Call {
    pub(crate) number: u16,
    pub(crate) buffer: Buffer,
}

/// Where the bytes are in the memory of the process. Plain fields that are always set: the verifier
/// refuses a program that moves the unused part of an enum.
#[derive(Clone, Copy)]
pub(crate) struct Buffer {
    pub(crate) shape: Shape,
    /// Of the bytes, or of the pieces.
    pub(crate) address: u64,
    /// How many pieces.
    pub(crate) count: u64,
    /// Why there are none; one of `tracer_common::record::omitted`.
    pub(crate) omitted: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Flat,
    Pieces,
    None,
}

impl Buffer {
    #[inline(always)]
    pub(crate) fn none(omitted: u8) -> Self {
        Self { shape: Shape::None, address: 0, count: 0, omitted }
    }

    #[inline(always)]
    fn flat(address: u64) -> Self {
        Self { shape: Shape::Flat, address, count: 0, omitted: omitted::NOTHING }
    }

    #[inline(always)]
    fn pieces(address: u64, count: u64) -> Self {
        Self { shape: Shape::Pieces, address, count, omitted: omitted::NOTHING }
    }
}

/// The call that the current thread is in.
#[inline(always)]
pub(crate) fn current() -> Call {
    // SAFETY: the helpers take and return kernel objects of a known type.
    let registers = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf().cast()) };
    let registers = Typed(registers as u64);
    let number: u64 = registers.load(core::mem::offset_of!(pt_regs, orig_rax));
    let segment: u64 = registers.load(core::mem::offset_of!(pt_regs, cs));
    let second: u64 = registers.load(core::mem::offset_of!(pt_regs, rsi));
    let third: u64 = registers.load(core::mem::offset_of!(pt_regs, rdx));
    let result: i64 = registers.load(core::mem::offset_of!(pt_regs, rax));
    let buffer = match number {
        _ if segment & 0xffff == USER32_CS || result != UNDER_WAY => Buffer::none(omitted::CALL),
        number::READ | number::WRITE | number::SENDTO | number::RECVFROM => Buffer::flat(second),
        number::READV | number::WRITEV => Buffer::pieces(second, third),
        number::SENDMSG | number::RECVMSG => {
            match (read_user::<u64>(second + MSGHDR_IOV), read_user::<u64>(second + MSGHDR_IOVLEN)) {
                (Some(address), Some(count)) => Buffer::pieces(address, count),
                _ => Buffer::none(omitted::FAULT),
            }
        }
        number::SENDFILE | number::SPLICE => Buffer::none(omitted::NO_BUFFER),
        _ => Buffer::none(omitted::CALL),
    };
    Call { number: number as u16, buffer }
}
