//! Numbers that somebody else has counted: the ledger's, the probes'.

/// A metric of the tracer itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// As OpenTelemetry writes names: `tracer.ledger.bytes`, without unit and without `_total`.
    pub name: &'static str,
    pub help: &'static str,
    /// As UCUM has it: `By`, `s`, `{connection}`; empty if there is none.
    pub unit: &'static str,
    pub kind: FamilyKind,
    /// Each with its labels, which are different for each.
    pub samples: Vec<Sample>,
}

pub type Sample = (Vec<(String, String)>, f64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FamilyKind {
    /// It never gets smaller while the tracer runs.
    Counter,
    Gauge,
}

impl Family {
    /// One number without labels.
    pub fn of(
        name: &'static str,
        help: &'static str,
        unit: &'static str,
        kind: FamilyKind,
        value: f64,
    ) -> Self {
        Self { name, help, unit, kind, samples: vec![(Vec::new(), value)] }
    }

    /// One number for each value of a label.
    pub fn by<L: ToString>(
        name: &'static str,
        help: &'static str,
        unit: &'static str,
        kind: FamilyKind,
        label: &str,
        values: impl IntoIterator<Item = (L, f64)>,
    ) -> Self {
        let sample = |(word, value): (L, f64)| (vec![(label.to_owned(), word.to_string())], value);
        Self { name, help, unit, kind, samples: values.into_iter().map(sample).collect() }
    }
}
