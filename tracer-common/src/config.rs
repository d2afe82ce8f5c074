//! What the agent tells the probes, and the counters that the probes answer with.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Kinds of conditions that a rule of the selection can have, by their place in [`Met`].
pub mod condition {
    /// Named by its process id, or a child of one that is.
    pub const PID: usize = 0;
    /// Its name, or that of its executable file.
    pub const COMMAND: usize = 1;
    /// Its executable file.
    pub const EXECUTABLE: usize = 2;
    /// It listens on a port.
    pub const PORT: usize = 3;
    /// It is in a cgroup.
    pub const CGROUP: usize = 4;
    pub const COUNT: usize = 5;
}

/// Rules that a selection can have: a bit each.
pub const RULES_MAX: usize = 32;

/// By kind of condition, the rules that a process meets the condition of.
pub type Met = [u32; condition::COUNT];

/// What of [`Met`] another program does not change.
#[inline(always)]
pub fn surviving_exec(met: &Met) -> Met {
    [met[condition::PID], 0, 0, 0, met[condition::CGROUP]]
}

/// Who is chosen: processes that meet all conditions of an including rule, and not all of an excluding one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Rules {
    /// By kind, the rules that have no such condition.
    pub free: Met,
    /// By kind, the rules of whose condition the agent knows more than the probes.
    pub by_agent: Met,
    pub include: u32,
    pub exclude: u32,
}

/// What became of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// By which rules.
    Chosen(u32),
    /// The agent has to look at it.
    Undecided,
    No,
}

impl Rules {
    /// What comes of what a process is known to meet.
    #[inline(always)]
    pub fn choose(&self, met: &Met) -> Choice {
        let (mut sure, mut possible) = (u32::MAX, u32::MAX);
        let mut kind = 0;
        while kind < condition::COUNT {
            let known = met[kind] | self.free[kind];
            sure &= known;
            possible &= known | self.by_agent[kind];
            kind += 1;
        }
        if sure & self.exclude != 0 || possible & self.include == 0 {
            Choice::No
        } else if possible & self.exclude != 0 || sure & self.include == 0 {
            Choice::Undecided
        } else {
            Choice::Chosen(sure & self.include)
        }
    }

    /// As [`Self::choose`], for the agent: what it does not find met is not.
    pub fn chosen(&self, met: &Met) -> u32 {
        match (Self { by_agent: Met::default(), ..*self }).choose(met) {
            Choice::Chosen(rules) => rules,
            Choice::Undecided | Choice::No => 0,
        }
    }

    /// Whether any rule has a condition of the kind.
    #[inline(always)]
    pub fn uses(&self, kind: usize) -> bool {
        (self.include | self.exclude) & !self.free[kind] != 0
    }
}

/// A process in the selection map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Selected {
    pub met: Met,
    /// The rules by which it is chosen; 0 if it is not.
    pub chosen: u32,
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
    /// Bytes of connections that are left out to stay within the budget.
    Shed = 11,
    /// Nanoseconds that the probes took for calls of chosen processes: of one call in [`TIMED_CALLS`], as if all
    /// were like it.
    ProbeTime = 12,
}

impl Counter {
    pub const COUNT: u32 = 13;
}

/// Of so many calls on a CPU one is timed; a power of two.
pub const TIMED_CALLS: u64 = 64;

/// What is left out to stay within the budget; written by the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Shed {
    /// Of [`SHED_PARTS`] parts of all connections, chosen by their cookie, so many are left out.
    pub connections: u32,
    /// Not 0 if of a call no more than its start and its end are copied.
    pub content: u32,
}

pub const SHED_PARTS: u32 = 1024;

impl Shed {
    /// Whether the connection is one of those that are left out.
    #[inline(always)]
    pub fn covers(&self, cookie: u64) -> bool {
        // Cookies are numbers in a row: the upper bits of the product are spread (Knuth's multiplicative hash).
        let part = cookie.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54;
        (part as u32) < self.connections
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rule 0 asks for a name, rule 1 for a name and a port, rule 2 excludes a file.
    fn rules() -> Rules {
        let mut free = [0; condition::COUNT];
        for (kind, free) in free.iter_mut().enumerate() {
            let asked: &[u32] = match kind {
                condition::COMMAND => &[0, 1],
                condition::PORT => &[1],
                condition::EXECUTABLE => &[2],
                _ => &[],
            };
            *free = asked.iter().fold(u32::MAX, |free, rule| free & !(1 << rule));
        }
        Rules { free, by_agent: Met::default(), include: 0b011, exclude: 0b100 }
    }

    fn met(values: &[(usize, u32)]) -> Met {
        let mut met = Met::default();
        values.iter().for_each(|(kind, rules)| met[*kind] = *rules);
        met
    }

    #[test]
    fn all_conditions_of_one_rule_choose() {
        let rules = rules();
        assert_eq!(rules.choose(&met(&[])), Choice::No);
        assert_eq!(rules.choose(&met(&[(condition::COMMAND, 0b01)])), Choice::Chosen(0b01));
        assert_eq!(rules.choose(&met(&[(condition::COMMAND, 0b10)])), Choice::No);
        let both = met(&[(condition::COMMAND, 0b11), (condition::PORT, 0b10)]);
        assert_eq!(rules.choose(&both), Choice::Chosen(0b11));
        // Conditions of different rules do not come together.
        assert_eq!(rules.choose(&met(&[(condition::PORT, 0b10)])), Choice::No);
        assert!(rules.uses(condition::EXECUTABLE) && !rules.uses(condition::CGROUP));
    }

    #[test]
    fn connections_are_shed_in_parts_that_grow() {
        let left = |connections| {
            (0..10_000u64).filter(move |cookie| Shed { connections, content: 0 }.covers(*cookie))
        };
        assert_eq!(left(0).count(), 0);
        assert_eq!(left(SHED_PARTS).count(), 10_000);
        assert!((4_900..5_100).contains(&left(SHED_PARTS / 2).count()));
        assert!(
            left(SHED_PARTS / 4)
                .all(|cookie| Shed { connections: SHED_PARTS / 2, content: 0 }.covers(cookie))
        );
    }

    #[test]
    fn what_excludes_wins() {
        let excluded = met(&[(condition::COMMAND, 0b01), (condition::EXECUTABLE, 0b100)]);
        assert_eq!(rules().choose(&excluded), Choice::No);
    }

    #[test]
    fn the_agent_is_asked_where_it_can_change_the_answer() {
        let mut rules = rules();
        rules.by_agent[condition::PORT] = 0b10;
        let name = met(&[(condition::COMMAND, 0b10)]);
        assert_eq!(rules.choose(&name), Choice::Undecided);
        assert_eq!(rules.chosen(&name), 0);
        // One rule is enough, whatever becomes of the other.
        assert_eq!(rules.choose(&met(&[(condition::COMMAND, 0b11)])), Choice::Chosen(0b01));
        rules.by_agent[condition::EXECUTABLE] = 0b100;
        assert_eq!(rules.choose(&met(&[(condition::COMMAND, 0b01)])), Choice::Undecided);
        assert_eq!(rules.chosen(&met(&[(condition::COMMAND, 0b01)])), 0b01);
        assert_eq!(rules.choose(&met(&[])), Choice::No);
    }
}
