//! Percentiles of samples, and how far a median can be trusted.
//!
//! By nearest rank: the p-th percentile is the smallest sample that at least p per cent of all samples do not exceed.
//! It is always something that was measured; with fewer than 100 samples the 99th is the greatest.

use serde::Serialize;

use crate::random::Random;

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

/// A number and the range that it is likely to be in.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Median of the samples, by nearest rank.
    pub median: f64,
    /// Lower end of the range.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// What the range is: 95 % of the bootstrap, or all that was seen.
    pub range: Range,
}

/// Kinds of ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Range {
    /// Least and greatest sample: there are too few for more.
    MinMax,
    /// The middle 95 % of the medians of samples drawn from these, with replacement.
    Bootstrap95,
}

/// With fewer, the bootstrap says less than the samples themselves.
const FEWEST: usize = 6;
const RESAMPLES: usize = 2000;

impl Estimate {
    /// Of these samples; none of no samples. The same samples give the same range.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let summary = Summary::of(samples)?;
        if samples.len() < FEWEST {
            return Some(Self {
                median: summary.p50,
                low: summary.min,
                high: summary.max,
                range: Range::MinMax,
            });
        }
        let mut random = Random::new(1);
        let medians: Option<Vec<f64>> = (0..RESAMPLES)
            .map(|_| {
                let drawn: Vec<f64> = (0..samples.len())
                    .map(|_| samples[random.below(samples.len())])
                    .collect();
                Some(Summary::of(&drawn)?.p50)
            })
            .collect();
        let mut medians = medians?;
        medians.sort_by(f64::total_cmp);
        Some(Self {
            median: summary.p50,
            // The nearest ranks to 2.5 % and 97.5 % of the medians.
            low: *medians.get(RESAMPLES / 40)?,
            high: *medians.get(RESAMPLES - 1 - RESAMPLES / 40)?,
            range: Range::Bootstrap95,
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

    #[test]
    fn ranges_of_few_and_many() {
        assert_eq!(Estimate::of(&[]), None);
        let few = Estimate::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!(
            (few.low, few.median, few.high, few.range),
            (1.0, 2.0, 3.0, Range::MinMax)
        );
        let same = Estimate::of(&[5.0; 10]).unwrap();
        assert_eq!(
            (same.low, same.high, same.range),
            (5.0, 5.0, Range::Bootstrap95)
        );
        let samples: Vec<f64> = (1..=101).map(f64::from).collect();
        let many = Estimate::of(&samples).unwrap();
        // The median of 101 numbers from 1 to 101: its standard error is about 5.
        assert!(
            (35.0..48.0).contains(&many.low) && (54.0..67.0).contains(&many.high),
            "{many:?}"
        );
        assert_eq!(Estimate::of(&samples), Some(many));
    }
}
