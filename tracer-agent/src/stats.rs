//! The ledger: each byte that the kernel moved on a chosen process's sockets ends in one bucket.

use std::{collections::BTreeMap, fmt};

use tracer_common::{
    config::Counter,
    record::{Counters, omitted},
};

use crate::{
    enrich::late,
    protocol::Class,
    stitch::{Evidence, Links},
};

/// Where a byte ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bucket {
    /// Heads and framing of a known protocol.
    Parsed,
    Body,
    /// Of a known protocol, beside a gap or at the end: what they said could not be told.
    Unparsed,
    /// Of a protocol that is not known.
    Unknown,
    Encrypted,
    /// The kernel told their number and not what they were.
    NotCopied,
    /// Held for too long within the memory that there is.
    OverLimit,
    /// Of two calls at the same position.
    Overlap,
    /// Not told: the ring buffer was full.
    Lost,
    /// On sockets that are neither TCP nor Unix streams.
    OtherSockets,
    /// Of a process that was chosen only after it had begun.
    BeforeSelection,
    /// Left out to stay within the budget.
    Shed,
}

impl Bucket {
    pub const ALL: [Bucket; 12] = [
        Bucket::Parsed,
        Bucket::Body,
        Bucket::Unparsed,
        Bucket::Unknown,
        Bucket::Encrypted,
        Bucket::NotCopied,
        Bucket::OverLimit,
        Bucket::Overlap,
        Bucket::Lost,
        Bucket::OtherSockets,
        Bucket::BeforeSelection,
        Bucket::Shed,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Bucket::Parsed => "parsed",
            Bucket::Body => "body",
            Bucket::Unparsed => "unparsed",
            Bucket::Unknown => "protocol unknown",
            Bucket::Encrypted => "encrypted",
            Bucket::NotCopied => "not copied",
            Bucket::OverLimit => "over a limit",
            Bucket::Overlap => "overlapping",
            Bucket::Lost => "lost in the ring",
            Bucket::OtherSockets => "other sockets",
            Bucket::BeforeSelection => "before selection",
            Bucket::Shed => "shed for the budget",
        }
    }
}

impl From<Class> for Bucket {
    fn from(class: Class) -> Self {
        match class {
            Class::Parsed => Bucket::Parsed,
            Class::Body => Bucket::Body,
            Class::Unparsed => Bucket::Unparsed,
        }
    }
}

/// Bytes by bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally([u64; Bucket::ALL.len()]);

impl Tally {
    pub fn add(&mut self, bucket: Bucket, bytes: u64) {
        let sum = &mut self.0[bucket as usize];
        *sum = sum.saturating_add(bytes);
    }

    pub fn get(&self, bucket: Bucket) -> u64 {
        self.0[bucket as usize]
    }

    pub fn sum(&self) -> u64 {
        self.0.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// What came on top of an earlier state.
    pub fn add_difference(&mut self, now: &Tally, before: &Tally) {
        for (mine, (now, before)) in self.0.iter_mut().zip(now.0.iter().zip(before.0)) {
            *mine = mine.saturating_add(now.saturating_sub(before));
        }
    }

    pub fn merge(&mut self, other: &Tally) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine = mine.saturating_add(theirs);
        }
    }
}

/// What a connection came to: each has one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Verdict {
    /// `client`, `server`, or `?`
    pub side: &'static str,
    /// `tcp`, `unix`, or `?`
    pub transport: &'static str,
    /// It was open before anything was seen of it.
    pub joined: bool,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The protocol that was read.
    Read(&'static str),
    /// A protocol that was read up to where it was left: in which bucket the rest is, and why.
    Left(&'static str, Bucket, &'static str),
    /// Nothing is read of it; with what it looks like, or why it was left.
    Unread(Bucket, Option<&'static str>),
    /// Too little was seen to tell.
    Undecided,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// What the pipeline did with the bytes that records told of.
    pub bytes: Tally,
    /// What the kernel counted.
    pub kernel: Option<[u64; Counter::COUNT as usize]>,
    /// Bytes of records that reached the pipeline.
    pub told: u64,
    /// Those of them that were told by their number alone, by the reason (`omitted`).
    pub omitted: [u64; omitted::COUNT],
    /// Bytes that processes moved before they were chosen.
    pub before: u64,
    pub records: u64,
    /// Bytes that are missing in streams, by their positions.
    pub holes: u64,
    pub connections: u64,
    pub exchanges: u64,
    /// Exchanges with a gap in what their span needs.
    pub partial: u64,
    /// Exchanges whose names are not all known, since they were sent before the tracer came or in a gap.
    pub vague: u64,
    /// What became of the spans' parents.
    pub links: Links,
    /// Responses whose request was not seen.
    pub orphans: u64,
    /// Connections whose protocol could not be followed any further, by the reason.
    pub left: BTreeMap<&'static str, u64>,
    /// Requests by which other tracers send their spans: they make none here.
    pub exports: u64,
    /// What each connection that is over came to.
    pub verdicts: BTreeMap<Verdict, u64>,
    /// Records that could not be read.
    pub damaged: u64,
    /// Connections that had to go since memory was short.
    pub evicted: u64,
    /// Connections that were over when they were looked for, after records were lost.
    pub vanished: u64,
    /// What became of spans that waited for what was told late.
    pub late: late::Counts,
}

impl Ledger {
    pub fn set_counters(&mut self, counters: &Counters) {
        self.kernel = Some(counters.totals);
    }

    pub fn counter(&self, counter: Counter) -> u64 {
        self.kernel.map_or(0, |totals| totals[counter as usize])
    }

    pub fn add_before(&mut self, bytes: [u64; 2]) {
        self.before = bytes.into_iter().fold(self.before, u64::saturating_add);
    }

    pub fn add_omitted(&mut self, reason: u8, bytes: u64) {
        if let Some(sum) = self.omitted.get_mut(usize::from(reason)) {
            *sum += bytes;
        }
    }

    /// What stands in a damaged file can be any number.
    fn sum(&self, counters: [Counter; 2]) -> u64 {
        let [first, second] = counters.map(|counter| self.counter(counter));
        first.saturating_add(second)
    }

    /// Bytes that the kernel moved.
    pub fn moved(&self) -> u64 {
        self.sum([Counter::MovedSent, Counter::MovedReceived]).saturating_add(self.before)
    }

    pub fn lost(&self) -> u64 {
        self.sum([Counter::LostSent, Counter::LostReceived])
    }

    pub fn lost_records(&self) -> u64 {
        self.counter(Counter::LostRecords)
    }

    pub fn selection_full(&self) -> u64 {
        self.counter(Counter::SelectionFull)
    }

    /// All buckets, with those that only the kernel can count.
    pub fn buckets(&self) -> Tally {
        let mut buckets = self.bytes;
        buckets.add(Bucket::Lost, self.lost());
        buckets.add(Bucket::OtherSockets, self.sum([Counter::OtherSent, Counter::OtherReceived]));
        buckets.add(Bucket::BeforeSelection, self.before);
        buckets.add(Bucket::Shed, self.counter(Counter::Shed));
        buckets.add(Bucket::Unknown, self.counter(Counter::IgnoredUnknown));
        buckets.add(Bucket::Encrypted, self.counter(Counter::IgnoredEncrypted));
        buckets.add(Bucket::Unparsed, self.counter(Counter::IgnoredOther));
        buckets
    }

    /// The kernel's count minus the sum of the buckets: 0, or the ledger is wrong.
    pub fn difference(&self) -> i64 {
        (self.moved() as i64).wrapping_sub(self.buckets().sum() as i64)
    }

    /// Whether anything was lost that was chosen.
    pub fn has_losses(&self) -> bool {
        self.lost_records() > 0 || self.damaged > 0 || self.evicted > 0 || self.selection_full() > 0
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ledger: {} bytes moved", self.moved())?;
        let buckets = self.buckets();
        let mut sign = " =";
        for bucket in Bucket::ALL.into_iter().filter(|bucket| buckets.get(*bucket) > 0) {
            write!(f, "{sign} {} {}", buckets.get(bucket), bucket.name())?;
            sign = " +";
        }
        match self.difference() {
            0 => write!(f, " (sums exactly)")?,
            difference => write!(f, " (DIFFERS by {difference})")?,
        }
        write!(
            f,
            "; {} connections, {} exchanges, {} partial, {} responses without request, {} records lost",
            self.connections,
            self.exchanges,
            self.partial,
            self.orphans,
            self.lost_records()
        )?;
        let rare = [
            (self.damaged, "records damaged"),
            (self.evicted, "connections evicted"),
            (self.vanished, "connections whose end was lost"),
            (self.exports, "exports of tracers left out"),
            (self.vague, "exchanges with names that were sent before the tracer came, or lost"),
            (self.selection_full(), "processes over the selection's limit"),
        ];
        for (count, what) in rare.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, ", {count} {what}")?;
        }
        for (reason, count) in &self.left {
            write!(f, ", {count} connections left: {reason}")?;
        }
        let mut sign = "; parents:";
        for evidence in Evidence::ALL {
            let count = self.links.parents[evidence as usize];
            if count > 0 {
                match evidence {
                    Evidence::None if count == 1 => write!(f, "{sign} 1 root")?,
                    Evidence::None => write!(f, "{sign} {count} roots")?,
                    _ => write!(f, "{sign} {count} by {}", evidence.name())?,
                }
                sign = ",";
            }
        }
        for (count, what) in [
            (self.links.ambiguous, "with several candidates"),
            (self.links.hasty, "before their parent was over"),
            (self.links.malformed, "trace headers malformed"),
            (self.late.podless, "without their pod, which was not told in time"),
            (self.late.peerless, "without their peer, which was not told in time"),
            (self.late.crowded, "without what they waited for, since memory was short"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        let mut sign = "; told by length alone:";
        for (reason, bytes) in self.omitted.iter().enumerate().filter(|(_, bytes)| **bytes > 0) {
            write!(f, "{sign} {bytes} {}", omitted::name(reason as u8))?;
            sign = ",";
        }
        Ok(())
    }
}
