//! A connection with what is made of it, from the first byte to the last.

use tracer_common::{
    connection::{Direction, Role},
    record::Closed,
};

mod facts;

use std::sync::Arc;

use super::{Coverage, Hush, OpenExchange};
use crate::{
    connection::{
        Connection,
        stream::{After, Ending, Missing, Stream},
    },
    enrich::process::Processes,
    exchange::{Change, Exchange, Exchanges, Outcome},
    noise::Noise,
    protocol::{Class, Event, Input, Kind, Progress, RequestHead, Session, Shown, Side, What},
    span::Spans,
    stats::{self, Bucket, Ledger, Tally, Verdict},
    stitch::{Alone, Begin, End, Stitch},
    tcp::{Begun, Facts},
};

/// Bytes that one connection may hold.
pub(super) const CONNECTION_HELD_MAX: usize = 16 << 20;

/// About what a connection takes besides the bytes that it holds.
pub(super) const CONNECTION_COST: usize = 1024;

/// Content ahead that is worth a word to the kernel.
const QUIET_MIN: u64 = 64 * 1024;

/// A connection with what is made of it.
#[derive(Default)]
pub(super) struct Tracked {
    pub(super) cookie: u64,
    /// Nobody is traced at its other end.
    alone: Alone,
    pub(super) connection: Connection,
    pub(super) state: State,
    pub(super) exchanges: Exchanges,
    /// What was read while it is not sure what it is.
    pub(super) unsure: Tally,
    /// A message waits for bytes of this direction, up to this position, since this time.
    pub(super) wait: Option<(Direction, u64, u64)>,
    /// As last added to the sum.
    pub(super) held: usize,
    pub(super) coverage: Coverage,
    /// By direction, until where the kernel was told that it need not copy; and whether it was told that
    /// nothing is wanted at all.
    quiet: [u64; 2],
    quiet_frames: bool,
    hushed: bool,
    /// What it came to, once that is known.
    verdict: Option<Verdict>,
    /// What its first bytes look like, or why it was left.
    pub(super) clue: Option<&'static str>,
    /// It was open before anything was seen of it.
    pub(super) joined: bool,
    /// How it came to be, for its first request; and how many segments were sent again, as last heard.
    begun: Option<Begun>,
    retransmits: Option<u32>,
}

pub(super) enum State {
    Detecting {
        /// By direction, how many bytes were looked at in vain; and of both where a protocol was looked for
        /// that has begun before.
        seen: [usize; 2],
        joining: usize,
    },
    Speaking(Speaking),
    /// What it carries cannot be told; bytes are counted here.
    Ignored(Bucket),
}

/// Which protocol a connection speaks, and in which direction requests go.
#[derive(Clone, Copy)]
pub(super) struct Spoken {
    pub(super) protocol: &'static str,
    pub(super) requests: Direction,
}

pub(super) struct Speaking {
    pub(super) session: Box<dyn Session>,
    pub(super) spoken: Spoken,
    /// Both sides were seen to speak it.
    pub(super) confirmed: bool,
    /// Bytes of responses were given to the session.
    pub(super) answered: bool,
}

impl Default for State {
    fn default() -> Self {
        State::Detecting { seen: [0; 2], joining: 0 }
    }
}

/// What the work on a connection reaches of the pipeline.
pub(super) struct Run<'a> {
    pub(super) ledger: &'a mut Ledger,
    pub(super) processes: &'a mut Processes,
    pub(super) spans: &'a mut Spans,
    pub(super) stitch: &'a mut Stitch,
    pub(super) facts: &'a mut Facts,
    pub(super) events: &'a mut Vec<Event>,
    pub(super) open: &'a mut Vec<OpenExchange>,
    pub(super) shown: Shown,
}

impl Run<'_> {
    pub(super) fn emit(&mut self, exchange: Box<Exchange>, connection: &Connection, spoken: Spoken) {
        let number = exchange.number;
        if exchange.request.noise == Some(Noise::Export) {
            self.ledger.exports += 1;
            return;
        }
        let kind = kind(spoken.requests);
        self.ledger.exchanges += 1;
        self.ledger.partial += (exchange.cut != [false; 2]) as u64;
        self.ledger.vague += exchange.request.vague as u64;
        let resource = self.processes.resource(exchange.process);
        let ends = connection.ends.as_ref();
        let end = End {
            time: exchange.last(),
            whole: exchange.outcome == Outcome::Complete && exchange.cut == [false; 2],
            handed_over: exchange.handed_over,
        };
        let span = self.spans.make(exchange, kind, ends, resource);
        self.stitch.end(number, span, &end);
    }

    pub(super) fn report_open(&mut self, tracked: &Tracked, now: u64) {
        let State::Speaking(speaking) = &tracked.state else { return };
        if !speaking.confirmed {
            return;
        }
        for (exchange, answered) in tracked.exchanges.open() {
            if exchange.request.noise == Some(Noise::Export) {
                continue;
            }
            self.open.push(OpenExchange {
                operation: exchange.request.operation.clone(),
                target: exchange.request.target.clone(),
                kind: kind(speaking.spoken.requests),
                age: now.saturating_sub(exchange.request_start),
                status: exchange.response.as_ref().map(|response| response.status.clone()),
                answered,
                peer: tracked.connection.ends.as_ref().map(|ends| ends.peer.clone()),
                resource: self.processes.resource(exchange.process),
            });
        }
    }
}

pub(super) fn kind(requests: Direction) -> Kind {
    match requests {
        Direction::Sent => Kind::Client,
        Direction::Received => Kind::Server,
    }
}

impl Tracked {
    pub(super) fn new(cookie: u64) -> Self {
        Self { cookie, ..Self::default() }
    }

    /// What it carries, as far as that is known.
    pub(super) fn carries(&self) -> &'static str {
        match &self.state {
            State::Speaking(speaking) if speaking.confirmed => speaking.spoken.protocol,
            State::Speaking(_) | State::Detecting { .. } => "undecided",
            State::Ignored(bucket) => bucket.name(),
        }
    }

    /// Exchanges that are under way, but for those of other tracers. Also where nobody has answered yet: a server
    /// that hangs does not.
    pub(super) fn each_open(&self, tell: &mut impl FnMut(u32, Kind, &Arc<RequestHead>)) {
        let State::Speaking(speaking) = &self.state else { return };
        let kind = kind(speaking.spoken.requests);
        let open = self.exchanges.open().map(|(exchange, _)| exchange);
        for exchange in open.filter(|exchange| exchange.request.noise != Some(Noise::Export)) {
            tell(exchange.process, kind, &exchange.request);
        }
    }

    pub(super) fn cost(&self) -> usize {
        let session = match &self.state {
            State::Speaking(speaking) => speaking.session.held(),
            _ => 0,
        };
        CONNECTION_COST + self.connection.held() + self.exchanges.held() + session
    }

    /// What the kernel need not tell, if that has changed.
    pub(super) fn poll_quiet(&mut self) -> Option<Hush> {
        if let State::Ignored(bucket) = self.state {
            return (!std::mem::replace(&mut self.hushed, true)).then_some(Hush::All(bucket));
        }
        let [first, second] = Direction::BOTH;
        let until = [
            self.quiet_until(first).max(self.quiet[first.index()]),
            self.quiet_until(second).max(self.quiet[second.index()]),
        ];
        let frames = match &self.state {
            State::Speaking(speaking) => speaking.session.is_bulk(),
            _ => false,
        };
        let before = std::mem::replace(&mut self.quiet, until);
        let changed = std::mem::replace(&mut self.quiet_frames, frames) != frames || until != before;
        changed.then_some(Hush::Content { until, frames })
    }

    /// The kernel need not copy what lies before this position; 0 if there is nothing to save.
    fn quiet_until(&self, direction: Direction) -> u64 {
        match &self.state {
            State::Speaking(speaking) if self.connection.positions_are_the_kernels() => {
                let side = if direction == speaking.spoken.requests { Side::Request } else { Side::Response };
                let front = self.connection.streams[direction.index()].front();
                let ahead = speaking.session.content_ahead(side);
                if ahead >= QUIET_MIN { front.saturating_add(ahead) } else { 0 }
            }
            _ => 0,
        }
    }

    pub(super) fn waits_since(&self) -> Option<u64> {
        let message = self.wait.map(|(_, _, since)| since);
        message.into_iter().chain(self.connection.hole_since()).min()
    }

    /// Reads whatever can be read.
    pub(super) fn advance(&mut self, run: &mut Run<'_>) {
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
            Side::Request => speaking.spoken.requests,
            Side::Response => speaking.spoken.requests.other(),
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
        let other = (other.front(), other.end());
        let input = Input { position: stream.front(), bytes, after, marks, settled, other };
        speaking.answered |= side == Side::Response && !bytes.is_empty();
        let mut events = std::mem::take(run.events);
        let progress = speaking.session.read(side, &input, &mut events);
        if !events.is_empty() {
            let spoken = speaking.spoken;
            for event in events.drain(..) {
                self.handle_event(event, spoken, run);
            }
        }
        *run.events = events;
        if let State::Speaking(speaking) = &self.state
            && !speaking.confirmed
            && speaking.session.is_certain()
        {
            self.confirm(run);
        }
        match progress {
            Progress::Read { length, class } => {
                self.wait = None;
                self.take(direction, length, class, run);
                return Some(length);
            }
            Progress::NeedMore => {}
            Progress::Wait => self.wait_for(direction.other(), opposite),
            Progress::Switch(name) => {
                if let State::Speaking(speaking) = &mut self.state
                    && let Some((protocol, session)) = speaking.session.successor()
                {
                    speaking.session = session;
                    speaking.spoken.protocol = protocol;
                    return Some(0);
                }
                self.clue = Some(name);
                self.leave(Bucket::Unknown, run);
            }
            Progress::Invalid(reason) => {
                self.clue = Some(reason);
                *run.ledger.left.entry(reason).or_default() += 1;
                self.leave(Bucket::Unparsed, run);
            }
        }
        None
    }

    /// Nothing gets on before the direction was read up to the position.
    pub(super) fn wait_for(&mut self, direction: Direction, position: u64) {
        let since = match self.wait {
            Some((waits, _, since)) if waits == direction => since,
            _ => self.connection.last_time,
        };
        self.wait = Some((direction, position, since));
    }

    fn handle_event(&mut self, event: Event, spoken: Spoken, run: &mut Run<'_>) {
        if let What::Response(_) = event.what {
            self.confirm(run);
        }
        let direction = match event.side {
            Side::Request => spoken.requests,
            Side::Response => spoken.requests.other(),
        };
        let marks = self.connection.streams[direction.index()].marks();
        if let (What::Abandoned { .. }, Side::Request) = (&event.what, event.side)
            && let Some(end) = self.connection.first_end.filter(|end| end.side != direction)
            && marks.at(event.start).is_some_and(|mark| end.time <= mark.time)
        {
            // The server had ended the connection before: that is what broke it off.
            return;
        }
        let start = event.start;
        match self.exchanges.handle_event(event, marks) {
            Change::None => {}
            // Exports make no spans.
            Change::Began(exchange) if exchange.request.noise == Some(Noise::Export) => {}
            Change::Began(exchange) => {
                if let Some(begun) = self.begun.take().filter(|_| spoken.requests == Direction::Sent) {
                    begun.describe(&mut exchange.attributes);
                }
                let shared = matches!(&self.state, State::Speaking(speaking) if speaking.session.is_shared());
                let head = &exchange.request;
                exchange.number = run.stitch.begin(&Begin {
                    kind: kind(spoken.requests),
                    cookie: self.cookie,
                    process: exchange.process,
                    thread: exchange.thread,
                    // Nobody works for a request before its head was read.
                    time: match kind(spoken.requests) {
                        Kind::Server => exchange.request_end,
                        Kind::Client => exchange.request_start,
                    },
                    spot: self.connection.spot(spoken.requests, start),
                    alone: &self.alone,
                    head,
                    polled: self.connection.polled,
                    shared,
                });
            }
            Change::Ended(exchange) => run.emit(exchange, &self.connection, spoken),
        }
        run.ledger.orphans += std::mem::take(&mut self.exchanges.orphans);
    }

    /// Both sides agree on what they speak.
    fn confirm(&mut self, run: &mut Run<'_>) {
        if let State::Speaking(speaking) = &mut self.state
            && !speaking.confirmed
        {
            speaking.confirmed = true;
            run.ledger.bytes.merge(&std::mem::take(&mut self.unsure));
        }
    }

    /// Takes what the session has read, and counts it.
    fn take(&mut self, direction: Direction, length: u64, class: Class, run: &mut Run<'_>) {
        let stream = &mut self.connection.streams[direction.index()];
        let confirmed = matches!(&self.state, State::Speaking(speaking) if speaking.confirmed);
        let tally = if confirmed { &mut run.ledger.bytes } else { &mut self.unsure };
        match stream.next_gap().map(|gap| gap.missing) {
            Some(Missing::Lost) => run.ledger.holes += length,
            Some(Missing::NotCopied) if class != Class::Body => tally.add(Bucket::NotCopied, length),
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
        let spoken = speaking.spoken;
        for mut exchange in self.exchanges.finish(Outcome::Hidden, self.connection.last_time) {
            exchange.cut[Side::Response.index()] |= exchange.outcome == Outcome::Hidden;
            run.emit(exchange, &self.connection, spoken);
        }
        self.ignore(run, bucket);
    }

    /// What is held is counted, and what follows will be.
    pub(super) fn ignore(&mut self, run: &mut Run<'_>, bucket: Bucket) {
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
        self.note(bucket);
        for number in self.exchanges.forget() {
            run.stitch.forget(number);
        }
        self.wait = None;
        for stream in &mut self.connection.streams {
            let (bytes, not_copied) = stream.drain();
            run.ledger.bytes.add(bucket, bytes);
            run.ledger.bytes.add(Bucket::NotCopied, not_copied);
        }
        self.state = State::Ignored(bucket);
    }

    /// The first verdict stands.
    fn note(&mut self, bucket: Bucket) {
        if self.verdict.is_some() {
            return;
        }
        let outcome = match &self.state {
            State::Speaking(speaking) if speaking.confirmed => {
                let protocol = speaking.spoken.protocol;
                match self.clue {
                    Some(clue) => stats::Outcome::Left(protocol, bucket, clue),
                    None if bucket == Bucket::OverLimit => {
                        stats::Outcome::Left(protocol, bucket, bucket.name())
                    }
                    None => stats::Outcome::Read(protocol),
                }
            }
            State::Detecting { .. } if !self.connection.streams.iter().any(Stream::has_bytes) => {
                stats::Outcome::Undecided
            }
            _ => stats::Outcome::Unread(bucket, self.clue),
        };
        let role = self.connection.ends.as_ref().map_or(Role::Unknown, |ends| ends.role);
        self.verdict = Some(Verdict {
            side: match role {
                Role::Client => "client",
                Role::Server => "server",
                Role::Unknown => "?",
            },
            transport: match self.connection.ends {
                None => "?",
                Some(_) if self.connection.is_unix() => "unix",
                Some(_) => "tcp",
            },
            joined: self.joined,
            outcome,
        });
    }

    /// Asked when it is over.
    pub(super) fn take_verdict(&mut self) -> Option<Verdict> {
        self.verdict.take()
    }

    /// What was waited for will not come.
    pub(super) fn give_up_waiting(&mut self, run: &mut Run<'_>) {
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
    pub(super) fn overflow(&mut self, run: &mut Run<'_>) {
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
    pub(super) fn confirm_by_silence(&mut self, run: &mut Run<'_>) {
        if let State::Speaking(speaking) = &self.state
            && !speaking.answered
        {
            self.confirm(run);
        }
    }

    /// The directions went on to these positions, as far as the probes saw: 0 where nothing moved.
    pub(super) fn reach(&mut self, positions: [u64; 2], bases: [u32; 2], time: u64) {
        for direction in Direction::BOTH {
            let last = positions[direction.index()];
            if last > 0 {
                let position = self.connection.position(direction, last, bases);
                self.connection.streams[direction.index()].reach(position, time);
            }
        }
    }

    pub(super) fn close(&mut self, closed: Option<&Closed>, run: &mut Run<'_>) {
        if self.connection.is_unix() {
            // Nobody saw the end of it. That the peer was first would show in a call.
            let time = self.connection.last_time;
            self.connection.end(Direction::Sent, false, time);
            if self.connection.first_end.is_some_and(|first| first.side == Direction::Sent) {
                self.connection.streams[Direction::Sent.index()].finish(Ending::Eof);
            }
        }
        if let Some(closed) = closed {
            // Bytes can have moved last that were not told of.
            self.connection.last_time = closed.header.time;
            self.reach(closed.positions, closed.bases, closed.header.time);
        }
        self.give_up_waiting(run);
        for stream in &mut self.connection.streams {
            stream.finish(Ending::Closed);
        }
        self.advance(run);
        // What could be read only now can stand before another hole.
        self.give_up_waiting(run);
        self.confirm_by_silence(run);
        if let State::Speaking(speaking) = &self.state
            && speaking.confirmed
        {
            let spoken = speaking.spoken;
            let (outcome, time) = self.broken(spoken.requests);
            for exchange in self.exchanges.finish(outcome, time) {
                run.emit(exchange, &self.connection, spoken);
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
