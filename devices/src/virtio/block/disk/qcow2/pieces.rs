//! Lists of memory, cut and filled.

use super::super::super::super::IoVec;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

/// A buffer as a piece.
pub fn of(bytes: &mut [u8]) -> IoVec {
    IoVec(libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    })
}

/// Bytes.
pub fn len(pieces: &[IoVec]) -> u64 {
    pieces.iter().map(|piece| piece.len() as u64).sum()
}

/// The first `count` bytes, and what is behind them.
pub fn cut(pieces: &[IoVec], count: u64) -> (Vec<IoVec>, Vec<IoVec>) {
    let (mut first, mut rest, mut left) = (Vec::new(), Vec::new(), count);
    for piece in pieces {
        let here = (piece.len() as u64).min(left) as usize;
        left -= here as u64;
        if here > 0 {
            first.push(IoVec(libc::iovec {
                iov_base: piece.0.iov_base,
                iov_len: here,
            }));
        }
        if here < piece.len() {
            rest.push(IoVec(libc::iovec {
                iov_base: piece.0.iov_base.cast::<u8>().wrapping_add(here).cast(),
                iov_len: piece.len() - here,
            }));
        }
    }
    (first, rest)
}

/// Fills all of it with zeros.
pub fn zero(pieces: &mut [IoVec]) {
    for piece in pieces {
        // SAFETY: the piece is memory of that length, the guest's or a buffer of this thread's, which is mapped.
        unsafe { std::ptr::write_bytes(piece.0.iov_base.cast::<u8>(), 0, piece.len()) };
    }
}

/// Fills it from `bytes`, as far as they go.
pub fn fill(pieces: &mut [IoVec], bytes: &[u8]) {
    let mut rest = bytes;
    for piece in pieces {
        let (here, later) = rest.split_at(piece.len().min(rest.len()));
        // SAFETY: as above; `here` is not longer than the piece, and is no guest memory.
        unsafe {
            std::ptr::copy_nonoverlapping(here.as_ptr(), piece.0.iov_base.cast(), here.len())
        };
        rest = later;
    }
}

/// Fills `bytes` from it, as far as it goes.
pub fn drain(pieces: &[IoVec], bytes: &mut [u8]) {
    let mut rest = bytes;
    for piece in pieces {
        let (here, later) = rest.split_at_mut(piece.len().min(rest.len()));
        // SAFETY: as above; the guest may change its memory meanwhile, and then gets what it asked for.
        unsafe {
            std::ptr::copy_nonoverlapping(piece.0.iov_base.cast(), here.as_mut_ptr(), here.len())
        };
        rest = later;
    }
}

/// Inflates a raw deflate stream (RFC 1951) that fills `bytes`.
pub fn inflate(compressed: &[u8], bytes: &mut [u8]) -> Result<(), ()> {
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut state = Box::<DecompressorOxide>::default();
    let (status, _, count) = decompress(&mut state, compressed, bytes, 0, flags);
    let ended = matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput);
    if ended && count == bytes.len() {
        Ok(())
    } else {
        Err(())
    }
}
