//! Which span is the child of which: only on evidence, and the span names it.
//!
//! Each exchange has a number from its first byte on. What may be its parent is known then, by the ids in its
//! head, by the other end of its connection, or by the thread; whether it is that, only when the parent is over
//! too. So spans wait here for their parents, and go out with what is proved: a parent that is exported belongs
//! to a span that was exported before, or came in a header.

mod evidence;
mod table;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use smallvec::SmallVec;

pub use self::evidence::{Evidence, Habits};
use self::table::{Await, Done, Known, Node, Taken, Told};
use crate::{
    connection::Spot,
    propagation::Propagated,
    protocol::{Attribute, Kind, RequestHead},
    span::{Link, Span},
};

/// How long the other end of a connection may take to be told of: records of two CPUs come out of order by less.
const MEET_WAIT: u64 = 200_000_000;

/// How long a span waits for its parent.
const PARENT_WAIT: u64 = 60_000_000_000;

/// More candidates than these are not told from each other by anything that comes later.
const CANDIDATES_MAX: usize = 16;

/// Processes whose habits are kept.
const PROCESSES_MAX: usize = 32768;

/// Which evidence makes a parent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parents {
    /// All that there is.
    #[default]
    Evidence,
    /// Ids in heads alone.
    Header,
}

/// An exchange that begins.
pub struct Begin<'a> {
    pub kind: Kind,
    pub cookie: u64,
    pub process: u32,
    pub thread: u32,
    /// Of the first byte.
    pub time: u64,
    pub spot: Option<Spot>,
    pub head: &'a RequestHead,
    /// The process does not wait at the connection.
    pub polled: bool,
}

/// How an exchange ended.
pub struct End {
    pub time: u64,
    /// Nothing of it is missing.
    pub whole: bool,
    /// Another thread took part in it than the one that began it.
    pub handed_over: bool,
}

/// What became of the spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// By [`Evidence`].
    pub parents: [u64; Evidence::ALL.len()],
    /// Roots that have more than one candidate.
    pub ambiguous: u64,
    /// Went out before their parent did.
    pub hasty: u64,
    /// Values of trace headers that are none.
    pub malformed: u64,
}

pub struct Stitch {
    parents: Parents,
    ids: ChaCha8Rng,
    /// Number of the last exchange.
    last: u64,
    now: u64,
    nodes: BTreeMap<u64, Box<Node>>,
    /// Servers' exchanges by process and trace, and by thread.
    serving: BTreeMap<(u32, [u8; 16]), Numbers>,
    threads: BTreeMap<u32, Numbers>,
    /// Exchanges whose other end was not seen, by the sequence number.
    spots: BTreeMap<u32, Numbers>,
    /// Connections of servers whose other end is not traced.
    alone: BTreeSet<u64>,
    taken: Taken,
    processes: BTreeMap<u32, Habits>,
    /// Until when which exchange waits, that is over itself; those of one time in the order of their ends.
    waiting: BTreeMap<(u64, u64), u64>,
    /// Exchanges that were over.
    ended: u64,
    /// Bytes of memory of spans that wait, about, and the most.
    held: usize,
    limit: usize,
    output: VecDeque<Span>,
    links: Links,
}

type Numbers = SmallVec<[u64; 2]>;

impl Default for Stitch {
    fn default() -> Self {
        Self::new(Parents::default(), usize::MAX)
    }
}

impl Stitch {
    /// `limit`: bytes of memory for spans that wait, about.
    pub fn new(parents: Parents, limit: usize) -> Self {
        Self {
            parents,
            ids: ChaCha8Rng::from_seed([0; 32]),
            last: 0,
            now: 0,
            nodes: BTreeMap::new(),
            serving: BTreeMap::new(),
            threads: BTreeMap::new(),
            spots: BTreeMap::new(),
            alone: BTreeSet::new(),
            taken: Taken::default(),
            processes: BTreeMap::new(),
            waiting: BTreeMap::new(),
            ended: 0,
            held: 0,
            limit,
            output: VecDeque::new(),
            links: Links::default(),
        }
    }

    pub fn set_seed(&mut self, seed: [u8; 32]) {
        self.ids = ChaCha8Rng::from_seed(seed);
    }

    /// The first head of an exchange was read. Returns its number.
    pub fn begin(&mut self, begin: &Begin<'_>) -> u64 {
        self.last += 1;
        let number = self.last;
        let mut node = Box::new(Node::of(begin));
        if let Some(propagated) = &begin.head.propagated {
            self.links.malformed += u64::from(propagated.malformed);
        }
        self.meet(number, &mut node);
        match begin.kind {
            Kind::Server => self.begin_server(number, &mut node, begin.polled),
            Kind::Client => self.begin_client(number, &mut node),
        }
        self.nodes.insert(number, node);
        number
    }

    /// The exchange is over, and this is its span.
    pub fn end(&mut self, number: u64, span: Span, head: Option<&Propagated>, end: &End) {
        self.now = self.now.max(end.time);
        let Some(node) = self.nodes.get_mut(&number) else {
            // It was told that this one is none; whoever says otherwise is believed.
            self.output.push_back(span);
            return;
        };
        // More may have come to be known of it.
        let learns = head.is_some_and(|propagated| node.learn(propagated.context, propagated.correlation));
        let (kind, process, thread, start) = (node.kind, node.process, node.thread, node.start);
        let on_thread = node.on_thread;
        if learns {
            self.list(number);
        }
        let mut proven = false;
        if kind == Kind::Server && on_thread {
            if end.handed_over {
                self.lose_threads(process, "another thread answers than the one that read");
            } else if self.overlaps(number, thread, start, end.time) {
                self.lose_threads(process, "a thread has several requests at once");
            }
            proven = end.whole && self.habits(process).threads_lost.is_none();
        }
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let meets = kind == Kind::Server
            && node.spot.is_some()
            && node.other.is_none()
            && self.parents == Parents::Evidence
            && !self.alone.contains(&node.cookie);
        let last = self.now.saturating_add(PARENT_WAIT);
        let until = if meets { self.now.saturating_add(MEET_WAIT) } else { last };
        self.ended += 1;
        let order = self.ended;
        let done = Done { end: end.time, proven, meets, until, last, order, cost: span.held(), span };
        self.held += done.cost;
        node.done = Some(done);
        if self.is_ready(number) {
            return self.release(number);
        }
        self.waiting.insert((until, order), number);
        while self.held > self.limit
            && let Some((_, first)) = self.waiting.first_key_value()
        {
            self.hasten(*first);
        }
    }

    /// The exchange is none, or nothing will be said of it.
    pub fn forget(&mut self, number: u64) {
        if let Some(node) = self.nodes.remove(&number) {
            self.leave(number, &node);
            self.tell(number, &node.wanted_by, Told::Gone);
        }
    }

    pub fn forget_connection(&mut self, cookie: u64) {
        self.alone.remove(&cookie);
    }

    /// A process has become another.
    pub fn forget_process(&mut self, process: u32) {
        self.processes.remove(&process);
    }

    /// Nothing waits for longer than it may.
    pub fn handle_timeout(&mut self, now: u64) {
        self.now = self.now.max(now);
        while let Some(first) = self.waiting.first_entry().filter(|first| first.key().0 <= now) {
            let number = first.remove();
            let Some(node) = self.nodes.get_mut(&number) else { continue };
            let Some(done) = &mut node.done else { continue };
            if std::mem::take(&mut done.meets) {
                self.alone.insert(node.cookie);
            }
            let again = done.last > now;
            if again {
                done.until = done.last;
                self.waiting.insert((done.last, done.order), number);
            }
            if self.is_ready(number) {
                self.release(number);
            } else if !again {
                self.hasten(number);
            }
        }
    }

    /// Nothing more comes: what has not ended will not be told.
    pub fn finish(&mut self) {
        for node in self.nodes.values_mut() {
            if let Some(done) = &mut node.done {
                done.meets = false;
            }
        }
        let order = |number: &u64| self.nodes.get(number)?.done.as_ref().map(|done| done.order);
        let (mut over, open): (Vec<u64>, Vec<u64>) =
            self.nodes.keys().partition(|number| order(number).is_some());
        over.sort_unstable_by_key(order);
        for number in open {
            self.forget(number);
        }
        for number in &over {
            if self.is_ready(*number) {
                self.release(*number);
            }
        }
        // None is left, unless some wait for each other.
        for number in over {
            self.hasten(number);
        }
    }

    pub fn poll_output(&mut self) -> Option<Span> {
        self.output.pop_front()
    }

    pub fn links(&self) -> &Links {
        &self.links
    }

    /// What is known of how processes pass things on.
    pub fn habits_of_all(&self) -> Habits {
        let mut all = Habits::default();
        for habits in self.processes.values() {
            all.add(habits);
        }
        all
    }

    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Exchanges that are open or wait.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Looks for the other end of the connection.
    fn meet(&mut self, number: u64, node: &mut Node) {
        let Some(spot) = node.spot.filter(|_| self.parents == Parents::Evidence) else { return };
        let others = self.spots.entry(spot.sequence).or_default();
        let met = others.iter().position(|other| {
            self.nodes.get(other).is_some_and(|other| {
                other.kind != node.kind && other.spot.is_some_and(|theirs| theirs.is(&spot))
            })
        });
        let Some(met) = met else {
            if node.kind == Kind::Server && self.alone.contains(&node.cookie) {
                if others.is_empty() {
                    self.spots.remove(&spot.sequence);
                }
                return;
            }
            others.push(number);
            return;
        };
        let met = others.remove(met);
        if others.is_empty() {
            self.spots.remove(&spot.sequence);
        }
        let Some(other) = self.nodes.get_mut(&met) else { return };
        (node.other, other.other) = (Some(met), Some(number));
        // Both ends saw the same bytes, but not always all of them.
        node.learn(other.context, other.correlation);
        let learns = other.learn(node.context, node.correlation);
        match node.kind {
            Kind::Server => {
                node.awaits.push(Await::of(met, Evidence::Connection));
                other.wanted_by.push(number);
            }
            Kind::Client => {
                other.awaits.push(Await::of(number, Evidence::Connection));
                if let Some(done) = &mut other.done {
                    done.meets = false;
                }
                node.wanted_by.push(met);
            }
        }
        for cookie in [node.cookie, other.cookie] {
            self.alone.remove(&cookie);
        }
        if learns {
            self.list(met);
        }
    }

    /// Puts a request that is served where calls look for it.
    fn list(&mut self, number: u64) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        if node.kind == Kind::Client || node.aside {
            return;
        }
        for key in node.keys() {
            if !node.listed.contains(&key) {
                node.listed.push(key);
                self.serving.entry((node.process, key)).or_default().push(number);
            }
        }
    }

    fn begin_server(&mut self, number: u64, node: &mut Node, polled: bool) {
        let (process, thread, time) = (node.process, node.thread, node.start);
        if let Some((trace, span)) = node.header() {
            self.taken.note(trace, span, number);
        }
        if polled {
            self.lose_threads(process, "its sockets do not wait");
        }
        let parents = self.parents;
        let habits = self.habits(process);
        habits.served += 1;
        habits.asked += u64::from(node.context.is_some() || node.correlation.is_some());
        let by_thread = habits.threads_lost.is_none() && parents == Parents::Evidence;
        let may_be_late = habits.last_call >= time;
        if by_thread {
            node.on_thread = true;
            self.threads.entry(thread).or_default().push(number);
        }
        if node.aside {
            return;
        }
        for key in node.keys() {
            self.serving.entry((process, key)).or_default().push(number);
            node.listed.push(key);
        }
        if may_be_late {
            // Calls that were read before it, though they were made after it.
            let late: Vec<u64> = self
                .nodes
                .iter()
                .filter(|(_, call)| {
                    call.kind == Kind::Client && call.process == process && call.start >= time && !call.aside
                })
                .map(|(call, _)| *call)
                .collect();
            for call in late {
                if let Some(call_node) = self.nodes.get_mut(&call)
                    && node.other != Some(call)
                    && let Some(awaited) =
                        call_node.may_come_of(number, node).or(call_node.may_be_made_by(number, node))
                {
                    call_node.awaits.push(awaited);
                    node.wanted_by.push(call);
                }
            }
        }
    }

    fn begin_client(&mut self, number: u64, node: &mut Node) {
        let (process, time) = (node.process, node.start);
        if let Some((trace, span)) = node.header() {
            // Fresh ids are its own: the one that it calls names them as its parent.
            if self.taken.take(trace, span, number, node.other) {
                node.own = Some(span);
            }
        }
        let mut candidates = if node.aside { Vec::new() } else { self.candidates(node) };
        let (by_thread, by_ids): (Vec<&Await>, Vec<&Await>) =
            candidates.iter().partition(|candidate| candidate.evidence == Evidence::Thread);
        let same = |one: &&Await| by_thread.iter().any(|other| other.number == one.number);
        let strange = !by_ids.is_empty() && !by_thread.is_empty() && !by_ids.iter().any(same);
        let (by_ids, crowded) = (!by_ids.is_empty(), by_ids.len() > CANDIDATES_MAX);
        if strange {
            self.lose_threads(process, "a thread works for a request that it did not read");
        }
        if crowded {
            node.crowded = true;
            candidates.clear();
        }
        let habits = self.habits(process);
        habits.called += 1;
        habits.passed_on += u64::from(by_ids);
        habits.last_call = habits.last_call.max(time);
        for candidate in candidates {
            if let Some(server) = self.nodes.get_mut(&candidate.number) {
                server.wanted_by.push(number);
                node.awaits.push(candidate);
            }
        }
    }

    /// Requests that the process was busy with when it made this call, and that may be why: by their ids, and
    /// by the thread.
    fn candidates(&self, call: &Node) -> Vec<Await> {
        let busy = |number: &u64| {
            let server = self.nodes.get(number)?;
            let over = server.done.as_ref().is_some_and(|done| done.end < call.start);
            (server.start <= call.start && !over && call.other != Some(*number)).then_some(&**server)
        };
        let mut numbers = Numbers::new();
        for key in call.keys() {
            numbers.extend(self.serving.get(&(call.process, key)).into_iter().flatten().copied());
        }
        numbers.sort_unstable();
        numbers.dedup();
        let mut found: Vec<Await> =
            numbers.iter().filter_map(|number| call.may_come_of(*number, busy(number)?)).collect();
        // One that has passed on unchanged what only it was told.
        if found.iter().any(|candidate| candidate.same) {
            found.retain(|candidate| candidate.same);
        }
        let threads = self.threads.get(&call.thread).into_iter().flatten();
        found.extend(threads.filter_map(|number| call.may_be_made_by(*number, busy(number)?)));
        found
    }

    /// Whether the thread had another request between these times.
    fn overlaps(&self, number: u64, thread: u32, start: u64, end: u64) -> bool {
        let others = self.threads.get(&thread).into_iter().flatten().filter(|other| **other != number);
        others
            .filter_map(|other| self.nodes.get(other))
            .any(|other| other.start < end && other.done.as_ref().is_none_or(|done| done.end > start))
    }

    fn lose_threads(&mut self, process: u32, why: &'static str) {
        self.habits(process).threads_lost.get_or_insert(why);
    }

    fn habits(&mut self, process: u32) -> &mut Habits {
        if self.processes.len() >= PROCESSES_MAX && !self.processes.contains_key(&process) {
            self.processes.pop_first();
        }
        self.processes.entry(process).or_default()
    }

    fn is_ready(&self, number: u64) -> bool {
        self.nodes.get(&number).is_some_and(|node| {
            node.done.as_ref().is_some_and(|done| !done.meets)
                && node.awaits.iter().all(|awaited| !matches!(awaited.told, Told::Open))
        })
    }

    /// It goes out with what is proved by now.
    fn hasten(&mut self, number: u64) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let Some(done) = &mut node.done else { return };
        done.meets = false;
        for awaited in &mut node.awaits {
            if matches!(awaited.told, Told::Open) {
                awaited.told = Told::Gone;
            }
        }
        self.links.hasty += 1;
        self.release(number);
    }

    /// Lets a span go, and those that waited for it alone.
    fn release(&mut self, number: u64) {
        let mut ready = vec![number];
        while let Some(number) = ready.pop() {
            let Some(mut node) = self.nodes.remove(&number) else { continue };
            self.leave(number, &node);
            let Some(done) = node.done.take() else { continue };
            let known = self.put_out(&node, done);
            self.settle(number, &node.wanted_by, Told::Known(known), &mut ready);
        }
    }

    fn tell(&mut self, number: u64, wanted_by: &[u64], told: Told) {
        let mut ready = Vec::new();
        self.settle(number, wanted_by, told, &mut ready);
        for number in ready {
            self.release(number);
        }
    }

    /// What became of an exchange, for those that wait for it; those that wait for nothing else are ready.
    fn settle(&mut self, number: u64, wanted_by: &[u64], told: Told, ready: &mut Vec<u64>) {
        // The last comes out first: they go in their order.
        for waiter in wanted_by.iter().rev() {
            let Some(node) = self.nodes.get_mut(waiter) else { continue };
            for awaited in node.awaits.iter_mut().filter(|awaited| awaited.number == number) {
                awaited.told = told;
            }
            if self.is_ready(*waiter) {
                ready.push(*waiter);
            }
        }
    }

    /// Takes an exchange out of all tables.
    fn leave(&mut self, number: u64, node: &Node) {
        fn remove<K: Ord>(table: &mut BTreeMap<K, Numbers>, key: K, number: u64) {
            if let Some(numbers) = table.get_mut(&key) {
                numbers.retain(|other| *other != number);
                if numbers.is_empty() {
                    table.remove(&key);
                }
            }
        }
        for key in &node.listed {
            remove(&mut self.serving, (node.process, *key), number);
        }
        if node.on_thread {
            remove(&mut self.threads, node.thread, number);
        }
        if let Some(spot) = node.spot.filter(|_| node.other.is_none()) {
            remove(&mut self.spots, spot.sequence, number);
        }
        if let Some(done) = &node.done {
            self.held -= done.cost;
            self.waiting.remove(&(done.until, done.order));
        }
    }

    /// Gives a span its ids and its parent.
    fn put_out(&mut self, node: &Node, done: Done) -> Known {
        let threads = self.processes.get(&node.process).is_none_or(|habits| habits.threads_lost.is_none());
        let decided = node.decide(threads);
        let trace = decided.parent.map(|parent| parent.trace).or(node.trace());
        let trace = trace.unwrap_or_else(|| random(&mut self.ids));
        let id = node.own.unwrap_or_else(|| random(&mut self.ids));
        let flags =
            node.context.map_or(decided.parent.map_or(1, |parent| parent.flags), |context| context.flags);
        let known = Known { trace, id, flags, start: node.start, end: done.end, proven: done.proven };
        let mut span = done.span;
        span.trace = trace;
        span.id = id;
        span.trace_flags = flags;
        span.parent = decided.parent.map(|parent| parent.id);
        span.links.extend(decided.links.into_iter().map(|known| Link { trace: known.trace, span: known.id }));
        span.attributes.push(Attribute::word("tracer.parent.evidence", decided.evidence.name()));
        self.links.parents[decided.evidence as usize] += 1;
        self.links.ambiguous += u64::from(decided.ambiguous);
        self.habits(node.process).parents[decided.evidence as usize] += 1;
        self.output.push_back(span);
        known
    }
}

/// Not zero.
fn random<const N: usize>(ids: &mut ChaCha8Rng) -> [u8; N] {
    loop {
        let mut id = [0; N];
        ids.fill_bytes(&mut id);
        if id != [0; N] {
            return id;
        }
    }
}
