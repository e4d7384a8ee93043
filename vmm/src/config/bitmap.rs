//! Which bits of a register are cleared, set and left as they are, as text: `0bxxxx_01`.

use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A change to a register of `BITS` bits, at most 64.
///
/// Written as Firecracker writes it, the highest bit first: `0` clears a bit, `1` sets it, `x` leaves it. `_` may stand
/// anywhere, the `0b` in front may be left out, and bits that are not written are left as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bitmap<const BITS: u32> {
    /// The bits that are cleared or set.
    pub mask: u64,
    /// Of these, the bits that are set.
    pub value: u64,
}

impl<const BITS: u32> Bitmap<BITS> {
    /// What becomes of a register's value.
    #[must_use]
    pub fn apply(self, register: u64) -> u64 {
        (register & !self.mask) | (self.value & self.mask)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut bitmap = Self::default();
        let mut bits = 0;
        for digit in text.strip_prefix("0b").unwrap_or(text).bytes().rev() {
            let (mask, value) = match digit {
                b'_' => continue,
                b'x' => (0, 0),
                b'0' => (1, 0),
                b'1' => (1, 1),
                _ => return Err("has something else than 0, 1, x and _ in it".into()),
            };
            if bits == BITS {
                return Err(format!("is longer than the register's {BITS} bits"));
            }
            bitmap.mask |= mask << bits;
            bitmap.value |= value << bits;
            bits += 1;
        }
        Ok(bitmap)
    }
}

impl<const BITS: u32> fmt::Display for Bitmap<BITS> {
    /// All bits, without `_`.
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("0b")?;
        for bit in (0..BITS).rev() {
            formatter.write_str(match (self.mask >> bit & 1, self.value >> bit & 1) {
                (0, _) => "x",
                (_, 0) => "0",
                _ => "1",
            })?;
        }
        Ok(())
    }
}

impl<const BITS: u32> Serialize for Bitmap<BITS> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const BITS: u32> Deserialize<'de> for Bitmap<BITS> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text<const BITS: u32>;

        impl<const BITS: u32> Visitor<'_> for Text<BITS> {
            type Value = Bitmap<BITS>;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                write!(formatter, "a string of {BITS} digits 0, 1 or x behind 0b")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bitmap<BITS>, E> {
                Bitmap::parse(text).map_err(|problem| {
                    E::custom(format_args!(
                        "{problem}; give 0b and up to {BITS} digits: 0 clears a bit, 1 sets it, x leaves it"
                    ))
                })
            }
        }

        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Option<(u64, u64)> {
        let bitmap: Bitmap<32> = serde_json::from_value(text.into()).ok()?;
        Some((bitmap.mask, bitmap.value))
    }

    #[test]
    fn the_forms_that_firecracker_takes() {
        assert_eq!(parse("0b101"), Some((0b111, 0b101)));
        assert_eq!(parse("101"), Some((0b111, 0b101)));
        assert_eq!(parse("0bx1_0x"), Some((0b0110, 0b0100)));
        assert_eq!(parse("0b"), Some((0, 0)));
        assert_eq!(
            parse("0bxxxx000000000011xx00011011110010"),
            Some((0x0fff_3fff, 0x0003_06f2))
        );
        let all = format!("0b{}", "1".repeat(32));
        assert_eq!(parse(&all), Some((0xffff_ffff, 0xffff_ffff)));
        for bad in ["0b2", "0x2", "0bX", "0b 1", "0bx\u{3fd}", "0b0b1", "-1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(parse(&"x".repeat(33)), None);
        assert_eq!(parse(&"1_".repeat(33)), None);
        let long = "x".repeat(33);
        let error = serde_json::from_value::<Bitmap<32>>(long.into()).unwrap_err();
        assert!(error.to_string().contains("32 bits"), "{error}");
        assert!(serde_json::from_str::<Bitmap<32>>("5").is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(mask: u64, value: u64) {
            let bitmap = Bitmap::<64> { mask, value: value & mask };
            let text = serde_json::to_string(&bitmap).unwrap();
            prop_assert_eq!(serde_json::from_str::<Bitmap<64>>(&text).unwrap(), bitmap);
            prop_assert_eq!(text.len(), 64 + 4);
        }

        #[test]
        fn a_bit_becomes_what_its_digit_says(digits in "[01x]{1,64}", register: u64) {
            let bitmap = Bitmap::<64>::parse(&digits).unwrap();
            let changed = bitmap.apply(register);
            for bit in 0..64 {
                let digit = digits.bytes().rev().nth(bit);
                let expected = match digit {
                    Some(b'0') => 0,
                    Some(b'1') => 1,
                    _ => register >> bit & 1,
                };
                prop_assert_eq!(changed >> bit & 1, expected);
            }
        }

        #[test]
        fn no_text_is_too_much(text: String) {
            let _ = Bitmap::<32>::parse(&text);
        }
    }
}
