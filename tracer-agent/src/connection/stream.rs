//! One direction of a connection: segments in any order become bytes in order, with gaps.

use std::collections::{BTreeMap, VecDeque};

/// Room that is kept after a buffer was emptied.
const ROOM_KEPT: usize = 4096;

/// What is known of the bytes up to `end` (exclusive), from the end of the mark before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub end: u64,
    /// When the call that moved them ended.
    pub time: u64,
    /// Where the other direction stood then.
    pub opposite: u64,
    pub process: u32,
    pub thread: u32,
}

/// Why bytes are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// A record says that they moved and were not copied.
    NotCopied,
    /// No record tells of them.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub length: u64,
    pub missing: Missing,
}

/// How a direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The sender closed its side in order.
    Eof,
    /// A reset, or another error of the connection.
    Reset,
    /// The socket was closed here.
    Closed,
}

/// What comes after the bytes that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    More,
    Gap(Gap),
    End(Ending),
}

#[derive(Debug)]
enum Segment {
    Bytes(Box<[u8]>),
    /// Not copied, of this length.
    Gap(u64),
}

impl Segment {
    fn length(&self) -> u64 {
        match self {
            Segment::Bytes(bytes) => bytes.len() as u64,
            Segment::Gap(length) => *length,
        }
    }
}

/// Bytes that wait to be read, of which the first were.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    read: usize,
}

impl Buffer {
    fn bytes(&self) -> &[u8] {
        &self.bytes[self.read..]
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.read
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn extend(&mut self, bytes: &[u8]) {
        // What was read makes room where that is not less than what has to be moved for it.
        let spare = self.bytes.capacity() - self.bytes.len();
        if spare < bytes.len() && self.read >= self.len() {
            self.bytes.drain(..self.read);
            self.read = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn advance(&mut self, length: usize) {
        self.read += length;
        if self.is_empty() {
            self.read = 0;
            self.bytes.clear();
            if self.bytes.capacity() > ROOM_KEPT {
                self.bytes = Vec::new();
            }
        }
    }
}

#[derive(Debug, Default)]
pub struct Stream {
    started: bool,
    copied: bool,
    /// Where it has to start at the latest.
    expected: Option<u64>,
    /// Position of the first byte of `buffer`.
    front: u64,
    buffer: Buffer,
    /// Follows `buffer`.
    gap: Option<Gap>,
    /// Beyond `buffer` and `gap`, not overlapping.
    pending: BTreeMap<u64, (Segment, Mark)>,
    pending_bytes: usize,
    marks: VecDeque<Mark>,
    /// Where the first of `marks` starts.
    boundary: u64,
    /// Everything before it moved, whether it was told or not; and when that was known.
    reached: (u64, u64),
    ending: Option<Ending>,
}

impl Stream {
    /// Position of the next byte to read.
    pub fn front(&self) -> u64 {
        self.front
    }

    /// Position up to which everything was put in order.
    pub fn end(&self) -> u64 {
        self.front + self.buffer.len() as u64 + self.gap.map_or(0, |gap| gap.length)
    }

    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// Bytes of memory that are held, about.
    pub fn held(&self) -> usize {
        const SEGMENT: usize = 2 * size_of::<(Segment, Mark)>();
        self.buffer.len()
            + self.pending_bytes
            + self.pending.len() * SEGMENT
            + self.marks.len() * size_of::<Mark>()
    }

    /// Since when bytes are known to be missing: by those that came after them, or where none did.
    pub fn hole_since(&self) -> Option<u64> {
        let first = self.pending.first_key_value().map_or(self.reached.1, |(_, (_, mark))| mark.time);
        self.has_hole().then_some(first)
    }

    /// Whether anything of it was seen.
    pub fn started(&self) -> bool {
        self.started
    }

    /// Whether any of its bytes were there to be read.
    pub fn has_bytes(&self) -> bool {
        self.copied
    }

    /// The stream stood at `position` while the other direction was seen: if it starts later, what
    /// is between is missing. It can start earlier too, by a record that comes late.
    pub fn expect_at(&mut self, position: u64) {
        if !self.started {
            self.front = self.expected.map_or(position, |expected| expected.min(position));
            self.boundary = self.front;
            self.expected = Some(self.front);
        }
    }

    /// Sets where the stream starts, if nothing came yet.
    fn start_at(&mut self, position: u64) {
        if !self.started {
            self.expect_at(position);
            self.started = true;
        }
    }

    /// Adds `length` bytes at `position`, of which only the first `bytes.len()` were copied. Returns how
    /// many of them the stream had already, or had given up.
    pub fn insert(&mut self, position: u64, bytes: &[u8], length: u64, mark: Mark) -> u64 {
        self.start_at(position);
        let copied = bytes.len() as u64;
        let mut overlap = 0;
        self.copied |= copied > 0;
        if copied > 0 {
            overlap += self.insert_part(position, bytes, copied, mark);
        }
        if length > copied {
            overlap += self.insert_part(position + copied, &[], length - copied, mark);
        }
        overlap
    }

    /// Either all of `bytes`, or a gap where it is empty. Returns what was there already.
    fn insert_part(&mut self, position: u64, bytes: &[u8], length: u64, mark: Mark) -> u64 {
        let end = position.saturating_add(length);
        let mut from = position.max(self.end());
        if self.gap.is_none() && self.pending.is_empty() && from == self.end() && end > from {
            self.append(bytes.get((from - position) as usize..).unwrap_or_default(), end - from, mark);
            return from - position;
        }
        let mut added = 0;
        while from < end {
            // The part up to the next segment that is there.
            let (before, next) = (
                self.pending.range(..=from).next_back().map(|(at, (segment, _))| at + segment.length()),
                self.pending.range(from..).next().map(|(at, _)| *at),
            );
            if let Some(covered) = before.filter(|covered| *covered > from) {
                from = covered;
                continue;
            }
            let until = next.map_or(end, |next| next.min(end));
            let segment = if bytes.is_empty() {
                Segment::Gap(until - from)
            } else {
                let part = &bytes[(from - position) as usize..(until - position) as usize];
                self.pending_bytes += part.len();
                Segment::Bytes(part.into())
            };
            added += until - from;
            self.pending.insert(from, (segment, Mark { end: until, ..mark }));
            from = until;
        }
        self.settle();
        length - added
    }

    fn append(&mut self, bytes: &[u8], length: u64, mark: Mark) {
        let end = self.end() + length;
        if bytes.is_empty() {
            self.gap = Some(Gap { length, missing: Missing::NotCopied });
        } else {
            self.buffer.extend(bytes);
        }
        self.marks.push_back(Mark { end, ..mark });
    }

    /// Moves what has become contiguous, up to the next gap.
    fn settle(&mut self) {
        while self.gap.is_none() {
            let Some(entry) = self.pending.first_entry() else { break };
            if *entry.key() != self.front + self.buffer.len() as u64 {
                break;
            }
            let (segment, mark) = entry.remove();
            match segment {
                Segment::Bytes(bytes) => {
                    self.pending_bytes -= bytes.len();
                    self.append(&bytes, bytes.len() as u64, mark);
                }
                Segment::Gap(length) => self.append(&[], length, mark),
            }
        }
    }

    #[inline]
    fn has_hole(&self) -> bool {
        match self.pending.first_key_value() {
            Some((at, _)) => *at > self.end(),
            None => self.started && self.gap.is_none() && self.reached.0 > self.end(),
        }
    }

    /// The stream went on to `position`: what is not told before it will come late, or is missing.
    /// Returns whether that says where it starts.
    pub fn reach(&mut self, position: u64, time: u64) -> bool {
        let starts = !self.started;
        if starts {
            // Where nothing was seen and nothing is expected, what was before is none of ours.
            self.start_at(self.expected.unwrap_or(position));
        }
        if position > self.reached.0 {
            self.reached = (position, time);
        }
        starts
    }

    /// Stops waiting for bytes that are missing: they become a gap. Returns whether there were any.
    pub fn give_up_hole(&mut self, time: u64) -> bool {
        if self.gap.is_some() || !self.has_hole() {
            return false;
        }
        let (at, mark) = match self.pending.first_key_value() {
            Some((at, (_, mark))) => (*at, *mark),
            None => (self.reached.0, Mark { end: 0, time, opposite: 0, process: 0, thread: 0 }),
        };
        self.gap = Some(Gap { length: at - self.end(), missing: Missing::Lost });
        self.marks.push_back(Mark { end: at, ..mark });
        true
    }

    /// Takes all that is held: bytes, and bytes that were not copied.
    pub fn drain(&mut self) -> (u64, u64) {
        let (mut bytes, mut not_copied) = (self.buffer.len() as u64, 0);
        if let Some(Gap { length, missing: Missing::NotCopied }) = self.gap {
            not_copied += length;
        }
        for (segment, _) in self.pending.values() {
            match segment {
                Segment::Bytes(segment) => bytes += segment.len() as u64,
                Segment::Gap(length) => not_copied += length,
            }
        }
        let (front, ending) = (self.end(), self.ending);
        *self = Self { started: self.started, front, boundary: front, ending, ..Self::default() };
        (bytes, not_copied)
    }

    /// The first ending counts.
    pub fn finish(&mut self, ending: Ending) {
        self.ending.get_or_insert(ending);
    }

    /// The bytes that can be read, from [`Self::front`] on, and what comes after them.
    #[inline]
    pub fn readable(&self) -> (&[u8], After) {
        let after = match (self.gap, self.ending) {
            (Some(gap), _) => After::Gap(gap),
            (None, Some(ending)) if self.pending.is_empty() && !self.has_hole() => After::End(ending),
            _ => After::More,
        };
        (self.buffer.bytes(), after)
    }

    /// The gap that comes next.
    pub fn next_gap(&self) -> Option<Gap> {
        self.gap.filter(|_| self.buffer.is_empty())
    }

    pub fn marks(&self) -> Marks<'_> {
        Marks { boundary: self.boundary, marks: &self.marks }
    }

    /// Takes `length` bytes from the front: bytes that were read, then those of the gap behind them.
    pub fn advance(&mut self, length: u64) {
        let bytes = length.min(self.buffer.len() as u64);
        self.buffer.advance(bytes as usize);
        let rest = length - bytes;
        self.front += length;
        if let Some(gap) = &mut self.gap
            && rest > 0
        {
            gap.length = gap.length.saturating_sub(rest);
            if gap.length == 0 {
                self.gap = None;
            }
        }
        while let Some(mark) = self.marks.front().filter(|mark| mark.end <= self.front) {
            self.boundary = mark.end;
            self.marks.pop_front();
        }
        if !self.pending.is_empty() {
            self.settle();
        }
    }
}

/// Where the bytes of a stream came from: each mark is one record.
#[derive(Clone, Copy, Debug)]
pub struct Marks<'a> {
    boundary: u64,
    marks: &'a VecDeque<Mark>,
}

impl<'a> Marks<'a> {
    /// The mark of the byte at `position`.
    pub fn at(&self, position: u64) -> Option<&'a Mark> {
        if let Some(first) = self.marks.front().filter(|first| position < first.end) {
            return Some(first);
        }
        self.marks.get(self.marks.partition_point(|mark| mark.end <= position))
    }

    /// The mark of the last byte before `end`.
    pub fn before(&self, end: u64) -> Option<&'a Mark> {
        self.at(end.saturating_sub(1)).or_else(|| self.marks.back())
    }

    /// Whether a record starts at `position`.
    pub fn starts_at(&self, position: u64) -> bool {
        if position == self.boundary {
            return true;
        }
        let after = self.marks.partition_point(|mark| mark.end < position);
        self.marks.get(after).is_some_and(|mark| mark.end == position)
    }

    /// The first position after `position` where a record starts or will start.
    pub fn next_start(&self, position: u64) -> Option<u64> {
        self.at(position).map(|mark| mark.end)
    }
}
