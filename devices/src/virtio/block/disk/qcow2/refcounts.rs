//! Which clusters of the file are in use, and by how many.
//!
//! New clusters are reserved many at a time: their refcounts are raised, they are made to read as zeros, and all of that
//! is brought to the disk, before the first one is given out. So no table ever names a cluster that a refcount on the disk
//! calls free, whenever the host stops; what is lost then is reserved clusters, a leak that `qemu-img check` gives back.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::super::super::super::IoVec;
use super::super::call::{Call, Mode, transfer_all};
use super::header::Header;
use super::safety::Safety;
use super::slices::{Slices, read_zero_filled};

/// Bytes that are reserved at once, about.
const RESERVED_BYTES: u64 = 8 << 20;
/// Slices of refcount blocks that are kept.
const SLICES: usize = 8;
/// Most clusters that a file may have: offsets have 56 bits.
const OFFSET_BITS: u32 = 56;

/// The refcounts of an image that is written.
pub struct Refcounts {
    header: Header,
    /// Whether what was written is brought to the disk where the order matters.
    barriers: bool,
    /// Whether that has worked so far.
    pub safety: Safety,
    /// Where each refcount block is; 0 if it is not there.
    table: Vec<u64>,
    slices: Slices,
    /// Clusters that are ready to be given out, the first one last.
    reserved: Vec<u64>,
    /// There is no free cluster before this one.
    hint: u64,
    /// Clusters in the file, which may end within the last one.
    end: u64,
}

/// Tables that contradict each other.
pub fn damaged(what: &str) -> io::Error {
    io::Error::other(format!("the image's tables are damaged: {what}"))
}

impl Refcounts {
    /// Reads the table.
    ///
    /// # Errors
    /// What the host said.
    pub fn new(file: &File, header: &Header, barriers: bool) -> io::Result<Self> {
        let len = u64::from(header.refcount_clusters) * header.cluster();
        let bytes = read_zero_filled(file, header.refcount_offset, len as usize)?;
        let (entries, _) = bytes.as_chunks();
        let table = entries.iter().map(|entry| u64::from_be_bytes(*entry));
        Ok(Self {
            header: *header,
            barriers,
            safety: Safety::default(),
            table: table.collect(),
            slices: Slices::new(SLICES, header.cluster()),
            reserved: Vec::new(),
            hint: 0,
            end: file.metadata()?.len().div_ceil(header.cluster()),
        })
    }

    /// Brings to the disk what was written, where that matters.
    ///
    /// # Errors
    /// What the host said.
    pub fn barrier(&mut self, file: &File) -> io::Result<()> {
        if self.barriers {
            self.safety.sync(file)?;
        }
        Ok(())
    }

    /// A cluster that nobody uses, with a refcount of 1, which reads as zeros: its place in the file.
    ///
    /// # Errors
    /// There is none to be had, or the tables are damaged.
    pub fn allocate(&mut self, file: &File) -> io::Result<u64> {
        if self.reserved.is_empty() {
            self.reserve(file)?;
        }
        let cluster = self.reserved.pop();
        let cluster = cluster.ok_or_else(|| damaged("no cluster can be reserved"))?;
        Ok(cluster << self.header.cluster_bits)
    }

    /// Where the refcount of a cluster is: its block's entry in the table, the bit in the block, and the block's place.
    fn place(&self, cluster: u64) -> io::Result<(u64, u64, u64)> {
        let per_block = self.header.refcounts_per_block();
        let index = cluster / per_block;
        let bit = (cluster % per_block) << self.header.refcount_order;
        let block = usize::try_from(index).ok();
        let block = block.and_then(|block| self.table.get(block)).copied();
        let block = block.unwrap_or(0);
        if !block.is_multiple_of(self.header.cluster()) || block >> OFFSET_BITS != 0 {
            return Err(damaged("a refcount block's place"));
        }
        Ok((index, bit, block))
    }

    /// A cluster's refcount.
    fn get(&mut self, file: &File, cluster: u64) -> io::Result<u64> {
        let (_, bit, block) = self.place(cluster)?;
        if block == 0 {
            return Ok(0);
        }
        let at = block + bit / 8;
        let slices = &mut self.slices;
        Ok(match self.header.refcount_order {
            3 => slices.read::<1>(file, at)?[0].into(),
            4 => u16::from_be_bytes(slices.read(file, at)?).into(),
            5 => u32::from_be_bytes(slices.read(file, at)?).into(),
            6 => u64::from_be_bytes(slices.read(file, at)?),
            order => {
                let byte = slices.read::<1>(file, at)?[0];
                let mask = (1_u8 << (1 << order)) - 1;
                u64::from(byte >> (bit % 8) & mask)
            }
        })
    }

    /// Sets the refcount of a cluster whose block is there.
    fn set(&mut self, file: &File, cluster: u64, count: u64) -> io::Result<()> {
        let (_, bit, block) = self.place(cluster)?;
        if block == 0 {
            return Err(damaged("a refcount has no block"));
        }
        let at = block + bit / 8;
        let order = self.header.refcount_order;
        let bytes = count.to_be_bytes();
        if order >= 3 {
            let width = 1 << (order - 3);
            let field = bytes.get(8 - width..).unwrap_or_default();
            return self.slices.write(file, at, field);
        }
        let [byte] = self.slices.read(file, at)?;
        let (shift, mask) = (bit % 8, (1_u8 << (1 << order)) - 1);
        let new = byte & !(mask << shift) | (count as u8 & mask) << shift;
        self.slices.write(file, at, &[new])
    }

    /// Lets go of a cluster at `offset`. What nobody uses any more becomes a hole.
    ///
    /// # Errors
    /// What the host said, or its refcount is 0 already.
    pub fn release(&mut self, file: &File, offset: u64) -> io::Result<()> {
        let cluster = offset >> self.header.cluster_bits;
        let count = self.get(file, cluster)?;
        let left = count
            .checked_sub(1)
            .ok_or_else(|| damaged("a cluster in use has no refcount"))?;
        self.set(file, cluster, left)?;
        if left == 0 {
            self.hint = self.hint.min(cluster);
            let hole = Call::Allocate {
                fd: file.as_raw_fd(),
                mode: Mode::Punch,
                at: cluster << self.header.cluster_bits,
                len: self.header.cluster(),
            };
            // A file system without holes keeps the space.
            let _ = hole.make();
        }
        Ok(())
    }

    /// Gives back what was reserved and not used.
    ///
    /// # Errors
    /// What the host said.
    pub fn close(&mut self, file: &File) -> io::Result<()> {
        while let Some(cluster) = self.reserved.pop() {
            self.release(file, cluster << self.header.cluster_bits)?;
        }
        Ok(())
    }

    fn reserve(&mut self, file: &File) -> io::Result<()> {
        let wanted = (RESERVED_BYTES >> self.header.cluster_bits).clamp(4, 512) as usize;
        let mut found = Vec::with_capacity(wanted);
        let mut cluster = self.hint;
        // Behind the end nothing is in use, but for what tables that are damaged say.
        let most = self.end.max(cluster) + 2 * self.header.refcounts_per_block() + wanted as u64;
        while found.len() < wanted {
            if cluster > most {
                return Err(damaged("clusters behind the end are in use"));
            }
            if cluster >> (OFFSET_BITS - self.header.cluster_bits) != 0 {
                return Err(damaged("the file cannot get longer"));
            }
            let (index, _, block) = self.place(cluster)?;
            if index >= self.table.len() as u64 {
                self.grow(file, index)?;
                continue;
            }
            if block == 0 {
                self.add_block(file, index, cluster)?;
            } else if self.get(file, cluster)? == 0 {
                found.push(cluster);
            }
            cluster += 1;
        }
        self.hint = cluster;
        self.clear(file, &found)?;
        for cluster in &found {
            self.set(file, *cluster, 1)?;
        }
        self.barrier(file)?;
        found.reverse();
        self.reserved = found;
        Ok(())
    }

    /// Makes free clusters, in ascending order, part of the file, and read as zeros.
    fn clear(&mut self, file: &File, clusters: &[u64]) -> io::Result<()> {
        let bits = self.header.cluster_bits;
        let Some(last) = clusters.last() else {
            return Ok(());
        };
        for run in clusters.chunk_by(|a, b| a + 1 == *b) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else {
                continue;
            };
            // Behind the end there is nothing yet.
            let until = (last + 1).min(self.end);
            if *first < until {
                zero(file, first << bits, (until - first) << bits)?;
            }
        }
        self.reach(file, last + 1)
    }

    /// Makes the file so many clusters long, at least.
    fn reach(&mut self, file: &File, clusters: u64) -> io::Result<()> {
        let len = clusters << self.header.cluster_bits;
        if file.metadata()?.len() < len {
            file.set_len(len)?;
        }
        self.end = self.end.max(clusters);
        Ok(())
    }

    /// Makes a refcount block of a cluster that it is to have the refcount of itself.
    fn add_block(&mut self, file: &File, index: u64, cluster: u64) -> io::Result<()> {
        let place = cluster << self.header.cluster_bits;
        self.clear(file, &[cluster])?;
        self.slices.forget(place, self.header.cluster());
        let slot = usize::try_from(index).ok();
        let slot = slot.and_then(|slot| self.table.get_mut(slot));
        *slot.ok_or_else(|| damaged("a refcount block's number"))? = place;
        self.set(file, cluster, 1)?;
        self.barrier(file)?;
        file.write_all_at(
            &place.to_be_bytes(),
            self.header.refcount_offset + 8 * index,
        )
    }

    /// Makes the table long enough for block `index`, of which there is nothing yet. The new one lies behind all that is
    /// in use, with the blocks that it needs for itself behind it.
    fn grow(&mut self, file: &File, index: u64) -> io::Result<()> {
        let (cluster, bits) = (self.header.cluster(), self.header.cluster_bits);
        let per_block = self.header.refcounts_per_block();
        let first = (index * per_block).max(self.end);
        let old = self.table.len() as u64;
        // Half as much again, so that it does not happen often.
        let mut entries = (index + 1).max(old + old / 2);
        let (clusters, blocks) = loop {
            let clusters = (entries * 8).div_ceil(cluster);
            let reach = |blocks: u64| (first + clusters + blocks).div_ceil(per_block);
            let mut blocks = 0;
            while reach(blocks) - first / per_block > blocks {
                blocks += 1;
            }
            if reach(blocks) <= clusters * (cluster / 8) {
                break (clusters, blocks);
            }
            entries = reach(blocks).max(entries + 1);
        };
        if clusters << bits > 8 << 20 && clusters > 1 {
            return Err(damaged("the refcount table cannot get longer"));
        }
        let mut table = self.table.clone();
        table.resize((clusters * (cluster / 8)) as usize, 0);
        self.reach(file, first + clusters + blocks)?;
        let header = Header {
            refcount_offset: first << bits,
            refcount_clusters: clusters as u32,
            ..self.header
        };
        for number in 0..blocks {
            let place = (first + clusters + number) << bits;
            zero(file, place, cluster)?;
            self.slices.forget(place, cluster);
            let slot = (first / per_block + number) as usize;
            if let Some(slot) = table.get_mut(slot) {
                *slot = place;
            }
        }
        let (old_offset, old_clusters) =
            (self.header.refcount_offset, self.header.refcount_clusters);
        let before = (std::mem::replace(&mut self.table, table), self.header);
        self.header = header;
        let written = (first..first + clusters + blocks)
            .try_for_each(|used| self.set(file, used, 1))
            .and_then(|()| {
                let bytes: Vec<u8> = self.table.iter().flat_map(|at| at.to_be_bytes()).collect();
                file.write_all_at(&bytes, header.refcount_offset)
            })
            .and_then(|()| self.barrier(file))
            .and_then(|()| {
                // Place and length are next to each other in the header: one write changes both.
                let mut fields = header.refcount_offset.to_be_bytes().to_vec();
                fields.extend(header.refcount_clusters.to_be_bytes());
                file.write_all_at(&fields, 48)
            })
            .and_then(|()| self.barrier(file));
        if let Err(error) = written {
            (self.table, self.header) = before;
            return Err(error);
        }
        (0..u64::from(old_clusters))
            .try_for_each(|number| self.release(file, old_offset + (number << bits)))
    }
}

/// Makes a stretch of a file read as zeros.
///
/// # Errors
/// What the host said.
pub fn zero(file: &File, at: u64, len: u64) -> io::Result<()> {
    let fd = file.as_raw_fd();
    for mode in [Mode::Punch, Mode::Zero] {
        let call = Call::Allocate { fd, mode, at, len };
        if call.make().is_ok() {
            return Ok(());
        }
    }
    let page = [0_u8; 4096];
    let mut done = 0;
    while done < len {
        let part = (len - done).min(page.len() as u64);
        let piece = IoVec(libc::iovec {
            // It is only read.
            iov_base: page.as_ptr().cast_mut().cast(),
            iov_len: part as usize,
        });
        transfer_all(true, fd, at + done, &mut [piece])?;
        done += part;
    }
    Ok(())
}
