//! What a connection is called: by the kernel's socket cookie where the kernel gives it, else by a number
//! of our own for the place that the socket is at, until that is somebody else's.

use aya_ebpf::helpers::generated::bpf_get_socket_cookie;

use crate::{
    maps::{self, IDENTITIES},
    memory::{BY_ADDRESS, constant, read_kernel},
    offset,
    tcp::Socket,
};

/// Insert only what is not there (include/uapi/linux/bpf.h).
const BPF_NOEXIST: u64 = 1;

#[inline(always)]
fn by_address() -> bool {
    constant(&BY_ADDRESS) != 0
}

/// Of a socket that bytes moved on.
#[inline(always)]
pub(crate) fn of<S: Socket>(socket: S, tcp: bool) -> u64 {
    if !by_address() {
        return cookie(socket);
    }
    let place = if tcp { socket.address() } else { place_of_unix(socket) };
    if let Some(identity) = at(place) {
        return identity;
    }
    let identity = maps::next_name();
    let _ = IDENTITIES.insert(&place, &identity, BPF_NOEXIST);
    at(place).unwrap_or(identity)
}

/// Of a TCP socket, if it has one.
#[inline(always)]
pub(crate) fn known<S: Socket>(socket: S) -> Option<u64> {
    if by_address() { at(socket.address()) } else { Some(cookie(socket)) }
}

/// What is at the place is another connection from here on.
#[inline(always)]
pub(crate) fn forget<S: Socket>(socket: S) {
    if by_address() {
        let _ = IDENTITIES.remove(&socket.address());
    }
}

#[inline(always)]
fn cookie<S: Socket>(socket: S) -> u64 {
    // SAFETY: the verifier checks that it is a socket. Where it knows no types it sees that this is never
    // reached.
    unsafe { bpf_get_socket_cookie(socket.address() as *mut _) }
}

/// Nothing tells the end of a Unix socket: the inode differs where the place is used again.
#[inline(always)]
fn place_of_unix<S: Socket>(socket: S) -> u64 {
    let owner: u64 = read_kernel(socket.address(), offset!(SOCK_SOCKET));
    let file: u64 = read_kernel(owner, offset!(SOCKET_FILE));
    let inode: u64 = read_kernel(file, offset!(FILE_INODE));
    let number: u64 = read_kernel(inode, offset!(INODE_NUMBER));
    (socket.address() >> 6) << 32 | (number & 0xffff_ffff)
}

#[inline(always)]
fn at(place: u64) -> Option<u64> {
    // SAFETY: the value is copied at once.
    unsafe { IDENTITIES.get(&place) }.copied()
}
