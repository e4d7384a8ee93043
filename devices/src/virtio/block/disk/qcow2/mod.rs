//! Images in QEMU's format qcow2, versions 2 and 3 (`docs/interop/qcow2.rst` in QEMU's source).
//!
//! | file        | what lives there                                                       |
//! |-------------|------------------------------------------------------------------------|
//! | [`header`]  | the header, checked                                                     |
//! | `slices`    | tables in the file, in slices that are kept in memory                    |
//! | `refcounts` | which clusters are in use; new ones                                      |
//! | `map`       | where a cluster of the disk is: L1 and L2 tables                          |
//! | `safety`    | what was written gets to the disk, or nothing more is written              |
//! | `pieces`    | lists of memory, cut and filled                                          |
//!
//! Tables are written through: what a guest's write has changed in them is in the file when the write is answered. Where
//! flushes count, the order on the disk is kept too. A cluster is reserved there before a table names it (`refcounts`);
//! and where a new cluster takes over what the guest had flushed elsewhere (a backing file, a compressed cluster, one that a
//! snapshot has too), the table names it only after its contents are there: such entries wait in memory for the next
//! flush. What nobody names any more is freed when the tables on the disk say so.
//!
//! A stretch that lies in the file as it is, in one piece, is read and written there by the engine, as are writes to
//! clusters that were nothing but zeros. All else is done here.

pub mod header;
mod map;
mod pieces;
mod refcounts;
mod safety;
mod slices;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;

use super::super::super::IoVec;
use super::super::request::{MOST_RANGE_SECTORS, SECTOR};
use super::call::transfer_all;
use super::{Clear, Disk, DiskOptions, Geometry, OpenError, Place, ask, open_again};
use header::{HEADER_BYTES, Header};
use map::{Cluster, Map};
use refcounts::{damaged, zero};
use safety::Safety;

/// Clusters of a stretch that is cleared: 64 MiB where they have 64 KiB.
const CLUSTERS_A_RANGE: u64 = 1024;

/// An image.
pub struct Qcow2 {
    file: File,
    writable: bool,
    /// Whether it is on a tmpfs.
    in_memory: bool,
    header: Header,
    geometry: Geometry,
    map: Map,
    backing: Option<Box<dyn Disk>>,
    /// The compressed cluster that was read last, by its entry.
    inflated: Option<(u64, Vec<u8>)>,
}

impl Qcow2 {
    /// Of a file that is open and locked. `backing` is what the operator has named.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn new(
        file: File,
        options: &DiskOptions,
        backing: Option<Box<dyn Disk>>,
    ) -> Result<Self, OpenError> {
        let path = &options.path;
        let refuse = |reason: String| OpenError::Image {
            path: path.clone(),
            reason,
        };
        let failed = ask("read the tables", path);
        let writable = !options.read_only;
        let start = slices::read_zero_filled(&file, 0, HEADER_BYTES).map_err(&failed)?;
        let header = Header::parse(&start, writable).map_err(|error| refuse(error.to_string()))?;
        match (&header.backing_name, &backing) {
            (Some((at, len)), None) => {
                let name = slices::read_zero_filled(&file, *at, *len as usize).map_err(&failed)?;
                let name = String::from_utf8_lossy(&name).into_owned();
                return Err(OpenError::BackingMissing {
                    path: path.clone(),
                    name,
                });
            }
            (None, Some(_)) => {
                return Err(OpenError::BackingUnknown { path: path.clone() });
            }
            _ => {}
        }
        if writable && header.autoclear {
            // What these bits stand for does not follow what is written from here on.
            file.write_all_at(&[0; 8], 88).map_err(&failed)?;
        }
        let barriers = options.flushes;
        let mut map = Map::new(&file, &header, writable, barriers).map_err(&failed)?;
        if writable {
            let own = open_again(&file, path, true)?;
            *map.safety().map_err(&failed)? = Safety::new(own);
        }
        let geometry = Geometry {
            bytes: header.size,
            block: 512,
            physical: 4096,
            best: header.cluster().min(1 << 20) as u32,
            clear_unit: header.cluster() as u32,
            clear_most: clear_most(header.cluster()),
            // An old image cannot say of a cluster that it is zero whatever the backing file has.
            discard: writable && (header.version == 3 || backing.is_none()),
            write_zeroes: writable,
        };
        Ok(Self {
            in_memory: super::is_in_memory(&file),
            file,
            writable,
            header,
            geometry,
            map,
            backing,
            inflated: None,
        })
    }

    /// # Errors
    /// The image is only read, or what was written to it got lost.
    fn may_write(&mut self) -> io::Result<()> {
        self.map.safety()?.check()
    }

    /// Number of the cluster that a byte of the disk is in, and its place there.
    fn split(&self, at: u64) -> (u64, u64) {
        (
            at >> self.header.cluster_bits,
            at & (self.header.cluster() - 1),
        )
    }

    /// Where a stretch is in the file, if that is in one piece, and not to be changed if `write` is on.
    fn contiguous(&mut self, write: bool, at: u64, len: u64) -> io::Result<Option<u64>> {
        let (first, within) = self.split(at);
        let count = (within + len).div_ceil(self.header.cluster());
        let mut start = None;
        for number in 0..count {
            let entry = self.map.entry(&self.file, first + number)?;
            let host = match self.map.decode(entry)? {
                Cluster::Data { host, owned } if owned || !write => host,
                Cluster::Nothing if write && self.reads_zero(first + number) => {
                    self.fresh(first + number)?
                }
                Cluster::Zero { host: None, .. } if write => self.fresh(first + number)?,
                _ => return Ok(None),
            };
            let begin = *start.get_or_insert(host);
            if host != begin + (number << self.header.cluster_bits) {
                return Ok(None);
            }
        }
        Ok(start.map(|host| host + within))
    }

    /// Whether a cluster that the image has nothing of is zeros.
    fn reads_zero(&self, cluster: u64) -> bool {
        let start = cluster << self.header.cluster_bits;
        self.backing
            .as_ref()
            .is_none_or(|backing| backing.geometry().bytes <= start)
    }

    /// Gives a cluster that is zeros a place in the file.
    fn fresh(&mut self, cluster: u64) -> io::Result<u64> {
        let host = self.map.allocate_for(&self.file, cluster)?;
        self.map.set(&self.file, cluster, host | map::COPIED)?;
        Ok(host)
    }

    /// Reads a part of one cluster.
    fn read_cluster(&mut self, cluster: u64, within: u64, pieces: &mut [IoVec]) -> io::Result<()> {
        let entry = self.map.entry(&self.file, cluster)?;
        let fd = self.file.as_raw_fd();
        match self.map.decode(entry)? {
            Cluster::Data { host, .. } => {
                let (at, len) = (host + within, pieces::len(pieces));
                if self.map.covers(&self.file, at + len) {
                    return transfer_all(false, fd, at, pieces);
                }
                // The file ends within the cluster: what is missing is zeros.
                let there = self.file.metadata()?.len().saturating_sub(at);
                let (mut first, mut rest) = pieces::cut(pieces, there);
                pieces::zero(&mut rest);
                transfer_all(false, fd, at, &mut first)
            }
            Cluster::Compressed { at, len } => {
                self.inflate(entry, at, len)?;
                let bytes = self.inflated.as_ref().map(|(_, bytes)| bytes.as_slice());
                let bytes = bytes.unwrap_or_default().get(within as usize..);
                pieces::fill(pieces, bytes.unwrap_or_default());
                Ok(())
            }
            Cluster::Zero { .. } => {
                pieces::zero(pieces);
                Ok(())
            }
            Cluster::Nothing => {
                self.read_backing((cluster << self.header.cluster_bits) + within, pieces)
            }
        }
    }

    /// Reads from the backing file; what is behind its end is zeros.
    fn read_backing(&mut self, at: u64, pieces: &mut [IoVec]) -> io::Result<()> {
        let Some(backing) = &mut self.backing else {
            pieces::zero(pieces);
            return Ok(());
        };
        let there = backing.geometry().bytes.saturating_sub(at);
        let (first, mut rest) = pieces::cut(pieces, there);
        pieces::zero(&mut rest);
        if first.is_empty() {
            return Ok(());
        }
        backing.transfer(false, at, &first)
    }

    /// Has a compressed cluster's contents in `inflated`.
    fn inflate(&mut self, entry: u64, at: u64, len: u64) -> io::Result<()> {
        if self
            .inflated
            .as_ref()
            .is_some_and(|(known, _)| *known == entry)
        {
            return Ok(());
        }
        let compressed = slices::read_zero_filled(&self.file, at, len as usize)?;
        let mut bytes = vec![0; self.header.cluster() as usize];
        // The stream ends by itself; behind it is what happens to be there. It may be shorter only if it is damaged.
        pieces::inflate(&compressed, &mut bytes).map_err(|()| damaged("a compressed cluster"))?;
        self.inflated = Some((entry, bytes));
        Ok(())
    }

    /// Writes a part of one cluster.
    fn write_cluster(&mut self, cluster: u64, within: u64, pieces: &mut [IoVec]) -> io::Result<()> {
        let entry = self.map.entry(&self.file, cluster)?;
        let fd = self.file.as_raw_fd();
        match self.map.decode(entry)? {
            Cluster::Data { host, owned: true } => {
                return transfer_all(true, fd, host + within, pieces);
            }
            Cluster::Zero {
                host: Some(host),
                owned: true,
            } => {
                // Its place is kept, and what is in it is not zeros.
                zero(&self.file, host, self.header.cluster())?;
                self.map.set(&self.file, cluster, host | map::COPIED)?;
                return transfer_all(true, fd, host + within, pieces);
            }
            Cluster::Zero { host: None, .. } => {
                let host = self.fresh(cluster)?;
                return transfer_all(true, fd, host + within, pieces);
            }
            Cluster::Nothing if self.reads_zero(cluster) => {
                let host = self.fresh(cluster)?;
                return transfer_all(true, fd, host + within, pieces);
            }
            Cluster::Nothing
            | Cluster::Zero { owned: false, .. }
            | Cluster::Data { owned: false, .. }
            | Cluster::Compressed { .. } => {}
        }
        // A new cluster takes over what is there, changed.
        let mut bytes = vec![0; self.header.cluster() as usize];
        self.read_cluster(cluster, 0, &mut [pieces::of(&mut bytes)])?;
        pieces::drain(pieces, bytes.get_mut(within as usize..).unwrap_or_default());
        let host = self.map.allocate_for(&self.file, cluster)?;
        self.file.write_all_at(&bytes, host)?;
        self.map
            .replace(&self.file, cluster, entry, host | map::COPIED)
    }

    /// Clears a part of a cluster, or all of it.
    fn clear_cluster(&mut self, how: Clear, cluster: u64, within: u64, len: u64) -> io::Result<()> {
        let whole = within == 0 && len == self.bytes_in(cluster);
        let entry = self.map.entry(&self.file, cluster)?;
        let found = self.map.decode(entry)?;
        if matches!(found, Cluster::Zero { .. })
            || (found == Cluster::Nothing && self.reads_zero(cluster))
        {
            return Ok(());
        }
        if !whole {
            // Half a cluster cannot be given back.
            return match how {
                Clear::Discard => Ok(()),
                _ => self.write_zeros(cluster, within, len),
            };
        }
        match (how, found) {
            (Clear::Zero, Cluster::Data { host, owned: true }) => {
                zero(&self.file, host, self.header.cluster())
            }
            _ if self.reads_zero(cluster) => self.map.replace_now(&self.file, cluster, entry, 0),
            _ if self.header.version == 3 => {
                self.map.replace_now(&self.file, cluster, entry, map::ZERO)
            }
            _ => self.write_zeros(cluster, within, len),
        }
    }

    /// Bytes of the disk that are in a cluster: fewer in the last one.
    fn bytes_in(&self, cluster: u64) -> u64 {
        let start = cluster << self.header.cluster_bits;
        self.header
            .size
            .saturating_sub(start)
            .min(self.header.cluster())
    }

    fn write_zeros(&mut self, cluster: u64, within: u64, len: u64) -> io::Result<()> {
        let mut zeros = vec![0; len as usize];
        self.write_cluster(cluster, within, &mut [pieces::of(&mut zeros)])
    }

    /// Does something with each cluster of a stretch: its number, the place in it, and bytes.
    fn each(
        &mut self,
        at: u64,
        len: u64,
        mut act: impl FnMut(&mut Self, u64, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let (mut at, end) = (at, at + len);
        while at < end {
            let (cluster, within) = self.split(at);
            let part = (self.header.cluster() - within).min(end - at);
            act(self, cluster, within, part)?;
            at += part;
        }
        Ok(())
    }
}

impl Disk for Qcow2 {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn place(&mut self, write: bool, at: u64, pieces: &[IoVec]) -> Place {
        let len = pieces::len(pieces);
        let fd = self.file.as_raw_fd();
        if write && self.may_write().is_err() {
            return Place::Inside;
        }
        // An error comes again, to be told, when the disk itself does it. So does the end of a file that ends early.
        match self.contiguous(write, at, len) {
            Ok(Some(at)) if write || self.map.covers(&self.file, at + len) => {
                Place::File { fd, at }
            }
            _ => Place::Inside,
        }
    }

    fn transfer(&mut self, write: bool, at: u64, pieces: &[IoVec]) -> io::Result<()> {
        if write {
            self.may_write()?;
        }
        let len = pieces::len(pieces);
        let mut rest = pieces.to_vec();
        self.each(at, len, |disk, cluster, within, part| {
            let (mut here, later) = pieces::cut(&rest, part);
            rest = later;
            if write {
                disk.write_cluster(cluster, within, &mut here)
            } else {
                disk.read_cluster(cluster, within, &mut here)
            }
        })
    }

    fn before_sync(&mut self) -> io::Result<RawFd> {
        if self.writable {
            self.may_write()?;
        }
        self.map.commit(&self.file)?;
        Ok(self.file.as_raw_fd())
    }

    fn sync_failed(&mut self, error: &io::Error) {
        if let Ok(safety) = self.map.safety() {
            safety.fail(error);
        }
    }

    fn clears_in(&mut self, _how: Clear) -> Option<RawFd> {
        None
    }

    fn clear(&mut self, how: Clear, at: u64, len: u64) -> io::Result<()> {
        self.may_write()?;
        self.each(at, len, |disk, cluster, within, part| {
            disk.clear_cluster(how, cluster, within, part)
        })?;
        self.map.free(&self.file)
    }

    fn measure(&mut self) -> io::Result<()> {
        // The size is in the header, and nobody else may write that.
        Ok(())
    }

    fn at_once(&self, write: bool) -> bool {
        self.in_memory || write
    }

    fn file(&self) -> &File {
        &self.file
    }
}

/// Sectors that may be cleared at once: each cluster is some system calls, and everybody else waits.
fn clear_most(cluster: u64) -> u32 {
    let sectors = cluster * CLUSTERS_A_RANGE / SECTOR;
    u32::try_from(sectors).map_or(MOST_RANGE_SECTORS, |sectors| {
        sectors.min(MOST_RANGE_SECTORS)
    })
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        if let Err(error) = self.map.close(&self.file) {
            log::error!("a qcow2 image was not closed as it should be: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
