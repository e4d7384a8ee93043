//! The configuration of a block device, as its driver reads it (5.2.4).

use super::disk::Geometry;
use super::request::{MOST_RANGES, SECTOR};

/// Bytes of a `virtio_blk_config`, up to `write_zeroes_may_unmap` and its padding.
const SIZE: usize = 60;
/// Offset of `writeback`, the one field that a driver writes.
pub const WRITEBACK: u64 = 32;

/// What the fields say beyond the disk's geometry.
pub struct Fields<'a> {
    pub geometry: &'a Geometry,
    pub seg_max: u32,
    pub queues: u16,
    pub writeback: bool,
}

/// Reads `data.len()` bytes at `offset`. What is behind the end stays as it is.
pub fn read(fields: &Fields, offset: u64, data: &mut [u8]) {
    let bytes = bytes(fields);
    let Ok(offset) = usize::try_from(offset) else {
        return;
    };
    let there = bytes.get(offset..).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(there) {
        *to = *from;
    }
}

fn bytes(fields: &Fields) -> [u8; SIZE] {
    let geometry = fields.geometry;
    let block = geometry.block.max(SECTOR as u32);
    let physical = geometry.physical.max(block);
    let mut bytes = [0; SIZE];
    let mut put = |offset: usize, value: &[u8]| {
        for (to, from) in bytes.iter_mut().skip(offset).zip(value) {
            *to = *from;
        }
    };
    put(0, &geometry.sectors().to_le_bytes());
    put(12, &fields.seg_max.to_le_bytes());
    put(20, &block.to_le_bytes());
    // Topology: logical blocks in a physical one, as a power of two; nothing is out of alignment; least and best size in
    // logical blocks.
    let ratio = physical / block;
    put(24, &[ratio.ilog2() as u8, 0]);
    let least = u16::try_from(ratio).unwrap_or(u16::MAX);
    put(26, &least.to_le_bytes());
    put(28, &(geometry.best / block).to_le_bytes());
    put(WRITEBACK as usize, &[fields.writeback.into()]);
    put(34, &fields.queues.to_le_bytes());
    let alignment = physical.max(geometry.clear_unit) / SECTOR as u32;
    if geometry.discard {
        put(36, &geometry.clear_most.to_le_bytes());
        put(40, &MOST_RANGES.to_le_bytes());
        put(44, &alignment.to_le_bytes());
    }
    if geometry.write_zeroes {
        put(48, &geometry.clear_most.to_le_bytes());
        put(52, &MOST_RANGES.to_le_bytes());
        put(56, &[1]);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let geometry = Geometry {
            bytes: 0x1_2345_6789_0000,
            block: 512,
            physical: 4096,
            best: 65536,
            clear_unit: 0,
            clear_most: 1 << 17,
            discard: true,
            write_zeroes: true,
        };
        let fields = Fields {
            geometry: &geometry,
            seg_max: 254,
            queues: 3,
            writeback: true,
        };
        let read = |offset, len| {
            let mut data = vec![0; len];
            super::read(&fields, offset, &mut data);
            data.iter()
                .rev()
                .fold(0_u64, |all, byte| all << 8 | u64::from(*byte))
        };
        assert_eq!(read(0, 8), 0x1_2345_6789_0000 / 512);
        assert_eq!(read(8, 4), 0, "no size_max");
        assert_eq!(read(12, 4), 254);
        assert_eq!(read(20, 4), 512);
        assert_eq!((read(24, 1), read(25, 1), read(26, 2)), (3, 0, 8));
        assert_eq!(read(28, 4), 128);
        assert_eq!((read(32, 1), read(34, 2)), (1, 3));
        assert_eq!(read(36, 4), 1 << 17);
        assert_eq!((read(40, 4), read(44, 4)), (16, 8));
        assert_eq!((read(48, 4), read(52, 4), read(56, 1)), (1 << 17, 16, 1));
        // Behind the end, and across it.
        assert_eq!(read(60, 8), 0);
        assert_eq!(read(u64::MAX, 8), 0);
        assert_eq!(read(56, 8), 1);
    }
}
