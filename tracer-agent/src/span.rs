//! Spans: exchanges with ids, kind, status and resource.

use std::sync::Arc;

use crate::{
    connection::Ends,
    enrich::Resource,
    exchange::{Exchange, Messages, Outcome},
    noise::Noise,
    protocol::{Attribute, Common, Kind, RequestHead, Side, Text, Value},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Unset,
    Error,
}

/// Times are nanoseconds since 1970.
#[derive(Clone, Debug)]
pub struct Span {
    pub trace: [u8; 16],
    pub id: [u8; 8],
    pub parent: Option<[u8; 8]>,
    pub trace_flags: u8,
    /// `tracestate` as it came.
    pub trace_state: Text,
    pub name: Text,
    pub kind: Kind,
    pub start: u64,
    pub end: u64,
    pub status: Status,
    /// The request, with the first of its attributes.
    pub request: Arc<RequestHead>,
    pub attributes: Vec<Attribute>,
    /// What all spans of its connection say besides.
    pub common: Arc<Common>,
    pub events: Vec<Moment>,
    pub links: Vec<Link>,
    pub resource: Arc<Resource>,
    pub view: View,
}

/// A span that this one has to do with, and is no child of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub trace: [u8; 16],
    pub span: [u8; 8],
}

/// An event of a span.
#[derive(Clone, Debug)]
pub struct Moment {
    pub name: &'static str,
    pub time: u64,
    pub attributes: Vec<Attribute>,
}

/// What people are shown of a span.
#[derive(Clone, Debug)]
pub struct View {
    pub operation: Text,
    pub target: Text,
    pub status: Option<Text>,
    pub outcome: Outcome,
    pub request_content: u64,
    pub response_content: u64,
    pub peer: Option<Text>,
    pub peer_port: Option<u16>,
    /// The name of the protocol in the registry.
    pub protocol: &'static str,
    /// See `ResponseHead::stream`; also calls of several messages are streams.
    pub stream: Option<&'static str>,
    /// Nobody asked, a machine looked whether the service is well.
    pub health_check: bool,
}

#[cfg(test)]
impl Span {
    /// For tests of what is made of spans: they change what they are about.
    pub(crate) fn sample() -> Self {
        Self {
            trace: [1; 16],
            id: [1; 8],
            parent: None,
            trace_flags: 1,
            trace_state: Text::default(),
            name: Text::new("GET"),
            kind: Kind::Server,
            start: 1_000,
            end: 1_000,
            status: Status::Unset,
            request: Arc::default(),
            attributes: Vec::new(),
            common: Arc::default(),
            events: Vec::new(),
            links: Vec::new(),
            resource: Arc::default(),
            view: View {
                operation: Text::new("GET"),
                target: Text::default(),
                status: None,
                outcome: Outcome::Complete,
                request_content: 0,
                response_content: 0,
                peer: None,
                peer_port: None,
                protocol: "http",
                stream: None,
                health_check: false,
            },
        }
    }
}

impl Span {
    /// Bytes of memory, about.
    pub fn held(&self) -> usize {
        let texts = |attributes: &[Attribute]| {
            attributes
                .iter()
                .map(|attribute| match &attribute.value {
                    Value::Text(text) if text.is_heap_allocated() => text.len(),
                    _ => 0,
                })
                .sum::<usize>()
        };
        size_of::<Self>()
            + self.request.cost()
            + self.attributes.capacity() * size_of::<Attribute>()
            + texts(&self.attributes)
            + self.events.capacity() * size_of::<Moment>()
            + self.links.capacity() * size_of::<Link>()
            + self.view.target.len()
    }
}

/// Attributes of a span beside those of its request and its connection: room for them is made once.
const ATTRIBUTES: usize = 8;

/// Makes spans; their ids and their parents come later, see [`crate::stitch`].
#[derive(Default)]
pub struct Spans {
    /// Added to a record's time.
    clock: i64,
}

impl Spans {
    pub fn set_clock(&mut self, offset: i64) {
        self.clock = offset;
    }

    pub fn wall(&self, time: u64) -> u64 {
        time.saturating_add_signed(self.clock)
    }

    pub fn make(
        &self,
        mut exchange: Box<Exchange>,
        kind: Kind,
        ends: Option<&Ends>,
        resource: Arc<Resource>,
    ) -> Box<Span> {
        let request = exchange.request.clone();
        let propagated = request.propagated.as_deref();
        let links = propagated
            .map(|said| said.others.iter())
            .into_iter()
            .flatten()
            .filter_map(|other| Some(Link { trace: other.trace, span: other.span? }));
        let mut attributes = Vec::with_capacity(ATTRIBUTES);
        let mut status = Status::Unset;
        let mut error = None;
        if let Some(response) = &exchange.response {
            attributes.extend(response.attributes.iter().cloned());
            if let Some(stream) = response.stream {
                attributes.push(Attribute::word("tracer.stream", stream));
            }
            let is_error = match kind {
                Kind::Server => response.server_error,
                Kind::Client => response.client_error,
            };
            if is_error {
                (status, error) = (Status::Error, Some(response.error_type.clone()));
            }
        }
        if let Some((outcome, failed)) = broken(&exchange, kind) {
            attributes.push(Attribute::word("tracer.outcome", outcome));
            if failed {
                (status, error) = (Status::Error, Some(Text::new_static(outcome)));
            }
            // The protocol's own word says more.
            error = exchange.error.take().or(error);
        }
        if let Some(error) = error {
            attributes.push(Attribute::text("error.type", error));
        }
        attributes.extend(exchange.attributes.drain(..));
        for side in Side::BOTH {
            let messages = exchange.messages.as_deref().filter(|_| !exchange.cut[side.index()]);
            count_messages(messages, side, &mut attributes);
        }
        if let Some(ends) = ends {
            ends.describe_server(&request.common.attributes, &mut attributes, kind);
        }
        if exchange.cut != [false; 2] {
            let sides = match exchange.cut {
                [true, true] => "request,response",
                cut if cut[Side::Request.index()] => "request",
                _ => "response",
            };
            attributes.push(Attribute::word("tracer.partial", sides));
        }
        if exchange.retransmits > 0 {
            attributes.push(Attribute::number("tracer.tcp.retransmits", exchange.retransmits));
        }
        let moment = |name, time, attributes| Moment { name, time: self.wall(time), attributes };
        let messages = if exchange.messages.is_some() { 4 } else { 0 };
        let mut events = Vec::with_capacity(exchange.interim.len() + 2 + messages);
        events.extend(
            exchange
                .interim
                .drain(..)
                .map(|(time, attributes)| moment("tracer.response.interim", time, attributes)),
        );
        if let Some(first) = exchange.response_start {
            events.push(moment("tracer.response.first_byte", first, Vec::new()));
        }
        let response = exchange.response.as_deref();
        let stream = response.and_then(|response| response.stream);
        if let Some(first) = exchange.content_start.filter(|_| stream.is_some()) {
            events.push(moment("tracer.stream.first_event", first, Vec::new()));
        }
        for side in Side::BOTH {
            let Some(messages) = exchange.messages.as_deref() else { break };
            let names = &MESSAGES[side.index()];
            let Messages { count, first, last, .. } = messages[side.index()];
            events.extend(first.map(|first| moment(names.first, first, Vec::new())));
            let last = last.filter(|_| count > 1);
            events.extend(last.map(|last| moment(names.last, last, Vec::new())));
        }
        events.sort_by_key(|event| event.time);
        // A call of several messages: its duration tells how long somebody talked.
        let talks = exchange.messages.as_deref().is_some_and(|sides| sides.iter().any(|side| side.count > 1));
        let shown_stream = stream.or(talks.then_some("stream"));
        let last = exchange.last();
        Box::new(Span {
            trace: [0; 16],
            id: [0; 8],
            parent: None,
            trace_flags: 0,
            trace_state: propagated.map(|said| said.state.clone()).unwrap_or_default(),
            links: links.collect(),
            name: request.name.clone(),
            kind,
            start: self.wall(exchange.request_start),
            end: self.wall(last),
            status,
            attributes,
            common: ends.map(|ends| ends.common(kind)).unwrap_or_default(),
            events,
            resource,
            view: View {
                operation: request.operation.clone(),
                target: request.target.clone(),
                status: response.map(|response| response.status.clone()).filter(|status| !status.is_empty()),
                outcome: exchange.outcome,
                request_content: exchange.request_content,
                response_content: exchange.response_content,
                peer: ends.map(|ends| ends.peer.clone()),
                peer_port: ends.and_then(Ends::peer_port),
                protocol: request.protocol,
                stream: shown_stream,
                health_check: matches!(request.noise, Some(Noise::HealthCheck(_))),
            },
            request,
        })
    }
}

/// What the messages of a side are called.
struct MessageNames {
    count: &'static str,
    size: &'static str,
    first: &'static str,
    last: &'static str,
}

/// By side.
const MESSAGES: [MessageNames; 2] = [
    MessageNames {
        count: "tracer.request.message.count",
        size: "tracer.request.message.size",
        first: "tracer.request.first_message",
        last: "tracer.request.last_message",
    },
    MessageNames {
        count: "tracer.response.message.count",
        size: "tracer.response.message.size",
        first: "tracer.response.first_message",
        last: "tracer.response.last_message",
    },
];

/// Adds how many there were, and how large, if all of them were seen.
fn count_messages(messages: Option<&[Messages; 2]>, side: Side, attributes: &mut Vec<Attribute>) {
    let Some(messages) = messages.map(|messages| messages[side.index()]) else { return };
    if !messages.uncounted {
        attributes.push(Attribute::number(MESSAGES[side.index()].count, messages.count));
        attributes.push(Attribute::number(MESSAGES[side.index()].size, messages.size));
    }
}

/// What an end before the response's end is called, and whether it is an error of this end. That the
/// client went away is none of the server's.
fn broken(exchange: &Exchange, kind: Kind) -> Option<(&'static str, bool)> {
    match exchange.outcome {
        Outcome::Aborted => Some(("aborted", kind == Kind::Client)),
        Outcome::Closed => Some(("connection_closed", true)),
        Outcome::Reset if exchange.error.is_some() => Some(("stream_reset", true)),
        Outcome::Reset => Some(("connection_reset", true)),
        Outcome::Complete | Outcome::Hidden | Outcome::Open => None,
    }
}
