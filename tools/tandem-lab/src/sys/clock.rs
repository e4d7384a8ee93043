//! The processor's time stamp counter.

use std::arch::x86_64::_rdtsc;
use std::thread;
use std::time::{Duration, Instant};

/// Between two readings. What is wrong in each is a few microseconds: 1 in 10,000 of this.
const INTERVAL: Duration = Duration::from_millis(50);
/// A reading is the best of this many: others were interrupted.
const ATTEMPTS: usize = 16;

/// How fast the counter counts, in kHz.
pub fn tsc_khz() -> u64 {
    let (before, first) = reading();
    thread::sleep(INTERVAL);
    let (after, last) = reading();
    let micros = after.duration_since(before).as_micros().max(1);
    (u128::from(last.wrapping_sub(first)) * 1000 / micros) as u64
}

/// A time, and what the counter was then.
fn reading() -> (Instant, u64) {
    let once = || {
        let (start, count, end) = (counter(), Instant::now(), counter());
        (end.wrapping_sub(start), count, start)
    };
    let mut best = once();
    for _ in 1..ATTEMPTS {
        let next = once();
        if next.0 < best.0 {
            best = next;
        }
    }
    (best.1, best.2.wrapping_add(best.0 / 2))
}

fn counter() -> u64 {
    // SAFETY: every 64-bit processor has the instruction, and it only reads.
    unsafe { _rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (one, two) = (tsc_khz(), tsc_khz());
        assert!(one > 100_000, "{one}");
        assert!(one.abs_diff(two) < one / 100, "{one} {two}");
    }
}
