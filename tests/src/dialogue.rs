//! Dialogues as the records that the probes would write, cut as a test wants them.

use tracer_agent::{
    capture::{Record, encode, own},
    export::json,
    pipeline::{Limits, Pipeline},
};
use tracer_common::{
    connection::{AF_INET, Direction, Role},
    record::{Closed, Data, Ended, Header, Opened, Shut, kind},
};

pub const PROCESS: u32 = 4711;
const COOKIE: u64 = 99;
const BASES: [u32; 2] = [4_000_000_000, 77];

/// Bytes of one side after the other, as a client and a server would move them.
#[derive(Clone, Debug)]
pub struct Dialogue {
    pub name: &'static str,
    pub role: Role,
    pub turns: Vec<(Direction, Vec<u8>)>,
    /// How many exchanges there are in it.
    pub exchanges: usize,
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
    pub fn server(name: &'static str, exchanges: usize, turns: &[(&str, &[u8])]) -> Self {
        let turns = turns
            .iter()
            .map(|(who, bytes)| {
                let direction = if *who == "client" { Direction::Received } else { Direction::Sent };
                (direction, bytes.to_vec())
            })
            .collect();
        Self { name, role: Role::Server, turns, exchanges }
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

    /// The server has ended it, in order.
    pub fn over(&self, time: u64) -> Vec<Vec<u8>> {
        let [sent, received] = self.positions();
        let end = match self.role {
            Role::Client => ended(time, Direction::Received, received, 0),
            _ => shut(time, sent),
        };
        vec![end, closed(time + 1, [sent, received])]
    }
}

pub fn closed(time: u64, positions: [u64; 2]) -> Vec<u8> {
    let closed = Closed { cookie: COOKIE, positions, bases: BASES, ..Default::default() };
    encode(kind::CLOSED, time, 0, &closed, &[])
}

/// This side ended the connection in order.
pub fn shut(time: u64, sent: u64) -> Vec<u8> {
    let base = BASES[Direction::Sent.index()];
    let shut = Shut { cookie: COOKIE, sent, base, direction: Direction::Sent as u8, ..Default::default() };
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

/// Of a line of JSON.
pub fn exchange(span: &str) -> String {
    let mut span: serde_json::Value = serde_json::from_str(span).expect("a line that is no JSON");
    let object = span.as_object_mut().expect("a line that is no object");
    for key in ["traceId", "spanId", "startTimeUnixNano", "endTimeUnixNano", "events"] {
        object.remove(key);
    }
    span.to_string()
}

/// Dialogues for each protocol of the registry, by its name.
pub fn samples(protocol: &str) -> Vec<Dialogue> {
    match protocol {
        "http" => http(),
        other => panic!("the laws have no dialogues for the protocol `{other}`: add some"),
    }
}

fn http() -> Vec<Dialogue> {
    let long = format!("GET /long HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n", "x".repeat(3000));
    vec![
        Dialogue::server(
            "keep-alive",
            3,
            &[
                ("client", b"GET /1?token=secret HTTP/1.1\r\nHost: example.com:8080\r\nUser-Agent: test\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
                ("client", b"HEAD /2 HTTP/1.1\r\nHost: a\r\n\r\n"),
                ("server", b"HTTP/1.1 404 Not Found\r\nContent-Length: 500\r\n\r\n"),
                ("client", b"GET /3 HTTP/1.1\r\nHost: a\r\n\r\n"),
                ("server", b"HTTP/1.1 204 No Content\r\n\r\n"),
            ],
        ),
        Dialogue::server(
            "pipelined",
            3,
            &[
                (
                    "client",
                    b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nContent-Length: 4\r\n\r\nbodyGET /3 HTTP/1.1\r\n\r\n",
                ),
                (
                    "server",
                    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\nHTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
                ),
            ],
        ),
        Dialogue::server(
            "chunked both ways, with trailers",
            2,
            &[
                (
                    "client",
                    b"PUT /up HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4;name=value\r\nwiki\r\n6\r\npedia \r\n0\r\nX-Sum: 1\r\n\r\n",
                ),
                (
                    "server",
                    b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n",
                ),
                ("client", b"GET /next HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            ],
        ),
        Dialogue::server(
            "100-continue",
            2,
            &[
                ("client", b"POST /big HTTP/1.1\r\nContent-Length: 6\r\nExpect: 100-continue\r\n\r\n"),
                ("server", b"HTTP/1.1 100 Continue\r\n\r\n"),
                ("client", b"abcdef"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
                ("client", b"GET /after HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            ],
        ),
        Dialogue::server(
            "HTTP/1.0 until close",
            1,
            &[
                ("client", b"GET /old HTTP/1.0\r\n\r\n"),
                ("server", b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end"),
            ],
        ),
        Dialogue::server(
            "a long head, then another",
            2,
            &[
                ("client", long.as_bytes()),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
                ("client", b"GET /short HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            ],
        ),
    ]
}
