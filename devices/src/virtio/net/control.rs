//! Commands of the control queue (5.1.6.5).

use super::feature;

/// Bytes of class and command.
pub const HEADER: usize = 2;
/// Most bytes of a command that are looked at: the longest that is known here has ten.
pub const LONGEST: usize = 16;

/// `ack`.
pub const OK: u8 = 0;
/// `ack`.
pub const ERR: u8 = 1;

const CLASS_MQ: u8 = 4;
const MQ_VQ_PAIRS_SET: u8 = 0;
const CLASS_GUEST_OFFLOADS: u8 = 5;
const GUEST_OFFLOADS_SET: u8 = 0;

/// A command that can be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// So many pairs of queues are used from now on (5.1.6.5.5).
    Pairs(u16),
    /// The driver takes these from now on (5.1.6.5.6).
    Offloads(u64),
}

/// Reads a command of a driver that has agreed on `features`, on a device with `pairs` pairs of queues. `None` for one
/// that is not known, not allowed or not whole.
pub fn parse(bytes: &[u8], features: u64, pairs: u16) -> Option<Command> {
    let (&[class, command], data) = bytes.split_first_chunk::<HEADER>()?;
    match (class, command) {
        (CLASS_MQ, MQ_VQ_PAIRS_SET) => {
            let wanted = u16::from_le_bytes(data.try_into().ok()?);
            let allowed = features & feature::MQ != 0 && (1..=pairs).contains(&wanted);
            allowed.then_some(Command::Pairs(wanted))
        }
        (CLASS_GUEST_OFFLOADS, GUEST_OFFLOADS_SET) => {
            let wanted = u64::from_le_bytes(data.try_into().ok()?);
            let possible = features & feature::GUEST_OFFLOADS;
            let allowed = features & feature::CTRL_GUEST_OFFLOADS != 0 && wanted & !possible == 0;
            // Bits without their foundation are harmless, as in negotiation.
            allowed.then_some(Command::Offloads(feature::sound(wanted)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pairs_are_within_what_is_there() {
        let set = |count: u16| {
            let mut bytes = vec![CLASS_MQ, MQ_VQ_PAIRS_SET];
            bytes.extend(count.to_le_bytes());
            bytes
        };
        assert_eq!(parse(&set(4), feature::MQ, 4), Some(Command::Pairs(4)));
        assert_eq!(parse(&set(4), 0, 4), None);
        assert_eq!(parse(&set(4)[..3], feature::MQ, 4), None);
        for count in [0, 5, u16::MAX] {
            assert_eq!(parse(&set(count), feature::MQ, 4), None);
        }
    }

    #[test]
    fn offloads_are_within_what_was_agreed_on() {
        let set = |bits: u64| {
            let mut bytes = vec![CLASS_GUEST_OFFLOADS, GUEST_OFFLOADS_SET];
            bytes.extend(bits.to_le_bytes());
            bytes
        };
        let agreed = feature::CTRL_GUEST_OFFLOADS | feature::GUEST_CSUM | feature::GUEST_TSO4;
        let both = feature::GUEST_CSUM | feature::GUEST_TSO4;
        assert_eq!(parse(&set(0), agreed, 1), Some(Command::Offloads(0)));
        assert_eq!(parse(&set(both), agreed, 1), Some(Command::Offloads(both)));
        let without = parse(&set(feature::GUEST_TSO4), agreed, 1);
        assert_eq!(without, Some(Command::Offloads(0)));
        for bits in [
            feature::GUEST_TSO6,
            feature::CSUM,
            feature::MRG_RXBUF,
            1 << 63,
        ] {
            assert_eq!(parse(&set(bits), agreed, 1), None);
        }
        assert_eq!(parse(&set(0), feature::GUEST_CSUM, 1), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_harmless(
            bytes in prop::collection::vec(any::<u8>(), 0..LONGEST), features in any::<u64>(), pairs in 1_u16..9,
        ) {
            match parse(&bytes, features, pairs) {
                Some(Command::Pairs(count)) => prop_assert!((1..=pairs).contains(&count)),
                Some(Command::Offloads(bits)) => prop_assert_eq!(bits & !(features & feature::GUEST_OFFLOADS), 0),
                None => {}
            }
        }
    }
}
