//! Buckets that grow by the same factor, and get coarser as they have to hold more (OpenTelemetry, metrics
//! data model, "ExponentialHistogram").
//!
//! Bucket `i` of scale `s` holds what is above `2^(i / 2^s)`, up to and with `2^((i + 1) / 2^s)`.

/// Buckets that there may be.
pub const BUCKETS_MAX: usize = 160;

/// The scale of the first value.
const SCALE_MAX: i32 = 20;

#[derive(Clone, Debug, PartialEq)]
pub struct Exponential {
    scale: i32,
    zero: u64,
    /// The number of the first bucket.
    offset: i32,
    counts: Vec<u64>,
}

impl Default for Exponential {
    fn default() -> Self {
        Self { scale: SCALE_MAX, zero: 0, offset: 0, counts: Vec::new() }
    }
}

impl Exponential {
    /// Anything that is not above 0 counts as 0.
    pub(super) fn add(&mut self, value: f64) {
        if value.is_nan() || value <= 0.0 {
            self.zero += 1;
            return;
        }
        let mut bucket = bucket(value, self.scale);
        if self.counts.is_empty() {
            self.offset = bucket;
        }
        let last = self.offset + self.counts.len().max(1) as i32 - 1;
        let (mut low, mut high) = (self.offset.min(bucket), last.max(bucket));
        let mut steps = 0;
        while (high - low) as usize >= BUCKETS_MAX {
            (low, high, steps) = (low >> 1, high >> 1, steps + 1);
        }
        self.coarsen(steps);
        bucket >>= steps;
        if bucket < self.offset {
            let before = (self.offset - bucket) as usize;
            self.counts.reserve_exact(before);
            self.counts.splice(..0, std::iter::repeat_n(0, before));
            self.offset = bucket;
        }
        let place = (bucket - self.offset) as usize;
        if place >= self.counts.len() {
            self.counts.reserve_exact(place + 1 - self.counts.len());
            self.counts.resize(place + 1, 0);
        }
        self.counts[place] += 1;
    }

    pub fn scale(&self) -> i32 {
        self.scale
    }

    /// How many were 0.
    pub fn zero(&self) -> u64 {
        self.zero
    }

    /// The number of the first bucket.
    pub fn offset(&self) -> i32 {
        self.offset
    }

    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    pub(super) fn held(&self) -> usize {
        size_of::<Self>() + self.counts.capacity() * size_of::<u64>()
    }

    /// Each step makes one bucket of two.
    fn coarsen(&mut self, steps: u32) {
        if steps == 0 {
            return;
        }
        let offset = self.offset >> steps;
        let mut end = 0;
        for place in 0..self.counts.len() {
            let to = (((self.offset + place as i32) >> steps) - offset) as usize;
            let count = std::mem::take(&mut self.counts[place]);
            self.counts[to] += count;
            end = to + 1;
        }
        self.counts.truncate(end);
        self.offset = offset;
        self.scale -= steps as i32;
    }
}

/// The number of the bucket of a value above 0.
fn bucket(value: f64, scale: i32) -> i32 {
    const FRACTION_BITS: u32 = f64::MANTISSA_DIGITS - 1;
    const BIAS: i32 = f64::MAX_EXP - 1;
    // Numbers that are too small for an exponent of their own do not come here: a nanosecond is 1e-9.
    let exponent = (value.to_bits() >> FRACTION_BITS) as i32 - BIAS;
    let is_power = value.to_bits() << (u64::BITS - FRACTION_BITS) == 0;
    if scale <= 0 {
        return (exponent - i32::from(is_power)) >> -scale;
    }
    if is_power {
        // It is the upper bound of its bucket: nothing that a logarithm rounds may move it.
        return (exponent << scale) - 1;
    }
    let number = (value.log2() * f64::from(1 << scale)).ceil() as i32 - 1;
    // Nor may a value get past the powers that it is between.
    number.clamp(exponent << scale, ((exponent + 1) << scale) - 1)
}

#[cfg(test)]
mod tests {
    use rand_chacha::{
        ChaCha8Rng,
        rand_core::{Rng, SeedableRng},
    };

    use super::*;

    /// Each value lies within the bounds of its bucket, by powers and no logarithm.
    #[test]
    fn values_lie_between_the_bounds_of_their_bucket() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..200_000 {
            let nanoseconds = random.next_u64() >> (random.next_u32() % 63);
            let value = (nanoseconds + 1) as f64 / 1e9;
            for scale in [-3, -1, 0, 1, 3, 7, 12, 20] {
                let number = bucket(value, scale);
                let bound = |number: i32| (f64::from(number) / f64::from(scale).exp2()).exp2();
                let (low, high) = (bound(number), bound(number + 1));
                // Powers are rounded.
                let near = 1.0 + 1e-13;
                assert!(value > low / near && value <= high * near, "{value} {scale}: {low}..{high}");
            }
        }
        for (value, scale, held) in
            [(1.0, 0, -1), (1.0, 5, -1), (2.0, 3, 7), (4.0, -1, 0), (4.1, -1, 1), (0.25, 0, -3)]
        {
            assert_eq!(bucket(value, scale), held, "{value} at {scale}");
        }
    }

    /// However it got there, the counts are those of the values put in at the last scale; and no finer scale
    /// would have done.
    #[test]
    fn counts_are_those_of_the_last_scale() {
        for seed in 0..200 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let spread = 1 + random.next_u32() % 62;
            let values: Vec<f64> = (0..random.next_u32() % 500)
                .map(|_| (random.next_u64() >> (63 - random.next_u32() % spread)) as f64 / 1e9)
                .collect();
            let mut counted = Exponential::default();
            for value in &values {
                counted.add(*value);
            }
            let at = |scale| {
                let mut naive = std::collections::BTreeMap::new();
                for value in values.iter().filter(|value| **value > 0.0) {
                    *naive.entry(bucket(*value, scale)).or_insert(0u64) += 1;
                }
                naive
            };
            let naive = at(counted.scale);
            let kept: Vec<(i32, u64)> = (counted.offset..)
                .zip(counted.counts.iter().copied())
                .filter(|(_, count)| *count > 0)
                .collect();
            assert_eq!(kept, naive.into_iter().collect::<Vec<_>>(), "seed {seed}");
            assert_eq!(counted.zero, values.iter().filter(|value| **value == 0.0).count() as u64);
            assert!(counted.counts.len() <= BUCKETS_MAX && counted.scale <= SCALE_MAX);
            if counted.scale < SCALE_MAX {
                let finer = at(counted.scale + 1);
                let (first, last) = (finer.keys().next().unwrap(), finer.keys().next_back().unwrap());
                assert!((last - first) as usize >= BUCKETS_MAX, "seed {seed}: too coarse");
            }
        }
    }
}
