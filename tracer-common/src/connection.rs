//! Directions and sides, and what the kernel keeps per connection.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Which way bytes moved, seen from the traced process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    Sent = 0,
    Received = 1,
}

impl Direction {
    pub const BOTH: [Direction; 2] = [Direction::Sent, Direction::Received];

    pub const fn from_wire(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Sent),
            1 => Some(Self::Received),
            _ => None,
        }
    }

    pub const fn other(self) -> Self {
        match self {
            Self::Sent => Self::Received,
            Self::Received => Self::Sent,
        }
    }

    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Who opened the connection, by what the kernel counted (a SYN is counted in `bytes_acked` of the
/// side that sent it), never by a port number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    Unknown = 0,
    Client = 1,
    Server = 2,
}

impl Role {
    pub const fn from_wire(value: u8) -> Self {
        match value {
            1 => Self::Client,
            2 => Self::Server,
            _ => Self::Unknown,
        }
    }
}

/// `AF_UNIX`, `AF_INET` and `AF_INET6` (include/linux/socket.h).
pub const AF_UNIX: u16 = 1;
pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;

/// Where positions of Unix sockets start: nothing in the kernel tells how much had moved before the first
/// call that is seen.
pub const COUNTED_START: u64 = 1 << 32;

/// Value of the kernel's connection map, by socket cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ConnectionState {
    /// 1 once an `Opened` record got through the ring buffer that needs no better one.
    pub announced: u32,
    /// [`Role`] as told in that record.
    pub role: u32,
    /// By direction, where the last call ended, and the bases that this was counted with.
    pub positions: [u64; 2],
    pub bases: [u32; 2],
    /// 1 if the bases are sure, and so stay as they are.
    pub settled: u32,
    /// Not 0 if the agent wants to be told nothing of it any more: one of [`ignored`], which it writes.
    pub ignored: u32,
    /// 1 if its frames are followed.
    pub framed: u32,
    pub padding: u32,
    /// By direction, how far.
    pub framing: [Framed; 2],
}

/// How far the frames of one direction were followed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Framed {
    /// Where the last call ended, as a sequence number: a position can be off by what moves just then.
    pub sequence: u32,
    /// Between two calls there is seldom more to be known than how much of a frame is still to come. That is
    /// here, with [`Frames::saves`] in the upper eight bits; or else one of [`framed`].
    pub left: u32,
}

/// What else [`Framed::left`] can be.
pub mod framed {
    /// It is not known where frames start.
    pub const LOST: u32 = u32::MAX;
    /// There is more to it: see [`Frames`](super::Frames).
    pub const APART: u32 = u32::MAX - 1;
    /// Where [`Frames::saves`](super::Frames::saves) is.
    pub const SAVES_AT: u32 = 24;
}

/// What bytes of an ignored connection are counted as.
pub mod ignored {
    pub const UNKNOWN: u32 = 1;
    pub const ENCRYPTED: u32 = 2;
    pub const OTHER: u32 = 3;
}

/// Value of the map of what need not be copied, by socket cookie, which the agent alone writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Quiet {
    /// By direction: calls that end at or before this position are told by their length alone, for content
    /// that the agent knows the length of.
    pub until: [u64; 2],
    /// 1 if of frames of content the header is enough, where frames are followed.
    pub frames: u32,
    pub padding: u32,
}

/// How a protocol lays out its frames: what the probes need to pass over content without knowing what it
/// means. A header is a length and a kind at fixed places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    /// What a connection starts with, on the side that asks: the first bytes of it, and how many there are
    /// before the first frame.
    pub prefix: [u8; 16],
    pub prefix_length: u32,
    /// Bytes of a frame's header, 16 at most; where the length stands in it, in how many bytes, the most
    /// significant first; and where the kind stands, which is one byte.
    pub header: u32,
    pub length_at: u32,
    pub length_size: u32,
    pub kind_at: u32,
    /// Kinds from this one on are none, and of those before it a bit for each that holds content.
    pub kinds: u32,
    pub content: u32,
}

/// How far the frames of one direction were followed, where that is not simple: a value of the probes' own map,
/// by twice the socket cookie and the direction.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Frames {
    /// Why content is passed over, 0 if it is not: as it was at the last long call.
    pub saves: u32,
    /// Of the current frame, bytes that are copied, and those after them that are not.
    pub copy: u32,
    pub skip: u32,
    /// Bytes of the next header that moved already.
    pub have: u32,
    /// 0 if it is not known where frames start.
    pub follows: u32,
    /// 1 if the current frame holds content.
    pub content: u32,
    pub header: [u8; 16],
}

/// Shorter calls are not looked up: to copy them costs no more.
pub const QUIET_CALL_MIN: u32 = 512;
