//! HTTP/2 as it travels: frames, an encoder of fields that does as it is told ([`hpack`]), and dialogues
//! with the exchanges that are in them ([`dialogues`]).

mod calls;
mod dialogues;
pub mod hpack;

pub use self::dialogues::{dialogues, tail};
use self::hpack::{Encoder, How};
use crate::dialogue::{Dialogue, Tail};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames (RFC 9113, section 6).
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub const END_STREAM: u8 = 0x1;
pub const ACK: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;
pub const PRIORITY: u8 = 0x20;

/// Error codes.
pub const NO_ERROR: u32 = 0;
pub const INTERNAL_ERROR: u32 = 2;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;

pub const CLIENT: &str = "client";
pub const SERVER: &str = "server";

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

pub fn data(stream: u32, content: &[u8], flags: u8) -> Vec<u8> {
    frame(kind::DATA, flags, stream, content)
}

pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let values: Vec<u8> = values
        .iter()
        .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    frame(kind::SETTINGS, 0, 0, &values)
}

pub fn acknowledged() -> Vec<u8> {
    frame(kind::SETTINGS, ACK, 0, &[])
}

pub fn ping(flags: u8) -> Vec<u8> {
    frame(kind::PING, flags, 0, b"\0\x01\x02\x03\x04\0\0\0")
}

pub fn window_update(stream: u32, size: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, &size.to_be_bytes())
}

pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(kind::RST_STREAM, 0, stream, &code.to_be_bytes())
}

pub fn go_away(last: u32, code: u32, text: &[u8]) -> Vec<u8> {
    frame(kind::GOAWAY, 0, 0, &[&last.to_be_bytes()[..], &code.to_be_bytes(), text].concat())
}

/// The payload of a frame with so much padding behind it.
pub fn padded(payload: &[u8], padding: u8) -> Vec<u8> {
    [&[padding], payload, &vec![0; padding.into()]].concat()
}

/// What a stream depends on, and its weight.
pub fn depends(on: u32, weight: u8) -> Vec<u8> {
    [&on.to_be_bytes()[..], &[weight]].concat()
}

/// A block in HEADERS, and CONTINUATION where it is longer than `most`.
pub fn headers(stream: u32, flags: u8, block: &[u8], most: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut pieces = block.chunks(most).peekable();
    let mut next = (kind::HEADERS, flags);
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        out.extend(frame(next.0, next.1 | last, stream, piece));
        next = (kind::CONTINUATION, 0);
    }
    out
}

/// A message of gRPC.
pub fn message(content: &[u8]) -> Vec<u8> {
    [&[0], &(content.len() as u32).to_be_bytes()[..], content].concat()
}

/// Fields of a head, in their order.
pub type Fields<'a> = Vec<(&'a str, String)>;

pub fn request<'a>(method: &str, path: &str, more: &[(&'a str, &str)]) -> Fields<'a> {
    let first = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "example.com")];
    first.into_iter().chain(more.iter().copied()).map(|(name, value)| (name, value.to_owned())).collect()
}

pub fn response<'a>(status: u16, more: &[(&'a str, &str)]) -> Fields<'a> {
    let more = more.iter().map(|(name, value)| (*name, (*value).to_owned()));
    [(":status", status.to_string())].into_iter().chain(more).collect()
}

/// Both sides of a connection, as they come to write.
pub struct Talk {
    pub asking: Encoder,
    pub answering: Encoder,
    turns: Vec<(&'static str, Vec<u8>)>,
    /// The turn in which each request has its head.
    asked: Vec<usize>,
}

impl Default for Talk {
    fn default() -> Self {
        Self::new()
    }
}

impl Talk {
    /// The client writes with Huffman's code, the server without.
    pub fn new() -> Self {
        Self::bare()
            .say(CLIENT, [PREFACE, &settings(&[(2, 0), (4, 65_535)])].concat())
            .say(SERVER, settings(&[(3, 100)]))
            .say(SERVER, acknowledged())
            .say(CLIENT, acknowledged())
    }

    /// Nothing was said yet.
    pub fn bare() -> Self {
        Self {
            asking: Encoder::with_huffman(),
            answering: Encoder::default(),
            turns: Vec::new(),
            asked: Vec::new(),
        }
    }

    /// What is said becomes a record of its own where nobody cuts.
    #[must_use]
    pub fn say(mut self, who: &'static str, bytes: Vec<u8>) -> Self {
        self.turns.push((who, bytes));
        self
    }

    /// The last turns become one; all are of one side.
    #[must_use]
    pub fn at_once(mut self, turns: usize) -> Self {
        let rest = self.turns.split_off(self.turns.len() - turns);
        assert!(rest.iter().all(|(who, _)| *who == rest[0].0), "turns of both sides cannot be one");
        let first = self.turns.len();
        for turn in &mut self.asked {
            *turn = (*turn).min(first);
        }
        self.turns.push((rest[0].0, rest.into_iter().flat_map(|(_, bytes)| bytes).collect()));
        self
    }

    /// A block of this side's encoder.
    pub fn block(&mut self, who: &str, fields: &Fields<'_>) -> Vec<u8> {
        let encoder = if who == CLIENT { &mut self.asking } else { &mut self.answering };
        encoder.block(fields)
    }

    #[must_use]
    pub fn head(mut self, who: &'static str, stream: u32, fields: &Fields<'_>, flags: u8) -> Self {
        let block = self.block(who, fields);
        let head = headers(stream, flags, &block, usize::MAX);
        if fields.iter().any(|(name, _)| *name == ":method") { self.ask(head) } else { self.say(who, head) }
    }

    /// Bytes that hold the head of a request.
    #[must_use]
    pub fn ask(mut self, bytes: Vec<u8>) -> Self {
        self.asked.push(self.turns.len());
        self.say(CLIENT, bytes)
    }

    /// A whole request without content.
    #[must_use]
    pub fn get(self, stream: u32, path: &str) -> Self {
        self.head(CLIENT, stream, &request("GET", path, &[]), END_STREAM)
    }

    /// The head of a request with content.
    #[must_use]
    pub fn post(self, stream: u32, path: &str) -> Self {
        self.head(CLIENT, stream, &request("POST", path, &[]), 0)
    }

    /// The head of a response with content.
    #[must_use]
    pub fn answer(self, stream: u32, status: u16) -> Self {
        self.head(SERVER, stream, &response(status, &[]), 0)
    }

    /// A whole response without content.
    #[must_use]
    pub fn close(self, stream: u32, status: u16) -> Self {
        self.head(SERVER, stream, &response(status, &[]), END_STREAM)
    }

    #[must_use]
    pub fn trailers(self, who: &'static str, stream: u32, fields: &[(&str, &str)]) -> Self {
        let fields = fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        self.head(who, stream, &fields, END_STREAM)
    }

    #[must_use]
    pub fn data(self, who: &'static str, stream: u32, content: &[u8]) -> Self {
        self.say(who, data(stream, content, 0))
    }

    #[must_use]
    pub fn last(self, who: &'static str, stream: u32, content: &[u8]) -> Self {
        self.say(who, data(stream, content, END_STREAM))
    }

    /// Changes how the sides write.
    #[must_use]
    pub fn writing(mut self, change: impl FnOnce(&mut Encoder, &mut Encoder)) -> Self {
        change(&mut self.asking, &mut self.answering);
        self
    }

    /// The exchanges stand in the order of their requests.
    pub fn dialogue(self, name: &'static str, exchanges: &[&str]) -> Dialogue {
        let turns: Vec<(&str, &[u8])> = self.turns.iter().map(|(who, bytes)| (*who, &bytes[..])).collect();
        let dialogue = Dialogue::server(name, exchanges, &turns);
        Dialogue { asked: self.asked, tail: Some(tail()), ..dialogue }
    }

    /// What can follow any dialogue, on streams of its own: it takes nothing from a table.
    fn tail(mut self) -> Tail {
        for encoder in [&mut self.asking, &mut self.answering] {
            encoder.how = How::Plain;
        }
        for (stream, path) in [(1_000_001, "/tail1"), (1_000_003, "/tail2")] {
            self = self.get(stream, path).answer(stream, 200).last(SERVER, stream, b"ok");
        }
        let turns: Vec<(&str, &[u8])> = self.turns.iter().map(|(who, bytes)| (*who, &bytes[..])).collect();
        Tail::new(&["GET /tail1 200 2", "GET /tail2 200 2"], &turns)
    }
}
