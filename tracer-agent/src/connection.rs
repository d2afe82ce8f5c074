//! A connection: who it joins, both directions in order, and what it turned out to be.

pub mod stream;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tracer_common::{
    connection::{AF_INET6, Direction, Role},
    record::{Opened, OpenedUnix},
};

use self::stream::{Mark, Stream};

/// What does not change while a connection lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends {
    pub place: Place,
    pub role: Role,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Tcp {
        local: SocketAddr,
        peer: SocketAddr,
    },
    /// The path of the side that was connected to, `@` first for a name without a file; empty for a
    /// pair without a name.
    Unix(String),
}

impl Ends {
    pub fn of(opened: &Opened) -> Self {
        let address = |bytes: [u8; 16]| -> IpAddr {
            if opened.family == AF_INET6 {
                Ipv6Addr::from(bytes).to_canonical()
            } else {
                Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()
            }
        };
        let place = Place::Tcp {
            local: SocketAddr::new(address(opened.local_address), opened.local_port),
            peer: SocketAddr::new(address(opened.peer_address), opened.peer_port),
        };
        Self { place, role: Role::from_wire(opened.role) }
    }

    pub fn of_unix(opened: &OpenedUnix) -> Self {
        let length = (opened.path_length as usize).min(opened.path.len());
        let path = match &opened.path[..length] {
            [0, name @ ..] => format!("@{}", String::from_utf8_lossy(name)),
            path => {
                let end = memchr::memchr(0, path).unwrap_or(path.len());
                String::from_utf8_lossy(&path[..end]).into_owned()
            }
        };
        Self { place: Place::Unix(path), role: Role::from_wire(opened.role) }
    }

    /// Who is at the other end, for people.
    pub fn peer(&self) -> String {
        match &self.place {
            Place::Tcp { peer, .. } => peer.to_string(),
            Place::Unix(path) if path.is_empty() => "unix".to_owned(),
            Place::Unix(path) => format!("unix:{path}"),
        }
    }

    /// The direction that requests take.
    pub fn request_direction(&self) -> Option<Direction> {
        match self.role {
            Role::Client => Some(Direction::Sent),
            Role::Server => Some(Direction::Received),
            Role::Unknown => None,
        }
    }
}

/// Bytes, or the end of them, as a record tells.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub direction: Direction,
    pub position: u64,
    pub opposite: u64,
    /// What `position` and `opposite` were counted with, by direction.
    pub bases: [u32; 2],
    pub time: u64,
    pub process: u32,
}

/// Both directions of a connection.
#[derive(Debug, Default)]
pub struct Connection {
    pub ends: Option<Ends>,
    pub streams: [Stream; 2],
    /// By direction, the sequence number that positions are counted from. A base of a later record
    /// can differ (the kernel's sums are read while they change): sequence numbers cannot.
    bases: [Option<u32>; 2],
    /// A base that is in use has turned out too low, so positions here are not those of the kernel.
    bases_differ: bool,
    pub last_time: u64,
    pub process: u32,
    /// Which side was the first to end it.
    pub first_end: Option<FirstEnd>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstEnd {
    /// The direction of what that side sends.
    pub side: Direction,
    pub reset: bool,
    pub time: u64,
}

impl Connection {
    pub fn open_unix(&mut self, opened: &OpenedUnix) {
        self.ends = Some(Ends::of_unix(opened));
        self.process = opened.header.pid;
        self.last_time = opened.header.time;
    }

    pub fn open(&mut self, opened: &Opened) {
        self.ends = Some(Ends::of(opened));
        for direction in Direction::BOTH {
            self.base(direction, opened.bases);
        }
        self.process = opened.header.pid;
        self.last_time = opened.header.time;
    }

    /// `length` bytes moved, of which `bytes` were copied. Returns how many were there already.
    pub fn insert(&mut self, arrival: &Arrival, bytes: &[u8], length: u64) -> u64 {
        self.last_time = arrival.time;
        self.process = arrival.process;
        let position = self.position(arrival.direction, arrival.position, arrival.bases);
        let mark = self.mark(arrival, position + length);
        self.streams[arrival.direction.other().index()].expect_at(mark.opposite);
        self.streams[arrival.direction.index()].insert(position, bytes, length, mark)
    }

    fn mark(&mut self, arrival: &Arrival, end: u64) -> Mark {
        let opposite = self.position(arrival.direction.other(), arrival.opposite, arrival.bases);
        Mark { end, time: arrival.time, opposite, process: arrival.process }
    }

    /// A position of a record, counted with this connection's base.
    pub fn position(&mut self, direction: Direction, position: u64, bases: [u32; 2]) -> u64 {
        let theirs = bases[direction.index()];
        let ours = self.base(direction, bases);
        // The sequence number is right; the record's position is near enough for the upper half.
        let low = (position as u32).wrapping_add(theirs).wrapping_sub(ours);
        let shift = low.wrapping_sub(position as u32) as i32;
        position.saturating_add_signed(shift.into())
    }

    /// The base of a direction. The kernel adds to its sums before it moves its sequence numbers on, so
    /// what is read in between is too low, never too high: the highest counts, until one is in use.
    fn base(&mut self, direction: Direction, bases: [u32; 2]) -> u32 {
        let theirs = bases[direction.index()];
        let in_use = self.streams.iter().any(Stream::started);
        let ours = self.bases[direction.index()].get_or_insert(theirs);
        if theirs.wrapping_sub(*ours) as i32 > 0 {
            if in_use {
                self.bases_differ = true;
            } else {
                *ours = theirs;
            }
        }
        *ours
    }

    /// Whether a position means the same to the kernel.
    pub fn positions_are_the_kernels(&self) -> bool {
        !self.bases_differ
    }

    /// A side has ended the connection; the first counts. A reset tells more than the end before it.
    pub fn end(&mut self, side: Direction, reset: bool, time: u64) {
        let first = self.first_end.get_or_insert(FirstEnd { side, reset, time });
        first.reset |= reset && first.side == side;
    }

    pub fn held(&self) -> usize {
        self.streams.iter().map(Stream::held).sum()
    }

    pub fn hole_since(&self) -> Option<u64> {
        self.streams.iter().filter_map(Stream::hole_since).min()
    }
}
