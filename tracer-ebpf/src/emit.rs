//! The only way out: records into the ring buffer, and what did not fit into the counters.

use core::mem::{MaybeUninit, size_of};

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_get_current_pid_tgid, bpf_ktime_get_ns,
        generated::{
            bpf_loop, bpf_ringbuf_discard, bpf_ringbuf_output, bpf_ringbuf_query, bpf_ringbuf_reserve,
            bpf_ringbuf_submit,
        },
    },
};
use tracer_common::{
    config::{Counter, IOVECS_PER_CALL, PAYLOAD_CLASSES, PAYLOAD_MAX, RECORDS_PER_CALL, TAIL_RECORDS},
    connection::{ConnectionState, Direction},
    record::{Data, Header, omitted},
};

use crate::{
    frames,
    maps::{self, RECORDS, SCRATCH_SIZE, Walk, count},
    memory::{
        BY_ADDRESS, FEW, RING_SIZE, bounded, constant, copy_user, copy_user_few, copy_words, masked,
        read_user, zero_words,
    },
    syscall::{self, Buffer, shape},
};

/// The most that is put together from pieces: header, any offset and any length stay in the scratch.
pub(crate) const GATHER_MAX: u32 = 16128;
const _: () = assert!(size_of::<Data>() + 2 * GATHER_MAX as usize <= SCRATCH_SIZE);

/// Short calls, and how few pieces are read at once.
pub(crate) const SHORT_MAX: u32 = 512;
pub(crate) const PIECES_FEW: usize = 4;

/// Where several messages are looked at when the call is over: so many of them, and so many pieces of each.
const MESSAGES_PER_CALL: u32 = 128;
const IOVECS_PER_MESSAGE: u32 = 64;

/// When this part of the ring is full, no more than so many bytes of a call are copied.
const CROWDED_FRACTION: u64 = 2;
const CROWDED_MOST: u32 = 512;

/// A sleeping agent is woken when this part of the ring is full, and not more often than this.
const WAKE_FRACTION: u64 = 8;
const WAKE_INTERVAL: u64 = 1_000_000;

#[inline(always)]
pub(crate) fn header<T>(kind: u16) -> Header {
    header_by::<T>(kind, bpf_get_current_pid_tgid())
}

/// The same where it is known who is running, as the kernel's helper tells it.
#[inline(always)]
pub(crate) fn header_by<T>(kind: u16, id: u64) -> Header {
    Header {
        // SAFETY: no arguments.
        time: unsafe { bpf_ktime_get_ns() },
        size: size_of::<T>() as u32,
        kind,
        flags: 0,
        pid: (id >> 32) as u32,
        thread: id as u32,
    }
}

/// A record without payload. Returns whether there was room.
#[inline(always)]
pub(crate) fn fixed<T>(fill: impl FnOnce(&mut T)) -> bool {
    let Some(record) = reserve(size_of::<T>()) else { return false };
    // SAFETY: reserved with this size, aligned to 8, and of plain numbers.
    fill(unsafe { &mut *record.cast::<T>() });
    submit(record);
    true
}

/// What is copied of a call: its start and its end, where heads and framing are. What is left out is in
/// the middle.
#[repr(C)]
#[derive(Clone, Copy)]
struct Share {
    start: u32,
    end: u32,
    reason: u32,
}

impl Share {
    #[inline(always)]
    fn of(total: u32) -> Self {
        if total > 2 * CROWDED_MOST && crowded() {
            Self { start: CROWDED_MOST, end: CROWDED_MOST, reason: omitted::CROWDED as u32 }
        } else {
            Self {
                start: (RECORDS_PER_CALL - TAIL_RECORDS) * GATHER_MAX,
                end: TAIL_RECORDS * GATHER_MAX,
                reason: omitted::OVER_BUDGET as u32,
            }
        }
    }
}

/// What is on its way out of a call. It lives in a map, by direction: the verifier then follows what comes
/// after once, and the stack stays small.
#[repr(C)]
pub(crate) struct Outgoing {
    /// All that records of the call have in common; of several messages, of the next one.
    pub(crate) first: Data,
    pub(crate) buffer: Buffer,
    /// Bytes that moved, and those of them that are dealt with.
    pub(crate) total: u32,
    done: u32,
    share: Share,
    saves: u32,
}

/// A call that moved bytes, told in one record or several. `out.first` has all but what differs between them;
/// `total` is what the call moved. `is_first`: frames can begin here; `saves` is not 0 if the content of frames is
/// not asked for.
#[inline(always)]
pub(crate) fn data(
    direction: u32,
    out: &mut Outgoing,
    buffer: Buffer,
    total: u32,
    state: &mut ConnectionState,
    is_first: bool,
    saves: u32,
) {
    out.total = total;
    out.done = 0;
    // SAFETY: references are valid. Volatile, since the point is that it happens: what is read back is the
    // same to the verifier, whatever was written.
    let (buffer, saves) = unsafe {
        core::ptr::write_volatile(&mut out.buffer, buffer);
        core::ptr::write_volatile(&mut out.saves, saves);
        (core::ptr::read_volatile(&out.buffer), core::ptr::read_volatile(&out.saves))
    };
    // At the end of system calls there is too much before this for verifiers of the kernels that need that.
    if constant(&BY_ADDRESS) == 0 {
        if is_first && state.framed == 0 {
            frames::begin(direction, state, out);
        }
        let may_be_told = state.framed != 0 || buffer.shape == shape::PIECES;
        let mut told = if may_be_told { frames::told(direction, state, out) } else { 0 };
        if told & frames::FOLLOW != 0 {
            told = frames::follow(direction, state, out, told & 1, saves);
        }
        if told != 0 {
            return;
        }
    }
    match buffer.shape {
        shape::FLAT => flat(direction, out),
        shape::PIECES => pieces(direction, buffer.address, buffer.count, total, IOVECS_PER_CALL),
        // Only where calls are seen when they are over.
        shape::MESSAGES if constant(&BY_ADDRESS) != 0 => messages(direction),
        _ => gap(&out.first, 0, total, buffer.omitted as u8),
    }
}

/// One record, or for a large call a loop of the kernel's over several.
#[inline(always)]
fn flat(direction: u32, out: &mut Outgoing) {
    out.share = Share::of(out.total);
    if out.total <= PAYLOAD_MAX as u32 && out.total <= out.share.start {
        return part(&out.first, out.total, out.buffer.address);
    }
    let mut argument = direction;
    // SAFETY: the callback takes (index, argument) as the helper asks.
    unsafe {
        bpf_loop(2 * RECORDS_PER_CALL, next_part as *const () as *mut _, (&raw mut argument).cast(), 0);
    }
}

/// Returns 1 to end the loop.
unsafe extern "C" fn next_part(_: u32, argument: *mut u32) -> i64 {
    // SAFETY: the argument that `flat` gave to the loop.
    let Some(out) = maps::outgoing(unsafe { *argument } & 1) else { return 1 };
    if out.done >= out.total {
        return 1;
    }
    let left = out.total - out.done;
    if out.done == out.share.start && left > out.share.end {
        let length = left - out.share.end;
        gap(&out.first, out.done, length, out.share.reason as u8);
        out.done += length;
        return 0;
    }
    let mut length = if left > PAYLOAD_MAX as u32 { PAYLOAD_MAX as u32 } else { left };
    if out.done < out.share.start && length > out.share.start - out.done {
        length = out.share.start - out.done;
    }
    // Two classes alone: each is one more for the verifier to look at.
    let from = out.buffer.address + out.done as u64;
    if length <= CROWDED_MOST {
        copied::<{ CROWDED_MOST as usize }>(&out.first, out.done, length, from);
    } else {
        copied::<PAYLOAD_MAX>(&out.first, out.done, length, from);
    }
    out.done += length;
    0
}

/// In the smallest class that fits.
#[inline(always)]
fn part(first: &Data, length: u32, from: u64) {
    if length <= PAYLOAD_CLASSES[0] as u32 {
        copied::<{ PAYLOAD_CLASSES[0] }>(first, 0, length, from);
    } else if length <= PAYLOAD_CLASSES[1] as u32 {
        copied::<{ PAYLOAD_CLASSES[1] }>(first, 0, length, from);
    } else if length <= PAYLOAD_CLASSES[2] as u32 {
        copied::<{ PAYLOAD_CLASSES[2] }>(first, 0, length, from);
    } else if length <= PAYLOAD_CLASSES[3] as u32 {
        copied::<{ PAYLOAD_CLASSES[3] }>(first, 0, length, from);
    } else {
        copied::<{ PAYLOAD_CLASSES[4] }>(first, 0, length, from);
    }
}

/// One record with a payload of up to `N` bytes, straight from the memory of the process.
#[inline(always)]
fn copied<const N: usize>(first: &Data, done: u32, length: u32, from: u64) {
    let Some(record) = reserve(size_of::<Data>() + N) else { return lost(first.direction, length) };
    let captured = bounded(length, N as u32);
    // SAFETY: reserved with room for the fields and N bytes, aligned to 8.
    unsafe {
        let data = &mut *record.cast::<Data>();
        write(data, first, done, length);
        if copy_user(record.add(size_of::<Data>()), captured, from) {
            data.captured = captured;
            data.header.size += captured;
        } else {
            data.omitted = omitted::FAULT;
        }
    }
    submit(record);
}

/// Bytes that moved and are not copied.
#[inline(always)]
pub(crate) fn gap(first: &Data, done: u32, length: u32, reason: u8) {
    let told = fixed(|record: &mut Data| {
        write(record, first, done, length);
        record.omitted = reason;
    });
    if !told {
        lost(first.direction, length);
    }
}

#[inline(always)]
pub(crate) fn write(record: &mut Data, first: &Data, done: u32, length: u32) {
    copy_words(record, first);
    record.position += done as u64;
    record.length = length;
}

/// The messages of one call, one after the other.
#[inline(always)]
fn messages(direction: u32) {
    let mut argument = direction;
    // SAFETY: the callback takes (index, argument) as the helper asks.
    unsafe {
        bpf_loop(MESSAGES_PER_CALL, one_message as *const () as *mut _, (&raw mut argument).cast(), 0);
    }
    let Some(out) = maps::outgoing(direction) else { return };
    if out.total > out.done {
        gap(&out.first, 0, out.total - out.done, omitted::OVER_BUDGET);
    }
}

/// Returns 1 to end the loop.
unsafe extern "C" fn one_message(index: u32, argument: *mut u32) -> i64 {
    // SAFETY: the argument that `messages` gave to the loop.
    let direction = unsafe { *argument } & 1;
    let Some(out) = maps::outgoing(direction) else { return 1 };
    if index as u64 >= out.buffer.count || out.done >= out.total {
        return 1;
    }
    let Some((address, length)) = syscall::message_at(out.buffer.address, index) else { return 1 };
    // The process can have written there since.
    let length = if length > out.total - out.done { out.total - out.done } else { length };
    if length == 0 {
        return 0;
    }
    let buffer = syscall::message(address);
    if buffer.shape == shape::PIECES {
        pieces(direction, buffer.address, buffer.count, length, IOVECS_PER_MESSAGE);
    } else {
        gap(&out.first, 0, length, omitted::FAULT);
    }
    out.first.position += length as u64;
    out.done += length;
    0
}

/// Puts a short call together in the scratch, whether flat or in a few pieces; false if it is no such call.
#[inline(always)]
pub(crate) fn gather_few(scratch: *mut u8, walk: &mut Walk, out: &Outgoing, buffer: Buffer) -> bool {
    let total = out.total;
    if total > SHORT_MAX || buffer.count > PIECES_FEW as u64 {
        return false;
    }
    if buffer.shape == shape::FLAT {
        let length = bounded(total, SHORT_MAX);
        // SAFETY: the scratch has room for the fields and more than that.
        if !unsafe { copy_user(scratch.add(size_of::<Data>()), length, buffer.address) } {
            return false;
        }
    } else if buffer.shape == shape::PIECES {
        // On the stack: with checks on what is copied (CONFIG_HARDENED_USERCOPY) that is the cheapest place.
        let mut few = MaybeUninit::<[Piece; PIECES_FEW]>::uninit();
        zero_words(few.as_mut_ptr());
        // SAFETY: it is zeros, which are plain numbers.
        let few = unsafe { few.assume_init_mut() };
        // As many as there are: what lies behind them may not be there to be read.
        let size = bounded(buffer.count as u32 * size_of::<Piece>() as u32, size_of_val(few) as u32);
        // SAFETY: the target has room for so many.
        if !unsafe { copy_user(few.as_mut_ptr().cast(), size, buffer.address) } {
            return false;
        }
        let mut filled = 0;
        // Those that are not there have no length.
        for piece in few.iter() {
            if filled >= total {
                break;
            }
            let left = total - filled;
            let length = if piece.length > left as u64 { left } else { piece.length as u32 };
            // Less than the total.
            let (at, length) = (masked(filled, SHORT_MAX - 1), bounded(length, SHORT_MAX));
            // SAFETY: the scratch has room for the fields and twice as much, which is more than `FEW`.
            let read = unsafe {
                let target = scratch.add(size_of::<Data>() + at as usize);
                if length <= FEW {
                    copy_user_few(target, length, piece.address)
                } else {
                    copy_user(target, length, piece.address)
                }
            };
            if !read {
                return false;
            }
            filled = at + length;
        }
        if filled != total {
            return false;
        }
    } else {
        return false;
    }
    // SAFETY: the scratch is larger than the fields, and aligned to 8.
    write(unsafe { &mut *scratch.cast::<Data>() }, &out.first, 0, 0);
    walk.filled = total;
    true
}

/// Pieces are put together in the scratch, so that a call with many small ones is one record.
#[inline(always)]
fn pieces(direction: u32, address: u64, count: u64, total: u32, most: u32) {
    let (Some(scratch), Some(walk)) = (maps::scratch(direction), maps::walk(direction)) else { return };
    let Some(out) = maps::outgoing(direction) else { return };
    // SAFETY: the scratch is larger than the fields, and aligned to 8.
    write(unsafe { &mut *scratch.cast::<Data>() }, &out.first, 0, 0);
    let share = Share::of(total);
    walk.start(address, count, total, share.start, share.end);
    let mut argument = direction;
    // SAFETY: the callback takes (index, argument) as the helper asks.
    unsafe {
        bpf_loop(most + 2 * RECORDS_PER_CALL, piece as *const () as *mut _, (&raw mut argument).cast(), 0);
    }
    let Some(walk) = maps::walk(direction) else { return };
    flush(direction);
    // What is still to be passed over was told.
    let left = walk.left.wrapping_sub(walk.skip);
    if left > 0 {
        let reason = if walk.fault != 0 { omitted::FAULT } else { omitted::IOVECS };
        gap(&out.first, total.wrapping_sub(left), left, reason);
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Piece {
    pub(crate) address: u64,
    pub(crate) length: u64,
}

/// Takes as much of the current piece as fits. Returns 1 to end the loop.
unsafe extern "C" fn piece(_: u32, argument: *mut u32) -> i64 {
    // SAFETY: the argument that `pieces` gave to the loop.
    let direction = unsafe { *argument } & 1;
    let (Some(scratch), Some(walk)) = (maps::scratch(direction), maps::walk(direction)) else { return 1 };
    if walk.index >= walk.count || walk.left == 0 {
        return 1;
    }
    let Some(piece) = read_user::<Piece>(walk.pieces + walk.index * size_of::<Piece>() as u64) else {
        walk.fault = 1;
        return 1;
    };
    let filled = bounded(walk.filled, GATHER_MAX);
    let mut length = piece.length.wrapping_sub(walk.inside);
    if length > walk.left as u64 {
        length = walk.left as u64;
    }
    if walk.skip > 0 {
        if length > walk.skip as u64 {
            length = walk.skip as u64;
        }
        walk.skip -= length as u32;
        return walk.pass(length, piece.length);
    }
    if walk.until_skip > 0 && length > walk.until_skip as u64 {
        length = walk.until_skip as u64;
    }
    if length > (GATHER_MAX - filled) as u64 {
        length = (GATHER_MAX - filled) as u64;
    }
    let length = bounded(length as u32, GATHER_MAX);
    if length > 0 {
        // SAFETY: fields + 2 * GATHER_MAX stay in the scratch (asserted above).
        let read = unsafe {
            copy_user(scratch.add(size_of::<Data>() + filled as usize), length, piece.address + walk.inside)
        };
        if !read {
            walk.fault = 1;
            return 1;
        }
    }
    walk.filled = filled + length;
    walk.pass(length as u64, piece.length);
    if walk.filled >= GATHER_MAX {
        flush(direction);
    }
    if walk.until_skip > 0 {
        walk.until_skip = walk.until_skip.wrapping_sub(length);
        if walk.until_skip == 0 {
            skip_to_end(direction);
        }
    }
    0
}

/// When only the end of a call may still be copied, what lies before it is passed over.
#[inline(always)]
fn skip_to_end(direction: u32) {
    flush(direction);
    let (Some(scratch), Some(walk)) = (maps::scratch(direction), maps::walk(direction)) else { return };
    if walk.left <= walk.end {
        return;
    }
    walk.skip = walk.left - walk.end;
    let reason = if walk.end == CROWDED_MOST { omitted::CROWDED } else { omitted::OVER_BUDGET };
    // SAFETY: the scratch is larger than the fields, and aligned to 8.
    let record = unsafe { &mut *scratch.cast::<Data>() };
    record.header.size = size_of::<Data>() as u32;
    record.captured = 0;
    gap(record, 0, walk.skip, reason);
    record.position += walk.skip as u64;
}

/// Sends what is in the scratch and makes it ready for what follows.
#[inline(always)]
pub(crate) fn flush(direction: u32) {
    let (Some(scratch), Some(walk)) = (maps::scratch(direction), maps::walk(direction)) else { return };
    send_gathered(scratch, walk);
}

#[inline(always)]
pub(crate) fn send_gathered(scratch: *mut u8, walk: &mut Walk) {
    let filled = bounded(walk.filled, GATHER_MAX);
    if filled == 0 {
        return;
    }
    // SAFETY: the scratch is larger than the fields, and aligned to 8.
    let record = unsafe { &mut *scratch.cast::<Data>() };
    record.length = filled;
    send(record, filled, filled);
    walk.filled = 0;
}

/// The same, with so many bytes after it that are not copied.
#[inline(always)]
pub(crate) fn flush_over(direction: u32, over: u32, reason: u8) {
    let (Some(scratch), Some(walk)) = (maps::scratch(direction), maps::walk(direction)) else { return };
    let filled = bounded(walk.filled, GATHER_MAX);
    // SAFETY: the scratch is larger than the fields, and aligned to 8.
    let record = unsafe { &mut *scratch.cast::<Data>() };
    record.omitted = reason;
    record.length = filled + over;
    send(record, filled, filled + over);
    record.omitted = omitted::NOTHING;
    walk.filled = 0;
}

/// `length` bytes moved, of which those that are `filled` come after the record's fields.
#[inline(always)]
fn send(record: &mut Data, filled: u32, length: u32) {
    record.captured = filled;
    record.header.size = size_of::<Data>() as u32 + filled;
    let start = (&raw mut *record).cast();
    // SAFETY: the record starts the scratch, and the size stays in it (asserted above).
    let result =
        unsafe { bpf_ringbuf_output(ring(), start, (size_of::<Data>() as u32 + filled) as u64, wake()) };
    if result != 0 {
        count(Counter::LostRecords, 1);
        lost(record.direction, length);
    }
    record.position += length as u64;
}

/// Bytes that no record tells of.
#[inline(always)]
pub(crate) fn lost(direction: u8, length: u32) {
    let counter = if direction == Direction::Sent as u8 { Counter::LostSent } else { Counter::LostReceived };
    count(counter, length as u64);
}

#[inline(always)]
fn reserve(size: usize) -> Option<*mut u8> {
    // SAFETY: the map is a ring buffer; every record that is reserved is submitted.
    let record = unsafe { bpf_ringbuf_reserve(ring(), size as u64, 0) }.cast::<u8>();
    if record.is_null() {
        count(Counter::LostRecords, 1);
        return None;
    }
    Some(record)
}

#[inline(always)]
fn submit(record: *mut u8) {
    // SAFETY: the record was reserved, and is submitted once.
    unsafe { bpf_ringbuf_submit(record.cast(), wake()) }
}

#[inline(always)]
pub(crate) fn crowded() -> bool {
    waiting() > constant(&RING_SIZE) as u64 / CROWDED_FRACTION || maps::sheds_content()
}

/// Bytes that wait in the ring.
#[inline(always)]
fn waiting() -> u64 {
    // SAFETY: the map is a ring buffer.
    unsafe { bpf_ringbuf_query(ring(), BPF_RB_AVAIL_DATA as u64) }
}

/// The agent polls: it is woken only when it sleeps for longer than the ring has room for.
#[inline(always)]
fn wake() -> u64 {
    if waiting() < constant(&RING_SIZE) as u64 / WAKE_FRACTION {
        return BPF_RB_NO_WAKEUP as u64;
    }
    // SAFETY: an element of a per-CPU array.
    let (Some(last), now) = (maps::woken(), unsafe { bpf_ktime_get_ns() }) else {
        return BPF_RB_NO_WAKEUP as u64;
    };
    // SAFETY: as above.
    unsafe {
        if now - *last < WAKE_INTERVAL {
            return BPF_RB_NO_WAKEUP as u64;
        }
        *last = now;
    }
    BPF_RB_FORCE_WAKEUP as u64
}

/// There is something that the agent should look at without delay.
#[inline(always)]
pub(crate) fn wake_agent() {
    // SAFETY: a record of no bytes would be refused: this one is dropped at once, with a word to the
    // agent.
    unsafe {
        let record = bpf_ringbuf_reserve(ring(), 8, 0);
        if !record.is_null() {
            bpf_ringbuf_discard(record, BPF_RB_FORCE_WAKEUP as u64);
        }
    }
}

#[inline(always)]
fn ring() -> *mut core::ffi::c_void {
    core::ptr::addr_of!(RECORDS).cast_mut().cast()
}
