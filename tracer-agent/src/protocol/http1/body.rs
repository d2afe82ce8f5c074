//! Content and its framing (RFC 9112, sections 6 and 7).

use super::head::Framing;
use crate::connection::stream::Ending;

/// The longest line of a chunk's size, with its extensions, and the largest trailer section.
const LINE_MAX: usize = 16 * 1024;
const TRAILERS_MAX: usize = 16 * 1024;

#[derive(Debug)]
pub(super) enum Body {
    Length { left: u64 },
    Chunked(Chunk),
    UntilClose,
}

#[derive(Debug)]
pub(super) enum Chunk {
    Size,
    Content {
        left: u64,
    },
    /// The line break after the content.
    Break,
    Trailers,
}

pub(super) enum Piece {
    Content(usize),
    Framing {
        length: usize,
        trailers: bool,
        end: bool,
    },
    /// A line that is not whole yet.
    Unfinished,
    Malformed,
}

impl Body {
    /// None where there is no content.
    pub(super) fn new(framing: Framing) -> Option<Self> {
        match framing {
            Framing::Length(0) | Framing::None | Framing::Interim | Framing::Switch => None,
            // Whoever asks goes on to look for the next message.
            Framing::Broken => Some(Body::UntilClose),
            Framing::Length(left) => Some(Body::Length { left }),
            Framing::Chunked => Some(Body::Chunked(Chunk::Size)),
            Framing::UntilClose => Some(Body::UntilClose),
        }
    }

    /// `bytes` is not empty.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Piece {
        match self {
            Body::UntilClose => Piece::Content(bytes.len()),
            Body::Length { left } => Piece::Content(take(left, bytes.len() as u64) as usize),
            Body::Chunked(chunk) => chunk.read(bytes),
        }
    }

    /// How much of a gap of `length` bytes is content; None if where it ends is not known.
    pub(super) fn skip(&mut self, length: u64) -> Option<u64> {
        match self {
            Body::UntilClose => Some(length),
            Body::Length { left } => Some(take(left, length)),
            // The end of the chunk has to be seen: a gap beyond it hides framing.
            Body::Chunked(chunk @ Chunk::Content { .. }) => {
                let Chunk::Content { left } = chunk else { return None };
                if length > *left {
                    return None;
                }
                *left -= length;
                if *left == 0 {
                    *chunk = Chunk::Break;
                }
                Some(length)
            }
            Body::Chunked(_) => None,
        }
    }

    /// Content that follows in any case.
    pub(super) fn ahead(&self) -> u64 {
        match self {
            Body::Length { left } | Body::Chunked(Chunk::Content { left }) => *left,
            Body::Chunked(_) | Body::UntilClose => 0,
        }
    }

    /// All content came, and no framing follows.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self, Body::Length { left: 0 })
    }

    /// Whether the message is whole if the stream ends here.
    pub(super) fn may_end(&self, ending: Ending) -> bool {
        matches!(self, Body::UntilClose) && ending == Ending::Eof
    }
}

fn take(left: &mut u64, length: u64) -> u64 {
    let taken = length.min(*left);
    *left -= taken;
    taken
}

impl Chunk {
    fn read(&mut self, bytes: &[u8]) -> Piece {
        match self {
            Chunk::Content { left } => {
                let taken = take(left, bytes.len() as u64);
                if *left == 0 {
                    *self = Chunk::Break;
                }
                Piece::Content(taken as usize)
            }
            Chunk::Break => match bytes {
                [b'\r', b'\n', ..] => self.pass(2, Chunk::Size),
                [b'\n', ..] => self.pass(1, Chunk::Size),
                [b'\r'] => Piece::Unfinished,
                _ => Piece::Malformed,
            },
            Chunk::Size => {
                let Some(end) = memchr::memchr(b'\n', &bytes[..bytes.len().min(LINE_MAX)]) else {
                    return if bytes.len() >= LINE_MAX || size(bytes, false).is_none() {
                        Piece::Malformed
                    } else {
                        Piece::Unfinished
                    };
                };
                match size(&bytes[..end], true) {
                    Some(0) => self.pass(end + 1, Chunk::Trailers),
                    Some(left) => self.pass(end + 1, Chunk::Content { left }),
                    None => Piece::Malformed,
                }
            }
            Chunk::Trailers => match trailers_end(bytes) {
                Some(length) => Piece::Framing { length, trailers: length > 2, end: true },
                None if bytes.len() > TRAILERS_MAX => Piece::Malformed,
                None => Piece::Unfinished,
            },
        }
    }

    fn pass(&mut self, length: usize, next: Chunk) -> Piece {
        *self = next;
        Piece::Framing { length, trailers: false, end: false }
    }
}

/// The size before extensions; of a line that is not whole, 0 stands for "nothing wrong so far".
fn size(line: &[u8], whole: bool) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let rest = line[digits..].trim_ascii();
    if !(rest.is_empty() || rest[0] == b';') || digits > 16 {
        return None;
    }
    if digits == 0 {
        return if whole || !line.is_empty() { None } else { Some(0) };
    }
    u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()
}

/// Length of the trailer section with the empty line that ends it.
fn trailers_end(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [b'\r', b'\n', ..] => Some(2),
        [b'\n', ..] => Some(1),
        _ => super::head::end(bytes, 0),
    }
}
