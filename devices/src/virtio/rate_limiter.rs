//! Limits of bytes and of requests in a time, by token buckets with Firecracker's fields.
//!
//! A request is let through while every bucket has tokens, and then takes what it costs, even where that is more than
//! is there: the debt is paid before the next one. So a request of any size passes, and the average is kept.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A token bucket as it is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BucketConfig {
    /// Tokens that it holds; it is full at first. 0 is no limit.
    pub size: u64,
    /// Tokens that can be used once, before all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which an empty bucket gets full again. 0 is no limit.
    pub refill_time: u64,
}

/// Limits of a device, or of one direction of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiterConfig {
    /// Limit of bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<BucketConfig>,
    /// Limit of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<BucketConfig>,
}

/// A bucket in use.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    size: u64,
    /// Nanoseconds from empty to full.
    refill: u128,
    burst: u64,
    /// Tokens that are there; below zero, those that are owed.
    balance: i128,
    /// The moment up to which tokens were filled in.
    filled: Instant,
}

impl Bucket {
    fn new(config: BucketConfig, now: Instant) -> Option<Self> {
        let limits = config.size > 0 && config.refill_time > 0;
        limits.then(|| Self {
            size: config.size,
            refill: u128::from(config.refill_time) * 1_000_000,
            burst: config.one_time_burst.unwrap_or(0),
            balance: config.size.into(),
            filled: now,
        })
    }

    fn fill(&mut self, now: Instant) {
        let size = u128::from(self.size);
        let passed = now.saturating_duration_since(self.filled).as_nanos();
        let tokens = passed.saturating_mul(size) / self.refill;
        let full = i128::from(self.size);
        let gained = i128::try_from(tokens).unwrap_or(full);
        self.balance = self.balance.saturating_add(gained);
        if self.balance >= full {
            (self.balance, self.filled) = (full, now);
        } else {
            // What is left of a token is not lost.
            let used = tokens * self.refill / size;
            self.filled += Duration::from_nanos(used.try_into().unwrap_or(u64::MAX));
        }
    }

    /// How long to wait for the next token; zero if there is one.
    fn wait(&self, now: Instant) -> Duration {
        if self.burst > 0 || self.balance > 0 {
            return Duration::ZERO;
        }
        let missing = self.balance.unsigned_abs() + 1;
        let time = missing
            .saturating_mul(self.refill)
            .div_ceil(self.size.into());
        let passed = now.saturating_duration_since(self.filled);
        Duration::from_nanos(time.try_into().unwrap_or(u64::MAX)).saturating_sub(passed)
    }

    fn charge(&mut self, tokens: u64) {
        let once = tokens.min(self.burst);
        self.burst -= once;
        self.balance -= i128::from(tokens - once);
    }
}

/// The limiter of a device, or of one direction of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct RateLimiter {
    bytes: Option<Bucket>,
    ops: Option<Bucket>,
}

impl RateLimiter {
    /// With full buckets.
    pub fn new(config: &RateLimiterConfig, now: Instant) -> Self {
        let bucket = |config: Option<BucketConfig>| Bucket::new(config?, now);
        Self {
            bytes: bucket(config.bandwidth),
            ops: bucket(config.ops),
        }
    }

    /// Takes over what `config` has: a bucket that it does not have stays as it is, one of size 0 is no limit any more.
    pub fn update(&mut self, config: &RateLimiterConfig, now: Instant) {
        if let Some(bucket) = config.bandwidth {
            self.bytes = Bucket::new(bucket, now);
        }
        if let Some(bucket) = config.ops {
            self.ops = Bucket::new(bucket, now);
        }
    }

    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        self.bytes.is_none() && self.ops.is_none()
    }

    /// Whether a request may be served now, or how long it must wait.
    ///
    /// # Errors
    /// The time to wait.
    pub fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        let mut longest = Duration::ZERO;
        for bucket in [&mut self.bytes, &mut self.ops].into_iter().flatten() {
            bucket.fill(now);
            longest = longest.max(bucket.wait(now));
        }
        if longest.is_zero() {
            Ok(())
        } else {
            Err(longest)
        }
    }

    /// Takes the cost of a request of so many bytes.
    pub fn charge(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.charge(bytes);
        }
        if let Some(bucket) = &mut self.ops {
            bucket.charge(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limiter(size: u64, burst: u64, refill_time: u64, now: Instant) -> RateLimiter {
        let bucket = BucketConfig {
            size,
            one_time_burst: Some(burst),
            refill_time,
        };
        let config = RateLimiterConfig {
            bandwidth: Some(bucket),
            ops: None,
        };
        RateLimiter::new(&config, now)
    }

    #[test]
    fn the_burst_goes_first_then_the_bucket_then_time_counts() {
        let start = Instant::now();
        let mut limiter = limiter(100, 50, 1000, start);
        for _ in 0..3 {
            assert_eq!(limiter.admit(start), Ok(()));
            limiter.charge(50);
        }
        // One token each 10 ms.
        assert_eq!(limiter.admit(start), Err(Duration::from_millis(10)));
        let later = start + Duration::from_millis(15);
        assert_eq!(limiter.admit(later), Ok(()));
        limiter.charge(11);
        assert_eq!(limiter.admit(later), Err(Duration::from_millis(105)));
        // The burst does not come back, and the bucket holds no more than its size.
        let much_later = start + Duration::from_secs(1000);
        assert_eq!(limiter.admit(much_later), Ok(()));
        limiter.charge(100);
        assert!(limiter.admit(much_later).is_err());
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let start = Instant::now();
        let mut limiter = limiter(100, 0, 1000, start);
        let bucket = |size| BucketConfig {
            size,
            one_time_burst: None,
            refill_time: 1000,
        };
        let ops = RateLimiterConfig {
            bandwidth: None,
            ops: Some(bucket(1)),
        };
        limiter.update(&ops, start);
        limiter.charge(10);
        assert!(limiter.admit(start).is_err(), "one request");
        let none = RateLimiterConfig {
            bandwidth: None,
            ops: Some(bucket(0)),
        };
        limiter.update(&none, start);
        assert_eq!(limiter.admit(start), Ok(()));
        limiter.charge(90);
        assert!(
            limiter.admit(start).is_err(),
            "the other bucket has gone on"
        );
    }

    #[test]
    fn zeros_are_no_limit_and_extremes_do_not_overflow() {
        let start = Instant::now();
        assert!(limiter(0, 5, 100, start).is_unlimited());
        assert!(limiter(5, 5, 0, start).is_unlimited());
        for (size, refill) in [(u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
            let mut limiter = limiter(size, u64::MAX, refill, start);
            for day in 0..3 {
                let now = start + Duration::from_secs(day * 86_400);
                let _ = limiter.admit(now);
                limiter.charge(u64::MAX);
            }
        }
    }

    proptest! {
        /// Whatever comes when, no more passes than burst, bucket and time give, and one request; and what was told to
        /// wait passes after that time.
        #[test]
        fn the_average_is_kept(
            size in 1_u64..10_000,
            burst in 0_u64..10_000,
            refill in 1_u64..10_000,
            requests in prop::collection::vec((0_u64..5_000_000, 1_u64..20_000), 1..200),
        ) {
            let start = Instant::now();
            let mut limiter = limiter(size, burst, refill, start);
            let (mut now, mut passed) = (start, 0_u128);
            for (pause_us, cost) in requests {
                now += Duration::from_micros(pause_us);
                if let Err(wait) = limiter.admit(now) {
                    now += wait;
                    prop_assert_eq!(limiter.admit(now), Ok(()));
                }
                limiter.charge(cost);
                passed += u128::from(cost);
                let time = now.duration_since(start).as_nanos();
                let given = time * u128::from(size) / (u128::from(refill) * 1_000_000);
                let most = u128::from(burst) + u128::from(size) + given + u128::from(cost);
                prop_assert!(passed <= most, "{} > {}", passed, most);
            }
        }
    }
}
