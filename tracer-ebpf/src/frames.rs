//! Frames of a stream, by a layout that the agent describes: where they are followed from a connection's first
//! byte on, content can be passed over and no header is.

use core::mem::size_of;

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_kernel};
use tracer_common::{
    config::RECORDS_PER_CALL,
    connection::Frames,
    record::{Data, omitted},
};

use crate::{
    emit::{
        self, GATHER_MAX, Outgoing, Piece, SHORT_MAX, crowded, flush, flush_over, gap, gather_few,
        send_gathered, write,
    },
    maps::{self, FRAMES},
    memory::{self, bounded, constant, copy_user, copy_words, masked, read_user},
    syscall::{Buffer, shape},
};

/// Content that is not worth it is copied; of other content the start is, since messages within it may have
/// headers of their own.
const CONTENT_MIN: u32 = 512;
const CONTENT_START: u32 = 16;

/// Calls from this length on ask how full the ring is.
const CROWDING_MIN: u32 = 1024;

/// More is no frame.
const LENGTH_MAX: u32 = 1 << 24;

/// A header has no more bytes.
const HEADER_MAX: u32 = 16;

/// What one call may copy before content is passed over; and at most of headers.
const COPIED_MAX: u32 = (RECORDS_PER_CALL - 1) * GATHER_MAX;
const HEADERS_MAX: u32 = 4 << 20;

/// So many frames of a short call are read without a loop of the kernel's.
const FRAMES_FEW: u32 = 2;

/// Steps of one call: one for each piece and frame, and some for each record.
const STEPS: u32 = 65536;

/// Follows a connection whose first bytes are those of the layout, if `first` tells of them. What was sent
/// before in the other direction is taken for whole frames: nobody ends a first call within one.
#[inline(always)]
fn begin(first: &Data, buffer: &Buffer, total: u32) -> bool {
    let length = constant(&memory::FRAMING_PREFIX_LENGTH) as u32;
    if length == 0 || total < size_of::<[u32; 4]>() as u32 {
        return false;
    }
    let address = match buffer.shape {
        shape::FLAT => buffer.address,
        shape::PIECES => match read_user::<Piece>(buffer.address) {
            Some(piece) if piece.length >= size_of::<[u32; 4]>() as u64 => piece.address,
            _ => return false,
        },
        _ => return false,
    };
    let Some(start) = read_user::<[u32; 4]>(address) else { return false };
    let prefix = [
        &memory::FRAMING_PREFIX_0,
        &memory::FRAMING_PREFIX_1,
        &memory::FRAMING_PREFIX_2,
        &memory::FRAMING_PREFIX_3,
    ];
    if start[0] != constant(prefix[0]) as u32
        || start[1] != constant(prefix[1]) as u32
        || start[2] != constant(prefix[2]) as u32
        || start[3] != constant(prefix[3]) as u32
    {
        return false;
    }
    let Some(room) = maps::scratch(first.direction as u32 & 1) else { return false };
    let [sent, received] = first.bases;
    let asks = (first.direction == 0) as u32 * length;
    // SAFETY: the scratch is larger than the two, and aligned to 8. Values on the stack would be too much of it.
    unsafe {
        let both = room.cast::<[Frames; 2]>();
        let (own, other) = (first.position, first.opposite);
        let (first_of_sent, first_of_received) =
            if first.direction == 0 { (own, other) } else { (other, own) };
        (*both)[0] = starting(first_of_sent, sent, asks);
        (*both)[1] = starting(first_of_received, received, length - asks);
        FRAMES.insert(&first.cookie, &*both, 0).is_ok()
    }
}

#[inline(always)]
fn starting(position: u64, base: u32, copy: u32) -> Frames {
    let sequence = (position as u32).wrapping_add(base);
    Frames { sequence, copy, follows: 1, ..Frames::default() }
}

#[inline(always)]
fn kept(cookie: u64, direction: u32) -> Option<&'static mut Frames> {
    // Hidden, or what is added to it comes before it was looked at.
    let both = core::hint::black_box(FRAMES.get_ptr_mut(&cookie)?.cast::<Frames>());
    // SAFETY: one of the two of a value of the map, which lives as long as the program runs.
    Some(unsafe { &mut *both.add((direction & 1) as usize) })
}

/// What [`follow`] has done.
pub(crate) const TOLD: u32 = 1;
pub(crate) const BEGUN: u32 = 2;

/// Tells of a call of a connection whose frames are followed, or may be from here on; `framed` is of
/// [`emit::framing`]. A function of its own, so that its part of the stack is used only where it is.
#[inline(never)]
pub(crate) fn follow(direction: u32, framed: u32) -> u32 {
    let direction = direction & 1;
    let Some(out) = maps::outgoing(direction) else { return 0 };
    // SAFETY: a reference is valid to read. Volatile: to the verifier it is the same, whatever was written.
    let buffer = unsafe { core::ptr::read_volatile(&out.buffer) };
    let begun = framed & emit::framing::MAY_BEGIN != 0 && begin(&out.first, &buffer, out.total);
    if !begun && framed & emit::framing::FOLLOWED == 0 {
        return 0;
    }
    let told = follow_call(direction, out, buffer, framed & emit::framing::SAVES != 0);
    let begun = if begun { BEGUN } else { 0 };
    if told { begun | TOLD } else { begun }
}

/// False if the call has to be told in another way.
#[inline(always)]
fn follow_call(direction: u32, out: &mut Outgoing, buffer: Buffer, saves: bool) -> bool {
    let Some(frames) = kept(out.first.cookie, direction) else { return false };
    if frames.follows == 0 {
        return false;
    }
    let total = out.total;
    // Calls of two threads at once, or bytes that no call was seen to move.
    let base = if direction == 0 { out.first.bases[0] } else { out.first.bases[1] };
    if frames.sequence != (out.first.position as u32).wrapping_add(base) {
        frames.follows = 0;
        return false;
    }
    // Nobody else follows from a state that is not written yet: first this one says so, then the position
    // moves on. SAFETY: references are valid to write; volatile for the order.
    unsafe {
        core::ptr::write_volatile(&mut frames.follows, 0);
        core::ptr::write_volatile(&mut frames.sequence, frames.sequence.wrapping_add(total));
    }
    if buffer.shape != shape::FLAT && buffer.shape != shape::PIECES {
        // Bytes that cannot be looked at are content, or hide where frames start.
        frames.follows = pass(frames, total) as u32;
        return false;
    }
    let (Some(scratch), Some(walk)) = (maps::scratch(direction), maps::walk(direction)) else { return false };
    if gather_few(scratch, walk, out, buffer) {
        let follows = follow_short(direction, scratch, walk, frames);
        send_gathered(scratch, walk);
        frames.follows = follows as u32;
        return true;
    }
    // SAFETY: the scratch is larger than the fields, and aligned to 8.
    write(unsafe { &mut *scratch.cast::<Data>() }, &out.first, 0, 0);
    let flat = buffer.shape == shape::FLAT;
    walk.start(buffer.address, if flat { 1 } else { buffer.count }, total, 0, 0);
    walk.flat = flat as u32;
    walk.copied = 0;
    walk.saves = if saves {
        omitted::QUIET as u32
    } else if total > CROWDING_MIN && crowded() {
        omitted::CROWDED as u32
    } else {
        0
    };
    copy_words(&mut walk.frames, frames);
    walk.frames.follows = 1;
    if walk.frames.content != 0 && walk.frames.copy > COPIED_MAX && total > COPIED_MAX {
        // Begun when it was not known that so much of it comes at once.
        walk.frames.skip += walk.frames.copy - CONTENT_START;
        walk.frames.copy = CONTENT_START;
        walk.frames.saves = omitted::OVER_BUDGET as u32;
    }
    let mut argument = direction;
    // SAFETY: the callback takes (index, argument) as the helper asks.
    unsafe {
        bpf_loop(STEPS, step as *const () as *mut _, (&raw mut argument).cast(), 0);
    }
    let Some(walk) = maps::walk(direction) else { return true };
    flush(direction);
    frames.copy = walk.frames.copy;
    frames.skip = walk.frames.skip;
    frames.have = walk.frames.have;
    frames.content = walk.frames.content;
    copy_words(&mut frames.header, &walk.frames.header);
    // As long as something is passed over, it is known why.
    frames.saves = if walk.frames.skip > 0 && walk.saves == 0 { walk.frames.saves } else { walk.saves };
    frames.follows = walk.frames.follows & (walk.left == 0) as u32;
    // What is still to be passed over was told.
    let left = walk.left.wrapping_sub(walk.skip);
    if left > 0 {
        let reason = if walk.fault != 0 { omitted::FAULT } else { omitted::OVER_BUDGET };
        gap(&out.first, total.wrapping_sub(left), left, reason);
    }
    true
}

/// Goes from header to header of a call that is in the scratch. Most have few frames, and whole headers: those
/// are read where they are. Returns whether it is known where the next starts.
#[inline(always)]
fn follow_short(direction: u32, scratch: *mut u8, walk: &mut maps::Walk, frames: &mut Frames) -> bool {
    let (filled, size) = (walk.filled, constant(&memory::FRAMING_HEADER) as u32);
    let (mut at, mut copy, mut skip) = (0, frames.copy, frames.skip);
    for _ in 0..FRAMES_FEW {
        let (left, ahead) = (filled - at, copy + skip);
        if ahead >= left {
            frames.skip = if copy >= left { skip } else { ahead - left };
            frames.copy = copy.saturating_sub(left);
            return true;
        }
        if frames.have != 0 || left - ahead < size {
            break;
        }
        at = masked(at + ahead, SHORT_MAX - 1);
        // SAFETY: the scratch has room for the fields, a short call and any header behind it.
        let header = unsafe { scratch.add(size_of::<Data>() + at as usize) };
        let Some(next) = content_after(header, frames.saves) else { return false };
        (copy, skip, frames.content) = next;
        at += size;
    }
    copy_words(&mut walk.frames, frames);
    walk.frames.copy = copy;
    walk.frames.skip = skip;
    walk.at = at;
    walk.frames.follows = 1;
    walk.saves = frames.saves;
    walk.copied = 0;
    walk.left = 0;
    let mut argument = direction;
    // SAFETY: the callback takes (index, argument) as the helper asks.
    unsafe {
        bpf_loop(
            SHORT_MAX / size.max(1) + 2,
            next_header as *const () as *mut _,
            (&raw mut argument).cast(),
            0,
        );
    }
    walk.frames.sequence = frames.sequence;
    let follows = walk.frames.follows;
    walk.frames.follows = 0;
    copy_words(frames, &walk.frames);
    follows != 0
}

/// Returns 1 to end the loop.
unsafe extern "C" fn next_header(_: u32, argument: *mut u32) -> i64 {
    // SAFETY: the argument that `follow_short` gave to the loop.
    let direction = unsafe { *argument } & 1;
    let (Some(scratch), Some(walk)) = (maps::scratch(direction), maps::walk(direction)) else { return 1 };
    let left = walk.filled.wrapping_sub(walk.at);
    if pass(&mut walk.frames, left) {
        return 1;
    }
    let ahead = walk.frames.copy + walk.frames.skip;
    let at = masked(walk.at + ahead, SHORT_MAX - 1);
    let left = left - ahead;
    walk.frames.copy = 0;
    walk.frames.skip = 0;
    let size = constant(&memory::FRAMING_HEADER) as u32;
    let have = bounded(walk.frames.have, HEADER_MAX);
    let wanted = size - have;
    let taken = bounded(if left < wanted { left } else { wanted }, HEADER_MAX);
    // SAFETY: both lie within what they are part of, with room behind.
    unsafe {
        let target = walk.frames.header.as_mut_ptr().add(have as usize);
        let source = scratch.add(size_of::<Data>() + at as usize);
        bpf_probe_read_kernel(target.cast(), taken, source.cast());
    }
    walk.at = at + taken;
    walk.frames.have = have + taken;
    if walk.frames.have < size {
        return 1;
    }
    read_header(walk);
    0
}

/// Goes on by so many bytes if all of them are content of the frame that has begun.
#[inline(always)]
fn pass(frames: &mut Frames, length: u32) -> bool {
    if frames.copy >= length {
        frames.copy -= length;
    } else if frames.skip >= length - frames.copy {
        frames.skip -= length - frames.copy;
        frames.copy = 0;
    } else {
        return false;
    }
    true
}

/// Goes on by the rest of a piece, or to the next header. Returns 1 to end the loop.
unsafe extern "C" fn step(_: u32, argument: *mut u32) -> i64 {
    // SAFETY: the argument that `follow` gave to the loop.
    let direction = unsafe { *argument } & 1;
    let (Some(scratch), Some(walk)) = (maps::scratch(direction), maps::walk(direction)) else { return 1 };
    if walk.left == 0 || walk.index >= walk.count {
        return 1;
    }
    if walk.skip == 0 && walk.frames.copy == 0 && walk.frames.skip > 0 {
        let over = if walk.frames.skip > walk.left { walk.left } else { walk.frames.skip };
        walk.frames.skip -= over;
        walk.skip = over;
        let reason = if walk.saves != 0 { walk.saves } else { walk.frames.saves };
        flush_over(direction, over, reason as u8);
        return 0;
    }
    let piece = if walk.flat != 0 {
        Piece { address: walk.pieces, length: walk.left as u64 + walk.inside }
    } else {
        match read_user::<Piece>(walk.pieces + walk.index * size_of::<Piece>() as u64) {
            Some(piece) => piece,
            None => {
                walk.fault = 1;
                return 1;
            }
        }
    };
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
    let size = constant(&memory::FRAMING_HEADER) as u32;
    // What is left of the frame, and the header behind it.
    let mut wanted = walk.frames.copy;
    if walk.frames.skip == 0 {
        wanted += size - walk.frames.have;
    }
    if length > wanted as u64 {
        length = wanted as u64;
    }
    let filled = bounded(walk.filled, GATHER_MAX);
    if length > (GATHER_MAX - filled) as u64 {
        length = (GATHER_MAX - filled) as u64;
    }
    let length = bounded(length as u32, GATHER_MAX);
    if length > 0 {
        // SAFETY: fields + 2 * GATHER_MAX stay in the scratch (asserted in `emit`).
        let read = unsafe {
            copy_user(scratch.add(size_of::<Data>() + filled as usize), length, piece.address + walk.inside)
        };
        if !read {
            walk.fault = 1;
            return 1;
        }
    }
    walk.filled = filled + length;
    walk.copied += length;
    let content = if length > walk.frames.copy { walk.frames.copy } else { length };
    walk.frames.copy -= content;
    let head = bounded(length - content, HEADER_MAX);
    if head > 0 {
        let have = bounded(walk.frames.have, HEADER_MAX);
        let from = bounded(filled + content, GATHER_MAX);
        // SAFETY: both lie within what they are part of; the header has room for what is added, since no more
        // is taken than `size` in all.
        unsafe {
            let target = walk.frames.header.as_mut_ptr().add(have as usize);
            let source = scratch.add(size_of::<Data>() + from as usize);
            if have + head <= HEADER_MAX {
                bpf_probe_read_kernel(target.cast(), bounded(head, HEADER_MAX - have), source.cast());
            }
        }
        walk.frames.have = have + head;
        if walk.frames.have >= size {
            read_header(walk);
        }
    }
    walk.pass(length as u64, piece.length);
    if walk.filled >= GATHER_MAX {
        flush(direction);
    }
    let most = if walk.frames.follows != 0 { HEADERS_MAX } else { COPIED_MAX };
    (walk.copied > most) as i64
}

/// A header is whole.
#[inline(always)]
fn read_header(walk: &mut maps::Walk) {
    walk.frames.have = 0;
    if walk.saves == 0 && walk.copied > COPIED_MAX {
        walk.saves = omitted::OVER_BUDGET as u32;
    }
    let Some((mut copy, mut skip, content)) = content_after(walk.frames.header.as_ptr(), walk.saves) else {
        // What follows of the call is copied, and no longer followed.
        walk.frames.follows = 0;
        walk.frames.copy = u32::MAX - HEADER_MAX;
        walk.frames.skip = 0;
        return;
    };
    if content != 0 && copy > COPIED_MAX && walk.left > COPIED_MAX {
        // One frame is more than a call may copy.
        walk.frames.saves = omitted::OVER_BUDGET as u32;
        (copy, skip) = (CONTENT_START, copy - CONTENT_START);
    } else if skip > 0 {
        walk.frames.saves = walk.saves;
    }
    walk.frames.copy = copy;
    walk.frames.skip = skip;
    walk.frames.content = content;
}

/// How much of what follows a header is copied, how much after that is not, and whether that is content. None
/// if it is no header.
#[inline(always)]
fn content_after(header: *const u8, saves: u32) -> Option<(u32, u32, u32)> {
    let at = constant(&memory::FRAMING_LENGTH_AT) & 7;
    let kind_at = constant(&memory::FRAMING_KIND_AT) & 7;
    let width = constant(&memory::FRAMING_LENGTH_SIZE) as u32 & 7;
    // SAFETY: there are 16 bytes, and what is read lies in the first 11.
    let (bytes, kind) =
        unsafe { (core::ptr::read_unaligned(header.add(at).cast::<u32>()), *header.add(kind_at) as u32) };
    let length = u32::from_be(bytes) >> ((32 - 8 * width) & 31);
    if kind >= constant(&memory::FRAMING_KINDS) as u32 || length > LENGTH_MAX {
        return None;
    }
    let is_content = constant(&memory::FRAMING_CONTENT) as u32 >> (kind & 31) & 1 != 0;
    if saves != 0 && is_content && length > CONTENT_MIN {
        return Some((CONTENT_START, length - CONTENT_START, 1));
    }
    Some((length, 0, is_content as u32))
}
