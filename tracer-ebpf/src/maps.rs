//! What is shared with the agent.

use crate::{
    connect::Connecting,
    emit::Outgoing,
    memory::{BY_ADDRESS, HAS_BUDGET, constant},
    syscall::Ended,
};
use aya_ebpf::{
    helpers::{bpf_ktime_get_ns, generated::bpf_get_smp_processor_id},
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use tracer_common::{
    config::{Counter, File, NAME_SIZE, Rules, Selected, Shed, TIMED_CALLS},
    connection::{ConnectionState, Frames, Quiet},
};

/// Processes that meet something of the selection, by tgid.
#[map]
pub(crate) static SELECTED: HashMap<u32, Selected> = HashMap::with_max_entries(65536, 0);

/// Who is chosen; written by the agent.
#[map]
static RULES: Array<Rules> = Array::with_max_entries(1, 0);

/// Processes that the agent has to look at, with what they have moved meanwhile by direction.
#[map]
pub(crate) static UNDECIDED: LruHashMap<u32, [u64; 2]> = LruHashMap::with_max_entries(16384, 0);

/// What is left out to stay within the budget; written by the agent.
#[map]
static SHED: Array<Shed> = Array::with_max_entries(1, 0);

/// Calls on this CPU, and when the one that is timed began.
#[map]
static TIMED: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

/// Names, files, ports and cgroups (by the inode of their folder) that rules ask for: which rules.
#[map]
pub(crate) static NAMES: HashMap<[u8; NAME_SIZE], u32> = HashMap::with_max_entries(1024, 0);
#[map]
pub(crate) static EXECUTABLES: HashMap<File, u32> = HashMap::with_max_entries(1024, 0);
#[map]
pub(crate) static PORTS: HashMap<u16, u32> = HashMap::with_max_entries(1024, 0);
#[map]
pub(crate) static CGROUPS: HashMap<u64, u32> = HashMap::with_max_entries(4096, 0);

/// By thread, which message of a sendmmsg or recvmmsg comes next.
#[map]
pub(crate) static MESSAGES: HashMap<u64, Messages> = HashMap::with_max_entries(8192, 0);

/// Connections with a record, by socket cookie.
#[map]
pub(crate) static CONNECTIONS: LruHashMap<u64, ConnectionState> = LruHashMap::with_max_entries(131_072, 0);

/// Connects that are under way, by the place of the socket.
#[map]
pub(crate) static CONNECTING: LruHashMap<u64, Connecting> = LruHashMap::with_max_entries(8192, 0);

/// By the place of a socket what its connection is called, where the kernel does not tell; the agent sets
/// the size.
#[map]
pub(crate) static IDENTITIES: LruHashMap<u64, u64> = LruHashMap::with_max_entries(1, 0);

/// How many names this CPU gave.
#[map]
static NAMED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// What need not be copied of a connection; written by the agent.
#[map]
pub(crate) static QUIET: LruHashMap<u64, Quiet> = LruHashMap::with_max_entries(16384, 0);

/// How far frames were followed, where that is not simple: by twice the cookie and the direction.
#[map]
pub(crate) static FRAMES: LruHashMap<u64, Frames> = LruHashMap::with_max_entries(16384, 0);

/// The way to the agent, who sets the size.
#[map]
pub(crate) static RECORDS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

/// When this CPU last woke the agent.
#[map]
static WOKEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Room where a record is put together from the pieces of an iovec, one for each direction: the two
/// socket programs can nest on a CPU, one of them with itself cannot.
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(2, 0);

#[map]
static WALKS: PerCpuArray<Walk> = PerCpuArray::with_max_entries(2, 0);

/// What is on its way out of the current call, by direction.
#[map]
static OUTGOING: PerCpuArray<Outgoing> = PerCpuArray::with_max_entries(2, 0);

/// A call that has ended. The many ways to find that out meet here: what is read back from a map is the
/// same to the verifier, whatever was written, so it follows what comes after once and not once for each
/// way.
#[map]
static ENDED: PerCpuArray<Ended> = PerCpuArray::with_max_entries(1, 0);

pub(crate) const SCRATCH_SIZE: usize = 32768;

#[repr(C, align(8))]
pub(crate) struct Scratch(pub(crate) [u8; SCRATCH_SIZE]);

/// How far the messages of one call were followed.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Messages {
    pub(crate) vector: u64,
    pub(crate) count: u32,
    pub(crate) next: u32,
}

/// How far an iovec was followed. It lives in a map since the verifier gives up on these numbers
/// where they are carried in registers through a loop.
#[repr(C)]
pub(crate) struct Walk {
    pub(crate) pieces: u64,
    pub(crate) count: u64,
    pub(crate) index: u64,
    pub(crate) inside: u64,
    pub(crate) left: u32,
    pub(crate) filled: u32,
    pub(crate) fault: u32,
    /// Bytes that are copied before some are passed over; those that are then; and those at the end that
    /// are copied again.
    pub(crate) until_skip: u32,
    pub(crate) skip: u32,
    pub(crate) end: u32,
    /// 1 if `pieces` is the only piece.
    pub(crate) flat: u32,
    /// Where frames are followed: why content is passed over, 0 if it is copied; how much was copied; and
    /// how far the frames of the direction are.
    pub(crate) saves: u32,
    pub(crate) copied: u32,
    /// Where the next header is looked for in a short call.
    pub(crate) at: u32,
    /// What was left of a frame before that, as in [`tracer_common::connection::Framed::left`].
    pub(crate) before: u32,
    pub(crate) frames: Frames,
    /// The header ends the frames: to the verifier, what is copied into it may end here.
    pub(crate) room: [u64; 2],
}

impl Walk {
    #[inline(always)]
    pub(crate) fn start(&mut self, pieces: u64, count: u64, total: u32, until_skip: u32, end: u32) {
        // SAFETY: references are valid to write. Volatile, since LLVM would make a call of memset of
        // neighbouring zeros, which goes byte by byte here.
        unsafe {
            core::ptr::write_volatile(&mut self.pieces, pieces);
            core::ptr::write_volatile(&mut self.count, count);
            core::ptr::write_volatile(&mut self.index, 0);
            core::ptr::write_volatile(&mut self.inside, 0);
            core::ptr::write_volatile(&mut self.left, total);
            core::ptr::write_volatile(&mut self.filled, 0);
            core::ptr::write_volatile(&mut self.fault, 0);
            core::ptr::write_volatile(&mut self.until_skip, until_skip);
            core::ptr::write_volatile(&mut self.skip, 0);
            core::ptr::write_volatile(&mut self.end, end);
        }
    }
}

impl Walk {
    /// Goes on by `length` bytes of a piece. Returns 0, for the loop to go on.
    #[inline(always)]
    pub(crate) fn pass(&mut self, length: u64, piece: u64) -> i64 {
        self.left -= length as u32;
        self.inside += length;
        if self.inside >= piece {
            self.index += 1;
            self.inside = 0;
        }
        0
    }
}

#[inline(always)]
pub(crate) fn count(counter: Counter, amount: u64) {
    if let Some(total) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: an element of a per-CPU array, which no other CPU writes.
        unsafe { *total = (*total).wrapping_add(amount) }
    }
}

/// There is always one.
#[inline(always)]
pub(crate) fn rules() -> Option<&'static Rules> {
    RULES.get(0)
}

/// Whether large calls are cut to stay within the budget. This and the next have no place at the end of system
/// calls: there is too much around them for the verifier.
#[inline(always)]
pub(crate) fn sheds_content() -> bool {
    can_shed() && SHED.get(0).is_some_and(|shed| shed.content != 0)
}

/// Whether the connection is left out to stay within the budget.
#[inline(always)]
pub(crate) fn sheds(cookie: u64) -> bool {
    can_shed() && SHED.get(0).is_some_and(|shed| shed.covers(cookie))
}

#[inline(always)]
fn can_shed() -> bool {
    constant(&BY_ADDRESS) == 0 && constant(&HAS_BUDGET) != 0
}

/// Before each call. What is kept lies in the map: in a register it would be one more way for the verifier to
/// follow.
#[inline(always)]
pub(crate) fn begin_time() {
    if constant(&HAS_BUDGET) == 0 {
        return;
    }
    if let Some(timed) = TIMED.get_ptr_mut(0) {
        // SAFETY: an element of a per-CPU array; the two socket programs can nest, which spoils one time of many.
        unsafe {
            (*timed)[0] = (*timed)[0].wrapping_add(1);
            (*timed)[1] = if (*timed)[0] & (TIMED_CALLS - 1) == 0 { bpf_ktime_get_ns() } else { 0 };
        }
    }
}

/// And after it.
#[inline(always)]
pub(crate) fn end_time() {
    if constant(&HAS_BUDGET) == 0 {
        return;
    }
    let Some(timed) = TIMED.get_ptr_mut(0) else { return };
    // SAFETY: as above.
    unsafe {
        let began = core::ptr::read_volatile(&raw const (*timed)[1]);
        if began != 0 {
            count(Counter::ProbeTime, bpf_ktime_get_ns().wrapping_sub(began) * TIMED_CALLS);
        }
    }
}

#[inline(always)]
pub(crate) fn woken() -> Option<*mut u64> {
    WOKEN.get_ptr_mut(0)
}

#[inline(always)]
pub(crate) fn scratch(direction: u32) -> Option<*mut u8> {
    SCRATCH.get_ptr_mut(direction).map(|scratch| scratch.cast())
}

/// A name that no other connection has: the CPU, and a number of its own.
#[inline(always)]
pub(crate) fn next_name() -> u64 {
    let mut number = 0;
    if let Some(named) = NAMED.get_ptr_mut(0) {
        // SAFETY: an element of a per-CPU array, which no other CPU writes.
        unsafe {
            *named += 1;
            number = *named;
        }
    }
    // SAFETY: no arguments.
    (unsafe { bpf_get_smp_processor_id() } as u64 + 1) << 48 | number
}

/// Puts a call down and takes it up again.
#[inline(always)]
pub(crate) fn forget_ways(ended: Ended) -> Option<Ended> {
    let place = ENDED.get_ptr_mut(0)?;
    // SAFETY: an element of a per-CPU array that no other program uses. Volatile, since the point is that it
    // happens.
    unsafe {
        core::ptr::write_volatile(place, ended);
        Some(core::ptr::read_volatile(place))
    }
}

#[inline(always)]
pub(crate) fn outgoing(direction: u32) -> Option<&'static mut Outgoing> {
    // SAFETY: an element of a per-CPU array that only the program of this direction uses.
    OUTGOING.get_ptr_mut(direction).map(|outgoing| unsafe { &mut *outgoing })
}

#[inline(always)]
pub(crate) fn walk(direction: u32) -> Option<&'static mut Walk> {
    // SAFETY: an element of a per-CPU array that only the program of this direction uses.
    WALKS.get_ptr_mut(direction).map(|walk| unsafe { &mut *walk })
}
