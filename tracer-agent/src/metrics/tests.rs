use std::collections::{BTreeMap, BTreeSet};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::*;
use crate::{
    protocol::{PROTOCOLS, measure},
    span::Status,
};

const SECOND: u64 = 1_000_000_000;

/// The buckets of the conventions, in seconds.
const B1: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

pub(crate) fn resource(service: &str, process: u32) -> Arc<Resource> {
    let attributes = [
        Attribute::text("service.name", service),
        Attribute::number("process.pid", process),
        Attribute::text("process.executable.name", format!("{service}-{process}")),
        Attribute::text("host.name", "node-1"),
    ];
    let attributes = attributes.map(Into::into).into();
    Arc::new(Resource { process, service: service.into(), attributes, ..Resource::default() })
}

/// A request of `GET`, that ends at `end` and took so many nanoseconds.
pub(crate) fn span(resource: &Arc<Resource>, kind: Kind, status: u16, end: u64, duration: u64) -> Span {
    let mut span = Span::sample();
    span.resource = resource.clone();
    span.kind = kind;
    (span.start, span.end) = (end - duration, end);
    span.attributes = vec![
        Attribute::word("http.request.method", "GET"),
        Attribute::text("url.path", "/never/a/label"),
        Attribute::word("url.scheme", "http"),
        Attribute::number("http.response.status_code", status),
    ];
    if status >= 500 {
        span.status = Status::Error;
        span.attributes.push(Attribute::text("error.type", status.to_string()));
    }
    if kind == Kind::Client {
        span.attributes.push(Attribute::text("server.address", "shop.example"));
        span.attributes.push(Attribute::number("server.port", 8080));
    }
    span
}

/// By metric and attributes, for people: what the counts are.
fn counts(metrics: &Metrics) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for metric in metrics.collect() {
        for point in metric.points {
            let words = point.attributes.iter().map(|(key, value)| match value {
                Value::Text(text) => format!("{key}={text}"),
                Value::Number(number) => format!("{key}={number}"),
                Value::Flag(flag) => format!("{key}={flag}"),
                Value::Real(number) => format!("{key}={}", number.0),
            });
            let words: Vec<String> = words.collect();
            let key = format!("{} {} {}", point.service.job, metric.name, words.join(" "));
            let count = match point.data {
                Data::Histogram(histogram) => histogram.count(),
                Data::Level(level) => level as u64,
                Data::Count(count) => count,
            };
            assert!(counts.insert(key, count).is_none(), "twice: {} {words:?}", metric.name);
        }
    }
    counts
}

fn count(metrics: &Metrics, name: &str) -> u64 {
    counts(metrics)
        .iter()
        .filter(|(key, _)| key.split(' ').nth(1) == Some(name))
        .map(|(_, count)| count)
        .sum()
}

#[test]
fn each_exchange_of_the_registry_has_a_measure() {
    let names: BTreeSet<&str> =
        PROTOCOLS.iter().flat_map(|protocol| protocol.exchanges().iter().copied()).collect();
    let measures: Vec<&str> = measure::all().map(|measure| measure.exchange).collect();
    assert_eq!(measures.len(), names.len());
    assert_eq!(measures.into_iter().collect::<BTreeSet<_>>(), names);
    for name in names {
        let measure = measure::of(name).expect("a measure");
        assert!(measure.bounds.is_sorted() && measure.bounds.iter().all(|bound| *bound > 0));
        for end in [&measure.server, &measure.client] {
            assert!(end.route.is_none_or(|route| end.attributes.contains(&route)), "{name}");
        }
    }
}

/// Counted once more in another way: in seconds, one bound after the other.
#[test]
fn buckets_hold_what_a_naive_count_says() {
    for seed in 0..20 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut metrics = Metrics::new(Options { exponential: seed % 2 == 0, ..Options::default() });
        let resources: Vec<_> = (0..6).map(|n| resource(&format!("service-{}", n % 3), 10 + n)).collect();
        let mut held: BTreeMap<(String, bool, i64), (Vec<u64>, u128)> = BTreeMap::new();
        for _ in 0..3_000 {
            let resource = &resources[random.next_u32() as usize % resources.len()];
            let kind = if random.next_u32() % 2 == 0 { Kind::Server } else { Kind::Client };
            let status = [200u16, 404, 503][random.next_u32() as usize % 3];
            let duration = match random.next_u32() % 4 {
                // On a bound, and beside it.
                0 => {
                    (B1[random.next_u32() as usize % 14] * 1e9).round() as u64
                        + u64::from(random.next_u32() % 3)
                        - 1
                }
                _ => random.next_u64() >> (28 + random.next_u32() % 30),
            };
            metrics.observe(&span(resource, kind, status, 1 << 50, duration), None);
            let key = (resource.service.to_string(), kind == Kind::Server, i64::from(status));
            let (buckets, sum) = held.entry(key).or_insert_with(|| (vec![0; 15], 0));
            let seconds = duration as f64 / 1e9;
            let place = B1.iter().position(|bound| seconds <= *bound).unwrap_or(14);
            buckets[place] += 1;
            *sum += u128::from(duration);
        }
        let mut seen = BTreeMap::new();
        for metric in metrics.collect().iter().filter(|metric| metric.name.ends_with("request.duration")) {
            for point in &metric.points {
                let Data::Histogram(histogram) = &point.data else { panic!("no histogram") };
                let status = point.attributes.iter().find_map(|(key, value)| match value {
                    Value::Number(status) if *key == "http.response.status_code" => Some(*status),
                    _ => None,
                });
                assert_eq!(histogram.bounds().collect::<Vec<_>>(), B1);
                if let Some(exponential) = histogram.exponential() {
                    let all = exponential.counts().iter().sum::<u64>() + exponential.zero();
                    assert_eq!(all, histogram.count());
                }
                let key =
                    (point.service.job.clone(), metric.name.contains("server"), status.expect("a status"));
                seen.insert(key, (histogram.counts().to_vec(), histogram.sum()));
            }
        }
        let held: BTreeMap<_, _> =
            held.into_iter().map(|(key, (buckets, sum))| (key, (buckets, sum as f64 / 1e9))).collect();
        assert_eq!(seen, held, "seed {seed}");
    }
}

/// Series come and go; what is shown of one that stays only grows, and one that comes again starts later than
/// it was last shown.
#[test]
fn counters_never_go_backwards_while_they_are_shown() {
    for seed in 0..30 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let options = Options {
            series_max: 12,
            service_series_max: 8,
            services_max: 3,
            servers_max: 2,
            stale: 30 * SECOND,
            ..Options::default()
        };
        let mut metrics = Metrics::new(options);
        let resources: Vec<_> = (0..5).map(|n| resource(&format!("service-{n}"), n)).collect();
        let mut shown: BTreeMap<String, (u64, u64, Vec<u64>, f64)> = BTreeMap::new();
        let mut last = BTreeMap::new();
        let mut now = 1_000 * SECOND;
        let mut spans = 0;
        for round in 0..200 {
            for _ in 0..random.next_u32() % 12 {
                let resource = &resources[random.next_u32() as usize % resources.len()];
                let kind = if random.next_u32() % 3 == 0 { Kind::Client } else { Kind::Server };
                let status = 200 + (random.next_u32() % 6) as u16;
                // Some come late.
                let end = now - u64::from(random.next_u32() % 20) * SECOND;
                let mut span = span(resource, kind, status, end, u64::from(random.next_u32()));
                if kind == Kind::Client {
                    span.attributes[4] =
                        Attribute::text("server.address", format!("s{}", random.next_u32() % 5));
                }
                metrics.observe(&span, None);
                spans += 1;
            }
            now += u64::from(1 + random.next_u32() % if round % 40 == 0 { 100 } else { 5 }) * SECOND;
            metrics.handle_timeout(now);
            assert!(metrics.own[0] <= 12);
            assert!(metrics.services.all().all(|service| service.servers_known() <= 2));
            let mut current = BTreeMap::new();
            for metric in metrics.collect() {
                for point in &metric.points {
                    let Data::Histogram(histogram) = &point.data else { continue };
                    let name = format!(
                        "{}{}{}{:?}",
                        metric.name, point.service.job, point.service.instance, point.attributes
                    );
                    let numbers = (point.start, point.time, histogram.counts().to_vec(), histogram.sum());
                    assert!(point.start <= point.time);
                    if let Some((start, time, counts, sum)) = shown.get(&name) {
                        assert_eq!((*start, *time <= point.time), (point.start, true));
                        assert!(counts.iter().zip(histogram.counts()).all(|(old, new)| old <= new), "{name}");
                        assert!(*sum <= histogram.sum());
                    } else if let Some(time) = last.get(&name) {
                        assert!(point.start >= *time, "{name} starts before it was last shown");
                    }
                    last.insert(name.clone(), point.time);
                    current.insert(name, numbers);
                }
            }
            shown = current;
        }
        assert!(metrics.expired > 0 && metrics.overflowed > 0 && spans > 0);
    }
}

#[test]
fn what_has_no_place_is_counted_in_one_series() {
    let options = Options { series_max: 10, service_series_max: 6, services_max: 2, ..Options::default() };
    let mut metrics = Metrics::new(options);
    for service in 0..4 {
        let resource = resource(&format!("service-{service}"), service);
        for status in 200..220 {
            metrics.observe(&span(&resource, Kind::Server, status, SECOND, 1), None);
        }
    }
    assert_eq!(count(&metrics, "http.server.request.duration"), 80);
    assert_eq!(count(&metrics, "http.server.request.body.size"), 80);
    let counts = counts(&metrics);
    let overflow =
        |service: &str| counts[&format!("{service} http.server.request.duration otel.metric.overflow=true")];
    // 6 of the first; 4 of the second, and then all are taken; no series of the others.
    assert_eq!((overflow("service-0"), overflow("service-1"), overflow("_OTHER")), (14, 16, 40));
    assert_eq!((metrics.overflowed(), metrics.series()), (70, 13));
    // After a while there is room again.
    metrics.handle_timeout(3_600 * SECOND);
    assert_eq!((metrics.series(), metrics.own[0]), (0, 0));
    metrics.observe(&span(&resource("service-3", 3), Kind::Server, 200, 3_600 * SECOND, 1), None);
    assert_eq!((metrics.own[0], metrics.overflowed()), (1, 70));
}

/// Those of several protocols share the series of what has no place, where they share a metric.
#[test]
fn overflow_of_one_metric_is_one_series() {
    let mut metrics = Metrics::new(Options { series_max: 0, ..Options::default() });
    let resource = resource("shop", 1);
    for protocol in ["http", "grpc"] {
        let mut span = span(&resource, Kind::Server, 200, SECOND, 1);
        span.view.protocol = protocol;
        metrics.observe(&span, None);
        span.view.stream = Some("stream");
        metrics.observe(&span, None);
    }
    let counts = counts(&metrics);
    assert_eq!(counts["shop tracer.server.stream.duration otel.metric.overflow=true"], 2);
    assert_eq!(counts["shop rpc.server.call.duration otel.metric.overflow=true"], 1);
}

#[test]
fn a_service_that_starts_again_goes_on() {
    let mut metrics = Metrics::new(Options::default());
    for process in 1..50 {
        metrics.observe(&span(&resource("shop", process), Kind::Server, 200, SECOND, 1), None);
    }
    assert_eq!((metrics.series(), count(&metrics, "http.server.request.duration")), (1, 49));
    // Another version is another service, of the same name.
    let mut other = (*resource("shop", 50)).clone();
    other.attributes.push(Attribute::word("service.version", "2").into());
    metrics.observe(&span(&Arc::new(other), Kind::Server, 200, SECOND, 1), None);
    let collected = metrics.collect();
    let names: Vec<_> = collected[0].points.iter().map(|point| point.service.instance.as_str()).collect();
    assert_eq!(names, ["node-1", "node-1#2"]);
}

#[test]
fn servers_of_a_client_are_bounded() {
    let mut metrics = Metrics::new(Options { servers_max: 3, sizes: false, ..Options::default() });
    let resource = resource("crawler", 1);
    for server in 0..10 {
        let mut span = span(&resource, Kind::Client, 200, SECOND, 1);
        span.attributes[4] = Attribute::text("server.address", format!("host-{server}"));
        metrics.observe(&span, None);
        metrics.exemplar(&span, None);
    }
    let counts = counts(&metrics);
    assert_eq!(counts.len(), 4);
    let other = counts.iter().find(|(key, _)| key.contains("_OTHER")).expect("others");
    assert!(!other.0.contains("server.port"));
    assert_eq!((*other.1, metrics.overflowed()), (7, 0));
}

#[test]
fn streams_are_no_requests() {
    let mut metrics = Metrics::new(Options::default());
    let mut span = span(&resource("shop", 1), Kind::Server, 200, 100 * SECOND, 90 * SECOND);
    span.view.stream = Some("sse");
    metrics.observe(&span, None);
    let counts = counts(&metrics);
    let key = "shop tracer.server.stream.duration http.request.method=GET url.scheme=http \
               http.response.status_code=200 tracer.stream=sse";
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), [(key.to_owned(), 1)]);
}

#[test]
fn a_partial_span_is_counted_without_the_size_of_what_was_cut() {
    let mut metrics = Metrics::new(Options::default());
    let mut partial = span(&resource("shop", 1), Kind::Server, 200, SECOND, 1);
    partial.attributes.push(Attribute::word("tracer.partial", "response"));
    metrics.observe(&partial, None);
    let mut aborted = span(&resource("shop", 1), Kind::Server, 200, SECOND, 1);
    aborted.view.outcome = Outcome::Aborted;
    metrics.observe(&aborted, None);
    let names = ["request.duration", "request.body.size", "response.body.size"];
    assert_eq!(names.map(|name| count(&metrics, &format!("http.server.{name}"))), [2, 1, 0]);
}

#[test]
fn what_was_not_seen_is_no_attribute() {
    let mut metrics = Metrics::new(Options { sizes: false, ..Options::default() });
    let mut bare = span(&resource("shop", 1), Kind::Server, 200, SECOND, 1);
    bare.attributes.clear();
    metrics.observe(&bare, None);
    let mut routed = bare.clone();
    routed.attributes.push(Attribute::word("http.route", "/of/the/span"));
    metrics.observe(&routed, Some(&Text::new("/items/{id}")));
    let names: Vec<String> = counts(&metrics).into_keys().collect();
    let route = "shop http.server.request.duration http.route=/items/{id}";
    assert_eq!(names, ["shop http.server.request.duration ", route]);
    let mut unknown = bare.clone();
    unknown.view.protocol = "carrier pigeon";
    metrics.observe(&unknown, None);
    assert_eq!(metrics.series(), 2);
}

#[test]
fn what_is_under_way_goes_up_and_down() {
    let mut metrics = Metrics::new(Options::default());
    let resource = resource("shop", 1);
    let get = [
        Attribute::word("http.request.method", "GET"),
        Attribute::word("url.scheme", "http"),
        Attribute::word("url.path", "/"),
    ];
    let post = [Attribute::word("http.request.method", "POST")];
    let active =
        |attributes, kind| Active { resource: &resource, exchange: "http", kind, attributes, count: 2 };
    metrics.set_active(
        SECOND,
        [active(&get, Kind::Server), active(&get, Kind::Server), active(&post, Kind::Client)],
    );
    let name = "shop http.server.active_requests http.request.method=GET url.scheme=http".to_owned();
    assert_eq!(counts(&metrics), BTreeMap::from([(name.clone(), 4)]));
    // As long as it is under way, it is no matter how long.
    metrics.handle_timeout(7_200 * SECOND);
    assert_eq!(counts(&metrics)[&name], 4);
    metrics.set_active(7_200 * SECOND, [active(&post, Kind::Server)]);
    let other = "shop http.server.active_requests http.request.method=POST".to_owned();
    assert_eq!(counts(&metrics), BTreeMap::from([(name, 0), (other.clone(), 2)]));
    metrics.handle_timeout(7_201 * SECOND);
    assert_eq!(counts(&metrics), BTreeMap::from([(other, 2)]));
}

#[test]
fn a_bucket_points_at_its_newest_span() {
    let mut metrics = Metrics::new(Options::default());
    let resource = resource("shop", 1);
    let mut unknown = span(&resource, Kind::Server, 500, SECOND, 1);
    metrics.exemplar(&unknown, None);
    assert_eq!(metrics.series(), 0);
    for (id, end, duration) in [(1, 5, 1_000_000), (2, 9, 2_000_000), (3, 7, 3_000_000), (4, 1, 400_000_000)]
    {
        unknown = span(&resource, Kind::Server, 200, end * SECOND, duration);
        unknown.id = [id; 8];
        metrics.observe(&unknown, None);
        metrics.exemplar(&unknown, None);
    }
    let collected = metrics.collect();
    let duration =
        collected.iter().find(|metric| metric.name == "http.server.request.duration").expect("one");
    let Data::Histogram(histogram) = duration.points[0].data else { panic!("no histogram") };
    let seen: Vec<_> =
        histogram.exemplars().iter().map(|(bucket, one)| (*bucket, one.span[0], one.value)).collect();
    assert_eq!(seen, [(0, 2, 2_000_000), (7, 4, 400_000_000)]);
}

/// Bytes of a series, with all that it can have: `-- --nocapture` shows them.
#[test]
fn memory_is_bounded() {
    let resource = resource("shop", 1);
    let mut told = Vec::new();
    for (exponential, exemplars) in [(false, false), (false, true), (true, true)] {
        let options = Options { exponential, service_series_max: 100, ..Options::default() };
        let mut metrics = Metrics::new(options);
        let empty = metrics.held();
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for status in 0..200 {
            for _ in 0..100 {
                let duration = random.next_u64() >> (27 + random.next_u32() % 37);
                let mut span = span(&resource, Kind::Server, status, 1 << 50, duration);
                (span.view.request_content, span.view.response_content) = (duration, duration >> 3);
                metrics.observe(&span, None);
                if exemplars {
                    metrics.exemplar(&span, None);
                }
            }
        }
        assert_eq!(metrics.series(), 101);
        told.push((metrics.held() - empty) / metrics.series());
    }
    eprintln!("bytes of a series: {told:?} (plain, with exemplars, with exponential buckets)");
    assert!(told[0] < 1_200 && told[1] < 2_500 && told[2] < 7_000, "{told:?}");
}
