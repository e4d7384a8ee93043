//! The disk that all guests have, one after the other.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::random::Random;
use crate::sys;

/// A raw image, full of random bytes. Its file goes with the value.
#[derive(Debug)]
pub struct Image {
    /// The file.
    pub path: PathBuf,
}

const TMPFS: i64 = 0x0102_1994;
/// From Linux's include/uapi/linux/magic.h.
const NAMES: [(i64, &str); 7] = [
    (TMPFS, "tmpfs"),
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x2fc1_2fc1, "zfs"),
    (0x0102_1997, "9p"),
    (0x794c_7630, "overlay"),
];

impl Image {
    /// Makes it. Every block is written: nothing is allocated while it is measured.
    pub fn new(dir: &Path, mib: u64, direct: bool) -> Result<Self> {
        if direct && sys::filesystem(dir).is_ok_and(|kind| kind == TMPFS) {
            return Err(Error::new(format!(
                "--direct: {} is a tmpfs, which has no disk below; give a --disk-dir on one",
                dir.display()
            )));
        }
        let image = Self {
            path: dir.join(format!("tandem-bench-{}.raw", std::process::id())),
        };
        image
            .fill(mib)
            .map_err(|error| Error::file("write", &image.path, &error))?;
        Ok(image)
    }

    fn fill(&self, mib: u64) -> io::Result<()> {
        let mut file = File::create_new(&self.path)?;
        let mut random = Random::new(mib);
        let mut block = vec![0; 1 << 20];
        for _ in 0..mib {
            random.fill(&mut block);
            file.write_all(&block)?;
        }
        file.sync_all()
    }

    /// What the last guest wrote goes to the disk now, and not while the next one is measured.
    pub fn settle(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// The name of the file system that it is on.
    pub fn filesystem(&self) -> String {
        match sys::filesystem(&self.path) {
            Ok(kind) => NAMES
                .iter()
                .find(|(known, _)| *known == kind)
                .map_or_else(|| format!("type {kind:#x}"), |(_, name)| (*name).to_owned()),
            Err(error) => format!("unknown: {error}"),
        }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn an_image_is_full_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::new(dir.path(), 2, false).unwrap();
        let facts = fs::metadata(&image.path).unwrap();
        assert_eq!(facts.len(), 2 << 20);
        assert!(facts.blocks() * 512 >= 2 << 20);
        let bytes = fs::read(&image.path).unwrap();
        assert_ne!(bytes[..4096], bytes[1 << 20..][..4096]);
        assert!(!image.filesystem().starts_with("unknown"));
        image.settle().unwrap();
        let path = image.path.clone();
        drop(image);
        assert!(!path.exists());
    }
}
