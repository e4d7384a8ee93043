//! Shapes that no queue should have.

use super::driver::{BUFFER, Descriptor, HOLE, INDIRECT, NEXT, SIZE, TABLE, WRITE, ring};

/// What is in a queue and in an indirect table.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    pub descriptors: Vec<Descriptor>,
    pub table: Vec<Descriptor>,
    /// Heads that are available.
    pub heads: Vec<u16>,
    /// Another available index than their number.
    pub index: Option<u16>,
    /// Whether every device must say that it needs a reset.
    pub hopeless: bool,
}

/// All of them, for a queue of a device whose registers are at `registers`.
pub fn all(queue: u16, registers: u64) -> Vec<Shape> {
    let one = |address, len, flags, next| Shape {
        descriptors: vec![Descriptor(address, len, flags, next)],
        heads: vec![0],
        hopeless: true,
        ..Shape::default()
    };
    let table = |len, table: Vec<Descriptor>| Shape {
        table,
        ..one(TABLE, len, INDIRECT, 0)
    };
    let fine = Descriptor(BUFFER, 64, 0, 0);
    let mut shapes = vec![
        // A loop; next, head and index out of range.
        one(BUFFER, 16, NEXT, 0),
        one(BUFFER, 16, NEXT | WRITE, 0),
        one(BUFFER, 16, NEXT, SIZE),
        one(BUFFER, 16, NEXT, u16::MAX),
        Shape {
            heads: vec![SIZE],
            ..one(BUFFER, 16, 0, 0)
        },
        Shape {
            heads: vec![u16::MAX],
            ..one(BUFFER, 16, 0, 0)
        },
        Shape {
            index: Some(SIZE + 1),
            ..one(BUFFER, 16, 0, 0)
        },
        Shape {
            index: Some(u16::MAX),
            ..one(BUFFER, 16, 0, 0)
        },
        // Not in memory: a hole, registers, the end of memory, the end of all addresses.
        one(HOLE, 16, 0, 0),
        one(HOLE, 16, WRITE, 0),
        one(registers, 16, WRITE, 0),
        one(0xff_fff8, 16, WRITE, 0),
        one(u64::MAX - 7, 16, 0, 0),
        one(u64::MAX, 1, WRITE, 0),
        // 4 GiB, and twice that.
        one(BUFFER, u32::MAX, WRITE, 0),
        one(BUFFER, u32::MAX, 0, 0),
        one(0, u32::MAX, WRITE, 0),
        Shape {
            descriptors: vec![
                Descriptor(BUFFER, u32::MAX, NEXT | WRITE, 1),
                Descriptor(BUFFER, u32::MAX, WRITE, 0),
            ],
            ..one(0, 0, 0, 0)
        },
        // Readable behind writable.
        Shape {
            descriptors: vec![Descriptor(BUFFER, 16, NEXT | WRITE, 1), fine],
            ..one(0, 0, 0, 0)
        },
        // Indirect: in itself, in another, empty, odd, nowhere, of 4 GiB, without an end, longer than the queue.
        one(ring(queue), 16, INDIRECT, 0),
        table(16, vec![Descriptor(TABLE, 16, INDIRECT, 0)]),
        table(
            32,
            vec![
                Descriptor(BUFFER, 16, NEXT, 1),
                Descriptor(TABLE, 32, INDIRECT, 0),
            ],
        ),
        table(0, vec![fine]),
        table(17, vec![fine]),
        one(HOLE, 16, INDIRECT, 0),
        one(TABLE, 0xffff_fff0, INDIRECT, 0),
        table(16, vec![Descriptor(BUFFER, 16, NEXT, 1)]),
        table(
            16 * (u32::from(SIZE) + 2),
            (0..SIZE + 2)
                .map(|index| Descriptor(BUFFER, 1, if index <= SIZE { NEXT } else { 0 }, index + 1))
                .collect(),
        ),
        one(TABLE, 16, INDIRECT | NEXT | WRITE, 0),
    ];
    // What may be strange, or wrong for the device alone: it may do as it likes.
    let mut odd = vec![
        one(BUFFER, 0, 0, 0),
        one(BUFFER, 0, WRITE, 0),
        one(HOLE, 0, WRITE, 0),
        one(BUFFER, 1, 0, 0),
        one(BUFFER, 1, WRITE, 0),
        one(BUFFER, 0x40_0000, WRITE, 0),
        one(BUFFER, 0x40_0000, 0, 0),
        one(BUFFER, 16, 0xfff8, 0),
        // The ring itself.
        one(ring(queue) + 0x400, 0x40, WRITE, 0),
        one(ring(queue), 0x500, WRITE, 0),
        // The same buffer over and over.
        Shape {
            heads: vec![0; SIZE.into()],
            ..one(BUFFER, 64, WRITE, 0)
        },
        Shape {
            heads: vec![0; SIZE.into()],
            ..one(BUFFER, 64, 0, 0)
        },
        Shape {
            descriptors: (0..SIZE)
                .map(|index| {
                    let more = if index + 1 < SIZE { NEXT } else { 0 };
                    Descriptor(BUFFER, u32::from(index & 1), more, index + 1)
                })
                .collect(),
            ..one(0, 0, 0, 0)
        },
    ];
    for shape in &mut odd {
        shape.hopeless = false;
    }
    shapes.append(&mut odd);
    shapes
}
