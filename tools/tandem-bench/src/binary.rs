//! What can be said of a program file: size, linking, hash, version.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::error::{Error, Result};

/// A file that a benchmark depends on.
#[derive(Clone, Debug, Serialize)]
pub struct FileFacts {
    /// Where it is (not the staged copy).
    pub path: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
    /// Hash of the content.
    pub sha256: String,
}

/// A program.
#[derive(Clone, Debug, Serialize)]
pub struct Program {
    /// The file.
    #[serde(flatten)]
    pub file: FileFacts,
    /// First line of `--version`.
    pub version: String,
    /// Runs without a dynamic loader.
    pub is_static: Option<bool>,
    /// Holds no symbol table.
    pub stripped: Option<bool>,
}

impl FileFacts {
    /// Of the file at `path`.
    pub fn of(path: &Path) -> Result<Self> {
        let path = path
            .canonicalize()
            .map_err(|error| Error::file("find", path, &error))?;
        let bytes = std::fs::metadata(&path)
            .map_err(|error| Error::file("read", &path, &error))?
            .len();
        let output = Command::new("sha256sum")
            .arg("-b")
            .arg("--")
            .arg(&path)
            .output();
        let sha256 = output
            .ok()
            .filter(|output| output.status.success())
            .and_then(|output| String::from_utf8(output.stdout).ok())
            .and_then(|text| Some(text.split(' ').next()?.trim_start_matches('\\').to_owned()))
            .ok_or_else(|| {
                let path = path.display();
                Error::new(format!(
                    "cannot hash {path}; is sha256sum (coreutils) installed?"
                ))
            })?;
        Ok(Self {
            path,
            bytes,
            sha256,
        })
    }
}

impl Program {
    /// Of the program at `path`.
    pub fn of(path: &Path) -> Result<Self> {
        let file = FileFacts::of(path)?;
        let content =
            std::fs::read(&file.path).map_err(|error| Error::file("read", path, &error))?;
        let elf = Elf::new(&content);
        let output = Command::new(&file.path)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| Error::file("run", &file.path, &error))?;
        let version = String::from_utf8_lossy(&output.stdout)
            .lines()
            .next()
            .unwrap_or("unknown")
            .trim()
            .to_owned();
        Ok(Self {
            file,
            version,
            is_static: elf.as_ref().and_then(|elf| Some(!elf.has_interpreter()?)),
            stripped: elf.as_ref().and_then(|elf| Some(!elf.has_symbols()?)),
        })
    }

    /// In a few words, for a table.
    pub fn describe(&self) -> String {
        let mut text = format!("{:.2} MiB", self.file.bytes as f64 / f64::from(1 << 20));
        match self.is_static {
            Some(true) => text += ", static",
            Some(false) => text += ", dynamic (libraries not counted)",
            None => {}
        }
        match self.stripped {
            Some(true) => text += ", stripped",
            Some(false) => text += ", not stripped",
            None => {}
        }
        text
    }
}

/// A 64-bit little-endian ELF file, only as far as is needed here.
struct Elf<'a>(&'a [u8]);

const PT_INTERP: u32 = 3;
const SHT_SYMTAB: u32 = 2;

impl<'a> Elf<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        bytes.starts_with(b"\x7fELF\x02\x01").then_some(Self(bytes))
    }

    fn number<const N: usize>(&self, at: u64) -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(self.0.get(at..at.checked_add(N)?)?);
        Some(u64::from_le_bytes(bytes))
    }

    fn has_interpreter(&self) -> Option<bool> {
        self.table(32, 54, 0, PT_INTERP)
    }

    fn has_symbols(&self) -> Option<bool> {
        self.table(40, 58, 4, SHT_SYMTAB)
    }

    /// Is there an entry of type `wanted` in the table whose offset and entry size stand at these places of the header?
    fn table(&self, offset_at: u64, size_at: u64, type_at: u64, wanted: u32) -> Option<bool> {
        let offset = self.number::<8>(offset_at)?;
        let size = self.number::<2>(size_at)?;
        for index in 0..self.number::<2>(size_at + 2)? {
            let entry = offset.checked_add(index * size + type_at)?;
            if self.number::<4>(entry)? == u64::from(wanted) {
                return Some(true);
            }
        }
        Some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_no_elf_file() {
        assert!(Elf::new(b"#!/bin/sh").is_none());
        let short = Elf::new(b"\x7fELF\x02\x01").unwrap();
        assert_eq!((short.has_interpreter(), short.has_symbols()), (None, None));
        let mut wild = b"\x7fELF\x02\x01".to_vec();
        wild.resize(64, 0xff);
        assert_eq!(Elf::new(&wild).unwrap().has_interpreter(), None);
    }

    #[test]
    fn this_test_is_a_program_with_symbols() {
        let own = std::env::current_exe().unwrap();
        let content = std::fs::read(own).unwrap();
        assert_eq!(Elf::new(&content).unwrap().has_symbols(), Some(true));
    }

    #[test]
    fn hash_of_a_known_file() {
        let empty = FileFacts::of(Path::new("/dev/null")).unwrap();
        assert!(empty.sha256.starts_with("e3b0c44298fc1c149afbf4c8996fb924"));
    }
}
