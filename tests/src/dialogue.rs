//! Dialogues as the records that the probes would write, cut as a test wants them.

use serde_json::Value;
use tracer_agent::{
    capture::{Record, encode, own},
    export::json,
    pipeline::{Limits, Pipeline},
};
use tracer_common::{
    connection::{AF_INET, Direction, Role},
    record::{Closed, Data, Ended, Header, Opened, Shut, kind},
};

use crate::{http, http2, process::line};

pub const PROCESS: u32 = 4711;
const COOKIE: u64 = 99;
const BASES: [u32; 2] = [4_000_000_000, 77];

/// Bytes of one side after the other, as a client and a server would move them.
#[derive(Clone, Debug)]
pub struct Dialogue {
    pub name: &'static str,
    pub role: Role,
    pub turns: Vec<(Direction, Vec<u8>)>,
    /// The exchanges in it, as [`crate::process::line`] shows them on a server; and on a client, where
    /// that sees something else.
    pub exchanges: Vec<String>,
    pub for_clients: Option<Vec<String>>,
    pub end: End,
    /// The turns that hold the heads of the requests, where they may be answered in any order.
    pub asked: Vec<usize>,
    /// What can follow, if anything can.
    pub tail: Option<Tail>,
}

/// Exchanges that can follow a dialogue: nothing of what was said before matters to them.
#[derive(Clone, Debug)]
pub struct Tail {
    pub turns: Vec<(Direction, Vec<u8>)>,
    pub exchanges: Vec<String>,
}

/// Who ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Server,
    Client,
    /// The server, and not in order.
    Reset,
}

/// One record of bytes, before it is encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub direction: Direction,
    pub position: u64,
    pub opposite: u64,
    pub bytes: Vec<u8>,
    pub time: u64,
}

impl Dialogue {
    pub fn server(name: &'static str, exchanges: &[&str], turns: &[(&str, &[u8])]) -> Self {
        let Tail { turns, exchanges } = Tail::new(exchanges, turns);
        let (for_clients, asked, tail) = (None, Vec::new(), None);
        Self { name, role: Role::Server, turns, exchanges, for_clients, end: End::Server, asked, tail }
    }

    #[must_use]
    pub fn ending(self, end: End) -> Self {
        Self { end, ..self }
    }

    #[must_use]
    pub fn for_clients(self, exchanges: &[&str]) -> Self {
        let exchanges = exchanges.iter().map(|line| (*line).to_owned()).collect();
        Self { for_clients: Some(exchanges), ..self }
    }

    /// Nothing can follow.
    #[must_use]
    pub fn last(self) -> Self {
        Self { tail: None, ..self }
    }

    /// With what can follow.
    #[must_use]
    pub fn with_tail(mut self) -> Self {
        if let Some(tail) = self.tail.take() {
            self.exchanges.extend(tail.exchanges);
            self.turns.extend(tail.turns);
        }
        self
    }

    /// What the other end sees.
    #[must_use]
    pub fn of_client(mut self) -> Self {
        self.role = Role::Client;
        for (direction, _) in &mut self.turns {
            *direction = direction.other();
        }
        if let Some(exchanges) = self.for_clients.take() {
            self.exchanges = exchanges;
        }
        self
    }

    /// For the player, see tests/workloads/src/player.rs.
    pub fn script(&self) -> Value {
        let turns: Vec<_> = self
            .turns
            .iter()
            .map(|(direction, bytes)| {
                let from = if *direction == Direction::Received { "client" } else { "server" };
                serde_json::json!({ "from": from, "bytes": hex(bytes) })
            })
            .collect();
        let end = match self.end {
            End::Server => "server",
            End::Client => "client",
            End::Reset => "reset",
        };
        serde_json::json!({ "turns": turns, "end": end })
    }

    /// Cut where `cut` says so: it is told how many bytes of a turn are left.
    pub fn segments(&self, mut cut: impl FnMut(usize) -> usize) -> Vec<Segment> {
        let mut positions = [0u64; 2];
        let mut time = 1_000;
        let mut segments = Vec::new();
        for (direction, bytes) in &self.turns {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (part, after) = rest.split_at(cut(rest.len()).clamp(1, rest.len()));
                time += 10;
                segments.push(Segment {
                    direction: *direction,
                    position: positions[direction.index()],
                    opposite: positions[direction.other().index()],
                    bytes: part.to_vec(),
                    time,
                });
                positions[direction.index()] += part.len() as u64;
                rest = after;
            }
        }
        segments
    }

    pub fn opened(&self) -> Vec<u8> {
        let mut opened = Opened {
            cookie: COOKIE,
            family: AF_INET,
            role: self.role as u8,
            local_port: 80,
            peer_port: 50_000,
            bases: BASES,
            ..Default::default()
        };
        opened.local_address[..4].copy_from_slice(&[127, 0, 0, 1]);
        opened.peer_address[..4].copy_from_slice(&[127, 0, 0, 2]);
        encode(kind::OPENED, 1_000, PROCESS, &opened, &[])
    }

    /// How far each direction went.
    pub fn positions(&self) -> [u64; 2] {
        let mut positions = [0; 2];
        for (direction, bytes) in &self.turns {
            positions[direction.index()] += bytes.len() as u64;
        }
        positions
    }

    /// What the end of the connection looks like from here.
    pub fn over(&self, time: u64) -> Vec<Vec<u8>> {
        let [sent, received] = self.positions();
        let own = match self.role {
            Role::Client => End::Client,
            _ => End::Server,
        };
        let mut end = match self.end {
            // Nothing but the end of the socket is seen of it.
            End::Reset if own == End::Server => Vec::new(),
            End::Reset => vec![reset(time)],
            end if end == own => vec![shut(time, sent)],
            _ => vec![ended(time, Direction::Received, received, 0)],
        };
        end.push(closed(time + 1, [sent, received]));
        end
    }
}

impl Tail {
    pub fn new(exchanges: &[&str], turns: &[(&str, &[u8])]) -> Self {
        let turns = turns.iter().map(|(who, bytes)| {
            let direction = if *who == "client" { Direction::Received } else { Direction::Sent };
            (direction, bytes.to_vec())
        });
        let exchanges = exchanges.iter().map(|line| (*line).to_owned()).collect();
        Self { turns: turns.collect(), exchanges }
    }
}

pub fn closed(time: u64, positions: [u64; 2]) -> Vec<u8> {
    let closed = Closed { cookie: COOKIE, positions, bases: BASES, ..Default::default() };
    encode(kind::CLOSED, time, 0, &closed, &[])
}

/// This side ended the connection in order.
pub fn shut(time: u64, sent: u64) -> Vec<u8> {
    let shut = Shut {
        cookie: COOKIE,
        positions: [sent, 0],
        bases: BASES,
        direction: Direction::Sent as u8,
        ..Default::default()
    };
    encode(kind::SHUT, time, PROCESS, &shut, &[])
}

/// The peer has reset the connection.
pub fn reset(time: u64) -> Vec<u8> {
    let shut = Shut {
        cookie: COOKIE,
        bases: BASES,
        direction: Direction::Received as u8,
        reset: 1,
        ..Default::default()
    };
    encode(kind::SHUT, time, PROCESS, &shut, &[])
}

/// A call had no bytes: 0 where the peer ended its side, else a negative error number.
pub fn ended(time: u64, direction: Direction, position: u64, result: i32) -> Vec<u8> {
    let direction = direction as u8;
    let ended = Ended { cookie: COOKIE, position, bases: BASES, result, direction, ..Default::default() };
    encode(kind::ENDED, time, PROCESS, &ended, &[])
}

impl Segment {
    pub fn record(&self) -> Vec<u8> {
        self.record_of(self.bytes.len())
    }

    /// Only the first `captured` bytes were copied.
    pub fn record_of(&self, captured: usize) -> Vec<u8> {
        let data = Data {
            header: Header::default(),
            cookie: COOKIE,
            position: self.position,
            opposite: self.opposite,
            length: self.bytes.len() as u32,
            captured: captured as u32,
            bases: BASES,
            direction: self.direction as u8,
            ..Default::default()
        };
        encode(kind::DATA, self.time, PROCESS, &data, &self.bytes[..captured])
    }
}

/// What a pipeline made of records.
pub struct Outcome {
    /// JSON lines.
    pub spans: Vec<String>,
    pub pipeline: Pipeline,
}

/// Runs records, with a tick after each and the end after the last.
pub fn run(records: &[Vec<u8>], limits: Limits) -> Outcome {
    let mut pipeline = Pipeline::new(limits);
    let mut spans = Vec::new();
    let mut feed = |bytes: &[u8]| {
        pipeline.handle_record(&Record::parse(bytes).expect("the test made a record that cannot be read"));
        while let Some(span) = pipeline.poll_output() {
            spans.push(json::line(&span));
        }
    };
    feed(&own::seed(0, [7; 32]));
    for record in records {
        feed(record);
    }
    feed(&own::tick(1_000_000_000));
    feed(&own::finished(2_000_000_000));
    Outcome { spans, pipeline }
}

impl Outcome {
    /// The spans, each in a line, see [`line`].
    pub fn lines(&self) -> Vec<String> {
        self.spans.iter().map(|span| line(&serde_json::from_str(span).expect("a line of JSON"))).collect()
    }

    /// What spans say beside ids and times, which depend on where the bytes were cut.
    pub fn exchanges(&self) -> Vec<String> {
        self.spans.iter().map(|span| exchange(span)).collect()
    }

    /// Each byte that records told of is in exactly one bucket.
    pub fn assert_ledger_sums(&self) {
        let ledger = self.pipeline.ledger();
        assert_eq!(ledger.bytes.sum(), ledger.told, "bytes in buckets, and bytes told: {ledger:?}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Of a line of JSON.
pub fn exchange(span: &str) -> String {
    let mut span: Value = serde_json::from_str(span).expect("a line that is no JSON");
    let object = span.as_object_mut().expect("a line that is no object");
    for key in ["traceId", "spanId", "startTimeUnixNano", "endTimeUnixNano", "events"] {
        object.remove(key);
    }
    span.to_string()
}

/// Spans as [`exchange`] has them.
pub fn parsed(spans: &[String]) -> Vec<Value> {
    spans.iter().map(|span| serde_json::from_str(span).expect("a line that is no JSON")).collect()
}

/// Whether what is said of an exchange is that of `held`: all of it, or a part where it says that the rest
/// is not known.
pub fn is_of(seen: &Value, held: &Value) -> bool {
    if seen == held {
        return true;
    }
    let (said, truth) = (&seen["attributes"], &held["attributes"]);
    let (Some(parts), Some(whole)) = (said.as_object(), truth.as_object()) else { return false };
    let (vague, partial) = (!said["tracer.capture"].is_null(), !said["tracer.partial"].is_null());
    let is_call = !truth["rpc.method"].is_null();
    let alike = |key: &str| seen[key] == held[key];
    let name = seen["name"].as_str().unwrap_or_default();
    let right = |key: &str, value: &Value| {
        *value == truth[key]
            || vague && (is_call && is_of_call(key, value, truth) || is_of_ends(key, value, truth))
    };
    // That messages were not counted is all that is said of a gap between them.
    let told = |key: &str| !said[key].is_null() || vague || partial || key.contains(".message.");
    (alike("name") || vague && (["HTTP", "grpc"].contains(&name) || is_call && name == "POST"))
        && ["kind", "resource"].into_iter().all(alike)
        && (alike("status") || (vague || partial) && seen["status"]["code"] == "UNSET")
        && (alike("parentSpanId") || vague && seen["parentSpanId"].is_null())
        && parts.iter().all(|(key, value)| match &key[..] {
            "tracer.capture" | "tracer.partial" => true,
            _ => right(key, value),
        })
        && whole.keys().all(|key| told(key))
}

/// Where it is not known that it is a call, it looks like any other request.
fn is_of_call(key: &str, value: &Value, truth: &Value) -> bool {
    let path = format!("/{}", truth["rpc.method"].as_str().unwrap_or_default());
    match key {
        "http.request.method" => value == "POST",
        "http.response.status_code" => value == 200,
        "url.scheme" => value == "http",
        "url.path" => *value == path[..],
        "url.full" => value.as_str().is_some_and(|url| url.ends_with(&path)),
        "http.request.body.size" | "http.response.body.size" => true,
        _ => false,
    }
}

/// Where it is not known what the server is called, its address stands for it, and there is no whole URL.
fn is_of_ends(key: &str, value: &Value, truth: &Value) -> bool {
    let url = truth["url.full"].as_str().and_then(|url| url.splitn(4, '/').nth(3)).unwrap_or_default();
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let end = if truth["client.address"].is_null() { "peer" } else { "local" };
    match key {
        "server.address" => *value == truth[format!("network.{end}.address")],
        "server.port" => *value == truth[format!("network.{end}.port")],
        "url.path" => value.as_str().and_then(|value| value.strip_prefix('/')) == Some(path),
        "url.query" => value == query,
        _ => false,
    }
}

/// The first of `seen` that is none of `held`, or of one that another is of; see [`is_of`].
pub fn invented<'a>(seen: &'a [Value], held: &[Value]) -> Option<&'a Value> {
    /// Gives a place to one more, for which others may have to move.
    fn place(at: usize, fits: &[Vec<usize>], taken: &mut [Option<usize>], asked: &mut [bool]) -> bool {
        fits[at].iter().any(|&of| {
            let free = !std::mem::replace(&mut asked[of], true)
                && taken[of].is_none_or(|other| place(other, fits, taken, asked));
            if free {
                taken[of] = Some(at);
            }
            free
        })
    }
    let fits = |seen: &Value| (0..held.len()).filter(|of| is_of(seen, &held[*of])).collect();
    let fits: Vec<Vec<usize>> = seen.iter().map(fits).collect();
    let mut taken = vec![None; held.len()];
    let odd = (0..seen.len()).find(|at| !place(*at, &fits, &mut taken, &mut vec![false; held.len()]));
    odd.map(|at| &seen[at])
}

/// Dialogues for each protocol of the registry, by its name.
pub fn samples(protocol: &str) -> Vec<Dialogue> {
    match protocol {
        "http" => http::dialogues(),
        "http2" => http2::dialogues(),
        other => panic!("the laws have no dialogues for the protocol `{other}`: add some"),
    }
}
