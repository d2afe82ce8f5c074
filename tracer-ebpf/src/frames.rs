//! Frames of a stream, by a layout that the agent describes: where they are followed from a connection's first
//! byte on, content can be passed over and no header is.

use core::mem::size_of;

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_kernel};
use tracer_common::{
    config::RECORDS_PER_CALL,
    connection::{ConnectionState, Framed, Frames, framed},
    record::{Data, omitted},
};

use crate::{
    emit::{
        GATHER_MAX, Outgoing, Piece, SHORT_MAX, crowded, flush, flush_over, gap, gather_few, send_gathered,
        write,
    },
    maps::{self, FRAMES},
    memory::{self, bounded, constant, copy_user, copy_words, masked, read_user, zero_words},
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
const FRAMES_FEW: u32 = 4;

/// Steps of one call: one for each piece and frame, and some for each record.
const STEPS: u32 = 65536;

/// Follows a connection whose first bytes are those of the layout, if that is what this call moved. What was sent
/// before in the other direction is taken for whole frames: nobody ends a first call within one. A function of its
/// own, as the next, so that its part of the stack is used only where it is.
#[inline(never)]
pub(crate) fn begin(direction: u32, state: &mut ConnectionState, out: &Outgoing) -> u32 {
    let length = constant(&memory::FRAMING_PREFIX_LENGTH) as u32;
    if length == 0 || out.total < size_of::<[u32; 4]>() as u32 {
        return 0;
    }
    // SAFETY: a reference is valid to read. Volatile: to the verifier it is the same, whatever was written.
    let buffer = unsafe { core::ptr::read_volatile(&out.buffer) };
    let address = match buffer.shape {
        shape::FLAT => buffer.address,
        shape::PIECES => match read_user::<Piece>(buffer.address) {
            Some(piece) if piece.length >= size_of::<[u32; 4]>() as u64 => piece.address,
            _ => return 0,
        },
        _ => return 0,
    };
    let Some(start) = read_user::<[u32; 4]>(address) else { return 0 };
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
        return 0;
    }
    let first = &out.first;
    let (own, other) = (first.position as u32, first.opposite as u32);
    let (sent, received, asks) = if direction == 0 { (own, other, length) } else { (other, own, 0) };
    state.framing = [
        Framed { sequence: sent.wrapping_add(first.bases[0]), left: asks },
        Framed { sequence: received.wrapping_add(first.bases[1]), left: length - asks },
    ];
    state.framed = 1;
    0
}

/// Tells of a short call in pieces, and of any of few frames on a connection whose frames are followed. Returns 0 if
/// the call has to be told in another way, and [`FOLLOW`] if that is by [`follow`], with 1 added if it is in the
/// scratch already.
#[inline(never)]
pub(crate) fn told(direction: u32, state: &mut ConnectionState, out: &Outgoing) -> u32 {
    let direction = direction & 1;
    let (Some(scratch), Some(walk)) = (maps::scratch(direction), maps::walk(direction)) else { return 0 };
    // SAFETY: a reference is valid to read. Volatile: to the verifier it is the same, whatever was written.
    let buffer = unsafe { core::ptr::read_volatile(&out.buffer) };
    walk.before = if state.framed == 0 {
        framed::LOST
    } else {
        enter(&mut state.framing[direction as usize], direction, out)
    };
    if walk.before == framed::LOST && buffer.shape != shape::PIECES {
        return 0;
    }
    let is_short = gather_few(scratch, walk, out, buffer);
    if walk.before == framed::LOST {
        if is_short {
            send_gathered(scratch, walk);
        }
        return is_short as u32;
    }
    if is_short {
        let left = few_frames(scratch, walk);
        if left <= COPIED_MAX {
            state.framing[direction as usize].left = left | walk.before & SAVES;
            send_gathered(scratch, walk);
            return 1;
        }
    }
    FOLLOW | is_short as u32
}

/// What [`told`] may return.
pub(crate) const FOLLOW: u32 = 2;

/// Where the reason to save is in [`Framed::left`].
const SAVES: u32 = 0xff << framed::SAVES_AT;

/// Returns what was left of a frame before the call.
#[inline(always)]
fn enter(framed: &mut Framed, direction: u32, out: &Outgoing) -> u32 {
    let (left, sequence) = (framed.left, framed.sequence);
    // Nobody else follows from a state that is not written yet: first this one says so, then the position
    // moves on. SAFETY: references are valid to write; volatile for the order.
    unsafe {
        core::ptr::write_volatile(&mut framed.left, framed::LOST);
        core::ptr::write_volatile(&mut framed.sequence, sequence.wrapping_add(out.total));
    }
    let base = if direction == 0 { out.first.bases[0] } else { out.first.bases[1] };
    // Else calls of two threads at once, or bytes that no call was seen to move.
    if sequence == (out.first.position as u32).wrapping_add(base) { left } else { framed::LOST }
}

/// Goes from header to header of a call that is in the scratch. Most have few frames, and whole headers: those
/// are read where they are. Returns what is left of the last one, or more than [`COPIED_MAX`] if it is not simple.
/// Then the walk has how far it got.
#[inline(always)]
fn few_frames(scratch: *mut u8, walk: &mut maps::Walk) -> u32 {
    let (filled, size) = (walk.filled, constant(&memory::FRAMING_HEADER) as u32);
    walk.at = 0;
    if walk.before == framed::APART {
        return framed::APART;
    }
    let (mut at, mut ahead) = (0, walk.before & !SAVES);
    let saves = walk.before >> framed::SAVES_AT;
    for _ in 0..FRAMES_FEW {
        let left = filled - at;
        if ahead >= left {
            return ahead - left;
        }
        if left - ahead < size {
            break;
        }
        at = masked(at + ahead, SHORT_MAX - 1);
        // SAFETY: the scratch has room for the fields, a short call and any header behind it.
        let header = unsafe { scratch.add(size_of::<Data>() + at as usize) };
        match content_after(header, saves) {
            Some((copy, 0, _)) if copy <= COPIED_MAX => ahead = copy,
            _ => break,
        }
        at += size;
        walk.at = at;
        walk.before = ahead | walk.before & SAVES;
    }
    framed::APART
}

/// The same for all other calls on such a connection: `short` is not 0 if it is in the scratch, `saves` if content is
/// not asked for. Not called from [`told`], or both had to find room on the stack.
#[inline(never)]
pub(crate) fn follow(
    direction: u32,
    state: &mut ConnectionState,
    out: &mut Outgoing,
    short: u32,
    saves: u32,
) -> u32 {
    let direction = direction & 1;
    let (Some(scratch), Some(walk)) = (maps::scratch(direction), maps::walk(direction)) else { return 0 };
    let key = out.first.cookie << 1 | direction as u64;
    if walk.before != framed::APART {
        zero_words(&mut walk.frames);
        walk.frames.copy = walk.before & !SAVES;
        walk.frames.saves = walk.before >> framed::SAVES_AT;
    } else if let Some(kept) = FRAMES.get_ptr_mut(&key) {
        // SAFETY: a value of the map, which lives as long as the program runs.
        copy_words(&mut walk.frames, unsafe { &*kept });
    } else {
        // Forgotten.
        zero_words(&mut walk.frames);
        walk.before = framed::LOST;
    }
    // SAFETY: a reference is valid to read. Volatile: to the verifier it is the same, whatever was written.
    let buffer = unsafe { core::ptr::read_volatile(&out.buffer) };
    let told = if short != 0 {
        if walk.before != framed::LOST {
            follow_short(direction, walk);
        }
        send_gathered(scratch, walk);
        true
    } else if walk.before == framed::LOST {
        return 0;
    } else if buffer.shape == shape::FLAT || buffer.shape == shape::PIECES {
        follow_long(direction, out, buffer, saves != 0);
        true
    } else {
        // Bytes that cannot be looked at are content, or hide where frames start.
        walk.frames.follows = pass(&mut walk.frames, out.total) as u32;
        false
    };
    let Some(walk) = maps::walk(direction) else { return 1 };
    let (frames, framed) = (&mut walk.frames, &mut state.framing[direction as usize]);
    if frames.follows == 0 {
        return told as u32;
    }
    if frames.skip == 0 && frames.have == 0 && frames.copy <= COPIED_MAX {
        framed.left = frames.copy | frames.saves << framed::SAVES_AT;
    } else if let Some(kept) = FRAMES.get_ptr_mut(&key) {
        // SAFETY: as above.
        copy_words(unsafe { &mut *kept }, frames);
        framed.left = framed::APART;
    } else if FRAMES.insert(&key, &*frames, 0).is_ok() {
        framed.left = framed::APART;
    }
    told as u32
}

/// A call that is in the scratch, from where [`few_frames`] got to.
#[inline(always)]
fn follow_short(direction: u32, walk: &mut maps::Walk) {
    let size = constant(&memory::FRAMING_HEADER) as u32;
    walk.frames.follows = 1;
    walk.saves = walk.frames.saves;
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
}

/// A call whose frames are gone through while it is copied.
#[inline(always)]
fn follow_long(direction: u32, out: &mut Outgoing, buffer: Buffer, saves: bool) {
    let total = out.total;
    let (Some(scratch), Some(walk)) = (maps::scratch(direction), maps::walk(direction)) else { return };
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
    let Some(walk) = maps::walk(direction) else { return };
    flush(direction);
    // As long as something is passed over, it is known why.
    if walk.frames.skip == 0 || walk.saves != 0 {
        walk.frames.saves = walk.saves;
    }
    walk.frames.follows &= (walk.left == 0) as u32;
    // What is still to be passed over was told.
    let left = walk.left.wrapping_sub(walk.skip);
    if left > 0 {
        let reason = if walk.fault != 0 { omitted::FAULT } else { omitted::OVER_BUDGET };
        gap(&out.first, total.wrapping_sub(left), left, reason);
    }
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
    let (bytes, kind) = unsafe { (memory::load(header.add(at)), *header.add(kind_at) as u32) };
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
