//! What a capture comes to: per service and route how many, how many failed, how long they took.

pub mod edges;

use std::{collections::BTreeMap, fmt::Write};

use hdrhistogram::Histogram;

use crate::{
    export::text::{duration, plain},
    protocol::{Kind, Text},
    route,
    span::{Span, Status},
};

/// Routes that have a row of their own; what comes beyond is one row for each service.
const ROWS_MAX: usize = 200;

/// Spans that are named at the end.
const SLOWEST: usize = 5;

/// Quantiles are right within a hundredth.
const DIGITS: u8 = 2;

#[derive(Default)]
pub struct Summary {
    rows: BTreeMap<Key, Row>,
    /// The slowest first.
    slowest: Vec<Slow>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    service: Text,
    kind: &'static str,
    /// `GET /users/{id}`
    route: String,
}

struct Row {
    count: u64,
    errors: u64,
    times: Histogram<u32>,
    most: u64,
}

struct Slow {
    time: u64,
    line: String,
}

impl Summary {
    pub fn add(&mut self, span: &Span) {
        let view = &span.view;
        let time = span.end.saturating_sub(span.start);
        let mut route = format!("{} {}", view.operation, route::of(&view.target));
        if let Some(stream) = view.stream {
            // How long somebody listened.
            let _ = write!(route, " ({stream})");
        }
        let mut key = Key { service: span.resource.service.clone(), kind: span.kind.name(), route };
        if self.rows.len() >= ROWS_MAX && !self.rows.contains_key(&key) {
            key.route = "(other routes)".to_owned();
            if self.rows.len() >= 2 * ROWS_MAX && !self.rows.contains_key(&key) {
                key.service = Text::new_static("(other services)");
            }
        }
        let row = self.rows.entry(key).or_insert_with(Row::new);
        row.add(time, span.status == Status::Error);
        let slowest = self.slowest.last().map_or(0, |slow| slow.time);
        if view.stream.is_none() && (self.slowest.len() < SLOWEST || time > slowest) {
            let place = self.slowest.partition_point(|slow| slow.time >= time);
            self.slowest.insert(place, Slow::of(span, time));
            self.slowest.truncate(SLOWEST);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Lines for people, the busiest route first.
    pub fn lines(&self) -> Vec<String> {
        let mut rows: Vec<(&Key, &Row)> = self.rows.iter().collect();
        rows.sort_by_key(|(key, row)| (std::cmp::Reverse(row.count), *key));
        let head = ["COUNT", "ERRORS", "P50", "P95", "MAX", "SERVICE", "SIDE", "ROUTE"].map(str::to_owned);
        let mut cells = vec![head];
        cells.extend(rows.into_iter().map(|(key, row)| {
            let [count, errors, middle, most, max] = row.cells();
            [count, errors, middle, most, max, plain(&key.service), key.kind.to_owned(), plain(&key.route)]
        }));
        let mut lines = table(&cells);
        if !self.slowest.is_empty() {
            lines.push("slowest:".to_owned());
            lines.extend(
                self.slowest.iter().map(|slow| format!("{:>10}  {}", duration(slow.time), slow.line)),
            );
        }
        lines
    }
}

impl Row {
    fn new() -> Self {
        // It grows with what it is given.
        let times = Histogram::new(DIGITS).unwrap_or_else(|_| unreachable!("two digits are allowed"));
        Self { count: 0, errors: 0, times, most: 0 }
    }

    fn add(&mut self, time: u64, failed: bool) {
        self.count += 1;
        self.errors += u64::from(failed);
        // It grows: any time fits.
        let _ = self.times.record(time.max(1));
        self.most = self.most.max(time);
    }

    /// How many, how many failed, and how long they took.
    fn cells(&self) -> [String; 5] {
        let times = [self.at(0.50), self.at(0.95), self.most].map(duration);
        let [middle, most, max] = times;
        [self.count.to_string(), self.errors.to_string(), middle, most, max]
    }

    /// The histogram rounds up, and never beyond what was there.
    fn at(&self, quantile: f64) -> u64 {
        self.times.value_at_quantile(quantile).min(self.most)
    }
}

impl Slow {
    fn of(span: &Span, time: u64) -> Self {
        let view = &span.view;
        let status = view.status.as_deref().unwrap_or("-");
        let service = plain(&span.resource.service);
        let peer = plain(view.peer.as_deref().unwrap_or("?"));
        let way = match span.kind {
            Kind::Server => format!("{peer} -> {service}"),
            Kind::Client => format!("{service} -> {peer}"),
        };
        Self { time, line: format!("{} {} {status} {way}", plain(&view.operation), plain(&view.target)) }
    }
}

/// Numbers to the right, words to the left.
fn table<const N: usize>(cells: &[[String; N]]) -> Vec<String> {
    const NUMBERS: usize = 5;
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    cells
        .iter()
        .map(|row| {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
                let _ = match column {
                    _ if column < NUMBERS => write!(line, "{cell:>width$}  "),
                    _ if column + 1 < N => write!(line, "{cell:<width$}  "),
                    _ => write!(line, "{cell}"),
                };
            }
            line
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::enrich::Resource;

    fn span(service: &'static str, target: &str, time: u64, failed: bool) -> Span {
        let mut span = Span::sample();
        span.end = span.start + time;
        span.status = if failed { Status::Error } else { Status::Unset };
        span.resource = Arc::new(Resource { service: Text::new(service), ..Resource::default() });
        span.view.target = Text::new(target);
        span.view.status = Some(Text::new("200"));
        span
    }

    #[test]
    fn counts_are_exact_and_quantiles_near() {
        let mut summary = Summary::default();
        for n in 1..=1000u64 {
            summary.add(&span("shop", &format!("/items/{n}?page=1"), n * 1_000_000, n % 10 == 0));
        }
        summary.add(&span("shop", "/", 3_600_000_000_000, false));
        let lines = summary.lines();
        let cells: Vec<&str> = lines[1].split_whitespace().collect();
        assert_eq!(cells[..2], ["1000", "100"]);
        assert_eq!(cells[4..], ["1.00s", "shop", "SERVER", "GET", "/items/{id}"]);
        let (_, row) = summary.rows.iter().find(|(key, _)| key.route.contains("items")).unwrap();
        for (quantile, exact) in [(0.5, 500_000_000u64), (0.95, 950_000_000)] {
            let near = row.at(quantile);
            assert!(near.abs_diff(exact) <= exact / 100, "{quantile}: {near} and not {exact}");
        }
        assert_eq!(lines[4].split_whitespace().next(), Some("3600.00s"));
        assert_eq!(lines.len(), 3 + 1 + SLOWEST);
    }

    #[test]
    fn many_routes_share_a_row() {
        let mut summary = Summary::default();
        for n in 0..2 * ROWS_MAX {
            summary.add(&span("shop", &format!("/route-{n}-x"), 1, false));
        }
        assert!(summary.rows.len() <= ROWS_MAX + 1);
        for n in 0..3 * ROWS_MAX {
            let mut other = span("shop", "/x", 1, false);
            other.resource = Arc::new(Resource { service: format!("job-{n}").into(), ..Resource::default() });
            summary.add(&other);
        }
        assert!(summary.rows.len() <= 2 * ROWS_MAX + 2, "{}", summary.rows.len());
        let total: u64 = summary.rows.values().map(|row| row.count).sum();
        assert_eq!(total, 5 * ROWS_MAX as u64);
    }
}
