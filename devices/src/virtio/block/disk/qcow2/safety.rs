//! Bringing to the disk what was written, and what is left to do when that fails.
//!
//! The kernel tells of a failed writeback once for each time that a file was opened, and the pages count as clean from then
//! on: the next fdatasync(2) succeeds, and what was lost stays lost. Tables must not name clusters whose contents were lost, so
//! after one failure nothing is written any more. The image has a description of its file for itself: a failure that the
//! engine's flush was told of is told here again, even if that one's result has not been looked at yet.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::super::sync;

/// Whether all that was written can still get to the disk.
#[derive(Default)]
pub struct Safety {
    /// The image's file, opened once more. Before it is there, the one that is used for all else.
    pub own: Option<File>,
    lost: bool,
}

impl Safety {
    /// With a description of the file that nobody else syncs by.
    pub fn new(own: File) -> Self {
        Self {
            own: Some(own),
            lost: false,
        }
    }

    /// Brings to the disk what was written to `file`.
    ///
    /// # Errors
    /// What the host said, or this failed before.
    pub fn sync(&mut self, file: &File) -> io::Result<()> {
        self.check()?;
        let fd = self.own.as_ref().unwrap_or(file).as_raw_fd();
        sync(fd).inspect_err(|error| self.fail(error))
    }

    /// Nothing is to be written from here on.
    pub fn fail(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.lost, true) {
            log::error!(
                "a qcow2 image could not be brought to the disk ({error}): what was written since the last flush may be lost, and nothing more is written to it; stop the guest, see to the host's disk, and check the image with qemu-img check"
            );
        }
    }

    /// # Errors
    /// Something was lost.
    pub fn check(&self) -> io::Result<()> {
        if self.lost {
            return Err(io::Error::other(
                "the image could not be brought to the disk before, and is not written any more",
            ));
        }
        Ok(())
    }
}
