//! QEMU: what it is given and why, how it is started, and what it said last.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{Context, LabError, Result};
use crate::sys::clock;
use crate::sys::process::{self, ChildSetup};

/// How many commands can run at the same time.
pub const PORTS: usize = 8;

/// Where things are, and how large the machine is to be.
#[derive(Debug)]
pub struct Plan {
    /// QEMU's program.
    pub qemu: PathBuf,
    /// The kernel artifact: a directory with `vmlinuz` and `lib/modules`.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// Where the console goes.
    pub console: PathBuf,
    /// MiB.
    pub memory: u32,
}

/// A running machine and the host's ends of its ports.
#[derive(Debug)]
pub struct Machine {
    /// QEMU.
    pub process: Child,
    /// The agent's heartbeat.
    pub control: UnixStream,
    /// One command each.
    pub ports: Vec<UnixStream>,
}

/// Starts the machine. QEMU dies with the calling thread.
pub fn start(plan: &Plan) -> Result<Machine> {
    let mut command = Command::new(&plan.qemu);
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-name",
        "tandem-lab",
    ]);
    // Software emulation with AMD's virtualisation in it. One processor: with two, the emulator ran half as fast, and
    // the machine's kernel died after about ten VMs when it patched code that the other one was running.
    command.args([
        "-machine",
        "q35",
        "-accel",
        "tcg",
        "-cpu",
        "EPYC,+svm,+npt",
        "-smp",
        "1",
    ]);
    command.arg("-m").arg(plan.memory.to_string());
    command
        .arg("-kernel")
        .arg(plan.kernel.join("vmlinuz"))
        .arg("-initrd")
        .arg(&plan.initramfs);
    // An oops ends the machine, and so is noticed. A busy host makes an emulated processor look stuck and its clock
    // unstable, when they are not: nobody watches for that. Nor does the kernel measure how fast its time stamp counter,
    // which is the host's, counts: an emulated timer is late where the host is busy, and clocks then ran up to five times
    // too fast, in this machine and its guests.
    let line = format!(
        "console=ttyS0 quiet mitigations=off oops=panic panic=-1 nowatchdog tsc=reliable tsc_early_khz={} \
         tandem.ports={PORTS} tandem.kernel_directory={}",
        clock::tsc_khz(),
        plan.kernel.display()
    );
    command.arg("-append").arg(line);
    command
        .arg("-chardev")
        .arg(format!("file,id=console,path={}", comma(&plan.console)));
    command.args(["-serial", "chardev:console"]);
    command.args([
        "-object",
        "rng-random,id=rng,filename=/dev/urandom",
        "-device",
        "virtio-rng-pci,rng=rng",
    ]);
    command.args([
        "-virtfs",
        "local,path=/,mount_tag=hostroot,security_model=none,multidevs=remap",
    ]);
    // Each port is one end of a socket pair: no path that anyone else could open, and its end is QEMU's end.
    command.args(["-device", "virtio-serial-pci,max_ports=31"]);
    let mut ours = vec![];
    let mut theirs = vec![];
    for number in 0..=PORTS {
        let (here, there) = UnixStream::pair().during("making a socket pair")?;
        let name = number
            .checked_sub(1)
            .map_or("control".into(), |number| number.to_string());
        command
            .arg("-chardev")
            .arg(format!("socket,id=port{number},fd={}", there.as_raw_fd()));
        command.arg("-device").arg(format!(
            "virtserialport,chardev=port{number},name=tandem.{name}"
        ));
        ours.push(here);
        theirs.push(there);
    }
    let complaints = plan.console.with_file_name("qemu.log");
    let log = fs::File::create(&complaints).during(format!("making {}", complaints.display()))?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().during("the log")?)
        .stderr(log);
    let setup = ChildSetup {
        death_signal: Some(libc::SIGKILL),
        new_session: true,
        ..ChildSetup::default()
    };
    process::set_up_child(
        &mut command,
        setup,
        theirs.iter().map(AsRawFd::as_raw_fd).collect(),
    );
    let process = command
        .spawn()
        .during(format!("starting {}", plan.qemu.display()))?;
    drop(theirs);
    let control = ours.remove(0);
    Ok(Machine {
        process,
        control,
        ports: ours,
    })
}

/// QEMU's options end at a comma unless it is doubled.
fn comma(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// Finds a program in `PATH`, or where system programs are.
pub fn find_program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/bin", "/usr/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| LabError::Told(format!("{name} is not installed")))
}

/// How much of the console an error message shows.
const LINES_SHOWN: usize = 25;

/// What the machine's console and QEMU last said, for an error message: from the kernel's own last words on, if any.
pub fn last_words(console: &Path) -> String {
    let mut words = String::new();
    let complaints = console.with_file_name("qemu.log");
    for (title, path) in [
        ("QEMU said", complaints.as_path()),
        ("its console ended with", console),
    ] {
        let bytes = fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        // QEMU says that of every start.
        let noise =
            |line: &str| line.is_empty() || line.contains("TCG doesn't support requested feature");
        let lines: Vec<&str> = text
            .lines()
            .map(str::trim_end)
            .filter(|line| !noise(line))
            .collect();
        let fatal = |line: &&str| {
            ["Kernel panic", "BUG: ", "Oops: "]
                .iter()
                .any(|word| line.contains(word))
        };
        let from = lines
            .iter()
            .position(fatal)
            .unwrap_or(lines.len().saturating_sub(LINES_SHOWN));
        let shown = &lines[from..lines.len().min(from + LINES_SHOWN)];
        if !shown.is_empty() {
            words += &format!("\n{title}:");
        }
        for line in shown {
            words += "\n  | ";
            words.extend(line.chars().filter(|c| !c.is_control()));
        }
    }
    words
}
