//! Records: what the probes say, and what the agent adds so that a capture file holds all that a
//! replay needs. A record is a [`Header`], the fields of its kind, then a payload; `size` covers all.
//!
//! Numbers are in the byte order of the machine that wrote them: little-endian on every machine
//! that the probes run on.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `Header::kind`. Below 32 the kernel writes them, from 32 on the agent.
pub mod kind {
    pub const FORKED: u16 = 1;
    pub const EXECUTED: u16 = 2;
    pub const EXITED: u16 = 3;
    pub const OPENED: u16 = 4;
    pub const DATA: u16 = 5;
    pub const ENDED: u16 = 6;
    pub const CLOSED: u16 = 7;
    pub const SHUT: u16 = 8;
    pub const CHOSEN: u16 = 9;
    pub const UNDECIDED: u16 = 10;
    pub const OPENED_UNIX: u16 = 11;
    pub const CONNECT: u16 = 12;
    pub const MEASURED: u16 = 13;

    /// First record of a capture: what the ids are made from.
    pub const SEED: u16 = 32;
    /// The wall clock minus the monotonic clock.
    pub const CLOCK: u16 = 33;
    /// Time passed: timeouts are handled at these.
    pub const TICK: u16 = 34;
    /// Something that the agent learned of a process elsewhere.
    pub const FACT: u16 = 35;
    /// The kernel's counters, as totals since the start.
    pub const COUNTERS: u16 = 36;
    /// The capture ended in order.
    pub const FINISHED: u16 = 37;
    /// What a process moved before it was chosen.
    pub const BEFORE: u16 = 38;
    /// Something that the agent learned of more than one process: the payload is JSON.
    pub const OBJECT: u16 = 39;
    /// A connection is over, and the record that said so was lost.
    pub const VANISHED: u16 = 40;
}

/// Starts every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    /// CLOCK_MONOTONIC in nanoseconds: for calls, when they ended.
    pub time: u64,
    /// Size of the record with its payload, in bytes.
    pub size: u32,
    pub kind: u16,
    pub flags: u16,
    /// Process (tgid) and thread, in the initial pid namespace.
    pub pid: u32,
    pub thread: u32,
}

/// A chosen process was forked ([`kind::FORKED`]), executed a program ([`kind::EXECUTED`]), or its last
/// thread ended ([`kind::EXITED`]); or one that had begun before became chosen ([`kind::CHOSEN`]), or
/// may become so once the agent has looked at it ([`kind::UNDECIDED`]). `Header::pid` is the process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Process {
    pub header: Header,
    /// The process that forked it; else 0.
    pub parent: u32,
    /// The rules of the selection by which it is chosen, a bit each; 0 if it is not.
    pub selected: u32,
    pub command: [u8; 16],
    /// Its cgroup (v2) when it executed the program; else 0, and in captures of before this was told.
    pub cgroup: u64,
}

impl Process {
    /// Its size before it had a cgroup.
    pub const SIZE_BEFORE: usize = 48;
}

/// Follows at a connection's first bytes ([`kind::OPENED`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Opened {
    pub header: Header,
    pub cookie: u64,
    pub network_namespace: u32,
    pub family: u16,
    /// [`crate::connection::Role`]
    pub role: u8,
    /// 1 if the bases were read while nothing moved them: every record has the same.
    pub settled: u8,
    pub local_port: u16,
    pub peer_port: u16,
    /// The sequence number of each direction's first byte: the same pair at both ends.
    pub bases: [u32; 2],
    /// [`Transit::retransmits`] until then; 0 in captures of before this was told.
    pub retransmits: u32,
    /// IPv4 in the first four bytes.
    pub local_address: [u8; 16],
    pub peer_address: [u8; 16],
}

/// As [`Opened`], of a Unix stream socket ([`kind::OPENED_UNIX`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct OpenedUnix {
    pub header: Header,
    pub cookie: u64,
    /// By which it stands in `/proc/net/unix`.
    pub inode: u64,
    pub network_namespace: u32,
    /// [`crate::connection::Role`]
    pub role: u8,
    /// 1 if nothing had moved before: the agent fills it in, from what it knows of older sockets.
    pub fresh: u8,
    pub padding: [u8; 2],
    /// `sun_path` of the side that was connected to, up to its end; a name without a file starts with 0.
    pub path_length: u32,
    pub padding_path: u32,
    /// 108 bytes, and 4 that are zero.
    pub path: [u8; 112],
}

/// Why bytes that moved were not copied (`Data::omitted`).
pub mod omitted {
    pub const NOTHING: u8 = 0;
    /// The call has no user buffer (sendfile, splice).
    pub const NO_BUFFER: u8 = 1;
    /// More than [`crate::config::RECORDS_PER_CALL`] records.
    pub const OVER_BUDGET: u8 = 2;
    /// The user's memory could not be read.
    pub const FAULT: u8 = 3;
    /// A call whose buffers are not followed.
    pub const CALL: u8 = 4;
    /// Received into nowhere (MSG_TRUNC).
    pub const DISCARDED: u8 = 5;
    /// More pieces than [`crate::config::IOVECS_PER_CALL`].
    pub const IOVECS: u8 = 6;
    /// The agent asked for lengths alone ([`crate::connection::Quiet`]).
    pub const QUIET: u8 = 7;
    /// The ring is filling, or the budget is used up: only the start and the end of a call are copied, where
    /// heads are.
    pub const CROWDED: u8 = 8;
    /// Moved by io_uring.
    pub const IO_URING: u8 = 9;
    /// Moved by a 32-bit task, whose registers mean other things.
    pub const TASK_32_BIT: u8 = 10;

    pub const COUNT: usize = 11;

    /// For people.
    pub fn name(reason: u8) -> &'static str {
        match reason {
            NO_BUFFER => "by sendfile or splice",
            OVER_BUDGET => "beyond what is copied of one call",
            FAULT => "in memory that could not be read",
            CALL => "by calls that are not followed",
            DISCARDED => "received into nowhere",
            IOVECS => "in more pieces than are followed",
            QUIET => "of content, not asked for",
            CROWDED => "while the ring was filling, or to stay within the budget",
            IO_URING => "by io_uring",
            TASK_32_BIT => "by 32-bit tasks",
            _ => "for no reason given",
        }
    }
}

/// Bytes moved ([`kind::DATA`]); `captured` bytes of payload follow. A call may fill several.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Data {
    pub header: Header,
    pub cookie: u64,
    /// Position of this record's first byte, counted from 0 at the connection's first byte.
    pub position: u64,
    /// Where the other direction stood at that moment: bytes of it that lie before were moved before.
    pub opposite: u64,
    /// Bytes that this record stands for; `captured` of them follow, the others were not copied.
    pub length: u32,
    pub captured: u32,
    /// The base that `position` and `opposite` were counted with, see [`Opened::bases`].
    pub bases: [u32; 2],
    /// MSG_* flags of the call.
    pub message_flags: u32,
    /// System call number (x86-64).
    pub call: u16,
    /// [`crate::connection::Direction`]
    pub direction: u8,
    pub omitted: u8,
}

/// A direction ended, or a call failed ([`kind::ENDED`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ended {
    pub header: Header,
    pub cookie: u64,
    pub position: u64,
    pub opposite: u64,
    pub bases: [u32; 2],
    /// 0 for the end of the stream, else the negative error number.
    pub result: i32,
    /// [`crate::connection::Direction`]
    pub direction: u8,
    pub padding: [u8; 3],
}

/// A side ended the connection, as the kernel's state machine sees it ([`kind::SHUT`]): before a
/// process learns of it, or without that one ever does. Bytes can still follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Shut {
    pub header: Header,
    pub cookie: u64,
    /// By direction, where the connection stood, and what that was counted with.
    pub positions: [u64; 2],
    pub bases: [u32; 2],
    /// Which side: [`crate::connection::Direction`] of what it sends.
    pub direction: u8,
    /// 1 for a reset.
    pub reset: u8,
    pub padding: [u8; 6],
}

/// The socket is gone ([`kind::CLOSED`]): no record of the connection follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Closed {
    pub header: Header,
    pub cookie: u64,
    /// By direction, where the last call ended.
    pub positions: [u64; 2],
    pub bases: [u32; 2],
    /// As it was last; not in captures of before this was told.
    pub transit: Transit,
}

impl Closed {
    /// Its size before it had a [`Transit`].
    pub const SIZE_BEFORE: usize = 56;
}

/// What the kernel measured of the way to the peer. All 0 where nothing is known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Transit {
    /// Smoothed time of a round trip, and its mean deviation, in microseconds (`tcpi_rtt`, `tcpi_rttvar`).
    pub round_trip: u32,
    pub deviation: u32,
    /// Segments that were sent again since the connection began (`tcpi_total_retrans`).
    pub retransmits: u32,
    pub padding: u32,
}

/// [`kind::MEASURED`]: of a connection that goes on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Measured {
    pub header: Header,
    pub cookie: u64,
    pub transit: Transit,
}

/// A chosen process asked for a connection, and it is there or will not be ([`kind::CONNECT`]).
/// `Header::pid` and `thread` are those that asked, `time` is when it was decided.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Connect {
    pub header: Header,
    /// Of the connection that came of it; 0 if none did.
    pub cookie: u64,
    /// When it was asked for.
    pub began: u64,
    pub network_namespace: u32,
    /// Why there is none (errno). 0 where there is one, and where the process itself gave up.
    pub error: u32,
    pub family: u16,
    /// 0 if there was no port to be had.
    pub local_port: u16,
    pub peer_port: u16,
    /// 1 if there is a connection.
    pub established: u8,
    pub padding: u8,
    pub transit: Transit,
    /// IPv4 in the first four bytes.
    pub local_address: [u8; 16],
    pub peer_address: [u8; 16],
}

/// [`kind::SEED`]
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Seed {
    pub header: Header,
    pub seed: [u8; 32],
}

/// [`kind::CLOCK`]: add `offset` to a record's time for nanoseconds since 1970.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Clock {
    pub header: Header,
    pub offset: i64,
}

/// What a [`Fact`] tells of the process `Header::pid`; the payload is its value as UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum FactKey {
    /// Name of the executable file.
    Executable = 1,
    /// The process's own `OTEL_SERVICE_NAME`.
    ServiceName = 3,
    /// The process's own `OTEL_RESOURCE_ATTRIBUTES`.
    ResourceAttributes = 4,
    /// Its path in the cgroup v2 tree.
    Cgroup = 5,
    /// A TCP port that it listened on when it was found.
    ListeningPort = 6,
    /// Of the machine; told for process 0.
    HostName = 7,
    /// Of its container, as the runtime has it: name and image.
    ContainerName = 8,
    ContainerImage = 9,
    /// Of its pod, as the container's runtime has it.
    PodName = 10,
    PodNamespace = 11,
    PodUid = 12,
    /// Its path in a cgroup v1 tree, where that says more than the one of v2.
    CgroupV1 = 13,
}

impl FactKey {
    pub const ALL: [FactKey; 12] = [
        Self::Executable,
        Self::ServiceName,
        Self::ResourceAttributes,
        Self::Cgroup,
        Self::ListeningPort,
        Self::HostName,
        Self::ContainerName,
        Self::ContainerImage,
        Self::PodName,
        Self::PodNamespace,
        Self::PodUid,
        Self::CgroupV1,
    ];

    /// Those that say where a process is: a program that it executes stays there.
    pub const PLACES: [FactKey; 7] = [
        Self::Cgroup,
        Self::CgroupV1,
        Self::ContainerName,
        Self::ContainerImage,
        Self::PodName,
        Self::PodNamespace,
        Self::PodUid,
    ];

    pub fn from_wire(value: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|key| *key as u32 == value)
    }
}

/// [`kind::FACT`]
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fact {
    pub header: Header,
    /// [`FactKey`]
    pub key: u32,
    pub padding: u32,
}

/// [`kind::COUNTERS`]: by [`crate::config::Counter`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Counters {
    pub header: Header,
    pub totals: [u64; crate::config::Counter::COUNT as usize],
}

/// [`kind::BEFORE`]: bytes that the process moved on sockets while it was not decided whether it is
/// chosen. By [`crate::connection::Direction`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Before {
    pub header: Header,
    pub bytes: [u64; 2],
}

/// [`kind::VANISHED`]
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vanished {
    pub header: Header,
    pub cookie: u64,
}

const _: () = assert!(size_of::<Header>() == 24);
const _: () = assert!(size_of::<Process>() == Process::SIZE_BEFORE + 8);
const _: () = assert!(size_of::<Opened>() == 88);
const _: () = assert!(size_of::<Data>() == 72);
const _: () = assert!(size_of::<Ended>() == 64);
const _: () = assert!(size_of::<Closed>() == Closed::SIZE_BEFORE + size_of::<Transit>());
const _: () = assert!(size_of::<Measured>() == 48);
const _: () = assert!(size_of::<Connect>() == 104);
const _: () = assert!(size_of::<Shut>() == 64);
const _: () = assert!(size_of::<OpenedUnix>() == 168);
const _: () = assert!(size_of::<Before>() == 40);
