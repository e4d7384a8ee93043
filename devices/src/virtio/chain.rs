//! What is in a chain's buffers, wherever the driver has cut them: bytes in order, and host memory for system calls.

use vm_memory::{Bytes, GuestMemory, Permissions};

use super::{Broken, Buffer, Memory};

/// A buffer that is not in memory. [`Ring::pop`](super::Ring::pop) has checked all of them.
const NOT_THERE: Broken = Broken("a buffer is not in memory");

/// Splits a chain in what the device reads and what it writes (2.7.4.2: readable buffers come first).
pub fn split<'a>(memory: &'a Memory, buffers: &'a [Buffer]) -> (Cursor<'a>, Cursor<'a>) {
    let middle = buffers.partition_point(|buffer| !buffer.writable);
    let (readable, writable) = buffers.split_at(middle);
    (Cursor::new(memory, readable), Cursor::new(memory, writable))
}

/// A stretch of a chain: bytes that were not taken yet, in order.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    memory: &'a Memory,
    buffers: &'a [Buffer],
    /// Bytes of the first buffer that are taken.
    taken: u32,
    /// Bytes that are left.
    left: u64,
}

/// Host memory of a piece of a chain, as `readv(2)` and its kin take it (`struct iovec`).
///
/// It is valid for as long as the [`Memory`] that it is from is there.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct IoVec(pub libc::iovec);

// SAFETY: an address and a length; whoever uses them has to see to the memory.
unsafe impl Send for IoVec {}

impl IoVec {
    /// Bytes.
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> Cursor<'a> {
    /// All of `buffers`.
    pub fn new(memory: &'a Memory, buffers: &'a [Buffer]) -> Self {
        let left = buffers.iter().map(|buffer| u64::from(buffer.len)).sum();
        Self {
            memory,
            buffers,
            taken: 0,
            left,
        }
    }

    /// Bytes that are left: up to 4 GiB for each buffer.
    pub fn len(&self) -> u64 {
        self.left
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Takes the next piece that is in one buffer, of `most` bytes at most.
    pub(super) fn next(&mut self, most: u64) -> Option<(vm_memory::GuestAddress, usize)> {
        let most = most.min(self.left);
        if most == 0 {
            return None;
        }
        while let Some((first, rest)) = self.buffers.split_first() {
            let here = u64::from(first.len.saturating_sub(self.taken)).min(most);
            if here == 0 {
                (self.buffers, self.taken) = (rest, 0);
                continue;
            }
            // The buffer is in memory, so its addresses do not overflow.
            let at = first.address.0.wrapping_add(self.taken.into());
            self.taken += here as u32;
            self.left -= here;
            return Some((vm_memory::GuestAddress(at), here as usize));
        }
        None
    }

    /// Takes the next bytes, as many as `bytes` holds.
    ///
    /// # Errors
    /// [`Broken`]: there are not as many. What is in `bytes` is of no use then.
    pub fn read(&mut self, bytes: &mut [u8]) -> Result<(), Broken> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (at, len) = self.next(rest.len() as u64).ok_or(TOO_SHORT)?;
            let (piece, later) = rest.split_at_mut(len.min(rest.len()));
            self.memory.read_slice(piece, at).map_err(|_| NOT_THERE)?;
            rest = later;
        }
        Ok(())
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// [`Broken`]: there is not as much room.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (at, len) = self.next(rest.len() as u64).ok_or(TOO_SHORT)?;
            let (piece, later) = rest.split_at(len.min(rest.len()));
            self.memory.write_slice(piece, at).map_err(|_| NOT_THERE)?;
            rest = later;
        }
        Ok(())
    }

    /// Leaves the next bytes out: `count` of them, or all where there are fewer.
    pub fn skip(&mut self, count: u64) {
        let mut left = count;
        while let Some((_, len)) = self.next(left) {
            left -= len as u64;
        }
    }

    /// The next bytes as a stretch of their own: `count` of them, or all where there are fewer.
    #[must_use]
    pub fn take(&mut self, count: u64) -> Self {
        let piece = Self {
            left: self.left.min(count),
            ..self.clone()
        };
        self.skip(count);
        piece
    }

    /// Takes the last bytes away, as a stretch of their own: `count` of them, or all where there are fewer.
    #[must_use]
    pub fn take_last(&mut self, count: u64) -> Self {
        let mut rest = self.clone();
        let before = self.left.saturating_sub(count);
        rest.skip(before);
        self.left = before;
        rest
    }

    /// Appends the host memory of what is left to `pieces`, which is not cleared. Buffers of no bytes are left out.
    ///
    /// # Errors
    /// [`Broken`]: it is not in memory.
    pub fn io_vecs(&self, pieces: &mut Vec<IoVec>) -> Result<(), Broken> {
        let mut rest = self.clone();
        while let Some((at, len)) = rest.next(u64::MAX) {
            // Access was checked for each buffer as a whole; here it is about host addresses. A buffer may lie in two regions.
            let slices = self.memory.get_slices(at, len, Permissions::No);
            for slice in slices.map_err(|_| NOT_THERE)? {
                let slice = slice.map_err(|_| NOT_THERE)?;
                pieces.push(IoVec(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                }));
            }
        }
        Ok(())
    }
}

const TOO_SHORT: Broken = Broken("a request is shorter than its header says");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::GuestAddress;

    use super::super::testing::memory;
    use super::*;

    fn buffer(address: u64, len: u32, writable: bool) -> Buffer {
        Buffer {
            address: GuestAddress(address),
            len,
            writable,
        }
    }

    #[test]
    fn a_chain_is_split_where_writable_buffers_begin() {
        let memory = memory();
        let buffers = [
            buffer(0x1000, 3, false),
            buffer(0x2000, 0, false),
            buffer(0x3000, 5, true),
        ];
        let (readable, mut writable) = split(&memory, &buffers);
        assert_eq!((readable.len(), writable.len()), (3, 5));
        let last = writable.take_last(1);
        assert_eq!((writable.len(), last.len()), (4, 1));
        assert!(split(&memory, &[]).0.is_empty());
    }

    #[test]
    fn what_is_too_short_says_so() {
        let memory = memory();
        let buffers = [buffer(0x1000, 3, false)];
        let mut cursor = Cursor::new(&memory, &buffers);
        assert_eq!(cursor.read(&mut [0; 4]), Err(TOO_SHORT));
        let mut cursor = Cursor::new(&memory, &buffers);
        assert_eq!(cursor.write(&[0; 4]), Err(TOO_SHORT));
        assert!(cursor.take(9).is_empty());
    }

    #[test]
    fn a_buffer_that_lies_in_two_regions_has_two_pieces() {
        let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
        let memory = Memory::from_ranges(&ranges).unwrap();
        let buffers = [buffer(0xff0, 0x20, true)];
        let mut pieces = Vec::new();
        Cursor::new(&memory, &buffers).io_vecs(&mut pieces).unwrap();
        let lengths: Vec<_> = pieces.iter().map(IoVec::len).collect();
        assert_eq!(lengths, [0x10, 0x10]);
        // Gigabytes from a guest are lengths, never allocations.
        let huge = [buffer(0, u32::MAX, true), buffer(0, u32::MAX, true)];
        let mut cursor = Cursor::new(&memory, &huge);
        assert_eq!(cursor.len(), 2 * u64::from(u32::MAX));
        assert!(cursor.io_vecs(&mut pieces).is_err());
        cursor.skip(u64::MAX);
        assert!(cursor.is_empty());
    }

    proptest! {
        /// However bytes are cut into buffers, what is written comes back in order.
        #[test]
        fn cuts_do_not_matter(
            lengths in prop::collection::vec(0_u32..40, 1..12),
            cuts in prop::collection::vec(0_usize..50, 1..12),
        ) {
            let memory = memory();
            let buffers: Vec<_> = lengths.iter().enumerate()
                .map(|(index, len)| buffer(0x1000 * (index as u64 + 1), *len, true))
                .collect();
            let total: usize = lengths.iter().map(|len| *len as usize).sum();
            let bytes: Vec<u8> = (0..total).map(|index| index as u8).collect();
            let mut writer = Cursor::new(&memory, &buffers);
            let mut reader = writer.clone();
            let mut rest = bytes.as_slice();
            for cut in cuts {
                let (piece, later) = rest.split_at(cut.min(rest.len()));
                writer.write(piece).unwrap();
                rest = later;
            }
            writer.write(rest).unwrap();
            prop_assert!(writer.is_empty());
            let mut pieces = Vec::new();
            reader.io_vecs(&mut pieces).unwrap();
            prop_assert_eq!(pieces.iter().map(IoVec::len).sum::<usize>(), total);
            let tail = reader.take_last(total as u64 / 3).len() as usize;
            let mut got = vec![0; total - tail];
            reader.read(&mut got).unwrap();
            prop_assert_eq!(&got[..], &bytes[..total - tail]);
        }
    }
}
