//! Spans as a collector got them, whole.

use std::{collections::BTreeMap, sync::Arc};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value},
    trace::v1::span::SpanKind,
};

/// One of them; values as text.
#[derive(Clone, Debug)]
pub struct Span {
    pub trace: String,
    pub id: String,
    /// Empty where there is none.
    pub parent: String,
    /// `CLIENT`, `SERVER`
    pub kind: &'static str,
    pub attributes: BTreeMap<String, String>,
    /// What made it.
    pub resource: Arc<BTreeMap<String, String>>,
}

impl Span {
    pub(super) fn all(request: &ExportTraceServiceRequest) -> Vec<Self> {
        let mut spans = Vec::new();
        for resource in &request.resource_spans {
            let attributes = resource.resource.as_ref().map_or(&[][..], |resource| &resource.attributes);
            let made_by = Arc::new(told(attributes));
            spans.extend(resource.scope_spans.iter().flat_map(|scope| &scope.spans).map(|span| Self {
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                kind: match span.kind() {
                    SpanKind::Client => "CLIENT",
                    SpanKind::Server => "SERVER",
                    other => panic!("a span of the kind {other:?}"),
                },
                attributes: told(&span.attributes),
                resource: made_by.clone(),
            }));
        }
        spans
    }

    /// A dash for an attribute that is not there.
    pub fn attribute(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("-", String::as_str)
    }

    /// The same, of what made it.
    pub fn of(&self, key: &str) -> &str {
        self.resource.get(key).map_or("-", String::as_str)
    }

    /// Of the URL, whichever end told it.
    pub fn path(&self) -> &str {
        match self.attribute("url.full").match_indices('/').nth(2) {
            Some((at, _)) => &self.attribute("url.full")[at..],
            None => self.attribute("url.path"),
        }
    }
}

fn told(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
