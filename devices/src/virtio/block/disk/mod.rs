//! What a block device's bytes are kept in.
//!
//! | file     | what lives there                                                   |
//! |----------|--------------------------------------------------------------------|
//! | `raw`    | a file or block device as it is                                      |
//! | [`qcow2`] | an image in QEMU's format                                            |
//! | `lock`   | the lock that keeps two VMs from one disk                             |
//! | `call`   | system calls on files, each as a value that can be made now or later  |
//!
//! A [`Disk`] says of a stretch where it lies in a file, if it lies in one as it is; an engine then reads and writes it
//! there without asking again. For all else the disk does the work itself, and its caller waits.

mod call;
mod lock;
pub mod qcow2;
mod raw;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use call::{Call, MOST_PIECES, Mode, advance};

use serde::{Deserialize, Serialize};

use super::super::IoVec;
use super::request::SECTOR;

/// How a disk's bytes lie in its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// As they are.
    #[default]
    Raw,
    /// In QEMU's format.
    Qcow2,
}

impl Format {
    /// Whether it is what stands for no word about it.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A file that has what an image has nothing of. It is only read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
}

/// How a disk is to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Nothing is ever written.
    pub read_only: bool,
    /// Past the host's page cache (`O_DIRECT`); for [`Format::Raw`].
    pub direct: bool,
    /// Its format.
    pub format: Format,
    /// Its backing file; for [`Format::Qcow2`].
    pub backing: Option<Backing>,
    /// Whether the driver may flush: the order in which tables get to the disk matters then.
    pub flushes: bool,
}

/// Why a disk cannot be used. The path is not part of the text's beginning: the caller names the field.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be opened.
    #[error("cannot open {}: {cause}; give a file or block device that exists and may be {}", .path.display(), .how)]
    Open {
        /// The file.
        path: PathBuf,
        /// "read" or "read and written".
        how: &'static str,
        /// What the host said.
        cause: io::Error,
    },
    /// Its file system cannot do without the page cache.
    #[error("cannot open {} past the page cache (O_DIRECT): {cause}; set direct to false, or keep the disk on a file system that has it", .path.display())]
    Direct {
        /// The file.
        path: PathBuf,
        /// What the host said.
        cause: io::Error,
    },
    /// A directory, a terminal ...
    #[error("{} is neither a regular file nor a block device; give one of these", .0.display())]
    Kind(PathBuf),
    /// Somebody else has it.
    #[error(
        "{} is in use: {}; stop that one, give each VM a disk of its own, or set is_read_only for all of them",
        .path.display(), .who
    )]
    Locked {
        /// The file.
        path: PathBuf,
        /// Who could have it.
        who: &'static str,
    },
    /// It is not an image of that format, or not one that can be used.
    #[error("{} {reason}", .path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// It has a backing file, which the operator has not named.
    #[error("{} has a backing file, {name:?}, and is not complete without it; give backing_file and backing_format if you trust it", .path.display())]
    BackingMissing {
        /// The file.
        path: PathBuf,
        /// What the image calls the other one.
        name: String,
    },
    /// It has no backing file, and the operator has named one.
    #[error("{} has no backing file; leave backing_file out", .path.display())]
    BackingUnknown {
        /// The file.
        path: PathBuf,
    },
    /// The backing file cannot be used.
    #[error("{0}")]
    Backing(Box<OpenError>),
    /// The host cannot tell about it.
    #[error("cannot {what} of {}: {cause}", .path.display())]
    Ask {
        /// What was wanted.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        cause: io::Error,
    },
}

impl OpenError {
    /// The field of a drive's configuration that is to blame.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Backing(_) | Self::BackingMissing { .. } | Self::BackingUnknown { .. } => {
                "backing_file"
            }
            _ => "path_on_host",
        }
    }
}

/// What a driver should know of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes.
    pub bytes: u64,
    /// Bytes in a logical block: a power of two, from 512.
    pub block: u32,
    /// Bytes in a physical block: what is smaller costs more. A power of two.
    pub physical: u32,
    /// Bytes that are best moved at once; 0 if that is not known.
    pub best: u32,
    /// What is discarded in multiples of this, and at multiples of it, is given back; 0 for physical blocks.
    pub clear_unit: u32,
    /// Most sectors of a stretch that is cleared at once: what bounds the time that it takes.
    pub clear_most: u32,
    /// Whether it can be told that a stretch is of no use any more.
    pub discard: bool,
    /// Whether it can make a stretch read as zeros.
    pub write_zeroes: bool,
}

impl Geometry {
    /// Whole sectors.
    pub fn sectors(&self) -> u64 {
        self.bytes / SECTOR
    }
}

/// Where a stretch of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this file, as it is, from this byte on.
    File {
        /// The file: open for as long as the disk.
        fd: RawFd,
        /// First byte in it.
        at: u64,
    },
    /// Only the disk itself can get at it.
    Inside,
    /// Only the disk itself can get at it, while nothing else is under way.
    InsideAlone,
}

/// What a stretch is to be cleared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clear {
    /// Its contents are of no use.
    Discard,
    /// It is to read as zeros; its space may be given back.
    Unmap,
    /// It is to read as zeros, and keeps its space.
    Zero,
}

/// What a block device's bytes are kept in. Stretches are on the disk, checked by the caller.
///
/// All work is done by one thread at a time. An error is one of the host's.
pub trait Disk: Send {
    /// What it is like.
    fn geometry(&self) -> Geometry;
    /// Where a stretch is that is to be read (or written, if `write`) from or to `pieces`.
    fn place(&mut self, write: bool, at: u64, pieces: &[IoVec]) -> Place;
    /// Reads or writes a stretch, all of it.
    ///
    /// # Errors
    /// It could not be done as a whole.
    fn transfer(&mut self, write: bool, at: u64, pieces: &[IoVec]) -> io::Result<()>;
    /// The file whose `fdatasync` makes all safe that was written. The disk has brought it all there when it returns.
    ///
    /// # Errors
    /// It could not be brought there.
    fn before_sync(&mut self) -> io::Result<RawFd>;
    /// `fdatasync` of that file has failed: what was written before may be lost.
    fn sync_failed(&mut self, error: &io::Error);
    /// The file that takes holes and zeros at the same places as the disk; `None` if the disk itself has to clear.
    fn clears_in(&mut self, how: Clear) -> Option<RawFd>;
    /// Clears a stretch. Nothing else is under way.
    ///
    /// # Errors
    /// It could not be done as a whole.
    fn clear(&mut self, how: Clear, at: u64, len: u64) -> io::Result<()>;
    /// Looks at the file's size again. Nothing is under way.
    ///
    /// # Errors
    /// The host cannot tell.
    fn measure(&mut self) -> io::Result<()>;
    /// Whether to read a [`Place::File`] (or write, if `write`) takes no longer than to copy: there is nothing to wait for.
    fn at_once(&self, write: bool) -> bool;
    /// The file that the disk was opened by.
    fn file(&self) -> &File;
}

/// Opens a disk, and locks it: for this process alone if it may be written, else together with others that only read it.
///
/// # Errors
/// [`OpenError`].
pub fn open(options: &DiskOptions) -> Result<Box<dyn Disk>, OpenError> {
    let backing = options.backing.as_ref().map(|backing| {
        let below = DiskOptions {
            path: backing.path.clone(),
            read_only: true,
            direct: false,
            format: backing.format,
            backing: None,
            flushes: false,
        };
        open(&below).map_err(|error| OpenError::Backing(Box::new(error)))
    });
    let backing = backing.transpose()?;
    let file = open_file(&options.path, options.read_only, options.direct)?;
    Ok(match options.format {
        Format::Raw => Box::new(raw::Raw::new(file, options)?),
        Format::Qcow2 => Box::new(qcow2::Qcow2::new(file, options, backing)?),
    })
}

/// Opens a file or block device, without waiting for anything, and locks it.
fn open_file(path: &Path, read_only: bool, direct: bool) -> Result<File, OpenError> {
    let open = |flags| {
        OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(flags | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
    };
    let how = if read_only {
        "read"
    } else {
        "read and written"
    };
    let failed = |cause: io::Error| {
        // A directory cannot be opened for writing; the kind of thing that it is says more.
        match std::fs::metadata(path) {
            Ok(data) if !data.is_file() && !data.file_type().is_block_device() => {
                OpenError::Kind(path.into())
            }
            _ => OpenError::Open {
                path: path.into(),
                how,
                cause,
            },
        }
    };
    let file = if direct {
        open(libc::O_DIRECT).map_err(|cause| match cause.raw_os_error() {
            Some(libc::EINVAL | libc::EOPNOTSUPP) => OpenError::Direct {
                path: path.into(),
                cause,
            },
            _ => failed(cause),
        })?
    } else {
        open(0).map_err(failed)?
    };
    blocking(&file).map_err(ask("change the flags", path))?;
    let data = file.metadata().map_err(ask("learn the kind", path))?;
    let kind = data.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(OpenError::Kind(path.into()));
    }
    lock::take(&file, path, !read_only)?;
    Ok(file)
}

/// Another description of a file that is open, to be found at `path`: through the page cache, and without a lock.
fn open_again(file: &File, path: &Path, read_only: bool) -> Result<File, OpenError> {
    let again = || {
        let again = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        blocking(&again)?;
        let (one, other) = (file.metadata()?, again.metadata()?);
        if (one.dev(), one.ino()) != (other.dev(), other.ino()) {
            return Err(io::Error::other("another file has taken its place"));
        }
        Ok(again)
    };
    again().map_err(ask("open another description", path))
}

/// Has calls wait again, as is usual on files: only opening must not, on a FIFO.
fn blocking(file: &File) -> io::Result<()> {
    // SAFETY: F_GETFL takes no memory.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    // SAFETY: nor does F_SETFL.
    let result = unsafe {
        match flags {
            -1 => -1,
            flags => libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK),
        }
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether a file is on a tmpfs: what it has is in memory, and io_uring would have a thread of the kernel's fetch it.
fn is_in_memory(file: &File) -> bool {
    // SAFETY: all zeros is a `struct statfs`.
    let mut data: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes a `struct statfs`.
    let result = unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut data) };
    result == 0 && data.f_type as u64 == libc::TMPFS_MAGIC as u64
}

/// Makes safe what was written to a file.
///
/// # Errors
/// What the kernel said.
pub fn sync(fd: RawFd) -> io::Result<()> {
    loop {
        match (Call::Sync { fd }).make() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(|_| ()),
        }
    }
}

/// The error for what the host cannot tell.
fn ask(what: &'static str, path: &Path) -> impl Fn(io::Error) -> OpenError {
    move |cause| OpenError::Ask {
        what,
        path: path.into(),
        cause,
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
