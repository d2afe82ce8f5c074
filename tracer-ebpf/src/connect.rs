//! Connections that chosen processes ask for: how long that took, or why it failed; and what is measured of
//! those that are there.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use tracer_common::{
    connection::AF_INET6,
    record::{Connect, Measured, kind},
};

use crate::{
    emit, identity,
    maps::{CONNECTING, CONNECTIONS},
    memory::{Typed, Untyped, read_kernel},
    offset, select,
    tcp::Socket,
};

/// include/net/tcp_states.h
const TCP_ESTABLISHED: i32 = 1;
const TCP_CLOSE: i32 = 7;

/// Who asked, and when.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Connecting {
    time: u64,
    process: u32,
    thread: u32,
}

/// (sock, packet): after it was sent again; in any process, also in none.
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn tcp_retransmit_skb(context: BtfTracePointContext) -> i32 {
    sent_again(Typed(context.arg(0)))
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn raw_tcp_retransmit_skb(context: RawTracePointContext) -> i32 {
    sent_again(Untyped(context.arg(0)))
}

/// The current process asks for a connection: this happens in its call, whether that waits or not.
#[inline(always)]
pub(crate) fn began<S: Socket>(socket: S) {
    let id = bpf_get_current_pid_tgid();
    let (process, thread) = ((id >> 32) as u32, id as u32);
    // The kernel's own sockets have no file.
    let file: u64 = socket.follow(offset!(SOCK_SOCKET)).load(offset!(SOCKET_FILE));
    if file == 0 || !select::is_chosen(process) {
        return;
    }
    // SAFETY: no arguments.
    let time = unsafe { bpf_ktime_get_ns() };
    let _ = CONNECTING.insert(&socket.address(), &Connecting { time, process, thread }, 0);
}

/// In any process, also in none: there is a connection, or there will be none.
#[inline(always)]
pub(crate) fn ended<S: Socket>(socket: S, state: i32) {
    let place = socket.address();
    // SAFETY: the value is copied at once.
    let Some(asked) = (unsafe { CONNECTING.get(&place) }).copied() else { return };
    let _ = CONNECTING.remove(&place);
    let established = state == TCP_ESTABLISHED;
    if !established && state != TCP_CLOSE {
        return; // both ends asked for it at the same time
    }
    let Some(tcp) = socket.tcp() else { return };
    let cookie = if established { identity::of(socket, true) } else { 0 };
    let error: u32 = if established { 0 } else { socket.load(offset!(SOCK_ERROR)) };
    let family: u16 = socket.load(offset!(SOCK_FAMILY));
    let net: u64 = socket.copy(offset!(SOCK_NET));
    emit::fixed(|record: &mut Connect| {
        *record = Connect {
            header: emit::header::<Connect>(kind::CONNECT),
            cookie,
            began: asked.time,
            network_namespace: read_kernel(net, offset!(NET_INUM)),
            error,
            family,
            local_port: tcp.local_port(),
            peer_port: u16::from_be(socket.load(offset!(SOCK_PEER_PORT))),
            established: established as u8,
            padding: 0,
            transit: tcp.transit(),
            local_address: [0; 16],
            peer_address: [0; 16],
        };
        record.header.pid = asked.process;
        record.header.thread = asked.thread;
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
}

/// Of connections that the agent was told of: the others have no bytes that were seen.
#[inline(always)]
fn sent_again<S: Socket>(socket: S) -> i32 {
    let Some(cookie) = identity::known(socket) else { return 0 };
    // SAFETY: only looked at for whether it is there.
    if unsafe { CONNECTIONS.get(&cookie) }.is_none() {
        return 0;
    }
    let Some(tcp) = socket.tcp() else { return 0 };
    emit::fixed(|record: &mut Measured| {
        *record =
            Measured { header: emit::header::<Measured>(kind::MEASURED), cookie, transit: tcp.transit() };
    });
    0
}
