//! What the agent tells the probes, and the counters that the probes answer with.

/// Flags of a chosen process, the values of the selection map by process id.
pub mod selected {
    /// Named on the command line by its process id.
    pub const BY_PID: u32 = 1;
    /// Child of a chosen process.
    pub const BY_FORK: u32 = 2;
    /// What survives an exec.
    pub const SURVIVES_EXEC: u32 = BY_PID | BY_FORK;
}

/// Payload sizes of the ring buffer's records: the smallest that fits is reserved.
pub const PAYLOAD_CLASSES: [usize; 4] = [128, 512, 4096, 16384];
/// Largest payload of one record.
pub const PAYLOAD_MAX: usize = 16384;
/// Records that one call may fill with payload; what is beyond is counted as not copied.
pub const RECORDS_PER_CALL: u32 = 8;
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
    /// Bytes on sockets that are not TCP over IPv4 or IPv6.
    OtherSent = 5,
    OtherReceived = 6,
    /// Chosen processes that did not fit into the selection map.
    SelectionFull = 7,
}

impl Counter {
    pub const COUNT: u32 = 8;
}
