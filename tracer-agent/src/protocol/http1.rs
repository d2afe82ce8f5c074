//! HTTP/1.0 and HTTP/1.1 (RFC 9112), both directions of one connection.
//!
//! Heads are parsed by httparse once their end was found; framing is followed as a recipient has to
//! (RFC 9112, section 6.3). Content is counted and not looked at.

mod body;
mod head;
mod last;

use std::collections::VecDeque;

use self::{
    body::{Body, Piece},
    head::{Framing, HeadError, Request, Response},
    last::Last,
};
use super::{
    Attribute, Class, Event, Input, Kind, Progress, Protocol, ResponseHead, Session, Shown, Side, Verdict,
    What,
    grpc::{self, Messages},
    http, http2,
    measure::Measure,
};
use crate::connection::stream::After;

/// The largest head that is waited for.
const HEAD_MAX: usize = 256 * 1024;

/// A start line is looked at again while a head has no more bytes than these.
const DETECT_MAX: usize = 256;

/// Requests that may wait for their response on one connection.
const PENDING_MAX: usize = 1 << 16;

pub(super) struct Http1;

impl Protocol for Http1 {
    fn name(&self) -> &'static str {
        "http"
    }

    fn exchanges(&self) -> &'static [&'static str] {
        &[http::NAME, grpc::NAME]
    }

    fn measures(&self) -> &'static [&'static Measure] {
        &[&http::MEASURE, &grpc::MEASURE]
    }

    fn detect(&self, side: Side, bytes: &[u8]) -> Verdict {
        detect(side, bytes)
    }

    fn session(&self, fresh: [bool; 2], kind: Kind, shown: Shown) -> Box<dyn Session> {
        Box::new(Dialogue {
            kind,
            shown,
            sides: fresh.map(|fresh| Reader {
                state: if fresh { State::Head { searched: 0 } } else { State::Lost },
                doubtful: !fresh,
                ..Reader::default()
            }),
            pending: VecDeque::new(),
            next: 0,
            // Asked before this was seen, and not answered yet.
            request_missed: fresh == [false, true],
            upgraded: None,
            asked: Last::default(),
            answered: Last::default(),
        })
    }
}

struct Dialogue {
    kind: Kind,
    shown: Shown,
    sides: [Reader; 2],
    /// Requests whose response did not come yet, in their order.
    pending: VecDeque<Pending>,
    next: u64,
    /// A gap hid at least one request, and no sign of its response was seen yet.
    request_missed: bool,
    /// The exchange whose response comes in HTTP/2, which follows.
    upgraded: Option<u64>,
    /// The last heads. What a response says depends on what was asked.
    asked: Last<Request>,
    answered: Last<(Method, Response)>,
}

/// What the response's framing and its place depend on.
#[derive(Clone, Copy, Debug)]
struct Pending {
    exchange: u64,
    method: Method,
    /// Where the request starts, and where the responses stood then.
    start: u64,
    opposite: u64,
    /// Requests before it may have been missed.
    after_gap: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Head,
    Connect,
    Other,
}

/// How far one side was read.
#[derive(Default)]
struct Reader {
    state: State,
    /// The exchange of the message that is read, and its content so far.
    exchange: Option<u64>,
    content: u64,
    /// Reads the messages in the content, where it has some.
    messages: Option<Messages>,
    /// Something was missed since the last head, so the order of messages proves nothing.
    doubtful: bool,
    /// A message of it was read.
    spoke: bool,
    /// Where it was read up to; not known before anything was.
    front: Option<u64>,
    /// Content may wait for the other side's word, and need not come where that is a refusal.
    expectation: Expectation,
    /// What came is not looked at before the other side was read up to this position.
    stalled: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expectation {
    #[default]
    None,
    Open,
    Refused,
}

/// What came where content was announced.
enum Expected {
    Content,
    /// Something else, or it cannot be told yet.
    Other(Progress),
    /// It is missing: content, or the next request.
    Unclear,
}

#[derive(Default)]
enum State {
    Head {
        /// Bytes that were searched for the end of the head.
        searched: usize,
    },
    Body(Body),
    /// Where the next message starts is not known.
    #[default]
    Lost,
    /// Nothing follows.
    Done,
    /// The connection was switched to something else.
    Opaque,
}

impl Session for Dialogue {
    fn read(&mut self, side: Side, input: &Input<'_>, events: &mut Vec<Event>) -> Progress {
        // Where it stood when the other side was first seen, it begins.
        let other = &mut self.sides[side.other().index()];
        if other.front.is_none() {
            other.front = input.marks.at(input.position).map(|mark| mark.opposite);
        }
        if self.upgraded.is_some() && matches!(self.sides[side.index()].state, State::Head { .. }) {
            // The request came to its end: what follows is the other protocol's.
            self.sides[side.index()].state = State::Opaque;
        }
        let switched = self.sides.iter().all(|reader| matches!(reader.state, State::Opaque));
        let progress = match self.sides[side.index()].state {
            State::Opaque if !switched => Progress::Wait,
            State::Head { searched } => self.read_head(side, searched, input, events),
            State::Body(_) => self.read_body(side, input, events),
            State::Lost => self.find_head(side, input, events),
            State::Done => input.skip_all(),
            State::Opaque if self.upgraded.is_some() => Progress::Switch("upgraded to HTTP/2"),
            State::Opaque => Progress::Switch("upgraded"),
        };
        let length = if let Progress::Read { length, .. } = progress { length } else { 0 };
        self.sides[side.index()].front = Some(input.position + length);
        progress
    }

    fn content_ahead(&self, side: Side) -> u64 {
        match &self.sides[side.index()].state {
            // After a refusal it may not come.
            State::Body(body) if self.sides[side.index()].expectation == Expectation::None => {
                let messages = self.sides[side.index()].messages.as_ref();
                messages.map_or(u64::MAX, Messages::ahead).min(body.ahead())
            }
            _ => 0,
        }
    }

    fn successor(&mut self) -> Option<(&'static str, Box<dyn Session>)> {
        let exchange = self.upgraded.take()?;
        Some((http2::Http2.name(), http2::upgraded(exchange, self.next, self.kind, self.shown)))
    }

    fn held(&self) -> usize {
        /// What is made of a head takes about as much.
        const REQUEST: usize = 1024;
        const RESPONSE: usize = size_of::<ResponseHead>();
        let heads = self.asked.held(REQUEST) + self.answered.held(RESPONSE);
        size_of::<Self>() + self.pending.capacity() * size_of::<Pending>() + heads
    }
}

impl Dialogue {
    fn read_head(
        &mut self,
        side: Side,
        searched: usize,
        input: &Input<'_>,
        events: &mut Vec<Event>,
    ) -> Progress {
        let same = match side {
            Side::Request => self.asked.starts(input.bytes),
            Side::Response => self.answered.starts(input.bytes),
        };
        let blank = if same.is_some() { 0 } else { head::blank_lines(input.bytes) };
        if blank > 0 {
            self.sides[side.index()].state = State::Head { searched: 0 };
            return Progress::Read { length: blank as u64, class: Class::Parsed };
        }
        let Some(length) = same.or_else(|| head::end(input.bytes, searched)) else {
            return self.read_partial_head(side, searched, input);
        };
        match side {
            Side::Request => self.read_request(&input.bytes[..length], input, events),
            Side::Response => self.read_response(&input.bytes[..length], input, events),
        }
    }

    fn read_partial_head(&mut self, side: Side, searched: usize, input: &Input<'_>) -> Progress {
        let reader = &mut self.sides[side.index()];
        match input.after {
            After::More if input.bytes.len() > HEAD_MAX => {
                self.lose(side);
                Progress::Read { length: input.bytes.len() as u64, class: Class::Unparsed }
            }
            After::More => {
                // Asked while there is little: a long head in small pieces is not gone over again.
                if searched < DETECT_MAX && detect(side, input.bytes) == Verdict::No {
                    return self.invalid(side, "the start line is not one of HTTP", input);
                }
                reader.state = State::Head { searched: input.bytes.len() };
                Progress::NeedMore
            }
            After::Gap(_) => {
                self.lose(side);
                input.skip_all()
            }
            After::End(_) => {
                reader.state = State::Done;
                input.skip_all()
            }
        }
    }

    /// Something was missed: the next message has to be found.
    fn lose(&mut self, side: Side) {
        let reader = &mut self.sides[side.index()];
        reader.state = State::Lost;
        reader.doubtful = true;
        reader.expectation = Expectation::None;
        reader.stalled = None;
        self.request_missed = side == Side::Request;
    }

    /// Where the message that is read goes on cannot be told.
    fn cut(&mut self, side: Side, at: u64, events: &mut Vec<Event>) {
        if self.sides[side.index()].messages.take().is_some() {
            events.push(self.sides[side.index()].event(side, at, at, What::Uncounted));
        }
        events.push(self.sides[side.index()].event(side, at, at, What::Cut));
        self.lose(side);
    }

    /// A head that is none: the connection is not what it seemed, unless it was before, or something
    /// was missed.
    fn invalid(&mut self, side: Side, reason: &'static str, input: &Input<'_>) -> Progress {
        let opposite = input.marks.at(input.position).map_or(0, |mark| mark.opposite);
        let behind = input.other.0 < opposite;
        if side == Side::Request && !self.pending.is_empty() && (!input.settled || behind) {
            // It moved after an answer that is still to come, or to be read: that may have switched the
            // protocol.
            return Progress::Wait;
        }
        let reader = &self.sides[side.index()];
        if !reader.doubtful && !reader.spoke {
            return Progress::Invalid(reason);
        }
        self.lose(side);
        skip_record(input)
    }

    fn read_request(&mut self, bytes: &[u8], input: &Input<'_>, events: &mut Vec<Event>) -> Progress {
        let request = match self.asked.said(bytes) {
            Some(request) => request.clone(),
            None => match head::parse_request(bytes, self.kind, self.shown) {
                Ok(request) => {
                    self.asked.keep(bytes, request.clone());
                    request
                }
                Err(HeadError::Malformed(reason)) => return self.invalid(Side::Request, reason, input),
            },
        };
        let Request { head, expects, framing, method, call } = request;
        if self.pending.len() >= PENDING_MAX {
            return Progress::Invalid("more requests without a response than are followed");
        }
        let exchange = self.next;
        self.next += 1;
        let (start, end) = (input.position, input.position + bytes.len() as u64);
        let opposite = input.marks.at(start).map_or(0, |mark| mark.opposite);
        let after_gap = self.request_missed && self.sides[Side::Request.index()].doubtful;
        self.pending.push_back(Pending { exchange, method, start, opposite, after_gap });
        events.push(Event {
            side: Side::Request,
            exchange: Some(exchange),
            start,
            end,
            what: What::Request(head),
        });
        let reader = &mut self.sides[Side::Request.index()];
        reader.doubtful = false;
        reader.messages = call.map(Messages::new);
        reader.begin(Side::Request, Some(exchange), framing, end, events);
        reader.expectation = if expects { Expectation::Open } else { Expectation::None };
        if framing == Framing::Broken {
            self.cut(Side::Request, end, events);
            // Nothing is missing but where it ends.
            self.request_missed = false;
        }
        Progress::Read { length: bytes.len() as u64, class: Class::Parsed }
    }

    fn read_response(&mut self, bytes: &[u8], input: &Input<'_>, events: &mut Vec<Event>) -> Progress {
        let start = input.position;
        let opposite = input.marks.at(start).map_or(u64::MAX, |mark| mark.opposite);
        // Its request was moved before it: one that starts later is not it.
        let asked = self.pending.iter().take_while(|pending| pending.start < opposite).count();
        // The request may stand where the other side was not read yet.
        let stalled = self.sides[Side::Request.index()].stalled.is_some_and(|until| until <= start);
        if asked == 0 && (!input.settled || stalled) {
            return Progress::Wait;
        }
        let doubtful = self.sides[Side::Response.index()].doubtful;
        let place = match asked {
            0 => None,
            _ if doubtful => self.place_after_gap(asked, start),
            _ => Some(0),
        };
        // The response may as well be that of a request that was missed.
        let place = place.filter(|place| !(self.request_missed && self.pending[*place].after_gap));
        let method = place.map_or(Method::Other, |place| self.pending[place].method);
        let said = self.answered.said(bytes).filter(|(asked, _)| *asked == method);
        let Response { head, framing, call, upgrades } = match said {
            Some((_, response)) => response.clone(),
            None => match head::parse_response(bytes, method, self.shown) {
                Ok(response) => {
                    self.answered.keep(bytes, (method, response.clone()));
                    response
                }
                Err(HeadError::Malformed(reason)) => return self.invalid(Side::Response, reason, input),
            },
        };
        // Those before it were answered in the gap; without a place, none of them can be told.
        let passed = place.unwrap_or(asked);
        for missed in self.pending.drain(..passed) {
            events.push(Event {
                side: Side::Response,
                exchange: Some(missed.exchange),
                start,
                end: start,
                what: What::Cut,
            });
        }
        let exchange = place.map(|_| self.pending[0].exchange);
        self.sides[Side::Response.index()].doubtful = false;
        let end = start + bytes.len() as u64;
        let event = |what| Event { side: Side::Response, exchange, start, end, what };
        let asking = &mut self.sides[Side::Request.index()];
        if exchange.is_some() && asking.exchange == exchange && asking.expectation != Expectation::None {
            let interim = matches!(framing, Framing::Interim);
            asking.expectation = if interim { Expectation::None } else { Expectation::Refused };
            if interim {
                asking.stalled = None;
            }
        }
        let reader = &mut self.sides[Side::Response.index()];
        if matches!(framing, Framing::Interim) {
            events.push(event(What::Interim { attributes: head.attributes.to_vec() }));
            reader.state = State::Head { searched: 0 };
            return Progress::Read { length: bytes.len() as u64, class: Class::Parsed };
        }
        if upgrades && exchange.is_some() {
            // The response proper is the first in the new protocol (RFC 7540, section 3.2).
            events.push(event(What::Interim { attributes: head.attributes.to_vec() }));
            self.pending.pop_front();
            // Requests that were sent without waiting for it get no answer that can be told.
            for missed in std::mem::take(&mut self.pending) {
                let exchange = Some(missed.exchange);
                events.push(Event { side: Side::Response, exchange, start, end: start, what: What::Cut });
            }
            self.sides[Side::Response.index()].state = State::Opaque;
            self.upgraded = exchange;
            return Progress::Read { length: bytes.len() as u64, class: Class::Parsed };
        }
        events.push(event(What::Response(head)));
        if place.is_none() {
            // It may have answered a HEAD: whether content follows is not known.
            self.lose(Side::Response);
            return Progress::Read { length: bytes.len() as u64, class: Class::Parsed };
        }
        self.pending.pop_front();
        let reader = &mut self.sides[Side::Response.index()];
        if matches!(framing, Framing::Switch) {
            events.push(event(What::End { attribute: None }));
            for side in &mut self.sides {
                side.state = State::Opaque;
            }
        } else {
            reader.messages = call.map(Messages::new);
            reader.begin(Side::Response, exchange, framing, end, events);
            if framing == Framing::Broken {
                self.cut(Side::Response, end, events);
            }
        }
        Progress::Read { length: bytes.len() as u64, class: Class::Parsed }
    }

    /// Which of the first `asked` pending requests a response at `start` answers, when responses
    /// before it were missed. A request was read or written when the responses stood at `opposite`:
    /// where that is just here, the response is the next thing that was sent after it.
    fn place_after_gap(&self, asked: usize, start: u64) -> Option<usize> {
        let place = (0..asked).find(|place| self.pending[*place].opposite >= start)?;
        // Two that were moved without an answer between them were sent without waiting: then the one
        // that stands here may answer any of them.
        let positions = self.pending.iter().take(asked).map(|pending| pending.opposite);
        let waited = positions.clone().zip(positions.skip(1)).take(place + 1).all(|(a, b)| a < b);
        (self.pending[place].opposite == start && waited).then_some(place)
    }

    fn read_body(&mut self, side: Side, input: &Input<'_>, events: &mut Vec<Event>) -> Progress {
        let answered = self.sides[side.other().index()].front;
        let reader = &mut self.sides[side.index()];
        if reader.expectation != Expectation::None && (!input.bytes.is_empty() || input.after != After::More)
        {
            match reader.read_expected(input, answered, events) {
                Expected::Content => reader.expectation = Expectation::None,
                Expected::Other(progress) => return progress,
                Expected::Unclear => {
                    self.cut(side, input.position, events);
                    return input.skip_all();
                }
            }
        }
        let State::Body(body) = &mut reader.state else { return Progress::NeedMore };
        if input.bytes.is_empty() {
            match input.after {
                After::More => return Progress::NeedMore,
                After::Gap(gap) => {
                    let Some(length) = body.skip(gap.length) else {
                        self.cut(side, input.position, events);
                        return Progress::Read { length: gap.length, class: Class::Unparsed };
                    };
                    let (exchange, shown) = (reader.exchange, self.shown);
                    if let Some(messages) = &mut reader.messages {
                        messages.skip(length, |found| {
                            found.tell(side, exchange, input.position, shown, events);
                        });
                    }
                    reader.take(side, input.position, length, events);
                    return Progress::Read { length, class: Class::Body };
                }
                After::End(ending) => {
                    let whole = body.may_end(ending);
                    reader.end(side, input.position, whole, events);
                    reader.state = State::Done;
                    return Progress::NeedMore;
                }
            }
        }
        match body.read(input.bytes) {
            Piece::Content(length) => {
                let (exchange, shown) = (reader.exchange, self.shown);
                if let Some(messages) = &mut reader.messages {
                    messages.read(&input.bytes[..length], |found| {
                        found.tell(side, exchange, input.position, shown, events);
                    });
                }
                reader.take(side, input.position, length as u64, events);
                Progress::Read { length: length as u64, class: Class::Body }
            }
            Piece::Framing { length, trailers, end } => {
                let after = input.position + length as u64;
                if trailers {
                    events.push(reader.event(side, input.position, after, What::Trailers(None)));
                }
                if end {
                    reader.end(side, after, true, events);
                }
                Progress::Read { length: length as u64, class: Class::Parsed }
            }
            Piece::Unfinished => match input.after {
                After::More => Progress::NeedMore,
                After::Gap(_) => {
                    self.cut(side, input.position, events);
                    input.skip_all()
                }
                After::End(_) => {
                    reader.end(side, input.position, false, events);
                    reader.state = State::Done;
                    input.skip_all()
                }
            },
            Piece::Malformed => {
                self.cut(side, input.position, events);
                skip_record(input)
            }
        }
    }

    /// The responses ended at `end` without a sign of those that are pending. What was sent after a
    /// request was read may have been its response; where nothing was, there was none.
    fn hide_pending(&mut self, end: u64, events: &mut Vec<Event>) {
        self.pending.retain(|pending| {
            let hidden = pending.opposite < end;
            if hidden {
                let exchange = Some(pending.exchange);
                events.push(Event { side: Side::Response, exchange, start: end, end, what: What::Cut });
            }
            !hidden
        });
    }

    /// Looks for the next message, where a record starts with what can be one.
    fn find_head(&mut self, side: Side, input: &Input<'_>, events: &mut Vec<Event>) -> Progress {
        if input.bytes.is_empty() {
            if side == Side::Response && matches!(input.after, After::End(_)) {
                self.hide_pending(input.position, events);
            }
            return input.skip_all();
        }
        if !input.marks.starts_at(input.position) {
            return skip_record(input);
        }
        let detected = match side {
            Side::Request => head::detect_known_request(input.bytes),
            Side::Response => head::detect_response(input.bytes),
        };
        match (detected, input.after) {
            (Verdict::Yes, _) => {
                self.sides[side.index()].state = State::Head { searched: 0 };
                // Nothing is taken: the head is read next.
                Progress::Read { length: 0, class: Class::Parsed }
            }
            (Verdict::Unsure, After::More) => Progress::NeedMore,
            _ => skip_record(input),
        }
    }
}

impl Reader {
    fn event(&self, side: Side, start: u64, end: u64, what: What) -> Event {
        Event { side, exchange: self.exchange, start, end, what }
    }

    /// After a head: the content follows.
    fn begin(
        &mut self,
        side: Side,
        exchange: Option<u64>,
        framing: Framing,
        at: u64,
        events: &mut Vec<Event>,
    ) {
        self.exchange = exchange;
        self.stalled = None;
        self.content = 0;
        self.spoke = true;
        match Body::new(framing) {
            Some(body) => self.state = State::Body(body),
            None => self.end(side, at, true, events),
        }
    }

    /// Content that may be none: after a refusal the next request can come in its place.
    fn read_expected(
        &mut self,
        input: &Input<'_>,
        answered: Option<u64>,
        events: &mut Vec<Event>,
    ) -> Expected {
        let opposite = input.marks.at(input.position).map_or(0, |mark| mark.opposite);
        self.stalled = None;
        let ends = matches!(input.after, After::End(_)) && input.bytes.is_empty();
        match self.expectation {
            _ if ends => Expected::Content,
            // An answer that was there before it may be the refusal.
            Expectation::Open if answered.is_some_and(|answered| answered < opposite) => {
                self.stalled = Some(opposite);
                Expected::Other(Progress::Wait)
            }
            Expectation::Refused if input.bytes.is_empty() => Expected::Unclear,
            Expectation::Refused if input.marks.starts_at(input.position) => {
                match (head::detect_known_request(input.bytes), input.after) {
                    (Verdict::Yes, _) => {
                        self.expectation = Expectation::None;
                        self.end(Side::Request, input.position, true, events);
                        Expected::Other(Progress::Read { length: 0, class: Class::Parsed })
                    }
                    (Verdict::Unsure, After::More) => Expected::Other(Progress::NeedMore),
                    (Verdict::Unsure, _) => Expected::Unclear,
                    (Verdict::No, _) => Expected::Content,
                }
            }
            _ => Expected::Content,
        }
    }

    fn take(&mut self, side: Side, position: u64, length: u64, events: &mut Vec<Event>) {
        self.content += length;
        events.push(self.event(side, position, position + length, What::Data { length }));
        if let State::Body(body) = &self.state
            && body.is_whole()
        {
            self.end(side, position + length, true, events);
        }
    }

    fn end(&mut self, side: Side, at: u64, whole: bool, events: &mut Vec<Event>) {
        let key = match side {
            Side::Request => "http.request.body.size",
            Side::Response => "http.response.body.size",
        };
        let attribute = Some(Attribute::number(key, self.content));
        if self.messages.take().is_some_and(|messages| !messages.is_whole()) {
            events.push(self.event(side, at, at, What::Uncounted));
        }
        let what = if whole { What::End { attribute } } else { What::Reset { attribute } };
        events.push(self.event(side, at, at, what));
        self.state = State::Head { searched: 0 };
    }
}

fn detect(side: Side, bytes: &[u8]) -> Verdict {
    match side {
        Side::Request => head::detect_request(bytes),
        Side::Response => head::detect_response(bytes),
    }
}

/// What is left of the record that the first byte came in.
fn skip_record(input: &Input<'_>) -> Progress {
    let there = input.bytes.len() as u64;
    let length = match input.marks.next_start(input.position) {
        Some(next) => (next - input.position).min(there),
        None => there,
    };
    Progress::Read { length: length.max(1).min(there), class: Class::Unparsed }
}
