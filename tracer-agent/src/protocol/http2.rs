//! HTTP/2 (RFC 9113) without TLS, both directions of one connection: by prior knowledge, by an upgrade from
//! HTTP/1.1 (RFC 7540, section 3.2), or joined while it goes on.
//!
//! Streams are independent: any number is in flight, and they end in any order. Content is counted, and not
//! looked at but for the messages of calls.

mod fields;
mod frame;
mod gaps;
mod hpack;
mod known;
mod state;
mod streams;

use std::{collections::BTreeSet, sync::Arc};

use self::{
    fields::Fields,
    frame::{Frame, HEADER, PREFACE, code, content, flag, is_settings, kind, speaker},
    hpack::Decoder,
    state::{Data, Reader, State, Stream},
    streams::Streams,
};
use super::{
    Attribute, Class, Event, Framing, Input, Kind, Progress, Protocol, Session, Shown, Side, Start, Text,
    Verdict, What,
    grpc::{self, Flavor, Found, Messages},
    http,
    measure::Measure,
};
use crate::connection::stream::{After, Marks};

/// The largest header block that is waited for, with its frames.
const BLOCK_MAX: usize = 256 * 1024;

/// The largest frame of other kinds that is waited for.
const CONTROL_MAX: usize = 64 * 1024;

/// Content from this size on is large.
const BULK: u64 = 256 * 1024;

/// Frames that one block may go on in.
const CONTINUATIONS_MAX: usize = 64;

/// Why fields are not known: by a table that was filled before, or by a gap.
const JOINED: &str = "joined";
const GAP: &str = "gap";

/// Why a stream has no answer that the server will not look at.
const GOAWAY: Text = Text::new_static("GOAWAY");

pub(super) struct Http2;

impl Protocol for Http2 {
    fn name(&self) -> &'static str {
        "http2"
    }

    fn exchanges(&self) -> &'static [&'static str] {
        &[http::NAME, grpc::NAME]
    }

    fn measures(&self) -> &'static [&'static Measure] {
        &[&http::MEASURE, &grpc::MEASURE]
    }

    fn detect(&self, side: Side, bytes: &[u8]) -> Verdict {
        match (side, Frame::parse(bytes)) {
            (Side::Request, _) => frame::preface(bytes),
            // A server may begin before the client does: that alone is no proof.
            (Side::Response, Some(frame)) if is_settings(&frame) => Verdict::Unsure,
            (Side::Response, None) if matches!(bytes, [] | [0] | [0, 0..=1] | [0, 0..=1, _]) => {
                Verdict::Unsure
            }
            (Side::Response, None) if matches!(bytes, [0, 0..=1, _, kind::SETTINGS, ..]) => Verdict::Unsure,
            (Side::Response, _) => Verdict::No,
        }
    }

    fn joins(&self, side: Side, bytes: &[u8], position: u64, marks: Marks<'_>) -> Start {
        frame::find(side, bytes, position, marks)
    }

    fn speaker(&self, bytes: &[u8]) -> Option<Side> {
        let mut rest = bytes;
        loop {
            let frame = Frame::parse(rest)?;
            if frame.kind == kind::HEADERS {
                let block = content(&frame, rest.get(HEADER..frame.whole())?)?;
                // Before the first field the size of the table may change.
                let first = block.iter().find(|byte| !(0x20..0x40).contains(*byte));
                if let Some(side) = first.and_then(|first| speaker(*first)) {
                    return Some(side);
                }
            }
            rest = rest.get(frame.whole()..)?;
        }
    }

    fn framing(&self) -> Option<Framing> {
        let mut prefix = [0; 16];
        prefix.copy_from_slice(&PREFACE[..16]);
        Some(Framing {
            prefix,
            prefix_length: PREFACE.len() as u32,
            header: HEADER as u32,
            length_at: 0,
            length_size: 3,
            kind_at: 3,
            // What extensions have in use lies below it.
            kinds: 0x20,
            content: 1 << kind::DATA,
        })
    }

    fn session(&self, fresh: [bool; 2], kind: Kind, shown: Shown) -> Box<dyn Session> {
        let sides = Side::BOTH.map(|side| Reader {
            state: match side {
                Side::Request if fresh[0] => State::Preface,
                // It may have been another protocol's at first.
                Side::Response if fresh == [true; 2] => State::Settings,
                _ => State::Lost,
            },
            table: Decoder::new((!fresh[side.index()]).then_some(JOINED)),
            ..Reader::default()
        });
        let missed = !fresh[Side::Request.index()];
        Box::new(Dialogue { kind, shown, sides, request_missed: missed, ..Dialogue::default() })
    }
}

/// The connection goes on after HTTP/1.1: the response to `exchange` is the first that comes, and `next` the
/// first exchange of its own.
pub(super) fn upgraded(exchange: u64, next: u64, kind: Kind, shown: Shown) -> Box<dyn Session> {
    let mut dialogue = Dialogue { kind, shown, next, highest: 1, ..Dialogue::default() };
    dialogue.sides[0].state = State::Preface;
    dialogue.sides[1].state = State::Settings;
    let mut stream = Stream::new(exchange, 0);
    stream.sides[Side::Request.index()].ended = true;
    dialogue.streams.insert(1, stream);
    Box::new(dialogue)
}

struct Dialogue {
    kind: Kind,
    shown: Shown,
    sides: [Reader; 2],
    streams: Streams,
    /// The id of the next exchange.
    next: u64,
    /// The highest stream that a client has opened.
    highest: u32,
    /// Requests were missed between the highest stream and the next one.
    request_missed: bool,
    /// Streams whose requests were missed, from the first to the last of each stretch.
    missed: Vec<(u32, u32)>,
    /// Streams that may have ended in a gap.
    doubts: BTreeSet<u32>,
    /// Streams above the highest that were answered: their requests are lost, or not found yet.
    early: BTreeSet<u32>,
    /// The last stream that the server looks at, once it has said so.
    last: Option<u32>,
    /// Bytes that heads take which may still be needed, and messages that are held.
    extra: usize,
    /// Some content was large; there were calls, whose messages are counted.
    bulk: bool,
    calls: bool,
}

impl Default for Dialogue {
    fn default() -> Self {
        Self {
            kind: Kind::Server,
            shown: Shown::default(),
            sides: [Reader::default(), Reader::default()],
            streams: Streams::default(),
            next: 0,
            highest: 0,
            request_missed: false,
            missed: Vec::new(),
            doubts: BTreeSet::new(),
            early: BTreeSet::new(),
            last: None,
            extra: 0,
            bulk: false,
            calls: false,
        }
    }
}

impl Session for Dialogue {
    fn read(&mut self, side: Side, input: &Input<'_>, events: &mut Vec<Event>) -> Progress {
        let progress = match self.sides[side.index()].state {
            State::Preface => self.read_preface(input),
            State::Settings | State::Frame => self.read_frame(side, input, events),
            State::Data(data) => self.read_data(side, data, input, events),
            State::Skip(left) => self.skip(side, left, input, events),
            State::Lost => self.find(side, input, events),
        };
        let length = if let Progress::Read { length, .. } = progress { length } else { 0 };
        let reader = &mut self.sides[side.index()];
        reader.waits = progress == Progress::Wait;
        let end = input.position + input.bytes.len() as u64;
        reader.needs_more = (progress == Progress::NeedMore).then_some(end);
        if length > 0 {
            // What it waits for may be there now.
            self.sides[side.other().index()].waits = false;
        }
        progress
    }

    fn content_ahead(&self, side: Side) -> u64 {
        let State::Data(data) = self.sides[side.index()].state else { return 0 };
        let stream = self.streams.get(data.stream);
        let messages = stream.and_then(|stream| stream.sides[side.index()].messages.as_ref());
        messages.map_or(u64::MAX, Messages::ahead).min(data.content)
    }

    fn held(&self) -> usize {
        /// With its place among them.
        const STREAM: usize = size_of::<Stream>() * 3 / 2;
        let sides: usize = self.sides.iter().map(Reader::held).sum();
        size_of::<Self>() + self.streams.len() * STREAM + sides + self.extra
    }

    fn is_bulk(&self) -> bool {
        self.bulk && !self.calls
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn is_certain(&self) -> bool {
        self.sides.iter().all(|reader| reader.spoke)
    }
}

impl Dialogue {
    fn read_preface(&mut self, input: &Input<'_>) -> Progress {
        let reader = &mut self.sides[Side::Request.index()];
        match frame::preface(input.bytes) {
            Verdict::No => return Progress::Invalid("no preface of HTTP/2"),
            Verdict::Yes => {
                reader.state = State::Settings;
                return Progress::Read { length: PREFACE.len() as u64, class: Class::Parsed };
            }
            Verdict::Unsure => {}
        }
        match input.after {
            After::More => Progress::NeedMore,
            After::Gap(_) => {
                reader.lose(GAP);
                self.request_missed = true;
                input.skip_all()
            }
            After::End(_) => input.skip_all(),
        }
    }

    fn read_frame(&mut self, side: Side, input: &Input<'_>, events: &mut Vec<Event>) -> Progress {
        let Some(frame) = Frame::parse(input.bytes) else { return self.unfinished(side, input, events) };
        let reader = &mut self.sides[side.index()];
        if matches!(reader.state, State::Settings) && !is_settings(&frame) {
            return Progress::Invalid("the other side did not speak HTTP/2");
        }
        let on_stream = frame.stream != 0;
        let fits = match frame.kind {
            kind::DATA | kind::HEADERS | kind::PUSH_PROMISE => on_stream,
            kind::RST_STREAM => on_stream && frame.length == 4,
            kind::SETTINGS => !on_stream && frame.length.is_multiple_of(6),
            kind::GOAWAY => !on_stream && frame.length >= 8,
            _ => true,
        };
        if !fits {
            // A peer would end the connection; what seems to be a frame may be none.
            self.lose(side, input, events);
            return Progress::Read { length: HEADER as u64, class: Class::Unparsed };
        }
        let progress = match frame.kind {
            // Frames of one block are read together: of this one the start was missed.
            kind::CONTINUATION => self.skip_block(side, &frame, input),
            kind::DATA => return self.begin_data(side, &frame, input, events),
            kind::HEADERS | kind::PUSH_PROMISE => return self.read_block(side, &frame, input, events),
            kind::RST_STREAM | kind::GOAWAY if frame.length <= CONTROL_MAX => {
                let Some(payload) = input.bytes.get(HEADER..frame.whole()) else {
                    return self.unfinished(side, input, events);
                };
                if frame.kind == kind::RST_STREAM {
                    self.read_reset(side, &frame, payload, input, events)
                } else {
                    self.read_goaway(side, payload, input, events)
                }
            }
            _ => self.skip_frame(side, &frame, input),
        };
        if let Progress::Read { .. } = progress {
            self.sides[side.index()].spoke = true;
        }
        progress
    }

    /// What is there does not make a frame, or a block.
    fn unfinished(&mut self, side: Side, input: &Input<'_>, events: &mut Vec<Event>) -> Progress {
        match input.after {
            After::More => Progress::NeedMore,
            After::Gap(_) => {
                self.lose(side, input, events);
                input.skip_all()
            }
            After::End(_) => input.skip_all(),
        }
    }

    /// Its length is all that matters of a frame.
    fn skip_frame(&mut self, side: Side, frame: &Frame, input: &Input<'_>) -> Progress {
        let there = frame.whole().min(input.bytes.len());
        let left = (frame.whole() - there) as u64;
        self.sides[side.index()].state = if left == 0 { State::Frame } else { State::Skip(left) };
        Progress::Read { length: there as u64, class: Class::Parsed }
    }

    fn skip(&mut self, side: Side, left: u64, input: &Input<'_>, events: &mut Vec<Event>) -> Progress {
        let there = input.there();
        if there == 0 {
            return Progress::NeedMore;
        }
        if input.bytes.is_empty() && there > left {
            self.lose(side, input, events);
            return Progress::Read { length: there, class: Class::Unparsed };
        }
        let length = there.min(left);
        self.sides[side.index()].state =
            if length == left { State::Frame } else { State::Skip(left - length) };
        Progress::Read { length, class: Class::Parsed }
    }

    fn begin_data(
        &mut self,
        side: Side,
        frame: &Frame,
        input: &Input<'_>,
        events: &mut Vec<Event>,
    ) -> Progress {
        let (mut head, mut padding) = (HEADER, 0);
        if frame.has(flag::PADDED) {
            let Some(length) = input.bytes.get(HEADER) else { return self.unfinished(side, input, events) };
            (head, padding) = (HEADER + 1, usize::from(*length));
        }
        let Some(content) = frame.whole().checked_sub(head + padding) else {
            return self.skip_frame(side, frame, input);
        };
        let data = Data {
            stream: frame.stream,
            content: content as u64,
            padding: padding as u64,
            ends: frame.has(flag::END_STREAM),
        };
        self.sides[side.index()].spoke = true;
        self.go_on(side, data, input.position + head as u64, events);
        Progress::Read { length: head as u64, class: Class::Parsed }
    }

    /// To what is left of a frame of content, or behind it.
    fn go_on(&mut self, side: Side, data: Data, at: u64, events: &mut Vec<Event>) {
        let over = data.content == 0 && data.padding == 0;
        self.sides[side.index()].state = if over { State::Frame } else { State::Data(data) };
        if over && data.ends {
            self.end(side, data.stream, at, events);
        }
    }

    fn read_data(&mut self, side: Side, data: Data, input: &Input<'_>, events: &mut Vec<Event>) -> Progress {
        let there = input.there();
        if there == 0 {
            return Progress::NeedMore;
        }
        if input.bytes.is_empty() && there > data.content + data.padding {
            self.lose(side, input, events);
            return Progress::Read { length: there, class: Class::Unparsed };
        }
        let (length, class, left) = if data.content > 0 {
            let length = there.min(data.content);
            self.take_content(side, data.stream, length, input, events);
            (length, Class::Body, Data { content: data.content - length, ..data })
        } else {
            let length = there.min(data.padding);
            (length, Class::Parsed, Data { padding: data.padding - length, ..data })
        };
        self.go_on(side, left, input.position + length, events);
        Progress::Read { length, class }
    }

    fn take_content(&mut self, side: Side, id: u32, length: u64, input: &Input<'_>, events: &mut Vec<Event>) {
        // That of a stream that began before, or is over, is nobody's.
        let Some(stream) = self.streams.get_mut(id) else { return };
        let (exchange, shown, start) = (Some(stream.exchange), self.shown, input.position);
        let message = &mut stream.sides[side.index()];
        message.doubtful = false;
        message.content += length;
        self.bulk |= message.content > BULK;
        let what = What::Data { length };
        events.push(Event { side, exchange, start, end: start + length, what });
        let Some(messages) = &mut message.messages else { return };
        let found = |found: Found| found.tell(side, exchange, start, shown, events);
        match input.bytes.get(..length as usize) {
            Some(bytes) if !input.bytes.is_empty() => messages.read(bytes, found),
            _ => messages.skip(length, found),
        }
    }

    /// A block of fields, with the frames that it goes on in.
    fn read_block(
        &mut self,
        side: Side,
        frame: &Frame,
        input: &Input<'_>,
        events: &mut Vec<Event>,
    ) -> Progress {
        let mut at = frame.whole();
        let mut pieces = Vec::new();
        let Some(payload) = input.bytes.get(HEADER..at) else {
            return self.unfinished_block(side, at, input, events);
        };
        let Some(first) = content(frame, payload) else { return self.skip_block(side, frame, input) };
        let mut last = *frame;
        while !last.has(flag::END_HEADERS) {
            if pieces.len() >= CONTINUATIONS_MAX {
                return self.unfinished_block(side, usize::MAX, input, events);
            }
            let Some(next) = input.bytes.get(at..).and_then(Frame::parse) else {
                return self.unfinished_block(side, at + HEADER, input, events);
            };
            if next.kind != kind::CONTINUATION || next.stream != frame.stream {
                self.lose(side, input, events);
                return Progress::Read { length: at as u64, class: Class::Unparsed };
            }
            let Some(piece) = input.bytes.get(at + HEADER..at + next.whole()) else {
                return self.unfinished_block(side, at + next.whole(), input, events);
            };
            pieces.push(piece);
            at += next.whole();
            last = next;
        }
        if frame.kind == kind::HEADERS && self.must_wait(side, frame.stream, input) {
            return Progress::Wait;
        }
        let joined;
        let block = if pieces.is_empty() {
            first
        } else {
            joined = [&[first], &pieces[..]].concat().concat();
            &joined[..]
        };
        let ends = frame.has(flag::END_STREAM);
        let reader = &mut self.sides[side.index()];
        let mut known = reader.known[usize::from(ends)].take().unwrap_or_default();
        known.read(block, &mut reader.table, self.shown);
        reader.state = State::Frame;
        reader.spoke = true;
        if frame.kind == kind::HEADERS {
            let block = Block {
                stream: frame.stream,
                start: input.position,
                end: input.position + at as u64,
                opposite: input.marks.at(input.position).map_or(0, |mark| mark.opposite),
            };
            match side {
                Side::Request => self.handle_request(&block, &known.fields, ends, events),
                Side::Response => self.handle_response(&block, &known.fields, events),
            }
            if ends {
                self.end(side, frame.stream, block.end, events);
            }
        }
        self.sides[side.index()].known[usize::from(ends)] = Some(known);
        Progress::Read { length: at as u64, class: Class::Parsed }
    }

    /// A part of a block that cannot be decoded: what it inserts into the table is not known.
    fn skip_block(&mut self, side: Side, frame: &Frame, input: &Input<'_>) -> Progress {
        self.sides[side.index()].table.forget(GAP);
        self.request_missed |= side == Side::Request;
        self.skip_frame(side, frame, input)
    }

    /// More has to come, as far as `needed` at least.
    fn unfinished_block(
        &mut self,
        side: Side,
        needed: usize,
        input: &Input<'_>,
        events: &mut Vec<Event>,
    ) -> Progress {
        if needed <= BLOCK_MAX {
            return self.unfinished(side, input, events);
        }
        self.lose(side, input, events);
        Progress::Read { length: input.bytes.len() as u64, class: Class::Unparsed }
    }

    /// Whether what is said of the stream has to be held against what the other side said before.
    fn must_wait(&self, side: Side, id: u32, input: &Input<'_>) -> bool {
        side == Side::Response && id > self.highest && id % 2 == 1 && self.is_ahead(side, input)
    }

    /// Whether the other side can still be read up to where it was when the first byte of the input moved.
    fn is_ahead(&self, side: Side, input: &Input<'_>) -> bool {
        let other = &self.sides[side.other().index()];
        let opposite = input.marks.at(input.position).map_or(0, |mark| mark.opposite);
        let (front, end) = input.other;
        let stuck = other.waits || other.needs_more == Some(end);
        front < opposite && !(input.settled && stuck)
    }

    fn handle_request(&mut self, block: &Block, fields: &Fields, ends: bool, events: &mut Vec<Event>) {
        let id = block.stream;
        if let Some(stream) = self.streams.get_mut(id) {
            stream.sides[Side::Request.index()].doubtful = false;
            return events.push(block.event(Side::Request, stream, What::Trailers(None)));
        }
        // Trailers of a request that is over, or began before.
        if id <= self.highest || id.is_multiple_of(2) {
            return;
        }
        // Trailers end the stream; what does not is a head, whether that shows or not.
        if !fields.asks && (ends || fields.missing().is_none()) {
            self.miss(id, id);
            return;
        }
        if std::mem::take(&mut self.request_missed) {
            self.miss(self.highest + 1, id - 1);
        }
        self.highest = id;
        let mut stream = Stream::new(self.next, block.opposite);
        self.next += 1;
        stream.call = fields.call();
        stream.told = fields.missing().is_some();
        stream.connects = fields.connects();
        let is_call = stream.call.is_some();
        if fields.is_vague() {
            stream.vague = Some(Arc::new(fields.request_as(self.kind, true)));
        }
        stream.sides[Side::Request.index()].messages = stream.call.map(Messages::new);
        self.calls |= is_call;
        let what = What::Request(fields.request(self.kind));
        events.push(block.event(Side::Request, &stream, what));
        if self.last.is_some_and(|last| id > last) {
            events.push(block.event(Side::Response, &stream, What::Abandoned { error: GOAWAY }));
            return;
        }
        let answering = &mut stream.sides[Side::Response.index()];
        if self.sides[Side::Response.index()].missed > block.opposite {
            // What was missed of the responses had not moved yet when this was asked.
            answering.hole = true;
            answering.doubtful = true;
            self.doubts.insert(id);
            events.push(block.event(Side::Response, &stream, What::Hole));
        }
        if self.early.remove(&id) {
            // The request was found only after its response had gone by.
            stream.sides[Side::Response.index()].ended = true;
            events.push(block.event(Side::Response, &stream, What::Cut));
        }
        self.extra += stream.extra();
        self.streams.insert(id, stream);
        self.give_up_doubtful(block.end, events);
    }

    fn remove(&mut self, id: u32) -> Option<Box<Stream>> {
        let stream = self.streams.remove(id)?;
        self.extra = self.extra.saturating_sub(stream.extra());
        self.doubts.remove(&id);
        Some(stream)
    }

    fn handle_response(&mut self, block: &Block, fields: &Fields, events: &mut Vec<Event>) {
        let (id, shown) = (block.stream, self.shown);
        self.remember_early(id);
        let Some(stream) = self.streams.get_mut(id) else { return };
        if stream.call.is_none()
            && let Some(call) = fields.call().or(fields.ends_a_call().then_some(Flavor::Plain))
            && let Some(head) = stream.vague.take()
        {
            // Only now it shows that it is a call; its messages were not looked at.
            self.extra = self.extra.saturating_sub(head.cost());
            stream.call = Some(call);
            self.extra += stream.extra();
            self.calls = true;
            events.push(block.event(Side::Request, stream, What::Revised(head)));
            events.push(block.event(Side::Request, stream, What::Uncounted));
        }
        stream.sides[Side::Response.index()].doubtful = false;
        let is_call = stream.call.is_some();
        let tells = !stream.told && fields.missing().is_some();
        stream.told |= tells;
        let what = if fields.is_interim() {
            let status = fields.status.map(|status| Attribute::number("http.response.status_code", status));
            What::Interim { attributes: status.into_iter().collect() }
        } else if fields.answers || !stream.answered && fields.missing().is_some() {
            stream.answered = true;
            let flavor = fields.call().filter(|_| is_call).or(stream.call);
            stream.sides[Side::Response.index()].messages = flavor.map(Messages::new);
            What::Response(fields.response(is_call, stream.connects, tells, shown))
        } else {
            What::Trailers(fields.trailers(is_call, tells, shown))
        };
        events.push(block.event(Side::Response, stream, what));
    }

    /// One side has said all of a stream.
    fn end(&mut self, side: Side, id: u32, at: u64, events: &mut Vec<Event>) {
        let Some(stream) = self.streams.get_mut(id) else {
            if side == Side::Response && self.is_missed(id) {
                let what = What::Response(Arc::default());
                events.push(Event { side, exchange: None, start: at, end: at, what });
            }
            return;
        };
        let message = &mut stream.sides[side.index()];
        if message.ended {
            return;
        }
        message.ended = true;
        let key = match side {
            Side::Request => "http.request.body.size",
            Side::Response => "http.response.body.size",
        };
        let is_counted = stream.call.is_none() && !message.hole;
        let attribute = is_counted.then(|| Attribute::number(key, message.content));
        let exchange = Some(stream.exchange);
        let event = |side, what| Event { side, exchange, start: at, end: at, what };
        // Of a call whose head was not seen, or is cut within a message.
        let counted = message.messages.as_ref().is_some_and(Messages::is_whole);
        if let Some(call) = stream.call.filter(|_| !counted) {
            events.push(event(side, What::Uncounted));
            if call.is_web() && side == Side::Response {
                events.push(event(side, What::Hole));
            }
        }
        events.push(event(side, What::End { attribute }));
        let asking = &stream.sides[Side::Request.index()];
        let over = stream.sides.iter().all(|message| message.ended);
        if !over && side == Side::Response && asking.doubtful {
            // Whatever was to come of the request lies in the gap, or does not matter.
            events.push(event(Side::Request, What::Cut));
        } else if !over {
            return;
        }
        self.remove(id);
    }

    fn read_reset(
        &mut self,
        side: Side,
        frame: &Frame,
        payload: &[u8],
        input: &Input<'_>,
        events: &mut Vec<Event>,
    ) -> Progress {
        // What the other side had said before counts.
        if self.is_ahead(side, input) {
            return Progress::Wait;
        }
        let (at, end) = (input.position, input.position + frame.whole() as u64);
        match self.remove(frame.stream) {
            Some(stream) => {
                let exchange = Some(stream.exchange);
                let event = |side, what| Event { side, exchange, start: at, end, what };
                // All was said: the rest of the request is not wanted, or not sent.
                let said = stream.sides[Side::Response.index()].ended;
                let lost = matches!(self.sides[side.other().index()].state, State::Lost);
                if !said && lost {
                    // What was said before may be among bytes where no frame was found yet.
                    events.push(event(side.other(), What::Hole));
                }
                events.push(match said {
                    true => event(Side::Request, What::Over),
                    false => event(side, What::Abandoned { error: code(payload) }),
                });
            }
            None if side == Side::Response && self.is_missed(frame.stream) => {
                self.remember_early(frame.stream);
                let what = What::Response(Arc::default());
                events.push(Event { side, exchange: None, start: at, end, what });
            }
            None if side == Side::Response => self.remember_early(frame.stream),
            None => {}
        }
        self.sides[side.index()].state = State::Frame;
        Progress::Read { length: frame.whole() as u64, class: Class::Parsed }
    }

    /// The peer says which streams it has not looked at, and will not.
    fn read_goaway(
        &mut self,
        side: Side,
        payload: &[u8],
        input: &Input<'_>,
        events: &mut Vec<Event>,
    ) -> Progress {
        let last = payload.first_chunk::<4>().map_or(0, |last| u32::from_be_bytes(*last) & 0x7fff_ffff);
        let length = (HEADER + payload.len()) as u64;
        if side == Side::Response {
            if self.is_ahead(side, input) {
                return Progress::Wait;
            }
            self.last = Some(last);
            for id in self.streams.above(last) {
                let said = self.streams.get(id).is_some_and(|stream| stream.sides[side.index()].ended);
                if let Some(stream) = self.remove(id).filter(|_| !said) {
                    let (start, end) = (input.position, input.position + length);
                    let what = What::Abandoned { error: GOAWAY };
                    events.push(Event { side, exchange: Some(stream.exchange), start, end, what });
                }
            }
        }
        self.sides[side.index()].state = State::Frame;
        Progress::Read { length, class: Class::Parsed }
    }
}

/// Where a block stands.
struct Block {
    stream: u32,
    start: u64,
    end: u64,
    /// Where the other side stood.
    opposite: u64,
}

impl Block {
    fn event(&self, side: Side, stream: &Stream, what: What) -> Event {
        Event { side, exchange: Some(stream.exchange), start: self.start, end: self.end, what }
    }
}
