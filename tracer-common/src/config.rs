//! What the agent tells the probes, and the counters that the probes answer with.

/// What a process meets of the selection: the values of the selection map by process id. It is
/// chosen when it meets every kind that the selection has.
pub mod selected {
    /// Named by its process id, or a child of one that is.
    pub const PID: u32 = 1;
    /// Its name, or that of its executable file.
    pub const COMMAND: u32 = 2;
    /// Its executable file.
    pub const EXECUTABLE: u32 = 4;
    /// It listens on a port.
    pub const PORT: u32 = 8;
    /// It is in a cgroup.
    pub const CGROUP: u32 = 16;
    /// What another program does not change.
    pub const SURVIVES_EXEC: u32 = PID | CGROUP;
}

/// Names are looked up with so many bytes, the last of them zero.
pub const NAME_SIZE: usize = 64;

/// A file as the kernel knows it: device (as in `super_block.s_dev`) and inode.
pub type File = [u64; 2];

/// Levels of cgroups that are followed up to the root.
pub const CGROUP_LEVELS: u32 = 24;

/// Payload sizes of the ring buffer's records: the smallest that fits is reserved.
pub const PAYLOAD_CLASSES: [usize; 5] = [128, 512, 1024, 4096, 16384];
/// Largest payload of one record.
pub const PAYLOAD_MAX: usize = 16384;
/// Records that one call may fill with payload; what is beyond is counted as not copied.
pub const RECORDS_PER_CALL: u32 = 8;
/// The last of these holds the end of the call, where framing may be; what is left out is in the
/// middle.
pub const TAIL_RECORDS: u32 = 1;
/// Pieces of an iovec that are followed in one call.
pub const IOVECS_PER_CALL: u32 = 1024;

/// Index of a per-CPU counter. The sums are the kernel's side of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Bytes that chosen processes sent on any socket.
    MovedSent = 0,
    /// Bytes that chosen processes received on any socket.
    MovedReceived = 1,
    /// Bytes of data records that the ring buffer had no room for.
    LostSent = 2,
    LostReceived = 3,
    /// Records of any kind that the ring buffer had no room for.
    LostRecords = 4,
    /// Bytes on sockets that are neither TCP over IPv4 or IPv6 nor Unix streams.
    OtherSent = 5,
    OtherReceived = 6,
    /// Chosen processes that did not fit into the selection map.
    SelectionFull = 7,
    /// Bytes of connections that the agent ignores, by the reason: of no known protocol, encrypted, others.
    IgnoredUnknown = 8,
    IgnoredEncrypted = 9,
    IgnoredOther = 10,
}

impl Counter {
    pub const COUNT: u32 = 11;
}
