//! Whole numbers in buckets, with the newest span of each.

use super::{Exponential, Unit};

#[derive(Debug)]
pub struct Histogram {
    /// Upper bounds, which belong to their buckets; beyond the last there is one more.
    bounds: &'static [u64],
    unit: Unit,
    counts: Box<[u64]>,
    sum: u128,
    exponential: Option<Box<Exponential>>,
    /// By bucket.
    exemplars: Vec<(usize, Exemplar)>,
}

/// A span that was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exemplar {
    pub trace: [u8; 16],
    pub span: [u8; 8],
    pub value: u64,
    /// Nanoseconds since 1970.
    pub time: u64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [u64], unit: Unit, exponential: bool) -> Self {
        Self {
            bounds,
            unit,
            counts: vec![0; bounds.len() + 1].into_boxed_slice(),
            sum: 0,
            exponential: exponential.then(Box::default),
            exemplars: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, value: u64) {
        self.counts[self.bucket(value)] += 1;
        self.sum += u128::from(value);
        if let Some(exponential) = &mut self.exponential {
            exponential.add(self.unit.tell(value.into()));
        }
    }

    /// The newest of a bucket stays.
    pub(super) fn point_at(&mut self, exemplar: Exemplar) {
        let bucket = self.bucket(exemplar.value);
        if self.counts[bucket] == 0 {
            // The series has gone meanwhile, and come again.
            return;
        }
        match self.exemplars.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(place) if self.exemplars[place].1.time > exemplar.time => {}
            Ok(place) => self.exemplars[place].1 = exemplar,
            Err(place) => self.exemplars.insert(place, (bucket, exemplar)),
        }
    }

    /// In the unit of the metric.
    pub fn bounds(&self) -> impl Iterator<Item = f64> {
        self.bounds.iter().map(|bound| self.unit.tell((*bound).into()))
    }

    /// One more than there are bounds.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub fn sum(&self) -> f64 {
        self.unit.tell(self.sum)
    }

    pub fn exponential(&self) -> Option<&Exponential> {
        self.exponential.as_deref()
    }

    /// By bucket.
    pub fn exemplars(&self) -> &[(usize, Exemplar)] {
        &self.exemplars
    }

    /// What an exemplar's value is in the unit of the metric.
    pub fn value(&self, exemplar: &Exemplar) -> f64 {
        self.unit.tell(exemplar.value.into())
    }

    pub(super) fn held(&self) -> usize {
        let exponential = self.exponential.as_ref().map_or(0, |exponential| exponential.held());
        size_of::<Self>()
            + size_of_val(&*self.counts)
            + self.exemplars.capacity() * size_of::<(usize, Exemplar)>()
            + exponential
    }

    fn bucket(&self, value: u64) -> usize {
        self.bounds.partition_point(|bound| *bound < value)
    }
}
