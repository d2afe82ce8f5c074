//! TCP as the kernel keeps it: where the two directions of a connection stand.

use aya_ebpf::helpers::generated::{bpf_loop, bpf_skc_to_tcp_sock};
use tracer_common::{
    connection::{AF_INET, AF_INET6, ConnectionState, Role},
    record::Transit,
};

use crate::{
    memory::{Object, Typed, Untyped},
    offset,
};

/// `enum sock_flags` (include/net/sock.h): a FIN was received.
const SOCK_DONE: u64 = 1 << 1;

/// include/linux/net.h
pub(crate) const SOCK_STREAM: u16 = 1;

/// include/uapi/linux/in.h
const IPPROTO_TCP: u16 = 6;

/// include/net/tcp_states.h
const TCP_ESTABLISHED: u32 = 1;
const TCP_CLOSE_WAIT: u32 = 8;

/// A socket that may be one of TCP.
pub(crate) trait Socket: Object {
    fn tcp(self) -> Option<Tcp<Self>>;

    /// The kernel's own sockets (NFS) are used inside a call of the process, but have no file.
    fn has_file(self) -> bool;
}

impl Socket for Typed {
    #[inline(always)]
    fn tcp(self) -> Option<Tcp<Self>> {
        // SAFETY: the verifier checks that it is a socket.
        let tcp = unsafe { bpf_skc_to_tcp_sock(self.0 as *mut _) };
        if tcp.is_null() { None } else { Some(Tcp(Typed(tcp as u64), self)) }
    }

    #[inline(always)]
    fn has_file(self) -> bool {
        self.follow(offset!(SOCK_SOCKET)).load::<u64>(offset!(SOCKET_FILE)) != 0
    }
}

impl Socket for Untyped {
    #[inline(always)]
    fn tcp(self) -> Option<Tcp<Self>> {
        let family: u16 = self.load(offset!(SOCK_FAMILY));
        let is_tcp = (family == AF_INET || family == AF_INET6)
            && self.load::<u16>(offset!(SOCK_TYPE)) == SOCK_STREAM
            && self.load::<u16>(offset!(SOCK_PROTOCOL)) == IPPROTO_TCP;
        // `struct tcp_sock` begins with the socket.
        if is_tcp { Some(Tcp(self, self)) } else { None }
    }

    /// It was found by its file.
    #[inline(always)]
    fn has_file(self) -> bool {
        true
    }
}

/// And as the socket that it is part of: what the program was given is read without a check of each address.
#[derive(Clone, Copy)]
pub(crate) struct Tcp<O>(O, O);

pub(crate) struct Positions {
    /// By direction: where the next byte will be, counted from 0.
    pub(crate) now: [u64; 2],
    pub(crate) bases: [u32; 2],
}

impl<O: Object> Tcp<O> {
    /// The sums that the kernel keeps start at the connection's first byte; its own SYN is in the
    /// sum of the client, and a FIN in that of its receiver. They are read while they may change: where the bases
    /// are sure, the sequence numbers tell the rest.
    #[inline(always)]
    pub(crate) fn positions(&self, state: &mut ConnectionState) -> Positions {
        let unacknowledged: u32 = self.0.load(offset!(TCP_SND_UNA));
        let acknowledged: u64 = self.0.load(offset!(TCP_BYTES_ACKED));
        let written: u32 = self.0.load(offset!(TCP_WRITE_SEQ));
        let next: u32 = self.0.load(offset!(TCP_RCV_NXT));
        let received: u64 = self.0.load(offset!(TCP_BYTES_RECEIVED));
        let copied: u32 = self.0.load(offset!(TCP_COPIED_SEQ));
        let flags: u64 = self.1.load(offset!(SOCK_FLAGS));
        let syn = (state.role == Role::Client as u32) as u64;
        let fin = (flags & SOCK_DONE != 0 && copied == next) as u64;
        let now = [
            acknowledged.wrapping_add(written.wrapping_sub(unacknowledged) as u64).wrapping_sub(syn),
            received.wrapping_sub(next.wrapping_sub(copied) as u64).wrapping_sub(fin),
        ];
        if state.settled != 0 {
            let [sent, received] = state.bases;
            let ahead = [
                written.wrapping_sub(sent).wrapping_sub(now[0] as u32),
                copied.wrapping_sub(fin as u32).wrapping_sub(received).wrapping_sub(now[1] as u32),
            ];
            if ahead[0].wrapping_add(TORN_MAX) <= 2 * TORN_MAX
                && ahead[1].wrapping_add(TORN_MAX) <= 2 * TORN_MAX
            {
                let now = [
                    now[0].wrapping_add(ahead[0] as i32 as u64),
                    now[1].wrapping_add(ahead[1] as i32 as u64),
                ];
                return Positions { now, bases: [sent, received] };
            }
            // It was disconnected, and is another connection by now.
            state.settled = 0;
            state.announced = 0;
        }
        let bases = [
            unacknowledged.wrapping_sub(acknowledged as u32).wrapping_add(syn as u32),
            next.wrapping_sub(received as u32),
        ];
        Positions { now, bases }
    }

    /// The peer's FIN was received, and everything before it was read.
    #[inline(always)]
    pub(crate) fn is_at_end(&self) -> bool {
        let flags: u64 = self.0.load(offset!(SOCK_FLAGS));
        let copied: u32 = self.0.load(offset!(TCP_COPIED_SEQ));
        flags & SOCK_DONE != 0 && copied == self.0.load::<u32>(offset!(TCP_RCV_NXT))
    }

    /// What the kernel measured of the way to the peer; it keeps eighths and quarters.
    #[inline(always)]
    pub(crate) fn transit(&self) -> Transit {
        Transit {
            round_trip: self.0.load::<u32>(offset!(TCP_ROUND_TRIP)) >> 3,
            deviation: self.0.load::<u32>(offset!(TCP_DEVIATION)) >> 2,
            retransmits: self.0.load(offset!(TCP_RETRANSMITS)),
            padding: 0,
        }
    }

    /// It outlives the use of the port.
    #[inline(always)]
    pub(crate) fn local_port(&self) -> u16 {
        u16::from_be(self.0.load(offset!(TCP_LOCAL_PORT)))
    }

    /// Finds out who opened the connection, and the sequence numbers of its first bytes: from numbers that belong
    /// together, or else from the last that were seen. Returns how many segments were sent again.
    #[inline(always)]
    pub(crate) fn settle(&self, state: &mut ConnectionState) -> u32 {
        let mut look = Look { socket: self.0.address(), certain: 0, sums: Sums::default() };
        // SAFETY: the callback takes (index, argument) as the helper asks.
        unsafe {
            bpf_loop(LOOKS, look_again::<O> as *const () as *mut _, (&raw mut look).cast(), 0);
        }
        let sums = &look.sums;
        if state.role == Role::Unknown as u32 {
            state.role = sums.role() as u32;
        }
        let syn = (state.role == Role::Client as u32) as u32;
        state.bases = [
            sums.unacknowledged.wrapping_sub(sums.acknowledged as u32).wrapping_add(syn),
            sums.next.wrapping_sub(sums.received as u32),
        ];
        state.settled = look.certain & (state.role != Role::Unknown as u32) as u32;
        sums.retransmits
    }
}

/// What sums and sequence numbers can be apart while the kernel moves them on, one after the other. A connection
/// that takes the place of another has other numbers altogether.
const TORN_MAX: u32 = 1 << 26;

/// How often the numbers of a connection are looked at, until nobody changes them meanwhile: for some microseconds,
/// which is longer than a packet takes.
const LOOKS: u32 = 256;

#[repr(C)]
struct Look {
    socket: u64,
    certain: u32,
    sums: Sums,
}

/// All that tells where a connection began. These numbers only grow.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sums {
    state: u32,
    unacknowledged: u32,
    sent_next: u32,
    next: u32,
    acknowledged: u64,
    received: u64,
    sent: u64,
    again: u64,
    /// Segments that were sent again: of no matter for where it began.
    retransmits: u32,
    padding: u32,
}

/// Returns 1 to end the loop.
unsafe extern "C" fn look_again<O: Object>(_: u32, argument: *mut Look) -> i64 {
    // SAFETY: the argument that `settle` gave to the loop.
    let look = unsafe { &mut *argument };
    let socket = O::at(look.socket);
    let before = Sums::of(socket);
    // Who changes the numbers holds the lock: if nobody has it in between, and they are the same before and after,
    // then that is how they were at this moment.
    let held = match offset!(SOCK_LOCK) {
        0 => 0,
        lock => socket.load::<u32>(lock) | socket.load::<u32>(offset!(SOCK_OWNED)),
    };
    look.sums = Sums::of(socket);
    look.certain = (held as u64 | before.differs(&look.sums) == 0) as u32;
    look.certain as i64
}

impl Sums {
    #[inline(always)]
    fn of<O: Object>(socket: O) -> Self {
        Self {
            state: socket.load::<u8>(offset!(SOCK_STATE)) as u32,
            unacknowledged: socket.load(offset!(TCP_SND_UNA)),
            sent_next: socket.load(offset!(TCP_SND_NXT)),
            next: socket.load(offset!(TCP_RCV_NXT)),
            acknowledged: socket.load(offset!(TCP_BYTES_ACKED)),
            received: socket.load(offset!(TCP_BYTES_RECEIVED)),
            sent: socket.load(offset!(TCP_BYTES_SENT)),
            again: socket.load(offset!(TCP_BYTES_RETRANS)),
            retransmits: socket.load(offset!(TCP_RETRANSMITS)),
            padding: 0,
        }
    }

    /// Not 0 if something does.
    #[inline(always)]
    fn differs(&self, other: &Self) -> u64 {
        (self.state ^ other.state) as u64
            | (self.unacknowledged ^ other.unacknowledged) as u64
            | (self.sent_next ^ other.sent_next) as u64
            | (self.next ^ other.next) as u64
            | self.acknowledged ^ other.acknowledged
            | self.received ^ other.received
            | self.sent ^ other.sent
            | self.again ^ other.again
    }

    /// Who sent the SYN: it is in `bytes_acked` but not in `bytes_sent`. Only while no FIN was sent.
    #[inline(always)]
    fn role(&self) -> Role {
        if self.state != TCP_ESTABLISHED && self.state != TCP_CLOSE_WAIT {
            return Role::Unknown;
        }
        let first_by_sent = self.sent_next.wrapping_sub(self.sent.wrapping_sub(self.again) as u32);
        let first_by_acked = self.unacknowledged.wrapping_sub(self.acknowledged as u32);
        match first_by_sent.wrapping_sub(first_by_acked) {
            0 => Role::Server,
            1 => Role::Client,
            _ => Role::Unknown,
        }
    }
}
