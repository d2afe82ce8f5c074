use std::sync::Arc;

use super::*;
use crate::{
    enrich::Resource,
    metrics::{
        Active, Metrics, Options,
        tests::{resource, span},
    },
    protocol::{Attribute, Kind, Text},
};

const SECOND: u64 = 1_000_000_000;

/// A name that breaks whatever does not escape it.
const HOSTILE: &str = "a\"b\\c\nd{e=\"f\"} é 7\u{2028}";

fn sample() -> (Metrics, Vec<Family>) {
    let mut metrics = Metrics::new(Options { sizes: false, ..Options::default() });
    let shop = resource("shop", 1);
    for (id, duration) in [(1u8, 5_000_000), (2, 30_000_000), (3, 20 * SECOND)] {
        let mut span = span(&shop, Kind::Server, 200, 1_700_000_000_123_456_789, duration);
        (span.trace, span.id) = ([id; 16], [id; 8]);
        let route = Text::new(HOSTILE);
        metrics.observe(&span, Some(&route));
        metrics.exemplar(&span, Some(&route));
    }
    let get = [Attribute::word("http.request.method", "GET")];
    let active = Active { resource: &shop, exchange: "http", kind: Kind::Server, attributes: &get, count: 3 };
    metrics.set_active(1_700_000_001 * SECOND, [active]);
    let lost = vec![("lost.by".to_owned(), "ring\n".to_owned()), ("lost-by".to_owned(), "2".to_owned())];
    let families = vec![
        Family {
            name: "tracer.ledger.bytes",
            help: "Bytes that\nwere \"moved\"",
            unit: "By",
            kind: FamilyKind::Counter,
            samples: vec![(lost, 12345678901234.0), (Vec::new(), 0.5)],
        },
        Family::of("tracer.cpu", "Share", "1", FamilyKind::Gauge, 1e-7),
        Family::by("tracer.none", "Nothing", "", FamilyKind::Gauge, "a", [("b", 1.0)].into_iter().take(0)),
    ];
    (metrics, families)
}

#[test]
fn openmetrics_is_as_its_specification_says() {
    let (metrics, families) = sample();
    let expected = r##"# HELP target Target metadata
# TYPE target info
target_info{job="shop",instance="node-1",host_name="node-1"} 1
# HELP http_server_active_requests Number of HTTP server requests under way
# TYPE http_server_active_requests gauge
http_server_active_requests{job="shop",instance="node-1",otel_scope_name="tracer",http_request_method="GET"} 3
# HELP http_server_request_duration_seconds Duration of HTTP server requests
# TYPE http_server_request_duration_seconds histogram
# UNIT http_server_request_duration_seconds seconds
http_server_request_duration_seconds_bucket{LABELS,le="0.005"} 1 # {trace_id="01010101010101010101010101010101",span_id="0101010101010101"} 0.005 1700000000.123
http_server_request_duration_seconds_bucket{LABELS,le="0.01"} 1
http_server_request_duration_seconds_bucket{LABELS,le="0.025"} 1
http_server_request_duration_seconds_bucket{LABELS,le="0.05"} 2 # {trace_id="02020202020202020202020202020202",span_id="0202020202020202"} 0.03 1700000000.123
http_server_request_duration_seconds_bucket{LABELS,le="0.075"} 2
http_server_request_duration_seconds_bucket{LABELS,le="0.1"} 2
http_server_request_duration_seconds_bucket{LABELS,le="0.25"} 2
http_server_request_duration_seconds_bucket{LABELS,le="0.5"} 2
http_server_request_duration_seconds_bucket{LABELS,le="0.75"} 2
http_server_request_duration_seconds_bucket{LABELS,le="1.0"} 2
http_server_request_duration_seconds_bucket{LABELS,le="2.5"} 2
http_server_request_duration_seconds_bucket{LABELS,le="5.0"} 2
http_server_request_duration_seconds_bucket{LABELS,le="7.5"} 2
http_server_request_duration_seconds_bucket{LABELS,le="10.0"} 2
http_server_request_duration_seconds_bucket{LABELS,le="+Inf"} 3 # {trace_id="03030303030303030303030303030303",span_id="0303030303030303"} 20 1700000000.123
http_server_request_duration_seconds_sum{LABELS} 20.035
http_server_request_duration_seconds_count{LABELS} 3
# HELP tracer_ledger_bytes Bytes that\nwere \"moved\"
# TYPE tracer_ledger_bytes counter
# UNIT tracer_ledger_bytes bytes
tracer_ledger_bytes_total{lost_by="ring\n;2"} 12345678901234
tracer_ledger_bytes_total 0.5
# HELP tracer_cpu_ratio Share
# TYPE tracer_cpu_ratio gauge
# UNIT tracer_cpu_ratio ratio
tracer_cpu_ratio 1e-7
# EOF
"##;
    let labels = format!(
        "{}{}{}",
        r#"job="shop",instance="node-1",otel_scope_name="tracer",http_request_method="GET",url_scheme="http","#,
        r#"http_response_status_code="200",http_route="#,
        "\"a\\\"b\\\\c\\nd{e=\\\"f\\\"} é 7\u{2028}\"",
    );
    let expected = expected.replace("LABELS", &labels);
    assert_eq!(text(&metrics.collect(), &families, Format::OpenMetrics), expected);
}

/// The older text has no exemplars, units and end; counters and `target_info` have their whole name.
#[test]
fn the_older_text_differs_in_little() {
    let (metrics, families) = sample();
    let [new, old] =
        [Format::OpenMetrics, Format::Classic].map(|format| text(&metrics.collect(), &families, format));
    let expected: String = new
        .lines()
        .filter(|line| !line.starts_with("# UNIT") && *line != "# EOF")
        .map(|line| line.split(" # {").next().unwrap_or(line).to_owned() + "\n")
        .collect();
    let expected = expected
        .replace("# HELP target ", "# HELP target_info ")
        .replace("# TYPE target info", "# TYPE target_info gauge")
        .replace("# HELP tracer_ledger_bytes ", "# HELP tracer_ledger_bytes_total ")
        .replace("# TYPE tracer_ledger_bytes ", "# TYPE tracer_ledger_bytes_total ")
        .replace(r#"were \"moved\""#, r#"were "moved""#);
    assert_eq!(old, expected);
}

/// No sample is there twice, whatever services are called.
#[test]
fn services_of_one_name_stay_apart() {
    let mut metrics = Metrics::new(Options::default());
    for (process, version) in (1..).zip(["1", "2", "3"]) {
        let attributes =
            [Attribute::word("service.name", "shop"), Attribute::word("service.version", version)];
        let attributes = attributes.map(Into::into).into();
        let resource =
            Arc::new(Resource { process, service: Text::new("shop"), attributes, ..Resource::default() });
        metrics.observe(&span(&resource, Kind::Server, 200, SECOND, 1), None);
    }
    let text = text(&metrics.collect(), &metrics.families(), Format::Classic);
    let mut samples: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' ').map(|(series, _)| series))
        .collect();
    let all = samples.len();
    samples.sort_unstable();
    samples.dedup();
    assert_eq!(samples.len(), all);
    assert!(text.contains(r##"target_info{job="shop",instance="#2",service_version="2"} 1"##), "{text}");
}

#[test]
fn names_and_units_are_those_of_the_compatibility_page() {
    let whole = |otel: &str, unit: &str| name(otel, &suffix(unit));
    assert_eq!(whole("http.server.request.body.size", "By"), "http_server_request_body_size_bytes");
    assert_eq!(whole("tracer.ledger.bytes", "By"), "tracer_ledger_bytes");
    assert_eq!(whole("tracer.kilobytes", "By"), "tracer_kilobytes_bytes");
    assert_eq!(whole("rate", "By/s"), "rate_bytes_per_second");
    assert_eq!(whole("2.a--b__c", "{thing}"), "_2_a_b_c");
    assert_eq!(
        (plain("é", false), plain("", false), plain("a:b", true)),
        ("_".into(), "_".into(), "a:b".into())
    );
}

#[test]
fn numbers_are_canonical() {
    let bounds = [0.005, 1.0, 64.0, 262_144.0, 1_048_576.0, 1e10, 1e-5, 0.0001, 0.0];
    let written = bounds.map(|bound| Bound(bound).to_string());
    let expected = ["0.005", "1.0", "64.0", "262144.0", "1.048576e+06", "1e+10", "1e-05", "0.0001", "0.0"];
    assert_eq!(written, expected);
    let numbers = [0.0, 3.0, -1.5, 1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    let written = numbers.map(|number| Number(number).to_string());
    assert_eq!(written, ["0", "3", "-1.5", "1e300", "NaN", "+Inf", "-Inf"]);
}

#[test]
fn who_asks_says_what_is_read() {
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2";
    for (accept, format) in [
        (prometheus, Format::OpenMetrics),
        ("text/plain, */*", Format::Classic),
        ("application/openmetrics-text;q=0, text/plain", Format::Classic),
        ("", Format::Classic),
    ] {
        assert_eq!(Format::accepted(accept), format, "{accept}");
    }
}
