//! The header before each frame (5.1.6): what it says, and whether it may say so.

use super::feature;

/// Bytes of the header, of every device that is not a legacy one.
pub const LEN: usize = 12;
/// Where `num_buffers` is in it: two bytes.
pub const NUM_BUFFERS: u64 = 10;

/// Bytes of an Ethernet header: the shortest frame.
pub const SHORTEST_FRAME: usize = 14;
/// The longest frame: an IP packet of 64 KiB less one behind an Ethernet header with two VLAN tags.
pub const LONGEST_FRAME: usize = 65_535 + 14 + 8;

/// `flags`: the checksum is to be completed.
const NEEDS_CSUM: u8 = 1;
/// `gso_type`.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// `gso_type`: TCP with explicit congestion notification.
const GSO_ECN: u8 = 0x80;

/// Why a frame that the driver sends is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsound {
    /// Shorter than header and Ethernet header.
    TooShort,
    /// Longer than any frame.
    TooLong,
    /// The header asks for what was not agreed on, or for what is not in the frame.
    Header,
}

/// Checks the length of header and frame together.
///
/// # Errors
/// [`Unsound::TooShort`], [`Unsound::TooLong`].
pub fn check_len(len: u64) -> Result<(), Unsound> {
    if len < (LEN + SHORTEST_FRAME) as u64 {
        Err(Unsound::TooShort)
    } else if len > (LEN + LONGEST_FRAME) as u64 {
        Err(Unsound::TooLong)
    } else {
        Ok(())
    }
}

/// Checks the header of a frame of `frame` bytes that a driver with these `features` sends (5.1.6.2). Returns it as the
/// host is to see it: with nothing that the device must not look at.
///
/// # Errors
/// [`Unsound::Header`].
pub fn check(header: [u8; LEN], frame: usize, features: u64) -> Result<[u8; LEN], Unsound> {
    let [
        flags,
        gso_type,
        len_0,
        len_1,
        size_0,
        size_1,
        start_0,
        start_1,
        offset_0,
        offset_1,
        ..,
    ] = header;
    let has = |feature| features & feature != 0;
    let checksum = flags & NEEDS_CSUM != 0;
    let start = u16::from_le_bytes([start_0, start_1]);
    let offset = u16::from_le_bytes([offset_0, offset_1]);
    // The sum is two bytes, all of them in the frame.
    let sum_end = usize::from(start) + usize::from(offset) + 2;
    if checksum && (!has(feature::CSUM) || sum_end > frame) {
        return Err(Unsound::Header);
    }
    let ecn = gso_type & GSO_ECN != 0;
    let allowed = match gso_type & !GSO_ECN {
        GSO_NONE => !ecn,
        GSO_TCPV4 => has(feature::HOST_TSO4) && (!ecn || has(feature::HOST_ECN)),
        GSO_TCPV6 => has(feature::HOST_TSO6) && (!ecn || has(feature::HOST_ECN)),
        GSO_UDP_L4 => has(feature::HOST_USO) && !ecn,
        _ => false,
    };
    let cut = gso_type != GSO_NONE;
    let size = u16::from_le_bytes([size_0, size_1]);
    // 5.1.6.2.1: whoever leaves cutting to the device leaves it the checksums too.
    if !allowed || cut && (size == 0 || !checksum) {
        return Err(Unsound::Header);
    }
    let mut seen = [0; LEN];
    if checksum {
        seen[0] = NEEDS_CSUM;
        seen[6..10].copy_from_slice(&header[6..10]);
    }
    if cut {
        seen[1] = gso_type;
        seen[4..6].copy_from_slice(&header[4..6]);
        // A hint, not to be relied on (5.1.6.2.2): one that is impossible is left out.
        if usize::from(u16::from_le_bytes([len_0, len_1])) <= frame {
            seen[2..4].copy_from_slice(&header[2..4]);
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: u64 = u64::MAX;

    fn header(flags: u8, gso_type: u8, fields: [u16; 4]) -> [u8; LEN] {
        let mut header = [0; LEN];
        (header[0], header[1]) = (flags, gso_type);
        for (slot, field) in header[2..10].chunks_exact_mut(2).zip(fields) {
            slot.copy_from_slice(&field.to_le_bytes());
        }
        header
    }

    #[test]
    fn lengths_have_two_ends() {
        for (len, result) in [
            (0, Err(Unsound::TooShort)),
            (25, Err(Unsound::TooShort)),
            (26, Ok(())),
            (12 + 65_557, Ok(())),
            (12 + 65_558, Err(Unsound::TooLong)),
            (u64::MAX, Err(Unsound::TooLong)),
        ] {
            assert_eq!(check_len(len), result, "{len}");
        }
    }

    #[test]
    fn what_linux_sends_passes_as_it_is() {
        for header in [
            header(0, GSO_NONE, [0; 4]),
            header(1, GSO_NONE, [0, 0, 34, 16]),
            header(1, GSO_TCPV4, [66, 1448, 34, 16]),
            header(1, GSO_TCPV6 | GSO_ECN, [86, 1428, 54, 16]),
            header(1, GSO_UDP_L4, [42, 1472, 34, 6]),
        ] {
            assert_eq!(check(header, 9000, ALL), Ok(header));
        }
    }

    #[test]
    fn what_was_not_agreed_on_does_not() {
        let tcp = header(1, GSO_TCPV4, [66, 1448, 34, 16]);
        let bad = Err(Unsound::Header);
        for missing in [feature::CSUM, feature::HOST_TSO4] {
            assert_eq!(check(tcp, 9000, ALL & !missing), bad);
        }
        let ecn = header(1, GSO_TCPV4 | GSO_ECN, [66, 1448, 34, 16]);
        assert_eq!(check(ecn, 9000, ALL & !feature::HOST_ECN), bad);
        for header in [
            // No size; no checksum; ECN of nothing; the old fragmentation of UDP; no such type.
            header(1, GSO_TCPV4, [66, 0, 34, 16]),
            header(0, GSO_TCPV4, [66, 1448, 34, 16]),
            header(1, GSO_ECN, [0, 0, 34, 16]),
            header(1, 3, [66, 1448, 34, 16]),
            header(1, 0x7f, [66, 1448, 34, 16]),
            // A checksum behind the end.
            header(1, GSO_NONE, [0, 0, 8999, 0]),
            header(1, GSO_NONE, [0, 0, u16::MAX, u16::MAX]),
        ] {
            assert_eq!(check(header, 9000, ALL), bad, "{header:?}");
        }
    }

    #[test]
    fn what_the_device_must_not_look_at_is_left_out() {
        let seen = check(header(0xfe, GSO_NONE, [u16::MAX; 4]), 60, ALL);
        assert_eq!(seen, Ok([0; LEN]));
        let seen = check(header(1, GSO_TCPV4, [61, 10, 34, 16]), 60, ALL);
        assert_eq!(seen, Ok(header(1, GSO_TCPV4, [0, 10, 34, 16])));
    }

    proptest! {
        /// Whatever passes is within the frame, and passes again as it is.
        #[test]
        fn what_passes_is_sound(bytes in any::<[u8; LEN]>(), frame in 14_usize..70_000, features in any::<u64>()) {
            if let Ok(seen) = check(bytes, frame, features) {
                let at = |index: usize| usize::from(u16::from_le_bytes([seen[index], seen[index + 1]]));
                prop_assert!(seen[0] == 0 || at(6) + at(8) + 2 <= frame);
                prop_assert!(at(2) <= frame);
                prop_assert!(seen[1] == 0 || at(4) != 0);
                prop_assert_eq!(check(seen, frame, features), Ok(seen));
            }
        }
    }
}
