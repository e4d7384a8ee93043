//! Which frames of a guest's are for the service, and ARP (RFC 826).

use std::net::Ipv4Addr;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of a frame's start that tell whether it is for the service: those of an ARP packet.
pub const START: usize = ETHERNET + ARP;

/// Bytes of an ARP packet for Ethernet and IPv4.
const ARP: usize = 28;
const TYPE_ARP: [u8; 2] = [0x08, 0x06];
pub const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// Hardware type Ethernet, protocol type IPv4, and the lengths of their addresses.
const ARP_KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];
/// Protocol number of TCP.
const TCP: u8 = 6;
/// IPv4's `flags` and `fragment offset`, without "don't fragment": not zero in a fragment.
const FRAGMENT: u16 = 0xbfff;

/// A frame that is for the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Who has the address? An ARP request; the answer to it.
    Request([u8; START]),
    /// A TCP segment with its IPv4 header, from that Ethernet address.
    Tcp([u8; 6], &'a [u8]),
    /// Something else.
    Unusual,
    /// No frame that holds together.
    Wrong,
}

fn bytes<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..)?.first_chunk().copied()
}

/// Whether a frame that starts with `start`, of up to [`START`] bytes, is for the service at `address`.
pub fn is_for(start: &[u8], address: Ipv4Addr) -> bool {
    let target = match bytes(start, 12) {
        Some(TYPE_ARP) => ETHERNET + 24,
        Some(TYPE_IPV4) => ETHERNET + 16,
        _ => return false,
    };
    bytes(start, target) == Some(address.octets())
}

/// What a frame is, given that it is for the service at `address`, whose Ethernet address is `mac`.
pub fn read(frame: &[u8], address: Ipv4Addr, mac: [u8; 6]) -> Frame<'_> {
    let what = match bytes(frame, 12) {
        Some(TYPE_ARP) => arp(frame, address, mac),
        Some(TYPE_IPV4) => ipv4(frame, address),
        _ => None,
    };
    what.unwrap_or(Frame::Wrong)
}

fn arp(frame: &[u8], address: Ipv4Addr, mac: [u8; 6]) -> Option<Frame<'static>> {
    let kind: [u8; 6] = bytes(frame, ETHERNET)?;
    let operation: [u8; 2] = bytes(frame, ETHERNET + 6)?;
    let sender: [u8; 10] = bytes(frame, ETHERNET + 8)?;
    let sender_mac: [u8; 6] = bytes(&sender, 0)?;
    if kind != ARP_KIND {
        return None;
    }
    if operation != REQUEST {
        return Some(Frame::Unusual);
    }
    let parts: [&[u8]; 8] = [
        &sender_mac,
        &mac,
        &TYPE_ARP,
        &ARP_KIND,
        &REPLY,
        &mac,
        &address.octets(),
        &sender,
    ];
    bytes(&parts.concat(), 0).map(Frame::Request)
}

fn ipv4(frame: &[u8], address: Ipv4Addr) -> Option<Frame<'_>> {
    let mac = bytes(frame, 6)?;
    let packet = frame.get(ETHERNET..)?;
    let header: [u8; 20] = bytes(packet, 0)?;
    let source = Ipv4Addr::from(bytes::<4>(&header, 12)?);
    let fragment = u16::from_be_bytes(bytes(&header, 6)?) & FRAGMENT != 0;
    // No segment comes from the service itself, or from nobody.
    if header[0] >> 4 != 4 || source == address || source.is_unspecified() {
        return None;
    }
    if header[9] != TCP || fragment {
        return Some(Frame::Unusual);
    }
    Some(Frame::Tcp(mac, packet))
}

/// Whether a TCP segment with its IPv4 header asks for a connection: SYN without ACK (RFC 9293, 3.1).
pub fn opens(packet: &[u8]) -> bool {
    let header = packet.first().map(|first| usize::from(first & 0xf) * 4);
    let flags = header.and_then(|header| packet.get(header + 13));
    flags.is_some_and(|flags| flags & 0x12 == 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
    const MAC: [u8; 6] = [6, 1, 0x23, 0x45, 0x67, 1];
    const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn request(target: [u8; 4]) -> Vec<u8> {
        let parts: [&[u8]; 9] = [
            &[0xff; 6],
            &GUEST,
            &TYPE_ARP,
            &ARP_KIND,
            &REQUEST,
            &GUEST,
            &[10, 0, 0, 2],
            &[0; 6],
            &target,
        ];
        parts.concat()
    }

    fn packet(protocol: u8, fragment: u16, target: [u8; 4]) -> Vec<u8> {
        let mut frame = [&MAC[..], &GUEST, &TYPE_IPV4, &[0x45, 0, 0, 40], &[0; 2]].concat();
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, protocol, 0, 0, 10, 0, 0, 2]);
        frame.extend(target);
        frame.extend([7; 20]);
        frame
    }

    #[test]
    fn who_asks_for_the_address_is_answered() {
        let frame = request(ADDRESS.octets());
        assert!(is_for(&frame, ADDRESS));
        let Frame::Request(answer) = read(&frame, ADDRESS, MAC) else {
            panic!("no request");
        };
        let expected: [&[u8]; 9] = [
            &GUEST,
            &MAC,
            &TYPE_ARP,
            &ARP_KIND,
            &REPLY,
            &MAC,
            &[169, 254, 169, 254],
            &GUEST,
            &[10, 0, 0, 2],
        ];
        assert_eq!(answer.as_slice(), expected.concat());
        assert!(!is_for(&request([169, 254, 169, 253]), ADDRESS));
        let mut reply = frame.clone();
        reply[21] = 2;
        assert_eq!(read(&reply, ADDRESS, MAC), Frame::Unusual);
        let mut token_ring = frame;
        token_ring[15] = 6;
        assert_eq!(read(&token_ring, ADDRESS, MAC), Frame::Wrong);
    }

    #[test]
    fn segments_are_told_from_the_rest() {
        let target = ADDRESS.octets();
        let frame = packet(TCP, 0x4000, target);
        assert!(is_for(&frame, ADDRESS));
        assert_eq!(read(&frame, ADDRESS, MAC), Frame::Tcp(GUEST, &frame[14..]));
        for (protocol, fragment) in [(17, 0), (1, 0), (TCP, 0x2000), (TCP, 1), (TCP, 0x8000)] {
            let frame = packet(protocol, fragment, target);
            assert!(is_for(&frame, ADDRESS));
            assert_eq!(read(&frame, ADDRESS, MAC), Frame::Unusual);
        }
        assert!(!is_for(&packet(TCP, 0, [10, 0, 0, 1]), ADDRESS));
        let mut own = packet(TCP, 0, target);
        own[26..30].copy_from_slice(&target);
        assert_eq!(read(&own, ADDRESS, MAC), Frame::Wrong);
    }

    proptest! {
        #[test]
        fn any_bytes_are_harmless(frame in prop::collection::vec(any::<u8>(), 0..80), arp: bool) {
            let mut frame = frame;
            for (slot, byte) in frame.iter_mut().skip(12).zip(if arp { TYPE_ARP } else { TYPE_IPV4 }) {
                *slot = byte;
            }
            let start = &frame[..frame.len().min(START)];
            prop_assert_eq!(is_for(start, ADDRESS), is_for(&frame, ADDRESS));
            let _ = read(&frame, ADDRESS, MAC);
        }
    }
}
