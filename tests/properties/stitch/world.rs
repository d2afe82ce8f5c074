//! The world: its services do what a plan says, all that is true of each request is known, and the records
//! of it come in some order, or not at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use tracer_agent::capture::Record;
use tracer_common::{
    connection::{AF_INET, Direction, Role},
    record::{Closed, Data, Ended, Header, Opened, Shut},
};

/// include/linux/socket.h: so calls on a non-blocking socket look.
const MSG_DONTWAIT: u32 = 0x40;

pub(super) const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// How a process goes about its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Design {
    /// One thread reads a request, makes its calls and answers; of its connection alone or of a pool.
    Threads { dedicated: bool },
    /// One thread for all, which waits at no socket.
    Loop,
    /// One thread reads, others work.
    Pool,
    /// Any thread that is free reads, and any that is free works.
    Shared,
}

/// What a process says in its calls of the trace that they belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trace {
    Nothing,
    /// The very words that it was told.
    Same,
    /// A span of its own for each request that it serves, or for each call.
    Request,
    Call,
}

/// The same, for ids that only tell requests apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Id {
    Nothing,
    Unique,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Passes {
    pub(super) trace: Trace,
    pub(super) b3: bool,
    pub(super) id: Id,
}

#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) design: Design,
    pub(super) traced: bool,
    pub(super) passes: Passes,
    /// Its connections to others stay open.
    pub(super) keeps: bool,
}

/// Why a request is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The client outside wants it.
    Client,
    /// A timer.
    Cron,
    /// Another request: it waits for the answer before it goes on, or at its end, or has another thread wait.
    Call,
    Parallel,
    Helper,
    /// The same, but it was answered before.
    Late,
}

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) why: Why,
    /// Of the requests before it, or of the services if there is none.
    pub(super) of: u8,
    pub(super) to: u8,
    /// It is read and answered in two pieces.
    pub(super) split: bool,
    /// It says what the call before it said.
    pub(super) again: bool,
}

#[derive(Clone)]
pub(super) struct Plan {
    /// The last is the client.
    pub(super) processes: Vec<Process>,
    pub(super) requests: Vec<Request>,
    pub(super) picks: Vec<u16>,
    /// Nanoseconds between two events, at most.
    pub(super) pace: u64,
    pub(super) scope: Scope,
}

/// What can happen besides.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scope {
    /// A request comes back to a process that has worked for it.
    pub(super) returns: bool,
    /// There is no late call.
    pub(super) timely: bool,
}

/// How the records come.
#[derive(Clone, Debug, Default)]
pub(super) struct Delivery {
    /// By how many places they are late, lost ones, and where ticks are; each in turn.
    pub(super) delays: Vec<usize>,
    pub(super) lost: Vec<bool>,
    pub(super) ticks: Vec<bool>,
}

/// A trace and a span.
pub(super) type Context = (u128, u64);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) context: Option<Context>,
    b3: bool,
    pub(super) id: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Planned,
    Sent,
    HalfRead,
    Read,
    HalfAnswered,
    Answered,
    Over,
}

/// A request with all that is true of it.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) path: String,
    pub(super) why: Why,
    pub(super) parent: Option<usize>,
    /// The request that it all began with.
    pub(super) root: usize,
    pub(super) caller: usize,
    pub(super) callee: usize,
    split: bool,
    again: bool,
    calls: Vec<usize>,
    late: Vec<usize>,
    stage: Stage,
    pub(super) head: Head,
    connection: usize,
    /// Who calls, who reads, and who answers.
    pub(super) calling: u32,
    pub(super) reading: u32,
    pub(super) working: Option<u32>,
    /// When the first byte of it moved at each end, and the last byte of the answer at the server's; and the
    /// event with which its head was known at each end.
    pub(super) called: u64,
    pub(super) read: u64,
    pub(super) answered: u64,
    pub(super) events: [usize; 2],
    /// What its caller, and what its server says that was told nothing, made when it is needed.
    own: [Option<Context>; 2],
    own_id: [Option<String>; 2],
}

struct Connection {
    ends: [usize; 2],
    idle: bool,
    thread: Option<u32>,
    /// Of the requests' direction, and of the other.
    bases: [u32; 2],
    /// By end and by direction as that end has it.
    positions: [[u64; 2]; 2],
    opened: [bool; 2],
}

#[derive(Clone, Debug)]
enum Wire {
    Opened(Opened),
    Data(Data, Vec<u8>),
    Ended(Ended),
    Shut(Shut),
    Closed(Closed),
}

#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) time: u64,
    thread: u32,
    cookie: u64,
    wire: Wire,
}

#[derive(Clone, Copy)]
enum Act {
    Call(usize),
    Read(usize),
    Work(usize),
    Collect(usize),
}

pub(super) struct World<'a> {
    pub(super) plan: &'a Plan,
    pub(super) nodes: Vec<Node>,
    connections: Vec<Connection>,
    /// Threads that can take a request, by process, and those that have one.
    threads: Vec<Vec<u32>>,
    busy: BTreeSet<u32>,
    pub(super) time: u64,
    event: usize,
    picked: usize,
    made: u64,
    pub(super) records: Vec<Told>,
}

/// What happens, in words.
impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, process) in self.processes.iter().enumerate() {
            writeln!(f, "{} {process:?}", pid(number))?;
        }
        let world = World::of(self);
        for node in &world.nodes {
            writeln!(
                f,
                "{} {:?} from {} to {}: {:x?}",
                node.path,
                node.why,
                pid(node.caller),
                pid(node.callee),
                node.head
            )?;
        }
        for told in &world.records {
            if let Wire::Data(data, bytes) = &told.wire {
                let way = if data.direction == Direction::Sent as u8 { "sent" } else { "received" };
                let text = String::from_utf8_lossy(bytes);
                let line = text.lines().next().unwrap_or_default();
                writeln!(f, "{} thread {} on {} {way} {line}", told.time, told.thread, told.cookie)?;
            }
        }
        Ok(())
    }
}

impl Told {
    pub(super) fn record(&self) -> Record<'_> {
        match &self.wire {
            Wire::Opened(opened) => Record::Opened(*opened),
            Wire::Data(data, bytes) => Record::Data(*data, bytes),
            Wire::Ended(ended) => Record::Ended(*ended),
            Wire::Shut(shut) => Record::Shut(*shut),
            Wire::Closed(closed) => Record::Closed(*closed),
        }
    }
}

impl Node {
    fn of(world: &[Node], plan: &Plan, request: &Request) -> Self {
        let services = plan.processes.len() - 1;
        let number = world.len();
        let asked = usize::from(request.of) % number.max(1);
        let works = |process: &usize| {
            let mut all = world.iter().filter(|node| node.root == world[asked].root);
            all.any(|node| node.callee == *process || node.caller == *process)
        };
        let is_call = !world.is_empty() && !matches!(request.why, Why::Client | Why::Cron);
        let mut callees = (0..services).map(|place| (usize::from(request.to) + place) % services);
        let callee = callees.find(|process| plan.scope.returns || !is_call || !works(process));
        let why = match request.why {
            Why::Cron => Why::Cron,
            Why::Late if is_call && callee.is_some() && plan.scope.timely => Why::Call,
            why if is_call && callee.is_some() => why,
            _ => Why::Client,
        };
        let callee = callee.unwrap_or(0);
        let (parent, caller, path) = match why {
            Why::Client => (None, services, format!("/r{number}")),
            Why::Cron => (None, usize::from(request.of) % services, format!("/cron/{number}")),
            _ => {
                let of = &world[asked];
                let path = match why {
                    Why::Late => format!("{}/late{}", of.path, of.late.len()),
                    _ => format!("{}/{}", of.path, of.calls.len()),
                };
                (Some(asked), of.callee, path)
            }
        };
        Self {
            path,
            why,
            parent,
            root: parent.map_or(number, |parent| world[parent].root),
            caller,
            callee,
            split: request.split,
            again: request.again,
            calls: Vec::new(),
            late: Vec::new(),
            stage: Stage::Planned,
            head: Head::default(),
            connection: 0,
            calling: 0,
            reading: 0,
            working: None,
            called: 0,
            read: 0,
            answered: 0,
            events: [0; 2],
            own: [None; 2],
            own_id: [None, None],
        }
    }

    fn request(&self) -> Vec<u8> {
        let mut head = format!("GET {} HTTP/1.1\r\nHost: shop\r\n", self.path);
        if let Some((trace, span)) = self.head.context {
            head += &if self.head.b3 {
                format!("b3: {trace:032x}-{span:016x}-1\r\n")
            } else {
                format!("traceparent: 00-{trace:032x}-{span:016x}-01\r\n")
            };
        }
        if let Some(id) = &self.head.id {
            head += &format!("X-Request-Id: {id}\r\n");
        }
        (head + "\r\n").into_bytes()
    }
}

impl<'a> World<'a> {
    /// Lets all that is planned happen.
    pub(super) fn of(plan: &'a Plan) -> Self {
        let mut nodes: Vec<Node> = Vec::new();
        for request in &plan.requests {
            let node = Node::of(&nodes, plan, request);
            let number = nodes.len();
            if let Some(parent) = node.parent {
                let of = &mut nodes[parent];
                if node.why == Why::Late { of.late.push(number) } else { of.calls.push(number) }
            }
            nodes.push(node);
        }
        let mut world = Self {
            plan,
            nodes,
            connections: Vec::new(),
            threads: vec![Vec::new(); plan.processes.len()],
            busy: BTreeSet::new(),
            time: 1_000_000,
            event: 0,
            picked: 0,
            made: 0,
            records: Vec::new(),
        };
        loop {
            let acts = world.acts();
            if acts.is_empty() {
                break;
            }
            let act = acts[world.pick(acts.len())];
            world.act(act);
        }
        assert!(world.nodes.iter().all(|node| node.stage == Stage::Over), "the world stands still");
        for connection in 0..world.connections.len() {
            world.close(connection);
        }
        world
    }

    fn pick(&mut self, of: usize) -> usize {
        self.picked += 1;
        usize::from(self.plan.picks[self.picked % self.plan.picks.len()]) % of
    }

    /// What can happen next.
    fn acts(&self) -> Vec<Act> {
        let act = |number: usize| {
            let node = &self.nodes[number];
            let first = matches!(node.why, Why::Client | Why::Cron);
            let own = match node.stage {
                Stage::Planned => first.then_some(Act::Call(number)),
                Stage::Sent | Stage::HalfRead => Some(Act::Read(number)),
                Stage::Read | Stage::HalfAnswered => self.can_work(number).then_some(Act::Work(number)),
                Stage::Answered => Some(Act::Collect(number)),
                Stage::Over => None,
            };
            let after = node.stage >= Stage::Answered && self.can_work(number);
            [own, after.then_some(Act::Work(number))].into_iter().flatten()
        };
        (0..self.nodes.len()).flat_map(act).collect()
    }

    /// Whether a request has a next step, and is not waiting.
    fn can_work(&self, number: usize) -> bool {
        let node = &self.nodes[number];
        let open = |call: &usize| !matches!(self.nodes[*call].stage, Stage::Planned | Stage::Over);
        let planned = |call: &usize| self.nodes[*call].stage == Stage::Planned;
        if node.stage >= Stage::Answered {
            return node.late.iter().any(planned) && !node.late.iter().any(open);
        }
        let waits = |call: &&usize| self.nodes[**call].why == Why::Call;
        match node.calls.iter().any(planned) {
            true => !node.calls.iter().filter(waits).any(open),
            false => !node.calls.iter().any(open),
        }
    }

    fn act(&mut self, act: Act) {
        let pause = (self.pick(1 << 16) as u64 * self.plan.pace) >> 16;
        self.time += 1 + pause;
        self.event += 1;
        match act {
            Act::Call(number) => self.call(number),
            Act::Read(number) => self.read(number),
            Act::Work(number) => self.work(number),
            Act::Collect(number) => self.collect(number),
        }
    }

    fn call(&mut self, number: usize) {
        let caller = self.nodes[number].caller;
        let design = self.plan.processes[caller].design;
        let working = self.nodes[number].parent.and_then(|parent| self.nodes[parent].working);
        let thread = match (self.nodes[number].why, design) {
            (_, Design::Loop) => thread(caller, 0),
            (Why::Helper, _) => {
                let helper = self.free_thread(caller);
                self.busy.insert(helper);
                helper
            }
            (Why::Client, _) => thread(caller, number),
            (Why::Cron, _) => thread(caller, 999),
            _ => working.expect("somebody works for who makes a call"),
        };
        let connection = self.connect(number);
        let head = self.head(number);
        let node = &mut self.nodes[number];
        (node.head, node.connection, node.calling) = (head, connection, thread);
        (node.called, node.events[0], node.stage) = (self.time, self.event, Stage::Sent);
        let bytes = node.request();
        self.tell(connection, 0, Direction::Sent, &bytes, thread);
    }

    fn read(&mut self, number: usize) {
        let Node { callee, connection, stage, split, .. } = self.nodes[number];
        let half = stage == Stage::HalfRead;
        if !half {
            let reading = match self.plan.processes[callee].design {
                Design::Threads { dedicated: true } => {
                    let own = thread(callee, 100 + connection);
                    *self.connections[connection].thread.get_or_insert(own)
                }
                Design::Threads { dedicated: false } | Design::Shared => self.free_thread(callee),
                Design::Loop | Design::Pool => thread(callee, 0),
            };
            let node = &mut self.nodes[number];
            (node.reading, node.read) = (reading, self.time);
            if let Design::Threads { .. } = self.plan.processes[callee].design {
                node.working = Some(reading);
                self.busy.insert(reading);
            }
        }
        let bytes = self.nodes[number].request();
        let (first, second) = bytes.split_at(if split { bytes.len() / 2 } else { 0 });
        let piece = if split && !half { first } else { second };
        self.tell(connection, 1, Direction::Received, piece, self.nodes[number].reading);
        let node = &mut self.nodes[number];
        node.events[1] = self.event;
        node.stage = if split && !half { Stage::HalfRead } else { Stage::Read };
    }

    /// The next step of a request: a call, or a piece of the answer.
    fn work(&mut self, number: usize) {
        let callee = self.nodes[number].callee;
        if self.nodes[number].working.is_none() {
            let working = match self.plan.processes[callee].design {
                Design::Loop => thread(callee, 0),
                _ => self.free_thread(callee),
            };
            self.nodes[number].working = Some(working);
            self.busy.insert(working);
        }
        let node = &self.nodes[number];
        let calls = if node.stage >= Stage::Answered { &node.late } else { &node.calls };
        if let Some(call) = calls.iter().find(|call| self.nodes[**call].stage == Stage::Planned) {
            return self.call(*call);
        }
        let (connection, split) = (node.connection, node.split && node.stage == Stage::Read);
        let worker = node.working.expect("somebody works on it");
        let (first, second) = ANSWER.split_at(20);
        let piece = match (node.stage, split) {
            (Stage::HalfAnswered, _) => second,
            (_, true) => first,
            (_, false) => ANSWER,
        };
        self.tell(connection, 1, Direction::Sent, piece, worker);
        let node = &mut self.nodes[number];
        node.stage = if split { Stage::HalfAnswered } else { Stage::Answered };
        node.answered = self.time;
        self.rest(number);
    }

    fn collect(&mut self, number: usize) {
        let Node { connection, calling, why, caller, parent, .. } = self.nodes[number];
        self.tell(connection, 0, Direction::Received, ANSWER, calling);
        self.nodes[number].stage = Stage::Over;
        self.connections[connection].idle = true;
        if !self.plan.processes[caller].keeps {
            self.close(connection);
        }
        if why == Why::Helper {
            self.busy.remove(&calling);
        }
        if let Some(parent) = parent {
            self.rest(parent);
        }
    }

    /// A thread that has done all is free.
    fn rest(&mut self, number: usize) {
        let node = &self.nodes[number];
        let over = |call: &usize| self.nodes[*call].stage == Stage::Over;
        if node.stage >= Stage::Answered
            && node.late.iter().all(over)
            && let Some(working) = node.working
        {
            self.busy.remove(&working);
        }
    }

    fn free_thread(&mut self, process: usize) -> u32 {
        let free: Vec<u32> =
            self.threads[process].iter().copied().filter(|thread| !self.busy.contains(thread)).collect();
        let place = self.pick(free.len() + 1);
        free.get(place).copied().unwrap_or_else(|| {
            let new = thread(process, 500 + self.threads[process].len());
            self.threads[process].push(new);
            new
        })
    }

    /// Of those that are idle, or a new one.
    fn connect(&mut self, number: usize) -> usize {
        let node = &self.nodes[number];
        let ends = [node.caller, node.callee];
        let is_free = |connection: &Connection| {
            let waits = connection.thread.is_some_and(|thread| self.busy.contains(&thread));
            connection.ends == ends && connection.idle && !waits
        };
        let free: Vec<usize> =
            (0..self.connections.len()).filter(|place| is_free(&self.connections[*place])).collect();
        let place = self.pick(free.len() + 1);
        let connection = free.get(place).copied().unwrap_or_else(|| self.open(ends));
        self.connections[connection].idle = false;
        connection
    }

    pub(super) fn open(&mut self, ends: [usize; 2]) -> usize {
        let place = self.connections.len();
        self.connections.push(Connection {
            ends,
            idle: true,
            thread: None,
            bases: [1_000_003, 7_919].map(|step| step * place as u32),
            positions: [[0; 2]; 2],
            opened: [false; 2],
        });
        place
    }

    /// What the call says.
    fn head(&mut self, number: usize) -> Head {
        let Node { caller, parent, again, .. } = self.nodes[number];
        let passes = self.plan.processes[caller].passes;
        let before = parent.and_then(|parent| {
            let siblings = self.nodes[parent].calls.iter().take_while(|sibling| **sibling < number);
            siblings.last().copied()
        });
        if let Some(before) = before.filter(|_| again) {
            return self.nodes[before].head.clone();
        }
        let (asked, end) = parent.map_or((number, 0), |parent| (parent, 1));
        let told = parent.map_or(Head::default(), |parent| self.nodes[parent].head.clone());
        let context = told.context.filter(|_| told.b3 == passes.b3);
        let fresh = (u128::from(self.make()) << 64 | u128::from(self.make()), self.make());
        let own =
            *self.nodes[asked].own[end].get_or_insert((context.map_or(fresh.0, |told| told.0), fresh.1));
        let count = self.make();
        let fresh_id = match count % 2 {
            0 => format!("{:08x}-0000-4000-8000-{count:012x}", count as u32),
            _ => format!("req-{count:020}"),
        };
        let own_id = told.id.unwrap_or_else(|| self.nodes[asked].own_id[end].get_or_insert(fresh_id).clone());
        Head {
            context: match passes.trace {
                Trace::Nothing => None,
                Trace::Same => context,
                Trace::Request => Some(own),
                Trace::Call => Some((own.0, self.make())),
            },
            b3: passes.b3,
            id: match passes.id {
                Id::Nothing => None,
                Id::Unique => Some(own_id),
            },
        }
    }

    /// A number that was never there before, and is not zero.
    fn make(&mut self) -> u64 {
        self.made += 1;
        self.made.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn header(&self, process: usize, thread: u32) -> Header {
        Header { time: self.time, pid: pid(process), thread, ..Default::default() }
    }

    /// The bases as this end of a connection has them.
    fn bases(&self, connection: usize, end: usize) -> [u32; 2] {
        let [asking, answering] = self.connections[connection].bases;
        if end == 0 { [asking, answering] } else { [answering, asking] }
    }

    fn record(&mut self, connection: usize, end: usize, thread: u32, wire: Wire) {
        if self.plan.processes[self.connections[connection].ends[end]].traced {
            self.records.push(Told { time: self.time, thread, cookie: cookie(connection, end), wire });
        }
    }

    /// Bytes move at one end.
    pub(super) fn tell(
        &mut self,
        connection: usize,
        end: usize,
        direction: Direction,
        bytes: &[u8],
        thread: u32,
    ) {
        let (cookie, bases) = (cookie(connection, end), self.bases(connection, end));
        let process = self.connections[connection].ends[end];
        let header = self.header(process, thread);
        if !std::mem::replace(&mut self.connections[connection].opened[end], true) {
            let ports = [40_000 + connection as u16, 80];
            let mut opened = Opened {
                header,
                cookie,
                family: AF_INET,
                role: if end == 0 { Role::Client } else { Role::Server } as u8,
                local_port: ports[end],
                peer_port: ports[1 - end],
                bases,
                ..Default::default()
            };
            opened.local_address[..4].copy_from_slice(&[127, 0, 0, 1]);
            opened.peer_address[..4].copy_from_slice(&[127, 0, 0, 1]);
            self.record(connection, end, thread, Wire::Opened(opened));
        }
        let loops = self.plan.processes[process].design == Design::Loop;
        let positions = &mut self.connections[connection].positions[end];
        let data = Data {
            header,
            cookie,
            position: positions[direction.index()],
            opposite: positions[direction.other().index()],
            length: bytes.len() as u32,
            captured: bytes.len() as u32,
            bases,
            message_flags: if loops { MSG_DONTWAIT } else { 0 },
            direction: direction as u8,
            ..Default::default()
        };
        positions[direction.index()] += bytes.len() as u64;
        self.record(connection, end, thread, Wire::Data(data, bytes.to_vec()));
    }

    /// The client ends a connection.
    fn close(&mut self, connection: usize) {
        if !self.connections[connection].idle {
            return;
        }
        self.connections[connection].idle = false;
        for end in [0, 1] {
            self.time += 1;
            let (cookie, bases) = (cookie(connection, end), self.bases(connection, end));
            let positions = self.connections[connection].positions[end];
            let header = self.header(self.connections[connection].ends[end], 0);
            let ending = if end == 0 {
                let direction = Direction::Sent as u8;
                Wire::Shut(Shut { header, cookie, positions, bases, direction, ..Default::default() })
            } else {
                let [opposite, position] = positions;
                let direction = Direction::Received as u8;
                Wire::Ended(Ended {
                    header,
                    cookie,
                    position,
                    opposite,
                    bases,
                    direction,
                    ..Default::default()
                })
            };
            self.record(connection, end, 0, ending);
            self.record(
                connection,
                end,
                0,
                Wire::Closed(Closed { header, cookie, positions, bases, ..Default::default() }),
            );
        }
    }

    /// The records as they come. Those of one thread, and of one connection's end, stay in order.
    pub(super) fn delivered(&self, delivery: &Delivery) -> Vec<Told> {
        let mut delays = delivery.delays.iter().cycle();
        let mut lost = delivery.lost.iter().cycle();
        let (mut threads, mut cookies) = (BTreeMap::new(), BTreeMap::new());
        let mut placed: Vec<(usize, &Told)> = Vec::new();
        for (index, told) in self.records.iter().enumerate() {
            let (last, before) =
                (threads.entry(told.thread).or_insert(0), cookies.entry(told.cookie).or_insert(0));
            let mut place = (index + delays.next().copied().unwrap_or(0)).max(*before);
            if told.thread != 0 {
                place = place.max(*last);
                *last = place;
            }
            *before = place;
            let drops = matches!(told.wire, Wire::Data(..)) && lost.next().copied().unwrap_or(false);
            if !drops {
                placed.push((place, told));
            }
        }
        placed.sort_by_key(|(place, _)| *place);
        placed.into_iter().map(|(_, told)| told.clone()).collect()
    }
}

fn pid(process: usize) -> u32 {
    100 + process as u32
}

pub(super) fn thread(process: usize, number: usize) -> u32 {
    pid(process) * 1_000 + number as u32
}

fn cookie(connection: usize, end: usize) -> u64 {
    1 + 2 * connection as u64 + end as u64
}
