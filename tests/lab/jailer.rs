//! A VM in a jail: a stock kernel under `tandem-jailer`, as an ordinary user. What the jailer refuses and what a jail consists of is
//! tested with the jailer itself (`tools/tandem-jailer/tests`); here it is a VM process that has to work in it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use tests::artifacts::artifact;
use tests::guest_shell::GuestShell;
use tests::patience;
use tests::program::{tandem_jailer, tandem_vmm};
use tests::vm::VmBuilder;

use crate::kernels::{Kernel, commands};
use crate::net::run;

/// An ordinary user, and a group of the same number.
const USER: u32 = 30_001;

/// A place for jails that takes device nodes, which neither the lab's `/var/tmp` nor the host's file tree does there.
struct Base(TempDir);

impl Base {
    fn new() -> Self {
        let dir = TempDir::new().expect("a directory for temporary files (TMPDIR)");
        let path = dir.path().display().to_string();
        run("mount", &format!("-t tmpfs -o mode=755 jails {path}"));
        Self(dir)
    }

    /// The root of the only jail, on the host.
    fn root(&self) -> PathBuf {
        self.0.path().join("tandem-vmm/vm/root")
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// A network namespace with the tap `tap0`, which belongs to the user and has the address 10.99.0.1.
struct Network(&'static str);

impl Network {
    fn new(name: &'static str) -> Self {
        run("ip", &format!("netns add {name}"));
        let network = Self(name);
        for command in [
            &format!("tuntap add dev tap0 mode tap user {USER}"),
            "address add 10.99.0.1/24 dev tap0",
            "link set tap0 up",
        ] {
            run("ip", &format!("-n {name} {command}"));
        }
        network
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", self.0]).status();
    }
}

fn proc(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(proc(pid, "status")).expect("it runs");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let words: Vec<_> = line.expect("a field").split_whitespace().collect();
    words.join(" ")
}

/// All that a jail promises, as the kernel tells it of the process.
fn is_locked_in(pid: u32, root: &Path) {
    let same = [USER.to_string().as_str(); 4].join(" ");
    assert_eq!(
        [status(pid, "Uid"), status(pid, "Gid")],
        [same.clone(), same]
    );
    assert_eq!(status(pid, "Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(fs::read(proc(pid, "environ")).unwrap(), b"");
    // What is seen through the process's root is the jail, and its only mounts are below it.
    let seen = fs::read(proc(pid, "root/vm.json")).unwrap();
    assert!(seen.starts_with(b"{"));
    assert!(!proc(pid, "root/etc").exists());
    let mounts = fs::read_to_string(proc(pid, "mountinfo")).unwrap();
    for line in mounts.lines() {
        let point = line.split(' ').nth(4).unwrap();
        assert!(
            ["/", "/vm.json", "/kernel", "/initrd", "/disk"].contains(&point),
            "{line}"
        );
    }
    assert!(
        mounts.contains("/tandem-vmm/vm/root / rw,nosuid"),
        "{mounts}"
    );
    // Files that it has open are the jail's, or what it has made itself.
    for entry in fs::read_dir(proc(pid, "fd")).unwrap() {
        let entry = entry.unwrap();
        if ["0", "1", "2"]
            .iter()
            .any(|standard| entry.file_name() == *standard)
        {
            continue;
        }
        let Ok(target) = entry.path().read_link() else {
            continue;
        };
        let text = target.to_str().unwrap();
        let inside = [
            "/dev/",
            "/run/",
            "/disk",
            "/kernel",
            "/initrd",
            "/vm.json",
            "/var/cache/tandem/",
        ];
        let own = ["anon_inode:", "socket:", "pipe:", "/memfd:"];
        assert!(
            inside
                .iter()
                .chain(&own)
                .any(|prefix| text.starts_with(prefix)),
            "{text} is open"
        );
    }
    assert!(root.join("tandem-vmm").is_file());
}

/// The group of the process, below the hierarchy's root.
fn group(pid: u32) -> PathBuf {
    let own = fs::read_to_string(proc(pid, "cgroup")).unwrap();
    let path = own.trim_end().strip_prefix("0::/").expect("version 2");
    Path::new("/sys/fs/cgroup").join(path)
}

/// A process that nothing else ends if the test fails.
struct Daemon(u32);

impl Drop for Daemon {
    fn drop(&mut self) {
        // SAFETY: kill takes no pointer. The number is that of a process in a jail, or was a moment ago.
        unsafe { libc::kill(self.0 as libc::pid_t, libc::SIGKILL) };
    }
}

/// Waits until nothing is left in a group, and removes it.
fn end_of(group: &Path) {
    let deadline = Instant::now() + patience();
    while fs::remove_dir(group).is_err() {
        assert!(Instant::now() < deadline, "{} is in use", group.display());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_guest_has_disk_network_and_sockets_in_a_jail() {
    let base = Base::new();
    let network = Network::new("jailed");
    let mut builder = commands(Kernel::GENERIC_6_12);
    let disk = builder.path("disk.img");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    chown(&disk, Some(USER), Some(USER)).unwrap();
    builder.config["drives"] = json!([{ "drive_id": "d", "path_on_host": "/disk", "is_root_device": false, "cache_type": "Writeback" }]);
    builder.config["network-interfaces"] = json!([{ "iface_id": "eth0", "host_dev_name": "tap0" }]);
    builder.config["vsock"] = json!({ "guest_cid": 3, "uds_path": "/run/v.sock" });
    let bind = format!("{}:/disk", disk.display());
    let netns = network.path();
    let builder = builder.jailed(
        base.0.path(),
        USER,
        &[
            "--bind",
            &bind,
            "--netns",
            &netns,
            "--cgroup",
            "memory.max=600M",
            "--cgroup",
            "cpu.max=95000 100000",
            "--resource-limit",
            "no-file=500",
            "--parent-cgroup",
            "tandem-lab/vms",
        ],
    );
    let mut shell = GuestShell::boot(builder);
    let pid = shell.vm().pid();

    is_locked_in(pid, &base.root());
    let group = group(pid);
    assert_eq!(group, Path::new("/sys/fs/cgroup/tandem-lab/vms/vm"));
    let limit = |name: &str| fs::read_to_string(group.join(name)).unwrap();
    assert_eq!(limit("memory.max").trim_end(), (600 << 20).to_string());
    assert_eq!(limit("cpu.max").trim_end(), "95000 100000");
    assert!(limit("memory.current").trim_end().parse::<u64>().unwrap() > 64 << 20);
    let limits = fs::read_to_string(proc(pid, "limits")).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    assert!(files.contains(" 500 "), "{files}");
    let own = fs::read_link(proc(pid, "ns/net")).unwrap();
    assert_ne!(own, fs::read_link("/proc/self/ns/net").unwrap());

    // Disk: what the guest writes is in the host's file.
    shell.ok("printf 'from the guest' | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null");
    assert!(fs::read(&disk).unwrap().starts_with(b"from the guest"));
    // Network: the tap of the namespace, which the lab's own network does not have.
    shell.ok("ip address add 10.99.0.2/24 dev eth0 && ip link set eth0 up");
    let text = shell.ok("ping -q -c 3 10.99.0.1");
    assert!(text.contains("3 received"), "{text}");
    // Sockets: a program of the host's listens in the jail.
    let path = base.root().join("run/v.sock_52");
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let heard = thread::spawn(move || {
        let mut text = String::new();
        listener
            .accept()
            .unwrap()
            .0
            .read_to_string(&mut text)
            .unwrap();
        text
    });
    shell.ok("echo hello | socat -u - VSOCK-CONNECT:2:52");
    assert_eq!(heard.join().unwrap(), "hello\n");

    // Its exit code is what the caller of the jailer gets.
    let ended = shell.power_off();
    assert_eq!(ended.stderr, "");
    end_of(&group);
}

/// A bzImage, whose kernel is decompressed into a cache: there is no home in a jail, and no variable says where.
#[test]
fn a_daemon_in_namespaces_of_its_own_boots_and_stops() {
    let base = Base::new();
    let kernel = artifact("bzimage-6.12-cloud");
    let mut builder = VmBuilder::with_kernel(kernel)
        .initrd(&artifact("initramfs-test-6.12-cloud"))
        .boot(
            "boot_args",
            "console=ttyS0 panic=-1 quiet tandem.test=powerbutton",
        )
        .option("--stop-timeout", "120")
        .option("--log-path", "/run/log");
    builder.config["serial"] = json!({ "serial_out_path": "/run/console" });
    let builder = builder.jailed(
        base.0.path(),
        USER,
        &[
            "--new-pid-ns",
            "--daemonize",
            "--cgroup",
            "memory.max=700M",
            "--cgroup",
            "pids.max=20",
        ],
    );
    let mut command = builder.command();
    let output = command
        .env("SECRET", "1")
        .stdin(Stdio::null())
        .output()
        .expect("the jailer starts");
    // It ends, and has let go of its streams, while the machine runs.
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), text.as_ref()), (Some(0), ""));
    let root = base.root();
    let pid = fs::read_to_string(root.join("tandem-vmm.pid")).unwrap();
    let pid: u32 = pid.parse().unwrap();
    let daemon = Daemon(pid);
    let console = || fs::read_to_string(root.join("run/console")).unwrap_or_default();
    let log = || fs::read_to_string(root.join("run/log")).unwrap_or_default();
    let deadline = Instant::now() + patience();
    while !console().contains("TANDEM-READY powerbutton") {
        assert!(
            Instant::now() < deadline && proc(pid, "root").exists(),
            "{}\n{}",
            console(),
            log()
        );
        thread::sleep(Duration::from_millis(10));
    }

    is_locked_in(pid, &root);
    assert_eq!(status(pid, "NSpid"), format!("{pid} 1"));
    for number in 0..3 {
        let stream = proc(pid, &format!("fd/{number}")).metadata().unwrap();
        assert_eq!(stream.rdev(), libc::makedev(1, 3), "/dev/null");
    }
    let group = group(pid);
    assert_eq!(group, Path::new("/sys/fs/cgroup/tandem-vmm/vm"));
    assert_eq!(fs::read_to_string(group.join("pids.max")).unwrap(), "20\n");
    let cache = root.join("var/cache/tandem/kernels");
    assert_eq!(
        fs::read_dir(cache)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().metadata().unwrap().len() > 1 << 20)
            .count(),
        1
    );
    assert!(!log().contains("cannot be used"), "{}", log());

    // First process of its namespace that it is, a signal reaches it.
    // SAFETY: kill takes no pointer; the process is the jail's, which nothing else ends.
    assert_eq!(unsafe { libc::kill(pid as libc::pid_t, libc::SIGTERM) }, 0);
    end_of(&group);
    std::mem::forget(daemon);
    assert!(
        console().contains("POWERBUTTON"),
        "{}\n{}",
        console(),
        log()
    );
}

/// Without a configuration, the VM process waits in its jail for requests: a client connects to the socket that it makes there.
#[test]
fn a_client_reaches_the_control_socket_of_a_jail() {
    let base = Base::new();
    let dir = TempDir::new().unwrap();
    let program = dir.path().join("tandem-vmm");
    fs::copy(tandem_vmm(), &program).unwrap();
    let user = USER.to_string();
    let output = Command::new(tandem_jailer())
        .args(["--id", "vm", "--uid", &user, "--gid", &user, "--new-pid-ns"])
        .args(["--daemonize", "--chroot-base-dir"])
        .args([base.0.path(), Path::new("--exec-file"), &program])
        .args(["--", "--api-sock", "/run/firecracker.socket"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), text.as_ref()), (Some(0), ""));
    let root = base.root();
    let pid = fs::read_to_string(root.join("tandem-vmm.pid")).unwrap();
    let daemon = Daemon(pid.parse().unwrap());
    let socket = root.join("run/firecracker.socket");
    let deadline = Instant::now() + patience();
    let mut client = loop {
        match UnixStream::connect(&socket) {
            Ok(client) => break client,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(socket.metadata().unwrap().uid(), USER);
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("\"id\":\"vm\""), "{answer}");
    drop(daemon);
    let deadline = Instant::now() + patience();
    while proc(pid.parse().unwrap(), "root").read_link().is_ok() {
        assert!(Instant::now() < deadline, "it does not end");
        thread::sleep(Duration::from_millis(5));
    }
}
