//! Frames of HTTP/2 (RFC 9113, sections 4 and 6): their headers, and where one can start.

use crate::{
    connection::stream::Marks,
    protocol::{Side, Start, Text, Verdict},
};

/// Bytes of a frame's header.
pub(super) const HEADER: usize = 9;

pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether the bytes start with it, as far as there are any.
pub(super) fn preface(bytes: &[u8]) -> Verdict {
    let known = bytes.len().min(PREFACE.len());
    match bytes[..known] == PREFACE[..known] {
        false => Verdict::No,
        true if known == PREFACE.len() => Verdict::Yes,
        true => Verdict::Unsure,
    }
}

pub(super) mod kind {
    pub(in super::super) const DATA: u8 = 0;
    pub(in super::super) const HEADERS: u8 = 1;
    pub(in super::super) const PRIORITY: u8 = 2;
    pub(in super::super) const RST_STREAM: u8 = 3;
    pub(in super::super) const SETTINGS: u8 = 4;
    pub(in super::super) const PUSH_PROMISE: u8 = 5;
    pub(in super::super) const PING: u8 = 6;
    pub(in super::super) const GOAWAY: u8 = 7;
    pub(in super::super) const WINDOW_UPDATE: u8 = 8;
    pub(in super::super) const CONTINUATION: u8 = 9;
}

pub(super) mod flag {
    pub(in super::super) const END_STREAM: u8 = 0x1;
    /// Of SETTINGS and PING.
    pub(in super::super) const ACK: u8 = 0x1;
    pub(in super::super) const END_HEADERS: u8 = 0x4;
    pub(in super::super) const PADDED: u8 = 0x8;
    pub(in super::super) const PRIORITY: u8 = 0x20;
}

/// Names of error codes (section 7), by number.
const ERRORS: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

/// The name of an error code, where it has one.
pub(super) fn error_name(code: u32) -> Option<&'static str> {
    ERRORS.get(code as usize).copied()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    /// A bit that has to be unset.
    reserved: bool,
}

impl Frame {
    /// None if there are not enough bytes.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, w, x, y, z] = *bytes.first_chunk::<HEADER>()?;
        Some(Self {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([w & 0x7f, x, y, z]),
            reserved: w & 0x80 != 0,
        })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether a block that has begun here has to go on in `next`, and can.
    fn goes_on_in(&self, next: &Frame) -> bool {
        let begins = matches!(self.kind, kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION);
        begins && !self.has(flag::END_HEADERS) && next.stream == self.stream
    }

    pub(super) fn whole(&self) -> usize {
        HEADER + self.length
    }

    /// Whether a peer that keeps to the rules sends it: what is asked of the bytes of a connection that was
    /// joined. No side sends frames that only the other may. More is asked of one without another `before` it.
    fn is_strict(&self, side: Side, before: Option<Self>) -> bool {
        /// A larger one has to be allowed by the peer, and hides the next header for long.
        const LENGTH_MAX: usize = (1 << 16) - 1;
        /// ALTSVC, ORIGIN (RFC 7838, 8336) and PRIORITY_UPDATE (RFC 9218).
        const EXTENSIONS: [u8; 3] = [0xa, 0xc, 0x10];
        let first = before.is_none();
        let (on_stream, flags) = (self.stream % 2 == 1, self.flags);
        let fits = match self.kind {
            // An empty one says that the stream ends, or nothing.
            kind::DATA => {
                let empty = self.length == 0 && flags & flag::END_STREAM == 0;
                let same = before.is_some_and(|before| before.stream == self.stream);
                on_stream && flags & !(flag::END_STREAM | flag::PADDED) == 0 && (!empty || same)
            }
            kind::HEADERS => on_stream && flags & !0x2d == 0 && self.length > 0,
            kind::PRIORITY => self.stream != 0 && flags == 0 && self.length == 5,
            kind::RST_STREAM => on_stream && flags == 0 && self.length == 4,
            kind::SETTINGS => {
                let acknowledges = flags == flag::ACK && self.length == 0;
                self.stream == 0 && (acknowledges || flags == 0 && self.length.is_multiple_of(6))
            }
            kind::PUSH_PROMISE => side == Side::Response && on_stream && flags & !0xc == 0 && self.length > 4,
            kind::PING => self.stream == 0 && flags & !flag::ACK == 0 && self.length == 8,
            kind::GOAWAY => self.stream == 0 && flags == 0 && self.length >= 8,
            kind::WINDOW_UPDATE => flags == 0 && self.length == 4,
            kind::CONTINUATION => on_stream && flags & !flag::END_HEADERS == 0,
            kind => !first && EXTENSIONS.contains(&kind) && self.length > 0,
        };
        fits && !self.reserved && (!first || self.length <= LENGTH_MAX)
    }
}

/// Headers in a row that prove where frames start.
const HEADERS_PROVE: usize = 3;

/// Looks for frames that tile: three headers in a row, two where the record of a call starts or ends with
/// them, or one frame that is all of a record. `position` is that of the first of `bytes`.
pub(super) fn find(side: Side, bytes: &[u8], position: u64, marks: Marks<'_>) -> Start {
    let mut possible = None;
    // The upper byte of a length that is looked for.
    for at in memchr::memchr_iter(0, bytes) {
        match tiles(side, &bytes[at..], position + at as u64, marks) {
            Some(true) => return Start::At(at),
            Some(false) => {}
            None => possible = possible.or(Some(at)),
        }
    }
    Start::NotBefore(possible.unwrap_or(bytes.len()))
}

/// None if that cannot be told yet.
fn tiles(side: Side, bytes: &[u8], position: u64, marks: Marks<'_>) -> Option<bool> {
    // Where calls start and end frames do, and next to nothing else of this form; if one call has all of it.
    let record_end = marks.next_start(position).unwrap_or(u64::MAX);
    let starts = marks.starts_at(position);
    let mut at = 0;
    let mut before: Option<Frame> = None;
    for headers in 1..=HEADERS_PROVE {
        let rest = bytes.get(at..)?;
        let Some(frame) = Frame::parse(rest) else {
            return if matches!(rest, [] | [0, ..]) { None } else { Some(false) };
        };
        let follows = before.is_some_and(|before| before.goes_on_in(&frame));
        let continues = frame.kind == kind::CONTINUATION;
        if !frame.is_strict(side, before) || !is_possible(&frame, &rest[HEADER..]) || follows != continues {
            return Some(false);
        }
        at += frame.whole();
        before = Some(frame);
        let end = position + at as u64;
        let evidence = headers + usize::from(starts && record_end >= end) + usize::from(record_end == end);
        if evidence >= HEADERS_PROVE {
            return Some(true);
        }
    }
    Some(true)
}

/// What a few payloads cannot hold.
fn is_possible(frame: &Frame, payload: &[u8]) -> bool {
    let word = payload.first_chunk::<4>().map(|word| u32::from_be_bytes(*word));
    match (frame.kind, word) {
        (kind::RST_STREAM, Some(code)) => error_name(code).is_some(),
        (kind::WINDOW_UPDATE, Some(size)) => size != 0 && size < 1 << 31,
        _ => true,
    }
}

/// Which side has fields at its start that stand in the static table at these places (RFC 7541, appendix A):
/// 1 to 7 are those of a request, 8 to 14 the status.
pub(super) fn speaker(first: u8) -> Option<Side> {
    let index = match first {
        0x80.. => first & 0x7f,
        0x40.. => first & 0x3f,
        _ => first & 0xf,
    };
    match index {
        1..=7 => Some(Side::Request),
        8..=14 => Some(Side::Response),
        _ => None,
    }
}

pub(super) fn is_settings(frame: &Frame) -> bool {
    frame.kind == kind::SETTINGS && frame.stream == 0 && frame.length.is_multiple_of(6) && frame.flags == 0
}

/// The part of a block in a frame that begins one; None if that is not possible.
pub(super) fn content<'a>(frame: &Frame, payload: &'a [u8]) -> Option<&'a [u8]> {
    let (mut payload, mut padding) = (payload, 0);
    if frame.has(flag::PADDED) {
        let (length, rest) = payload.split_first()?;
        (payload, padding) = (rest, usize::from(*length));
    }
    let before = match frame.kind {
        // The stream that is promised.
        kind::PUSH_PROMISE => 4,
        _ if frame.has(flag::PRIORITY) => 5,
        _ => 0,
    };
    payload.get(before..payload.len().checked_sub(padding)?)
}

/// The name of an error code, or its number.
pub(super) fn code(payload: &[u8]) -> Text {
    let code = payload.first_chunk::<4>().map_or(0, |code| u32::from_be_bytes(*code));
    error_name(code).map_or_else(|| smol_str::format_smolstr!("{code:#x}"), Text::new_static)
}
