//! What is told of all series at one time.

use std::collections::BTreeMap;

use super::{Histogram, Key, Metrics, Numbers, Service, Unit, group::Group};
use crate::protocol::Value;

/// The attribute of what had no series of its own (OpenTelemetry, metrics SDK, "Overflow attribute").
pub const OVERFLOW: &str = "otel.metric.overflow";

/// It is the only one, and always true.
static OVERFLOWS: Value = Value::Flag(true);

pub struct Metric<'a> {
    pub name: &'static str,
    pub help: &'static str,
    pub unit: Unit,
    pub points: Vec<Point<'a>>,
}

pub struct Point<'a> {
    pub service: &'a Service,
    pub attributes: Vec<(&'static str, &'a Value)>,
    /// Nanoseconds since 1970: since when it counts, and when this was so.
    pub start: u64,
    pub time: u64,
    pub data: Data<'a>,
}

pub enum Data<'a> {
    Histogram(&'a Histogram),
    /// It goes up and down.
    Level(i64),
    /// It never gets smaller.
    Count(u64),
}

pub(super) fn of(metrics: &Metrics) -> Vec<Metric<'_>> {
    let mut by_name = BTreeMap::new();
    for (key, series) in &metrics.series {
        let group = &metrics.groups[key.group];
        for (place, measured) in group.instruments.iter().enumerate() {
            let data = match &series.numbers {
                Numbers::Level(level) => Data::Level(*level),
                Numbers::Count(count) => Data::Count(*count),
                Numbers::Histograms(histograms) if histograms[place].count() == 0 => continue,
                Numbers::Histograms(histograms) => Data::Histogram(&histograms[place]),
            };
            let instrument = &measured.instrument;
            let metric = by_name.entry(instrument.name).or_insert_with(|| Metric {
                name: instrument.name,
                help: instrument.help,
                unit: measured.unit,
                points: Vec::new(),
            });
            metric.points.push(Point {
                service: metrics.services.get(key.service),
                attributes: attributes(key, group),
                start: series.start,
                time: metrics.now.max(series.updated),
                data,
            });
        }
    }
    let mut all: Vec<Metric<'_>> = by_name.into_values().collect();
    for metric in &mut all {
        metric.points.sort_by(|one, other| one.place().cmp(&other.place()));
    }
    all
}

impl Point<'_> {
    fn place(&self) -> (&str, &str, &[(&'static str, &Value)]) {
        (&self.service.job, &self.service.instance, &self.attributes)
    }
}

fn attributes<'a>(key: &'a Key, group: &Group) -> Vec<(&'static str, &'a Value)> {
    if key.overflow {
        return vec![(OVERFLOW, &OVERFLOWS)];
    }
    let values = key.values.iter().map(Option::as_ref);
    group.attributes.iter().zip(values).filter_map(|(key, value)| Some((*key, value?))).collect()
}
