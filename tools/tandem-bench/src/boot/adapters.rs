//! How each VMM is told to boot the same guest.
//!
//! Every adapter gets the same kernel, initrd, command line, memory and vCPUs, and connects the guest's first serial
//! port to the process's standard output. It leaves out devices that the guest does not need, and says how the process
//! ends when the guest resets itself.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::error::{Error, Result};

/// In an argument: the time just before the process is started, in microseconds of the monotonic clock.
pub const START_TIME_US: &str = "{start-time-us}";

/// The guest that every VMM boots.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Kernel, an ELF file.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: PathBuf,
    /// Kernel command line, but for how the guest ends.
    pub boot_args: String,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u64,
}

/// How to start a VMM.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Arguments; in them, [`START_TIME_US`] stands for that time.
    pub arguments: Vec<OsString>,
    /// Exit codes of a boot that went well.
    pub good_exits: Vec<i32>,
    /// The VMM writes its own timeline there.
    pub timeline: Option<PathBuf>,
}

/// A kind of VMM.
pub trait Adapter: Sync {
    /// Its name.
    fn kind(&self) -> &'static str;

    /// Names that programs of this kind have: a name that starts with one of them is of this kind.
    fn names(&self) -> &'static [&'static str];

    /// What the guest is told to do at the end. A reset by triple fault ends every VMM here that can end by a reset.
    fn ending(&self) -> &'static str {
        "reboot=t tandem.test=reboot"
    }

    /// The command to boot `guest`. `dir` is for files that go with it; `binary` is where the program was installed.
    fn launch(&self, guest: &Guest, dir: &Path, binary: &Path) -> Result<Launch>;

    /// The whole kernel command line.
    fn command_line(&self, guest: &Guest) -> String {
        format!("{} {}", guest.boot_args, self.ending())
    }
}

const ADAPTERS: [&dyn Adapter; 4] = [&Tandem, &Firecracker, &Qemu, &CloudHypervisor];

/// The adapter for a VMM of this name or, if the name says nothing, of this file.
pub fn infer(name: &str, binary: &Path) -> Result<&'static dyn Adapter> {
    let file = binary.file_name().unwrap_or_default().to_string_lossy();
    [name, &file]
        .iter()
        .find_map(|text| {
            ADAPTERS.into_iter().find(|adapter| {
                let names = adapter.names();
                names.iter().any(|start| text.starts_with(start))
            })
        })
        .ok_or_else(|| {
            let known: Vec<_> = ADAPTERS.iter().map(|adapter| adapter.kind()).collect();
            Error::new(format!(
                "--vmm {name}={}: no kind of VMM is known by that name; let NAME start with one of: {} \
                 (such as {}-{name}={})",
                binary.display(),
                known.join(", "),
                known[0],
                binary.display(),
            ))
        })
}

struct Tandem;

impl Adapter for Tandem {
    fn kind(&self) -> &'static str {
        "tandem"
    }

    fn names(&self) -> &'static [&'static str] {
        &["tandem"]
    }

    fn launch(&self, guest: &Guest, dir: &Path, _binary: &Path) -> Result<Launch> {
        let config = write_config(dir, &self.config(guest))?;
        let timeline = dir.join("timeline.json");
        let mut arguments = words("--no-api --config-file");
        arguments.push(config.into());
        arguments.push("--boot-timeline".into());
        arguments.push(timeline.clone().into());
        // Its timeline then counts from the same moment as every other number here.
        arguments.extend(words(&format!("--start-time-us {START_TIME_US}")));
        Ok(Launch {
            arguments,
            // The guest reset itself, or ended in a triple fault; both are what was asked for.
            good_exits: vec![64, 66],
            timeline: Some(timeline),
        })
    }
}

impl Tandem {
    fn config(&self, guest: &Guest) -> serde_json::Value {
        json!({
            "boot-source": {
                "kernel_image_path": guest.kernel,
                "initrd_path": guest.initrd,
                "boot_args": self.command_line(guest),
            },
            "machine-config": { "vcpu_count": guest.vcpus, "mem_size_mib": guest.memory_mib },
        })
    }
}

struct Firecracker;

impl Adapter for Firecracker {
    fn kind(&self) -> &'static str {
        "firecracker"
    }

    fn names(&self) -> &'static [&'static str] {
        &["firecracker", "fc"]
    }

    fn launch(&self, guest: &Guest, dir: &Path, _binary: &Path) -> Result<Launch> {
        let config = json!({
            "boot-source": {
                "kernel_image_path": guest.kernel,
                "initrd_path": guest.initrd,
                "boot_args": self.command_line(guest),
            },
            // Without this field, its older versions refuse the file.
            "drives": [],
            "machine-config": { "vcpu_count": guest.vcpus, "mem_size_mib": guest.memory_mib },
        });
        let mut arguments = words("--no-api --level Error --config-file");
        arguments.push(write_config(dir, &config)?.into());
        Ok(Launch {
            arguments,
            good_exits: vec![0],
            timeline: None,
        })
    }
}

struct Qemu;

impl Qemu {
    /// The firmware that starts an ELF kernel fastest; QEMU's own choice for microvm with ACPI is a full SeaBIOS.
    const FIRMWARE: &str = "qboot.rom";
    const DATA: [&str; 3] = [
        "/usr/share/qemu",
        "/usr/share/seabios",
        "/usr/local/share/qemu",
    ];

    /// Copies of the firmware and option ROM; QEMU would search its data directories for them.
    fn data(dir: &Path, binary: &Path) -> Result<PathBuf> {
        let beside = binary
            .parent()
            .map(|bin| bin.join("../share/qemu"))
            .unwrap_or_default();
        let to = dir.join("data");
        fs::create_dir_all(&to).map_err(|error| Error::file("make", &to, &error))?;
        for rom in [Self::FIRMWARE, "pvh.bin", "linuxboot_dma.bin"] {
            let found = [&beside]
                .into_iter()
                .map(PathBuf::as_path)
                .chain(Self::DATA.iter().map(Path::new))
                .map(|place| place.join(rom))
                .find(|file| file.exists())
                .ok_or_else(|| {
                    Error::new(format!(
                        "QEMU's {rom} is not in {}; install Debian's qemu-system-data",
                        Self::DATA.join(", ")
                    ))
                })?;
            fs::copy(&found, to.join(rom)).map_err(|error| Error::file("copy", &found, &error))?;
        }
        Ok(to)
    }
}

impl Adapter for Qemu {
    fn kind(&self) -> &'static str {
        "qemu"
    }

    fn names(&self) -> &'static [&'static str] {
        &["qemu"]
    }

    fn launch(&self, guest: &Guest, dir: &Path, binary: &Path) -> Result<Launch> {
        let data = Self::data(dir, binary)?;
        let mut arguments = words(
            "-M microvm,accel=kvm,acpi=on,x-option-roms=on,pit=off,pic=off,rtc=off,isa-serial=on,pcie=off,usb=off,\
             auto-kernel-cmdline=off -cpu host -nodefaults -no-user-config -no-reboot -display none -monitor none \
             -chardev stdio,id=serial,signal=off -serial chardev:serial -bios",
        );
        arguments.push(data.join(Self::FIRMWARE).into());
        arguments.push("-L".into());
        arguments.push(data.into());
        arguments.extend(words(&format!(
            "-m {} -smp {} -kernel",
            guest.memory_mib, guest.vcpus
        )));
        arguments.push(guest.kernel.clone().into());
        arguments.push("-initrd".into());
        arguments.push(guest.initrd.clone().into());
        arguments.push("-append".into());
        arguments.push(self.command_line(guest).into());
        Ok(Launch {
            arguments,
            good_exits: vec![0],
            timeline: None,
        })
    }
}

struct CloudHypervisor;

impl Adapter for CloudHypervisor {
    fn kind(&self) -> &'static str {
        "cloud-hypervisor"
    }

    fn names(&self) -> &'static [&'static str] {
        &["cloud-hypervisor", "ch"]
    }

    /// It starts the guest again after a reset.
    fn ending(&self) -> &'static str {
        "tandem.test=poweroff"
    }

    fn launch(&self, guest: &Guest, _dir: &Path, _binary: &Path) -> Result<Launch> {
        let mut arguments = words("--serial tty --console off --rng src=/dev/urandom");
        arguments.extend(words(&format!(
            "--memory size={}M --cpus boot={} --kernel",
            guest.memory_mib, guest.vcpus
        )));
        arguments.push(guest.kernel.clone().into());
        arguments.push("--initramfs".into());
        arguments.push(guest.initrd.clone().into());
        arguments.push("--cmdline".into());
        arguments.push(self.command_line(guest).into());
        Ok(Launch {
            arguments,
            good_exits: vec![0],
            timeline: None,
        })
    }
}

/// Arguments without blanks in them.
fn words(text: &str) -> Vec<OsString> {
    text.split_ascii_whitespace().map(OsString::from).collect()
}

fn write_config(dir: &Path, config: &serde_json::Value) -> Result<PathBuf> {
    let path = dir.join("vm.json");
    fs::write(&path, format!("{config:#}\n"))
        .map_err(|error| Error::file("write", &path, &error))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_come_from_names_first_and_files_second() {
        for (name, file, kind) in [
            ("tandem", "/x/y", "tandem"),
            ("tandem-old", "/x/qemu-system-x86_64", "tandem"),
            ("mine", "/usr/bin/qemu-system-x86_64", "qemu"),
            ("fc", "/x", "firecracker"),
            ("v1", "/opt/firecracker-v1.10", "firecracker"),
            ("x", "/opt/cloud-hypervisor-static", "cloud-hypervisor"),
        ] {
            assert_eq!(infer(name, Path::new(file)).unwrap().kind(), kind, "{name}");
        }
        let error = infer("crosvm", Path::new("/bin/crosvm")).err().unwrap();
        assert!(error.to_string().contains("firecracker"), "{error}");
    }

    #[test]
    fn every_vmm_gets_the_same_guest() {
        let dir = tempfile::tempdir().unwrap();
        let guest = Guest {
            kernel: "/k e".into(),
            initrd: "/i".into(),
            boot_args: "console=ttyS0 quiet".into(),
            vcpus: 2,
            memory_mib: 96,
        };
        for adapter in ADAPTERS {
            let launched = adapter.launch(&guest, dir.path(), Path::new("/usr/bin/x"));
            let Ok(launch) = launched else {
                assert_eq!(adapter.kind(), "qemu", "needs its firmware");
                continue;
            };
            let mut text = format!("{:?}", launch.arguments);
            text += &fs::read_to_string(dir.path().join("vm.json")).unwrap_or_default();
            for part in [
                "/k e",
                "/i",
                "console=ttyS0 quiet",
                "96",
                "2",
                "tandem.test=",
            ] {
                assert!(text.contains(part), "{}: {part}", adapter.kind());
            }
        }
    }
}
