//! A file that is read into guest memory by mapping it there.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

use crate::memory::{self, PAGE_SIZE};

/// How the bytes of a file get into guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Whole pages are mapped copy-on-write where file offset and address agree; the rest is copied.
    Map,
    /// Everything is copied: memory of huge pages cannot have small mappings in it.
    Copy,
}

/// A file as linux-loader's loaders read it, whose volatile reads *map* into guest memory.
///
/// Copying a kernel is most of what a VMM does at start-up. Mapped `MAP_PRIVATE`, its pages are the host's page
/// cache until the guest writes to them: nothing is copied, and VMs share them. The loaders stay the ones of
/// the library, with their checks; only the last step, bytes into memory, is another here.
///
/// The file must stay as it is while guests run from it: what is changed in place may show in them, and what is cut off is gone
/// (the vCPU is lost then). Package managers replace files by renaming, which is safe; entries of the kernel cache never
/// change.
#[derive(Debug)]
pub struct Image {
    file: File,
    len: u64,
    placement: Placement,
    mapped: u64,
}

impl Image {
    /// Takes an open file.
    ///
    /// # Errors
    /// The length of the file cannot be had.
    pub fn new(file: File, placement: Placement) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self {
            file,
            len,
            placement,
            mapped: 0,
        })
    }

    /// Length in bytes when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Bytes that were mapped rather than copied so far.
    pub fn mapped(&self) -> u64 {
        self.mapped
    }

    /// Maps the whole pages at the start of `buf` from `position` in the file.
    ///
    /// Returns how many bytes that were: 0 where they cannot be mapped.
    fn map_pages<B: BitmapSlice>(&mut self, position: u64, buf: &VolatileSlice<B>) -> u64 {
        let guard = buf.ptr_guard_mut();
        let address = guard.as_ptr();
        // A page beyond the end of the file would be SIGBUS when touched.
        let available = (buf.len() as u64).min(self.len.saturating_sub(position));
        let bytes = available - available % PAGE_SIZE;
        let aligned =
            (address as u64).is_multiple_of(PAGE_SIZE) && position.is_multiple_of(PAGE_SIZE);
        let (Ok(offset), true) = (libc::off_t::try_from(position), aligned && bytes > 0) else {
            return 0;
        };
        // SAFETY: `buf` is `bytes` or more of guest memory, which is ours, page-aligned, and not yet seen by
        // a guest; replacing its anonymous pages by private file pages keeps the address range mapped with
        // the same protection. Guest memory is only ever accessed as volatile, so no reference is invalidated.
        let mapped = unsafe {
            libc::mmap(
                address.cast(),
                bytes as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                self.file.as_raw_fd(),
                offset,
            )
        };
        if mapped == libc::MAP_FAILED {
            // A file system without mappings; reading works everywhere.
            return 0;
        }
        memory::keep_out_of_dumps(address, bytes as usize);
        self.mapped += bytes;
        bytes
    }
}

impl Read for Image {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf)
    }
}

impl Seek for Image {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

impl ReadVolatile for Image {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buf: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let mut done = 0;
        if self.placement == Placement::Map {
            let position = self
                .file
                .stream_position()
                .map_err(VolatileMemoryError::IOError)?;
            let mapped = self.map_pages(position, buf);
            self.file
                .seek(SeekFrom::Start(position + mapped))
                .map_err(VolatileMemoryError::IOError)?;
            done = mapped as usize;
        }
        // linux-loader takes one short read for the end of the file, so a read is always completed here.
        while done < buf.len() {
            match self.file.read_volatile(&mut buf.offset(done)?) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(VolatileMemoryError::IOError(error))
                    if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HugePages;
    use std::io::Write;
    use vm_memory::{Bytes, GuestAddress};

    fn image(len: usize, placement: Placement) -> (Image, Vec<u8>) {
        let bytes: Vec<u8> = (0..len).map(|i| (i / 7) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (Image::new(file, placement).unwrap(), bytes)
    }

    /// Loads `count` bytes from `from` in a file of `len` to `at`; checks what arrived and tells what was mapped.
    fn load(len: usize, placement: Placement, from: u64, at: u64, count: usize) -> u64 {
        let memory = memory::allocate(16 << 20, HugePages::None).unwrap();
        let (mut image, bytes) = image(len, placement);
        image.seek(SeekFrom::Start(from)).unwrap();
        memory
            .read_exact_volatile_from(GuestAddress(at), &mut image, count)
            .unwrap();
        let mut seen = vec![0; count + 8];
        memory.read_slice(&mut seen, GuestAddress(at)).unwrap();
        let from = from as usize;
        assert_eq!(seen[..count], bytes[from..from + count]);
        assert_eq!(seen[count..], [0; 8], "nothing beyond the end is touched");
        // The file stays as it was, and the memory is writable.
        memory.write_obj(0xaau8, GuestAddress(at)).unwrap();
        let mut first = [0];
        image.seek(SeekFrom::Start(from as u64)).unwrap();
        image.read_exact(&mut first).unwrap();
        assert_eq!(first[0], bytes[from]);
        image.mapped()
    }

    #[test]
    fn whole_pages_are_mapped_and_the_tail_is_copied() {
        assert_eq!(load(10_000, Placement::Map, 0, 0x10_0000, 10_000), 8192);
        assert_eq!(load(10_000, Placement::Map, 4096, 0x10_1000, 5_000), 4096);
        assert_eq!(load(8192, Placement::Map, 0, 0x10_0000, 8192), 8192);
    }

    #[test]
    fn what_is_not_aligned_is_copied() {
        assert_eq!(load(10_000, Placement::Map, 16, 0x10_0000, 9_000), 0);
        assert_eq!(load(10_000, Placement::Map, 0, 0x10_0010, 9_000), 0);
        assert_eq!(load(10_000, Placement::Map, 0, 0x10_0000, 4_095), 0);
        assert_eq!(load(10_000, Placement::Copy, 0, 0x10_0000, 10_000), 0);
    }

    #[test]
    fn beyond_the_end_of_the_file_is_an_error_and_no_sigbus() {
        let memory = memory::allocate(16 << 20, HugePages::None).unwrap();
        let (mut image, _) = image(5_000, Placement::Map);
        let result = memory.read_exact_volatile_from(GuestAddress(0x10_0000), &mut image, 20_000);
        assert!(result.is_err());
        let mut seen = vec![0; 20_000];
        memory
            .read_slice(&mut seen, GuestAddress(0x10_0000))
            .unwrap();
    }
}
