//! Exchanges that are open, or whose spans wait, and how they are found.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use smallvec::SmallVec;

use super::{Alone, Begin, Evidence, Habits};
use crate::{connection::Spot, noise::Noise, propagation::Context, protocol::Kind, span::Span};

/// Ids that are remembered: the oldest go.
const TAKEN_MAX: usize = 65536;

/// More candidates than these are not told from each other by anything that comes later.
const CANDIDATES_MAX: usize = 16;

/// Requests with the same ids that are looked at for one call.
const LOOKS_MAX: usize = 64;

/// Processes whose habits are kept.
const PROCESSES_MAX: usize = 32768;

/// Calls that may wait for one request before those are looked for that are gone.
const WANTED_MOST: usize = 64;

pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) cookie: u64,
    pub(super) process: u32,
    pub(super) thread: u32,
    pub(super) start: u64,
    pub(super) context: Option<Context>,
    pub(super) correlation: SmallVec<[[u8; 16]; 1]>,
    pub(super) spot: Option<Spot>,
    /// It stands where its other end looks for it.
    pub(super) looks: bool,
    pub(super) alone: Alone,
    /// Nobody asked: it is no parent, and has none in its process.
    pub(super) aside: bool,
    /// One thread may have sent what another has made.
    pub(super) shared: bool,
    /// It stands in the table of threads.
    pub(super) on_thread: bool,
    /// More requests may be the reason of it than anything will tell apart.
    pub(super) crowded: bool,
    /// Others may be the reason of it that were over before it began.
    pub(super) doubtful: bool,
    /// By which of its keys it is found.
    listed: SmallVec<[Key; 2]>,
    /// The id in its head is its own.
    pub(super) own: Option<[u8; 8]>,
    /// The other end.
    pub(super) other: Option<u64>,
    /// What it may be the child of, and those that may be its children.
    pub(super) awaits: SmallVec<[Await; 1]>,
    pub(super) wanted_by: SmallVec<[u64; 2]>,
    pub(super) wanted_most: usize,
    pub(super) done: Option<Box<Done>>,
}

pub(super) struct Done {
    pub(super) end: u64,
    /// One thread has done all of it.
    pub(super) one_thread: bool,
    /// The other end may still be told of.
    pub(super) meets: bool,
    /// Until when it waits for what comes next, and at all.
    pub(super) until: u64,
    pub(super) last: u64,
    /// How many were over by then.
    pub(super) order: u64,
    /// Bytes of memory, about.
    pub(super) cost: usize,
    pub(super) span: Box<Span>,
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
    /// A thread that did nothing else has done it.
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
            correlation: propagated.map(|propagated| propagated.correlation.clone()).unwrap_or_default(),
            spot: begin.spot,
            looks: false,
            alone: begin.alone.clone(),
            aside: matches!(begin.head.noise, Some(Noise::HealthCheck(_))),
            shared: begin.shared,
            on_thread: false,
            crowded: false,
            doubtful: false,
            listed: SmallVec::new(),
            own: None,
            other: None,
            awaits: SmallVec::new(),
            wanted_by: SmallVec::new(),
            wanted_most: WANTED_MOST,
            done: None,
        }
    }

    /// The span that its head names.
    pub(super) fn header(&self) -> Option<([u8; 16], [u8; 8])> {
        self.context.and_then(|context| Some((context.trace, context.span?)))
    }

    /// The trace that its head names.
    pub(super) fn trace(&self) -> Option<[u8; 16]> {
        self.context.map(|context| context.trace).or(self.correlation.first().copied())
    }

    /// What it is found by: the ids of its head, the most exact first.
    fn keys(&self) -> SmallVec<[Key; 4]> {
        let context = self.context.map(|context| (half(context.trace), 0));
        let correlation = self.correlation.iter().map(|trace| (half(*trace), 0));
        self.header().map(exact).into_iter().chain(context).chain(correlation).collect()
    }

    pub(super) fn waits_for_none(&self) -> bool {
        self.awaits.iter().all(|awaited| !matches!(awaited.told, Told::Open))
    }

    /// One more that it may be the child of.
    pub(super) fn add(&mut self, awaited: Await) {
        if self.awaits.len() < CANDIDATES_MAX { self.awaits.push(awaited) } else { self.crowded = true }
    }

    /// Takes what somebody else knows of it. Returns whether that is more.
    pub(super) fn learn(&mut self, context: Option<Context>, correlation: &[[u8; 16]]) -> bool {
        let more = self.context.is_none() && context.is_some();
        self.context = self.context.or(context);
        let also = self.correlation.is_empty() && !correlation.is_empty();
        if also {
            self.correlation.extend_from_slice(correlation);
        }
        more || also
    }
}

/// The lower half of a trace id (some know no more), and a span of it or 0 for all.
type Key = (u64, u64);

fn half(trace: [u8; 16]) -> u64 {
    u128::from_be_bytes(trace) as u64
}

fn exact((trace, span): ([u8; 16], [u8; 8])) -> Key {
    (half(trace), u64::from_be_bytes(span))
}

/// What may be the reason of a call.
#[derive(Default)]
pub(super) struct Candidates {
    pub(super) found: SmallVec<[Await; 2]>,
    /// There are too many.
    pub(super) crowded: bool,
    /// Requests with those ids came that are over; or nobody knows when.
    pub(super) former: bool,
    pub(super) hidden: bool,
}

/// How often an id of a request may come to a process. One that comes more often is none.
const OFTEN: u32 = 64;

/// What is known by ids, as many as [`TAKEN_MAX`].
struct Recent<K, V> {
    known: BTreeMap<K, V>,
    /// The oldest first.
    order: VecDeque<K>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), order: VecDeque::new() }
    }
}

impl<K: Ord + Copy, V> Recent<K, V> {
    /// What is known, or else from now on.
    fn entry(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        if self.order.len() >= TAKEN_MAX
            && !self.known.contains_key(&key)
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.known.entry(key).or_insert_with(|| {
            self.order.push_back(key);
            make()
        })
    }
}

/// How the ids came into each process that heads have named there.
#[derive(Default)]
pub(super) struct Origins(Recent<(u32, Key), Origin>);

struct Origin {
    /// When a call went out with it first.
    called: u64,
    /// The first requests that brought it, by time and number, but for those calls themselves.
    brought: SmallVec<[(u64, u64); 1]>,
    /// Requests that had it.
    served: u32,
    /// Of one of them it is not known when it was over.
    hidden: bool,
}

/// Requests that are remembered for one id.
const BROUGHT_MAX: usize = 4;

impl Origin {
    /// The process has made it: what comes back with it is no reason for others.
    fn is_made_here(&self) -> bool {
        self.brought.first().is_none_or(|(brought, _)| self.called < *brought)
    }
}

impl Origins {
    /// `other`: the other end of the connection.
    pub(super) fn note(&mut self, number: u64, node: &Node, other: Option<&Node>) {
        let comes_back = other.is_some_and(|other| other.process == node.process);
        for key in node.keys() {
            let origin = self.0.entry((node.process, key), || Origin {
                called: u64::MAX,
                brought: SmallVec::new(),
                served: 0,
                hidden: false,
            });
            match node.kind {
                Kind::Client => {
                    origin.called = origin.called.min(node.start);
                    // It can have been told of after it was read.
                    origin.brought.retain(|(_, request)| Some(*request) != node.other);
                }
                Kind::Server => {
                    origin.served += 1;
                    if !comes_back {
                        let place = origin.brought.partition_point(|(start, _)| *start < node.start);
                        origin.brought.insert(place, (node.start, number));
                        origin.brought.truncate(BROUGHT_MAX);
                    }
                }
            }
        }
    }

    /// The end of a request was not seen.
    pub(super) fn hide(&mut self, node: &Node) {
        for key in node.keys() {
            if let Some(origin) = self.0.known.get_mut(&(node.process, key)) {
                origin.hidden = true;
            }
        }
    }

    fn of(&self, process: u32, key: Key) -> Option<&Origin> {
        self.0.known.get(&(process, key))
    }

    /// What a call waits for if this request, that was told of after it, may be its reason: ids that the process
    /// has made are none.
    pub(super) fn tell(&self, call: &Node, number: u64, request: &Node) -> Option<Await> {
        let brought = |trace: [u8; 16]| {
            self.of(call.process, (half(trace), 0)).is_some_and(|origin| !origin.is_made_here())
        };
        let of_trace = call.context.filter(|context| brought(context.trace));
        let of_trace = of_trace.and_then(|_| call.may_be_of_trace(number, request));
        let of_trace =
            of_trace.map(|awaited| Await { same: awaited.same && !self.are_made_here(call), ..awaited });
        let of_request = || call.correlation.iter().any(|trace| brought(*trace));
        of_trace.or_else(|| call.may_be_of_request(number, request).filter(|_| of_request()))
    }

    /// Whether the very ids of a call were made by the process.
    pub(super) fn are_made_here(&self, node: &Node) -> bool {
        let exact = node.header().map(exact).and_then(|key| self.of(node.process, key));
        exact.is_some_and(|origin| origin.is_made_here())
    }
}

/// Requests that are served, by process and ids.
#[derive(Default)]
pub(super) struct Serving(BTreeSet<(u32, Key, u64)>);

impl Serving {
    /// Puts a request where calls look for it, by all that is known of it.
    pub(super) fn list(&mut self, number: u64, node: &mut Node) {
        if node.kind == Kind::Client || node.aside {
            return;
        }
        for key in node.keys() {
            if !node.listed.contains(&key) {
                node.listed.push(key);
                self.0.insert((node.process, key, number));
            }
        }
    }

    pub(super) fn leave(&mut self, number: u64, node: &Node) {
        for key in &node.listed {
            self.0.remove(&(node.process, *key, number));
        }
    }

    /// Those with the call's ids, of which `busy` says whether they may be meant: those that were told the very same,
    /// else those of the same trace, else those with the same id of a request.
    pub(super) fn candidates<'a>(
        &self,
        call: &Node,
        origins: &Origins,
        busy: impl Fn(u64) -> Option<&'a Node>,
    ) -> Candidates {
        let mut all = Candidates::default();
        for key in call.keys() {
            let Some(origin) = origins.of(call.process, key).filter(|origin| !origin.is_made_here()) else {
                continue;
            };
            let is_of_trace = call.context.is_some_and(|context| half(context.trace) == key.0);
            if !is_of_trace && origin.served > OFTEN {
                continue;
            }
            let by = if is_of_trace { Node::may_be_of_trace } else { Node::may_be_of_request };
            let range = (call.process, key, 0)..=(call.process, key, u64::MAX);
            for (looks, (_, _, number)) in self.0.range(range).enumerate() {
                if all.found.iter().any(|found| found.number == *number) {
                    continue;
                }
                all.found.extend(busy(*number).and_then(|server| by(call, *number, server)));
                if looks >= LOOKS_MAX || all.found.len() > CANDIDATES_MAX {
                    return Candidates { crowded: true, ..all };
                }
            }
            all.former = origin.served as usize > all.found.len();
            all.hidden = all.former && origin.hidden;
            if !all.found.is_empty() {
                break;
            }
        }
        all
    }
}

/// Ids of spans that heads have named, with the exchange that was the first to name each.
#[derive(Default)]
pub(super) struct Taken(Recent<([u8; 16], [u8; 8]), u64>);

impl Taken {
    /// A request has come with it: it is somebody else's.
    pub(super) fn note(&mut self, trace: [u8; 16], span: [u8; 8], number: u64) {
        self.0.entry((trace, span), || number);
    }

    /// A call goes out with it. Whether nobody was named so before, but by the other end of the same call.
    pub(super) fn take(&mut self, trace: [u8; 16], span: [u8; 8], number: u64, other: Option<u64>) -> bool {
        let first = *self.0.entry((trace, span), || number);
        first == number || Some(first) == other
    }
}

/// Habits of processes, of those that live before those that have ended.
#[derive(Default)]
pub(super) struct Processes {
    known: BTreeMap<u32, Habits>,
    ended: VecDeque<u32>,
    /// Of those that are gone.
    before: Habits,
}

impl Processes {
    pub(super) fn get(&mut self, process: u32) -> &mut Habits {
        if self.known.len() >= PROCESSES_MAX && !self.known.contains_key(&process) {
            let gone = self.ended.pop_front().or(self.known.first_key_value().map(|(first, _)| *first));
            gone.into_iter().for_each(|gone| self.forget(gone));
        }
        self.known.entry(process).or_default()
    }

    pub(super) fn forget(&mut self, process: u32) {
        if let Some(habits) = self.known.remove(&process) {
            self.before.add(&habits);
        }
    }

    pub(super) fn end(&mut self, process: u32) {
        const ENDED_MAX: usize = 4096;
        if self.known.contains_key(&process) {
            self.ended.push_back(process);
        }
        if self.ended.len() > ENDED_MAX
            && let Some(oldest) = self.ended.pop_front()
        {
            self.forget(oldest);
        }
    }

    pub(super) fn all(&self) -> Habits {
        let mut all = self.before;
        self.known.values().for_each(|habits| all.add(habits));
        all
    }
}
