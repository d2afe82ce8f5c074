//! Metrics as Prometheus reads them: OpenMetrics 1.0, or its older text (0.0.4) for those who ask for no other.
//!
//! Names follow OpenTelemetry's "Prometheus and OpenMetrics compatibility": `http.server.request.duration` in
//! seconds is `http_server_request_duration_seconds`, counters end in `_total`. One endpoint tells of many
//! services: so, as that page wants it, each series has `job` (`namespace/name`) and `instance` of its service,
//! all else that is known of it stands in `target_info`, and whoever scrapes sets `honor_labels: true`.
//! `otel_scope_name="tracer"` tells them from what a service counts itself; the version is left out, since all
//! series would be new ones after an update.
//!
//! The library of this (prometheus-client 0.25) was tried: it writes no older text, its exemplars cannot be made
//! with a time of their own, and its families are in the order of a hash map.

#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::{self, Display, Write},
};

use super::hex;
use crate::{
    metrics::{Data, Exemplar, Family, FamilyKind, Histogram, Metric, Point, Service},
    protocol::Value,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 0.0.4; it has no exemplars.
    Classic,
    OpenMetrics,
}

impl Format {
    /// By the field `Accept` of who asks.
    pub fn accepted(accept: &str) -> Self {
        let named = |kind: &str| {
            let mut parts = kind.split(';').map(str::trim);
            let is_named =
                parts.next().is_some_and(|name| name.eq_ignore_ascii_case("application/openmetrics-text"));
            let refused = parts.any(|part| {
                part.strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok()) == Some(0.0)
            });
            is_named && !refused
        };
        if accept.split(',').any(named) { Format::OpenMetrics } else { Format::Classic }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Format::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Everything, with its end. The families are the tracer's own: they have no `job`, so that they get the one
/// of whoever scrapes.
pub fn text(metrics: &[Metric<'_>], families: &[Family], format: Format) -> String {
    let mut page = Page { text: String::new(), format };
    page.targets(metrics);
    for metric in metrics {
        page.metric(metric);
    }
    for family in families.iter().filter(|family| !family.samples.is_empty()) {
        page.family(family);
    }
    if format == Format::OpenMetrics {
        page.text.push_str("# EOF\n");
    }
    page.text
}

/// Writing to a `String` does not fail.
macro_rules! put {
    ($page:expr, $($words:tt)*) => {{
        let _ = writeln!($page.text, $($words)*);
    }};
}

struct Page {
    text: String,
    format: Format,
}

impl Page {
    /// `target_info`, once for each service that has any.
    fn targets(&mut self, metrics: &[Metric<'_>]) {
        let points = metrics.iter().flat_map(|metric| &metric.points);
        let services: BTreeMap<(&str, &str), &Service> = points
            .map(|point| ((point.service.job.as_str(), point.service.instance.as_str()), point.service))
            .collect();
        let mut described = false;
        for ((job, instance), service) in services {
            let identity = [("job", Cow::from(job)), ("instance", Cow::from(instance))];
            let rest =
                service.attributes.iter().filter(|attribute| !IDENTITY.contains(&attribute.key.as_str()));
            let rest: Vec<_> =
                rest.map(|attribute| (attribute.key.as_str(), told(&attribute.value))).collect();
            if rest.is_empty() {
                continue;
            }
            if !described {
                described = true;
                match self.format {
                    Format::Classic => self.head("target_info", "gauge", "", "Target metadata"),
                    Format::OpenMetrics => self.head("target", "info", "", "Target metadata"),
                }
            }
            put!(self, "target_info{{{}}} 1", Labels::of(identity.into_iter().chain(rest)));
        }
    }

    fn metric(&mut self, metric: &Metric<'_>) {
        let unit = suffix(metric.unit.name());
        let name = name(metric.name, &unit);
        let Some(first) = metric.points.first() else { return };
        let kind = match first.data {
            Data::Histogram(_) => "histogram",
            Data::Level(_) => "gauge",
            Data::Count(_) => "counter",
        };
        match (kind, self.format) {
            ("counter", Format::Classic) => self.head(&format!("{name}_total"), kind, &unit, metric.help),
            _ => self.head(&name, kind, &unit, metric.help),
        }
        for point in &metric.points {
            let labels = labels(point);
            match point.data {
                Data::Histogram(histogram) => self.histogram(&name, &labels, histogram),
                Data::Level(level) => put!(self, "{name}{{{labels}}} {level}"),
                Data::Count(count) => put!(self, "{name}_total{{{labels}}} {count}"),
            }
        }
    }

    fn histogram(&mut self, name: &str, labels: &Labels, histogram: &Histogram) {
        let mut below = 0;
        let bounds = histogram.bounds().chain([f64::INFINITY]);
        for (place, (bound, count)) in bounds.zip(histogram.counts()).enumerate() {
            below += count;
            let _ = write!(self.text, "{name}_bucket{{{labels},le=\"{}\"}} {below}", Bound(bound));
            let exemplars = histogram.exemplars();
            if self.format == Format::OpenMetrics
                && let Ok(found) = exemplars.binary_search_by_key(&place, |(bucket, _)| *bucket)
            {
                self.exemplar(histogram, &exemplars[found].1);
            }
            self.text.push('\n');
        }
        put!(self, "{name}_sum{{{labels}}} {}", Number(histogram.sum()));
        put!(self, "{name}_count{{{labels}}} {below}");
    }

    fn exemplar(&mut self, histogram: &Histogram, exemplar: &Exemplar) {
        let (trace, span) = (hex(&exemplar.trace), hex(&exemplar.span));
        let value = Number(histogram.value(exemplar));
        let milliseconds = exemplar.time / 1_000_000;
        let (seconds, rest) = (milliseconds / 1_000, milliseconds % 1_000);
        let _ =
            write!(self.text, " # {{trace_id=\"{trace}\",span_id=\"{span}\"}} {value} {seconds}.{rest:03}");
    }

    fn family(&mut self, family: &Family) {
        let unit = suffix(family.unit);
        let base = name(family.name, &unit);
        let base = base.strip_suffix("_total").unwrap_or(&base);
        let whole = match family.kind {
            FamilyKind::Counter => format!("{base}_total"),
            FamilyKind::Gauge => base.to_owned(),
        };
        match (family.kind, self.format) {
            (FamilyKind::Counter, Format::Classic) => self.head(&whole, "counter", &unit, family.help),
            (FamilyKind::Counter, Format::OpenMetrics) => self.head(base, "counter", &unit, family.help),
            (FamilyKind::Gauge, _) => self.head(base, "gauge", &unit, family.help),
        }
        for (labels, value) in &family.samples {
            let labels = Labels::of(labels.iter().map(|(key, value)| (key.as_str(), Cow::from(value))));
            let value = Number(*value);
            if labels.0.is_empty() {
                put!(self, "{whole} {value}");
            } else {
                put!(self, "{whole}{{{labels}}} {value}");
            }
        }
    }

    fn head(&mut self, name: &str, kind: &str, unit: &str, help: &str) {
        let quotes = self.format == Format::OpenMetrics;
        put!(self, "# HELP {name} {}", escaped(help, quotes));
        put!(self, "# TYPE {name} {kind}");
        if self.format == Format::OpenMetrics && !unit.is_empty() && name.ends_with(unit) {
            put!(self, "# UNIT {name} {unit}");
        }
    }
}

/// Attributes of a resource that `job` and `instance` are made of.
const IDENTITY: [&str; 3] = ["service.name", "service.namespace", "service.instance.id"];

fn labels(point: &Point<'_>) -> Labels {
    let service = point.service;
    let identity = [("job", &service.job), ("instance", &service.instance)];
    let identity = identity.into_iter().map(|(key, value)| (key, Cow::from(value)));
    let attributes = point.attributes.iter().map(|(key, value)| (*key, told(value)));
    Labels::of(identity.chain([("otel_scope_name", Cow::from("tracer"))]).chain(attributes))
}

/// Written as they stand between braces.
struct Labels(String);

impl Labels {
    /// Names that become the same share one label, with their values in a row.
    fn of<'a>(pairs: impl IntoIterator<Item = (&'a str, Cow<'a, str>)>) -> Self {
        let mut named: Vec<(String, String)> = Vec::new();
        for (key, value) in pairs {
            let key = plain(key, false);
            match named.iter_mut().find(|(known, _)| *known == key) {
                Some((_, values)) => {
                    values.push(';');
                    values.push_str(&value);
                }
                None => named.push((key, value.into_owned())),
            }
        }
        let mut text = String::new();
        for (key, value) in &named {
            let comma = if text.is_empty() { "" } else { "," };
            let _ = write!(text, "{comma}{key}=\"{}\"", escaped(value, true));
        }
        Self(text)
    }
}

impl Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn told(value: &Value) -> Cow<'_, str> {
    match value {
        Value::Text(text) => Cow::from(text.as_str()),
        Value::Number(number) => Cow::from(number.to_string()),
        Value::Real(number) => Cow::from(number.0.to_string()),
        Value::Flag(flag) => Cow::from(if *flag { "true" } else { "false" }),
    }
}

/// What is not allowed in a text between quotes, or in a line of help.
fn escaped(text: &str, quotes: bool) -> Cow<'_, str> {
    if !text.contains(['\\', '"', '\n']) {
        return Cow::from(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for letter in text.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            letter => out.push(letter),
        }
    }
    Cow::from(out)
}

/// The name of a metric with its unit, if it does not end in it.
fn name(name: &str, unit: &str) -> String {
    let mut name = plain(name, true);
    let ends = name.strip_suffix(unit).is_some_and(|rest| rest.is_empty() || rest.ends_with('_'));
    if !unit.is_empty() && !ends {
        name.push('_');
        name.push_str(unit);
    }
    name
}

/// Letters, digits and single underscores, no digit first; names of metrics also have colons.
fn plain(name: &str, colons: bool) -> String {
    let mut out = String::with_capacity(name.len() + 1);
    for letter in name.chars() {
        let allowed = letter.is_ascii_alphanumeric() || (colons && letter == ':');
        match letter {
            letter if allowed => {
                if out.is_empty() && letter.is_ascii_digit() {
                    out.push('_');
                }
                out.push(letter);
            }
            _ if out.ends_with('_') => {}
            _ => out.push('_'),
        }
    }
    if out.is_empty() { "_".to_owned() } else { out }
}

/// How Prometheus says a unit of UCUM. What stands in braces is none.
fn suffix(unit: &str) -> String {
    let word = |unit: &str| match unit {
        "s" => "seconds".to_owned(),
        "ms" => "milliseconds".to_owned(),
        "us" => "microseconds".to_owned(),
        "ns" => "nanoseconds".to_owned(),
        "min" => "minutes".to_owned(),
        "h" => "hours".to_owned(),
        "By" => "bytes".to_owned(),
        "KiBy" => "kibibytes".to_owned(),
        "MiBy" => "mebibytes".to_owned(),
        "%" => "percent".to_owned(),
        "1" => "ratio".to_owned(),
        unit if unit.is_empty() || unit.starts_with('{') => String::new(),
        other => plain(other, false),
    };
    match unit.split_once('/') {
        Some((what, per)) => [&word(what), "per", word(per).trim_end_matches('s')].join("_"),
        None => word(unit),
    }
}

struct Number(f64);

impl Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(number) = *self;
        match number.abs() {
            _ if number.is_nan() => f.write_str("NaN"),
            f64::INFINITY => f.write_str(if number > 0.0 { "+Inf" } else { "-Inf" }),
            size if size != 0.0 && !(1e-6..1e15).contains(&size) => write!(f, "{number:e}"),
            _ => write!(f, "{number}"),
        }
    }
}

/// The bound of a bucket is a label: there is one way to write it (OpenMetrics 1.0, "Canonical Numbers").
struct Bound(f64);

impl Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bound) = *self;
        if bound.is_infinite() {
            return f.write_str("+Inf");
        }
        let scientific = format!("{bound:e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        match exponent.parse::<i32>() {
            Ok(exponent @ 6..) => write!(f, "{digits}e+{exponent:02}"),
            Ok(exponent @ ..-4) => write!(f, "{digits}e-{:02}", -exponent),
            // With a point, always.
            _ => write!(f, "{bound:?}"),
        }
    }
}
