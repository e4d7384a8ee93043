//! A buffer whose address `O_DIRECT` takes.

use std::alloc::{self, Layout};
use std::io;
use std::ptr::NonNull;

use super::super::IoVec;

/// Bytes of a buffer.
const SIZE: usize = 256 << 10;

/// An aligned buffer of 256 KiB.
pub struct Bounce {
    start: NonNull<u8>,
    layout: Layout,
}

impl Bounce {
    /// A buffer whose address is a multiple of `alignment`, and of a page at least.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(alignment: usize) -> io::Result<Self> {
        let layout =
            Layout::from_size_align(SIZE, alignment.max(4096)).map_err(io::Error::other)?;
        // SAFETY: the layout has a size.
        let start = unsafe { alloc::alloc_zeroed(layout) };
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, layout })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        SIZE
    }

    /// The first `len` bytes of it, for a system call.
    pub fn piece(&mut self, len: usize) -> IoVec {
        IoVec(libc::iovec {
            iov_base: self.start.as_ptr().cast(),
            iov_len: len.min(SIZE),
        })
    }

    /// Copies `len` bytes, which begin `within` the buffer: from `pieces` if `inwards`, else to them. They are taken away
    /// from `pieces`. Returns how many pieces are used up.
    pub fn exchange(
        &mut self,
        inwards: bool,
        within: usize,
        len: usize,
        pieces: &mut [IoVec],
    ) -> usize {
        let within = within.min(SIZE);
        let (mut done, len) = (within, len.min(SIZE - within));
        let end = within + len;
        for piece in pieces.iter() {
            let part = piece.len().min(end - done);
            let (theirs, ours) = (piece.0.iov_base.cast::<u8>(), self.start.as_ptr());
            // SAFETY: `done + part` is not beyond the buffer. The piece is guest memory, which is mapped; the guest may
            // change it meanwhile, and then gets what it asked for. The buffer is not part of guest memory.
            unsafe {
                if inwards {
                    std::ptr::copy_nonoverlapping(theirs, ours.add(done), part);
                } else {
                    std::ptr::copy_nonoverlapping(ours.add(done), theirs, part);
                }
            }
            done += part;
        }
        super::disk::advance(pieces, len)
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout.
        unsafe { alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}
