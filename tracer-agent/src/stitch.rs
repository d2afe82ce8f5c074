//! Which span is the child of which: only on evidence, and the span names it.
//!
//! Each exchange has a number from its first byte on. What may be its parent is known then, by the ids in its
//! head, by the other end of its connection, or by the thread; whether it is that, only when the parent is over
//! too. So spans wait here for their parents, and go out with what is proved: a parent that is exported belongs
//! to a span that was exported before, or came in a header.

mod evidence;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use smallvec::SmallVec;

pub use self::evidence::{Evidence, Habits};
use self::table::{Await, Candidates, Done, Known, Node, Origins, Processes, Serving, Taken, Told};
use crate::{
    connection::Spot,
    protocol::{Attribute, Kind, RequestHead},
    span::{Link, Span},
};

/// How long the other end of a connection may take to be told of: records of two CPUs come out of order by less.
const MEET_WAIT: u64 = 200_000_000;

/// How long a span waits for its parent.
const PARENT_WAIT: u64 = 60_000_000_000;

/// After so many connections of a process without another end, the next one is not waited for.
const LONELY: u32 = 64;

/// Exchanges that are gone through to find out whether one waits for another in a circle.
const CIRCLE_MAX: usize = 256;

/// Which evidence makes a parent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parents {
    /// All that there is.
    #[default]
    Evidence,
    /// Ids in heads alone.
    Header,
}

/// Of a connection: its other end is not traced. Known when that was waited for in vain.
#[derive(Clone, Debug, Default)]
pub struct Alone(Arc<AtomicBool>);

impl Alone {
    fn is_known(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns what was known before.
    fn know(&self, alone: bool) -> bool {
        self.0.swap(alone, Ordering::Relaxed)
    }
}

/// An exchange that begins.
pub struct Begin<'a> {
    pub kind: Kind,
    pub cookie: u64,
    pub process: u32,
    pub thread: u32,
    /// When a server had read the head, or a client had sent the first of it.
    pub time: u64,
    pub spot: Option<Spot>,
    pub alone: &'a Alone,
    pub head: &'a RequestHead,
    /// The process does not wait at the connection.
    pub polled: bool,
    /// Several exchanges share the connection at once: one thread may send what another has made.
    pub shared: bool,
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
    /// Requests that are served, by their ids and by the thread.
    serving: Serving,
    threads: BTreeMap<u32, Numbers>,
    /// Calls by process and time.
    calls: BTreeSet<(u32, u64, u64)>,
    /// Exchanges whose other end was not seen, by the sequence number.
    spots: BTreeMap<u32, Numbers>,
    /// Those that are over and wait for it, by connection.
    meeting: BTreeMap<u64, Numbers>,
    taken: Taken,
    origins: Origins,
    processes: Processes,
    /// Until when which exchange waits, that is over itself; those of one time in the order of their ends.
    waiting: BTreeMap<(u64, u64), u64>,
    /// Exchanges that were over.
    ended: u64,
    /// Bytes of memory of spans that wait, about, and the most.
    held: usize,
    limit: usize,
    output: VecDeque<Box<Span>>,
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
            serving: Serving::default(),
            threads: BTreeMap::new(),
            calls: BTreeSet::new(),
            spots: BTreeMap::new(),
            meeting: BTreeMap::new(),
            taken: Taken::default(),
            origins: Origins::default(),
            processes: Processes::default(),
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

    /// The first head of an exchange was read. Returns its number; 0 for one that nothing can have to do with.
    pub fn begin(&mut self, begin: &Begin<'_>) -> u64 {
        self.see_alone(begin);
        if self.is_by_itself(begin) {
            return 0;
        }
        self.last += 1;
        let number = self.last;
        let mut node = Box::new(Node::of(begin));
        self.meet(number, &mut node);
        match begin.kind {
            Kind::Server => self.begin_server(number, &mut node, begin.polled),
            Kind::Client => self.begin_client(number, &mut node),
        }
        self.nodes.insert(number, node);
        number
    }

    /// Who asks again has heard the answer before, and said so: if that was not seen, nobody looks there.
    fn see_alone(&mut self, begin: &Begin<'_>) {
        let Some(waiting) = self.meeting.get(&begin.cookie) else { return };
        let over = |number: &u64| {
            let done = self.nodes.get(number).and_then(|node| node.done.as_ref());
            done.is_some_and(|done| done.meets && done.end <= begin.time)
        };
        if waiting.iter().any(over) {
            self.leave_alone(begin.cookie);
        }
    }

    /// Nobody is traced at the other end of a connection: what waits for that goes, in its order.
    fn leave_alone(&mut self, cookie: u64) {
        for number in self.meeting.remove(&cookie).unwrap_or_default() {
            let Some(node) = self.nodes.get_mut(&number) else { continue };
            let Some(done) = node.done.as_mut().filter(|done| done.meets) else { continue };
            done.meets = false;
            let known = node.alone.know(true);
            self.processes.get(node.process).lonely += u32::from(!known);
            if self.is_ready(number) {
                self.release(number, None);
            }
        }
    }

    /// A request without ids, of a server whose threads are no evidence, from where nobody is traced: it has no
    /// parent, and is none.
    fn is_by_itself(&mut self, begin: &Begin<'_>) -> bool {
        let may_meet = begin.spot.is_some() && !self.calls.is_empty();
        if begin.kind == Kind::Client || may_meet || begin.head.propagated.is_some() {
            return false;
        }
        let habits = self.processes.get(begin.process);
        let nobody = begin.spot.is_none() || habits.lonely >= LONELY || begin.alone.is_known();
        let by_itself = nobody && (habits.threads_lost.is_some() || self.parents == Parents::Header);
        habits.served += u64::from(by_itself);
        by_itself
    }

    /// A thread of a server reads from a connection.
    pub fn reads(&mut self, process: u32, thread: u32, cookie: u64) {
        let Some(numbers) = self.threads.get(&thread) else { return };
        let mut nodes = numbers.iter().filter_map(|number| self.nodes.get(number));
        if nodes.any(|node| node.cookie != cookie && node.done.is_none()) {
            self.lose_threads(process, "a thread has several connections at once");
        }
    }

    /// The exchange is over, and this is its span.
    pub fn end(&mut self, number: u64, span: Box<Span>, end: &End) {
        let Some(node) = self.nodes.get_mut(&number) else { return self.put_out_root(span) };
        self.now = self.now.max(end.time);
        if let Some(propagated) = span.request.propagated.as_deref() {
            // What both ends say is counted once.
            if node.kind == Kind::Client || node.other.is_none() {
                self.links.malformed += u64::from(propagated.malformed);
            }
            // More may have come to be known of it.
            if node.learn(propagated.context, &propagated.correlation) {
                self.serving.list(number, node);
            }
        }
        let mut one_thread = !end.handed_over;
        if !end.whole && node.kind == Kind::Server {
            self.origins.hide(node);
        }
        if node.on_thread {
            one_thread &= end.whole;
            let (process, thread, start) = (node.process, node.thread, node.start);
            if end.handed_over {
                self.lose_threads(process, "another thread answers than the one that read");
            } else if self.overlaps(number, thread, start, end.time) {
                self.lose_threads(process, "a thread has several requests at once");
            }
        }
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let lonely = self.calls.is_empty() && self.processes.get(node.process).lonely >= LONELY;
        let meets = node.kind == Kind::Server
            && node.spot.is_some()
            && node.other.is_none()
            && self.parents == Parents::Evidence
            && !lonely
            && !node.alone.is_known();
        if meets {
            self.meeting.entry(node.cookie).or_default().push(number);
        }
        self.ended += 1;
        let order = self.ended;
        let last = self.now.saturating_add(PARENT_WAIT);
        let until = if meets { self.now.saturating_add(MEET_WAIT) } else { last };
        // Where its end was not seen, it may go on.
        let time = if end.whole { end.time } else { u64::MAX };
        let done = Done { end: time, one_thread, meets, until, last, order, cost: 0, span };
        if !meets && node.waits_for_none() {
            return self.release(number, Some(done));
        }
        let cost = done.span.held() + size_of::<Done>();
        self.held += cost;
        node.done = Some(Box::new(Done { cost, ..done }));
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

    /// A process has become another.
    pub fn forget_process(&mut self, process: u32) {
        self.processes.forget(process);
    }

    /// A process has ended: it is kept for what is still to be told of it.
    pub fn end_process(&mut self, process: u32) {
        self.processes.end(process);
    }

    /// Nothing waits for longer than it may.
    pub fn handle_timeout(&mut self, now: u64) {
        self.now = self.now.max(now);
        while let Some(first) = self.waiting.first_entry().filter(|first| first.key().0 <= now) {
            let number = first.remove();
            let Some(node) = self.nodes.get_mut(&number) else { continue };
            let Some(done) = &mut node.done else { continue };
            let (meets, last, order) = (done.meets, done.last, done.order);
            done.until = last;
            if last <= now {
                self.hasten(number);
                continue;
            }
            self.waiting.insert((last, order), number);
            if meets {
                let cookie = node.cookie;
                self.leave_alone(cookie);
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
                self.release(*number, None);
            }
        }
        // None is left, unless some wait for each other.
        for number in over {
            self.hasten(number);
        }
    }

    pub fn poll_output(&mut self) -> Option<Box<Span>> {
        self.output.pop_front()
    }

    pub fn links(&self) -> &Links {
        &self.links
    }

    /// What is known of how processes pass things on.
    pub fn habits_of_all(&self) -> Habits {
        self.processes.all()
    }

    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Bytes of memory of spans that wait, about.
    pub fn held(&self) -> usize {
        self.held
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
        let Some(spot) = node.spot else { return };
        // Where nobody calls, nobody will look for the one that is called.
        let nobody = self.calls.is_empty() && node.alone.is_known();
        if node.kind == Kind::Server && nobody {
            return;
        }
        let others = self.spots.entry(spot.sequence).or_default();
        let met = others.iter().position(|other| {
            self.nodes.get(other).is_some_and(|other| {
                other.kind != node.kind && other.spot.is_some_and(|theirs| theirs.is(&spot))
            })
        });
        let Some(met) = met else {
            node.looks = true;
            return others.push(number);
        };
        let met = others.remove(met);
        if others.is_empty() {
            self.spots.remove(&spot.sequence);
        }
        let Some(other) = self.nodes.get_mut(&met) else { return };
        (node.other, other.other) = (Some(met), Some(number));
        // Both ends saw the same bytes, but not always all of them.
        node.learn(other.context, &other.correlation);
        if other.learn(node.context, &node.correlation) {
            self.serving.list(met, other);
        }
        for (alone, process) in [(&node.alone, node.process), (&other.alone, other.process)] {
            alone.know(false);
            self.processes.get(process).lonely = 0;
        }
        if self.parents == Parents::Header {
            return;
        }
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
    }

    fn begin_server(&mut self, number: u64, node: &mut Node, polled: bool) {
        let (process, thread, time) = (node.process, node.thread, node.start);
        if let Some((trace, span)) = node.header() {
            self.taken.note(trace, span, number);
        }
        let habits = self.processes.get(process);
        habits.served += 1;
        habits.asked += u64::from(node.context.is_some() || !node.correlation.is_empty());
        if polled {
            habits.threads_lost.get_or_insert("its sockets do not wait");
        } else if habits.threads_lost.is_none() && self.parents == Parents::Evidence {
            node.on_thread = true;
            self.threads.entry(thread).or_default().push(number);
        }
        if node.aside {
            return;
        }
        self.origins.note(
            number,
            node,
            node.other.and_then(|other| self.nodes.get(&other)).map(|other| &**other),
        );
        // Calls that were read before it, though they were made after it.
        let late = (process, time, 0)..=(process, u64::MAX, u64::MAX);
        let calls_late = habits.calls_late;
        let late: Vec<u64> = match habits.last_call >= time && time > 0 {
            true => self.calls.range(late).map(|(_, _, call)| *call).collect(),
            false => Vec::new(),
        };
        self.serving.list(number, node);
        for call in late {
            if node.other == Some(call)
                || node.awaits.iter().any(|awaited| self.leads_to(awaited.number, call))
            {
                continue;
            }
            let Some(call_node) = self.nodes.get_mut(&call).filter(|call| !call.aside) else { continue };
            let by_ids = self.origins.tell(call_node, number, node);
            if let Some(awaited) = by_ids.or(call_node.may_be_made_by(number, node)) {
                // It has passed on what it was told: the id is not its own.
                call_node.own = call_node.own.filter(|_| !awaited.same);
                call_node.doubtful |= calls_late;
                call_node.add(awaited);
                node.wanted_by.push(call);
            }
        }
    }

    fn begin_client(&mut self, number: u64, node: &mut Node) {
        let (process, time) = (node.process, node.start);
        let Candidates { found, crowded, former, hidden } =
            if node.aside { Candidates::default() } else { self.candidates(number, node) };
        self.origins.note(
            number,
            node,
            node.other.and_then(|other| self.nodes.get(&other)).map(|other| &**other),
        );
        if let Some((trace, span)) = node.header() {
            // Fresh ids are its own: the one that it calls names them as its parent.
            let fresh = self.taken.take(trace, span, number, node.other);
            let forwarded = found.iter().any(|candidate| candidate.same);
            node.own = (fresh && !forwarded).then_some(span);
        }
        let (by_thread, by_ids): (Vec<&Await>, Vec<&Await>) =
            found.iter().partition(|candidate| candidate.evidence == Evidence::Thread);
        let read_it = |one: &&Await| by_thread.iter().any(|other| other.number == one.number);
        // It says who it is for, and that is not the one that its thread has read.
        let for_another = !crowded && (!by_ids.is_empty() || former);
        let strange = for_another && !by_thread.is_empty() && !by_ids.iter().any(read_it);
        let by_ids = !by_ids.is_empty() || crowded;
        let habits = self.processes.get(process);
        habits.calls_late |= former && !by_ids;
        node.doubtful = by_ids && (hidden || former && habits.calls_late);
        habits.called += 1;
        habits.passed_on += u64::from(by_ids);
        habits.last_call = habits.last_call.max(time);
        if strange {
            habits.threads_lost.get_or_insert("a thread works for a request that it did not read");
        }
        self.calls.insert((process, time, number));
        node.crowded = crowded;
        for candidate in found.into_iter().filter(|_| !crowded) {
            if let Some(server) = self.nodes.get_mut(&candidate.number) {
                server.wanted_by.push(number);
                if server.wanted_by.len() > server.wanted_most {
                    // Most of those are gone, where a request goes on for long.
                    let mut wanted_by = std::mem::take(&mut server.wanted_by);
                    wanted_by.retain(|call| *call == number || self.nodes.contains_key(call));
                    if let Some(server) = self.nodes.get_mut(&candidate.number) {
                        server.wanted_most = (2 * wanted_by.len()).max(server.wanted_most);
                        server.wanted_by = wanted_by;
                    }
                }
                node.awaits.push(candidate);
            }
        }
    }

    /// Requests that the process was busy with when it made this call, and that may be why: by their ids, and
    /// by the thread.
    fn candidates(&self, number: u64, call: &Node) -> Candidates {
        let busy = |server_number: u64| {
            let server = self.nodes.get(&server_number)?;
            let over = server.done.as_ref().is_some_and(|done| done.end < call.start);
            let here = server.process == call.process && server.start <= call.start && !over;
            // What is served because of this call is no reason for it.
            let follows = call.other == Some(server_number)
                || server.awaits.iter().any(|awaited| self.leads_to(awaited.number, number));
            (here && !follows).then_some(&**server)
        };
        let mut candidates = self.serving.candidates(call, &self.origins, busy);
        if self.origins.are_made_here(call) {
            // What came back with them was not told them first.
            candidates.found.iter_mut().for_each(|candidate| candidate.same = false);
        }
        for thread in self.threads.get(&call.thread).into_iter().flatten() {
            candidates.found.extend(busy(*thread).and_then(|server| call.may_be_made_by(*thread, server)));
        }
        candidates
    }

    /// Whether one exchange waits, perhaps by way of others, for another.
    fn leads_to(&self, from: u64, to: u64) -> bool {
        let mut seen = Numbers::from_slice(&[from]);
        let mut next = 0;
        while let Some(number) = seen.get(next).copied() {
            next += 1;
            if number == to || next > CIRCLE_MAX {
                return true;
            }
            let awaits = self.nodes.get(&number).map(|node| &node.awaits[..]).unwrap_or_default();
            for awaited in awaits {
                if !seen.contains(&awaited.number) {
                    seen.push(awaited.number);
                }
            }
        }
        false
    }

    /// Whether the thread had another request between these times.
    fn overlaps(&self, number: u64, thread: u32, start: u64, end: u64) -> bool {
        let others = self.threads.get(&thread).into_iter().flatten().filter(|other| **other != number);
        others
            .filter_map(|other| self.nodes.get(other))
            .any(|other| other.start < end && other.done.as_ref().is_none_or(|done| done.end > start))
    }

    fn lose_threads(&mut self, process: u32, why: &'static str) {
        self.processes.get(process).threads_lost.get_or_insert(why);
    }

    fn is_ready(&self, number: u64) -> bool {
        self.nodes
            .get(&number)
            .is_some_and(|node| node.done.as_ref().is_some_and(|done| !done.meets) && node.waits_for_none())
    }

    /// It goes out with what is proved by now. What it waits for goes first, if that is over itself.
    fn hasten(&mut self, number: u64) {
        let (mut path, mut seen) = (vec![number], BTreeSet::from([number]));
        while let Some(number) = path.last().copied() {
            let awaits = self.nodes.get(&number).map(|node| &node.awaits[..]).unwrap_or_default();
            let is_over = |number: &u64| self.nodes.get(number).is_some_and(|node| node.done.is_some());
            let blocks = awaits.iter().filter(|awaited| matches!(awaited.told, Told::Open));
            let blocks =
                blocks.map(|awaited| awaited.number).find(|other| !seen.contains(other) && is_over(other));
            if let Some(blocks) = blocks {
                seen.insert(blocks);
                path.push(blocks);
                continue;
            }
            path.pop();
            let Some(node) = self.nodes.get_mut(&number) else { continue };
            let Some(done) = &mut node.done else { continue };
            done.meets = false;
            let open = node.awaits.iter_mut().filter(|awaited| matches!(awaited.told, Told::Open));
            let open = open.map(|awaited| awaited.told = Told::Gone).count();
            self.links.hasty += u64::from(open > 0);
            self.release(number, None);
        }
    }

    /// Lets a span go, and those that waited for it alone. `done`: what it came to, where nobody has that yet.
    fn release(&mut self, number: u64, done: Option<Done>) {
        let mut ready = Numbers::new();
        self.release_one(number, done, &mut ready);
        while let Some(number) = ready.pop() {
            self.release_one(number, None, &mut ready);
        }
    }

    fn release_one(&mut self, number: u64, done: Option<Done>, ready: &mut Numbers) {
        let Some(mut node) = self.nodes.remove(&number) else { return };
        self.leave(number, &node);
        let Some(done) = done.or(node.done.take().map(|done| *done)) else { return };
        let known = self.put_out(&node, done);
        self.settle(number, &node.wanted_by, Told::Known(known), ready);
    }

    fn tell(&mut self, number: u64, wanted_by: &[u64], told: Told) {
        let mut ready = Numbers::new();
        self.settle(number, wanted_by, told, &mut ready);
        while let Some(number) = ready.pop() {
            self.release(number, None);
        }
    }

    /// What became of an exchange, for those that wait for it; those that wait for nothing else are ready.
    fn settle(&mut self, number: u64, wanted_by: &[u64], told: Told, ready: &mut Numbers) {
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
        match node.kind {
            Kind::Server => self.serving.leave(number, node),
            Kind::Client => {
                self.calls.remove(&(node.process, node.start, number));
            }
        }
        if node.on_thread {
            remove(&mut self.threads, node.thread, number);
        }
        if let Some(spot) = node.spot.filter(|_| node.looks && node.other.is_none()) {
            remove(&mut self.spots, spot.sequence, number);
        }
        if let Some(done) = &node.done {
            remove(&mut self.meeting, node.cookie, number);
            self.held -= done.cost;
            self.waiting.remove(&(done.until, done.order));
        }
    }

    /// Gives a span its ids and its parent.
    fn put_out(&mut self, node: &Node, done: Done) -> Known {
        let habits = self.processes.get(node.process);
        let decided = node.decide(habits.threads_lost.is_none() && done.one_thread);
        let proven = node.on_thread && done.one_thread && habits.threads_lost.is_none();
        self.links.ambiguous += u64::from(decided.ambiguous);
        let trace = decided.parent.map(|parent| parent.trace).or(node.trace());
        let trace = trace.unwrap_or_else(|| random(&mut self.ids));
        let id = node.own.unwrap_or_else(|| random(&mut self.ids));
        let flags =
            node.context.map_or(decided.parent.map_or(1, |parent| parent.flags), |context| context.flags);
        let mut span = done.span;
        (span.trace, span.id, span.trace_flags) = (trace, id, flags);
        span.parent = decided.parent.map(|parent| parent.id);
        span.links.extend(decided.links.into_iter().map(|known| Link { trace: known.trace, span: known.id }));
        self.send(span, node.process, decided.evidence);
        Known { trace, id, flags, start: node.start, end: done.end, proven }
    }

    /// One that is by itself: what its head says is all that there is.
    fn put_out_root(&mut self, mut span: Box<Span>) {
        let context = span.request.propagated.as_deref().and_then(|propagated| propagated.context);
        span.trace = context.map_or_else(|| random(&mut self.ids), |context| context.trace);
        span.id = random(&mut self.ids);
        span.trace_flags = context.map_or(1, |context| context.flags);
        span.parent = context.and_then(|context| context.span);
        let evidence = if span.parent.is_some() { Evidence::Header } else { Evidence::None };
        let process = span.resource.process;
        self.send(span, process, evidence);
    }

    /// A span that has its ids goes, and is counted by what its parent rests on.
    fn send(&mut self, mut span: Box<Span>, process: u32, evidence: Evidence) {
        span.attributes.push(Attribute::word("tracer.parent.evidence", evidence.name()));
        self.links.parents[evidence as usize] += 1;
        self.processes.get(process).parents[evidence as usize] += 1;
        self.output.push_back(span);
    }
}

/// Not zero; of whole words.
fn random<const N: usize>(ids: &mut ChaCha8Rng) -> [u8; N] {
    loop {
        let mut id = [0; N];
        for word in id.as_chunks_mut().0 {
            *word = ids.next_u64().to_le_bytes();
        }
        if id != [0; N] {
            return id;
        }
    }
}
