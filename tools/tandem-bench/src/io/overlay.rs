//! What the benchmark puts into the guest: an archive behind its initramfs, with an init, the jobs and this program.

use std::fmt::Write;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cpio::Archive;
use super::jobs::{Job, Part};
use super::network::{GUEST, HOST};
use crate::binary::Program;
use crate::error::{Error, Result};

/// For the kernel command line.
pub const INIT: &str = "rdinit=/bench/init";
const SCRIPT: &[u8] = include_bytes!("guest-init.sh");

/// Makes initramfs images for jobs.
#[derive(Debug)]
pub struct Overlay {
    initrd: PathBuf,
    /// Length of the initrd before anything is put behind it.
    length: u64,
    peer: Vec<u8>,
}

impl Overlay {
    /// `initrd` is a file of our own, and is changed.
    pub fn new(initrd: &Path) -> Result<Self> {
        let own = std::env::current_exe()
            .map_err(|error| Error::new(format!("cannot find this program: {error}")))?;
        if Program::of(&own)?.is_static != Some(true) {
            return Err(Error::new(
                "this program is not static, and the guest has to run it; start the benchmark as tools/bench",
            ));
        }
        let length = fs::metadata(initrd)
            .map_err(|error| Error::file("read", initrd, &error))?
            .len();
        Ok(Self {
            initrd: initrd.to_owned(),
            length,
            peer: fs::read(&own).map_err(|error| Error::file("read", &own, &error))?,
        })
    }

    /// Puts these jobs into the image.
    pub fn write(&self, jobs: &[&Job], time: Duration) -> Result<()> {
        let mut archive = Archive::default();
        archive.directory("bench");
        archive.program("bench/init", SCRIPT);
        archive.program("bench/peer", &self.peer);
        archive.program("bench/jobs", script(jobs, time).as_bytes());
        let archive = archive.finish();
        let write = |mut file: File| -> io::Result<()> {
            file.set_len(self.length)?;
            // An archive begins at a multiple of four; zeros between two are skipped.
            let pad = self.length.next_multiple_of(4) - self.length;
            file.write_all(&[0; 4][..pad as usize])?;
            file.write_all(&archive)
        };
        let open = OpenOptions::new().append(true).open(&self.initrd);
        open.and_then(write)
            .map_err(|error| Error::file("write to", &self.initrd, &error))
    }
}

/// For the guest's shell; `job`, `wait_for` and `fail` are its init's.
fn script(jobs: &[&Job], time: Duration) -> String {
    let mut text = String::new();
    let has = |part| jobs.iter().any(|job| job.part == part);
    if has(Part::Block) {
        text += "wait_for disk test -b /dev/vda\n";
    }
    if has(Part::Net) {
        text += "wait_for 'network interface' test -e /sys/class/net/eth0\n";
        let _ = writeln!(text, "ip address add {GUEST}/24 dev eth0");
        text += "ip link set eth0 up\n";
        let _ = writeln!(
            text,
            "wait_for 'answer from the host' ping -q -c 1 -W 1 {HOST} >/dev/null"
        );
    }
    for job in jobs {
        let _ = writeln!(text, "job {} {}", job.key, job.command(time));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::jobs::JOBS;
    use super::*;

    #[test]
    fn the_script_sets_up_what_its_jobs_need() {
        let one = |part| {
            let jobs: Vec<_> = JOBS.iter().filter(|job| job.part == part).collect();
            script(&jobs, Duration::from_secs(2))
        };
        let (block, net) = (one(Part::Block), one(Part::Net));
        assert!(block.contains("/dev/vda") && !block.contains("eth0"));
        assert!(net.contains("ip link set eth0 up") && !net.contains("/dev/vda"));
        assert_eq!(block.matches("\njob ").count(), 8);
    }

    #[test]
    fn an_image_is_written_anew_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let initrd = dir.path().join("initrd");
        fs::write(&initrd, b"12345").unwrap();
        let overlay = Overlay {
            initrd: initrd.clone(),
            length: 5,
            peer: b"peer".to_vec(),
        };
        let jobs: Vec<_> = JOBS.iter().collect();
        overlay.write(&jobs, Duration::from_secs(2)).unwrap();
        let long = fs::read(&initrd).unwrap();
        overlay.write(&jobs[..1], Duration::from_secs(2)).unwrap();
        let short = fs::read(&initrd).unwrap();
        assert!(short.len() < long.len());
        for image in [long, short] {
            assert!(image.starts_with(&[b"12345\0\0\0".as_slice(), b"070701"].concat()));
        }
    }
}
