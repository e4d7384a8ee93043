//! Tables of an image, read and written in small slices that are kept in memory. Every write goes to the file at once:
//! what the kernel has of it outlives this process, however that ends.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Most bytes of a slice; a table in a smaller cluster has smaller ones.
const MOST_BYTES: u64 = 4096;

/// A slice of a table.
struct Slice {
    at: u64,
    bytes: Vec<u8>,
}

/// Slices of tables, by their place in the file.
pub struct Slices {
    size: u64,
    slots: Vec<Option<Slice>>,
}

impl Slices {
    /// Keeps `count` slices, for clusters of that size.
    pub fn new(count: usize, cluster: u64) -> Self {
        let mut slots = Vec::new();
        slots.resize_with(count.max(1), || None);
        Self {
            size: cluster.min(MOST_BYTES),
            slots,
        }
    }

    fn slot(&mut self, at: u64) -> Option<&mut Option<Slice>> {
        let index = (at / self.size) as usize % self.slots.len();
        self.slots.get_mut(index)
    }

    /// Reads `N` bytes, which are in one slice. What is behind the end of the file is zero.
    ///
    /// # Errors
    /// What the host said.
    pub fn read<const N: usize>(&mut self, file: &File, at: u64) -> io::Result<[u8; N]> {
        let size = self.size;
        let start = at - at % size;
        let within = (at - start) as usize;
        let missing = || io::Error::other("a table entry is not in one slice");
        let slot = self.slot(start).ok_or_else(missing)?;
        let slice = match slot {
            Some(slice) if slice.at == start => slice,
            slot => {
                let bytes = read_zero_filled(file, start, size as usize)?;
                slot.insert(Slice { at: start, bytes })
            }
        };
        let field = slice.bytes.get(within..within + N);
        field
            .and_then(|field| field.try_into().ok())
            .ok_or_else(missing)
    }

    /// Writes bytes that are in one slice.
    ///
    /// # Errors
    /// What the host said.
    pub fn write(&mut self, file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
        file.write_all_at(bytes, at)?;
        let start = at - at % self.size;
        if let Some(Some(slice)) = self.slot(start)
            && slice.at == start
        {
            let there = slice.bytes.iter_mut().skip((at - start) as usize);
            for (to, from) in there.zip(bytes) {
                *to = *from;
            }
        }
        Ok(())
    }

    /// Forgets what it has of a stretch of the file.
    pub fn forget(&mut self, at: u64, len: u64) {
        let end = at.saturating_add(len);
        for slot in &mut self.slots {
            slot.take_if(|slice| at <= slice.at && slice.at < end);
        }
    }
}

/// Reads `len` bytes, zeros for what is behind the end of the file.
///
/// # Errors
/// What the host said.
pub fn read_zero_filled(file: &File, at: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}
