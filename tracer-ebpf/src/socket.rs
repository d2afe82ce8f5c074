//! Bytes moved on a socket, and its end.

use aya_ebpf::{
    helpers::generated::{bpf_get_socket_cookie, bpf_skc_to_tcp_sock},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use tracer_common::{
    config::Counter,
    connection::{
        AF_INET6, AF_UNIX, COUNTED_START, ConnectionState, Direction, QUIET_CALL_MIN, Role, ignored,
    },
    record::{Closed, Data, Ended, Header, Opened, OpenedUnix, Shut, kind, omitted},
};

use crate::{
    emit,
    maps::{CONNECTIONS, QUIET, count},
    memory::{Typed, copy_kernel, read_kernel},
    offset, process, select, syscall,
};

const EAGAIN: i32 = 11;
/// Numbers from here on are the kernel's own: the call will be started again.
const ERESTARTSYS: i32 = 512;
const EINTR: i32 = 4;

/// include/linux/socket.h
const MSG_PEEK: u32 = 0x02;
const MSG_TRUNC: u32 = 0x20;
/// What is received is no data of the stream.
const MSG_ERRQUEUE: u32 = 0x2000;

/// `enum sock_flags` (include/net/sock.h): a FIN was received.
const SOCK_DONE: u64 = 1 << 1;

/// include/linux/net.h
const SOCK_STREAM: u16 = 1;

/// `RCV_SHUTDOWN` (include/net/sock.h): nothing follows.
const RCV_SHUTDOWN: u8 = 1;

/// `sun_path` comes after the family in `struct sockaddr_un`.
const SUN_PATH: usize = 2;

/// include/net/tcp_states.h
const TCP_ESTABLISHED: u8 = 1;
const TCP_CLOSE_WAIT: u8 = 8;
const TCP_FIN_WAIT1: i32 = 4;
const TCP_CLOSE_WAIT_STATE: i32 = TCP_CLOSE_WAIT as i32;
const TCP_LAST_ACK: i32 = 9;
const TCP_LISTEN: i32 = 10;

/// (sock, result, flags): after the bytes were copied.
#[btf_tracepoint(function = "sock_send_length")]
pub fn sock_send_length(context: BtfTracePointContext) -> i32 {
    moved(&context, Direction::Sent)
}

#[btf_tracepoint(function = "sock_recv_length")]
pub fn sock_recv_length(context: BtfTracePointContext) -> i32 {
    moved(&context, Direction::Received)
}

/// (sock): no call on the socket follows. In any process, also in none.
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub fn tcp_destroy_sock(context: BtfTracePointContext) -> i32 {
    let cookie = cookie(Typed(context.arg(0)));
    // SAFETY: the value is copied at once.
    let Some(state) = (unsafe { CONNECTIONS.get(&cookie) }).copied() else { return 0 };
    let _ = CONNECTIONS.remove(&cookie);
    let _ = QUIET.remove(&cookie);
    // What the socket says now is no evidence: a disconnect has moved its numbers on.
    emit::fixed(|record: &mut Closed| {
        *record = Closed {
            header: emit::header::<Closed>(kind::CLOSED),
            cookie,
            positions: state.positions,
            bases: state.bases,
        };
    });
    0
}

/// (sock, old, new): which side ended the connection first, in any process, also in none; and who
/// listens.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn inet_sock_set_state(context: BtfTracePointContext) -> i32 {
    let new: i32 = context.arg(2);
    let socket = Typed(context.arg(0));
    match new {
        TCP_FIN_WAIT1 | TCP_LAST_ACK => shut(socket, Direction::Sent, false),
        TCP_CLOSE_WAIT_STATE => shut(socket, Direction::Received, false),
        TCP_LISTEN => process::listens(socket.load(offset!(SOCK_LOCAL_PORT))),
        _ => {}
    }
    0
}

/// (sock): the peer has reset the connection.
#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn tcp_receive_reset(context: BtfTracePointContext) -> i32 {
    shut(Typed(context.arg(0)), Direction::Received, true);
    0
}

#[inline(always)]
fn shut(socket: Typed, direction: Direction, reset: bool) {
    let cookie = cookie(socket);
    // SAFETY: the value is copied at once.
    let Some(state) = (unsafe { CONNECTIONS.get(&cookie) }).copied() else { return };
    let (mut positions, mut bases) = (state.positions, state.bases);
    if matches!(direction, Direction::Sent)
        && let Some(tcp) = Tcp::of(socket)
    {
        // What was received without a call that is seen (splice) shows here; what was sent has been
        // told, and the end of it is counted by now.
        let now = tcp.positions(state.role == Role::Client as u32);
        positions[1] = now.now[1];
        bases[1] = now.bases[1];
    }
    emit::fixed(|record: &mut Shut| {
        *record = Shut {
            header: emit::header::<Shut>(kind::SHUT),
            cookie,
            positions,
            bases,
            direction: direction as u8,
            reset: reset as u8,
            padding: [0; 6],
        };
    });
}

#[inline(always)]
fn moved(context: &BtfTracePointContext, direction: Direction) -> i32 {
    let process = select::current();
    let result: i32 = context.arg(1);
    if !select::is_chosen(process) {
        if result > 0 {
            undecided(context, process, direction, result as u64);
        }
        return 0;
    }
    let flags: u32 = context.arg(2);
    let retried = result == -EAGAIN || result == -EINTR || result <= -ERESTARTSYS;
    if result <= 0 {
        syscall::moved_nothing(result < 0);
    }
    let peeked = matches!(direction, Direction::Received) && flags & (MSG_PEEK | MSG_ERRQUEUE) != 0;
    if retried || peeked {
        return 0;
    }
    let socket = Typed(context.arg(0));
    if !has_file(socket) {
        return 0;
    }
    let sent = matches!(direction, Direction::Sent);
    if result > 0 {
        count(if sent { Counter::MovedSent } else { Counter::MovedReceived }, result as u64);
    }
    let tcp = Tcp::of(socket);
    if tcp.is_none() && !is_unix_stream(socket) {
        if result > 0 {
            count(if sent { Counter::OtherSent } else { Counter::OtherReceived }, result as u64);
        }
        return 0;
    }
    let cookie = cookie(socket);
    let Some(state) = connection(socket, tcp.as_ref(), cookie) else {
        // The map had no room: what moved is counted, and lost.
        if result > 0 {
            emit::lost(direction as u8, result as u32);
        }
        return 0;
    };
    if result > 0 && state.ignored != 0 {
        let counter = match state.ignored {
            ignored::UNKNOWN => Counter::IgnoredUnknown,
            ignored::ENCRYPTED => Counter::IgnoredEncrypted,
            _ => Counter::IgnoredOther,
        };
        count(counter, result as u64);
        return 0;
    }
    let positions = match &tcp {
        Some(tcp) => tcp.positions(state.role == Role::Client as u32),
        None => counted(state, sent, result),
    };
    // Kept for when the socket is gone.
    if sent {
        state.positions[0] = positions.now[0];
        state.bases[0] = positions.bases[0];
    } else {
        state.positions[1] = positions.now[1];
        state.bases[1] = positions.bases[1];
    }
    let (position, opposite) =
        if sent { (positions.now[0], positions.now[1]) } else { (positions.now[1], positions.now[0]) };
    if result == 0 {
        let at_end = match &tcp {
            Some(tcp) => tcp.is_at_end(),
            None => socket.load::<u8>(offset!(SOCK_SHUTDOWN)) & RCV_SHUTDOWN != 0,
        };
        if sent || !at_end {
            return 0; // nothing was asked for
        }
    }
    if result <= 0 {
        emit::fixed(|record: &mut Ended| {
            *record = Ended {
                header: emit::header::<Ended>(kind::ENDED),
                cookie,
                position,
                opposite,
                bases: positions.bases,
                result,
                direction: direction as u8,
                padding: [0; 3],
            };
        });
        return 0;
    }
    let call = syscall::current(result as u32);
    let buffer = if is_quiet(cookie, sent, position, result as u32) {
        syscall::Buffer::none(omitted::QUIET)
    } else if !sent && tcp.is_some() && flags & MSG_TRUNC != 0 {
        syscall::Buffer::none(omitted::DISCARDED)
    } else {
        call.buffer
    };
    let first = Data {
        header: emit::header::<Data>(kind::DATA),
        cookie,
        position: position.wrapping_sub(result as u64),
        opposite,
        length: 0,
        captured: 0,
        bases: positions.bases,
        message_flags: flags,
        call: call.number,
        direction: direction as u8,
        omitted: omitted::NOTHING,
    };
    emit::data(&first, buffer, result as u32);
    0
}

/// What a process moves that may be chosen is counted, as far as it would be if it were.
#[inline(always)]
fn undecided(context: &BtfTracePointContext, process: u32, direction: Direction, bytes: u64) {
    let flags: u32 = context.arg(2);
    let peeked = matches!(direction, Direction::Received) && flags & (MSG_PEEK | MSG_ERRQUEUE) != 0;
    if !peeked && has_file(Typed(context.arg(0))) {
        select::count_undecided(process, direction, bytes);
    }
}

/// The kernel's own sockets (NFS) are used inside a call of the process, but have no file.
#[inline(always)]
fn has_file(socket: Typed) -> bool {
    socket.follow(offset!(SOCK_SOCKET)).load::<u64>(offset!(SOCKET_FILE)) != 0
}

#[inline(always)]
fn is_unix_stream(socket: Typed) -> bool {
    socket.load::<u16>(offset!(SOCK_FAMILY)) == AF_UNIX
        && socket.load::<u16>(offset!(SOCK_TYPE)) == SOCK_STREAM
}

/// Unix sockets have no sequence numbers: what moves is added up.
#[inline(always)]
fn counted(state: &ConnectionState, sent: bool, result: i32) -> Positions {
    let moved = if result > 0 { result as u64 } else { 0 };
    let [mut first, mut second] = state.positions;
    if sent {
        first += moved;
    } else {
        second += moved;
    }
    Positions { now: [first, second], bases: [0; 2] }
}

/// Whether the agent wants no more than the length of a call that ends at the position.
#[inline(always)]
fn is_quiet(cookie: u64, sent: bool, position: u64, length: u32) -> bool {
    if length < QUIET_CALL_MIN {
        return false;
    }
    // SAFETY: the value is copied at once.
    match unsafe { QUIET.get(&cookie) } {
        Some(until) => position <= if sent { until[0] } else { until[1] },
        None => false,
    }
}

#[inline(always)]
fn cookie(socket: Typed) -> u64 {
    // SAFETY: the verifier checks that it is a socket.
    unsafe { bpf_get_socket_cookie(socket.0 as *mut _) }
}

/// What is kept of a connection that the agent was told of.
#[inline(always)]
fn connection(socket: Typed, tcp: Option<&Tcp>, cookie: u64) -> Option<&'static mut ConnectionState> {
    let state = match kept(cookie) {
        Some(state) => state,
        None => {
            let _ = CONNECTIONS.insert(&cookie, &ConnectionState::default(), 0);
            kept(cookie)?
        }
    };
    // Fields are written where they are: values on the stack would be ways for the verifier to follow.
    match tcp {
        Some(tcp) if state.announced == 0 || state.role == Role::Unknown as u32 => {
            announce(socket, tcp, cookie, state);
        }
        None if state.announced == 0 => announce_unix(socket, cookie, state),
        _ => {}
    }
    Some(state)
}

#[inline(always)]
fn kept(cookie: u64) -> Option<&'static mut ConnectionState> {
    // SAFETY: a value of the map, which lives as long as the program runs; a call at the same time on
    // another CPU writes about the same.
    CONNECTIONS.get_ptr_mut(&cookie).map(|state| unsafe { &mut *state })
}

/// Tells the agent of a connection.
#[inline(always)]
fn announce(socket: Typed, tcp: &Tcp, cookie: u64, state: &mut ConnectionState) {
    if state.role == Role::Unknown as u32 {
        state.role = tcp.role(socket.load(offset!(SOCK_STATE))) as u32;
    }
    let role = state.role;
    let positions = tcp.positions(role == Role::Client as u32);
    let family: u16 = socket.load(offset!(SOCK_FAMILY));
    let net: u64 = socket.copy(offset!(SOCK_NET));
    let told = emit::fixed(|record: &mut Opened| {
        *record = Opened {
            header: Header::default(),
            cookie,
            network_namespace: read_kernel(net, offset!(NET_INUM)),
            family,
            role: role as u8,
            padding: 0,
            local_port: socket.load(offset!(SOCK_LOCAL_PORT)),
            peer_port: u16::from_be(socket.load(offset!(SOCK_PEER_PORT))),
            bases: positions.bases,
            padding_end: 0,
            local_address: [0; 16],
            peer_address: [0; 16],
        };
        record.header = emit::header::<Opened>(kind::OPENED);
        if family == AF_INET6 {
            record.local_address = socket.copy(offset!(SOCK_LOCAL_V6));
            record.peer_address = socket.copy(offset!(SOCK_PEER_V6));
        } else {
            let local: [u8; 4] = socket.copy(offset!(SOCK_LOCAL_V4));
            let peer: [u8; 4] = socket.copy(offset!(SOCK_PEER_V4));
            record.local_address[..4].copy_from_slice(&local);
            record.peer_address[..4].copy_from_slice(&peer);
        }
    });
    state.announced = told as u32;
}

/// The same of a Unix socket. The side that was connected to has a name, the other seldom has.
#[inline(always)]
fn announce_unix(socket: Typed, cookie: u64, state: &mut ConnectionState) {
    if state.positions[0] == 0 {
        state.positions[0] = COUNTED_START;
        state.positions[1] = COUNTED_START;
    }
    let own: u64 = read_kernel(socket.0, offset!(UNIX_ADDR));
    // At the null page there is nothing to read: without a peer this is 0 as well.
    let peer: u64 = read_kernel(socket.0, offset!(UNIX_PEER));
    let peers: u64 = read_kernel(peer, offset!(UNIX_ADDR));
    state.role = match (own != 0, peers != 0) {
        (true, false) => Role::Server as u32,
        (false, true) => Role::Client as u32,
        _ => Role::Unknown as u32,
    };
    let name = if own != 0 { own } else { peers };
    let file: u64 = socket.follow(offset!(SOCK_SOCKET)).load(offset!(SOCKET_FILE));
    let inode: u64 = read_kernel(file, offset!(FILE_INODE));
    let net: u64 = socket.copy(offset!(SOCK_NET));
    let told = emit::fixed(|record: &mut OpenedUnix| {
        record.header = emit::header::<OpenedUnix>(kind::OPENED_UNIX);
        record.cookie = cookie;
        record.inode = read_kernel(inode, offset!(INODE_NUMBER));
        record.network_namespace = read_kernel(net, offset!(NET_INUM));
        record.role = state.role as u8;
        record.fresh = 0;
        record.padding = [0; 2];
        record.padding_path = 0;
        record.path = [0; 112];
        let length: u32 = read_kernel(name, offset!(UNIX_ADDRESS_LENGTH));
        record.path_length = length.saturating_sub(SUN_PATH as u32);
        let path = name + offset!(UNIX_ADDRESS_NAME) as u64 + SUN_PATH as u64;
        copy_kernel(path, record.path_length, &mut record.path);
    });
    state.announced = told as u32;
}

#[derive(Clone, Copy)]
struct Tcp(Typed);

struct Positions {
    /// By direction: where the next byte will be, counted from 0.
    now: [u64; 2],
    bases: [u32; 2],
}

impl Tcp {
    #[inline(always)]
    fn of(socket: Typed) -> Option<Tcp> {
        // SAFETY: the verifier checks that it is a socket.
        let tcp = unsafe { bpf_skc_to_tcp_sock(socket.0 as *mut _) };
        if tcp.is_null() { None } else { Some(Tcp(Typed(tcp as u64))) }
    }

    /// The sums that the kernel keeps start at the connection's first byte; its own SYN is in the
    /// sum of the client, and a FIN in that of its receiver.
    #[inline(always)]
    fn positions(&self, client: bool) -> Positions {
        let unacknowledged: u32 = self.0.load(offset!(TCP_SND_UNA));
        let acknowledged: u64 = self.0.load(offset!(TCP_BYTES_ACKED));
        let written: u32 = self.0.load(offset!(TCP_WRITE_SEQ));
        let next: u32 = self.0.load(offset!(TCP_RCV_NXT));
        let received: u64 = self.0.load(offset!(TCP_BYTES_RECEIVED));
        let copied: u32 = self.0.load(offset!(TCP_COPIED_SEQ));
        let flags: u64 = self.0.load(offset!(SOCK_FLAGS));
        let syn = client as u64;
        let fin = (flags & SOCK_DONE != 0 && copied == next) as u64;
        Positions {
            now: [
                acknowledged.wrapping_add(written.wrapping_sub(unacknowledged) as u64).wrapping_sub(syn),
                received.wrapping_sub(next.wrapping_sub(copied) as u64).wrapping_sub(fin),
            ],
            bases: [
                unacknowledged.wrapping_sub(acknowledged as u32).wrapping_add(syn as u32),
                next.wrapping_sub(received as u32),
            ],
        }
    }

    /// The peer's FIN was received, and everything before it was read.
    #[inline(always)]
    fn is_at_end(&self) -> bool {
        let flags: u64 = self.0.load(offset!(SOCK_FLAGS));
        let copied: u32 = self.0.load(offset!(TCP_COPIED_SEQ));
        flags & SOCK_DONE != 0 && copied == self.0.load::<u32>(offset!(TCP_RCV_NXT))
    }

    /// Who sent the SYN: it is in `bytes_acked` but not in `bytes_sent`. Only while no FIN was sent.
    #[inline(always)]
    fn role(&self, state: u8) -> Role {
        if state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT {
            return Role::Unknown;
        }
        let next: u32 = self.0.load(offset!(TCP_SND_NXT));
        let sent: u64 = self.0.load(offset!(TCP_BYTES_SENT));
        let again: u64 = self.0.load(offset!(TCP_BYTES_RETRANS));
        let unacknowledged: u32 = self.0.load(offset!(TCP_SND_UNA));
        let acknowledged: u64 = self.0.load(offset!(TCP_BYTES_ACKED));
        let first_by_sent = next.wrapping_sub(sent.wrapping_sub(again) as u32);
        let first_by_acked = unacknowledged.wrapping_sub(acknowledged as u32);
        match first_by_sent.wrapping_sub(first_by_acked) {
            0 => Role::Server,
            1 => Role::Client,
            _ => Role::Unknown,
        }
    }
}
