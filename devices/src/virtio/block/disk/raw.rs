//! A file or block device as it is: byte N of the disk is byte N of the file.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::super::super::IoVec;
use super::call::{Call, Mode, transfer_all};
use super::{Clear, Disk, DiskOptions, Geometry, OpenError, Place, ask, open_again};
use crate::virtio::block::bounce::Bounce;
use crate::virtio::block::request::{MOST_RANGE_SECTORS, SECTOR};

/// `linux/fs.h`; libc does not have these.
const BLKDISCARD: libc::Ioctl = 0x1277;
const BLKSSZGET: libc::Ioctl = 0x1268;
const BLKPBSZGET: libc::Ioctl = 0x127b;
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272_u32 as libc::Ioctl;
const BLKIOOPT: libc::Ioctl = 0x1279;

/// The disk.
pub struct Raw {
    file: File,
    /// Whether the file is a block device.
    device: bool,
    /// Whether the file is on a tmpfs.
    in_memory: bool,
    geometry: Geometry,
    direct: Option<Direct>,
}

/// What goes with `O_DIRECT`.
struct Direct {
    /// What addresses in memory are multiples of.
    memory: usize,
    /// What places and lengths in the file are multiples of.
    unit: u64,
    /// The file without it, for what it does not take: a last block that is not whole, zeros of any length.
    cached: File,
}

impl Raw {
    /// Of a file that is open and locked.
    ///
    /// # Errors
    /// [`OpenError`]: the host cannot tell about it.
    pub fn new(file: File, options: &DiskOptions) -> Result<Self, OpenError> {
        let path = &options.path;
        let data = file.metadata().map_err(ask("learn the size", path))?;
        let device = data.file_type().is_block_device();
        let mut geometry = Geometry {
            block: SECTOR as u32,
            physical: SECTOR as u32,
            clear_most: MOST_RANGE_SECTORS,
            ..Geometry::default()
        };
        if device {
            let logical =
                ask_device(&file, BLKSSZGET).map_err(ask("learn the block size", path))?;
            geometry.block = power_of_two(logical);
            geometry.physical = power_of_two(ask_device(&file, BLKPBSZGET).unwrap_or(logical));
            geometry.best = ask_device(&file, BLKIOOPT).unwrap_or(0);
        } else {
            // The file system's block, where that is no more than a page: network file systems say a megabyte.
            geometry.physical = power_of_two(data.blksize().min(4096) as u32);
        }
        let direct = options.direct.then(|| {
            let (memory, unit) =
                direct_alignment(&file).unwrap_or((4096, geometry.physical.into()));
            let cached = open_again(&file, path, options.read_only)?;
            Ok(Direct {
                memory,
                unit,
                cached,
            })
        });
        let mut disk = Self {
            in_memory: super::is_in_memory(&file),
            file,
            device,
            geometry,
            direct: direct.transpose()?,
        };
        disk.measure().map_err(ask("learn the size", path))?;
        if !options.read_only && disk.can_punch() {
            disk.geometry.discard = true;
            disk.geometry.write_zeroes = true;
        }
        let bytes = disk.geometry.bytes;
        if !bytes.is_multiple_of(SECTOR) {
            log::warn!(
                "{}: has {bytes} bytes, not whole sectors of 512: the guest does not see the last {}",
                path.display(),
                bytes % SECTOR
            );
        }
        if bytes < SECTOR {
            log::warn!(
                "{}: is empty: the guest sees a disk without sectors",
                path.display()
            );
        }
        Ok(disk)
    }

    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Whether the file system can punch holes: asked by a hole behind the end, where nothing is.
    fn can_punch(&self) -> bool {
        if self.device {
            // What a device cannot do it says when it is asked to.
            return true;
        }
        let call = Call::Allocate {
            fd: self.fd(),
            mode: Mode::Punch,
            at: self.geometry.bytes.next_multiple_of(1 << 20),
            len: 1 << 20,
        };
        call.make().is_ok()
    }

    /// A stretch that `O_DIRECT` does not take as it is: by a bounce buffer, and where its ends are within blocks, by
    /// reading these first.
    fn transfer_unaligned(
        &self,
        write: bool,
        at: u64,
        pieces: &[IoVec],
        unit: u64,
    ) -> io::Result<()> {
        let fd = self.fd();
        let len: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let mut bounce = Bounce::new(unit as usize)?;
        let mut rest = pieces.to_vec();
        let (mut at, end) = (at, at + len);
        let mut rest = rest.as_mut_slice();
        while at < end {
            let first = at / unit * unit;
            let most = (first + bounce.len() as u64).min(end);
            let part = most - at;
            let whole = (most.next_multiple_of(unit) - first) as usize;
            let mut buffer = [bounce.piece(whole)];
            let inside = first < at || !most.is_multiple_of(unit);
            if !write || inside {
                transfer_all(false, fd, first, &mut buffer)?;
            }
            let within = (at - first) as usize;
            let used = bounce.exchange(write, within, part as usize, rest);
            if write {
                transfer_all(true, fd, first, &mut [bounce.piece(whole)])?;
            }
            rest = rest.get_mut(used..).unwrap_or_default();
            at = most;
        }
        Ok(())
    }
}

impl Disk for Raw {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn place(&mut self, write: bool, at: u64, pieces: &[IoVec]) -> Place {
        let here = Place::File { fd: self.fd(), at };
        let Some(Direct { memory, unit, .. }) = self.direct else {
            return here;
        };
        let mut len = 0;
        let mut whole = at.is_multiple_of(unit);
        let mut aligned = true;
        for piece in pieces {
            aligned &= piece.0.iov_base.addr().is_multiple_of(memory)
                && (piece.len() as u64).is_multiple_of(unit);
            len += piece.len() as u64;
        }
        whole &= len.is_multiple_of(unit);
        match (whole, aligned) {
            (true, true) => here,
            // Parts of blocks are read, changed and written: nobody else may write to these blocks meanwhile.
            (false, _) if write => Place::InsideAlone,
            _ => Place::Inside,
        }
    }

    fn transfer(&mut self, write: bool, at: u64, pieces: &[IoVec]) -> io::Result<()> {
        let fd = match &self.direct {
            Some(Direct { unit, cached, .. }) => {
                let len: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
                // A last block that is not whole would make the file longer.
                if at + len <= self.geometry.bytes / unit * unit {
                    return self.transfer_unaligned(write, at, pieces, *unit);
                }
                cached.as_raw_fd()
            }
            None => self.fd(),
        };
        transfer_all(write, fd, at, &mut pieces.to_vec())
    }

    fn before_sync(&mut self) -> io::Result<RawFd> {
        Ok(self.fd())
    }

    fn sync_failed(&mut self, _error: &io::Error) {
        // The guest hears of it, and there are no tables here that could name what was lost.
    }

    fn clears_in(&mut self, how: Clear) -> Option<RawFd> {
        // Ranges, and zeros that have to be written, are not of whole blocks.
        let cached = self.direct.as_ref().map(|direct| direct.cached.as_raw_fd());
        (!self.device || how != Clear::Discard).then(|| cached.unwrap_or(self.fd()))
    }

    fn clear(&mut self, how: Clear, at: u64, len: u64) -> io::Result<()> {
        if !self.device || how != Clear::Discard {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let range = [at, len];
        // SAFETY: BLKDISCARD reads two u64.
        let result = unsafe { libc::ioctl(self.fd(), BLKDISCARD, range.as_ptr()) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn measure(&mut self) -> io::Result<()> {
        self.geometry.bytes = if self.device {
            let mut bytes = 0_u64;
            // SAFETY: BLKGETSIZE64 writes a u64.
            let result = unsafe { libc::ioctl(self.fd(), BLKGETSIZE64, &raw mut bytes) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
            bytes
        } else {
            self.file.metadata()?.len()
        };
        Ok(())
    }

    fn at_once(&self, write: bool) -> bool {
        self.in_memory || (write && self.direct.is_none())
    }

    fn file(&self) -> &File {
        &self.file
    }
}

/// A number that a block device tells, as a `c_uint`.
fn ask_device(file: &File, request: libc::Ioctl) -> io::Result<u32> {
    let mut number: libc::c_uint = 0;
    // SAFETY: these requests write an `int` or an `unsigned int`.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut number) };
    if result == 0 {
        Ok(number)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A block size that drivers take: a power of two, from a sector to 64 KiB.
fn power_of_two(size: u32) -> u32 {
    let size = size.clamp(SECTOR as u32, 64 << 10);
    1 << size.ilog2()
}

/// What `O_DIRECT` asks for (`STATX_DIOALIGN`, Linux 6.1): multiples in memory, and in the file.
fn direct_alignment(file: &File) -> Option<(usize, u64)> {
    // SAFETY: all zeros is a `struct statx`.
    let mut data: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty C string, and the kernel writes a `struct statx`.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut data,
        )
    };
    let told = result == 0 && data.stx_mask & libc::STATX_DIOALIGN != 0;
    let (memory, file) = (data.stx_dio_mem_align, data.stx_dio_offset_align);
    let usable = |number: u32| number.is_power_of_two() && number <= 64 << 10;
    (told && usable(memory) && usable(file)).then(|| (memory as usize, u64::from(file).max(SECTOR)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::super::{Format, open_file};
    use super::*;

    /// With blocks of 4096 bytes, whatever the disk below the test's has.
    fn disk(dir: &TempDir, bytes: u64) -> (Raw, PathBuf) {
        let path = dir.path().join("disk");
        let contents: Vec<u8> = (0..bytes).map(|at| (at / SECTOR) as u8).collect();
        fs::write(&path, contents).unwrap();
        let options = DiskOptions {
            path: path.clone(),
            read_only: false,
            direct: true,
            format: Format::Raw,
            backing: None,
            flushes: true,
        };
        let file = open_file(&path, false, true).unwrap();
        let mut disk = Raw::new(file, &options).unwrap();
        disk.direct.as_mut().unwrap().unit = 4096;
        (disk, path)
    }

    #[test]
    fn a_last_block_that_is_not_whole_stays_so() {
        let dir = TempDir::new().unwrap();
        let bytes = 21 * SECTOR + 100;
        let (mut disk, path) = disk(&dir, bytes);
        for (write, sector, count) in [
            (false, 16, 5),
            (false, 20, 1),
            (true, 20, 1),
            (true, 13, 8),
            (true, 9, 2),
        ] {
            let len = (count * SECTOR) as usize;
            let mut buffer = vec![0xee; len];
            let pieces = [IoVec(libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: len,
            })];
            let at = sector * SECTOR;
            assert!(!matches!(
                disk.place(write, at, &pieces),
                Place::File { .. }
            ));
            disk.transfer(write, at, &pieces).unwrap();
            let found = fs::read(&path).unwrap();
            assert_eq!(found.len() as u64, bytes);
            assert!(found.get(at as usize..at as usize + len) == Some(&buffer));
            assert_eq!(found.last(), Some(&21));
        }
    }
}
