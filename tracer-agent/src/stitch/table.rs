//! Exchanges that are open, or whose spans wait.

use std::collections::{BTreeMap, VecDeque};

use smallvec::SmallVec;

use super::{Begin, Evidence};
use crate::{connection::Spot, noise::Noise, propagation::Context, protocol::Kind, span::Span};

/// Ids of spans that are remembered: the oldest go.
const TAKEN_MAX: usize = 65536;

pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) cookie: u64,
    pub(super) process: u32,
    pub(super) thread: u32,
    pub(super) start: u64,
    pub(super) context: Option<Context>,
    pub(super) correlation: Option<[u8; 16]>,
    pub(super) spot: Option<Spot>,
    /// Nobody asked: it is no parent, and has none in its process.
    pub(super) aside: bool,
    /// It stands in the table of threads, and in that of what is served under these keys.
    pub(super) on_thread: bool,
    pub(super) listed: SmallVec<[[u8; 16]; 2]>,
    /// More requests may be the reason of it than anything will tell apart.
    pub(super) crowded: bool,
    /// The id in its head is its own.
    pub(super) own: Option<[u8; 8]>,
    /// The other end.
    pub(super) other: Option<u64>,
    /// What it may be the child of, and those that may be its children.
    pub(super) awaits: SmallVec<[Await; 1]>,
    pub(super) wanted_by: SmallVec<[u64; 2]>,
    pub(super) done: Option<Done>,
}

pub(super) struct Done {
    pub(super) end: u64,
    /// One thread that does nothing else has done it.
    pub(super) proven: bool,
    /// The other end may still be told of.
    pub(super) meets: bool,
    /// Until when it waits for what comes next, and at all.
    pub(super) until: u64,
    pub(super) last: u64,
    /// How many were over by then.
    pub(super) order: u64,
    /// Bytes of memory, about.
    pub(super) cost: usize,
    pub(super) span: Span,
}

#[derive(Clone, Copy)]
pub(super) struct Await {
    pub(super) number: u64,
    pub(super) evidence: Evidence,
    /// The call says the very ids that came with this.
    pub(super) same: bool,
    pub(super) told: Told,
}

impl Await {
    pub(super) fn of(number: u64, evidence: Evidence) -> Self {
        Self { number, evidence, same: false, told: Told::Open }
    }
}

/// What became of an exchange.
#[derive(Clone, Copy)]
pub(super) enum Told {
    Open,
    /// There is no span of it.
    Gone,
    Known(Known),
}

impl Told {
    pub(super) fn known(&self) -> Option<Known> {
        match self {
            Told::Known(known) => Some(*known),
            Told::Open | Told::Gone => None,
        }
    }
}

/// A span that went out.
#[derive(Clone, Copy)]
pub(super) struct Known {
    pub(super) trace: [u8; 16],
    pub(super) id: [u8; 8],
    pub(super) flags: u8,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) proven: bool,
}

impl Known {
    pub(super) fn is_busy_at(&self, time: u64) -> bool {
        (self.start..=self.end).contains(&time)
    }
}

impl Node {
    pub(super) fn of(begin: &Begin<'_>) -> Self {
        let propagated = begin.head.propagated.as_deref();
        Self {
            kind: begin.kind,
            cookie: begin.cookie,
            process: begin.process,
            thread: begin.thread,
            start: begin.time,
            context: propagated.and_then(|propagated| propagated.context),
            correlation: propagated.and_then(|propagated| propagated.correlation),
            spot: begin.spot,
            aside: matches!(begin.head.noise, Some(Noise::HealthCheck(_))),
            on_thread: false,
            listed: SmallVec::new(),
            crowded: false,
            own: None,
            other: None,
            awaits: SmallVec::new(),
            wanted_by: SmallVec::new(),
            done: None,
        }
    }

    /// The span that its head names.
    pub(super) fn header(&self) -> Option<([u8; 16], [u8; 8])> {
        self.context.and_then(|context| Some((context.trace, context.span?)))
    }

    /// The trace that its head names.
    pub(super) fn trace(&self) -> Option<[u8; 16]> {
        self.context.map(|context| context.trace).or(self.correlation)
    }

    /// What it is looked for by.
    pub(super) fn keys(&self) -> SmallVec<[[u8; 16]; 2]> {
        let trace = self.context.map(|context| context.trace);
        trace.into_iter().chain(self.correlation.filter(|correlation| Some(*correlation) != trace)).collect()
    }

    /// Takes what somebody else knows of it. Returns whether that is more.
    pub(super) fn learn(&mut self, context: Option<Context>, correlation: Option<[u8; 16]>) -> bool {
        let before = (self.context, self.correlation);
        self.context = self.context.or(context);
        self.correlation = self.correlation.or(correlation);
        before != (self.context, self.correlation)
    }
}

/// Ids of spans that heads have named.
#[derive(Default)]
pub(super) struct Taken {
    /// The exchange that was the first to name it.
    first: BTreeMap<([u8; 16], [u8; 8]), u64>,
    order: VecDeque<([u8; 16], [u8; 8])>,
}

impl Taken {
    /// A request has come with it: it is somebody else's.
    pub(super) fn note(&mut self, trace: [u8; 16], span: [u8; 8], number: u64) {
        self.first.entry((trace, span)).or_insert_with(|| {
            self.order.push_back((trace, span));
            number
        });
        if self.order.len() > TAKEN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.first.remove(&oldest);
        }
    }

    /// A call goes out with it. Whether nobody was named so before, but by the other end of the same call.
    pub(super) fn take(&mut self, trace: [u8; 16], span: [u8; 8], number: u64, other: Option<u64>) -> bool {
        let fresh = match self.first.get(&(trace, span)) {
            None => true,
            Some(first) => Some(*first) == other,
        };
        self.note(trace, span, number);
        fresh
    }
}
