//! Records as the pipeline reads them, and the file that holds them.
//!
//! A capture file is [`MAGIC`], then for each record its length, its CRC-32 and its bytes. The
//! records are those that the live pipeline read, in its order, so a replay sees what it saw.

use std::fmt;

use tracer_common::record::{self as wire, FactKey, Header, kind};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Starts a capture file; the last byte is the version of the format.
pub const MAGIC: [u8; 8] = *b"TRCAPT\0\x02";

/// No record is larger: what claims to be is damage.
const RECORD_MAX: usize = 1 << 20;

/// Length and CRC-32 before each record.
const FRAME: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Forked,
    Executed,
    Exited,
    /// It ran already when it was chosen.
    Chosen,
}

/// One record, its payload borrowed.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    Process(Life, wire::Process),
    Opened(wire::Opened),
    OpenedUnix(wire::OpenedUnix),
    Data(wire::Data, &'a [u8]),
    Ended(wire::Ended),
    Closed(wire::Closed),
    Connect(wire::Connect),
    Measured(wire::Measured),
    Shut(wire::Shut),
    Seed([u8; 32]),
    Clock {
        offset: i64,
    },
    Tick {
        now: u64,
    },
    Fact {
        process: u32,
        key: FactKey,
        value: &'a str,
    },
    /// [`crate::enrich::kubernetes::Object`] as JSON.
    Object(&'a str),
    Counters(wire::Counters),
    Before(wire::Before),
    Vanished(wire::Vanished),
    /// Not for the pipeline: the agent has to say whether the process is chosen.
    Undecided(wire::Process),
    Finished {
        now: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("a record is cut short: {have} of {want} bytes")]
    Short { want: usize, have: usize },
    #[error("a record of the unknown kind {0}")]
    Kind(u16),
    #[error("a record of kind {kind} says that it has {size} bytes and has {have}")]
    Size { kind: u16, size: u32, have: usize },
    #[error("a fact of the unknown key {0}")]
    Fact(u32),
    #[error("a fact that is not UTF-8")]
    Text,
}

impl<'a> Record<'a> {
    /// When it was, where it says so.
    pub fn time(&self) -> Option<u64> {
        match self {
            Record::Process(_, process) | Record::Undecided(process) => Some(process.header.time),
            Record::Opened(opened) => Some(opened.header.time),
            Record::OpenedUnix(opened) => Some(opened.header.time),
            Record::Data(data, _) => Some(data.header.time),
            Record::Ended(ended) => Some(ended.header.time),
            Record::Closed(closed) => Some(closed.header.time),
            Record::Connect(connect) => Some(connect.header.time),
            Record::Measured(measured) => Some(measured.header.time),
            Record::Shut(shut) => Some(shut.header.time),
            Record::Counters(counters) => Some(counters.header.time),
            Record::Before(before) => Some(before.header.time),
            Record::Vanished(vanished) => Some(vanished.header.time),
            Record::Tick { now } | Record::Finished { now } => Some(*now),
            Record::Seed(_) | Record::Clock { .. } | Record::Fact { .. } | Record::Object(_) => None,
        }
    }

    pub fn parse(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let (header, _) = Header::read_from_prefix(bytes)
            .map_err(|_| RecordError::Short { want: size_of::<Header>(), have: bytes.len() })?;
        let size = header.size as usize;
        if size > bytes.len() || size < size_of::<Header>() {
            return Err(RecordError::Size { kind: header.kind, size: header.size, have: bytes.len() });
        }
        let bytes = &bytes[..size];
        Ok(match header.kind {
            kind::FORKED => Record::Process(Life::Forked, process(bytes)?),
            kind::EXECUTED => Record::Process(Life::Executed, process(bytes)?),
            kind::EXITED => Record::Process(Life::Exited, process(bytes)?),
            kind::CHOSEN => Record::Process(Life::Chosen, process(bytes)?),
            kind::UNDECIDED => Record::Undecided(process(bytes)?),
            kind::OPENED => Record::Opened(fields(bytes)?.0),
            kind::OPENED_UNIX => Record::OpenedUnix(fields(bytes)?.0),
            kind::DATA => {
                let (data, payload): (wire::Data, _) = fields(bytes)?;
                if data.captured as usize != payload.len() || data.captured > data.length {
                    return Err(RecordError::Size {
                        kind: header.kind,
                        size: header.size,
                        have: bytes.len(),
                    });
                }
                Record::Data(data, payload)
            }
            kind::ENDED => Record::Ended(fields(bytes)?.0),
            kind::CLOSED => Record::Closed(closed(bytes)?),
            kind::CONNECT => Record::Connect(fields(bytes)?.0),
            kind::MEASURED => Record::Measured(fields(bytes)?.0),
            kind::SHUT => Record::Shut(fields(bytes)?.0),
            kind::SEED => Record::Seed(fields::<wire::Seed>(bytes)?.0.seed),
            kind::CLOCK => Record::Clock { offset: fields::<wire::Clock>(bytes)?.0.offset },
            kind::TICK => Record::Tick { now: header.time },
            kind::FACT => {
                let (fact, value): (wire::Fact, _) = fields(bytes)?;
                Record::Fact {
                    process: header.pid,
                    key: FactKey::from_wire(fact.key).ok_or(RecordError::Fact(fact.key))?,
                    value: std::str::from_utf8(value).map_err(|_| RecordError::Text)?,
                }
            }
            kind::OBJECT => {
                let (_, object): (Header, _) = fields(bytes)?;
                Record::Object(std::str::from_utf8(object).map_err(|_| RecordError::Text)?)
            }
            kind::COUNTERS => Record::Counters(counters(bytes)?),
            kind::BEFORE => Record::Before(fields(bytes)?.0),
            kind::VANISHED => Record::Vanished(fields(bytes)?.0),
            kind::FINISHED => Record::Finished { now: header.time },
            other => return Err(RecordError::Kind(other)),
        })
    }
}

/// Files of earlier versions have fewer of them.
fn counters(bytes: &[u8]) -> Result<wire::Counters, RecordError> {
    const FIRST: usize = size_of::<Header>() + size_of::<u64>();
    let mut whole = [0; size_of::<wire::Counters>()];
    if bytes.len() < FIRST {
        return Err(RecordError::Short { want: FIRST, have: bytes.len() });
    }
    let known = bytes.len().min(whole.len());
    whole[..known].copy_from_slice(&bytes[..known]);
    Ok(fields(&whole)?.0)
}

fn fields<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8]) -> Result<(T, &[u8]), RecordError> {
    T::read_from_prefix(bytes).map_err(|_| RecordError::Short { want: size_of::<T>(), have: bytes.len() })
}

fn closed(bytes: &[u8]) -> Result<wire::Closed, RecordError> {
    grown::<_, { size_of::<wire::Closed>() }>(bytes, wire::Closed::SIZE_BEFORE)
}

fn process(bytes: &[u8]) -> Result<wire::Process, RecordError> {
    grown::<_, { size_of::<wire::Process>() }>(bytes, wire::Process::SIZE_BEFORE)
}

/// A kind of record that has grown: older captures have the start of it.
fn grown<T: FromBytes + KnownLayout + Immutable, const SIZE: usize>(
    bytes: &[u8],
    before: usize,
) -> Result<T, RecordError> {
    let mut whole = [0; SIZE];
    let have = bytes.len().min(SIZE);
    if have < before {
        return Err(RecordError::Short { want: before, have });
    }
    whole[..have].copy_from_slice(&bytes[..have]);
    Ok(fields(&whole)?.0)
}

/// Bytes of a record that the agent writes: `value`'s header is completed.
pub fn encode<T: IntoBytes + Immutable>(
    kind: u16,
    time: u64,
    process: u32,
    value: &T,
    payload: &[u8],
) -> Vec<u8> {
    let size = size_of::<T>() + payload.len();
    let header = Header { time, size: size as u32, kind, flags: 0, pid: process, thread: 0 };
    let mut bytes = Vec::with_capacity(size);
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&value.as_bytes()[size_of::<Header>()..]);
    bytes.extend_from_slice(payload);
    bytes
}

/// The agent's own records.
pub mod own {
    use tracer_common::record::{
        Before, Clock, Closed, Counters, Fact, FactKey, Header, Process, Seed, Vanished, kind,
    };

    use super::encode;
    use crate::enrich::kubernetes::Object;

    pub fn seed(time: u64, seed: [u8; 32]) -> Vec<u8> {
        encode(kind::SEED, time, 0, &Seed { seed, ..Default::default() }, &[])
    }

    pub fn clock(time: u64, offset: i64) -> Vec<u8> {
        encode(kind::CLOCK, time, 0, &Clock { offset, ..Default::default() }, &[])
    }

    pub fn tick(now: u64) -> Vec<u8> {
        encode(kind::TICK, now, 0, &Header::default(), &[])
    }

    pub fn fact(time: u64, process: u32, key: FactKey, value: &str) -> Vec<u8> {
        encode(kind::FACT, time, process, &Fact { key: key as u32, ..Default::default() }, value.as_bytes())
    }

    pub fn object(time: u64, object: &Object) -> Vec<u8> {
        // Texts and numbers alone: nothing of it can be refused.
        let payload = serde_json::to_vec(object).unwrap_or_default();
        encode(kind::OBJECT, time, 0, &Header::default(), &payload)
    }

    pub fn counters(time: u64, totals: [u64; tracer_common::config::Counter::COUNT as usize]) -> Vec<u8> {
        encode(kind::COUNTERS, time, 0, &Counters { totals, ..Default::default() }, &[])
    }

    /// A process that ran already was chosen.
    pub fn chosen(time: u64, process: u32, selected: u32, command: [u8; 16]) -> Vec<u8> {
        let chosen = Process { selected, command, ..Default::default() };
        encode(kind::CHOSEN, time, process, &chosen, &[])
    }

    pub fn before(time: u64, process: u32, bytes: [u64; 2]) -> Vec<u8> {
        encode(kind::BEFORE, time, process, &Before { bytes, ..Default::default() }, &[])
    }

    /// A socket is gone that no probe could see the end of.
    pub fn closed(time: u64, cookie: u64) -> Vec<u8> {
        encode(kind::CLOSED, time, 0, &Closed { cookie, ..Default::default() }, &[])
    }

    /// A connection is over whose end the ring had no room for.
    pub fn vanished(time: u64, cookie: u64) -> Vec<u8> {
        encode(kind::VANISHED, time, 0, &Vanished { cookie, ..Default::default() }, &[])
    }

    /// A process is over whose end the ring had no room for.
    pub fn exited(time: u64, process: u32) -> Vec<u8> {
        encode(kind::EXITED, time, process, &Process::default(), &[])
    }

    pub fn finished(now: u64) -> Vec<u8> {
        encode(kind::FINISHED, now, 0, &Header::default(), &[])
    }
}

/// A record as it stands in a file.
pub fn frame(record: &[u8]) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..4].copy_from_slice(&(record.len() as u32).to_le_bytes());
    frame[4..].copy_from_slice(&crc32fast::hash(record).to_le_bytes());
    frame
}

/// What is wrong with a capture file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub offset: usize,
    pub what: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the capture file is damaged at byte {}: {}", self.offset, self.what)
    }
}

impl std::error::Error for Damage {}

/// Reads the records of a capture file that is in memory.
pub struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Result<Self, Damage> {
        match bytes.get(..MAGIC.len()) {
            Some(magic) if magic == MAGIC => Ok(Self { bytes, offset: MAGIC.len() }),
            Some(magic) if magic[..7] == MAGIC[..7] => Err(Damage {
                offset: 7,
                what: format!("format version {}, this tracer reads version {}", magic[7], MAGIC[7]),
            }),
            _ => Err(Damage { offset: 0, what: "it does not start as a capture file does".into() }),
        }
    }

    fn damage<T>(&self, what: impl Into<String>) -> Option<Result<T, Damage>> {
        Some(Err(Damage { offset: self.offset, what: what.into() }))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Record<'a>, Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.bytes[self.offset..];
        if rest.is_empty() {
            return None;
        }
        let Some((frame_bytes, rest)) = rest.split_at_checked(FRAME) else {
            return self.damage("it ends inside a record");
        };
        let length =
            u32::from_le_bytes([frame_bytes[0], frame_bytes[1], frame_bytes[2], frame_bytes[3]]) as usize;
        if length > RECORD_MAX {
            return self.damage(format!("a record of {length} bytes"));
        }
        let Some(record) = rest.get(..length) else {
            return self.damage("it ends inside a record");
        };
        if frame(record) != frame_bytes {
            return self.damage("a record's checksum does not match");
        }
        let parsed = match Record::parse(record) {
            Ok(parsed) => parsed,
            Err(error) => return self.damage(error.to_string()),
        };
        self.offset += FRAME + length;
        Some(Ok(parsed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Captures of before it told of the way to the peer.
    #[test]
    fn an_end_without_what_was_measured_is_read() {
        let closed = wire::Closed {
            cookie: 7,
            positions: [1, 2],
            transit: wire::Transit { round_trip: 9, ..Default::default() },
            ..Default::default()
        };
        let whole = encode(kind::CLOSED, 5, 1, &closed, &[]);
        let mut old = whole[..wire::Closed::SIZE_BEFORE].to_vec();
        old[8..12].copy_from_slice(&(wire::Closed::SIZE_BEFORE as u32).to_le_bytes());
        for (bytes, measured) in [(&whole, 9), (&old, 0)] {
            let Ok(Record::Closed(read)) = Record::parse(bytes) else { panic!("{:?}", Record::parse(bytes)) };
            assert_eq!((read.cookie, read.positions, read.transit.round_trip), (7, [1, 2], measured));
        }
        old.pop();
        old[8..12].copy_from_slice(&(wire::Closed::SIZE_BEFORE as u32 - 1).to_le_bytes());
        assert!(matches!(Record::parse(&old), Err(RecordError::Short { .. })));
    }
}
