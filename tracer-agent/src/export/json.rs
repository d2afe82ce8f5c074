//! A line of JSON for each span: ids in hexadecimal and times as strings, as OTLP/JSON has them;
//! attributes flattened.

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::hex;
use crate::{
    protocol::{Attribute, Text, Value},
    span::{Link, Moment, Span, Status},
};

/// Without the line break.
pub fn line(span: &Span) -> String {
    let line = Line {
        trace_id: hex(&span.trace),
        span_id: hex(&span.id),
        parent_span_id: span.parent.map(|parent| hex(&parent)),
        trace_state: &span.trace_state,
        name: &span.name,
        kind: span.kind.name(),
        start_time_unix_nano: span.start.to_string(),
        end_time_unix_nano: span.end.to_string(),
        status: Code { code: code(span.status) },
        attributes: Flat([&span.request.common.attributes, &span.attributes, &span.common.attributes]),
        resource: Flat([&span.resource.attributes, &[], &[]]),
        events: span.events.iter().map(Event::from).collect(),
        links: span.links.iter().map(Linked::from).collect(),
    };
    // A map with text keys always serialises.
    serde_json::to_string(&line).unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    trace_id: String,
    span_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    trace_state: &'a str,
    name: &'a str,
    kind: &'static str,
    start_time_unix_nano: String,
    end_time_unix_nano: String,
    status: Code,
    attributes: Flat<'a>,
    resource: Flat<'a, Text>,
    events: Vec<Event<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    links: Vec<Linked>,
}

#[derive(Serialize)]
struct Code {
    code: &'static str,
}

fn code(status: Status) -> &'static str {
    match status {
        Status::Unset => "UNSET",
        Status::Error => "ERROR",
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    name: &'static str,
    time_unix_nano: String,
    attributes: Flat<'a>,
}

impl<'a> From<&'a Moment> for Event<'a> {
    fn from(moment: &'a Moment) -> Self {
        Self {
            name: moment.name,
            time_unix_nano: moment.time.to_string(),
            attributes: Flat([&moment.attributes, &[], &[]]),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Linked {
    trace_id: String,
    span_id: String,
}

impl From<&Link> for Linked {
    fn from(link: &Link) -> Self {
        Self { trace_id: hex(&link.trace), span_id: hex(&link.span) }
    }
}

/// Attributes, and more of them.
struct Flat<'a, K = &'static str>([&'a [Attribute<K>]; 3]);

impl<K: AsRef<str>> Serialize for Flat<'_, K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.iter().map(|part| part.len()).sum()))?;
        for attribute in self.0.into_iter().flatten() {
            let key = attribute.key.as_ref();
            match &attribute.value {
                Value::Text(text) => map.serialize_entry(key, text.as_str())?,
                Value::Number(number) => map.serialize_entry(key, number)?,
                Value::Real(number) => map.serialize_entry(key, &number.0)?,
                Value::Flag(flag) => map.serialize_entry(key, flag)?,
            }
        }
        map.end()
    }
}
