//! A connection: who it joins, both directions in order, and what it turned out to be.

pub mod stream;

use std::{
    cell::OnceCell,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use smol_str::format_smolstr;
use tracer_common::{
    connection::{AF_INET6, COUNTED_START, Direction, Role},
    record::{Opened, OpenedUnix},
};

use self::stream::{Mark, Stream};
use crate::protocol::{Attribute, Common, Kind, Text};

/// What does not change while a connection lives.
#[derive(Clone, Debug)]
pub struct Ends {
    pub place: Place,
    pub role: Role,
    /// Who is at the other end, for people.
    pub peer: Text,
    /// Made for the first span.
    common: OnceCell<(Kind, Arc<Common>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Tcp {
        local: Address,
        peer: Address,
    },
    /// The path of the side that was connected to, `@` first for a name without a file; empty for a
    /// pair without a name.
    Unix(Text),
}

/// Written once, and read for every span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub ip: Text,
    pub port: u16,
}

impl Address {
    /// IPv4 is in the first four bytes.
    pub fn of(family: u16, bytes: [u8; 16], port: u16) -> Self {
        Self { ip: format_smolstr!("{}", ip(family, bytes)), port }
    }
}

pub fn ip(family: u16, bytes: [u8; 16]) -> IpAddr {
    if family == AF_INET6 {
        Ipv6Addr::from(bytes).to_canonical()
    } else {
        Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()
    }
}

impl Place {
    fn peer(&self) -> Text {
        match self {
            Place::Tcp { peer, .. } if peer.ip.contains(':') => {
                format_smolstr!("[{}]:{}", peer.ip, peer.port)
            }
            Place::Tcp { peer, .. } => format_smolstr!("{}:{}", peer.ip, peer.port),
            Place::Unix(path) if path.is_empty() => Text::new_static("unix"),
            Place::Unix(path) => format_smolstr!("unix:{path}"),
        }
    }
}

impl Ends {
    pub fn of(opened: &Opened) -> Self {
        let place = Place::Tcp {
            local: Address::of(opened.family, opened.local_address, opened.local_port),
            peer: Address::of(opened.family, opened.peer_address, opened.peer_port),
        };
        Self { peer: place.peer(), place, role: Role::from_wire(opened.role), common: OnceCell::new() }
    }

    pub fn of_unix(opened: &OpenedUnix) -> Self {
        let length = (opened.path_length as usize).min(opened.path.len());
        let path = match &opened.path[..length] {
            [0, name @ ..] => format_smolstr!("@{}", String::from_utf8_lossy(name)),
            path => {
                let end = memchr::memchr(0, path).unwrap_or(path.len());
                Text::new(String::from_utf8_lossy(&path[..end]))
            }
        };
        let place = Place::Unix(path);
        Self { peer: place.peer(), place, role: Role::from_wire(opened.role), common: OnceCell::new() }
    }

    pub fn peer_port(&self) -> Option<u16> {
        match &self.place {
            Place::Tcp { peer, .. } => Some(peer.port),
            Place::Unix(_) => None,
        }
    }

    /// Adds what a span says of the server where the request has not, as `said` tells.
    pub fn describe_server(&self, said: &[Attribute], attributes: &mut Vec<Attribute>, kind: Kind) {
        let has = |key| said.iter().any(|attribute| attribute.key == key);
        let (has_address, has_port) = (has("server.address"), has("server.port"));
        match &self.place {
            Place::Tcp { local, peer } => {
                let server = match kind {
                    Kind::Server => local,
                    Kind::Client => peer,
                };
                if !has_address {
                    attributes.push(Attribute::text("server.address", server.ip.clone()));
                }
                if !has_port {
                    attributes.push(Attribute::number("server.port", server.port));
                }
            }
            Place::Unix(path) if !path.is_empty() && !has_address => {
                attributes.push(Attribute::text("server.address", path.clone()));
            }
            Place::Unix(_) => {}
        }
    }

    /// What is the same for all its spans.
    pub fn common(&self, kind: Kind) -> Arc<Common> {
        let (made_for, common) = self.common.get_or_init(|| (kind, Arc::new(self.describe(kind))));
        if *made_for == kind { common.clone() } else { Arc::new(self.describe(kind)) }
    }

    fn describe(&self, kind: Kind) -> Common {
        let mut attributes = Vec::new();
        match &self.place {
            Place::Tcp { local, peer } => {
                if kind == Kind::Server {
                    attributes.push(Attribute::text("client.address", peer.ip.clone()));
                    attributes.push(Attribute::number("client.port", peer.port));
                }
                attributes.push(Attribute::word("network.transport", "tcp"));
                attributes.push(Attribute::text("network.local.address", local.ip.clone()));
                attributes.push(Attribute::number("network.local.port", local.port));
                attributes.push(Attribute::text("network.peer.address", peer.ip.clone()));
                attributes.push(Attribute::number("network.peer.port", peer.port));
            }
            Place::Unix(path) => {
                attributes.push(Attribute::word("network.transport", "unix"));
                if !path.is_empty() {
                    attributes.push(Attribute::text("network.peer.address", path.clone()));
                }
            }
        }
        Common::new(attributes)
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
    pub thread: u32,
    /// The call would not have waited for bytes.
    pub unwilling: bool,
}

/// Both directions of a connection.
#[derive(Debug, Default)]
pub struct Connection {
    pub ends: Option<Ends>,
    pub streams: [Stream; 2],
    /// By direction, the sequence number that positions are counted from. A base of a later record
    /// can differ (the kernel's sums are read while they change): sequence numbers cannot.
    bases: [Option<u32>; 2],
    /// The bases are sure.
    settled: bool,
    /// A record has another base than the one in use, so positions here are not those of the kernel.
    bases_differ: bool,
    pub last_time: u64,
    pub process: u32,
    /// Some call that received did not wait for bytes: whoever makes such calls looks after several connections.
    pub polled: bool,
    start: u64,
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

/// Where a request starts, as TCP has it: the same at both ends, also where addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Of its first byte.
    pub sequence: u32,
    /// Of the first byte of the requests' direction, and of the other.
    bases: [u32; 2],
    /// Of the client, and of the server.
    ports: [u16; 2],
}

impl Spot {
    /// Whether it is the same place, seen from the other end. A base can be too low, by what the kernel
    /// counted late; ports can be translated.
    pub fn is(&self, other: &Spot) -> bool {
        let same = [0, 1].map(|way| self.bases[way] == other.bases[way]);
        self.sequence == other.sequence
            && (same == [true; 2] || self.ports == other.ports && same != [false; 2])
    }
}

impl Connection {
    pub fn open_unix(&mut self, opened: &OpenedUnix) {
        self.ends = Some(Ends::of_unix(opened));
        if opened.fresh != 0 {
            self.start = COUNTED_START;
            for stream in &mut self.streams {
                stream.expect_at(COUNTED_START);
            }
        }
        self.process = opened.header.pid;
        self.last_time = opened.header.time;
    }

    pub fn open(&mut self, opened: &Opened) {
        self.ends = Some(Ends::of(opened));
        if opened.settled != 0 && !self.has_started() {
            self.settled = true;
            self.bases = opened.bases.map(Some);
        }
        for direction in Direction::BOTH {
            self.base(direction, opened.bases);
        }
        self.process = opened.header.pid;
        self.last_time = opened.header.time;
    }

    /// Whether anything of it was seen.
    pub fn has_started(&self) -> bool {
        self.streams.iter().any(Stream::started)
    }

    pub fn is_unix(&self) -> bool {
        self.ends.as_ref().is_some_and(|ends| matches!(ends.place, Place::Unix(_)))
    }

    /// Where a direction starts that was seen from its first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Whether nothing of the direction was read or missed so far.
    pub fn is_at_start(&self, direction: Direction) -> bool {
        self.streams[direction.index()].front() == self.start
    }

    /// `length` bytes moved, of which `bytes` were copied. Returns how many were there already.
    pub fn insert(&mut self, arrival: &Arrival, bytes: &[u8], length: u64) -> u64 {
        self.last_time = arrival.time;
        self.process = arrival.process;
        self.polled |= arrival.unwilling && arrival.direction == Direction::Received;
        let position = self.position(arrival.direction, arrival.position, arrival.bases);
        let mark = self.mark(arrival, position + length);
        self.streams[arrival.direction.other().index()].expect_at(mark.opposite);
        self.streams[arrival.direction.index()].insert(position, bytes, length, mark)
    }

    fn mark(&mut self, arrival: &Arrival, end: u64) -> Mark {
        let opposite = self.position(arrival.direction.other(), arrival.opposite, arrival.bases);
        Mark { end, time: arrival.time, opposite, process: arrival.process, thread: arrival.thread }
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

    /// The base of a direction. Where it is not sure, it was read while the kernel moved its sums and its sequence
    /// numbers on, one after the other, mostly the sums first: what is read in between is too low then, so the
    /// highest counts, until one is in use.
    fn base(&mut self, direction: Direction, bases: [u32; 2]) -> u32 {
        let theirs = bases[direction.index()];
        let fixed = self.settled || self.has_started();
        let ours = self.bases[direction.index()].get_or_insert(theirs);
        if theirs != *ours {
            if fixed {
                self.bases_differ |= self.settled || theirs.wrapping_sub(*ours) as i32 > 0;
            } else if theirs.wrapping_sub(*ours) as i32 > 0 {
                *ours = theirs;
            }
        }
        *ours
    }

    /// What tells a position from those of all other connections: both ends give the same. None without
    /// sequence numbers.
    pub fn spot(&self, requests: Direction, position: u64) -> Option<Spot> {
        let Place::Tcp { local, peer } = &self.ends.as_ref()?.place else { return None };
        let [asking, answering] = [requests, requests.other()].map(|way| self.bases[way.index()]);
        let (asking, answering) = (asking?, answering?);
        let ports = match requests {
            Direction::Sent => [local.port, peer.port],
            Direction::Received => [peer.port, local.port],
        };
        Some(Spot { sequence: asking.wrapping_add(position as u32), bases: [asking, answering], ports })
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
