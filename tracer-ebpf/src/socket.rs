//! Bytes moved on a socket, and its end.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use tracer_common::{
    config::Counter,
    connection::{
        AF_INET6, AF_UNIX, COUNTED_START, ConnectionState, Direction, QUIET_CALL_MIN, Role, ignored,
    },
    record::{Closed, Data, Ended, Header, Opened, OpenedUnix, Shut, Transit, kind, omitted},
};

use crate::{
    connect, emit, identity,
    maps::{self, CONNECTIONS, FRAMES, QUIET, count},
    memory::{Object, Typed, Untyped, copy_kernel, read_kernel},
    offset, process, select, syscall,
    tcp::{Positions, SOCK_STREAM, Socket, Tcp},
};

const EAGAIN: i32 = 11;
/// Numbers from here on are the kernel's own: the call will be started again.
const ERESTARTSYS: i32 = 512;
const EINTR: i32 = 4;

/// include/linux/socket.h
const MSG_PEEK: u32 = 0x02;
const MSG_TRUNC: u32 = 0x20;
const MSG_DONTWAIT: u32 = 0x40;
/// What is received is no data of the stream.
const MSG_ERRQUEUE: u32 = 0x2000;

/// include/uapi/asm-generic/fcntl.h
const O_NONBLOCK: u32 = 0o4000;

/// `RCV_SHUTDOWN` (include/net/sock.h): nothing follows.
const RCV_SHUTDOWN: u8 = 1;

/// `sun_path` comes after the family in `struct sockaddr_un`.
const SUN_PATH: usize = 2;

/// include/net/tcp_states.h
const TCP_SYN_SENT: i32 = 2;
const TCP_SYN_RECV: i32 = 3;
const TCP_FIN_WAIT1: i32 = 4;
const TCP_CLOSE_WAIT: i32 = 8;
const TCP_LAST_ACK: i32 = 9;
const TCP_LISTEN: i32 = 10;

/// (sock, result, flags): after the bytes were copied.
#[btf_tracepoint(function = "sock_send_length")]
pub fn sock_send_length(context: BtfTracePointContext) -> i32 {
    sock_length(&context, Direction::Sent)
}

#[btf_tracepoint(function = "sock_recv_length")]
pub fn sock_recv_length(context: BtfTracePointContext) -> i32 {
    sock_length(&context, Direction::Received)
}

/// (registers, result): at the end of each system call, for kernels without the two above.
#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit(context: BtfTracePointContext) -> i32 {
    call_ended(Untyped(context.arg(0)), context.arg(1))
}

#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn raw_sys_exit(context: RawTracePointContext) -> i32 {
    call_ended(Untyped(context.arg(0)), context.arg(1))
}

/// (sock): no call on the socket follows. In any process, also in none.
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub fn tcp_destroy_sock(context: BtfTracePointContext) -> i32 {
    destroyed(Typed(context.arg(0)))
}

#[raw_tracepoint(tracepoint = "tcp_destroy_sock")]
pub fn raw_tcp_destroy_sock(context: RawTracePointContext) -> i32 {
    destroyed(Untyped(context.arg(0)))
}

/// (sock, old, new): which side ended the connection first, in any process, also in none; what became of
/// connects; and who listens.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn inet_sock_set_state(context: BtfTracePointContext) -> i32 {
    state_changed(Typed(context.arg(0)), context.arg(1), context.arg(2))
}

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn raw_inet_sock_set_state(context: RawTracePointContext) -> i32 {
    state_changed(Untyped(context.arg(0)), context.arg(1), context.arg(2))
}

/// (sock): the peer has reset the connection.
#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn tcp_receive_reset(context: BtfTracePointContext) -> i32 {
    shut(Typed(context.arg(0)), Direction::Received, true);
    0
}

#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub fn raw_tcp_receive_reset(context: RawTracePointContext) -> i32 {
    shut(Untyped(context.arg(0)), Direction::Received, true);
    0
}

#[inline(always)]
fn sock_length(context: &BtfTracePointContext, direction: Direction) -> i32 {
    let (socket, result, flags) = (Typed(context.arg(0)), context.arg::<i32>(1), context.arg(2));
    let id = bpf_get_current_pid_tgid();
    let process = (id >> 32) as u32;
    if !select::is_chosen(process) {
        undecided(socket, process, direction, result, flags);
        return 0;
    }
    if result <= 0 {
        syscall::moved_nothing(result < 0);
    }
    maps::begin_time();
    moved(socket, direction, id, result, flags, || syscall::current(result as u32));
    maps::end_time();
    0
}

#[inline(always)]
fn call_ended(registers: Untyped, result: i64) -> i32 {
    let id = bpf_get_current_pid_tgid();
    let process = (id >> 32) as u32;
    let chosen = select::is_chosen(process);
    if !chosen && !select::is_undecided(process) {
        return 0;
    }
    let Some(call) = syscall::ended(registers, result) else { return 0 };
    let direction = if call.sent != 0 { Direction::Sent } else { Direction::Received };
    let socket = Untyped(call.socket);
    if call.socket == 0 {
        // Another thread has closed it meanwhile: what moved is counted, and lost.
        if chosen && call.result > 0 {
            let counter = if call.sent != 0 { Counter::MovedSent } else { Counter::MovedReceived };
            count(counter, call.result as u64);
            emit::lost(direction as u8, call.result as u32);
        }
        return 0;
    }
    if !chosen {
        undecided(socket, process, direction, call.result, call.flags);
        return 0;
    }
    let number = call.number as u16;
    let flags = call.flags | unwilling(socket);
    moved(socket, direction, id, call.result, flags, || syscall::Call { number, buffer: call.buffer })
}

/// The flag that the kernel adds to those of each call on a file that does not wait.
#[inline(always)]
fn unwilling(socket: Untyped) -> u32 {
    let file = socket.follow(offset!(SOCK_SOCKET)).follow(offset!(SOCKET_FILE));
    if file.load::<u32>(offset!(FILE_FLAGS)) & O_NONBLOCK != 0 { MSG_DONTWAIT } else { 0 }
}

#[inline(always)]
fn destroyed<S: Socket>(socket: S) -> i32 {
    let Some(cookie) = identity::known(socket) else { return 0 };
    identity::forget(socket);
    // SAFETY: the value is copied at once.
    let Some(state) = (unsafe { CONNECTIONS.get(&cookie) }).copied() else { return 0 };
    let _ = CONNECTIONS.remove(&cookie);
    let _ = QUIET.remove(&cookie);
    if state.framed != 0 {
        let _ = FRAMES.remove(&(cookie << 1));
        let _ = FRAMES.remove(&(cookie << 1 | 1));
    }
    let transit = socket.tcp().map_or(Transit::default(), |tcp| tcp.transit());
    // What the socket says now of positions is no evidence: a disconnect has moved its numbers on.
    emit::fixed(|record: &mut Closed| {
        *record = Closed {
            header: emit::header::<Closed>(kind::CLOSED),
            cookie,
            positions: state.positions,
            bases: state.bases,
            transit,
        };
    });
    0
}

#[inline(always)]
fn state_changed<S: Socket>(socket: S, old: i32, new: i32) -> i32 {
    if old == TCP_SYN_SENT {
        connect::ended(socket, new);
    }
    match new {
        // Nothing is known yet of a connection that begins; bytes can move before it is established.
        TCP_SYN_SENT => {
            identity::forget(socket);
            connect::began(socket);
        }
        TCP_SYN_RECV => identity::forget(socket),
        TCP_FIN_WAIT1 | TCP_LAST_ACK => shut(socket, Direction::Sent, false),
        TCP_CLOSE_WAIT => shut(socket, Direction::Received, false),
        TCP_LISTEN => process::listens(socket.load(offset!(SOCK_LOCAL_PORT))),
        _ => {}
    }
    0
}

#[inline(always)]
fn shut<S: Socket>(socket: S, direction: Direction, reset: bool) {
    let Some(cookie) = identity::known(socket) else { return };
    // SAFETY: the value is copied at once.
    let Some(mut state) = (unsafe { CONNECTIONS.get(&cookie) }).copied() else { return };
    let (mut positions, mut bases) = (state.positions, state.bases);
    if matches!(direction, Direction::Sent)
        && let Some(tcp) = socket.tcp()
    {
        // What was received without a call that is seen (splice) shows here; what was sent has been
        // told, and the end of it is counted by now.
        let now = tcp.positions(&mut state);
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
fn moved<S: Socket>(
    socket: S,
    direction: Direction,
    id: u64,
    result: i32,
    flags: u32,
    call: impl FnOnce() -> syscall::Call,
) -> i32 {
    let retried = result == -EAGAIN || result == -EINTR || result <= -ERESTARTSYS;
    let peeked = matches!(direction, Direction::Received) && flags & (MSG_PEEK | MSG_ERRQUEUE) != 0;
    if retried || peeked {
        return 0;
    }
    if !socket.has_file() {
        return 0;
    }
    let sent = matches!(direction, Direction::Sent);
    if result > 0 {
        count(if sent { Counter::MovedSent } else { Counter::MovedReceived }, result as u64);
    }
    let tcp = socket.tcp();
    if tcp.is_none() && !is_unix_stream(socket) {
        if result > 0 {
            count(if sent { Counter::OtherSent } else { Counter::OtherReceived }, result as u64);
        }
        return 0;
    }
    let cookie = identity::of(socket, tcp.is_some());
    if result > 0 && maps::sheds(cookie) && kept(cookie).is_none() {
        // The agent is not even told that it is there.
        count(Counter::Shed, result as u64);
        return 0;
    }
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
        Some(tcp) => tcp.positions(state),
        None => counted(state, sent, result),
    };
    if result > 0 && positions.now[direction as usize] < result as u64 {
        // So much never moved here: the number of the file leads to another socket by now.
        emit::lost(direction as u8, result as u32);
        return 0;
    }
    // Kept for when the socket is gone. What is settled is written as it is.
    if sent {
        state.positions[0] = positions.now[0];
        state.bases[0] = positions.bases[0];
    } else {
        state.positions[1] = positions.now[1];
        state.bases[1] = positions.bases[1];
    }
    // Asked again: an answer that was kept would be two ways for the verifier to follow.
    if result > 0 && maps::sheds(cookie) {
        count(Counter::Shed, result as u64);
        return 0;
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
                header: emit::header_by::<Ended>(kind::ENDED, id),
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
    let call = call();
    let (until, frames_quiet) = quiet(cookie, sent, result as u32);
    let start = position.wrapping_sub(result as u64);
    let Some(out) = maps::outgoing(direction as u32) else { return 0 };
    out.first = Data {
        header: emit::header_by::<Data>(kind::DATA, id),
        cookie,
        position: start,
        opposite,
        length: 0,
        captured: 0,
        bases: positions.bases,
        message_flags: flags,
        call: call.number,
        direction: direction as u8,
        omitted: omitted::NOTHING,
    };
    let buffer = if position <= until {
        syscall::Buffer::none(omitted::QUIET)
    } else if !sent && tcp.is_some() && flags & MSG_TRUNC != 0 {
        syscall::Buffer::none(omitted::DISCARDED)
    } else {
        call.buffer
    };
    let is_first = start == if tcp.is_some() { 0 } else { COUNTED_START };
    emit::data(direction as u32, out, buffer, result as u32, state, is_first, frames_quiet);
    0
}

/// What a process moves that may be chosen is counted, as far as it would be if it were.
#[inline(always)]
fn undecided<S: Socket>(socket: S, process: u32, direction: Direction, result: i32, flags: u32) {
    let peeked = matches!(direction, Direction::Received) && flags & (MSG_PEEK | MSG_ERRQUEUE) != 0;
    if result > 0 && !peeked && socket.has_file() {
        select::count_undecided(process, direction, result as u64);
    }
}

#[inline(always)]
fn is_unix_stream<S: Socket>(socket: S) -> bool {
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

/// What the agent does not ask for of a call of this length: anything up to a position, and of frames of content
/// more than their header.
#[inline(always)]
fn quiet(cookie: u64, sent: bool, length: u32) -> (u64, u32) {
    if length < QUIET_CALL_MIN {
        return (0, 0);
    }
    // SAFETY: the fields are copied at once.
    match unsafe { QUIET.get(&cookie) } {
        Some(quiet) => (if sent { quiet.until[0] } else { quiet.until[1] }, quiet.frames),
        None => (0, 0),
    }
}

/// What is kept of a connection that the agent was told of.
#[inline(always)]
fn connection<S: Socket>(
    socket: S,
    tcp: Option<&Tcp<S>>,
    cookie: u64,
) -> Option<&'static mut ConnectionState> {
    let state = match kept(cookie) {
        Some(state) => state,
        None => {
            let _ = CONNECTIONS.insert(&cookie, &ConnectionState::default(), 0);
            kept(cookie)?
        }
    };
    // Fields are written where they are: values on the stack would be ways for the verifier to follow.
    match tcp {
        _ if state.announced != 0 => {}
        Some(tcp) => announce(socket, tcp, cookie, state),
        None => announce_unix(socket, cookie, state),
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
fn announce<S: Socket>(socket: S, tcp: &Tcp<S>, cookie: u64, state: &mut ConnectionState) {
    let retransmits = tcp.settle(state);
    let (role, bases, settled) = (state.role, state.bases, state.settled);
    let family: u16 = socket.load(offset!(SOCK_FAMILY));
    let net: u64 = socket.copy(offset!(SOCK_NET));
    let told = emit::fixed(|record: &mut Opened| {
        *record = Opened {
            header: Header::default(),
            cookie,
            network_namespace: read_kernel(net, offset!(NET_INUM)),
            family,
            role: role as u8,
            settled: settled as u8,
            local_port: socket.load(offset!(SOCK_LOCAL_PORT)),
            peer_port: u16::from_be(socket.load(offset!(SOCK_PEER_PORT))),
            bases,
            retransmits,
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
    state.announced = told as u32 & settled;
}

/// The same of a Unix socket. The side that was connected to has a name, the other seldom has.
#[inline(always)]
fn announce_unix<S: Socket>(socket: S, cookie: u64, state: &mut ConnectionState) {
    if state.positions[0] == 0 {
        state.positions[0] = COUNTED_START;
        state.positions[1] = COUNTED_START;
    }
    let own: u64 = read_kernel(socket.address(), offset!(UNIX_ADDR));
    // At the null page there is nothing to read: without a peer this is 0 as well.
    let peer: u64 = read_kernel(socket.address(), offset!(UNIX_PEER));
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
