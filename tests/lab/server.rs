//! Lift and shift: the disk of a Debian server, set up as for any machine (`tools/lib/disk.sh`), boots by its own kernel and
//! initrd, gets its addresses, serves HTTP and SSH, and switches itself off when the power button is pressed.
//!
//! Each server has two interfaces, as a boot takes minutes in an emulated lab: one at a tap, where a DHCP server of the lab's
//! answers; one at passt. The VM's process and passt belong to an ordinary user, who owns the tap.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tests::artifacts::artifact;
use tests::capture::{ENDED, tail};
use tests::kernel_log::complaints;
use tests::vm::{Vm, VmBuilder};
use tests::{in_emulated_lab, patience};

use crate::net::{NOBODY, Passt, Tap, kvm_group, run};

/// Where the root file system begins on the disk (`tools/lib/disk.sh`).
const ROOT_OFFSET: u64 = 1 << 20;
/// Between two attempts to reach a server that is not up yet.
const AGAIN: Duration = Duration::from_millis(500);

/// How long a server may take from its kernel to its last service.
fn boot_patience() -> Duration {
    patience() * if in_emulated_lab() { 4 } else { 10 }
}

/// A DHCP server of the lab's at a tap. It goes with the test.
struct Dhcp(Child);

impl Dhcp {
    fn serve(tap: &Tap, dir: &Path) -> Self {
        let config = dir.join("udhcpd.conf");
        let leases = dir.join("leases");
        fs::write(&leases, "").unwrap();
        let text = format!(
            "interface {}\nstart {guest}\nend {guest}\nmax_leases 1\nlease_file {}\npidfile {}\n\
             option subnet 255.255.255.0\noption lease 86400\n",
            tap.name,
            leases.display(),
            dir.join("udhcpd.pid").display(),
            guest = tap.guest(),
        );
        fs::write(&config, text).unwrap();
        let child = Command::new("busybox")
            .args(["udhcpd", "-f"])
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("busybox is installed");
        Self(child)
    }
}

impl Drop for Dhcp {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One GET, and what comes back below the headers.
fn get(address: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, patience())?;
    stream.set_read_timeout(Some(patience()))?;
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: server\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    match end {
        Some(end) if answer.starts_with(b"HTTP/1.1 200 ") => Ok(answer.split_off(end + 4)),
        _ => Err(io::Error::other(
            String::from_utf8_lossy(&answer).into_owned(),
        )),
    }
}

/// A server that runs.
struct Server {
    vm: Vm,
    key: PathBuf,
}

impl Server {
    /// Waits for the web server at `address`.
    #[track_caller]
    fn wait_for_http(&self, address: SocketAddr) {
        let deadline = Instant::now() + boot_patience();
        loop {
            match get(address, "/") {
                Ok(page) => return assert_eq!(page, b"This is a Debian server.\n"),
                Err(error) => {
                    assert!(
                        Instant::now() < deadline,
                        "{address}: {error}\n{}",
                        self.tail()
                    );
                }
            }
            self.rest(address);
        }
    }

    /// Runs a command on the server over SSH, once that is up.
    #[track_caller]
    fn ssh(&self, address: SocketAddr, command: &str) -> String {
        let limit = boot_patience();
        let deadline = Instant::now() + limit;
        let mut ssh = Command::new("ssh");
        let timeout = format!("ConnectTimeout={}", limit.as_secs());
        for option in [
            "BatchMode=yes",
            "LogLevel=ERROR",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            &timeout,
        ] {
            ssh.args(["-o", option]);
        }
        ssh.arg("-i").arg(&self.key);
        ssh.args(["-p", &address.port().to_string()]);
        ssh.arg(format!("root@{}", address.ip())).arg(command);
        ssh.stdin(Stdio::null());
        loop {
            let output = ssh.output().expect("ssh is installed");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() {
                return text;
            }
            // 255 is ssh's own: it did not get as far as the command.
            let again = output.status.code() == Some(255) && Instant::now() < deadline;
            assert!(
                again,
                "{address}: {command}: {}\n{text}\n{}\n{}",
                output.status,
                String::from_utf8_lossy(&output.stderr),
                self.tail()
            );
            self.rest(address);
        }
    }

    /// Waits a little: nothing tells when a guest begins to listen. That it is over is told.
    #[track_caller]
    fn rest(&self, address: SocketAddr) {
        if let Err(seen) = self.vm.output().wait_until(AGAIN, |_| None::<()>)
            && seen.starts_with(ENDED)
        {
            panic!("{address}: {}", self.tail());
        }
    }

    fn tail(&self) -> String {
        format!(
            "standard error of tandem-vmm:\n{}\nlast on the console:\n{}",
            self.vm.errors(),
            tail(&self.vm.output().so_far())
        )
    }
}

/// The server from its boot to its end. `devices` is where its disk and its two interfaces must have been found.
fn serve(transport: &str, vcpus: u8, devices: [&str; 3]) {
    let disk = artifact("disk-debian");
    let beside = |name: &str| disk.parent().expect("it is in a directory").join(name);
    let (tap, uplink) = (Tap::new(&format!("user {NOBODY}")), Tap::new(""));
    uplink.uplink();

    let mut builder = VmBuilder::with_kernel(beside("vmlinuz"))
        .initrd(&beside("initrd.img"))
        .boot("boot_args", "root=LABEL=debian ro console=ttyS0 panic=-1")
        .vcpus(vcpus)
        .memory(512)
        .option("--stop-timeout", boot_patience().as_secs().to_string())
        .as_user(NOBODY, kvm_group());
    let (image, socket) = (builder.path("disk.img"), builder.path("passt"));
    let cache = builder.path("kernels");
    builder = builder.option("--kernel-cache", &cache);
    // What holds a cache must be the user's own.
    fs::create_dir(&cache).unwrap();
    chown(&cache, Some(NOBODY), None).unwrap();
    run(
        "cp",
        &format!("--sparse=always {} {}", disk.display(), image.display()),
    );
    chown(&image, Some(NOBODY), None).unwrap();
    // ssh takes no key that others may read.
    let key = builder.path("key");
    fs::copy(beside("id_ed25519"), &key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    builder.config["machine-config"]["transport"] = json!(transport);
    builder.config["drives"] =
        json!([{ "drive_id": "root", "path_on_host": image, "is_root_device": false }]);
    builder.config["network-interfaces"] = json!([
        { "iface_id": "tap", "host_dev_name": tap.name, "guest_mac": "06:00:0a:4d:00:02" },
        { "iface_id": "passt", "backend": "passt", "socket_path": socket, "guest_mac": "06:00:0a:4d:00:03" },
    ]);
    let _passt = Passt::with(&socket, &["-t", "8080:80,2222:22"]);
    let _dhcp = Dhcp::serve(&tap, builder.dir.path());
    let began = Instant::now();
    let server = Server {
        vm: builder.start(),
        key,
    };
    let status = fs::read_to_string(format!("/proc/{}/status", server.vm.pid())).unwrap();
    assert!(status.contains(&format!("Uid:\t{NOBODY}\t")), "{status}");

    let at = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
    let (guest, host) = (tap.guest(), "127.0.0.1");
    server.wait_for_http(at(&guest, 80));
    println!("{transport}: HTTP after {:?}", began.elapsed());
    server.wait_for_http(at(host, 8080));
    // All that is started at boot has been, and none of it failed. A login takes long where all is emulated: two do.
    let found = server.ssh(
        at(&guest, 22),
        "systemctl is-system-running --wait; systemctl --failed --no-legend; nproc; findmnt -no SOURCE,FSTYPE /;
         readlink -f /sys/class/block/vda; for i in /sys/class/net/e*; do readlink -f $i; done",
    );
    println!("{transport}: all is up after {:?}", began.elapsed());
    let start = format!("running\n{vcpus}\n/dev/vda1 ext4\n");
    assert!(found.starts_with(&start), "{found}\n{}", server.tail());
    for device in devices {
        assert!(
            found.lines().any(|line| line.contains(device)),
            "no {device} in\n{found}"
        );
    }
    // A file that is written there comes over either network as it was, and is on the disk afterwards.
    let answer = server.ssh(
        at(host, 2222),
        "head -c 4M /dev/urandom >/var/www/html/random && sha256sum </var/www/html/random && dmesg",
    );
    let (sum, messages) = answer.split_once('\n').expect("a sum");
    assert_eq!(sum.find(' '), Some(64), "{answer}");
    let complaints = complaints(messages);
    assert!(complaints.is_empty(), "{complaints:#?}\n{messages}");
    for address in [at(&guest, 80), at(host, 8080)] {
        let copy = server.vm.path("copy");
        let page = get(address, "/random").unwrap_or_else(|error| {
            // The other network may be able to tell.
            let other = if address.port() == 80 {
                at(host, 2222)
            } else {
                at(&guest, 22)
            };
            let state = server.ssh(
                other,
                "ss -tinOm; ip -s link; cat /proc/interrupts; dmesg | tail",
            );
            panic!("{address}: {error}\n{state}\n{}", server.tail())
        });
        fs::write(&copy, page).unwrap();
        assert_eq!(
            run("sha256sum", copy.to_str().unwrap())[..64],
            sum[..64],
            "{address}"
        );
    }

    server.vm.signal(libc::SIGTERM);
    let ended = server.vm.wait_at_most(boot_patience());
    assert_eq!(ended.code, 0, "{}\n{}", ended.stderr, tail(&ended.stdout));
    assert_eq!(ended.stderr, "");
    assert!(ended.text().contains("reboot: Power down"));
    println!("{transport}: off after {:?}", began.elapsed());
    let root = format!("{}?offset={ROOT_OFFSET}", image.display());
    run("e2fsck", &format!("-fn {root}"));
    let kept = ended.path("kept");
    let dump = format!("dump /var/www/html/random {}", kept.display());
    let debugfs = Command::new("debugfs")
        .args(["-R", &dump, &root])
        .output()
        .expect("debugfs is installed");
    assert!(debugfs.status.success(), "{debugfs:?}");
    assert_eq!(run("sha256sum", kept.to_str().unwrap())[..64], sum[..64]);
}

#[test]
fn a_debian_server_over_pci() {
    serve(
        "pci",
        1,
        [
            "/0000:00:01.0/virtio0/block/vda",
            "/0000:00:02.0/virtio1/net/",
            "/0000:00:03.0/virtio2/net/",
        ],
    );
}

#[test]
fn a_debian_server_over_mmio() {
    serve(
        "mmio",
        1,
        [
            "/LNRO0005:00/virtio0/block/vda",
            "/LNRO0005:01/virtio1/net/",
            "/LNRO0005:02/virtio2/net/",
        ],
    );
}
