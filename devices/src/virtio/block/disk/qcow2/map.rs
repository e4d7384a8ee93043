//! Where a cluster of the disk is: L1 and L2 tables ("Cluster mapping").

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::Header;
use super::refcounts::{Refcounts, damaged};
use super::safety::Safety;
use super::slices::{Slices, read_zero_filled};

/// Bit of L1 and L2 entries: the refcount is 1, so it may be written in place.
pub const COPIED: u64 = 1 << 63;
/// Bit of L2 entries: compressed.
const COMPRESSED: u64 = 1 << 62;
/// Bit of L2 entries from version 3 on: the cluster reads as zeros.
pub const ZERO: u64 = 1;
/// The place in the file, in L1 and L2 entries.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Slices of L2 tables that are kept: 256 KiB, for 2 GiB of the disk where clusters have 64 KiB.
const SLICES: usize = 64;
/// Entries that wait for the next flush, at most.
const MOST_WAITING: usize = 4096;

/// What an L2 entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// The image has nothing of it: it is as in the backing file.
    Nothing,
    /// Zeros. It may have a place, and that may be its own.
    Zero { host: Option<u64>, owned: bool },
    /// It is at `host`, and may be written there if it is `owned`.
    Data { host: u64, owned: bool },
    /// It is compressed, in `len` bytes at most.
    Compressed { at: u64, len: u64 },
}

/// The tables of an image.
pub struct Map {
    header: Header,
    l1: Vec<u64>,
    slices: Slices,
    /// If the image may be written.
    refcounts: Option<Refcounts>,
    /// Whether the order on the disk is kept.
    barriers: bool,
    /// Entries that take effect on the disk with the next flush, and here at once.
    waiting: BTreeMap<u64, u64>,
    /// Clusters to be freed when the tables on the disk name them no more.
    unused: Vec<u64>,
    /// Bytes that the file has, at least.
    known_len: u64,
}

impl Map {
    /// Reads the L1 table.
    ///
    /// # Errors
    /// What the host said.
    pub fn new(file: &File, header: &Header, writable: bool, barriers: bool) -> io::Result<Self> {
        let len = header.l1_entries as usize * 8;
        let bytes = read_zero_filled(file, header.l1_offset, len)?;
        let (entries, _) = bytes.as_chunks();
        let l1 = entries.iter().map(|entry| u64::from_be_bytes(*entry));
        let refcounts = writable.then(|| Refcounts::new(file, header, barriers));
        Ok(Self {
            header: *header,
            l1: l1.collect(),
            slices: Slices::new(SLICES, header.cluster()),
            refcounts: refcounts.transpose()?,
            barriers,
            waiting: BTreeMap::new(),
            unused: Vec::new(),
            known_len: 0,
        })
    }

    fn refcounts(&mut self) -> io::Result<&mut Refcounts> {
        let read_only = || io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
        self.refcounts.as_mut().ok_or_else(read_only)
    }

    /// Whether what is written gets to the disk.
    ///
    /// # Errors
    /// The image is only read.
    pub fn safety(&mut self) -> io::Result<&mut Safety> {
        Ok(&mut self.refcounts()?.safety)
    }

    /// A new cluster of zeros for a cluster of the disk. If its table is new too, that comes first, so that clusters that
    /// are next to each other on the disk are so in the file.
    ///
    /// # Errors
    /// There is none to be had.
    pub fn allocate_for(&mut self, file: &File, cluster: u64) -> io::Result<u64> {
        self.table(file, cluster)?;
        self.allocate(file)
    }

    fn allocate(&mut self, file: &File) -> io::Result<u64> {
        self.refcounts()?.allocate(file)
    }

    /// Whether the file has all bytes before `end`.
    pub fn covers(&mut self, file: &File, end: u64) -> bool {
        if end > self.known_len {
            self.known_len = file.metadata().map_or(0, |data| data.len());
        }
        end <= self.known_len
    }

    /// The entry of a cluster in the L1 table: its number and value.
    fn l1_entry(&self, cluster: u64) -> io::Result<(u64, u64)> {
        let number = cluster / self.header.l2_entries();
        let entry = usize::try_from(number).ok();
        let entry = entry.and_then(|number| self.l1.get(number)).copied();
        Ok((number, entry.ok_or_else(|| damaged("beyond the L1 table"))?))
    }

    /// Place of an entry in the L2 table that an L1 entry names.
    fn l2_place(&self, l1_entry: u64, cluster: u64) -> io::Result<u64> {
        let table = l1_entry & OFFSET;
        if !table.is_multiple_of(self.header.cluster()) {
            return Err(damaged("an L2 table's place"));
        }
        Ok(table + 8 * (cluster % self.header.l2_entries()))
    }

    /// The L2 entry of a cluster of the disk.
    ///
    /// # Errors
    /// What the host said, or the tables are damaged.
    pub fn entry(&mut self, file: &File, cluster: u64) -> io::Result<u64> {
        if let Some(entry) = self.waiting.get(&cluster) {
            return Ok(*entry);
        }
        let (_, l1_entry) = self.l1_entry(cluster)?;
        if l1_entry & OFFSET == 0 {
            return Ok(0);
        }
        let at = self.l2_place(l1_entry, cluster)?;
        Ok(u64::from_be_bytes(self.slices.read(file, at)?))
    }

    /// What an entry says.
    ///
    /// # Errors
    /// It says nothing that can be.
    pub fn decode(&self, entry: u64) -> io::Result<Cluster> {
        if entry & COMPRESSED != 0 {
            // The place takes the lower bits, the number of further sectors those above.
            let bits = 62 - (self.header.cluster_bits - 8);
            let at = entry & ((1 << bits) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> bits;
            let len = (sectors + 1) * 512 - at % 512;
            return Ok(Cluster::Compressed { at, len });
        }
        let host = entry & OFFSET;
        if !host.is_multiple_of(self.header.cluster()) {
            return Err(damaged("a cluster's place"));
        }
        let zero = self.header.version == 3 && entry & ZERO != 0;
        let owned = entry & COPIED != 0;
        Ok(match (zero, host) {
            (true, host) => Cluster::Zero {
                host: (host != 0).then_some(host),
                owned,
            },
            (false, 0) => Cluster::Nothing,
            (false, host) => Cluster::Data { host, owned },
        })
    }

    /// Sets the entry of a cluster, in the file.
    ///
    /// # Errors
    /// What the host said; there is no room for a table.
    pub fn set(&mut self, file: &File, cluster: u64, entry: u64) -> io::Result<()> {
        let table = self.table(file, cluster)?;
        let at = self.l2_place(table, cluster)?;
        self.slices.write(file, at, &entry.to_be_bytes())?;
        self.waiting.remove(&cluster);
        Ok(())
    }

    /// The L1 entry of a table that may be written.
    fn table(&mut self, file: &File, cluster: u64) -> io::Result<u64> {
        let (number, l1_entry) = self.l1_entry(cluster)?;
        if l1_entry & COPIED == 0 || l1_entry & OFFSET == 0 {
            return self.own_table(file, number, l1_entry);
        }
        Ok(l1_entry)
    }

    /// Gives an L1 entry a table that may be written: a new one, or a copy of one that a snapshot has too.
    fn own_table(&mut self, file: &File, number: u64, l1_entry: u64) -> io::Result<u64> {
        let table = self.allocate(file)?;
        let old = l1_entry & OFFSET;
        if old != 0 {
            let bytes = read_zero_filled(file, old, self.header.cluster() as usize)?;
            file.write_all_at(&bytes, table)?;
            self.refcounts()?.barrier(file)?;
        }
        self.slices.forget(table, self.header.cluster());
        let entry = table | COPIED;
        file.write_all_at(&entry.to_be_bytes(), self.header.l1_offset + 8 * number)?;
        if let Some(slot) = usize::try_from(number)
            .ok()
            .and_then(|number| self.l1.get_mut(number))
        {
            *slot = entry;
        }
        if old != 0 {
            self.unused.push(old);
        }
        Ok(entry)
    }

    /// Sets the entry of a cluster that has been copied from where `old` says: on the disk, not before the copy is there.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn replace(&mut self, file: &File, cluster: u64, old: u64, entry: u64) -> io::Result<()> {
        if !self.barriers {
            self.set(file, cluster, entry)?;
            return self.drop_later(old);
        }
        self.waiting.insert(cluster, entry);
        self.drop_later(old)?;
        if self.waiting.len() >= MOST_WAITING {
            self.commit(file)?;
        }
        Ok(())
    }

    /// Sets the entry of a cluster whose old contents are of no use any more.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn replace_now(
        &mut self,
        file: &File,
        cluster: u64,
        old: u64,
        entry: u64,
    ) -> io::Result<()> {
        self.set(file, cluster, entry)?;
        self.drop_later(old)
    }

    /// Notes the clusters that an entry has named.
    fn drop_later(&mut self, old: u64) -> io::Result<()> {
        let cluster = self.header.cluster();
        match self.decode(old)? {
            Cluster::Data { host, .. }
            | Cluster::Zero {
                host: Some(host), ..
            } => self.unused.push(host),
            Cluster::Compressed { at, len } => {
                // A place in each cluster that the stretch touches counts.
                let first = at / cluster;
                let last = (at + len - 1) / cluster;
                self.unused
                    .extend((first..=last).map(|number| number * cluster));
            }
            Cluster::Zero { host: None, .. } | Cluster::Nothing => {}
        }
        Ok(())
    }

    /// Puts the entries that wait into the file, after what they name is on the disk.
    ///
    /// # Errors
    /// What the host said; what could not be written still waits.
    pub fn commit(&mut self, file: &File) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.safety()?.sync(file)?;
        while let Some((cluster, entry)) = self.waiting.first_key_value().map(|(c, e)| (*c, *e)) {
            self.set(file, cluster, entry)?;
        }
        Ok(())
    }

    /// Frees the clusters that nothing names any more. Nothing is under way in them.
    ///
    /// # Errors
    /// What the host said.
    pub fn free(&mut self, file: &File) -> io::Result<()> {
        if self.unused.is_empty() {
            return Ok(());
        }
        self.commit(file)?;
        self.refcounts()?.barrier(file)?;
        let unused = std::mem::take(&mut self.unused);
        let refcounts = self.refcounts()?;
        unused
            .into_iter()
            .try_for_each(|offset| refcounts.release(file, offset))
    }

    /// Leaves the file as it should be found.
    ///
    /// # Errors
    /// What the host said.
    pub fn close(&mut self, file: &File) -> io::Result<()> {
        if self.refcounts.is_none() {
            return Ok(());
        }
        self.safety()?.check()?;
        self.commit(file)?;
        self.free(file)?;
        self.refcounts()?.close(file)?;
        self.refcounts()?.barrier(file)
    }
}
