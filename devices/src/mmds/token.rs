//! Session tokens: a number, the time of their end, and a code (BLAKE3, keyed) that only this process can make. Nothing is kept for
//! a token, so any number of them can be had.

use std::fmt::Write;
use std::io;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use crate::virtio::rng::get_random;

/// Seconds that a token may live.
pub const LIFETIMES: RangeInclusive<u32> = 1..=21_600;

/// Bytes of number and end, and of both with their code. A token is shown in hexadecimal.
const PLAIN: usize = 12;
const ALL: usize = 28;

/// What tokens are made by.
#[derive(Debug)]
pub struct Tokens {
    /// Made for the first token.
    key: Option<[u8; blake3::KEY_LEN]>,
    issued: u32,
    start: Instant,
}

impl Tokens {
    /// None so far. Their time counts from `start`.
    pub fn new(start: Instant) -> Self {
        Self {
            key: None,
            issued: 0,
            start,
        }
    }

    /// A token that lives for so many seconds, one of [`LIFETIMES`].
    ///
    /// # Errors
    /// The kernel has no random bytes.
    pub fn issue(&mut self, seconds: u32, now: Instant) -> io::Result<String> {
        let key = match self.key {
            Some(key) => key,
            None => {
                let mut key = [0; blake3::KEY_LEN];
                get_random(&mut key)?;
                self.key = Some(key);
                key
            }
        };
        self.issued = self.issued.wrapping_add(1);
        let end = self.milliseconds(now) + 1000 * u64::from(seconds);
        let mut bytes = [0; ALL];
        let (plain, code) = bytes.split_at_mut(PLAIN);
        let (number, time) = plain.split_at_mut(4);
        number.copy_from_slice(&self.issued.to_le_bytes());
        time.copy_from_slice(&end.to_le_bytes());
        let hash = blake3::keyed_hash(&key, plain);
        for (slot, byte) in code.iter_mut().zip(hash.as_bytes()) {
            *slot = *byte;
        }
        let mut text = String::with_capacity(2 * ALL);
        for byte in bytes {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        Ok(text)
    }

    /// Whether a token was made here and is not over.
    pub fn is_valid(&self, text: &str, now: Instant) -> bool {
        let (Some(key), Some(bytes)) = (&self.key, parse(text)) else {
            return false;
        };
        let (plain, code) = bytes.split_at(PLAIN);
        let hash = blake3::keyed_hash(key, plain);
        // All bytes are looked at, so that the time tells nothing of them.
        let pairs = hash.as_bytes().iter().zip(code);
        let differing = pairs.fold(0, |all, (one, other)| all | (one ^ other));
        let end = plain.last_chunk().copied().map(u64::from_le_bytes);
        differing == 0 && end.is_some_and(|end| end > self.milliseconds(now))
    }

    fn milliseconds(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.start);
        passed.min(Duration::from_secs(1 << 40)).as_millis() as u64
    }
}

fn parse(text: &str) -> Option<[u8; ALL]> {
    let text = text.as_bytes();
    if text.len() != 2 * ALL {
        return None;
    }
    let mut bytes = [0; ALL];
    for (slot, digits) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |byte: &u8| char::from(*byte).to_digit(16);
        let (high, low) = (
            digits.first().and_then(digit)?,
            digits.get(1).and_then(digit)?,
        );
        *slot = (high << 4 | low) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lives_for_its_time() {
        let start = Instant::now();
        let mut tokens = Tokens::new(start);
        assert!(!tokens.is_valid(&"0".repeat(56), start), "no key yet");
        let one = tokens.issue(1, start).unwrap();
        let two = tokens.issue(21_600, start).unwrap();
        assert_ne!(one, two);
        assert_eq!(one.len(), 56);
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        assert!(tokens.is_valid(&one, after(999)));
        assert!(!tokens.is_valid(&one, after(1000)));
        assert!(tokens.is_valid(&two, after(21_599_999)));
        assert!(!tokens.is_valid(&two, after(21_600_000)));
    }

    #[test]
    fn nothing_else_is_a_token() {
        let start = Instant::now();
        let mut tokens = Tokens::new(start);
        let good = tokens.issue(60, start).unwrap();
        // Another process's.
        assert!(!Tokens::new(start).is_valid(&good, start));
        let mut other = Tokens::new(start);
        other.issue(60, start).unwrap();
        assert!(!other.is_valid(&good, start));
        for place in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[place] = if bytes[place] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(!tokens.is_valid(&changed, start), "{place}");
        }
        let multibyte = "ä".repeat(28);
        for bad in ["", "x", &good[1..], &format!("{good}0"), &multibyte] {
            assert!(!tokens.is_valid(bad, start), "{bad}");
        }
    }
}
