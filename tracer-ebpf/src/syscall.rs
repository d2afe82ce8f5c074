//! The system call that moved the bytes. All that depends on the processor is in this file.

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_current_task, bpf_get_current_task_btf, bpf_loop, bpf_task_pt_regs},
    },
};
use tracer_common::{config::IOVECS_PER_CALL, record::omitted};

use crate::{
    file,
    maps::{self, MESSAGES, Messages},
    memory::{Object, Typed, Untyped, read_user},
    offset,
};

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
    pub(super) const PREADV: u64 = 295;
    pub(super) const PWRITEV: u64 = 296;
    pub(super) const RECVMMSG: u64 = 299;
    pub(super) const SENDMMSG: u64 = 307;
    pub(super) const PREADV2: u64 = 327;
    pub(super) const PWRITEV2: u64 = 328;
    pub(super) const IO_URING_ENTER: u64 = 426;
}

/// `TS_COMPAT` (arch/x86/include/asm/thread_info.h): the call has the numbers and registers of 32 bits.
const TS_COMPAT: u32 = 2;

/// What is in the place of the result while a call is under way (-ENOSYS, arch/x86/entry/entry_64.S).
/// Work that runs at the end of another call (io_uring) finds that call's result there.
const UNDER_WAY: i64 = -38;

/// `PF_IO_WORKER` (include/linux/sched.h): a thread of io_uring.
const IO_WORKER: u32 = 0x10;

/// Offsets in `struct user_msghdr` (include/linux/socket.h), and in `struct mmsghdr`, which starts with
/// one, and its size.
const MSGHDR_IOV: u64 = 16;
const MSGHDR_IOVLEN: u64 = 24;
const MMSGHDR_LENGTH: u64 = 56;
const MMSGHDR_SIZE: u64 = 64;

/// Messages of one call whose lengths are added up.
const MESSAGES_SUMMED: u32 = 4096;

pub(crate) struct Call {
    pub(crate) number: u16,
    pub(crate) buffer: Buffer,
}

/// Where the bytes are in the memory of the process. Plain fields that are always set: the verifier
/// refuses a program that moves the unused part of an enum.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Buffer {
    /// Of the bytes, or of the pieces.
    pub(crate) address: u64,
    /// How many pieces.
    pub(crate) count: u64,
    /// One of [`shape`].
    pub(crate) shape: u32,
    /// Why there are none; one of `tracer_common::record::omitted`.
    pub(crate) omitted: u32,
}

pub(crate) mod shape {
    pub(crate) const NONE: u32 = 0;
    pub(crate) const FLAT: u32 = 1;
    pub(crate) const PIECES: u32 = 2;
    /// Several messages, each with pieces and with the length that it came to.
    pub(crate) const MESSAGES: u32 = 3;
}

impl Buffer {
    #[inline(always)]
    pub(crate) fn none(omitted: u8) -> Self {
        Self { shape: shape::NONE, address: 0, count: 0, omitted: omitted as u32 }
    }

    #[inline(always)]
    fn flat(address: u64) -> Self {
        Self { shape: shape::FLAT, address, count: 0, omitted: omitted::NOTHING as u32 }
    }

    #[inline(always)]
    fn pieces(address: u64, count: u64) -> Self {
        Self { shape: shape::PIECES, address, count, omitted: omitted::NOTHING as u32 }
    }

    #[inline(always)]
    fn messages(address: u64, count: u64) -> Self {
        Self { shape: shape::MESSAGES, address, count, omitted: omitted::NOTHING as u32 }
    }
}

/// The call that the current thread is in, which moved `moved` bytes: where it is not over yet.
#[inline(always)]
pub(crate) fn current(moved: u32) -> Call {
    // SAFETY: the helper returns a kernel object of a known type.
    let task = Typed(unsafe { bpf_get_current_task_btf() } as u64);
    let registers = registers(task);
    let number: u64 = registers.load(core::mem::offset_of!(pt_regs, orig_rax));
    let second: u64 = registers.load(core::mem::offset_of!(pt_regs, rsi));
    let third: u64 = registers.load(core::mem::offset_of!(pt_regs, rdx));
    let result: i64 = registers.load(core::mem::offset_of!(pt_regs, rax));
    let flags: u32 = task.load(offset!(TASK_FLAGS));
    let buffer = match number {
        _ if flags & IO_WORKER != 0 => Buffer::none(omitted::IO_URING),
        _ if is_32_bit(task) => Buffer::none(omitted::TASK_32_BIT),
        _ if result != UNDER_WAY => Buffer::none(omitted::IO_URING),
        number::READ | number::WRITE | number::SENDTO | number::RECVFROM => Buffer::flat(second),
        number::READV
        | number::WRITEV
        | number::PREADV
        | number::PWRITEV
        | number::PREADV2
        | number::PWRITEV2 => Buffer::pieces(second, third),
        number::SENDMSG | number::RECVMSG => message(second),
        number::SENDMMSG => match next_message(second, sent_at_most(third), false) {
            Some(address) => {
                let buffer = message(address);
                if buffer.shape == shape::PIECES && is_short(buffer, moved) {
                    // With a message that was not sent whole the call ends.
                    forget_messages();
                }
                buffer
            }
            None => Buffer::none(omitted::CALL),
        },
        number::RECVMMSG => {
            let timeout: u64 = registers.load(core::mem::offset_of!(pt_regs, r8));
            match next_message(second, third as u32, timeout != 0) {
                Some(address) => message(address),
                None => Buffer::none(omitted::CALL),
            }
        }
        number::SENDFILE | number::SPLICE => Buffer::none(omitted::NO_BUFFER),
        number::IO_URING_ENTER => Buffer::none(omitted::IO_URING),
        _ => Buffer::none(omitted::CALL),
    };
    Call { number: number as u16, buffer }
}

/// A call on a socket that has ended.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ended {
    /// Where it is; 0 if it was closed before the call was over.
    pub(crate) socket: u64,
    pub(crate) sent: u32,
    /// Bytes, or an error.
    pub(crate) result: i32,
    /// MSG_* flags
    pub(crate) flags: u32,
    pub(crate) number: u32,
    pub(crate) buffer: Buffer,
}

/// What the call that ends with these registers moved, if it was one that moves bytes on a socket.
#[inline(always)]
pub(crate) fn ended(registers: Untyped, result: i64) -> Option<Ended> {
    maps::forget_ways(find_ended(registers, result)?)
}

#[inline(always)]
fn find_ended(registers: Untyped, result: i64) -> Option<Ended> {
    let number: u64 = registers.load(core::mem::offset_of!(pt_regs, orig_rax));
    // SAFETY: no arguments.
    if is_32_bit(Untyped(unsafe { bpf_get_current_task() })) {
        return ended_32_bit(registers, number, result);
    }
    let sent = match number {
        number::READ
        | number::READV
        | number::PREADV
        | number::PREADV2
        | number::RECVFROM
        | number::RECVMSG
        | number::RECVMMSG => false,
        number::WRITE
        | number::WRITEV
        | number::PWRITEV
        | number::PWRITEV2
        | number::SENDTO
        | number::SENDMSG
        | number::SENDMMSG
        | number::SENDFILE
        | number::SPLICE => true,
        _ => return None,
    };
    let first: u64 = registers.load(core::mem::offset_of!(pt_regs, rdi));
    let second: u64 = registers.load(core::mem::offset_of!(pt_regs, rsi));
    let third: u64 = registers.load(core::mem::offset_of!(pt_regs, rdx));
    let fourth: u64 = registers.load(core::mem::offset_of!(pt_regs, r10));
    let (found, sent) = match (file::socket(first as u32), number) {
        // From a socket to a pipe, or the other way round.
        (Some(socket), number::SPLICE) => (Some(socket), false),
        (None, number::SPLICE) => (file::socket(third as u32), true),
        (found, _) => (found, sent),
    };
    if result <= 0 && (number == number::SENDFILE || number == number::SPLICE) {
        // It says as much of the other file.
        return None;
    }
    let flags = match number {
        number::SENDTO | number::RECVFROM | number::SENDMMSG | number::RECVMMSG => fourth as u32,
        number::SENDMSG | number::RECVMSG => third as u32,
        _ => 0,
    };
    let buffer = match number {
        _ if result <= 0 => Buffer::none(omitted::NOTHING),
        number::READ | number::WRITE | number::SENDTO | number::RECVFROM => Buffer::flat(second),
        number::SENDMSG | number::RECVMSG => message(second),
        number::SENDMMSG | number::RECVMMSG => Buffer::messages(second, result as u64),
        number::SENDFILE | number::SPLICE => Buffer::none(omitted::NO_BUFFER),
        _ => Buffer::pieces(second, third),
    };
    // What these give is a number of messages.
    let result = if buffer.shape == shape::MESSAGES {
        messages_length(second, result as u32, MMSGHDR)
    } else {
        result as i32
    };
    let socket = match found {
        Some(socket) => socket.address(),
        // These take nothing but sockets.
        None if is_of_sockets(number) => 0,
        None => return None,
    };
    Some(Ended { socket, sent: sent as u32, result, flags, number: number as u32, buffer })
}

/// Calls of a 32-bit task have other numbers (arch/x86/entry/syscalls/syscall_32.tbl) and registers: how
/// much they moved is enough.
#[inline(always)]
fn ended_32_bit(registers: Untyped, number: u64, result: i64) -> Option<Ended> {
    const SOCKETCALL: u64 = 102;
    /// `struct compat_mmsghdr`
    const MESSAGE: Layout = Layout { size: 32, length: 28 };
    // The upper half of a result of 32 bits is not set.
    let mut result = result as i32;
    let first: u64 = registers.load(core::mem::offset_of!(pt_regs, rbx));
    let second: u64 = registers.load(core::mem::offset_of!(pt_regs, rcx));
    let third: u64 = registers.load(core::mem::offset_of!(pt_regs, rdx));
    let fourth: u64 = registers.load(core::mem::offset_of!(pt_regs, rsi));
    let word = |index: u64| read_user::<u32>(second + index * 4).unwrap_or(0);
    let (mut sent, mut file, mut flags, mut vector) = (false, first as u32, 0, 0);
    match number {
        // read, readv, preadv, preadv2
        3 | 145 | 333 | 378 => {}
        // write, writev, pwritev, pwritev2, sendfile, sendfile64
        4 | 146 | 334 | 379 | 187 | 239 => sent = true,
        // splice: to a socket, as far as it is told.
        313 => (sent, file) = (true, third as u32),
        369 => (sent, flags) = (true, fourth as u32),
        370 => (sent, flags) = (true, third as u32),
        371 => flags = fourth as u32,
        372 => flags = third as u32,
        345 => (sent, flags, vector) = (true, fourth as u32, second),
        337 | 417 => (flags, vector) = (fourth as u32, second),
        // send, recv, sendto, recvfrom, sendmsg, recvmsg, recvmmsg, sendmmsg (include/uapi/linux/net.h)
        SOCKETCALL => {
            file = word(0);
            match first {
                9 | 11 => (sent, flags) = (true, word(3)),
                10 | 12 => flags = word(3),
                16 => (sent, flags) = (true, word(2)),
                17 => flags = word(2),
                19 => (flags, vector) = (word(3), word(1) as u64),
                20 => (sent, flags, vector) = (true, word(3), word(1) as u64),
                _ => return None,
            }
        }
        _ => return None,
    }
    if vector != 0 && result > 0 {
        result = messages_length(vector, result as u32, MESSAGE);
    }
    Some(Ended {
        socket: file::socket(file)?.address(),
        sent: sent as u32,
        result,
        flags,
        number: number as u32,
        buffer: Buffer::none(omitted::TASK_32_BIT),
    })
}

#[inline(always)]
fn is_of_sockets(number: u64) -> bool {
    matches!(
        number,
        number::SENDTO
            | number::RECVFROM
            | number::SENDMSG
            | number::RECVMSG
            | number::SENDMMSG
            | number::RECVMMSG
    )
}

/// Of a message among several: its size, and where in it the length is that it came to.
#[repr(C)]
#[derive(Clone, Copy)]
struct Layout {
    size: u32,
    length: u32,
}

const MMSGHDR: Layout = Layout { size: MMSGHDR_SIZE as u32, length: MMSGHDR_LENGTH as u32 };

#[repr(C)]
struct Lengths {
    vector: u64,
    layout: Layout,
    bytes: u64,
    count: u32,
    padding: u32,
}

/// What all messages of a call came to.
#[inline(always)]
fn messages_length(vector: u64, count: u32, layout: Layout) -> i32 {
    let mut lengths = Lengths { vector, layout, bytes: 0, count, padding: 0 };
    // SAFETY: the callback takes (index, argument) as the helper asks.
    unsafe {
        bpf_loop(MESSAGES_SUMMED, add_message as *const () as *mut _, (&raw mut lengths).cast(), 0);
    }
    // The process can have written there since.
    if lengths.bytes > i32::MAX as u64 { i32::MAX } else { lengths.bytes as i32 }
}

/// Returns 1 to end the loop.
unsafe extern "C" fn add_message(index: u32, argument: *mut Lengths) -> i64 {
    // SAFETY: the argument that `messages_length` gave to the loop.
    let lengths = unsafe { &mut *argument };
    if index >= lengths.count {
        return 1;
    }
    let at = lengths.vector + index as u64 * lengths.layout.size as u64 + lengths.layout.length as u64;
    let Some(length) = read_user::<u32>(at) else { return 1 };
    lengths.bytes += length as u64;
    0
}

/// A message of several that were moved, with its length.
#[inline(always)]
pub(crate) fn message_at(vector: u64, index: u32) -> Option<(u64, u32)> {
    let address = vector + index as u64 * MMSGHDR_SIZE;
    Some((address, read_user::<u32>(address + MMSGHDR_LENGTH)?))
}

/// Nothing moved: the call goes on to its next message after a message without bytes, and ends with an
/// error.
#[inline(always)]
pub(crate) fn moved_nothing(failed: bool) {
    // SAFETY: the helper returns a kernel object of a known type.
    let registers = registers(Typed(unsafe { bpf_get_current_task_btf() } as u64));
    let number: u64 = registers.load(core::mem::offset_of!(pt_regs, orig_rax));
    if number != number::SENDMMSG && number != number::RECVMMSG {
        return;
    }
    if failed {
        return forget_messages();
    }
    let second: u64 = registers.load(core::mem::offset_of!(pt_regs, rsi));
    let third: u64 = registers.load(core::mem::offset_of!(pt_regs, rdx));
    let timeout: u64 = registers.load(core::mem::offset_of!(pt_regs, r8));
    let sends = number == number::SENDMMSG;
    let count = if sends { sent_at_most(third) } else { third as u32 };
    let _ = next_message(second, count, !sends && timeout != 0);
}

/// sendmmsg takes no more messages than these (`UIO_MAXIOV`, include/uapi/linux/uio.h).
#[inline(always)]
fn sent_at_most(count: u64) -> u32 {
    if count as u32 > 1024 { 1024 } else { count as u32 }
}

#[inline(always)]
fn is_32_bit<O: Object>(task: O) -> bool {
    task.load::<u32>(offset!(TASK_STATUS)) & TS_COMPAT != 0
}

#[inline(always)]
fn registers(task: Typed) -> Typed {
    // SAFETY: the helper takes and returns kernel objects of a known type.
    Typed(unsafe { bpf_task_pt_regs(task.0 as *mut _) } as u64)
}

/// The buffers of a `struct user_msghdr`.
#[inline(always)]
pub(crate) fn message(address: u64) -> Buffer {
    match (read_user::<u64>(address + MSGHDR_IOV), read_user::<u64>(address + MSGHDR_IOVLEN)) {
        (Some(pieces), Some(count)) => Buffer::pieces(pieces, count),
        _ => Buffer::none(omitted::FAULT),
    }
}

/// Which of several messages this is: the tracepoints run once for each, without its number. Each call
/// starts with the first, goes on in order, and ends after the last or with one that fails or is sent
/// short (net/socket.c, `__sys_sendmmsg` and `do_recvmmsg`); only that a time limit ends it is not seen.
#[inline(always)]
fn next_message(vector: u64, count: u32, limited: bool) -> Option<u64> {
    if limited && count > 1 {
        return None;
    }
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the value is copied at once, and belongs to this thread.
    let index = match unsafe { MESSAGES.get(&thread) } {
        Some(messages) if messages.vector == vector && messages.count == count => messages.next,
        _ => 0,
    };
    if index + 1 >= count {
        forget_messages();
    } else if MESSAGES.insert(&thread, &Messages { vector, count, next: index + 1 }, 0).is_err() {
        return None;
    }
    Some(vector + index as u64 * MMSGHDR_SIZE)
}

/// The thread is in no such call any more.
#[inline(always)]
pub(crate) fn forget_messages() {
    let _ = MESSAGES.remove(&bpf_get_current_pid_tgid());
}

#[repr(C)]
struct Sum {
    pieces: u64,
    count: u64,
    bytes: u64,
}

/// Whether a message has more bytes than those that moved.
#[inline(always)]
fn is_short(buffer: Buffer, moved: u32) -> bool {
    let mut sum = Sum { pieces: buffer.address, count: buffer.count, bytes: 0 };
    // SAFETY: the callback takes (index, argument) as the helper asks.
    unsafe {
        bpf_loop(IOVECS_PER_CALL, add_piece as *const () as *mut _, (&raw mut sum).cast(), 0);
    }
    sum.bytes > moved as u64
}

/// Returns 1 to end the loop.
unsafe extern "C" fn add_piece(index: u32, argument: *mut Sum) -> i64 {
    // SAFETY: the argument that `is_short` gave to the loop.
    let sum = unsafe { &mut *argument };
    if index as u64 >= sum.count {
        return 1;
    }
    let Some(length) = read_user::<u64>(sum.pieces + index as u64 * 16 + 8) else { return 1 };
    sum.bytes += length;
    0
}
