//! TCP as the kernel keeps it: where the two directions of a connection stand.

use aya_ebpf::helpers::generated::bpf_skc_to_tcp_sock;
use tracer_common::connection::{AF_INET, AF_INET6, Role};

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
const TCP_ESTABLISHED: u8 = 1;
const TCP_CLOSE_WAIT: u8 = 8;

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
        if tcp.is_null() { None } else { Some(Tcp(Typed(tcp as u64))) }
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
        if is_tcp { Some(Tcp(self)) } else { None }
    }

    /// It was found by its file.
    #[inline(always)]
    fn has_file(self) -> bool {
        true
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Tcp<O>(O);

pub(crate) struct Positions {
    /// By direction: where the next byte will be, counted from 0.
    pub(crate) now: [u64; 2],
    pub(crate) bases: [u32; 2],
}

impl<O: Object> Tcp<O> {
    /// The sums that the kernel keeps start at the connection's first byte; its own SYN is in the
    /// sum of the client, and a FIN in that of its receiver.
    #[inline(always)]
    pub(crate) fn positions(&self, client: bool) -> Positions {
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
    pub(crate) fn is_at_end(&self) -> bool {
        let flags: u64 = self.0.load(offset!(SOCK_FLAGS));
        let copied: u32 = self.0.load(offset!(TCP_COPIED_SEQ));
        flags & SOCK_DONE != 0 && copied == self.0.load::<u32>(offset!(TCP_RCV_NXT))
    }

    /// Who sent the SYN: it is in `bytes_acked` but not in `bytes_sent`. Only while no FIN was sent.
    #[inline(always)]
    pub(crate) fn role(&self, state: u8) -> Role {
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
