//! Whether a file can run in a jail, where there is no dynamic linker and no library.
//!
//! Source: System V ABI, "ELF Header" and "Program Header".

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Machine that this program is built for (`e_machine`).
const MACHINE: u16 = if cfg!(target_arch = "aarch64") {
    183
} else {
    62
};
/// Segment that names a dynamic linker (`PT_INTERP`).
const INTERPRETER: u32 = 3;
/// Size of a program header.
const HEADER: u64 = 56;

/// Looks at the file.
///
/// # Errors
/// What is wrong with it, as the rest of a sentence that begins with its name.
pub fn check(file: &File) -> Result<(), &'static str> {
    let mut head = [0; 64];
    let read = file.read_exact_at(&mut head, 0);
    if read.is_err() || !head.starts_with(b"\x7fELF\x02\x01") || number(&head, 18) != Some(MACHINE)
    {
        return Err("is not an executable of this machine's; give a 64-bit ELF file");
    }
    let damaged = "is damaged: its program headers cannot be read; build it again";
    let mut offset = [0; 8];
    offset.copy_from_slice(head.get(32..40).ok_or(damaged)?);
    let offset = u64::from_le_bytes(offset);
    let (size, count) = (number(&head, 54), number(&head, 56).unwrap_or(0));
    if size != u16::try_from(HEADER).ok() || count == 0 {
        return Err(damaged);
    }
    for index in 0..u64::from(count) {
        let mut kind = [0; 4];
        let at = offset.checked_add(index * HEADER).ok_or(damaged)?;
        file.read_exact_at(&mut kind, at).map_err(|_| damaged)?;
        if u32::from_le_bytes(kind) == INTERPRETER {
            return Err(
                "is linked dynamically, and a jail has no libraries; give a static one (cargo build --release --target x86_64-unknown-linux-musl)",
            );
        }
    }
    Ok(())
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn with(bytes: &[u8]) -> Result<(), &'static str> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        check(&file)
    }

    fn elf(kinds: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&MACHINE.to_le_bytes());
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = kinds.len() as u8;
        for kind in kinds {
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.resize(bytes.len() + 52, 0);
        }
        bytes
    }

    #[test]
    fn static_programs_are_fit() {
        assert_eq!(with(&elf(&[1, 1, 2])), Ok(()));
    }

    #[test]
    fn dynamic_programs_are_named_as_such() {
        assert!(
            with(&elf(&[6, INTERPRETER, 1]))
                .unwrap_err()
                .starts_with("is linked dynamically")
        );
        // This test has been built the usual way.
        let this = File::open(std::env::current_exe().unwrap()).unwrap();
        assert!(
            check(&this)
                .unwrap_err()
                .starts_with("is linked dynamically")
        );
    }

    #[test]
    fn other_files_are_refused() {
        for bytes in [&b""[..], b"#!/bin/sh\n", b"\x7fELF", &[0; 4096]] {
            assert!(with(bytes).unwrap_err().starts_with("is not an executable"));
        }
    }

    #[test]
    fn damage_is_an_error() {
        let whole = elf(&[1, 1]);
        for (at, value) in [
            (32, 0xff),
            (39, 0xff),
            (54, 55),
            (56, 0),
            (56, 3),
            (57, 0xff),
        ] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            assert!(with(&bytes).is_err(), "byte {at}");
        }
    }
}
