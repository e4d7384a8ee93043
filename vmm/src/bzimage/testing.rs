//! Small kernels for tests: a vmlinux that compresses, bzImages around it, and what the real compressors made of it.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::Compression;

/// Length of [`vmlinux`], in bytes.
pub(super) const VMLINUX_BYTES: usize = 20_000;

/// A file with an x86-64 ELF header and contents somewhat like code: repeats, near calls (which the x86 BCJ filter
/// rewrites) and noise. The files in `testdata` are this, compressed; `testdata/README.md` says how.
pub(super) fn vmlinux() -> Vec<u8> {
    elf(VMLINUX_BYTES)
}

/// The same at any length, in bytes.
pub(super) fn elf(len: usize) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0".to_vec();
    let mut state = 1u32;
    while bytes.len() < len {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let at = bytes.len() as u32;
        bytes.push(0xe8);
        bytes.extend_from_slice(&(0x4000u32.wrapping_sub(at)).to_le_bytes());
        bytes.extend_from_slice(b"\x48\x89\xc7\x0f\x1f\x40\x00");
        if state >> 30 == 0 {
            bytes.push((state >> 16) as u8);
        }
    }
    bytes.truncate(len);
    bytes
}

/// A bzImage with `stream` as its payload, and behind it, but for gzip and none, the size of the vmlinux.
pub(super) fn bzimage(stream: &[u8], vmlinux_len: usize) -> Vec<u8> {
    let mut payload = stream.to_vec();
    if !stream.starts_with(b"\x1f\x8b") && !stream.starts_with(b"\x7fELF") {
        payload.extend_from_slice(&(vmlinux_len as u32).to_le_bytes());
    }
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    image[0x248..0x24c].copy_from_slice(&64u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend_from_slice(&[0x90; 64]);
    image.extend_from_slice(&payload);
    image.extend_from_slice(&[0; 100]);
    image
}

/// What the real tools made of [`vmlinux`], with the options that kernel builds use.
pub(super) fn streams() -> Vec<(Compression, Vec<u8>)> {
    vec![
        (Compression::None, vmlinux()),
        (
            Compression::Gzip,
            include_bytes!("testdata/vmlinux.gz").to_vec(),
        ),
        (
            Compression::Bzip2,
            include_bytes!("testdata/vmlinux.bz2").to_vec(),
        ),
        (
            Compression::Lzma,
            include_bytes!("testdata/vmlinux.lzma").to_vec(),
        ),
        (
            Compression::Xz,
            include_bytes!("testdata/vmlinux.xz").to_vec(),
        ),
        (
            Compression::Lz4,
            include_bytes!("testdata/vmlinux.lz4").to_vec(),
        ),
        (
            Compression::Zstd,
            include_bytes!("testdata/vmlinux.zst").to_vec(),
        ),
    ]
}

/// A legacy lz4 frame of `data`, in blocks of `block` bytes.
pub(super) fn lz4_legacy(data: &[u8], block: usize) -> Vec<u8> {
    let mut frame = vec![0x02, 0x21, 0x4c, 0x18];
    for part in data.chunks(block) {
        let packed = lz4_flex::block::compress(part);
        frame.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        frame.extend_from_slice(&packed);
    }
    frame
}

/// `data` as one gzip member.
pub(super) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Writes `bytes` to `dir/name`.
pub(super) fn put(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}
