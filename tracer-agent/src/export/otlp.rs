//! Spans as OTLP (opentelemetry/proto/collector/trace/v1/trace_service.proto), encoded one by one as they
//! come: nothing is kept of a span but its bytes. One `ResourceSpans` a process.

pub mod metrics;

use std::sync::Arc;

use bytes::Bytes;
use prost::encoding::{WireType, encoded_len_varint};

use crate::{
    enrich::Resource,
    protocol::{Attribute, Common, Kind, Value},
    span::{Moment, Span, Status},
};

/// The version of the semantic conventions that the names are from.
const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.44.0";

/// Numbers of fields, by message.
mod field {
    pub(super) const REQUEST_RESOURCE_SPANS: u32 = 1;
    pub(super) const RESOURCE_SPANS_RESOURCE: u32 = 1;
    pub(super) const RESOURCE_SPANS_SCOPE_SPANS: u32 = 2;
    pub(super) const RESOURCE_SPANS_SCHEMA_URL: u32 = 3;
    pub(super) const RESOURCE_ATTRIBUTES: u32 = 1;
    pub(super) const SCOPE_SPANS_SCOPE: u32 = 1;
    pub(super) const SCOPE_SPANS_SPANS: u32 = 2;
    pub(super) const SCOPE_SPANS_SCHEMA_URL: u32 = 3;
    pub(super) const SCOPE_NAME: u32 = 1;
    pub(super) const SCOPE_VERSION: u32 = 2;
    pub(super) const SPAN_TRACE_ID: u32 = 1;
    pub(super) const SPAN_ID: u32 = 2;
    pub(super) const SPAN_STATE: u32 = 3;
    pub(super) const SPAN_PARENT_ID: u32 = 4;
    pub(super) const SPAN_NAME: u32 = 5;
    pub(super) const SPAN_KIND: u32 = 6;
    pub(super) const SPAN_START: u32 = 7;
    pub(super) const SPAN_END: u32 = 8;
    pub(super) const SPAN_ATTRIBUTES: u32 = 9;
    pub(super) const SPAN_EVENTS: u32 = 11;
    pub(super) const SPAN_LINKS: u32 = 13;
    pub(super) const SPAN_STATUS: u32 = 15;
    pub(super) const SPAN_FLAGS: u32 = 16;
    pub(super) const EVENT_TIME: u32 = 1;
    pub(super) const EVENT_NAME: u32 = 2;
    pub(super) const EVENT_ATTRIBUTES: u32 = 3;
    pub(super) const LINK_TRACE_ID: u32 = 1;
    pub(super) const LINK_SPAN_ID: u32 = 2;
    pub(super) const STATUS_CODE: u32 = 3;
    pub(super) const KEY: u32 = 1;
    pub(super) const VALUE: u32 = 2;
    pub(super) const VALUE_TEXT: u32 = 1;
    pub(super) const VALUE_FLAG: u32 = 2;
    pub(super) const VALUE_NUMBER: u32 = 3;
    pub(super) const VALUE_REAL: u32 = 4;
}

/// `SpanKind` and `StatusCode` of the protocol.
const SERVER: u64 = 2;
const CLIENT: u64 = 3;
const ERROR: u64 = 2;

/// Spans that will be sent together.
#[derive(Debug, Default)]
pub struct Batch {
    groups: Vec<Group>,
    spans: usize,
    /// Room for one span.
    room: Vec<u8>,
    /// Bytes that the last one came to: this will come to about as many.
    last: usize,
}

/// The spans of one resource.
#[derive(Debug)]
struct Group {
    resource: Arc<Resource>,
    /// The spans behind room for what stands before them: its length depends on theirs.
    bytes: Vec<u8>,
    room: usize,
}

/// An `ExportTraceServiceRequest`, and how many spans are in it.
#[derive(Clone, Debug)]
pub struct Encoded {
    pub bytes: Bytes,
    pub spans: usize,
}

impl Batch {
    pub fn add(&mut self, span: &Span) {
        self.room.clear();
        encode_span(&mut self.room, span);
        let same =
            |group: &Group| Arc::ptr_eq(&group.resource, &span.resource) || *group.resource == *span.resource;
        let place = self.groups.iter().position(same).unwrap_or_else(|| {
            let expected = if self.groups.is_empty() { self.last } else { 0 };
            self.groups.push(Group::new(span.resource.clone(), expected));
            self.groups.len() - 1
        });
        bytes(&mut self.groups[place].bytes, field::SCOPE_SPANS_SPANS, &self.room);
        self.spans += 1;
    }

    pub fn spans(&self) -> usize {
        self.spans
    }

    /// Bytes of memory that it holds, about.
    pub fn held(&self) -> usize {
        self.groups.iter().map(Group::length).sum()
    }

    /// All of it; what follows is another batch.
    pub fn take(&mut self) -> Encoded {
        let groups: Vec<Bytes> = self.groups.drain(..).map(Group::finish).collect();
        let bytes = match <[Bytes; 1]>::try_from(groups) {
            Ok([only]) => only,
            Err(several) => several.concat().into(),
        };
        self.last = bytes.len();
        Encoded { bytes, spans: std::mem::take(&mut self.spans) }
    }
}

impl Group {
    /// `expected`: bytes that it will have, about.
    fn new(resource: Arc<Resource>, expected: usize) -> Self {
        let room = before(&resource, u32::MAX as usize).len();
        let mut bytes = Vec::with_capacity(expected);
        bytes.resize(room, 0);
        Self { resource, bytes, room }
    }

    /// Of the spans.
    fn length(&self) -> usize {
        self.bytes.len() - self.room
    }

    /// The `ResourceSpans`, as a field of a request. The spans stay where they are: they are many bytes.
    fn finish(mut self) -> Bytes {
        let before = before(&self.resource, self.length());
        let start = self.room - before.len();
        self.bytes[start..self.room].copy_from_slice(&before);
        bytes(&mut self.bytes, field::SCOPE_SPANS_SCHEMA_URL, SCHEMA_URL.as_bytes());
        bytes(&mut self.bytes, field::RESOURCE_SPANS_SCHEMA_URL, SCHEMA_URL.as_bytes());
        Bytes::from(self.bytes).slice(start..)
    }
}

/// What stands before so many bytes of spans of a resource, in a request.
fn before(resource: &Resource, spans: usize) -> Vec<u8> {
    let (mut about, mut scope) = (Vec::new(), Vec::new());
    message(&mut about, field::RESOURCE_SPANS_RESOURCE, |out| {
        for attribute in &resource.attributes {
            encode_attribute(out, field::RESOURCE_ATTRIBUTES, attribute);
        }
    });
    message(&mut scope, field::SCOPE_SPANS_SCOPE, |out| {
        bytes(out, field::SCOPE_NAME, b"tracer");
        bytes(out, field::SCOPE_VERSION, env!("CARGO_PKG_VERSION").as_bytes());
    });
    let schema = 1 + length_of(SCHEMA_URL.len());
    let of_scope = scope.len() + spans + schema;
    let mut out = Vec::new();
    head(&mut out, field::REQUEST_RESOURCE_SPANS, about.len() + 1 + length_of(of_scope) + schema);
    out.extend_from_slice(&about);
    head(&mut out, field::RESOURCE_SPANS_SCOPE_SPANS, of_scope);
    out.extend_from_slice(&scope);
    out
}

fn encode_span(out: &mut Vec<u8>, span: &Span) {
    bytes(out, field::SPAN_TRACE_ID, &span.trace);
    bytes(out, field::SPAN_ID, &span.id);
    if !span.trace_state.is_empty() {
        bytes(out, field::SPAN_STATE, span.trace_state.as_bytes());
    }
    if let Some(parent) = &span.parent {
        bytes(out, field::SPAN_PARENT_ID, parent);
    }
    bytes(out, field::SPAN_NAME, span.name.as_bytes());
    let kind = match span.kind {
        Kind::Server => SERVER,
        Kind::Client => CLIENT,
    };
    number(out, field::SPAN_KIND, kind);
    fixed64(out, field::SPAN_START, span.start);
    fixed64(out, field::SPAN_END, span.end);
    encode_common(out, &span.request.common);
    encode_attributes(out, &span.attributes);
    encode_common(out, &span.common);
    for event in &span.events {
        encode_event(out, event);
    }
    for link in &span.links {
        message(out, field::SPAN_LINKS, |out| {
            bytes(out, field::LINK_TRACE_ID, &link.trace);
            bytes(out, field::LINK_SPAN_ID, &link.span);
        });
    }
    // A message is there even where all its fields have their default.
    match span.status {
        Status::Unset => head(out, field::SPAN_STATUS, 0),
        Status::Error => {
            head(out, field::SPAN_STATUS, 2);
            number(out, field::STATUS_CODE, ERROR);
        }
    }
    encode_key(field::SPAN_FLAGS, WireType::ThirtyTwoBit, out);
    out.extend_from_slice(&u32::from(span.trace_flags).to_le_bytes());
}

fn encode_common(out: &mut Vec<u8>, common: &Common) {
    let encoded = common.encoded(|attributes| {
        let mut encoded = Vec::new();
        encode_attributes(&mut encoded, attributes);
        encoded
    });
    match encoded {
        Some(encoded) => out.extend_from_slice(encoded),
        None => encode_attributes(out, &common.attributes),
    }
}

fn encode_attributes(out: &mut Vec<u8>, attributes: &[Attribute]) {
    for attribute in attributes {
        encode_attribute(out, field::SPAN_ATTRIBUTES, attribute);
    }
}

fn encode_event(out: &mut Vec<u8>, event: &Moment) {
    let attributes = event.attributes.iter().map(|attribute| 1 + length_of(length_of_attribute(attribute)));
    // Its time takes eight bytes, and a key as each field does.
    let length = 9 + 1 + length_of(event.name.len()) + attributes.sum::<usize>();
    head(out, field::SPAN_EVENTS, length);
    fixed64(out, field::EVENT_TIME, event.time);
    bytes(out, field::EVENT_NAME, event.name.as_bytes());
    for attribute in &event.attributes {
        encode_attribute(out, field::EVENT_ATTRIBUTES, attribute);
    }
}

/// A `KeyValue` with an `AnyValue`.
fn encode_attribute<K: AsRef<str>>(out: &mut Vec<u8>, field: u32, attribute: &Attribute<K>) {
    let (key, value) = (attribute.key.as_ref().as_bytes(), length_of_value(&attribute.value));
    let length = length_of_pair(key.len(), value);
    // Room for all of it, so that none of what follows has to look for more.
    out.reserve(8 + length);
    head(out, field, length);
    bytes(out, field::KEY, key);
    head(out, field::VALUE, value);
    match &attribute.value {
        Value::Text(text) => bytes(out, field::VALUE_TEXT, text.as_bytes()),
        Value::Number(value) => number(out, field::VALUE_NUMBER, *value as u64),
        Value::Real(value) => fixed64(out, field::VALUE_REAL, value.0.to_bits()),
        Value::Flag(flag) => number(out, field::VALUE_FLAG, u64::from(*flag)),
    }
}

fn length_of_attribute(attribute: &Attribute) -> usize {
    length_of_pair(attribute.key.len(), length_of_value(&attribute.value))
}

/// Of key and value: the keys of both fields take one byte.
#[inline]
fn length_of_pair(key: usize, value: usize) -> usize {
    1 + length_of(key) + 1 + length_of(value)
}

#[inline]
fn length_of_value(value: &Value) -> usize {
    1 + match value {
        Value::Text(text) => length_of(text.len()),
        Value::Number(number) => encoded_len_varint(*number as u64),
        Value::Real(_) => 8,
        Value::Flag(_) => 1,
    }
}

/// Bytes with their length before them.
#[inline]
fn length_of(bytes: usize) -> usize {
    if bytes < 0x80 { 1 + bytes } else { encoded_len_varint(bytes as u64) + bytes }
}

/// The number of a field with the form of its value: nearly always one byte.
#[inline]
fn encode_key(field: u32, form: WireType, out: &mut Vec<u8>) {
    encode_varint(u64::from(field << 3 | form as u32), out);
}

/// As the library has it, for a `Vec` alone: most of the cost of a span is here.
#[inline]
fn encode_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// What stands before so many bytes: key and length are nearly always one byte each.
#[inline(always)]
fn head(out: &mut Vec<u8>, field: u32, length: usize) {
    let key = field << 3 | WireType::LengthDelimited as u32;
    if key < 0x80 && length < 0x80 {
        out.extend_from_slice(&[key as u8, length as u8]);
    } else {
        encode_varint(key.into(), out);
        encode_varint(length as u64, out);
    }
}

#[inline(always)]
fn bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    head(out, field, bytes.len());
    out.extend_from_slice(bytes);
}

#[inline]
fn number(out: &mut Vec<u8>, field: u32, number: u64) {
    encode_key(field, WireType::Varint, out);
    encode_varint(number, out);
}

#[inline]
fn fixed64(out: &mut Vec<u8>, field: u32, number: u64) {
    encode_key(field, WireType::SixtyFourBit, out);
    out.extend_from_slice(&number.to_le_bytes());
}

/// A message whose length is known when it is written: then it is put before it.
fn message(out: &mut Vec<u8>, field: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    encode_key(field, WireType::LengthDelimited, out);
    let start = out.len();
    fill(out);
    let length = out.len() - start;
    encode_varint(length as u64, out);
    let room = out.len() - start - length;
    out[start..].rotate_right(room);
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::{
        collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value as Wire,
    };
    use prost::Message;

    use super::*;
    use crate::{protocol::Text, span::Link};

    fn span(id: u8, resource: &Arc<Resource>) -> Span {
        Span {
            trace: [id; 16],
            id: [id; 8],
            parent: (id > 1).then_some([9; 8]),
            trace_flags: 1,
            trace_state: Text::new(if id > 1 { "a=1" } else { "" }),
            links: vec![Link { trace: [id; 16], span: [7; 8] }; usize::from(id) - 1],
            name: Text::new("GET"),
            kind: if id > 1 { Kind::Client } else { Kind::Server },
            start: 1_000_000_007,
            end: u64::MAX,
            status: if id > 1 { Status::Error } else { Status::Unset },
            attributes: vec![
                Attribute::text("long", "x".repeat(300)),
                Attribute::number("negative", -1i64),
                Attribute::number("zero", 0i64),
                Attribute::flag("flag", true),
                Attribute::real("real", 0.25),
                Attribute::text("empty", ""),
            ],
            events: vec![Moment { name: "first", time: 5, attributes: vec![Attribute::number("n", 7i64)] }],
            resource: resource.clone(),
            ..Span::sample()
        }
    }

    /// What was encoded here is what others read.
    #[test]
    fn others_read_what_was_written() {
        let resource = |name: &'static str| {
            let attributes = vec![Attribute::word("service.name", name).into()];
            Arc::new(Resource { service: Text::new(name), attributes, ..Resource::default() })
        };
        let (one, two) = (resource("one"), resource("two"));
        let mut batch = Batch::default();
        for span in [span(1, &one), span(2, &two), span(3, &one)] {
            batch.add(&span);
        }
        let encoded = batch.take();
        assert_eq!((encoded.spans, batch.spans(), batch.held()), (3, 0, 0));
        let read = ExportTraceServiceRequest::decode(encoded.bytes.clone()).expect("a request");
        // The default encoding of what was read is the same bytes: nothing was written twice or strangely.
        assert_eq!(read.encode_to_vec(), encoded.bytes.to_vec());
        let groups: Vec<_> =
            read.resource_spans.iter().map(|group| group.scope_spans[0].spans.len()).collect();
        assert_eq!(groups, [2, 1]);
        let named = &read.resource_spans[1].resource.as_ref().expect("a resource").attributes[0];
        assert_eq!(named.key, "service.name");
        let first = &read.resource_spans[0].scope_spans[0].spans[0];
        assert_eq!((first.trace_id.clone(), first.span_id.clone()), (vec![1; 16], vec![1; 8]));
        assert_eq!(
            (first.kind, first.start_time_unix_nano, first.end_time_unix_nano),
            (2, 1_000_000_007, u64::MAX)
        );
        assert!(first.parent_span_id.is_empty() && first.flags == 1);
        let values: Vec<Wire> = first
            .attributes
            .iter()
            .map(|attribute| attribute.value.clone().and_then(|value| value.value).expect("a value"))
            .collect();
        let expected = [
            Wire::StringValue("x".repeat(300)),
            Wire::IntValue(-1),
            Wire::IntValue(0),
            Wire::BoolValue(true),
            Wire::DoubleValue(0.25),
            Wire::StringValue(String::new()),
        ];
        assert_eq!(values, expected);
        assert_eq!((first.events[0].name.as_str(), first.events[0].attributes.len()), ("first", 1));
        let second = &read.resource_spans[1].scope_spans[0].spans[0];
        assert_eq!((second.kind, second.parent_span_id.clone()), (3, vec![9; 8]));
        assert_eq!((second.trace_state.as_str(), second.links.len()), ("a=1", 1));
        assert_eq!((&second.links[0].trace_id, &second.links[0].span_id), (&vec![2; 16], &vec![7; 8]));
        assert_eq!(second.status.as_ref().map(|status| status.code), Some(2));
    }
}
