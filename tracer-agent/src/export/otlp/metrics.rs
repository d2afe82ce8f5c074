//! Metrics as OTLP (opentelemetry/proto/collector/metrics/v1/metrics_service.proto): cumulative, grouped by
//! service. They go out every few seconds, so the library's messages do.

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        self as wire, AggregationTemporality, ExponentialHistogramDataPoint, HistogramDataPoint,
        NumberDataPoint, ResourceMetrics, ScopeMetrics, exemplar, exponential_histogram_data_point::Buckets,
        metric, number_data_point,
    },
    resource,
};
use prost::Message;

use super::SCHEMA_URL;
use crate::{
    enrich::ResourceAttribute,
    metrics::{Data, Family, FamilyKind, Histogram, Metric, Point},
    protocol::Value,
};

/// Points in one request: receivers of gRPC take 4 MiB, and a point with all it can have is near 3 KiB.
pub const POINTS_MAX: usize = 1_000;

const CUMULATIVE: i32 = AggregationTemporality::Cumulative as i32;

/// What the tracer says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    pub resource: &'a [ResourceAttribute],
    /// Nanoseconds since 1970: since when its counters count, and now.
    pub start: u64,
    pub time: u64,
    pub families: &'a [Family],
}

/// An `ExportMetricsServiceRequest`, and how many points are in it.
#[derive(Clone, Debug)]
pub struct Encoded {
    pub bytes: Bytes,
    pub points: usize,
}

/// As many requests as it takes; none if there is nothing to tell.
pub fn requests(metrics: &[Metric<'_>], own: &Own<'_>) -> Vec<Encoded> {
    let mut points: Vec<(&Metric<'_>, &Point<'_>)> =
        metrics.iter().flat_map(|metric| metric.points.iter().map(move |point| (metric, point))).collect();
    // The sort keeps the order of names and attributes.
    points.sort_by(|(_, one), (_, other)| one.service.attributes.cmp(&other.service.attributes));
    let mut requests: Vec<Encoded> = points
        .chunks(POINTS_MAX)
        .map(|part| {
            let groups = part.chunk_by(|(_, one), (_, other)| std::ptr::eq(one.service, other.service));
            encoded(groups.map(of_service).collect(), part.len())
        })
        .collect();
    let families: Vec<wire::Metric> = own
        .families
        .iter()
        .filter(|family| !family.samples.is_empty())
        .map(|family| of_family(family, own))
        .collect();
    if !families.is_empty() {
        let samples = own.families.iter().map(|family| family.samples.len()).sum();
        requests.push(encoded(vec![group(own.resource, families)], samples));
    }
    requests
}

fn encoded(resource_metrics: Vec<ResourceMetrics>, points: usize) -> Encoded {
    Encoded { bytes: ExportMetricsServiceRequest { resource_metrics }.encode_to_vec().into(), points }
}

fn group(attributes: &[ResourceAttribute], metrics: Vec<wire::Metric>) -> ResourceMetrics {
    let attributes =
        attributes.iter().map(|attribute| key_value(&attribute.key, told(&attribute.value))).collect();
    ResourceMetrics {
        resource: Some(resource::v1::Resource { attributes, ..Default::default() }),
        scope_metrics: vec![ScopeMetrics {
            scope: Some(InstrumentationScope {
                name: "tracer".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..Default::default()
            }),
            metrics,
            schema_url: SCHEMA_URL.to_owned(),
        }],
        schema_url: SCHEMA_URL.to_owned(),
    }
}

fn of_service(points: &[(&Metric<'_>, &Point<'_>)]) -> ResourceMetrics {
    let attributes = points.first().map_or(&[][..], |(_, point)| &point.service.attributes);
    let metrics = points.chunk_by(|(one, _), (other, _)| one.name == other.name);
    group(attributes, metrics.map(of_points).collect())
}

/// Points of one metric: all of them are of one kind.
fn of_points(points: &[(&Metric<'_>, &Point<'_>)]) -> wire::Metric {
    let (mut numbers, mut histograms, mut exponentials) = (Vec::new(), Vec::new(), Vec::new());
    let mut is_monotonic = false;
    for (_, point) in points {
        match point.data {
            Data::Level(level) => numbers.push(of_number(point, level)),
            Data::Count(count) => {
                is_monotonic = true;
                numbers.push(of_number(point, i64::try_from(count).unwrap_or(i64::MAX)));
            }
            Data::Histogram(histogram) if histogram.exponential().is_some() => {
                exponentials.extend(of_exponential(point, histogram));
            }
            Data::Histogram(histogram) => histograms.push(of_histogram(point, histogram)),
        }
    }
    let aggregation_temporality = CUMULATIVE;
    let data = if !exponentials.is_empty() {
        let data_points = exponentials;
        metric::Data::ExponentialHistogram(wire::ExponentialHistogram {
            data_points,
            aggregation_temporality,
        })
    } else if !histograms.is_empty() {
        metric::Data::Histogram(wire::Histogram { data_points: histograms, aggregation_temporality })
    } else {
        metric::Data::Sum(wire::Sum { data_points: numbers, aggregation_temporality, is_monotonic })
    };
    let (name, help, unit) =
        points.first().map_or(("", "", ""), |(metric, _)| (metric.name, metric.help, metric.unit.name()));
    described(name, help, unit, data)
}

fn described(name: &str, help: &str, unit: &str, data: metric::Data) -> wire::Metric {
    wire::Metric {
        name: name.to_owned(),
        description: help.to_owned(),
        unit: unit.to_owned(),
        metadata: Vec::new(),
        data: Some(data),
    }
}

fn of_number(point: &Point<'_>, number: i64) -> NumberDataPoint {
    NumberDataPoint {
        attributes: attributes(point),
        start_time_unix_nano: point.start,
        time_unix_nano: point.time,
        value: Some(number_data_point::Value::AsInt(number)),
        ..Default::default()
    }
}

fn of_histogram(point: &Point<'_>, histogram: &Histogram) -> HistogramDataPoint {
    HistogramDataPoint {
        attributes: attributes(point),
        start_time_unix_nano: point.start,
        time_unix_nano: point.time,
        count: histogram.count(),
        sum: Some(histogram.sum()),
        bucket_counts: histogram.counts().to_vec(),
        explicit_bounds: histogram.bounds().collect(),
        exemplars: exemplars(histogram),
        ..Default::default()
    }
}

fn of_exponential(point: &Point<'_>, histogram: &Histogram) -> Option<ExponentialHistogramDataPoint> {
    let exponential = histogram.exponential()?;
    Some(ExponentialHistogramDataPoint {
        attributes: attributes(point),
        start_time_unix_nano: point.start,
        time_unix_nano: point.time,
        count: histogram.count(),
        sum: Some(histogram.sum()),
        scale: exponential.scale(),
        zero_count: exponential.zero(),
        positive: Some(Buckets {
            offset: exponential.offset(),
            bucket_counts: exponential.counts().to_vec(),
        }),
        exemplars: exemplars(histogram),
        ..Default::default()
    })
}

fn exemplars(histogram: &Histogram) -> Vec<wire::Exemplar> {
    histogram
        .exemplars()
        .iter()
        .map(|(_, exemplar)| wire::Exemplar {
            filtered_attributes: Vec::new(),
            time_unix_nano: exemplar.time,
            span_id: exemplar.span.to_vec(),
            trace_id: exemplar.trace.to_vec(),
            value: Some(exemplar::Value::AsDouble(histogram.value(exemplar))),
        })
        .collect()
}

fn of_family(family: &Family, own: &Own<'_>) -> wire::Metric {
    let start = match family.kind {
        FamilyKind::Counter => own.start,
        // A gauge has no beginning.
        FamilyKind::Gauge => 0,
    };
    let data_points = family.samples.iter().map(|(labels, value)| NumberDataPoint {
        attributes: labels
            .iter()
            .map(|(key, value)| key_value(key, any_value::Value::StringValue(value.clone())))
            .collect(),
        start_time_unix_nano: start,
        time_unix_nano: own.time,
        value: Some(number_data_point::Value::AsDouble(*value)),
        ..Default::default()
    });
    let data_points = data_points.collect();
    let data = match family.kind {
        FamilyKind::Counter => metric::Data::Sum(wire::Sum {
            data_points,
            aggregation_temporality: CUMULATIVE,
            is_monotonic: true,
        }),
        FamilyKind::Gauge => metric::Data::Gauge(wire::Gauge { data_points }),
    };
    described(family.name, family.help, family.unit, data)
}

fn attributes(point: &Point<'_>) -> Vec<KeyValue> {
    point.attributes.iter().map(|(key, value)| key_value(key, told(value))).collect()
}

fn key_value(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

fn told(value: &Value) -> any_value::Value {
    match value {
        Value::Text(text) => any_value::Value::StringValue(text.to_string()),
        Value::Number(number) => any_value::Value::IntValue(*number),
        Value::Real(number) => any_value::Value::DoubleValue(number.0),
        Value::Flag(flag) => any_value::Value::BoolValue(*flag),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        metrics::{
            Active, BUCKETS_MAX, Metrics, OVERFLOW, Options,
            tests::{resource, span},
        },
        protocol::{Attribute, Kind},
    };

    const SECOND: u64 = 1_000_000_000;

    fn decoded(requests: &[Encoded]) -> Vec<ResourceMetrics> {
        let read = |request: &Encoded| {
            ExportMetricsServiceRequest::decode(request.bytes.clone()).expect("a request").resource_metrics
        };
        requests.iter().flat_map(read).collect()
    }

    fn own<'a>(resource: &'a [ResourceAttribute], families: &'a [Family]) -> Own<'a> {
        Own { resource, start: 3, time: 30 * SECOND, families }
    }

    /// By service and name of the metric.
    fn data<'a>(groups: &'a [ResourceMetrics], service: &str, name: &str) -> Option<&'a metric::Data> {
        let value = any_value::Value::StringValue(service.to_owned());
        let named = key_value("service.name", value);
        let group = groups.iter().find(|group| {
            group.resource.as_ref().is_some_and(|resource| resource.attributes.contains(&named))
        })?;
        let metric = group.scope_metrics[0].metrics.iter().find(|metric| metric.name == name)?;
        metric.data.as_ref()
    }

    #[test]
    fn others_read_what_was_counted() {
        for exponential in [false, true] {
            let mut metrics = Metrics::new(Options { exponential, ..Options::default() });
            let (shop, cart) = (resource("shop", 1), resource("cart", 2));
            for (id, duration) in [(1u8, 0), (2, 30_000_000), (3, 20 * SECOND)] {
                let mut span = span(&shop, Kind::Server, 503, 30 * SECOND, duration);
                (span.trace, span.id) = ([id; 16], [id; 8]);
                metrics.observe(&span, None);
                metrics.exemplar(&span, None);
            }
            metrics.observe(&span(&cart, Kind::Client, 200, 31 * SECOND, 1), None);
            let get = [Attribute::word("http.request.method", "GET")];
            let active =
                Active { resource: &shop, exchange: "http", kind: Kind::Server, attributes: &get, count: 3 };
            metrics.set_active(40 * SECOND, [active]);
            let labels = vec![("bucket".to_owned(), "parsed".to_owned())];
            let families = [
                Family {
                    samples: vec![(labels, 7.0)],
                    ..Family::of("tracer.bytes", "Bytes", "By", FamilyKind::Counter, 0.0)
                },
                Family::of("tracer.open", "Open", "{connection}", FamilyKind::Gauge, 2.0),
            ];
            let mine = [Attribute::word("service.name", "tracer").into()];
            let requests = requests(&metrics.collect(), &own(&mine, &families));
            assert_eq!(requests.iter().map(|request| request.points).collect::<Vec<_>>(), [7, 2]);
            let groups = decoded(&requests);
            assert_eq!(groups.len(), 3);
            assert!(groups.iter().all(|group| group.schema_url == SCHEMA_URL
                && group.scope_metrics[0].scope.as_ref().is_some_and(|scope| scope.name == "tracer")));

            let duration = data(&groups, "shop", "http.server.request.duration").expect("durations");
            let (attributes, times, count, sum, exemplars) = match duration {
                metric::Data::Histogram(histogram) if !exponential => {
                    assert_eq!(histogram.aggregation_temporality, CUMULATIVE);
                    let point = &histogram.data_points[0];
                    let mut counts = vec![0; 15];
                    (counts[0], counts[3], counts[14]) = (1, 1, 1);
                    assert_eq!((&point.bucket_counts, point.explicit_bounds.len()), (&counts, 14));
                    assert_eq!((point.explicit_bounds[0], point.explicit_bounds[13]), (0.005, 10.0));
                    let times = (point.start_time_unix_nano, point.time_unix_nano);
                    (&point.attributes, times, point.count, point.sum, &point.exemplars)
                }
                metric::Data::ExponentialHistogram(histogram) if exponential => {
                    assert_eq!(histogram.aggregation_temporality, CUMULATIVE);
                    let point = &histogram.data_points[0];
                    let buckets = point.positive.as_ref().expect("buckets");
                    assert_eq!((point.zero_count, buckets.bucket_counts.iter().sum::<u64>()), (1, 2));
                    assert!(buckets.bucket_counts.len() <= BUCKETS_MAX);
                    // The value lies in the last bucket, by the words of the data model.
                    let last = buckets.offset + buckets.bucket_counts.len() as i32 - 1;
                    let base = (-f64::from(point.scale)).exp2().exp2();
                    assert!(base.powi(last) < 20.0 && 20.0 <= base.powi(last + 1));
                    let times = (point.start_time_unix_nano, point.time_unix_nano);
                    (&point.attributes, times, point.count, point.sum, &point.exemplars)
                }
                other => panic!("{other:?}"),
            };
            assert_eq!((times, count, sum), ((30 * SECOND, 40 * SECOND), 3, Some(20.03)));
            let expected = [
                key_value("http.request.method", any_value::Value::StringValue("GET".to_owned())),
                key_value("url.scheme", any_value::Value::StringValue("http".to_owned())),
                key_value("error.type", any_value::Value::StringValue("503".to_owned())),
                key_value("http.response.status_code", any_value::Value::IntValue(503)),
            ];
            assert_eq!(attributes[..], expected);
            let pointed: Vec<_> = exemplars
                .iter()
                .map(|one| (one.trace_id[0], one.span_id.len(), one.time_unix_nano, one.value))
                .collect();
            let value = |value| Some(exemplar::Value::AsDouble(value));
            let time = 30 * SECOND;
            assert_eq!(
                pointed,
                [(1, 8, time, value(0.0)), (2, 8, time, value(0.03)), (3, 8, time, value(20.0))]
            );

            let Some(metric::Data::Sum(level)) = data(&groups, "shop", "http.server.active_requests") else {
                panic!("no level")
            };
            assert!(!level.is_monotonic && level.aggregation_temporality == CUMULATIVE);
            assert_eq!(level.data_points[0].value, Some(number_data_point::Value::AsInt(3)));
            let Some(metric::Data::Sum(bytes)) = data(&groups, "tracer", "tracer.bytes") else {
                panic!("no counter")
            };
            let point = &bytes.data_points[0];
            assert!(bytes.is_monotonic && point.value == Some(number_data_point::Value::AsDouble(7.0)));
            assert_eq!((point.start_time_unix_nano, point.attributes[0].key.as_str()), (3, "bucket"));
            assert!(matches!(data(&groups, "tracer", "tracer.open"), Some(metric::Data::Gauge(_))));
            assert!(data(&groups, "cart", "http.client.request.duration").is_some());
        }
    }

    /// Nothing is lost or told twice where it takes several requests, and none is too large.
    #[test]
    fn many_points_take_several_requests() {
        let mut metrics = Metrics::new(Options { exponential: true, ..Options::default() });
        for service in 0..30 {
            let resource = resource(&format!("service-{service}"), service);
            for status in 0..90 {
                for duration in 0..60 {
                    let mut span = span(&resource, Kind::Server, status, 1 << 50, 1 << (duration % 38));
                    span.view.response_content = duration << (duration % 20);
                    metrics.observe(&span, None);
                    metrics.exemplar(&span, None);
                }
            }
        }
        let collected = metrics.collect();
        let points: usize = collected.iter().map(|metric| metric.points.len()).sum();
        let requests = requests(&collected, &own(&[], &[]));
        assert_eq!(requests.iter().map(|request| request.points).sum::<usize>(), points);
        let largest = requests.iter().map(|request| request.bytes.len()).max().unwrap_or(0);
        eprintln!("{points} points in {} requests, the largest has {largest} bytes", requests.len());
        assert!(requests.len() > 1 && largest < 4 << 20, "{largest}");
        let (mut seen, mut overflows) = (0, 0);
        for group in decoded(&requests) {
            for metric in &group.scope_metrics[0].metrics {
                let Some(metric::Data::ExponentialHistogram(histogram)) = &metric.data else { continue };
                seen += histogram.data_points.len();
                overflows += histogram
                    .data_points
                    .iter()
                    .filter(|point| point.attributes.iter().any(|attribute| attribute.key == OVERFLOW))
                    .count();
            }
        }
        assert_eq!((seen, overflows > 0), (points, true));
    }
}
