//! The metadata service: frames of a guest's, whole and broken, with segments that keep up a connection where the script leaves
//! their numbers alone. Time passes as the script says.

use std::time::{Duration, Instant};

use devices::mmds::{ADDRESS, Mmds, START, Stack};
use serde_json::json;

use crate::script::Reader;
use crate::seeds::{Reached, Seed, seed};

/// Frames that may wait for a guest: the service's own bound, with room for the last words of connections.
const MOST_FRAMES: usize = 64;
const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// What the guest knows of one connection.
#[derive(Clone, Copy, Default)]
struct Peer {
    next: u32,
    seen: u32,
}

/// A segment with its headers, of that connection.
fn segment(port: u8, peer: Peer, flags: u8, window: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![6, 1, 0x23, 0x45, 0x67, 1];
    frame.extend(GUEST);
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((40 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2]);
    frame.extend(ADDRESS.octets());
    frame.extend([0x80, port, 0, 80]);
    frame.extend(peer.next.to_be_bytes());
    frame.extend(peer.seen.to_be_bytes());
    frame.extend([0x50, flags]);
    frame.extend(window.to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// Bytes that a frame has room for.
fn payload(script: &mut Reader) -> Vec<u8> {
    let mut bytes = script.counted();
    bytes.truncate(1460);
    bytes
}

/// Runs the target.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) -> Reached {
    let mmds = Mmds::default();
    let document = json!({"latest": {"user-data": "u"}, "x": "y".repeat(20_000)});
    mmds.put(document).expect("a document that fits");
    let mut stack = Stack::new(&mmds, ADDRESS).expect("random bytes");
    let mut peers = [Peer::default(); 256];
    let mut now = Instant::now();
    let mut script = Reader::new(data);
    let mut reached = Reached::new();
    while !script.is_empty() {
        let (what, port) = (script.u8(), script.u8());
        let peer = peers[usize::from(port)];
        let frame = match what % 6 {
            0 => {
                let flags = script.u8();
                let window = script.u16();
                let payload = payload(&mut script);
                let advance = payload.len() as u32 + u32::from(flags & 3 != 0);
                peers[usize::from(port)].next = peer.next.wrapping_add(advance);
                Some(segment(port, peer, flags, window, &payload))
            }
            // Any numbers.
            1 => {
                let peer = Peer {
                    next: peer.next.wrapping_add(u32::from(script.u16())),
                    seen: peer.seen.wrapping_sub(u32::from(script.u16())),
                };
                let flags = script.u8();
                let window = script.u16();
                Some(segment(port, peer, flags, window, &payload(&mut script)))
            }
            // Any bytes behind an Ethernet header, and any in its place.
            2 => {
                let mut frame = segment(port, peer, 0x18, 0xffff, &payload(&mut script));
                let at = usize::from(script.u8()) % frame.len();
                frame[at] = script.u8();
                Some(frame)
            }
            3 => Some(payload(&mut script)),
            4 => {
                now += Duration::from_millis(u64::from(script.u16()));
                stack.work(now);
                None
            }
            _ => {
                stack.clear();
                None
            }
        };
        if let Some(frame) = frame
            && stack.is_for_it(&frame[..frame.len().min(START)])
        {
            stack.take(&frame, now);
        }
        // A guest without buffers leaves them.
        if what & 0x80 == 0 {
            for count in 0.. {
                assert!(count < 4096, "frames without end");
                let Some(frame) = stack.next_frame(now) else {
                    break;
                };
                assert!((42..=1514).contains(&frame.len()));
                if frame[12..14] == [8, 0] {
                    let to = &mut peers[usize::from(frame[37])];
                    let sequence = u32::from_be_bytes([frame[38], frame[39], frame[40], frame[41]]);
                    let data = frame.len() - 34 - usize::from(frame[46] >> 4) * 4;
                    let ends = u32::from(frame[47] & 3 != 0);
                    to.seen = sequence.wrapping_add(data as u32).wrapping_add(ends);
                    *reached.entry("answered".into()).or_default() += data as u64;
                }
            }
        }
        if let Some(delay) = stack.deadline(now) {
            assert!(delay > Duration::ZERO, "a time that has passed");
        }
    }
    let mut left = 0;
    while stack.has_frames() && left <= MOST_FRAMES {
        let _ = stack.next_frame(now);
        left += 1;
    }
    assert!(left <= 2 * MOST_FRAMES, "{left} frames");
    stack.clear();
    for (name, count) in mmds.counters() {
        reached.insert(name.into(), count);
    }
    assert_eq!(
        reached["connections_created"], reached["connections_destroyed"],
        "connections are forgotten"
    );
    reached
}

/// Its seeds.
pub fn seeds() -> Vec<Seed> {
    let send = |flags: u8, payload: &[u8]| {
        let mut bytes = vec![0, 7, flags, 0xff, 0xff];
        bytes.extend((payload.len() as u16).to_le_bytes());
        bytes.extend(payload);
        bytes
    };
    let get = b"GET /x HTTP/1.1\r\n\r\n";
    let talk = [
        send(2, b""),
        send(0x10, b""),
        send(0x18, get),
        send(0x10, b""),
        send(0x10, b""),
        vec![4, 0, 0xff, 0x0f],
        send(0x11, b""),
        send(0x10, b""),
    ];
    vec![seed(
        "a request",
        talk.concat(),
        &[
            "connections_created",
            "answered",
            "rx_no_token",
            "tx_frames",
        ],
    )]
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_reach_what_they_are_meant_to() {
        crate::seeds::check(super::run, super::seeds);
    }
}
