//! Percentiles of samples.
//!
//! By nearest rank: the p-th percentile is the smallest sample that at least p per cent of all samples do not exceed.
//! It is always something that was measured; with fewer than 100 samples the 99th is the greatest.

use serde::Serialize;

/// What a list of samples comes to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Number of samples.
    pub n: usize,
    /// Least.
    pub min: f64,
    /// Median, by nearest rank.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Greatest.
    pub max: f64,
    /// Arithmetic mean.
    pub mean: f64,
}

impl Summary {
    /// Of these samples; none of no samples.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            n: sorted.len(),
            min: *sorted.first()?,
            p50: percentile(&sorted, 50)?,
            p90: percentile(&sorted, 90)?,
            p99: percentile(&sorted, 99)?,
            max: *sorted.last()?,
            mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
        })
    }
}

/// The `percent`th percentile of sorted samples, by nearest rank.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_known_samples() {
        // The textbook's example of the nearest-rank method.
        let sorted = [15.0, 20.0, 35.0, 40.0, 50.0];
        for (percent, expected) in [(5, 15.0), (30, 20.0), (40, 20.0), (50, 35.0), (100, 50.0)] {
            assert_eq!(percentile(&sorted, percent), Some(expected), "{percent}");
        }
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn a_hundred_samples_in_any_order() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let summary = Summary::of(&samples).unwrap();
        assert_eq!(
            (
                summary.min,
                summary.p50,
                summary.p90,
                summary.p99,
                summary.max
            ),
            (1.0, 50.0, 90.0, 99.0, 100.0)
        );
        assert_eq!((summary.n, summary.mean), (100, 50.5));
    }

    #[test]
    fn few_samples() {
        assert_eq!(Summary::of(&[]), None);
        let one = Summary::of(&[7.0]).unwrap();
        assert_eq!((one.min, one.p50, one.p99, one.max), (7.0, 7.0, 7.0, 7.0));
        let eight: Vec<f64> = (1..=8).map(f64::from).collect();
        let eight = Summary::of(&eight).unwrap();
        assert_eq!((eight.p50, eight.p90, eight.p99), (4.0, 8.0, 8.0));
    }
}
