//! Start lines and fields: what a span needs of them, and the framing of what follows.

use std::{mem::MaybeUninit, sync::Arc};

use super::{
    super::{
        Attribute, Attributes, Kind, RequestHead, ResponseHead, Shown, ToldHeader, Verdict, grpc,
        http::{self, Asked, METHODS, Target, is_event_stream, is_token},
    },
    Method,
};
use crate::propagation::Reader;

/// Fields beyond these are too many for any server.
const FIELDS_FEW: usize = 64;
const FIELDS_MAX: usize = 4096;

/// A start line that looks right for so long is taken for one, and the longest method.
const LINE_LONG: usize = 4096;
const METHOD_MAX: usize = 32;

/// How the content of a message is framed (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Length(u64),
    Chunked,
    UntilClose,
    /// 1xx: the response proper follows.
    Interim,
    /// 101, or 2xx to CONNECT.
    Switch,
    /// The fields contradict each other, or say what nobody understands.
    Broken,
}

#[derive(Debug)]
pub(super) enum HeadError {
    Malformed(&'static str),
}

#[derive(Clone)]
pub(super) struct Request {
    pub(super) head: Arc<RequestHead>,
    /// The client may wait for a word before it sends the content (RFC 9110, section 10.1.1).
    pub(super) expects: bool,
    pub(super) framing: Framing,
    pub(super) method: Method,
    /// It carries messages of gRPC-Web.
    pub(super) call: Option<grpc::Flavor>,
}

#[derive(Clone)]
pub(super) struct Response {
    pub(super) head: Arc<ResponseHead>,
    pub(super) framing: Framing,
    /// As in the request.
    pub(super) call: Option<grpc::Flavor>,
    /// The connection goes on as HTTP/2, with the proper response in it.
    pub(super) upgrades: bool,
}

/// Empty lines before a message, which a recipient skips (RFC 9112, section 2.2).
pub(super) fn blank_lines(bytes: &[u8]) -> usize {
    let mut skipped = 0;
    loop {
        match &bytes[skipped..] {
            [b'\r', b'\n', ..] => skipped += 2,
            [b'\n', ..] => skipped += 1,
            _ => return skipped,
        }
    }
}

/// Length of the head that `bytes` starts with. The first `searched` bytes have no end in them.
pub(super) fn end(bytes: &[u8], searched: usize) -> Option<usize> {
    let mut from = searched.saturating_sub(3);
    while let Some(found) = memchr::memchr(b'\n', &bytes[from..]) {
        let line_end = from + found + 1;
        match &bytes[line_end..] {
            [b'\n', ..] => return Some(line_end + 1),
            [b'\r', b'\n', ..] => return Some(line_end + 2),
            _ => from = line_end,
        }
    }
    None
}

/// A method, a target and `HTTP/1.x`: No as soon as that is impossible, Yes with the whole line (or so
/// much of it that parsing will tell).
pub(super) fn detect_request(bytes: &[u8]) -> Verdict {
    // The rest decides nothing, and can be megabytes.
    let bytes = &bytes[..bytes.len().min(2 * LINE_LONG)];
    let bytes = &bytes[blank_lines(bytes)..];
    let method = bytes.iter().take(METHOD_MAX + 1).take_while(|byte| is_token(**byte)).count();
    if method > METHOD_MAX {
        return Verdict::No;
    }
    match bytes.get(method) {
        None => return Verdict::Unsure,
        Some(b'\r') if method == 0 && bytes.len() == 1 => return Verdict::Unsure,
        Some(b' ') if method > 0 => {}
        Some(_) => return Verdict::No,
    }
    let rest = &bytes[method + 1..];
    let start = &rest[..rest.len().min(LINE_LONG)];
    let line = match memchr::memchr(b'\n', start) {
        Some(end) => &start[..end],
        None if start.iter().any(|byte| is_control(*byte) && *byte != b'\r') => return Verdict::No,
        None if start.len() == LINE_LONG => return Verdict::Yes,
        None => return Verdict::Unsure,
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match line
        .strip_suffix(b"0")
        .or_else(|| line.strip_suffix(b"1"))
        .and_then(|l| l.strip_suffix(b" HTTP/1."))
    {
        Some(target) if !target.is_empty() && !target.iter().any(|byte| is_control(*byte)) => Verdict::Yes,
        _ => Verdict::No,
    }
}

/// As [`detect_request`], with a method that is known: what is left of a request whose start is missing
/// can look like one with another.
pub(super) fn detect_known_request(bytes: &[u8]) -> Verdict {
    // No more than a method is looked at: what follows can be megabytes.
    let start = &bytes[..bytes.len().min(METHOD_MAX)];
    let method = start.split(|byte| *byte == b' ').next().unwrap_or_default();
    let known = METHODS.iter().any(|known| match method.len() == bytes.len() {
        true => known.as_bytes().starts_with(method),
        false => known.as_bytes() == method,
    });
    if known { detect_request(bytes) } else { Verdict::No }
}

pub(super) fn detect_response(bytes: &[u8]) -> Verdict {
    const START: &[u8] = b"HTTP/1.";
    let bytes = &bytes[..bytes.len().min(LINE_LONG)];
    let bytes = &bytes[blank_lines(bytes)..];
    let same = START.len().min(bytes.len());
    if bytes[..same] != START[..same] {
        return if bytes == b"\r" { Verdict::Unsure } else { Verdict::No };
    }
    match &bytes[same..] {
        [b'0' | b'1', b' ', a, b, c, ..] if [a, b, c].iter().all(|byte| byte.is_ascii_digit()) => {
            Verdict::Yes
        }
        rest if rest.len() >= 5 => Verdict::No,
        _ => Verdict::Unsure,
    }
}

pub(super) fn parse_request(bytes: &[u8], kind: Kind, shown: Shown) -> Result<Request, HeadError> {
    match parse_plain_request(bytes, kind, shown, false) {
        Ok(Some(request)) => Ok(request),
        // What is rare is looked for only when something is odd.
        Ok(None) => {
            let unfolded = unfolded(bytes);
            let bytes = unfolded.as_deref().unwrap_or(bytes);
            parse_plain_request(bytes, kind, shown, true)
                .and_then(|request| request.ok_or(HeadError::Malformed("a malformed head")))
        }
        Err(error) => {
            let line = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
            if bytes[..line].is_ascii() {
                return Err(error);
            }
            parse_request(&percent_encoded(&bytes[..line], &bytes[line..]), kind, shown)
        }
    }
}

/// None if a line is no field, and `odd` ones are not taken.
fn parse_plain_request(
    bytes: &[u8],
    kind: Kind,
    shown: Shown,
    odd: bool,
) -> Result<Option<Request>, HeadError> {
    with_fields(|fields| {
        let mut config = httparse::ParserConfig::default();
        config.ignore_invalid_headers_in_requests(true);
        let mut request = httparse::Request::new(&mut []);
        config.parse_request_with_uninit_headers(&mut request, bytes, fields)?;
        // The start line, one for each field, and the empty one.
        if !odd && memchr::memchr_iter(b'\n', bytes).count() != request.headers.len() + 2 {
            return Ok(Ok(None));
        }
        Ok(request_from(&request, odd && hides_framing(bytes), kind, shown).map(Some))
    })?
}

/// Lines that go on with white space are one (obsolete folding, RFC 9112, section 5.2): what a recipient
/// that takes them makes of them. None where there are none.
fn unfolded(bytes: &[u8]) -> Option<Vec<u8>> {
    let folds = |at: usize| matches!(bytes.get(at + 1), Some(b' ' | b'\t'));
    // What follows the start line is no field: that is left as it is.
    let first = memchr::memchr(b'\n', bytes)?;
    let mut lines = memchr::memchr_iter(b'\n', bytes).filter(|at| *at != first);
    lines.find(|at| folds(*at))?;
    let mut joined = bytes.to_vec();
    for at in memchr::memchr_iter(b'\n', bytes).filter(|at| *at != first && folds(*at)) {
        joined[at] = b' ';
        if joined[at - 1] == b'\r' {
            joined[at - 1] = b' ';
        }
    }
    Some(joined)
}

/// Whether a field that frames the message has white space before its colon: some recipients take it,
/// others do not (RFC 9112, section 5.1).
fn hides_framing(bytes: &[u8]) -> bool {
    let spaced = [&b" :"[..], b"\t:"].iter().any(|pair| memchr::memmem::find(bytes, pair).is_some());
    spaced
        && bytes.split(|byte| *byte == b'\n').any(|line| {
            [&b"content-length"[..], b"transfer-encoding"].iter().any(|name| {
                line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
                    && line[name.len()..].first().is_some_and(|byte| b" \t".contains(byte))
                    && line[name.len()..].trim_ascii_start().first() == Some(&b':')
            })
        })
}

pub(super) fn parse_response(bytes: &[u8], method: Method, shown: Shown) -> Result<Response, HeadError> {
    with_fields(|fields| {
        let mut config = httparse::ParserConfig::default();
        config.allow_obsolete_multiline_headers_in_responses(true);
        config.allow_spaces_after_header_name_in_responses(true);
        config.ignore_invalid_headers_in_responses(true);
        let mut response = httparse::Response::new(&mut []);
        config.parse_response_with_uninit_headers(&mut response, bytes, fields)?;
        Ok(response_from(&response, method, shown))
    })?
}

/// A start line with bytes that are not ASCII, as a URL would have them.
fn percent_encoded(line: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(line.len() * 3 + rest.len());
    for byte in line {
        if byte.is_ascii() {
            bytes.push(*byte);
        } else {
            bytes.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    bytes.extend_from_slice(rest);
    bytes
}

/// Parses with a few fields, and once more with many where those are not enough.
fn with_fields<'b, T>(
    parse: impl for<'h> Fn(&'h mut [MaybeUninit<httparse::Header<'b>>]) -> Result<T, httparse::Error>,
) -> Result<T, HeadError> {
    let mut result = parse(&mut [const { MaybeUninit::uninit() }; FIELDS_FEW]);
    if matches!(result, Err(httparse::Error::TooManyHeaders)) {
        let mut many = Vec::new();
        many.resize_with(FIELDS_MAX, MaybeUninit::uninit);
        result = parse(&mut many);
    }
    result.map_err(|error| {
        HeadError::Malformed(match error {
            httparse::Error::TooManyHeaders => "more fields than any server takes",
            httparse::Error::HeaderName => "a field name that is not a token",
            httparse::Error::HeaderValue => "a control character in a field value",
            httparse::Error::Status => "a status line that is not one",
            httparse::Error::Token => "a method that is not a token",
            httparse::Error::Version => "a version that is not HTTP/1",
            _ => "a malformed head",
        })
    })
}

fn request_from(
    request: &httparse::Request<'_, '_>,
    hidden: bool,
    kind: Kind,
    shown: Shown,
) -> Result<Request, HeadError> {
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(HeadError::Malformed("a head without a start line"));
    };
    let fields = Fields::of(request.headers, Some(shown.correlation));
    let framing = match fields.length {
        _ if hidden => Framing::Broken,
        _ if fields.chunked => Framing::Chunked,
        // Chunked has to be the last coding of a request.
        _ if fields.transfer_encoding => Framing::Broken,
        Length::Contradictory => Framing::Broken,
        Length::Known(length) => Framing::Length(length),
        Length::Absent => Framing::Length(0),
    };
    let mut notes = Attributes::new();
    if let Some(ambiguity) = fields.ambiguity(version == 0, hidden) {
        notes.push(Attribute::word("tracer.ambiguity", ambiguity));
    }
    tell(request.headers, shown.request_headers, &mut notes);
    let host = fields.host.map(String::from_utf8_lossy);
    let asked = Asked {
        method: Some(method),
        target: Some(Target::of(target, method == "CONNECT")),
        host: host.as_deref(),
        version: if version == 0 { "1.0" } else { "1.1" },
        user_agent: fields.user_agent.map(http::text),
        notes,
        told: shown.query,
    };
    let call = fields.content_type.and_then(grpc::Flavor::of).filter(|flavor| flavor.is_web());
    let head = match call {
        Some(_) => grpc::request(&asked, None),
        None => http::request(&asked, kind),
    };
    let head = Arc::new(RequestHead { propagated: fields.propagation.read(), ..head });
    let method = match method {
        "HEAD" => Method::Head,
        "CONNECT" => Method::Connect,
        _ => Method::Other,
    };
    Ok(Request { head, expects: fields.expects, framing, method, call })
}

fn response_from(
    response: &httparse::Response<'_, '_>,
    method: Method,
    shown: Shown,
) -> Result<Response, HeadError> {
    let Some(status) = response.code else {
        return Err(HeadError::Malformed("a head without a status"));
    };
    let fields = Fields::of(response.headers, None);
    let upgrades = status == 101 && fields.upgrade.is_some_and(|to| to.eq_ignore_ascii_case(b"h2c"));
    let framing = match status {
        101 => Framing::Switch,
        100..=199 => Framing::Interim,
        200..=299 if method == Method::Connect => Framing::Switch,
        204 | 304 => Framing::None,
        _ if method == Method::Head => Framing::None,
        _ if fields.chunked => Framing::Chunked,
        _ if fields.transfer_encoding => Framing::UntilClose,
        _ => match fields.length {
            Length::Contradictory => Framing::Broken,
            Length::Known(length) => Framing::Length(length),
            Length::Absent => Framing::UntilClose,
        },
    };
    let stream = match status {
        101 if fields.upgrade.is_some_and(|to| to.eq_ignore_ascii_case(b"websocket")) => Some("websocket"),
        101 => Some("upgrade"),
        200..=299 if method == Method::Connect => Some("tunnel"),
        200..=299 if method == Method::Other && fields.content_type.is_some_and(is_event_stream) => {
            Some("event_stream")
        }
        _ => None,
    };
    let mut notes = Attributes::new();
    if let Some(ambiguity) = fields.ambiguity(response.version == Some(0), false) {
        notes.push(Attribute::word("tracer.ambiguity", ambiguity));
    }
    tell(response.headers, shown.response_headers, &mut notes);
    let call = fields.content_type.and_then(grpc::Flavor::of).filter(|flavor| flavor.is_web());
    let head = match call {
        Some(_) => {
            let mut head = grpc::response(Some(status), &fields.grpc, shown);
            head.attributes.extend(notes);
            head
        }
        None => http::response(status, stream, notes),
    };
    Ok(Response { head: Arc::new(head), framing, call, upgrades })
}

/// Adds the values of the fields that are asked for: several of one name as one (RFC 9110, section 5.3).
fn tell(headers: &[httparse::Header<'_>], told: &[ToldHeader], notes: &mut Attributes) {
    for ToldHeader { name, key } in told {
        let values = headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        let values: Vec<&[u8]> = values.map(|header| header.value.trim_ascii()).collect();
        if !values.is_empty() {
            notes.push(Attribute::text(key, http::text(&values.join(&b", "[..]))));
        }
    }
}

/// The fields that framing and the span need.
#[derive(Default)]
struct Fields<'a> {
    length: Length,
    /// There is any, also one that is none of them.
    has_length: bool,
    transfer_encoding: bool,
    chunked: bool,
    expects: bool,
    upgrade: Option<&'a [u8]>,
    content_type: Option<&'a [u8]>,
    /// What a response of gRPC-Web without messages says.
    grpc: grpc::Trailers,
    host: Option<&'a [u8]>,
    user_agent: Option<&'a [u8]>,
    propagation: Reader,
}

#[derive(Clone, Copy, Default)]
enum Length {
    #[default]
    Absent,
    Known(u64),
    /// Several that differ, or not a number.
    Contradictory,
}

impl<'a> Fields<'a> {
    /// Those in `correlation` have ids of requests; a response has none.
    fn of(headers: &[httparse::Header<'a>], correlation: Option<&'static [&'static str]>) -> Self {
        let mut fields =
            Fields { propagation: Reader::new(correlation.unwrap_or_default()), ..Fields::default() };
        for header in headers {
            let value = header.value.trim_ascii();
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            // Most fields are none of these, and told by their length.
            match header.name.len() {
                14 if is("content-length") => {
                    fields.has_length = true;
                    for part in value.split(|byte| *byte == b',') {
                        fields.add_length(part.trim_ascii());
                    }
                }
                17 if is("transfer-encoding") => {
                    for coding in value.split(|byte| *byte == b',') {
                        fields.add_coding(coding.trim_ascii());
                    }
                }
                4 if is("host") => fields.host = fields.host.or(Some(value)),
                6 if is("expect") => fields.expects |= value.eq_ignore_ascii_case(b"100-continue"),
                7 if is("upgrade") => fields.upgrade = fields.upgrade.or(Some(value)),
                11 | 12 if header.name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("grpc-")) => {
                    fields.grpc.add(&header.name.to_ascii_lowercase(), &String::from_utf8_lossy(value));
                }
                12 if is("content-type") => fields.content_type = fields.content_type.or(Some(value)),
                10 if is("user-agent") => fields.user_agent = fields.user_agent.or(Some(value)),
                _ if correlation.is_some() => {
                    fields.propagation.take(header.name, || Some(http::text(value)));
                }
                _ => {}
            }
        }
        fields
    }

    /// What recipients read in different ways: where one message ends for one of them, another may begin
    /// (RFC 9112, section 11.2).
    fn ambiguity(&self, old: bool, hidden: bool) -> Option<&'static str> {
        if hidden {
            return Some("white space before the colon of a framing field");
        }
        match self.length {
            _ if self.transfer_encoding && self.has_length => {
                Some("both Transfer-Encoding and Content-Length")
            }
            _ if self.transfer_encoding && old => Some("Transfer-Encoding in HTTP/1.0"),
            _ if self.transfer_encoding && !self.chunked => {
                Some("Transfer-Encoding that does not end chunked")
            }
            Length::Contradictory => Some("Content-Length that is none, or several"),
            _ => None,
        }
    }

    /// The same length several times is one length (RFC 9112, section 6.3).
    fn add_length(&mut self, value: &[u8]) {
        let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|value| value.parse().ok());
        self.length = match (self.length, length) {
            (Length::Absent, Some(length)) => Length::Known(length),
            (Length::Known(before), Some(length)) if before == length => Length::Known(length),
            _ => Length::Contradictory,
        };
    }

    /// Identity is no coding, though some still send it (RFC 7230, appendix A.2).
    fn add_coding(&mut self, coding: &[u8]) {
        if coding.is_empty() || coding.eq_ignore_ascii_case(b"identity") {
            return;
        }
        self.transfer_encoding = true;
        self.chunked = coding.eq_ignore_ascii_case(b"chunked");
    }
}

fn is_control(byte: u8) -> bool {
    byte < b' ' || byte == 0x7f
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: Shown = Shown {
        grpc_message: false,
        correlation: &[],
        query: &["page"],
        request_headers: &[ToldHeader { name: "accept", key: "http.request.header.accept" }],
        response_headers: &[ToldHeader { name: "server", key: "http.response.header.server" }],
    };

    fn told(attributes: &[Attribute], key: &str) -> Option<String> {
        let found = attributes.iter().find(|attribute| attribute.key == key)?;
        Some(format!("{:?}", found.value))
    }

    #[test]
    fn only_what_is_asked_for_is_told() {
        let head =
            b"GET /a?page=2&token=abc HTTP/1.1\r\nHost: a\r\nAccept: b\r\naccept: c\r\nCookie: d\r\n\r\n";
        let request = parse_request(head, Kind::Server, SHOWN).unwrap().head;
        let attributes = &request.common.attributes;
        assert_eq!(told(attributes, "url.query").unwrap(), r#"Text("page=2&token=REDACTED")"#);
        assert_eq!(told(attributes, "http.request.header.accept").unwrap(), r#"Text("b, c")"#);
        assert!(!format!("{attributes:?}").contains("cookie"));
        let plain = parse_request(head, Kind::Server, Shown::default()).unwrap().head;
        assert_eq!(
            told(&plain.common.attributes, "url.query").unwrap(),
            r#"Text("page=REDACTED&token=REDACTED")"#
        );
        assert_eq!(told(&plain.common.attributes, "http.request.header.accept"), None);
        let head = b"HTTP/1.1 200 OK\r\nServer: x\r\nSet-Cookie: y\r\nContent-Length: 0\r\n\r\n";
        let response = parse_response(head, Method::Other, SHOWN).unwrap().head;
        assert_eq!(told(&response.attributes, "http.response.header.server").unwrap(), r#"Text("x")"#);
        assert!(!format!("{:?}", response.attributes).contains("cookie"));
    }
}
