//! Which traces are kept: decided for a whole trace, when its local root is over.
//!
//! Spans of a trace are gathered until no more of them is to be expected: a child comes right behind its parent
//! (see [`crate::stitch`]), so that is a moment after the last local root. What comes later follows the decision.
//!
//! Kept are: traces with an error, those that their caller sampled, the slowest of each name and minute, the first of
//! each name and status, all with probability 1; and of the others a share. That one depends on the trace's id alone
//! (OpenTelemetry's consistent probability sampling: the last 56 bits against a threshold), so all nodes keep the
//! same, and a larger share keeps a superset. Each span says why it was kept and with what probability: what happened
//! is estimated by counting each as 1 / probability. For this to be right, the reasons with probability 1 never look
//! at the share: also what comes late is judged as if nothing had been decided.
//!
//! A limit per second lowers the share to what there is room for, by how many came; a quarter of the limit is left to
//! the other reasons. What is over the limit all the same is dropped and counted: only there the estimate is too low.
//!
//! A span that is kept of a trace that is not says no parent that was not kept. Links stay: they name what there
//! was, not what can be found.

mod decided;
mod rate;
mod slow;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use self::{
    decided::{Decided, Verdict},
    rate::Rates,
    slow::{First, Slowest},
};
use crate::{
    protocol::{Attribute, Kind, Text, Value},
    span::{Span, Status},
};

/// How long more spans of a trace are waited for after a local root, and after the first span.
const SETTLE: u64 = 500_000_000;
const SETTLE_MAX: u64 = 2_000_000_000;

#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Of the traces that nothing else keeps, from 0 to 1.
    pub share: f64,
    /// Traces with an error are kept.
    pub errors: bool,
    /// As many of each service, name and minute, at least, are kept.
    pub slowest: usize,
    /// The first trace of a service with a name and a status is kept.
    pub first: bool,
    pub flag: Flag,
    /// Traces of a service.
    pub per_second: Option<u32>,
}

/// What is made of the flag `sampled` that came with a trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flag {
    #[default]
    Ignore,
    /// Sampled ones are kept.
    Keep,
    /// Sampled ones are kept, and of the others errors alone; those that say nothing go by the other rules.
    Follow,
}

impl Default for Rules {
    /// Everything is kept.
    fn default() -> Self {
        Self { share: 1.0, errors: true, slowest: 0, first: false, flag: Flag::Ignore, per_second: None }
    }
}

impl Rules {
    /// Nothing has to be decided.
    fn keep_all(&self) -> bool {
        self.share >= 1.0 && self.per_second.is_none() && self.flag != Flag::Follow
    }
}

/// Why a trace was kept, the first that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Error,
    Flag,
    Slow,
    First,
    Share,
    /// A span, after its trace was decided.
    Late,
}

impl Reason {
    pub const ALL: [Self; 6] = [Self::Error, Self::Flag, Self::Slow, Self::First, Self::Share, Self::Late];

    pub fn name(self) -> &'static str {
        match self {
            Reason::Error => "error",
            Reason::Flag => "flag",
            Reason::Slow => "slow",
            Reason::First => "first",
            Reason::Share => "share",
            Reason::Late => "late",
        }
    }
}

/// Why a trace was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Share,
    Flag,
    /// More came than the limit per second has room for.
    Rate,
}

impl Refusal {
    pub const ALL: [Self; 3] = [Self::Share, Self::Flag, Self::Rate];

    pub fn name(self) -> &'static str {
        match self {
            Refusal::Share => "share",
            Refusal::Flag => "flag",
            Refusal::Rate => "rate_limited",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Spans that came, and that went out.
    pub spans: u64,
    pub spans_kept: u64,
    /// Traces by [`Reason`]; of those that came late, spans.
    pub kept: [u64; Reason::ALL.len()],
    /// Traces by [`Refusal`].
    pub dropped: [u64; Refusal::ALL.len()],
    /// Traces that were decided early, because memory was short.
    pub overflow: u64,
    /// Spans that went out without their parent, which was not kept.
    pub orphans: u64,
}

pub struct Sampler {
    rules: Rules,
    now: u64,
    waiting: BTreeMap<[u8; 16], Group>,
    /// Traces that wait, by until when and in their order.
    due: BTreeMap<(u64, u64), [u8; 16]>,
    /// Number of the last trace.
    last: u64,
    decided: Decided,
    slowest: Slowest,
    first: First,
    rates: Rates,
    /// Bytes of memory of spans that wait, about, and the most.
    held: usize,
    limit: usize,
    output: VecDeque<Span>,
    counts: Counts,
}

/// Spans of a trace that is not decided.
struct Group {
    spans: Vec<Span>,
    held: usize,
    /// Of its first span; it is the one whose limit counts.
    service: Text,
    began: u64,
    due: (u64, u64),
    marks: Marks,
}

/// What speaks for a trace.
#[derive(Clone, Copy, Default)]
struct Marks {
    error: bool,
    slow: bool,
    first: bool,
    sampled: Option<bool>,
}

/// How a span is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pass {
    reason: Reason,
    probability: f64,
}

impl Sampler {
    /// `memory`: bytes for spans that wait and what is remembered, about.
    pub fn new(rules: Rules, memory: usize) -> Self {
        Self {
            rules,
            now: 0,
            waiting: BTreeMap::new(),
            due: BTreeMap::new(),
            last: 0,
            decided: Decided::new(memory / 4),
            slowest: Slowest::new(memory / 16),
            first: First::new(memory / 16),
            rates: Rates::new(memory / 16),
            held: 0,
            limit: memory / 2,
            output: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// What is decided stays so.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
        if self.rules.keep_all() {
            self.decide_until(u64::MAX);
        }
    }

    pub fn take(&mut self, span: Span, now: u64) {
        self.now = self.now.max(now);
        self.counts.spans += 1;
        if self.decided.contains(&span.trace) {
            self.follow(span);
        } else if self.rules.keep_all() {
            self.counts.spans_kept += 1;
            self.output.push_back(span);
        } else {
            self.gather(span);
        }
    }

    /// Decides what has waited for long enough.
    pub fn handle_timeout(&mut self, now: u64) {
        self.now = self.now.max(now);
        self.decide_until(self.now);
        self.decided.forget(self.now);
    }

    pub fn poll_output(&mut self) -> Option<Span> {
        self.output.pop_front()
    }

    /// Nothing more comes.
    pub fn finish(&mut self) {
        self.decide_until(u64::MAX);
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Traces that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Bytes of memory, about.
    pub fn held(&self) -> usize {
        self.held + self.decided.held() + self.slowest.held() + self.first.held() + self.rates.held()
    }

    fn gather(&mut self, span: Span) {
        let group = self.waiting.get(&span.trace);
        let known = |id| group.is_some_and(|group| group.spans.iter().any(|span| span.id == id));
        let root = is_root(&span, known);
        let marks = self.judge(&span, root);
        let now = self.now;
        let group = self.waiting.entry(span.trace).or_insert_with(|| {
            self.last += 1;
            let due = (now.saturating_add(SETTLE), self.last);
            self.due.insert(due, span.trace);
            self.held += GROUP_COST;
            Group {
                spans: Vec::new(),
                held: GROUP_COST,
                service: span.resource.service.clone(),
                began: now,
                due,
                marks: Marks::default(),
            }
        });
        group.marks.add(marks);
        if root {
            let until = now.saturating_add(SETTLE).min(group.began.saturating_add(SETTLE_MAX));
            self.due.remove(&group.due);
            group.due.0 = group.due.0.max(until);
            self.due.insert(group.due, span.trace);
        }
        let cost = span.held();
        group.held += cost;
        self.held += cost;
        group.spans.push(span);
        while self.held > self.limit
            && let Some((_, trace)) = self.due.pop_first()
        {
            self.counts.overflow += 1;
            self.decide(trace);
        }
    }

    /// What speaks for a span. All of it is looked at, whatever is decided: the next ones depend on it.
    fn judge(&mut self, span: &Span, root: bool) -> Marks {
        let rules = &self.rules;
        let came = is_from_header(span).then_some(span.trace_flags & 1 == 1);
        Marks {
            error: rules.errors && span.status == Status::Error,
            // The duration of a stream says how long somebody listened.
            slow: root && span.view.stream.is_none() && self.slowest.note(span, rules.slowest),
            first: root && rules.first && self.first.note(span),
            sampled: came.filter(|_| rules.flag != Flag::Ignore),
        }
    }

    fn decide_until(&mut self, now: u64) {
        while let Some(due) = self.due.first_entry().filter(|due| due.key().0 <= now) {
            let trace = due.remove();
            self.decide(trace);
        }
    }

    /// Of a trace that was taken out of those that are due.
    fn decide(&mut self, trace: [u8; 16]) {
        let Some(group) = self.waiting.remove(&trace) else { return };
        self.held -= group.held;
        if self.rules.keep_all() {
            self.counts.spans_kept += group.spans.len() as u64;
            return self.output.extend(group.spans);
        }
        let verdict = self.verdict(&trace, &group);
        self.decided.note(trace, verdict, self.now);
        match verdict {
            Verdict::Kept(pass) => {
                self.counts.kept[pass.reason as usize] += 1;
                for span in group.spans {
                    self.send(span, pass, false);
                }
            }
            Verdict::Dropped(refusal) => self.counts.dropped[refusal as usize] += 1,
        }
    }

    fn verdict(&mut self, trace: &[u8; 16], group: &Group) -> Verdict {
        let limit = self.rules.per_second;
        let forced = group.marks.reason(self.rules.flag);
        let share = self.rules.share;
        let room = match limit {
            Some(limit) => self.rates.share(&group.service, self.now, limit, forced.is_some()).min(share),
            None => share,
        };
        let pass = match forced {
            Some(reason) => Pass { reason, probability: 1.0 },
            None if self.rules.flag == Flag::Follow && group.marks.sampled == Some(false) => {
                return Verdict::Dropped(Refusal::Flag);
            }
            None if is_within(trace, room) => Pass { reason: Reason::Share, probability: room },
            None if is_within(trace, share) => return Verdict::Dropped(Refusal::Rate),
            None => return Verdict::Dropped(Refusal::Share),
        };
        match self.admit(&group.service, forced.is_some()) {
            true => Verdict::Kept(pass),
            false => Verdict::Dropped(Refusal::Rate),
        }
    }

    fn admit(&mut self, service: &Text, forced: bool) -> bool {
        let limit = self.rules.per_second;
        limit.is_none_or(|limit| self.rates.admit(service, self.now, limit, forced))
    }

    /// A span of a trace that is decided. What is kept with probability 1 is so whatever was decided.
    fn follow(&mut self, span: Span) {
        let root = is_root(&span, |id| self.decided.has(&span.trace, id));
        let marks = self.judge(&span, root);
        let verdict = self.decided.verdict(&span.trace);
        if let Some(Verdict::Kept(pass)) = verdict.filter(Verdict::is_certain) {
            return self.send(span, pass, false);
        }
        let below_late = span.parent.is_some_and(|parent| self.decided.is_late(&span.trace, parent));
        let reason = match marks.reason(self.rules.flag) {
            Some(Reason::Error) => Some(Reason::Late),
            None if below_late => Some(Reason::Late),
            reason => reason,
        };
        let service = span.resource.service.clone();
        if let Some(reason) = reason.filter(|_| self.admit(&service, true)) {
            self.counts.kept[reason as usize] += 1;
            return self.send(span, Pass { reason, probability: 1.0 }, true);
        }
        if let Some(Verdict::Kept(pass)) = verdict {
            self.send(span, pass, false);
        }
    }

    /// A span that is kept goes out, without a parent that did not.
    fn send(&mut self, mut span: Span, pass: Pass, late: bool) {
        let goes = |parent| is_from_header(&span) || self.decided.has(&span.trace, parent);
        if span.parent.is_some_and(|parent| !goes(parent)) {
            span.parent = None;
            self.counts.orphans += 1;
            if let Some(evidence) = span.attributes.iter_mut().find(|attribute| attribute.key == EVIDENCE) {
                *evidence = Attribute::word(EVIDENCE, "none");
            }
        }
        self.decided.add(&span.trace, span.id, late);
        span.attributes.push(Attribute::word("tracer.sampling.reason", pass.reason.name()));
        span.attributes.push(Attribute::real("tracer.sampling.probability", pass.probability));
        self.counts.spans_kept += 1;
        self.output.push_back(span);
    }
}

/// A trace that waits has places in two tables.
const GROUP_COST: usize = 2 * (size_of::<Group>() + 64);

const EVIDENCE: &str = "tracer.parent.evidence";

/// The parent's id came with the request.
fn is_from_header(span: &Span) -> bool {
    let evidence = span.attributes.iter().rev().find(|attribute| attribute.key == EVIDENCE);
    let header = evidence.is_some_and(|evidence| evidence.value == Value::Text(Text::new_static("header")));
    header && span.kind == Kind::Server
}

/// Its parent is elsewhere, if it has one. One whose parent was dropped here is none.
fn is_root(span: &Span, known: impl Fn([u8; 8]) -> bool) -> bool {
    span.parent.is_none_or(|parent| is_from_header(span) && !known(parent))
}

/// Whether a trace is one of a share of all: the last 56 bits of its id are at least as large as those that are left
/// out.
fn is_within(trace: &[u8; 16], share: f64) -> bool {
    const ALL: f64 = (1u64 << 56) as f64;
    let mut last = [0; 8];
    last[1..].copy_from_slice(&trace[9..]);
    let threshold = ((1.0 - share.clamp(0.0, 1.0)) * ALL).round() as u64;
    u64::from_be_bytes(last) >= threshold
}

impl Marks {
    fn add(&mut self, other: Marks) {
        self.error |= other.error;
        self.slow |= other.slow;
        self.first |= other.first;
        // One that is sampled is enough.
        self.sampled = self.sampled.max(other.sampled);
    }

    /// Why it is kept whatever its id is. Of those that a flag says are not sampled, errors alone are.
    fn reason(self, flag: Flag) -> Option<Reason> {
        match self {
            Self { error: true, .. } => Some(Reason::Error),
            Self { sampled: Some(true), .. } if flag != Flag::Ignore => Some(Reason::Flag),
            Self { sampled: Some(false), .. } if flag == Flag::Follow => None,
            Self { slow: true, .. } => Some(Reason::Slow),
            Self { first: true, .. } => Some(Reason::First),
            _ => None,
        }
    }
}
