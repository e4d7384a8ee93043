//! The part of the Linux x86 boot protocol that says where a bzImage keeps its compressed vmlinux.
//!
//! Source: Linux `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header" and "Details of Header Fields".
//! Every field comes from a file that nobody has vetted: all arithmetic is checked and all sizes have limits.

use thiserror::Error;

use super::Compression;

/// Bytes at the start of the file that [`BzImageHeader::parse`] needs: up to the end of `payload_length`.
pub const HEADER_BYTES: usize = PAYLOAD_LENGTH + 4;

/// Largest compressed payload accepted, in bytes (512 MiB). Distribution kernels are below 20 MiB.
pub const MAX_PAYLOAD_BYTES: u64 = 512 << 20;

/// Largest vmlinux accepted, in bytes (2 GiB): a kernel and its relocations live in the top 2 GiB of the address space.
pub const MAX_VMLINUX_BYTES: u64 = 2 << 30;

// Offsets in the file, boot.rst, table "The Real-Mode Kernel Header".
const SETUP_SECTS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

const SECTOR_BYTES: u64 = 512;
/// boot.rst, `setup_sects`: "for backwards compatibility, if the setup_sects field contains 0, the real value is 4".
const DEFAULT_SETUP_SECTS: u8 = 4;
/// The first protocol with `payload_offset` and `payload_length` (Linux 2.6.26).
const MIN_VERSION: u16 = 0x0208;
/// Bytes of the size that closes a payload, and the least that can hold a magic number in front of it.
const TRAILER_BYTES: u64 = 4;
const MIN_PAYLOAD_BYTES: u64 = 16;

/// Why the head of a file does not lead to a vmlinux.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum HeaderError {
    /// No `0xAA55` at 0x1fe or no `HdrS` at 0x202.
    #[error("not a bzImage: no Linux boot header (0xAA55 at 0x1fe, \"HdrS\" at 0x202)")]
    NotBzImage,
    /// Boot protocol below 2.08.
    #[error(
        "boot protocol {}.{:02} is too old to say where the compressed kernel is: use a kernel of Linux 2.6.26 or later",
        .0 >> 8, .0 & 0xff
    )]
    OldProtocol(u16),
    /// The payload does not lie inside the file.
    #[error(
        "compressed kernel at {offset:#x}, {length} bytes long, is not inside the file of {file_len} bytes: the file is cut short or damaged"
    )]
    OutsideFile {
        /// First byte of the payload, from the start of the file.
        offset: u64,
        /// `payload_length`, bytes.
        length: u64,
        /// Length of the file, bytes.
        file_len: u64,
    },
    /// The payload is too short to hold a compressed kernel.
    #[error("compressed kernel of {0} bytes is too short: the file is damaged or has no payload")]
    TooShort(u64),
    /// The payload is longer than [`MAX_PAYLOAD_BYTES`].
    #[error("compressed kernel of {0} bytes is over the limit of {MAX_PAYLOAD_BYTES} bytes")]
    PayloadTooLong(u64),
    /// The declared vmlinux is empty or longer than [`MAX_VMLINUX_BYTES`].
    #[error(
        "declared size of the decompressed kernel, {0} bytes, is not between 1 and {MAX_VMLINUX_BYTES}: the file is damaged"
    )]
    BadVmlinuxSize(u64),
    /// LZO, for which there is no decompressor here.
    #[error(
        "unsupported compression LZO: rebuild the kernel with CONFIG_KERNEL_ZSTD=y (or gzip, xz, lz4), or use in-guest decompression"
    )]
    Lzo,
    /// The payload starts with no magic number that is known.
    #[error(
        "unknown compression (payload starts with {0:02x?}): rebuild the kernel with CONFIG_KERNEL_ZSTD=y, or use in-guest decompression"
    )]
    UnknownCompression([u8; 4]),
}

/// Where the payload of a bzImage is. Offsets count from the start of the file; all sizes are in bytes.
///
/// Invariant: `payload_offset + payload_length` is within the file and `payload_length` within its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BzImageHeader {
    /// Boot protocol version, major in the high byte: 0x020f is 2.15.
    pub version: u16,
    /// First byte of the payload (the compressed vmlinux).
    pub payload_offset: u64,
    /// Length of the payload with the 4-byte size at its end.
    pub payload_length: u64,
}

/// Whether `head`, the first bytes of a file, starts a kernel with a boot header (`HdrS`; boot.rst, `boot_flag`, `header`).
pub fn has_boot_header(head: &[u8]) -> bool {
    le16(head, BOOT_FLAG) == Some(0xaa55)
        && head.get(HEADER_MAGIC..HEADER_MAGIC + 4) == Some(b"HdrS")
}

impl BzImageHeader {
    /// Reads the header from `head`, the first bytes of a file of `file_len` bytes ([`HEADER_BYTES`] are enough).
    ///
    /// # Errors
    /// [`HeaderError`] for a file that is no bzImage, whose protocol is too old, or whose payload is not where it says.
    pub fn parse(head: &[u8], file_len: u64) -> Result<Self, HeaderError> {
        if !has_boot_header(head) {
            return Err(HeaderError::NotBzImage);
        }
        let version = le16(head, VERSION).ok_or(HeaderError::NotBzImage)?;
        if version < MIN_VERSION {
            return Err(HeaderError::OldProtocol(version));
        }
        let field = |at| le32(head, at).map(u64::from).ok_or(HeaderError::NotBzImage);
        let (relative, length) = (field(PAYLOAD_OFFSET)?, field(PAYLOAD_LENGTH)?);
        let setup_sects = match head.get(SETUP_SECTS) {
            None => return Err(HeaderError::NotBzImage),
            Some(0) => DEFAULT_SETUP_SECTS,
            Some(&n) => n,
        };

        // boot.rst, `payload_offset`: from the beginning of the protected-mode code, which follows
        // the boot sector and the setup sectors.
        let offset = (u64::from(setup_sects) + 1) * SECTOR_BYTES + relative;
        if length < MIN_PAYLOAD_BYTES {
            return Err(HeaderError::TooShort(length));
        }
        if length > MAX_PAYLOAD_BYTES {
            return Err(HeaderError::PayloadTooLong(length));
        }
        if offset.checked_add(length).is_none_or(|end| end > file_len) {
            return Err(HeaderError::OutsideFile {
                offset,
                length,
                file_len,
            });
        }
        Ok(Self {
            version,
            payload_offset: offset,
            payload_length: length,
        })
    }

    /// Where the 4-byte size at the payload's end is.
    pub(super) fn trailer_offset(&self) -> u64 {
        self.payload_offset + self.payload_length - TRAILER_BYTES
    }
}

/// A payload whose compression and decompressed size are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// How it is compressed.
    pub compression: Compression,
    /// First byte of the compressed stream, from the start of the file.
    pub offset: u64,
    /// Bytes of the compressed stream, without a size that the build appended to it.
    pub length: u64,
    /// Bytes of the vmlinux inside, as declared: the decompressed stream must have exactly this length.
    pub vmlinux_len: u64,
}

impl Payload {
    /// Derives the stream from the payload's first bytes and its last four.
    ///
    /// The build ends every payload with the vmlinux's size as a little-endian `u32` (`size_append` in
    /// `scripts/Makefile.lib`; boot.rst, `payload_length`), and the kernel's own decompressor relies on it
    /// (`arch/x86/boot/compressed/mkpiggy.c`). In gzip it is the format's own ISIZE (RFC 1952, section 2.3.1) and thus
    /// part of the stream. An uncompressed payload is as long as it is.
    ///
    /// # Errors
    /// [`HeaderError`] if the compression is unknown or unsupported, or the declared size impossible.
    pub fn new(header: &BzImageHeader, first: [u8; 4], last: [u8; 4]) -> Result<Self, HeaderError> {
        let compression = Compression::from_magic(first)?;
        let declared = u64::from(u32::from_le_bytes(last));
        let (length, vmlinux_len) = match compression {
            Compression::None => (header.payload_length, header.payload_length),
            Compression::Gzip => (header.payload_length, declared),
            _ => (header.payload_length - TRAILER_BYTES, declared),
        };
        if vmlinux_len == 0 || vmlinux_len > MAX_VMLINUX_BYTES {
            return Err(HeaderError::BadVmlinuxSize(vmlinux_len));
        }
        Ok(Self {
            compression,
            offset: header.payload_offset,
            length,
            vmlinux_len,
        })
    }
}

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u16::from_le_bytes(*b))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u32::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(version: u16, setup_sects: u8, offset: u32, length: u32) -> Vec<u8> {
        let mut h = vec![0; HEADER_BYTES];
        h[SETUP_SECTS] = setup_sects;
        h[BOOT_FLAG..][..2].copy_from_slice(&[0x55, 0xaa]);
        h[HEADER_MAGIC..][..4].copy_from_slice(b"HdrS");
        h[VERSION..][..2].copy_from_slice(&version.to_le_bytes());
        h[PAYLOAD_OFFSET..][..4].copy_from_slice(&offset.to_le_bytes());
        h[PAYLOAD_LENGTH..][..4].copy_from_slice(&length.to_le_bytes());
        h
    }

    #[test]
    fn reads_what_debian_writes() {
        // Debian's 6.12 cloud kernel: setup_sects 39, payload_offset 0x2cc.
        let h = BzImageHeader::parse(&head(0x20f, 39, 0x2cc, 11_409_810), 11_655_104).unwrap();
        assert_eq!((h.payload_offset, h.payload_length), (0x52cc, 11_409_810));
    }

    #[test]
    fn zero_setup_sects_means_four() {
        let h = BzImageHeader::parse(&head(0x208, 0, 0, 16), 4096).unwrap();
        assert_eq!(h.payload_offset, 5 * 512);
    }

    #[test]
    fn refuses_impossible_headers() {
        let parse = |v, off, len, file| BzImageHeader::parse(&head(v, 1, off, len), file);
        assert_eq!(
            parse(0x207, 0, 64, 4096),
            Err(HeaderError::OldProtocol(0x207))
        );
        assert_eq!(parse(0x20f, 0, 15, 4096), Err(HeaderError::TooShort(15)));
        assert!(matches!(
            parse(0x20f, 0, 64, 1087),
            Err(HeaderError::OutsideFile { .. })
        ));
        assert!(parse(0x20f, 0, 64, 1088).is_ok());
        assert!(matches!(
            parse(0x20f, u32::MAX, 64, 4096),
            Err(HeaderError::OutsideFile { .. })
        ));
        assert!(matches!(
            parse(0x20f, 0, u32::MAX, u64::MAX),
            Err(HeaderError::PayloadTooLong(_))
        ));
        assert_eq!(
            BzImageHeader::parse(b"\x7fELF", 4),
            Err(HeaderError::NotBzImage)
        );
        assert_eq!(
            BzImageHeader::parse(&head(0x20f, 1, 0, 64)[..0x24b], 4096),
            Err(HeaderError::NotBzImage)
        );
    }

    #[test]
    fn messages_are_one_line_with_a_remedy() {
        assert!(
            HeaderError::Lzo
                .to_string()
                .starts_with("unsupported compression LZO")
        );
        assert!(
            HeaderError::OldProtocol(0x207)
                .to_string()
                .contains("protocol 2.07")
        );
        assert!(
            HeaderError::UnknownCompression([1, 2, 3, 4])
                .to_string()
                .contains("[01, 02, 03, 04]")
        );
    }

    proptest! {
        #[test]
        fn any_header_is_inside_the_file_or_an_error(
            version in any::<u16>(), sects in any::<u8>(), offset in any::<u32>(), length in any::<u32>(),
            file_len in any::<u64>(), first in any::<[u8; 4]>(), last in any::<[u8; 4]>(),
        ) {
            if let Ok(h) = BzImageHeader::parse(&head(version, sects, offset, length), file_len) {
                prop_assert!(h.payload_offset + h.payload_length <= file_len);
                if let Ok(p) = Payload::new(&h, first, last) {
                    prop_assert!(p.length <= h.payload_length && p.vmlinux_len <= MAX_VMLINUX_BYTES);
                }
            }
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..1024), len in any::<u64>()) {
            let _ = BzImageHeader::parse(&bytes, len);
        }
    }
}
