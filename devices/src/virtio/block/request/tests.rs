//! Requests as drivers and worse make them.

use proptest::prelude::*;
use vm_memory::Bytes;

use super::super::super::testing::memory;
use super::*;

const DATA: u64 = 0x8000;

const LIMITS: Limits = Limits {
    sectors: 100,
    read_only: false,
    flush: true,
    discard: true,
    write_zeroes: true,
    range_sectors: MOST_RANGE_SECTORS,
};

/// The header's bytes, then `more`, then `room` writable bytes, all of it cut at `cuts`.
fn chain(memory: &Memory, readable: &[u8], room: u32, cuts: &[u32]) -> Vec<Buffer> {
    memory.write_slice(readable, GuestAddress(DATA)).unwrap();
    let mut buffers = Vec::new();
    let mut push = |start: u64, len: u32, writable| {
        let mut done = 0;
        for cut in cuts.iter().copied().chain([u32::MAX]) {
            let len = cut.min(len - done);
            buffers.push(Buffer {
                address: GuestAddress(start + u64::from(done)),
                len,
                writable,
            });
            done += len;
        }
    };
    push(DATA, readable.len() as u32, false);
    push(0x1_0000, room, true);
    buffers
}

fn bytes(kind: u32, sector: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0xff; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes.extend(data);
    bytes
}

fn ranges(list: &[(u64, u32, u32)]) -> Vec<u8> {
    let each = |(sector, count, flags): &(u64, u32, u32)| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    };
    list.iter().flat_map(each).collect()
}

/// What comes out in short: type, first byte and length, or the refusal.
fn outcome(readable: &[u8], room: u32, limits: &Limits) -> Result<(u8, u64, u64), Outcome> {
    let memory = memory();
    let buffers = chain(&memory, readable, room, &[3, 20]);
    let mut ranges = Vec::new();
    let parsed = parse(&memory, &buffers, limits, &mut ranges).unwrap();
    assert_eq!(parsed.status, GuestAddress(0x1_0000 + u64::from(room) - 1));
    let data = match parsed.request {
        Request::Read { .. } => room - 1,
        Request::Identify { .. } => 20.min(room - 1),
        _ => 0,
    };
    assert_eq!(parsed.written, data + 1);
    match parsed.request {
        Request::Read { at, data } => Ok((0, at, data.len())),
        Request::Write { at, data } => Ok((1, at, data.len())),
        Request::Flush => Ok((4, 0, 0)),
        Request::Identify { data } => Ok((8, 0, data.len())),
        Request::Discard => Ok((11, ranges[0].at, ranges[0].len)),
        Request::WriteZeroes => Ok((13, ranges[0].at, ranges.len() as u64)),
        Request::Refused(outcome) => Err(outcome),
    }
}

#[test]
fn legal_requests() {
    let read = outcome(&bytes(0, 98, &[]), 1025, &LIMITS);
    assert_eq!(read, Ok((0, 98 * 512, 1024)));
    let write = outcome(&bytes(1, 99, &[7; 512]), 1, &LIMITS);
    assert_eq!(write, Ok((1, 99 * 512, 512)));
    assert_eq!(outcome(&bytes(4, 0, &[]), 1, &LIMITS), Ok((4, 0, 0)));
    assert_eq!(outcome(&bytes(8, 0, &[]), 21, &LIMITS), Ok((8, 0, 20)));
    assert_eq!(outcome(&bytes(8, 0, &[]), 31, &LIMITS), Ok((8, 0, 30)));
    assert_eq!(outcome(&bytes(0, 100, &[]), 1, &LIMITS), Ok((0, 51_200, 0)));
    let one = bytes(11, 0, &ranges(&[(10, 90, 0)]));
    assert_eq!(outcome(&one, 1, &LIMITS), Ok((11, 5120, 46_080)));
    let several = bytes(13, 0, &ranges(&[(1, 1, 1), (2, 0, 0), (3, 97, 0)]));
    assert_eq!(outcome(&several, 1, &LIMITS), Ok((13, 512, 2)));
}

#[test]
fn illegal_requests() {
    use Outcome::{IoError, Unsupported};
    let read_only = Limits {
        read_only: true,
        discard: false,
        write_zeroes: false,
        ..LIMITS
    };
    let bare = Limits {
        sectors: 100,
        ..Limits::default()
    };
    let whole = Limits {
        sectors: u64::MAX,
        ..LIMITS
    };
    let many = vec![(0, 1, 0); MOST_RANGES as usize + 1];
    for (what, readable, room, limits, expected) in [
        ("header too short", vec![0; 15], 513, &LIMITS, IoError),
        ("no header", vec![], 513, &LIMITS, IoError),
        ("beyond the end", bytes(0, 99, &[]), 1025, &LIMITS, IoError),
        ("behind the end", bytes(0, 101, &[]), 1, &LIMITS, IoError),
        ("last sector", bytes(0, u64::MAX, &[]), 513, &whole, IoError),
        (
            "offset overflow",
            bytes(0, u64::MAX / 512 + 1, &[]),
            513,
            &whole,
            IoError,
        ),
        ("odd length", bytes(0, 0, &[]), 512, &LIMITS, IoError),
        ("odd write", bytes(1, 0, &[0; 511]), 1, &LIMITS, IoError),
        (
            "write, read-only",
            bytes(1, 0, &[0; 512]),
            1,
            &read_only,
            IoError,
        ),
        (
            "discard, read-only",
            bytes(11, 0, &ranges(&[(0, 1, 0)])),
            1,
            &read_only,
            Unsupported,
        ),
        ("unknown type", bytes(2, 0, &[]), 1, &LIMITS, Unsupported),
        (
            "unknown type",
            bytes(u32::MAX, 0, &[]),
            1,
            &LIMITS,
            Unsupported,
        ),
        (
            "flush, not offered",
            bytes(4, 0, &[]),
            1,
            &bare,
            Unsupported,
        ),
        (
            "discard, not offered",
            bytes(11, 0, &ranges(&[(0, 1, 0)])),
            1,
            &bare,
            Unsupported,
        ),
        (
            "zeroes, not offered",
            bytes(13, 0, &ranges(&[(0, 1, 0)])),
            1,
            &bare,
            Unsupported,
        ),
        ("no range", bytes(11, 0, &[]), 1, &LIMITS, IoError),
        ("half a range", bytes(11, 0, &[0; 24]), 1, &LIMITS, IoError),
        (
            "too many ranges",
            bytes(11, 0, &ranges(&many)),
            1,
            &LIMITS,
            IoError,
        ),
        (
            "discard that unmaps",
            bytes(11, 0, &ranges(&[(0, 1, 1)])),
            1,
            &LIMITS,
            Unsupported,
        ),
        (
            "reserved flag",
            bytes(13, 0, &ranges(&[(0, 1, 2)])),
            1,
            &LIMITS,
            Unsupported,
        ),
        (
            "range beyond",
            bytes(11, 0, &ranges(&[(99, 2, 0)])),
            1,
            &LIMITS,
            IoError,
        ),
        (
            "second beyond",
            bytes(13, 0, &ranges(&[(0, 1, 0), (u64::MAX, 1, 0)])),
            1,
            &LIMITS,
            IoError,
        ),
        (
            "long range",
            bytes(13, 0, &ranges(&[(0, MOST_RANGE_SECTORS + 1, 0)])),
            1,
            &whole,
            IoError,
        ),
    ] {
        assert_eq!(outcome(&readable, room, limits), Err(expected), "{what}");
    }
}

#[test]
fn without_room_for_a_status_there_is_no_answer() {
    let memory = memory();
    for room in [None, Some(0)] {
        let mut buffers = chain(&memory, &bytes(0, 0, &[]), 0, &[]);
        buffers.retain(|buffer| !buffer.writable || room.is_some());
        assert!(parse(&memory, &buffers, &LIMITS, &mut Vec::new()).is_err());
    }
    assert!(parse(&memory, &[], &LIMITS, &mut Vec::new()).is_err());
    // Gigabytes that are not there are no more than a length.
    let huge = Buffer {
        address: GuestAddress(0),
        len: u32::MAX,
        writable: true,
    };
    let mut buffers = chain(&memory, &bytes(0, 0, &[]), 0, &[]);
    buffers.extend([huge; 8]);
    let parsed = parse(&memory, &buffers, &LIMITS, &mut Vec::new()).unwrap();
    assert!(matches!(parsed.request, Request::Refused(Outcome::IoError)));
    assert_eq!(parsed.written, 1);
}

proptest! {
    /// Whatever the bytes and the cuts are, what is let through is on the disk.
    #[test]
    fn nothing_beyond_the_disk_is_let_through(
        kind in prop_oneof![0_u32..16, any::<u32>()],
        sector in prop_oneof![0_u64..120, any::<u64>()],
        data in prop::collection::vec(any::<u8>(), 0..80),
        sectors in prop_oneof![0_u64..200, any::<u64>()],
        room in 1_u32..5000,
        cuts in prop::collection::vec(0_u32..40, 0..5),
        flags in any::<[bool; 4]>(),
    ) {
        let memory = memory();
        let [read_only, flush, discard, write_zeroes] = flags;
        let limits = Limits { sectors, read_only, flush, discard, write_zeroes, range_sectors: 50 };
        let buffers = chain(&memory, &bytes(kind, sector, &data), room, &cuts);
        let mut ranges = Vec::new();
        let parsed = parse(&memory, &buffers, &limits, &mut ranges).unwrap();
        let end = u128::from(sectors) * 512;
        let inside = |at: u64, len: u64| u128::from(at) + u128::from(len) <= end;
        match parsed.request {
            Request::Read { at, data } => prop_assert!(inside(at, data.len())),
            Request::Write { at, data } => {
                prop_assert!(inside(at, data.len()));
                prop_assert!(!read_only);
            }
            Request::Discard | Request::WriteZeroes => {
                prop_assert!(ranges.len() <= MOST_RANGES as usize);
                for range in ranges {
                    prop_assert!(inside(range.at, range.len) && range.len > 0);
                        prop_assert!(range.len <= 50 * 512);
                }
            }
            Request::Flush => prop_assert!(flush),
            Request::Identify { .. } | Request::Refused(_) => {}
        }
    }
}
