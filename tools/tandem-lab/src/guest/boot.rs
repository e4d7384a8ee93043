//! Makes the emulated machine look like the host: modules, the host's tree over 9p, and the mounts a system has.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::sys::{machine, process};

/// Where the kernel command line says that the host keeps the directory with `lib/modules`.
const KERNEL_DIRECTORY: &str = "tandem.kernel_directory=";
/// How many command ports there are, likewise.
const PORTS: &str = "tandem.ports=";

/// Does it all, and returns the open ports: the control port, then those for commands.
pub fn boot() -> io::Result<Vec<File>> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        fs::create_dir_all(target)?;
        match machine::mount(kind, Path::new(target), kind, 0, "") {
            // The kernel may have mounted /dev on its own.
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => {
                return Err(context(error, &format!("mounting {target}")));
            }
            _ => {}
        }
    }
    load_modules()?;
    let command_line = fs::read_to_string("/proc/cmdline")?;
    let word = |key| {
        command_line
            .split_whitespace()
            .find_map(|word: &str| word.strip_prefix(key))
    };
    let count = word(PORTS)
        .and_then(|number| number.parse().ok())
        .unwrap_or(1usize);
    let mut ports = vec![open_port("tandem.control")?];
    for number in 0..count {
        ports.push(open_port(&format!("tandem.{number}"))?);
    }
    enter_host_tree()?;
    mounts()?;
    if let Some(directory) = word(KERNEL_DIRECTORY) {
        show_modules(Path::new(directory));
    }
    settings()?;
    Ok(ports)
}

fn context(error: io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Loads what the initramfs brings, in its order.
fn load_modules() -> io::Result<()> {
    for name in fs::read_to_string("/modules/order")?.lines() {
        let file = File::open(format!("/modules/{name}"))?;
        match machine::load_module(&file) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
                return Err(context(error, &format!("loading the module {name}")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Finds a virtio-serial port by its name; it may take a moment to appear after its driver.
fn open_port(name: &str) -> io::Result<File> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        for entry in fs::read_dir("/sys/class/virtio-ports")
            .into_iter()
            .flatten()
        {
            let entry = entry?;
            if fs::read_to_string(entry.path().join("name")).is_ok_and(|found| found.trim() == name)
            {
                let path = Path::new("/dev").join(entry.file_name());
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(&path);
                return file
                    .map_err(|error| context(error, &format!("opening {}", path.display())));
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(io::Error::other(format!("the port {name} did not appear")))
}

/// Puts the host's tree where the initramfs was.
fn enter_host_tree() -> io::Result<()> {
    let root = Path::new("/host");
    fs::create_dir_all(root)?;
    machine::mount(
        "hostroot",
        root,
        "9p",
        0,
        "trans=virtio,version=9p2000.L,msize=512000,cache=loose",
    )
    .map_err(|error| context(error, "mounting the host's tree"))?;
    for target in ["/dev", "/proc", "/sys"] {
        machine::mount(target, &root.join(&target[1..]), "", libc::MS_MOVE, "")
            .map_err(|error| context(error, &format!("moving {target}")))?;
    }
    std::env::set_current_dir(root)?;
    machine::mount(".", Path::new("/"), "", libc::MS_MOVE, "")
        .map_err(|error| context(error, "moving the root"))?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")
}

/// The mounts of a running system. Sockets, FIFOs and shared mappings do not work over 9p: those places are in memory.
fn mounts() -> io::Result<()> {
    let private = libc::MS_NOSUID | libc::MS_NODEV;
    for (kind, target, flags, data, needed) in [
        ("tmpfs", "/run", private, "mode=755", true),
        ("tmpfs", "/var/tmp", private, "mode=1777", true),
        (
            "devpts",
            "/dev/pts",
            libc::MS_NOSUID | libc::MS_NOEXEC,
            "mode=620,ptmxmode=666,gid=5",
            true,
        ),
        ("tmpfs", "/dev/shm", private, "mode=1777", true),
        ("mqueue", "/dev/mqueue", private, "", false),
        (
            "cgroup2",
            "/sys/fs/cgroup",
            private | libc::MS_NOEXEC,
            "",
            true,
        ),
        ("debugfs", "/sys/kernel/debug", private, "", false),
        ("tracefs", "/sys/kernel/tracing", private, "", false),
        ("bpf", "/sys/fs/bpf", private, "mode=700", false),
    ] {
        if target.starts_with("/dev/") {
            fs::create_dir_all(target)?;
        }
        match machine::mount(kind, Path::new(target), kind, flags, data) {
            Err(error) if needed => return Err(context(error, &format!("mounting {target}"))),
            _ => {}
        }
    }
    for directory in ["/run/lock", "/run/user", "/run/netns"] {
        fs::create_dir_all(directory)?;
    }
    for (link, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
    ] {
        let _ = symlink(to, Path::new("/dev").join(link));
    }
    Ok(())
}

/// Makes this kernel's modules loadable by name. A host without /lib/modules gets that one empty directory.
fn show_modules(directory: &Path) {
    let source = directory.join("lib/modules");
    let target = Path::new("/lib/modules");
    let shown = fs::create_dir_all(target)
        .and_then(|()| machine::mount(&source.to_string_lossy(), target, "", libc::MS_BIND, ""));
    if let Err(error) = shown {
        // Only what is already loaded can be used then, which is enough for most.
        eprintln!("tandem-lab-agent: modules cannot be loaded by name: {error}");
    }
}

fn settings() -> io::Result<()> {
    machine::loopback_up().map_err(|error| context(error, "bringing up the loopback interface"))?;
    machine::set_host_name(&CString::new("tandem-lab")?)?;
    process::set_open_files(1024, 1 << 20);
    // Dropping caches before each command shall not fill the kernel's log.
    fs::write("/proc/sys/vm/drop_caches", "4")?;
    for (path, value) in [
        ("/proc/self/oom_score_adj", "-1000"),
        (
            "/sys/fs/cgroup/cgroup.subtree_control",
            "+cpuset +cpu +io +memory +pids",
        ),
        ("/proc/sys/fs/inotify/max_user_instances", "1024"),
    ] {
        if let Err(error) = fs::write(path, value) {
            eprintln!("tandem-lab-agent: {path}: {error}");
        }
    }
    process::set_priority(-5);
    Ok(())
}
