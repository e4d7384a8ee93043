//! A limit for log messages that a guest can cause.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets a few messages of a site through in each period, and says once in it that it leaves out the rest.
///
/// A guest can repeat whatever made the message as fast as it can exit; the log of the host must not grow with it.
#[derive(Debug, Default)]
pub struct LogLimit {
    period: Mutex<Option<(Instant, u32)>>,
}

impl LogLimit {
    /// Messages that one site may log in a period.
    const ALLOWED: u32 = 20;
    /// Length of a period.
    const PERIOD: Duration = Duration::from_secs(60);

    /// Whether the caller may log now.
    pub fn allow(&self) -> bool {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> bool {
        let mut period = self.period.lock().unwrap_or_else(PoisonError::into_inner);
        let count = match &mut *period {
            Some((start, count)) if now.duration_since(*start) < Self::PERIOD => count,
            other => &mut other.insert((now, 0)).1,
        };
        *count = count.saturating_add(1);
        let count = *count;
        drop(period);
        if count == Self::ALLOWED + 1 {
            log::warn!(
                "more messages of this kind, which the guest causes, are left out for a while"
            );
        }
        count <= Self::ALLOWED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_a_few_through_in_each_period() {
        let limit = LogLimit::default();
        let start = Instant::now();
        for period in 0..3 {
            let now = start + LogLimit::PERIOD * period;
            let passed = (0..1000).filter(|_| limit.allow_at(now)).count();
            assert_eq!(passed as u32, LogLimit::ALLOWED);
        }
    }
}
