//! Feature bits of a network device (5.1.3), and which of them hold together.

/// The device completes checksums of what the driver sends.
pub const CSUM: u64 = 1 << 0;
/// The driver takes frames whose checksum is not complete.
pub const GUEST_CSUM: u64 = 1 << 1;
/// What the driver takes can change while it runs.
pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// The device knows the link's MTU.
pub const MTU: u64 = 1 << 3;
/// The device has an address.
pub const MAC: u64 = 1 << 5;
/// The driver takes TCP segments beyond the MTU, over IPv4.
pub const GUEST_TSO4: u64 = 1 << 7;
/// The same over IPv6.
pub const GUEST_TSO6: u64 = 1 << 8;
/// The same with explicit congestion notification.
pub const GUEST_ECN: u64 = 1 << 9;
/// The device cuts TCP segments beyond the MTU, over IPv4.
pub const HOST_TSO4: u64 = 1 << 11;
/// The same over IPv6.
pub const HOST_TSO6: u64 = 1 << 12;
/// The same with explicit congestion notification.
pub const HOST_ECN: u64 = 1 << 13;
/// A frame may lie in several receive buffers.
pub const MRG_RXBUF: u64 = 1 << 15;
/// The device tells whether the link is up.
pub const STATUS: u64 = 1 << 16;
/// There is a control queue.
pub const CTRL_VQ: u64 = 1 << 17;
/// Several pairs of queues.
pub const MQ: u64 = 1 << 22;
/// The driver takes UDP datagrams that are still to be cut, over IPv4.
pub const GUEST_USO4: u64 = 1 << 54;
/// The same over IPv6.
pub const GUEST_USO6: u64 = 1 << 55;
/// The device cuts UDP payload in datagrams.
pub const HOST_USO: u64 = 1 << 56;

/// What the driver may take: also the bits of [`CTRL_GUEST_OFFLOADS`]' command (5.1.6.5.6).
pub const GUEST_OFFLOADS: u64 =
    GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6;

/// Each feature with those that it needs; one of them is enough (5.1.3.1).
const NEEDS: [(u64, u64); 11] = [
    (GUEST_TSO4, GUEST_CSUM),
    (GUEST_TSO6, GUEST_CSUM),
    (GUEST_USO4, GUEST_CSUM),
    (GUEST_USO6, GUEST_CSUM),
    (GUEST_ECN, GUEST_TSO4 | GUEST_TSO6),
    (HOST_TSO4, CSUM),
    (HOST_TSO6, CSUM),
    (HOST_USO, CSUM),
    (HOST_ECN, HOST_TSO4 | HOST_TSO6),
    (MQ, CTRL_VQ),
    (CTRL_GUEST_OFFLOADS, CTRL_VQ),
];

/// `features` without those whose needs are not met. A driver that accepts one without the other gets neither.
pub fn sound(features: u64) -> u64 {
    NEEDS.iter().fold(features, |features, (feature, needs)| {
        if features & needs == 0 {
            features & !feature
        } else {
            features
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_misses_its_foundation_falls() {
        assert_eq!(sound(HOST_TSO4 | HOST_ECN | HOST_USO | MAC), MAC);
        assert_eq!(sound(GUEST_TSO6 | GUEST_ECN | GUEST_USO4), 0);
        let all = CSUM | HOST_TSO6 | HOST_ECN | GUEST_CSUM | GUEST_TSO4 | GUEST_ECN;
        assert_eq!(sound(all), all);
        assert_eq!(sound(MQ | CTRL_GUEST_OFFLOADS), 0);
        assert_eq!(sound(MQ | CTRL_VQ), MQ | CTRL_VQ);
    }
}
