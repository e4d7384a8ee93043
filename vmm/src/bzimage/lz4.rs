//! LZ4's legacy frame, which `lz4 -l` writes and Linux's `lib/decompress_unlz4.c` reads.
//!
//! Source: lz4 `doc/lz4_Frame_format.md`, section "Legacy frame": the magic number, then blocks of a little-endian
//! `u32` length and that many bytes in the block format, each of which decompresses on its own to at most 8 MiB.
//! There is no end mark and no checksum: the frame ends with its file.

use std::io::{self, BufRead, Read};

use lz4_flex::block::DecompressError;

use super::decode::{Bounded, DecodeError};

const MAGIC: u32 = 0x184c_2102;
/// "Each block contains 8 MiB of original data, except the last one".
const BLOCK_BYTES: usize = 8 << 20;
/// `LZ4_compressBound(8 MiB)`: what a block that does not compress grows to.
const MAX_COMPRESSED_BYTES: u32 = (BLOCK_BYTES + BLOCK_BYTES / 255 + 16) as u32;

/// Decompresses a legacy frame, or several in a row, from `input` up to its end.
///
/// # Errors
/// [`DecodeError::Input`] for a damaged or truncated frame, else what `out` says.
pub(super) fn decode_legacy(
    mut input: impl BufRead,
    out: &mut Bounded<'_>,
) -> Result<(), DecodeError> {
    if read_le32(&mut input)? != MAGIC {
        return Err(corrupt("no magic number of a legacy lz4 frame"));
    }
    // The last block may be short, and so may the whole kernel: no buffer longer than the output.
    let room = usize::try_from(out.left())
        .unwrap_or(BLOCK_BYTES)
        .min(BLOCK_BYTES);
    let (mut compressed, mut block) = (Vec::new(), vec![0; room]);
    while !input.fill_buf().map_err(DecodeError::Input)?.is_empty() {
        let length = match read_le32(&mut input)? {
            MAGIC => continue,
            n if n > MAX_COMPRESSED_BYTES => {
                return Err(corrupt("lz4 block longer than the format allows"));
            }
            n => n as usize,
        };
        compressed.resize(length, 0);
        input
            .read_exact(&mut compressed)
            .map_err(DecodeError::Input)?;
        let n = match lz4_flex::block::decompress_into(&compressed, &mut block) {
            Err(DecompressError::OutputTooSmall { .. }) if block.len() < BLOCK_BYTES => {
                return Err(DecodeError::TooLong);
            }
            result => result.map_err(|e| corrupt(&e.to_string()))?,
        };
        out.write(block.get(..n).unwrap_or_default())?;
    }
    Ok(())
}

fn read_le32(input: &mut impl Read) -> Result<u32, DecodeError> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes).map_err(DecodeError::Input)?;
    Ok(u32::from_le_bytes(bytes))
}

fn corrupt(what: &str) -> DecodeError {
    DecodeError::Input(io::Error::new(io::ErrorKind::InvalidData, what))
}
