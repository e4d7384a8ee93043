//! Programs written for Firecracker, with `tandem-vmm` in the place of `firecracker`: run this through `tools/lab`.
//!
//! | file        | whose client                                                                    |
//! |-------------|---------------------------------------------------------------------------------|
//! | `fctools`   | the crate of that name: one VM as it comes, one under `tandem-jailer`             |
//! | `firepilot` | the crate of that name                                                          |
//!
//! Nothing in the clients is changed or configured for Tandem but the paths of the programs. Each boots a stock kernel with a
//! drive and a network interface; that the guest has them is proved by what it writes to the drive, and by ping.

// Test code throughout: what is broken ends in a panic that says so.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod client_fctools;
mod client_firepilot;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use tests::artifacts::artifact;
use tests::patience;

/// What the host writes at the drive's start, and the guest after it.
const FROM_HOST: &str = "what the host has to say........";
const FROM_GUEST: &str = "what the guest answers to it....";

/// A tap of the lab's with the address 10.78.N.1; the guest's is 10.78.N.2. It goes with the test.
struct Tap {
    name: String,
    net: u8,
}

impl Tap {
    fn new(net: u8) -> Self {
        Self::of(net, None)
    }

    /// A tap that `user` may open, if not root alone.
    fn of(net: u8, user: Option<u32>) -> Self {
        let tap = Self {
            name: format!("client{net}"),
            net,
        };
        // What a run that was killed has left.
        let _ = tap.ip("link del").stderr(Stdio::null()).status();
        let user = user.map_or(String::new(), |user| format!(" user {user}"));
        let add = format!("tuntap add mode tap{user} dev");
        for change in [&add, "link set up dev"] {
            assert!(tap.ip(change).status().expect("ip").success(), "{change}");
        }
        let address = format!("address add 10.78.{net}.1/24 dev");
        assert!(tap.ip(&address).status().expect("ip").success());
        tap
    }

    fn ip(&self, words: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(words.split(' ')).arg(&self.name);
        command
    }

    /// Whether the guest answers.
    fn ping(&self) -> bool {
        let guest = format!("10.78.{}.2", self.net);
        let ping = Command::new("ping")
            .args(["-c", "1", "-W", "1", &guest])
            .stdout(Stdio::null())
            .status();
        ping.expect("ping").success()
    }

    /// Waits until the guest answers, or no longer does.
    #[track_caller]
    fn wait_until(&self, answers: bool) {
        let start = Instant::now();
        while self.ping() != answers {
            assert!(
                start.elapsed() < patience(),
                "the guest still {} ping",
                if answers {
                    "does not answer"
                } else {
                    "answers"
                }
            );
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = self.ip("link del").stderr(Stdio::null()).status();
    }
}

/// The files that a client is given.
struct Files {
    kernel: PathBuf,
    initrd: PathBuf,
    drive: PathBuf,
    /// The kernel's command line, with the guest's orders; `console` goes in front.
    boot_args: String,
}

/// Files in `directory` for a guest at `tap`.
fn files(directory: &Path, tap: &Tap) -> Files {
    let drive = directory.join("drive");
    let mut content = FROM_HOST.as_bytes().to_vec();
    content.resize(1 << 20, 0);
    fs::write(&drive, content).expect("the drive");
    let script = format!(
        "ip address add 10.78.{}.2/24 dev eth0 && ip link set eth0 up || exit 1
        [ \"$(head -c {} /dev/vda)\" = '{FROM_HOST}' ] || exit 1
        printf %s '{FROM_GUEST}' | dd of=/dev/vda bs=512 seek=1 conv=fsync 2>/dev/null || exit 1
        echo CLIENT-READY
        exec sleep 100000",
        tap.net,
        FROM_HOST.len(),
    );
    Files {
        kernel: artifact("vmlinux-6.12-cloud"),
        initrd: artifact("initramfs-toolbox-6.12-cloud"),
        drive,
        // As in these clients' own examples.
        boot_args: format!(
            "reboot=k panic=1 pci=off quiet tandem.test=run tandem.run={}",
            base64(script.as_bytes())
        ),
    }
}

/// Whether the guest has written to the drive.
fn guest_wrote(drive: &Path) -> bool {
    let content = fs::read(drive).expect("the drive");
    content[512..].starts_with(FROM_GUEST.as_bytes())
}

/// Waits for the guest's answer on the drive.
#[track_caller]
fn wait_for_guest(drive: &Path) {
    let start = Instant::now();
    while !guest_wrote(drive) {
        assert!(start.elapsed() < patience(), "the guest writes nothing");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    let output = Command::new("base64")
        .arg("-w0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .and_then(|mut child| {
            use std::io::Write;
            child.stdin.take().expect("a pipe").write_all(bytes)?;
            child.wait_with_output()
        })
        .expect("base64");
    String::from_utf8(output.stdout).expect("letters")
}

/// A runtime of one thread for a client.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}
