//! Points of metrics as a collector got them, in the form in which pages of Prometheus are read.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{KeyValue, any_value},
    metrics::v1::{metric::Data, number_data_point},
};

use crate::agent::{Metrics, Sample};

/// The latest of each.
#[derive(Clone, Debug, Default)]
pub struct Points(BTreeMap<(String, BTreeMap<String, String>), f64>);

impl Points {
    pub(super) fn take(&mut self, request: &ExportMetricsServiceRequest) {
        for resource in &request.resource_metrics {
            let attributes = resource.resource.as_ref().map_or(&[][..], |resource| &resource.attributes);
            let service = attributes.iter().filter(|attribute| attribute.key == "service.name");
            let service: Vec<&KeyValue> = service.collect();
            for metric in resource.scope_metrics.iter().flat_map(|scope| &scope.metrics) {
                let mut keep = |what: &str, attributes: &[KeyValue], value: f64| {
                    let labels = attributes.iter().chain(service.iter().copied()).map(told).collect();
                    self.0.insert((format!("{}{what}", metric.name), labels), value);
                };
                match &metric.data {
                    Some(Data::Gauge(gauge)) => gauge
                        .data_points
                        .iter()
                        .for_each(|point| keep("", &point.attributes, number(point.value))),
                    Some(Data::Sum(sum)) => sum
                        .data_points
                        .iter()
                        .for_each(|point| keep("", &point.attributes, number(point.value))),
                    Some(Data::Histogram(histogram)) => {
                        for point in &histogram.data_points {
                            keep(".count", &point.attributes, point.count as f64);
                            keep(".sum", &point.attributes, point.sum.unwrap_or_default());
                            keep(".bounds", &point.attributes, point.explicit_bounds.len() as f64);
                            assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count, "{point:?}");
                        }
                    }
                    Some(Data::ExponentialHistogram(histogram)) => {
                        for point in &histogram.data_points {
                            keep(".exponential.count", &point.attributes, point.count as f64);
                            let buckets = [&point.positive, &point.negative].into_iter().flatten();
                            let counts = buckets.flat_map(|buckets| &buckets.bucket_counts).sum::<u64>();
                            assert_eq!(counts + point.zero_count, point.count, "{point:?}");
                        }
                    }
                    Some(Data::Summary(_)) | None => panic!("an odd metric: {metric:?}"),
                }
            }
        }
    }

    /// Names are OpenTelemetry's, and of histograms with `.count`, `.sum`, `.bounds` or `.exponential.count`.
    pub fn metrics(&self) -> Metrics {
        let sample = |((name, labels), value): (&(String, BTreeMap<String, String>), &f64)| Sample {
            name: name.clone(),
            labels: labels.clone(),
            value: *value,
        };
        Metrics(self.0.iter().map(sample).collect())
    }
}

fn told(attribute: &KeyValue) -> (String, String) {
    let value = attribute.value.as_ref().and_then(|value| value.value.as_ref());
    let text = match value {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::BoolValue(flag)) => flag.to_string(),
        other => format!("{other:?}"),
    };
    (attribute.key.clone(), text)
}

fn number(value: Option<number_data_point::Value>) -> f64 {
    match value {
        Some(number_data_point::Value::AsInt(number)) => number as f64,
        Some(number_data_point::Value::AsDouble(number)) => number,
        None => f64::NAN,
    }
}
