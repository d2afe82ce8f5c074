//! Protocols: a new one is one file and two lines here (`mod` and its entry in [`PROTOCOLS`]).
//!
//! A [`Session`] reads both directions of one connection and says what it finds as [`Event`]s. It
//! knows no clock and no socket: positions stand for times until the exchange is put together.

mod grpc;
mod http;
mod http1;
mod http2;
pub mod known;
pub mod measure;

use std::{
    cmp::Ordering,
    collections::BTreeSet,
    hash::{Hash, Hasher},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

pub use self::http::is_token;
use self::measure::Measure;
use smallvec::SmallVec;
pub use smol_str::SmolStr as Text;
pub use tracer_common::connection::Framing;

use crate::{
    connection::stream::{After, Marks},
    noise::Noise,
    propagation::{CORRELATION, Propagated},
};

/// All protocols, in the order in which they are asked.
pub const PROTOCOLS: &[&dyn Protocol] = &[&http1::Http1, &http2::Http2];

/// The names of all exchanges, each once.
pub fn exchanges() -> BTreeSet<&'static str> {
    PROTOCOLS.iter().flat_map(|protocol| protocol.exchanges().iter().copied()).collect()
}

pub trait Protocol: Sync {
    /// The name in metrics and documents: that of what connections speak.
    fn name(&self) -> &'static str;

    /// The names of its exchanges, for filters.
    fn exchanges(&self) -> &'static [&'static str];

    /// By which metrics its exchanges are counted, if they are.
    fn measures(&self) -> &'static [&'static Measure] {
        &[]
    }

    /// Whether a message of this side starts with `bytes`. Looks at no more than it needs.
    fn detect(&self, side: Side, bytes: &[u8]) -> Verdict;

    /// Where this side, of which not everything was seen, speaks the protocol beyond doubt: asked of both
    /// sides where messages cannot be told by how they start. `position` is that of the first of `bytes`.
    fn joins(&self, _side: Side, bytes: &[u8], _position: u64, _marks: Marks<'_>) -> Start {
        Start::NotBefore(bytes.len())
    }

    /// The side that speaks from where [`Self::joins`] found it, if that can be told.
    fn speaker(&self, _bytes: &[u8]) -> Option<Side> {
        None
    }

    /// How it lays out frames whose content need not be seen, if it has such. One protocol of the registry may.
    fn framing(&self) -> Option<Framing> {
        None
    }

    /// `fresh`, by side: read from the connection's first byte on. `kind` is the end that is seen.
    fn session(&self, fresh: [bool; 2], kind: Kind, shown: Shown) -> Box<dyn Session>;
}

/// What is told of an exchange only if somebody asked for it, and by which fields it is known again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The text that a server of gRPC sends with a status.
    pub grpc_message: bool,
    /// Fields with ids of requests.
    pub correlation: &'static [&'static str],
    /// Names in a query whose values are told.
    pub query: &'static [&'static str],
    /// Fields whose values are told.
    pub request_headers: &'static [ToldHeader],
    pub response_headers: &'static [ToldHeader],
}

/// A field by its name in lower case, and the attribute for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToldHeader {
    pub name: &'static str,
    pub key: &'static str,
}

impl Default for Shown {
    fn default() -> Self {
        Self {
            grpc_message: false,
            correlation: CORRELATION,
            query: &[],
            request_headers: &[],
            response_headers: &[],
        }
    }
}

/// Which end of an exchange a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Server,
    Client,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Server => "SERVER",
            Kind::Client => "CLIENT",
        }
    }
}

pub trait Session {
    /// Reads what it can of one side. Called again, with the bytes that were not read and those that
    /// came since, until it answers that it needs more or waits for the other side.
    fn read(&mut self, side: Side, input: &Input<'_>, events: &mut Vec<Event>) -> Progress;

    /// How much follows of this side, after what was read, that need not be seen: content of a known
    /// length.
    fn content_ahead(&self, side: Side) -> u64;

    /// Bytes of memory that it holds, about.
    fn held(&self) -> usize;

    /// Its content is large, and nothing in it needs to be seen.
    fn is_bulk(&self) -> bool {
        false
    }

    /// Both sides were seen to speak the protocol, also where no response was.
    fn is_certain(&self) -> bool {
        false
    }

    /// Several exchanges can be under way at once, with what they say in any order.
    fn is_shared(&self) -> bool {
        false
    }

    /// What reads on where the connection switches to another protocol of the registry, with its name.
    fn successor(&mut self) -> Option<(&'static str, Box<dyn Session>)> {
        None
    }
}

/// Which of the two: the one that asks, or the one that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Request = 0,
    Response = 1,
}

impl Side {
    pub const BOTH: [Side; 2] = [Side::Request, Side::Response];

    pub fn index(self) -> usize {
        self as usize
    }

    pub fn other(self) -> Self {
        match self {
            Side::Request => Side::Response,
            Side::Response => Side::Request,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Yes,
    No,
    Unsure,
}

/// Where a side speaks a protocol that may have begun before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// From this byte on.
    At(usize),
    /// Not before this one; more has to be seen.
    NotBefore(usize),
}

/// What a session is given to read.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Position of the first of `bytes`.
    pub position: u64,
    pub bytes: &'a [u8],
    /// What comes after `bytes`.
    pub after: After,
    pub marks: Marks<'a>,
    /// The other side was read as far as it was when the first of `bytes` moved: what is not there
    /// now will not come.
    pub settled: bool,
    /// From where to where the other side can be read.
    pub other: (u64, u64),
}

impl Input<'_> {
    /// Bytes that are there, or where there are none, those of the gap; 0 if there is nothing.
    fn there(&self) -> u64 {
        match (self.bytes.len() as u64, self.after) {
            (0, After::Gap(gap)) => gap.length,
            (length, _) => length,
        }
    }

    /// All that is there cannot be told.
    fn skip_all(&self) -> Progress {
        match self.there() {
            0 => Progress::NeedMore,
            length => Progress::Read { length, class: Class::Unparsed },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Takes `length` from the front: bytes, or where there are none, of the gap.
    Read {
        length: u64,
        class: Class,
    },
    NeedMore,
    /// Goes on when the other side was read further.
    Wait,
    /// What follows, in both directions, belongs to something else.
    Switch(&'static str),
    /// This is not the protocol.
    Invalid(&'static str),
}

/// What bytes were, for the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Heads, framing, trailers.
    Parsed,
    Body,
    /// Of the protocol, but what they say could not be told.
    Unparsed,
}

/// Something that a session found in the bytes from `start` to `end` of a side.
#[derive(Clone, Debug)]
pub struct Event {
    pub side: Side,
    /// Which exchange of the connection; a response without a request has none.
    pub exchange: Option<u64>,
    pub start: u64,
    pub end: u64,
    pub what: What,
}

/// Small, since it is moved around: heads are shared with those that are the same.
#[derive(Clone, Debug)]
pub enum What {
    Request(Arc<RequestHead>),
    Response(Arc<ResponseHead>),
    /// A response head that is not the last one (1xx).
    Interim {
        attributes: Vec<Attribute>,
    },
    /// Part of the content.
    Data {
        length: u64,
    },
    /// What follows the content; it may say more of the response than its head did.
    Trailers(Option<Arc<ResponseHead>>),
    /// One of several messages within the content has come to its end.
    Message {
        size: u64,
    },
    /// Messages within the content cannot be told apart from here on.
    Uncounted,
    /// More came to be known of the request.
    Revised(Arc<RequestHead>),
    /// Nothing more of it comes, or matters.
    Over,
    /// The message is whole.
    End {
        attribute: Option<Attribute>,
    },
    /// The message broke off.
    Reset {
        attribute: Option<Attribute>,
    },
    /// This side gave the whole exchange up, and the connection goes on.
    Abandoned {
        error: Text,
    },
    /// A part of the message may lie in a gap.
    Hole,
    /// That the exchange was given up may lie in a gap.
    Doubt,
    /// What followed of the message lies in a gap, and with it where it ended.
    Cut,
}

/// What a protocol knows of a request; everything that exporters show is filled in here.
#[derive(Debug, Default)]
pub struct RequestHead {
    /// Name of the span.
    pub name: Text,
    /// For people: what is asked (`GET`) of what (`/items`).
    pub operation: Text,
    pub target: Text,
    /// One of [`Protocol::exchanges`].
    pub protocol: &'static str,
    /// Attributes of the span, for the end that is seen.
    pub common: Common,
    /// What it says of the trace that it belongs to.
    pub propagated: Option<Box<Propagated>>,
    /// What it is besides, see [`crate::noise`].
    pub noise: Option<Noise>,
    /// Not all of it is known.
    pub vague: bool,
}

impl RequestHead {
    /// Bytes of memory, about.
    pub fn cost(&self) -> usize {
        let texts = self.common.attributes.iter().map(|attribute| match &attribute.value {
            Value::Text(text) => text.len(),
            Value::Number(_) | Value::Real(_) | Value::Flag(_) => 0,
        });
        let attributes = self.common.attributes.capacity() * size_of::<Attribute>();
        attributes + self.target.len() + texts.sum::<usize>()
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResponseHead {
    /// For people: the status as it was on the wire; empty if it was not.
    pub status: Text,
    pub attributes: Attributes,
    /// Whether the status is an error to the client, to the server.
    pub client_error: bool,
    pub server_error: bool,
    /// `error.type`, where it is one.
    pub error_type: Text,
    /// What it is, where it is no answer but the start of a stream: its duration tells how long somebody
    /// listened, not how long an answer took.
    pub stream: Option<&'static str>,
}

impl ResponseHead {
    /// What comes after the content has the last word.
    pub fn add(&mut self, more: &ResponseHead) {
        self.attributes.retain(|old| more.attributes.iter().all(|new| new.key != old.key));
        self.attributes.extend(more.attributes.iter().cloned());
        if !more.status.is_empty() {
            self.status = more.status.clone();
            self.client_error = more.client_error;
            self.server_error = more.server_error;
            self.error_type = more.error_type.clone();
        }
    }

    /// It says nothing.
    pub fn is_empty(&self) -> bool {
        self.attributes.is_empty() && self.status.is_empty() && self.stream.is_none()
    }
}

/// Attributes that many spans have.
#[derive(Debug, Default)]
pub struct Common {
    pub attributes: Vec<Attribute>,
    /// As the exporter sends them, if they were asked for more than once.
    encoded: OnceLock<Vec<u8>>,
    asked: AtomicBool,
}

impl Common {
    pub fn new(attributes: Vec<Attribute>) -> Self {
        Self { attributes, ..Self::default() }
    }

    /// The attributes as `encode` writes them, kept from the second time on: many are wanted only once, and
    /// the first time there is nothing.
    pub fn encoded(&self, encode: impl FnOnce(&[Attribute]) -> Vec<u8>) -> Option<&[u8]> {
        if !self.asked.load(Relaxed) {
            self.asked.store(true, Relaxed);
            return None;
        }
        Some(self.encoded.get_or_init(|| encode(&self.attributes)))
    }
}

/// The few attributes of a part of an exchange.
pub type Attributes = SmallVec<[Attribute; 2]>;

/// Those of spans have keys that are known beforehand.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attribute<K = &'static str> {
    pub key: K,
    pub value: Value,
}

impl From<Attribute> for Attribute<Text> {
    fn from(attribute: Attribute) -> Self {
        Self { key: Text::new_static(attribute.key), value: attribute.value }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    Text(Text),
    Number(i64),
    /// A share, or another number that is not whole.
    Real(Real),
    Flag(bool),
}

/// A number that is equal to itself, and has its place among others.
#[derive(Clone, Copy, Debug)]
pub struct Real(pub f64);

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Real {}

impl PartialOrd for Real {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Real {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl Hash for Real {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

impl Attribute {
    pub fn text(key: &'static str, value: impl Into<Text>) -> Self {
        Self { key, value: Value::Text(value.into()) }
    }

    /// A text that is known beforehand.
    pub fn word(key: &'static str, value: &'static str) -> Self {
        Self { key, value: Value::Text(Text::new_static(value)) }
    }

    pub fn number(key: &'static str, value: impl TryInto<i64>) -> Self {
        Self { key, value: Value::Number(value.try_into().unwrap_or(i64::MAX)) }
    }

    pub fn real(key: &'static str, value: f64) -> Self {
        Self { key, value: Value::Real(Real(value)) }
    }

    pub fn flag(key: &'static str, value: bool) -> Self {
        Self { key, value: Value::Flag(value) }
    }
}

/// Whether a TLS record of the handshake starts here (RFC 8446, section 5.1).
pub fn is_encrypted(bytes: &[u8]) -> bool {
    matches!(bytes, [HANDSHAKE, 3, 0..=4, ..])
}

/// The same of a connection that was joined: a header of any record, and a second where the first ends, or
/// nothing (many read the header, and then the rest).
pub fn is_encrypted_midway(bytes: &[u8]) -> bool {
    let Some(length) = record_length(bytes) else { return false };
    match bytes.get(TLS_HEADER + length..) {
        Some(rest) => rest.is_empty() || rest.len() < TLS_HEADER || record_length(rest).is_some(),
        None => bytes.len() == TLS_HEADER,
    }
}

const TLS_HEADER: usize = 5;
const HANDSHAKE: u8 = 22;

/// What a header of TLS says of the length of its record.
fn record_length(bytes: &[u8]) -> Option<usize> {
    const CHANGE_CIPHER: u8 = 20;
    const ALERT: u8 = 21;
    const APPLICATION: u8 = 23;
    /// 2^14 and what a cipher may add.
    const LENGTH_MAX: u16 = 16384 + 2048;
    let [kind @ CHANGE_CIPHER..=APPLICATION, 3, 0..=4, high, low, ..] = bytes else { return None };
    let length = u16::from_be_bytes([*high, *low]);
    let fits = match *kind {
        CHANGE_CIPHER => length == 1,
        ALERT => matches!(length, 2 | 19 | 26),
        APPLICATION => (17..=LENGTH_MAX).contains(&length),
        _ => (4..=LENGTH_MAX).contains(&length),
    };
    fits.then_some(length.into())
}
