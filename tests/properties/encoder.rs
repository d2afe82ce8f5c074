//! A client and a server of `h2` talk to each other, with their own encoder of fields: what was recorded
//! between them is held against what they know themselves.

use std::{cell::RefCell, rc::Rc};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::{LocalSet, spawn_local},
};
use tracer_common::connection::{Direction, Role};
use tracer_tests::{
    dialogue::{Dialogue, End, invented, parsed},
    http2::message,
};

use super::{in_order, play};

const REQUESTS: u32 = 300;

/// Numbers that are the same every time.
#[derive(Clone)]
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// What is asked, and so what is answered.
#[derive(Clone, Debug)]
struct Asked {
    method: &'static str,
    path: String,
    content: usize,
    answer: Answer,
    fields: Vec<(String, String)>,
}

#[derive(Clone, Debug)]
enum Answer {
    Status { status: u16, content: usize, trailers: bool },
    Reset,
    Messages { count: usize, status: &'static str },
}

impl Asked {
    fn new(n: u32, numbers: &mut Numbers) -> Self {
        let name = |number: u64| format!("x-field-{}", number % 7);
        let fields = (0..numbers.below(6)).map(|n| {
            let value = format!("{}-{}", numbers.below(20), "v".repeat(numbers.below(60) as usize));
            (name(n + numbers.below(7)), value)
        });
        let fields = fields.collect();
        let content = numbers.below(3) * numbers.below(3000);
        let method =
            if content > 0 { "POST" } else { ["GET", "DELETE", "OPTIONS"][numbers.below(3) as usize] };
        let plain = Self {
            method,
            path: format!("/{}/{n}", ["items", "users", "a/longer/path"][numbers.below(3) as usize]),
            content: content as usize,
            answer: Answer::Status {
                status: [200, 201, 404, 418, 500, 503][numbers.below(6) as usize],
                content: (numbers.below(3) * numbers.below(5000)) as usize,
                trailers: numbers.below(5) == 0,
            },
            fields,
        };
        match numbers.below(10) {
            0 => Self { answer: Answer::Reset, ..plain },
            1..4 => {
                let count = numbers.below(5) as usize;
                let status = ["0", "5", "14"][numbers.below(3) as usize];
                let path = format!("/shop.Cart/Call{n}");
                Self { method: "POST", path, content: 0, answer: Answer::Messages { count, status }, ..plain }
            }
            _ => plain,
        }
    }

    fn line(&self) -> String {
        let Self { method, path, .. } = self;
        match &self.answer {
            Answer::Status { status, content, .. } => format!("{method} {path} {status} {content}"),
            Answer::Reset => format!("{method} {path} - - outcome=stream_reset error=ENHANCE_YOUR_CALM"),
            Answer::Messages { count, status } => {
                let status = match *status {
                    "0" => "OK",
                    "5" => "NOT_FOUND",
                    _ => "UNAVAILABLE",
                };
                format!("gRPC {} {status} 1>{count}", &path[1..])
            }
        }
    }

    async fn ask(self, mut client: h2::client::SendRequest<Bytes>) {
        let mut request =
            Request::builder().method(self.method).uri(format!("http://example.com{}", self.path));
        for (name, value) in &self.fields {
            request = request.header(name, value);
        }
        let content = match self.answer {
            Answer::Messages { .. } => {
                request = request.header("content-type", "application/grpc").header("te", "trailers");
                message(b"asked")
            }
            _ => vec![b'c'; self.content],
        };
        let request = request.body(()).expect("a request");
        std::future::poll_fn(|context| client.poll_ready(context)).await.expect("a stream");
        let (answer, mut stream) = client.send_request(request, content.is_empty()).expect("asked");
        if !content.is_empty() {
            let _ = stream.send_data(content.into(), true);
        }
        // Some are reset.
        let Ok(answer) = answer.await else { return };
        read(answer.into_body()).await;
    }

    async fn answer(self, request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
        read(request.into_body()).await;
        let mut head = Response::builder();
        for (name, value) in &self.fields {
            head = head.header(name, value);
        }
        let mut trailers = HeaderMap::new();
        let (head, content) = match self.answer {
            Answer::Reset => return respond.send_reset(h2::Reason::ENHANCE_YOUR_CALM),
            Answer::Status { status, content, trailers: more } => {
                if more {
                    trailers.insert("x-trailer", "t".parse().expect("a value"));
                }
                (head.status(status), vec![b'a'; content])
            }
            Answer::Messages { count, status } => {
                trailers.insert("grpc-status", status.parse().expect("a value"));
                (head.header("content-type", "application/grpc"), message(b"answered").repeat(count))
            }
        };
        let head = head.body(()).expect("a response");
        let ends = trailers.is_empty();
        let mut stream = respond.send_response(head, ends && content.is_empty()).expect("answered");
        if !content.is_empty() {
            stream.send_data(content.into(), ends).expect("sent");
        }
        if !ends {
            stream.send_trailers(trailers).expect("sent");
        }
    }
}

async fn read(mut body: h2::RecvStream) {
    while let Some(Ok(part)) = body.data().await {
        let _ = body.flow_control().release_capacity(part.len());
    }
    let _ = body.trailers().await;
}

type Turns = Rc<RefCell<Vec<(Direction, Vec<u8>)>>>;

/// Carries bytes between the two, and writes them down in the order in which they moved.
async fn relay(mut client: DuplexStream, mut server: DuplexStream, turns: Turns, mut numbers: Numbers) {
    let (mut asked, mut answered) = (vec![0; 4096], vec![0; 4096]);
    loop {
        let (ask, answer) = (1 + numbers.below(4096) as usize, 1 + numbers.below(4096) as usize);
        let (direction, bytes) = tokio::select! {
            length = client.read(&mut asked[..ask]) => (Direction::Received, &asked[..length.unwrap_or(0)]),
            length = server.read(&mut answered[..answer]) => (Direction::Sent, &answered[..length.unwrap_or(0)]),
        };
        if bytes.is_empty() {
            return;
        }
        turns.borrow_mut().push((direction, bytes.to_vec()));
        let to = if direction == Direction::Received { &mut server } else { &mut client };
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}

/// What they said, with tables of these sizes; and what was asked.
fn talk(seed: u64, tables: [u32; 2]) -> (Dialogue, Vec<Asked>) {
    let mut numbers = Numbers(seed);
    let all: Rc<[Asked]> = (0..REQUESTS).map(|n| Asked::new(n, &mut numbers)).collect();
    let turns = Turns::default();
    let ((client, left), (right, server)) = (duplex(1 << 16), duplex(1 << 16));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let relayed = spawn_local(relay(left, right, turns.clone(), numbers.clone()));
        let served = spawn_local(serve(server, tables[1], all.clone()));
        let mut builder = h2::client::Builder::new();
        let (asking, connection) =
            builder.header_table_size(tables[0]).handshake(client).await.expect("a connection");
        let connection = spawn_local(connection);
        let mut waves = &all[..];
        while !waves.is_empty() {
            let (wave, rest) = waves.split_at((1 + numbers.below(30) as usize).min(waves.len()));
            waves = rest;
            let wave: Vec<_> =
                wave.iter().map(|asked| spawn_local(asked.clone().ask(asking.clone()))).collect();
            for asked in wave {
                asked.await.expect("a request");
            }
        }
        drop(asking);
        connection.await.expect("no panic").expect("an end in order");
        served.await.expect("no panic");
        relayed.await.expect("no panic");
    });
    let turns = turns.take();
    let exchanges = all.iter().map(Asked::line).collect();
    let dialogue = Dialogue::server("h2", &[], &[]).ending(End::Client);
    (Dialogue { turns, exchanges, ..dialogue }, all.to_vec())
}

async fn serve(io: DuplexStream, table: u32, all: Rc<[Asked]>) {
    let mut builder = h2::server::Builder::new();
    builder.header_table_size(table).max_concurrent_streams(20);
    let mut connection = builder.handshake(io).await.expect("a connection");
    while let Some(Ok((request, respond))) = connection.accept().await {
        let number = request.uri().path().trim_start_matches(|c: char| !c.is_ascii_digit());
        let asked = all[number.parse::<usize>().expect("a number")].clone();
        spawn_local(asked.answer(request, respond));
    }
}

const TABLES: [[u32; 2]; 5] = [[4096, 4096], [0, 0], [100, 300], [65_536, 200], [300, 65_536]];

#[test]
fn a_real_encoder_is_understood() {
    for (seed, tables) in TABLES.into_iter().enumerate() {
        let (dialogue, asked) = talk(seed as u64 + 1, tables);
        let ends = [dialogue.clone(), dialogue.of_client()];
        let cuts =
            [usize::MAX, 16_384, 100].into_iter().flat_map(|size| ends.iter().map(move |end| (end, size)));
        for (dialogue, size) in cuts {
            let outcome = play(dialogue, &dialogue.segments(|left| left.min(size)));
            assert_eq!(in_order(outcome.lines()), in_order(dialogue.exchanges.clone()), "tables {tables:?}");
            for span in parsed(&outcome.spans) {
                assert_eq!(span["attributes"]["server.address"], "example.com", "{span}");
                let number = span["name"].as_str().and_then(|name| name.strip_prefix("shop.Cart/Call"));
                let content = &span["attributes"]["http.request.body.size"];
                match number.map(|number| number.parse::<usize>().expect("a number")) {
                    Some(_) => assert_eq!(span["attributes"]["tracer.request.message.size"], 5),
                    None => {
                        let path = ["url.path", "url.full"].map(|key| span["attributes"][key].as_str());
                        let path = path[0].or(path[1]).expect("a path");
                        let asked = asked.iter().find(|asked| path.ends_with(&asked.path)).expect("asked");
                        assert_eq!(*content, asked.content, "{span}");
                    }
                }
            }
        }
    }
}

/// Joined anywhere: what is said is right, and soon nothing is missing but what is never sent again.
#[test]
fn a_real_encoder_is_joined() {
    for (seed, tables) in TABLES.into_iter().enumerate() {
        let (dialogue, _) = talk(seed as u64 + 11, tables);
        let segments = dialogue.segments(|left| left);
        let whole = play(&dialogue, &segments);
        let held = parsed(&whole.exchanges());
        let starts: Vec<u64> = parsed(&whole.spans)
            .iter()
            .map(|span| {
                span["startTimeUnixNano"].as_str().and_then(|time| time.parse().ok()).expect("a time")
            })
            .collect();
        for tenth in 1..8 {
            let from = segments.len() * tenth / 10;
            // A frame may be cut by the first record.
            let begun = starts.iter().filter(|start| **start > segments[from + 10].time).count();
            for role in [Role::Server, Role::Unknown] {
                let dialogue = Dialogue { role, ..dialogue.clone() };
                let outcome = play(&dialogue, &segments[from..]);
                let seen = parsed(&outcome.exchanges());
                let at = format!("tables {tables:?}, joined after {tenth} tenths as {role:?}");
                assert_eq!(invented(&seen, &held), None, "{at}");
                assert!(seen.len() >= begun, "{at}: {} of {begun}", seen.len());
                if tables[0] <= 300 && tables[1] <= 300 {
                    let known = seen.iter().rev().take(seen.len() / 2).filter(|span| {
                        !span["attributes"]["url.path"].is_null()
                            || !span["attributes"]["rpc.method"].is_null()
                    });
                    assert_eq!(known.count(), seen.len() / 2, "{at}");
                }
            }
        }
    }
}
