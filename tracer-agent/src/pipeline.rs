//! From records to spans. A pure function of the records: [`Pipeline::handle_record`] takes one,
//! [`Pipeline::poll_output`] gives what came of it; time passes where a record says so.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use tracer_common::{
    connection::{Direction, Role},
    record::{Closed, Data, Ended, Opened, Shut},
};

use crate::{
    capture::Record,
    connection::{
        Arrival, Connection,
        stream::{After, Ending, Missing},
    },
    enrich::{Resource, process::Processes},
    exchange::{Exchange, Exchanges, Outcome},
    protocol::{self, Class, Event, Input, PROTOCOLS, Progress, Session, Side, Verdict, What},
    span::{Kind, Span, Spans},
    stats::{Bucket, Ledger, Tally},
};

/// How long a hole is waited for: records of two CPUs come out of order by less.
const HOLE_WAIT: u64 = 200_000_000;

/// Bytes that one connection may hold.
const CONNECTION_HELD_MAX: usize = 4 << 20;

/// A start that is not told from others by then is of no known protocol.
const DETECT_MAX: usize = 64 * 1024;

/// About what a connection takes besides the bytes that it holds.
const CONNECTION_COST: usize = 1024;

#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of memory for connections and what they hold, about.
    pub memory: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory: 128 << 20 }
    }
}

/// Errors of a connection that is over (errno): EPIPE, ENETUNREACH, ECONNABORTED, ECONNRESET, ETIMEDOUT,
/// ECONNREFUSED, EHOSTUNREACH.
const ENDS: [i32; 7] = [32, 101, 103, 104, 110, 111, 113];

/// No stream is as long: a record that says so is damaged.
const POSITION_MAX: u64 = 1 << 62;

/// Content ahead that is worth a word to the kernel.
const QUIET_MIN: u64 = 64 * 1024;

/// Words to the kernel that wait for somebody to take them: a replay takes none.
const QUIET_MAX: usize = 1024;

/// What the kernel need not copy: bytes of this direction that lie before the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet {
    pub cookie: u64,
    pub direction: Direction,
    pub until: u64,
}

/// An exchange that was not over when the capture ended.
#[derive(Clone, Debug)]
pub struct OpenExchange {
    pub operation: String,
    pub target: String,
    pub kind: Kind,
    /// Nanoseconds since its first byte.
    pub age: u64,
    /// If its response had begun, and whether that was over.
    pub status: Option<String>,
    pub answered: bool,
    pub peer: Option<String>,
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
    output: VecDeque<Span>,
    quiet: VecDeque<Quiet>,
    open: Vec<OpenExchange>,
    finished: bool,
}

/// A connection with what is made of it.
#[derive(Default)]
struct Tracked {
    connection: Connection,
    state: State,
    exchanges: Exchanges,
    /// What was read while it is not sure what it is.
    unsure: Tally,
    /// A message waits for bytes of this direction, up to this position, since this time.
    wait: Option<(Direction, u64, u64)>,
    /// As last added to the sum.
    held: usize,
    /// By direction, until where the kernel was told that it need not copy.
    quiet: [u64; 2],
}

enum State {
    Detecting {
        /// By direction, how many bytes were looked at in vain.
        seen: [usize; 2],
    },
    Speaking(Speaking),
    /// What it carries cannot be told; bytes are counted here.
    Ignored(Bucket),
}

struct Speaking {
    session: Box<dyn Session>,
    requests: Direction,
    /// Both sides were seen to speak it.
    confirmed: bool,
    /// Bytes of responses were given to the session.
    answered: bool,
}

impl Default for State {
    fn default() -> Self {
        State::Detecting { seen: [0; 2] }
    }
}

impl Pipeline {
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    pub fn handle_record(&mut self, record: &Record<'_>) {
        self.ledger.records += 1;
        match record {
            Record::Process(life, process) => self.processes.handle_life(*life, process),
            Record::Opened(opened) => self.handle_opened(opened),
            Record::Data(data, payload) => self.handle_data(data, payload),
            Record::Ended(ended) => self.handle_ended(ended),
            Record::Closed(closed) => self.handle_closed(closed),
            Record::Shut(shut) => self.handle_shut(shut),
            Record::Seed(seed) => self.spans.set_seed(*seed),
            Record::Clock { offset } => self.spans.set_clock(*offset),
            Record::Tick { now } => self.handle_timeout(*now),
            Record::Fact { process, key, value } => self.processes.handle_fact(*process, *key, value),
            Record::Counters(counters) => self.ledger.set_counters(counters),
            Record::Finished { now } => self.finish(*now),
        }
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
            self.with(cookie, |tracked, run| tracked.give_up_waiting(run));
        }
    }

    pub fn poll_output(&mut self) -> Option<Span> {
        self.output.pop_front()
    }

    /// What the probes may leave out from here on. Nothing depends on whether they do.
    pub fn poll_quiet(&mut self) -> Option<Quiet> {
        self.quiet.pop_front()
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// After the record that says that the capture is finished: what was not over.
    pub fn open_exchanges(&self) -> &[OpenExchange] {
        &self.open
    }

    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Bytes of memory that are held, about.
    pub fn held(&self) -> usize {
        self.held
    }

    fn handle_opened(&mut self, opened: &Opened) {
        self.with(opened.cookie, |tracked, run| {
            tracked.connection.open(opened);
            if let Some(ends) = &mut tracked.connection.ends
                && ends.role == Role::Unknown
                && run.processes.listens(opened.header.pid, ends.local.port())
            {
                ends.role = Role::Server;
            }
        });
    }

    fn handle_data(&mut self, data: &Data, payload: &[u8]) {
        self.ledger.told += u64::from(data.length);
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
        };
        self.with(data.cookie, |tracked, run| {
            if let State::Ignored(bucket) = tracked.state {
                run.ledger.bytes.add(bucket, data.length.into());
                return;
            }
            let inserted = tracked.connection.insert(&arrival, payload, data.length.into());
            run.ledger.bytes.add(Bucket::Overlap, inserted.overlap);
            tracked.advance(run);
        });
    }

    fn handle_ended(&mut self, ended: &Ended) {
        let far = ended.position > POSITION_MAX;
        let Some(direction) = Direction::from_wire(ended.direction).filter(|_| !far) else {
            return self.handle_damage();
        };
        if !self.connections.contains_key(&ended.cookie) {
            return;
        }
        let time = ended.header.time;
        let ending = match -ended.result {
            0 => Ending::Eof,
            result if ENDS.contains(&result) => Ending::Reset,
            // The call failed, and the connection did not.
            _ => return,
        };
        self.with(ended.cookie, |tracked, run| {
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
        let far = shut.sent > POSITION_MAX;
        let Some(side) = Direction::from_wire(shut.direction).filter(|_| !far) else {
            return self.handle_damage();
        };
        if !self.connections.contains_key(&shut.cookie) {
            return;
        }
        self.with(shut.cookie, |tracked, run| {
            tracked.connection.end(side, shut.reset != 0, shut.header.time);
            if side == Direction::Sent {
                // Whatever was to be sent was: the end follows it.
                let connection = &mut tracked.connection;
                if shut.sent > 0 {
                    let position = connection.position(side, shut.sent, [shut.base; 2]);
                    connection.streams[side.index()].reach(position, shut.header.time);
                }
                connection.streams[side.index()].finish(Ending::Eof);
                tracked.advance(run);
            }
        });
    }

    fn handle_closed(&mut self, closed: &Closed) {
        if closed.positions.iter().any(|position| *position > POSITION_MAX) {
            return self.handle_damage();
        }
        if self.connections.contains_key(&closed.cookie) {
            self.remove(closed.cookie, Some(closed));
        }
    }

    fn finish(&mut self, now: u64) {
        self.finished = true;
        let cookies: Vec<u64> = self.connections.keys().copied().collect();
        for cookie in cookies {
            self.with(cookie, |tracked, run| {
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
            self.connections.remove(&cookie);
        }
        self.open.sort_by_key(|open| std::cmp::Reverse(open.age));
        self.waiting.clear();
        self.held = 0;
    }

    /// Works on one connection, and keeps the sums over all of them right.
    fn with(&mut self, cookie: u64, work: impl FnOnce(&mut Tracked, &mut Run<'_>)) {
        let ledger = &mut self.ledger;
        let tracked = self.connections.entry(cookie).or_insert_with(|| {
            ledger.connections += 1;
            Tracked::default()
        });
        let mut run = Run {
            ledger: &mut self.ledger,
            processes: &mut self.processes,
            spans: &mut self.spans,
            output: &mut self.output,
            open: &mut self.open,
        };
        work(tracked, &mut run);
        for direction in Direction::BOTH {
            let until = tracked.quiet_until(direction);
            let told = &mut tracked.quiet[direction.index()];
            if until > *told {
                *told = until;
                self.quiet.push_back(Quiet { cookie, direction, until });
            }
        }
        if self.quiet.len() > QUIET_MAX {
            self.quiet.pop_front();
        }
        if tracked.waits_since().is_some() {
            self.waiting.insert(cookie);
        }
        let held = tracked.cost();
        self.held = self.held + held - tracked.held;
        tracked.held = held;
        if held > CONNECTION_HELD_MAX + CONNECTION_COST {
            tracked.overflow(&mut run);
            let held = tracked.cost();
            self.held = self.held + held - tracked.held;
            tracked.held = held;
        }
        if self.held > self.limits.memory {
            self.evict();
        }
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
            self.ledger.evicted += 1;
            if let Some(tracked) = self.connections.get_mut(&cookie) {
                let mut run = Run {
                    ledger: &mut self.ledger,
                    processes: &mut self.processes,
                    spans: &mut self.spans,
                    output: &mut self.output,
                    open: &mut self.open,
                };
                tracked.ignore(&mut run, Bucket::OverLimit);
            }
            self.forget(cookie);
        }
    }

    /// The connection is over.
    fn remove(&mut self, cookie: u64, closed: Option<&Closed>) {
        self.with(cookie, |tracked, run| tracked.close(closed, run));
        self.forget(cookie);
    }

    fn forget(&mut self, cookie: u64) {
        if let Some(tracked) = self.connections.remove(&cookie) {
            self.held -= tracked.held;
        }
        self.waiting.remove(&cookie);
    }
}

/// What the work on a connection reaches of the pipeline.
struct Run<'a> {
    ledger: &'a mut Ledger,
    processes: &'a mut Processes,
    spans: &'a mut Spans,
    output: &'a mut VecDeque<Span>,
    open: &'a mut Vec<OpenExchange>,
}

impl Run<'_> {
    fn emit(&mut self, exchange: Exchange, connection: &Connection, requests: Direction) {
        let kind = kind(requests);
        self.ledger.exchanges += 1;
        self.ledger.partial += (exchange.cut != [false; 2]) as u64;
        let resource = self.processes.resource(exchange.process);
        self.output.push_back(self.spans.make(exchange, kind, connection.ends.as_ref(), resource));
    }

    fn report_open(&mut self, tracked: &Tracked, now: u64) {
        let State::Speaking(speaking) = &tracked.state else { return };
        if !speaking.confirmed {
            return;
        }
        for (exchange, answered) in tracked.exchanges.open() {
            self.open.push(OpenExchange {
                operation: exchange.request.operation.clone(),
                target: exchange.request.target.clone(),
                kind: kind(speaking.requests),
                age: now.saturating_sub(exchange.request_start),
                status: exchange.response.as_ref().map(|response| response.status.clone()),
                answered,
                peer: tracked.connection.ends.as_ref().map(|ends| ends.peer.to_string()),
                resource: self.processes.resource(exchange.process),
            });
        }
    }
}

fn kind(requests: Direction) -> Kind {
    match requests {
        Direction::Sent => Kind::Client,
        Direction::Received => Kind::Server,
    }
}

impl Tracked {
    fn cost(&self) -> usize {
        let session = match &self.state {
            State::Speaking(speaking) => speaking.session.held(),
            _ => 0,
        };
        CONNECTION_COST + self.connection.held() + self.exchanges.held() + session
    }

    /// The kernel need not copy what lies before this position; 0 if there is nothing to save.
    fn quiet_until(&self, direction: Direction) -> u64 {
        match &self.state {
            State::Ignored(_) => u64::MAX,
            State::Speaking(speaking) if self.connection.positions_are_the_kernels() => {
                let side = if direction == speaking.requests { Side::Request } else { Side::Response };
                let front = self.connection.streams[direction.index()].front();
                let ahead = speaking.session.content_ahead(side);
                if ahead >= QUIET_MIN { front.saturating_add(ahead) } else { 0 }
            }
            _ => 0,
        }
    }

    fn waits_since(&self) -> Option<u64> {
        let message = self.wait.map(|(_, _, since)| since);
        message.into_iter().chain(self.connection.hole_since()).min()
    }

    /// Reads whatever can be read.
    fn advance(&mut self, run: &mut Run<'_>) {
        loop {
            let went_on = match self.state {
                State::Detecting { .. } => self.detect(run),
                State::Speaking(_) => self.read(run),
                State::Ignored(_) => false,
            };
            if !went_on {
                return;
            }
        }
    }

    /// Looks for the start of a protocol. Returns whether there is more to do.
    fn detect(&mut self, run: &mut Run<'_>) -> bool {
        let known = self.connection.ends.as_ref().and_then(|ends| ends.request_direction());
        let candidates = known.as_slice();
        let candidates = if candidates.is_empty() { &Direction::BOTH[..] } else { candidates };
        let mut went_on = false;
        for requests in candidates {
            match self.detect_in(*requests, run) {
                Detected::Session(session) => {
                    let speaking =
                        Speaking { session, requests: *requests, confirmed: false, answered: false };
                    self.state = State::Speaking(speaking);
                    return true;
                }
                Detected::Skip(length) => {
                    self.skip(*requests, length, run);
                    went_on = true;
                }
                Detected::Unknown(bucket) if known.is_some() => {
                    self.ignore(run, bucket);
                    return false;
                }
                Detected::Unknown(bucket) => {
                    // The other direction may be the one that asks.
                    let other = self.connection.streams[requests.other().index()].readable().0;
                    if !other.is_empty() && answers(other) != Verdict::Unsure {
                        let asks = PROTOCOLS.iter().any(|p| p.detect(Side::Request, other) != Verdict::No);
                        if !asks {
                            self.ignore(run, bucket);
                            return false;
                        }
                    }
                }
                Detected::Nothing => {}
            }
        }
        went_on
    }

    fn detect_in(&mut self, requests: Direction, run: &mut Run<'_>) -> Detected {
        let State::Detecting { seen } = &mut self.state else { return Detected::Nothing };
        let [stream, answer] =
            [requests, requests.other()].map(|direction| &self.connection.streams[direction.index()]);
        let (bytes, after) = stream.readable();
        let fresh = [stream.front() == 0, answer.front() == 0];
        if bytes.is_empty() {
            if let After::Gap(gap) = after {
                return Detected::Skip(gap.length);
            }
            let (bytes, after) = answer.readable();
            return match (bytes.is_empty(), after) {
                // Answers to what was asked before are none of ours.
                (true, After::Gap(gap)) => {
                    let length = gap.length;
                    self.skip(requests.other(), length, run);
                    Detected::Nothing
                }
                (true, _) => Detected::Nothing,
                (false, _) if fresh == [true; 2] && answers(bytes) == Verdict::No => {
                    Detected::Unknown(unknown(bytes))
                }
                (false, _) => {
                    let at = answer.front();
                    let asked = if stream.started() { stream.end() } else { 0 };
                    let Some(mark) = answer.marks().at(at).copied() else { return Detected::Nothing };
                    if mark.opposite > asked {
                        // What it answers did move: it is to come, or lost.
                        self.wait_for(requests, mark.opposite);
                        return Detected::Nothing;
                    }
                    if fresh == [true; 2] {
                        return Detected::Nothing;
                    }
                    // What it answers was asked before this was seen.
                    run.ledger.orphans += (answers(bytes) == Verdict::Yes) as u64;
                    let length = (mark.end - at).min(bytes.len() as u64);
                    self.skip(requests.other(), length, run);
                    self.detect_in(requests, run)
                }
            };
        }
        // A long start that comes in small pieces is looked at when it has doubled.
        let seen = &mut seen[requests.index()];
        if after == After::More && *seen > 256 && bytes.len() < *seen * 2 && answer.readable().0.is_empty() {
            return Detected::Nothing;
        }
        *seen = bytes.len();
        let at_start = stream.marks().starts_at(stream.front());
        let mut unsure = false;
        for protocol in PROTOCOLS.iter().filter(|_| at_start) {
            match protocol.detect(Side::Request, bytes) {
                Verdict::Yes => return Detected::Session(protocol.session(fresh)),
                Verdict::Unsure => unsure = true,
                Verdict::No => {}
            }
        }
        if unsure && after == After::More && bytes.len() <= DETECT_MAX {
            return Detected::Nothing;
        }
        if unsure && bytes.len() <= DETECT_MAX {
            // A gap hides how it goes on.
            return Detected::Skip(bytes.len() as u64);
        }
        if fresh[0] {
            return Detected::Unknown(unknown(bytes));
        }
        *seen = 0;
        let record = stream
            .marks()
            .next_start(stream.front())
            .map_or(bytes.len() as u64, |next| next - stream.front());
        Detected::Skip(record.min(bytes.len() as u64).max(1))
    }

    /// Bytes, or those of a gap, that no protocol was found in.
    fn skip(&mut self, direction: Direction, length: u64, run: &mut Run<'_>) {
        let stream = &mut self.connection.streams[direction.index()];
        let (bytes, after) = stream.readable();
        match (bytes.is_empty(), after) {
            (false, _) => run.ledger.bytes.add(Bucket::Unknown, length),
            (true, After::Gap(gap)) if gap.missing == Missing::NotCopied => {
                run.ledger.bytes.add(Bucket::NotCopied, length);
            }
            _ => run.ledger.holes += length,
        }
        stream.advance(length);
    }

    /// Lets the session read both sides. Returns whether it got on.
    fn read(&mut self, run: &mut Run<'_>) -> bool {
        let mut went_on = false;
        for side in Side::BOTH {
            let mut still = 0;
            while still < 4 {
                match self.read_step(side, run) {
                    Some(0) => still += 1,
                    Some(_) => (went_on, still) = (true, 0),
                    None => break,
                }
            }
        }
        went_on && matches!(self.state, State::Speaking(_))
    }

    /// One step of one side. Returns how much was taken; None if it needs more.
    fn read_step(&mut self, side: Side, run: &mut Run<'_>) -> Option<u64> {
        let State::Speaking(speaking) = &mut self.state else { return None };
        let direction = match side {
            Side::Request => speaking.requests,
            Side::Response => speaking.requests.other(),
        };
        let stream = &self.connection.streams[direction.index()];
        let other = &self.connection.streams[direction.other().index()];
        let (bytes, after) = stream.readable();
        if bytes.is_empty() && after == After::More {
            return None;
        }
        let marks = stream.marks();
        let opposite = marks.at(stream.front()).map_or(0, |mark| mark.opposite);
        let settled = other.end() >= opposite || other.ending() == Some(Ending::Closed);
        let input = Input { position: stream.front(), bytes, after, marks, settled };
        speaking.answered |= side == Side::Response && !bytes.is_empty();
        let mut events = Vec::new();
        let progress = speaking.session.read(side, &input, &mut events);
        let requests = speaking.requests;
        for event in events {
            self.handle_event(event, requests, run);
        }
        match progress {
            Progress::Read { length, class } => {
                self.wait = None;
                self.take(direction, length, class, run);
                return Some(length);
            }
            Progress::NeedMore => {}
            Progress::Wait => self.wait_for(direction.other(), opposite),
            Progress::Switch(_) => self.leave(Bucket::Unknown, run),
            Progress::Invalid(_) => self.leave(Bucket::Unparsed, run),
        }
        None
    }

    /// Nothing gets on before the direction was read up to the position.
    fn wait_for(&mut self, direction: Direction, position: u64) {
        let since = match self.wait {
            Some((waits, _, since)) if waits == direction => since,
            _ => self.connection.last_time,
        };
        self.wait = Some((direction, position, since));
    }

    fn handle_event(&mut self, event: Event, requests: Direction, run: &mut Run<'_>) {
        if let What::Response(_) = event.what
            && let State::Speaking(speaking) = &mut self.state
            && !speaking.confirmed
        {
            speaking.confirmed = true;
            run.ledger.bytes.merge(&std::mem::take(&mut self.unsure));
        }
        let direction = match event.side {
            Side::Request => requests,
            Side::Response => requests.other(),
        };
        let marks = self.connection.streams[direction.index()].marks();
        if let Some(exchange) = self.exchanges.handle_event(event, marks) {
            run.emit(exchange, &self.connection, requests);
        }
        run.ledger.orphans += std::mem::take(&mut self.exchanges.orphans);
    }

    /// Takes what the session has read, and counts it.
    fn take(&mut self, direction: Direction, length: u64, class: Class, run: &mut Run<'_>) {
        let stream = &mut self.connection.streams[direction.index()];
        let (bytes, after) = stream.readable();
        let confirmed = matches!(&self.state, State::Speaking(speaking) if speaking.confirmed);
        let tally = if confirmed { &mut run.ledger.bytes } else { &mut self.unsure };
        match (bytes.is_empty(), after) {
            (true, After::Gap(gap)) => match gap.missing {
                Missing::Lost => run.ledger.holes += length,
                Missing::NotCopied if class == Class::Body => tally.add(Bucket::Body, length),
                Missing::NotCopied => tally.add(Bucket::NotCopied, length),
            },
            _ => tally.add(class.into(), length),
        }
        stream.advance(length);
    }

    /// The session cannot go on. What it had said stands only if both sides had agreed.
    fn leave(&mut self, bucket: Bucket, run: &mut Run<'_>) {
        let State::Speaking(speaking) = &self.state else { return };
        if !speaking.confirmed {
            return self.ignore(run, Bucket::Unknown);
        }
        let requests = speaking.requests;
        for mut exchange in self.exchanges.finish(Outcome::Hidden, self.connection.last_time) {
            exchange.cut[Side::Response.index()] |= exchange.outcome == Outcome::Hidden;
            run.emit(exchange, &self.connection, requests);
        }
        self.ignore(run, bucket);
    }

    /// What is held is counted, and what follows will be.
    fn ignore(&mut self, run: &mut Run<'_>, bucket: Bucket) {
        let bucket = match &self.state {
            State::Speaking(speaking) if !speaking.confirmed => {
                // It was taken for something that it is not.
                let mistaken = std::mem::take(&mut self.unsure);
                let not_copied = mistaken.get(Bucket::NotCopied);
                run.ledger.bytes.add(Bucket::NotCopied, not_copied);
                run.ledger.bytes.add(Bucket::Unknown, mistaken.sum() - not_copied);
                if bucket == Bucket::OverLimit { bucket } else { Bucket::Unknown }
            }
            State::Detecting { .. } if bucket == Bucket::Unparsed => Bucket::Unknown,
            _ => bucket,
        };
        self.exchanges.forget();
        self.wait = None;
        for stream in &mut self.connection.streams {
            let (bytes, not_copied) = stream.drain();
            run.ledger.bytes.add(bucket, bytes);
            run.ledger.bytes.add(Bucket::NotCopied, not_copied);
        }
        self.state = State::Ignored(bucket);
    }

    /// What was waited for will not come.
    fn give_up_waiting(&mut self, run: &mut Run<'_>) {
        loop {
            let mut gave_up = false;
            let time = self.connection.last_time;
            if let Some((direction, position, _)) = self.wait.take() {
                gave_up |= self.connection.streams[direction.index()].reach(position, time);
            }
            for stream in &mut self.connection.streams {
                gave_up |= stream.give_up_hole(time);
            }
            self.advance(run);
            if !gave_up {
                return;
            }
        }
    }

    /// Too much is held: first what is waited for goes, then the connection.
    fn overflow(&mut self, run: &mut Run<'_>) {
        self.give_up_waiting(run);
        if self.cost() > CONNECTION_HELD_MAX + CONNECTION_COST {
            let unanswered = !self.exchanges.is_empty();
            self.leave(Bucket::OverLimit, run);
            self.ignore(run, Bucket::OverLimit);
            // What comes later may be told again, where no answers are due that nobody waits for.
            if !unanswered {
                self.state = State::default();
            }
        }
    }

    /// A whole request without any answer is an exchange too, if nothing speaks against it.
    fn confirm_by_silence(&mut self, run: &mut Run<'_>) {
        if let State::Speaking(speaking) = &mut self.state
            && !speaking.answered
        {
            speaking.confirmed = true;
            run.ledger.bytes.merge(&std::mem::take(&mut self.unsure));
        }
    }

    fn close(&mut self, closed: Option<&Closed>, run: &mut Run<'_>) {
        if let Some(closed) = closed {
            // Bytes can have moved last that were not told of.
            let (connection, time) = (&mut self.connection, closed.header.time);
            connection.last_time = time;
            for direction in Direction::BOTH {
                let last = closed.positions[direction.index()];
                // Nothing moved that way, as far as the probes saw.
                if last > 0 {
                    let position = connection.position(direction, last, closed.bases);
                    connection.streams[direction.index()].reach(position, time);
                }
            }
        }
        self.give_up_waiting(run);
        for stream in &mut self.connection.streams {
            stream.finish(Ending::Closed);
        }
        self.advance(run);
        self.confirm_by_silence(run);
        if let State::Speaking(speaking) = &self.state
            && speaking.confirmed
        {
            let requests = speaking.requests;
            let (outcome, time) = self.broken(requests);
            for exchange in self.exchanges.finish(outcome, time) {
                run.emit(exchange, &self.connection, requests);
            }
        }
        self.ignore(run, Bucket::Unparsed);
    }

    /// How exchanges broke off that were not over when the connection was, by who ended it first.
    fn broken(&self, requests: Direction) -> (Outcome, u64) {
        match self.connection.first_end {
            Some(end) if end.side == requests => (Outcome::Aborted, end.time),
            Some(end) if end.reset => (Outcome::Reset, end.time),
            Some(end) => (Outcome::Closed, end.time),
            // Closed here, and the kernel told of no end before.
            None if requests == Direction::Sent => (Outcome::Aborted, self.connection.last_time),
            None => (Outcome::Closed, self.connection.last_time),
        }
    }
}

enum Detected {
    Session(Box<dyn Session>),
    /// So much from the front holds no start.
    Skip(u64),
    Unknown(Bucket),
    Nothing,
}

/// Whether a response of any protocol starts here.
fn answers(bytes: &[u8]) -> Verdict {
    let mut all = Verdict::No;
    for protocol in PROTOCOLS {
        match protocol.detect(Side::Response, bytes) {
            Verdict::Yes => return Verdict::Yes,
            Verdict::Unsure => all = Verdict::Unsure,
            Verdict::No => {}
        }
    }
    all
}

fn unknown(bytes: &[u8]) -> Bucket {
    if protocol::is_encrypted(bytes) { Bucket::Encrypted } else { Bucket::Unknown }
}
