//! What was measured, as a table or as JSON: medians over the rounds.

use std::fmt::Write;

use super::server::Kind;

pub(super) struct Row {
    kind: Kind,
    pub(super) server_off: Vec<f64>,
    pub(super) server_on: Vec<f64>,
    pub(super) load_off: Vec<f64>,
    pub(super) load_on: Vec<f64>,
    pub(super) tracer: Vec<f64>,
    pub(super) spans: Vec<f64>,
    pub(super) lost: u64,
    /// KiB.
    pub(super) memory: Vec<f64>,
    /// Percent of a processor.
    pub(super) idle: Vec<f64>,
    pub(super) start: Vec<f64>,
    /// Seconds.
    pub(super) first_span: Vec<f64>,
}

impl Row {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            server_off: Vec::new(),
            server_on: Vec::new(),
            load_off: Vec::new(),
            load_on: Vec::new(),
            tracer: Vec::new(),
            spans: Vec::new(),
            lost: 0,
            memory: Vec::new(),
            idle: Vec::new(),
            start: Vec::new(),
            first_span: Vec::new(),
        }
    }

    /// Name, unit and median of each column; costs are thousands of nanoseconds or of instructions.
    fn columns(&self, counted: bool) -> Vec<(&'static str, &'static str, f64)> {
        let cost = if counted { "k instructions" } else { "us" };
        let start = if counted { "M instructions" } else { "ms" };
        let thousand = |values: &[f64]| median(values) / 1e3;
        let (off, on) = (thousand(&self.server_off), thousand(&self.server_on));
        let (load_off, load_on) = (thousand(&self.load_off), thousand(&self.load_on));
        vec![
            ("server_off", cost, off),
            ("server_on", cost, on),
            ("server_ratio", "", on / off),
            ("load_off", cost, load_off),
            ("load_on", cost, load_on),
            ("load_ratio", "", load_on / load_off),
            ("tracer", cost, thousand(&self.tracer)),
            ("spans", "per request", median(&self.spans)),
            ("lost", "records", self.lost as f64),
            ("memory", "MiB", median(&self.memory) / 1024.0),
            ("idle", "% of a core", median(&self.idle)),
            ("start", start, median(&self.start) / 1e6),
            ("first_span", "s", median(&self.first_span)),
        ]
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => (sorted[length / 2 - 1] + sorted[length / 2]) / 2.0,
    }
}

pub(super) fn text(rows: &[Row], counted: bool) -> String {
    let mut out = String::new();
    let what = if counted { "thousand instructions" } else { "microseconds of processor time" };
    let _ = writeln!(out, "{what} per request; medians");
    let Some(first) = rows.first() else { return out };
    let _ = write!(out, "{:<28}", "");
    for row in rows {
        let _ = write!(out, "{:>20}", row.kind.name());
    }
    out.push('\n');
    for (index, (name, unit, _)) in first.columns(counted).into_iter().enumerate() {
        let title = if unit.is_empty() { name.to_owned() } else { format!("{name} ({unit})") };
        let _ = write!(out, "{title:<28}");
        for row in rows {
            let value = row.columns(counted)[index].2;
            let shown = match (value.is_nan(), name) {
                (true, _) => "-".to_owned(),
                (_, "lost") => format!("{value:.0}"),
                (_, "server_ratio" | "load_ratio" | "first_span" | "spans") => format!("{value:.3}"),
                _ => format!("{value:.2}"),
            };
            let _ = write!(out, "{shown:>20}");
        }
        out.push('\n');
    }
    out
}

/// An object by server; units are in the names' list above.
pub(super) fn json(rows: &[Row], counted: bool) -> String {
    let rows: Vec<String> = rows
        .iter()
        .map(|row| {
            let columns: Vec<String> = row
                .columns(counted)
                .into_iter()
                .filter(|(_, _, value)| value.is_finite())
                .map(|(name, unit, value)| {
                    format!("\"{name}\": {{\"value\": {value}, \"unit\": \"{unit}\"}}")
                })
                .collect();
            format!("\"{}\": {{{}}}", row.kind.name(), columns.join(", "))
        })
        .collect();
    format!("{{{}}}", rows.join(", "))
}
