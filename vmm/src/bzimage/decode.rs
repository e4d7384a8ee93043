//! From a compressed payload to the bytes of a vmlinux, by any compressor that a kernel build offers.
//!
//! Everything streams: input by `pread` through one small buffer, output straight to the sink. What a decoder must
//! remember is its window, which zstd and xz kernels set to 128 MiB and of which no more is touched than there is output.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::FileExt;

use super::header::{HeaderError, Payload};
use super::lz4;

/// Largest window or dictionary a decoder may reserve, in bytes. Kernel builds use up to 128 MiB
/// (`zstd -22 --ultra` in `scripts/Makefile.lib`, `dict=128MiB` in `scripts/xz_wrap.sh`).
const MAX_WINDOW_BYTES: u64 = 256 << 20;

/// The same for the LZMA decoders, in KiB, with room for their tables.
const MAX_LZMA_KIB: u32 = (MAX_WINDOW_BYTES >> 10) as u32 + 1024;

const INPUT_BUFFER_BYTES: usize = 64 << 10;
const OUTPUT_BUFFER_BYTES: usize = 64 << 10;

/// How a kernel is compressed (`CONFIG_KERNEL_*` in Linux `init/Kconfig`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: the payload is the ELF file (`CONFIG_KERNEL_UNCOMPRESSED`).
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// bzip2.
    Bzip2,
    /// The old `.lzma` format, "LZMA alone".
    Lzma,
    /// xz, with the x86 BCJ filter.
    Xz,
    /// LZ4's legacy frame format, `lz4 -l`.
    Lz4,
    /// Zstandard (RFC 8878).
    Zstd,
}

impl Compression {
    /// Recognises a payload by its first bytes (the table `compressed_formats` in Linux `lib/decompress.c`).
    ///
    /// # Errors
    /// [`HeaderError::Lzo`] or [`HeaderError::UnknownCompression`].
    pub fn from_magic(first: [u8; 4]) -> Result<Self, HeaderError> {
        match first {
            [0x7f, b'E', b'L', b'F'] => Ok(Self::None),
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [b'B', b'Z', b'h', _] => Ok(Self::Bzip2),
            [0x5d, 0x00, 0x00, _] => Ok(Self::Lzma),
            [0xfd, b'7', b'z', b'X'] => Ok(Self::Xz),
            [0x02, 0x21, 0x4c, 0x18] => Ok(Self::Lz4),
            [0x28, 0xb5, 0x2f, 0xfd] => Ok(Self::Zstd),
            [0x89, b'L', b'Z', b'O'] => Err(HeaderError::Lzo),
            other => Err(HeaderError::UnknownCompression(other)),
        }
    }

    /// The name a user knows.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// Why a payload did not become a vmlinux: the kernel file's fault, or the sink's.
#[derive(Debug)]
pub(super) enum DecodeError {
    /// The stream is damaged, cut short, or could not be read.
    Input(io::Error),
    /// More output than declared, and stopped there.
    TooLong,
    /// Less output than declared: this many bytes.
    TooShort(u64),
    /// The sink refused.
    Output(io::Error),
}

/// Decompresses `payload` of `file` into `out`, which receives exactly `payload.vmlinux_len` bytes on success.
///
/// # Errors
/// [`DecodeError`]; bytes may have been written by then, never more than declared.
pub(super) fn decode(
    file: &File,
    payload: &Payload,
    out: &mut dyn Write,
) -> Result<(), DecodeError> {
    let input = SectionReader::new(file, payload.offset, payload.length);
    let mut out = Bounded {
        inner: out,
        written: 0,
        limit: payload.vmlinux_len,
    };
    match payload.compression {
        Compression::None => copy(input, &mut out),
        Compression::Gzip => copy(flate2::bufread::GzDecoder::new(input), &mut out),
        Compression::Bzip2 => copy(bzip2::bufread::BzDecoder::new(input), &mut out),
        Compression::Lzma => {
            let decoder = lzma_rust2::LzmaReader::new_mem_limit(input, MAX_LZMA_KIB, None);
            copy(decoder.map_err(DecodeError::Input)?, &mut out)
        }
        // One stream only: what follows it is the builder's business, not a second kernel.
        Compression::Xz => copy(
            lzma_rust2::XzReader::new_mem_limit(input, false, MAX_LZMA_KIB),
            &mut out,
        ),
        Compression::Lz4 => lz4::decode_legacy(input, &mut out),
        Compression::Zstd => zstd(input, &mut out),
    }?;
    match out.written {
        n if n == payload.vmlinux_len => Ok(()),
        n => Err(DecodeError::TooShort(n)),
    }
}

fn zstd(input: SectionReader<'_>, out: &mut Bounded<'_>) -> Result<(), DecodeError> {
    let corrupt = |e| DecodeError::Input(io::Error::new(io::ErrorKind::InvalidData, e));
    let mut decoder =
        ruzstd::decoding::StreamingDecoder::new_with_max_window_size(input, MAX_WINDOW_BYTES)
            .map_err(|e| corrupt(e.to_string()))?;
    copy(&mut decoder, out)?;
    // The decoder computes the frame's checksum and leaves the comparison to its caller.
    let expected = decoder.decoder.get_checksum_from_data();
    if expected.is_some() && expected != decoder.decoder.get_calculated_checksum() {
        return Err(corrupt("checksum of the zstd frame does not match".into()));
    }
    Ok(())
}

/// Moves all of `input` to `out`, and keeps the two sides' errors apart.
fn copy(mut input: impl Read, out: &mut Bounded<'_>) -> Result<(), DecodeError> {
    let mut buffer = vec![0; OUTPUT_BUFFER_BYTES];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => out.write(buffer.get(..n).unwrap_or_default())?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(DecodeError::Input(e)),
        }
    }
}

/// A sink that takes no more than was declared: the end of every decompression bomb.
pub(super) struct Bounded<'a> {
    inner: &'a mut dyn Write,
    written: u64,
    limit: u64,
}

impl Bounded<'_> {
    /// Bytes that still may be written.
    pub(super) fn left(&self) -> u64 {
        self.limit - self.written
    }

    /// Writes all of `bytes`, or nothing if that is more than may still come.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        let len = bytes.len() as u64;
        if len > self.left() {
            return Err(DecodeError::TooLong);
        }
        self.inner.write_all(bytes).map_err(DecodeError::Output)?;
        self.written += len;
        Ok(())
    }
}

/// A part of a file as a buffered stream. `pread` rather than a mapping: a file that shrinks is an error, not a SIGBUS.
pub(super) struct SectionReader<'a> {
    file: &'a File,
    next: u64,
    end: u64,
    buffer: Vec<u8>,
    at: usize,
}

impl<'a> SectionReader<'a> {
    /// Reads `length` bytes of `file` from `offset` on.
    pub(super) fn new(file: &'a File, offset: u64, length: u64) -> Self {
        Self {
            file,
            next: offset,
            end: offset.saturating_add(length),
            buffer: Vec::new(),
            at: 0,
        }
    }

    fn refill(&mut self) -> io::Result<()> {
        let left = self.end.saturating_sub(self.next);
        let want = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(INPUT_BUFFER_BYTES);
        self.buffer.resize(want, 0);
        self.at = want;
        self.file.read_exact_at(&mut self.buffer, self.next)?;
        self.at = 0;
        self.next += want as u64;
        Ok(())
    }
}

impl BufRead for SectionReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at >= self.buffer.len() {
            self.refill()?;
        }
        Ok(self.buffer.get(self.at..).unwrap_or_default())
    }

    fn consume(&mut self, n: usize) {
        self.at = self.at.saturating_add(n).min(self.buffer.len());
    }
}

impl Read for SectionReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..n), available.get(..n)) {
            to.copy_from_slice(from);
        }
        self.consume(n);
        Ok(n)
    }
}
