//! From records to spans. A pure function of the records: [`Pipeline::handle_record`] takes one,
//! [`Pipeline::poll_output`] gives what came of it; time passes where a record says so.

mod detect;
mod tracked;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use tracer_common::{
    connection::{Direction, Role},
    record::{Closed, Connect, Data, Ended, Measured, Opened, OpenedUnix, Shut},
};

use self::tracked::{CONNECTION_COST, CONNECTION_HELD_MAX, Run, State, Tracked};
use crate::{
    capture::{Life, Record},
    connection::{self, Arrival, Place, stream::Ending},
    enrich::{Resource, kubernetes::Object, late::Late, process::Processes},
    protocol::{Event, Kind, RequestHead, Shown, Text},
    span::{Span, Spans},
    stats::{Bucket, Ledger, Tally},
    stitch::{Habits, Parents, Stitch},
    tcp::{self, Facts},
};

/// How long a hole is waited for: records of two CPUs come out of order by less.
const HOLE_WAIT: u64 = 200_000_000;

#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of memory for connections and what they hold, about.
    pub memory: usize,
    pub parents: Parents,
    pub shown: Shown,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory: 128 << 20, parents: Parents::default(), shown: Shown::default() }
    }
}

/// The part of the memory, beside that of connections, that spans may take which wait for their parents.
const STITCH_SHARE: usize = 4;

/// Errors of a connection that is over (errno): EPIPE, ENETUNREACH, ECONNABORTED, ECONNRESET, ETIMEDOUT,
/// ECONNREFUSED, EHOSTUNREACH.
const ENDS: [i32; 7] = [32, 101, 103, 104, 110, 111, 113];

/// include/linux/socket.h
const MSG_DONTWAIT: u32 = 0x40;

/// No stream is as long: a record that says so is damaged.
const POSITION_MAX: u64 = 1 << 62;

/// Words to the kernel that wait for somebody to take them: a replay takes none.
const QUIET_MAX: usize = 1024;

/// What the kernel need not tell of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet {
    pub cookie: u64,
    pub hush: Hush,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hush {
    /// Bytes that lie before the position, by direction: their length is enough. And of frames of content
    /// the header is, where that is said.
    Content { until: [u64; 2], frames: bool },
    /// Anything: what comes is counted there.
    All(Bucket),
}

/// An exchange that was not over when the capture ended.
#[derive(Clone, Debug)]
pub struct OpenExchange {
    pub operation: Text,
    pub target: Text,
    pub kind: Kind,
    /// Nanoseconds since its first byte.
    pub age: u64,
    /// If its response had begun, and whether that was over.
    pub status: Option<Text>,
    pub answered: bool,
    pub peer: Option<Text>,
    pub resource: Arc<Resource>,
}

#[derive(Default)]
pub struct Pipeline {
    limits: Limits,
    connections: BTreeMap<u64, Tracked>,
    /// Connections that wait for something that time can decide.
    waiting: BTreeSet<u64>,
    held: usize,
    processes: Processes,
    spans: Spans,
    ledger: Ledger,
    stitch: Stitch,
    /// Room for what a session finds, kept.
    events: Vec<Event>,
    quiet: VecDeque<Quiet>,
    facts: Facts,
    late: Late,
    /// The time, as the last record that has one told it.
    now: u64,
    open: Vec<OpenExchange>,
    finished: bool,
    /// What connections that are over came to, of processes that are not.
    coverage: BTreeMap<u32, Coverage>,
}

/// What was seen of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    pub bytes: Tally,
    pub records: u64,
    /// Of all times, and those that are open.
    pub connections: u64,
    pub open: u64,
}

impl Coverage {
    fn merge(&mut self, other: &Coverage) {
        self.bytes.merge(&other.bytes);
        self.records += other.records;
        self.connections += other.connections;
        self.open += other.open;
    }
}

impl Pipeline {
    pub fn new(limits: Limits) -> Self {
        let stitch = Stitch::new(limits.parents, limits.memory / STITCH_SHARE);
        let processes = Processes::new(limits.memory);
        let late = Late::new(limits.memory);
        Self { limits, stitch, processes, late, ..Self::default() }
    }

    pub fn handle_record(&mut self, record: &Record<'_>) {
        if self.finished {
            // The books are closed: nothing comes after the end.
            return self.handle_damage();
        }
        self.ledger.records += 1;
        if let Some(time) = record.time() {
            self.now = time;
        }
        match record {
            Record::Process(life, process) => {
                match life {
                    Life::Exited => {
                        self.stitch.end_process(process.header.pid);
                        self.coverage.remove(&process.header.pid);
                    }
                    Life::Forked | Life::Executed | Life::Chosen => {
                        self.stitch.forget_process(process.header.pid);
                    }
                }
                self.processes.handle_life(*life, process);
            }
            Record::Opened(opened) => self.handle_opened(opened),
            Record::OpenedUnix(opened) => self.handle_opened_unix(opened),
            Record::Data(data, payload) => self.handle_data(data, payload),
            Record::Ended(ended) => self.handle_ended(ended),
            Record::Closed(closed) => self.handle_closed(closed),
            Record::Shut(shut) => self.handle_shut(shut),
            Record::Connect(connect) => self.handle_connect(connect),
            Record::Measured(measured) => self.handle_measured(measured),
            Record::Seed(seed) => self.stitch.set_seed(*seed),
            Record::Clock { offset } => self.spans.set_clock(*offset),
            Record::Tick { now } => self.handle_timeout(*now),
            Record::Fact { process, key, value } => self.processes.handle_fact(*process, *key, value),
            Record::Object(text) => match serde_json::from_str(text) {
                Ok(object) => self.handle_object(object),
                Err(_) => self.handle_damage(),
            },
            Record::Counters(counters) => self.ledger.set_counters(counters),
            Record::Vanished(vanished) => self.handle_vanished(vanished.cookie),
            Record::Before(before) => self.ledger.add_before(before.bytes),
            Record::Undecided(_) => {}
            Record::Finished { now } => self.finish(*now),
        }
        self.settle();
    }

    fn handle_object(&mut self, object: Object) {
        // The order in which spans come does not hang on when they are asked for.
        self.settle();
        self.processes.handle_object(object.clone());
        self.late.handle_object(&object, &mut self.processes);
    }

    /// Spans that have their parents go on, and may wait for what is told of their processes.
    fn settle(&mut self) {
        while let Some(fact) = self.facts.poll() {
            self.late.take_fact(fact, self.now, &mut self.processes);
        }
        while let Some(span) = self.stitch.poll_output() {
            self.late.take(span, self.now, &mut self.processes);
        }
        self.ledger.late = *self.late.counts();
    }

    /// A record that could not be read.
    pub fn handle_damage(&mut self) {
        self.ledger.damaged += 1;
    }

    /// Decides what has waited for too long.
    pub fn handle_timeout(&mut self, now: u64) {
        let due: Vec<u64> = self
            .waiting
            .iter()
            .copied()
            .filter(|cookie| {
                self.connections
                    .get(cookie)
                    .and_then(Tracked::waits_since)
                    .is_none_or(|since| now.saturating_sub(since) >= HOLE_WAIT)
            })
            .collect();
        for cookie in due {
            self.waiting.remove(&cookie);
            self.with_known(cookie, |tracked, run| tracked.give_up_waiting(run));
        }
        self.stitch.handle_timeout(now);
        self.ledger.links = *self.stitch.links();
        self.settle();
        self.late.handle_timeout(now, &mut self.processes);
        self.ledger.late = *self.late.counts();
    }

    pub fn poll_output(&mut self) -> Option<Span> {
        self.late.poll_span()
    }

    /// An address that somebody is to look up: who is there is a record. Each is asked for once.
    pub fn poll_peer(&mut self) -> Option<IpAddr> {
        self.late.poll_peer()
    }

    /// What the probes may leave out from here on. Nothing depends on whether they do.
    pub fn poll_quiet(&mut self) -> Option<Quiet> {
        self.quiet.pop_front()
    }

    /// What TCP says of connections. Who does not ask misses the oldest.
    pub fn poll_fact(&mut self) -> Option<tcp::Fact> {
        self.late.poll_fact()
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Lets all spans go that wait for others: nothing more comes.
    pub fn flush(&mut self) {
        self.stitch.finish();
        self.ledger.links = *self.stitch.links();
        self.settle();
        self.late.finish(&mut self.processes);
        self.ledger.late = *self.late.counts();
    }

    /// How the processes pass on what they are asked, all together.
    pub fn habits(&self) -> Habits {
        self.stitch.habits_of_all()
    }

    /// Exchanges that are open, or whose spans wait for their parents, or for what is told late.
    pub fn unfinished(&self) -> usize {
        self.stitch.len() + self.late.len()
    }

    /// Whether spans wait for something that time decides.
    pub fn is_waiting(&self) -> bool {
        self.stitch.is_waiting() || !self.late.is_empty()
    }

    /// After the record that says that the capture is finished: what was not over.
    pub fn open_exchanges(&self) -> &[OpenExchange] {
        &self.open
    }

    /// Whether anything was told of the process.
    pub fn has_facts(&self, process: u32) -> bool {
        self.processes.has_facts(process)
    }

    /// What was seen of each process that has not ended.
    pub fn coverage(&self) -> BTreeMap<u32, Coverage> {
        let mut all = self.coverage.clone();
        for tracked in self.connections.values() {
            let process = tracked.connection.process;
            if self.processes.ended(process).is_none() {
                let open = Coverage { open: 1, ..tracked.coverage };
                all.entry(process).or_default().merge(&open);
            }
        }
        all
    }

    pub fn resource(&mut self, process: u32) -> Arc<Resource> {
        self.processes.resource(process)
    }

    /// As [`Self::resource`]; none as long as something of it may yet be told.
    pub fn settled_resource(&mut self, process: u32) -> Option<Arc<Resource>> {
        let resource = self.processes.resource(process);
        self.late.is_settled(&resource, self.now, &self.processes).then_some(resource)
    }

    /// What connections carry that are open: how many of each, for a process or for all.
    pub fn carried(&self, process: Option<u32>) -> BTreeMap<&'static str, u64> {
        let mut carried = BTreeMap::new();
        let wanted = |tracked: &&Tracked| process.is_none_or(|process| tracked.connection.process == process);
        for tracked in self.connections.values().filter(wanted) {
            *carried.entry(tracked.carries()).or_default() += 1;
        }
        carried
    }

    /// Exchanges that are under way: called for each with its process, its end and its request.
    pub fn each_open(&self, mut tell: impl FnMut(u32, Kind, &Arc<RequestHead>)) {
        for tracked in self.connections.values() {
            tracked.each_open(&mut tell);
        }
    }

    /// What is told of exchanges from here on.
    pub fn set_shown(&mut self, shown: Shown) {
        self.limits.shown = shown;
    }

    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Bytes of memory that connections hold, about.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Bytes of memory, about, by what they are for.
    pub fn memory(&self) -> [(&'static str, usize); 3] {
        [
            ("connections", self.held),
            ("waiting spans", self.stitch.held()),
            ("processes", self.processes.held()),
        ]
    }

    /// Connections that are open, as far as was told.
    pub fn open(&self) -> impl Iterator<Item = u64> {
        self.connections.keys().copied()
    }

    pub fn is_open(&self, cookie: u64) -> bool {
        self.connections.contains_key(&cookie)
    }

    pub fn is_running(&self, process: u32) -> bool {
        self.processes.knows(process) && self.processes.ended(process).is_none()
    }

    /// Processes that run, as far as was told.
    pub fn running(&self) -> impl Iterator<Item = u32> {
        self.processes.running()
    }

    fn handle_opened(&mut self, opened: &Opened) {
        if self.late.asks() {
            self.late.ask(connection::ip(opened.family, opened.peer_address), self.now);
        }
        let begun = self.facts.take_begun(opened.cookie);
        self.with(opened.cookie, |tracked, run| {
            tracked.connection.open(opened);
            if let Some(ends) = &mut tracked.connection.ends
                && ends.role == Role::Unknown
                && let Place::Tcp { local, .. } = &ends.place
                && run.processes.listens(opened.header.pid, local.port)
            {
                ends.role = Role::Server;
            }
            tracked.begin_tcp(begun);
            tracked.hear_retransmits(opened.retransmits, run);
        });
    }

    fn handle_opened_unix(&mut self, opened: &OpenedUnix) {
        // Told again: it was forgotten by the probes, and counts from the start.
        if self.connections.get(&opened.cookie).is_some_and(|tracked| tracked.connection.has_started()) {
            self.with_known(opened.cookie, |tracked, run| tracked.close(None, run));
            self.forget(opened.cookie);
        }
        self.with(opened.cookie, |tracked, _| tracked.connection.open_unix(opened));
    }

    fn handle_data(&mut self, data: &Data, payload: &[u8]) {
        self.ledger.told += u64::from(data.length);
        self.ledger.add_omitted(data.omitted, u64::from(data.length - data.captured));
        let far = data.position.max(data.opposite) > POSITION_MAX;
        let Some(direction) = Direction::from_wire(data.direction).filter(|_| !far) else {
            self.ledger.bytes.add(Bucket::Unparsed, data.length.into());
            return self.handle_damage();
        };
        let arrival = Arrival {
            direction,
            position: data.position,
            opposite: data.opposite,
            bases: data.bases,
            time: data.header.time,
            process: data.header.pid,
            thread: data.header.thread,
            unwilling: data.message_flags & MSG_DONTWAIT != 0,
        };
        self.with(data.cookie, |tracked, run| {
            if let State::Ignored(bucket) = tracked.state {
                run.ledger.bytes.add(bucket, data.length.into());
                return;
            }
            if direction == Direction::Received
                && tracked.connection.ends.as_ref().is_some_and(|ends| ends.role == Role::Server)
            {
                run.stitch.reads(data.header.pid, data.header.thread, data.cookie);
            }
            let start = tracked.connection.start();
            let at_start = data.position <= start && data.opposite <= start;
            // The first record need not come first.
            tracked.joined = !at_start && (tracked.joined || !tracked.connection.has_started());
            let overlap = tracked.connection.insert(&arrival, payload, data.length.into());
            run.ledger.bytes.add(Bucket::Overlap, overlap);
            tracked.advance(run);
        });
    }

    fn handle_ended(&mut self, ended: &Ended) {
        let far = ended.position > POSITION_MAX;
        let Some(direction) = Direction::from_wire(ended.direction).filter(|_| !far) else {
            return self.handle_damage();
        };
        let time = ended.header.time;
        let ending = match ended.result.wrapping_neg() {
            0 => Ending::Eof,
            result if ENDS.contains(&result) => Ending::Reset,
            // The call failed, and the connection did not.
            _ => return,
        };
        self.with_known(ended.cookie, |tracked, run| {
            let connection = &mut tracked.connection;
            connection.last_time = time;
            // A failed send says that the peer is gone; what it sent before can still be read.
            connection.end(Direction::Received, ending == Ending::Reset, time);
            if direction == Direction::Received {
                let position = connection.position(direction, ended.position, ended.bases);
                connection.streams[direction.index()].reach(position, time);
                connection.streams[direction.index()].finish(ending);
            }
            tracked.advance(run);
        });
    }

    fn handle_shut(&mut self, shut: &Shut) {
        let far = shut.positions.iter().any(|position| *position > POSITION_MAX);
        let Some(side) = Direction::from_wire(shut.direction).filter(|_| !far) else {
            return self.handle_damage();
        };
        self.with_known(shut.cookie, |tracked, run| {
            tracked.connection.end(side, shut.reset != 0, shut.header.time);
            if side == Direction::Sent {
                // Whatever was to be sent was: the end follows it. What was received without a call that
                // is seen is missing.
                tracked.reach(shut.positions, shut.bases, shut.header.time);
                tracked.connection.streams[side.index()].finish(Ending::Eof);
                tracked.advance(run);
            }
        });
    }

    fn handle_connect(&mut self, connect: &Connect) {
        let resource = self.processes.resource(connect.header.pid);
        self.facts.handle_connect(connect, resource, self.spans.wall(connect.header.time));
    }

    fn handle_measured(&mut self, measured: &Measured) {
        self.with_known(measured.cookie, |tracked, run| {
            tracked.hear_retransmits(measured.transit.retransmits, run);
        });
    }

    fn handle_closed(&mut self, closed: &Closed) {
        if closed.positions.iter().any(|position| *position > POSITION_MAX) {
            return self.handle_damage();
        }
        self.with_known(closed.cookie, |tracked, run| {
            tracked.hear_retransmits(closed.transit.retransmits, run);
            tracked.close(Some(closed), run);
            tracked.hear_round_trip(&closed.transit, run);
        });
        self.forget(closed.cookie);
    }

    /// How it ended is not known, nor what became of what was under way: that lies in what was lost.
    fn handle_vanished(&mut self, cookie: u64) {
        self.with_known(cookie, |tracked, run| {
            run.ledger.vanished += 1;
            tracked.give_up_waiting(run);
            tracked.confirm_by_silence(run);
            tracked.ignore(run, Bucket::Unparsed);
        });
        self.forget(cookie);
    }

    fn finish(&mut self, now: u64) {
        self.finished = true;
        let cookies: Vec<u64> = self.connections.keys().copied().collect();
        for cookie in cookies {
            self.with_known(cookie, |tracked, run| {
                if let Some(time) = run.processes.ended(tracked.connection.process) {
                    // The kernel may take its time with the socket of a process that is gone.
                    tracked.connection.end(Direction::Sent, false, time);
                    return tracked.close(None, run);
                }
                tracked.give_up_waiting(run);
                tracked.confirm_by_silence(run);
                run.report_open(tracked, now);
                tracked.ignore(run, Bucket::Unparsed);
            });
            self.forget(cookie);
        }
        self.open.sort_by_key(|open| std::cmp::Reverse(open.age));
        self.flush();
    }

    /// As [`Self::with`], for what says nothing of a connection that is not known.
    fn with_known(&mut self, cookie: u64, work: impl FnOnce(&mut Tracked, &mut Run<'_>)) {
        if self.connections.contains_key(&cookie) {
            self.with(cookie, work);
        }
    }

    /// Works on one connection, and keeps the sums over all of them right.
    fn with(&mut self, cookie: u64, work: impl FnOnce(&mut Tracked, &mut Run<'_>)) {
        let (connections, mut run) = self.parts();
        let tracked = connections.entry(cookie).or_insert_with(|| {
            run.ledger.connections += 1;
            Tracked::new(cookie)
        });
        let before = run.ledger.bytes;
        work(tracked, &mut run);
        tracked.coverage.records += 1;
        tracked.coverage.bytes.add_difference(&run.ledger.bytes, &before);
        let mut held = tracked.cost();
        if held > CONNECTION_HELD_MAX + CONNECTION_COST {
            tracked.overflow(&mut run);
            held = tracked.cost();
        }
        let (quiet, waits) = (tracked.poll_quiet(), tracked.waits_since().is_some());
        let before = std::mem::replace(&mut tracked.held, held);
        self.held = self.held + held - before;
        if let Some(hush) = quiet {
            self.quiet.push_back(Quiet { cookie, hush });
            if self.quiet.len() > QUIET_MAX {
                self.quiet.pop_front();
            }
        }
        if waits {
            self.waiting.insert(cookie);
        }
        if self.held > self.limits.memory {
            self.evict();
        }
    }

    /// The connections, and what the work on one of them reaches besides.
    fn parts(&mut self) -> (&mut BTreeMap<u64, Tracked>, Run<'_>) {
        let run = Run {
            ledger: &mut self.ledger,
            processes: &mut self.processes,
            spans: &mut self.spans,
            stitch: &mut self.stitch,
            facts: &mut self.facts,
            events: &mut self.events,
            open: &mut self.open,
            shown: self.limits.shown,
        };
        (&mut self.connections, run)
    }

    /// The connections that were silent for longest go, enough of them to be done for a while.
    fn evict(&mut self) {
        let mut oldest: Vec<(u64, u64)> = self
            .connections
            .iter()
            .map(|(cookie, tracked)| (tracked.connection.last_time, *cookie))
            .collect();
        oldest.sort_unstable();
        for (_, cookie) in oldest {
            if self.held <= self.limits.memory / 8 * 7 {
                break;
            }
            let (connections, mut run) = self.parts();
            run.ledger.evicted += 1;
            if let Some(tracked) = connections.get_mut(&cookie) {
                tracked.ignore(&mut run, Bucket::OverLimit);
            }
            self.forget(cookie);
        }
    }

    fn forget(&mut self, cookie: u64) {
        if let Some(mut tracked) = self.connections.remove(&cookie) {
            self.held -= tracked.held;
            let process = tracked.connection.process;
            if self.processes.knows(process) && self.processes.ended(process).is_none() {
                tracked.coverage.connections = 1;
                self.coverage.entry(process).or_default().merge(&tracked.coverage);
            }
            if let Some(verdict) = tracked.take_verdict() {
                *self.ledger.verdicts.entry(verdict).or_default() += 1;
            }
        }
        self.waiting.remove(&cookie);
    }
}
