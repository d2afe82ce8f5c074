//! Spans as OTLP: one `ResourceSpans` a process.

use std::sync::Arc;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    resource::v1::Resource as WireResource,
    trace::v1::{ResourceSpans, ScopeSpans, Span as WireSpan, Status as WireStatus, span, status},
};

use crate::{
    enrich::Resource,
    protocol::{Attribute, Value},
    span::{Kind, Moment, Span, Status},
};

/// The version of the semantic conventions that the names are from.
const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.44.0";

pub fn request(spans: &[Span]) -> ExportTraceServiceRequest {
    let mut groups: Vec<(Arc<Resource>, Vec<WireSpan>)> = Vec::new();
    for span in spans {
        let group = groups
            .iter_mut()
            .find(|(resource, _)| Arc::ptr_eq(resource, &span.resource) || **resource == *span.resource);
        match group {
            Some((_, spans)) => spans.push(wire(span)),
            None => groups.push((span.resource.clone(), vec![wire(span)])),
        }
    }
    ExportTraceServiceRequest {
        resource_spans: groups
            .into_iter()
            .map(|(resource, spans)| ResourceSpans {
                resource: Some(WireResource {
                    attributes: attributes(&resource.attributes),
                    ..WireResource::default()
                }),
                scope_spans: vec![ScopeSpans {
                    scope: Some(InstrumentationScope {
                        name: "tracer".to_owned(),
                        version: env!("CARGO_PKG_VERSION").to_owned(),
                        ..InstrumentationScope::default()
                    }),
                    spans,
                    schema_url: SCHEMA_URL.to_owned(),
                }],
                schema_url: SCHEMA_URL.to_owned(),
            })
            .collect(),
    }
}

fn wire(span: &Span) -> WireSpan {
    WireSpan {
        trace_id: span.trace.to_vec(),
        span_id: span.id.to_vec(),
        parent_span_id: span.parent.map(|parent| parent.to_vec()).unwrap_or_default(),
        flags: span.trace_flags.into(),
        name: span.name.clone(),
        kind: match span.kind {
            Kind::Server => span::SpanKind::Server,
            Kind::Client => span::SpanKind::Client,
        } as i32,
        start_time_unix_nano: span.start,
        end_time_unix_nano: span.end,
        attributes: attributes(&span.attributes),
        events: span.events.iter().map(event).collect(),
        status: Some(WireStatus {
            code: match span.status {
                Status::Unset => status::StatusCode::Unset,
                Status::Error => status::StatusCode::Error,
            } as i32,
            ..WireStatus::default()
        }),
        ..WireSpan::default()
    }
}

fn event(moment: &Moment) -> span::Event {
    span::Event {
        time_unix_nano: moment.time,
        name: moment.name.to_owned(),
        attributes: attributes(&moment.attributes),
        dropped_attributes_count: 0,
    }
}

fn attributes(attributes: &[Attribute]) -> Vec<KeyValue> {
    attributes
        .iter()
        .map(|attribute| KeyValue {
            key: attribute.key.to_owned(),
            value: Some(AnyValue {
                value: Some(match &attribute.value {
                    Value::Text(text) => any_value::Value::StringValue(text.clone()),
                    Value::Number(number) => any_value::Value::IntValue(*number),
                    Value::Flag(flag) => any_value::Value::BoolValue(*flag),
                }),
            }),
            ..KeyValue::default()
        })
        .collect()
}
