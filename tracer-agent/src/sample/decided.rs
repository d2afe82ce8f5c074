//! What was decided of traces lately, for those of their spans that come after that.

use std::collections::{BTreeMap, VecDeque};

use super::{Pass, Refusal};

/// A decision is remembered for as long; stitching waits for half of that.
const REMEMBERED: u64 = 120_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    Kept(Pass),
    Dropped(Refusal),
}

impl Verdict {
    /// It would have been kept whatever its id is.
    pub(super) fn is_certain(&self) -> bool {
        matches!(self, Verdict::Kept(pass) if pass.probability >= 1.0)
    }
}

pub(super) struct Decided {
    traces: BTreeMap<[u8; 16], Trace>,
    /// In the order of their decisions, and when that was.
    order: VecDeque<(u64, [u8; 16])>,
    held: usize,
    limit: usize,
}

struct Trace {
    verdict: Verdict,
    /// Spans that went out.
    spans: Vec<[u8; 8]>,
    /// Those of them that were kept for themselves.
    late: Vec<[u8; 8]>,
}

/// Of a trace, besides its spans.
const COST: usize = 2 * (size_of::<Trace>() + size_of::<(u64, [u8; 16])>() + 16);

impl Decided {
    pub(super) fn new(limit: usize) -> Self {
        Self { traces: BTreeMap::new(), order: VecDeque::new(), held: 0, limit }
    }

    pub(super) fn note(&mut self, trace: [u8; 16], verdict: Verdict, now: u64) {
        self.traces.insert(trace, Trace { verdict, spans: Vec::new(), late: Vec::new() });
        self.order.push_back((now, trace));
        self.held += COST;
        self.shrink(&trace);
    }

    /// A span of a trace goes out.
    pub(super) fn add(&mut self, trace: &[u8; 16], span: [u8; 8], late: bool) {
        let Some(known) = self.traces.get_mut(trace) else { return };
        let before = known.held();
        known.spans.push(span);
        if late {
            known.late.push(span);
        }
        self.held += known.held() - before;
        self.shrink(trace);
    }

    pub(super) fn contains(&self, trace: &[u8; 16]) -> bool {
        !self.traces.is_empty() && self.traces.contains_key(trace)
    }

    pub(super) fn verdict(&self, trace: &[u8; 16]) -> Option<Verdict> {
        self.traces.get(trace).map(|trace| trace.verdict)
    }

    /// Whether a span went out.
    pub(super) fn has(&self, trace: &[u8; 16], span: [u8; 8]) -> bool {
        self.traces.get(trace).is_some_and(|trace| trace.spans.iter().rev().any(|other| *other == span))
    }

    /// Whether it did for itself.
    pub(super) fn is_late(&self, trace: &[u8; 16], span: [u8; 8]) -> bool {
        self.traces.get(trace).is_some_and(|trace| trace.late.contains(&span))
    }

    pub(super) fn forget(&mut self, now: u64) {
        while self.order.front().is_some_and(|(time, _)| time.saturating_add(REMEMBERED) <= now) {
            self.forget_oldest();
        }
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// The oldest go, and not the one that is at hand.
    fn shrink(&mut self, trace: &[u8; 16]) {
        while self.held > self.limit && self.order.front().is_some_and(|(_, oldest)| oldest != trace) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((_, trace)) = self.order.pop_front() else { return };
        if let Some(trace) = self.traces.remove(&trace) {
            self.held -= COST + trace.held();
        }
    }
}

impl Trace {
    fn held(&self) -> usize {
        (self.spans.capacity() + self.late.capacity()) * size_of::<[u8; 8]>()
    }
}
