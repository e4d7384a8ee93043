//! Answers while there is a guest: one that boots, uses its disk, and is paused.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::client::Client;
use super::sample::Vmm;
use crate::error::{Error, Result};
use crate::io::cpio::Archive;
use crate::io::disk::Image;
use crate::process::{Failure, failed};
use crate::signals;
use crate::stage::Stage;
use crate::sys::monotonic_ns;

/// Time between an answer and the next request: most of the processor is the guest's, as it would be with a client that
/// looks now and then.
const PAUSE: Duration = Duration::from_millis(2);
/// Longest time until the guest uses its disk.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// Size of the disk in MiB.
const DISK_MIB: u64 = 64;
/// What the guest says when it has used its disk a thousand times, and goes on to.
const BUSY: &str = "TANDEM-BUSY";
/// Its init.
const INIT: &[u8] = include_bytes!("guest-init.sh");

/// Nanoseconds for each request.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Latencies {
    /// Before the start, to hold the others against.
    pub before_ns: Vec<u64>,
    /// From InstanceStart until the guest uses its disk.
    pub boots_ns: Vec<u64>,
    /// While it does.
    pub disk_ns: Vec<u64>,
    /// While it is paused in the middle of that.
    pub paused_ns: Vec<u64>,
}

/// The guest that every VMM has.
pub struct Guest {
    kernel: PathBuf,
    initrd: PathBuf,
    disk: Image,
}

impl Guest {
    /// Copies its files to memory.
    pub fn new(stage: &Stage, kernel: Option<&Path>, initrd: Option<&Path>) -> Result<Self> {
        let (Some(kernel), Some(initrd)) = (kernel, initrd) else {
            return Err(Error::new(
                "--guest: needs --kernel and --initrd; tools/bench gives them",
            ));
        };
        let initrd = stage.copy(initrd, "initrd")?;
        add_init(&initrd).map_err(|error| Error::file("write to", &initrd, &error))?;
        Ok(Self {
            kernel: stage.copy(kernel, "vmlinux")?,
            initrd,
            disk: Image::new(&stage.subdirectory("disk")?, DISK_MIB, false)?,
        })
    }

    /// Starts it, asks all the while, and adds to `latencies`.
    pub fn ask(
        &self,
        vmm: &mut Vmm,
        requests: u32,
        latencies: &mut Latencies,
    ) -> std::result::Result<(), Failure> {
        let mut client = Client::connect(&vmm.socket).map_err(failed("connect to it"))?;
        for _ in 0..requests {
            latencies.before_ns.push(one(&mut client)?);
        }
        let boot = json!({
            "kernel_image_path": self.kernel,
            "initrd_path": self.initrd,
            "boot_args": "console=ttyS0 quiet loglevel=1 panic=-1 reboot=t rdinit=/bench/init",
        });
        let drive = json!({
            "drive_id": "disk",
            "path_on_host": self.disk.path,
            "is_root_device": false,
            "is_read_only": false,
        });
        for (path, body) in [
            ("/boot-source", boot),
            (
                "/machine-config",
                json!({ "vcpu_count": 1, "mem_size_mib": 256 }),
            ),
            ("/drives/disk", drive),
            ("/actions", json!({ "action_type": "InstanceStart" })),
        ] {
            client
                .done("PUT", path, &body)
                .map_err(failed("start its guest"))?;
        }
        let limit_ns = monotonic_ns() + BOOT_LIMIT.as_nanos() as u64;
        while !vmm.running.has_said(BUSY)? {
            latencies.boots_ns.push(one(&mut client)?);
            if monotonic_ns() > limit_ns {
                let seconds = BOOT_LIMIT.as_secs();
                let words = vmm.running.last_words();
                return Err(format!("no {BUSY} from its guest in {seconds} s; {words}").into());
            }
        }
        for _ in 0..requests {
            latencies.disk_ns.push(one(&mut client)?);
        }
        client
            .done("PATCH", "/vm", &json!({ "state": "Paused" }))
            .map_err(failed("pause its guest"))?;
        for _ in 0..requests {
            latencies.paused_ns.push(one(&mut client)?);
        }
        Ok(())
    }
}

/// Asks once, after a while.
fn one(client: &mut Client) -> std::result::Result<u64, Failure> {
    if signals::stopped() {
        return Err(Failure::Interrupted);
    }
    thread::sleep(PAUSE);
    let start_ns = monotonic_ns();
    client
        .ask()
        .and_then(|()| client.answer())
        .map_err(failed("get an answer while it has a guest"))?;
    Ok(monotonic_ns() - start_ns)
}

/// Puts the init behind the initrd, which is a file of our own.
fn add_init(initrd: &Path) -> std::io::Result<()> {
    let mut archive = Archive::default();
    archive.directory("bench");
    archive.program("bench/init", INIT);
    let mut file = OpenOptions::new().append(true).open(initrd)?;
    let length = file.metadata()?.len();
    // An archive begins at a multiple of four; zeros between two are skipped.
    let pad = length.next_multiple_of(4) - length;
    file.write_all(&[0; 4][..pad as usize])?;
    file.write_all(&archive.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_goes_behind_the_initrd() {
        let dir = tempfile::tempdir().unwrap();
        let initrd = dir.path().join("initrd");
        std::fs::write(&initrd, b"12345").unwrap();
        add_init(&initrd).unwrap();
        let image = std::fs::read(&initrd).unwrap();
        assert!(image.starts_with(&[b"12345\0\0\0".as_slice(), b"070701"].concat()));
        let text = String::from_utf8_lossy(&image);
        assert!(text.contains("bench/init") && text.contains(&format!("echo {BUSY}")));
    }
}
