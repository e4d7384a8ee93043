//! vmlinux files around guest code of a few bytes.

/// Where a micro-guest's code is.
pub const CODE: u64 = 0x10_0000;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PAGE: usize = 4096;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const PVH_ENTRY: u32 = 18;

/// An ELF64 kernel.
#[derive(Clone, Debug)]
pub struct Elf {
    segments: Vec<Segment>,
    /// Whether file offsets agree with addresses in a page, so that the file can be mapped.
    pub aligned: bool,
    /// Whether there is a PVH note, with the entry point.
    pub pvh: bool,
}

/// A `PT_LOAD` segment.
#[derive(Clone, Debug)]
struct Segment {
    address: u64,
    bytes: Vec<u8>,
    memory: u64,
}

impl Elf {
    /// A kernel of one segment, entered at its start, [`CODE`].
    pub fn new(code: &[u8]) -> Self {
        let elf = Self {
            segments: Vec::new(),
            aligned: true,
            pvh: false,
        };
        elf.segment(CODE, code, code.len() as u64)
    }

    /// One more segment: `bytes`, then zeroes up to `memory` bytes.
    #[must_use]
    pub fn segment(mut self, address: u64, bytes: &[u8], memory: u64) -> Self {
        self.segments.push(Segment {
            address,
            bytes: bytes.to_vec(),
            memory,
        });
        self
    }

    /// With a PVH note.
    #[must_use]
    pub fn pvh(mut self) -> Self {
        self.pvh = true;
        self
    }

    /// With file offsets that do not allow mapping.
    #[must_use]
    pub fn unaligned(mut self) -> Self {
        self.aligned = false;
        self
    }

    /// The file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let note = self.pvh.then(|| {
            let entry = (CODE as u32).to_le_bytes();
            let words = [4, 4, PVH_ENTRY].map(u32::to_le_bytes).concat();
            [&words, &b"Xen\0"[..], &entry].concat()
        });
        let count = self.segments.len() + usize::from(self.pvh);
        let mut body = vec![0; HEADER + PROGRAM_HEADER * count];
        let mut table = Vec::new();
        if let Some(note) = &note {
            table.extend(program_header(
                PT_NOTE,
                body.len(),
                0,
                note.len(),
                note.len() as u64,
            ));
            body.extend(note);
        }
        for segment in &self.segments {
            let in_page = segment.address as usize % PAGE;
            let start = body.len().next_multiple_of(PAGE) + in_page;
            body.resize(start + if self.aligned { 0 } else { 8 }, 0xcc);
            table.extend(program_header(
                PT_LOAD,
                body.len(),
                segment.address,
                segment.bytes.len(),
                segment.memory,
            ));
            body.extend(&segment.bytes);
        }
        // Whole pages can be mapped only while the file has them.
        body.resize(body.len().next_multiple_of(PAGE), 0xcc);
        body[..HEADER].copy_from_slice(&header(count));
        body[HEADER..HEADER + table.len()].copy_from_slice(&table);
        body
    }
}

fn header(count: usize) -> Vec<u8> {
    // Magic, 64-bit, little-endian, version 1; executable, x86-64, version 1.
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    header.extend([2_u16, 62].map(u16::to_le_bytes).concat());
    header.extend(1_u32.to_le_bytes());
    header.extend([CODE, HEADER as u64, 0].map(u64::to_le_bytes).concat());
    header.extend(0_u32.to_le_bytes());
    header.extend(
        [HEADER, PROGRAM_HEADER, count, 0, 0, 0]
            .map(|value| (value as u16).to_le_bytes())
            .concat(),
    );
    header
}

fn program_header(kind: u32, offset: usize, address: u64, in_file: usize, memory: u64) -> Vec<u8> {
    // Readable, writable and executable.
    let mut header = [kind, 7].map(u32::to_le_bytes).concat();
    let (offset, in_file) = (offset as u64, in_file as u64);
    // The note is read at multiples of 4; a load segment has no demand on its alignment that a loader would keep.
    header.extend(
        [offset, address, address, in_file, memory, 4]
            .map(u64::to_le_bytes)
            .concat(),
    );
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn offsets_agree_with_addresses_only_if_asked_to() {
        let elf = Elf::new(&[0x90; 5000]).segment(0x20_0123, b"data", 9000);
        for (elf, agree) in [(elf.clone(), true), (elf.unaligned(), false)] {
            let bytes = elf.to_bytes();
            assert_eq!((HEADER, bytes[4]), (u64_at(&bytes, 32) as usize, 2));
            for index in 0..2 {
                let at = HEADER + index * PROGRAM_HEADER;
                let (offset, address) = (u64_at(&bytes, at + 8), u64_at(&bytes, at + 24));
                assert_eq!(offset % 4096 == address % 4096, agree);
                assert!(offset as usize > HEADER + 2 * PROGRAM_HEADER);
            }
        }
    }
}
