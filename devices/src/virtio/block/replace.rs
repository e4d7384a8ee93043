//! Another size of the disk, or another disk, while the device is in use.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::super::UpdateError;
use super::disk::DiskOptions;
use super::{Block, CacheType, disk};

impl Block {
    /// Puts the disk's present size where the driver and the checks find it.
    pub(super) fn resized(&mut self, swapped: bool) {
        let before = self.geometry.sectors();
        self.geometry.bytes = self.disk.geometry().bytes;
        let sectors = self.geometry.sectors();
        if sectors != before {
            log::info!(
                "drive {}: has {sectors} sectors now, not {before}",
                self.options.id
            );
        }
        if let Some(active) = &mut self.active {
            active.limits.sectors = sectors;
            if sectors != before || swapped {
                active.activation.interrupt.config_changed();
            }
        }
    }

    /// Brings another file into the disk's place, unless it is the same, or has the same path and is not asked for by
    /// `reopen`. Nothing is under way.
    pub(super) fn swap(&mut self, path: PathBuf, reopen: bool) -> Result<bool, UpdateError> {
        let options = DiskOptions {
            path,
            ..self.options.disk.clone()
        };
        let same = match (
            std::fs::metadata(&options.path),
            self.disk.file().metadata(),
        ) {
            (Ok(new), Ok(old)) => {
                (new.dev(), new.ino(), new.rdev()) == (old.dev(), old.ino(), old.rdev())
            }
            _ => false,
        };
        if options.path == self.options.disk.path && !reopen {
            if !same {
                // A guest that has the disk mounted must not find another one because somebody wanted other limits.
                log::warn!(
                    "drive {}: {} is not the file any more that was opened, and the guest keeps that one; give another path to have it replaced",
                    self.options.id,
                    options.path.display()
                );
            }
            return Ok(false);
        }
        if same {
            self.options.disk = options;
            return Ok(false);
        }
        let disk = disk::open(&options).map_err(|error| UpdateError::Refused(error.to_string()))?;
        if disk.geometry().block > self.geometry.block {
            let block = disk.geometry().block;
            return Err(UpdateError::Refused(format!(
                "{} has blocks of {block} bytes, and the guest knows the disk by smaller ones; give a disk that has these",
                options.path.display()
            )));
        }
        if self.options.cache == CacheType::Writeback {
            // The guest's next flush is the new disk's.
            self.sync_disk().map_err(|error| {
                let path = self.options.disk.path.display();
                UpdateError::Refused(format!("cannot make {path} safe first: {error}"))
            })?;
        }
        self.disk = disk;
        self.options.disk = options;
        Ok(true)
    }
}
