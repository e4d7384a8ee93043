//! Images in QEMU's format: a small one that is whole, with bytes of its header and tables changed, under a block device that
//! is read, written, flushed and cleared.
//!
//! The image has clusters of every kind: its own, one that a snapshot has too, a compressed one, one of zeros, and none at
//! all, with or without a backing file behind them. The backing file is never written.

use std::io::Write;
use std::os::unix::fs::FileExt;

use devices::virtio::block::disk::{Backing, Format};
use devices::virtio::block::{Block, BlockOptions};
use devices::virtio::{Update, VirtioDevice};
use flate2::Compression;
use flate2::write::DeflateEncoder;

use crate::block::{Disks, path, ranges, request};
use crate::script::{Chain, Move, Reader};
use crate::seeds::{Reached, Seed, seed};
use crate::session::{self, Rig};

/// Bytes of a cluster: the fewest that there may be.
const CLUSTER: usize = 512;
/// Clusters of the disk: two L2 tables of 64.
const CLUSTERS: u64 = 128;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// The image: header, refcount table, refcount block, L1, L2, two clusters of data, a compressed one.
fn image(version: u32, backing: bool) -> Vec<u8> {
    let mut bytes = vec![0; 8 * CLUSTER];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, b"QFI\xfb");
    put(4, &version.to_be_bytes());
    if backing {
        put(8, &300_u64.to_be_bytes());
        put(16, &4_u32.to_be_bytes());
        put(300, b"back");
    }
    put(20, &9_u32.to_be_bytes());
    put(24, &(CLUSTERS * CLUSTER as u64).to_be_bytes());
    put(36, &2_u32.to_be_bytes());
    put(40, &(3 * CLUSTER as u64).to_be_bytes());
    put(48, &(CLUSTER as u64).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    if version == 3 {
        put(96, &4_u32.to_be_bytes());
        put(100, &112_u32.to_be_bytes());
    }
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    for cluster in 0..8 {
        // The second one of data is a snapshot's too.
        let count = if cluster == 6 { 2_u16 } else { 1 };
        put(2 * CLUSTER + 2 * cluster, &count.to_be_bytes());
    }
    put(3 * CLUSTER, &(COPIED | (4 * CLUSTER as u64)).to_be_bytes());
    let entries = [
        COPIED | (5 * CLUSTER as u64),
        6 * CLUSTER as u64,
        COMPRESSED | (7 * CLUSTER as u64),
        u64::from(version == 3),
    ];
    for (index, entry) in entries.into_iter().enumerate() {
        put(4 * CLUSTER + 8 * index, &entry.to_be_bytes());
    }
    put(5 * CLUSTER, &[1; CLUSTER]);
    put(6 * CLUSTER, &[2; CLUSTER]);
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder
        .write_all(&[3; CLUSTER])
        .expect("a vector takes all");
    put(7 * CLUSTER, &encoder.finish().expect("a vector takes all"));
    bytes
}

/// A disk in an image.
struct Image {
    disks: Disks,
    opened: u64,
    refused: u64,
}

impl Image {
    fn open(&mut self) -> Option<Block> {
        match Block::new(self.disks.options.clone()) {
            Ok(device) => {
                self.opened += 1;
                Some(device)
            }
            Err(error) => {
                assert!(!error.to_string().contains('\n'));
                self.refused += 1;
                None
            }
        }
    }
}

impl Rig for Image {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        if let Some(device) = self.open() {
            return Box::new(device);
        }
        // What cannot be opened (any more) is as if it had never been: there has to be some device.
        let raw = &mut self.disks.options.disk;
        (raw.format, raw.backing) = (Format::Raw, None);
        self.disks.device()
    }

    fn update(&mut self, bytes: &[u8]) -> Option<Update> {
        // To itself or nowhere, not to the backing file.
        let mut from = bytes.to_vec();
        if let Some(first) = from.first_mut() {
            *first |= 1;
        }
        self.disks.update(&from)
    }

    fn patience(&self) -> i32 {
        self.disks.patience()
    }

    fn look(&mut self) {
        self.disks.check();
    }

    fn reached(&self) -> Vec<(&'static str, u64)> {
        vec![("opened", self.opened), ("refused", self.refused)]
    }
}

/// Runs the target.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) -> Reached {
    let mut script = Reader::new(data);
    let choice = script.u8();
    let backing = choice & 8 != 0;
    let mut bytes = image(if choice & 0x10 != 0 { 2 } else { 3 }, backing);
    for _ in 0..script.u8() % 16 {
        let (at, len) = (usize::from(script.u16()), usize::from(script.u8() % 17));
        for (slot, byte) in bytes.iter_mut().skip(at % 4096).zip(script.bytes(len)) {
            *slot = *byte;
        }
    }
    // Perhaps it ends early.
    let end = usize::from(script.u16());
    bytes.truncate(if end == 0 { bytes.len() } else { end });
    let mut disks = Disks::new(choice & 7).expect("files in a temporary directory");
    disks.untouched[0] = false;
    let written = disks.files[0]
        .set_len(0)
        .and_then(|()| disks.files[0].write_all_at(&bytes, 0));
    written.expect("an image");
    let BlockOptions { disk, .. } = &mut disks.options;
    disk.format = Format::Qcow2;
    disk.backing = backing.then(|| Backing {
        path: path(1),
        format: Format::Raw,
    });
    let mut image = Image {
        disks,
        opened: 0,
        refused: 0,
    };
    if image.open().is_none() {
        return Reached::from([("refused".into(), 1)]);
    }
    session::follow(&mut image, &mut script)
}

/// Its seeds.
pub fn seeds() -> Vec<Seed> {
    let write = |sector| Chain {
        padding: 511,
        cuts: vec![16],
        ..Chain::new(0, &request(1, sector, &[9]), &[1])
    };
    let read = |sector, length| Chain::new(0, &request(0, sector, &[]), &[length, 1]);
    let mut moves = Vec::new();
    for chain in [
        read(0, 5 * 512),
        write(0),
        write(1),
        write(2),
        write(3),
        write(4),
        write(100),
        Chain::new(0, &request(4, 0, &[]), &[1]),
        Chain::new(0, &request(11, 0, &ranges(&[(0, 2, 0), (100, 1, 0)])), &[1]),
        Chain::new(
            0,
            &request(13, 0, &ranges(&[(1, 3, 1), (4, 2, 0), (120, 4, 1)])),
            &[1],
        ),
        write(0),
        Chain::new(0, &request(4, 0, &[]), &[1]),
        read(0, 8 * 512),
        read(96, 32 * 512),
    ] {
        moves.push(chain.offer());
        moves.push(Move::Kick(0));
    }
    moves.extend([
        Move::Quiesce,
        Move::Migrate,
        read(0, 4096).offer(),
        Move::Kick(0),
        Move::Quiesce,
    ]);
    let input = |choice: u8, patches: &[(u16, &[u8])], end: u16| {
        let mut bytes = vec![choice, patches.len() as u8];
        for (at, patch) in patches {
            bytes.extend(at.to_le_bytes());
            bytes.push(patch.len() as u8);
            bytes.extend_from_slice(patch);
        }
        bytes.extend(end.to_le_bytes());
        for one in &moves {
            one.write(&mut bytes);
        }
        bytes
    };
    const DONE: &[&str] = &[
        "opened",
        "reads",
        "writes",
        "flushes",
        "write_zeroes",
        "migrations",
    ];
    let entry = |at: u16, entry: u64| (at, entry.to_be_bytes());
    let mut seeds = vec![
        seed("whole", input(0, &[], 0), DONE),
        seed("whole-async", input(1, &[], 0), DONE),
        seed("backed", input(8, &[], 0), DONE),
        seed("old", input(0x18, &[], 0), DONE),
        seed("unsafe", input(4, &[], 0), &["opened", "reads", "writes"]),
        seed(
            "read-only",
            input(2, &[], 0),
            &["opened", "reads", "errors"],
        ),
        seed("short", input(0, &[], 2600), &["opened"]),
        seed("empty", input(0, &[], 3), &["refused"]),
    ];
    for (name, (at, bytes), reaches) in [
        ("l1-far", entry(1536, COPIED | 1 << 50), &["opened"][..]),
        ("l1-odd", entry(1536, COPIED | 0x801), &["opened"]),
        (
            "l2-far",
            entry(2048, COPIED | 0x00ff_ffff_ffff_fe00),
            &["opened", "errors"],
        ),
        ("l2-self", entry(2048, COPIED | 2048), &["opened", "reads"]),
        (
            "compressed-nonsense",
            entry(3584, u64::MAX),
            &["opened", "errors"],
        ),
        ("refcounts-gone", entry(512, 0), &["opened"]),
        ("refcounts-full", entry(1024, u64::MAX), &["opened"]),
        ("refcounts-far", entry(512, 1 << 55), &["opened"]),
        ("size", entry(24, 1 << 60), &["refused"]),
        ("features", entry(72, 1 << 63), &["refused"]),
    ] {
        seeds.push(seed(name, input(0, &[(at, &bytes)], 0), reaches));
    }
    seeds
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_reach_what_they_are_meant_to() {
        crate::seeds::check(super::run, super::seeds);
    }
}
