//! Requests of a block device (5.2.6), parsed and checked before anything is done.
//!
//! A request is a header of 16 bytes, data, and a status byte, which is the last byte that the device may write. The
//! driver may cut the three into buffers as it likes (2.7.4.1). All numbers are little-endian; sectors have 512 bytes,
//! whatever the block size (5.2.4).

use vm_memory::GuestAddress;

use super::super::{Broken, Buffer, Cursor, Memory, chain};

/// Bytes in a sector.
pub const SECTOR: u64 = 512;
/// Bytes of an identification (`VIRTIO_BLK_ID_BYTES` in `linux/virtio_blk.h`).
pub const ID_BYTES: usize = 20;
/// Ranges that a discard or write-zeroes request may have.
pub const MOST_RANGES: u32 = 16;
/// Sectors that each of these ranges may have at most: 1 GiB. A disk may say less.
pub const MOST_RANGE_SECTORS: u32 = 1 << 21;
/// Bytes that a read or write may have: beyond what drivers make of 256 buffers, and a bound for the time that it takes.
pub const MOST_BYTES: u64 = 1 << 30;

/// `VIRTIO_BLK_T_*` (5.2.6).
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// A write-zeroes range may be deallocated (`VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP`).
const UNMAP: u32 = 1;
/// Bytes of a request's header.
const HEADER: usize = 16;
/// Bytes of a `virtio_blk_discard_write_zeroes`.
const RANGE: usize = 16;

/// What a request ends with (5.2.6, `VIRTIO_BLK_S_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Ok,
    /// It failed, or should not have been made.
    IoError,
    /// The device does nothing of that kind.
    Unsupported,
}

impl Outcome {
    /// The status byte.
    pub fn byte(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::IoError => 1,
            Self::Unsupported => 2,
        }
    }
}

/// What the device lets its driver do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Sectors that there are.
    pub sectors: u64,
    /// Nothing may be changed.
    pub read_only: bool,
    /// Whether there are flushes.
    pub flush: bool,
    /// Whether there are discards.
    pub discard: bool,
    /// Whether there are write-zeroes requests.
    pub write_zeroes: bool,
    /// Sectors that a range of these two may have.
    pub range_sectors: u32,
}

/// A stretch of the disk to be cleared. It is not empty, and on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// Whether its space may be given back to the host.
    pub unmap: bool,
}

/// What a request asks for. Stretches are on the disk.
#[derive(Clone, Debug)]
pub enum Request<'a> {
    /// Read from byte `at` into `data`.
    Read {
        /// First byte.
        at: u64,
        /// Where to.
        data: Cursor<'a>,
    },
    /// Write `data` to byte `at` and on.
    Write {
        /// First byte.
        at: u64,
        /// Where from.
        data: Cursor<'a>,
    },
    /// What was written before is to be safe.
    Flush,
    /// Write the identification to `data`, as much as fits.
    Identify {
        /// Where to.
        data: Cursor<'a>,
    },
    /// The ranges' contents are of no use any more.
    Discard,
    /// The ranges are to read as zeros.
    WriteZeroes,
    /// Nothing can be done, and this is the answer.
    Refused(Outcome),
}

/// A request, and where its answer goes.
#[derive(Clone, Debug)]
pub struct Parsed<'a> {
    /// What it asks for.
    pub request: Request<'a>,
    /// Address of the status byte.
    pub status: GuestAddress,
    /// Bytes that are written when it is done (2.7.8), the status included; if it fails, the status is all.
    pub written: u32,
}

/// Parses the chain of `buffers`. The ranges of a discard or write-zeroes request are put into `ranges`.
///
/// # Errors
/// [`Broken`]: there is no room for a status, so there can be no answer.
pub fn parse<'a>(
    memory: &'a Memory,
    buffers: &'a [Buffer],
    limits: &Limits,
    ranges: &mut Vec<Range>,
) -> Result<Parsed<'a>, Broken> {
    ranges.clear();
    let last = buffers.iter().rev().find(|buffer| buffer.len > 0);
    let Some(last) = last.filter(|last| last.writable) else {
        return Err(Broken("a block request has no room for its status"));
    };
    // The buffer is in memory, so its addresses do not overflow.
    let status = GuestAddress(last.address.0.wrapping_add(u64::from(last.len) - 1));
    let (mut readable, mut writable) = chain::split(memory, buffers);
    let _ = writable.take_last(1);
    let request = match header(&mut readable) {
        Some((number, sector)) => {
            let checked = check(number, sector, readable, writable, limits, ranges);
            checked.unwrap_or_else(Request::Refused)
        }
        None => Request::Refused(Outcome::IoError),
    };
    let data = match &request {
        Request::Read { data, .. } => data.len(),
        Request::Identify { data } => data.len().min(ID_BYTES as u64),
        _ => 0,
    };
    let written = u32::try_from(data + 1).unwrap_or(u32::MAX);
    Ok(Parsed {
        request,
        status,
        written,
    })
}

/// Type and first sector; `None` if the header is too short. The four bytes between them have no meaning any more.
fn header(readable: &mut Cursor) -> Option<(u32, u64)> {
    let mut bytes = [0; HEADER];
    readable.read(&mut bytes).ok()?;
    let [a, b, c, d, _, _, _, _, sector @ ..] = bytes;
    Some((u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(sector)))
}

fn check<'a>(
    number: u32,
    sector: u64,
    mut readable: Cursor<'a>,
    writable: Cursor<'a>,
    limits: &Limits,
    ranges: &mut Vec<Range>,
) -> Result<Request<'a>, Outcome> {
    match number {
        kind::IN => Ok(Request::Read {
            at: place(sector, writable.len(), limits)?,
            data: writable,
        }),
        kind::OUT if limits.read_only => Err(Outcome::IoError),
        kind::OUT => Ok(Request::Write {
            at: place(sector, readable.len(), limits)?,
            data: readable,
        }),
        kind::FLUSH if limits.flush => Ok(Request::Flush),
        kind::GET_ID => Ok(Request::Identify { data: writable }),
        kind::DISCARD if limits.discard => {
            read_ranges(&mut readable, 0, limits, ranges)?;
            Ok(Request::Discard)
        }
        kind::WRITE_ZEROES if limits.write_zeroes => {
            read_ranges(&mut readable, UNMAP, limits, ranges)?;
            Ok(Request::WriteZeroes)
        }
        _ => Err(Outcome::Unsupported),
    }
}

/// First byte of a stretch of whole sectors that is on the disk.
fn place(sector: u64, len: u64, limits: &Limits) -> Result<u64, Outcome> {
    let end = sector.checked_add(len / SECTOR).ok_or(Outcome::IoError)?;
    if !len.is_multiple_of(SECTOR) || len > MOST_BYTES || end > limits.sectors {
        return Err(Outcome::IoError);
    }
    sector.checked_mul(SECTOR).ok_or(Outcome::IoError)
}

/// Reads the ranges of a request, whose flags may be `flags` (5.2.6.2).
fn read_ranges(
    data: &mut Cursor,
    flags: u32,
    limits: &Limits,
    ranges: &mut Vec<Range>,
) -> Result<(), Outcome> {
    let bytes = data.len();
    let most = u64::from(MOST_RANGES) * RANGE as u64;
    if bytes == 0 || !bytes.is_multiple_of(RANGE as u64) || bytes > most {
        return Err(Outcome::IoError);
    }
    while !data.is_empty() {
        let mut bytes = [0; RANGE];
        data.read(&mut bytes).map_err(|_| Outcome::IoError)?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, has @ ..] = bytes;
        let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let count = u32::from_le_bytes([i, j, k, l]);
        let has = u32::from_le_bytes(has);
        if has & !flags != 0 {
            return Err(Outcome::Unsupported);
        }
        let len = u64::from(count) * SECTOR;
        let at = place(sector, len, limits)?;
        if count > limits.range_sectors.min(MOST_RANGE_SECTORS) {
            return Err(Outcome::IoError);
        }
        if count > 0 {
            ranges.push(Range {
                at,
                len,
                unmap: has & UNMAP != 0,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
