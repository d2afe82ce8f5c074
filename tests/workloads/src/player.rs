//! Plays dialogues over real sockets, both ends in one process: each turn is cut into pieces as it is
//! asked for, and moved by the calls that are asked for.
//!
//! `player FILE CUT CALLS [unix]`: FILE holds dialogues as JSON; CUT is `all`, a number of bytes or
//! `random`; CALLS is `read`, `readv`, `recvmsg` or `recvmmsg`, and what sends in the same way.

use std::{
    io::{Error, ErrorKind},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, cut, calls, transport @ ..] = &arguments[..] else { bail!("player FILE CUT CALLS [unix]") };
    let dialogues: Value = serde_json::from_slice(&std::fs::read(file).context(file.clone())?)?;
    let mut cut = Cut::new(cut)?;
    let calls = match calls.as_str() {
        "read" => Calls::Plain,
        "readv" => Calls::Vectors,
        "recvmsg" => Calls::Message,
        "recvmmsg" => Calls::Messages,
        other => bail!("`{other}` are no calls"),
    };
    for dialogue in dialogues.as_array().context("no list of dialogues")? {
        let (client, server) = if transport.is_empty() { tcp()? } else { unix(file)? };
        for turn in dialogue["turns"].as_array().context("no turns")? {
            let bytes = hex(turn["bytes"].as_str().context("no bytes")?)?;
            let (from, to) = match turn["from"].as_str() {
                Some("client") => (&client, &server),
                _ => (&server, &client),
            };
            play(from, to, &bytes, &mut cut, calls)?;
        }
        match dialogue["end"].as_str() {
            Some("client") => end(client, server, calls)?,
            Some("reset") => {
                reset_at_close(&server)?;
                drop(server);
                let _ = receive(&client, 10, calls);
                drop(client);
            }
            _ => end(server, client, calls)?,
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Calls {
    Plain,
    Vectors,
    Message,
    Messages,
}

enum Cut {
    Bytes(usize),
    /// The state of a small generator: the same pieces each time.
    Random(u64),
}

impl Cut {
    fn new(text: &str) -> Result<Self> {
        Ok(match text {
            "all" => Cut::Bytes(usize::MAX),
            "random" => Cut::Random(0x9e37_79b9_7f4a_7c15),
            number => Cut::Bytes(number.parse()?),
        })
    }

    fn next(&mut self) -> usize {
        match self {
            Cut::Bytes(bytes) => *bytes,
            Cut::Random(state) => {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                1 + (*state % 700) as usize
            }
        }
    }
}

fn tcp() -> Result<(OwnedFd, OwnedFd)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    client.set_nodelay(true)?;
    let (server, _) = listener.accept()?;
    server.set_nodelay(true)?;
    client.set_nonblocking(true)?;
    server.set_nonblocking(true)?;
    Ok((client.into(), server.into()))
}

fn unix(file: &str) -> Result<(OwnedFd, OwnedFd)> {
    let path = format!("{file}.sock");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    let client = UnixStream::connect(&path)?;
    let (server, _) = listener.accept()?;
    client.set_nonblocking(true)?;
    server.set_nonblocking(true)?;
    Ok((client.into(), server.into()))
}

/// Sends everything while the other end receives it.
fn play(from: &OwnedFd, to: &OwnedFd, bytes: &[u8], cut: &mut Cut, calls: Calls) -> Result<()> {
    let (mut sent, mut received) = (0, 0);
    let mut piece = cut.next().min(bytes.len());
    while received < bytes.len() {
        let mut news = false;
        if sent < bytes.len() {
            let moved = send(from, &bytes[sent..sent + piece], calls)?;
            news |= moved > 0;
            sent += moved;
            piece -= moved;
            if piece == 0 {
                piece = cut.next().min(bytes.len() - sent);
            }
        }
        // Now and then the reader is late, and finds several pieces at once.
        if sent == bytes.len() || sent % 3 != 0 || !news {
            let most = cut.next().clamp(16, 1 << 20);
            let moved = receive(to, most, calls)?.unwrap_or(0);
            received += moved;
            if !news && moved == 0 {
                std::thread::yield_now();
            }
        }
    }
    Ok(())
}

/// The first ends the connection in order, and the other reads that.
fn end(first: OwnedFd, second: OwnedFd, calls: Calls) -> Result<()> {
    drop(first);
    loop {
        match receive(&second, 100, calls)? {
            Some(0) => return Ok(()),
            Some(more) => bail!("{more} bytes too many"),
            None => std::thread::yield_now(),
        }
    }
}

/// Three vectors, of which one is empty; for messages, two messages of them.
fn send(socket: &OwnedFd, bytes: &[u8], calls: Calls) -> Result<usize> {
    let fd = socket.as_raw_fd();
    let (first, second) = bytes.split_at(bytes.len() / 2);
    // SAFETY: in each call the pointers are to buffers and headers that live through it.
    let moved = unsafe {
        match calls {
            Calls::Plain => libc::write(fd, bytes.as_ptr().cast(), bytes.len()),
            Calls::Vectors => {
                let vectors = vectors([first, &[], second]);
                libc::writev(fd, vectors.as_ptr(), 3)
            }
            Calls::Message => {
                let mut vectors = vectors([first, &[], second]);
                libc::sendmsg(fd, &message(&mut vectors), libc::MSG_NOSIGNAL)
            }
            Calls::Messages if second.len() < 2 => {
                let mut vectors = vectors([bytes]);
                messages_moved(fd, &mut [message(&mut vectors)], true)
            }
            Calls::Messages => {
                let (middle, last) = second.split_at(second.len() / 2);
                let mut one = vectors([first]);
                let mut two = vectors([middle, &[], last]);
                messages_moved(fd, &mut [message(&mut one), message(&mut two)], true)
            }
        }
    };
    Ok(result(moved)?.unwrap_or(0))
}

/// None if there is nothing yet.
fn receive(socket: &OwnedFd, most: usize, calls: Calls) -> Result<Option<usize>> {
    let fd = socket.as_raw_fd();
    let mut buffer = vec![0u8; most];
    let (first, second) = buffer.split_at_mut(most / 2);
    // SAFETY: as above.
    let moved = unsafe {
        match calls {
            Calls::Plain => libc::read(fd, first.as_mut_ptr().cast(), first.len()),
            Calls::Vectors => {
                let vectors = room([first, &mut [], second]);
                libc::readv(fd, vectors.as_ptr(), 3)
            }
            Calls::Message => {
                let mut vectors = room([first, &mut [], second]);
                libc::recvmsg(fd, &mut message(&mut vectors), 0)
            }
            Calls::Messages => {
                let (middle, last) = second.split_at_mut(second.len() / 2);
                let mut one = room([first]);
                let mut two = room([middle, &mut []]);
                let mut three = room([last]);
                messages_moved(fd, &mut [message(&mut one), message(&mut two), message(&mut three)], false)
            }
        }
    };
    result(moved)
}

/// Sums what the messages of one call moved.
///
/// # Safety
/// The messages' buffers are valid.
unsafe fn messages_moved(fd: RawFd, messages: &mut [libc::msghdr], sends: bool) -> isize {
    let mut headers: Vec<libc::mmsghdr> =
        messages.iter().map(|message| libc::mmsghdr { msg_hdr: *message, msg_len: 0 }).collect();
    // SAFETY: the caller's promise.
    let count = unsafe {
        if sends {
            libc::sendmmsg(fd, headers.as_mut_ptr(), headers.len() as u32, libc::MSG_NOSIGNAL)
        } else {
            libc::recvmmsg(fd, headers.as_mut_ptr(), headers.len() as u32, 0, std::ptr::null_mut())
        }
    };
    if count < 0 {
        return -1;
    }
    headers[..count as usize].iter().map(|header| header.msg_len as isize).sum()
}

fn result(moved: isize) -> Result<Option<usize>> {
    if moved >= 0 {
        return Ok(Some(moved as usize));
    }
    let error = Error::last_os_error();
    if error.kind() == ErrorKind::WouldBlock { Ok(None) } else { Err(error.into()) }
}

/// To be read from alone.
fn vectors<const N: usize>(parts: [&[u8]; N]) -> [libc::iovec; N] {
    parts.map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() })
}

fn room<const N: usize>(parts: [&mut [u8]; N]) -> [libc::iovec; N] {
    parts.map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() })
}

fn message(vectors: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: a header of zeros is one without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len();
    message
}

fn reset_at_close(socket: &OwnedFd) -> Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option is of this type and lives through the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as u32,
        )
    };
    if set == 0 { Ok(()) } else { Err(Error::last_os_error().into()) }
}

fn hex(text: &str) -> Result<Vec<u8>> {
    (0..text.len() / 2).map(|at| Ok(u8::from_str_radix(&text[2 * at..2 * at + 2], 16)?)).collect()
}
