//! How old decisions are when they are applied: the figure that promise P2 is about.

use std::time::Duration;

/// Buckets by powers of two of microseconds: under 1 µs, under 2 µs, … and the last for 4 s and
/// more.
pub const AGE_BUCKETS: usize = 24;

/// Ages of changes, from the home's decision to its application here. Cumulative.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Ages {
    /// How many in each bucket.
    pub counts: [u64; AGE_BUCKETS],
    /// Their sum.
    pub sum: Duration,
    /// The oldest.
    pub max: Duration,
    /// How many were older than the bound that held then.
    pub late: u64,
}

impl Ages {
    pub(super) fn record(&mut self, age: Duration, bound: Duration) {
        self.late += u64::from(age > bound);
        let micros = age.as_micros() as u64;
        let bucket = (u64::BITS - micros.leading_zeros()) as usize;
        self.counts[bucket.min(AGE_BUCKETS - 1)] += 1;
        self.sum += age;
        self.max = self.max.max(age);
    }

    /// Where a bucket ends, in microseconds.
    pub fn bound_us(bucket: usize) -> u64 {
        1 << bucket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_age_is_below_the_bound_of_its_bucket() {
        for micros in [0, 1, 2, 3, 4, 1_000, 4_000_000] {
            let mut ages = Ages::default();
            ages.record(Duration::from_micros(micros), Duration::from_secs(1));
            let bucket = ages.counts.iter().position(|count| *count == 1).unwrap();
            assert!(micros < Ages::bound_us(bucket), "{micros}");
            assert!(bucket == 0 || micros >= Ages::bound_us(bucket - 1), "{micros}");
        }
    }
}
