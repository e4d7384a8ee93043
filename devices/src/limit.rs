//! A limit for log messages that a guest can cause.

use std::sync::atomic::{AtomicU64, Ordering};

/// Lets the first few messages of a site through and counts the rest.
///
/// A guest can repeat whatever made the message as fast as it can exit; the log of the host must not
/// grow with it.
#[derive(Debug, Default)]
pub struct LogLimit {
    seen: AtomicU64,
}

impl LogLimit {
    /// Messages that one site may log in a VM's life.
    const ALLOWED: u64 = 10;

    /// Whether the caller may log now.
    pub fn allow(&self) -> bool {
        // Relaxed: a count, nothing is published through it.
        self.seen.fetch_add(1, Ordering::Relaxed) < Self::ALLOWED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_only_the_first_through() {
        let limit = LogLimit::default();
        let passed = (0..1000).filter(|_| limit.allow()).count();
        assert_eq!(passed as u64, LogLimit::ALLOWED);
    }
}
