//! gRPC over HTTP/2, and gRPC-Web over any version of HTTP: what its heads, messages and trailers say.
//!
//! Sources: grpc/grpc `doc/PROTOCOL-HTTP2.md`, `doc/PROTOCOL-WEB.md` and `doc/statuscodes.md`.

use std::sync::Arc;

use smallvec::smallvec;
use smol_str::format_smolstr;

use super::{
    Attribute, Attributes, Common, Event, RequestHead, ResponseHead, Shown, Side, Text, What,
    http::{self, Asked, UNSEEN, digits, text},
    measure::{BOUNDS, End, Instrument, Measure},
};
use crate::noise::{self, Noise};

/// The protocol of an exchange, for filters.
pub(super) const NAME: &str = "grpc";

/// The released name; it is to become `rpc.status_code`.
const STATUS_CODE: &str = "rpc.response.status_code";

/// docs/rpc/rpc-metrics.md
pub(super) const MEASURE: Measure = Measure {
    exchange: NAME,
    bounds: BOUNDS,
    server: End {
        duration: Instrument { name: "rpc.server.call.duration", help: "Duration of incoming calls" },
        sizes: None,
        active: None,
        attributes: &["rpc.system.name", "rpc.method", STATUS_CODE, "error.type"],
        route: None,
    },
    client: End {
        duration: Instrument { name: "rpc.client.call.duration", help: "Duration of outgoing calls" },
        sizes: None,
        active: None,
        attributes: &[
            "rpc.system.name",
            "rpc.method",
            STATUS_CODE,
            "error.type",
            "server.address",
            "server.port",
        ],
        route: None,
    },
};

/// By their number.
const STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Those that are an error of the server (semantic conventions, gRPC).
const OF_THE_SERVER: [&str; 6] =
    ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"];

/// The longest trailers that come as a message.
pub(super) const TRAILERS_MAX: usize = 4 * 1024;

/// How messages are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavor {
    Plain,
    Web,
    /// In base64.
    WebText,
}

impl Flavor {
    pub(super) fn of(content_type: &[u8]) -> Option<Self> {
        const TYPE: &[u8] = b"application/grpc";
        let (start, rest) = content_type.split_at_checked(TYPE.len())?;
        if !start.eq_ignore_ascii_case(TYPE) {
            return None;
        }
        let end = rest.iter().position(|byte| matches!(byte, b'+' | b';' | b' ')).unwrap_or(rest.len());
        match &rest[..end] {
            b"" => Some(Flavor::Plain),
            kind if kind.eq_ignore_ascii_case(b"-web") => Some(Flavor::Web),
            kind if kind.eq_ignore_ascii_case(b"-web-text") => Some(Flavor::WebText),
            _ => None,
        }
    }

    pub(super) fn is_web(self) -> bool {
        self != Flavor::Plain
    }
}

/// `timeout` as the field has it.
pub(super) fn request(asked: &Asked<'_>, timeout: Option<&str>) -> RequestHead {
    let path = asked.path();
    let method = path.map(|path| path.strip_prefix('/').unwrap_or(path)).filter(|method| !method.is_empty());
    let method = method.map(|method| text(method.as_bytes()));
    let mut attributes = Vec::with_capacity(http::ATTRIBUTES);
    attributes.push(Attribute::word("rpc.system.name", "grpc"));
    if let Some(method) = &method {
        attributes.push(Attribute::text("rpc.method", method.clone()));
    }
    attributes.push(Attribute::word("network.protocol.name", "http"));
    attributes.push(Attribute::word("network.protocol.version", asked.version));
    if let Some(agent) = &asked.user_agent {
        attributes.push(Attribute::text("user_agent.original", agent.clone()));
    }
    attributes.extend(asked.notes.iter().cloned());
    if let Some(timeout) = timeout.and_then(duration) {
        attributes.push(Attribute::text("tracer.rpc.timeout", timeout));
    }
    asked.describe_server(&mut attributes);
    let noise = noise::of(asked.agent(), path.unwrap_or_default(), false);
    if let Some(Noise::HealthCheck(evidence)) = noise {
        attributes.push(Attribute::word("tracer.health_check", evidence));
    }
    RequestHead {
        name: method.unwrap_or(Text::new_static("grpc")),
        operation: Text::new_static("gRPC"),
        target: path.map_or(Text::new_static(UNSEEN), |path| text(path.as_bytes())),
        protocol: NAME,
        common: Common::new(attributes),
        propagated: None,
        noise,
        vague: false,
    }
}

/// At most eight digits and a unit, for people: `150ms` of `150m`.
fn duration(timeout: &str) -> Option<Text> {
    let unit = match timeout.as_bytes().last()? {
        b'H' => "h",
        b'M' => "min",
        b'S' => "s",
        b'm' => "ms",
        b'u' => "us",
        b'n' => "ns",
        _ => return None,
    };
    let digits = &timeout[..timeout.len() - 1];
    let valid = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| format_smolstr!("{digits}{unit}"))
}

/// The head of a response by its status of HTTP; with what trailers say, where they came in it.
pub(super) fn response(status: Option<u16>, trailers: &Trailers, shown: Shown) -> ResponseHead {
    let mut head = trailers.response(shown);
    // Somebody else has answered: a proxy, or a server that speaks no gRPC.
    if let Some(status) = status.filter(|status| *status != 200) {
        head.attributes.push(Attribute::number("http.response.status_code", status));
        if trailers.status.is_none() {
            let other = http::response(status, None, Attributes::new());
            (head.client_error, head.server_error) = (other.client_error, other.server_error);
            (head.status, head.error_type) = (digits(status), digits(status));
        }
    }
    head
}

/// How a call ended, as far as fields tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Trailers {
    status: Option<Text>,
    message: Option<Text>,
}

impl Trailers {
    /// `name` is in lower case.
    pub(super) fn add(&mut self, name: &str, value: &str) {
        match name {
            "grpc-status" => self.status = Some(status(value)),
            "grpc-message" => self.message = Some(text(value.as_bytes())),
            _ => {}
        }
    }

    pub(super) fn has_status(&self) -> bool {
        self.status.is_some()
    }

    pub(super) fn response(&self, shown: Shown) -> ResponseHead {
        let Some(status) = &self.status else { return ResponseHead::default() };
        let mut attributes: Attributes = smallvec![Attribute::text(STATUS_CODE, status.clone())];
        if let Some(message) = self.message.as_ref().filter(|_| shown.grpc_message) {
            attributes.push(Attribute::text("tracer.rpc.message", percent_decoded(message)));
        }
        ResponseHead {
            status: status.clone(),
            attributes,
            client_error: status != "OK",
            server_error: OF_THE_SERVER.contains(&status.as_str()),
            error_type: status.clone(),
            stream: None,
        }
    }

    /// As a message of gRPC-Web has them: lines as in HTTP/1.
    fn parse(lines: &[u8]) -> Self {
        let mut trailers = Self::default();
        for line in String::from_utf8_lossy(lines).lines() {
            if let Some((name, value)) = line.split_once(':') {
                trailers.add(&name.trim().to_ascii_lowercase(), value.trim());
            }
        }
        trailers
    }
}

/// The name of a number; of one that has none, what was said.
fn status(value: &str) -> Text {
    let plain = value.bytes().all(|byte| byte.is_ascii_digit()) && (value == "0" || !value.starts_with('0'));
    let number = value.parse::<usize>().ok().filter(|_| plain);
    let known = number.and_then(|number| STATUSES.get(number));
    known.map_or_else(|| text(value.as_bytes()), |name| Text::new_static(name))
}

fn percent_decoded(message: &str) -> String {
    let bytes = message.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let code = bytes.get(at + 1..at + 3).filter(|_| *byte == b'%');
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        out.push(code.unwrap_or(*byte));
        at += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Counts the messages of one side of a call: each has a flag, a length and so many bytes.
#[derive(Debug)]
pub(super) struct Messages {
    flavor: Flavor,
    state: State,
    /// Characters of base64 that do not make a group yet.
    group: [u8; 4],
    grouped: u8,
}

#[derive(Debug)]
enum State {
    Prefix { bytes: [u8; 5], have: u8 },
    Message { left: u64, size: u64 },
    Trailers { left: usize, lines: Vec<u8> },
    Lost,
}

const PREFIX: State = State::Prefix { bytes: [0; 5], have: 0 };

pub(super) enum Found {
    /// It ends so many bytes from the start of what was read.
    Message {
        size: u64,
        end: usize,
    },
    Trailers(Trailers),
    /// It cannot be told where messages start any more; and not how the call ended, where that is one of them.
    Lost {
        ends: bool,
    },
}

impl Found {
    /// As events of a side, where `start` is the position of what was read.
    pub(super) fn tell(
        self,
        side: Side,
        exchange: Option<u64>,
        start: u64,
        shown: Shown,
        events: &mut Vec<Event>,
    ) {
        let (at, what) = match self {
            Found::Message { size, end } => (start + end as u64, What::Message { size }),
            Found::Trailers(trailers) => (start, What::Trailers(Some(Arc::new(trailers.response(shown))))),
            Found::Lost { ends } => {
                if ends {
                    events.push(Event { side, exchange, start, end: start, what: What::Hole });
                }
                (start, What::Uncounted)
            }
        };
        events.push(Event { side, exchange, start: at, end: at, what });
    }
}

impl Messages {
    pub(super) fn new(flavor: Flavor) -> Self {
        Self { flavor, state: PREFIX, group: [0; 4], grouped: 0 }
    }

    pub(super) fn read(&mut self, bytes: &[u8], mut found: impl FnMut(Found)) {
        if self.flavor != Flavor::WebText {
            return self.take(bytes, 0, &mut found);
        }
        for (at, byte) in bytes.iter().enumerate() {
            if matches!(self.state, State::Lost) {
                return;
            }
            if byte.is_ascii_whitespace() {
                continue;
            }
            self.group[usize::from(self.grouped)] = *byte;
            self.grouped += 1;
            if self.grouped == 4 {
                self.grouped = 0;
                match decoded(self.group) {
                    Some((plain, length)) => self.take(&plain[..length], 0, &mut |inside| {
                        found(match inside {
                            Found::Message { size, .. } => Found::Message { size, end: at + 1 },
                            other => other,
                        });
                    }),
                    None => self.lose(&mut found),
                }
            }
        }
    }

    /// `at`: how far `bytes` are from the start of what was read.
    fn take(&mut self, mut bytes: &[u8], mut at: usize, found: &mut impl FnMut(Found)) {
        while !bytes.is_empty() {
            let taken = match &mut self.state {
                State::Lost => return,
                State::Prefix { bytes: prefix, have } => {
                    let missing = &mut prefix[usize::from(*have)..];
                    let taken = missing.len().min(bytes.len());
                    missing[..taken].copy_from_slice(&bytes[..taken]);
                    *have += taken as u8;
                    let prefix = *prefix;
                    if usize::from(*have) == prefix.len() {
                        self.begin(prefix, at + taken, found);
                    }
                    taken
                }
                State::Message { left, size } => {
                    let taken = (bytes.len() as u64).min(*left);
                    *left -= taken;
                    if *left == 0 {
                        found(Found::Message { size: *size, end: at + taken as usize });
                        self.state = PREFIX;
                    }
                    taken as usize
                }
                State::Trailers { left, lines } => {
                    let taken = bytes.len().min(*left);
                    lines.extend_from_slice(&bytes[..taken]);
                    *left -= taken;
                    if *left == 0 {
                        found(Found::Trailers(Trailers::parse(lines)));
                        self.state = PREFIX;
                    }
                    taken
                }
            };
            bytes = &bytes[taken..];
            at += taken;
        }
    }

    fn begin(&mut self, prefix: [u8; 5], at: usize, found: &mut impl FnMut(Found)) {
        let [flag, length @ ..] = prefix;
        let length = u32::from_be_bytes(length);
        self.state = match (flag, length) {
            (0 | 1, 0) => {
                found(Found::Message { size: 0, end: at });
                PREFIX
            }
            (0 | 1, _) => State::Message { left: length.into(), size: length.into() },
            (0x80 | 0x81, 0) if self.flavor.is_web() => PREFIX,
            // Compressed ones are not read.
            (0x80, _) if self.flavor.is_web() && length as usize <= TRAILERS_MAX => {
                State::Trailers { left: length as usize, lines: Vec::new() }
            }
            _ => return self.lose(found),
        };
    }

    fn lose(&mut self, found: &mut impl FnMut(Found)) {
        if !matches!(self.state, State::Lost) {
            self.state = State::Lost;
            found(Found::Lost { ends: self.flavor.is_web() });
        }
    }

    /// So many bytes are missing.
    pub(super) fn skip(&mut self, length: u64, mut found: impl FnMut(Found)) {
        match &mut self.state {
            State::Message { left, size } if self.flavor != Flavor::WebText && length <= *left => {
                *left -= length;
                if *left == 0 {
                    found(Found::Message { size: *size, end: length as usize });
                    self.state = PREFIX;
                }
            }
            _ if length == 0 => {}
            _ => self.lose(&mut found),
        }
    }

    /// Bytes from here on that need not be seen.
    pub(super) fn ahead(&self) -> u64 {
        match &self.state {
            State::Lost => u64::MAX,
            State::Message { left, .. } if self.flavor != Flavor::WebText => *left,
            _ => 0,
        }
    }

    /// Whether nothing of a message is missing at the end.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.state, State::Prefix { have: 0, .. } | State::Lost)
    }
}

/// Three bytes of a group of base64, or fewer where it is padded.
fn decoded(group: [u8; 4]) -> Option<([u8; 3], usize)> {
    let padding = group.iter().rev().take_while(|byte| **byte == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut bits = 0u32;
    for byte in &group[..4 - padding] {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
    }
    let [_, plain @ ..] = (bits << (6 * padding)).to_be_bytes();
    Some((plain, 3 - padding))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(flavor: Flavor, bytes: &[u8], cut: usize) -> (Vec<u64>, Vec<Trailers>, bool) {
        let mut messages = Messages::new(flavor);
        let (mut sizes, mut trailers, mut lost) = (Vec::new(), Vec::new(), false);
        for piece in bytes.chunks(cut) {
            messages.read(piece, |found| match found {
                Found::Message { size, end } => {
                    assert!(end <= piece.len());
                    sizes.push(size);
                }
                Found::Trailers(found) => trailers.push(found),
                Found::Lost { .. } => lost = true,
            });
        }
        (sizes, trailers, lost)
    }

    #[test]
    fn messages_are_counted_in_any_pieces() {
        let bytes = b"\0\0\0\0\x03abc\x01\0\0\0\0\0\0\0\0\x01z";
        for cut in 1..=bytes.len() {
            assert_eq!(read(Flavor::Plain, bytes, cut), (vec![3, 0, 1], vec![], false));
        }
        assert!(read(Flavor::Plain, b"\x02\0\0\0\x01a", 1).2);
    }

    #[test]
    fn trailers_of_the_web_are_a_message() {
        let plain = b"\0\0\0\0\x02hi\x80\0\0\0\x20grpc-status: 5\r\nGRPC-Message: no\r\n";
        let text = b"AAAAAAJoaQ==gAAAACBncnBjLXN0YXR1czogNQ0KR1JQQy1NZXNzYWdlOiBubw0K";
        let trailers =
            Trailers { status: Some(Text::new_static("NOT_FOUND")), message: Some(Text::new_static("no")) };
        for cut in 1..=plain.len() {
            assert_eq!(read(Flavor::Web, plain, cut), (vec![2], vec![trailers.clone()], false));
            assert_eq!(read(Flavor::WebText, text, cut), (vec![2], vec![trailers.clone()], false));
        }
    }

    #[test]
    fn a_gap_inside_a_message_is_harmless() {
        let mut messages = Messages::new(Flavor::Plain);
        let mut sizes = Vec::new();
        let mut lost = false;
        let mut found = |found| match found {
            Found::Message { size, .. } => sizes.push(size),
            Found::Trailers(_) => {}
            Found::Lost { .. } => lost = true,
        };
        messages.read(b"\0\0\0\x01\0ab", &mut found);
        assert_eq!(messages.ahead(), 254);
        messages.skip(254, &mut found);
        messages.read(b"\0\0\0\0\x01", &mut found);
        assert!(!messages.is_whole());
        messages.skip(2, &mut found);
        assert_eq!((sizes, lost), (vec![256], true));
    }

    #[test]
    fn types_timeouts_and_statuses() {
        let flavor = |text: &str| Flavor::of(text.as_bytes());
        assert_eq!(flavor("application/grpc"), Some(Flavor::Plain));
        assert_eq!(flavor("application/grpc+proto"), Some(Flavor::Plain));
        assert_eq!(flavor("application/grpc-web+proto"), Some(Flavor::Web));
        assert_eq!(flavor("application/grpc-web-text"), Some(Flavor::WebText));
        assert_eq!(flavor("Application/gRPC-Web"), Some(Flavor::Web));
        assert_eq!((flavor("application/grpcish"), flavor("application/json")), (None, None));
        assert_eq!(duration("150m").as_deref(), Some("150ms"));
        assert_eq!((duration("123456789S"), duration("S"), duration("1x")), (None, None, None));
        assert_eq!((status("0").as_str(), status("16").as_str()), ("OK", "UNAUTHENTICATED"));
        assert_eq!((status("17").as_str(), status("-1").as_str()), ("17", "-1"));
        assert_eq!((status("+5").as_str(), status("05").as_str()), ("+5", "05"));
        assert_eq!(percent_decoded("a%20b%zz%"), "a b%zz%");
    }

    #[test]
    fn a_status_that_was_not_sent_is_absent() {
        let head = response(Some(200), &Trailers::default(), Shown::default());
        assert!(head.status.is_empty() && head.attributes.is_empty() && !head.client_error);
        let proxy = response(Some(502), &Trailers::default(), Shown::default());
        assert!(proxy.server_error && proxy.status == "502" && proxy.error_type == "502");
        let mut trailers = Trailers::default();
        trailers.add("grpc-status", "5");
        trailers.add("grpc-message", "the%20secret");
        let quiet = response(Some(200), &trailers, Shown::default());
        assert!(quiet.client_error && !quiet.server_error && quiet.attributes.len() == 1);
        let told = response(Some(200), &trailers, Shown { grpc_message: true, ..Shown::default() });
        assert_eq!(told.attributes[1], Attribute::text("tracer.rpc.message", "the secret"));
    }
}
